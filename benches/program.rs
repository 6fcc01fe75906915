//! Cost of a packet in the XDP program, by number of offloaded connections and by its way, by test runs.
//!
//! `cargo bench --bench program`, as root. A worker begins the connections and offloads them; then the kernel runs the
//! program on one packet of a random connection at a time (`BPF_PROG_TEST_RUN`), and gives the duration of the run.
//! With direct routing and NAT it also runs on packets of other flows: to the service, which go to a worker, and to
//! another port of its address, which the kernel gets. The frame of each run is fresh, because repeated runs would find
//! the frame as the one before left it. The base is the run on a frame that is not IP, which the program leaves to the
//! kernel after a look at its EtherType. Rows take turns in each round; the figures are medians of the rounds' means.
//! Not here: drivers, and the redirect to an interface, which `scripts/bench --offload` measures on veth.

// Shared by the benches and the allocation test; neither uses all of it.
#[allow(dead_code)]
mod rig;

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::offload::{Offload, Settings};
use xvs_dataplane::port::Port;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::steering::{MapSizes, Steering, SteeringRules};
use xvs_dataplane::worker::Worker;
use xvs_proto::ethernet;
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
/// The ports of source and destination in frames of IPv4.
const PORTS: usize = ethernet::HEADER_LEN + 20;

/// Where the program sends the packets of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Requests to the next hop of their connections.
    Forwarded,
    /// Replies, of NAT, to clients.
    Replies,
    /// To a worker: their flows have no record.
    Worker,
    /// To the kernel: they are to no service.
    Kernel,
}

fn main() {
    let methods = [DirectRouting, Nat, Tunnel].map(Variant::from);
    let loaded = CONNECTIONS.iter().flat_map(|connections| methods.map(|variant| (variant, *connections)));
    let mut loaded: Vec<_> = loaded.map(|(variant, connections)| Loaded::new(variant, connections)).collect();
    let ways = [Way::Forwarded, Way::Replies, Way::Worker, Way::Kernel];
    let rows = loaded.iter().enumerate().flat_map(|(place, loaded)| {
        let is_wanted = |way: &Way| match way {
            Way::Forwarded => true,
            Way::Replies => loaded.variant.method == Nat,
            Way::Worker | Way::Kernel => loaded.variant.method != Tunnel,
        };
        ways.into_iter().filter(is_wanted).map(move |way| Row { place, way, means: Vec::new() })
    });
    let mut rows: Vec<_> = rows.collect();
    let mut base = Vec::new();
    for _ in 0..ROUNDS {
        base.push(loaded[0].run_base());
        for row in &mut rows {
            row.means.push(loaded[row.place].run(row.way));
        }
    }
    let base = median(&mut base);
    println!("ns a packet in the XDP program, less the base of {base:.0} ns; medians of {ROUNDS} rounds");
    println!("  connections   way                ns   range of the rounds   × one connection");
    let mut alone = Vec::new();
    for row in &mut rows {
        let Loaded { variant, connections, .. } = &loaded[row.place];
        let nanoseconds = median(&mut row.means) - base;
        if *connections == 1 {
            alone.push((row.place, row.way, nanoseconds));
        }
        let (least, most) = (row.means[0] - base, row.means[ROUNDS - 1] - base);
        let is_alike =
            |(place, way, _): &&(usize, Way, f64)| (*place, *way) == (row.place % methods.len(), row.way);
        let (_, _, one) = alone.iter().find(is_alike).expect("the first rows have one connection");
        let way = match row.way {
            Way::Forwarded => variant.to_string(),
            way => format!("{variant}: {way:?}").to_lowercase(),
        };
        let ratio = nanoseconds / one;
        println!(
            "  {connections:>11}   {way:<12} {nanoseconds:8.1}   {least:8.1} – {most:<8.1}   {ratio:8.2}"
        );
    }
}

/// A line of the report.
struct Row {
    /// The program that runs, by its place.
    place: usize,
    way: Way,
    /// The mean duration of a run in each round.
    means: Vec<f64>,
}

/// Sorts the values, and returns their median.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A loaded program with offloaded connections of one method.
struct Loaded {
    variant: Variant,
    connections: u32,
    steering: Steering,
    /// Its port makes the frames.
    worker: Worker<Loop>,
}

impl Loaded {
    /// Begins the connections and offloads them.
    fn new(variant: Variant, connections: u32) -> Self {
        let mut steering =
            Steering::load_for_offloaded_runs(MapSizes { records: RECORDS, ..MapSizes::default() })
                .expect("root may load programs");
        let servers = (0..rig::SERVERS).map(|number| (variant.protocol, variant.server(number, 0)));
        let rules = SteeringRules {
            services: [(variant.protocol, variant.flow_key(0).dest)].into(),
            nat_destinations: servers.filter(|_| variant.method == Nat).collect(),
            ..Default::default()
        };
        steering.update(&rules).expect("the maps have room");
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
        Self { variant, connections, steering, worker }
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

    /// The mean duration of a run on packets of random connections, changed so that they go this way.
    fn run(&mut self, way: Way) -> f64 {
        let Worker { port, .. } = &mut self.worker;
        let side = if way == Way::Replies { Side::Replies } else { Side::Requests };
        port.offer(side, Order::Drawn, self.connections, RUNS.into());
        let mut burst = Vec::new();
        let mut sum = 0;
        let mut count = 0;
        while port.is_open() {
            port.receive(&mut burst);
            for mut received in burst.drain(..) {
                let ports = &mut received.frame.bytes_mut()[PORTS..];
                match way {
                    Way::Forwarded | Way::Replies => {}
                    // No flow of the bench has such a port.
                    Way::Worker => ports[0] ^= 0x80,
                    Way::Kernel => ports[2] ^= 0x80,
                }
                let run = self.steering.time_offloaded(received.frame.bytes());
                let (is_forwarded, nanos) = run.expect("the program runs");
                let is_expected = is_forwarded == matches!(way, Way::Forwarded | Way::Replies);
                sum += u64::from(nanos) * u64::from(is_expected);
                count += u64::from(is_expected);
                port.recycle(received.frame);
            }
        }
        sum as f64 / count as f64
    }

    /// The mean duration of a run on a frame that is not IP.
    fn run_base(&mut self) -> f64 {
        let run = |_| self.steering.time_offloaded(&NOT_IP).expect("the program runs").1;
        (0..RUNS).map(run).map(f64::from).sum::<f64>() / f64::from(RUNS)
    }
}
