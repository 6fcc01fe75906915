//! The suite `scripts/soak short`: millions of short TCP connections while xvsd and its rules change.
//!
//! ```text
//! short_soak [CONNECTIONS]
//! ```
//!
//! Argument: connections by all forwarding methods together (2,000,000), at most so many in a minute. Both ends of each
//! connection check what they read, and how it ends. Rounds of five stretches with faults follow each other. After each
//! stretch clients pause, and numbers of xvs are compared with theirs:
//!
//! - Nothing may fail, be reset, or wait for longer than 20 seconds. IPVS itself resets connections of a removed real
//!   server with `expire_nodest_conn = 1`: failures of connections that were open in such a window are counted apart.
//! - Each service has counted as many connections as clients have begun. A kill loses what was counted in the two
//!   seconds before it: there as many may be missing as were begun in the three seconds before. With
//!   `expire_nodest_conn = 1` a repeated SYN begins another connection: there may be more. By FULLNAT there may be 5 %
//!   more: the real server may have the local port in TIME_WAIT, of another client. It refuses the SYN once, and the
//!   next one begins another connection.
//! - Nothing is active; `-Lnc` has as many connections of each real server as are inactive, all of them over.
//! - Packets of services, passed and dropped ones are those that workers have received and the XDP program has
//!   forwarded, unless the process was replaced, or a real server removed, whose replies are then counted nowhere. No
//!   frame of a worker is unaccounted for.
//!
//! Prints a row for each stretch and each method. Fails if one of these does not hold, or if the program has forwarded
//! less than half of the packets. Needs root and `cargo build --workspace --bins` of the same profile.

mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use xvs::cluster::succeed;
use xvs::director::{process, program};
use xvs::exposition::{ADDRESS, Page};
use xvs::{Cluster, Director, Host, Layout, Method};

use load::{Load, SERVICES, Tally};

/// From fault to fault.
const PAUSE: Duration = Duration::from_secs(1);
/// How long before a kill xvs may have counted what is lost.
const UNSAVED: Duration = Duration::from_secs(3);
/// How long connections may take to end after a pause of the clients: longer than their own patience.
const PATIENCE: Duration = Duration::from_secs(45);
/// After so long workers have counted what the XDP program has forwarded.
const DELAY: Duration = Duration::from_secs(2);

type Counts = [u64; SERVICES.len()];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let count = match &words[..] {
        [] => Some(2_000_000),
        [count] => count.parse().ok(),
        _ => None,
    };
    let Some(count) = count else {
        eprintln!("usage: short_soak [CONNECTIONS], a number");
        return ExitCode::from(2);
    };
    if run(count) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(count: u64) -> bool {
    let cluster = Cluster::up(Layout { queues: 2, ..Layout::default() });
    // It has the VIP and suppresses ARP for it, so direct routing needs no more.
    Method::Tunnel.prepare(&cluster);
    // So veth takes what the XDP program forwards.
    for (host, interface) in [(Host::Client, "wan"), (Host::Switch, "dr")] {
        succeed(cluster.command(host, "ethtool").args(["-K", interface, "gro", "on"]));
    }
    let config = cluster.state().join("xvs.toml").to_string_lossy().into_owned();
    write(&config, "");
    let director = Director::start_on(&cluster, Host::Director, &["--config", &config]);
    director.adm("--set 0 15 0");
    for address in ["192.0.2.1", "192.0.2.101", "192.0.2.102", "192.0.2.103"] {
        cluster.ip(Host::Director, &format!("address replace {address}/24 dev lan"));
        director.xvs(&format!("laddr add {address} --ports 10000-65535"));
    }
    for service in &SERVICES {
        director.adm(&format!("-A -t {} -s wlc", service.endpoint()));
        for number in [1, 2] {
            director.adm(&format!("-a {}", destination(service, number)));
        }
    }
    let load = Load::start(&cluster, count);
    let mut soak = Soak {
        cluster: &cluster,
        config,
        directors: vec![director],
        tally: Arc::clone(&load.tally),
        begun: Instant::now(),
        lenient: Vec::new(),
        failures: 0,
        made: Counts::default(),
        counted: Counts::default(),
        balance: (process(&cluster, Host::Director), 0.0),
        is_balanced: true,
        by_program: 0.0,
        is_good: true,
    };
    println!(
        "{:>6} {:<12} {:>9} {:>7} {:>7} {:>7} {:>9}",
        "time", "stretch", "made", "failed", "allowed", "missing", "inactive"
    );
    while soak.tally.made().iter().sum::<u64>() < count {
        soak.stretch("rules", Soak::change_rules);
        soak.stretch("successors", Soak::replace);
        soak.stretch("kill", Soak::kill);
        soak.stretch("removal", Soak::remove);
        soak.stretch("expiry", Soak::remove_at_once);
    }
    drop(load);
    soak.finish()
}

