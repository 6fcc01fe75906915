//! The configuration that outlives xvsd: what commands made, files that changed meanwhile, the view of health checks.
//!
//! Each test has a cluster of its own. Needs root. Not here: connections (`restart.rs`), every kind of change
//! (`control/saving.rs` of `ctl`).

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use xvs::cluster::{VIP, complete, real_server, succeed};
use xvs::director::{Protocol, program};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Layout, Method, Workers, clients, traffic, wait};

/// All that commands can change, as xvs shows it.
fn shown(director: &Director<'_>) -> [String; 4] {
    let disabled: Value = serde_json::from_str(&director.xvs("status --json")).expect("JSON");
    [
        director.adm("-Sn"),
        director.xvs("get"),
        director.xvs("mark list") + &director.xvs("laddr list"),
        disabled["disabled"].to_string(),
    ]
}

/// Runs a line of a shell on the director's host.
fn on_director(cluster: &Cluster, line: &str) -> String {
    succeed(cluster.command(Host::Director, "sh").args(["-c", line]))
}

#[test]
fn all_that_commands_made_is_there_after_a_kill_and_after_a_stop() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.add_service(Protocol::Udp, 53, Method::Nat);
    director.adm(&format!("-e -t {VIP}:80 -r {}:80 -m -w 7", real_server(1)));
    director.adm(&format!("-E -t {VIP}:80 -s wrr -p 60"));
    director.adm(&format!("-d -u {VIP}:53 -r {}:53", real_server(2)));
    director.adm("--set 700 0 80");
    director.xvs("set sloppy_tcp 1");
    director.xvs(&format!("mark add -d {VIP} -p tcp --dport 81 --set-mark 1"));
    director.adm("-A -f 1 -s rr");
    director.xvs("laddr add 192.0.2.1 --ports 5000-5999");
    director.xvs(&format!("disable {}", real_server(2)));
    assert!(!director.status().contains("journal"));
    let before = shown(&director);
    director.kill();

    let mut director = Director::start(&cluster, Workers::One);
    assert_eq!(shown(&director), before);
    assert!(director.status().contains("journal    restored at the start, as of 2"), "{}", director.status());
    let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 2);
    assert_eq!(pages, ["rs1", "rs1"], "the other one is disabled");
    director.xvs(&format!("enable {}", real_server(2)));
    director.adm(&format!("-D -u {VIP}:53"));
    let before = shown(&director);
    assert!(director.stop().success());
    assert_eq!(shown(&Director::start(&cluster, Workers::One)), before);
}

#[test]
fn files_that_changed_while_xvsd_did_not_run_win_for_what_they_define_and_broken_ones_lose_nothing() {
    let cluster = Cluster::up(Layout::default());
    let [rules, toml] = ["rules", "xvs.toml"].map(|name| cluster.state().join(name));
    let write = |path: &Path, text: &str| fs::write(path, text).expect("the cluster's folder takes files");
    let service = |port: u16, scheduler: &str| format!("-A -t {VIP}:{port} -s {scheduler}\n");
    write(&rules, &(service(80, "rr") + &service(81, "rr")));
    write(&toml, &format!("rules = {rules:?}\n[ipvs]\nsloppy_tcp = 0\n"));
    let arguments = ["--config", toml.to_str().expect("a plain path")];
    let start = || Director::start_with(&cluster, Workers::One, &arguments);
    let services = |director: &Director<'_>| director.adm("-Sn");

    let mut director = start();
    director.adm(&format!("-E -t {VIP}:80 -s wlc"));
    director.adm(&format!("-D -t {VIP}:81"));
    director.adm(service(82, "sh").trim_end());
    director.xvs("set sloppy_tcp 1");
    director.xvs("set sloppy_sctp 1");
    director.kill();
    let mut director = start();
    assert_eq!(services(&director), service(80, "wlc") + &service(82, "sh"), "the files have not changed");
    director.kill();

    write(&rules, "-A -t stray\n");
    let (status, log) = Director::refusal(&cluster, &[&["--interface", "wan"][..], &arguments].concat());
    assert!(status.code() == Some(2) && log.contains("line 1: "), "{status}: {log}");
    write(&rules, &(service(80, "mh") + &service(83, "rr")));
    write(&toml, &format!("rules = {rules:?}\n[ipvs]\nsloppy_tcp = 0\n# changed\n"));
    let director = start();
    assert_eq!(services(&director), service(80, "mh") + &service(82, "sh") + &service(83, "rr"));
    let log = director.log();
    for line in [
        format!("the rules file has changed: xvsadm -E -t {VIP}:80 -s mh"),
        format!("the rules file has changed: xvsadm -A -t {VIP}:83 -s rr"),
        "xvs.toml has changed: `xvs set sloppy_tcp 1` is undone".to_owned(),
    ] {
        assert!(log.contains(&line), "{line}\n{log}");
    }
    let settings = director.xvs("get");
    assert!(settings.contains("sloppy_sctp") && settings.contains("xvs set"), "{settings}");
    let of = |key: &str| settings.lines().find(|line| line.starts_with(key)).map(str::to_owned);
    assert!(of("sloppy_tcp").is_some_and(|line| line.ends_with("xvs.toml")), "{settings}");
    assert!(of("sloppy_sctp").is_some_and(|line| line.ends_with("xvs set")), "{settings}");
}

