//! Life of a connection with a clock moved by hand: states, timeouts, counts, expiry to the second.
//!
//! The state tables are those of the kernel's IPVS, written here independently of the data plane, and are walked at
//! random with every set of directions that the director sees. Not here: the bytes of frames (`golden.rs`), removed
//! destinations (`golden/gone.rs`).

use proptest::prelude::*;
use serde_json::json;
use xvs::frames::{ACK, FIN, RST, SYN};
use xvs::lab_cluster::{CLIENT, VIP, at, server};
use xvs::{Datagram, LabCluster, Transport};

const FIN_ACK: u8 = FIN | ACK;
const SYN_ACK: u8 = SYN | ACK;

/// Events in the order of the tables' rows.
const EVENTS: [u8; 4] = [SYN, FIN, ACK, RST];
/// States in the order of the tables' columns, with their timeouts in seconds.
const STATES: [(&str, &str, u64); 11] = [
    ("NO", "NONE", 2),
    ("ES", "ESTABLISHED", 900),
    ("SS", "SYN_SENT", 120),
    ("SR", "SYN_RECV", 60),
    ("FW", "FIN_WAIT", 120),
    ("TW", "TIME_WAIT", 120),
    ("CL", "CLOSE", 10),
    ("CW", "CLOSE_WAIT", 60),
    ("LA", "LAST_ACK", 30),
    ("LI", "LISTEN", 120),
    ("SA", "SYNACK", 120),
];
const INPUT: [&str; 4] = [
    "SR ES ES SR SR SR SR SR SR SR SR",
    "CL CW SS TW TW TW CL CW LA LI TW",
    "ES ES SS ES FW TW CL CW CL LI ES",
    "CL CL CL SR CL CL CL CL LA LI SR",
];
const OUTPUT: [&str; 4] = [
    "SS ES SS SR SS SS SS SS SS LI SR",
    "TW FW SS TW FW TW CL TW LA LI TW",
    "ES ES SS ES FW TW CL CW LA ES ES",
    "CL CL SS CL CL TW CL CL CL CL CL",
];
const INPUT_ONLY: [&str; 4] = [
    "SR ES ES SR SR SR SR SR SR SR SR",
    "CL FW SS TW FW TW CL CW LA LI TW",
    "ES ES SS ES FW TW CL CW CL LI ES",
    "CL CL CL SR CL CL CL CL LA LI CL",
];

/// The sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

/// The column that follows an event in a column, by the tables above.
fn next(column: usize, table: &[&str; 4], flags: u8) -> usize {
    let row = match flags {
        _ if flags & RST != 0 => 3,
        _ if flags & SYN != 0 => 0,
        _ if flags & FIN != 0 => 1,
        _ if flags & ACK != 0 => 2,
        _ => return 6,
    };
    let cell = table[row].split(' ').nth(column).expect("eleven columns");
    STATES.iter().position(|(short, ..)| *short == cell).expect("a state")
}

/// ActiveConn and InActConn of a destination with one connection in this column.
fn counted(column: usize) -> (u64, u64) {
    let active = ["ES", "SS", "SR", "SA"].contains(&STATES[column].0);
    if active { (1, 0) } else { (0, 1) }
}

/// A service of each protocol with one server and this forwarding option.
fn cluster(method: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    for protocol in ["-t", "-u"] {
        cluster.adm(&format!("-A {protocol} {VIP}:80 -s rr"));
        cluster.adm(&format!("-a {protocol} {VIP}:80 -r {}:80 {method}", server(1)));
    }
    cluster
}

fn packet(from: Sender, transport: Transport) -> Datagram {
    match from {
        Sender::Client => Datagram::new(transport, at(CLIENT, 4000), at(VIP, 80)),
        Sender::Server => Datagram::new(transport, at(server(1), 80), at(CLIENT, 4000)),
    }
}

