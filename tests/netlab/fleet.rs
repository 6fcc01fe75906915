//! Rules from a real etcd with TLS, followed by two directors.
//!
//! Debian's etcd runs on a host of the cluster. Needs root. Not here: the decision (`crates/xvsd/src/fleet/follow.rs`),
//! the answers of etcd (`etcd.rs` there).

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use rustix::process::Signal;
use rustix::system::uname;
use serde_json::Value;
use xvs::browser::Browser;
use xvs::cluster::{VIP, complete, real_server};
use xvs::director::program;
use xvs::etcd::Etcd;
use xvs::exposition::{ADDRESS, Page};
use xvs::sample::assert_sample;
use xvs::{Cluster, Director, Host, Layout, wait};

const DIRECTORS: [(Host, &str); 2] = [(Host::Director, "lb1"), (Host::Backup, "lb2")];

/// A service of this port with the first real server.
fn rules(port: u16) -> String {
    format!("-A -t {VIP}:{port} -s rr\n-a -t {VIP}:{port} -r {0}:{port} -m -w 1\n", real_server(1))
}

struct Fleet<'a> {
    cluster: &'a Cluster,
    etcd: Etcd<'a>,
}

impl<'a> Fleet<'a> {
    fn new(cluster: &'a Cluster, options: &[&str]) -> Self {
        cluster.add_backup();
        Self { cluster, etcd: Etcd::start(cluster, options) }
    }

    /// Starts xvsd on a host, as the director of this name.
    fn director(&self, host: Host, name: &str) -> Director<'a> {
        // The second one has no right of root but its capabilities.
        let user = if host == Host::Backup { "user = \"daemon\"\n" } else { "" };
        let text =
            format!("{user}metrics_address = {ADDRESS:?}\nstatus_page = true\n{}", self.etcd.toml(name));
        let file = self.file(&format!("{}.toml", host.name()), &text);
        let words =
            ["--config", file.to_str().expect("a plain path"), "--interface", "lan", "--workers", "1"];
        let wan = if host == Host::Director { &["--interface", "wan"][..] } else { &[] };
        Director::start_on(self.cluster, host, &[&words, wan].concat())
    }

    fn both(&self) -> [Director<'a>; 2] {
        DIRECTORS.map(|(host, name)| self.director(host, name))
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.cluster.state().join(name);
        fs::write(&file, text).expect("the cluster's folder takes a file");
        file
    }

    /// Runs `xvs fleet apply` with these rules on the first director; returns its exit code and what it prints.
    fn apply(&self, rules: &str, more: &[&str]) -> (i32, String) {
        let file = self.file("rules", rules);
        let mut command = self.cluster.command(Host::Director, program("xvs"));
        said(complete(command.args(["fleet", "apply"]).arg(file).args(more)))
    }

    /// Runs `xvs` on a host; returns its exit code and what it prints, wrapped lines joined.
    fn xvs(&self, host: Host, words: &str) -> (i32, String) {
        let (code, text) = said(complete(self.cluster.command(host, program("xvs")).args(words.split(' '))));
        (code, text.replace("\n           ", " "))
    }

    fn report(&self, host: Host) -> Value {
        serde_json::from_str(&self.xvs(host, "fleet --json").1).expect("a report")
    }

    /// Waits until `xvs status` of a host has a warning with this text.
    fn is_warned(&self, host: Host, text: &str) {
        wait::until(text, || {
            let status = self.xvs(host, "status --json").1;
            let status: Value = serde_json::from_str(&status).expect("a status");
            let warnings = status["warnings"].as_array().expect("a list");
            warnings
                .iter()
                .any(|warning| warning.as_str().is_some_and(|one| one.contains(text)))
                .then_some(())
        });
    }

    /// Waits until no warning of a host has this text.
    fn is_over(&self, host: Host, text: &str) {
        wait::until(&format!("no warning of {text}"), || {
            (!self.xvs(host, "status").1.contains(text)).then_some(())
        });
    }
}

