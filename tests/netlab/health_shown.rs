//! Health in the output of commands and in metrics, of a director with a keepalived.conf.
//!
//! One of two real servers has a check that is never answered. Each test has a cluster of its own. Needs root. Not
//! here: effects on packets (`tests/netlab/health.rs`), every form of a report (`crates/cli/src/servers/health.rs`).

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use xvs::cluster::{VIP, complete, real_server};
use xvs::director::program;
use xvs::exposition::{ADDRESS, Page};
use xvs::wait;
use xvs::{Cluster, Director, Host, Method, Workers, traffic};

/// A port without a listener.
const CLOSED: u16 = 9;

/// A virtual server whose real servers are checked at these ports.
fn file(ports: [u16; 2]) -> String {
    let server = |(number, port): (u8, u16)| {
        let addr = real_server(number);
        format!("real_server {addr} 80 {{\nTCP_CHECK {{\nconnect_port {port}\nconnect_timeout 2\n}}\n}}\n")
    };
    let servers: String = (1..).zip(ports).map(server).collect();
    format!(
        "virtual_server {VIP} 80 {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\ndelay_loop 1\nwarmup 0\n{servers}}}\n"
    )
}

/// Repeats `xvs health` with these arguments until its output contains `says`.
fn health(cluster: &Cluster, words: &[&str], says: &str) -> (String, Option<i32>) {
    wait::until(says, || {
        let mut command: Command = cluster.command(Host::Director, program("xvs"));
        let Output { stdout, status, .. } = complete(command.arg("health").args(words));
        let text = String::from_utf8(stdout).expect("text");
        text.contains(says).then_some((text, status.code()))
    })
}

#[test]
fn a_failing_check_is_shown_by_every_command_and_by_metrics_with_its_error() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let path = cluster.state().join("keepalived.conf");
    fs::write(&path, file([80, CLOSED])).expect("the cluster's folder takes a new file");
    let name = path.display().to_string();
    let director =
        Director::start_with(&cluster, Workers::One, &["--metrics", ADDRESS, "--keepalived", &name]);

    // A moment after the check has failed.
    let (text, code) = health(&cluster, &[], "absent");
    assert!(text.contains("1 of 2 real servers up, 1 of 1 virtual servers with quorum"), "{text}");
    let (up, down) = (format!("{}:80", real_server(1)), format!("{}:80", real_server(2)));
    assert!(text.contains(&format!("\nTCP {VIP}:80")) && text.contains("connection refused"), "{text}");
    assert!(text.contains(&format!("file       {name}, read ")), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80 || line.contains(&name)), "{text}");
    assert_eq!(code, Some(1));
    let (text, _) = health(&cluster, &["--down", "--json"], "connection refused");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let servers = report["virtual_servers"][0]["real_servers"].as_array().expect("a list");
    assert_eq!((servers.len(), servers[0]["endpoint"].as_str()), (1, Some(down.as_str())), "{text}");

    let status = director.status();
    assert!(status.contains("1 of 2 real servers up, 1 of 1 virtual servers with quorum"), "{status}");
    let top = director.xvs("top --once");
    assert!(top.contains(&format!("TCP {VIP}:80 1 down")) && top.contains("1 of 2 real servers up"), "{top}");
    let explained = director.xvs(&format!("explain --proto tcp --from 198.51.100.10:4711 --to {VIP}:80"));
    assert!(explained.contains(&format!("health      {down} has been down for ")), "{explained}");
    let events = director.xvs("events --no-follow");
    assert!(events.lines().any(|line| line.contains(" health: ") && line.contains(&down)), "{events}");

    let of = |destination: &str| {
        Page::of(&cluster, Host::Director).sum(
            "xvs_health_destination_up",
            &[("service", &format!("TCP {VIP}:80")), ("destination", destination)],
        )
    };
    assert_eq!((of(&up), of(&down)), (Some(1.0), Some(0.0)));
    let page = Page::of(&cluster, Host::Director);
    assert!(page.sum("xvs_health_check_failed_total", &[("destination", &down)]) >= Some(1.0));
    assert_eq!(page.sum("xvs_health_check_info", &[("state", "up"), ("destination", &up)]), Some(1.0));
    assert_eq!(page.sum("xvs_health_file_reads_total", &[]), Some(1.0));

    director.adm(&format!("-e -t {VIP}:80 -r {up} -m -w 7"));
    let (text, _) = health(&cluster, &[], "drift      ");
    assert!(text.contains(&format!("  xvsadm -e -t {VIP}:80 -r {up} -m -w 1")), "{text}");
    assert!(text.contains("weight 1, 7 in force"), "{text}");
    assert_eq!(Page::of(&cluster, Host::Director).sum("xvs_health_drift_commands", &[]), Some(1.0));

    fs::write(&path, "}\n").expect("the file is there");
    let mut reload = cluster.command(Host::Director, program("xvs"));
    assert!(!complete(reload.arg("reload")).status.success());
    let (text, _) = health(&cluster, &[], "refused    ");
    assert!(text.contains(":1: ") && text.contains(&down), "{text}");
    assert_eq!(Page::of(&cluster, Host::Director).sum("xvs_health_file_refused", &[]), Some(1.0));

    fs::write(&path, file([CLOSED, CLOSED])).expect("the file is there");
    director.xvs("reload");
    let (text, code) = health(&cluster, &[], "0 of 2 real servers up, 0 of 1 virtual servers with quorum");
    assert!(text.contains("no quorum") && !text.contains("refused    ") && code == Some(1), "{text}");
    let status = director.status();
    let lost = format!("warning    TCP {VIP}:80 has no quorum: live weight 0, quorum 1");
    assert!(status.contains(&lost) && !status.contains("has no real server;"), "{status}");
    let page = Page::of(&cluster, Host::Director);
    assert_eq!(page.sum("xvs_health_service_well", &[]), Some(0.0));
    let reads = ["reads", "refusals"].map(|name| page.sum(&format!("xvs_health_file_{name}_total"), &[]));
    assert_eq!(reads, [Some(2.0), Some(1.0)]);
}
