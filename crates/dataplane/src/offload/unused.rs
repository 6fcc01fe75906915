//! The unused records. Each rests before its reuse: an XDP program may still be reading it. The program runs for
//! microseconds, but its core may be virtual.

use std::sync::atomic::AtomicUsize;

use crate::clock::Millis;
use crate::shm::atomic::AtomicU64;
use crate::shm::atomic::Ordering::{Acquire, Relaxed, Release};

/// A record that is in use.
const NEVER: u64 = u64::MAX;
/// The number of records that a search examines.
const SOUGHT: usize = 256;

/// The unused records, from which all workers take.
#[derive(Debug)]
pub(super) struct Unused {
    /// For each record the time in milliseconds from which it may be used.
    usable_from: Box<[AtomicU64]>,
    /// The number of unused records, resting ones included.
    len: AtomicUsize,
}

impl Unused {
    /// This many records, none of which was used.
    pub(super) fn all(count: u32) -> Self {
        Self {
            usable_from: (0..count).map(|_| AtomicU64::new(0)).collect(),
            len: AtomicUsize::new(count as usize),
        }
    }

    /// Takes a usable record: the nearest one at or after this number. `None` if none is near.
    pub(super) fn take(&self, nearest: u32, now: Millis) -> Option<u32> {
        let count = self.usable_from.len();
        let sought = count.min(SOUGHT);
        // None of the examined records is likely to be unused.
        if self.len() * sought < count {
            return None;
        }
        let record = (0..sought).map(|distance| (nearest as usize + distance) % count).find(|record| {
            let usable_from = &self.usable_from[*record];
            let time = usable_from.load(Relaxed);
            // Acquire: the new owner sees the last worker's accesses to the record.
            time <= now.0 && usable_from.compare_exchange(time, NEVER, Acquire, Relaxed).is_ok()
        })?;
        self.len.fetch_sub(1, Relaxed);
        Some(record as u32)
    }

    /// Gives back a record, which rests until this time.
    pub(super) fn put(&self, record: u32, rests_until: Millis) {
        // Counted first, so that a worker that takes it at once never counts below zero.
        self.len.fetch_add(1, Relaxed);
        self.usable_from[record as usize].store(rests_until.0, Release);
    }

    /// The number of unused records, resting ones included.
    pub(super) fn len(&self) -> usize {
        self.len.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use crate::offload::unused::*;

    #[test]
    fn a_record_that_is_given_back_rests_before_it_is_used_again() {
        let unused = Unused::all(2);
        assert_eq!([0, 0, 0].map(|now| unused.take(0, Millis(now))), [Some(0), Some(1), None]);
        unused.put(1, Millis(100));
        unused.put(0, Millis(150));
        assert_eq!([99, 99].map(|now| unused.take(0, Millis(now))), [None; 2]);
        assert_eq!(unused.len(), 2, "those that rest are unused");
        assert_eq!([100, 149].map(|now| unused.take(0, Millis(now))), [Some(1), None]);
        assert_eq!([150, 150].map(|now| unused.take(0, Millis(now))), [Some(0), None]);
    }

    #[test]
    fn a_connection_gets_the_record_of_its_hash_or_the_next_one() {
        let unused = Unused::all(4);
        assert_eq!(
            [3, 3, 1, 1].map(|nearest| unused.take(nearest, Millis(0))),
            [Some(3), Some(0), Some(1), Some(2)]
        );
    }
}
