//! Work that is due: items to recompute after a change, and tasks at intervals.

use std::collections::BTreeSet;
use std::time::Duration;

use xvs_dataplane::clock::Millis;

use crate::registry::estimator;

/// Items to recompute: some, or all.
pub(super) enum Due<T> {
    These(BTreeSet<T>),
    Everything,
}

impl<T> Default for Due<T> {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl<T: Ord> Due<T> {
    pub(super) fn add(&mut self, one: T) {
        if let Self::These(these) = self {
            these.insert(one);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::These(these) if these.is_empty())
    }
}

/// Due times of the periodic tasks.
pub(super) struct Schedule {
    estimate: Millis,
    unused: Millis,
    memory: Millis,
    review: Millis,
    times: Millis,
}

/// How late a sample of the counters is still taken.
const MISSED_MAX: Duration = Duration::from_secs(600);
/// Interval of forgetting what no connection uses.
const UNUSED_INTERVAL: Duration = Duration::from_secs(60);
/// Interval of checking the memory left, for automatic defences.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of expiring load reports and of maintaining owned services.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of changing the weights that follow measured times: times show a changed weight only after a while.
const TIMES_INTERVAL: Duration = Duration::from_secs(10);

impl Default for Schedule {
    fn default() -> Self {
        Self {
            estimate: Millis(0) + estimator::INTERVAL,
            unused: Millis(0) + UNUSED_INTERVAL,
            memory: Millis(0) + MEMORY_INTERVAL,
            review: Millis(0) + REVIEW_INTERVAL,
            times: Millis(0) + TIMES_INTERVAL,
        }
    }
}

impl Schedule {
    /// The number of samples of the counters that are due. Those that were missed count, but for a gap in which all
    /// rates would have decayed.
    pub(super) fn samples(&mut self, now: Millis) -> u32 {
        let due = if self.estimate.until(now) > MISSED_MAX { now } else { self.estimate };
        if due > now {
            return 0;
        }
        let missed = (due.until(now).as_millis() / estimator::INTERVAL.as_millis()) as u32;
        self.estimate = due + estimator::INTERVAL * (missed + 1);
        missed + 1
    }

    /// Whether what no connection uses is to be forgotten.
    pub(super) fn unused(&mut self, now: Millis) -> bool {
        is_due(&mut self.unused, now, UNUSED_INTERVAL)
    }

    /// Whether the memory left is to be checked.
    pub(super) fn memory(&mut self, now: Millis) -> bool {
        is_due(&mut self.memory, now, MEMORY_INTERVAL)
    }

    /// Whether load reports and owned services are to be reviewed.
    pub(super) fn review(&mut self, now: Millis) -> bool {
        is_due(&mut self.review, now, REVIEW_INTERVAL)
    }

    /// Whether weights are to follow measured times.
    pub(super) fn times(&mut self, now: Millis) -> bool {
        is_due(&mut self.times, now, TIMES_INTERVAL)
    }

    /// The earliest due time.
    pub(super) fn next(&self) -> Millis {
        self.estimate.min(self.unused).min(self.memory).min(self.review).min(self.times)
    }
}

fn is_due(at: &mut Millis, now: Millis, interval: Duration) -> bool {
    let is_due = *at <= now;
    if is_due {
        *at = now + interval;
    }
    is_due
}
