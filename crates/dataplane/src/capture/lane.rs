//! A capture, each worker's end of it, and the reader's.

use std::sync::{Arc, Mutex};

use rtrb::{Consumer, Producer, RingBuffer};
use xvs_proto::LinkId;
use xvs_xdp::BURST;

use super::filter::{Filter, Judged};
use crate::counters::Counter;
use crate::verdict::Verdict;

/// How many captures may be on at a time.
pub const MOST: usize = 4;
/// Links that are told apart where missed copies are counted; those behind share the last count.
const LINKS: usize = 64;

/// The captures that are on.
pub type Captures = Arc<[Arc<Capture>]>;

/// What is captured, and what of it waits to be read.
pub struct Capture {
    pub(super) filter: Filter,
    /// By worker. The lock is the worker's alone: it is tried, never waited for, and nobody else takes it.
    pub(super) lanes: Box<[Mutex<Lane>]>,
    missed: Box<[[Counter; LINKS]]>,
}

/// A worker's end of its slots.
pub(super) struct Lane {
    full: Producer<Record>,
    emptied: Consumer<Record>,
    pub(super) free: Vec<Record>,
    /// One for each frame of the burst in hand.
    pub(super) seen: Vec<Seen>,
    /// What has left during the burst, with the place of the packet in hand.
    pub(super) left: Vec<(usize, Record)>,
    /// What is told at the end of the burst, whole.
    pub(super) ready: Vec<Record>,
    pub(super) packets: u64,
}

/// A frame of the burst in hand.
pub(super) struct Seen {
    pub(super) judged: Judged,
    pub(super) record: Option<Record>,
    /// Copies that found no slot.
    pub(super) lost: u64,
    pub(super) link: LinkId,
    pub(super) verdict: Verdict,
}

/// Which way a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameDirection {
    /// It came in.
    In,
    /// It went out.
    Out,
    /// It had come in before: a fragment that waited, or one that another worker took in.
    Earlier,
}

/// A copy of a frame.
#[derive(Debug)]
pub struct Record {
    /// Numbers the worker's packets: what came in and what went out because of it have one number, and follow each
    /// other.
    pub packet: u64,
    /// When its burst was taken in: nanoseconds since 1970, UTC.
    pub nanoseconds: u64,
    /// The link that it came in or went out by.
    pub link: LinkId,
    /// Which of the two.
    pub direction: FrameDirection,
    /// What became of the packet that came in.
    pub verdict: Verdict,
    /// Bytes of the frame.
    pub length: usize,
    kept: usize,
    bytes: Box<[u8]>,
}

impl Record {
    /// The frame from its Ethernet header on, as much as is kept of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.kept]
    }

    pub(super) fn copy(&mut self, nanoseconds: u64, link: LinkId, direction: FrameDirection, frame: &[u8]) {
        (self.nanoseconds, self.link, self.direction, self.length) =
            (nanoseconds, link, direction, frame.len());
        self.kept = frame.len().min(self.bytes.len());
        self.bytes[..self.kept].copy_from_slice(&frame[..self.kept]);
    }
}

impl Capture {
    /// A capture for so many workers, with so many slots of so many bytes for each, and its other end.
    pub fn new(filter: Filter, workers: usize, slots: usize, slot_bytes: usize) -> (Arc<Self>, Reader) {
        let (lanes, ends) =
            (0..workers).map(|_| Lane::new(slots, slot_bytes)).unzip::<_, _, Vec<_>, Vec<_>>();
        let missed = (0..workers).map(|_| std::array::from_fn(|_| Counter::default())).collect();
        let lanes = lanes.into_iter().map(Mutex::new).collect();
        (Arc::new(Self { filter, lanes, missed }), Reader { lanes: ends })
    }

    /// Copies that were left out because no slot was free, of packets that came in by each link that has any.
    pub fn missed(&self) -> impl Iterator<Item = (LinkId, u64)> {
        let of = |link: usize| self.missed.iter().map(|counts| counts[link].value()).sum();
        (0..LINKS).map(move |link| (LinkId(link as u16), of(link))).filter(|(_, count)| *count > 0)
    }

    pub(super) fn count_missed(&self, worker: usize, link: LinkId, count: u64) {
        self.missed[worker][usize::from(link.0).min(LINKS - 1)].add(count);
    }
}

impl Lane {
    fn new(slots: usize, slot_bytes: usize) -> (Self, End) {
        let (full, filled) = RingBuffer::new(slots);
        let (empty, emptied) = RingBuffer::new(slots);
        let record = || Record {
            packet: 0,
            nanoseconds: 0,
            link: LinkId(0),
            direction: FrameDirection::In,
            verdict: Verdict::Held,
            length: 0,
            kept: 0,
            bytes: vec![0; slot_bytes].into(),
        };
        let lane = Self {
            full,
            emptied,
            free: (0..slots).map(|_| record()).collect(),
            seen: Vec::with_capacity(BURST),
            left: Vec::with_capacity(slots),
            ready: Vec::with_capacity(slots),
            packets: 0,
        };
        (lane, (filled, empty))
    }

    /// An empty slot.
    pub(super) fn take(&mut self) -> Option<Record> {
        self.free.pop().or_else(|| self.emptied.pop().ok())
    }

    /// Has a copy told, as one of the packet that was begun last.
    pub(super) fn push(&mut self, mut record: Record, verdict: Verdict) {
        (record.packet, record.verdict) = (self.packets, verdict);
        self.ready.push(record);
    }

    /// Tells of the burst: all of it at once, so that a reader never has half a packet.
    pub(super) fn hand_over(&mut self) {
        // There are as many places as slots.
        if let Ok(chunk) = self.full.write_chunk_uninit(self.ready.len()) {
            chunk.fill_from_iter(self.ready.drain(..));
        }
    }
}

/// A lane's other end: what is full, and where it goes when it is read.
type End = (Consumer<Record>, Producer<Record>);

/// Reads what workers have copied.
pub struct Reader {
    lanes: Vec<End>,
}

impl Reader {
    /// Hands over what is there, with the worker's number, each worker's in its order. Returns how much it was.
    pub fn read(&mut self, mut each: impl FnMut(usize, &Record)) -> usize {
        let mut count = 0;
        for (worker, (filled, empty)) in self.lanes.iter_mut().enumerate() {
            for _ in 0..filled.slots() {
                let Ok(record) = filled.pop() else { break };
                each(worker, &record);
                count += 1;
                // There are as many places as slots.
                let _ = empty.push(record);
            }
        }
        count
    }
}
