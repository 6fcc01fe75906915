//! What outlives xvsd: connections, their destinations and totals, after a kill and a start.
//!
//! Each test has a cluster of its own. Needs root. Not here: packets that arrive while no xvsd runs
//! (`netlab_hold.rs`), the rules (`netlab_journal.rs`).

use std::time::Duration;

use xvs::clients::HalfUpload;
use xvs::cluster::VIP;
use xvs::director::Protocol;
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, traffic};

/// The port of the service and of the servers behind it.
const PORT: u16 = 9000;

/// Packets are held while no xvsd runs, as they are by default.
const HELD: [&str; 2] = ["--hold", "10s"];

fn half_uploads(cluster: &Cluster, count: usize) -> Vec<HalfUpload> {
    (0..count).map(|_| HalfUpload::begin(cluster, PORT)).collect()
}

fn finish(uploads: Vec<HalfUpload>) {
    uploads.into_iter().for_each(HalfUpload::finish);
}

/// Counts the connections of each client.
fn limit_clients(director: &Director) {
    director.xvs(&format!("limit set -t {VIP}:{PORT} --connections 1000"));
}

/// The connections of all clients, as their limit counts them.
fn counted_for_clients(director: &Director) -> u64 {
    let report: serde_json::Value = serde_json::from_str(&director.xvs("limit list --json")).expect("JSON");
    let clients = report["clients"].as_array().expect("a list").iter();
    clients.map(|client| client["connections"].as_u64().expect("a number")).sum()
}

fn goes_on_after_a_kill(method: Method) {
    let cluster = traffic::prepared(method, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let mut director = Director::start_with(&cluster, Workers::Two, &HELD);
    if method == Method::FullNat {
        director.xvs("laddr add 192.0.2.1 --ports 5000-5999");
    }
    director.add_service(Protocol::Tcp, PORT, method);
    limit_clients(&director);
    let streams = half_uploads(&cluster, 20);
    let (listed, entries) = (director.adm("-Ln"), director.adm("-Lnc").lines().count());
    director.kill();

    let director = Director::start_with(&cluster, Workers::Two, &HELD);
    assert_eq!(director.adm("-Ln"), listed);
    assert_eq!(director.adm("-Lnc").lines().count(), entries);
    assert_eq!(counted_for_clients(&director), 20);
    finish(streams);
    assert!(director.log().contains("connections: 20 are taken over"), "{}", director.log());
}

/// A successor takes over while uploads are under way.
fn goes_on_with_a_successor(method: Method) {
    let cluster = traffic::prepared(method, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let mut former = Director::start_with(&cluster, Workers::Two, &HELD);
    if method == Method::FullNat {
        former.xvs("laddr add 192.0.2.1 --ports 5000-5999");
    }
    former.add_service(Protocol::Tcp, PORT, method);
    limit_clients(&former);
    let streams = half_uploads(&cluster, 20);
    let (rules, entries) = (former.adm("-Sn"), former.adm("-Lnc").lines().count());

    let director = Director::take_over(&cluster, Workers::Two, &HELD).unwrap_or_else(|log| panic!("{log}"));
    assert!(former.has_ended().success(), "{}", former.log());
    assert_eq!((director.adm("-Sn"), director.adm("-Lnc").lines().count()), (rules, entries));
    let listed = director.adm("-Ln --stats");
    let service = listed.lines().find(|line| line.starts_with("TCP ")).expect("the service");
    assert_eq!(service.split_whitespace().nth(2), Some("20"), "its connections: {listed}");
    assert_eq!(counted_for_clients(&director), 20);
    finish(streams);
    // The table can be changed, and taken over again.
    finish(half_uploads(&cluster, 4));
    let again = Director::take_over(&cluster, Workers::Two, &HELD).unwrap_or_else(|log| panic!("{log}"));
    finish(half_uploads(&cluster, 4));
    drop((director, again));
}

#[test]
fn nat_connections_go_on_when_a_successor_takes_over() {
    goes_on_with_a_successor(Method::Nat);
}

#[test]
fn full_nat_connections_go_on_when_a_successor_takes_over() {
    goes_on_with_a_successor(Method::FullNat);
}

#[test]
fn a_successor_that_is_killed_at_any_moment_loses_no_connection() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    // Nobody may have the packets for as long as a busy machine takes to find that out.
    let held = ["--hold", "2min"];
    let director = Director::start_with(&cluster, Workers::Two, &held);
    director.add_service(Protocol::Tcp, PORT, Method::Nat);
    let mut streams = half_uploads(&cluster, 12);
    let mut all = vec![director];
    for millis in (0..300).step_by(25) {
        let mut successor = Director::begin_take_over(&cluster, Workers::Two, &held);
        successor.kill_successor_after(Duration::from_millis(millis));
        // The former one goes on or begins anew, unless it had ended already.
        let former = all.last_mut().expect("one was started");
        if !former.forwards_or_has_ended() {
            all.push(Director::start_with(&cluster, Workers::Two, &held));
        }
        finish(streams.drain(..2).collect());
        streams.extend(half_uploads(&cluster, 2));
    }
    finish(streams);
}

#[test]
fn a_successor_that_fails_leaves_the_running_xvsd_forwarding() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let director = Director::start_with(&cluster, Workers::Two, &HELD);
    director.add_service(Protocol::Tcp, PORT, Method::Nat);
    let streams = half_uploads(&cluster, 8);
    for (wrong, why) in [
        (&["--hold", "10s", "--conn-table-size", "5000"][..], "its connection table is refused"),
        (&["--hold", "0"][..], "without a hold (hold = \"0\")"),
        (&["--hold", "10s", "--interface", "none"][..], "xvsd: no interface none;"),
    ] {
        let log = Director::take_over(&cluster, Workers::Two, wrong).err().unwrap_or_default();
        assert!(log.contains(why), "{wrong:?}: {log}");
    }
    finish(streams);
    finish(half_uploads(&cluster, 4));
    director.adm("-A -u 198.51.100.100:53");
}

#[test]
fn nat_connections_go_on_after_a_kill_and_a_start() {
    goes_on_after_a_kill(Method::Nat);
}

#[test]
fn full_nat_connections_go_on_after_a_kill_and_a_start() {
    goes_on_after_a_kill(Method::FullNat);
}

#[test]
fn direct_routing_connections_go_on_after_a_kill_and_a_start() {
    goes_on_after_a_kill(Method::DirectRouting);
}
