//! Rights: what the processes of a running xvsd hold, and which of them executes programs.
//!
//! Each test has a cluster of its own. Needs root. Not here: rights that are missing at the start (`netlab_start.rs`),
//! the requests of the helper (`crates/helper`), users and groups of scripts (`crates/health`).

use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use xvs::cluster::{VIP, real_server, succeed};
use xvs::{Cluster, Director, Host, Layout, Workers, wait};

/// A keepalived.conf with a script that runs five times a second, and its program.
fn conf(cluster: &Cluster, script: &str) -> PathBuf {
    let state = cluster.state();
    let (file, program) = (state.join("keepalived.conf"), state.join("check"));
    let write = format!("printf '%s' \"$1\" >{0} && chmod 755 {0}", program.display());
    let script = format!("#!/bin/sh\ncd {}\n{script}\n", state.display());
    // Written by another process, so that no program that is started meanwhile inherits the open file.
    let mut shell = std::process::Command::new("sh");
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
    let cluster = Cluster::up(Layout::default());
    conf(
        &cluster,
        "[ -e seen ] && exit\n{ cat /proc/$$/environ; echo; echo $PPID; ulimit -Sn; ls -l /proc/$$/fd | grep -Ec 'socket|anon|memfd'; } >part; mv part seen",
    );
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.expect("a limit");
    let director = start(&cluster, &[]);
    let seen =
        wait::until("the script runs", || Some(content(&cluster, "seen")).filter(|seen| !seen.is_empty()));
    let (_, helper) = helper(&director);
    let environment = "LANG=C\0PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\0";
    assert_eq!(seen, format!("{environment}\n{helper}\n{limit}\n0\n"));
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
        let pids = succeed(std::process::Command::new("ip").args([
            "netns",
            "pids",
            &cluster.namespace(Host::Director),
        ]));
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
        let mut pids = std::process::Command::new("ip");
        succeed(pids.args(["netns", "pids", &cluster.namespace(Host::Director)])).is_empty().then_some(())
    });
}
