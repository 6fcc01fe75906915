//! What outlives xvsd: connections, their destinations and totals, after a kill and a start.
//!
//! Each test has a cluster of its own. Needs root. Not here: packets that arrive while no xvsd runs
//! (`hold.rs`), the rules (`journal.rs`).

use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, socket_with};
use xvs::clients::{self, HalfUpload};
use xvs::cluster::{Layout, VIP, succeed, virtual_endpoint};
use xvs::director::Protocol;
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, traffic, wait};

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
    let all = succeed(Command::new("ip").args(["netns", "pids", &cluster.namespace(Host::Director)]));
    let file =
        |process: &str, name| fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
    let named: Vec<_> = all.lines().filter(|process| file(process, "comm") == "xvsd\n").collect();
    let [process] = named[..] else { panic!("by pgrep and killall: {named:?}") };
    let arguments = file(process, "cmdline");
    assert!(
        arguments.split('\0').next().is_some_and(|first| first.ends_with("xvsd")),
        "by pidof: {arguments}"
    );
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

/// Sends a small piece on each of these connections every few milliseconds until `stop`, and then checks that one
/// server got all of them.
fn upload_steadily(cluster: &Cluster, connections: usize, stop: &AtomicBool) {
    const PIECE: &[u8] = b"a piece of an upload, ";
    let open = || clients::connect(virtual_endpoint(PORT)).expect("connection");
    let mut streams: Vec<_> =
        cluster.run(Host::Client, || (0..connections).map(|_| open()).collect::<Vec<_>>());
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        streams.iter_mut().for_each(|stream| stream.write_all(PIECE).expect("no connection is reset"));
        sent.extend_from_slice(PIECE);
        thread::sleep(Duration::from_millis(10));
    }
    for stream in streams {
        let got = clients::upload(stream, PIECE).expect("the last piece");
        assert_eq!(got, clients::receipt(&got.host, &[&sent, PIECE].concat()));
    }
}

#[test]
fn a_take_over_whose_preparation_is_longer_than_the_hold_resets_no_connection() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let arguments = ["--interface", "wan", "--interface", "lan", "--workers", "1", "--hold", "1s"];
    let director = Director::start_on(&cluster, Host::Director, &arguments);
    director.add_service(Protocol::Tcp, PORT, Method::Nat);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let uploads = scope.spawn(|| upload_steadily(&cluster, 20, &stop));
        wait::until("connections", || (director.adm("-Lnc").lines().count() >= 22).then_some(()));
        let successor = Director::take_over_slowly(&cluster, Host::Director, &arguments);
        stop.store(true, Ordering::Relaxed);
        let successor = successor.unwrap_or_else(|log| panic!("{log}"));
        uploads.join().expect("the uploads");
        drop(successor);
    });
}

/// Begins connections that no server answers, 400 at a time, until `stop` or for half a minute.
fn flood(cluster: &Cluster, stop: &AtomicBool) {
    cluster.run(Host::Client, || {
        for _ in (0..300).take_while(|_| !stop.load(Ordering::Relaxed)) {
            let attempt = |_| {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let socket =
                    socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
                // It does not wait for an answer.
                let _ = net::connect(&socket, &virtual_endpoint(PORT));
                socket
            };
            let sockets: Vec<_> = (0..400).map(attempt).collect();
            thread::sleep(Duration::from_millis(100));
            drop(sockets);
        }
    });
}

#[test]
fn xvsd_outlives_restarts_while_it_ends_half_open_connections_early() {
    // The real server does not have the virtual address, so it answers no SYN.
    let cluster = Cluster::up(Layout::default());
    let file = cluster.state().join("xvs.toml");
    fs::write(&file, "hold = \"1min\"\nconn_table_size = 16384\n[ipvs]\ndrop_entry = 3\n").expect("a file");
    let held = ["--config", file.to_str().expect("a path")];
    let mut director = Director::start_with(&cluster, Workers::One, &held);
    director.adm(&format!("-A -t {VIP}:{PORT} -s rr"));
    director.adm(&format!("-a -t {VIP}:{PORT} -r 192.0.2.11:{PORT} -g"));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&cluster, &stop));
        let entries = |director: &Director<'_>| director.adm("-Lnc").lines().count();
        for _ in 0..2 {
            wait::until("half-open connections", || (entries(&director) > 8000).then_some(()));
            director.kill();
            director = Director::start_with(&cluster, Workers::One, &held);
            // Three of its sweeps, the first of which is at once.
            thread::sleep(Duration::from_millis(2500));
            assert!(entries(&director) > 1000, "{}", director.log());
        }
        stop.store(true, Ordering::Relaxed);
        flooding.join().expect("the flood");
    });
    assert!(!director.log().contains("panicked"), "{}", director.log());
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

