//! The agent of a real server, queried as by HAProxy's agent-check, with real connections.
//!
//! Needs root. Not here: the words (`crates/health/src/agent.rs`), other checks (`tests/netlab/health.rs`).

use std::fs;
use std::process::Command;

use xvs::cluster::{VIP, complete, real_server};
use xvs::director::program;
use xvs::exposition::{ADDRESS, Page};
use xvs::servers::{Agent, Sink};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

const AGENT: u16 = 8001;
const UPLOAD: u16 = 9000;

/// Two services with both real servers at weight 10, the first of which has an agent.
fn file() -> String {
    let service = |port| {
        let server = |number, checks: &str| {
            format!("real_server {} {port} {{\nweight 10\n{checks}}}\n", real_server(number))
        };
        let agent = format!("TCP_CHECK {{\nagent_check\nagent_send \"state\\n\"\nconnect_port {AGENT}\n}}\n");
        let head = "lb_algo wrr\nlb_kind NAT\nprotocol TCP\ndelay_loop 0.1\nwarmup 0\nconnect_timeout 2";
        let (first, second) = (server(1, &format!("TCP_CHECK {{\n}}\n{agent}")), server(2, ""));
        format!("virtual_server {VIP} {port} {{\n{head}\n{first}{second}}}\n")
    };
    service(80) + &service(UPLOAD)
}

/// Waits until `xvs health` has this text.
fn await_health(cluster: &Cluster, says: &str) {
    wait::until(says, || {
        let mut command: Command = cluster.command(Host::Director, program("xvs"));
        let output = complete(command.arg("health"));
        // Lines are wrapped.
        let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        text.contains(says).then_some(())
    });
}

/// Waits until the first real server has this weight in both services; `None`: it is in neither.
fn await_weight(director: &Director<'_>, weight: Option<u32>) {
    wait::until(&format!("weight {weight:?}"), || {
        let listed = director.adm("-Ln");
        let server = format!("-> {}:", real_server(1));
        let weights: Vec<Option<u32>> = listed
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(server.as_str()))
            .map(|line| line.split_whitespace().nth(2).and_then(|word| word.parse().ok()))
            .collect();
        let wanted = if weight.is_some() { vec![weight; 2] } else { Vec::new() };
        (weights == wanted).then_some(())
    });
}

/// How many of 6 new connections reach the first real server.
fn share(cluster: &Cluster) -> usize {
    let pages = clients::pages(cluster, &format!("http://{VIP}/"), 6);
    pages.iter().filter(|page| page.as_str() == "rs1").count()
}

#[test]
fn an_agent_sets_the_share_of_its_server_drains_it_and_takes_it_out_and_silence_changes_nothing() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let path = cluster.state().join("keepalived.conf");
    fs::write(&path, file()).expect("the cluster's folder takes a new file");
    let name = path.display().to_string();
    let mut keepalived = cluster.command(Host::Director, "keepalived");
    let checked = complete(keepalived.args(["-t", "-f"]).arg(&path));
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    let unknown =
        |line: &&str| line.contains("Unknown keyword 'agent_check'") || line.contains("'agent_send'");
    assert!(said.lines().filter(unknown).count() == 4 && !said.contains("Unexpected"), "{said}");

    let _sinks = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), UPLOAD));
    let director =
        Director::start_with(&cluster, Workers::One, &["--metrics", ADDRESS, "--keepalived", &name]);
    await_health(&cluster, &format!("connection refused by {}:{AGENT}", real_server(1)));
    await_weight(&director, Some(10));
    assert_eq!(share(&cluster), 3);

    let agent = Agent::start(&cluster, Host::RealServer(1), AGENT, "50%\n");
    await_weight(&director, Some(5));
    assert_eq!(share(&cluster), 2);
    let service = format!("TCP {VIP}:80");
    let ratio =
        || Page::of(&cluster, Host::Director).sum("xvs_health_check_weight_ratio", &[("service", &service)]);
    assert_eq!(ratio(), Some(0.5));

    let uploads: Vec<_> = (0..4).map(|_| clients::HalfUpload::begin(&cluster, UPLOAD)).collect();
    agent.says("drain\n");
    await_weight(&director, Some(0));
    assert_eq!((share(&cluster), ratio()), (0, Some(0.0)));
    uploads.into_iter().for_each(clients::HalfUpload::finish);

    agent.says("perhaps\n");
    await_health(&cluster, "the agent says `perhaps`: drain, 50 % of the weight");
    await_health(&cluster, "the agent's word `perhaps` has no meaning in HAProxy's agent-check");
    agent.says("ready");
    await_health(&cluster, "a line without a line feed");
    await_weight(&director, Some(0));

    agent.says("Ready,down #disk full\r\n");
    await_weight(&director, None);
    await_health(&cluster, "192.0.2.11:80 down");
    await_health(&cluster, "the agent says `Ready,down #disk full`");
    assert_eq!(share(&cluster), 0);

    agent.says("up 100%\n");
    await_weight(&director, Some(10));
    director.xvs(&format!("disable {}", real_server(1)));
    await_weight(&director, Some(0));
    agent.says("up 40% ready\n");
    await_health(&cluster, "40 % of the weight");
    await_weight(&director, Some(0));
    director.xvs(&format!("enable {}", real_server(1)));
    await_weight(&director, Some(4));
    drop(agent);
    await_health(&cluster, "connection refused by");
    await_weight(&director, Some(4));
}
