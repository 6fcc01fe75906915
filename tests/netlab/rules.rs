//! Changes by operators under traffic: rules from a file, reverted unless confirmed; the drain of a real server.
//!
//! Each test has a cluster of its own. Needs root. Not here: every kind of difference (`lab/rules.rs`), the output of
//! `xvs drain` (`crates/cli/src/servers/drain.rs`).

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xvs::cluster::{complete, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::wait;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic};

/// The output of `xvs` with these arguments and this file, and its exit code.
fn xvs(cluster: &Cluster, words: &str, file: &Path) -> (String, Option<i32>) {
    let mut command = cluster.command(Host::Director, program("xvs"));
    let output = complete(command.args(words.split(' ')).arg(file));
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.code())
}

/// From `xvs status`: the number of differences from the daemon's file, and whether rules wait for `xvs confirm`.
fn status(director: &Director<'_>) -> (Option<u64>, bool) {
    let status: Value = serde_json::from_str(&director.xvs("status --json")).expect("JSON");
    (status["rules"]["differences"].as_u64(), status["unconfirmed_seconds"].is_u64())
}

#[test]
fn unconfirmed_rules_are_reverted_and_a_download_continues_throughout() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let (first, second) = (cluster.state().join("first.rules"), cluster.state().join("second.rules"));
    fs::write(&first, "").expect("the cluster's folder takes a new file");
    let begin = first.to_str().expect("a plain path");
    let director = Director::start_with(&cluster, Workers::Two, &["--rules", begin]);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    let saved = director.adm("-Sn");
    assert_eq!(status(&director), (Some(3), false));
    fs::write(&first, &saved).expect("the file is there");
    assert_eq!(xvs(&cluster, "check", &first), (format!("{begin}: 3 lines, no fault\n"), Some(0)));
    assert_eq!(status(&director), (Some(0), false));

    // Without the real servers new clients are not served; open connections must not be affected.
    let none = saved.replace("-w 1", "-w 0") + "-A -t 198.51.100.100:81 -s rr\n";
    fs::write(&second, &none).expect("the cluster's folder takes a new file");
    let (planned, code) = xvs(&cluster, "plan", &second);
    let diff = "\
- -a -t 198.51.100.100:80 -r 192.0.2.11:80 -m -w 1
+ -e -t 198.51.100.100:80 -r 192.0.2.11:80 -m -w 0
- -a -t 198.51.100.100:80 -r 192.0.2.12:80 -m -w 1
+ -e -t 198.51.100.100:80 -r 192.0.2.12:80 -m -w 0
+ -A -t 198.51.100.100:81 -s rr
";
    assert!(planned.contains(diff) && planned.ends_with("3 differences: 1 added, 2 edited\n"), "{planned}");
    assert_eq!(code, Some(1));
    assert_eq!(director.adm("-Sn"), saved);

    let mut download = cluster.run(Host::Client, || clients::connect(virtual_endpoint(80))).expect("tcp");
    download.write_all(b"GET /blob HTTP/1.0\r\n\r\n").expect("request");
    download.peek(&mut [0]).expect("the answer begins");
    let (applied, code) = xvs(&cluster, "apply --confirm-within 3s", &second);
    assert!(applied.starts_with(diff) && applied.contains("reverted in 3 s"), "{applied}");
    assert_eq!((director.adm("-Sn"), code), (none.clone(), Some(0)));
    assert_eq!(status(&director), (Some(3), true));
    wait::until("the former rules are back", || (director.adm("-Sn") == saved).then_some(()));
    assert_eq!(status(&director), (Some(0), false));
    assert!(director.log().contains("reverted: 3 changes; 0 are kept"), "{}", director.log());
    let mut body = Vec::new();
    download.read_to_end(&mut body).expect("the rest");
    assert!(body.ends_with(&cluster.blob()), "a download of {} bytes differs from the file", body.len());
    assert_eq!(clients::pages(&cluster, "http://198.51.100.100/", 2).len(), 2);

    xvs(&cluster, "apply --confirm-within 1h", &second);
    assert_eq!(director.xvs("confirm"), "confirmed\n");
    assert_eq!(director.adm("-Sn"), none);
    let (nothing, code) = xvs(&cluster, "apply", &second);
    assert!(nothing.starts_with("nothing to do") && code == Some(0), "{nothing}");

    fs::write(&second, "-A -t 198.51.100.100:82\n-A -t 198.51.100.100:82\nnonsense\n")
        .expect("the file is there");
    let (faults, code) = xvs(&cluster, "apply", &second);
    assert!(faults.contains("line 2: ") && faults.contains("line 3: ") && code == Some(1), "{faults}");
    assert_eq!(director.adm("-Sn"), none);
}