/// A worker's thread that a debugger has stopped; it goes on when this is dropped.
struct StoppedWorker(Pid);

impl StoppedWorker {
    fn stop(director: &Director, number: u8) -> Self {
        let name = format!("xvs-worker-{number}\n");
        let mut threads = fs::read_dir(format!("/proc/{}/task", director.process())).expect("its threads");
        let worker = threads.find_map(|entry| {
            let path = entry.ok()?.path();
            let is_it = fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name);
            path.file_name()?.to_str()?.parse().ok().filter(|_| is_it)
        });
        let worker = Pid::from_raw(worker.expect("a worker"));
        ptrace::seize(worker, ptrace::Options::empty()).expect("a debugger may");
        ptrace::interrupt(worker).expect("it runs");
        waitpid(worker, Some(WaitPidFlag::__WALL)).expect("it stops");
        Self(worker)
    }
}

impl Drop for StoppedWorker {
    fn drop(&mut self) {
        ptrace::detach(self.0, None).expect("it is stopped");
    }
}

#[test]
fn a_take_over_is_refused_while_a_worker_hangs_and_the_worker_goes_on_afterwards() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let director = Director::start_with(&cluster, Workers::Two, &HELD);
    director.add_service(Protocol::Tcp, PORT, Method::Nat);
    let streams = half_uploads(&cluster, 8);
    let stopped = StoppedWorker::stop(&director, 1);
    let log = Director::take_over(&cluster, Workers::Two, &HELD).err().unwrap_or_default();
    assert!(log.contains("worker 1 does not close its sockets"), "{log}");
    drop(stopped);
    finish(streams);
    finish(half_uploads(&cluster, 4));
}

#[test]
fn a_take_over_from_an_xvsd_that_can_open_no_sockets_serves_again() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let held = ["--hold", "2min"];
    let mut former = Director::start_with(&cluster, Workers::Two, &held);
    former.add_service(Protocol::Tcp, PORT, Method::Nat);
    let streams = half_uploads(&cluster, 8);
    // While only the other worker has no sockets, its queue is removed, so it gets none again.
    let stopped = StoppedWorker::stop(&former, 0);
    Director::take_over(&cluster, Workers::Two, &held).expect_err("worker 0 hangs");
    succeed(cluster.command(Host::Client, "ethtool").args(["-L", "wan", "tx", "1"]));
    succeed(cluster.command(Host::Director, "ethtool").args(["-L", "wan", "rx", "1"]));
    drop(stopped);
    let warned = || former.status().contains("wan queue 1").then_some(());
    wait::until("worker 1 gets no socket", warned);

    let taken = Director::take_over(&cluster, Workers::One, &held).unwrap_or_else(|log| panic!("{log}"));
    assert!(former.has_ended().success(), "{}", former.log());
    finish(streams);
    finish(half_uploads(&cluster, 4));
    drop(taken);
}

#[test]
fn a_second_take_over_is_refused_and_the_first_one_succeeds() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let arguments = ["--interface", "wan", "--interface", "lan", "--workers", "1", "--hold", "10s"];
    let mut former = Director::start_on(&cluster, Host::Director, &arguments);
    thread::scope(|scope| {
        let first = scope.spawn(|| Director::take_over_slowly(&cluster, Host::Director, &arguments));
        wait::until("it prepares", || former.log().contains("prepares to take over").then_some(()));
        let second = Director::take_over_on(&cluster, Host::Director, &arguments);
        let log = second.err().unwrap_or_default();
        assert!(
            log.contains("is taking over; wait until it forwards or has failed, or end it (`kill "),
            "{log}"
        );
        let first = first.join().expect("no panic");
        drop(first.unwrap_or_else(|log| panic!("{log}")));
    });
    assert!(former.has_ended().success(), "{}", former.log());
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
