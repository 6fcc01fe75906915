//! SCTP through the lab: every cell of the state table that packets reach, the packets that begin an association,
//! checksums.
//!
//! The tables are those of ipvs-behaviour, section 4.2, written independently of the director's. Real SCTP sockets are
//! in `tests/vm/links.sh`, so that the machines that test xvs need no kernel with SCTP.

use std::collections::BTreeMap;

use etherparse::{EtherType, IpNumber};
use xvs::frames::{Ipv4, ethernet};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, VIP, WAN_MAC, at, server};
use xvs::{Datagram, Judged, LabCluster, Transport};

const CLIENT_PORT: u16 = 1000;
const PORT: u16 = 3868;

/// States in the order of the table's columns, each with its listed name and its timeout after a packet.
const STATES: [(&str, &str, &str); 14] = [
    ("NO", "NONE", "00:02"),
    ("I1", "INIT1", "00:04"),
    ("IN", "INIT", "01:01"),
    ("CS", "C-SENT", "01:01"),
    ("CR", "C-REPLIED", "01:01"),
    ("CW", "C-WAIT", "01:01"),
    ("CO", "COOKIE", "01:01"),
    ("CE", "C-ECHOED", "01:01"),
    ("ES", "ESTABLISHED", "15:00"),
    ("SS", "S-SENT", "01:01"),
    ("SR", "S-RECEIVED", "01:01"),
    ("SA", "S-ACK-SENT", "01:01"),
    ("RJ", "REJECTED", "00:04"),
    ("CL", "CLOSED", "01:01"),
];

/// A chunk type for each row of a table.
const EVENTS: [u8; 10] =
    [DATA, INIT, INIT_ACK, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN, 8, SHUTDOWN_COMPLETE, 9, ABORT];
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

type Table = [&'static str; 10];

const INPUT: Table = [
    "ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
    "I1 IN IN CS CR CW CO CE ES SS SR SA IN IN",
    "CW CW CW CS CR CO CO CE ES SS SR SA RJ CL",
    "CR IN IN CR CR CW CO CE ES SS SR SA RJ CL",
    "ES I1 IN CS CR CW CO ES ES SS SR SA RJ CL",
    "SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL",
    "CL IN IN CS CR CW CO CE ES CL SR CL RJ CL",
    "CL CL CL CS CR CW CO CE ES SS SR CL RJ CL",
    "CL I1 IN CS CR CW CO CL ES SS SR SA RJ CL",
    "CL CL CL CL CL RJ CL CL CL CL CL CL CL CL",
];
const OUTPUT: Table = [
    "ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
    "CW CW CW CW CW CW CW CW ES CW CW CW CW CW",
    "CS CS CS CS CR CW CO CE ES SS SR SA RJ CL",
    "CE CE CE CE CE CE CE CE ES SS SR SA RJ CL",
    "ES ES ES ES ES ES ES ES ES SS SR SA RJ CL",
    "SS SS SS SS SS SS SS SS SS SS SR SA RJ CL",
    "SA SA SA SA SA CW CO CE ES SA SA SA RJ CL",
    "CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
    "CL CL CL CL CL CW CO CE ES SS SR SA RJ CL",
    "CL RJ CL CL CL CL CL CL CL CL CL CL CL CL",
];
const INPUT_ONLY: Table = [
    "ES I1 IN CS CR ES CO CE ES SS SR SA RJ CL",
    "I1 IN IN IN IN IN CO CE ES SS SR SA IN IN",
    "CE CE CE CE CE CE CO CE ES SS SR SA RJ CL",
    "ES ES ES ES ES ES CO CE ES SS SR SA RJ CL",
    "ES I1 IN ES ES CW ES ES ES SS SR SA RJ CL",
    "SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL",
    "CL IN IN CS CR CW CO CE CL CL SR CL RJ CL",
    "CL CL CL CL CL CW CO CE ES SS CL CL RJ CL",
    "CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL",
    "CL CL CL CL CL RJ CL CL CL CL CL CL CL CL",
];

/// The sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    Client,
    Server,
}
use Sender::{Client, Server};

/// The columns that packets reach by these tables, each with a sequence of packets that reaches it.
fn reached(tables: &[(Sender, &Table)]) -> BTreeMap<usize, Vec<(Sender, u8)>> {
    let mut paths = BTreeMap::from([(0, Vec::new())]);
    let mut fresh = vec![0];
    while let Some(column) = fresh.pop() {
        for (sender, kind, next) in steps(tables, column) {
            if !paths.contains_key(&next) {
                let mut path = paths[&column].clone();
                path.push((sender, kind));
                paths.insert(next, path);
                fresh.push(next);
            }
        }
    }
    paths
}

