//! Rights: what the processes of a running xvsd hold, and which of them executes programs.
//!
//! Each test has a cluster of its own. Needs root. Not here: what the helper does for an xvsd with `user` (`user.rs`),
//! rights that are missing at the start (`start.rs`), the requests of the helper (`crates/helper`), users and groups of
//! scripts (`crates/health`).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use xvs::cluster::{VIP, real_server, succeed};
use xvs::director::Protocol;
use xvs::own_process::is_own_process;
use xvs::{Cluster, Director, Host, Layout, Method, Workers, wait};
use xvs_model::protocol::framing::{RequestMessage, VERSION};
use xvs_model::protocol::question::Request;
use xvs_model::protocol::request::TakeOverStep;

/// A keepalived.conf with a script that runs five times a second, and its program.
fn conf(cluster: &Cluster, script: &str) -> PathBuf {
    let state = cluster.state();
    let (file, program) = (state.join("keepalived.conf"), state.join("check"));
    let write = format!("printf '%s' \"$1\" >{0} && chmod 755 {0}", program.display());
    let script = format!("#!/bin/sh\ncd {}\n{script}\n", state.display());
    // Written by another process, so that no program that is started meanwhile inherits the open file.
    let mut shell = Command::new("sh");
    assert!(shell.args(["-c", &write, "sh", &script]).status().expect("a shell").success());
    let text = format!(
        "global_defs {{\nscript_user root\n}}\nvirtual_server {VIP} 80 {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\n\
         delay_loop 0.2\nwarmup 0\nreal_server {} 80 {{\nMISC_CHECK {{\nmisc_path {}\n}}\n}}\n}}\n",
        real_server(1),
        program.display()
    );
    fs::write(&file, text).expect("the cluster's folder takes a new file");
    file
}

fn start<'a>(cluster: &'a Cluster, more: &[&str]) -> Director<'a> {
    let file = cluster.state().join("keepalived.conf").display().to_string();
    Director::start_with(cluster, Workers::One, &[&["--keepalived", &file], more].concat())
}

/// The numbers of the children of a process.
fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let tasks = tasks.map(|task| task.expect("a thread").path().join("children"));
    let children: String = tasks.map(|task| fs::read_to_string(task).unwrap_or_default()).collect();
    children.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// The one child of a process, which has this name.
fn child(process: u32, name: &str) -> u32 {
    wait::until(name, || {
        let named = |child: &u32| {
            fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let children = children(process);
        assert!(children.len() <= 1, "{children:?}");
        children.into_iter().find(named)
    })
}

/// The keeper and the helper of a director.
fn helper(director: &Director<'_>) -> (u32, u32) {
    let keeper = child(director.process(), "xvs-keeper");
    (keeper, child(keeper, "xvs-helper"))
}

fn kill(process: u32) {
    let process = Pid::from_raw(process.cast_signed()).expect("it is no 0");
    kill_process(process, Signal::KILL).expect("it runs");
}

fn content(cluster: &Cluster, name: &str) -> String {
    fs::read_to_string(cluster.state().join(name)).unwrap_or_default()
}

/// Waits until the script has run after this moment.
fn runs_again(cluster: &Cluster) {
    let runs = || content(cluster, "runs").len();
    let before = runs();
    // One may have been running.
    wait::until("the script runs", || (runs() > before + 1).then_some(()));
}

#[test]
fn scripts_are_children_of_the_helper_with_a_clean_environment_and_the_first_limit_of_files() {
    // Its limit of files is the process's.
    let test =
        "rights::scripts_are_children_of_the_helper_with_a_clean_environment_and_the_first_limit_of_files";
    if !is_own_process(test) {
        return;
    }
    let cluster = Cluster::up(Layout::default());
    conf(
        &cluster,
        "[ -e seen ] && exit\nuntil [ $(ulimit -Sn) = 512 ]; do sleep 0.01; done\n{ cat /proc/$$/environ; echo; echo $PPID; ulimit -Sn; ls -l /proc/$$/fd | grep -Ec 'socket|anon|memfd'; } >part; mv part seen",
    );
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(512), maximum: most }).expect("a lower limit");
    let director = start(&cluster, &[]);
    let seen =
        wait::until("the script runs", || Some(content(&cluster, "seen")).filter(|seen| !seen.is_empty()));
    let (_, helper) = helper(&director);
    let environment = "LANG=C\0PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\0";
    assert_eq!(seen, format!("{environment}\n{helper}\n512\n0\n"));
    let limits = fs::read_to_string(format!("/proc/{helper}/limits")).expect("it runs");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let most = most.expect("a limit").to_string();
    assert_eq!(files.split_whitespace().nth(3), Some(&*most), "for many scripts at once");
}

