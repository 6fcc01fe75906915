//! Schedulers in the lab, with the daemon's own commands and settings.
//!
//! Each one's choice is compared with the kernel in `conformance/main.rs` and with plain models in
//! `crates/sched/tests`. Tested here: how commands affect choices. Weights are remembered, tables survive changes, and
//! settings apply at once.

use xvs::frames::{ACK, SYN};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, VIP, WAN_MAC, at, server, server_mac};
use xvs::{Datagram, LabCluster, Transport};

/// A service with this scheduler and three servers of weight 1; the third is the first in order.
fn cluster(scheduler: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.configure(&[&format!("-A -t {VIP}:80 -s {scheduler}")]);
    (1..=3).for_each(|number| add(&mut cluster, number, 1));
    cluster
}

fn add(cluster: &mut LabCluster, number: u8, weight: u32) {
    cluster.configure(&[&format!("-a -t {VIP}:80 -r {} -g -w {weight}", server(number))]);
}

fn weigh(cluster: &mut LabCluster, number: u8, weight: u32) {
    cluster.configure(&[&format!("-e -t {VIP}:80 -r {} -g -w {weight}", server(number))]);
}

/// The number of the server that gets a connection from this port, if any does; the connection is established.
fn connect(cluster: &mut LabCluster, port: u16) -> Option<u8> {
    let packet = |flags| Datagram::new(Transport::Tcp(flags), at(CLIENT, port), at(VIP, 80));
    let judged = cluster.from_client(&packet(SYN));
    if judged.verdict == "drop no_destination" {
        return None;
    }
    assert_eq!(judged.verdict, "transmit");
    assert_eq!(cluster.from_client(&packet(ACK)).verdict, "transmit");
    (1..=9).find(|number| judged.sent[0].1[..6] == server_mac(*number))
}

#[test]
fn a_service_accepts_connections_only_once_it_has_a_scheduler() {
    let mut cluster = cluster("none");
    assert_eq!(connect(&mut cluster, 1000), None);
    cluster.configure(&[&format!("-E -t {VIP}:80 -s rr")]);
    assert_eq!(connect(&mut cluster, 1000), Some(3));
}

#[test]
fn rr_keeps_its_position_after_an_edit_and_restarts_after_another_scheduler() {
    let mut cluster = cluster("rr");
    assert_eq!(connect(&mut cluster, 1000), Some(3));
    cluster.configure(&[&format!("-E -t {VIP}:80 -s rr")]);
    weigh(&mut cluster, 1, 5);
    assert_eq!(connect(&mut cluster, 1001), Some(2));
    cluster.configure(&[&format!("-E -t {VIP}:80 -s wlc"), &format!("-E -t {VIP}:80 -s rr")]);
    assert_eq!(connect(&mut cluster, 1002), Some(3));
}

#[test]
fn connections_of_a_burst_count_for_its_next_choices_and_are_listed_after_it() {
    for scheduler in ["lc", "wlc", "sed", "nq"] {
        let mut cluster = cluster(scheduler);
        let syn = |port| Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
        let frames: Vec<_> = (1000..1009).map(|port| syn(port).frame(GATEWAY_MAC, WAN_MAC)).collect();
        cluster.burst("wan", &frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let loads = cluster.loads();
        let loads: Vec<_> = loads.iter().map(|(_, active, inactive)| (*active, *inactive)).collect();
        assert_eq!(loads, [(3, 0); 3], "{scheduler}");
    }
}

#[test]
fn under_mh_a_drained_server_keeps_its_clients_share_until_it_is_added_anew_without_a_weight() {
    let mut cluster = cluster("mh -b mh-port");
    let ports = 2000..2060;
    let before: Vec<_> = ports.clone().map(|port| connect(&mut cluster, port)).collect();
    assert!((1..=3).all(|number| before.contains(&Some(number))));
    weigh(&mut cluster, 2, 0);
    // New connections from the same ports: the old ones have ended after 15 minutes.
    let again = |cluster: &mut LabCluster| {
        cluster.advance(901.0);
        ports.clone().map(|port| connect(cluster, port)).collect::<Vec<_>>()
    };
    let without_two: Vec<_> = before.iter().map(|taken| taken.filter(|number| *number != 2)).collect();
    assert_eq!(
        again(&mut cluster),
        without_two,
        "no client moves, and the drained server's clients get none"
    );
    cluster.configure(&[&format!("-E -t {VIP}:80 -s mh -b mh-port,mh-fallback")]);
    let fallen_back = again(&mut cluster);
    assert!(before.iter().zip(&fallen_back).all(|(before, after)| match before {
        Some(2) => matches!(after, Some(1 | 3)),
        other => other == after,
    }));
    cluster.configure(&[
        &format!("-E -t {VIP}:80 -s mh -b mh-port"),
        &format!("-d -t {VIP}:80 -r {}", server(2)),
    ]);
    add(&mut cluster, 2, 0);
    assert!(again(&mut cluster).iter().all(|taken| matches!(taken, Some(1 | 3))), "it has no share");
}

#[test]
fn entries_of_lblc_survive_edits_and_are_removed_with_the_scheduler() {
    let mut cluster = cluster("lblc");
    assert_eq!(connect(&mut cluster, 1000), Some(3));
    // By load alone the others would be chosen first.
    weigh(&mut cluster, 1, 9);
    assert_eq!(connect(&mut cluster, 1001), Some(3));
    add(&mut cluster, 4, 1);
    assert_eq!(connect(&mut cluster, 1002), Some(4), "two are more than its weight, and others idle");
    assert_eq!(connect(&mut cluster, 1003), Some(4));
    cluster.configure(&[&format!("-E -t {VIP}:80 -s rr"), &format!("-E -t {VIP}:80 -s lblc")]);
    assert_eq!(connect(&mut cluster, 1004), Some(2), "the first that idles");
}

#[test]
fn entries_of_lblc_are_removed_within_half_an_hour_after_they_expire() {
    let mut cluster = cluster("lblc");
    cluster.set("lblc_expiration", 100);
    assert_eq!(connect(&mut cluster, 1000), Some(3));
    // The connection has ended, and the new choice is the first server in order.
    cluster.advance(1600.0);
    add(&mut cluster, 4, 1);
    assert_eq!(connect(&mut cluster, 1001), Some(3), "remembered");
    cluster.advance(1000.0);
    assert_eq!(connect(&mut cluster, 1002), Some(4), "forgotten after half an hour");
}

#[test]
fn a_changed_expiration_of_lblcr_applies_at_once() {
    for (expiration, taken) in [(None, [2, 3, 2]), (Some(10), [2, 3, 3])] {
        let mut cluster = cluster("lblcr");
        assert_eq!([1000, 1001, 1002].map(|port| connect(&mut cluster, port)), [Some(3), Some(3), Some(2)]);
        cluster.advance(901.0);
        // Of two servers without connections the first one is chosen once more and leaves the set.
        expiration.inspect(|seconds| cluster.set("lblcr_expiration", *seconds));
        assert_eq!(
            [1003, 1004, 1005].map(|port| connect(&mut cluster, port)),
            taken.map(Some),
            "{expiration:?}"
        );
    }
}
