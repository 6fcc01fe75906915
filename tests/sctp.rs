//! SCTP through the lab: every cell of the state table that packets reach, what begins an association, checksums.
//!
//! The table stands here as the behaviour of the kernel's IPVS (section 4.2) has it, typed a second time. Real SCTP
//! sockets are not used: the machines that test xvs need no kernel with SCTP.

mod lab_director;

use std::collections::BTreeMap;

use etherparse::IpNumber;
use lab_director::{Director, Fate, TRANSPORT, service};

const CLIENT_PORT: u16 = 1000;
const PORT: u16 = 3868;

/// States in the order of the table's columns, with what is listed: name, time left after a packet.
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

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    Client,
    Server,
}
use Sender::{Client, Server};

/// The columns that packets reach by these tables, each with the packets that lead there.
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

/// Every packet in a column, with the column after it. Of an association that nobody has begun, the client speaks
/// first, and not by ABORT.
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

/// A packet whose only chunk has this type and no content.
fn packet(from: Sender, kind: u8) -> Vec<u8> {
    let (source, dest) = if from == Client { (CLIENT_PORT, PORT) } else { (PORT, CLIENT_PORT) };
    [&source.to_be_bytes()[..], &dest.to_be_bytes(), &[0, 0, 0, 7, 0xa5, 0xa5, 0xa5, 0xa5], &[kind, 0, 0, 4]]
        .concat()
}

fn send(director: &mut Director, from: Sender, segment: &[u8]) -> Fate {
    match from {
        Client => director.from_client(IpNumber::SCTP, segment),
        Server => director.from_server(0, IpNumber::SCTP, segment),
    }
}

/// A service with one server.
fn director(method: &str) -> Director {
    Director::with(&service("--sctp-service", PORT, 1, &format!("{PORT} {method}")))
}

fn assert_every_cell(method: &str, tables: &[(Sender, &Table)], columns: usize) {
    let reached = reached(tables);
    assert_eq!(reached.len(), columns, "{:?}", reached.keys());
    for (column, path) in reached {
        for (sender, kind, next) in steps(tables, column) {
            let mut director = director(method);
            // The table alone: any chunk begins, and none takes the place of what has closed.
            director.set("sloppy_sctp", 1);
            director.set("conn_reuse_mode", 0);
            for (sender, kind) in path.iter().copied().chain([(sender, kind)]) {
                assert_eq!(send(&mut director, sender, &packet(sender, kind)).verdict, "transmit");
            }
            let (_, name, left) = STATES[next];
            let what = format!("{method}: {sender:?} sends {kind} in {}", STATES[column].1);
            assert_eq!(director.only_connection(), (left.to_owned(), name.to_owned()), "{what}");
            assert_eq!(director.load(), if name == "ESTABLISHED" { (1, 0) } else { (0, 1) }, "{what}");
        }
    }
}

#[test]
fn every_state_that_both_ends_can_reach_goes_where_the_table_says() {
    assert_every_cell("-m", &[(Client, &INPUT), (Server, &OUTPUT)], 14);
}

#[test]
fn every_state_that_a_client_alone_can_reach_goes_where_the_table_says() {
    assert_every_cell("-g", &[(Client, &INPUT_ONLY)], 7);
}

#[test]
fn an_init_begins_an_association_and_nothing_else_does_unless_sloppy() {
    for sloppy in [0, 1] {
        for kind in 0..=15 {
            let mut director = director("-g");
            director.set("sloppy_sctp", sloppy);
            let begins = kind == INIT || sloppy == 1 && kind != ABORT;
            let verdict = send(&mut director, Client, &packet(Client, kind)).verdict;
            assert_eq!(
                verdict,
                if begins { "transmit" } else { "pass" },
                "chunk {kind}, sloppy_sctp {sloppy}"
            );
            assert_eq!(director.connections().len(), usize::from(begins));
        }
    }
}

#[test]
fn an_abort_behind_a_cookie_closes() {
    let mut director = director("-g");
    send(&mut director, Client, &packet(Client, INIT));
    send(&mut director, Client, &packet(Client, COOKIE_ECHO));
    assert_eq!(director.load(), (1, 0));
    let segment = [&packet(Client, COOKIE_ACK)[..], &[ABORT, 0, 0, 4]].concat();
    assert_eq!(send(&mut director, Client, &segment).verdict, "transmit");
    assert_eq!(director.only_connection().1, "CLOSED");
    assert_eq!(director.load(), (0, 1));
}

