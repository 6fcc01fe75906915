//! The hand-over that is under way, as threads other than the control thread see it.
//!
//! The control thread writes it: it counts each iteration of its wait for the successor. A reload only leaves where it
//! waits.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::Sender;

use crate::lock::lock;

/// The hand-over that is under way.
#[derive(Default)]
pub(crate) struct HandingOver {
    /// The successor's process id; 0 if there is none.
    successor: AtomicU32,
    turns: AtomicU64,
    /// Where a reload waits for its successor to take over, or for the reason of a failure.
    reload: Mutex<Option<Sender<Result<(), String>>>>,
}

// Relaxed everywhere: a late view is as good as a reading a moment earlier.
impl HandingOver {
    /// The process that takes over; `None` if the control thread serves its queue.
    pub(crate) fn successor(&self) -> Option<u32> {
        Some(self.successor.load(Ordering::Relaxed)).filter(|number| *number != 0)
    }

    /// How often the control thread has looked at the successor.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self, successor: u32) {
        self.successor.store(successor, Ordering::Relaxed);
    }

    pub(crate) fn count_turn(&self) {
        self.turns.store(self.turns() + 1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.successor.store(0, Ordering::Relaxed);
    }

    /// Notes where a reload waits for the next successor.
    pub(crate) fn expect(&self, reload: Sender<Result<(), String>>) {
        *lock(&self.reload) = Some(reload);
    }

    /// Where a reload waits for its successor; called once the successor forwards.
    pub(crate) fn take_reload(&self) -> Option<Sender<Result<(), String>>> {
        lock(&self.reload).take()
    }
}

/// How long a successor may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Until its step [`TakeOverStep::Pause`](xvs_model::protocol::request::TakeOverStep::Pause).
    pub(crate) preparation: Duration,
    /// For each later step.
    pub(crate) step: Duration,
}

impl Limits {
    /// The limits for a director with this many real servers, each counted in each of its services, and this many slots
    /// in its connection table: several times as long as 300,000 real servers and a million connections took.
    pub(crate) fn of(servers: usize, places: usize) -> Self {
        let times = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            preparation: Duration::from_secs(60) + Duration::from_millis(1) * times(servers),
            step: Duration::from_secs(10)
                + Duration::from_micros(100) * times(servers)
                + Duration::from_micros(2) * times(places),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::restart::handing_over::*;

    #[test]
    fn a_successor_with_more_servers_and_connections_may_take_longer() {
        let limits = |preparation, step| Limits {
            preparation: Duration::from_secs(preparation),
            step: Duration::from_secs(step),
        };
        assert_eq!(Limits::of(0, 0), limits(60, 10));
        assert_eq!(Limits::of(300_000, 0), limits(360, 40));
        assert_eq!(Limits::of(0, 100_000_000), limits(60, 210));
    }
}
