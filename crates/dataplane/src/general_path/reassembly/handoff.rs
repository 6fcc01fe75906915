//! Handoff of fragments: the worker that reassembles a datagram, and the queues that carry fragments to it.
//!
//! Several workers may receive fragments of one datagram, but only one can decide that it is whole: the first that
//! received any. A hash assigns each datagram a slot in a table, which contains that worker. Claiming a slot costs one
//! compare-and-swap. While a worker reassembles any datagram of a slot, it reassembles all datagrams of the slot, so a
//! collision costs only copies. A fragment that another worker has received is copied through a bounded queue, because
//! frames belong to their worker. Most NICs deliver all fragments of a datagram to one queue, so copies are rare.
//! Nothing is allocated after [`Handoff::new`].

use crossbeam::queue::ArrayQueue;
use xvs_proto::LinkId;
use xvs_xdp::{BURST, Frame};

use crate::shm::atomic::{AtomicU64, Ordering};

/// The number of slots: several for each datagram whose fragments may wait. Models have two.
const SLOTS: usize = if cfg!(loom) { 2 } else { 1 << 12 };
/// The bits of a slot that contain the worker's number plus one. The bits above count the datagrams.
const WORKER_BITS: u64 = 0xffff;
/// One datagram, in a slot's count.
const ONE: u64 = WORKER_BITS + 1;
/// The size of the largest frame that is handed over, in bytes: that for the largest usual MTU, 9216.
pub(super) const FRAME_BYTES: usize = 9216 + 22;

/// The state of reassembly that all workers share.
pub struct Handoff {
    /// For each slot the worker that reassembles its datagrams, and their number; 0 if there is none. A worker that
    /// finds 0 may write its own number. It is then the only writer, until it writes 0.
    owners: Box<[AtomicU64]>,
    inboxes: Box<[ArrayQueue<Box<HandedFrame>>]>,
    spare: ArrayQueue<Box<HandedFrame>>,
}

/// A frame that is handed to another worker.
pub struct HandedFrame {
    link: LinkId,
    len: usize,
    bytes: [u8; FRAME_BYTES],
}

impl HandedFrame {
    /// The bytes of the frame, and the link on which it was received.
    pub fn frame(&self) -> (LinkId, &[u8]) {
        (self.link, &self.bytes[..self.len])
    }
}

impl Handoff {
    /// A handoff between this number of workers. Each worker's queue holds one burst.
    pub fn new(workers: usize) -> Self {
        // A single worker hands over nothing; a queue needs at least one entry.
        let frames = if workers > 1 { workers * BURST } else { 0 };
        let spare = ArrayQueue::new(frames.max(1));
        for _ in 0..frames {
            let frame = Box::new(HandedFrame { link: LinkId(0), len: 0, bytes: [0; FRAME_BYTES] });
            // The queue has as many entries.
            let _ = spare.push(frame);
        }
        Self {
            owners: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            inboxes: (0..workers).map(|_| ArrayQueue::new(BURST)).collect(),
            spare,
        }
    }

    /// Whether fragments may arrive from other workers.
    pub fn is_shared(&self) -> bool {
        self.inboxes.len() > 1
    }

    /// The worker that reassembles a datagram with this tag, of which `worker` holds no fragment yet. That is `worker`,
    /// until it releases the datagram, unless another worker owns the slot.
    ///
    /// The other worker may release the slot at any time; it claims it again when it receives the fragment.
    pub fn claim(&self, tag: u64, worker: usize) -> usize {
        let slot = self.slot(tag);
        let own = worker as u64 + 1;
        // Relaxed: only this integer is shared here; the bytes of a frame are passed through its queue.
        match slot.compare_exchange(0, ONE | own, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => worker,
            Err(word) if word & WORKER_BITS == own => {
                slot.store(word + ONE, Ordering::Relaxed);
                worker
            }
            Err(word) => (word & WORKER_BITS) as usize - 1,
        }
    }

    /// Releases a datagram that the calling worker has claimed.
    pub fn release(&self, tag: u64) {
        let slot = self.slot(tag);
        // Relaxed: as above. No other worker writes to this slot.
        let left = slot.load(Ordering::Relaxed) - ONE;
        slot.store(if left < ONE { 0 } else { left }, Ordering::Relaxed);
    }

    /// Copies a frame to another worker; `false` if there is no room.
    #[must_use]
    pub fn send(&self, worker: usize, link: LinkId, frame: &Frame) -> bool {
        if frame.len() > FRAME_BYTES {
            return false;
        }
        let Some(mut handed) = self.spare.pop() else { return false };
        handed.link = link;
        handed.len = frame.len();
        frame.read(0, &mut handed.bytes[..frame.len()]);
        self.inboxes[worker].push(handed).map_err(|handed| self.put_back(handed)).is_ok()
    }

    /// Whether frames wait in a worker's queue.
    pub fn has_frames(&self, worker: usize) -> bool {
        !self.inboxes[worker].is_empty()
    }

    /// The next frame of a worker's queue. It must be returned by [`Self::put_back`].
    pub fn receive(&self, worker: usize) -> Option<Box<HandedFrame>> {
        self.inboxes[worker].pop()
    }

    /// Returns a frame for reuse.
    pub fn put_back(&self, frame: Box<HandedFrame>) {
        // The queue has as many entries as there are frames.
        let _ = self.spare.push(frame);
    }

    fn slot(&self, tag: u64) -> &AtomicU64 {
        &self.owners[tag as usize % SLOTS]
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use xvs_xdp::{FrameLayout, FramePool};

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
        assert_eq!([handoff.claim(one, 0), handoff.claim(third, 0)], [1; 2], "one datagram is still claimed");
        handoff.release(other);
        assert_eq!(handoff.claim(third, 0), 0);
    }

    #[test]
    fn a_queue_holds_one_burst_and_its_frames_are_reused() {
        let handoff = Handoff::new(2);
        let layout = FrameLayout { frame_size_bytes: 1 << 14, headroom_bytes: 0, frames: 1 };
        let mut frame = FramePool::in_memory(layout).take().unwrap();
        assert!(frame.resize(60));
        frame.bytes_mut().fill(0xa5);
        for _ in 0..3 {
            let sent = (0..2 * BURST).filter(|_| handoff.send(1, LinkId(4), &frame)).count();
            assert_eq!(sent, BURST);
            let received = std::iter::from_fn(|| handoff.receive(1)).inspect(|frame| {
                assert_eq!(frame.frame(), (LinkId(4), &[0xa5; 60][..]));
            });
            let frames: Vec<_> = received.collect();
            assert_eq!(frames.len(), BURST);
            frames.into_iter().for_each(|frame| handoff.put_back(frame));
        }
        assert!(frame.resize(FRAME_BYTES + 1) && !handoff.send(1, LinkId(0), &frame));
    }
}
