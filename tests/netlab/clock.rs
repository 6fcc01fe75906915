//! The machine's date jumps while the daemon runs: connections, persistence and health checks use another clock.
//!
//! A library that is loaded before libc's moves `CLOCK_REALTIME` of the daemon alone, at each reading: thirty years
//! ahead, before 1970, and back. Needs root. Not here: times that are moved by hand (`lab/protocol.rs`).

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use xvs::cluster::{VIP, complete, real_server, virtual_endpoint};
use xvs::director::program;
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, clients, clock, traffic, wait};

/// A library in whose `clock_gettime` the date jumps.
fn jumping(cluster: &Cluster) -> PathBuf {
    let jumps = "static const long jumps[] = { 946080000, -1900000000, 0 };\nstatic unsigned reading;";
    clock::library(cluster, jumps, "jumps[__atomic_fetch_add(&reading, 1, __ATOMIC_RELAXED) % 3]")
}

/// Waits until each of the four checks is up and has run so often, and asserts that no run failed.
fn ran_and_passed(cluster: &Cluster, runs: u64) {
    wait::until(&format!("each check has run {runs} times"), || {
        let output = complete(cluster.command(Host::Director, program("xvs")).args(["health", "--json"]));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let members = |value: &Value, name: &str| value[name].as_array().expect("a list").clone();
        let servers =
            members(&report, "virtual_servers").into_iter().flat_map(|one| members(&one, "real_servers"));
        let checks: Vec<_> = servers.flat_map(|one| members(&one, "checks")).collect();
        assert!(checks.len() == 4 && checks.iter().all(|check| check["failed"] == 0), "{checks:#?}");
        let is_there = |check: &Value| check["state"] == "up" && check["asked"].as_u64() >= Some(runs);
        checks.iter().all(is_there).then_some(())
    });
}

#[test]
fn a_date_that_jumps_ends_no_connection_moves_no_client_and_fails_no_health_check() {
    let cluster = traffic::prepared(Method::Nat, xvs::Workers::One);
    let _sinks = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), 9000));
    let server = |number: u8, port: u16| {
        format!("real_server {} {port} {{\nTCP_CHECK {{\nconnect_timeout 1\n}}\n}}\n", real_server(number))
    };
    let service = |port: u16, more: &str| {
        let servers = [1, 2].map(|number| server(number, port)).concat();
        format!(
            "virtual_server {VIP} {port} {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\ndelay_loop 0.1\nwarmup 0\nretry 1\n\
             delay_before_retry 0.1\n{more}{servers}}}\n"
        )
    };
    let file = cluster.state().join("keepalived.conf");
    let text = service(80, "persistence_timeout 60\n") + &service(9000, "");
    fs::write(&file, text).expect("the cluster's folder takes a new file");
    let variable = format!("LD_PRELOAD={}", jumping(&cluster).display());
    let more = ["--keepalived", file.to_str().expect("UTF-8")];
    let director = Director::start_with_variable(&cluster, &variable, &more);
    wait::until("all servers are up", || (director.adm("-Sn").lines().count() == 6).then_some(()));
    ran_and_passed(&cluster, 1);

    let blob = cluster.blob();
    let mut upload =
        cluster.run(Host::Client, || clients::connect(virtual_endpoint(9000))).expect("it answers");
    std::io::Write::write_all(&mut upload, &blob[..1_000_000]).expect("upload");
    let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 6);
    assert!(pages.iter().all(|page| *page == pages[0]), "persistence: {pages:?}");
    let receipt = clients::upload(upload, &blob[1_000_000..]).expect("the connection goes on");
    assert_eq!(receipt, clients::receipt(&receipt.host, &blob));

    ran_and_passed(&cluster, 20);
    let events = director.xvs("events --no-follow --last 100");
    let log = director.log();
    for text in [&events, &log] {
        assert!(!text.contains(" is down") && !text.contains("no quorum"), "{text}");
    }
    let years: Vec<_> = log.lines().filter_map(|line| line.split_once('-')).map(|(year, _)| year).collect();
    assert!(years.iter().any(|year| *year > "2050") && years.iter().any(|year| *year < "1970"), "{log}");
    assert!(director.status().starts_with("ok "), "{}", director.status());
}
