//! Persistence through the lab: which connections share a template, for how long, and how templates are listed.
//!
//! Each test is a sequence of steps by clients, an operator and the clock. Not here: counts after random histories
//! (`properties.rs`, and `crates/dataplane/tests/connections/eviction.rs` for several workers); the recordings of the
//! kernel (`conformance/main.rs`).

use std::net::{Ipv4Addr, SocketAddr};

use xvs::frames::{ACK, FIN, SYN};
use xvs::lab_cluster::{CLIENT, VIP, at, server};
use xvs::{Datagram, Judged, LabCluster, Transport};

/// Another client, in the same /24 network as [`CLIENT`].
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);

/// A cluster with these services. Each has servers 1 to 3 at `port` with the options `method`.
fn cluster(services: &[&str], method: &str, port: u16) -> LabCluster {
    let mut cluster = LabCluster::new();
    for service in services {
        let words: Vec<_> = service.split(' ').take(2).collect();
        cluster.adm(&format!("-A {service}"));
        for number in 1..=3 {
            cluster.adm(&format!("-a {} -r {}:{port} {method}", words.join(" "), server(number)));
        }
    }
    cluster
}

/// The number of the server to which a frame was sent.
#[track_caller]
fn served(judged: &Judged) -> u8 {
    assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("transmit", 1), "{judged:?}");
    judged.sent[0].1[5] - 10
}

fn packet(transport: Transport, client: (Ipv4Addr, u16), port: u16) -> Datagram {
    Datagram::new(transport, at(client.0, client.1), at(VIP, port))
}

/// Sends a client's SYN to a port of the virtual address. Returns the number of its server.
#[track_caller]
fn connect(cluster: &mut LabCluster, client: (Ipv4Addr, u16), port: u16) -> u8 {
    served(&cluster.from_client(&packet(Transport::Tcp(SYN), client, port)))
}

#[track_caller]
fn datagram(cluster: &mut LabCluster, client: (Ipv4Addr, u16), port: u16) -> u8 {
    served(&cluster.from_client(&packet(Transport::Udp, client, port)))
}

/// A SIP message that begins or continues a call.
fn sip(client: (Ipv4Addr, u16), header: &str) -> Datagram {
    let data = format!("INVITE sip:b@h SIP/2.0\r\n{header}\r\n\r\n").into_bytes();
    Datagram { data, ..packet(Transport::Udp, client, 5060) }
}

/// The listed templates, as `TIME STATE CLIENT VIRTUAL DEST`.
fn templates(cluster: &mut LabCluster) -> Vec<String> {
    let rows = cluster.connections();
    let rows = rows.iter().filter(|row| row.split(' ').nth(3).is_some_and(|client| client.ends_with(":0")));
    rows.map(|row| row.split_once(' ').expect("columns").1.to_owned()).collect()
}

/// `PersistConn ActiveConn InActConn` of a server.
fn counted(cluster: &mut LabCluster, dest: SocketAddr) -> String {
    let listing = cluster.adm("-L -n --persistent-conn");
    let line = listing.lines().find(|line| line.contains(&format!("-> {dest} "))).expect("it is listed");
    line.split_whitespace().skip(3).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_clients_connections_to_one_port_reach_one_server_and_those_to_another_port_may_reach_another() {
    let services = [format!("-t {VIP}:80 -s rr -p 60"), format!("-t {VIP}:443 -s rr -p 60")];
    let mut cluster = cluster(&services.each_ref().map(String::as_str), "-g", 80);
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1000), 80), 3);
    for port in 1000..1004 {
        assert_eq!(connect(&mut cluster, (CLIENT, port), 80), 2);
        assert_eq!(connect(&mut cluster, (CLIENT, port), 443), 3);
    }
    assert_eq!(counted(&mut cluster, at(server(2), 80)), "1 4 0");
    assert_eq!(
        templates(&mut cluster),
        [
            format!("01:00 NONE {CLIENT}:0 {VIP}:443 {}:443", server(3)),
            format!("01:00 NONE {CLIENT}:0 {VIP}:80 {}:80", server(2)),
            format!("01:00 NONE {NEIGHBOUR}:0 {VIP}:80 {}:80", server(3)),
        ]
    );
}

