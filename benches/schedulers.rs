//! Schedulers at scale: cost of a choice, accuracy of weighted schedulers, Maglev tables.
//!
//! `cargo bench --bench schedulers [-- NAME]`, where NAME selects the parts whose name contains it. A choice is
//! `Service::choose` as in a worker: the state is committed, also by two workers to the same service. Figures are CPU
//! time of the choosing thread, the best of several rounds. Not here: the other costs of a new connection
//! (`benches/pipeline.rs`).

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::{Arc, Barrier};
use std::{env, thread};

use rustix::time::{ClockId, clock_gettime};
use xvs_dataplane::random::Random;
use xvs_dataplane::snapshot::{Activity, DestinationId, DestinationLive, Member, Service};
use xvs_proto::Endpoint;
use xvs_sched::scheduler::{self, Flags, Setup};
use xvs_sched::{Destination, ForwardingMethod, Request, ServiceKey, Weight};

/// Name of a part, and its function.
const PARTS: [(&str, fn()); 3] = [("choices", choices), ("shares", shares), ("maglev", maglev)];
const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const ROUNDS: usize = 3;
/// CPU time over which a figure is measured.
const MEASURED_NANOS: u64 = 20_000_000;
/// Number of destination addresses of packets; `lblc` and `lblcr` remember them.
const ADDRESSES: u32 = 1000;
/// Choices between two readings of the clock.
const BATCH: usize = 256;
/// Concurrent connections while shares are counted.
const STANDING: usize = 20_000;
const CLIENTS: usize = 1_000_000;

fn main() {
    // Cargo adds options of its own.
    let wanted = env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    PARTS.iter().filter(|(name, _)| name.contains(&wanted)).for_each(|(_, run)| run());
}

/// CPU time of this thread.
fn cpu_nanos() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn endpoint(number: usize) -> Endpoint {
    Endpoint::new(Ipv4Addr::from(0x0a00_0001 + number as u32), 80)
}

/// A service of destinations with these weights, in IPVS's order: the first has the highest number.
fn service(name: &str, weights: &[u32]) -> Service {
    let numbered = || (0..weights.len()).rev().zip(weights);
    let destinations: Vec<_> = numbered()
        .map(|(number, weight)| Destination {
            endpoint: endpoint(number),
            weight: Weight(*weight),
            last_weight: Weight(*weight),
        })
        .collect();
    let members = numbered().map(|(number, weight)| Member {
        id: DestinationId(number as u32),
        endpoint: endpoint(number),
        method: ForwardingMethod::DirectRouting,
        weight: Weight(*weight),
        own_weight: Weight(*weight),
        slow_start: None,
        live: Arc::new(DestinationLive::new(2)),
    });
    // The client's port counts, so connections are shared, not clients.
    let setup = Setup { destinations: &destinations, flags: Flags::PORT, ..Setup::default() };
    Service {
        key: ServiceKey::tcp(Endpoint::new([198, 51, 100, 1], 80)),
        rule: "".into(),
        is_starting: false,
        members: members.collect(),
        scheduler: scheduler::build(name, &setup).expect("a scheduler of this name"),
        one_packet: false,
        client_address: Default::default(),
        client_limit: None,
        syn_proxy: Default::default(),
        persistence: None,
        quic: None,
        place: Arc::default(),
        live: Arc::default(),
    }
}

fn address(number: u32) -> Endpoint {
    Endpoint::new(Ipv4Addr::from(0xc633_6400 + number), 80)
}

/// The first packet of some connection, to one of the addresses.
fn request(random_bits: &mut Random) -> Request {
    let (ends, random) = (random_bits.next_u64(), random_bits.next_u64());
    Request {
        source: Endpoint::new(Ipv4Addr::from((ends >> 32) as u32), ends as u16),
        dest: address((ends >> 16) as u32 % ADDRESSES),
        now_millis: 0,
        random,
    }
}

/// Nanoseconds per choice of the slowest of this number of workers.
fn cost(service: &Service, workers: usize) -> f64 {
    let start = Barrier::new(workers);
    let measure = |worker: usize| {
        let mut random_bits = Random::new(worker as u64);
        start.wait();
        let begun = cpu_nanos();
        let mut choices = 0;
        while cpu_nanos() - begun < MEASURED_NANOS {
            for _ in 0..BATCH {
                black_box(service.choose(worker, &request(&mut random_bits)));
            }
            choices += BATCH;
        }
        (cpu_nanos() - begun) as f64 / choices as f64
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|worker| scope.spawn(move || measure(worker))).collect();
        let own = measure(0);
        others.into_iter().map(|other| other.join().expect("a worker")).fold(own, f64::max)
    })
}

