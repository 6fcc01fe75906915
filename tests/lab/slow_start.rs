//! Slow start, in the lab: from `--slow-start` to the servers of the next connections.
//!
//! Not here: a server that comes up by checks (`tests/netlab/health.rs`).

use serde_json::json;
use xvs::frames::SYN;
use xvs::lab_cluster::{CLIENT, VIP, at, server};
use xvs::{Datagram, LabCluster, Transport};

/// The length of slow starts here, in seconds.
const LENGTH: u16 = 5;

/// A service with two servers, a slow start's length after they were added.
fn cluster(scheduler: &str, length: u16) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s {scheduler} --slow-start {length}"));
    add(&mut cluster, 1);
    add(&mut cluster, 2);
    cluster.advance(f64::from(LENGTH));
    cluster
}

fn add(cluster: &mut LabCluster, number: u8) {
    cluster.adm(&format!("-a -t {VIP}:80 -r {} -g", at(server(number), 80)));
}

fn connect(cluster: &mut LabCluster, ports: std::ops::Range<u16>) {
    for port in ports {
        let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
        assert_eq!(cluster.from_client(&syn).verdict, "transmit");
    }
}

/// The connections of a server.
fn carries(cluster: &mut LabCluster, number: u8) -> u64 {
    cluster.load(at(server(number), 80)).0
}

/// New connections in each second.
const RATE: u16 = 200;

/// The connections of the third server in each second of its slow start.
fn made_each_second(cluster: &mut LabCluster) -> Vec<u64> {
    let made = |second| {
        let before = carries(cluster, 3);
        for tenth in 0..10 {
            let first = 10_000 + second * RATE + tenth * RATE / 10;
            connect(cluster, first..first + RATE / 10);
            cluster.advance(0.1);
        }
        carries(cluster, 3) - before
    };
    (0..LENGTH).map(made).collect()
}

/// The part of its share that a server gets, as `xvs explain` says of a connection that it does not get.
fn percent(cluster: &mut LabCluster, number: u8) -> Option<u64> {
    let question = json!({ "proto": "tcp", "from": at(CLIENT, 999), "to": at(VIP, 80) });
    let report = cluster.ask(json!({ "explain": question }));
    let candidates = report["choice"]["candidates"].as_array().expect("candidates");
    let name = at(server(number), 80).to_string();
    let candidate = candidates.iter().find(|candidate| candidate["server"] == name).expect("a candidate");
    let percent = candidate["slow_start_percent"].as_u64();
    assert_eq!(candidate["standing"] == "slow_start", percent.is_some(), "{candidate}");
    percent
}

#[test]
fn without_a_slow_start_the_first_thousand_connections_go_to_the_server_that_returns() {
    let mut cluster = cluster("wlc", 0);
    connect(&mut cluster, 1000..3000);
    add(&mut cluster, 3);
    connect(&mut cluster, 3000..4000);
    assert_eq!([1, 2, 3].map(|number| carries(&mut cluster, number)), [1000; 3]);
}

#[test]
fn the_share_of_a_server_that_returns_grows_from_a_tenth_to_the_full_one_in_a_line() {
    for scheduler in ["wlc", "wrr", "sed", "nq", "lc", "rr", "twos"] {
        let mut cluster = cluster(scheduler, LENGTH);
        // Enough that the server would get all new ones by its load.
        connect(&mut cluster, 1000..1400);
        for number in [1, 2] {
            assert!(carries(&mut cluster, number).abs_diff(200) < 10, "{scheduler}");
        }
        add(&mut cluster, 3);
        let made = made_each_second(&mut cluster);
        for (second, made) in made.into_iter().enumerate() {
            let part = 0.1 + 0.9 * (second as f64 + 0.5) / f64::from(LENGTH);
            let line = part * f64::from(RATE) / 3.0;
            let is_near = (made as f64 - line).abs() < 0.1 * line + 1.0;
            assert!(is_near, "{scheduler}, second {second}: {made}, not {line}");
        }
    }
}

#[test]
fn the_first_servers_of_a_service_and_those_added_soon_after_them_start_at_once() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s wlc --slow-start {LENGTH}"));
    add(&mut cluster, 1);
    cluster.advance(f64::from(LENGTH) - 1.0);
    add(&mut cluster, 2);
    connect(&mut cluster, 1000..1100);
    assert_eq!([1, 2].map(|number| carries(&mut cluster, number)), [50, 50]);
}

#[test]
fn a_server_whose_weight_was_0_or_that_was_disabled_starts_slowly_and_one_of_another_weight_does_not() {
    let mut cluster = cluster("wlc", LENGTH);
    let weight = |cluster: &mut LabCluster, weight: u32| {
        cluster.adm(&format!("-e -t {VIP}:80 -r {} -g -w {weight}", at(server(1), 80)));
    };
    weight(&mut cluster, 7);
    assert_eq!(percent(&mut cluster, 1), None);
    weight(&mut cluster, 0);
    weight(&mut cluster, 7);
    assert_eq!(percent(&mut cluster, 1), Some(10));
    cluster.advance(f64::from(LENGTH) / 2.0);
    assert_eq!(percent(&mut cluster, 1), Some(55));
    cluster.xvs(&format!("disable {}", server(1)));
    assert_eq!(percent(&mut cluster, 1), None);
    cluster.xvs(&format!("enable {}", server(1)));
    assert_eq!(percent(&mut cluster, 1), Some(10), "it starts again");
    cluster.advance(f64::from(LENGTH));
    assert_eq!(percent(&mut cluster, 1), None);
}