#[test]
fn rules_that_wait_to_be_confirmed_are_taken_back_and_a_damaged_journal_is_kept_aside() {
    let cluster = Cluster::up(Layout::default());
    let rules = cluster.state().join("rules");
    fs::write(&rules, format!("-A -t {VIP}:81 -s rr\n")).expect("the cluster's folder takes files");
    let mut director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    let before = director.adm("-Sn");
    director.xvs(&format!("apply --confirm-within 1h {}", rules.display()));
    director.kill();
    let mut director = Director::start(&cluster, Workers::One);
    assert_eq!(director.adm("-Sn"), before);
    let log = director.log();
    assert!(log.contains(&format!("not confirmed before xvsd ended: xvsadm -D -t {VIP}:81")), "{log}");
    director.kill();

    let state = on_director(&cluster, "echo /dev/shm/xvs/*");
    let state = state.trim();
    on_director(&cluster, &format!("printf '{{\"change\":{{\"add' >>{state}/journal"));
    let mut director = Director::start(&cluster, Workers::One);
    assert_eq!(director.adm("-Sn"), before, "a line that is cut off is left out");
    director.kill();
    on_director(&cluster, &format!("sed -i 's/\"change\"/\"chance\"/' {state}/journal"));
    let director = Director::start(&cluster, Workers::One);
    assert_eq!(director.adm("-Sn"), "");
    assert!(director.log().contains("it is kept as "), "{}", director.log());
    on_director(
        &cluster,
        &format!("grep -q chance {state}/journal.refused && test $(stat -c %a {state}/journal) = 600"),
    );
}

