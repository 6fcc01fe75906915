//! Access lists in the lab: from the command to the verdict on a packet, the listing and the rules file.
//!
//! Not here: the XDP program (`crates/dataplane/tests/kernel/steering_lists.rs`), files and reloads of xvsd
//! (`netlab/lists.rs`).

use std::fs;

use serde_json::json;
use xvs::frames::{ACK, SYN, fragments, hex};
use xvs::lab_cluster::{
    CLIENT, GATEWAY_MAC, INSIDE, LAN_MAC, VIP, WAN_MAC, assert_balance, at, server, server_mac,
};
use xvs::{Datagram, LabCluster, Transport};

/// Services of TCP at ports 80 and 81, with one server.
fn cluster() -> LabCluster {
    let mut cluster = LabCluster::new();
    for port in [80, 81] {
        cluster.adm(&format!("-A -t {VIP}:{port} -s rr"));
        cluster.adm(&format!("-a -t {VIP}:{port} -r {}:{port} -g", server(1)));
    }
    cluster
}

fn packet(flags: u8, port: u16) -> Datagram {
    Datagram::new(Transport::Tcp(flags), at(CLIENT, 4000), at(VIP, port))
}

/// The verdict on a packet of the client, with the reason of a drop.
fn verdict(cluster: &mut LabCluster, packet: &Datagram) -> String {
    let verdict = cluster.from_client(packet).verdict;
    assert_balance(&cluster.counters());
    verdict
}

#[test]
fn a_denied_client_gets_nothing_its_connections_are_cut_and_a_deleted_entry_ends_that() {
    let mut cluster = cluster();
    for flags in [SYN, ACK, ACK] {
        assert_eq!(verdict(&mut cluster, &packet(flags, 80)), "transmit");
    }
    cluster.xvs(&format!("deny {CLIENT}"));
    for (flags, port) in [(ACK, 80), (SYN, 80), (SYN, 81)] {
        assert_eq!(verdict(&mut cluster, &packet(flags, port)), "drop denied");
    }
    let other = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 22));
    assert_eq!(verdict(&mut cluster, &other), "pass");
    let echo = Datagram::new(Transport::Udp, at(CLIENT, 4000), at(VIP, 53));
    assert_eq!(verdict(&mut cluster, &echo), "pass");
    let listing = cluster.xvs("deny list");
    assert_eq!(listing, format!("deny list of all services: 1 network, 3 packets dropped\n  {CLIENT}/32\n"));
    cluster.xvs(&format!("deny delete {CLIENT}"));
    assert_eq!(verdict(&mut cluster, &packet(ACK, 80)), "transmit");
    let (exit, why) = cluster.xvs_reading(&format!("deny delete {CLIENT}"));
    assert_eq!(exit, 3);
    assert!(why.contains(&format!("{CLIENT}/32 is no entry of the deny list of all services")), "{why}");
}

#[test]
fn a_service_with_an_allow_list_accepts_nobody_else_and_deny_wins() {
    let mut cluster = cluster();
    cluster.xvs(&format!("allow -t {VIP}:80 203.0.113.0/24"));
    assert_eq!(verdict(&mut cluster, &packet(SYN, 80)), "drop not_allowed");
    assert_eq!(verdict(&mut cluster, &packet(SYN, 81)), "transmit");
    cluster.xvs(&format!("allow -t {VIP}:80 {CLIENT}"));
    assert_eq!(verdict(&mut cluster, &packet(SYN, 80)), "transmit");
    cluster.xvs(&format!("deny -t {VIP}:80 {CLIENT}"));
    assert_eq!(verdict(&mut cluster, &packet(SYN, 80)), "drop denied");
    assert_eq!(verdict(&mut cluster, &packet(ACK, 81)), "transmit");
}