fn choices() {
    println!(
        "ns a choice (million a second and worker), by destinations; one worker, then two on one service"
    );
    print!("  {:<6} {:>7}", "", "workers");
    SIZES.iter().for_each(|size| print!(" {size:>19}"));
    println!();
    for name in scheduler::names().filter(|name| *name != "none") {
        for workers in [1, 2] {
            print!("  {name:<6} {workers:>7}");
            for size in SIZES {
                if size > scheduler::destinations_max(name) {
                    print!(" {:>19}", "refused");
                    continue;
                }
                let weights: Vec<u32> = (0..size as u32).map(|number| 1 + number % 10).collect();
                let service = service(name, &weights);
                let mut random_bits = Random::new(0);
                for number in 0..ADDRESSES {
                    service.choose(0, &Request { dest: address(number), ..request(&mut random_bits) });
                }
                let best = (0..ROUNDS).map(|_| cost(&service, workers)).fold(f64::INFINITY, f64::min);
                print!(" {best:>9.1} ({:>7.3})", 1000.0 / best);
            }
            println!();
        }
    }
}

fn shares() {
    let weights: Vec<u32> = (1..=20).collect();
    let sum: u32 = weights.iter().sum();
    println!(
        "error of shares: weights 1 to 20, {CLIENTS} connections, {STANDING} of them at a time; % of the share"
    );
    println!("  {:<6} {:>8} {:>8}", "", "mean", "greatest");
    for name in ["wrr", "wlc", "sed", "nq", "twos", "sh", "mh", "lblc", "lblcr"] {
        let service = service(name, &weights);
        let mut random_bits = Random::new(1);
        let mut standing: Vec<Arc<DestinationLive>> = Vec::with_capacity(STANDING);
        let mut taken = vec![0u32; weights.len()];
        for number in 0..CLIENTS {
            let member = service.choose(0, &request(&mut random_bits)).expect("all are usable");
            member.live.increment(Activity::Active);
            taken[member.id.0 as usize] += 1;
            if number < STANDING {
                standing.push(member.live.clone());
            } else {
                // Connections have random durations.
                let ends = random_bits.below(STANDING as u32) as usize;
                std::mem::replace(&mut standing[ends], member.live.clone()).decrement(Activity::Active);
            }
        }
        let errors = taken.iter().rev().zip(&weights).map(|(taken, weight)| {
            let share = f64::from(*weight) / f64::from(sum) * CLIENTS as f64;
            100.0 * (f64::from(*taken) - share).abs() / share
        });
        let errors: Vec<f64> = errors.collect();
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        println!("  {name:<6} {mean:>8.3} {:>8.3}", errors.iter().copied().fold(0.0, f64::max));
    }
}

fn maglev() {
    println!("Maglev");
    for size in [100, 1_000, 4_093] {
        let weights = vec![1; size];
        let build = |_| {
            let begun = cpu_nanos();
            let built = service("mh", &weights);
            let nanos = cpu_nanos() - begun;
            drop(black_box(built));
            nanos
        };
        let best = (0..ROUNDS).map(build).min().expect("some rounds");
        println!("  building a service of {size:>5} destinations {:>9.2} ms", best as f64 / 1e6);
    }
    let all = service("mh", &[1; 100]);
    let fewer = service("mh", &[1; 99]);
    let mut random_bits = Random::new(1);
    let (mut taken, mut moved, mut others) = ([0u32; 100], 0, 0);
    for _ in 0..CLIENTS {
        let request = request(&mut random_bits);
        let before = all.choose(0, &request).expect("all are usable").id;
        taken[before.0 as usize] += 1;
        // The destination with the highest number is the missing one.
        if before.0 < 99 {
            others += 1;
            moved += u32::from(fewer.choose(0, &request).expect("all are usable").id != before);
        }
    }
    let mean = CLIENTS as f64 / 100.0;
    let least = f64::from(*taken.iter().min().expect("100")) / mean;
    let most = f64::from(*taken.iter().max().expect("100")) / mean;
    println!("  clients of 100 equal destinations, of the mean   {least:>5.3} to {most:.3}");
    println!(
        "  clients of others that move when 1 of 100 goes {:>8.2} %",
        100.0 * f64::from(moved) / f64::from(others)
    );
}
