//! The suite `scripts/soak mixed`: attacks, changes, restarts and failovers at once, for hours.
//!
//! ```text
//! mixed_soak FORGE.O [SECONDS [CONNECTIONS]]
//! ```
//!
//! Arguments: `forge.bpf.c` of the suite `attack`, compiled; seconds (3,600); lasting connections by each forwarding
//! method, all of whose bytes are compared (250). Two directors with keepalived and synchronization have tables of
//! 262,144 entries, 10,000 services and `drop_entry = 3`. Floods of forged packets of all kinds follow each other, ten
//! commands a second change services, real servers, lists and limits of both directors, and meanwhile xvsd is taken
//! over, killed and started, and the addresses move. The `nft` of a successor takes longer than the hold. Prints a row
//! for each fault, and fails if 1 % of the connections are lost, one does not recover, a frame is unaccounted for, or a
//! director grows. Needs root and `cargo build --workspace --bins` of the same profile.

#[path = "../restart/connections.rs"]
mod connections;
#[path = "../restart/fill.rs"]
mod fill;
#[path = "../attack/forge.rs"]
mod forge;
#[path = "../failover/pair.rs"]
mod pair;
#[path = "../restart/size.rs"]
mod size;

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use xvs::cluster::{REAL_SERVERS, VIP, real_server, succeed};
use xvs::director::{process, program};
use xvs::exposition::Page;
use xvs::keepalived::{self, DIRECTORS, Keepalived};
use xvs::{Cluster, Director, Host, Method};

use connections::{Client, METHODS, Servers};
use forge::{Forge, Kind, SOURCES, mac};
use pair::{ADDRESSES, CLIENT, PATIENCE, USUAL, await_table, config, plug_in, prepared, started};
use size::Size;

/// Packets a second of a flood, how long one lasts, and how long none follows.
const RATE: u64 = 20_000;
const FLOOD: Duration = Duration::from_secs(5);
const LULL: Duration = Duration::from_secs(2);
/// From change to change.
const CHANGE: Duration = Duration::from_millis(100);
/// From fault to fault, and how long a director is away.
const PAUSE: Duration = Duration::from_secs(5);
const AWAY: Duration = Duration::from_secs(10);
/// Other connections in the table.
const FILLED: usize = 50_000;
const MORE: &str = "conn_table_size = 262144\nhold = \"10s\"\nmetrics_address = \"127.0.0.1:9112\"\n\
                    [ipvs]\ndrop_entry = 3\n";
/// The hold of a take-over: less than its preparation takes.
const SHORT: &str = "hold = \"1s\"";
/// Ports of services beside those of the connections.
const OTHERS: std::ops::Range<u16> = 30_000..40_000;

const KINDS: [Kind; 6] = [Kind::SYN, Kind::ACK, Kind::SYN_ACK, Kind::Udp, Kind::Fragment, Kind::IcmpError];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> = arguments.iter().skip(1).map(|word| word.parse().ok()).collect();
    let program = arguments.first().map(std::fs::read);
    let (Some(Ok(program)), Some(numbers)) = (program, numbers.filter(|numbers| numbers.len() <= 2)) else {
        eprintln!(
            "usage: mixed_soak FORGE.O [SECONDS [CONNECTIONS]], a compiled forge.bpf.c and two numbers"
        );
        return ExitCode::from(2);
    };
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    match run(&program, Duration::from_secs(number(0, 3600)), number(1, 250) as usize) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn run(program: &[u8], time: Duration, count: usize) -> bool {
    let cluster = prepared(USUAL, MORE);
    // Answers to forged packets go to the client, which drops them. Real servers drop those that reach them with their
    // source.
    for host in DIRECTORS {
        cluster.ip(host, &format!("route add {SOURCES}/8 via {CLIENT}"));
    }
    for server in REAL_SERVERS {
        succeed(cluster.command(server, "nft").arg(forge::dropped(fill::PORT)));
    }
    let servers = REAL_SERVERS.map(|host| Servers::start(&cluster, host));
    let first = started(&cluster, Host::Director, USUAL);
    add_others(&first.0);
    keepalived::await_addresses(&cluster, Host::Director, &ADDRESSES);
    pair::fill(&cluster, FILLED);
    let second = started(&cluster, Host::Backup, USUAL);
    add_others(&second.0);
    let is_joined = await_table(&second.0).is_some();

    let client = Client::start(&cluster, count, None);
    let halves = [first, second]
        .map(|(director, keepalived)| Half { directors: vec![director], keepalived: Some(keepalived) });
    let mut soak = Soak { cluster: &cluster, client, halves, good: is_joined };
    soak.recover();
    let all = [count; METHODS.len()];
    println!("{:?} are open", soak.client.tally().open);
    let (ending, packets) = (AtomicBool::new(false), AtomicU64::new(0));
    let (done, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| flood(&cluster, program, &ending, &packets));
        scope.spawn(|| change(&cluster, &ending, &done, &refused));
        soak.faults(time);
        // Relaxed: the flag publishes no other data.
        ending.store(true, Ordering::Relaxed);
    });
    thread::sleep(AWAY);
    soak.recover();
    soak.check_balance();
    let [packets, done, refused] = [packets, done, refused].map(AtomicU64::into_inner);
    println!(
        "\n{packets} forged packets; {done} changes, {refused} refused: by a director that was away, or of what was not there"
    );
    let tally = soak.client.tally();
    tally.print(METHODS.map(|(_, name, _)| name), &servers);
    soak.good && tally.open == all && tally.lost.len() * 100 < count * METHODS.len()
}

