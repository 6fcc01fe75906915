//! Maintenance that lasts, in the lab: `xvs disable` and `xvs enable`, from the command to the server of the next
//! connection.
//!
//! Not here: the same over health checks and reloads (`crates/ctl/src/control/reconcile.rs`, `netlab/health.rs`).

use std::fs;

use serde_json::json;
use xvs::frames::SYN;
use xvs::lab_cluster::{CLIENT, VIP, at, server};
use xvs::{Datagram, LabCluster, Transport};

/// A service with two servers of weight 3.
fn cluster() -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s wrr"));
    for number in [2, 1] {
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g -w 3", server(number)));
    }
    cluster
}

/// The weights that `-Ln` shows, by the servers' order of addition.
fn weights(cluster: &mut LabCluster) -> Vec<String> {
    let listing = cluster.adm("-L -n");
    let dests = listing.lines().skip(3).filter_map(|line| line.strip_prefix("  -> "));
    dests.map(|line| line.split_whitespace().nth(2).expect("a weight").to_owned()).collect()
}

/// Active connections of the two servers after four more connections.
fn after_four_more(cluster: &mut LabCluster, first_port: u16) -> [u64; 2] {
    for port in first_port..first_port + 4 {
        let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
        assert_eq!(cluster.from_client(&syn).verdict, "transmit");
    }
    [1, 2].map(|number| cluster.load(at(server(number), 80)).0)
}

#[test]
fn a_disabled_server_keeps_its_connections_gets_no_new_ones_and_is_back_when_enabled() {
    let mut cluster = cluster();
    assert_eq!(after_four_more(&mut cluster, 1000), [2, 2]);
    let told = cluster.xvs(&format!("disable {}", server(1)));
    let expected =
        format!("real server {}:80 of TCP {VIP}:80: weight 3, 0 in force; 2 active connections\n", server(1));
    assert_eq!(told, expected);
    assert_eq!(weights(&mut cluster), ["0", "3"]);
    assert_eq!(after_four_more(&mut cluster, 2000), [2, 6]);
    cluster.xvs(&format!("disable {}", server(1)));
    cluster.xvs(&format!("enable {}", server(1)));
    assert_eq!(weights(&mut cluster), ["3", "3"]);
    assert_eq!(after_four_more(&mut cluster, 3000), [4, 8]);
    let (exit, why) = cluster.xvs_reading(&format!("enable {}", server(1)));
    assert_eq!(exit, 3);
    assert!(why.contains(&format!("real server {} is not disabled", server(1))), "{why}");
}

#[test]
fn a_hash_without_fallback_refuses_clients_of_a_disabled_server_and_the_printed_command_serves_them() {
    let mut cluster = cluster();
    cluster.configure(&[&format!("-E -t {VIP}:80 -s mh -b mh-port")]);
    let command = format!("xvsadm -E -t {VIP}:80 -s mh -b mh-fallback,mh-port");
    let refused =
        format!("new clients that mh leads to it are refused meanwhile; `{command}` gives them another");
    let told = cluster.xvs(&format!("disable {}", server(1)));
    assert!(told.ends_with(&format!("; 0 active connections; {refused}\n")), "{told}");

    let syn = |port| Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
    let port = (1000..1100).find(|port| cluster.from_client(&syn(*port)).verdict == "drop no_destination");
    let port = port.expect("half of the slots are of the disabled server");
    let explain = format!("explain --proto tcp --from {CLIENT}:{port} --to {VIP}:80 --flags syn");
    let explained = cluster.xvs_reading(&explain).1.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [&format!("of {}:80, and no other is tried: `{command}`", server(1)), "the client has slot "]
    {
        assert!(explained.contains(part), "{explained}");
    }
    cluster.adm(command.strip_prefix("xvsadm ").unwrap());
    assert_eq!(cluster.from_client(&syn(port)).verdict, "transmit");
    assert!(!cluster.xvs(&format!("disable {}", server(1))).contains("refused"));
}

