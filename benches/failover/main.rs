//! The suite `scripts/soak failover`: connections while the directors of a pair fail, in turn.
//!
//! ```text
//! failover_soak [CONNECTIONS [TABLE]]
//! ```
//!
//! Lasting connections by each forwarding method (1,000) go on while real keepalived moves the addresses between two
//! directors with synchronization daemons and the same key: a cable is pulled, a director dies, one is stopped in
//! order; each comes back. Then daemons come and go, and a flood of messages is sent to them. Before that, the first
//! director has connections in its table (1,000,000) when the second one joins. Prints a row for each phase, and fails
//! if 1 % of the connections are lost or the table is not fetched. Times are printed only: they depend on the machine.
//! Needs root and `cargo build --workspace --bins` of the same profile.

#[path = "../restart/connections.rs"]
mod connections;
#[path = "../restart/fill.rs"]
mod fill;

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use xvs::cluster::{REAL_SERVERS, VIP, real_server, virtual_endpoint};
use xvs::keepalived::{self, DIRECTORS, Keepalived};
use xvs::{Cluster, Director, Host, Layout, Method};

use connections::{Client, METHODS, Servers};

/// What moves beside the VIP: FULLNAT's local address, and the gateway of real servers towards the client.
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 60);
const ADDRESSES: [Ipv4Addr; 3] = [VIP, LOCAL, GATEWAY];
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// The group of the daemons.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 81);
/// How long a director is away.
const AWAY: Duration = Duration::from_secs(10);
/// How long a table may take, and how long connections may take to recover: longer than their own patience.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let numbers: Option<Vec<usize>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() <= 2) else {
        eprintln!("usage: failover_soak [CONNECTIONS [TABLE]], both numbers");
        return ExitCode::from(2);
    };
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    if run(number(0, 1000), number(1, 1_000_000)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(count: usize, table: usize) -> bool {
    let cluster = prepared();
    let servers = REAL_SERVERS.map(|host| Servers::start(&cluster, host));
    let first = started(&cluster, Host::Director);
    keepalived::await_addresses(&cluster, Host::Director, &ADDRESSES);
    if table > 0 {
        // The director answers ARP for an address of its own segment alone.
        let greet = || UdpSocket::bind((CLIENT, 0))?.send_to(&[0], virtual_endpoint(9));
        cluster.run(Host::Client, greet).expect("the address is there");
        thread::sleep(Duration::from_millis(200));
        fill::fill(&cluster, table);
    }
    println!("first director: {}", line(&first.0, "table"));
    let second = started(&cluster, Host::Backup);
    let is_joined = await_table(&second.0);

    let client = Client::start(&cluster, count);
    let mut soak = Soak { cluster: &cluster, first: Some(first), second, client, is_joined };
    soak.wait_until_open(count);
    println!("{:<28} {:>5} {:>7} {:>6} {:>8}", "phase", "lost", "refused", "new", "slowest");
    soak.phase("quiet", |_| thread::sleep(AWAY));
    soak.phase("its cable is pulled", |soak| {
        soak.cable(false);
        thread::sleep(AWAY);
    });
    soak.phase("and is there again", |soak| {
        soak.cable(true);
        keepalived::await_addresses(soak.cluster, Host::Director, &ADDRESSES);
    });
    soak.phase("it dies", |soak| {
        soak.cable(false);
        soak.first.take().expect("it runs").0.kill();
        thread::sleep(AWAY);
    });
    soak.phase("and is there again", Soak::come_back);
    soak.phase("it is stopped in order", |soak| {
        let (mut director, keepalived) = soak.first.take().expect("it runs");
        drop(keepalived);
        keepalived::await_addresses(soak.cluster, Host::Backup, &ADDRESSES);
        director.stop();
        thread::sleep(AWAY);
    });
    soak.phase("and is there again", Soak::come_back);
    soak.phase("its daemons come and go", |soak| {
        let (first, _) = soak.first.as_ref().expect("it runs");
        for _ in 0..AWAY.as_secs() {
            first.adm("--stop-daemon master");
            thread::sleep(Duration::from_millis(500));
            first.adm("--start-daemon master --mcast-interface lan --syncid 7");
            thread::sleep(Duration::from_millis(500));
        }
    });
    soak.phase("a flood of messages", |soak| println!("{} messages sent", flood(soak.cluster)));
    for line in soak.second.0.status().lines().filter(|line| line.contains("backup on")) {
        println!("second director: {line}");
    }
    soak.phase("quiet", |_| thread::sleep(AWAY));

    let tally = soak.client.tally();
    tally.print(&servers);
    println!("second director: {}", line(&soak.second.0, "table"));
    let opened = tally.open.iter().sum::<usize>();
    soak.is_joined && opened == count * METHODS.len() && tally.lost.len() * 100 < opened
}

/// A cluster in which the client reaches the VIP by the segment of the directors.
fn prepared() -> Cluster {
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
        let config = format!(
            "interfaces = [\"lan\"]\nworkers = 1\nconn_table_size = 2097152\nsync_key_file = {:?}\n",
            file(".key")
        );
        fs::write(file("-xvs.toml"), config).expect("the cluster's folder takes a new file");
        let conf = keepalived::vrrp_instance(host, &ADDRESSES, "");
        fs::write(keepalived::conf(&cluster, host), conf).expect("the cluster's folder takes a new file");
    }
    cluster
}