#[test]
fn a_packet_without_a_chunk_begins_nothing_and_changes_no_state() {
    let mut director = director("-g");
    let bare = &packet(Client, INIT)[..12];
    assert_eq!(send(&mut director, Client, bare).verdict, "drop sctp_no_chunk");
    director.set("sloppy_sctp", 1);
    assert_eq!(send(&mut director, Client, bare).verdict, "drop sctp_no_chunk");
    assert_eq!(send(&mut director, Client, &bare[..11]).verdict, "drop sctp_too_short");
    assert_eq!(director.connections(), [] as [String; 0]);
    send(&mut director, Client, &packet(Client, INIT));
    director.advance(2.0);
    assert_eq!(send(&mut director, Client, bare).verdict, "transmit");
    assert_eq!(director.only_connection(), ("00:04".to_owned(), "INIT1".to_owned()));
}

#[test]
fn an_init_takes_the_place_of_a_closed_association_unless_conn_reuse_mode_is_0() {
    for (mode, server, state) in [(0, ".11:", "INIT"), (1, ".12:", "INIT1"), (2, ".12:", "INIT1")] {
        let mut director = Director::with(&service("--sctp-service", PORT, 2, &format!("{PORT} -g")));
        director.set("conn_reuse_mode", mode);
        for kind in [INIT, ABORT, INIT] {
            assert_eq!(send(&mut director, Client, &packet(Client, kind)).verdict, "transmit");
        }
        let rows = director.connections();
        assert!(rows[0].contains(server) && rows[0].contains(&format!(" {state} ")), "{mode}: {rows:?}");
        assert_eq!((rows.len(), director.load().0), (1, 0));
    }
}

#[test]
fn an_association_ends_at_its_second_and_leaves_the_count() {
    let mut director = director("-g");
    send(&mut director, Client, &packet(Client, INIT));
    director.advance(3.999);
    assert_eq!(director.connections().len(), 1);
    director.advance(0.001);
    assert_eq!((director.connections().len(), director.load()), (0, (0, 0)));
}

#[test]
fn a_server_that_speaks_unasked_is_told_so_unless_it_aborts() {
    let mut director = director("-m");
    director.set("nat_icmp_send", 1);
    assert_eq!(send(&mut director, Server, &packet(Server, ABORT)).verdict, "pass");
    assert_eq!(send(&mut director, Server, &packet(Server, INIT_ACK)).verdict, "drop unasked");
}

/// Checksums as computed bit by bit from the polynomial of RFC 9260, appendix A.
const INIT_TO_9899: [u8; 4] = [0x58, 0x9b, 0xb3, 0x21];
const INIT_ACK_FROM_3868: [u8; 4] = [0x08, 0x1f, 0x81, 0xca];

/// INIT and INIT ACK with content, and this checksum.
fn init(sum: [u8; 4]) -> Vec<u8> {
    let chunk = [1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    [&packet(Client, INIT)[..8], &sum, &chunk].concat()
}

#[test]
fn where_the_port_changes_the_checksum_is_computed_anew_in_both_directions() {
    let mut director = Director::with(&service("--sctp-service", PORT, 1, "9899 -m"));
    let fate = send(&mut director, Client, &init([0x49, 0x88, 0x5d, 0x65]));
    let mut want = init(INIT_TO_9899);
    want[2..4].copy_from_slice(&9899u16.to_be_bytes());
    assert_eq!((fate.verdict.as_str(), &fate.sent[0][TRANSPORT..]), ("transmit", &want[..]));

    let chunk = [2, 0, 0, 20, 0, 0, 0, 2, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 2];
    let answer = |port: u16, sum: [u8; 4]| {
        [&port.to_be_bytes()[..], &CLIENT_PORT.to_be_bytes(), &[0, 0, 0, 8], &sum, &chunk].concat()
    };
    let fate = send(&mut director, Server, &answer(9899, [0x8b, 0x06, 0xe8, 0xe5]));
    assert_eq!(fate.sent[0][TRANSPORT..], answer(PORT, INIT_ACK_FROM_3868));
}

#[test]
fn where_the_port_stays_the_checksum_stays_right_or_wrong() {
    for method in ["-m", "-g"] {
        let mut director = director(method);
        let wrong = init([1, 2, 3, 4]);
        let fate = send(&mut director, Client, &wrong);
        assert_eq!(fate.sent[0][TRANSPORT..], wrong, "{method}");
    }
}
