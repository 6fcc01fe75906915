//! Forwarding by NAT with real sockets: the director rewrites both directions.
//!
//! Each test has a cluster of its own. Needs root. Not here: UDP (`udp.rs`).

use std::net::{SocketAddr, TcpListener, TcpStream};

use xvs::cluster::{VIP, real_server, succeed};
use xvs::director::Protocol;
use xvs::{Director, Host, Method, Workers, clients, traffic};

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

/// The commands of docs/gateway.md.
#[test]
fn the_kernel_masquerades_what_real_servers_send_on_their_own_and_tracks_nothing_else() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let shell = |host, line: &str| succeed(cluster.command(host, "sh").args(["-e", "-c", line]));
    shell(
        Host::Director,
        "sysctl -qw net.ipv4.ip_forward=1
         nft add table ip gateway
         nft 'add chain ip gateway postrouting { type nat hook postrouting priority srcnat; }'
         nft add rule ip gateway postrouting ip saddr 192.0.2.0/24 oifname wan masquerade",
    );
    let tracked = || shell(Host::Director, "sysctl -n net.netfilter.nf_conntrack_count").trim().to_owned();
    let director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    director.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", real_server(1)));
    let before = tracked();
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 4), ["rs1"; 4]);
    assert_eq!(tracked(), before, "no connection of a service");
    let listener = cluster.run(Host::Client, || TcpListener::bind("0.0.0.0:8000")).expect("a free port");
    let at_client: SocketAddr = "198.51.100.10:8000".parse().expect("an address");
    let own =
        cluster.run(Host::RealServer(1), || TcpStream::connect(at_client)).expect("the kernel forwards");
    let (_, from) = listener.accept().expect("it has connected");
    assert_ne!(from.ip(), own.local_addr().expect("connected").ip(), "masqueraded");
    assert_ne!(tracked(), before);
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 2), ["rs1"; 2]);
}

#[test]
fn a_real_server_that_is_a_client_of_its_own_service_is_named_with_the_cause_and_served_by_fullnat() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    // Linux repeats a SYN after a second.
    let connects = format!("for number in 1 2 3 4 5 6; do curl -s -m 2 http://{VIP}/ & done; wait");
    succeed(cluster.command(Host::RealServer(1), "sh").args(["-c", &connects]));
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 4).len(), 4, "other clients are served");
    let cause = "3 connections, none answered; 192.0.2.11 is a client in the network of the real servers, whose \
                 replies go to it directly; use FULLNAT for it";
    for server in [1, 2] {
        let warning = format!("TCP {VIP}:80: {}:80: {cause}", real_server(server));
        assert!(director.status().contains(&warning), "{}", director.status());
    }
    let explained =
        director.xvs(&format!("explain --proto tcp --from 192.0.2.11:4711 --to {VIP}:80 --in lan"));
    assert!(
        explained.contains("to do       192.0.2.11 is a client in the network of the real"),
        "{explained}"
    );

    director.xvs("laddr add 192.0.2.1 --ports 5000-6000");
    for server in [1, 2] {
        director.adm(&format!("-e -t {VIP}:80 -r {}:80 --fullnat", real_server(server)));
    }
    let page = succeed(cluster.command(Host::RealServer(1), "curl").args(["-s", &format!("http://{VIP}/")]));
    assert!(page.starts_with("rs"), "{page}");
    assert!(!director.status().contains("none answered"), "{}", director.status());
}
