//! What a worker tells of its own load, with a clock that its port moves.
//!
//! The worker is the data plane's own, on this thread, over the port of the benches. Not here: what is made of it
//! (`crates/ctl/src/metrics.rs`), a worker on the wire (`tests/netlab_metrics.rs`).

// What the benches and this test share; neither uses all of it.
#[allow(dead_code)]
#[path = "../benches/rig/mod.rs"]
mod rig;

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::clock::Clock;
use xvs_dataplane::port::{LinkId, Port, Received, Woken};
use xvs_dataplane::shm::{Census, Frame, Memory};
use xvs_dataplane::worker::Worker;
use xvs_sched::ForwardingMethod::DirectRouting;

use rig::{Loop, Order, Side};

/// A port on which a burst takes 3 ms and a sleep an hour.
struct Slow {
    inner: Loop,
    clock: Arc<Clock>,
}

impl Port for Slow {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        self.inner.receive(burst);
        if !burst.is_empty() {
            self.clock.advance(Duration::from_millis(3));
        }
    }

    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        self.inner.transmit(link, frame)
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        self.inner.pass_to_kernel(link, frame)
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.inner.allocate()
    }

    fn recycle(&mut self, frame: Frame) {
        self.inner.recycle(frame);
    }

    fn flush(&mut self) {}

    fn wait(&mut self, at_most: Option<Duration>) -> Woken {
        self.clock.advance(Duration::from_secs(3600));
        self.inner.wait(at_most)
    }

    fn census(&self) -> Census {
        self.inner.census()
    }
}

#[test]
fn bursts_are_busy_time_and_counted_by_their_size_and_sleep_is_neither() {
    let worker = rig::worker(DirectRouting, 1024, Memory::OnDemand);
    let Worker { pipeline, port: mut inner, snapshot, clock, stop } = worker;
    inner.offer(Side::Requests, Order::Turns, 10, 64 + 64 + 2);
    let port = Slow { inner, clock: clock.clone() };
    let mut worker = Worker { pipeline, port, snapshot, clock, stop };
    worker.run();
    let counters = worker.pipeline.counters();
    assert_eq!(counters.busy_ns.value(), 3 * 3_000_000);
    assert_eq!((counters.bursts.counts(), counters.bursts.sum.value()), ([0, 1, 0, 0, 0, 0, 2], 130));
    // Before it slept, and once more when it was told to end.
    assert_eq!(counters.empty_polls.value(), 2);
    assert_eq!((counters.received.value(), counters.in_hand()), (130, 0));
}
