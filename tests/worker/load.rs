//! A worker's counters of its own load, with a clock that its port moves.
//!
//! The worker is the data plane's own, on this thread, over the port of the benches. Not here: the
//! metrics made from them (`crates/xvsd/src/metrics/director.rs`), and a worker with interfaces (`netlab/metrics.rs`).

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::clock::Clock;
use xvs_dataplane::shm::Memory;
use xvs_sched::ForwardingMethod::DirectRouting;

use crate::rig::{self, Order, Side};

#[test]
fn bursts_count_as_busy_time_and_by_size_and_sleep_counts_as_neither() {
    let mut worker = rig::worker(DirectRouting, 1024, Memory::OnDemand);
    worker.port.offer(Side::Requests, Order::Turns, 10, 64 + 64 + 2);
    let passes = |clock: &Arc<Clock>, time| {
        let clock = clock.clone();
        move || clock.advance(time)
    };
    let burst = passes(&worker.clock, Duration::from_millis(3));
    worker.port.received = Some(Box::new(move |_| burst()));
    worker.port.sleeps = Some(Box::new(passes(&worker.clock, Duration::from_secs(3600))));
    worker.run();
    let counters = worker.pipeline.transmitter.counters();
    assert_eq!(counters.busy_ns.value(), 3 * 3_000_000);
    assert_eq!((counters.bursts.counts(), counters.bursts.sum.value()), ([0, 1, 0, 0, 0, 0, 2], 130));
    // Once before it slept, and once before it ended.
    assert_eq!(counters.empty_polls.value(), 2);
    assert_eq!((counters.received.value(), counters.balance()), (130, 0));
}