#[track_caller]
fn send(cluster: &mut LabCluster, from: Sender, transport: Transport) {
    let packet = packet(from, transport);
    let judged = match from {
        Sender::Client => cluster.from_client(&packet),
        Sender::Server => cluster.from_server(&packet),
    };
    assert_eq!(judged.verdict, "transmit", "{packet:?}");
}

/// Remaining time and state of the only connection in `-Lnc`.
#[track_caller]
fn seen(cluster: &mut LabCluster) -> (u64, String) {
    let rows = cluster.connections();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    let words: Vec<_> = row.split(' ').collect();
    let (minutes, seconds) = words[1].split_once(':').expect("MM:SS");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    (number(minutes) * 60 + number(seconds), words[2].to_owned())
}

#[track_caller]
fn assert_gone_at(cluster: &mut LabCluster, seconds: u64) {
    cluster.advance(seconds as f64 - 0.001);
    assert_eq!(cluster.connections().len(), 1, "a moment before {seconds} s");
    cluster.advance(0.001);
    assert_eq!(cluster.connections(), [] as [String; 0], "at {seconds} s");
    assert_eq!(cluster.loads().iter().map(|(_, active, inactive)| active + inactive).sum::<u64>(), 0);
    assert_eq!(cluster.counters()["expired"], cluster.counters()["connections"]);
}

/// Injects packets and asserts state, timeout and counts after each.
#[track_caller]
fn play(method: &str, packets: &[(Sender, u8, &str)]) -> LabCluster {
    let mut cluster = cluster(method);
    for (from, flags, state) in packets {
        send(&mut cluster, *from, Transport::Tcp(*flags));
        let column = STATES.iter().position(|(_, name, _)| name == state).expect("a state");
        assert_eq!(seen(&mut cluster), (STATES[column].2, (*state).to_owned()), "after {from:?} {flags:#x}");
        assert_eq!(cluster.loads()[0], (at(server(1), 80).to_string(), counted(column).0, counted(column).1));
        // Time passes, so a timeout that is not restarted is noticed.
        cluster.advance(1.0);
    }
    cluster
}

#[test]
fn a_masqueraded_connection_that_its_client_closes_ends_in_time_wait() {
    use Sender::{Client, Server};
    let mut cluster = play(
        "-m",
        &[
            (Client, SYN, "SYN_RECV"),
            (Server, SYN_ACK, "SYN_RECV"),
            (Client, ACK, "ESTABLISHED"),
            (Client, ACK, "ESTABLISHED"),
            (Server, ACK, "ESTABLISHED"),
            (Client, FIN_ACK, "CLOSE_WAIT"),
            (Server, ACK, "CLOSE_WAIT"),
            (Server, FIN_ACK, "TIME_WAIT"),
            (Client, ACK, "TIME_WAIT"),
        ],
    );
    assert_gone_at(&mut cluster, 119);
}

#[test]
fn a_masqueraded_connection_that_its_server_closes_ends_in_time_wait() {
    use Sender::{Client, Server};
    play(
        "-m",
        &[
            (Client, SYN, "SYN_RECV"),
            (Server, SYN_ACK, "SYN_RECV"),
            (Client, ACK, "ESTABLISHED"),
            (Server, FIN_ACK, "FIN_WAIT"),
            (Client, ACK, "FIN_WAIT"),
            (Client, FIN_ACK, "TIME_WAIT"),
            (Server, ACK, "TIME_WAIT"),
        ],
    );
}

#[test]
fn a_servers_reset_closes_the_connection_which_ends_after_ten_seconds() {
    let mut cluster = play("-m", &[(Sender::Client, SYN, "SYN_RECV"), (Sender::Server, RST | ACK, "CLOSE")]);
    assert_gone_at(&mut cluster, 9);
}

#[test]
fn a_clients_reset_before_the_servers_reply_does_not_close_the_connection() {
    for method in ["-m", "-g", "-i"] {
        play(method, &[(Sender::Client, SYN, "SYN_RECV"), (Sender::Client, RST, "SYN_RECV")]);
    }
}

