//! The records that one worker has made.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Offload;
use crate::clock::Millis;
use crate::conn::{ConnId, RECORDS};
use crate::snapshot::DestinationId;

/// The records of one worker.
pub(crate) struct Offloader {
    pub(super) shared: Arc<Offload>,
    /// The packets of a client that workers process first.
    pub(super) after: u32,
    pub(super) own: Vec<Own>,
    /// The next one to read.
    pub(super) next: usize,
    /// When the next pass begins, or has begun.
    pub(super) due: Millis,
}

/// A record of this worker.
pub(super) struct Own {
    pub(super) record: u32,
    pub(super) id: ConnId,
    pub(super) generation: u32,
    pub(super) destination: DestinationId,
    /// Passes since the last packet.
    pub(super) idle: u8,
}

/// It is tried with so many packets, and then again with every multiple of the second number.
const TRIES: u32 = 8;
const OFTEN: u32 = 64;
/// From pass to pass.
pub(super) const PASS: Duration = Duration::from_secs(1);

impl Offloader {
    /// Whether the packet of this number of a connection is one at which its offload is tried.
    #[inline]
    pub(crate) fn is_due(&self, packets: u32) -> bool {
        let more = packets.saturating_sub(self.after);
        (1..=TRIES).contains(&more) || more != 0 && more.is_multiple_of(OFTEN)
    }

    pub(crate) fn new(shared: Arc<Offload>) -> Self {
        let after = shared.settings.after;
        Self { shared, after, own: Vec::with_capacity(RECORDS), next: 0, due: Millis(0) }
    }

    /// Whether there is no room for another record of this worker.
    pub(super) fn is_full(&self) -> bool {
        self.own.len() == self.own.capacity()
    }

    pub(super) fn add(&mut self, own: Own, now: Millis) {
        if self.own.is_empty() {
            (self.next, self.due) = (0, now + PASS);
        }
        self.own.push(own);
    }

    /// When a worker that sleeps has to read the next ones.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        (!self.own.is_empty()).then_some(self.due)
    }
}
