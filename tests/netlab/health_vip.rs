//! Health checks through the virtual address (`through_vip`), with real servers that lack it or do not decapsulate.
//!
//! Each test has a cluster of its own. Needs root. Not here: the bytes of the probes (`lab/vip_probe.rs`).

use std::fs;
use std::net::Ipv4Addr;

use xvs::cluster::{DIRECTOR, VIP, complete, real_server, succeed};
use xvs::director::program;
use xvs::exposition::{ADDRESS, Page};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// The port of a service with ordinary checks, and one that no server has.
const ORDINARY: u16 = 81;
const CLOSED: u16 = 82;

/// A service with checks through the virtual address, one with checks of the servers' own addresses, and one whose
/// port is closed.
fn file(method: &str) -> String {
    let service = |port: u16, words: &str| {
        let server = |number| {
            format!("real_server {} {port} {{\nTCP_CHECK {{\n{words}\n}}\n}}\n", real_server(number))
        };
        format!(
            "virtual_server {VIP} {port} {{\nlb_algo rr\nlb_kind {method}\nprotocol TCP\ndelay_loop 0.2\nwarmup 0\n\
             connect_timeout 0.4\nretry 1\ndelay_before_retry 0.1\n{}{}}}\n",
            server(1),
            server(2)
        )
    };
    // One comes from the director's address towards clients, the other from the one towards the servers.
    [
        service(80, &format!("through_vip\nbindto {DIRECTOR}")),
        service(ORDINARY, "connect_port 80"),
        service(CLOSED, "through_vip"),
    ]
    .concat()
}

/// Waits until the service of this port has these real servers.
#[track_caller]
fn await_servers(director: &Director<'_>, port: u16, wanted: &[u8]) {
    let start = format!("-a -t {VIP}:{port} -r ");
    let wanted: Vec<_> = wanted.iter().map(|number| real_server(*number)).collect();
    wait::until(&format!("port {port} has {wanted:?}"), || {
        let saved = director.adm("-S -n");
        let servers = saved.lines().filter_map(|line| line.strip_prefix(&start)?.split(':').next());
        let mut servers: Vec<Ipv4Addr> = servers.filter_map(|addr| addr.parse().ok()).collect();
        servers.sort_unstable();
        (servers == wanted).then_some(())
    });
}

/// Runs `xvs realserver` on the first real server.
fn realserver(cluster: &Cluster, action: &str, method: &str) {
    let mut command = cluster.command(Host::RealServer(1), program("xvs"));
    succeed(command.args([
        "realserver",
        action,
        "--vip",
        &VIP.to_string(),
        "--method",
        method,
        "--dev",
        "lan",
    ]));
}

fn health(cluster: &Cluster) -> String {
    let mut command = cluster.command(Host::Director, program("xvs"));
    String::from_utf8(complete(command.args(["health", "--json"])).stdout).expect("text")
}

fn a_server_that_cannot_serve_is_taken_out_and_returns(
    workers: Workers,
    method: Method,
    word: &str,
    realservers: &str,
    says: &str,
) {
    let cluster = traffic::prepared(method, workers);
    // The client is the router of replies from the virtual address.
    succeed(cluster.command(Host::Client, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    let path = cluster.state().join("keepalived.conf");
    fs::write(&path, file(word)).expect("the cluster's folder takes a new file");
    let name = path.display().to_string();
    let director = Director::start_with(&cluster, workers, &["--metrics", ADDRESS, "--keepalived", &name]);
    await_servers(&director, CLOSED, &[]);
    let refused = format!("connection refused by {} through {VIP}:{CLOSED}", real_server(1));
    assert!(health(&cluster).contains(&refused), "{}", health(&cluster));
    await_servers(&director, 80, &[1, 2]);

    realserver(&cluster, "down", realservers);
    await_servers(&director, 80, &[2]);
    await_servers(&director, ORDINARY, &[1, 2]);
    let report = health(&cluster);
    assert!(report.contains(&format!("\"TCP through {VIP}:80\"")), "{report}");
    let failed =
        format!("no answer from {} through {VIP}:80 within 400ms; if it {says}, run", real_server(1));
    assert!(report.contains(&failed), "{failed}: {report}");
    let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 4);
    assert!(pages.iter().all(|page| page == "rs2"), "{pages:?}");

    realserver(&cluster, "up", realservers);
    await_servers(&director, 80, &[1, 2]);
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 4)));
    // A server without the reset would wait for the rest of the handshake.
    wait::until("no connection waits", || {
        let mut ss = cluster.command(Host::RealServer(2), "ss");
        succeed(ss.args(["-Hnt", "state", "syn-recv"])).is_empty().then_some(())
    });
    let page = Page::of(&cluster, Host::Director);
    assert_eq!(page.sum("xvs_worker_unaccounted_packets", &[]), Some(0.0));
}

#[test]
fn a_server_without_the_virtual_address_is_taken_out_and_returns_when_it_has_it() {
    a_server_that_cannot_serve_is_taken_out_and_returns(
        Workers::Two,
        Method::DirectRouting,
        "DR",
        "dr",
        "lacks the address",
    );
}

#[test]
fn a_server_that_does_not_decapsulate_is_taken_out_and_returns_when_it_does() {
    a_server_that_cannot_serve_is_taken_out_and_returns(
        Workers::One,
        Method::Tunnel,
        "TUN",
        "tunnel",
        "does not decapsulate, or lacks the address",
    );
}
