//! The frames of a burst, each with the results of the stages so far.
//!
//! Each stage is a loop over the burst, so that the memory for the next stage is fetched at the same time. Most packets
//! are plain ([`Plain`]), belong to a connection and do not change its state: they take the fast path, which needs only
//! a few integers in an array (`fast_path.rs`). All others are classified and take the general path, which handles
//! every case. A packet in several buffers takes the fast path by its first buffer. For the general path its buffers
//! are joined, so that every stage sees the whole packet, and the result is written back: this costs two copies of the
//! packet. Nothing allocates after [`Burst::new`].

use xvs_proto::plain::AddressesV6;
use xvs_proto::{Family, HashSecret, LinkId, MacAddr, Packet, Plain, Protocol, tcp};
use xvs_xdp::BURST;

use super::classify::{Class, classify};
use super::context::{Context, FramedPacket};
use super::fast_path::{FastPath, PlainPacket};
use super::flows::Flows;
use crate::conn::{Candidate, ConnId, Direction};
use crate::general_path::reassembly::Reassembly;
use crate::port::{Port, Received, write_back};
use crate::snapshot::{DestinationId, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// The frames of the present burst.
pub struct Burst {
    frames: Vec<Received>,
    /// One for each frame.
    records: Box<[Record; BURST]>,
    /// The outcome of each frame that has taken its path.
    outcomes: Box<[Outcome; BURST]>,
    /// The steps of the frames on the general path, in the order of classification.
    steps: Vec<Step>,
    /// Whether packets may take the fast path. Tests disable it and expect the same results.
    pub(crate) fast_path: bool,
}

/// The fast path's information about a frame.
#[derive(Clone, Copy)]
struct Record {
    plain: Plain,
    /// The hash of the connection's key; 0 if there is none.
    hash: u64,
    progress: Progress,
}

impl Record {
    /// Whether a connection is looked up by its hash.
    fn is_sought(&self) -> bool {
        self.hash != 0
    }
}

/// The progress of a frame through the stages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// A plain packet that may belong to this connection.
    Candidate(ConnId),
    /// A plain packet of this connection.
    Of(ConnId, Direction),
    /// A plain packet whose candidate may be in the alternative bucket.
    Elsewhere,
    /// A plain packet whose connection, if any, is looked up on the general path.
    Unknown,
    /// A packet in several buffers for the general path, which joins and classifies it when its turn comes.
    Chain,
    /// A packet on the general path, with this step number.
    General(u8),
}

/// The path that a frame has taken.
#[derive(Clone, Copy)]
enum Outcome {
    /// The fast path; it leaves by this link.
    Forwarded(LinkId),
    /// The general path, with this step number.
    General(u8),
}

impl Progress {
    #[inline(always)]
    fn of(candidate: Candidate<ConnId>) -> Self {
        match candidate {
            Candidate::Found(id) => Self::Candidate(id),
            Candidate::Elsewhere => Self::Elsewhere,
            Candidate::Unsure => Self::Unknown,
        }
    }
}

/// The results so far for one frame on the general path.
pub struct Step {
    /// The frame's class.
    pub class: Class,
    /// The hash of the connection's key; 0 if the class has none.
    pub hash: u64,
    /// The verdict; [`Verdict::Held`] for frames that are processed after the rest of the burst is decided.
    pub verdict: Verdict,
}

/// A packet on the general path whose connection or service has yet to be looked up, and its verdict decided.
pub(crate) struct Undecided<'b> {
    received: &'b mut Received,
    /// A packet in several buffers, joined.
    joined: Option<Received>,
    packet: &'b Packet,
    hash: u64,
    verdict: &'b mut Verdict,
}

/// The state of [`Burst::forward_steady`].
pub(crate) struct Forwarding<'a> {
    fast_path: FastPath<'a>,
    /// The table's number of insertions before the burst.
    insertions: u64,
    /// The frame that is next.
    next: usize,
}

/// The decision on a frame.
pub(crate) enum Decided<'a> {
    /// It is sent by this link.
    Forwarded(LinkId),
    /// The frame's step is carried out.
    General(&'a Step),
}

