//! A pair of directors with synchronization daemons and real keepalived, for the suites `failover`, `mixed` and `sync`.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use xvs::cluster::{REAL_SERVERS, VIP, real_server, virtual_endpoint};
use xvs::keepalived::{self, DIRECTORS, Keepalived};
use xvs::{Cluster, Director, Host, Layout, Method};

use crate::connections::METHODS;
use crate::fill;

/// What moves beside the VIP: FULLNAT's local address, and the gateway of real servers towards the client.
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 60);
pub(crate) const ADDRESSES: [Ipv4Addr; 3] = [VIP, LOCAL, GATEWAY];
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// How long connections may take to recover: longer than their own patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a table may take: tens of millions of connections, 250,000 a second.
const FETCHED: Duration = Duration::from_secs(600);

/// How the directors of a pair send their messages.
#[derive(Clone, Copy)]
pub(crate) struct Messages {
    /// Whether they have a key.
    pub(crate) are_signed: bool,
    /// Whether they go to the other director alone, instead of a group.
    pub(crate) are_unicast: bool,
}

/// Those of the suites that do not compare them.
pub(crate) const USUAL: Messages = Messages { are_signed: true, are_unicast: false };

/// A cluster in which the client reaches the VIP by the segment of the directors, and their files; `more` is added to
/// each xvs.toml.
pub(crate) fn prepared(messages: Messages, more: &str) -> Cluster {
    let cluster = Cluster::up(Layout::default());
    cluster.add_backup();
    // It has the VIP and suppresses ARP for it, so direct routing needs no more.
    Method::Tunnel.prepare(&cluster);
    cluster.ip(Host::Director, &format!("address del {VIP}/32 dev wan"));
    cluster.ip(Host::Client, &format!("route add {VIP}/32 dev back src {CLIENT}"));
    for (host, number) in REAL_SERVERS.into_iter().zip(1..) {
        cluster.ip(host, &format!("route add {CLIENT}/32 via {GATEWAY} table 200"));
        cluster.ip(host, &format!("rule add from {} lookup 200", real_server(number)));
    }
    for host in DIRECTORS {
        let file = |ending: &str| cluster.state().join(format!("{}{ending}", host.name()));
        fs::write(file(".key"), "5e".repeat(32)).expect("the cluster's folder takes a new file");
        fs::set_permissions(file(".key"), Permissions::from_mode(0o600)).expect("the file is there");
        let key = match messages.are_signed {
            true => format!("sync_key_file = {:?}\n", file(".key")),
            false => String::new(),
        };
        let text = format!("interfaces = [\"lan\"]\nworkers = 1\n{key}{more}");
        fs::write(config(&cluster, host), text).expect("the cluster's folder takes a new file");
        let conf = keepalived::vrrp_instance(host, &ADDRESSES, "");
        fs::write(keepalived::conf(&cluster, host), conf).expect("the cluster's folder takes a new file");
    }
    cluster
}

/// Starts xvsd and keepalived.
pub(crate) fn started(cluster: &Cluster, host: Host, messages: Messages) -> (Director<'_>, Keepalived) {
    let director = Director::start_on(cluster, host, &["--config", &config(cluster, host)]);
    // It has restored its journal, if it had one.
    if director.adm("-L -n").lines().count() <= 3 {
        director.xvs(&format!("laddr add {LOCAL} --ports 10000-29999"));
        for (method, _, port) in METHODS {
            let service = format!("-t {VIP}:{port}");
            director.adm(&format!("-A {service} -s rr"));
            for server in [1, 2] {
                director.adm(&format!("-a {service} -r {}:{port} {}", real_server(server), method.option()));
            }
        }
        fill::add_fill_service(&director);
        let other = if host == Host::Director { "192.0.2.2" } else { "192.0.2.1" };
        let peers = if messages.are_unicast { format!("--sync-peers {other}") } else { String::new() };
        for role in ["master", "backup"] {
            director.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 7 {peers}"));
        }
    }
    (director, Keepalived::start(cluster, host))
}

/// Gives the first director `count` more connections.
pub(crate) fn fill(cluster: &Cluster, count: usize) {
    // The director answers ARP for an address of its own segment alone.
    let greet = || UdpSocket::bind((CLIENT, 0))?.send_to(&[0], virtual_endpoint(9));
    cluster.run(Host::Client, greet).expect("the address is there");
    thread::sleep(Duration::from_millis(200));
    fill::fill(cluster, count);
}

/// The xvs.toml of a director.
pub(crate) fn config(cluster: &Cluster, host: Host) -> String {
    cluster.state().join(format!("{}-xvs.toml", host.name())).to_string_lossy().into_owned()
}

/// Pulls the first director's cable, or plugs it in.
pub(crate) fn plug_in(cluster: &Cluster, is_there: bool) {
    cluster.ip(Host::Switch, &format!("link set dr {}", if is_there { "up" } else { "down" }));
}

/// Waits until a director has the table of the other one, and prints how long that took. Returns the number of
/// connections that it has left out, for want of room; `None`: it has not fetched the table.
pub(crate) fn await_table(director: &Director<'_>) -> Option<u64> {
    let start = Instant::now();
    while start.elapsed() < FETCHED {
        let status: Value = serde_json::from_str(&director.xvs("status --json")).expect("JSON");
        let daemon = &status["sync"][1];
        if daemon["peers"][0]["table"] == "whole" {
            let fetched =
                director.log().lines().rfind(|line| line.contains("connections fetched")).map(str::to_owned);
            println!(
                "joined: {}",
                fetched.as_deref().and_then(|line| line.split_once(": ")).map_or("", |(_, said)| said)
            );
            let left_out = daemon["lost_connections"].as_u64().expect("a number");
            println!("joined: {}; {left_out} connections left out", line(director, "table"));
            return Some(left_out);
        }
        thread::sleep(Duration::from_millis(100));
    }
    println!("the table was not fetched: {}", line(director, "sync"));
    None
}

/// The first line of the status with this name.
pub(crate) fn line(director: &Director<'_>, name: &str) -> String {
    let status = director.status();
    status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}
