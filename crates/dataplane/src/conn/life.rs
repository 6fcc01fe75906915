//! The field `life` of an entry: phase, state and deadline in one integer, which is read and written whole.

use std::time::Duration;

use crate::clock::Millis;

/// The phase of an entry. An entry that was never used is 0, like fresh memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Taken and filled, possibly already found by look-ups, but not yet completely inserted.
    Pending = 1,
    /// Unlinked: in limbo or free.
    Removed = 2,
    /// In the table. The value is `Pending` plus one bit, so that the change preserves concurrent writes by other
    /// threads.
    Live = 3,
}

/// The field `life`: phase in bits 62 and 63; in bit 56 whether the connection may have a record for the XDP program,
/// which then contains its state (`offloaded.rs`); state in bits 48 to 55, deadline in milliseconds in bits 0 to 47.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life(pub(super) u64);

impl Life {
    pub(super) fn new(phase: Phase, state: u8, deadline: Millis) -> Self {
        Self((phase as u64) << 62 | u64::from(state) << 48 | deadline.0.min(DEADLINE_MAX))
    }

    /// A removed entry. `next` is the index plus one of the next entry in its chain; 0 if there is none.
    pub(super) fn removed(next: u32) -> Self {
        Self((Phase::Removed as u64) << 62 | u64::from(next))
    }

    #[inline]
    pub(crate) fn is_live(self) -> bool {
        self.0 >> 62 == Phase::Live as u64
    }

    /// Live or being inserted.
    pub(super) fn is_current(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    #[inline]
    pub(crate) fn state(self) -> u8 {
        if self.is_current() { (self.0 >> 48) as u8 } else { 0 }
    }

    #[inline]
    pub(crate) fn deadline(self) -> Millis {
        if self.is_current() { Millis(self.0 & DEADLINE_MAX) } else { Millis(0) }
    }

    /// Whether a packet that requests this deadline leaves the stored one unchanged: stored deadlines are up to a
    /// second later (see `TableWorker::transition`).
    #[inline]
    pub(crate) fn keeps(self, expires: Millis) -> bool {
        let deadline = self.deadline();
        deadline >= expires && deadline < expires + SECOND
    }

    /// The index plus one of the next entry in the chain of removed entries; 0 if there is none.
    pub(super) fn next(self) -> u32 {
        self.0 as u32
    }

    /// This value with another state and deadline, in the same phase.
    pub(super) fn with(self, state: u8, deadline: Millis) -> Self {
        Self(self.0 & (PHASE | OFFLOADED) | u64::from(state) << 48 | deadline.0.min(DEADLINE_MAX))
    }

    /// The value after a packet that requests this state and deadline; `None` if it does not change. See
    /// `TableWorker::transition` for how a deadline is stored.
    pub(super) fn refreshed(self, state: u8, expires: Millis) -> Option<Self> {
        let deadline = match self.deadline() {
            _ if self.state() != state => expires,
            _ if self.keeps(expires) => return None,
            now if now < expires && expires < now + SECOND => whole_second(expires),
            _ => expires,
        };
        Some(self.with(state, deadline))
    }

    /// Like [`Self::refreshed`], but without bringing forward the deadline of an unchanged state.
    pub(super) fn later(self, state: u8, expires: Millis) -> Self {
        if self.state() == state && expires <= self.deadline() {
            return self;
        }
        self.refreshed(state, expires).unwrap_or(self)
    }

    /// Whether the connection may have a record, which is then more recent.
    #[inline]
    pub(crate) fn is_offloaded(self) -> bool {
        self.0 & OFFLOADED != 0
    }

    /// This value without the mark for a record.
    pub(super) fn taken_back(self) -> Self {
        Self(self.0 & !OFFLOADED)
    }
}

const SECOND: Duration = Duration::from_secs(1);
pub(super) const DEADLINE_MAX: u64 = (1 << 48) - 1;
pub(super) const OFFLOADED: u64 = 1 << 56;
const PHASE: u64 = 0b11 << 62;

fn whole_second(time: Millis) -> Millis {
    Millis(time.0.div_ceil(1000).saturating_mul(1000))
}