impl Burst {
    /// Room for one burst.
    pub fn new() -> Self {
        let record = Record { plain: Plain::default(), hash: 0, progress: Progress::Unknown };
        Self {
            frames: Vec::with_capacity(BURST),
            records: Box::new([record; BURST]),
            outcomes: Box::new([Outcome::General(0); BURST]),
            steps: Vec::with_capacity(BURST),
            fast_path: true,
        }
    }

    /// Receives frames that other workers have handed over, and then frames from the port. Returns the number of copies
    /// from other workers, which come first.
    pub fn receive(&mut self, reassembly: &mut Reassembly, port: &mut impl Port) -> usize {
        let copies = reassembly.receive(&mut self.frames, port);
        port.receive(&mut self.frames);
        copies
    }

    /// The frames in the order in which they were received.
    pub fn frames(&self) -> &[Received] {
        &self.frames
    }

    /// The number of frames in the last burst that took the general path.
    pub(crate) fn general(&self) -> usize {
        self.steps.len()
    }

    /// Reads plain packets, classifies all others, and prefetches the buckets of both.
    pub(crate) fn read(&mut self, flows: &Flows, snapshot: &Snapshot) {
        self.steps.clear();
        let secret = *flows.table.table().secret();
        let serves = [Family::V4, Family::V6].map(|family| snapshot.services.any_of(family));
        let mut link = LinkId(u16::MAX);
        let mut addressed = None;
        for (received, record) in self.frames.iter_mut().zip(&mut *self.records) {
            if received.link != link {
                link = received.link;
                addressed = self.fast_path.then(|| plain_address(link, snapshot)).flatten();
            }
            let bytes = received.frame.bytes();
            let is_plain = addressed.is_some_and(|(to, partial)| {
                record.plain.read(bytes, received.frame.len(), to)
                    && !(partial && record.plain.may_be_partial(bytes))
            }) && serves[record.plain.family as usize]
                && !record.plain.flags.has(tcp::Flags::SYN);
            if is_plain {
                record.hash = hash(&record.plain, received.frame.bytes(), &secret);
                record.progress = Progress::Unknown;
            } else if received.frame.is_chain() {
                (record.hash, record.progress) = (0, Progress::Chain);
            } else {
                let step = Step::of(received, None, flows, snapshot);
                record.hash = step.hash;
                record.progress = Progress::General(self.steps.len() as u8);
                self.steps.push(step);
            }
            if record.is_sought() {
                flows.table.prefetch_buckets(record.hash);
            }
        }
    }

    /// Moves plain packets that an access list may refuse to the general path, which decides.
    pub(crate) fn screen(&mut self, flows: &Flows, snapshot: &Snapshot) {
        let Some(lists) = snapshot.lists.as_deref() else { return };
        for (received, record) in self.frames.iter_mut().zip(&mut *self.records) {
            if record.progress == Progress::Unknown
                && lists.concern(record.plain.source_addr(received.frame.bytes()))
            {
                if received.frame.is_chain() {
                    record.progress = Progress::Chain;
                    continue;
                }
                let step = Step::of(received, Some(record.hash), flows, snapshot);
                if let Class::Flow(packet) = &step.class
                    && !snapshot.is_refused(received.link, packet, || flows.is_reply(packet, step.hash))
                {
                    continue;
                }
                record.progress = Progress::General(self.steps.len() as u8);
                self.steps.push(step);
            }
        }
    }

    /// Finds the candidates for plain packets by their tags, and prefetches their entries and those of other packets.
    pub(crate) fn seek(&mut self, flows: &Flows) {
        let records = &mut self.records[..self.frames.len()];
        for record in &mut *records {
            match record.progress {
                Progress::Unknown => record.progress = Progress::of(flows.table.candidate(record.hash)),
                _ if record.is_sought() => flows.table.prefetch_entries(record.hash),
                _ => {}
            }
        }
        for record in records.iter_mut().filter(|record| record.progress == Progress::Elsewhere) {
            record.progress = Progress::of(flows.table.second_candidate(record.hash));
        }
    }

