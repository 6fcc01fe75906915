//! The suite `scripts/soak fleet`: a fleet that is broken on purpose.
//!
//! ```text
//! fleet_soak [MINUTES [SEED]] [--connections NUMBER] [--plant RULE]
//! fleet_soak --check HISTORY
//! ```
//!
//! Five directors behind a router with BIRD, which follow three members of a real etcd, and four real servers, under
//! lasting connections to each of four services (100) and 50 new ones a second, for so many minutes (120). Faults
//! follow each other by the seed (the time of the start). What was seen is in `target/fleet/SEED.history`, and is
//! compared with the rules of `checker.rs` at the end. With `--plant`, a bug of the rig breaks one of them, `a` to `f`,
//! and the suite fails unless it is found. `--check` reads a former history. Needs root and
//! `cargo build --workspace --bins` of the same profile.

mod checker;
#[path = "../restart/connections.rs"]
mod connections;
mod faults;
mod history;
mod observe;
mod plant;
#[path = "../anycast/rules.rs"]
mod rules;
mod schedule;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use xvs::cluster::succeed;
use xvs::etcd::Etcd;
use xvs::fleet::{FLEET, Fleet};
use xvs::{Cluster, Host, Layout, Method};

use checker::{Finding, check};
use connections::{Client, METHODS, Servers};
use faults::{ETCD_SIZE, SERVERS, World};
use history::Event;
use observe::{Recorder, monitor};
use schedule::{STEPS, schedule};

const HISTORIES: &str = "target/fleet";
/// BFD notices after two seconds: programs of a loaded machine may wait longer than the example's 0.3 s.
const BFD_MULTIPLIER: u8 = 20;
/// A lost connection is replaced after this time.
const REPLACED: Duration = Duration::from_secs(1);
/// How long the start may take until all connections are open.
const PATIENCE: Duration = Duration::from_secs(60);
/// A message about a connection leaves within three seconds, and a look at the tables follows.
const TOLD: Duration = Duration::from_secs(8);
/// No TCP of a test waits longer for the next retransmission, and none gives up: a fault lasts up to eight seconds.
const SETTINGS: [&str; 3] =
    ["net.ipv4.tcp_rto_max_ms=1000", "net.ipv4.tcp_retries2=100", "net.ipv4.tcp_syn_retries=20"];

/// Violations that are printed.
const SHOWN: usize = 40;

struct Arguments {
    minutes: u64,
    seed: u64,
    connections: usize,
    plant: Option<char>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [option, file] = &words[..]
        && option == "--check"
    {
        return checked(file);
    }
    let Some(arguments) = arguments(&words) else {
        eprintln!(
            "usage: fleet_soak [MINUTES [SEED]] [--connections NUMBER] [--plant RULE], a rule from a to f; or --check HISTORY"
        );
        return ExitCode::from(2);
    };
    if run(&arguments) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments(words: &[String]) -> Option<Arguments> {
    let seed = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs());
    let mut arguments = Arguments { minutes: 120, seed, connections: 100, plant: None };
    let mut numbers = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--connections" => arguments.connections = words.next()?.parse().ok()?,
            "--plant" => {
                arguments.plant = Some(words.next()?.parse().ok().filter(|rule| ('a'..='f').contains(rule))?)
            }
            _ => numbers.push(word.parse().ok()?),
        }
    }
    match numbers[..] {
        [] => {}
        [minutes] => arguments.minutes = minutes,
        [minutes, seed] => (arguments.minutes, arguments.seed) = (minutes, seed),
        _ => return None,
    }
    Some(arguments)
}