/// Every packet in a column, with the next column. In the column without an association the client sends first, and no
/// ABORT.
fn steps(tables: &[(Sender, &Table)], column: usize) -> Vec<(Sender, u8, usize)> {
    let all = tables.iter().flat_map(|(sender, table)| {
        EVENTS.iter().zip(table.iter()).map(move |(kind, row)| {
            let cell = row.split(' ').nth(column).expect("fourteen columns");
            let next = STATES.iter().position(|(short, ..)| *short == cell).expect("a state");
            (*sender, *kind, next)
        })
    });
    all.filter(|(sender, kind, _)| column != 0 || *sender == Client && *kind != ABORT).collect()
}

/// A packet with these chunks.
fn packet(from: Sender, chunks: &[u8]) -> Datagram {
    let (source, dest) = match from {
        Client => (at(CLIENT, CLIENT_PORT), at(VIP, PORT)),
        Server => (at(server(1), PORT), at(CLIENT, CLIENT_PORT)),
    };
    Datagram { data: chunks.to_vec(), ..Datagram::new(Transport::Sctp, source, dest) }
}

/// Sends a packet whose only chunk has this type and no content.
fn send(cluster: &mut LabCluster, from: Sender, kind: u8) -> Judged {
    let packet = packet(from, &[kind, 0, 0, 4]);
    match from {
        Client => cluster.from_client(&packet),
        Server => cluster.from_server(&packet),
    }
}

/// A service with the first `servers` servers, of which the first is scheduled first. `dest` is their port and method.
fn cluster(servers: u8, dest: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A --sctp-service {VIP}:{PORT} -s rr"));
    for number in (1..=servers).rev() {
        cluster.adm(&format!("-a --sctp-service {VIP}:{PORT} -r {}:{dest}", server(number)));
    }
    cluster
}

fn assert_every_cell(method: &str, tables: &[(Sender, &Table)], columns: usize) {
    let reached = reached(tables);
    assert_eq!(reached.len(), columns, "{:?}", reached.keys());
    for (column, path) in reached {
        for (sender, kind, next) in steps(tables, column) {
            let mut cluster = cluster(1, &format!("{PORT} {method}"));
            // With these settings the table alone decides: any chunk begins an association, and none replaces a closed
            // one.
            cluster.set("sloppy_sctp", 1);
            cluster.set("conn_reuse_mode", 0);
            for (sender, kind) in path.iter().copied().chain([(sender, kind)]) {
                assert_eq!(send(&mut cluster, sender, kind).verdict, "transmit");
            }
            let (_, name, left) = STATES[next];
            let what = format!("{method}: {sender:?} sends {kind} in {}", STATES[column].1);
            assert_eq!(cluster.only_connection(), (left.to_owned(), name.to_owned()), "{what}");
            assert_eq!(cluster.total_load(), if name == "ESTABLISHED" { (1, 0) } else { (0, 1) }, "{what}");
        }
    }
}

#[test]
fn every_state_that_both_ends_can_reach_follows_the_table() {
    assert_every_cell("-m", &[(Client, &INPUT), (Server, &OUTPUT)], 14);
}

#[test]
fn every_state_that_a_client_alone_can_reach_follows_the_table() {
    assert_every_cell("-g", &[(Client, &INPUT_ONLY)], 7);
}

#[test]
fn only_an_init_begins_an_association_unless_sloppy() {
    for sloppy in [0, 1] {
        for kind in 0..=15 {
            let mut cluster = cluster(1, "3868 -g");
            cluster.set("sloppy_sctp", sloppy);
            let begins = kind == INIT || sloppy == 1 && kind != ABORT;
            let verdict = send(&mut cluster, Client, kind).verdict;
            assert_eq!(
                verdict,
                if begins { "transmit" } else { "pass" },
                "chunk {kind}, sloppy_sctp {sloppy}"
            );
            assert_eq!(cluster.connections().len(), usize::from(begins));
        }
    }
}

#[test]
fn an_abort_behind_a_cookie_closes_the_association() {
    let mut cluster = cluster(1, "3868 -g");
    send(&mut cluster, Client, INIT);
    send(&mut cluster, Client, COOKIE_ECHO);
    assert_eq!(cluster.total_load(), (1, 0));
    let judged = cluster.from_client(&packet(Client, &[COOKIE_ACK, 0, 0, 4, ABORT, 0, 0, 4]));
    assert_eq!(judged.verdict, "transmit");
    assert_eq!(cluster.only_connection().1, "CLOSED");
    assert_eq!(cluster.total_load(), (0, 1));
}