#[test]
fn a_clients_connections_to_a_service_of_all_ports_reach_one_server_by_one_template() {
    let mut cluster = cluster(&[&format!("-t {VIP}:0 -s rr -p 60")], "-m", 0);
    for port in [80, 443, 22, 8080] {
        assert_eq!(connect(&mut cluster, (CLIENT, 1000), port), 3);
    }
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1000), 443), 2);
    assert_eq!(counted(&mut cluster, at(server(3), 0)), "1 4 0");
    assert_eq!(templates(&mut cluster)[0], format!("01:00 NONE {CLIENT}:0 {VIP}:0 {}:0", server(3)));
    // The port at the server is that of the packet, and the reply comes from it.
    let reply = Datagram::new(Transport::Tcp(SYN | ACK), at(server(3), 443), at(CLIENT, 1000));
    assert_eq!(cluster.from_server(&reply).verdict, "transmit");
}

#[test]
fn a_service_of_one_port_has_precedence_over_one_of_all_ports() {
    let mut cluster = cluster(&[&format!("-t {VIP}:0 -s rr -p 60")], "-g", 0);
    cluster.configure(&[&format!("-A -t {VIP}:80"), &format!("-a -t {VIP}:80 -r {}:80", server(9))]);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 9);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 81), 3);
    // The other protocol has no such service.
    assert_eq!(cluster.from_client(&packet(Transport::Udp, (CLIENT, 1000), 81)).verdict, "pass");
}

#[test]
fn the_netmask_groups_clients_also_with_holes() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80 -s rr -p 60 -M 255.255.255.0")], "-g", 80);
    assert_eq!(connect(&mut cluster, (CLIENT, 1), 80), connect(&mut cluster, (NEIGHBOUR, 1), 80));
    assert_eq!(templates(&mut cluster), [format!("01:00 NONE 192.0.2.0:0 {VIP}:80 {}:80", server(3))]);
    cluster.adm(&format!("-E -t {VIP}:80 -s rr -p 60 -M 255.0.0.255"));
    let (one, same, other) = (connect(&mut cluster, (CLIENT, 2), 80), (192, 7, 7, 200), (192, 0, 2, 202));
    let client = |(a, b, c, d)| (Ipv4Addr::new(a, b, c, d), 2);
    assert_eq!(connect(&mut cluster, client(same), 80), one);
    assert_ne!(connect(&mut cluster, client(other), 80), one);
    // inet_aton reads "24" as 0.0.0.24.
    cluster.adm(&format!("-E -t {VIP}:80 -s rr -p 60 -M 24"));
    assert!(cluster.adm("-L -n").contains("persistent 60 mask 0.0.0.24"));
    assert_eq!(
        connect(&mut cluster, client((10, 0, 0, 8)), 80),
        connect(&mut cluster, client((11, 1, 1, 8)), 80)
    );
}

#[test]
fn a_template_lasts_from_the_last_new_connection_on_and_data_does_not_extend_it() {
    let mut cluster = cluster(&[&format!("-u {VIP}:53 -s rr -p 100")], "-g", 53);
    cluster.configure(&["--set 0 0 10"]);
    datagram(&mut cluster, (CLIENT, 1000), 53);
    cluster.advance(5.0);
    datagram(&mut cluster, (CLIENT, 1000), 53);
    assert!(templates(&mut cluster)[0].starts_with("01:35 "), "data");
    cluster.advance(80.0);
    assert_eq!(datagram(&mut cluster, (CLIENT, 1001), 53), 3);
    assert!(templates(&mut cluster)[0].starts_with("01:40 "), "a new connection");
    cluster.advance(102.0);
    assert_eq!(cluster.connections(), [] as [String; 0]);
    assert_eq!(counted(&mut cluster, at(server(3), 53)), "0 0 0");
    assert_eq!(datagram(&mut cluster, (CLIENT, 1002), 53), 2, "the template has ended");
}

