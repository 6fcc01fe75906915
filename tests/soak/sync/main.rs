//! The suite `scripts/soak sync`: a pair of directors that announce many new connections a second, and fail over.
//!
//! ```text
//! sync_soak SINK.O [SECONDS [RATE]]
//! ```
//!
//! Arguments: `sink.bpf.c`, compiled; seconds of load for each kind of messages (60); new TCP connections a second
//! (20,000). By multicast and by unicast, without and with a key, the first director has the addresses for half of the
//! time, and then its cable is pulled. Real keepalived moves the addresses to the second one, which announces for the
//! other half, while the first one, which is back and stays the backup, receives. Twenty lasting connections of a real
//! client by each forwarding method go on meanwhile. Prints the lag of announcements, the messages that each side
//! counts, memory, and how many connections of which age live on. Fails if a message or a connection of one was lost
//! while both directors were there, if the second director does not know a connection that was announced three seconds
//! before the failover, or if a director grows. Times are printed only, and so are connections of which a packet was
//! lost on the way: they depend on the machine. Needs root and `cargo build --workspace --bins` of the same profile.

#[path = "../restart/connections.rs"]
mod connections;
mod fates;
#[allow(dead_code, reason = "this suite fills no table")]
#[path = "../restart/fill.rs"]
mod fill;
mod lag;
mod load;
#[allow(dead_code, reason = "this suite fills no table")]
#[path = "../failover/pair.rs"]
mod pair;
#[allow(dead_code, reason = "this suite looks at memory alone")]
#[path = "../restart/size.rs"]
mod size;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use xvs::cluster::{REAL_SERVERS, VIP, virtual_endpoint};
use xvs::director::Protocol;
use xvs::keepalived::{self, DIRECTORS, Keepalived};
use xvs::{Cluster, Director, Host, Method, wait};
use xvs_model::protocol::{client as protocol, question};
use xvs_model::report::explain::Proto;
use xvs_model::report::status::SyncStatus;

use connections::{Client, METHODS, Servers};
use fates::{AGES, Fates, OLD, Outcome};
use lag::{Lags, Markers, packets};
use load::{CONNECTIONS_MAX, Half, LIFE, Load, PORT, Position, Schedule, Sent, client};
use pair::{ADDRESSES, Messages, await_table, plug_in, prepared, started};
use size::Size;

/// Lasting connections of a real client by each forwarding method.
const REAL: usize = 20;
/// How long an entry stays after its FIN.
const FIN_WAIT: Duration = Duration::from_secs(10);
/// Longer than a message waits at its director.
const QUIET: Duration = Duration::from_secs(4);
/// From the quiet to the failover: connections of every age have begun again.
const BEFORE: Duration = Duration::from_secs(6);
/// Longer than a message takes.
const UNDER_WAY: Duration = Duration::from_millis(50);
/// How long the first director is away, at least, and how long the second one alone may have the load.
const AWAY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);
/// Interval of looking at what has arrived.
const TICK: Duration = Duration::from_millis(100);
/// The allocator's slack with the queues of a daemon, and what a master daemon keeps of each entry of its table.
const SLACK_KB: u64 = 16 << 10;
const OF_ENTRY: u64 = 8;

