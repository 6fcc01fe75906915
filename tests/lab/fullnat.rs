//! FULLNAT between commands and packets: local addresses, taken ports, listings, saved rules and steering.
//!
//! Not here: the bytes of packets (`golden/fullnat.rs`), real sockets (`netlab/fullnat.rs`).

use std::collections::HashSet;
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};
use xvs::frames::{ACK, RST, SYN};
use xvs::lab_cluster::{CLIENT, CLIENT6, INSIDE, INSIDE6, VIP, VIP6, assert_balance, at, server, server6};
use xvs::{Datagram, LabCluster, Transport};

#[track_caller]
fn laddr(cluster: &mut LabCluster, line: &str) -> String {
    cluster.xvs(&format!("laddr {line}"))
}

/// A TCP and a UDP service with this number of servers. The local address has these ports.
fn cluster(servers: u8, ports: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    laddr(&mut cluster, &format!("add {INSIDE} --ports {ports}"));
    for protocol in ["-t", "-u"] {
        cluster.adm(&format!("-A {protocol} {VIP}:80 -s rr"));
        for number in 1..=servers {
            cluster.adm(&format!("-a {protocol} {VIP}:80 -r {}:80 --fullnat", server(number)));
        }
    }
    cluster
}

fn syn(port: u16) -> Datagram {
    Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80))
}

/// The rows of connections, with local endpoints.
fn connections(cluster: &mut LabCluster) -> Vec<Value> {
    let rows: Value = serde_json::from_str(&cluster.adm("-L -n -c --json")).expect("JSON");
    rows.as_array().expect("an array").clone()
}

#[test]
fn each_port_is_taken_once_for_each_server_and_then_connections_are_refused_and_counted() {
    let mut cluster = cluster(2, "5000-5003");
    for number in 0..8 {
        connect(&mut cluster, 1000 + number);
    }
    assert_eq!(cluster.from_client(&syn(2000)).verdict, "drop no_local_port");
    assert_eq!(cluster.total_load(), (8, 0), "a refused connection is not counted");
    // Ports of another protocol are separate.
    let datagram = Datagram::new(Transport::Udp, at(CLIENT, 2000), at(VIP, 80));
    assert_eq!(cluster.from_client(&datagram).verdict, "transmit");
    let expected = format!(
        "\
Address                     Ports        Connections  Taken  Most towards
{:<27} 5000-5003              9 100.0%  TCP {}:80
1 connections found no free port and were refused; add an address, or more ports
",
        INSIDE.to_string(),
        server(2)
    );
    assert_eq!(laddr(&mut cluster, "list"), expected);
    // A connection that ends releases its port.
    cluster.advance(901.0);
    assert_eq!(cluster.from_client(&syn(2000)).verdict, "transmit");
}

/// Sends the packets by which a client is proven.
fn connect(cluster: &mut LabCluster, port: u16) {
    assert_eq!(cluster.from_client(&syn(port)).verdict, "transmit", "{port}");
    let ack = Datagram::new(Transport::Tcp(ACK), at(CLIENT, port), at(VIP, 80));
    for _ in 0..3 {
        assert_eq!(cluster.from_client(&ack).verdict, "transmit", "{port}");
    }
}

#[test]
fn half_open_and_single_datagram_holders_of_ports_give_way_to_new_connections_and_clients_stay() {
    let mut cluster = cluster(1, "5000-5009");
    for port in 0..5 {
        connect(&mut cluster, 1000 + port);
    }
    for port in 2000..2200 {
        assert_eq!(cluster.from_client(&syn(port)).verdict, "transmit", "{port}");
        let datagram = Datagram::new(Transport::Udp, at(CLIENT, port), at(VIP, 80));
        assert_eq!(cluster.from_client(&datagram).verdict, "transmit", "{port}");
        cluster.advance(0.01);
    }
    let kept = cluster.connections().iter().filter(|row| row.contains("ESTABLISHED")).count();
    let counters = cluster.counters();
    assert_eq!((kept, counters["evicted"], counters["connections"]), (5, 195 + 190, 405));
    assert_eq!(counters.get("drop_no_local_port"), None);
    assert_balance(&counters);
}

#[test]
fn without_a_local_address_of_its_family_a_connection_is_refused_with_the_command_that_helps() {
    let mut cluster = LabCluster::new();
    laddr(&mut cluster, &format!("add {INSIDE6}"));
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 --fullnat", server(1)));
    assert_eq!(cluster.from_client(&syn(1)).verdict, "drop no_local_address");
    laddr(&mut cluster, &format!("add {INSIDE}"));
    assert_eq!(cluster.from_client(&syn(1)).verdict, "transmit");
}

