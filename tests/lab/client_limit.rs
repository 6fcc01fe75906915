//! Limits of clients and of a service's SYNs (`xvs limit`) with a clock that the test moves: who may connect, and when.
//!
//! Not here: the lines of a rules file (`rules/tests.rs` of `ipvsadm`), many workers (`snapshot/clients.rs` of
//! `dataplane`), the XDP program (`kernel/steering_syn_limits.rs` of `dataplane`, `netlab/limits.rs`).

use std::net::IpAddr;

use serde_json::json;
use xvs::frames::{ACK, FIN, RST, SYN};
use xvs::lab_cluster::{CLIENT, CLIENT6, VIP, VIP6, at, server, server6};
use xvs::{Datagram, LabCluster, Transport};
use xvs_ipvsadm::{SystemResolver, read_wanted};
use xvs_model::protocol::client::Director as _;
use xvs_model::protocol::question::ControlRequest;

fn cluster(method: &str, limit: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s rr"),
        &format!("-a -t {VIP}:80 -r {}:80 {method}", server(1)),
    ]);
    cluster.xvs(&format!("limit set -t {VIP}:80 {limit}"));
    cluster
}

fn segment(cluster: &mut LabCluster, client: impl Into<IpAddr>, port: u16, flags: u8) -> String {
    cluster.from_client(&Datagram::new(Transport::Tcp(flags), at(client, port), at(VIP, 80))).verdict
}

/// A SYN from each of these ports of a client. Returns how many are forwarded.
fn admitted(cluster: &mut LabCluster, client: impl Into<IpAddr>, ports: std::ops::Range<u16>) -> usize {
    let client = client.into();
    ports.filter(|port| segment(cluster, client, *port, SYN) == "transmit").count()
}

#[test]
fn a_client_has_so_many_connections_at_once_and_another_client_its_own() {
    let mut cluster = cluster("-g", "--connections 3");
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1005), 3);
    assert_eq!(segment(&mut cluster, CLIENT, 1005, SYN), "drop client_connections");
    assert_eq!(segment(&mut cluster, CLIENT, 1000, SYN), "transmit", "a repeated SYN is no new connection");
    assert_eq!(admitted(&mut cluster, [192, 0, 2, 201], 1000..1005), 3);
    assert_eq!(cluster.counters()["drop_client_connections"], 5);
}

#[test]
fn a_connection_that_ends_in_any_way_makes_room_for_the_next_one() {
    let mut cluster = cluster("-g", "--connections 2");
    cluster.adm("--set 0 1 0");
    for round in 0..3 {
        let ports = 1000 + 10 * round..1005 + 10 * round;
        assert_eq!(admitted(&mut cluster, CLIENT, ports.clone()), 2, "expired");
        for flags in [ACK, FIN | ACK] {
            (ports.start..ports.start + 2).for_each(|port| _ = segment(&mut cluster, CLIENT, port, flags));
        }
        cluster.advance(2.0);
    }
    assert_eq!(admitted(&mut cluster, CLIENT, 2000..2003), 2);
    assert_eq!(segment(&mut cluster, CLIENT, 2000, RST), "transmit");
    assert_eq!(admitted(&mut cluster, CLIENT, 2000..2001), 1, "replaced: the same connection anew");
    assert_eq!(admitted(&mut cluster, CLIENT, 2003..2004), 0);
}

#[test]
fn a_refused_connection_of_a_server_without_room_costs_its_client_none_at_once() {
    let mut cluster = cluster("-g -x 1", "--connections 2");
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1004), 1);
    assert_eq!(cluster.counters()["drop_no_destination"], 3, "and none by the limit");
}