#[test]
fn a_connection_whose_replies_bypass_the_director_ends_in_fin_wait() {
    for method in ["-g", "-i"] {
        let mut cluster = play(
            method,
            &[
                (Sender::Client, SYN, "SYN_RECV"),
                (Sender::Client, ACK, "ESTABLISHED"),
                (Sender::Client, FIN_ACK, "FIN_WAIT"),
                (Sender::Client, ACK, "FIN_WAIT"),
            ],
        );
        assert_gone_at(&mut cluster, 119);
    }
}

#[test]
fn a_second_syn_creates_no_second_connection() {
    for method in ["-m", "-g", "-i"] {
        let mut cluster =
            play(method, &[(Sender::Client, SYN, "SYN_RECV"), (Sender::Client, SYN, "SYN_RECV")]);
        assert_eq!(cluster.counters()["connections"], 1);
    }
}

#[test]
fn a_segment_without_any_flag_closes_the_connection() {
    for method in ["-m", "-g", "-i"] {
        let packets = [
            (Sender::Client, SYN, "SYN_RECV"),
            (Sender::Client, ACK, "ESTABLISHED"),
            (Sender::Client, 0, "CLOSE"),
        ];
        play(method, &packets);
    }
}

#[test]
fn every_state_expires_at_its_timeout_and_not_before() {
    use Sender::{Client, Server};
    type Case = (&'static str, &'static [(Sender, u8)], u64);
    let cases: [Case; 7] = [
        ("-g", &[(Client, SYN)], 60),
        ("-i", &[(Client, SYN), (Client, ACK)], 900),
        ("-g", &[(Client, SYN), (Client, ACK), (Client, FIN)], 120),
        ("-m", &[(Client, SYN), (Client, ACK), (Client, FIN)], 60),
        ("-m", &[(Client, SYN), (Client, FIN)], 120),
        ("-m", &[(Client, SYN), (Client, ACK), (Server, RST)], 10),
        ("-m", &[(Client, SYN), (Client, ACK), (Client, FIN), (Server, FIN), (Server, SYN)], 120),
    ];
    for (method, packets, timeout) in cases {
        let mut cluster = cluster(method);
        for (from, flags) in packets {
            send(&mut cluster, *from, Transport::Tcp(*flags));
        }
        assert_gone_at(&mut cluster, timeout);
    }
}

#[test]
fn a_udp_connection_lasts_five_minutes_after_its_last_packet_and_is_never_active() {
    for method in ["-m", "-g", "-i"] {
        let mut cluster = cluster(method);
        send(&mut cluster, Sender::Client, Transport::Udp);
        assert_eq!(seen(&mut cluster), (300, "UDP".to_owned()));
        assert_eq!(cluster.loads()[1].1, 0);
        assert_eq!(cluster.loads()[1].2, 1);
        cluster.advance(299.0);
        assert_eq!(seen(&mut cluster).0, 1);
        send(&mut cluster, Sender::Client, Transport::Udp);
        assert_eq!(seen(&mut cluster).0, 300);
        assert_gone_at(&mut cluster, 300);
    }
}

#[test]
fn a_masqueraded_udp_reply_also_refreshes_the_connection() {
    let mut cluster = cluster("-m");
    send(&mut cluster, Sender::Client, Transport::Udp);
    cluster.advance(200.0);
    send(&mut cluster, Sender::Server, Transport::Udp);
    assert_eq!(seen(&mut cluster).0, 300);
    assert_gone_at(&mut cluster, 300);
}

