//! Programs whose standard output or error cannot be written: a full disk, or a pipe without a reader.
//!
//! Needs root, for a running director. Not here: the daemon's log (`daemon.rs`).

use std::fs::{self, File};
use std::io;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use xvs::cluster::{VIP, virtual_endpoint};
use xvs::director::program;
use xvs::{Cluster, Director, Host, Layout, Workers};

/// What a stream is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Full,
    Closed,
    Null,
}

impl Sink {
    fn open(self) -> Stdio {
        match self {
            Self::Full => File::options().write(true).open("/dev/full").expect("Linux has it").into(),
            Self::Closed => io::pipe().expect("a pipe").1.into(),
            Self::Null => Stdio::null(),
        }
    }
}

/// The exit code of a program with these streams; on the director of the cluster, if there is one.
fn run(cluster: Option<&Cluster>, line: &str, input: Stdio, stdout: Sink, stderr: Sink) -> Option<i32> {
    let (name, arguments) = line.split_once(' ').expect("a program and its arguments");
    let mut command = match cluster {
        Some(cluster) => cluster.command(Host::Director, program(name)),
        None => Command::new(program(name)),
    };
    command.args(arguments.split_whitespace()).stdin(input);
    command.stdout(stdout.open()).stderr(stderr.open()).status().expect("it starts").code()
}

/// Asserts that a full disk is a failure of each program, and that a reader who has enough is none.
fn end_by_their_output(cluster: Option<&Cluster>, lines: &[&str]) {
    for line in lines {
        for stderr in [Sink::Null, Sink::Full] {
            let code = |stdout| run(cluster, line, Stdio::null(), stdout, stderr);
            assert_eq!(code(Sink::Full), Some(1), "{line}, stderr {stderr:?}");
            assert_eq!(code(Sink::Closed), Some(0), "{line}, stderr {stderr:?}");
        }
    }
}

/// Asserts that each program exits with its code, whether or not it can say why.
fn end_with(cluster: Option<&Cluster>, lines: &[(&str, i32)]) {
    for &(line, code) in lines {
        for stderr in [Sink::Null, Sink::Full, Sink::Closed] {
            let ended = run(cluster, line, Stdio::null(), Sink::Null, stderr);
            assert_eq!(ended, Some(code), "{line}, stderr {stderr:?}");
        }
    }
}

/// Sends datagrams to the virtual address until this is true.
fn send_datagrams(has_ended: &AtomicBool) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // Relaxed: the flag publishes no other data.
    while !has_ended.load(Ordering::Relaxed) {
        // May return an ICMP error to an earlier one.
        let _ = socket.send_to(b"to be captured", virtual_endpoint(80));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_program_that_cannot_print_ends_with_a_failure_and_one_whose_reader_has_enough_with_success() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    let asking = ["xvs status", "xvs status --json", "xvs events --last 1", "xvsadm -Ln", "xvsadm -S"];
    end_by_their_output(Some(&cluster), &asking);
    end_by_their_output(None, &["xvs --help", "xvs completion bash", "xvsadm --help", "xvsd --help"]);
}

#[test]
fn a_message_that_cannot_be_printed_changes_neither_the_exit_code_nor_a_restore() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    end_with(Some(&cluster), &[("xvs set nonsense 1", 3)]);
    end_with(
        None,
        &[
            ("xvs status --nonsense", 2),
            ("xvs check --keepalived /nowhere", 2),
            ("xvsadm --nonsense", 255),
            ("xvsd --nonsense", 2),
            ("xvsd --config /nowhere", 2),
        ],
    );
    let pcap = cluster.state().join("capture.pcapng").display().to_string();
    let capture = format!("xvs capture --write {pcap} --count 1");
    director.adm(&format!("-A -u {VIP}:80"));
    let has_ended = AtomicBool::new(false);
    let ended = thread::scope(|scope| {
        scope.spawn(|| cluster.run(Host::Client, || send_datagrams(&has_ended)));
        let ended = run(Some(&cluster), &capture, Stdio::null(), Sink::Null, Sink::Full);
        has_ended.store(true, Ordering::Relaxed);
        ended
    });
    assert_eq!(ended, Some(0));
    // A message about the second line, while two more follow.
    let rules = cluster.state().join("rules");
    let service = |port: u16| format!("-A -t {VIP}:{port} -s rr\n");
    fs::write(&rules, [80, 80, 81].map(service).concat()).expect("the cluster's folder takes a new file");
    for stderr in [Sink::Full, Sink::Closed] {
        director.adm("-C");
        let input = File::open(&rules).expect("the file was written").into();
        assert_eq!(run(Some(&cluster), "xvsadm -R", input, Sink::Null, stderr), Some(0), "{stderr:?}");
        assert_eq!(director.adm("-Sn"), [80, 81].map(service).concat(), "{stderr:?}");
    }
}