#[test]
fn a_killed_helper_is_started_again_and_a_killed_keeper_is_told_with_the_step() {
    let cluster = Cluster::up(Layout::default());
    conf(&cluster, "printf x >>runs");
    let director = start(&cluster, &[]);
    let (keeper, first) = helper(&director);
    runs_again(&cluster);
    assert!(!director.status().contains("helper"), "{}", director.status());

    kill(first);
    runs_again(&cluster);
    let second = child(keeper, "xvs-helper");
    assert_ne!(first, second);
    let told = "the helper process has ended by signal 9; it is started again";
    assert!(director.log().contains(told), "{}", director.log());
    let status = director.status();
    assert!(status.contains("has ended 1 times, last by signal 9"), "{status}");

    kill(keeper);
    let told = "there is no helper process any more, so no script runs";
    wait::until("xvs status tells it", || director.status().contains(told).then_some(()));
    assert!(director.log().contains("xvsd --take-over` brings it back"), "{}", director.log());
    assert!(!PathBuf::from(format!("/proc/{second}")).exists() || children(director.process()).is_empty());
    let saved = director.adm("-S -n");
    assert!(saved.contains(&format!("-a -t {VIP}:80")), "the service stays: {saved}");
    drop(director);
}

/// Waits until this process of the director's host is the only one of its name, and not one of these. Returns it.
fn only(cluster: &Cluster, name: &str, former: &[u32]) -> u32 {
    wait::until(name, || {
        let pids = succeed(Command::new("ip").args(["netns", "pids", &cluster.namespace(Host::Director)]));
        let named = |pid: &&str| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let found: Vec<u32> = pids.lines().filter(named).map(|pid| pid.parse().expect("a number")).collect();
        (found.len() == 1 && !former.contains(&found[0])).then(|| found[0])
    })
}

#[test]
fn after_a_reload_by_a_successor_and_a_take_over_there_is_one_helper_and_after_the_end_none() {
    let cluster = Cluster::up(Layout::default());
    let conf = conf(&cluster, "printf x >>runs").display().to_string();
    let toml = cluster.state().join("xvs.toml");
    let keys = |ring: u32| {
        let keys = format!("hold = \"10s\"\nreceive_ring = {ring}\n[keepalived]\nfile = \"{conf}\"\n");
        fs::write(&toml, keys).expect("the cluster's folder takes files");
    };
    keys(1024);
    let arguments = ["--config", toml.to_str().expect("a plain path")];
    let mut first = Director::start_with(&cluster, Workers::One, &arguments);
    let former = [only(&cluster, "xvs-keeper", &[]), only(&cluster, "xvs-helper", &[])];
    keys(2048);
    assert!(first.xvs("reload").contains("receive_ring: 1024 -> 2048, by a successor"));
    first.is_taken_over();
    let second = [only(&cluster, "xvs-keeper", &former), only(&cluster, "xvs-helper", &former)];
    runs_again(&cluster);
    let director =
        Director::take_over(&cluster, Workers::One, &arguments).unwrap_or_else(|log| panic!("{log}"));
    only(&cluster, "xvs-keeper", &second);
    only(&cluster, "xvs-helper", &second);
    runs_again(&cluster);
    director.xvs("stop --release");
    wait::until("no process is left", || {
        let mut pids = Command::new("ip");
        succeed(pids.args(["netns", "pids", &cluster.namespace(Host::Director)])).is_empty().then_some(())
    });
}

