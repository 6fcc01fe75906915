//! The log as JSON: every line of a run is an object, whatever happens in the run.
//!
//! Each test has a cluster of its own. Needs root. Not here: panics, and lines that are lost (`log.rs` of xvsd).

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use xvs::cluster::{VIP, complete};
use xvs::director::{Protocol, program};
use xvs::{Cluster, Director, Host, Layout, Method, Wan, Workers, clients, traffic, wait};

/// The file xvs.toml of a test, with these keys.
fn toml(cluster: &Cluster, keys: &str) -> PathBuf {
    let path = cluster.state().join("xvs.toml");
    fs::write(&path, keys).expect("the cluster's folder takes files");
    path
}

/// The messages of a log whose lines are all objects with time, level, target and message.
#[track_caller]
fn messages(log: &str) -> Vec<String> {
    let message = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}\n{log}"));
        for name in ["timestamp", "level", "target", "message"] {
            assert!(line[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {line}");
        }
        line["message"].as_str().expect("checked above").to_owned()
    };
    log.lines().map(message).collect()
}

#[test]
fn as_json_every_line_is_an_object_from_the_start_over_refusals_and_a_successor_to_the_end() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let keys = "log = \"debug\"\nlog_format = \"json\"\nhold = \"10s\"\n";
    let path = toml(&cluster, keys);
    let arguments = ["--config", path.to_str().expect("a plain path")];
    let mut former = Director::start_with(&cluster, Workers::Two, &arguments);
    former.add_service(Protocol::Tcp, 80, Method::Nat);
    clients::pages(&cluster, &format!("http://{VIP}/"), 4);
    let refused = former.adm_reading("-R", &format!("-D -t {VIP}:9999\n"));
    assert!(!refused.status.success(), "{refused:?}");
    toml(&cluster, "no_such_key = 1\n");
    former.signal(Signal::HUP);
    wait::until("the reload is refused", || former.log().contains("no_such_key").then_some(()));
    toml(&cluster, keys);

    let director =
        Director::take_over(&cluster, Workers::Two, &arguments).unwrap_or_else(|log| panic!("{log}"));
    assert!(former.has_ended().success(), "{}", former.log());
    let stop = complete(cluster.command(Host::Director, program("xvs")).args(["stop", "--release"]));
    assert!(stop.status.success(), "{stop:?}");
    let is_stopped = |log: &str| log.contains("\"message\":\"stopped\"");
    wait::until("the successor has ended", || is_stopped(&director.log()).then_some(()));
    for (log, last) in [(former.log(), "has taken over: ending"), (director.log(), "stopped")] {
        let messages = messages(&log);
        assert!(messages.len() > 4, "{messages:#?}");
        assert!(messages.last().is_some_and(|message| message.ends_with(last)), "{messages:#?}");
    }
}

#[test]
fn as_json_the_fallback_to_generic_mode_and_the_reason_of_a_failed_start_are_objects_too() {
    let cluster = Cluster::up(Layout { wan: Wan::Macvlan, ..Layout::default() });
    let path = toml(&cluster, "log_format = \"json\"\nlog = \"xvs_host=debug\"\n");
    let config = ["--config", path.to_str().expect("a plain path")];
    let (status, log) = Director::refusal(&cluster, &[&config[..], &["--interface", "none"]].concat());
    let said = messages(&log);
    assert!(!status.success() && said.last().is_some_and(|text| text.contains("none")), "{log}");
    let missing = ["--interface", "wan", "--rules", "/nowhere/rules"];
    let (status, log) = Director::refusal(&cluster, &[&config[..], &missing].concat());
    let said = messages(&log);
    assert!(status.code() == Some(2) && said.last().is_some_and(|text| text.contains("/nowhere")), "{log}");

    toml(&cluster, "log_format = \"json\"\n");
    let mut director = Director::start_with(&cluster, Workers::One, &config);
    assert!(director.stop().success());
    let said = messages(&director.log());
    assert!(said.iter().any(|text| text.contains("generic")), "{said:#?}");

    // Before xvs.toml is read, its keys are unknown.
    toml(&cluster, "log_format = \"yaml\"\n");
    let (status, log) = Director::refusal(&cluster, &[&config[..], &["--interface", "wan"]].concat());
    let is_named =
        log.starts_with("xvsd: ") && log.contains("log_format") && log.contains("`text` or `json`");
    assert!(status.code() == Some(2) && is_named, "{status}: {log}");
}

#[test]
fn a_reload_changes_the_format_in_the_running_process_in_both_directions() {
    let cluster = Cluster::up(Layout::default());
    let path = toml(&cluster, "");
    let config = ["--config", path.to_str().expect("a plain path")];
    let director = Director::start_with(&cluster, Workers::One, &config);
    toml(&cluster, "log_format = \"json\"\n");
    assert_eq!(director.xvs("reload"), "log_format: text -> json\n");
    toml(&cluster, "");
    assert_eq!(director.xvs("reload"), "log_format: json -> text\n");
    let log = wait::until("the second change is logged", || {
        let log = director.log();
        log.contains("log_format: json -> text").then_some(log)
    });
    let is_object = |line: &&str| line.starts_with('{');
    let first = log.lines().position(|line| is_object(&line)).expect(&log);
    let last = log.lines().skip(first).take_while(is_object).count() + first;
    assert!(first > 0 && last < log.lines().count(), "{log}");
    let lines: Vec<_> = log.lines().collect();
    assert!(!messages(&lines[first..last].join("\n")).is_empty());
    assert!(!lines[..first].iter().chain(&lines[last..]).any(is_object), "{log}");
}
