//! The observers of the suite `fleet`: what directors, the router and the clients do, as entries of the history.
//!
//! For each director a thread asks its socket each second for its rules and its fleet, and in turn for its connections
//! and counters; a director that does not answer delays its own thread alone. `ip monitor` reports routes and
//! interfaces at once. Not here: the faults, and what may follow from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use xvs::cluster::{VIP, complete};
use xvs::exposition::Page;
use xvs::fleet::{FLEET, Fleet};
use xvs::{Cluster, Host};
use xvs_ipvsadm::{SystemResolver, read_wanted, rule_lines};
use xvs_model::config::command::Command as Change;
use xvs_model::protocol::client::{Client, Director as _, Failure};
use xvs_model::protocol::question;

use crate::connections::METHODS;
use crate::history::{Director, Entry, Event};

const INTERVAL: Duration = Duration::from_secs(1);
/// Rounds from one look at the connections, or the counters, to the next.
const ROUNDS: usize = 3;
/// The rig is stalled if two pauses of this time take longer by a half of it.
const PAUSE: Duration = Duration::from_millis(100);

/// The history, which grows.
pub(crate) struct Recorder {
    start: Instant,
    file: Mutex<File>,
    entries: Mutex<Vec<Entry>>,
    ending: AtomicBool,
    /// The lasting connections that a director knows, by client's port, and the service's port.
    ports: Mutex<BTreeMap<u16, u16>>,
    /// The director of each, as recorded last.
    paths: Mutex<BTreeMap<u16, Director>>,
    /// A director whose counters are changed on their way to the suite.
    pub(crate) forged: Mutex<Option<Director>>,
}

impl Recorder {
    pub(crate) fn new(file: &Path) -> Arc<Self> {
        let file = File::create(file).expect("the folder of the history takes a file");
        Arc::new(Self {
            start: Instant::now(),
            file: Mutex::new(file),
            entries: Mutex::default(),
            ending: AtomicBool::new(false),
            ports: Mutex::default(),
            paths: Mutex::default(),
            forged: Mutex::new(None),
        })
    }

    pub(crate) fn record(&self, event: Event) {
        let mut entries = self.entries.lock().expect("no thread panics");
        let entry = Entry { at: self.seconds(Instant::now()), event };
        writeln!(self.file.lock().expect("no thread panics"), "{entry}").expect("the history can be written");
        entries.push(entry);
    }

    /// A time of this process, in seconds since the start.
    pub(crate) fn seconds(&self, time: Instant) -> f64 {
        time.saturating_duration_since(self.start).as_secs_f64()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.lock().expect("no thread panics").clone()
    }