/// The lines of a file of a process or thread in /proc that begin with these names, without the names.
fn values(status: &str, names: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(status).expect("it runs");
    let value = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("{name}: {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    names.iter().map(value).collect()
}

/// The status of each thread of a process, by its name.
fn threads(process: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let named = |task: std::io::Result<fs::DirEntry>| {
        let path = task.expect("a thread").path();
        // It may have ended.
        let name = fs::read_to_string(path.join("comm")).ok()?.trim().to_owned();
        Some((name, path.join("status").display().to_string()))
    };
    tasks.filter_map(named).collect()
}

/// The user of the tests, whom every Debian has.
const USER: &str = "daemon";
const USER_ID: &str = "1 1 1 1";
/// CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_NICE, from Linux 5.19 on.
const KEPT: u64 = 1 << 10 | 1 << 13 | 1 << 14 | 1 << 23;

/// An xvs.toml with a hold, the script's keepalived.conf and more keys.
fn toml(cluster: &Cluster, script: &str, keys: &str) -> String {
    let conf = conf(cluster, script).display().to_string();
    let path = cluster.state().join("xvs.toml");
    let text = format!("hold = \"10s\"\n{keys}\n[keepalived]\nfile = \"{conf}\"\n");
    fs::write(&path, text).expect("the cluster's folder takes files");
    path.display().to_string()
}

#[test]
fn as_a_user_each_thread_has_the_used_capabilities_alone_and_the_helper_has_all() {
    let cluster = Cluster::up(Layout::default());
    let script = "[ -e seen ] && exit\nid -un >part; mv part seen";
    let toml = toml(&cluster, script, &format!("user = \"{USER}\"\n"));
    let director = Director::start_with(&cluster, Workers::One, &["--config", &toml]);
    let kept = format!("{KEPT:016x}");
    let none = format!("{:016x}", 0);
    for (name, status) in threads(director.process()) {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Uid", "Gid"];
        let wanted = [&*none, &kept, &kept, &kept, &none, "1", USER_ID, USER_ID];
        assert_eq!(values(&status, &sets), wanted, "{name}");
    }
    let held = ["CapEff", "NoNewPrivs", "Uid", "Seccomp", "Seccomp_filters"];
    let own = values("/proc/self/status", &held);
    let (keeper, helper) = helper(&director);
    for process in [keeper, helper] {
        assert_eq!(values(&format!("/proc/{process}/status"), &held), own);
    }
    let seen =
        wait::until("the script runs", || Some(content(&cluster, "seen")).filter(|seen| !seen.is_empty()));
    assert_eq!(seen, "root\n", "script_user");
    drop(director);
}

/// Two against new processes and one with the list of calls; those of narrower kinds have one more.
const FILTERS: u64 = 3;

/// How many filters of system calls a thread has more than this one, by its status; `None`: it has ended.
fn filters(status: &str) -> Option<u64> {
    let of = |status| {
        let text = fs::read_to_string(status).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")?.trim().parse::<u64>().ok())
    };
    Some(of(status)? - of("/proc/self/status").expect("this thread runs"))
}

#[test]
fn as_a_user_each_thread_has_filters_of_system_calls_and_those_that_read_or_forward_one_more() {
    let cluster = Cluster::up(Layout::default());
    let keys = format!("user = \"{USER}\"\nmetrics_address = \"127.0.0.1:9112\"\n");
    let toml = toml(&cluster, "exit 0", &keys);
    let director = Director::start_with(&cluster, Workers::One, &["--config", &toml]);
    director.adm("--start-daemon backup --mcast-interface lan");
    let is_narrower = |name: &String| NARROWER.iter().any(|start| name.starts_with(start));
    let has_its_own = |(name, status): &(String, String)| {
        filters(status).is_none_or(|count| count == FILTERS + u64::from(is_narrower(name)))
    };
    // A thread that has just begun has the name and the filters of the one that started it.
    wait::until("each thread has its filters", || {
        let threads = threads(director.process());
        let is_there = |wanted: &&str| threads.iter().any(|(name, _)| name.starts_with(wanted));
        let all_are = NARROWER.iter().chain(&["xvs-control", "xvsd"]).all(is_there);
        (all_are && threads.iter().all(has_its_own)).then_some(())
    });
    drop(director);
}

/// How the names of threads begin that read what others send, or forward.
const NARROWER: [&str; 6] =
    ["control-", "xvs-blocking", "xvs-health", "xvs-metrics", "xvs-sync", "xvs-worker"];

const METRICS: &str = "http://127.0.0.1:9112/metrics";

/// The metrics of refused calls, but the two lines that describe them.
fn refused_calls(cluster: &Cluster) -> Vec<String> {
    let page = succeed(cluster.command(Host::Director, "curl").args(["-s", METRICS]));
    let lines = page.lines().filter(|line| line.contains("xvs_refused_system_calls_total"));
    let (described, lines): (Vec<_>, Vec<_>) =
        lines.map(str::to_owned).partition(|line| line.starts_with('#'));
    assert_eq!(described.len(), 2, "{page}");
    lines
}

#[test]
fn as_a_user_no_command_needs_a_call_that_is_refused() {
    let cluster = Cluster::up(Layout::default());
    let keys = format!("user = \"{USER}\"\nmetrics_address = \"127.0.0.1:9112\"\n");
    let toml = toml(&cluster, "exit 0", &keys);
    let director = Director::start_with(&cluster, Workers::One, &["--config", &toml]);
    for command in [
        &*format!("explain --proto tcp --from 198.51.100.10:5 --to {VIP}:80"),
        "capture --text --seconds 1",
        "connections",
        "counters",
        "deny 203.0.113.7 for 10m",
        "deny list",
        "events --last 5 --no-follow",
        "get",
        "health",
        &format!("limit set -t {VIP}:80 --connections 200"),
        "limit list",
        "reload",
        "set drop_entry 1",
        "status --json",
    ] {
        director.xvs(command);
        assert_eq!(refused_calls(&cluster), [""; 0], "{command}");
    }
}

/// unshare(2) on x86-64. What is in the registers as its first argument, a descriptor, is not valid for it, so without
/// filters it would change nothing.
#[cfg(target_arch = "x86_64")]
const UNSHARE: u64 = 272;

/// Lets the thread of a process that waits for clients make another call than it wants to.
#[cfg(target_arch = "x86_64")]
fn call_in(process: u32, call: u64) {
    use nix::sys::ptrace::{self, Options};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    let accepting = threads(process).into_iter().find(|(name, _)| name == "control-accept");
    let (_, status) = accepting.expect("a thread of this name");
    let id = status.trim_end_matches("/status").rsplit('/').next().expect("a path");
    let thread = nix::unistd::Pid::from_raw(id.parse().expect("a number"));
    let stops = || waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
    ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD).expect("the thread is there");
    ptrace::interrupt(thread).expect("it is traced");
    stops();
    ptrace::syscall(thread, None).expect("it is stopped");
    // It begins to wait again.
    assert_eq!(stops(), WaitStatus::PtraceSyscall(thread));
    let mut registers = ptrace::getregs(thread).expect("it is stopped");
    registers.orig_rax = call;
    ptrace::setregs(thread, registers).expect("it is stopped");
    ptrace::detach(thread, None).expect("it is stopped");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_call_that_xvsd_does_not_use_fails_is_counted_and_logged_once_and_xvsd_serves_on() {
    let cluster = Cluster::up(Layout::default());
    let keys = format!("user = \"{USER}\"\nmetrics_address = \"127.0.0.1:9112\"\n");
    let toml = toml(&cluster, "exit 0", &keys);
    let director = Director::start_with(&cluster, Workers::One, &["--config", &toml]);
    let warning = format!("a thread of the kind reader was refused the system call {UNSHARE} (x86_64)");
    let counted = |count: u32| {
        wait::until("the call is counted", || {
            let line =
                format!("xvs_refused_system_calls_total{{kind=\"reader\",call=\"{UNSHARE}\"}} {count}");
            (refused_calls(&cluster) == [line]).then_some(())
        });
    };
    assert!(!director.status().contains("system call"), "{}", director.status());
    for count in 1..=2 {
        call_in(director.process(), UNSHARE);
        counted(count);
        wait::until("xvs status warns", || director.status().contains(&warning).then_some(()));
    }
    let log = director.log();
    assert_eq!(log.matches(&warning).count(), 1, "{log}");
    assert_eq!(log.matches("accepting a control client error=Operation not permitted").count(), 2, "{log}");
    director.add_service(Protocol::Tcp, 81, Method::Nat);
    assert_eq!(xvsd(&cluster), director.process());
}

/// The one xvsd of the director's host.
fn xvsd(cluster: &Cluster) -> u32 {
    wait::until("one xvsd runs", || {
        let pids = succeed(Command::new("ip").args(["netns", "pids", &cluster.namespace(Host::Director)]));
        let is_xvsd = |pid: &&str| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split('\0').next().is_some_and(|program| program.ends_with("xvsd"))
        };
        let found: Vec<u32> =
            pids.lines().filter(is_xvsd).map(|pid| pid.parse().expect("a number")).collect();
        (found.len() == 1).then(|| found[0])
    })
}