#[test]
fn a_server_that_starts_slowly_takes_all_connections_if_no_other_can() {
    let mut cluster = cluster("rr", LENGTH);
    add(&mut cluster, 3);
    for number in [1, 2] {
        cluster.xvs(&format!("disable {}", server(number)));
    }
    connect(&mut cluster, 1000..1100);
    assert_eq!(carries(&mut cluster, 3), 100);
}

#[test]
fn ovf_sends_a_server_that_starts_slowly_what_the_others_have_no_room_for_and_nothing_beyond_its_own() {
    let mut cluster = cluster("ovf", LENGTH);
    // A server of weight 1 takes two connections.
    connect(&mut cluster, 1000..1004);
    add(&mut cluster, 3);
    connect(&mut cluster, 1004..1006);
    assert_eq!([1, 2, 3].map(|number| carries(&mut cluster, number)), [2; 3]);
    let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 1006), at(VIP, 80));
    assert_eq!(cluster.from_client(&syn).verdict, "drop no_destination");
}

#[test]
fn servers_that_all_start_slowly_share_the_connections_by_their_parts() {
    for scheduler in ["wlc", "rr"] {
        let mut cluster = cluster(scheduler, LENGTH);
        add(&mut cluster, 3);
        cluster.advance(f64::from(LENGTH) * 0.5);
        add(&mut cluster, 4);
        for number in [1, 2] {
            cluster.xvs(&format!("disable {}", server(number)));
        }
        connect(&mut cluster, 1000..1650);
        // 55 % and 10 % of equal shares.
        assert_eq!([3, 4].map(|number| carries(&mut cluster, number)), [550, 100], "{scheduler}");
    }
}

#[test]
fn all_servers_that_are_replaced_at_once_start_at_once() {
    let mut cluster = cluster("wlc", LENGTH);
    let [old, new]: [Vec<_>; 2] = [[1, 2], [3, 4]]
        .map(|numbers| numbers.map(|number| format!("-t {VIP}:80 -r {}", at(server(number), 80))).into());
    let lines = old.iter().map(|words| format!("-d {words}\n"));
    let lines: String = lines.chain(new.iter().map(|words| format!("-a {words} -g\n"))).collect();
    assert_eq!(cluster.ask(json!({ "adm": ["-R"], "stdin": lines }))["exit"], 0);
    assert_eq!([3, 4].map(|number| percent(&mut cluster, number)), [None, None]);
}

#[test]
fn another_length_applies_to_a_slow_start_that_runs() {
    let mut cluster = cluster("wlc", LENGTH);
    add(&mut cluster, 3);
    cluster.advance(f64::from(LENGTH) / 2.0);
    cluster.adm(&format!("-E -t {VIP}:80 -s wlc --slow-start {}", 5 * LENGTH));
    assert_eq!(percent(&mut cluster, 3), Some(19));
}

#[test]
fn all_servers_of_a_service_that_had_none_start_at_once() {
    let mut cluster = cluster("wlc", LENGTH);
    for command in ["disable", "enable"] {
        for number in [1, 2] {
            cluster.xvs(&format!("{command} {}", server(number)));
        }
    }
    assert_eq!([1, 2].map(|number| percent(&mut cluster, number)), [None, None]);
}

#[test]
fn an_explanation_spends_nothing_of_what_a_server_has_earned() {
    let mut cluster = cluster("wlc", LENGTH);
    add(&mut cluster, 3);
    let taken = |cluster: &mut LabCluster, explains: bool| {
        let from = if explains { 2000 } else { 3000 };
        let before = carries(cluster, 3);
        for port in from..from + 310 {
            if explains {
                percent(cluster, 3);
            }
            connect(cluster, port..port + 1);
        }
        carries(cluster, 3) - before
    };
    assert_eq!([true, false].map(|explains| taken(&mut cluster, explains)), [10, 10]);
}

#[test]
fn a_slow_start_is_saved_restored_and_shown_and_a_wrong_one_is_refused_with_the_next_step() {
    let mut cluster = cluster("wlc", 30);
    let line = format!("#xvs -E -t {VIP}:80 -s wlc --slow-start 30\n");
    let saved = cluster.adm("-S -n");
    assert!(saved.contains(&line), "{saved}");
    let mut other = LabCluster::new();
    assert_eq!(other.ask(json!({ "adm": ["-R"], "stdin": saved }))["exit"], 0);
    assert_eq!(other.adm("-S -n"), saved);
    let mut refused = |line: String| {
        let words: Vec<_> = line.split_whitespace().collect();
        cluster.ask(json!({ "adm": words }))["stderr"].as_str().expect("a text").to_owned()
    };
    let why = refused(format!("-E -t {VIP}:80 -s sh --slow-start 30"));
    assert!(
        why.contains(
            "--slow-start with scheduler sh, which does not share connections, is not supported yet; leave it out"
        ),
        "{why}"
    );
    let why = refused(format!("-E -t {VIP}:80 -s wlc --slow-start 86401"));
    assert!(why.contains("slow-start"), "{why}");
    assert_eq!(cluster.adm("-S -n"), saved);
}
