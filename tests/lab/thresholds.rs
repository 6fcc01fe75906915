//! Thresholds (`-x`, `-y`) with a clock that the test moves: which servers get connections.
//!
//! Not here: the rules at every count (`crates/dataplane/src/snapshot/load.rs`).

use xvs::frames::{ACK, FIN, SYN};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, VIP, WAN_MAC, at, server};
use xvs::{Datagram, LabCluster, Transport};

/// A service of this protocol and scheduler with one server.
fn cluster(service: &str, server_options: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A {service}"),
        &format!("-a {} -r {}:80 -g {server_options}", key(service), server(1)),
    ]);
    cluster
}

/// The options of a service that identify it.
fn key(service: &str) -> String {
    service.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Injects a client's packet from this port. Returns its verdict.
fn verdict(cluster: &mut LabCluster, port: u16, transport: Transport) -> String {
    cluster.from_client(&Datagram::new(transport, at(CLIENT, port), at(VIP, 80))).verdict
}

/// Sends a packet of each of these clients in turn. Returns how many get a connection.
fn taken(cluster: &mut LabCluster, ports: std::ops::Range<u16>) -> usize {
    let syn = Transport::Tcp(SYN);
    ports.filter(|port| verdict(cluster, *port, syn) == "transmit").count()
}

/// These clients close their connections, which end after a second, given `--set 0 1 0`.
fn finish(cluster: &mut LabCluster, ports: std::ops::Range<u16>) {
    for (port, flags) in ports.flat_map(|port| [(port, ACK), (port, FIN | ACK)]) {
        assert_eq!(verdict(cluster, port, Transport::Tcp(flags)), "transmit");
    }
}

fn edit(cluster: &mut LabCluster, options: &str) {
    cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -g {options}", server(1)));
}

#[test]
fn within_one_burst_a_server_accepts_no_more_than_its_upper_threshold() {
    let mut cluster = cluster(&format!("-t {VIP}:80 -s rr"), "-x 3");
    let syn = |port| Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
    let frames: Vec<_> = (1000..1010).map(|port| syn(port).frame(GATEWAY_MAC, WAN_MAC)).collect();
    cluster.burst("wan", &frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!((cluster.total_load(), cluster.counters()["drop_no_destination"]), ((3, 0), 7));
}

#[test]
fn a_server_accepts_up_to_its_upper_threshold_and_again_below_three_quarters_of_it() {
    let mut cluster = cluster(&format!("-t {VIP}:80 -s rr"), "-x 8");
    assert_eq!(taken(&mut cluster, 1000..1010), 8);
    assert_eq!(cluster.counters()["drop_no_destination"], 2);
    cluster.adm("--set 0 1 0");
    finish(&mut cluster, 1000..1002);
    assert_eq!((cluster.total_load(), taken(&mut cluster, 1010..1011)), ((6, 2), 0));
    cluster.advance(2.0);
    assert_eq!((cluster.total_load(), taken(&mut cluster, 1010..1011)), ((6, 0), 0), "six are not below six");
    finish(&mut cluster, 1002..1003);
    cluster.advance(2.0);
    assert_eq!((cluster.total_load(), taken(&mut cluster, 1011..1020)), ((5, 0), 3));
}

#[test]
fn an_edited_threshold_applies_at_once_and_between_the_thresholds_nothing_changes() {
    let mut cluster = cluster(&format!("-t {VIP}:80 -s wlc"), "");
    assert_eq!(taken(&mut cluster, 1000..1006), 6);
    edit(&mut cluster, "-x 6");
    assert_eq!(taken(&mut cluster, 2000..2001), 0, "six of six");
    edit(&mut cluster, "-x 8 -y 6");
    assert_eq!(taken(&mut cluster, 2000..2001), 0, "it was overloaded, and six are not below six");
    edit(&mut cluster, "-x 8 -y 7");
    assert_eq!(taken(&mut cluster, 2000..2004), 2);
    edit(&mut cluster, "-x 8 -y 7 -w 5");
    assert_eq!(taken(&mut cluster, 2004..2005), 0, "another weight is no reason");
    edit(&mut cluster, "");
    assert_eq!(taken(&mut cluster, 2004..2008), 4);
}

#[test]
fn a_server_added_again_is_still_overloaded() {
    let mut cluster = cluster(&format!("-t {VIP}:80 -s rr"), "-x 4");
    assert_eq!(taken(&mut cluster, 1000..1005), 4);
    cluster.adm("--set 0 1 0");
    finish(&mut cluster, 1000..1001);
    cluster.advance(2.0);
    for again in ["-x 4", "-x 5 -y 3"] {
        cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g {again}", server(1)));
        assert_eq!(taken(&mut cluster, 2000..2001), 0, "three are not below three: {again}");
    }
    cluster.adm("-C");
    cluster.advance(61.0);
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s rr"),
        &format!("-a -t {VIP}:80 -r {}:80 -g -x 4", server(1)),
    ]);
    assert_eq!(taken(&mut cluster, 3000..3005), 4, "they have ended meanwhile");
}

#[test]
fn of_two_servers_the_one_below_its_threshold_gets_all_connections() {
    let mut cluster = cluster(&format!("-t {VIP}:80 -s wrr"), "-x 2 -w 9");
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g -w 1", server(2)));
    assert_eq!(taken(&mut cluster, 1000..1010), 10);
    assert_eq!((cluster.load(at(server(1), 80)).0, cluster.load(at(server(2), 80)).0), (2, 8));
}

#[test]
fn a_one_packet_connection_counts_while_its_packet_passes() {
    // The upper threshold of one is reached while the packet passes; afterwards the count is below it.
    let mut alone = cluster(&format!("-u {VIP}:80 -s rr -o"), "-x 1");
    let datagrams = |cluster: &mut LabCluster| {
        (1000..1003).filter(|port| verdict(cluster, *port, Transport::Udp) == "transmit").count()
    };
    assert_eq!(datagrams(&mut alone), 3);
    // With two lasting connections, a third reaches the upper threshold of three, and the server stays overloaded.
    let mut beside = cluster(&format!("-u {VIP}:80 -s rr"), "-x 3");
    for port in 2000..2002 {
        assert_eq!(verdict(&mut beside, port, Transport::Udp), "transmit");
    }
    beside.adm(&format!("-e -u {VIP}:80 -r {}:80 -g -x 3 -y 2", server(1)));
    beside.adm(&format!("-E -u {VIP}:80 -s rr -o"));
    assert_eq!(datagrams(&mut beside), 1);
}