#[test]
fn new_connections_follow_the_rate_after_a_burst() {
    let mut cluster = cluster("-m", "--rate 10 --burst 4");
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1010), 4);
    assert_eq!(segment(&mut cluster, CLIENT, 1010, SYN), "drop client_rate");
    cluster.advance(0.1);
    assert_eq!(admitted(&mut cluster, CLIENT, 1100..1110), 1);
    cluster.advance(0.3);
    assert_eq!(admitted(&mut cluster, CLIENT, 1200..1210), 3);
    cluster.advance(60.0);
    assert_eq!(admitted(&mut cluster, CLIENT, 1300..1310), 4, "a pause saves no more than the burst");
    assert_eq!(
        segment(&mut cluster, CLIENT, 1300, ACK),
        "transmit",
        "connections that exist are not concerned"
    );
}

#[test]
fn without_a_burst_a_second_of_connections_may_come_at_once() {
    let mut cluster = cluster("-g", "--rate 5");
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1010), 5);
    let datagram = Datagram::new(Transport::Udp, at(CLIENT, 1), at(VIP, 80));
    assert_eq!(
        cluster.from_client(&datagram).verdict,
        "pass",
        "another protocol is no packet of the service"
    );
}

#[test]
fn a_client_of_ipv6_is_its_network_of_64_bits() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t [{VIP6}]:80 -s rr"),
        &format!("-a -t [{VIP6}]:80 -r [{}]:80 -g", server6(1)),
    ]);
    cluster.xvs(&format!("limit set -t [{VIP6}]:80 -c 2"));
    let mut syn = |host: u128| {
        let client = std::net::Ipv6Addr::from(u128::from(CLIENT6) & !0xffff | host);
        cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(client, 1000), at(VIP6, 80))).verdict
    };
    assert_eq!([1, 2, 3].map(&mut syn), ["transmit", "transmit", "drop client_connections"]);
    assert_eq!(syn(1 << 64), "transmit", "another network");
}

#[test]
fn a_limit_that_is_deleted_or_changed_holds_from_then_on() {
    let mut cluster = cluster("-g", "--connections 2");
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1004), 2);
    cluster.xvs(&format!("limit set -t {VIP}:80 --connections 3"));
    assert_eq!(admitted(&mut cluster, CLIENT, 1100..1104), 1);
    cluster.xvs(&format!("limit delete -t {VIP}:80"));
    assert_eq!(admitted(&mut cluster, CLIENT, 1200..1204), 4);
    cluster.xvs(&format!("limit set -t {VIP}:80 --connections 4"));
    assert_eq!(admitted(&mut cluster, CLIENT, 1300..1304), 1, "those made without a limit do not count");
}

#[test]
fn a_limit_stays_when_its_service_is_deleted_and_added_again_and_is_in_saved_rules() {
    let mut cluster = cluster("-g", "--connections 2 --rate 9 --burst 3");
    let line = format!("#xvs limit set -t {VIP}:80 --connections 2 --rate 9 --burst 3\n");
    assert!(cluster.adm("-S -n").contains(&line));
    cluster.adm("-C");
    assert!(cluster.adm("-S -n").contains(&line));
    cluster.configure(&[&format!("-A -t {VIP}:80 -s rr"), &format!("-a -t {VIP}:80 -r {}:80 -g", server(1))]);
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1004), 2);
    let listing = cluster.xvs("limit list");
    assert!(
        listing.contains("TCP 198.51.100.1:80                                2            9        3"),
        "{listing}"
    );
    assert!(
        listing.contains("192.0.2.200/32                                     2            2   TCP"),
        "{listing}"
    );
}

#[test]
fn the_syn_proxy_above_the_rate_needs_servers_whose_replies_pass_the_director() {
    let proxied = "--rate 5 --above syn-proxy";
    let set = format!("limit set -t {VIP}:80 {proxied}");
    let mut direct = cluster("-g", "--rate 5");
    let (exit, why) = direct.xvs_reading(&set);
    assert!(exit != 0 && why.contains("give them -m or --fullnat, or the limit --above drop"), "{why}");
    let mut nat = cluster("-m", proxied);
    assert!(nat.adm("-S -n").contains(&format!("#xvs {set}\n")));
    for line in
        [format!("-a -t {VIP}:80 -r {}:80 -g", server(2)), format!("-e -t {VIP}:80 -r {}:80 -i", server(1))]
    {
        let reply = nat.ask(json!({ "adm": line.split(' ').collect::<Vec<_>>() }));
        assert_ne!(reply["exit"], 0, "{reply}");
        let why = reply["stderr"].as_str().expect("output is text");
        assert!(why.contains("--above syn-proxy with real servers"), "{why}");
    }
    let udp = set.replace("-t", "-u");
    let (exit, why) = nat.xvs_reading(&udp);
    assert!(exit != 0 && why.contains("for another protocol than TCP"), "{why}");
}

