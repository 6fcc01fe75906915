//! A worker: the loop of one thread on one core, which processes bursts and sleeps between them.
//!
//! A worker loads the snapshot and reads the clock once for each burst, and waits for no other thread. Before it sleeps
//! it parks, so that changes and the reuse of entries do not wait for it; when it wakes it loads the snapshot again. It
//! sleeps until a frame arrives, its next timer is due, or it is woken. About once a second while packets arrive, it
//! copies the kernel's drop counters and checks the balance of its frames. Measuring its load costs two additions for
//! each burst: an iteration ends when the next begins, which reads the clock anyway. With a hold, the worker beats, and
//! sleeps for half a second at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::burst::{Context, dispatch};
use crate::clock::{Clock, Millis};
use crate::conn::Timers;
use crate::counters::{Counter, WorkerCounters};
use crate::pipeline::Pipeline;
use crate::port::{KernelDrops, Port};
use crate::snapshot::Snapshot;
use crate::steering::hold::{Beats, Hold};

/// A worker, which runs on its own thread.
pub struct Worker<P> {
    /// The stages of the worker.
    pub pipeline: Pipeline,
    /// The worker's queues.
    pub port: P,
    /// The published snapshot.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The clock of all workers.
    pub clock: Arc<Clock>,
    /// The hold that the worker maintains; `None` if the port has no XDP program.
    pub hold: Option<Arc<Hold>>,
    /// The worker ends when this is set and it is woken.
    pub stop: Arc<AtomicBool>,
}

impl<P: Port> Worker<P> {
    /// Runs until it is stopped and has processed everything that it had received. It has then left the table, and may
    /// run again, also with another port.
    pub fn run(&mut self) {
        self.pipeline.flows.table().enter();
        self.work();
        self.pipeline.flows.leave();
    }

    fn work(&mut self) {
        let mut drops = DropCopy::default();
        let mut last = LAST_BURSTS;
        let mut busy_since: Option<Duration> = None;
        let hold = self.hold.clone().filter(|hold| !hold.length().is_zero());
        let mut beats = Beats::NONE;
        let mut next_beat = Duration::ZERO;
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            let begun = self.clock.elapsed();
            if let Some(since) = busy_since {
                self.pipeline.transmitter.counters().count_busy(begun.saturating_sub(since));
            }
            if begun >= next_beat {
                if let Some(hold) = &hold {
                    hold.beat(begun);
                    beats = Beats::of(hold.length());
                }
                next_beat = begun + beats.interval;
            }
            let snapshot = self.snapshot.load();
            let cx = Context::at(&snapshot, begun);
            let now = cx.now;
            let timers = self.pipeline.flows.expire(&snapshot, now);
            let more = self.pipeline.flows.receive_synchronized(&snapshot, now)
                | self.pipeline.flows.sweep_offloaded(cx);
            let frames = self.pipeline.run(cx, &mut self.port);
            // In this order: a thread that waits for this quiescent point frees the snapshot.
            drop(snapshot);
            self.pipeline.flows.quiescent();
            drops.look(frames, now, || self.port.kernel_drops(), self.pipeline.transmitter.counters());
            self.pipeline.transmitter.counters().count_poll(frames);
            let idle = frames == 0 && timers == Timers::Current && !more;
            busy_since = (!idle).then_some(begun);
            match (stopping, idle) {
                (true, idle) if idle || last == 0 => {
                    dispatch::abandon(
                        &mut self.pipeline.reassembly,
                        &mut self.pipeline.transmitter,
                        &mut self.port,
                    );
                    return;
                }
                (true, _) => last -= 1,
                (false, true) => self.sleep(now, drops.due, beats.sleep),
                (false, false) => {}
            }
        }
    }

    fn sleep(&mut self, now: Millis, drops_due: Option<Millis>, longest: Option<Duration>) {
        let Pipeline { flows, reassembly, transmitter, .. } = &self.pipeline;
        let until_timer = [flows.next_due(), reassembly.next_due(now), transmitter.next_due(now), drops_due]
            .into_iter()
            .flatten()
            .min()
            .map(|due| now.until(due));
        let table = self.pipeline.flows.table();
        let until_reuse = (table.in_limbo() > 0).then_some(LIMBO_WAIT);
        table.park();
        self.port.wait([until_timer, until_reuse, longest].into_iter().flatten().min());
        self.pipeline.flows.table().unpark();
    }
}