/// Adds services that have no connections.
fn add_others(director: &Director<'_>) {
    let service =
        |port| format!("-A -t {VIP}:{port} -s rr\n-a -t {VIP}:{port} -r {}:{port} -m\n", real_server(1));
    let restored = director.adm_reading("-R", &OTHERS.map(service).collect::<String>());
    assert!(restored.status.success(), "{restored:?}");
}

/// Floods of random kinds to the director that has the addresses.
fn flood(cluster: &Cluster, program: &[u8], ending: &AtomicBool, packets: &AtomicU64) {
    while !ending.load(Ordering::Relaxed) {
        let neighbour = cluster.ip(Host::Client, &format!("neighbour show {VIP} dev back"));
        if let Some(director) = mac(&neighbour) {
            let kind = KINDS[fastrand::usize(..KINDS.len())];
            let port = match kind {
                Kind::Udp | Kind::Fragment => fill::PORT,
                _ => METHODS[fastrand::usize(..METHODS.len())].2,
            };
            let sent = cluster.run(Host::Client, || {
                let to = ("back", director);
                Forge::new(program, kind, port, to, Some(RATE)).expect("the kernel takes it").send(FLOOD)
            });
            packets.fetch_add(sent, Ordering::Relaxed);
        }
        thread::sleep(LULL);
    }
}

/// Random commands to both directors.
fn change(cluster: &Cluster, ending: &AtomicBool, done: &AtomicU64, refused: &AtomicU64) {
    while !ending.load(Ordering::Relaxed) {
        let (method, _, port) = METHODS[fastrand::usize(..METHODS.len())];
        let service = format!("-t {VIP}:{port}");
        let other = format!("-t {VIP}:{}", 7000 + fastrand::u16(..50));
        let server = format!("{}:{port}", real_server(fastrand::u8(1..=2)));
        let (scheduler, weight) = (["rr", "wrr", "wlc", "sh"][fastrand::usize(..4)], fastrand::u8(1..4));
        let network = format!("10.{}.0.0/16", fastrand::u8(..));
        let proxy = match method {
            Method::Nat | Method::FullNat => ["--syn-proxy on", "--syn-proxy off"][fastrand::usize(..2)],
            _ => "",
        };
        let (name, arguments) = match fastrand::u8(..10) {
            0 => ("xvsadm", format!("-A {other} -s {scheduler}")),
            1 => ("xvsadm", format!("-a {other} -r {server} {}", method.option())),
            2 => ("xvsadm", format!("-D {other}")),
            3..6 => ("xvsadm", format!("-E {service} -s {scheduler} {proxy}")),
            6 => ("xvsadm", format!("-e {service} -r {server} -w {weight} {}", method.option())),
            7 => ("xvs", format!("deny {network} for 3s")),
            8 => ("xvs", format!("limit set {service} --syn-rate {}", 20_000 + fastrand::u32(..80_000))),
            _ => ("xvs", format!("limit delete {service}")),
        };
        for host in DIRECTORS {
            let output = cluster.command(host, program(name)).args(arguments.split_whitespace()).output();
            let is_done = output.expect("the programs can be started").status.success();
            if is_done { done } else { refused }.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(CHANGE);
    }
}

/// A director.
struct Half<'a> {
    /// The last one runs. The others are kept, because a successor that is dropped ends the one that runs.
    directors: Vec<Director<'a>>,
    keepalived: Option<Keepalived>,
}

struct Soak<'a> {
    cluster: &'a Cluster,
    client: Client,
    halves: [Half<'a>; 2],
    good: bool,
}