#[test]
fn explaining_a_packet_names_the_limit_and_charges_the_client_nothing() {
    let mut cluster = cluster("-g", "--rate 1 --burst 1");
    let question = format!("explain --in wan --proto tcp --from {CLIENT}:1000 --to {VIP}:80");
    for _ in 0..3 {
        assert!(cluster.xvs(&question).contains("verdict     sent"));
    }
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1002), 1);
    let text = cluster.xvs(&question.replace(":1000 ", ":1001 "));
    assert!(text.contains("client_rate"), "{text}");
}

#[test]
fn a_wrong_limit_is_refused_with_its_reason_and_changes_nothing() {
    let mut cluster = cluster("-g", "--connections 2");
    for (line, why) in [
        ("limit set -t 198.51.100.1:80", "--connections <N>|--rate <N>"),
        ("limit set --connections 2", "name the service by -t"),
        ("limit set -t 198.51.100.1:80 --burst 2", "--rate"),
        ("limit set -t 198.51.100.1:80 -c 2 --above syn-proxy", "--rate"),
        ("limit set -t 198.51.100.1:80 -r 2 --above x", "drop or syn-proxy"),
        ("limit set -t 198.51.100.1:80 -r 2 --syn-burst 5", "--syn-rate"),
        (
            "limit set -u 198.51.100.1:80 --syn-rate 5",
            "leave it out; --rate and --connections limit each client",
        ),
        (
            "limit set -f 7 --syn-rate 5",
            "service FWM 7: --syn-rate for another service than one of a TCP address is",
        ),
        ("limit set -t 198.51.100.1:80 --connections 0", "0 is not in 1..="),
        ("limit set -t 198.51.100.1:80 --connections 1000001", "at most 1000000"),
        ("limit delete -t 198.51.100.1:81", "service TCP 198.51.100.1:81 has no limit"),
    ] {
        let (exit, text) = cluster.xvs_reading(line);
        assert!(exit != 0 && text.contains(why), "{line}: {text}");
    }
    assert_eq!(admitted(&mut cluster, CLIENT, 1000..1004), 2);
}

#[test]
fn the_syns_of_all_clients_follow_the_rate_and_other_packets_are_not_concerned() {
    let mut cluster = cluster("-m", "--syn-rate 10 --syn-burst 4");
    cluster.configure(&[&format!("-A -t {VIP}:81 -s rr"), &format!("-a -t {VIP}:81 -r {}:81 -m", server(1))]);
    let from_all = |cluster: &mut LabCluster, port: u16| -> usize {
        (200..210).map(|last| admitted(cluster, [192, 0, 2, last], port..port + 1)).sum()
    };
    assert_eq!(from_all(&mut cluster, 1000), 4);
    assert_eq!(segment(&mut cluster, [192, 0, 2, 200], 1000, SYN), "drop syn_rate", "also a repeated one");
    for flags in [ACK, FIN | ACK, RST] {
        assert_eq!(segment(&mut cluster, [192, 0, 2, 200], 1000, flags), "transmit");
    }
    let other = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 1000), at(VIP, 81));
    assert_eq!(cluster.from_client(&other).verdict, "transmit", "another service");
    cluster.advance(0.1);
    assert_eq!(from_all(&mut cluster, 1001), 1);
    cluster.advance(60.0);
    assert_eq!(from_all(&mut cluster, 1002), 4, "a pause saves no more than the burst");
    assert_eq!(cluster.counters()["drop_syn_rate"], 6 + 1 + 9 + 6);
    let listing = cluster.xvs("limit list");
    let row = "TCP 198.51.100.1:80                                            10        4           22";
    assert!(listing.contains(row), "{listing}");
}

