//! The master daemon of connection synchronization, as workers see it: the rules, the last announcements, and the
//! queues.
//!
//! Part of the snapshot while a master daemon runs. Workers only append to their own queues; the daemon's thread takes
//! from all. Cost for a packet: a multiplication; for an announced one also an entry in the queue, and one memory
//! access. `sync/announce.rs` decides which packets are announced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use xvs_proto::sync::Version;

use crate::clock::Millis;
use crate::conn::ConnId;

/// The settings `sync_*` that decide which packets announce their connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncRules {
    /// A connection is announced at this packet from its client, and again each [`Self::period`] packets.
    pub threshold: u32,
    /// 0: only at the packet `threshold`.
    pub period: u32,
    /// The time between two announcements of a connection; zero means that packets are counted instead.
    pub refresh: Duration,
    /// The number of repetitions of an announcement before [`Self::refresh`] is over.
    pub retries: u8,
    /// Whether only the template is announced for connections with one.
    pub templates_alone: bool,
    /// The version of messages.
    pub version: Version,
    /// Complete messages that may wait to be sent.
    pub queue_max: usize,
}

/// The master daemon as workers see it.
#[derive(Debug)]
pub struct SyncMaster {
    /// The rules.
    pub rules: SyncRules,
    /// The last announcements, and the queues. Kept while the rules change.
    pub shared: Arc<Announcements>,
    /// The reciprocal of `period`, by which remainders are computed; 0 without a period.
    reciprocal: u64,
}

impl SyncMaster {
    /// A master daemon with these rules.
    pub fn new(rules: SyncRules, shared: Arc<Announcements>) -> Self {
        let reciprocal =
            (u64::MAX).checked_div(rules.period.into()).map_or(0, |quotient| quotient.wrapping_add(1));
        Self { rules, shared, reciprocal }
    }

    /// Whether this packet can announce its connection although the state does not change: most cannot.
    #[inline]
    pub(crate) fn may_announce(&self, packets: u32) -> bool {
        !self.rules.refresh.is_zero() || self.is_counted(packets)
    }

    /// Whether a connection is announced at this packet, by its number.
    #[inline]
    pub(crate) fn is_counted(&self, packets: u32) -> bool {
        match self.rules.period {
            0 => packets == self.rules.threshold,
            // The remainder of the division by the period, without a division (Lemire, Kaser and Kurz 2019).
            period => {
                let fraction = self.reciprocal.wrapping_mul(packets.into());
                (u128::from(fraction) * u128::from(period)) >> 64 == u128::from(self.rules.threshold)
            }
        }
    }
}

/// A connection that a worker announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// The connection's index in the table.
    pub id: ConnId,
    /// The connection's generation in the table.
    pub generation: u32,
    /// The connection's state.
    pub state: u8,
}

/// The last announcements, and the pending ones.
#[derive(Debug)]
pub struct Announcements {
    /// For each entry of the table, the last announcement.
    last: Box<[AtomicU64]>,
    /// One for each worker.
    queues: Box<[ArrayQueue<Announced>]>,
    /// Counters for the announcements.
    pub counters: MasterCounters,
}

/// Counters of a master daemon since it was started.
#[derive(Debug, Default)]
pub struct MasterCounters {
    /// Messages sent.
    pub messages: AtomicU64,
    /// Messages that the kernel refused.
    pub failed: AtomicU64,
    /// Announcements that are in no message: the queue of a worker, or that of messages, was full.
    pub lost: AtomicU64,
}

/// The last announcement of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Last {
    /// The announced state.
    pub(crate) state: u8,
    /// How often it has been repeated early.
    pub(crate) retries: u8,
    /// When it would have expired.
    pub(crate) end: Millis,
}

impl Announcements {
    /// No announcements yet, for a table with this number of entries.
    pub fn new(entries: usize, workers: usize) -> Self {
        Self {
            last: (0..entries).map(|_| AtomicU64::new(0)).collect(),
            queues: (0..workers).map(|_| ArrayQueue::new(QUEUE)).collect(),
            counters: MasterCounters::default(),
        }
    }

    /// Takes the announcements of workers so far, in order.
    pub fn take(&self, mut each: impl FnMut(Announced)) {
        for queue in &self.queues {
            // Bounded, because workers may append faster.
            for _ in 0..QUEUE {
                let Some(announced) = queue.pop() else { break };
                each(announced);
            }
        }
    }

