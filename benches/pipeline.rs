//! Cost of a packet without a network: the pipeline at 1,000 to 10,000,000 connections, with every method and family,
//! and its parts alone.
//!
//! `cargo bench --bench pipeline [-- NAME [CONNECTIONS]]`, where NAME selects the rows that contain it, and with
//! CONNECTIONS, a number, the row of this name and the base alone; `benches/README.md` explains the output. Every row
//! of every table runs in each round, so a disturbance of the machine affects all alike; the figures are medians of
//! this thread's CPU time. Not here: the kernel's share, which `scripts/bench` measures on veth.

// Shared by the benches and the allocation test; neither uses all of it.
#[allow(dead_code)]
mod rig;

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use xvs_dataplane::capture::Capture;
use xvs_dataplane::capture::filter::Filter;
use xvs_dataplane::conn::Timers;
use xvs_dataplane::port::Port;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_master::{Announcements, SyncMaster, SyncRules};
use xvs_dataplane::worker::Worker;
use xvs_proto::sync::Version;
use xvs_proto::{Family, MacAddr, Protocol, ethernet, parse};
use xvs_sched::ForwardingMethod::{DirectRouting, Nat, Tunnel};
use xvs_xdp::BURST;

use rig::floor::Floor;
use rig::{Loop, Order, Side, Variant};

const SIZES: [u32; 4] = [1_000, 100_000, 1_000_000, 10_000_000];
/// More connections have only the rows of [`few`].
const MANY: u32 = 1_000_000;
/// Slots of a capture's queue, as in the daemon.
const SLOTS: usize = 1024;
const ROUNDS: usize = 11;
/// Rounds with more connections than [`MANY`] that begin and end in each.
const FEW_ROUNDS: usize = 3;
/// Packets of one row in one round.
const PACKETS: u64 = 1 << 19;
/// Longer than any timeout in this bench.
const AGES: Duration = Duration::from_secs(3600);

/// The measured part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The port and new Ethernet addresses, the same work as that of `forward_raw`.
    Bare,
    /// [`Bare`](Self::Bare), with the connection found in a table as lean as can be.
    Floor,
    /// A frame is taken from the pool and put back.
    Pool,
    /// [`Bare`](Self::Bare), with every frame parsed.
    Parse,
    /// Hash, find, count and refresh, without frames.
    Table,
    /// Packets of existing connections.
    Hits(Side),
    /// [`Hits`](Self::Hits) of requests by two workers at once, each of its half of the flows; the slower one's time.
    Beside,
    /// [`Hits`](Self::Hits) of requests while packets are captured.
    Captured(Watcher),
    /// [`Hits`](Self::Hits) of requests while a master daemon announces connections, by the default rules.
    Announced,
    /// First packets, each of which creates a connection.
    First,
    /// [`First`](Self::First) by two workers at once, each of its half of the flows; the slower one's time.
    FirstBeside,
    /// The expiry of these connections.
    Expiry,
    /// The longest time without a look at the port while all connections expire.
    ExpiryPause,
}

/// The listener of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watcher {
    /// A filter that matches no packet.
    OfOthers,
    /// A filter that matches all packets; the listener does not read.
    Asleep,
    /// A filter that matches all packets; the listener reads on another core.
    Reading,
}

/// A worker with its connections.
struct Bench {
    variant: Variant,
    memory: Memory,
    connections: u32,
    worker: Worker<Loop>,
    /// The second worker, if there are two.
    second: Option<Worker<Loop>>,
    floor: Option<Floor>,
    announcements: Option<Arc<Announcements>>,
}

/// A line of the report.
struct Row {
    name: String,
    bench: usize,
    part: Part,
    samples: Vec<f64>,
}

