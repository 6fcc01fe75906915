//! Cost of a packet in the XDP program, by number of offloaded connections and by method, by test runs.
//!
//! `cargo bench --bench program`, as root. A worker begins the connections and offloads them; then the kernel runs the
//! program on one packet of a random connection at a time (`BPF_PROG_TEST_RUN`), and gives the duration of the run. The
//! frame of each run is fresh, because repeated runs would find the frame as the one before left it. The base is the
//! run on a frame that is not IP, which the program leaves to the kernel after a look at its EtherType. Rows take turns
//! in each round; the figures are medians of the rounds' means. Not here: drivers, and the redirect to an interface,
//! which `scripts/bench --offload` measures on veth.

// Shared by the benches and the allocation test; neither uses all of it.
#[allow(dead_code)]
mod rig;

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::offload::{Offload, Settings};
use xvs_dataplane::port::Port;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::steering::Steering;
use xvs_dataplane::worker::Worker;
use xvs_sched::ForwardingMethod::{DirectRouting, Nat, Tunnel};

use rig::{Loop, Order, Side, Variant};

const CONNECTIONS: [u32; 4] = [1, 1 << 10, 1 << 14, 1 << 16];
/// Records of the program; with more connections than half of them, some keys find no room.
const RECORDS: u32 = 1 << 18;
const ROUNDS: usize = 21;
/// Runs of one row in one round.
const RUNS: u32 = 20_000;
/// The interface on which the kernel runs programs for tests: loopback.
const LOOPBACK: u32 = 1;
/// A frame that is not IP, of the length of the others.
const NOT_IP: [u8; 60] = [0; 60];

fn main() {
    let methods = [DirectRouting, Nat, Tunnel].map(Variant::from);
    let rows = CONNECTIONS.iter().flat_map(|connections| methods.map(|variant| (variant, *connections)));
    let mut rows: Vec<_> = rows.map(|(variant, connections)| Row::new(variant, connections)).collect();
    let mut base = Vec::new();
    for _ in 0..ROUNDS {
        base.push(rows[0].run_base());
        rows.iter_mut().for_each(Row::run);
    }
    let base = median(&mut base);
    println!("ns a packet in the XDP program, less the base of {base:.0} ns; medians of {ROUNDS} rounds");
    println!("  connections   method       ns   range of the rounds   × one connection");
    let mut alone = Vec::new();
    for (place, row) in rows.iter_mut().enumerate() {
        let nanoseconds = median(&mut row.means) - base;
        if place < methods.len() {
            alone.push(nanoseconds);
        }
        let (least, most) = (row.means[0] - base, row.means[ROUNDS - 1] - base);
        let ratio = nanoseconds / alone[place % methods.len()];
        println!(
            "  {:>11}   {:<6} {nanoseconds:8.1}   {least:8.1} – {most:<8.1}   {ratio:8.2}",
            row.connections,
            row.variant.to_string()
        );
    }
}

/// Sorts the values, and returns their median.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Offloaded connections of one method.
struct Row {
    variant: Variant,
    connections: u32,
    steering: Steering,
    /// Its port makes the frames.
    worker: Worker<Loop>,
    /// The mean duration of a run in each round.
    means: Vec<f64>,
}

impl Row {
    /// Begins the connections and offloads them.
    fn new(variant: Variant, connections: u32) -> Self {
        let steering = Steering::load_for_offloaded_runs(RECORDS).expect("root may load programs");
        let mut worker = rig::worker(variant, 2 * connections as usize, Memory::SmallPages);
        let offload = Self::offload(&steering, &mut worker);
        // Connections of NAT are offloaded when a reply was seen.
        for side in [Side::Requests, Side::Replies, Side::Requests] {
            worker.port.offer(side, Order::Turns, connections, connections.into());
            rig::forward(&mut worker);
            worker.clock.advance(Duration::from_millis(10));
            offload.set_clock(worker.clock.now());
        }
        // A few find no room for their keys.
        let in_force = offload.in_force() as f64 / f64::from(connections);
        assert!(in_force > 0.999, "{variant}: {in_force} of {connections} connections are offloaded");
        Self { variant, connections, steering, worker, means: Vec::new() }
    }

    fn offload(steering: &Steering, worker: &mut Worker<Loop>) -> Arc<Offload> {
        let table = worker.pipeline.flows.table().table();
        let settings = Settings { after: 0, records: RECORDS, ingress: Some(LOOPBACK) };
        let offload = steering.offload(table.entries(), settings).expect("the maps can be mapped");
        offload.set_table(table);
        offload.set_on(true);
        worker.pipeline.flows.set_offload(offload.clone());
        offload
    }

    fn run(&mut self) {
        let Worker { port, .. } = &mut self.worker;
        port.offer(Side::Requests, Order::Drawn, self.connections, RUNS.into());
        let mut burst = Vec::new();
        let mut sum = 0;
        let mut count = 0;
        while port.is_open() {
            port.receive(&mut burst);
            for received in burst.drain(..) {
                let run = self.steering.time_offloaded(received.frame.bytes());
                let (is_forwarded, nanos) = run.expect("the program runs");
                sum += u64::from(nanos) * u64::from(is_forwarded);
                count += u64::from(is_forwarded);
                port.recycle(received.frame);
            }
        }
        self.means.push(sum as f64 / count as f64);
    }

    /// The mean duration of a run on a frame that is not IP.
    fn run_base(&mut self) -> f64 {
        let run = |_| self.steering.time_offloaded(&NOT_IP).expect("the program runs").1;
        (0..RUNS).map(run).map(f64::from).sum::<f64>() / f64::from(RUNS)
    }
}