/// What `xvsadm` calls a real server of a service, without its weight.
fn destination(service: &load::Service, number: u8) -> String {
    format!("-t {} -r {} {}", service.endpoint(), service.server(number), service.method.option())
}

/// Writes the xvs.toml, with these keys.
fn write(config: &str, keys: &str) {
    let text = format!(
        "interfaces = [\"wan\", \"lan\"]\nworkers = 2\nhold = \"10s\"\nmetrics_address = \"{ADDRESS}\"\n{keys}\n\
         [ipvs]\nconn_reuse_mode = 3\n"
    );
    fs::write(config, text).expect("the cluster's folder takes files");
}

struct Soak<'a> {
    cluster: &'a Cluster,
    config: String,
    /// The last one runs, or its successor. The others are kept, because one that is dropped ends the one that runs.
    directors: Vec<Director<'a>>,
    tally: Arc<Tally>,
    begun: Instant,
    /// Times in which IPVS would reset connections.
    lenient: Vec<(Instant, Instant)>,
    /// Failures that were looked at.
    failures: usize,
    /// Connections that clients have made, and that xvs has counted, at the end of the last stretch.
    made: Counts,
    counted: Counts,
    balance: (Pid, f64),
    /// Whether services count all packets of this stretch.
    is_balanced: bool,
    /// Packets that programs of former processes have forwarded.
    by_program: f64,
    is_good: bool,
}

impl<'a> Soak<'a> {
    /// Does something under load, lets all connections end, and compares. `act` returns how many connections of a
    /// service may be missing at the end.
    fn stretch(&mut self, name: &str, act: impl FnOnce(&mut Self) -> RangeInclusive<i64>) {
        let may_miss = act(self);
        let tally = Arc::clone(&self.tally);
        let _gate = Load::paused(&tally);
        let is_over = || tally.open.load(Relaxed) == 0 && self.sum(&self.page(), ACTIVE) == 0.0;
        if !self.holds_soon(is_over) {
            let (open, listing) = (tally.open.load(Relaxed), self.listing());
            self.is_wrong(&format!("{open} connections are open at servers; in the table: {:?}", listing.1));
        }
        self.compare_listing();
        let former = self.balance;
        let is_counted = |now: (Pid, f64)| now == former || now.0 != former.0;
        if self.is_balanced && !self.holds_soon(|| is_counted(self.balance())) {
            let more = self.balance().1 - former.1;
            self.is_wrong(&format!("{more} packets were forwarded and not counted by services"));
        }
        thread::sleep(DELAY);
        (self.balance, self.is_balanced) = (self.balance(), true);
        let page = self.page();
        if self.sum(&page, "xvs_worker_unaccounted_packets") != 0.0 {
            self.is_wrong("frames are unaccounted for");
        }
        let (made, counted) = (tally.made(), self.counted(&page));
        let mut missing = 0;
        for (at, service) in SERVICES.iter().enumerate() {
            let more = (made[at] - self.made[at]) as i64 - (counted[at] - self.counted[at]) as i64;
            missing += more;
            // Connections whose local port is in TIME_WAIT at the server begin a second time; more do after a restart,
            // which begins with another port.
            let twice =
                if service.method == Method::FullNat { (made[at] - self.made[at]) as i64 / 10 } else { 0 };
            if !may_miss.contains(&more) && !(-twice..=0).contains(&more) {
                self.is_wrong(&format!("{}: {more} connections were made and not counted", service.name));
            }
        }
        let sum = made.iter().sum::<u64>() - self.made.iter().sum::<u64>();
        (self.made, self.counted) = (made, counted);
        let (failed, allowed) = self.new_failures();
        println!(
            "{:>4} s {name:<12} {sum:>9} {failed:>7} {allowed:>7} {missing:>7} {:>9}",
            self.begun.elapsed().as_secs(),
            self.sum(&page, INACTIVE),
        );
    }