fn main() {
    // Cargo adds options of its own.
    let mut words = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let wanted = words.next().unwrap_or_default();
    if let Some(connections) = words.next() {
        return alone(&wanted, connections.parse().expect("CONNECTIONS is a number"));
    }
    let mut benches = Vec::new();
    let mut tables: Vec<(u32, Vec<Row>)> = Vec::new();
    for connections in SIZES {
        let before = resident_bytes();
        let base = bench(&mut benches, DirectRouting.into(), Memory::OnDemand, connections, 1);
        let bytes = resident_bytes().saturating_sub(before) / connections as usize;
        if connections == SIZES[SIZES.len() - 1] {
            println!("a DR connection of {connections}: {bytes} bytes of memory, table, index and timer");
        }
        println!("{connections} connections: {}", benches[base].pages());
        let rows = parts().into_iter().filter(|(name, variant, _, part)| {
            // With fewer, two workers would seldom work at the same time.
            let is_short = *part == Part::FirstBeside && connections < 100_000;
            let fits = (connections <= MANY || few(*variant, *part)) && !is_short;
            fits && (*part == Part::Bare || name.contains(&wanted))
        });
        let rows = rows.map(|(name, variant, memory, part)| {
            let workers = if matches!(part, Part::Beside | Part::FirstBeside) { 2 } else { 1 };
            let bench = bench(&mut benches, variant, memory, connections, workers);
            Row { name, bench, part, samples: Vec::new() }
        });
        tables.push((connections, rows.collect()));
    }
    for _ in 0..ROUNDS {
        for row in tables.iter_mut().flat_map(|(_, rows)| rows) {
            row.samples.push(benches[row.bench].nanoseconds(row.part));
        }
    }
    for (connections, rows) in &mut tables {
        report(*connections, rows);
        append(*connections, rows);
    }
}

/// Measures the base and one row, whose connections may take most of the machine's memory.
fn alone(wanted: &str, connections: u32) {
    let is_it = |(name, ..): &(String, Variant, Memory, Part)| name == wanted;
    let row = parts().into_iter().find(is_it);
    let (name, variant, memory, part) = row.unwrap_or_else(|| panic!("no row has the name {wanted}"));
    let workers = if matches!(part, Part::Beside | Part::FirstBeside) { 2 } else { 1 };
    let mut bench = Bench::new(variant, memory, connections, workers);
    println!("{connections} connections: {}; {} MiB in all", bench.pages(), resident_bytes() >> 20);
    let is_slow = matches!(part, Part::First | Part::FirstBeside | Part::Expiry | Part::ExpiryPause);
    let rounds = if is_slow && connections > MANY { FEW_ROUNDS } else { ROUNDS };
    let base = parts().swap_remove(0);
    let mut rows = [(base.0, base.3), (name, part)].map(|(name, part)| Row {
        name,
        bench: 0,
        part,
        samples: Vec::new(),
    });
    for _ in 0..rounds {
        rows.iter_mut().for_each(|row| row.samples.push(bench.nanoseconds(row.part)));
    }
    report(connections, &mut rows);
}

/// Whether the row is for any number of connections.
fn few(variant: Variant, part: Part) -> bool {
    let is_plain = variant.family == Family::V4 && matches!(variant.method, DirectRouting | Nat);
    is_plain && matches!(part, Part::Bare | Part::Floor | Part::Hits(Side::Requests))
}

