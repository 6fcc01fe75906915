//! A capture, and its queues between each worker and the reader.

use std::sync::{Arc, Mutex};

use rtrb::{Consumer, Producer, RingBuffer};
use xvs_proto::LinkId;
use xvs_xdp::{BURST, Frame, WAITING};

use super::filter::{Filter, Judged};
use crate::counters::Counter;
use crate::verdict::Verdict;

/// The most captures that may be active at a time.
pub const MOST: usize = 4;
/// The number of links with a separate count of missed copies; all further links share the last count.
const LINKS: usize = 64;

/// The active captures.
pub type Captures = Arc<[Arc<Capture>]>;

/// A capture: its filter, and the copies that have not been read yet.
pub struct Capture {
    pub(super) filter: Filter,
    /// Indexed by worker. Only that worker takes the lock, by `try_lock`, so it never waits.
    pub(super) lanes: Box<[Mutex<Lane>]>,
    missed: Box<[[Counter; LINKS]]>,
}

/// One worker's end of its queues.
pub(super) struct Lane {
    full: Producer<Record>,
    emptied: Consumer<Record>,
    pub(super) free: Vec<Record>,
    /// One for each frame of the current burst.
    pub(super) seen: Vec<Seen>,
    /// Frames that were sent during the burst, each with the index of the packet that was being processed.
    pub(super) left: Vec<(usize, Record)>,
    /// Copies for the reader, handed over together at the end of the burst.
    pub(super) ready: Vec<Record>,
    /// The numbers of captured frames that wait for their next hop.
    held: Vec<u32>,
    pub(super) packets: u64,
}

/// A frame of the current burst.
pub(super) struct Seen {
    pub(super) judged: Judged,
    pub(super) record: Option<Record>,
    /// The number of copies without a free slot.
    pub(super) lost: u64,
    pub(super) link: LinkId,
    pub(super) verdict: Verdict,
}

/// The direction of a captured frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameDirection {
    /// It was received.
    In,
    /// It was sent.
    Out,
    /// The frame was received before: a fragment that has waited, or one that another worker received.
    Earlier,
}

/// A copy of a frame.
#[derive(Debug)]
pub struct Record {
    /// The number of the worker's packet. A received frame and the frames that were sent because of it have the same
    /// number and are consecutive.
    pub packet: u64,
    /// The time at which the frame's burst was received: nanoseconds since 1970, UTC.
    pub nanoseconds: u64,
    /// The link by which it was received or sent.
    pub link: LinkId,
    /// The direction.
    pub direction: FrameDirection,
    /// The verdict on the received packet.
    pub verdict: Verdict,
    /// The length of the frame, in bytes.
    pub length: usize,
    kept: usize,
    bytes: Box<[u8]>,
}

impl Record {
    /// The copied bytes of the frame, from the Ethernet header.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.kept]
    }

    pub(super) fn copy(&mut self, nanoseconds: u64, link: LinkId, direction: FrameDirection, frame: &Frame) {
        (self.nanoseconds, self.link, self.direction, self.length) =
            (nanoseconds, link, direction, frame.len());
        self.kept = frame.len().min(self.bytes.len());
        frame.read(0, &mut self.bytes[..self.kept]);
    }
}

impl Capture {
    /// A capture for this number of workers, and its reader. Each worker has `slots` slots of `slot_bytes` bytes.
    pub fn new(filter: Filter, workers: usize, slots: usize, slot_bytes: usize) -> (Arc<Self>, Reader) {
        let (lanes, ends) =
            (0..workers).map(|_| Lane::new(slots, slot_bytes)).unzip::<_, _, Vec<_>, Vec<_>>();
        let capture = Self {
            filter,
            lanes: lanes.into_iter().map(Mutex::new).collect(),
            missed: (0..workers).map(|_| std::array::from_fn(|_| Counter::default())).collect(),
        };
        (Arc::new(capture), Reader { lanes: ends })
    }

    /// The number of copies that were omitted because no slot was free, by the link that received the packet.
    pub fn missed(&self) -> impl Iterator<Item = (LinkId, u64)> {
        (0..LINKS)
            .map(|link| {
                let count = self.missed.iter().map(|counts| counts[link].value()).sum();
                (LinkId(link as u16), count)
            })
            .filter(|(_, count)| *count > 0)
    }

    pub(super) fn count_missed(&self, worker: usize, link: LinkId, count: u64) {
        self.missed[worker][usize::from(link.wire().0).min(LINKS - 1)].add(count);
    }
}

impl Lane {
    fn new(slots: usize, slot_bytes: usize) -> (Self, End) {
        let (full, filled) = RingBuffer::new(slots);
        let (empty, emptied) = RingBuffer::new(slots);
        let free = (0..slots).map(|_| Record {
            packet: 0,
            nanoseconds: 0,
            link: LinkId(0),
            direction: FrameDirection::In,
            verdict: Verdict::Held,
            length: 0,
            kept: 0,
            bytes: vec![0; slot_bytes].into(),
        });
        let lane = Self {
            full,
            emptied,
            free: free.collect(),
            seen: Vec::with_capacity(BURST),
            left: Vec::with_capacity(slots),
            ready: Vec::with_capacity(slots),
            held: Vec::with_capacity(WAITING),
            packets: 0,
        };
        (lane, (filled, empty))
    }

    /// Records that a captured frame waits for its next hop.
    pub(super) fn note_held(&mut self, number: u32) {
        // The capacity is the number of frames that may wait.
        if self.held.len() < self.held.capacity() {
            self.held.push(number);
        }
    }

    /// Whether [`Self::note_held`] has recorded a frame; the call removes the record.
    pub(super) fn forget_held(&mut self, number: u32) -> bool {
        let place = self.held.iter().position(|held| *held == number);
        place.map(|place| self.held.swap_remove(place)).is_some()
    }

    /// An empty slot.
    pub(super) fn take(&mut self) -> Option<Record> {
        self.free.pop().or_else(|| self.emptied.pop().ok())
    }

    /// Adds a copy for the reader, as part of the current packet.
    pub(super) fn push(&mut self, mut record: Record, verdict: Verdict) {
        (record.packet, record.verdict) = (self.packets, verdict);
        self.ready.push(record);
    }

    /// Hands the copies of the burst to the reader, all at once, so that the reader never gets an incomplete packet.
    pub(super) fn hand_over(&mut self) {
        // The queue has as many entries as there are slots.
        if let Ok(chunk) = self.full.write_chunk_uninit(self.ready.len()) {
            chunk.fill_from_iter(self.ready.drain(..));
        }
    }
}

/// The reader's end of a lane: the filled slots, and the queue for emptied ones.
type End = (Consumer<Record>, Producer<Record>);

/// Reads the copies of all workers.
pub struct Reader {
    lanes: Vec<End>,
}

impl Reader {
    /// Calls `each` for every available copy with the worker's number, in the order of each worker. Returns the number
    /// of copies.
    pub fn read(&mut self, mut each: impl FnMut(usize, &Record)) -> usize {
        let mut count = 0;
        for (worker, (filled, empty)) in self.lanes.iter_mut().enumerate() {
            for _ in 0..filled.slots() {
                let Ok(record) = filled.pop() else { break };
                each(worker, &record);
                count += 1;
                // The queue has as many entries as there are slots.
                let _ = empty.push(record);
            }
        }
        count
    }
}