impl Soak<'_> {
    /// One fault after the other, for so long.
    fn faults(&mut self, time: Duration) {
        println!(
            "\n{:>6} {:<22} {:>5} {:>7} {:>6} {:>8} {:>17}",
            "time", "fault", "lost", "refused", "new", "slowest", "memory, kB"
        );
        let (start, mut first) = (Instant::now(), None);
        while start.elapsed() < time {
            self.fault(start, "take-over of the first", |soak| soak.take_over(0));
            self.fault(start, "take-over of the second", |soak| soak.take_over(1));
            self.fault(start, "the first is killed", |soak| soak.kill_and_start(0));
            self.fault(start, "the second is killed", |soak| soak.kill_and_start(1));
            self.fault(start, "a cable is pulled", Self::pull);
            let sizes = self.fault(start, "the first dies", Self::die);
            let first = first.get_or_insert(sizes);
            let last = DIRECTORS.map(|host| Size::of(self.cluster, host));
            for ((host, last), first) in DIRECTORS.iter().zip(&last).zip(first) {
                for what in last.grown(first) {
                    self.good = false;
                    println!("{}: {what} has grown: {:?} after {:?}", host.name(), last.rows(), first.rows());
                }
            }
        }
    }

    /// A fault and what it has cost, until every connection was answered after it.
    fn fault(&mut self, start: Instant, name: &str, act: impl FnOnce(&mut Self)) -> [Size; 2] {
        let before = self.client.tally();
        self.client.take_longest_answer();
        thread::sleep(PAUSE);
        act(self);
        self.recover();
        self.check_balance();
        let after = self.client.tally();
        let new = after.served.iter().sum::<usize>() - before.served.iter().sum::<usize>();
        let sizes = DIRECTORS.map(|host| Size::of(self.cluster, host));
        println!(
            "{:>4} s {name:<22} {:>5} {:>7} {new:>6} {:>6.1} s {:>8} {:>8}",
            start.elapsed().as_secs(),
            after.lost.len() - before.lost.len(),
            after.failed.len() - before.failed.len(),
            self.client.take_longest_answer().as_secs_f64(),
            sizes[0].memory_kb,
            sizes[1].memory_kb,
        );
        sizes
    }

    fn take_over(&mut self, at: usize) {
        let file = config(self.cluster, DIRECTORS[at]);
        let text = fs::read_to_string(&file).expect("the file is there");
        let reload = |text: &str| {
            fs::write(&file, text).expect("the file can be written");
            succeed(self.cluster.command(DIRECTORS[at], program("xvs")).arg("reload"));
        };
        reload(&text.replace("hold = \"10s\"", SHORT));
        let successor = Director::take_over_slowly(self.cluster, DIRECTORS[at], &["--config", &file]);
        reload(&text);
        match successor {
            Ok(director) => self.halves[at].directors.push(director),
            Err(log) => {
                self.good = false;
                println!("the take-over has failed: {log}");
            }
        }
    }

    /// `kill -9`, a second without xvsd, a start. keepalived leaves the addresses where they are.
    fn kill_and_start(&mut self, at: usize) {
        self.kill(at);
        thread::sleep(Duration::from_secs(1));
        let arguments = config(self.cluster, DIRECTORS[at]);
        let director = Director::start_on(self.cluster, DIRECTORS[at], &["--config", &arguments]);
        self.halves[at].directors.push(director);
    }

    fn kill(&self, at: usize) {
        kill_process(process(self.cluster, DIRECTORS[at]), Signal::KILL).expect("xvsd runs");
    }

    /// The second director has the addresses meanwhile.
    fn pull(&mut self) {
        plug_in(self.cluster, false);
        thread::sleep(AWAY);
        plug_in(self.cluster, true);
        keepalived::await_addresses(self.cluster, Host::Director, &ADDRESSES);
    }

    fn die(&mut self) {
        plug_in(self.cluster, false);
        self.kill(0);
        self.halves[0].keepalived = None;
        thread::sleep(AWAY);
        plug_in(self.cluster, true);
        let (director, keepalived) = started(self.cluster, Host::Director, USUAL);
        self.good &= await_table(&director).is_some();
        self.halves[0].directors.push(director);
        self.halves[0].keepalived = Some(keepalived);
        keepalived::await_addresses(self.cluster, Host::Director, &ADDRESSES);
    }

    /// Waits until every lasting connection has been answered once more.
    fn recover(&mut self) {
        let start = Instant::now();
        while self.client.tally().answered < start {
            if start.elapsed() > PATIENCE {
                self.good = false;
                println!("a connection is not answered after {PATIENCE:?}");
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Every frame of every worker has left it by one verdict.
    fn check_balance(&mut self) {
        for host in DIRECTORS {
            let unaccounted = Page::of(self.cluster, host).sum("xvs_worker_unaccounted_packets", &[]);
            if unaccounted != Some(0.0) {
                self.good = false;
                println!("{}: {unaccounted:?} frames are unaccounted for", host.name());
            }
        }
    }
}
