//! Weights that follow load reports or times, in the lab: from `xvs feedback` to the server of the next connection.
//!
//! Not here: the formulas and their bounds (`crates/ctl/src/registry/load_feedback.rs`); the same over the socket
//! (`programs/control.rs`).

use std::fmt::Display;

use serde_json::{Value, json};
use xvs::frames::SYN;
use xvs::lab_cluster::{CLIENT, LAN_MAC, VIP, at, server, server_mac};
use xvs::{Datagram, LabCluster, Transport};

/// A service with two servers of these weights.
fn cluster(scheduler: &str, weights: [u32; 2]) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s {scheduler}"));
    for (number, weight) in [2, 1].into_iter().zip([weights[1], weights[0]]) {
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g -w {weight}", server(number)));
    }
    cluster
}

/// The same, following load reports.
fn following(scheduler: &str, weights: [u32; 2]) -> LabCluster {
    let mut cluster = cluster(scheduler, weights);
    follow(&mut cluster, &format!("TCP {VIP}:80"));
    cluster
}

fn follow(cluster: &mut LabCluster, services: &str) {
    cluster.ok(json!({ "set": { "feedback.services": services } }));
}

#[track_caller]
fn report(cluster: &mut LabCluster, server: impl Display, load: &str) {
    assert_eq!(cluster.xvs(&format!("feedback {server} {load}")), "");
}

/// The weights that `-Ln` shows, the first server's first.
fn weights(cluster: &mut LabCluster) -> Vec<String> {
    let listing = cluster.adm("-L -n");
    let dests = listing.lines().skip(3).filter_map(|line| line.strip_prefix("  -> "));
    dests.map(|line| line.split_whitespace().nth(2).expect("a weight").to_owned()).collect()
}

fn connect(cluster: &mut LabCluster, ports: std::ops::Range<u16>) {
    for port in ports {
        let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
        assert_eq!(cluster.from_client(&syn).verdict, "transmit");
    }
}

fn active(cluster: &mut LabCluster) -> [u64; 2] {
    [1, 2].map(|number| cluster.load(at(server(number), 80)).0)
}

#[test]
fn an_idle_server_gets_more_connections_from_the_next_one_on_and_none_is_lost() {
    let mut cluster = following("wrr", [1, 1]);
    connect(&mut cluster, 1000..1004);
    assert_eq!(active(&mut cluster), [2, 2]);
    report(&mut cluster, server(1), "0");
    assert_eq!(weights(&mut cluster), ["6", "1"]);
    assert_eq!(active(&mut cluster), [2, 2]);
    connect(&mut cluster, 2000..2014);
    assert_eq!(active(&mut cluster), [14, 4]);
    assert_eq!(cluster.counters()["connections"], 18);
}

#[test]
fn the_operators_weight_is_what_is_saved_and_both_are_shown() {
    let mut cluster = following("wlc", [10, 10]);
    report(&mut cluster, server(1), "12.5");
    cluster.advance(3.0);
    report(&mut cluster, at(server(2), 80), "100");
    assert_eq!(weights(&mut cluster), ["15", "8"]);
    let saved = cluster.adm("-S -n");
    assert_eq!(saved.matches("-w 10").count(), 2, "{saved}");
    let (exit, shown) = cluster.xvs_reading("feedback");
    let shown: Vec<_> =
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!((exit, shown.len()), (0, 3));
    assert_eq!(shown[0], "Service Real server Own In force Load Age");
    assert!(shown.contains(&format!("TCP {VIP}:80 {}:80 10 15 12.5 3 s", server(1))), "{shown:?}");
    assert!(shown.contains(&format!("TCP {VIP}:80 {}:80 10 8 100 0 s", server(2))), "{shown:?}");
    let shown = cluster.xvs("feedback --json");
    let rows: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&rows[0]["own_weight"], rows.as_array().map(Vec::len)), (&json!(10), Some(2)));
}

#[test]
fn without_further_reports_the_operators_weight_returns() {
    let mut cluster = following("wrr", [2, 2]);
    cluster.set("feedback.timeout_seconds", 10);
    report(&mut cluster, server(1), "0");
    cluster.advance(9.0);
    assert_eq!(weights(&mut cluster), ["7", "2"]);
    report(&mut cluster, server(1), "95");
    cluster.advance(9.0);
    assert_eq!(weights(&mut cluster), ["7", "2"], "a report refreshes, also one that changes nothing");
    cluster.advance(2.0);
    assert_eq!(weights(&mut cluster), ["2", "2"]);
    connect(&mut cluster, 1000..1008);
    assert_eq!(active(&mut cluster), [4, 4]);
}