#[test]
fn an_entry_ends_after_its_time_and_the_listing_shows_what_is_left() {
    let mut cluster = cluster();
    cluster.xvs(&format!("deny {CLIENT} for 10m"));
    cluster.advance(300.0);
    assert_eq!(verdict(&mut cluster, &packet(SYN, 80)), "drop denied");
    let listing = cluster.xvs("deny list");
    assert!(listing.contains(&format!("{CLIENT}/32  for 5m more")), "{listing}");
    cluster.advance(301.0);
    assert_eq!(verdict(&mut cluster, &packet(SYN, 80)), "transmit");
    assert!(cluster.xvs("deny list").starts_with("no deny list"));
}

#[test]
fn explain_names_the_reason_and_counts_nothing_at_the_list() {
    let mut cluster = cluster();
    cluster.xvs(&format!("deny {CLIENT}"));
    let frame = hex(&packet(SYN, 80).frame(GATEWAY_MAC, WAN_MAC));
    let answer = cluster.ask(json!({ "explain": "wan", "frame": frame }));
    assert!(answer.to_string().contains("its source is in a deny list; `xvs deny list`"), "{answer}");
    assert!(cluster.xvs("deny list").contains(" 0 packets dropped"));
}

#[test]
fn replies_to_a_local_address_of_fullnat_that_is_a_service_too_meet_no_list() {
    let mut cluster = LabCluster::new();
    cluster.xvs(&format!("laddr add {INSIDE} --ports 5000-5000"));
    for (service, method) in [(at(VIP, 80), "--fullnat"), (at(INSIDE, 0), "-m")] {
        cluster.adm(&format!("-A -t {service} -s rr{}", if service.port() == 0 { " -p 60" } else { "" }));
        cluster.adm(&format!("-a -t {service} -r {} {method}", at(server(1), service.port())));
    }
    cluster.xvs(&format!("allow {CLIENT}"));
    let reply = |flags, from| Datagram::new(Transport::Tcp(flags), at(server(1), from), at(INSIDE, 5000));
    assert_eq!(cluster.from_server(&reply(SYN, 80)).verdict, "drop not_allowed");
    for (sent, answered) in [(SYN, SYN | ACK), (ACK, ACK), (ACK, ACK)] {
        assert_eq!(verdict(&mut cluster, &packet(sent, 80)), "transmit");
        assert_eq!(cluster.from_server(&reply(answered, 80)).verdict, "transmit");
    }
    assert_eq!(cluster.general_path(), 0, "a reply takes the fast path");
    assert_eq!(cluster.from_server(&reply(SYN, 81)).verdict, "drop not_allowed");
    assert!(cluster.xvs("allow list").contains(" 2 packets dropped"));
    let explain = |cluster: &mut LabCluster, from| {
        let frame = hex(&reply(ACK, from).frame(server_mac(1), LAN_MAC));
        cluster.ask(json!({ "explain": "lan", "frame": frame })).to_string()
    };
    assert!(!explain(&mut cluster, 80).contains("`xvs allow list`"));
    assert!(explain(&mut cluster, 81).contains("`xvs allow list`"));
}

#[test]
fn a_mark_service_and_a_datagram_in_fragments_are_checked_too() {
    let mut cluster = cluster();
    cluster.xvs(&format!("mark add -d {VIP} -p udp --set-mark 7"));
    cluster.adm("-A -f 7 -s rr");
    cluster.adm(&format!("-a -f 7 -r {} -g", server(1)));
    let whole = Datagram::new(Transport::Udp, at(CLIENT, 4000), at(VIP, 53)).carrying(1000);
    assert_eq!(verdict(&mut cluster, &whole), "transmit");
    cluster.xvs(&format!("deny -f 7 {CLIENT}"));
    assert_eq!(verdict(&mut cluster, &whole), "drop denied");
    assert_eq!(verdict(&mut cluster, &packet(SYN, 80)), "transmit");
    assert!(cluster.xvs("deny list").starts_with("deny list of FWM 7: 1 network, 1 packet dropped"));
    let [first, last] = fragments(&whole.frame(GATEWAY_MAC, WAN_MAC), 504);
    for fragment in [&first, &last] {
        cluster.inject("wan", fragment);
    }
    assert!(cluster.xvs("deny list").contains(" 2 packets dropped"), "the datagram is one packet");
    assert_balance(&cluster.counters());
}

