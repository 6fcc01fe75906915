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
    /// The time of the last sample.
    sampled: Millis,
    /// Forgets objects that no connection uses.
    pub(super) unused: Periodic,
    /// Checks the memory left, retries daemons, expires load reports and maintains owned services.
    pub(super) second: Periodic,
    /// Changes the weights that follow measured times: times show a changed weight only after a while.
    pub(super) times: Periodic,
}

/// A task at an interval.
pub(super) struct Periodic {
    due: Millis,
    interval: Duration,
}

/// The longest delay after which missed samples of the counters are still taken.
const MISSED_MAX: Duration = Duration::from_secs(600);
/// The number of services and real servers from which on samples of their counters are taken two at a time; with
/// multiples of this number, three at a time and so on. A pass over this number takes 0.2 s.
const COUNTERS_AT_ONCE: usize = 250_000;

impl Default for Schedule {
    fn default() -> Self {
        Self {
            estimate: Millis(0) + estimator::INTERVAL,
            sampled: Millis(0),
            unused: Periodic::every(Duration::from_secs(60)),
            second: Periodic::every(Duration::from_secs(1)),
            times: Periodic::every(Duration::from_secs(10)),
        }
    }
}

impl Schedule {
    /// Calls `sample` with the number of samples of the counters that are due; `sample` returns the number of counters.
    /// The more counters, the later the next samples, because a pass over all takes longer. Missed samples are due too,
    /// except after a gap in which all rates would have decayed.
    pub(super) fn sample(&mut self, now: Millis, sample: impl FnOnce(u32) -> usize) {
        if self.estimate > now {
            return;
        }
        let since = self.sampled.until(now);
        let samples = (since.as_millis() / estimator::INTERVAL.as_millis()) as u32;
        let (samples, sampled) = match since > MISSED_MAX {
            true => (1, now),
            false => (samples, self.sampled + estimator::INTERVAL * samples),
        };
        self.sampled = sampled;
        let intervals = 1 + (sample(samples) / COUNTERS_AT_ONCE) as u32;
        self.estimate = self.sampled + estimator::INTERVAL * intervals;
    }

    /// The earliest due time.
    pub(super) fn next(&self) -> Millis {
        self.estimate.min(self.unused.due).min(self.second.due).min(self.times.due)
    }
}

impl Periodic {
    fn every(interval: Duration) -> Self {
        Self { due: Millis(0) + interval, interval }
    }

    /// Whether the task is to be performed now; the next time is then an interval later.
    pub(super) fn is_due(&mut self, now: Millis) -> bool {
        let is_due = self.due <= now;
        if is_due {
            self.due = now + self.interval;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use crate::control::due::*;

    /// The samples that are due at each of these times, in seconds, of this number of counters.
    fn samples(counters: usize, seconds: &[u64]) -> Vec<u32> {
        let mut schedule = Schedule::default();
        let at_each = seconds.iter().map(|seconds| {
            let mut taken = 0;
            schedule.sample(Millis(seconds * 1000), |samples| {
                taken = samples;
                counters
            });
            taken
        });
        at_each.collect()
    }

    #[test]
    fn counters_are_sampled_every_two_seconds_and_missed_samples_count_once_they_are_taken() {
        assert_eq!(samples(10, &[1, 2, 3, 4, 9, 10, 11, 12]), [0, 1, 0, 1, 2, 1, 0, 1]);
        assert_eq!(samples(10, &[2, 1000, 1001, 1002]), [1, 1, 0, 1], "after a gap");
    }

    #[test]
    fn a_million_counters_are_sampled_as_often_in_fewer_passes() {
        assert_eq!(samples(1_000_000, &[2, 4, 10, 12, 14, 22, 24]), [1, 0, 0, 5, 0, 5, 0]);
    }
}