/// The rows: name, variant, memory and part.
fn parts() -> Vec<(String, Variant, Memory, Part)> {
    let (direct, requests) = (Variant::from(DirectRouting), Part::Hits(Side::Requests));
    let mut parts = Vec::new();
    for (name, part) in [
        ("port and MAC addresses (base)", Part::Bare),
        ("base and a lean table", Part::Floor),
        ("base and parse", Part::Parse),
        ("frame pool alone", Part::Pool),
    ] {
        parts.push((name.to_owned(), direct, Memory::OnDemand, part));
    }
    for (memory, suffix) in [(Memory::OnDemand, ""), (Memory::SmallPages, ", small pages")] {
        parts.push((format!("table alone{suffix}"), direct, memory, Part::Table));
        parts.push((format!("DR{suffix}"), direct, memory, requests));
    }
    parts.push(("DR, announced".to_owned(), direct, Memory::OnDemand, Part::Announced));
    let tcp = |variant| Variant { protocol: Protocol::TCP, ..variant };
    for variant in [tcp(direct), tcp(Nat.into()), Variant { services: 10_000, ..direct }] {
        parts.push((variant.to_string(), variant, Memory::OnDemand, requests));
    }
    parts.push(("DR, two workers at once".to_owned(), direct, Memory::OnDemand, Part::Beside));
    for variant in Variant::all() {
        let mut add =
            |suffix, part| parts.push((format!("{variant}{suffix}"), variant, Memory::OnDemand, part));
        if variant != direct {
            add("", requests);
        }
        if variant.method == Nat {
            add(", replies", Part::Hits(Side::Replies));
        }
        add(", fragments", Part::Hits(Side::Fragments));
        // First packets with tunnels cost the same as with DR.
        if variant.method != Tunnel {
            add(", first packet", Part::First);
        }
    }
    for servers in [1, rig::SERVERS] {
        let variant = Variant { servers, protocol: Protocol::TCP, ..direct };
        for (suffix, part) in [("", Part::First), (", two workers at once", Part::FirstBeside)] {
            parts.push((format!("{variant}, first packet{suffix}"), variant, Memory::OnDemand, part));
        }
    }
    for (name, watcher) in [
        ("DR, others captured", Watcher::OfOthers),
        ("DR, captured, queue full", Watcher::Asleep),
        ("DR, captured and read", Watcher::Reading),
    ] {
        parts.push((name.to_owned(), direct, Memory::OnDemand, Part::Captured(watcher)));
    }
    for (name, part) in [("DR, expiry", Part::Expiry), ("DR, expiry, longest pause", Part::ExpiryPause)] {
        parts.push((name.to_owned(), direct, Memory::OnDemand, part));
    }
    parts
}

/// The index of a bench, which is made if it does not exist.
fn bench(
    benches: &mut Vec<Bench>,
    variant: Variant,
    memory: Memory,
    connections: u32,
    workers: usize,
) -> usize {
    let is_it = |bench: &Bench| {
        let Bench { second, .. } = bench;
        (bench.variant, bench.memory, bench.connections) == (variant, memory, connections)
            && second.is_some() == (workers == 2)
    };
    benches.iter().position(is_it).unwrap_or_else(|| {
        benches.push(Bench::new(variant, memory, connections, workers));
        benches.len() - 1
    })
}

impl Bench {
    /// Makes all the connections, in their order.
    fn new(variant: Variant, memory: Memory, connections: u32, workers: usize) -> Self {
        // With room to spare: in a table that is full to the last entry, two keys of a connection may find no slot.
        let mut workers = rig::workers(variant, (connections + connections / 8) as usize, memory, workers);
        let (mut worker, second) = (workers.remove(0), workers.pop());
        // The second packet of a connection over TCP establishes it.
        for side in [Side::First, Side::Requests] {
            worker.port.offer(side, Order::Turns, connections, connections.into());
            rig::forward(&mut worker);
        }
        let live = worker.pipeline.flows.table().table().live();
        assert_eq!(live, connections as usize, "{variant}: each flow has a connection of its own");
        let (floor, announcements) = (None, None);
        Self { variant, memory, connections, worker, second, floor, announcements }
    }

    /// The kind of its table's memory pages.
    fn pages(&mut self) -> String {
        self.worker.pipeline.flows.table().table().pages().to_string()
    }

