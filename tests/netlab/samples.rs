//! The sample outputs of `docs/` are those of the commands: shapes and words, with other numbers.
//!
//! Those of a fleet are in `fleet.rs` and `anycast.rs`, whose clusters they need; those of bonds in
//! `tests/vm/bonds.sh`. There is a cluster for each state of a director that pages show. Needs root.

use std::env;
use std::fs;
use std::process::{self, Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use xvs::cluster::{VIP, complete, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::sample::{assert_sample, is_like, sample};
use xvs::servers::{Mood, Moody};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// Runs `xvs` on the director, whatever its exit code.
fn xvs(cluster: &Cluster, words: &str) -> String {
    let mut command = cluster.command(Host::Director, program("xvs"));
    said(command.args(words.split_whitespace()))
}

fn said(command: &mut Command) -> String {
    String::from_utf8(complete(command).stdout).expect("text")
}

/// The first row of `xvs status` that begins with `start`.
fn row(director: &Director<'_>, start: &str) -> String {
    let status = director.status();
    status.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned()
}

/// A program of the director that writes to a pipe until it is ended.
fn begun(cluster: &Cluster, words: &str) -> Child {
    let mut command = cluster.command(Host::Director, program("xvs"));
    command
        .args(words.split_whitespace())
        .stdout(Stdio::piped())
        .spawn()
        .expect("scripts/netlab can be started")
}

#[test]
fn a_keepalived_conf_is_checked_as_the_page_shows() {
    let path = env::temp_dir().join(format!("xvs-sample-{}.conf", process::id()));
    let text = "\
virtual_server 198.51.100.100 80 {
    lb_algo wrr
    lb_kind NAT
    nat_mask 255.255.255.0
    delay_loop 6
    protocol TCP
    real_server 192.0.2.11 8080 {
        weight 3
        HTTP_GET {
            url {
                path /health
                status_code 200-299
            }
            connect_timeout 3
            retry 1
        }
    }
    real_server 192.0.2.12 8080 {
        weight 1
    }
}
";
    fs::write(&path, text).expect("the folder for temporary files takes a new one");
    let name = path.display().to_string();
    let mut check = Command::new(program("xvs"));
    let output = said(check.args(["check", "--keepalived", &name]));
    fs::remove_file(&path).expect("it is there");
    // To the byte, but for the name of the file.
    let shown = sample("health-checks.md", "xvs check").replace("/etc/keepalived/keepalived.conf", &name);
    assert_eq!(output, shown + "\n");
}

#[test]
fn status_and_top_print_what_the_pages_show() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let file = cluster.state().join("rules");
    let name = file.display().to_string();
    fs::write(&file, "").expect("the cluster's folder takes a new file");
    let mut director = Director::start_with(&cluster, Workers::One, &["--rules", &name]);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    clients::pages(&cluster, &format!("http://{VIP}/"), 1);
    let differences = row(&director, "rules ").replace(&name, "/etc/xvs/rules");
    assert_sample("operate.md", "rules      3 diff", &differences);
    assert_sample("operate.md", "ok   1 service", &xvs(&cluster, "top --once"));
    let shown = row(&director, "interface  wan") + "\n" + &row(&director, "worker 0 ");
    assert_sample("install.md", "interface  wan", &shown);
    director.kill();
    let director = Director::start(&cluster, Workers::One);
    assert_sample("restart.md", "journal    restored", &row(&director, "journal "));
}

#[test]
fn a_packet_is_explained_captured_and_its_server_drained_as_the_page_shows() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:80 -s wlc"));
    for (server, weight) in [(11, 3), (12, 1), (13, 0)] {
        director.adm(&format!("-a -t {VIP}:80 -r 192.0.2.{server}:80 -m -w {weight}"));
    }
    director.adm(&format!("-e -t {VIP}:80 -r 192.0.2.11:80 -m -w 1"));
    let explain = format!("explain --proto tcp --from 198.51.100.10:4711 --to {VIP}:80");
    assert_sample("operate.md", "xvs explain", &xvs(&cluster, &explain));

    let mut events = xvs(&cluster, "events --since 10m --no-follow");
    events = events.lines().find(|line| line.contains("-A -t ")).expect("an event of the service").to_owned();
    let shown = sample("operate.md", "xvs events");
    let first = shown.lines().next().expect("an event of the service");
    assert!(is_like(&events, first), "{events}\nis not like\n{first}");

    // All neighbours are known then: a packet to an unknown one is held.
    clients::pages(&cluster, &format!("http://{VIP}/"), 2);
    let capture = begun(&cluster, "capture --text");
    wait::until("the capture is begun", || director.log().contains("packet capture begins").then_some(()));
    let held: Vec<_> = (0..4)
        .map(|_| cluster.run(Host::Client, || clients::connect(virtual_endpoint(80))).expect("tcp"))
        .collect();
    kill_process(Pid::from_child(&capture), Signal::INT).expect("it runs");
    let captured = capture.wait_with_output().expect("a child of this process").stdout;
    let captured = String::from_utf8(captured).expect("text");
    let two = captured.lines().take(2).collect::<Vec<_>>().join("\n");
    assert_sample("operate.md", "xvs capture --text", &two);

    let drained = xvs(&cluster, &format!("drain -t {VIP}:80 -r 192.0.2.11 --for 1s --then drop"));
    assert_sample("operate.md", "xvs drain", &drained);
    drop(held);
}

#[test]
fn checks_that_fail_are_shown_by_health_as_the_page_shows() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let moody = Moody::start(&cluster, Host::RealServer(1), 8089);
    let path = cluster.state().join("keepalived.conf");
    // It fails once, and is not tried again before this test ends. Nobody listens on the second server.
    let check = "HTTP_GET {\nurl {\npath /health\nstatus_code 200-299\n}\nretry 2\ndelay_before_retry 100\n}";
    let servers =
        [11, 12].map(|number| format!("real_server 192.0.2.{number} 8089 {{\n{check}\n}}\n")).concat();
    let text = format!(
        "virtual_server {VIP} 80 {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\ndelay_loop 1\nwarmup 0\n{servers}}}\n"
    );
    fs::write(&path, text).expect("the cluster's folder takes a new file");
    let name = path.display().to_string();
    let _director = Director::start_with(&cluster, Workers::One, &["--keepalived", &name]);
    wait::until("the checks are made", || (!xvs(&cluster, "health").contains("assumed")).then_some(()));
    moody.becomes(&[Mood::Unwell]);
    let health = wait::until("both checks have failed", || {
        let health = xvs(&cluster, "health");
        (health.contains("failing 1/3") && health.contains("absent")).then_some(health)
    });
    assert_sample(
        "health-checks.md",
        "xvs health",
        &health.replace(&name, "/etc/keepalived/keepalived.conf"),
    );
}

#[test]
fn a_real_server_that_answers_arp_for_the_vip_is_found_by_doctor_as_the_page_shows() {
    let cluster = traffic::prepared(Method::DirectRouting, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::DirectRouting);
    let server = Host::RealServer(1);
    for setting in ["all.arp_ignore", "lan.arp_ignore"] {
        let mut sysctl = cluster.command(server, "sysctl");
        complete(sysctl.args(["-w", &format!("net.ipv4.conf.{setting}=0")]));
    }
    assert_sample("troubleshoot.md", "xvs doctor", &xvs(&cluster, "doctor"));
}
