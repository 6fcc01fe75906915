//! Cost of finding a local port for a FULLNAT connection, by the share of ports in use.
//!
//! `cargo bench --bench local_ports`. One address with the ports of the default range, eight real servers. Random
//! connections are removed until a share of the ports is free; then first packets of connections take a hundredth of
//! the range. Prints medians of this thread's CPU time for one first packet, pipeline included. Not here: a table with
//! many connections (`benches/pipeline.rs`, «FULLNAT, first packet»).

// Shared by the benches and the allocation test; neither uses all of it.
#[allow(dead_code)]
mod rig;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::local_addresses::LocalAddresses;
use xvs_dataplane::worker::Worker;
use xvs_sched::ForwardingMethod;

use rig::{Loop, SERVERS, Variant};

const FIRST_PORT: u16 = 1024;
const LAST_PORT: u16 = 32_767;
/// Ports towards all servers together.
const ALL: u32 = (LAST_PORT - FIRST_PORT + 1) as u32 * SERVERS as u32;
/// Capacity of the table, large enough that no connection is evicted.
const TABLE: usize = 4 * ALL as usize;
const ROUNDS: usize = 21;

fn main() {
    let mut bench = Bench::new();
    println!("{ALL} local ports towards {SERVERS} real servers, {ROUNDS} rounds");
    println!("  taken     ns a first packet   million a second   refused");
    for percent in [0, 50, 80, 90, 95, 99] {
        let mut samples: Vec<_> = (0..ROUNDS).map(|_| bench.nanoseconds(percent)).collect();
        samples.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let (nanoseconds, _) = samples[ROUNDS / 2];
        let refused: u64 = samples.iter().map(|(_, refused)| refused).sum();
        let asked = ROUNDS as u64 * u64::from(ALL / 100);
        let share = 100.0 * refused as f64 / asked as f64;
        println!("  {percent:3} %     {nanoseconds:17.0}   {:16.2}   {share:6.3} %", 1e3 / nanoseconds);
    }
}

struct Bench {
    worker: Worker<Loop>,
    live: Vec<u32>,
    gone: Vec<u32>,
    random: u64,
}

impl Bench {
    fn new() -> Self {
        let worker = rig::worker(ForwardingMethod::FullNat, TABLE, Memory::OnDemand);
        let locals = LocalAddresses::new([(IpAddr::from([192, 0, 2, 1]), FIRST_PORT..=LAST_PORT)], []);
        let snapshot = Snapshot { locals: Arc::new(locals), ..Snapshot::clone(&worker.snapshot.load()) };
        worker.snapshot.store(Arc::new(snapshot));
        Self { worker, live: Vec::new(), gone: (0..ALL).collect(), random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// CPU time of a first packet with `percent` of the ports in use, and the number of refused packets.
    fn nanoseconds(&mut self, percent: u32) -> (f64, u64) {
        let taken = (u64::from(ALL) * u64::from(percent) / 100) as usize;
        while self.live.len() < taken {
            let missing = taken - self.live.len();
            self.begin(missing);
        }
        while self.live.len() > taken {
            self.end_one();
        }
        let before = self.live.len();
        let asked = (ALL / 100) as usize;
        let time = self.begin(asked);
        (time / asked as f64, (asked - (self.live.len() - before)) as u64)
    }

    /// Creates this many new connections.
    fn begin(&mut self, count: usize) -> f64 {
        let flows = self.gone.split_off(self.gone.len() - count);
        self.worker.port.list(flows.clone());
        let before = cpu_nanos();
        rig::forward(&mut self.worker);
        let time = cpu_nanos() - before;
        for flow in flows {
            let there = self.id(flow).is_some();
            if there { self.live.push(flow) } else { self.gone.insert(0, flow) }
        }
        time as f64
    }

    fn end_one(&mut self) {
        // xorshift64 (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let flow = self.live.swap_remove((self.random % self.live.len() as u64) as usize);
        let id = self.id(flow).expect("it lives");
        let table = self.worker.pipeline.flows.table();
        table.remove(id);
        table.quiescent();
        self.gone.push(flow);
    }

    fn id(&mut self, flow: u32) -> Option<xvs_dataplane::conn::ConnId> {
        let key = Variant::from(ForwardingMethod::FullNat).flow_key(flow);
        let table = self.worker.pipeline.flows.table();
        let hash = table.hash(&key);
        table.find(&key, hash).map(|(id, _)| id)
    }
}

/// CPU time of this thread.
fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}