#[test]
fn set_changes_three_timeouts_from_the_next_packet_on_and_zero_leaves_one_unchanged() {
    let mut cluster = cluster("-g");
    send(&mut cluster, Sender::Client, Transport::Udp);
    cluster.adm("--set 7 8 9");
    assert_eq!(cluster.adm("-L --timeout"), "Timeout (tcp tcpfin udp): 7 8 9\n");
    assert_eq!(seen(&mut cluster).0, 300, "an old entry keeps its deadline");
    send(&mut cluster, Sender::Client, Transport::Udp);
    assert_eq!(seen(&mut cluster).0, 9);
    assert_gone_at(&mut cluster, 9);

    for (flags, state, seconds) in [(SYN, "SYN_RECV", 60), (ACK, "ESTABLISHED", 7), (FIN, "FIN_WAIT", 8)] {
        send(&mut cluster, Sender::Client, Transport::Tcp(flags));
        assert_eq!(seen(&mut cluster), (seconds, state.to_owned()));
    }
    assert_gone_at(&mut cluster, 8);

    cluster.adm("--set 0 0 11");
    assert_eq!(cluster.adm("-L --timeout"), "Timeout (tcp tcpfin udp): 7 8 11\n");
}

#[test]
fn a_shorter_timeout_advances_the_expiry() {
    let mut cluster = cluster("-m");
    send(&mut cluster, Sender::Client, Transport::Tcp(SYN));
    send(&mut cluster, Sender::Client, Transport::Tcp(ACK));
    cluster.advance(70.0);
    send(&mut cluster, Sender::Server, Transport::Tcp(RST));
    assert_gone_at(&mut cluster, 10);
}

#[test]
fn a_connection_refreshed_for_hours_outlives_every_turn_of_the_timer_wheel() {
    let mut cluster = cluster("-g");
    send(&mut cluster, Sender::Client, Transport::Tcp(SYN));
    send(&mut cluster, Sender::Client, Transport::Tcp(ACK));
    for _ in 0..20 {
        cluster.advance(899.0);
        send(&mut cluster, Sender::Client, Transport::Tcp(ACK));
        assert_eq!(seen(&mut cluster), (900, "ESTABLISHED".to_owned()));
    }
    assert_gone_at(&mut cluster, 900);
}

#[test]
fn weight_0_and_its_restoration_do_not_change_connections_and_counts() {
    let mut cluster = cluster("-m");
    send(&mut cluster, Sender::Client, Transport::Tcp(SYN));
    send(&mut cluster, Sender::Client, Transport::Tcp(ACK));
    for weight in [0, 5] {
        cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -m -w {weight}", server(1)));
        send(&mut cluster, Sender::Client, Transport::Tcp(ACK));
        send(&mut cluster, Sender::Server, Transport::Tcp(ACK));
        assert_eq!(cluster.loads()[0], (at(server(1), 80).to_string(), 1, 0));
    }
    assert_eq!(cluster.stats()[1], format!("-> {}:80 1 4 2 160 80", server(1)));
}

/// The trash is scanned every 60 s from its first server on. A server leaves it with the first scan that is 120 s after
/// the one that found it without connections. Source: ipvs-behaviour, section 3.5.
#[test]
fn a_removed_destination_without_connections_for_minutes_is_new_when_added_again() {
    let remove = format!("-d -u {VIP}:80 -r {}:80", server(1));
    let add = format!("-a -u {VIP}:80 -r {}:80 -g", server(1));
    let is_new_after = |cluster: &mut LabCluster, seconds| {
        cluster.adm(&remove);
        cluster.advance(seconds);
        cluster.adm(&add);
        let rows = cluster.stats();
        let [.., service, dest] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!(*service, format!("UDP {VIP}:80 1 1 0 28 0"));
        match dest.strip_prefix(&format!("-> {}:80 ", server(1))) {
            Some("1 1 0 28 0") => false,
            Some("0 0 0 0 0") => true,
            _ => panic!("{dest}"),
        }
    };
    let mut cluster = cluster("-g");
    send(&mut cluster, Sender::Client, Transport::Udp);
    // Its connection ends after 300 s, at the fifth scan.
    assert!(!is_new_after(&mut cluster, 301.0));
    // Scans at 60, 120 and 180 s.
    assert!(!is_new_after(&mut cluster, 160.0));
    assert!(!is_new_after(&mut cluster, 179.0));
    // Later ones follow the first server, also of another service.
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
    cluster.advance(50.0);
    assert!(!is_new_after(&mut cluster, 129.0));
    assert!(is_new_after(&mut cluster, 181.0));
}