#[test]
fn a_disabled_server_stays_at_weight_0_over_edits_load_reports_and_being_added_again() {
    let mut cluster = cluster();
    cluster.ok(json!({ "set": { "feedback.services": "all" } }));
    cluster.xvs(&format!("disable {}:80 -t {VIP}:80", server(1)));
    let server_1 = format!("-t {VIP}:80 -r {}:80", server(1));
    for line in [format!("-e {server_1} -g -w 7"), format!("-d {server_1}"), format!("-a {server_1} -g -w 7")]
    {
        cluster.adm(&line);
    }
    cluster.xvs(&format!("feedback {} 0", server(1)));
    assert_eq!(weights(&mut cluster)[0], "0");
    let saved = cluster.adm("-S -n");
    assert!(saved.contains(&format!("-a {server_1} -g -w 7\n")), "its own weight is saved: {saved}");
    cluster.adm("-C");
    cluster.configure(&[&format!("-A -t {VIP}:80 -s wrr"), &format!("-a {server_1} -g -w 7")]);
    assert_eq!(weights(&mut cluster), ["0"]);
    let (exit, why) = cluster.xvs_reading(&format!("enable {}:80 -u {VIP}:80", server(1)));
    assert_eq!(exit, 3, "{why}");
    cluster.xvs(&format!("enable {}", server(1)));
    assert_eq!(weights(&mut cluster), ["7"]);
}

#[test]
fn a_server_that_no_service_has_can_be_disabled_and_part_of_a_disabled_one_cannot_be_enabled() {
    let mut cluster = cluster();
    let told = cluster.xvs(&format!("disable {}", server(3)));
    assert!(told.contains("no virtual service has it now"), "{told}");
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g -w 3", server(3)));
    assert_eq!(weights(&mut cluster).iter().filter(|weight| *weight == "0").count(), 1);
    let (exit, why) = cluster.xvs_reading(&format!("enable {}:80", server(3)));
    assert_eq!(exit, 3);
    assert!(why.contains(&format!("is disabled as part of {}", server(3))), "{why}");
}

#[test]
fn explain_says_that_a_server_is_disabled() {
    let mut cluster = cluster();
    cluster.xvs(&format!("disable {}", server(1)));
    let packet = format!("--proto tcp --from {CLIENT}:5000 --to {VIP}:80");
    let told = cluster.xvs(&format!("explain {packet}"));
    let line = told.lines().find(|line| line.contains(&format!(" {}:80 ", server(1)))).expect("its line");
    assert!(line.ends_with("0      0     0  disabled; `xvs enable` ends that"), "{told}");
}

#[test]
fn a_rules_file_has_disabled_servers_plan_shows_them_and_apply_disables_and_enables() {
    let mut cluster = cluster();
    let plain = cluster.adm("-S -n");
    cluster.xvs(&format!("disable {} -t {VIP}:80", server(1)));
    let saved = cluster.adm("-S -n");
    let line = format!("#xvs disable {} -t {VIP}:80\n", server(1));
    assert!(saved.contains(&line), "{saved}");
    let folder = std::env::temp_dir();
    let [with, without] = [("with", &saved), ("without", &plain)].map(|(name, rules)| {
        let path = folder.join(format!("xvs-maintenance-{}-{name}", std::process::id()));
        fs::write(&path, rules).expect("a file of rules");
        path.display().to_string()
    });
    cluster.xvs(&format!("plan {with}"));
    let (exit, planned) = cluster.xvs_reading(&format!("plan {without}"));
    assert_eq!((exit, planned.contains(&format!("- {line}"))), (1, true), "{planned}");
    cluster.xvs(&format!("apply {without}"));
    assert_eq!(weights(&mut cluster), ["3", "3"]);
    cluster.xvs(&format!("apply {with}"));
    assert_eq!(weights(&mut cluster), ["0", "3"]);
    for path in [with, without] {
        fs::remove_file(path).expect("the file is there");
    }
}