#[test]
fn a_template_ends_together_with_its_first_connection_if_both_timeouts_are_equal() {
    // A turn of the timer wheel is about 64 seconds.
    for seconds in [10, 60, 64, 65, 66, 128, 300] {
        for before in [0.0, 0.3, 0.95] {
            let mut cluster = cluster(&[&format!("-u {VIP}:53 -s rr -p {seconds}")], "-g", 53);
            cluster.configure(&[&format!("--set 0 0 {seconds}")]);
            cluster.advance(before);
            assert_eq!(datagram(&mut cluster, (CLIENT, 1000), 53), 3);
            cluster.advance(f64::from(seconds) + 0.5);
            assert_eq!(cluster.connections(), [] as [String; 0], "{seconds} s, begun at {before} s");
        }
    }
}

#[test]
fn a_template_that_controls_connections_is_extended_by_a_minute_at_a_time() {
    let mut cluster = cluster(&[&format!("-u {VIP}:53 -s rr -p 10")], "-g", 53);
    cluster.configure(&["--set 0 0 280"]);
    assert_eq!(datagram(&mut cluster, (CLIENT, 1000), 53), 3);
    cluster.advance(11.0);
    assert!(
        templates(&mut cluster)[0].starts_with("00:59 ") || templates(&mut cluster)[0].starts_with("01:00 ")
    );
    cluster.advance(40.0);
    assert_eq!(datagram(&mut cluster, (CLIENT, 1001), 53), 3);
    assert!(templates(&mut cluster)[0].starts_with("01:00 "), "a minute, not the service's ten seconds");
    cluster.advance(200.0);
    assert_eq!(counted(&mut cluster, at(server(3), 53)), "1 0 2");
    // The connections end 280 s after their packets, the template at the end of its minute.
    cluster.advance(81.0);
    assert_eq!(counted(&mut cluster, at(server(3), 53)), "1 0 0");
    cluster.advance(20.0);
    assert_eq!(counted(&mut cluster, at(server(3), 53)), "0 0 0");
}

#[test]
fn an_edit_changes_later_templates_and_without_persistence_templates_are_not_used() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80 -s rr -p 60")], "-g", 80);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 3);
    cluster.adm(&format!("-E -t {VIP}:80 -s rr -p 600"));
    assert_eq!(connect(&mut cluster, (CLIENT, 1001), 80), 3);
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1000), 80), 2);
    let listed = templates(&mut cluster);
    assert!(listed[0].starts_with("01:00 ") && listed[1].starts_with("10:00 "), "{listed:?}");
    cluster.adm(&format!("-E -t {VIP}:80 -s rr"));
    assert_eq!(connect(&mut cluster, (CLIENT, 1002), 80), 1);
    assert_eq!(templates(&mut cluster).len(), 2);
}

#[test]
fn clients_of_a_removed_server_get_another_and_templates_not_used_meanwhile_are_valid_when_it_returns() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80 -s rr -p 600")], "-g", 80);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 3);
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1000), 80), 2);
    assert_eq!(connect(&mut cluster, (Ipv4Addr::new(192, 0, 2, 202), 1000), 80), 1);
    for number in [2, 3] {
        cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(number)));
    }
    let data = cluster.from_client(&packet(Transport::Tcp(ACK), (CLIENT, 1000), 80));
    assert_eq!(data.verdict, "drop destination_unavailable");
    assert_eq!(connect(&mut cluster, (CLIENT, 1001), 80), 1);
    for number in [2, 3] {
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g", server(number)));
    }
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1001), 80), 2, "its template was not used meanwhile");
    assert_eq!(connect(&mut cluster, (CLIENT, 1002), 80), 1, "its template was replaced");
    let detached = format!("10:00 NONE {CLIENT}:0 {VIP}:65535 {}:65535", server(3));
    assert!(templates(&mut cluster).contains(&detached));
    assert_eq!(counted(&mut cluster, at(server(3), 80)), "1 1 0");
}

#[test]
fn a_quiescent_server_keeps_its_clients_unless_expire_quiescent_template_is_set() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80 -s rr -p 600")], "-g", 80);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 3);
    cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -g -w 0", server(3)));
    assert_eq!(connect(&mut cluster, (CLIENT, 1001), 80), 3);
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1000), 80), 2);
    cluster.set("expire_quiescent_template", 1);
    assert_eq!(connect(&mut cluster, (CLIENT, 1002), 80), 1);
    assert_eq!(connect(&mut cluster, (CLIENT, 1003), 80), 1);
    assert_eq!(counted(&mut cluster, at(server(3), 80)), "1 2 0");
}

