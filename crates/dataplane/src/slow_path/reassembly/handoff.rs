//! Which worker gathers which datagram, and the way of a fragment to that worker.
//!
//! Reassembly of one datagram may come in at different workers, and only one can tell when the datagram is whole: the
//! first that met any of them. A table of slots, which datagrams fall to by a hash, names it: looking there is one
//! compare-and-swap. While a worker gathers any datagram of a slot, it gathers all of them, so two that fall to one slot
//! cost copies and nothing else. A fragment that another worker met is copied through a bounded queue, as frames belong
//! to their worker; most NICs bring all fragments of a datagram to one queue, so copies are rare. Nothing allocates after
//! [`Handoff::new`]. Not here: fragments themselves (`fragments.rs`).

use crossbeam::queue::ArrayQueue;
use xvs_proto::LinkId;
use xvs_xdp::BURST;

use crate::shm::atomic::{AtomicU64, Ordering};

/// How many slots there are: several for each datagram of which fragments may wait. Models have two.
const SLOTS: usize = if cfg!(loom) { 2 } else { 1 << 12 };
/// The bits of a slot that name the worker, from 1 on; the others count its datagrams.
const WORKER_BITS: u64 = 0xffff;
/// One datagram more.
const ONE: u64 = WORKER_BITS + 1;
/// Bytes of the largest frame that a port takes in.
const FRAME_BYTES: usize = 4096;

/// What the workers share of fragments.
pub struct Handoff {
    /// Who gathers what falls to each slot, and how many datagrams; 0 is nobody. Whoever finds 0 may write its own number;
    /// then it is the one writer, until it writes 0.
    owners: Box<[AtomicU64]>,
    inboxes: Box<[ArrayQueue<Box<HandedFrame>>]>,
    spare: ArrayQueue<Box<HandedFrame>>,
}

/// A frame on its way to another worker.
pub struct HandedFrame {
    link: LinkId,
    len: usize,
    bytes: [u8; FRAME_BYTES],
}

impl HandedFrame {
    /// The frame and the link that it came in by.
    pub fn frame(&self) -> (LinkId, &[u8]) {
        (self.link, &self.bytes[..self.len])
    }
}

impl Handoff {
    /// For so many workers, each of which others may send a burst before it looks.
    pub fn new(workers: usize) -> Self {
        // One worker has nobody to send to; a queue has at least one place.
        let frames = if workers > 1 { workers * BURST } else { 0 };
        let spare = ArrayQueue::new(frames.max(1));
        for _ in 0..frames {
            let frame = Box::new(HandedFrame { link: LinkId(0), len: 0, bytes: [0; FRAME_BYTES] });
            // There are as many places.
            let _ = spare.push(frame);
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

    /// Who gathers a datagram of this tag, of which `worker` has nothing yet: `worker`, until it releases it, unless
    /// another one has the slot.
    ///
    /// That one may let go of the slot at any time; it asks again when it receives the fragment.
    pub fn claim(&self, tag: u64, worker: usize) -> usize {
        let (slot, own) = (self.slot(tag), worker as u64 + 1);
        // Relaxed: the word is the whole of what is shared, and a frame's bytes travel by its queue.
        match slot.compare_exchange(0, ONE | own, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => worker,
            Err(word) if word & WORKER_BITS == own => {
                slot.store(word + ONE, Ordering::Relaxed);
                worker
            }
            Err(word) => (word & WORKER_BITS) as usize - 1,
        }
    }

    /// A datagram that its worker has claimed is gathered no more.
    pub fn release(&self, tag: u64) {
        let slot = self.slot(tag);
        // Relaxed: as above; no other worker writes here.
        let left = slot.load(Ordering::Relaxed) - ONE;
        slot.store(if left < ONE { 0 } else { left }, Ordering::Relaxed);
    }

    /// Copies a frame to another worker; `false` if there is no room.
    #[must_use]
    pub fn send(&self, worker: usize, link: LinkId, frame: &[u8]) -> bool {
        if frame.len() > FRAME_BYTES {
            return false;
        }
        let Some(mut handed) = self.spare.pop() else { return false };
        handed.link = link;
        handed.len = frame.len();
        handed.bytes[..frame.len()].copy_from_slice(frame);
        self.inboxes[worker].push(handed).map_err(|handed| self.put_back(handed)).is_ok()
    }

    /// Whether something has come for a worker.
    pub fn has_frames(&self, worker: usize) -> bool {
        !self.inboxes[worker].is_empty()
    }

    /// The next that has come for a worker, to be given back by [`Self::put_back`].
    pub fn receive(&self, worker: usize) -> Option<Box<HandedFrame>> {
        self.inboxes[worker].pop()
    }

    /// Takes an empty frame back.
    pub fn put_back(&self, frame: Box<HandedFrame>) {
        // There are as many places as frames.
        let _ = self.spare.push(frame);
    }

    fn slot(&self, tag: u64) -> &AtomicU64 {
        &self.owners[tag as usize % SLOTS]
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_first_worker_with_a_fragment_gathers_the_datagram_until_its_release() {
        let handoff = Handoff::new(3);
        let tag = 0x1234_5678_9abc_def0;
        assert_eq!([handoff.claim(tag, 2), handoff.claim(tag, 0), handoff.claim(tag, 1)], [2, 2, 2]);
        handoff.release(tag);
        assert_eq!(handoff.claim(tag, 0), 0);
    }

    #[test]
    fn a_worker_gathers_all_datagrams_of_a_slot_until_the_last_is_released() {
        let handoff = Handoff::new(2);
        let (one, other, third) = (0x1230_0000_0001_0abc, 0x4560_0000_0002_0abc, 0x0abc);
        assert_eq!([handoff.claim(one, 1), handoff.claim(other, 0), handoff.claim(other, 1)], [1; 3]);
        handoff.release(one);
        assert_eq!([handoff.claim(one, 0), handoff.claim(third, 0)], [1; 2], "it has one still");
        handoff.release(other);
        assert_eq!(handoff.claim(third, 0), 0);
    }

    #[test]
    fn a_worker_that_does_not_receive_gets_one_burst_and_frames_are_reused() {
        let handoff = Handoff::new(2);
        for _ in 0..3 {
            let sent = (0..2 * BURST).filter(|_| handoff.send(1, LinkId(4), &[0xa5; 60])).count();
            assert_eq!(sent, BURST);
            let received = std::iter::from_fn(|| handoff.receive(1)).inspect(|frame| {
                assert_eq!(frame.frame(), (LinkId(4), &[0xa5; 60][..]));
            });
            let frames: Vec<_> = received.collect();
            assert_eq!(frames.len(), BURST);
            frames.into_iter().for_each(|frame| handoff.put_back(frame));
        }
        assert!(!handoff.send(1, LinkId(0), &[0; FRAME_BYTES + 1]));
    }
}