    fn change_rules(&mut self) -> RangeInclusive<i64> {
        self.each(|service| {
            let (number, weight) = (fastrand::u8(1..=2), fastrand::u8(0..4));
            vec![format!("xvsadm -e {} -w {weight}", destination(service, number))]
        });
        self.each(|service| [1, 2].map(|one| format!("xvsadm -e {} -w 1", destination(service, one))).into());
        self.command("xvs deny 203.0.113.0/24 for 1s");
        thread::sleep(2 * PAUSE);
        self.each(|service| vec![format!("xvs limit set -t {} --syn-rate 1000000", service.endpoint())]);
        self.each(|service| vec![format!("xvs limit delete -t {}", service.endpoint())]);
        0..=0
    }

    /// Removes a real server, and adds it again.
    fn remove(&mut self) -> RangeInclusive<i64> {
        let number = fastrand::u8(1..=2);
        let of = |service: &load::Service| format!("-t {} -r {}", service.endpoint(), service.server(number));
        self.each(|service| vec![format!("xvsadm -d {}", of(service))]);
        self.each(|service| vec![format!("xvsadm -a {}", destination(service, number))]);
        // Replies of connections to a removed real server are counted nowhere.
        self.is_balanced = false;
        0..=0
    }

    fn replace(&mut self) -> RangeInclusive<i64> {
        for keys in [None, Some("offload_after = 4"), Some("offload = \"off\""), Some("")] {
            thread::sleep(PAUSE);
            self.note_packets();
            if let Some(keys) = keys {
                write(&self.config, keys);
                self.command("xvs reload");
                continue;
            }
            match Director::take_over_on(self.cluster, Host::Director, &["--config", &self.config]) {
                Ok(director) => self.directors.push(director),
                Err(log) => self.is_wrong(&format!("a take-over has failed: {log}")),
            }
        }
        thread::sleep(PAUSE);
        0..=0
    }

    /// `kill -9`, a second of nothing, a start.
    fn kill(&mut self) -> RangeInclusive<i64> {
        let before = self.tally.made();
        thread::sleep(UNSAVED);
        self.note_packets();
        kill_process(process(self.cluster, Host::Director), Signal::KILL).expect("xvsd runs");
        let made = self.tally.made();
        thread::sleep(PAUSE);
        let arguments = ["--config", &self.config];
        self.directors.push(Director::start_on(self.cluster, Host::Director, &arguments));
        thread::sleep(PAUSE);
        0..=(0..SERVICES.len()).map(|at| (made[at] - before[at]) as i64).max().unwrap_or(0)
    }

    /// Removes a real server and its connections.
    fn remove_at_once(&mut self) -> RangeInclusive<i64> {
        thread::sleep(PAUSE);
        let begin = Instant::now();
        self.command("xvs set expire_nodest_conn 1");
        self.remove();
        self.command("xvs set expire_nodest_conn 0");
        self.lenient.push((begin, Instant::now()));
        thread::sleep(PAUSE);
        i64::MIN..=0
    }

    /// Runs the commands for each service, and waits a moment.
    fn each(&self, commands: impl Fn(&load::Service) -> Vec<String>) {
        SERVICES.iter().flat_map(commands).for_each(|command| self.command(&command));
        thread::sleep(PAUSE);
    }

    fn command(&self, command: &str) {
        let mut words = command.split_whitespace();
        let name = words.next().expect("a command has a name");
        succeed(self.cluster.command(Host::Director, program(name)).args(words));
    }

    /// Compares inactive connections with the listing: some end meanwhile.
    fn compare_listing(&mut self) {
        let before = self.page();
        let (listed, states) = self.listing();
        let after = self.page();
        if !states.iter().all(|state| ["TIME_WAIT", "FIN_WAIT", "CLOSE"].contains(&state.as_str())) {
            self.is_wrong(&format!("states of connections that are over: {states:?}"));
        }
        for service in &SERVICES {
            for number in [1, 2] {
                let (name, server) = (label(service), service.server(number).to_string());
                let labels = [("service", name.as_str()), ("destination", &server)];
                let inactive = [&before, &after].map(|page| page.sum(INACTIVE, &labels).unwrap_or(-1.0));
                let listed =
                    listed.get(&(service.endpoint().to_string(), server.clone())).copied().unwrap_or(0);
                if !(inactive[1]..=inactive[0]).contains(&f64::from(listed)) {
                    self.is_wrong(&format!("{name}, {server}: {listed} listed, {inactive:?} inactive"));
                }
            }
        }
    }

