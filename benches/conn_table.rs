//! The connection table at scale: look-ups compared with `hashbrown`, new connections, two workers, memory, listings.
//!
//! `cargo bench --bench conn_table [-- NAME]`, where NAME selects the parts whose name contains it. Figures are
//! CPU time of the thread that does the work, the best of several rounds that alternate with the compared table, so
//! a ratio holds on a noisy machine. Each part runs in a process of its own, so its memory can be measured. Not here:
//! the whole pipeline (`benches/pipeline.rs`).

use std::fs::File;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use std::{env, thread};

use hashbrown::HashMap;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use xvs_ctl::api::connections::rows;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{
    Boot, CallIds, Flags, FormerTable, Inserted, NewConnection, Removal, Spare, Table, TableConfig,
    TableFiles, TableWorker, Timers,
};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::{Activity, Change, Counts, DestinationLive};
use xvs_proto::{Endpoint, FlowKey, HashSecret, Protocol};
use xvs_sched::ForwardingMethod::{self, DirectRouting, Nat};

/// Name of a part, and its function.
const PARTS: [(&str, fn()); 9] = [
    ("lookup-1k", || lookups(1_000)),
    ("lookup-100k", || lookups(100_000)),
    ("lookup-1M", || lookups(1_000_000)),
    ("lookup-10M", || lookups(10_000_000)),
    ("new", new_connections),
    ("two-workers", two_workers),
    ("bytes", bytes_a_connection),
    ("listing-20M", || listing(20_000_000)),
    ("take-over", || take_over(1_000_000)),
];
/// Packets in a worker's burst.
const BURST: usize = 64;
const ROUNDS: usize = 5;
const LOOKUPS: usize = 1 << 20;
const BATCH: usize = 1 << 17;
const PART: &str = "XVS_BENCH_PART";

