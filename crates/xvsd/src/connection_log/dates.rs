//! The dates of the data plane's times, which count from the machine's start.

use xvs_dataplane::clock::{Clock, Millis};

use crate::date::date_millis;

/// Converts times to dates. Created for each batch, because the machine's date may be set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dates {
    /// The date at the clock's start, in milliseconds since 1970.
    pub(super) start: u64,
    /// When the log began.
    pub(super) begun: Millis,
}

impl Dates {
    pub(super) fn now(clock: &Clock, begun: Millis) -> Self {
        Self { start: date_millis().saturating_sub(clock.now().0), begun }
    }

    /// Milliseconds since 1970.
    pub(super) fn of(self, time: Millis) -> u64 {
        self.start + time.0
    }
}