    /// Ends the observers.
    pub(crate) fn end(&self) {
        // Relaxed: the flag publishes no other data.
        self.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Looks at the rig's own pauses, and how long a script waits that does nothing: the directors' own scripts start
    /// programs, too.
    pub(crate) fn watch_rig(&self) {
        while !self.is_ending() {
            let start = Instant::now();
            thread::sleep(PAUSE);
            let _ = Command::new("sh").args(["-c", &format!("sleep {}", PAUSE.as_secs_f64())]).status();
            let late = start.elapsed().saturating_sub(2 * PAUSE);
            if late > PAUSE / 2 {
                self.record(Event::Stalled(late.as_secs_f64()));
            }
        }
    }

    /// Asks a director, again and again.
    pub(crate) fn watch_director(&self, cluster: &Cluster, director: Director) {
        let host = FLEET[usize::from(director) - 1];
        let mut known = BTreeSet::new();
        for round in 0.. {
            if self.is_ending() {
                break;
            }
            // One that is away does not answer.
            let _ = self.ask(cluster, host, director);
            match round % ROUNDS {
                1 => drop(self.look_at_connections(cluster, host, director, &mut known)),
                2 => self.look_at_counters(cluster, host, director),
                _ => {}
            }
            thread::sleep(INTERVAL);
        }
    }

    fn ask(&self, cluster: &Cluster, host: Host, director: Director) -> Result<(), Failure> {
        let mut client = connect(cluster, host)?;
        let rules = question::rules().ask(&mut client)?.rules;
        self.record(Event::Serves(director, digest(rules.into_iter().map(Change::Add))));
        let Some(fleet) = question::status().ask(&mut client)?.fleet else { return Ok(()) };
        let own = fleet.directors.iter().find(|one| one.name.raw() == fleet.director);
        if let Some(runs) = own.and_then(|own| own.runs.as_ref()) {
            let is_report = |warning: &&String| warning.contains("refused") || warning.contains("restored");
            let refused = usize::from(own.is_some_and(|own| own.refused.is_some()));
            let warnings = refused + fleet.warnings.iter().filter(is_report).count();
            self.record(Event::Runs(director, runs.revision, warnings));
        }
        Ok(())
    }

    fn look_at_connections(
        &self,
        cluster: &Cluster,
        host: Host,
        director: Director,
        known: &mut BTreeSet<u16>,
    ) -> Result<(), Failure> {
        let mut now = BTreeMap::new();
        connect(cluster, host)?.connections(&mut |row| {
            if row.state == "ESTABLISHED"
                && METHODS.iter().any(|(_, _, port)| row.virtual_endpoint.port == *port)
            {
                now.insert(row.client.port, row.virtual_endpoint.port);
            }
            Ok(())
        })?;
        let ports: BTreeSet<u16> = now.keys().copied().collect();
        for (event, some) in [
            (Event::Knows as fn(_, _) -> _, ports.difference(known)),
            (Event::Forgets as fn(_, _) -> _, known.difference(&ports)),
        ] {
            let some: Vec<u16> = some.copied().collect();
            if !some.is_empty() {
                self.record(event(director, some));
            }
        }
        *known = ports;
        self.ports.lock().expect("no thread panics").extend(now);
        self.look_at_paths(cluster);
        Ok(())
    }

    /// Asks the router for the director of each connection.
    fn look_at_paths(&self, cluster: &Cluster) {
        let ports = self.ports.lock().expect("no thread panics").clone();
        let mut paths = self.paths.lock().expect("no thread panics");
        let line = |(port, service): (&u16, &u16)| {
            format!("route get {VIP} from 198.51.100.10 iif wan ipproto tcp sport {port} dport {service}\n")
        };
        let mut ip = cluster.command(Host::Router, "ip");
        ip.args(["-oneline", "-force", "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut ip = ip.stderr(Stdio::null()).spawn().expect("ip can be started");
        let mut stdin = ip.stdin.take().expect("it is piped");
        let lines: String = ports.iter().map(line).collect();
        let written = thread::spawn(move || stdin.write_all(lines.as_bytes()));
        let output = ip.wait_with_output().expect("ip ends");
        let _ = written.join();
        let text = String::from_utf8_lossy(&output.stdout);
        let hop = |line: &str| line.split_once("via 192.0.2.")?.1.split(' ').next()?.parse().ok();
        let hops: Vec<Option<Director>> = text.lines().map(hop).collect();
        // Without any route there is no line for a port.
        if hops.len() != ports.len() {
            return;
        }
        for (port, director) in ports.keys().zip(hops) {
            if let Some(director) = director
                && paths.insert(*port, director) != Some(director)
            {
                self.record(Event::Path(*port, director));
            }
        }
    }

    /// A connection is not looked at any more.
    pub(crate) fn forget(&self, port: u16) {
        self.ports.lock().expect("no thread panics").remove(&port);
        self.paths.lock().expect("no thread panics").remove(&port);
    }

    fn look_at_counters(&self, cluster: &Cluster, host: Host, director: Director) {
        let mut curl = cluster.command(host, "curl");
        curl.args(["--silent", "--fail", "--max-time", "2", "http://127.0.0.1:9112/metrics"]);
        let output = complete(&mut curl);
        if !output.status.success() {
            return;
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if *self.forged.lock().expect("no thread panics") == Some(director) {
            let line = "xvs_worker_unaccounted_packets{worker=\"0\"} ";
            text = text.replace(&format!("{line}0\n"), &format!("{line}1\n"));
        }
        let unaccounted = Page::read(&text).sum("xvs_worker_unaccounted_packets", &[]);
        self.record(Event::Unaccounted(director, unaccounted.expect("the page has it") as i64));
    }

    /// Records the routes of the router, until its monitor ends.
    pub(crate) fn watch_router(&self, cluster: &Cluster, fleet: &Fleet<'_>, routes: ChildStdout) {
        let mut before = None;
        for _ in lines(routes) {
            let now: Vec<Director> = fleet.next_hops().into_iter().map(|number| number as u8).collect();
            if before.as_ref() != Some(&now) {
                self.record(Event::Hops(now.clone()));
                self.look_at_paths(cluster);
            }
            before = Some(now);
        }
    }

    /// Records whether a director's interface `fleet` is up, until its monitor ends.
    pub(crate) fn watch_link(&self, director: Director, links: ChildStdout) {
        let mut before = None;
        for line in lines(links) {
            let flags = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
            let Some((flags, _)) = flags else { continue };
            let is_up = flags.split(',').any(|flag| flag == "UP");
            if before.replace(is_up) != Some(is_up) {
                self.record(if is_up { Event::Announces(director) } else { Event::Withdraws(director) });
            }
        }
    }
}

/// A program that prints changes of a host's routes or links as they come; begins with what is there.
pub(crate) fn monitor(cluster: &Cluster, host: Host, what: &str) -> Child {
    let mut command: Command = cluster.command(host, "sh");
    let show = if what == "route" { "echo" } else { "ip -o link show dev fleet" };
    let select = if what == "route" { "" } else { " dev fleet" };
    command.args(["-c", &format!("{show}; exec ip -o monitor {what}{select}")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("ip can be started")
}

fn lines(stdout: ChildStdout) -> impl Iterator<Item = String> {
    BufReader::new(stdout).lines().map_while(Result::ok)
}

/// The director of a host.
fn connect(cluster: &Cluster, host: Host) -> Result<Client, Failure> {
    Client::connect(&cluster.socket(host))
}

/// A digest of the services and real servers of a rules file.
///
/// # Panics
///
/// If it has a fault.
pub(crate) fn digest_of(rules: &str) -> String {
    digest(read_wanted(rules, &SystemResolver::default()).expect("the suite makes good rules").0)
}

/// A digest of the services and real servers among changes, in any order.
fn digest(changes: impl IntoIterator<Item = Change>) -> String {
    let is_service = |line: &String| ["-A", "-a", "#xvs -a"].iter().any(|start| line.starts_with(start));
    let lines = changes.into_iter().flat_map(|change| rule_lines(&change));
    let lines: BTreeSet<String> = lines.filter(is_service).collect();
    let mut hasher = DefaultHasher::new();
    lines.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
