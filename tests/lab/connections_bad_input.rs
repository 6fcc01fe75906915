//! Packets at the wrong time, in the lab: segments that cannot begin a connection, replies before requests, ports
//! reused too early. Each is handled as by the kernel's IPVS.
//!
//! Not here: malformed packets, and the whole table of states.

use xvs::frames::{ACK, FIN, RST, SYN};
use xvs::lab_cluster::{CLIENT, VIP, at, server};
use xvs::{Datagram, LabCluster, Transport};

/// A client's packet.
fn from_client(transport: Transport) -> Datagram {
    Datagram::new(transport, at(CLIENT, 4000), at(VIP, 80))
}

/// A packet from the server of this number to that client.
fn from_server(number: u8, transport: Transport) -> Datagram {
    Datagram::new(transport, at(server(number), 80), at(CLIENT, 4000))
}

/// The verdict on a client's segment.
fn ask(cluster: &mut LabCluster, flags: u8) -> String {
    cluster.from_client(&from_client(Transport::Tcp(flags))).verdict
}

/// The verdict on a segment from the first server.
fn answer(cluster: &mut LabCluster, flags: u8) -> String {
    cluster.from_server(&from_server(1, Transport::Tcp(flags))).verdict
}

/// A TCP and a UDP service with two servers; the first server gets the first connection.
fn cluster(method: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    for protocol in ["-t", "-u"] {
        cluster.adm(&format!("-A {protocol} {VIP}:80 -s rr"));
        for number in [2, 1] {
            cluster.adm(&format!("-a {protocol} {VIP}:80 -r {}:80 {method}", server(number)));
        }
    }
    cluster
}

/// Sends a first segment to a new service; returns the state of the connection that it creates, if any.
fn first(method: &str, sloppy: u32, flags: u8) -> Option<String> {
    let mut cluster = cluster(method);
    cluster.set("sloppy_tcp", sloppy);
    let verdict = ask(&mut cluster, flags);
    let states: Vec<_> =
        cluster.connections().iter().map(|row| row.split(' ').nth(2).expect("a state").to_owned()).collect();
    assert_eq!(verdict, if states.is_empty() { "pass" } else { "transmit" }, "{method} {flags:#04x}");
    let (active, inactive) = cluster.total_load();
    assert_eq!((active + inactive) as usize, states.len(), "{method} {flags:#04x}");
    states.into_iter().next()
}

#[test]
fn any_segment_with_syn_and_without_rst_creates_a_connection() {
    for method in ["-m", "-g", "-i"] {
        for sloppy in [0, 1] {
            for flags in [SYN, SYN | FIN, SYN | ACK, SYN | FIN | ACK] {
                assert_eq!(
                    first(method, sloppy, flags).as_deref(),
                    Some("SYN_RECV"),
                    "{method} {flags:#04x}"
                );
            }
        }
    }
}

#[test]
fn a_segment_without_connection_and_syn_passes_to_the_kernel_unless_sloppy() {
    for method in ["-m", "-g"] {
        for flags in [ACK, FIN, FIN | ACK, 0] {
            assert_eq!(first(method, 0, flags), None, "{method} {flags:#04x}");
        }
        assert_eq!(first(method, 1, ACK).as_deref(), Some("ESTABLISHED"));
        for flags in [FIN, FIN | ACK, 0] {
            assert_eq!(first(method, 1, flags).as_deref(), Some("CLOSE"), "{method} {flags:#04x}");
        }
    }
}

#[test]
fn a_reset_never_creates_a_connection() {
    for method in ["-m", "-g"] {
        for sloppy in [0, 1] {
            for flags in [RST, RST | ACK, RST | SYN, RST | SYN | FIN | ACK] {
                assert_eq!(first(method, sloppy, flags), None, "{method} {flags:#04x}");
            }
        }
    }
}

#[test]
fn a_syn_or_a_syn_with_fin_into_an_established_connection_changes_nothing() {
    let mut cluster = cluster("-m");
    for flags in [SYN, ACK, SYN, SYN | FIN] {
        assert_eq!(ask(&mut cluster, flags), "transmit");
    }
    assert_eq!(cluster.only_connection(), ("15:00".to_owned(), "ESTABLISHED".to_owned()));
    assert_eq!(cluster.total_load(), (1, 0));
}

#[test]
fn a_reply_before_any_request_passes_to_the_kernel_and_creates_nothing() {
    let mut cluster = cluster("-m");
    for sloppy in [0, 1] {
        cluster.set("sloppy_tcp", sloppy);
        for flags in [SYN | ACK, ACK, RST, FIN | ACK] {
            assert_eq!(answer(&mut cluster, flags), "pass");
        }
        assert_eq!(cluster.from_server(&from_server(1, Transport::Udp)).verdict, "pass");
    }
    assert_eq!((cluster.connections().len(), cluster.total_load()), (0, (0, 0)));
    assert_eq!(ask(&mut cluster, SYN), "transmit");
    assert_eq!(answer(&mut cluster, SYN | ACK), "transmit");
}

#[test]
fn a_reply_of_a_server_that_was_not_chosen_passes_to_the_kernel() {
    let mut cluster = cluster("-m");
    ask(&mut cluster, SYN);
    let stranger = cluster.from_server(&from_server(2, Transport::Tcp(RST)));
    assert_eq!(stranger.verdict, "pass");
    assert_eq!(cluster.only_connection().1, "SYN_RECV");
}

#[test]
fn a_port_reused_in_time_wait_creates_a_new_connection_unless_conn_reuse_mode_is_0() {
    for (mode, chosen) in [(0, 1), (1, 2)] {
        let mut cluster = cluster("-m");
        cluster.set("conn_reuse_mode", mode);
        ask(&mut cluster, SYN);
        answer(&mut cluster, SYN | ACK);
        ask(&mut cluster, ACK);
        ask(&mut cluster, FIN | ACK);
        answer(&mut cluster, FIN | ACK);
        assert_eq!(cluster.only_connection().1, "TIME_WAIT");
        // A late segment of the old connection does not end TIME_WAIT.
        assert_eq!(ask(&mut cluster, ACK), "transmit");
        assert_eq!(cluster.only_connection().1, "TIME_WAIT");

        assert_eq!(ask(&mut cluster, SYN), "transmit");
        let rows = cluster.connections();
        assert!(
            rows[0].ends_with(&format!(" {}", at(server(chosen), 80))),
            "conn_reuse_mode {mode}: {rows:?}"
        );
        assert_eq!(cluster.only_connection(), ("01:00".to_owned(), "SYN_RECV".to_owned()));
        // The old connection is no longer counted after the next tick.
        cluster.advance(0.1);
        assert_eq!(cluster.total_load(), (1, 0));
    }
}

#[test]
fn a_minute_of_invalid_segments_on_one_port_leaves_one_connection_and_then_none() {
    let mut cluster = cluster("-m");
    ask(&mut cluster, SYN);
    let bits = |number: u8| {
        [FIN, SYN, RST, ACK].iter().enumerate().map(move |(bit, flag)| (number >> bit & 1) * flag)
    };
    for number in (0..=0xf).cycle().take(600) {
        let verdict = ask(&mut cluster, bits(number).sum());
        assert!(["transmit", "pass"].contains(&verdict.as_str()), "{verdict}");
        answer(&mut cluster, bits(0xf - number).sum());
        cluster.advance(0.1);
        let (active, inactive) = cluster.total_load();
        assert!(cluster.connections().len() <= 1 && active + inactive <= 1);
    }
    cluster.advance(901.0);
    assert_eq!((cluster.connections().len(), cluster.total_load()), (0, (0, 0)));
}