    /// Compares plain packets with their candidates, and prefetches the routes of matching packets.
    pub(crate) fn compare(&mut self, flows: &Flows, snapshot: &Snapshot) {
        for (received, record) in self.frames.iter().zip(&mut *self.records) {
            let Progress::Candidate(id) = record.progress else { continue };
            let connection = flows.table.connection(id);
            record.progress = match connection.direction_of(&record.plain, received.frame.bytes()) {
                Some(direction) => {
                    snapshot.destinations.prefetch_route(DestinationId(connection.dest_ref()));
                    Progress::Of(id, direction)
                }
                None => Progress::Unknown,
            };
        }
    }

    /// Prefetches the counters of matching packets.
    pub(crate) fn prefetch_counters(&self, flows: &Flows, snapshot: &Snapshot) {
        for record in &self.records[..self.frames.len()] {
            if let Progress::Of(id, _) = record.progress {
                let dest = DestinationId(flows.table.connection(id).dest_ref());
                if let Some(route) = snapshot.destinations.route(dest) {
                    route.stats.prefetch(flows.worker);
                }
            }
        }
    }

    /// Forwards packets of steady connections on the fast path, up to the next packet that needs the general path.
    /// Returns the number of that packet's frame, or `None` if there is none.
    // Not inlined, so that the loop over these packets has all registers.
    #[inline(never)]
    pub(crate) fn forward_steady(
        &mut self,
        forwarding: &mut Forwarding<'_>,
        flows: &mut Flows,
    ) -> Option<usize> {
        let begin = forwarding.next;
        let frames = &mut self.frames[begin..];
        let records = self.records[begin..].iter().zip(&mut self.outcomes[begin..]);
        for (number, (received, (record, outcome))) in (begin..).zip(frames.iter_mut().zip(records)) {
            match forwarding.forward(flows, received, record) {
                Some(link) => *outcome = Outcome::Forwarded(link),
                None => {
                    forwarding.next = number + 1;
                    return Some(number);
                }
            }
        }
        forwarding.next = self.frames.len();
        None
    }

    /// The packet of a frame on the general path, if its verdict is to be decided now.
    #[inline(always)]
    pub(crate) fn undecided<'b>(
        &'b mut self,
        frame: usize,
        flows: &mut Flows,
        reassembly: &mut Reassembly,
        cx: Context<'_>,
    ) -> Option<Undecided<'b>> {
        let received = &mut self.frames[frame];
        let record = &self.records[frame];
        let (number, joined) = match record.progress {
            Progress::General(number) => (number, None),
            _ => {
                let (step, joined) = match received.frame.is_chain() {
                    true => Step::of_chain(received, reassembly, flows, cx.snapshot),
                    false => (Step::of(received, Some(record.hash), flows, cx.snapshot), None),
                };
                self.steps.push(step);
                ((self.steps.len() - 1) as u8, joined)
            }
        };
        self.outcomes[frame] = Outcome::General(number);
        let Step { class, hash, verdict } = &mut self.steps[usize::from(number)];
        if let Class::Flow(packet) = class {
            return Some(Undecided { received, joined, packet, hash: *hash, verdict });
        }
        if let Some(whole) = joined {
            divide(whole, received, verdict, reassembly);
        }
        None
    }

    /// Removes the frames, in their order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Received, Decided<'_>)> {
        let steps = &self.steps;
        self.frames.drain(..).zip(&*self.outcomes).map(|(received, outcome)| {
            let decided = match *outcome {
                Outcome::Forwarded(link) => Decided::Forwarded(link),
                Outcome::General(number) => Decided::General(&steps[usize::from(number)]),
            };
            (received, decided)
        })
    }
}

impl Step {
    /// Classifies a frame in one buffer, and computes the hash of its connection's key unless `hash` is given.
    fn of(
        Received { link, frame }: &mut Received,
        hash: Option<u64>,
        flows: &Flows,
        snapshot: &Snapshot,
    ) -> Self {
        let class = classify(frame, *link, snapshot, &flows.counters);
        let (hash, verdict) = match class {
            Class::Flow(packet) => {
                (hash.unwrap_or_else(|| flows.hash(&packet.connection_key())), Verdict::PassToKernel)
            }
            Class::Decided(verdict) => (0, verdict),
            Class::Fragment(_) | Class::Error(_) => (0, Verdict::Held),
        };
        Self { class, hash, verdict }
    }