#[test]
fn a_quiescent_server_is_never_raised_and_another_weight_of_the_operators_holds_at_once() {
    let mut cluster = following("wrr", [4, 4]);
    let edit = |cluster: &mut LabCluster, weight: u32| {
        cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -g -w {weight}", server(1)));
    };
    report(&mut cluster, server(1), "0");
    assert_eq!(weights(&mut cluster), ["9", "4"]);
    edit(&mut cluster, 4);
    assert_eq!(weights(&mut cluster), ["9", "4"], "it said so before");
    edit(&mut cluster, 0);
    report(&mut cluster, server(1), "0");
    assert_eq!(weights(&mut cluster), ["0", "4"]);
    connect(&mut cluster, 1000..1004);
    assert_eq!(active(&mut cluster), [0, 4]);
    edit(&mut cluster, 20);
    assert_eq!(weights(&mut cluster), ["20", "4"]);
    report(&mut cluster, server(1), "0");
    assert_eq!(weights(&mut cluster), ["25", "4"]);
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g -w 20", server(1)));
    assert!(weights(&mut cluster).contains(&"20".to_owned()), "one that was deleted begins anew");
}

#[test]
fn a_report_reaches_the_services_that_follow_and_ports_only_where_one_is_named() {
    let mut cluster = following("wrr", [3, 3]);
    for port in [8080, 8081] {
        cluster.configure(&[
            &format!("-A -t {VIP}:{port} -s wrr"),
            &format!("-a -t {VIP}:{port} -r {}:{port} -g -w 3", server(1)),
        ]);
    }
    report(&mut cluster, server(1), "0");
    assert_eq!(weights(&mut cluster), ["8", "3", "3", "3"]);
    follow(&mut cluster, &format!("TCP {VIP}:80, TCP {VIP}:8080"));
    report(&mut cluster, server(1), "0");
    assert_eq!(weights(&mut cluster), ["13", "3", "8", "3"]);
    follow(&mut cluster, "all");
    report(&mut cluster, at(server(1), 8081), "0");
    assert_eq!(weights(&mut cluster), ["13", "3", "8", "8"]);
    cluster.set("feedback.highest_percent", 300);
    assert_eq!(weights(&mut cluster), ["9", "3", "8", "8"], "bounds hold at once");
    follow(&mut cluster, "");
    assert_eq!(weights(&mut cluster), ["3", "3", "3", "3"]);
}

#[test]
fn a_wrong_report_is_refused_with_object_reason_and_next_step_and_changes_nothing() {
    let mut cluster = cluster("wrr", [3, 3]);
    let (rs1, unknown) = (server(1).to_string(), server(9).to_string());
    let (exit, output) = cluster.xvs_reading(&format!("feedback {rs1} 10"));
    assert_eq!(exit, 3, "off unless a service is named");
    assert_eq!(
        output,
        format!(
            "xvs: no service of real server {rs1} follows load reports; \
             `xvs set feedback.services \"TCP {VIP}:80\"` makes that service follow them\n"
        )
    );
    assert!(cluster.xvs("feedback").contains("feedback.services"));
    follow(&mut cluster, "all");
    let (exit, output) = cluster.xvs_reading(&format!("feedback {unknown} 10"));
    let lists = "`xvsadm -Ln` lists the configured ones";
    assert_eq!((exit, output), (3, format!("xvs: no virtual service has real server {unknown}; {lists}\n")));
    let unknown = format!("{rs1}:81");
    assert_eq!(cluster.xvs_reading(&format!("feedback {unknown} 10")).0, 3);
    for load in ["-1", "100.5", "1e9"] {
        let (exit, output) = cluster.xvs_reading(&format!("feedback {rs1} {load}"));
        assert!(exit == 3 && output.contains(&rs1) && output.contains("0 (idle) to 100"), "{output}");
    }
    for words in [&*rs1, "web1 5", &format!("{rs1} nan")] {
        assert_eq!(cluster.xvs_reading(&format!("feedback {words}")).0, 2, "{words}");
    }
    let (exit, output) = cluster.xvs_reading("set feedback.lowest_percent 101");
    assert_eq!(
        (exit, output.as_str()),
        (3, "xvs: feedback.lowest_percent cannot be \"101\"; it takes 1 to 100\n")
    );
    assert_eq!(weights(&mut cluster), ["3", "3"]);
    let shown = cluster.xvs("feedback");
    assert_eq!(shown.matches(" - ").count(), 2, "no report was taken in:\n{shown}");
}

