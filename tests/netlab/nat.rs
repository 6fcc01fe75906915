//! Forwarding by NAT with real sockets: the director rewrites both directions.
//!
//! Each test has a cluster of its own. Needs root. Not here: UDP (`udp.rs`).

use xvs::cluster::{VIP, real_server};
use xvs::{Director, Method, Workers, clients, traffic};

#[test]
fn downloads_and_uploads_arrive_whole_with_one_worker() {
    traffic::tcp_whole_both_ways(Method::Nat, Workers::One);
}

#[test]
fn downloads_and_uploads_arrive_whole_with_two_workers() {
    traffic::tcp_whole_both_ways(Method::Nat, Workers::Two);
}

#[test]
fn two_hundred_parallel_connections_are_shared_evenly_with_one_worker() {
    traffic::two_hundred_connections_at_once(Method::Nat, Workers::One);
}

#[test]
fn two_hundred_parallel_connections_are_shared_evenly_with_two_workers() {
    traffic::two_hundred_connections_at_once(Method::Nat, Workers::Two);
}

#[test]
fn the_virtual_port_may_differ_from_the_real_servers_port() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:8080 -s rr"));
    director.adm(&format!("-a -t {VIP}:8080 -r {}:80 -m", real_server(1)));
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}:8080/"), 2), ["rs1", "rs1"]);
}

#[test]
fn weights_of_three_to_one_share_connections_three_to_one() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:80 -s wrr"));
    director.adm(&format!("-a -t {VIP}:80 -r {}:80 -m -w 3", real_server(1)));
    director.adm(&format!("-a -t {VIP}:80 -r {}:80 -m -w 1", real_server(2)));
    let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 8);
    assert_eq!(pages.iter().filter(|&name| name == "rs1").count(), 6, "pages came from {pages:?}");
    assert_eq!(pages.iter().filter(|&name| name == "rs2").count(), 2, "pages came from {pages:?}");
}

#[test]
fn ends_that_leave_checksums_to_their_veth_are_served() {
    traffic::checksums_are_completed(Method::Nat);
}