fn said(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// The ports of a director's services.
fn ports(director: &Director<'_>) -> Vec<u16> {
    let listed = director.adm("-Sn");
    let port = |line: &str| line.strip_prefix(&format!("-A -t {VIP}:"))?.split(' ').next()?.parse().ok();
    listed.lines().filter_map(port).collect()
}

fn await_ports(director: &Director<'_>, wanted: &[u16]) {
    wait::until(&format!("services of {wanted:?}"), || (ports(director) == wanted).then_some(()));
}

/// A record of a report.
fn record<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["directors"].as_array().expect("a list");
    all.iter().find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn two_directors_run_or_refuse_the_rules_of_etcd_and_go_on_without_it() {
    let cluster = Cluster::up(Layout::default());
    let mut fleet = Fleet::new(&cluster, &[]);
    let [first, mut second] = fleet.both();
    fleet.is_warned(Host::Director, "etcd has no rules for fleet prod");

    let (code, text) = fleet.apply(&rules(80), &[]);
    assert_eq!((code, text.contains("lb1 runs it"), text.contains("lb2 runs it")), (0, true, true), "{text}");
    assert_eq!((ports(&first), ports(&second)), (vec![80], vec![80]));
    wait::until("all is well", || (fleet.xvs(Host::Backup, "fleet").0 == 0).then_some(()));
    let report = fleet.report(Host::Backup);
    assert_eq!(record(&report, "lb1")["digest"], record(&report, "lb2")["digest"]);
    assert!(second.xvs("events --no-follow").contains("xvs-fleet"), "{}", second.xvs("events --no-follow"));

    // Another program writes what no director can run.
    fleet.etcd.ctl(&["put", "--", "/xvs/prod/rules", &format!("{}-X\n", rules(81))]);
    for (host, _) in DIRECTORS {
        fleet.is_warned(host, "are refused, and those of revision");
    }
    wait::until("each knows that both refuse it", || {
        let (code, text) = fleet.xvs(Host::Director, "fleet");
        (code == 1 && text.matches("has refused revision").count() == 2).then_some(())
    });
    assert_eq!(Page::of(&cluster, Host::Director).sum("xvs_fleet_refused", &[]), Some(1.0));
    assert_eq!((ports(&first), ports(&second)), (vec![80], vec![80]));
    let (code, text) = fleet.apply("-A -t 1.2.3.4:80 -s no\n", &[]);
    assert!(code == 1 && text.contains("line 1"), "{text}");
    let (code, text) = fleet.apply(&rules(82), &[]);
    assert_eq!((code, ports(&first), ports(&second)), (0, vec![82], vec![82]), "{text}");
    fleet.is_over(Host::Backup, "are refused");

    fleet.etcd.kill();
    fleet.is_warned(Host::Director, "etcd has not answered for");
    let (code, text) = fleet.apply(&rules(83), &[]);
    assert!(code == 3 && text.contains("etcd does not answer: https://192.0.2.12:2"), "{code} {text}");
    assert!(text.contains("https://192.0.2.12:2379: "), "{text}");
    second.stop();
    let second = fleet.director(Host::Backup, "lb2");
    assert_eq!((ports(&first), ports(&second)), (vec![82], vec![82]));
    fleet.is_warned(Host::Backup, "etcd has not answered for");

    fleet.etcd.start_again();
    fleet.etcd.ctl(&["put", "--", "/xvs/prod/rules", &rules(84)]);
    await_ports(&first, &[84]);
    await_ports(&second, &[84]);
    fleet.is_over(Host::Director, "etcd has not answered");

    // Away while there are new rules: not ready before they are in force.
    drop(second);
    fleet.etcd.ctl(&["put", "--", "/xvs/prod/rules", &rules(85)]);
    let second = fleet.director(Host::Backup, "lb2");
    assert_eq!(ports(&second), [85]);
}

#[test]
fn a_trial_ends_by_itself_also_without_etcd_and_stays_when_it_is_confirmed() {
    let cluster = Cluster::up(Layout::default());
    let mut fleet = Fleet::new(&cluster, &[]);
    let [first, second] = fleet.both();
    assert_eq!(fleet.apply(&rules(80), &[]).0, 0);

    let (code, text) = fleet.apply(&rules(81), &["--confirm-within", "60s"]);
    assert_eq!((code, ports(&first), ports(&second)), (0, vec![81], vec![81]), "{text}");
    let shown = text.replace(&format!("{}/", cluster.state().display()), "");
    assert_sample("etcd.md", "xvs fleet apply", &shown);
    let (code, text) = fleet.apply(&rules(82), &[]);
    assert!(code == 3 && text.contains("wait to be confirmed"), "{code} {text}");
    let (code, text) = fleet.xvs(Host::Backup, "fleet confirm");
    assert_eq!(code, 0, "{text}");
    assert_sample("etcd.md", "xvs fleet confirm", &text);
    assert_eq!(fleet.xvs(Host::Backup, "fleet confirm").0, 3);
    assert_eq!(fleet.etcd.ctl(&["get", "--print-value-only", "/xvs/prod/rules"]).trim(), rules(81).trim());

    // Long enough for etcd to be killed before it ends the lease.
    assert_eq!(fleet.apply(&rules(84), &["--confirm-within", "10s"]).0, 0);
    fleet.etcd.kill();
    assert_eq!((ports(&first), ports(&second)), (vec![84], vec![84]));
    for director in [&first, &second] {
        await_ports(director, &[81]);
        assert!(director.log().contains("its time is over, and etcd does not answer"), "{}", director.log());
    }
    // The lease begins anew with the new etcd, but the directors do not.
    fleet.etcd.start_again();
    for (host, _) in DIRECTORS {
        fleet.is_over(host, "etcd has not answered");
    }
    assert_eq!((ports(&first), ports(&second)), (vec![81], vec![81]));
}

#[test]
fn changes_by_hand_are_shown_on_the_other_director_and_a_trial_ends_with_its_lease_or_is_taken_back() {
    let cluster = Cluster::up(Layout::default());
    let fleet = Fleet::new(&cluster, &[]);
    let [first, second] = fleet.both();
    assert_eq!(fleet.apply(&rules(82), &[]).0, 0);

    let mut browser = Browser::start(&cluster, Host::Director, (1400, 1000));
    browser.open(&format!("http://{ADDRESS}/"));
    browser.until("document.getElementById('of_fleet')?.textContent", "Fleet prod");
    let row = |name: &str| {
        format!(
            "[...document.getElementById('directors').rows].find(tr => tr.cells[0].textContent.startsWith('{name}'))"
        )
    };
    browser.until(&format!("{}?.querySelector('.state').textContent", row("lb1")), "ok");

    // A director that has not reported yet does not differ.
    second.signal(Signal::STOP);
    fleet.etcd.ctl(&["put", "--", "/xvs/prod/rules", &rules(85)]);
    wait::until("one has reported, and the other has not", || {
        let report = fleet.report(Host::Director);
        let [one, other] = ["lb1", "lb2"].map(|name| record(&report, name)["runs"]["revision"].as_u64());
        (one != other && one == report["rules"].as_u64()).then_some(())
    });
    let (code, text) = fleet.xvs(Host::Director, "fleet");
    assert!(code == 0 && text.contains("\nlb2 "), "{code} {text}");
    second.signal(Signal::CONT);
    await_ports(&second, &[85]);
    assert_eq!(fleet.apply(&rules(82), &[]).0, 0);

    // By hand on one.
    second.adm(&format!("-e -t {VIP}:82 -r {}:82 -m -w 7", real_server(1)));
    let text = wait::until("the difference is seen on the other", || {
        let text = fleet.xvs(Host::Director, "fleet").1;
        (text.contains("1 object differs") && text.contains("its services differ")).then_some(text)
    });
    // Both directors have the name of this machine.
    let here = format!("on {} shows", uname().nodename().to_string_lossy());
    assert_sample("etcd.md", "xvs fleet", &text.replace(&here, "on lb2.example.com shows"));
    browser.until(&format!("{}.className", row("lb2")), "warn");
    drop(browser);

    assert_eq!(fleet.apply(&rules(84), &["--confirm-within", "60s"]).0, 0);
    let (code, text) = fleet.xvs(Host::Director, "fleet confirm --take-back");
    assert_eq!((code, ports(&first), ports(&second)), (0, vec![82], vec![82]), "{text}");

    let (code, text) = fleet.apply(&rules(83), &["--confirm-within", "5s"]);
    assert_eq!(code, 0, "{text}");
    await_ports(&first, &[82]);
    await_ports(&second, &[82]);
}

#[test]
fn an_etcd_that_is_restored_full_or_slow_and_two_directors_of_one_name_are_told_and_stop_nothing() {
    let cluster = Cluster::up(Layout::default());
    let mut fleet = Fleet::new(&cluster, &["--quota-backend-bytes", "300000"]);
    let first = fleet.director(Host::Director, "lb1");
    assert_eq!(fleet.apply(&rules(80), &[]).0, 0);
    let snapshot = cluster.state().join("snapshot").display().to_string();
    fleet.etcd.ctl(&["snapshot", "save", &snapshot]);
    assert_eq!(fleet.apply(&rules(81), &[]).0, 0);
    for number in 0..5 {
        fleet.etcd.ctl(&["put", "other", &number.to_string()]);
    }
    wait::until("the director sees the last revision", || {
        let status = fleet.etcd.ctl(&["get", "--print-value-only", "/xvs/prod/directors/lb1"]);
        status.contains("\"runs\":{").then_some(())
    });

    fleet.etcd.signal(Signal::STOP);
    fleet.is_warned(Host::Director, " within 2 s");
    assert_eq!(fleet.xvs(Host::Director, "healthy").0, 0);
    let (code, text) = fleet.apply(&rules(83), &[]);
    assert!(code == 3 && !text.contains("hangs"), "{code} {text}");
    for part in [
        "etcd does not answer: https://192.0.2.12:2",
        ":2379: no connection within 2 s",
        "; start it there",
        "it waits for etcd",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    fleet.etcd.signal(Signal::CONT);
    fleet.is_over(Host::Director, "etcd has not answered");

    fleet.etcd.kill();
    fleet.etcd.restore(&snapshot);
    fleet.etcd.start_again();
    fleet.is_warned(Host::Director, "etcd was restored from a backup");
    await_ports(&first, &[80]);
    assert_eq!(fleet.apply(&rules(82), &[]).0, 0);
    fleet.is_over(Host::Director, "restored from a backup");

    let second = fleet.director(Host::Backup, "lb1");
    assert_eq!(ports(&second), [82]);
    for (host, _) in DIRECTORS {
        fleet.is_warned(host, "has the name lb1 too");
    }
    assert_eq!(fleet.report(Host::Director)["directors"].as_array().map(Vec::len), Some(2));
    drop(second);

    let large = "x".repeat(100_000);
    wait::until("etcd is full", || {
        let output = complete(fleet.etcd.etcdctl().args(["put", "large", &large]));
        String::from_utf8_lossy(&output.stderr).contains("space exceeded").then_some(())
    });
    let (code, text) = fleet.apply(&rules(83), &[]);
    assert!(code == 3 && text.contains("etcd is full: `etcdctl compact`"), "{code} {text}");
    first.adm(&format!("-A -t {VIP}:9 -s rr"));
    fleet.is_warned(Host::Director, "its record is not written: https://192.0.2.12:2379: etcdserver: mvcc");
    assert_eq!(ports(&first), [9, 82]);
}
