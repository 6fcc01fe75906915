//! `xvs healthy` and systemd's watchdog, with a daemon that works, is stopped, or has a thread that hangs.
//!
//! Each test has a cluster of its own. Needs root. Not here: failover by keepalived (`failover.rs`), a socket
//! without server (`crates/cli/tests/xvs/healthy.rs`).

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::cmsg_space;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid as Process, Signal, kill_process};
use xvs::cluster::complete;
use xvs::director::program;
use xvs::wait::{self, DEADLINE};
use xvs::{Cluster, Director, Host, Layout, Workers};

fn healthy(cluster: &Cluster, words: &[&str]) -> Output {
    complete(cluster.command(Host::Director, program("xvs")).arg("healthy").args(words))
}

/// Its message if it fails.
fn complaint(output: &Output) -> Option<String> {
    match output.status.code() {
        Some(0) => None,
        Some(1) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        other => panic!("{other:?}: {output:?}"),
    }
}

fn becomes_healthy(cluster: &Cluster) {
    wait::until("xvs healthy succeeds", || healthy(cluster, &[]).status.success().then_some(()));
}

#[test]
fn a_daemon_with_sleeping_workers_is_healthy_and_nothing_is_printed() {
    for workers in [Workers::One, Workers::Two] {
        let cluster = Cluster::up(Layout { queues: workers.count(), ..Layout::default() });
        let _director = Director::start(&cluster, workers);
        // The workers may not have been scheduled yet.
        becomes_healthy(&cluster);
        let output = healthy(&cluster, &["--timeout", "20"]);
        assert!(
            output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
}

#[test]
fn a_stopped_daemon_is_unhealthy_until_it_continues_and_the_check_does_not_hang() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    becomes_healthy(&cluster);
    director.signal(Signal::STOP);
    let output = healthy(&cluster, &["--timeout", "0.3"]);
    assert_eq!(complaint(&output).as_deref(), Some("xvs: xvsd has not answered for 300ms\n"));
    director.signal(Signal::CONT);
    becomes_healthy(&cluster);
}

#[test]
fn status_of_a_stopped_daemon_says_why_it_waits_and_is_printed_when_the_daemon_continues() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    director.signal(Signal::STOP);
    let mut status = cluster.command(Host::Director, program("xvs"));
    status.arg("status").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut status = status.spawn().expect("scripts/netlab can be started");
    let stderr = status.stderr.take().expect("it is a pipe");
    let mut notice = String::new();
    BufReader::new(stderr).read_line(&mut notice).expect("the notice is a line");
    assert!(notice.contains(") does not answer yet: it is stopped; `kill -CONT "), "{notice}");
    assert!(notice.ends_with(" lets it go on; waiting for 59s more\n"), "{notice}");
    director.signal(Signal::CONT);
    let output = status.wait_with_output().expect("it is a child of this process");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && printed.contains("worker 0"), "{output:?}");
}

#[test]
fn systemds_watchdog_is_notified_unless_a_thread_hangs_and_healthy_names_the_thread() {
    let cluster = Cluster::up(Layout::default());
    let path = cluster.state().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("the cluster's folder takes a socket");
    let mut command = cluster.command(Host::Director, program("xvsd"));
    command.args(["--interface", "wan", "--interface", "lan", "--workers", "1"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    // If the test fails, the cluster ends the process.
    let process = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut process = process.expect("scripts/netlab can be started");

    assert_eq!(notification(&systemd), "READY=1");
    assert_eq!(notification(&systemd), "WATCHDOG=1");
    assert_eq!(notification(&systemd), "WATCHDOG=1");

    let control = thread_named(process.id(), "xvs-control");
    ptrace::seize(control, Options::empty()).expect("the thread is there");
    ptrace::interrupt(control).expect("it is traced");
    waitpid(control, Some(WaitPidFlag::__WALL)).expect("it stops");
    let why = wait::until("a thread makes no progress", || complaint(&healthy(&cluster, &[])));
    assert_eq!(why, "xvs: the control thread does not answer within 750ms\n");
    systemd.set_nonblocking(true).expect("a socket");
    let nothing = || systemd.recv(&mut [0; 64]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    while !nothing() {}
    assert_eq!(complaint(&healthy(&cluster, &[])), Some(why));
    assert!(nothing(), "the watchdog is not notified meanwhile");

    systemd.set_nonblocking(false).expect("a socket");
    ptrace::detach(control, None).expect("it is stopped");
    becomes_healthy(&cluster);
    assert_eq!(notification(&systemd), "WATCHDOG=1");
    process.kill().expect("it was not waited for yet");
    process.wait().expect("it is a child of this process");
}

#[test]
fn systemd_hears_of_a_successor_from_the_main_process_and_from_that_of_execreload_and_from_no_other() {
    let cluster = Cluster::up(Layout::default());
    let path = cluster.state().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("the cluster's folder takes a socket");
    set_socket_passcred(&systemd, true).expect("a socket");
    systemd.set_nonblocking(true).expect("a socket");
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let usual = ["--hold", "10s", "--conn-table-size", "65536"];
    let mut former = Director::start_with_variable(&cluster, &variable, &usual);
    let first = former.process();
    let mut command = cluster.command(Host::Director, "env");
    command.arg(&variable).arg(program("xvsd")).arg("--take-over").args(usual);
    command.args(["--interface", "wan", "--interface", "lan", "--workers", "1"]).stdin(Stdio::null());
    let mut reload = command.spawn().expect("scripts/netlab can be started");
    assert!(reload.wait().expect("it is a child of this process").success());
    assert!(former.has_ended().success());

    // As with NotifyAccess=exec.
    let mut main = first;
    while let Some((sender, text)) = sent(&systemd) {
        assert!(
            [main, reload.id()].contains(&sender),
            "process {sender}, but {main} is the main one: {text}"
        );
        if let Some(named) = text.strip_prefix("MAINPID=") {
            main = named.parse().expect("a number");
        }
    }
    assert_ne!(main, first, "the successor is the main process");
    kill_process(Process::from_raw(main as i32).expect("a process"), Signal::TERM).expect("it runs");
}

/// A notification with the process that has sent it, if there is one.
fn sent(socket: &UnixDatagram) -> Option<(u32, String)> {
    let (mut text, mut space) = ([0; 64], [MaybeUninit::uninit(); cmsg_space!(ScmCredentials(1))]);
    let mut credentials = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut text)];
    let length = recvmsg(socket, into, &mut credentials, RecvFlags::empty()).ok()?.bytes;
    let sender = credentials.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(of) => Some(of.pid.as_raw_nonzero().get() as u32),
        _ => None,
    });
    Some((sender?, String::from_utf8_lossy(&text[..length]).trim_end().to_owned()))
}

/// The next notification to systemd.
fn notification(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(DEADLINE)).expect("the time limit is not zero");
    let mut message = [0; 64];
    let length = socket.recv(&mut message).expect("a notification arrives");
    String::from_utf8_lossy(&message[..length]).trim_end().to_owned()
}

/// The id of the thread of a process that has this name.
fn thread_named(process: u32, name: &str) -> Pid {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
    let mut paths = threads.map(|thread| thread.expect("a thread").path());
    let is_named =
        |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|text| text.trim_end() == name);
    let path = paths.find(is_named).expect("a thread of this name");
    Pid::from_raw(path.file_name().and_then(|id| id.to_str()?.parse().ok()).expect("a number"))
}