fn main() {
    if let Ok(part) = env::var(PART) {
        let (_, run) = PARTS.iter().find(|(name, _)| *name == part).expect("a part's name");
        return run();
    }
    // Cargo adds options of its own.
    let wanted = env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let this = env::current_exe().expect("the path of this program");
    for (name, _) in PARTS.iter().filter(|(name, _)| name.contains(&wanted)) {
        let status = Command::new(&this).env(PART, name).status().expect("this program runs");
        assert!(status.success(), "{name}: {status}");
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn nanoseconds(took: Duration, operations: usize) -> f64 {
    took.as_secs_f64() * 1e9 / operations as f64
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
}

fn table(capacity: usize, workers: usize, memory: Memory) -> Arc<Table> {
    let config = TableConfig { capacity, workers, memory };
    Table::create(config).expect("memory for the table")
}

/// The flow with this number; each has a client of its own.
fn flow(number: u32) -> FlowKey {
    // An odd factor: every number occurs once, in no order that helps a table.
    let mixed = number.wrapping_mul(0x9e37_79b1);
    let client = Endpoint::new(Ipv4Addr::from(0x0a00_0000 | mixed >> 14), 1024 + (mixed & 0x3fff) as u16);
    let service = Endpoint::new(Ipv4Addr::new(198, 51, 100, 80), 80 + (mixed >> 30) as u16);
    FlowKey { protocol: Protocol::TCP, source: client, dest: service }
}

fn connection(number: u32, method: ForwardingMethod, expires: Millis) -> NewConnection {
    let FlowKey { protocol, source, dest } = flow(number);
    NewConnection {
        protocol,
        client: source,
        virtual_endpoint: dest,
        dest: Endpoint::new(Ipv4Addr::new(192, 0, 2, 11 + (number & 7) as u8), dest.port),
        local: None,
        method,
        flags: Flags::INACTIVE,
        state: 1,
        expires,
        spare: Spare::NONE,
        dest_ref: number & 7,
        mark: 0,
        controller: None,
    }
}

/// Inserts these connections, with the quiescent points of a worker.
fn fill(worker: &mut TableWorker, numbers: std::ops::Range<u32>, method: ForwardingMethod, expires: Millis) {
    for number in numbers {
        let inserted = worker.insert(&connection(number, method, expires));
        assert!(matches!(inserted, Inserted::New(_)), "{inserted:?}");
        if (number as usize).is_multiple_of(BURST) {
            worker.quiescent();
        }
    }
    worker.quiescent();
}

fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// A worker's look-ups for a burst of packets: hash and prefetch, then find.
fn find_all(worker: &TableWorker, keys: &[FlowKey]) -> usize {
    let mut found = 0;
    for burst in keys.chunks(BURST) {
        let mut hashes = [0; BURST];
        for (hash, key) in hashes.iter_mut().zip(burst) {
            *hash = worker.hash(key);
            worker.prefetch_buckets(*hash);
        }
        hashes[..burst.len()].iter().for_each(|&hash| worker.prefetch_entries(hash));
        for (key, &hash) in burst.iter().zip(&hashes) {
            found += usize::from(worker.find(key, hash).is_some());
        }
    }
    found
}

fn lookups(connections: u32) {
    // Huge pages if available, as for a table that is expected to fill.
    let table = table(connections as usize, 1, Memory::Resident);
    let mut worker = table.handle(0).expect("the handle");
    let mut map = HashMap::with_capacity(connections as usize);
    fill(&mut worker, 0..connections, DirectRouting, Millis(900_000));
    // A value as large as an entry of the table without its key, so both read two cache lines.
    map.extend((0..connections).map(|number| (flow(number), [number; 8])));
    let mut dice = dice(7);
    let mut drawn = |first: u32| -> Vec<FlowKey> {
        let mut number = || first + (((dice() >> 32) * u64::from(connections)) >> 32) as u32;
        (0..LOOKUPS).map(|_| flow(number())).collect()
    };
    for (name, keys, expected) in [("hits", drawn(0), LOOKUPS), ("misses", drawn(connections), 0)] {
        let (mut ours, mut yardstick) = (f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            let start = cpu();
            assert_eq!(find_all(&worker, black_box(&keys)), expected);
            ours = ours.min(nanoseconds(cpu() - start, LOOKUPS));
            let start = cpu();
            let found =
                keys.iter().filter(|key| map.get(*key).is_some_and(|value| black_box(value)[0] < u32::MAX));
            assert_eq!(found.count(), expected);
            yardstick = yardstick.min(nanoseconds(cpu() - start, LOOKUPS));
        }
        println!(
            "{connections} connections, {name}: {ours:.1} ns, hashbrown {yardstick:.1} ns, {:.2} times as fast ({:?} pages)",
            yardstick / ours,
            table.pages()
        );
    }
}

/// Inserts `BATCH` connections as the worker with the number `own` does: prefetch, look-up, insertion, timer, counters.
fn make(own: usize, worker: &mut TableWorker, first: u32, method: ForwardingMethod, live: &DestinationLive) {
    for start in (first..first + BATCH as u32).step_by(BURST) {
        let numbers = start..start + BURST as u32;
        let hashes = || numbers.clone().map(|number| worker.hash(&flow(number)));
        hashes().for_each(|hash| worker.prefetch_buckets(hash));
        hashes().for_each(|hash| worker.prefetch_entries(hash));
        for number in numbers {
            let key = flow(number);
            assert!(worker.find(&key, worker.hash(&key)).is_none());
            live.defer(own, Change::Begin(Activity::Inactive));
            let new = connection(number, method, Millis(900_000));
            let Inserted::New(id) = worker.insert(&new) else { panic!("there is room") };
            worker.connection(id).count_in_packet();
            live.defer(own, Change::MoveTo(Activity::Active));
            worker.transition(id, |_| (3, Millis(60_000)));
        }
        live.add_deferred(own);
        worker.quiescent();
    }
}

/// Removes the connections of [`make`].
fn unmake(worker: &mut TableWorker, first: u32) {
    for number in first..first + BATCH as u32 {
        let key = flow(number);
        let (id, _) = worker.find(&key, worker.hash(&key)).expect("made before");
        assert!(matches!(worker.remove(id), Removal::Done(_)));
        if (number as usize).is_multiple_of(BURST) {
            worker.quiescent();
        }
    }
    worker.quiescent();
    worker.quiescent();
}

fn new_connections() {
    const CAPACITY: u32 = 1 << 21;
    let live = DestinationLive::new(1);
    for method in [DirectRouting, Nat] {
        for percent in [10, 80] {
            let table = table(CAPACITY as usize, 1, Memory::Resident);
            let mut worker = table.handle(0).expect("the handle");
            let filled = CAPACITY / 100 * percent;
            fill(&mut worker, 0..filled, method, Millis(900_000));
            let mut best = f64::MAX;
            for round in 0..ROUNDS as u32 {
                let first = filled + round * BATCH as u32;
                let start = cpu();
                make(0, &mut worker, first, method, &live);
                best = best.min(nanoseconds(cpu() - start, BATCH));
                unmake(&mut worker, first);
            }
            let rate = 1000.0 / best;
            println!(
                "new connections, {method:?}, {percent} % full: {best:.0} ns, {rate:.2} million a second"
            );
        }
    }
}

fn two_workers() {
    const CAPACITY: u32 = 1 << 21;
    let table = table(CAPACITY as usize, 2, Memory::Resident);
    let mut hands = [table.handle(0).expect("a handle"), table.handle(1).expect("a handle")];
    fill(&mut hands[0], 0..CAPACITY / 2, DirectRouting, Millis(900_000));
    let keys: Vec<_> = {
        let mut dice = dice(7);
        (0..LOOKUPS).map(|_| flow((dice() % u64::from(CAPACITY / 2)) as u32)).collect()
    };
    let live = DestinationLive::new(2);
    let work = |number: usize, worker: &mut TableWorker| {
        let start = cpu();
        assert_eq!(find_all(worker, black_box(&keys)), LOOKUPS);
        worker.quiescent();
        let found = nanoseconds(cpu() - start, LOOKUPS);
        let first = CAPACITY / 2 + (number * BATCH) as u32;
        let start = cpu();
        make(number, worker, first, DirectRouting, &live);
        let made = nanoseconds(cpu() - start, BATCH);
        unmake(worker, first);
        (found, made)
    };
    let (mut alone, mut together) = ((f64::MAX, f64::MAX), (f64::MAX, f64::MAX));
    let least = |a: (f64, f64), b: (f64, f64)| (a.0.min(b.0), a.1.min(b.1));
    for _ in 0..ROUNDS {
        hands[1].park();
        alone = least(alone, work(0, &mut hands[0]));
        hands[1].unpark();
        let barrier = Barrier::new(2);
        let [one, other] = &mut hands;
        let both = thread::scope(|scope| {
            let run = |number, worker| {
                let (barrier, work) = (&barrier, &work);
                move || {
                    barrier.wait();
                    work(number, worker)
                }
            };
            let second = scope.spawn(run(1, other));
            let first = run(0, one)();
            let second = second.join().expect("no panic");
            (first.0.max(second.0), first.1.max(second.1))
        });
        together = least(together, both);
    }
    println!(
        "two workers on one table, rate of the slower one relative to one alone: look-ups {:.2}, new connections {:.2}",
        alone.0 / together.0,
        alone.1 / together.1
    );
}

/// A table of NAT connections in files, taken over from a process that was killed or has ended in order.
fn take_over(connections: u32) {
    let config = TableConfig { capacity: connections as usize, workers: 1, memory: Memory::OnDemand };
    let file = |bytes| {
        let file = File::from(memfd_create("table", MemfdFlags::CLOEXEC).expect("a memory file"));
        file.set_len(bytes).expect("its length");
        file
    };
    let [connections_file, extensions] = config.file_bytes().expect("the lengths").map(file);
    let files = TableFiles { connections: connections_file, extensions };
    let table = Table::create_in(&files, config, HashSecret([1, 2, 3]), Boot::default()).expect("a table");
    let mut worker = table.handle(0).expect("a handle");
    fill(&mut worker, 0..connections, Nat, Millis(900_000));
    drop((worker, table));
    for is_killed in [true, false, true] {
        let mut table = FormerTable::map(&files, config, Boot::default()).expect("the table");
        table.touch();
        let (begun, mut counts) = (Instant::now(), Counts::default());
        let discarded = if is_killed { table.repair(Millis(1), |_| true, || {}).discarded } else { 0 };
        let survey = table.survey(|connection| counts.count(connection), || {});
        table.take_over(&survey);
        let name = if is_killed { "killed" } else { "in order" };
        println!("take over {} connections, {name}: {:.0?}", survey.live, begun.elapsed());
        assert_eq!(discarded, 0);
    }
}

fn bytes_a_connection() {
    for capacity in [1_u32 << 22, (1 << 22) + 4096] {
        for method in [DirectRouting, Nat] {
            let before = resident();
            let table = table(capacity as usize, 1, Memory::OnDemand);
            let mut worker = table.handle(0).expect("the handle");
            let connections = capacity / 10 * 8;
            fill(&mut worker, 0..connections, method, Millis(900_000));
            let bytes = (resident() - before) as f64 / f64::from(connections);
            println!("bytes a connection, {method:?}, 80 % full, capacity {capacity}: {bytes:.1}");
        }
    }
}

/// Fills a table of `capacity`, then measures a worker while another thread lists all connections.
fn listing(capacity: u32) {
    let before = resident();
    let table = table(capacity as usize, 1, Memory::OnDemand);
    let mut worker = table.handle(0).expect("the handle");
    let start = Instant::now();
    fill(&mut worker, 0..capacity, DirectRouting, Millis(900_000));
    let took = start.elapsed().as_secs_f64();
    let gib = (resident() - before) as f64 / f64::from(1 << 30);
    println!("{capacity} live connections: {gib:.2} GiB, filled in {took:.1} s ({:?} pages)", table.pages());
    let keys: Vec<_> = {
        let mut dice = dice(7);
        (0..LOOKUPS).map(|_| flow((dice() % u64::from(capacity)) as u32)).collect()
    };
    // Touched beforehand, so the listing's own memory can be measured.
    let room = || {
        let mut samples = vec![Duration::MAX; 1 << 22];
        samples.clear();
        samples
    };
    let (mut alone, mut beside) = (room(), room());
    bursts(&mut worker, &keys, &AtomicBool::new(false), &mut alone);
    let filled = resident();
    let reader = Mutex::new(table.reader().expect("a handle"));
    let listed = AtomicBool::new(false);
    let (count, peak, took) = thread::scope(|scope| {
        let walk = scope.spawn(|| {
            let start = Instant::now();
            let (mut count, mut peak) = (0_u32, 0);
            rows(&reader, &CallIds::default(), Millis(0), &mut |row| {
                black_box(row);
                count += 1;
                if count.is_multiple_of(1 << 20) {
                    peak = peak.max(resident());
                }
                ControlFlow::Continue(())
            });
            listed.store(true, Ordering::Relaxed);
            (count, peak, start.elapsed().as_secs_f64())
        });
        while !listed.load(Ordering::Relaxed) {
            bursts(&mut worker, &keys, &listed, &mut beside);
        }
        walk.join().expect("no panic")
    });
    assert_eq!(count, capacity, "each connection is listed once");
    let more = peak.saturating_sub(filled) as f64 / f64::from(1 << 20);
    println!("listing them: {took:.1} s, at most {more:.1} MiB more memory");
    for (name, mut samples) in [("alone", alone), ("during the listing", beside)] {
        samples.sort_unstable();
        let at =
            |share: f64| samples[((samples.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
        println!(
            "a worker's burst of {BURST} {name}: median {:.1} us, 99.9 % {:.1} us, worst {:.1} us of CPU time",
            at(0.5),
            at(0.999),
            at(1.0)
        );
    }
}

/// Times each burst of look-ups, until all keys were looked up or `stop` is set.
fn bursts(worker: &mut TableWorker, keys: &[FlowKey], stop: &AtomicBool, samples: &mut Vec<Duration>) {
    for burst in keys.chunks(BURST) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let start = cpu();
        assert_eq!(find_all(worker, burst), burst.len());
        assert_eq!(worker.advance_timers(Millis(0), |_, _| {}), Timers::Current);
        worker.quiescent();
        samples.push(cpu() - start);
    }
}