const KINDS: [(&str, Messages); 4] = [
    ("multicast", Messages { are_signed: false, are_unicast: false }),
    ("multicast, signed", Messages { are_signed: true, are_unicast: false }),
    ("unicast", Messages { are_signed: false, are_unicast: true }),
    ("unicast, signed", Messages { are_signed: true, are_unicast: true }),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> = arguments.iter().skip(1).map(|word| word.parse().ok()).collect();
    let program = arguments.first().map(fs::read);
    let (Some(Ok(program)), Some(numbers)) = (program, numbers.filter(|numbers| numbers.len() <= 2)) else {
        eprintln!("usage: sync_soak SINK.O [SECONDS [RATE]], a compiled sink.bpf.c and two numbers");
        return ExitCode::from(2);
    };
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    let (seconds, rate) = (number(0, 60), number(1, 20_000));
    // A load that is late begins fewer.
    let connections = (seconds + BEFORE.as_secs() + AWAY.as_secs()) * rate;
    if seconds < 30 || !(1000..=CONNECTIONS_MAX).contains(&connections) {
        eprintln!("sync_soak: at least 30 seconds, and {CONNECTIONS_MAX} connections at most");
        return ExitCode::from(2);
    }
    let good = KINDS.map(|(name, messages)| {
        println!("\n{name}, {rate} new connections a second");
        Soak::run(&program, messages, Duration::from_secs(seconds), Schedule { rate }, connections)
    });
    if good == [true; KINDS.len()] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What both daemons of a direction have counted.
#[derive(Clone)]
struct Counts {
    master: SyncStatus,
    backup: SyncStatus,
}

struct Soak<'a> {
    cluster: &'a Cluster,
    directors: [(Director<'a>, Keepalived); 2],
    schedule: Schedule,
    fates: Fates,
    good: bool,
}

impl Soak<'_> {
    /// A pair with one kind of messages. Returns whether all was good.
    fn run(program: &[u8], messages: Messages, time: Duration, schedule: Schedule, connections: u64) -> bool {
        let entries = (connections / 32 + schedule.rate * (LIFE + FIN_WAIT).as_secs()) * 3 / 2;
        let entries = entries.next_power_of_two();
        let cluster = prepared(messages, &format!("conn_table_size = {entries}\n"));
        for host in DIRECTORS {
            // The first director stays the backup when it is back.
            let conf = keepalived::vrrp_instance(host, &ADDRESSES, "nopreempt");
            fs::write(keepalived::conf(&cluster, host), conf).expect("the cluster's folder takes a new file");
        }
        let fates = Fates::watch(&cluster, program, connections);
        let _sink = lag::sink(&cluster);
        let servers = REAL_SERVERS.map(|host| Servers::start(&cluster, host));
        let first = started(&cluster, Host::Director, messages);
        keepalived::await_addresses(&cluster, Host::Director, &ADDRESSES);
        let directors = [first, started(&cluster, Host::Backup, messages)];
        for (director, _) in &directors {
            director.adm(&format!("--set 0 {} 0", FIN_WAIT.as_secs()));
            director.add_service(Protocol::Tcp, PORT, Method::DirectRouting);
        }
        let good = !messages.are_signed || await_table(&directors[1].0).is_some();
        let client = Client::start(&cluster, REAL, None);
        wait::until("the real client's connections are open", || {
            (client.tally().open == [REAL; METHODS.len()]).then_some(())
        });
        let mut soak = Soak { cluster: &cluster, directors, schedule, fates, good };
        soak.play(time, entries);
        let tally = client.tally();
        tally.print(METHODS.map(|(_, name, _)| name), &servers);
        println!("the real client's longest answer took {:.1} s", client.take_longest_answer().as_secs_f64());
        soak.check(tally.lost.is_empty(), "a connection of the real client was lost");
        for (director, _) in soak.directors.iter().filter(|_| !soak.good) {
            let log = director.log();
            let said = log.lines().filter(|line| line.contains("WARN") || line.contains("fetched"));
            println!("log of a director:\n{}", said.collect::<Vec<_>>().join("\n"));
        }
        soak.good
    }

    fn play(&mut self, time: Duration, entries: u64) {
        let before = self.counts(0);
        let load = Load::start(self.cluster, self.schedule, Position::default(), Half::First);
        let markers = Markers::start(self.cluster, Host::Backup, &Lags::none());
        // The table has about as many entries from now on.
        let filling = LIFE + FIN_WAIT;
        thread::sleep(filling);
        let mut sizes = vec![self.sizes("full table")];
        thread::sleep((time / 2).saturating_sub(filling));
        let lags = markers.stop();
        let sent = self.quiet(load);
        println!("{:.0} new connections a second", sent.rate());
        self.direction(0, &before, &lags);
        let announced = self.fates.outcome(self.schedule, &sent, self.fates.last()).announced();
        let known = [0, 1].map(|at| self.established(at));
        println!("  {announced} announced connections are alive; established: {known:?}");
        self.check(known[1] >= announced, "the second director does not know all of them");

        let load = Load::start(self.cluster, self.schedule, sent.position, Half::First);
        thread::sleep(BEFORE);
        sizes.push(self.sizes("before the failover"));
        let (load, outcome) = self.fail_over(load);
        self.report(&outcome);
        plug_in(self.cluster, true);
        thread::sleep(QUIET);
        let sent = self.quiet(load);
        let before = self.counts(1);
        let load = Load::start(self.cluster, self.schedule, sent.position, Half::Second);
        let markers = Markers::start(self.cluster, Host::Director, &lags);
        thread::sleep(time / 2);
        let lags = markers.stop();
        sizes.push(self.sizes("end"));
        let sent = self.quiet(load);
        println!("{:.0} new connections a second", sent.rate());
        self.direction(1, &before, &lags);
        self.compare(&sizes, entries);
    }

    /// Stops the load, and waits until all messages have left.
    fn quiet(&self, load: Load) -> Sent {
        let sent = load.stop();
        thread::sleep(QUIET);
        sent
    }

    /// Pulls the first director's cable, and goes on when the client sends to the second one. Returns the load, and
    /// what became of the connections.
    fn fail_over(&mut self, load: Load) -> (Load, Outcome) {
        plug_in(self.cluster, false);
        let sent = load.stop();
        let start = Instant::now();
        let link = self.cluster.ip(Host::Backup, "-brief link show dev lan");
        let mac = link.split_whitespace().nth(2).expect("ip shows the address");
        wait::until("the client sends to the second director", || {
            let neighbour = self.cluster.ip(Host::Client, &format!("neighbour show {VIP} dev back"));
            neighbour.contains(mac).then_some(())
        });
        // As the clients would: again from the first packet on that was lost.
        let cut = self.fates.last();
        println!(
            "the cable is pulled; the second director has the addresses {:.1} s later; {} packets are repeated",
            start.elapsed().as_secs_f64(),
            sent.position.number - cut - 1,
        );
        let position = Position { number: cut + 1, ..sent.position };
        let load = Load::start(self.cluster, self.schedule, position, Half::Second);
        // The load may be slower than its schedule.
        let until = self.schedule.round_after(cut);
        while self.fates.last() < until && start.elapsed() < PATIENCE {
            thread::sleep(TICK);
        }
        self.check(self.fates.last() >= until, "not all connections had their FIN or their turn");
        thread::sleep(AWAY.saturating_sub(start.elapsed()));
        let outcome = self.fates.outcome(self.schedule, &sent, cut);
        (load, outcome)
    }

    /// Prints what became of the connections.
    fn report(&mut self, outcome: &Outcome) {
        println!("  {:>22} {:>9} {:>9}", "age at the failover", "alive", "lost");
        println!("  {:>22} {:>9} {:>9}", "not announced", outcome.younger.alive, outcome.younger.lost);
        for (least, group) in &outcome.ages {
            let below = AGES.into_iter().find(|other| other > least);
            let range = match below {
                Some(below) => format!("{least} to {below} ms"),
                None => format!("{least} ms or more"),
            };
            println!("  {range:>22} {:>9} {:>9}", group.alive, group.lost);
        }
        println!("  {} not judged, because a packet of theirs was lost before", outcome.incomplete);
        self.check(outcome.moved == 0, "a connection has moved to another real server");
        // It may know them: then their packets were lost on the way.
        let second =
            &mut protocol::Client::connect(&self.cluster.socket(Host::Backup)).expect("xvsd listens");
        let is_unknown =
            |connection: &&u64| packets(second, Proto::Tcp, client(**connection), PORT).is_none();
        let unknown = outcome.old_and_lost.iter().filter(is_unknown).count();
        println!("  of those lost after {OLD} ms or more the second director does not know {unknown}");
        self.check(
            unknown == 0,
            &format!("connections were lost that were announced {OLD} ms before the failover"),
        );
    }

    /// Prints what the daemons of a direction have counted since `before`: 0: from the first to the second director.
    fn direction(&mut self, from: usize, before: &Counts, lags: &Lags) {
        let now = self.counts(from);
        println!(
            "from director {} to {}: lag {:.0} ms (median), {:.0} ms (99th), {:.0} ms (longest) of {} markers, {} lost, \
             {} of which a datagram was lost before",
            from + 1,
            2 - from,
            lags.percentile(50),
            lags.percentile(99),
            lags.percentile(100),
            lags.count(),
            lags.lost,
            lags.incomplete,
        );
        let of_master = |count: fn(&SyncStatus) -> u64| count(&now.master) - count(&before.master);
        let of_backup = |count: fn(&SyncStatus) -> u64| count(&now.backup) - count(&before.backup);
        let [sent, received] = [of_master(|daemon| daemon.messages), of_backup(|daemon| daemon.messages)];
        let others = [
            ("not sent", of_master(|daemon| daemon.failed_messages)),
            ("lost on the wire", sent.saturating_sub(received)),
            ("discarded or refused", of_backup(|daemon| daemon.failed_messages)),
            ("connections in no message", of_master(|daemon| daemon.lost_connections)),
            ("connections not used", of_backup(|daemon| daemon.lost_connections)),
        ];
        let named: Vec<_> = others.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!(
            "  messages: {sent} sent, {received} received, {}; {} connections entered or refreshed",
            named.join(", "),
            of_backup(|daemon| daemon.connections)
        );
        for peer in now.backup.peers.iter().filter(|peer| peer.refused_messages > 0) {
            println!("  {} refused of {}: {:?}", peer.refused_messages, peer.address, peer.refused);
        }
        self.check(lags.lost == 0, "markers were lost");
        for (name, count) in others {
            self.check(count == 0, name);
        }
    }

    /// What the daemons of a direction have counted, at a moment at which no message is under way.
    fn counts(&self, from: usize) -> Counts {
        wait::until("no message is under way", || {
            let before = self.daemon(from, 0);
            thread::sleep(UNDER_WAY);
            let backup = self.daemon(1 - from, 1);
            let master = self.daemon(from, 0);
            (before.messages == master.messages).then_some(Counts { master, backup })
        })
    }

    /// What the daemon of this number has counted: 0: the master of a director; 1: its backup.
    fn daemon(&self, director: usize, number: usize) -> SyncStatus {
        let socket = self.cluster.socket(DIRECTORS[director]);
        let mut director = protocol::Client::connect(&socket).expect("xvsd listens");
        let status = question::status().ask(&mut director).expect("xvsd answers");
        status.sync.into_iter().nth(number).expect("it has both daemons")
    }

    /// The established connections of the load that a director knows.
    fn established(&self, at: usize) -> u64 {
        let count = format!("connections -t {} --state ESTABLISHED --count", virtual_endpoint(PORT));
        self.directors[at].0.xvs(&count).trim().parse().expect("a number")
    }

    /// The memory of both directors and the files of their state, in kB; prints them.
    fn sizes(&self, moment: &str) -> [[u64; 2]; 2] {
        let sizes = DIRECTORS.map(|host| {
            let state = self.cluster.state().join(host.name());
            [
                Size::of(self.cluster, host).memory_kb,
                kilobytes(&state.join("shm")) + kilobytes(&state.join("run")),
            ]
        });
        println!(
            "memory, {moment}: {} and {} kB, files {} and {} kB",
            sizes[0][0], sizes[1][0], sizes[0][1], sizes[1][1]
        );
        sizes
    }

    /// Whether no director has grown since the first moment, when one of them had received and the other had announced.
    fn compare(&mut self, sizes: &[[[u64; 2]; 2]], entries: u64) {
        let [first, .., last] = sizes else { return };
        let limit = first[0][0].max(first[1][0]) + SLACK_KB + OF_ENTRY * entries / 1024;
        self.check(last.iter().all(|[memory, _]| *memory <= limit), "a director's memory has grown");
    }

    fn check(&mut self, is_so: bool, otherwise: &str) {
        if !is_so {
            println!("  FAILED: {otherwise}");
        }
        self.good &= is_so;
    }
}

/// What the files below a folder occupy.
fn kilobytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => kilobytes(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |file| file.blocks() / 2),
        _ => 0,
    };
    entries.map(of).sum()
}
