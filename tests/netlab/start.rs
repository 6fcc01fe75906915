//! Starts of the daemon that fail, or succeed with less than configured: the message names the cause and the next step.
//!
//! Needs root. Each start ends by itself, in one cluster. Not here: a second daemon on one socket and other XDP
//! programs (`daemon.rs`).

use std::process::Command;

use rustix::thread::{CpuSet, sched_setaffinity};
use xvs::director::program;
use xvs::{Cluster, Director, Host, Layout, Workers};

/// Starts xvsd on `wan` by a shell of the director in which `before` has run. Returns its exit code and its last line.
fn start(cluster: &Cluster, before: &str, arguments: &str) -> (Option<i32>, String) {
    let script = format!(
        "{before} {} --socket {}/s.sock {arguments}",
        program("xvsd").display(),
        cluster.state().display()
    );
    let mut shell: Command = cluster.command(Host::Director, "timeout");
    let output = shell.args(["20", "sh", "-c", &script]).output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn a_start_without_a_right_or_device_names_it_with_the_step_and_the_exit_code_prevents_useless_retries() {
    let cluster = Cluster::up(Layout::default());
    let without = |name: &str| format!("exec setpriv --bounding-set {name} --inh-caps {name}");
    let (net_raw, net_admin) = (without("-net_raw"), without("-net_admin"));
    let bpf = without("-bpf,-perfmon,-sys_admin");
    let nobody = "exec setpriv --reuid 65534 --regid 65534 --clear-groups";
    let unwritable = "exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                      --inh-caps +net_admin,+net_raw,+bpf,+perfmon --ambient-caps +net_admin,+net_raw,+bpf,+perfmon";
    let few_files = "ulimit -n 32; exec";
    // Each command of the cluster has mounts of its own; private ones, so that nobody else sees these.
    let no_tun = "mount --make-rprivate /dev && mount -t tmpfs none /dev/net && exec";
    let forbidden_tun = "mount --make-rprivate /dev && mount -t tmpfs -o nodev none /dev/net && \
                         mknod /dev/net/tun c 10 200 && exec";
    let fixed = "mount --make-rprivate /proc && mount --bind /proc/sys /proc/sys && \
                 mount -o remount,bind,ro /proc/sys && exec";
    let on_wan = "--interface wan";
    for (before, arguments, code, parts) in [
        (
            &*net_raw,
            on_wan,
            2,
            &["lacks CAP_NET_RAW;", "run it as root", "--cap-add", "AmbientCapabilities=CAP_NET_RAW"][..],
        ),
        (&net_admin, on_wan, 2, &["lacks CAP_NET_ADMIN;", "run it as root"]),
        (&bpf, on_wan, 2, &["lacks CAP_BPF, CAP_PERFMON;", "AmbientCapabilities=CAP_BPF CAP_PERFMON"]),
        (nobody, on_wan, 2, &["lacks CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON;", "run it as root"]),
        (
            unwritable,
            on_wan,
            1,
            &["Permission denied", "run xvsd as root", "--socket", "RuntimeDirectory=xvs"],
        ),
        (few_files, on_wan, 2, &["may open 32 files only, and needs 368", "ulimit -n", "LimitNOFILE="]),
        (no_tun, on_wan, 1, &["/dev/net/tun: No such file", "`modprobe tun`", "--device /dev/net/tun"]),
        (forbidden_tun, on_wan, 1, &["/dev/net/tun: Permission denied", "DeviceAllow=/dev/net/tun rw"]),
        (
            fixed,
            on_wan,
            1,
            &["/disable_ipv6: Read-only file system", "net.ipv6.conf.default.disable_ipv6=1 if nothing here"],
        ),
        ("exec", "--interface lo", 2, &["lo is a loopback interface", "`ip route`"]),
    ] {
        let (ended, line) = start(&cluster, before, arguments);
        assert_eq!(ended, Some(code), "{before} {arguments}: {line}");
        for part in parts {
            assert!(line.contains(part), "{before} {arguments}: {part}: {line}");
        }
    }
}

#[test]
fn more_workers_than_queues_start_as_many_as_there_are_queues_and_status_says_so() {
    let cluster = Cluster::up(Layout::default());
    let arguments = ["--interface", "wan", "--interface", "lan", "--workers", "20"];
    let director = Director::start_on(&cluster, Host::Director, &arguments);
    let warning = "xvsd has 1 of 20 workers, because wan has no more receive queues; set workers = 1, or add queues \
                   (`ethtool -L wan rx 20`) and restart xvsd";
    assert!(director.log().contains(warning), "{}", director.log());
    let status = director.status();
    assert!(status.contains(warning), "{status}");
}

#[test]
fn workers_that_share_a_core_are_warned_of_once() {
    let cluster = Cluster::up(Layout { queues: 2, ..Layout::default() });
    // For this thread and the processes that it starts.
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one).expect("the machine has a first core");
    let director = Director::start_with(&cluster, Workers::Two, &[]);
    let log = director.log();
    assert_eq!(log.matches("2 workers share 1 core; set workers = 1").count(), 1, "{log}");
}