    /// CPU time for one packet or connection.
    fn nanoseconds(&mut self, part: Part) -> f64 {
        let side = if let Part::Hits(side) = part { side } else { Side::Requests };
        if part == Part::Floor && self.floor.is_none() {
            self.floor = Some(Floor::new(self.variant, self.connections));
        }
        let sent = self.worker.port.sent();
        self.worker.port.offer(side, Order::Drawn, self.connections, PACKETS);
        let (count, nanoseconds) = match part {
            Part::Bare => (PACKETS, timed(|| self.bare(|_| ()))),
            Part::Floor => {
                let floor = self.floor.as_ref().expect("made above");
                (PACKETS, timed(|| floor.forward(&mut self.worker.port)))
            }
            Part::Pool => return timed(|| self.pool()) / PACKETS as f64,
            Part::Beside => (PACKETS, self.beside()),
            Part::Parse => (PACKETS, timed(|| self.bare(parsed))),
            Part::Table => return timed(|| self.look_up()) / PACKETS as f64,
            Part::Hits(_) => (PACKETS, timed(|| rig::forward(&mut self.worker))),
            Part::Captured(watcher) => (PACKETS, self.captured(watcher)),
            Part::Announced => (PACKETS, self.announced()),
            Part::First => self.repeated(Part::First),
            Part::FirstBeside => self.first_beside(),
            Part::Expiry => self.repeated(Part::Expiry),
            Part::ExpiryPause => return self.expiry_pause(),
        };
        let sent = self.worker.port.sent() - sent;
        // With tunnels, two fragments may leave as one packet.
        let least = if part == Part::Hits(Side::Fragments) { count / 2 } else { count };
        assert!(sent >= least && self.dropped() == 0, "{} {part:?}: {sent} of {count} left", self.variant);
        nanoseconds / count as f64
    }

    fn dropped(&self) -> u64 {
        let counters = self.worker.pipeline.transmitter.counters().all();
        counters.filter(|(name, _)| name.starts_with("drop_")).map(|(_, count)| count).sum()
    }

    fn bare(&mut self, mut look: impl FnMut(&[u8])) {
        let port = &mut self.worker.port;
        let mut burst = Vec::with_capacity(BURST);
        while port.is_open() {
            port.receive(&mut burst);
            for received in &burst {
                look(received.frame.bytes());
            }
            for mut received in burst.drain(..) {
                ethernet::set_addresses(received.frame.bytes_mut(), MacAddr([2; 6]), MacAddr([4; 6]));
                if let Err(frame) = port.transmit(rig::LAN, received.frame) {
                    port.recycle(frame);
                }
            }
            port.flush();
        }
    }

    /// Takes a burst of frames from the pool and puts it back, repeatedly.
    fn pool(&mut self) {
        let port = &mut self.worker.port;
        let mut frames = Vec::with_capacity(BURST);
        for _ in 0..PACKETS / BURST as u64 {
            frames.extend((0..BURST).map(|_| port.allocate().expect("all frames are free")));
            black_box(&mut frames).drain(..).for_each(|frame| port.recycle(frame));
        }
    }

    /// Forwards while the second worker does. Returns the time of the slower one.
    fn beside(&mut self) -> f64 {
        let second = self.second.as_mut().expect("there are two workers");
        second.pipeline.flows.table().unpark();
        // As from the queues of an interface, each flow comes to one of them.
        let half = self.connections / 2;
        self.worker.port.offer(Side::Requests, Order::Drawn, half, PACKETS);
        second.port.first = half;
        second.port.offer(Side::Requests, Order::Drawn, half, PACKETS);
        let start = Barrier::new(2);
        let run = |worker: &mut Worker<Loop>| {
            start.wait();
            timed(|| rig::forward(worker))
        };
        let nanoseconds = thread::scope(|scope| {
            let other = scope.spawn(|| run(&mut *second));
            run(&mut self.worker).max(other.join().expect("no panic"))
        });
        second.pipeline.flows.table().park();
        nanoseconds
    }

