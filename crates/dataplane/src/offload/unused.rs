//! The unused records. Each rests before its reuse: an XDP program may still be reading it. The program runs for
//! microseconds, but its core may be virtual.

use crossbeam::queue::ArrayQueue;

use crate::clock::Millis;
use crate::shm::atomic::AtomicU64;
use crate::shm::atomic::Ordering::Relaxed;

/// The unused records, of which all workers take.
#[derive(Debug)]
pub(super) struct Unused {
    /// Each with the time from which on it may be used, nearly in the order of these times.
    records: ArrayQueue<(u32, Millis)>,
    /// Before this time no worker looks, so that those who find none do not contend for the queue. The record that was
    /// at the front rests until then; one behind it may be usable earlier.
    none_before: AtomicU64,
}

impl Unused {
    /// This many records, none of which was used.
    pub(super) fn all(count: u32) -> Self {
        let records = ArrayQueue::new(count as usize);
        for record in 0..count {
            let _ = records.push((record, Millis(0)));
        }
        Self { records, none_before: AtomicU64::new(0) }
    }

    /// A record that may be used.
    pub(super) fn take(&self, now: Millis) -> Option<u32> {
        if now < Millis(self.none_before.load(Relaxed)) {
            return None;
        }
        let (record, rests_until) = self.records.pop()?;
        if rests_until <= now {
            return Some(record);
        }
        self.none_before.store(rests_until.0, Relaxed);
        self.put(record, rests_until);
        None
    }

    /// Gives back a record, which rests until this time.
    pub(super) fn put(&self, record: u32, rests_until: Millis) {
        // There is room for all.
        let _ = self.records.push((record, rests_until));
    }

    /// The number of unused records, with those that rest.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use crate::offload::unused::*;

    #[test]
    fn a_record_that_is_given_back_rests_before_it_is_used_again() {
        let unused = Unused::all(2);
        assert_eq!([0, 0, 0].map(|now| unused.take(Millis(now))), [Some(0), Some(1), None]);
        unused.put(1, Millis(100));
        unused.put(0, Millis(150));
        assert_eq!([99, 99].map(|now| unused.take(Millis(now))), [None; 2]);
        assert_eq!(unused.len(), 2, "those that rest are unused");
        // The first one has gone behind the other.
        assert_eq!([100, 149].map(|now| unused.take(Millis(now))), [None; 2]);
        assert_eq!([150, 150, 150].map(|now| unused.take(Millis(now))), [Some(1), Some(0), None]);
    }
}