/// The number of bursts that a stopped worker still processes: more than its queues contain.
const LAST_BURSTS: u32 = 1024;
/// The time that removed entries may wait for a worker that is otherwise idle.
const LIMBO_WAIT: Duration = Duration::from_secs(1);
/// The maximum age of the copy of the kernel's counters.
const DROPS_AGE: Duration = Duration::from_secs(1);

/// The copy of the kernel's drop counters, and the check of the balance: once, some time after packets arrived.
#[derive(Debug, Default)]
struct DropCopy {
    due: Option<Millis>,
    /// The kernel's counts for this port that are already included.
    seen: KernelDrops,
}

impl DropCopy {
    fn look(
        &mut self,
        frames: usize,
        now: Millis,
        drops: impl FnOnce() -> KernelDrops,
        counters: &WorkerCounters,
    ) {
        match self.due {
            None if frames > 0 => self.due = Some(now + DROPS_AGE),
            Some(due) if due <= now => {
                let KernelDrops { ring_full, fill_ring_empty, other } = drops();
                raise(&counters.kernel_ring_full, &mut self.seen.ring_full, ring_full);
                raise(&counters.kernel_fill_ring_empty, &mut self.seen.fill_ring_empty, fill_ring_empty);
                raise(&counters.kernel_dropped, &mut self.seen.other, other);
                counters.unaccounted.set(counters.balance().unsigned_abs());
                self.due = None;
            }
            _ => {}
        }
    }
}

/// Raises a counter by the part of the kernel's count that is not included yet.
fn raise(counter: &Counter, seen: &mut u64, now: u64) {
    counter.add(now.saturating_sub(*seen));
    *seen = now.max(*seen);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_drops_are_copied_once_a_second_after_packets_and_never_decrease() {
        let (mut copy, counters) = (DropCopy::default(), WorkerCounters::default());
        let drops = |other| KernelDrops { ring_full: 3, fill_ring_empty: 2, other };
        let never = || -> KernelDrops { panic!("the counters are read without need") };
        copy.look(0, Millis(5), never, &counters);
        copy.look(64, Millis(10), never, &counters);
        copy.look(64, Millis(1009), never, &counters);
        copy.look(0, Millis(1010), || drops(1), &counters);
        copy.look(0, Millis(9000), never, &counters);
        let counted = || {
            [&counters.kernel_ring_full, &counters.kernel_fill_ring_empty, &counters.kernel_dropped]
                .map(|counter| counter.value())
        };
        assert_eq!(counted(), [3, 2, 1]);
        copy.look(1, Millis(10_000), never, &counters);
        // A removed interface has no counters any more.
        copy.look(0, Millis(11_000), KernelDrops::default, &counters);
        assert_eq!(counted(), [3, 2, 1]);
        copy.look(1, Millis(12_000), never, &counters);
        copy.look(0, Millis(13_000), || drops(7), &counters);
        assert_eq!(counted(), [3, 2, 7]);
    }

    #[test]
    fn an_imbalance_between_bursts_of_either_sign_is_shown_until_it_is_gone() {
        let (mut copy, counters) = (DropCopy::default(), WorkerCounters::default());
        let mut look = |second: u64| {
            copy.look(1, Millis(2000 * second), KernelDrops::default, &counters);
            copy.look(0, Millis(2000 * second + 1000), KernelDrops::default, &counters);
            counters.unaccounted.value()
        };
        counters.received.add(3);
        assert_eq!(look(0), 3);
        counters.transmitted.add(5);
        assert_eq!(look(1), 2);
        counters.originated.add(2);
        assert_eq!(look(2), 0);
    }
}