    /// The connections in the table by virtual endpoint and real server, and their states.
    fn listing(&self) -> (BTreeMap<(String, String), u32>, BTreeSet<String>) {
        let (mut counts, mut states) = (BTreeMap::new(), BTreeSet::new());
        let listing = self.directors[0].adm("-Lnc");
        for row in listing.lines().skip(2) {
            let [_, _, state, _, service, server, ..] = row.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("a row of another form: {row}");
            };
            states.insert(state.to_owned());
            *counts.entry((service.to_owned(), server.to_owned())).or_default() += 1;
        }
        (counts, states)
    }

    /// Failures since the last call: those that may not be, and the others.
    fn new_failures(&mut self) -> (usize, usize) {
        let tally = Arc::clone(&self.tally);
        let all = tally.failed.lock().expect("no thread panics");
        let is_allowed = |failure: &&load::Failure| {
            self.lenient.iter().any(|(begin, end)| failure.begun < *end && failure.ended > *begin)
        };
        let (allowed, failed): (Vec<_>, Vec<_>) = all[self.failures..].iter().partition(is_allowed);
        for failure in failed.iter().take(20) {
            let [begun, ended] =
                [failure.begun, failure.ended].map(|at| at.duration_since(self.begun).as_secs_f64());
            println!("{}: {}; from {begun:.3} to {ended:.3} s", SERVICES[failure.service].name, failure.why);
        }
        self.failures = all.len();
        self.is_good &= failed.is_empty();
        (failed.len(), allowed.len())
    }

    fn page(&self) -> Page {
        Page::of(self.cluster, Host::Director)
    }

    fn sum(&self, page: &Page, name: &str) -> f64 {
        page.sum(name, &[]).unwrap_or(0.0)
    }

    /// Connections that xvs has counted.
    fn counted(&self, page: &Page) -> Counts {
        let count = |service| page.sum("xvs_service_connections_total", &[("service", &label(service))]);
        SERVICES.each_ref().map(|service| count(service).expect("the service has the metric") as u64)
    }

    /// The process, and packets that came less those that were counted elsewhere: the same at all times without load.
    fn balance(&self) -> (Pid, f64) {
        let page = self.page();
        let sum = |names: &[&str]| -> f64 {
            names.iter().map(|name| self.sum(&page, &format!("xvs_{name}_packets_total"))).sum()
        };
        let came = sum(&["worker_received", "worker_offloaded", "worker_originated"]);
        let left = sum(&["worker_passed", "worker_dropped", "worker_consumed"]);
        let balance = came - left - sum(&["service_incoming", "service_outgoing"]);
        (process(self.cluster, Host::Director), balance)
    }

    /// Adds what the program of this process has forwarded, which ends now.
    fn note_packets(&mut self) {
        self.by_program += self.sum(&self.page(), OFFLOADED);
    }

    fn holds_soon(&self, condition: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if condition() {
                return true;
            }
            thread::sleep(Duration::from_millis(200));
        }
        false
    }

    fn is_wrong(&mut self, what: &str) {
        self.is_good = false;
        println!("{:.3} s: {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Waits until nothing but TIME_WAIT is left, and prints a row for each method.
    fn finish(mut self) -> bool {
        if !self.holds_soon(|| self.listing().1.iter().all(|state| state == "TIME_WAIT")) {
            self.is_wrong(&format!("states of connections that should have ended: {:?}", self.listing().1));
        }
        self.note_packets();
        let page = self.page();
        println!("\nmethod          made     served by 1, by 2    counted   longest");
        for (at, service) in SERVICES.iter().enumerate() {
            let served = self.tally.served[at].each_ref().map(|count| count.load(Relaxed));
            let longest = self.tally.longest_ms[at].load(Relaxed);
            println!(
                "{:<10} {:>9} {:>9} {:>9} {:>9} {longest:>6} ms",
                service.name, self.made[at], served[0], served[1], self.counted[at]
            );
        }
        let all = self.sum(&page, "xvs_service_incoming_packets_total")
            + self.sum(&page, "xvs_service_outgoing_packets_total");
        let share = self.by_program / all;
        println!(
            "{all} packets of services, of which the XDP program has forwarded {:.1} %; {} resets were lost",
            100.0 * share,
            self.tally.lost_resets.load(Relaxed)
        );
        self.is_good && share > 0.5
    }
}

const ACTIVE: &str = "xvs_destination_active_connections";
const INACTIVE: &str = "xvs_destination_inactive_connections";
const OFFLOADED: &str = "xvs_worker_offloaded_packets_total";

/// A service in metrics.
fn label(service: &load::Service) -> String {
    format!("TCP {}", service.endpoint())
}