/// Waits until the one xvsd runs as the user of the tests with [`KEPT`] and filters, and has a helper of root.
fn is_limited(cluster: &Cluster, former: &[u32]) {
    let own = xvsd(cluster);
    let status = format!("/proc/{own}/status");
    assert_eq!(
        values(&status, &["CapEff", "CapInh", "Uid"]),
        [format!("{KEPT:016x}"), format!("{:016x}", 0), USER_ID.to_owned()]
    );
    assert_eq!(filters(&status), Some(FILTERS));
    let helper = only(cluster, "xvs-helper", former);
    assert_eq!(values(&format!("/proc/{helper}/status"), &["Uid"]), ["0 0 0 0"]);
}

#[test]
fn a_user_takes_over_from_root_reloads_and_starts_after_a_kill_with_services_state_and_pins() {
    let cluster = Cluster::up(Layout::default());
    let path = toml(&cluster, "printf x >>runs", "");
    let arguments = ["--config", &*path];
    let mut root = Director::start_with(&cluster, Workers::One, &arguments);
    root.add_service(Protocol::Tcp, 81, Method::Nat);
    let rules = root.adm("-Sn");
    let former = only(&cluster, "xvs-helper", &[]);
    toml(&cluster, "printf x >>runs", &format!("user = \"{USER}\"\n"));

    let director =
        Director::take_over(&cluster, Workers::One, &arguments).unwrap_or_else(|log| panic!("{log}"));
    assert!(root.has_ended().success(), "{}", root.log());
    is_limited(&cluster, &[former]);
    runs_again(&cluster);
    let former = only(&cluster, "xvs-helper", &[former]);
    toml(&cluster, "printf x >>runs", &format!("user = \"{USER}\"\nreceive_ring = 1024\n"));
    let reload = director.xvs("reload");
    assert!(reload.contains("receive_ring: 4096 -> 1024, by a successor"), "{reload}");
    is_limited(&cluster, &[former]);
    runs_again(&cluster);
    assert_eq!(director.adm("-Sn"), rules);

    kill(xvsd(&cluster));
    wait::until("the helper has ended", || {
        let pids = Command::new("ip").args(["netns", "pids", &cluster.namespace(Host::Director)]).output();
        pids.expect("ip runs").stdout.is_empty().then_some(())
    });
    let next = Director::start_with(&cluster, Workers::One, &arguments);
    is_limited(&cluster, &[]);
    assert_eq!(next.adm("-Sn"), rules);
    let status = next.status();
    for warning in ["hold", "state_directory", "journal", "priority", "system call"] {
        assert!(
            !status.lines().any(|line| line.starts_with("warning") && line.contains(warning)),
            "{status}"
        );
    }
    assert!(status.contains("restored at the start"), "{status}");
    next.xvs("stop --release");
    let has_program = || cluster.ip(Host::Director, "-details link show dev wan").contains("xdp");
    assert!(!has_program());

    // Root releases what an xvsd of the user has left, too.
    let mut last = Director::start_with(&cluster, Workers::One, &arguments);
    assert!(last.stop().success(), "{}", last.log());
    assert!(has_program(), "the hold");
    last.xvs("stop --release");
    assert!(!has_program());
}