    /// Classifies a packet by its joined buffers, which it returns.
    // Not inlined, so that the path of other packets is short.
    #[inline(never)]
    fn of_chain(
        received: &Received,
        reassembly: &mut Reassembly,
        flows: &Flows,
        snapshot: &Snapshot,
    ) -> (Self, Option<Received>) {
        let Some(frame) = reassembly.join(&received.frame) else {
            debug_assert!(false, "the buffer is free between packets, and holds any packet");
            return (Self { class: Class::Decided(NO_ROOM), hash: 0, verdict: NO_ROOM }, None);
        };
        let mut whole = Received { link: received.link, frame };
        (Self::of(&mut whole, None, flows, snapshot), Some(whole))
    }
}

/// Writes joined bytes back into the buffers.
#[inline(never)]
fn divide(whole: Received, received: &mut Received, verdict: &mut Verdict, reassembly: &mut Reassembly) {
    if !write_back(&whole.frame, &mut received.frame) {
        *verdict = NO_ROOM;
    }
    reassembly.put_back(whole.frame);
}

/// The verdict on a packet whose buffers have no room for the added bytes.
const NO_ROOM: Verdict = Verdict::Drop(DropReason::NoHeadroom);

impl Undecided<'_> {
    /// The packet.
    #[inline]
    pub(crate) fn packet(&mut self) -> FramedPacket<'_> {
        let Received { link, frame } = self.joined.as_mut().unwrap_or(self.received);
        FramedPacket { frame, link: *link, packet: self.packet, hash: self.hash, is_reassembled: false }
    }

    /// Sets the verdict.
    #[inline]
    pub(crate) fn decide(self, verdict: Verdict, reassembly: &mut Reassembly) {
        *self.verdict = verdict;
        if let Some(whole) = self.joined {
            divide(whole, self.received, self.verdict, reassembly);
        }
    }
}

impl<'a> Forwarding<'a> {
    /// The state before the first frame of a burst.
    pub(crate) fn begin(flows: &Flows, cx: Context<'a>) -> Self {
        Self { fast_path: FastPath::begin(flows, cx), insertions: flows.table.insertions(), next: 0 }
    }

    /// Forwards a packet on the fast path if its connection is steady. Returns the link by which it leaves.
    #[inline(always)]
    fn forward(&mut self, flows: &mut Flows, received: &mut Received, record: &Record) -> Option<LinkId> {
        let Progress::Of(id, direction) = record.progress else { return None };
        // A connection that an earlier packet of this burst began may have taken over the replies of an older one.
        if direction == Direction::Outbound && flows.table.insertions() != self.insertions {
            return None;
        }
        let p = PlainPacket {
            plain: &record.plain,
            frame: &mut received.frame,
            link: received.link,
            hash: record.hash,
        };
        self.fast_path.forward(flows, p, id, direction)
    }

    /// Counts the packets that the fast path has forwarded.
    pub(crate) fn end(self, flows: &Flows) {
        self.fast_path.end(flows);
    }
}

/// The link address of frames that may be plain, and whether the driver leaves partial checksums. `None` if all frames
/// from the link are classified.
fn plain_address(link: LinkId, snapshot: &Snapshot) -> Option<(MacAddr, bool)> {
    snapshot.egress.link(link).filter(|info| info.active).map(|info| (info.mac, info.partial_checksums))
}

/// The hash of a plain packet's connection key.
#[inline]
fn hash(plain: &Plain, frame: &[u8], secret: &HashSecret) -> u64 {
    let (source, dest) = match plain.family {
        Family::V4 => (plain.source >> 16, plain.dest >> 16),
        Family::V6 => {
            let AddressesV6 { source, dest } = Plain::addresses_v6(frame);
            (secret.word_v6(source, port(plain.source)), secret.word_v6(dest, port(plain.dest)))
        }
    };
    secret.mix(source, dest, Protocol(plain.protocol))
}

/// The port in an encoded endpoint of a plain packet.
#[inline]
fn port(packed: u64) -> u16 {
    (packed >> 16) as u16
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}