#[test]
fn connections_continue_when_their_local_address_is_deleted_and_are_steered_until_they_end() {
    let mut cluster = cluster(1, "5000-5000");
    cluster.from_client(&syn(1000));
    laddr(&mut cluster, &format!("delete {INSIDE}"));
    let reply = Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(INSIDE, 5000));
    assert_eq!(cluster.from_server(&reply).verdict, "transmit");
    assert_eq!(cluster.from_client(&syn(1001)).verdict, "drop no_local_address");
    let inside = IpAddr::from(INSIDE);
    assert_eq!(cluster.lab().director.steering_rules().translated.get(&inside), Some(&(5000, 5000)));
    cluster.advance(200.0);
    assert!(connections(&mut cluster).is_empty());
    assert!(cluster.lab().director.steering_rules().translated.is_empty());
}

#[test]
fn local_addresses_are_steered_while_a_service_has_a_fullnat_server() {
    let mut cluster = LabCluster::new();
    laddr(&mut cluster, &format!("add {INSIDE} --ports 5000-5999"));
    assert!(cluster.lab().director.steering_rules().translated.is_empty());
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 --fullnat", server(1)));
    assert_eq!(cluster.lab().director.steering_rules().translated, [(INSIDE.into(), (5000, 5999))].into());
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
    assert!(cluster.lab().director.steering_rules().translated.is_empty());
}

#[test]
fn listings_show_the_method_and_the_local_endpoint_and_count_both_directions() {
    let mut cluster = cluster(1, "5000-5000");
    cluster.from_client(&syn(1000));
    cluster.from_server(&Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(INSIDE, 5000)));
    let listing = cluster.adm("-L -n -t 198.51.100.1:80");
    let row = format!("  -> {:<28} FullNat 1      1          0         ", format!("{}:80", server(1)));
    assert!(listing.lines().any(|line| line == row), "{listing}");
    assert_eq!(cluster.stats()[1], format!("-> {}:80 1 1 1 40 40", server(1)));
    assert_eq!(
        cluster.connections(),
        [format!("TCP 00:58 SYN_RECV {CLIENT}:1000 {VIP}:80 {}:80", server(1))]
    );
    assert_eq!(connections(&mut cluster)[0]["local"], json!(format!("{INSIDE}:5000")));
}

#[test]
fn saved_rules_are_restored_and_ipvsadm_skips_the_lines_of_xvs() {
    let mut cluster = cluster(1, "5000-6000");
    cluster.adm(&format!("-e -u {VIP}:80 -r {}:80 -m -w 3", server(1)));
    laddr(&mut cluster, &format!("add {INSIDE6}"));
    cluster.adm(&format!("-A -t [{VIP6}]:80 -s rr"));
    cluster.adm(&format!("-a -t [{VIP6}]:80 -r [{}]:8080 --fullnat -w 2", server6(1)));
    let saved = cluster.adm("-S -n");
    let expected = format!(
        "\
#xvs laddr add {INSIDE} --ports 5000-6000
#xvs laddr add {INSIDE6} --ports 1024-32767
-A -t {VIP}:80 -s rr
#xvs -a -t {VIP}:80 -r {server}:80 --fullnat -w 1
-A -u {VIP}:80 -s rr
-a -u {VIP}:80 -r {server}:80 -m -w 3
-A -t [{VIP6}]:80 -s rr
#xvs -a -t [{VIP6}]:80 -r [{server6}]:8080 --fullnat -w 2
",
        server = server(1),
        server6 = server6(1)
    );
    assert_eq!(saved, expected);
    let mut other = LabCluster::new();
    let answer = other.ask(json!({ "adm": ["-R"], "stdin": saved }));
    assert_eq!((&answer["exit"], &answer["stderr"]), (&json!(0), &json!("")));
    assert_eq!(other.adm("-S -n"), expected);
}

#[test]
fn restoring_a_local_address_succeeds_if_it_exists_and_fails_if_it_has_other_ports() {
    let mut cluster = cluster(1, "5000-5999");
    let before = cluster.adm("-S -n");
    let mut restore = |ports: &str| {
        let line = format!("#xvs laddr add {INSIDE} --ports {ports}\n");
        let answer = cluster.ask(json!({ "adm": ["-R"], "stdin": line }));
        assert_eq!(cluster.adm("-S -n"), before);
        (answer["exit"].clone(), answer["stderr"].as_str().expect("text").to_owned())
    };
    assert_eq!(restore("5000-5999"), (json!(0), String::new()));
    let (exit, stderr) = restore("5000-6999");
    assert_ne!(exit, 0);
    for word in [INSIDE.to_string().as_str(), "ports 5000-5999", "delete it before"] {
        assert!(stderr.contains(word), "{stderr}");
    }
}