/// Starts `xvs drain` of the first real server.
fn drain(cluster: &Cluster, words: &str) -> Child {
    let mut command = cluster.command(Host::Director, program("xvs"));
    command.args(["drain", "-t", "198.51.100.100:80", "192.0.2.11"]).args(words.split_whitespace());
    command.stdout(Stdio::piped()).spawn().expect("scripts/netlab can be started")
}

/// Its output, and its exit code.
fn ended(drain: Child) -> (String, Option<i32>) {
    let output = drain.wait_with_output().expect("a child of this process");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

#[test]
fn a_real_server_is_drained_while_its_connection_lasts_and_remaining_connections_are_dropped_at_the_end() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let director = Director::start(&cluster, Workers::Two);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    let count = || director.xvs("connections --dest 192.0.2.11 --state ESTABLISHED --count");
    // One of two connections belongs to the first real server.
    let held: Vec<_> = (0..2)
        .map(|_| cluster.run(Host::Client, || clients::connect(virtual_endpoint(80))).expect("tcp"))
        .collect();
    wait::until("both are established", || {
        (director.xvs("connections --state ESTABLISHED --count") == "2\n").then_some(())
    });
    assert_eq!(count(), "1\n");

    // An interrupted drain leaves the weight at 0 and the connections open.
    let mut waiting = drain(&cluster, "--for 1h --then drop");
    let mut first = [0; 1];
    waiting.stdout.as_mut().expect("asked for above").read_exact(&mut first).expect("it prints at once");
    wait::until("the weight is 0", || director.adm("-Sn").contains("192.0.2.11:80 -m -w 0").then_some(()));
    kill_process(Pid::from_child(&waiting), Signal::INT).expect("it runs");
    let (output, code) = ended(waiting);
    assert!(output.contains("interrupted: 1 connection active, 0 inactive"), "{output}");
    assert_eq!((count(), code), ("1\n".to_owned(), Some(1)));
    assert_eq!(clients::pages(&cluster, "http://198.51.100.100/", 2), ["rs2", "rs2"]);

    let (output, code) = ended(drain(&cluster, "--for 1s --then drop"));
    assert!(output.contains("the time is over") && output.contains("dropped 1 connection\n"), "{output}");
    assert_eq!((count(), code), ("0\n".to_owned(), Some(0)));
    assert_eq!(director.xvs("connections --dest 192.0.2.12 --state ESTABLISHED --count"), "1\n");
    drop(held);
    let (output, code) = ended(drain(&cluster, ""));
    assert!(output.contains("drained: no connection is left") && code == Some(0), "{output}");
    assert!(director.xvs("counters").contains("swept_drained 1\n"));
    let events = director.xvs("events --last 20 --no-follow");
    assert!(
        events.contains("ended 1 connections of TCP 198.51.100.100:80, real server 192.0.2.11:80\n"),
        "{events}"
    );
}

/// A download without end is reset at the end of a drain.
fn a_download_is_reset(method: Method) {
    let cluster = traffic::prepared(method, Workers::Two);
    let director = Director::start(&cluster, Workers::Two);
    director.adm("-A -t 198.51.100.100:9000 -s rr");
    director.adm(&format!("-a -t 198.51.100.100:9000 -r 192.0.2.11:9000 {}", method.option()));
    let listener = cluster.run(Host::RealServer(1), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)));
    let listener = listener.expect("the port is free");
    let server = thread::spawn(move || -> io::Error {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_write_timeout(Some(wait::DEADLINE)).expect("the time limit is not zero");
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").expect("the answer begins");
        loop {
            if let Err(error) = stream.write_all(&[0x5a; 65536]) {
                return error;
            }
        }
    });
    let mut curl = clients::curl(&cluster);
    curl.args(["--limit-rate", "20M", "--output", "/dev/null", "http://198.51.100.100:9000/"]);
    let curl = curl.stderr(Stdio::piped()).spawn().expect("scripts/netlab can be started");
    wait::until("the download has begun", || {
        (director.xvs("connections --state ESTABLISHED --count") == "1\n").then_some(())
    });

    let output = director.xvs("drain -t 198.51.100.100:9000 192.0.2.11 --for 1s --then reset");
    assert!(output.contains("inactive\n1 connection is reset at its next packet\nits weight"), "{output}");
    let output = curl.wait_with_output().expect("a child of this process");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.contains("reset by peer"), "{complaint}");
    assert_eq!(server.join().expect("it does not panic").kind(), io::ErrorKind::ConnectionReset);
    let connection = director.xvs("connections");
    assert!(connection.contains(" CLOSE ") && connection.contains("reset"), "{connection}");
    let events = director.xvs("events --last 20 --no-follow");
    assert!(events.contains("marked 1 to be reset at their next packet"), "{events}");
}

#[test]
fn a_download_that_outlasts_the_drain_is_reset_at_both_ends_by_nat() {
    a_download_is_reset(Method::Nat);
}

#[test]
fn a_download_that_outlasts_the_drain_is_reset_at_both_ends_by_direct_routing() {
    a_download_is_reset(Method::DirectRouting);
}
