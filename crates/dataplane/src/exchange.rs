//! Which worker gathers which datagram, and the way of a fragment to that worker.
//!
//! Fragments of one datagram may come in at different workers, and only one can tell when the datagram is whole: the
//! first that met any of them. A table of words names it: entering one is one compare-and-swap, looking one up one
//! load. A fragment that another worker met is copied through a bounded queue, as frames belong to their worker; most
//! NICs bring all fragments of a datagram to one queue, so copies are rare. Nothing allocates after
//! [`Exchange::new`]. Not here: fragments themselves (`fragments.rs`).

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::port::{BURST, LinkId};

/// How many datagrams under way the workers can tell each other of.
const SLOTS: usize = 1 << 12;
/// Where a tag's place in the table stands in it.
const SLOT_SHIFT: u32 = u64::BITS - SLOTS.trailing_zeros();
/// The bits of a word that name the worker, from 1 on; the others are the tag's.
const WORKER_BITS: u64 = 0xffff;
/// Bytes of the largest frame that a port takes in.
const FRAME_BYTES: usize = 4096;

/// What the workers share of fragments.
pub struct Exchange {
    /// By tag: the rest of the tag and the worker; 0 is nobody.
    owners: Box<[AtomicU64]>,
    inboxes: Box<[ArrayQueue<Box<Parcel>>]>,
    spare: ArrayQueue<Box<Parcel>>,
}

/// A frame on its way to another worker.
pub struct Parcel {
    link: LinkId,
    len: usize,
    bytes: [u8; FRAME_BYTES],
}

impl Parcel {
    /// The frame and the link that it came in by.
    pub fn frame(&self) -> (LinkId, &[u8]) {
        (self.link, &self.bytes[..self.len])
    }
}

impl Exchange {
    /// For so many workers, each of which others may send a burst before it looks.
    pub fn new(workers: usize) -> Self {
        // One worker has nobody to send to; a queue has at least one place.
        let parcels = if workers > 1 { workers * BURST } else { 0 };
        let spare = ArrayQueue::new(parcels.max(1));
        for _ in 0..parcels {
            let parcel = Box::new(Parcel { link: LinkId(0), len: 0, bytes: [0; FRAME_BYTES] });
            // There are as many places.
            let _ = spare.push(parcel);
        }
        Self {
            owners: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            inboxes: (0..workers).map(|_| ArrayQueue::new(BURST)).collect(),
            spare,
        }
    }

    /// Whether fragments can come from other workers.
    pub fn is_shared(&self) -> bool {
        self.inboxes.len() > 1
    }

    /// Who gathers the datagram of this tag: `worker`, unless another does already.
    ///
    /// Where two datagrams under way have one slot, each worker gathers for itself what it meets of the second: it
    /// comes together only if all of it comes to one worker.
    pub fn owner(&self, tag: u64, worker: usize) -> usize {
        // Relaxed: the word is the whole of what is shared, and a parcel's bytes travel by its queue.
        let claim =
            self.slot(tag).compare_exchange(0, word(tag, worker), Ordering::Relaxed, Ordering::Relaxed);
        match claim {
            Err(taken) if taken & !WORKER_BITS == tag & !WORKER_BITS => (taken & WORKER_BITS) as usize - 1,
            _ => worker,
        }
    }

    /// The worker gathers it no more.
    pub fn release(&self, tag: u64, worker: usize) {
        // Relaxed: as above. It fails if the slot was another's all the time.
        let _ = self.slot(tag).compare_exchange(word(tag, worker), 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Copies a frame to another worker; `false` if there is no room.
    #[must_use]
    pub fn send(&self, worker: usize, link: LinkId, frame: &[u8]) -> bool {
        if frame.len() > FRAME_BYTES {
            return false;
        }
        let Some(mut parcel) = self.spare.pop() else { return false };
        parcel.link = link;
        parcel.len = frame.len();
        parcel.bytes[..frame.len()].copy_from_slice(frame);
        self.inboxes[worker].push(parcel).map_err(|parcel| self.put_back(parcel)).is_ok()
    }

    /// Whether something has come for a worker.
    pub fn has_parcels(&self, worker: usize) -> bool {
        !self.inboxes[worker].is_empty()
    }

    /// The next that has come for a worker, to be given back by [`Self::put_back`].
    pub fn receive(&self, worker: usize) -> Option<Box<Parcel>> {
        self.inboxes[worker].pop()
    }

    /// Takes an empty parcel back.
    pub fn put_back(&self, parcel: Box<Parcel>) {
        // There are as many places as parcels.
        let _ = self.spare.push(parcel);
    }

    fn slot(&self, tag: u64) -> &AtomicU64 {
        &self.owners[(tag >> SLOT_SHIFT) as usize]
    }
}

fn word(tag: u64, worker: usize) -> u64 {
    tag & !WORKER_BITS | (worker as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_meet_a_datagram_gathers_it_until_it_is_released() {
        let exchange = Exchange::new(3);
        let tag = 0x1234_5678_9abc_def0;
        assert_eq!([exchange.owner(tag, 2), exchange.owner(tag, 0), exchange.owner(tag, 2)], [2, 2, 2]);
        exchange.release(tag, 1);
        assert_eq!(exchange.owner(tag, 1), 2, "only its owner releases it");
        exchange.release(tag, 2);
        assert_eq!(exchange.owner(tag, 0), 0);
    }

    #[test]
    fn of_two_datagrams_with_one_slot_each_worker_gathers_the_second_for_itself() {
        let exchange = Exchange::new(2);
        let (one, other) = (0x1230_0000_0001_0000, 0x1230_0000_0002_0000);
        assert_eq!([exchange.owner(one, 1), exchange.owner(other, 0), exchange.owner(other, 1)], [1, 0, 1]);
        exchange.release(other, 0);
        assert_eq!(exchange.owner(one, 0), 1, "the slot is still the first one's");
    }

    #[test]
    fn a_worker_that_does_not_look_is_sent_a_burst_and_parcels_come_back() {
        let exchange = Exchange::new(2);
        for _ in 0..3 {
            let sent = (0..2 * BURST).filter(|_| exchange.send(1, LinkId(4), &[0xa5; 60])).count();
            assert_eq!(sent, BURST);
            let received = std::iter::from_fn(|| exchange.receive(1)).inspect(|parcel| {
                assert_eq!(parcel.frame(), (LinkId(4), &[0xa5; 60][..]));
            });
            let parcels: Vec<_> = received.collect();
            assert_eq!(parcels.len(), BURST);
            parcels.into_iter().for_each(|parcel| exchange.put_back(parcel));
        }
        assert!(!exchange.send(1, LinkId(0), &[0; FRAME_BYTES + 1]));
    }
}