#[test]
fn a_user_begins_anew_in_its_process_after_a_failed_take_over_with_its_helper_and_its_rights() {
    let cluster = Cluster::up(Layout::default());
    let path = toml(&cluster, "printf x >>runs", &format!("user = \"{USER}\"\n"));
    let director = Director::start_with(&cluster, Workers::One, &["--config", &path]);
    director.add_service(Protocol::Tcp, 81, Method::Nat);
    let (rules, (_, helper)) = (director.adm("-Sn"), helper(&director));
    // A successor that ends after the third step.
    let mut successor = UnixStream::connect(cluster.socket(Host::Director)).expect("xvsd listens");
    for step in [TakeOverStep::Begin, TakeOverStep::Pause, TakeOverStep::TakeTable] {
        let message = RequestMessage { version: VERSION, request: Request::TakeOver(step) };
        let body = serde_json::to_vec(&message).expect("it is JSON");
        let length = u32::try_from(body.len()).expect("it is short").to_be_bytes();
        successor.write_all(&[&length[..], &body].concat()).expect("xvsd reads");
        let mut length = [0; 4];
        successor.read_exact(&mut length).expect("xvsd answers");
        let mut reply = vec![0; u32::from_be_bytes(length) as usize];
        successor.read_exact(&mut reply).expect("xvsd answers");
    }
    drop(successor);
    wait::until("it is ready again", || {
        (director.log().matches("ready: wan, lan").count() == 2).then_some(())
    });
    assert_eq!(director.adm("-Sn"), rules);
    assert_eq!((xvsd(&cluster), only(&cluster, "xvs-helper", &[])), (director.process(), helper));
    is_limited(&cluster, &[]);
    runs_again(&cluster);
    director.xvs("stop --release");
    wait::until("the helper has ended", || {
        (!PathBuf::from(format!("/proc/{helper}")).exists()).then_some(())
    });
}

