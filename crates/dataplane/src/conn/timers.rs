//! A worker's timers: each connection is processed once its deadline has passed.
//!
//! Runs first in a burst. Cost: a few loads for each due link, at most [`TIMERS_A_CALL`] in a call. `burst/expiry.rs`
//! handles passed deadlines.

use std::time::Duration;

use super::handle::{TableHandle, TableWorker};
use super::id::ConnId;
use super::table::HandleState;
use super::timer_link::{link_anew, put_back};
use crate::clock::Millis;
use crate::shm::atomic::Ordering;

/// Whether a worker's timers are up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timers {
    /// All timers that were due have been processed.
    Current,
    /// More timers are due; the next call processes them.
    Behind,
}

impl TableWorker {
    /// Processes a bounded number of due links, and calls `expired` for each connection whose deadline has passed.
    /// `expired` removes or refreshes the connection; otherwise it is due again a tick (1/8 s) later. Must be called
    /// first in a burst: the timers of inserted connections count from the last call.
    pub fn advance_timers(&mut self, now: Millis, mut expired: impl FnMut(&mut Self, ConnId)) -> Timers {
        debug_assert!(!self.handle.parked);
        self.handle.now = now;
        for _ in 0..TIMERS_A_CALL {
            let TableHandle { table, state: HandleState { wheel, .. }, .. } = &mut self.handle;
            let Some(link) = wheel.pop(now) else {
                self.link_adopted(now);
                return Timers::Current;
            };
            if put_back(wheel, table.slab.entry(link.index), link) {
                expired(self, ConnId(link.index));
            }
        }
        Timers::Behind
    }

    /// Links some of the connections in a table that was taken over, once in a millisecond: a worker that did nothing
    /// else would keep its core from receiving.
    fn link_adopted(&mut self, now: Millis) {
        let TableHandle { table, state: HandleState { wheel, unlinked, linked_at, .. }, .. } =
            &mut self.handle;
        if unlinked.start == unlinked.end || now <= *linked_at {
            return;
        }
        *linked_at = now;
        for index in unlinked.by_ref().take(LINKS_A_CALL) {
            let entry = table.slab.entry(index);
            let life = entry.life();
            if life.is_current() {
                // Whatever its tick: possibly no worker has linked it yet, and a second link is harmless.
                link_anew(wheel, entry, index, entry.timer.load(Ordering::Relaxed), life.deadline());
            }
        }
    }

    /// The time when the worker must advance its timers at the latest; `None` if it has no timers.
    pub fn next_timer(&self) -> Option<Millis> {
        let HandleState { wheel, unlinked, linked_at, .. } = &self.handle.state;
        let next_links = (unlinked.start < unlinked.end).then(|| *linked_at + Duration::from_millis(1));
        wheel.next_due().into_iter().chain(next_links).min()
    }
}

/// The number of links that one call of `advance_timers` processes: four times the connections of a burst.
const TIMERS_A_CALL: usize = 256;
/// The number of connections in a table taken over that one call of `advance_timers` links.
const LINKS_A_CALL: usize = 1024;