#[test]
fn a_template_is_assured_once_its_client_has_connected_or_got_a_reply() {
    let services = [format!("-t {VIP}:80 -s rr -p 60"), format!("-u {VIP}:53 -s rr -p 60")];
    let mut cluster = cluster(&services.each_ref().map(String::as_str), "-m", 53);
    connect(&mut cluster, (CLIENT, 1000), 80);
    datagram(&mut cluster, (CLIENT, 1000), 53);
    assert!(templates(&mut cluster).iter().all(|row| row.contains(" NONE ")));
    cluster.from_client(&packet(Transport::Tcp(ACK), (CLIENT, 1000), 80));
    cluster.from_server(&Datagram::new(Transport::Udp, at(server(3), 53), at(CLIENT, 1000)));
    let listed = templates(&mut cluster);
    assert!(listed.len() == 2 && listed.iter().all(|row| row.contains("01:00 ASSURED ")), "{listed:?}");
}

#[test]
fn a_controlled_connection_is_not_replaced_except_one_of_a_drained_server() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80 -s rr -p 600")], "-m", 80);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 3);
    for flags in [ACK, FIN | ACK] {
        cluster.from_client(&packet(Transport::Tcp(flags), (CLIENT, 1000), 80));
    }
    let fin = Datagram::new(Transport::Tcp(FIN | ACK), at(server(3), 80), at(CLIENT, 1000));
    assert_eq!(cluster.from_server(&fin).verdict, "transmit");
    assert!(cluster.connections().iter().any(|row| row.contains("TIME_WAIT")));
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 3);
    assert_eq!(cluster.counters()["connections"], 1, "the old connection continues");
    cluster.set("expire_nodest_conn", 1);
    cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -m -w 0", server(3)));
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 3, "its template is valid");
    assert_eq!(cluster.counters()["connections"], 2);
    cluster.advance(0.1);
    assert_eq!(counted(&mut cluster, at(server(3), 80)), "1 1 0");
}

#[test]
fn with_one_packet_scheduling_all_datagrams_of_a_client_use_and_extend_one_template() {
    let mut cluster = cluster(&[&format!("-u {VIP}:53 -s rr -p 60 -o")], "-g", 53);
    for port in 1000..1005 {
        assert_eq!(datagram(&mut cluster, (CLIENT, port), 53), 3);
    }
    assert_eq!(datagram(&mut cluster, (NEIGHBOUR, 1000), 53), 2);
    cluster.advance(30.0);
    assert_eq!(datagram(&mut cluster, (CLIENT, 1000), 53), 3);
    let listed = templates(&mut cluster);
    assert_eq!(cluster.connections().len(), 2, "only templates");
    assert!(listed[0].starts_with("00:30 ") && listed[1].starts_with("01:00 "), "{listed:?}");
    assert_eq!(cluster.stats()[0], format!("UDP {VIP}:53 7 7 0 196 0"));
    cluster.advance(62.0);
    assert_eq!(cluster.connections(), [] as [String; 0], "they control nothing");
}

#[test]
fn ftp_data_connections_reach_the_server_of_the_control_connection() {
    let mut cluster = cluster(&[&format!("-t {VIP}:21 -s rr -p 60")], "-g", 21);
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1000), 21), 3);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 21), 2);
    for port in [20, 1024, 40_000] {
        assert_eq!(connect(&mut cluster, (CLIENT, 1001), port), 2);
    }
    for port in [22, 80, 1023] {
        let judged = cluster.from_client(&packet(Transport::Tcp(SYN), (CLIENT, 1001), port));
        assert_eq!(judged.verdict, "pass", "{port}");
    }
    assert_eq!(templates(&mut cluster)[0], format!("01:00 NONE {CLIENT}:0 {VIP}:0 {}:0", server(2)));
}

#[test]
fn without_persistence_packets_to_ftp_data_ports_go_to_the_kernel() {
    let mut cluster = cluster(&[&format!("-t {VIP}:21 -s rr")], "-g", 21);
    connect(&mut cluster, (CLIENT, 1000), 21);
    let judged = cluster.from_client(&packet(Transport::Tcp(SYN), (CLIENT, 1001), 40_000));
    assert_eq!(judged.verdict, "pass");
}