    /// Forwards while packets are captured, in slots as large as a frame.
    fn captured(&mut self, watcher: Watcher) -> f64 {
        let port = (watcher == Watcher::OfOthers).then_some(1);
        let (capture, mut reader) = Capture::new(Filter { port, ..Filter::default() }, 1, SLOTS, 4096);
        let before = self.worker.snapshot.load_full();
        let snapshot = Snapshot { captures: [capture].into(), ..Snapshot::clone(&before) };
        self.worker.snapshot.store(Arc::new(snapshot));
        let done = AtomicBool::new(watcher == Watcher::Asleep);
        let nanoseconds = thread::scope(|scope| {
            let reading = || {
                while !done.load(Ordering::Relaxed) {
                    reader.read(|_, record| _ = black_box(record.bytes()));
                }
            };
            scope.spawn(reading);
            let nanoseconds = timed(|| rig::forward(&mut self.worker));
            done.store(true, Ordering::Relaxed);
            nanoseconds
        });
        self.worker.snapshot.store(before);
        nanoseconds
    }

    /// Forwards while a master daemon runs, whose queue has room for all announcements.
    fn announced(&mut self) -> f64 {
        let rules = SyncRules {
            threshold: 3,
            period: 50,
            refresh: Duration::ZERO,
            retries: 0,
            templates_alone: false,
            version: Version::V1,
            queue_max: 4096,
        };
        let entries = self.worker.pipeline.flows.table().table().entries();
        let announcements =
            self.announcements.get_or_insert_with(|| Arc::new(Announcements::new(entries, 1)));
        let announcements = announcements.clone();
        let before = self.worker.snapshot.load_full();
        let master = Some(Arc::new(SyncMaster::new(rules, announcements.clone())));
        let snapshot = Snapshot { sync_master: master, ..Snapshot::clone(&before) };
        self.worker.snapshot.store(Arc::new(snapshot));
        let nanoseconds = timed(|| rig::forward(&mut self.worker));
        self.worker.snapshot.store(before);
        let mut announced = 0;
        announcements.take(|_| announced += 1);
        let is_enough = self.connections > 1000 || announced > PACKETS / 100;
        assert!(is_enough, "{announced} of {PACKETS} packets announced their connection");
        nanoseconds
    }

    fn look_up(&mut self) {
        let Worker { pipeline, port, clock, .. } = &mut self.worker;
        let table = pipeline.flows.table();
        let timeout = Duration::from_secs(300);
        let mut burst = Vec::with_capacity(BURST);
        for _ in 0..PACKETS / BURST as u64 {
            let now = clock.now();
            burst.clear();
            for _ in 0..BURST {
                let flow = self.variant.flow_key(port.next_flow());
                burst.push((flow, table.hash(&flow)));
            }
            burst.iter().for_each(|(_, hash)| table.prefetch_buckets(*hash));
            burst.iter().for_each(|(_, hash)| table.prefetch_entries(*hash));
            for (flow, hash) in &burst {
                let (id, _) = table.find(flow, *hash).expect("every flow has its connection");
                table.connection(id).count_in_packet();
                table.transition(id, |_| (0, now + timeout));
            }
            table.quiescent();
        }
    }

    /// Ends and creates all connections repeatedly, until their number equals the packets of other rows.
    fn repeated(&mut self, part: Part) -> (u64, f64) {
        let times = PACKETS.div_ceil(self.connections.into());
        let mut nanoseconds = 0.0;
        for _ in 0..times {
            self.worker.clock.advance(AGES);
            let expiry = timed(|| self.expire());
            self.worker.port.offer(Side::First, Order::Turns, self.connections, self.connections.into());
            let first = timed(|| rig::forward(&mut self.worker));
            nanoseconds += if part == Part::First { first } else { expiry };
        }
        // Otherwise the packets of another row would establish the connections over TCP.
        self.worker.port.offer(Side::Requests, Order::Turns, self.connections, self.connections.into());
        rig::forward(&mut self.worker);
        (times * u64::from(self.connections), nanoseconds)
    }

    /// The longest call that ends connections, in nanoseconds, while all end; then they begin again.
    fn expiry_pause(&mut self) -> f64 {
        self.worker.clock.advance(AGES);
        let Worker { pipeline, snapshot, clock, .. } = &mut self.worker;
        let (snapshot, mut longest, mut timers) = (snapshot.load_full(), 0.0_f64, Timers::Behind);
        while timers == Timers::Behind {
            longest = longest.max(timed(|| timers = pipeline.flows.expire(&snapshot, clock.now())));
            pipeline.flows.quiescent();
        }
        pipeline.flows.quiescent();
        self.worker.port.offer(Side::First, Order::Turns, self.connections, self.connections.into());
        rig::forward(&mut self.worker);
        longest
    }