#[test]
fn a_wrong_network_is_refused_with_what_is_wrong() {
    let mut cluster = cluster();
    for (words, what) in [
        ("deny 192.0.2.1/24", "write 192.0.2.0/24"),
        ("deny ::ffff:192.0.2.1", "write 192.0.2.1/32"),
        ("deny 192.0.2.300", "192.0.2.300"),
        ("deny 192.0.2.1 for ever", "1h30m"),
        ("deny", "needs a network"),
    ] {
        let (exit, why) = cluster.xvs_reading(words);
        assert!(exit != 0 && why.contains(what), "{words}: {exit} {why}");
    }
    let (exit, why) = cluster.xvs_reading(&format!("deny -t {VIP}:80 2001:db8::/32"));
    assert!(exit == 3 && why.contains("another family"), "{why}");
    let (exit, why) = cluster.xvs_reading("deny file /etc/hosts");
    assert!(exit == 3 && why.contains("deny_file"), "{why}");
}

#[test]
fn a_full_list_is_refused_with_its_limit() {
    let mut cluster = cluster();
    let mut lines = String::new();
    for number in 0..10_000 {
        lines += &format!("#xvs deny 10.{}.{}.0/24\n", number / 256, number % 256);
    }
    let answer = cluster.ask(json!({ "adm": ["-R"], "stdin": lines }));
    assert_eq!(answer["exit"], 0, "{}", answer["stderr"]);
    let (exit, why) = cluster.xvs_reading(&format!("deny {CLIENT}"));
    assert!(exit == 3 && why.contains("10000 entries"), "{why}");
    cluster.xvs("deny 10.0.0.0/24 for 1h");
}

#[test]
fn a_rules_file_has_lists_plan_shows_them_and_apply_changes_them() {
    let mut cluster = cluster();
    let plain = cluster.adm("-S -n");
    let path = |name: &str| {
        let path = std::env::temp_dir().join(format!("xvs-lists-{}-{name}", std::process::id()));
        path.display().to_string()
    };
    let [networks, with, without] = ["networks", "with", "without"].map(path);
    fs::write(&networks, "192.0.2.0/24\n").expect("a new file");
    cluster.xvs(&format!("deny file -t {VIP}:80 {networks}"));
    cluster.xvs(&format!("allow {CLIENT}"));
    cluster.xvs("deny 192.0.2.77 for 1h");
    let saved = cluster.adm("-S -n");
    let file = format!("#xvs deny file -t {VIP}:80 {networks}\n");
    for line in [&file, &format!("#xvs allow {CLIENT}/32\n"), "#xvs deny 192.0.2.77/32 until 3600\n"] {
        assert!(saved.contains(line), "{saved}");
    }
    fs::write(&with, &saved).expect("a file of rules");
    fs::write(&without, &plain).expect("a file of rules");
    cluster.xvs(&format!("plan {with}"));
    let (exit, planned) = cluster.xvs_reading(&format!("plan {without}"));
    assert_eq!((exit, planned.contains(&format!("- {file}"))), (1, true), "{planned}");
    assert!(!planned.contains("192.0.2.77"), "it ends by itself: {planned}");
    cluster.xvs(&format!("apply {without}"));
    assert_eq!(verdict(&mut cluster, &packet(SYN, 80)), "transmit");
    assert!(cluster.xvs("allow list").starts_with("no allow list"));
    fs::write(&networks, format!("192.0.2.0/24\n\n{CLIENT}/33\n")).expect("the file");
    let (exit, why) = cluster.xvs_reading(&format!("apply {with}"));
    assert!(exit == 3 && why.contains(&format!("{networks}: line 3: ")), "{why}");
    assert_eq!(verdict(&mut cluster, &packet(ACK, 80)), "transmit");
    fs::write(&networks, format!("{CLIENT}\n")).expect("the file");
    cluster.xvs(&format!("apply {with}"));
    assert_eq!(verdict(&mut cluster, &packet(ACK, 80)), "drop denied");
    for path in [networks, with, without] {
        fs::remove_file(path).expect("the file is there");
    }
}
