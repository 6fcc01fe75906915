//! The records that one worker has made.

use std::sync::Arc;
use std::time::Duration;

use xvs_proto::LinkId;

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
    /// While records are short: connections with up to so many packets in a pass give theirs up.
    pub(super) cold: u64,
    /// How many more do so in this pass, so that no more become free than are short.
    pub(super) to_give: usize,
    /// Connections whose record has ended although they had packets, and the link of those.
    pub(super) ended: Vec<(ConnId, LinkId)>,
}

/// A record of this worker.
pub(super) struct Own {
    pub(super) record: u32,
    pub(super) id: ConnId,
    /// The link by which requests come.
    pub(super) link: LinkId,
    pub(super) generation: u32,
    pub(super) destination: DestinationId,
    /// Passes since the last packet while it was in force.
    pub(super) idle: u8,
    /// Whether this worker has ended it, and does not begin it anew.
    pub(super) is_given_up: bool,
}

/// It is tried with so many packets, and then again with every multiple of the second number.
const TRIES: u32 = 8;
const OFTEN: u32 = 64;
/// Records that are read between two bursts.
pub(super) const SLICE: usize = 64;
/// The most packets in a second of connections that give their records up when those are short.
const COLDEST: u64 = 64;
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
        let (own, ended) = (Vec::with_capacity(RECORDS), Vec::with_capacity(SLICE));
        Self { shared, after, own, next: 0, due: Millis(0), cold: 0, to_give: 0, ended }
    }

    /// Whether there is no room for another record of this worker.
    pub(super) fn is_full(&self) -> bool {
        self.own.len() == self.own.capacity()
    }

    pub(super) fn add(&mut self, own: Own, now: Millis) {
        if self.own.is_empty() {
            self.begin_pass(now + PASS);
        }
        self.own.push(own);
    }

    /// Begins a pass at this time or later.
    pub(super) fn begin_pass(&mut self, due: Millis) {
        (self.next, self.due) = (0, due);
        // The share of this worker.
        let (short, used) = (self.shared.short_of(), self.shared.used().max(1));
        self.to_give = (short * self.own.len()).div_ceil(used);
        self.cold = if self.to_give == 0 { 0 } else { (2 * self.cold).clamp(1, COLDEST) };
    }

    /// Ends all records, of other workers as well.
    pub(crate) fn end_all(&self) {
        self.shared.end_all();
    }

    /// When a worker that sleeps has to read the next ones.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        (!self.own.is_empty()).then_some(self.due)
    }
}
