//! Quiescent points: the proof that no thread can still use an unlinked entry.
//!
//! Every thread that reads the table has a slot. At the end of a burst the slot gets the epoch that the thread has
//! seen, or a mark that the thread is parked and reads nothing. A thread that has unlinked entries closes the epoch,
//! and reuses the entries when every slot is parked or has seen a later epoch. A worker writes only its own slot, so a
//! burst costs one load, and one store if the epoch has changed. No thread waits: if entries cannot be reused yet,
//! their owner checks again one burst later.
//!
//! Why it is safe: let U be an unlinking, C the closing of the epoch after it (to target t), S a scan of the slots
//! after C, and L a look-up by another thread. If S finds the thread's slot
//!
//! - at a value ≥ t: the thread read the epoch after C (Acquire on the add of C), so its later look-ups see U; its
//!   earlier ones were over when it stored the value (Release), which S has read (Acquire), so reuse comes after.
//! - parked: look-ups before the parking are over, likewise. A later one comes after an `unpark`, whose store S did not
//!   see. `unpark` has a SeqCst fence between that store and the look-up, and S one between U and its load. One of
//!   these two fences is first. If it were `unpark`'s, S would have seen the store. Therefore it is S's, and L sees U.

use crossbeam::utils::CachePadded;

use crate::shm::atomic::{AtomicU64, Ordering, fence};

/// The epoch, and the last epoch that each slot has seen.
#[derive(Debug)]
pub(super) struct Quiescence {
    /// Every thread may increment it.
    epoch: CachePadded<AtomicU64>,
    /// One writer each: the owner of the slot.
    seen: Box<[CachePadded<AtomicU64>]>,
}

impl Quiescence {
    /// This number of slots, all parked.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            epoch: CachePadded::new(AtomicU64::new(1)),
            seen: (0..slots).map(|_| CachePadded::new(AtomicU64::new(PARKED))).collect(),
        }
    }

    /// The owner of the slot no longer uses any result of an earlier look-up.
    pub(super) fn quiescent(&self, slot: usize) {
        // Acquire and Release: see the module's argument. The slot's value itself needs no ordering: only this thread
        // writes it.
        let epoch = self.epoch.load(Ordering::Acquire);
        if self.seen[slot].load(Ordering::Relaxed) != epoch {
            self.seen[slot].store(epoch, Ordering::Release);
        }
    }

    /// Like [`quiescent`](Self::quiescent); in addition the owner performs no look-up until it unparks.
    pub(super) fn park(&self, slot: usize) {
        self.seen[slot].store(PARKED, Ordering::Release);
    }

    /// The owner of the slot will perform look-ups again.
    pub(super) fn unpark(&self, slot: usize) {
        self.seen[slot].store(self.epoch.load(Ordering::Acquire), Ordering::Release);
        // The module's argument needs this fence between the store and the next look-up.
        fence(Ordering::SeqCst);
    }

    /// Closes the epoch in which the caller has unlinked entries. Returns the epoch that all slots must have seen
    /// before the entries are reused.
    pub(super) fn close(&self) -> u64 {
        // Release for the preceding unlinking; Acquire so that a chain of closings orders them all.
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// A slot that is not parked and has not seen this epoch yet.
    pub(super) fn laggard(&self, target: u64) -> Option<usize> {
        // The fence of `has_passed`.
        fence(Ordering::SeqCst);
        self.seen.iter().position(|seen| seen.load(Ordering::Acquire) < target)
    }

    /// Whether every slot has seen this epoch or is parked.
    pub(super) fn has_passed(&self, target: u64) -> bool {
        // The module's argument needs this fence between the unlinking and these loads.
        fence(Ordering::SeqCst);
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= target)
    }
}

/// Greater than every epoch, so that one comparison covers both cases.
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
        assert!(!quiescence.has_passed(target), "slot 1 may still use its look-ups");
        quiescence.park(1);
        assert!(quiescence.has_passed(target), "slot 0 has seen it, 1 and 2 are parked");
    }

    #[test]
    fn a_slot_that_unparks_after_the_closing_does_not_delay_reuse() {
        let quiescence = Quiescence::new(1);
        let before = quiescence.close();
        quiescence.unpark(0);
        assert!(quiescence.has_passed(before));
        assert!(!quiescence.has_passed(quiescence.close()));
    }
}
