//! The durations of requests to the control thread.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use xvs_dataplane::counters::Histogram;
use xvs_model::protocol::request::Access;

use crate::lock::lock;

/// Durations of requests to the control thread, from the request to its reply, in microseconds, separate for changes
/// and reads. The holder of the lock is the only writer.
#[derive(Default)]
pub(crate) struct RequestDurations([Mutex<Histogram<DURATION_BOUNDS>>; 2]);

/// The number of buckets of the histogram: the last bound is 2^23 µs, eight seconds.
pub(crate) const DURATION_BOUNDS: usize = 24;

impl RequestDurations {
    /// Counts one request.
    pub(crate) fn count(&self, access: Access, time: Duration) {
        // Fits: it is shorter than the daemon's uptime.
        self.of(access).count(time.as_micros() as u64);
    }

    /// The histogram for this kind of request.
    pub(crate) fn of(&self, access: Access) -> MutexGuard<'_, Histogram<DURATION_BOUNDS>> {
        lock(&self.0[access as usize])
    }
}