#[test]
fn a_packet_without_a_chunk_begins_no_association_and_changes_no_state() {
    let mut cluster = cluster(1, "3868 -g");
    for sloppy in [0, 1] {
        cluster.set("sloppy_sctp", sloppy);
        // The last one is a chunk header without its last byte.
        for rest in [&[][..], &[INIT], &[INIT, 0, 0]] {
            let judged = cluster.from_client(&packet(Client, rest));
            assert_eq!(judged.verdict, "drop sctp_no_chunk");
        }
    }
    assert_eq!(cluster.connections(), [] as [String; 0]);
    send(&mut cluster, Client, INIT);
    cluster.advance(2.0);
    assert_eq!(cluster.from_client(&packet(Client, &[])).verdict, "transmit");
    assert_eq!(cluster.only_connection(), ("00:04".to_owned(), "INIT1".to_owned()));
}

#[test]
fn a_packet_that_ends_inside_the_common_header_is_dropped_with_the_reason() {
    let mut cluster = cluster(1, "3868 -g");
    let whole = packet(Client, &[INIT, 0, 0, 4]).packet();
    let header = Ipv4 { ttl: 64, tos: 0, id: 1, dont_fragment: false };
    for len in 0..12 {
        let short = header.packet(IpNumber::SCTP, CLIENT, VIP, &whole[20..20 + len]);
        let judged = cluster.inject("wan", &ethernet(GATEWAY_MAC, WAN_MAC, EtherType::IPV4, &short));
        assert_eq!(judged.verdict, "drop sctp_too_short", "{len}");
    }
}

#[test]
fn an_init_replaces_a_closed_association_unless_conn_reuse_mode_is_0() {
    for (mode, chosen, state) in [(0, 1, "INIT"), (1, 2, "INIT1"), (2, 2, "INIT1")] {
        let mut cluster = cluster(2, "3868 -g");
        cluster.set("conn_reuse_mode", mode);
        for kind in [INIT, ABORT, INIT] {
            assert_eq!(send(&mut cluster, Client, kind).verdict, "transmit");
        }
        assert_eq!(cluster.only_connection().1, state, "conn_reuse_mode {mode}");
        let rows = cluster.connections();
        assert!(rows[0].ends_with(&format!(" {}", at(server(chosen), PORT))), "{mode}: {rows:?}");
        // The old association is no longer counted after the next tick.
        cluster.advance(0.1);
        assert_eq!(cluster.total_load(), (0, 1));
    }
}

#[test]
fn an_association_expires_to_the_second_and_is_no_longer_counted() {
    let mut cluster = cluster(1, "3868 -g");
    send(&mut cluster, Client, INIT);
    cluster.advance(3.999);
    assert_eq!(cluster.connections().len(), 1);
    cluster.advance(0.001);
    assert_eq!((cluster.connections().len(), cluster.total_load()), (0, (0, 0)));
}

#[test]
fn an_unsolicited_packet_of_a_server_gets_an_icmp_error_unless_it_is_an_abort() {
    let mut cluster = cluster(1, "3868 -m");
    cluster.set("nat_icmp_send", 1);
    assert_eq!(send(&mut cluster, Server, ABORT).verdict, "pass");
    assert_eq!(send(&mut cluster, Server, INIT_ACK).verdict, "drop unasked");
}

/// An INIT and an INIT ACK with some content.
const CHUNKS: [[u8; 20]; 2] = [
    [INIT, 0, 0, 20, 0, 0, 0, 1, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 1],
    [INIT_ACK, 0, 0, 20, 0, 0, 0, 2, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 2],
];

#[test]
fn the_checksum_is_computed_anew_in_both_directions_if_the_port_changes() {
    let mut cluster = cluster(1, "9899 -m");
    let init = packet(Client, &CHUNKS[0]);
    let judged = cluster.from_client(&init);
    let sent = Datagram { dest: at(server(1), 9899), ttl: 63, ..init };
    assert_eq!(judged.sent[0].1[14..], sent.packet());

    let answer = Datagram { source: at(server(1), 9899), ..packet(Server, &CHUNKS[1]) };
    let judged = cluster.from_server(&answer);
    let sent = Datagram { source: at(VIP, PORT), ttl: 63, ..answer };
    assert_eq!(judged.sent[0].1[14..], sent.packet());
}

#[test]
fn the_checksum_stays_as_it_is_if_the_port_stays() {
    for method in ["-m", "-g"] {
        for wrong in [0, 0x5a] {
            let mut cluster = cluster(1, &format!("{PORT} {method}"));
            let mut frame = packet(Client, &CHUNKS[0]).frame(GATEWAY_MAC, WAN_MAC);
            frame[42] ^= wrong;
            let judged = cluster.inject("wan", &frame);
            assert_eq!(judged.sent[0].1[34..], frame[34..], "{method}");
        }
    }
}
