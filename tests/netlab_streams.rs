//! Programs whose standard output or error cannot be written: a full disk, or a pipe without a reader.
//!
//! Needs root, for a running director. Not here: the daemon's log (`netlab_daemon.rs`).

use std::fs::{self, File};
use std::io;
use std::process::Stdio;

use xvs::cluster::VIP;
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

/// The exit code of a program with these streams.
fn run(cluster: &Cluster, line: &str, input: Stdio, stdout: Sink, stderr: Sink) -> Option<i32> {
    let (name, arguments) = line.split_once(' ').expect("a program and its arguments");
    let mut command = cluster.command(Host::Director, program(name));
    command.args(arguments.split_whitespace()).stdin(input);
    command.stdout(stdout.open()).stderr(stderr.open()).status().expect("it starts").code()
}

#[test]
fn a_program_that_cannot_print_ends_with_a_failure_and_one_whose_reader_has_enough_with_success() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    for line in [
        "xvs status",
        "xvs status --json",
        "xvs events --last 1",
        "xvs --help",
        "xvs completion bash",
        "xvsadm -Ln",
        "xvsadm -S",
        "xvsadm --help",
        "xvsd --help",
    ] {
        for stderr in [Sink::Null, Sink::Full] {
            let code = |stdout| run(&cluster, line, Stdio::null(), stdout, stderr);
            assert_eq!(code(Sink::Full), Some(1), "{line}, stderr {stderr:?}");
            assert_eq!(code(Sink::Closed), Some(0), "{line}, stderr {stderr:?}");
        }
    }
}

#[test]
fn a_message_that_cannot_be_printed_changes_neither_the_exit_code_nor_a_restore() {
    let cluster = Cluster::up(Layout::default());
    let director = Director::start(&cluster, Workers::One);
    for (line, code) in [
        ("xvs status --nonsense", 2),
        ("xvs check --keepalived /nowhere", 2),
        ("xvs set nonsense 1", 3),
        ("xvsadm --nonsense", 255),
        ("xvsd --nonsense", 2),
        ("xvsd --config /nowhere", 2),
    ] {
        let expected = run(&cluster, line, Stdio::null(), Sink::Null, Sink::Null);
        assert_eq!(expected, Some(code), "{line}");
        for stderr in [Sink::Full, Sink::Closed] {
            assert_eq!(
                run(&cluster, line, Stdio::null(), Sink::Null, stderr),
                expected,
                "{line}, {stderr:?}"
            );
        }
    }
    let pcap = cluster.state().join("capture.pcapng").display().to_string();
    let capture = format!("xvs capture --write {pcap} --seconds 1");
    assert_eq!(run(&cluster, &capture, Stdio::null(), Sink::Null, Sink::Full), Some(0));
    // A message about the second line, while two more follow.
    let rules = cluster.state().join("rules");
    let service = |port: u16| format!("-A -t {VIP}:{port} -s rr\n");
    fs::write(&rules, [80, 80, 81].map(service).concat()).expect("the cluster's folder takes a new file");
    for stderr in [Sink::Full, Sink::Closed] {
        director.adm("-C");
        let input = File::open(&rules).expect("the file was written").into();
        assert_eq!(run(&cluster, "xvsadm -R", input, Sink::Null, stderr), Some(0), "{stderr:?}");
        assert_eq!(director.adm("-Sn"), [80, 81].map(service).concat(), "{stderr:?}");
    }
}