#[test]
fn an_address_that_cannot_be_a_local_address_is_refused_with_a_reason() {
    let mut cluster = LabCluster::new();
    laddr(&mut cluster, &format!("add {INSIDE}"));
    for (line, exit, reason) in [
        (format!("add {INSIDE}"), 3, "exists already"),
        ("add 127.0.0.1".to_owned(), 3, "cannot reply"),
        (format!("add {} --ports 9-8", server(1)), 3, "not a range of ports"),
        (format!("add {} --ports 80", server(1)), 2, "LOW-HIGH"),
        (format!("delete {}", server(1)), 3, "laddr list"),
    ] {
        let (code, why) = cluster.xvs_reading(&format!("laddr {line}"));
        assert_eq!(code, exit, "{line}: {why}");
        assert!(why.contains(reason), "{line}: {why}");
    }
    let answer = cluster.ask(json!({ "adm": ["-R"], "stdin": "#xvs laddr list\n" }));
    assert_eq!(answer["exit"], 2, "{answer}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn no_port_is_shared_by_two_live_connections_to_one_destination(
        steps in prop::collection::vec((0u16..60, prop_oneof![Just(SYN), Just(ACK), Just(RST)], any::<bool>(), 0u8..3), 1..120),
    ) {
        let mut cluster = cluster(2, "5000-5007");
        for (client, flags, udp, seconds) in steps {
            let transport = if udp { Transport::Udp } else { Transport::Tcp(flags) };
            cluster.from_client(&Datagram::new(transport, at(CLIENT, 1000 + client), at(VIP, 80)));
            cluster.advance(f64::from(seconds));
            let rows = connections(&mut cluster);
            let replies: HashSet<_> = rows
                .iter()
                .map(|row| ["protocol", "dest", "local"].map(|field| row[field].as_str().unwrap().to_owned()))
                .collect();
            prop_assert_eq!(replies.len(), rows.len());
        }
    }
}

#[test]
fn only_full_nat_and_tunnels_take_real_servers_of_the_other_family() {
    let mut cluster = LabCluster::new();
    let adm = |cluster: &mut LabCluster, line: &str| {
        let answer = cluster.ask(json!({ "adm": line.split(' ').collect::<Vec<_>>() }));
        (answer["exit"].as_u64().unwrap(), answer["stderr"].as_str().unwrap_or_default().to_owned())
    };
    cluster.adm(&format!("-A -t [{VIP6}]:80 -s rr"));
    let add = format!("-a -t [{VIP6}]:80 -r {}:80", server(1));
    for method in ["-m", "-g"] {
        let (exit, text) = adm(&mut cluster, &format!("{add} {method}"));
        let wanted = "Different address family is allowed only for tunneling servers";
        assert!(exit == 2 && text.contains(wanted), "{exit} {text}");
    }
    assert_eq!(adm(&mut cluster, &format!("{add} --fullnat -w 3")), (0, String::new()));
    let saved = cluster.adm("-S -n");
    assert!(saved.contains(&format!("-a -t [{VIP6}]:80 -r {}:80 --fullnat -w 3", server(1))), "{saved}");
    // Without a local address of its family.
    let first = Datagram::new(Transport::Tcp(SYN), at(CLIENT6, 1), at(VIP6, 80));
    laddr(&mut cluster, &format!("add {INSIDE6}"));
    assert_eq!(cluster.from_client(&first).verdict, "drop no_local_address");
    laddr(&mut cluster, &format!("add {INSIDE}"));
    assert_eq!(cluster.from_client(&first).verdict, "transmit");
    let rows = connections(&mut cluster);
    assert_eq!(
        rows[0]["local"].as_str().map(|local| local.contains(&INSIDE.to_string())),
        Some(true),
        "{rows:?}"
    );
    cluster.adm(&format!("-d -t [{VIP6}]:80 -r {}:80", server(1)));
    let reply = Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(INSIDE, 1024));
    assert_eq!(cluster.from_server(&reply).verdict, "pass", "no service concerns IPv4 any more");
}