#[test]
fn with_a_full_directory_changes_go_on_and_status_says_so_until_there_is_room() {
    let cluster = Cluster::up(Layout::default());
    let log = File::create(cluster.state().join("xvsd.log")).expect("the cluster's folder takes files");
    let line = format!(
        "mount -t tmpfs -o size=16m,mode=700 none /dev/shm/xvs && exec {} --interface wan --workers 1 --conn-table-size 1024",
        program("xvsd").display()
    );
    let mut shell = cluster.command(Host::Director, "sh");
    let mut daemon = shell.args(["-c", &line]).stdout(Stdio::null()).stderr(log).spawn().expect("a shell");
    let run = |name: &str, arguments: &str| {
        let output = complete(cluster.command(Host::Director, program(name)).args(arguments.split(' ')));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).replace("\n           ", " "))
    };
    wait::until("xvsd serves", || run("xvs", "healthy"));
    // What xvsd sees of the file system that only it has mounted.
    let filler = format!("/proc/{}/root/dev/shm/xvs/filler", daemon.id());
    fs::write(&filler, vec![0; 16 << 20]).expect_err("it does not fit");
    for port in 80..180 {
        run("xvsadm", &format!("-A -t {VIP}:{port} -s rr")).expect("a full directory refuses no change");
    }
    let status = run("xvs", "status").expect("xvsd runs");
    assert!(status.contains("journal: No space left on device") && status.contains("make room"), "{status}");
    fs::remove_file(&filler).expect("it is there");
    run("xvsadm", &format!("-A -t {VIP}:180 -s rr")).expect("xvsd runs");
    let status = run("xvs", "status").expect("xvsd runs");
    assert!(!status.contains("No space left"), "{status}");
    let journal = format!("/proc/{}/root/dev/shm/xvs/run-xvs-xvsd.sock/journal", daemon.id());
    let lines = fs::read_to_string(journal).expect("text").lines().count();
    assert_eq!(lines, 1 + 101, "all changes are in it");
    daemon.kill().expect("it runs");
    daemon.wait().expect("it is a child of this process");
}

#[test]
fn the_view_of_the_health_checks_continues_after_a_kill_without_notices() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _up = Sink::start(&cluster, Host::RealServer(1), 9000);
    let [file, notices] = ["keepalived.conf", "notices"].map(|name| cluster.state().join(name));
    let server = |number| {
        format!(
            "real_server {} 80 {{\nTCP_CHECK {{\nconnect_port 9000\nretry 1\ndelay_before_retry 1\nalpha\n}}\n\
             notify_up \"{script} up {number}\"\nnotify_down \"{script} down {number}\"\n}}\n",
            real_server(number),
            script = cluster.state().join("note").display(),
        )
    };
    let script = cluster.state().join("note");
    fs::write(&script, format!("#!/bin/sh\necho \"$@\" >>{}\n", notices.display())).expect("a new file");
    succeed(std::process::Command::new("chmod").arg("755").arg(&script));
    let text = format!(
        "global_defs {{\nscript_user root\n}}\nvirtual_server {VIP} 80 {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\ndelay_loop 2\n{}{}}}\n",
        server(1),
        server(2)
    );
    fs::write(&file, text).expect("the cluster's folder takes files");
    let arguments = ["--keepalived", file.to_str().expect("a plain path")];
    let states = || {
        let mut health = cluster.command(Host::Director, program("xvs"));
        // Its exit code says that not all are up.
        let report = complete(health.args(["health", "--json"])).stdout;
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        let servers = report["virtual_servers"][0]["real_servers"].as_array().expect("a list").clone();
        servers.iter().map(|server| server["checks"][0]["state"].to_string()).collect::<Vec<_>>()
    };
    let noted = || fs::read_to_string(&notices).unwrap_or_default();
    let mut director = Director::start_with(&cluster, Workers::One, &arguments);
    wait::until("both were probed and announced", || {
        (noted().contains("up 1") && noted().contains("down 2")).then_some(())
    });
    let (before, announced) = (states(), noted());
    let listed = director.adm("-Sn");
    wait::until("the view of both is kept", || {
        let mut view = cluster.command(Host::Director, "cat");
        let view = complete(view.arg("/dev/shm/xvs/run-xvs-xvsd.sock/health")).stdout;
        let view = String::from_utf8_lossy(&view).into_owned();
        let is_announced = view.contains("\"is_reported_down\":true");
        (is_announced && view.matches("\"has_run\":true").count() == 2).then_some(())
    });
    director.kill();

    let director = Director::start_with(&cluster, Workers::One, &arguments);
    assert_eq!((states(), director.adm("-Sn")), (before, listed));
    let _also_up = Sink::start(&cluster, Host::RealServer(2), 9000);
    wait::until("the second is announced", || noted().contains("up 2").then_some(()));
    assert_eq!(noted(), announced + "up 2\n", "nothing is announced twice");
}
