//! The suite `scripts/soak restart`: connections and a stream while xvsd is killed, replaced and stopped.
//!
//! ```text
//! restart_soak [CONNECTIONS [REPEATS [TABLE [SERVICES]]]]
//! ```
//!
//! Arguments: lasting connections by each forwarding method (1,000); kills and take-overs in a row (20); connections in
//! the table for the last phases (1,000,000; 0 skips these phases); services of two real servers that are added for
//! them (10,000). Prints a row for each phase, and fails if a
//! connection is lost, refused or has wrong bytes, or if something grows. Times and the loss of the stream are printed
//! only: they depend on the machine. Needs root and `cargo build --workspace --bins` of the same profile.

mod connections;
mod fill;
mod size;
mod stream;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use xvs::cluster::{REAL_SERVERS, complete, real_server, virtual_endpoint};
use xvs::director::{Protocol, process, program};
use xvs::{Cluster, Director, Host, Layout, Method, Workers};

use connections::{Client, METHODS, Servers};
use size::Size;
use stream::Stream;

/// How long the stream is watched in a phase with one take-over.
const WATCHED: Duration = Duration::from_secs(60);
/// How long nothing runs after a kill.
const NOTHING: Duration = Duration::from_secs(1);
/// How long xvsd is stopped.
const STOPPED: Duration = Duration::from_secs(4);
/// How long connections may take to recover: longer than their own patience.
const RECOVERY: Duration = Duration::from_secs(45);

const ARGUMENTS: [&str; 4] = ["--hold", "10s", "--conn-table-size", "2097152"];

fn main() -> ExitCode {
    let numbers: Option<Vec<usize>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() <= 4) else {
        eprintln!("usage: restart_soak [CONNECTIONS [REPEATS [TABLE [SERVICES]]]], all of them numbers");
        return ExitCode::from(2);
    };
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    if run(number(0, 1000), number(1, 20), number(2, 1_000_000), number(3, 10_000)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(count: usize, repeats: usize, table: usize, services: usize) -> bool {
    let cluster = Cluster::up(Layout { queues: 2, ..Layout::default() });
    // It has the VIP and suppresses ARP for it, so direct routing needs no more.
    Method::Tunnel.prepare(&cluster);
    let servers = REAL_SERVERS.map(|host| Servers::start(&cluster, host));
    let director = Director::start_with(&cluster, Workers::Two, &ARGUMENTS);
    director.xvs("laddr add 192.0.2.1 --ports 10000-29999");
    for (method, _, port) in METHODS {
        director.add_service(Protocol::Tcp, port, method);
    }
    let stream_service = format!("-u {}", virtual_endpoint(stream::PORT));
    director.adm(&format!("-A {stream_service}"));
    director.adm(&format!("-a {stream_service} -r 192.0.2.11:{} -m", stream::PORT));

    let client = Client::start(&cluster, count, None);
    let stream = Stream::start(&cluster);
    let mut soak = Soak { cluster: &cluster, directors: vec![director], client, stream, good: true };
    println!(
        "{count} connections by each method, 50 new ones a second, {} datagrams a second",
        stream::PACKETS_PER_SECOND
    );
    println!(
        "{:<24} {:>5} {:>7} {:>6} {:>8} {:>8} {:>8} {:>8} {:>9}  xvsd",
        "phase", "lost", "refused", "new", "slowest", "gap", "sender", "stream", "lost"
    );
    soak.wait_until_open(count);
    soak.phase("quiet", |_| {
        thread::sleep(WATCHED / 6);
        String::new()
    });
    let first = Size::of(&cluster, Host::Director);
    soak.phase("kill, 1 s, start", Soak::kill_and_start);
    soak.phase("stopped for 4 s", Soak::stop_and_continue);
    soak.phase("take-over", Soak::watched_take_over);
    soak.phase(&format!("{repeats} kills"), |soak| soak.repeat(repeats, Soak::kill_and_start));
    soak.phase(&format!("{repeats} take-overs"), |soak| soak.repeat(repeats, Soak::take_over));
    let last = Size::of(&cluster, Host::Director);
    if table > 0 {
        soak.phase("table is filled", |soak| soak.fill(table, services));
        soak.phase("take-over, full", Soak::watched_take_over);
        soak.phase("5 take-overs, full", |soak| soak.repeat(5, Soak::take_over));
        soak.phase("kill, full", Soak::kill_and_start);
    }
    soak.phase("quiet", |_| {
        thread::sleep(WATCHED / 6);
        String::new()
    });

    println!("\nxvsd            before  after {repeats} kills and take-overs");
    for ((name, before), (_, after)) in first.rows().into_iter().zip(last.rows()) {
        println!("{name:<15} {before:>6}  {after:>6}");
    }
    let tally = soak.client.tally();
    tally.print(METHODS.map(|(_, name, _)| name), &servers);
    let grown = last.grown(&first);
    for what in &grown {
        println!("{what} has grown");
    }
    let all_open = tally.open == [count; METHODS.len()];
    soak.good && all_open && tally.lost.is_empty() && tally.failed.is_empty() && grown.is_empty()
}

struct Soak<'a> {
    cluster: &'a Cluster,
    /// The last one runs. The others are kept, because a successor that is dropped ends the one that runs.
    directors: Vec<Director<'a>>,
    client: Client,
    stream: Stream,
    good: bool,
}