/// Checks a history in a file.
fn checked(file: &str) -> ExitCode {
    match fs::read_to_string(file).map_err(|error| error.to_string()).and_then(|text| history::read(&text)) {
        Ok(history) => {
            let finding = check(&history);
            print(&finding);
            if finding.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("{file}: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> bool {
    let Arguments { seed, connections: count, plant, .. } = *arguments;
    println!("seed {seed}");
    let file = Path::new(HISTORIES).join(format!("{seed}.history"));
    fs::create_dir_all(HISTORIES).expect("target is there");
    let recorder = Recorder::new(&file);
    let cluster = Cluster::up(Layout { servers: SERVERS.len() as u8, ..Layout::default() });
    Method::Tunnel.prepare_on(&cluster, &SERVERS);
    for host in SERVERS.into_iter().chain([Host::Client]) {
        succeed(cluster.command(host, "sysctl").arg("-qw").args(SETTINGS));
    }
    let servers = SERVERS.map(|host| Servers::start(&cluster, host));
    let fleet = Fleet::start(&cluster, FLEET.len(), BFD_MULTIPLIER);
    let etcd = Etcd::start_three(&cluster, &["--auto-compaction-retention", "1h"], |data| {
        let mut mount = Command::new("mount");
        let size = format!("size={ETCD_SIZE}");
        succeed(mount.args(["-t", "tmpfs", "-o", &size, "fleet-etcd"]).arg(data));
    });
    let mut world = World::start(&cluster, &fleet, etcd, recorder.clone(), seed);
    let mut monitors = vec![monitor(&cluster, Host::Router, "route")];
    monitors.extend(FLEET.map(|host| monitor(&cluster, host, "link")));
    let outputs: Vec<_> =
        monitors.iter_mut().map(|monitor| monitor.stdout.take().expect("it is piped")).collect();
    let mut outputs = outputs.into_iter();
    let client = Client::start(&cluster, count, Some(REPLACED));
    thread::scope(|scope| {
        let (recorder, cluster, fleet, client) = (&*recorder, &cluster, &fleet, &client);
        let _ending = Ending { recorder, monitors: &mut monitors };
        let routes = outputs.next().expect("that of the router");
        scope.spawn(|| recorder.watch_router(cluster, fleet, routes));
        for (number, links) in (1..).zip(outputs) {
            scope.spawn(move || recorder.watch_link(number, links));
            scope.spawn(move || recorder.watch_director(cluster, number));
        }
        scope.spawn(|| recorder.watch_rig());
        scope.spawn(|| watch_client(recorder, client));
        fleet.await_next_hops(&(1..=FLEET.len()).collect::<Vec<_>>());
        await_open(client, count);
        go_through(&mut world, client, arguments);
    });
    let tally = client.tally();
    tally.print(METHODS.map(|(_, name, _)| name), &servers);
    let finding = check(&recorder.entries());
    print(&finding);
    println!("seed {seed}; the history is in {}", file.display());
    let is_open = tally.open.iter().all(|open| *open >= count);
    match plant {
        Some(rule) => finding.violations.iter().any(|violation| violation.rule == rule),
        None => world.is_good && is_open && finding.violations.is_empty() && finding.calms > 0,
    }
}

/// Ends the observers when it is dropped, also by a panic, after which the scope would wait for them.
struct Ending<'a> {
    recorder: &'a Recorder,
    monitors: &'a mut [Child],
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.recorder.end();
        for monitor in &mut *self.monitors {
            let _ = monitor.kill();
            let _ = monitor.wait();
        }
    }
}

/// Carries out all steps.
fn go_through(world: &mut World<'_>, client: &Client, arguments: &Arguments) {
    world.apply_at_once(&[1]);
    thread::sleep(TOLD);
    let start = Instant::now();
    for (number, step) in
        schedule(arguments.seed, Duration::from_secs(arguments.minutes * 60)).iter().enumerate()
    {
        if number == STEPS
            && let Some(rule) = arguments.plant
        {
            println!("{:>5} s  the bug of rule {rule} is planted", start.elapsed().as_secs());
            plant::plant(world, rule);
        }
        let names: Vec<String> = step.faults.iter().map(ToString::to_string).collect();
        println!("{:>5} s  {}", start.elapsed().as_secs(), names.join(", "));
        let before = client.tally().lost.len();
        client.take_longest_answer();
        world.carry_out(step);
        thread::sleep(step.pause);
        let (lost, slowest) = (client.tally().lost.len() - before, client.take_longest_answer());
        println!("         {lost} lasting connections lost, slowest answer {:.1} s", slowest.as_secs_f64());
    }
    // The last losses are judged.
    thread::sleep(TOLD);
}

fn await_open(client: &Client, count: usize) {
    let start = Instant::now();
    while client.tally().open != [count; METHODS.len()] && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    println!("{:?} connections are open", client.tally().open);
}

/// Records the lasting connections that are lost.
fn watch_client(recorder: &Recorder, client: &Client) {
    let mut seen = 0;
    while !recorder.is_ending() {
        thread::sleep(Duration::from_secs(1));
        for loss in &client.tally().lost[seen..] {
            seen += 1;
            recorder.record(Event::Lost(loss.port, recorder.seconds(loss.progress)));
            recorder.forget(loss.port);
        }
    }
}

fn print(finding: &Finding) {
    let Finding { violations, moved, orphaned, calms, withdrawals, balances } = finding;
    println!(
        "\n{calms} calms in which all served the newest rules; {moved} connections were lost when the hash moved them, \
         {orphaned} with all directors that knew them; {withdrawals} withdrawals; {balances} looks at counters"
    );
    for violation in violations.iter().take(SHOWN) {
        println!("({}) at {:.3} s: {}", violation.rule, violation.at, violation.text);
    }
    let mut counts = BTreeMap::new();
    violations.iter().for_each(|violation| *counts.entry(violation.rule).or_insert(0) += 1);
    println!("violations: {counts:?}");
}
