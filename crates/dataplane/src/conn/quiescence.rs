//! When nobody can still hold what was unlinked.
//!
//! Every thread that looks into the table has a slot. It says there, at the end of a burst, which epoch it has seen,
//! or that it is parked and looks at nothing. Who has unlinked entries closes the epoch and reuses them when every
//! slot is parked or has seen a later one. A worker writes its own slot only, so a burst costs one load, and one
//! store if the epoch has moved. Nobody waits: who cannot reuse yet asks again a burst later.
//!
//! Why it is safe. Let U be an unlinking, C the closing of the epoch after it (to target t), S a scan of the slots
//! after C, and L a look-up by another thread. If S finds the thread's slot
//!
//! - at a value ≥ t: the thread read the epoch after C (Acquire on the add of C), so its later look-ups see U; its
//!   earlier ones were over when it stored the value (Release), which S has read (Acquire), so reuse comes after.
//! - parked: look-ups before the parking are over, likewise. A later one comes after an `unpark`, whose store S did
//!   not see. `unpark` has a SeqCst fence between that store and the look-up, and S one between U and its load. Of
//!   two such fences one is first: were it `unpark`'s, S would have seen the store. So it is S's, and L sees U.

use crossbeam::utils::CachePadded;

use crate::shm::atomic::{AtomicU64, Ordering, fence};

/// The epoch, and what each slot has seen of it.
#[derive(Debug)]
pub(super) struct Quiescence {
    /// Any thread adds to it.
    epoch: CachePadded<AtomicU64>,
    /// One writer each: the slot's owner.
    seen: Box<[CachePadded<AtomicU64>]>,
}

impl Quiescence {
    /// So many slots, all parked.
    pub(super) fn new(slots: usize) -> Self {
        let seen = (0..slots).map(|_| CachePadded::new(AtomicU64::new(PARKED))).collect();
        Self { epoch: CachePadded::new(AtomicU64::new(1)), seen }
    }

    /// The owner of the slot holds nothing that it has looked up before.
    pub(super) fn quiescent(&self, slot: usize) {
        // Acquire and Release: see the module's argument. The slot's own value needs no order: it is ours.
        let epoch = self.epoch.load(Ordering::Acquire);
        if self.seen[slot].load(Ordering::Relaxed) != epoch {
            self.seen[slot].store(epoch, Ordering::Release);
        }
    }

    /// As [`quiescent`](Self::quiescent), and it will look up nothing until it unparks.
    pub(super) fn park(&self, slot: usize) {
        self.seen[slot].store(PARKED, Ordering::Release);
    }

    /// The owner of the slot is about to look up.
    pub(super) fn unpark(&self, slot: usize) {
        let epoch = self.epoch.load(Ordering::Acquire);
        self.seen[slot].store(epoch, Ordering::Release);
        // The module's argument needs it between this store and the next look-up.
        fence(Ordering::SeqCst);
    }

    /// Ends the epoch in which the caller has unlinked: what all must have seen before reuse.
    pub(super) fn close(&self) -> u64 {
        // Release for the unlinking before, Acquire so that a chain of closings orders them all.
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// A slot that is not parked and has not seen an epoch yet.
    pub(super) fn laggard(&self, target: u64) -> Option<usize> {
        // As in `has_passed`.
        fence(Ordering::SeqCst);
        self.seen.iter().position(|seen| seen.load(Ordering::Acquire) < target)
    }

    /// Whether everybody has seen an epoch or is parked.
    pub(super) fn has_passed(&self, target: u64) -> bool {
        // The module's argument needs it between the unlinking and these loads.
        fence(Ordering::SeqCst);
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= target)
    }
}

/// Greater than every epoch, so that one comparison serves both cases.
const PARKED: u64 = u64::MAX;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_passes_when_every_slot_was_quiescent_after_it_or_is_parked() {
        let quiescence = Quiescence::new(3);
        quiescence.unpark(0);
        quiescence.unpark(1);
        let target = quiescence.close();
        quiescence.quiescent(0);
        assert!(!quiescence.has_passed(target), "slot 1 may still look");
        quiescence.park(1);
        assert!(quiescence.has_passed(target), "slot 0 has seen it, 1 and 2 are parked");
    }

    #[test]
    fn who_unparks_after_the_closing_holds_nothing_up() {
        let quiescence = Quiescence::new(1);
        let before = quiescence.close();
        quiescence.unpark(0);
        assert!(quiescence.has_passed(before));
        assert!(!quiescence.has_passed(quiescence.close()));
    }
}