/// Counters are sampled every two seconds. Source: recording `churn-323`.
#[test]
fn a_server_that_is_added_again_to_a_new_service_counts_from_the_last_sample_on() {
    let mut cluster = cluster("-g");
    send(&mut cluster, Sender::Client, Transport::Udp);
    cluster.advance(2.0);
    send(&mut cluster, Sender::Client, Transport::Udp);
    cluster.configure(&[
        &format!("-D -u {VIP}:80"),
        &format!("-A -u {VIP}:80"),
        &format!("-a -u {VIP}:80 -r {}:80 -g", server(1)),
    ]);
    assert_eq!(cluster.stats().pop(), Some(format!("-> {}:80 0 1 0 28 0", server(1))));
}

#[test]
fn the_server_with_the_fewest_connections_per_weight_is_next_and_active_ones_count_256() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s wlc"),
        &format!("-a -t {VIP}:80 -r {}:80 -g -w 1", server(1)),
        &format!("-a -t {VIP}:80 -r {}:80 -g -w 2", server(2)),
    ]);
    let begin = |cluster: &mut LabCluster, port: u16| {
        let first = Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
        assert_eq!(cluster.from_client(&first).verdict, "transmit");
        (cluster.load(at(server(1), 80)).0, cluster.load(at(server(2), 80)).0)
    };
    // Of equal destinations the one added last is first; 2 connections at weight 2 equal 1 at weight 1.
    assert_eq!(
        (1..=6).map(|port| begin(&mut cluster, port)).collect::<Vec<_>>(),
        [(0, 1), (1, 1), (1, 2), (1, 3), (2, 3), (2, 4)]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_random_walk_through_the_states_follows_the_tables(
        masqueraded in any::<bool>(),
        walk in prop::collection::vec((any::<bool>(), 0usize..4, any::<bool>(), any::<u8>()), 1..40),
    ) {
        let mut cluster = cluster(if masqueraded { "-m" } else { "-g" });
        // No new connection replaces one that has ended.
        cluster.ok(json!({ "set": { "conn_reuse_mode": 0 } }));
        send(&mut cluster, Sender::Client, Transport::Tcp(SYN));
        let mut column = 3;
        for (reply, event, beside, odd) in walk {
            let from = if reply && masqueraded { Sender::Server } else { Sender::Client };
            // ACK is combined with every other event; some packets have none of the four flags.
            let flags = match odd {
                0..4 => 0,
                _ => EVENTS[event] | if beside { ACK } else { 0 },
            };
            let table = match from {
                Sender::Server => &OUTPUT,
                Sender::Client if masqueraded => &INPUT,
                Sender::Client => &INPUT_ONLY,
            };
            send(&mut cluster, from, Transport::Tcp(flags));
            column = next(column, table, flags);
            prop_assert_eq!(seen(&mut cluster), (STATES[column].2, STATES[column].1.to_owned()));
            let (active, inactive) = counted(column);
            prop_assert_eq!(&cluster.loads()[0], &(at(server(1), 80).to_string(), active, inactive));
        }
    }
}

#[test]
fn packets_from_the_ftp_data_port_count_for_drop_packet() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[&format!("-A -t {VIP}:80 -s rr"), &format!("-a -t {VIP}:80 -r {}:80 -m", server(1))]);
    cluster.ok(json!({ "set": { "drop_packet": 3, "am_droprate": 3 } }));
    let mut verdict = |port| {
        cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80))).verdict
    };
    let verdicts = [20, 20, 4000, 4001].map(&mut verdict);
    assert_eq!(verdicts, ["drop defence", "pass", "transmit", "drop defence"]);
}