#[test]
fn a_limit_of_syns_is_saved_changed_and_deleted_with_that_of_clients() {
    let mut cluster = cluster("-g", "--connections 2 --syn-rate 5 --syn-burst 3");
    let line = format!("#xvs limit set -t {VIP}:80 --connections 2 --syn-rate 5 --syn-burst 3\n");
    assert!(cluster.adm("-S -n").contains(&line));
    assert_eq!(segment(&mut cluster, CLIENT, 1, SYN), "transmit");
    assert_eq!(segment(&mut cluster, CLIENT, 2, SYN), "transmit");
    assert_eq!(segment(&mut cluster, CLIENT, 3, SYN), "drop client_connections");
    assert_eq!(segment(&mut cluster, CLIENT, 4, SYN), "drop syn_rate");
    // A change of the other numbers leaves this one as it is.
    cluster.xvs(&format!("limit set -t {VIP}:80 --connections 9 --syn-rate 5 --syn-burst 3"));
    assert_eq!(segment(&mut cluster, CLIENT, 5, SYN), "drop syn_rate");
    cluster.xvs(&format!("limit set -t {VIP}:80 --connections 9"));
    assert_eq!(admitted(&mut cluster, CLIENT, 10..19), 7);
    cluster.xvs(&format!("limit set -t {VIP}:80 --syn-rate 1 --syn-burst 1"));
    assert_eq!(admitted(&mut cluster, CLIENT, 40..49), 1);
    cluster.xvs(&format!("limit delete -t {VIP}:80"));
    assert_eq!(admitted(&mut cluster, CLIENT, 50..59), 9);
}

#[test]
fn data_connections_of_ftp_do_not_count_as_syns_of_its_service() {
    let mut cluster = LabCluster::new();
    let server = server(1);
    cluster.configure(&[&format!("-A -t {VIP}:21 -s rr"), &format!("-a -t {VIP}:21 -r {server}:21 -m")]);
    cluster.xvs(&format!("limit set -t {VIP}:21 --syn-rate 1 --syn-burst 2"));
    let mut verdict = |port: u16, to: u16| {
        let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, to));
        cluster.from_client(&syn).verdict
    };
    for port in 1000..1010 {
        assert_ne!(verdict(port, 20_000), "drop syn_rate");
    }
    assert_eq!([2000, 2001].map(|port| verdict(port, 21)), ["transmit"; 2]);
    assert_eq!(verdict(2002, 21), "drop syn_rate");
}

#[test]
fn rules_change_the_methods_before_the_limit_that_needs_them() {
    let mut cluster = cluster("-g", "--rate 5");
    let text = format!(
        "-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {}:80 -m\n\
         #xvs limit set -t {VIP}:80 --rate 5 --above syn-proxy\n",
        server(1)
    );
    let (rules, _) = read_wanted(&text, &SystemResolver::default()).expect("the rules have no fault");
    let apply = ControlRequest::Apply { rules, confirm_within_seconds: None, keeps_locals: false };
    cluster.lab().director.call(apply.into()).expect("nothing is refused");
    let saved = cluster.adm("-S -n");
    assert!(saved.contains("-m -w 1") && saved.contains("--above syn-proxy"), "{saved}");
}

#[test]
fn explaining_a_syn_names_the_limit_of_its_service_and_charges_it_nothing() {
    let mut cluster = cluster("-g", "--syn-rate 1 --syn-burst 1");
    let question = format!("explain --in wan --proto tcp --from {CLIENT}:1000 --to {VIP}:80");
    for _ in 0..3 {
        assert!(cluster.xvs(&question).contains("verdict     sent"));
    }
    assert_eq!(segment(&mut cluster, CLIENT, 1000, SYN), "transmit");
    let text = cluster.xvs(&question.replace(":1000 ", ":1001 "));
    assert!(text.contains("syn_rate"), "{text}");
    assert!(cluster.xvs("limit list").contains("           0\n"), "explaining counts no drop");
}