#[test]
fn messages_of_one_sip_call_reach_one_server_whatever_port_they_come_from() {
    let mut cluster = cluster(&[&format!("-u {VIP}:5060 -s rr -p 60 --pe sip")], "-m", 5060);
    let call = |cluster: &mut LabCluster, port, header: &str| {
        served(&cluster.from_client(&sip((CLIENT, port), header)))
    };
    assert_eq!(call(&mut cluster, 5060, "Call-ID: one@h"), 3);
    assert_eq!(call(&mut cluster, 5061, "Call-ID: two@h"), 2);
    assert_eq!(call(&mut cluster, 5062, "i: one@h"), 3);
    assert_eq!(
        served(&cluster.from_client(&sip((NEIGHBOUR, 5060), "Call-ID: one@h"))),
        1,
        "a call of another client"
    );
    let judged = cluster.from_client(&packet(Transport::Udp, (CLIENT, 5063), 5060).carrying(40));
    assert_eq!(judged.verdict, "drop no_call_id");
    let listing = cluster.adm("-L -n -c --persistent-conn");
    let mut shown: Vec<_> = listing.lines().filter(|line| line.contains(" sip ")).collect();
    shown.sort_unstable();
    let line = |client: Ipv4Addr, number, id| {
        let (client, dest) = (format!("{client}:0"), format!("{}:5060", server(number)));
        let vip = format!("{VIP}:5060");
        format!("UDP 01:00  NONE        {client:<18} {vip:<18} {dest:<16} {:<18} {id}", "sip")
    };
    let mut want = [line(CLIENT, 3, "one@h"), line(CLIENT, 2, "two@h"), line(NEIGHBOUR, 1, "one@h")];
    want.sort_unstable();
    assert_eq!(shown, want);
    assert_eq!(counted(&mut cluster, at(server(3), 5060)), "1 0 2");
}

#[test]
fn sip_over_tcp_is_not_parsed_and_a_persistence_engine_without_persistence_has_no_effect() {
    let mut cluster = cluster(&[&format!("-t {VIP}:5060 -s rr -p 60 --pe sip")], "-g", 5060);
    let judged = cluster.from_client(&packet(Transport::Tcp(SYN), (CLIENT, 1000), 5060));
    assert_eq!(judged.verdict, "drop no_call_id");
    cluster.adm(&format!("-E -t {VIP}:5060 -s rr --pe sip"));
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 5060), 3);
    assert!(!cluster.adm("-L -n").contains("pe sip"));
}

#[test]
fn drop_entry_removes_templates_that_control_nothing_and_were_never_assured() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80 -s rr -p 3600")], "-g", 80);
    connect(&mut cluster, (CLIENT, 1000), 80);
    connect(&mut cluster, (NEIGHBOUR, 1000), 80);
    cluster.from_client(&packet(Transport::Tcp(ACK), (NEIGHBOUR, 1000), 80));
    cluster.set("drop_entry", 3);
    cluster.advance(600.0);
    let listed = templates(&mut cluster);
    assert!(listed.len() == 1 && listed[0].contains(&format!("ASSURED {NEIGHBOUR}:0")), "{listed:?}");
    assert_eq!(counted(&mut cluster, at(server(3), 80)), "0 0 0");
}

#[test]
fn with_expire_nodest_conn_templates_of_a_removed_server_end_with_its_connections() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80 -s rr -p 3600")], "-g", 80);
    assert_eq!(connect(&mut cluster, (CLIENT, 1000), 80), 3);
    cluster.from_client(&packet(Transport::Tcp(ACK), (CLIENT, 1000), 80));
    assert_eq!(connect(&mut cluster, (NEIGHBOUR, 1000), 80), 2);
    cluster.set("expire_nodest_conn", 1);
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(3)));
    cluster.advance(0.5);
    let rows = cluster.connections();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.contains(&NEIGHBOUR.to_string())), "{rows:?}");
    // When it is added again it has no connections.
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g", server(3)));
    assert_eq!(counted(&mut cluster, at(server(3), 80)), "0 0 0");
}