    pub(crate) fn last(&self, id: ConnId, generation: u32) -> Last {
        // Relaxed: one integer, which orders nothing; the packets of a connection arrive at one worker.
        let word = self.last.get(id.index() as usize).map_or(0, |word| word.load(Ordering::Relaxed));
        match word >> GENERATION_AT == u64::from(generation as u16) && word != 0 {
            true => Last {
                state: (word >> STATE_AT) as u8 & STATE_MAX,
                retries: (word >> RETRIES_AT) as u8 & RETRIES_MAX,
                end: Millis(word & END_MAX),
            },
            false => Last { state: 0, retries: 0, end: Millis(0) },
        }
    }

    /// Announces a connection that would expire at `end`; `retries` is the number of early repetitions.
    pub fn announce(&self, worker: usize, announced: Announced, retries: u8, end: Millis) {
        let Announced { id, generation, state } = announced;
        let word = u64::from(generation as u16) << GENERATION_AT
            | u64::from(state & STATE_MAX) << STATE_AT
            | u64::from(retries & RETRIES_MAX) << RETRIES_AT
            | end.0.min(END_MAX);
        if self.queues.get(worker).is_none_or(|queue| queue.push(announced).is_err()) {
            // The next packet tries again, if its state was not announced.
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        } else if let Some(last) = self.last.get(id.index() as usize) {
            last.store(word, Ordering::Relaxed);
        }
    }
}

/// The number of announcements of each worker that may wait for the daemon's thread: those of 10 ms if each packet
/// causes one.
const QUEUE: usize = 1 << 14;
/// The greatest end, which is in the lowest bits of the integer: 34 years after the machine's start.
const END_MAX: u64 = (1 << RETRIES_AT) - 1;
const RETRIES_AT: u32 = 40;
const RETRIES_MAX: u8 = 3;
const STATE_AT: u32 = 42;
const STATE_MAX: u8 = 0x0f;
const GENERATION_AT: u32 = 48;

#[cfg(test)]
mod tests {
    use super::*;

    fn master(threshold: u32, period: u32) -> SyncMaster {
        let rules = SyncRules {
            threshold,
            period,
            refresh: Duration::ZERO,
            retries: 0,
            templates_alone: false,
            version: Version::V1,
            queue_max: 8,
        };
        SyncMaster::new(rules, Arc::new(Announcements::new(4, 2)))
    }

    #[test]
    fn the_remainder_is_that_of_a_division_for_every_period() {
        for period in [1, 2, 3, 7, 50, 641, 65_537, u32::MAX] {
            let counts = (0..300).chain((0..300).map(|below| u32::MAX - below)).chain([period, period - 1]);
            for packets in counts {
                for threshold in [0, 3, packets % period] {
                    let expected = packets % period == threshold;
                    assert_eq!(master(threshold, period).is_counted(packets), expected, "{packets} {period}");
                }
            }
        }
        assert!(master(3, 0).is_counted(3) && !master(3, 0).is_counted(53));
    }

    #[test]
    fn what_was_announced_is_known_until_the_entry_has_another_connection() {
        let announcements = Announcements::new(4, 2);
        let announced = |number, generation| Announced { id: ConnId(number), generation, state: 7 };
        assert_eq!(announcements.last(ConnId(3), 0), Last { state: 0, retries: 0, end: Millis(0) });
        announcements.announce(1, announced(3, 9), 2, Millis(1_234_567));
        assert_eq!(announcements.last(ConnId(3), 9), Last { state: 7, retries: 2, end: Millis(1_234_567) });
        assert_eq!(announcements.last(ConnId(3), 10).state, 0);
        announcements.announce(0, announced(1, 1), 0, Millis(5));
        let mut taken = Vec::new();
        announcements.take(|announced| taken.push(announced.id));
        assert_eq!(
            (taken, announcements.counters.lost.load(Ordering::Relaxed)),
            (vec![ConnId(1), ConnId(3)], 0)
        );
    }

    #[test]
    fn announcements_without_room_are_counted_and_the_worker_goes_on() {
        let announcements = Announcements::new(4, 2);
        for _ in 0..QUEUE + 5 {
            announcements.announce(0, Announced { id: ConnId(0), generation: 0, state: 1 }, 0, Millis(1));
        }
        assert_eq!(announcements.counters.lost.load(Ordering::Relaxed), 5);
    }
}
