//! The suite `scripts/soak failover`: connections while the directors of a pair fail, in turn.
//!
//! ```text
//! failover_soak [CONNECTIONS [TABLE]]
//! ```
//!
//! The first director has connections in its table (1,000,000) when the second one joins. Lasting connections by each
//! forwarding method (1,000) go on while real keepalived moves the addresses between the two, which have
//! synchronization daemons and the same key: a cable is pulled, a director dies, one is stopped in order; each comes
//! back. Then daemons come and go, and a flood of messages is sent to them. Prints a row for each phase. Fails if 1 %
//! of the connections are lost or a table is not fetched as a whole. Times are printed only: they depend on the
//! machine. Needs root and `cargo build --workspace --bins` of the same profile.

#[path = "../restart/connections.rs"]
mod connections;
#[path = "../restart/fill.rs"]
mod fill;
mod pair;

use std::net::{Ipv4Addr, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use xvs::cluster::REAL_SERVERS;
use xvs::keepalived::{self, Keepalived};
use xvs::{Cluster, Director, Host};

use connections::{Client, METHODS, Servers};
use pair::{ADDRESSES, CLIENT, PATIENCE, USUAL, await_table, line, plug_in, prepared, started};

/// The group of the daemons.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 81);
/// How long a director is away.
const AWAY: Duration = Duration::from_secs(10);

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
    // Announced connections fill at most seven eighths.
    let size = (table + table / 6).max(1 << 21);
    let cluster = prepared(USUAL, &format!("conn_table_size = {size}\n"));
    let servers = REAL_SERVERS.map(|host| Servers::start(&cluster, host));
    let first = started(&cluster, Host::Director, USUAL);
    keepalived::await_addresses(&cluster, Host::Director, &ADDRESSES);
    if table > 0 {
        pair::fill(&cluster, table);
    }
    println!("first director: {}", line(&first.0, "table"));
    let second = started(&cluster, Host::Backup, USUAL);
    let is_joined = await_table(&second.0) == Some(0);

    let client = Client::start(&cluster, count, None);
    let mut soak = Soak { cluster: &cluster, first: Some(first), second, client, is_joined };
    soak.wait_until_open(count);
    println!("{:<28} {:>5} {:>7} {:>6} {:>8}", "phase", "lost", "refused", "new", "slowest");
    soak.phase("quiet", |_| thread::sleep(AWAY));
    soak.phase("its cable is pulled", |soak| {
        plug_in(soak.cluster, false);
        thread::sleep(AWAY);
    });
    soak.phase("and is there again", |soak| {
        plug_in(soak.cluster, true);
        keepalived::await_addresses(soak.cluster, Host::Director, &ADDRESSES);
    });
    soak.phase("it dies", |soak| {
        plug_in(soak.cluster, false);
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
    tally.print(METHODS.map(|(_, name, _)| name), &servers);
    println!("second director: {}", line(&soak.second.0, "table"));
    let opened = tally.open.iter().sum::<usize>();
    soak.is_joined && opened == count * METHODS.len() && tally.lost.len() * 100 < opened
}

/// Two directors with their keepalived, the first of which fails, and the client.
struct Soak<'a> {
    cluster: &'a Cluster,
    first: Option<(Director<'a>, Keepalived)>,
    second: (Director<'a>, Keepalived),
    client: Client,
    /// Whether each table was fetched, with every connection.
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

    /// The first director starts, fetches the table, and gets the addresses.
    fn come_back(&mut self) {
        plug_in(self.cluster, true);
        self.first = Some(started(self.cluster, Host::Director, USUAL));
        if let Some((director, _)) = &self.first {
            self.is_joined &= await_table(director) == Some(0);
        }
        keepalived::await_addresses(self.cluster, Host::Director, &ADDRESSES);
    }
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