#[test]
fn a_user_that_is_missing_or_root_or_cannot_read_a_file_is_refused_with_the_step() {
    let cluster = Cluster::up(Layout::default());
    let refused = |keys: &str| {
        let path = toml(&cluster, "exit 0", keys);
        Director::refusal(&cluster, &["--interface", "wan", "--interface", "lan", "--config", &path])
    };
    for (keys, part) in [
        ("user = \"no-such-user\"", "user = no-such-user: there is no such user; `groupadd --force --system"),
        ("user = \"root\"", "user = root: root has every right; name another user, or leave the key out"),
    ] {
        let (status, log) = refused(keys);
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(part), "{log}");
    }
    let rules = cluster.state().join("rules");
    fs::write(&rules, "").expect("the cluster's folder takes files");
    fs::set_permissions(&rules, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let (status, log) = refused(&format!("user = \"{USER}\"\nrules = \"{}\"", rules.display()));
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("rules: Permission denied") || log.contains("Permission denied"), "{log}");
}

#[test]
fn a_script_that_the_helper_does_not_find_in_the_file_is_not_run_and_its_server_stays() {
    let cluster = Cluster::up(Layout::default());
    let file = conf(&cluster, "printf x >>runs");
    let director = start(&cluster, &[]);
    runs_again(&cluster);
    let (_, first) = helper(&director);
    let text = fs::read_to_string(&file).expect("it was written");
    fs::write(&file, text.replace("/check\n", "/other\n")).expect("the cluster's folder takes files");
    // The helper that has read the file before knows the script.
    runs_again(&cluster);
    kill(first);
    let why = "the keepalived.conf does not have it so any more; `xvs reload`";
    wait::until("xvs health says why", || director.xvs("health").contains(why).then_some(()));
    assert!(director.adm("-S -n").contains(&format!("-r {}:80", real_server(1))));
    fs::write(&file, text).expect("the cluster's folder takes files");
    runs_again(&cluster);
}

#[test]
fn as_a_user_rules_of_iptables_legacy_and_nftables_are_read_and_ports_of_fullnat_are_reserved() {
    let cluster = Cluster::up(Layout::default());
    let path = toml(&cluster, "exit 0", &format!("user = \"{USER}\"\n"));
    let director = Director::start_with(&cluster, Workers::One, &["--config", &path]);
    let rules = format!(
        "iptables-legacy -t mangle -A PREROUTING -d {VIP} -p tcp --dport 9001 -m length --length 100 -j MARK --set-mark 5
         nft add table ip lvs
         nft 'add chain ip lvs pre {{ type filter hook prerouting priority mangle ; }}'
         nft add rule ip lvs pre ip daddr {VIP} tcp dport 9002 ip ttl 5 meta mark set 6"
    );
    succeed(cluster.command(Host::Director, "sh").args(["-ec", &rules]));
    // A rule that is not understood is shown, so it was read.
    wait::until("both rules are read", || {
        let status = director.status();
        (status.contains("--dport 9001") && status.contains("9002")).then_some(())
    });
    director.xvs("laddr add 192.0.2.1 --ports 5000-5999");
    let reserved = "cat /proc/sys/net/ipv4/ip_local_reserved_ports";
    let reserved = succeed(cluster.command(Host::Director, "sh").args(["-c", reserved]));
    assert!(reserved.contains("5000-5999"), "{reserved}");
    director.xvs("stop --release");
}