impl<'a> Soak<'a> {
    /// Does something, waits until every connection was answered after it, and prints what it has cost.
    fn phase(&mut self, name: &str, act: impl FnOnce(&mut Self) -> String) {
        let before = self.client.tally();
        self.client.take_longest_answer();
        self.stream.begin();
        let said = act(self);
        self.recover();
        let (window, after) = (self.stream.end(), self.client.tally());
        let new = after.served.iter().sum::<usize>() - before.served.iter().sum::<usize>();
        println!(
            "{name:<24} {:>5} {:>7} {new:>6} {:>8} {:>8} {:>8} {:>8} {:>8.3}%  {said}",
            after.lost.len() - before.lost.len(),
            after.failed.len() - before.failed.len(),
            milliseconds(self.client.take_longest_answer()),
            milliseconds(window.longest_gap),
            milliseconds(window.longest_pause_of_sender),
            window.lost(),
            window.lost_percent(),
        );
    }

    fn wait_until_open(&self, count: usize) {
        let start = Instant::now();
        let is_open = || self.client.tally().open.iter().all(|&open| open == count);
        while !is_open() && start.elapsed() < RECOVERY {
            thread::sleep(Duration::from_millis(50));
        }
        println!("{:?} are open after {:.1} s", self.client.tally().open, start.elapsed().as_secs_f64());
    }

    /// `kill -9`, a second without xvsd, a start.
    fn kill_and_start(&mut self) -> String {
        kill_process(process(self.cluster, Host::Director), Signal::KILL).expect("xvsd runs");
        thread::sleep(NOTHING);
        let start = Instant::now();
        self.directors.push(Director::start_with(self.cluster, Workers::Two, &ARGUMENTS));
        format!("ready {} after its start{}", milliseconds(start.elapsed()), self.said("are taken over"))
    }

    fn take_over(&mut self) -> String {
        let start = Instant::now();
        match Director::take_over(self.cluster, Workers::Two, &ARGUMENTS) {
            Ok(director) => {
                self.directors.push(director);
                format!("took {}{}", milliseconds(start.elapsed()), self.said("nobody forwarded for"))
            }
            Err(log) => {
                self.good = false;
                format!("failed: {log}")
            }
        }
    }

    fn watched_take_over(&mut self) -> String {
        let start = Instant::now();
        thread::sleep(WATCHED / 6);
        let said = self.take_over();
        thread::sleep(WATCHED.saturating_sub(start.elapsed()));
        said
    }

    fn stop_and_continue(&mut self) -> String {
        let process = process(self.cluster, Host::Director);
        kill_process(process, Signal::STOP).expect("xvsd runs");
        let start = Instant::now();
        let output = complete(self.cluster.command(Host::Director, program("xvs")).args([
            "healthy",
            "--timeout",
            "1",
        ]));
        thread::sleep(STOPPED.saturating_sub(start.elapsed()));
        kill_process(process, Signal::CONT).expect("xvsd runs");
        self.good &= output.status.code() == Some(1);
        format!("xvs healthy: {}", String::from_utf8_lossy(&output.stderr).trim())
    }

    fn repeat(&mut self, times: usize, mut act: impl FnMut(&mut Self) -> String) -> String {
        let mut said = String::new();
        for _ in 0..times {
            said += &format!("\n    {}", act(self));
            self.recover();
        }
        said
    }

    /// Waits until every lasting connection has been answered once more.
    fn recover(&self) {
        let start = Instant::now();
        while self.client.tally().answered < start && start.elapsed() < RECOVERY {
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Gives the director `table` more connections, and more services.
    fn fill(&mut self, table: usize, services: usize) -> String {
        let director = self.directors.last().expect("one runs");
        let rules: String = (1..=services)
            .map(|port| {
                let service = format!("-t 203.0.113.1:{port}");
                let [first, second] = [1, 2].map(real_server);
                format!("-A {service} -s rr\n-a {service} -r {first}:80 -m\n-a {service} -r {second}:80 -m\n")
            })
            .collect();
        assert!(director.adm_reading("-R", &rules).status.success(), "the services are added");
        fill::add_fill_service(director);
        fill::fill(self.cluster, table);
        let status = director.status();
        status.lines().find(|line| line.starts_with("table")).unwrap_or_default().to_owned()
    }

    /// The line with these words in the log of the running xvsd.
    fn said(&self, words: &str) -> String {
        let log = self.directors.last().map(Director::log).unwrap_or_default();
        let line = log.lines().rfind(|line| line.contains(words)).unwrap_or_default();
        // Time, level and module are in front.
        line.split_once(": ").map_or(String::new(), |(_, said)| format!("; {said}"))
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}
