//! One thread on one core: bursts while there are any, sleep when there are none.
//!
//! A worker loads the snapshot once a burst, reads the clock once a burst, and waits for nobody. Before it sleeps it
//! parks, so that changes and the reuse of entries do not wait for it; when it wakes it loads the snapshot anew. It
//! sleeps until a frame comes, its next timer, or a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::{Clock, Millis};
use crate::conn::Timers;
use crate::pipeline::Pipeline;
use crate::port::Port;
use crate::snapshot::Snapshot;

/// A worker, to be run on a thread of its own.
pub struct Worker<P> {
    /// Its stages.
    pub pipeline: Pipeline,
    /// Its queues.
    pub port: P,
    /// Where the snapshot in force is.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Tells the time to all workers alike.
    pub clock: Arc<Clock>,
    /// Set, then called by its port's waker: the worker ends.
    pub stop: Arc<AtomicBool>,
}

impl<P: Port> Worker<P> {
    /// Runs until it is stopped and has sent on what had come in; returns the port, with whatever it still holds.
    pub fn run(mut self) -> P {
        let mut last = LAST_BURSTS;
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            let now = self.clock.now();
            let snapshot = self.snapshot.load();
            let timers = self.pipeline.expire(&snapshot, now);
            let frames = self.pipeline.run(&snapshot, &mut self.port, now);
            // In this order: whoever waits for this point frees the snapshot.
            drop(snapshot);
            self.pipeline.quiescent();
            match (stopping, frames == 0 && timers == Timers::Current) {
                (true, idle) if idle || last == 0 => return self.port,
                (true, _) => last -= 1,
                (false, true) => self.sleep(now),
                (false, false) => {}
            }
        }
    }

    fn sleep(&mut self, now: Millis) {
        let until_timer = self.pipeline.flows().next_due().map(|due| now.until(due));
        let table = self.pipeline.flows().table();
        let at_most = match table.in_limbo() {
            0 => until_timer,
            _ => Some(until_timer.map_or(LIMBO_WAIT, |until| until.min(LIMBO_WAIT))),
        };
        table.park();
        self.port.wait(at_most);
        self.pipeline.flows().table().unpark();
    }
}

/// How many bursts a worker that is stopped still takes: more than its queues hold.
const LAST_BURSTS: u32 = 1024;
/// How long entries that are to be reused may wait for a worker that has nothing else to do.
const LIMBO_WAIT: Duration = Duration::from_secs(1);