    /// [`Part::First`] by two workers, each on its own thread, until each has made that many.
    fn first_beside(&mut self) -> (u64, f64) {
        let half = self.connections / 2;
        let times = PACKETS.div_ceil(half.into());
        let second = self.second.as_mut().expect("there are two workers");
        second.pipeline.flows.table().unpark();
        let together = Barrier::new(2);
        let run = |worker: &mut Worker<Loop>, first| {
            let mut nanoseconds = 0.0;
            worker.port.first = first;
            for _ in 0..times {
                if together.wait().is_leader() {
                    worker.clock.advance(AGES);
                }
                together.wait();
                expire(worker);
                // Removed entries can be reused when both workers have passed quiescent points.
                for _ in 0..3 {
                    together.wait();
                    worker.pipeline.flows.quiescent();
                }
                worker.port.offer(Side::First, Order::Turns, half, half.into());
                together.wait();
                nanoseconds += timed(|| rig::forward(worker));
            }
            nanoseconds
        };
        let nanoseconds = thread::scope(|scope| {
            let other = scope.spawn(|| run(&mut *second, half));
            run(&mut self.worker, 0).max(other.join().expect("no panic"))
        });
        second.pipeline.flows.table().park();
        (times * u64::from(half), nanoseconds)
    }

    fn expire(&mut self) {
        expire(&mut self.worker);
        let table = self.worker.pipeline.flows.table();
        assert_eq!(table.table().live(), 0, "every connection has expired");
    }
}

/// Ends a worker's connections.
fn expire(worker: &mut Worker<Loop>) {
    let Worker { pipeline, snapshot, clock, .. } = worker;
    let snapshot = snapshot.load();
    while pipeline.flows.expire(&snapshot, clock.now()) == Timers::Behind {
        pipeline.flows.quiescent();
    }
    // The slots of the last ones are reused after two more quiescent points.
    pipeline.flows.quiescent();
    pipeline.flows.quiescent();
}

fn parsed(frame: &[u8]) {
    // The result is not used, so it must be kept from being optimised away.
    let _ = black_box(parse(frame));
}

/// This thread's CPU time for `work`, in nanoseconds.
fn timed(work: impl FnOnce()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let before = now();
    work();
    (now() - before).as_nanos() as f64
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("proc(5): resident pages come second") * rustix::param::page_size()
}

/// Appends the rows to the file that `XVS_FIGURES` names, if it does (`benches/figures/data.rs`).
fn append(connections: u32, rows: &[Row]) {
    let Some(file) = std::env::var_os("XVS_FIGURES") else { return };
    let mut file = File::options().create(true).append(true).open(file).expect("XVS_FIGURES is a file");
    for Row { name, samples, .. } in rows {
        let rounds: Vec<_> = samples.iter().map(|sample| [(sample * 10.0).round() / 10.0]).collect();
        let row = json!({ "table": connections.to_string(), "name": name, "unit": "ns", "rounds": rounds });
        writeln!(file, "{row}").expect("the disk takes a line");
    }
}

/// Prints medians, their ratio to the first row's, and the range of the samples.
fn report(connections: u32, rows: &mut [Row]) {
    println!(
        "\n{connections} connections{:23}    ns   × base   middle half of {} rounds",
        "",
        rows[0].samples.len()
    );
    let mut base = None;
    for row in rows {
        row.samples.sort_by(f64::total_cmp);
        let at = |share: usize| row.samples[share * (row.samples.len() - 1) / 4];
        let base = *base.get_or_insert(at(2));
        println!("  {:32} {:7.1}  {:7.2}   {:.1} to {:.1}", row.name, at(2), at(2) / base, at(1), at(3));
    }
}