/// Starts xvsd and keepalived.
fn started(cluster: &Cluster, host: Host) -> (Director<'_>, Keepalived) {
    let config = cluster.state().join(format!("{}-xvs.toml", host.name()));
    let director = Director::start_on(cluster, host, &["--config", &config.to_string_lossy()]);
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
        for role in ["master", "backup"] {
            director.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 7"));
        }
    }
    (director, Keepalived::start(cluster, host))
}

/// Two directors with their keepalived, the first of which fails, and the client.
struct Soak<'a> {
    cluster: &'a Cluster,
    first: Option<(Director<'a>, Keepalived)>,
    second: (Director<'a>, Keepalived),
    client: Client,
    /// Whether each table was fetched.
    is_joined: bool,
}

impl Soak<'_> {
    /// Does something, waits until every connection was answered after it, and prints what it has cost.
    fn phase(&mut self, name: &str, act: impl FnOnce(&mut Self)) {
        let before = self.client.tally();
        self.client.take_longest_answer();
        act(self);
        let start = Instant::now();
        while self.client.tally().answered < start && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
        let after = self.client.tally();
        let new = after.served.iter().sum::<usize>() - before.served.iter().sum::<usize>();
        println!(
            "{name:<28} {:>5} {:>7} {new:>6} {:>6.1} s",
            after.lost.len() - before.lost.len(),
            after.failed.len() - before.failed.len(),
            self.client.take_longest_answer().as_secs_f64(),
        );
    }

    fn wait_until_open(&self, count: usize) {
        let start = Instant::now();
        while self.client.tally().open != [count; METHODS.len()] && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
        println!("{:?} are open after {:.1} s", self.client.tally().open, start.elapsed().as_secs_f64());
    }

    /// Pulls the first director's cable, or plugs it in.
    fn cable(&self, is_there: bool) {
        self.cluster.ip(Host::Switch, &format!("link set dr {}", if is_there { "up" } else { "down" }));
    }

    /// The first director starts, fetches the table, and gets the addresses.
    fn come_back(&mut self) {
        self.cable(true);
        self.first = Some(started(self.cluster, Host::Director));
        if let Some((director, _)) = &self.first {
            self.is_joined &= await_table(director);
        }
        keepalived::await_addresses(self.cluster, Host::Director, &ADDRESSES);
    }
}

/// Waits until a director has the table of the other one, and prints how long that took.
fn await_table(director: &Director<'_>) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let status: Value = serde_json::from_str(&director.xvs("status --json")).expect("JSON");
        let peer = &status["sync"][1]["peers"][0];
        if peer["table"] == "whole" {
            let fetched =
                director.log().lines().rfind(|line| line.contains("connections fetched")).map(str::to_owned);
            println!(
                "joined: {}",
                fetched.as_deref().and_then(|line| line.split_once(": ")).map_or("", |(_, said)| said)
            );
            println!("joined: {}", line(director, "table"));
            return true;
        }
        thread::sleep(Duration::from_millis(100));
    }
    println!("the table was not fetched: {}", line(director, "sync"));
    false
}

/// Sends messages to the daemons as fast as one thread can: of another sync id, of a wrong length, and with entries of
/// an unknown protocol. Returns how many.
fn flood(cluster: &Cluster) -> u64 {
    cluster.run(Host::Client, || {
        let socket = UdpSocket::bind((CLIENT, 0)).expect("the address is there");
        rustix::net::sockopt::set_ip_multicast_if(&socket, &CLIENT).expect("an option");
        let mut messages = [[0; 8 + 30 * 36]; 3];
        for (message, sync_id) in messages.iter_mut().zip([8, 7, 7]) {
            let len = (message.len() as u16).to_be_bytes();
            message[..8].copy_from_slice(&[0, sync_id, len[0], len[1], 30, 1, 0, 0]);
            // The protocol of each entry stays 0.
            message[8..].chunks_mut(36).for_each(|entry| entry[3] = 36);
        }
        messages[1][3] ^= 1;
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < AWAY {
            sent += messages.iter().filter(|message| socket.send_to(*message, (GROUP, 8848)).is_ok()).count()
                as u64;
        }
        sent
    })
}

/// The first line of the status with this name.
fn line(director: &Director<'_>, name: &str) -> String {
    let status = director.status();
    status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}
