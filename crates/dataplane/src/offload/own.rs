//! The records that one worker has created.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use xvs_proto::LinkId;

use super::give_up::GiveUp;
use super::shared::Offload;
use crate::clock::Millis;
use crate::conn::ConnId;
use crate::snapshot::DestinationId;

/// The records of one worker.
pub(crate) struct Offloader {
    pub(super) shared: Arc<Offload>,
    /// The number of a client's packets that workers process before offload.
    pub(super) after: u32,
    pub(super) own: Vec<Own>,
    /// The next record in `own` to read.
    pub(super) next: usize,
    /// When the next pass begins, or has begun.
    pub(super) due: Millis,
    /// Which of them are given up in this pass.
    pub(super) give_up: GiveUp,
    /// The number of records in `own` that this worker has ended and that are not free yet.
    pub(super) given_up: usize,
    /// Whether the next record to read is the first one of a pass.
    pub(super) begins: bool,
    /// Connections whose record a change has ended, to be offloaded again: their generations, and the links on which
    /// requests arrive.
    pub(super) ended: Vec<(ConnId, u32, LinkId)>,
    /// When these are tried.
    pub(super) again_due: Millis,
    /// The rest of a record without keys before its reuse.
    pub(super) rest: Duration,
}

/// A record of this worker.
pub(super) struct Own {
    pub(super) record: u32,
    pub(super) id: ConnId,
    /// The link by which requests arrive.
    pub(super) link: LinkId,
    pub(super) generation: u32,
    pub(super) destination: DestinationId,
    /// The positions of its keys: for the client, if the record has another number, and for replies with FULLNAT.
    pub(super) places: [Option<usize>; 2],
    /// Whether no pass has read it yet.
    pub(super) is_new: bool,
    /// Whether this worker has ended the record and will not begin it again.
    pub(super) is_given_up: bool,
    /// Whether it counts as one in force.
    pub(super) is_counted: bool,
    /// Whether the program may measure the time of the first reply, and no pass has found it yet.
    pub(super) is_timed: bool,
}

impl Own {
    /// Counts the record as in force, or not.
    pub(super) fn count(&mut self, shared: &Offload, is_in_force: bool) {
        match (std::mem::replace(&mut self.is_counted, is_in_force), is_in_force) {
            (false, true) => _ = shared.in_force.fetch_add(1, Relaxed),
            (true, false) => _ = shared.in_force.fetch_sub(1, Relaxed),
            _ => {}
        }
    }
}

/// Offload is tried at this number of packets after `after`, then at every multiple of `OFTEN`.
const TRIES: u32 = 8;
const OFTEN: u32 = 64;
/// The number of records that are read between two bursts.
pub(super) const SLICE: usize = 64;
/// How long a worker waits for free records.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// The rest of a record without keys (`unused.rs`).
const REST: Duration = Duration::from_millis(100);
/// The time between two passes.
pub(super) const PASS: Duration = Duration::from_secs(1);

impl Offloader {
    /// Whether offload is tried at a connection's packet with this number.
    #[inline]
    pub(crate) fn is_due(&self, packets: u32) -> bool {
        let more = packets.saturating_sub(self.after);
        (1..=TRIES).contains(&more) || more != 0 && more.is_multiple_of(OFTEN)
    }

    pub(crate) fn new(shared: Arc<Offload>) -> Self {
        let records = shared.flows.records();
        Self {
            after: shared.settings.after,
            shared,
            own: Vec::with_capacity(records),
            next: 0,
            due: Millis(0),
            give_up: GiveUp::default(),
            given_up: 0,
            begins: true,
            ended: Vec::with_capacity(records),
            again_due: Millis(0),
            rest: REST,
        }
    }

    /// Whether there is no room for another record of this worker.
    pub(super) fn is_full(&self) -> bool {
        self.own.len() == self.own.capacity()
    }

    pub(super) fn add(&mut self, own: Own, now: Millis) {
        if self.own.is_empty() {
            (self.next, self.due, self.begins) = (0, now + PASS, true);
        }
        self.given_up += usize::from(own.is_given_up);
        self.own.push(own);
    }

    /// Whether a record is to be read.
    pub(super) fn is_pass_due(&self, now: Millis) -> bool {
        !self.own.is_empty() && self.due <= now
    }

    /// Whether a connection is to be offloaded again.
    pub(super) fn is_again_due(&self, now: Millis) -> bool {
        !self.ended.is_empty() && self.again_due <= now
    }

    /// Whether a record must be read, or a connection offloaded again.
    pub(super) fn has_work(&self, now: Millis) -> bool {
        self.is_pass_due(now) || self.is_again_due(now)
    }

    /// Ends all records, also those of other workers.
    pub(crate) fn end_all(&self) {
        self.shared.end_all();
    }

    /// When a sleeping worker has to continue with its records.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        let pass = (!self.own.is_empty()).then_some(self.due);
        let again = (!self.ended.is_empty()).then_some(self.again_due);
        pass.into_iter().chain(again).min()
    }
}