/// UDP clients of these ports, whom the two servers answer after these milliseconds.
fn exchange(cluster: &mut LabCluster, ports: std::ops::Range<u16>, millis: [u16; 2]) {
    let sent_to = |cluster: &mut LabCluster, port| {
        let judged = cluster.from_client(&Datagram::new(Transport::Udp, at(CLIENT, port), at(VIP, 53)));
        if judged.sent[0].1[..6] == server_mac(1) { 1 } else { 2 }
    };
    let clients: Vec<(u16, u8)> = ports.map(|port| (port, sent_to(cluster, port))).collect();
    for (number, wait) in [(1, millis[0]), (2, millis[1] - millis[0])] {
        cluster.advance(f64::from(wait) / 1000.0);
        for (port, _) in clients.iter().filter(|(_, chosen)| *chosen == number) {
            let reply = Datagram::new(Transport::Udp, at(server(number), 53), at(CLIENT, *port));
            let judged = cluster.inject("lan", &reply.frame(server_mac(number), LAN_MAC));
            assert_eq!(judged.verdict, "transmit");
        }
    }
}

/// A DNS service with two servers of weight 10 that follows times.
fn timed() -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {VIP}:53 -s wrr"));
    for number in [2, 1] {
        cluster.adm(&format!("-a -u {VIP}:53 -r {}:53 -m -w 10", server(number)));
    }
    cluster.ok(json!({ "set": { "feedback.by_response_times": format!("UDP {VIP}:53") } }));
    cluster
}

#[test]
fn weights_follow_the_times_until_the_first_reply_and_return_when_none_is_measured() {
    let mut cluster = timed();
    // The first look only notes these times.
    exchange(&mut cluster, 1000..1080, [40, 80]);
    cluster.advance(10.0);
    assert_eq!(weights(&mut cluster), ["10", "10"]);
    // Medians of 40 connections in (512, 1024] and (2048, 4096] microseconds: 768 and 3072, their mean 1920. Wanted are
    // 25 and 6.25: a quarter of the way is 13.75 and 9.06.
    exchange(&mut cluster, 1080..1160, [1, 4]);
    cluster.advance(10.0);
    assert_eq!(weights(&mut cluster), ["14", "9"]);
    let shown = cluster.xvs("feedback");
    assert!(shown.contains("768us") && shown.contains("3.1ms"), "{shown}");
    // Too few for a median: the weights stay, then expire.
    exchange(&mut cluster, 2000..2040, [1, 4]);
    cluster.advance(55.0);
    assert_eq!(weights(&mut cluster), ["14", "9"]);
    cluster.advance(10.0);
    assert_eq!(weights(&mut cluster), ["10", "10"]);
}

#[test]
fn a_server_alone_and_one_of_weight_0_move_no_weight_and_reports_decide_where_both_are_wanted() {
    let mut cluster = timed();
    cluster.advance(10.0);
    exchange(&mut cluster, 1000..1080, [1, 4]);
    cluster.adm(&format!("-e -u {VIP}:53 -r {}:53 -m -w 0", server(2)));
    cluster.advance(10.0);
    assert_eq!(weights(&mut cluster), ["10", "0"]);
    cluster.adm(&format!("-e -u {VIP}:53 -r {}:53 -m -w 10", server(2)));
    follow(&mut cluster, "all");
    exchange(&mut cluster, 2000..2080, [1, 4]);
    cluster.advance(10.0);
    assert_eq!(weights(&mut cluster), ["10", "10"]);
    report(&mut cluster, server(1), "100");
    assert_eq!(weights(&mut cluster), ["8", "10"]);
    follow(&mut cluster, "");
    assert_eq!(weights(&mut cluster), ["10", "10"], "what followed a report does not follow times");
}
