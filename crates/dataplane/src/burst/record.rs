//! The frames of a burst, each with the results of the stages so far.
//!
//! Each stage is a loop over the burst, so that the memory for the next stage is fetched meanwhile. Most packets are
//! plain ([`Plain`]), belong to a connection and do not change its state: they go the short way, for which a few words
//! in an array suffice (`burst/steady.rs`). All others are classified and go the general way, which can do everything
//! that the short one does. A packet in several parts goes the short way by its first part. On the general way its
//! parts are joined in one buffer, so that every stage sees the whole packet, and the result is written back: that
//! costs two copies of the packet. Nothing allocates after [`Burst::new`].

use xvs_proto::plain::AddressesV6;
use xvs_proto::{Family, HashSecret, LinkId, MacAddr, Packet, Plain, Protocol, tcp};
use xvs_xdp::BURST;

use super::classify::{Class, classify};
use super::context::Context;
use super::flows::Flows;
use super::framed_packet::FramedPacket;
use super::steady::{PlainPacket, Steady};
use crate::conn::{Candidate, ConnId, Direction};
use crate::port::{Port, Received, write_back};
use crate::slow_path::reassembly::Reassembly;
use crate::snapshot::{DestinationId, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// The frames of the present burst.
pub struct Burst {
    frames: Vec<Received>,
    /// One for each frame.
    records: Box<[Record; BURST]>,
    /// Those of the general way, in the order in which they were classified.
    steps: Vec<Step>,
    /// Whether packets may go the short way. Tests turn it off and expect the same results.
    pub(crate) short_way: bool,
}

/// What the short way knows of a frame.
#[derive(Clone, Copy)]
struct Record {
    plain: Plain,
    /// The hash of its connection's key; 0 where it has none.
    hash: u64,
    way: Way,
}

impl Record {
    /// Whether a connection is looked up by its hash.
    fn is_sought(&self) -> bool {
        self.hash != 0
    }
}

/// The way of a frame, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A plain packet that may belong to this connection.
    Candidate(ConnId),
    /// A plain packet of this connection.
    Of(ConnId, Direction),
    /// A plain packet whose candidate may be in the alternative bucket.
    Elsewhere,
    /// A plain packet whose connection, if it has one, is looked up on the general way.
    Unknown,
    /// It went the short way and leaves by this link.
    Short(LinkId),
    /// The general way, with the step of this number.
    General(u8),
}

impl Way {
    #[inline(always)]
    fn of(candidate: Candidate<ConnId>) -> Self {
        match candidate {
            Candidate::Found(id) => Self::Candidate(id),
            Candidate::Elsewhere => Self::Elsewhere,
            Candidate::Unsure => Self::Unknown,
        }
    }
}

/// The results for one frame on the general way so far.
pub struct Step {
    /// Its class.
    pub class: Class,
    /// The hash of its connection's key; 0 where the class has none.
    pub hash: u64,
    /// The verdict. It is [`Verdict::Held`] for frames that are processed after the rest of the burst is decided.
    pub verdict: Verdict,
}

/// What is to be done with a frame.
pub(crate) enum Decided<'a> {
    /// It is sent by this link.
    Forwarded(LinkId),
    /// Its step is carried out.
    General(&'a Step),
}

impl Burst {
    /// Room for one burst.
    pub fn new() -> Self {
        let record = Record { plain: Plain::default(), hash: 0, way: Way::Unknown };
        Self {
            frames: Vec::with_capacity(BURST),
            records: Box::new([record; BURST]),
            steps: Vec::with_capacity(BURST),
            short_way: true,
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

    /// The number of frames of the last burst that went the general way.
    pub(crate) fn general(&self) -> usize {
        self.steps.len()
    }

    /// Reads plain packets, classifies all others, and prefetches the buckets of both.
    pub(crate) fn read(&mut self, flows: &Flows, snapshot: &Snapshot) {
        self.steps.clear();
        let secret = *flows.table.table().secret();
        let serves = [Family::V4, Family::V6].map(|family| snapshot.services.any_of(family));
        let (mut link, mut addressed) = (LinkId(u16::MAX), None);
        for (received, record) in self.frames.iter_mut().zip(&mut *self.records) {
            if received.link != link {
                link = received.link;
                addressed = self.short_way.then(|| plain_address(link, snapshot)).flatten();
            }
            let bytes = received.frame.bytes();
            let is_plain = addressed.is_some_and(|(to, partial)| {
                record.plain.read(bytes, received.frame.len(), to)
                    && !(partial && record.plain.may_be_partial(bytes))
            }) && serves[record.plain.family as usize]
                && !record.plain.flags.has(tcp::Flags::SYN);
            if is_plain {
                record.hash = hash(&record.plain, received.frame.bytes(), &secret);
                record.way = Way::Unknown;
            } else {
                let step = Step::of(received, None, flows, snapshot);
                record.hash = step.hash;
                record.way = Way::General(self.steps.len() as u8);
                self.steps.push(step);
            }
            if record.is_sought() {
                flows.prefetch_buckets(record.hash);
            }
        }
    }

    /// Sends plain packets that an access list may refuse the general way, which decides.
    pub(crate) fn screen(&mut self, flows: &Flows, snapshot: &Snapshot) {
        let Some(lists) = snapshot.lists.as_deref() else { return };
        for (received, record) in self.frames.iter_mut().zip(&mut *self.records) {
            if record.way == Way::Unknown && lists.concern(record.plain.source_addr(received.frame.bytes())) {
                let step = Step::of(received, Some(record.hash), flows, snapshot);
                let may_pass = |packet: &Packet| {
                    !snapshot.is_refused(received.link, packet, || flows.is_reply(packet, step.hash))
                };
                if !matches!(&step.class, Class::Flow(packet) if may_pass(packet)) {
                    record.way = Way::General(self.steps.len() as u8);
                    self.steps.push(step);
                }
            }
        }
    }

    /// Finds the candidates of plain packets by their tags, and prefetches their entries and those of other packets.
    pub(crate) fn seek(&mut self, flows: &Flows) {
        let records = &mut self.records[..self.frames.len()];
        for record in &mut *records {
            match record.way {
                Way::Unknown => record.way = Way::of(flows.table.candidate(record.hash)),
                _ if record.is_sought() => flows.prefetch_entries(record.hash),
                _ => {}
            }
        }
        for record in records.iter_mut().filter(|record| record.way == Way::Elsewhere) {
            record.way = Way::of(flows.table.second_candidate(record.hash));
        }
    }

    /// Compares plain packets with their candidates, and prefetches the routes of those that match.
    pub(crate) fn compare(&mut self, flows: &Flows, snapshot: &Snapshot) {
        for (received, record) in self.frames.iter().zip(&mut *self.records) {
            let Way::Candidate(id) = record.way else { continue };
            let connection = flows.table.connection(id);
            record.way = match connection.direction_of(&record.plain, received.frame.bytes()) {
                Some(direction) => {
                    snapshot.destinations.prefetch_route(DestinationId(connection.dest_ref()));
                    Way::Of(id, direction)
                }
                None => Way::Unknown,
            };
        }
    }

    /// Prefetches the counters of those that match.
    pub(crate) fn prefetch_counters(&self, flows: &Flows, snapshot: &Snapshot) {
        for record in &self.records[..self.frames.len()] {
            if let Way::Of(id, _) = record.way {
                let dest = DestinationId(flows.table.connection(id).dest_ref());
                if let Some(route) = snapshot.destinations.route(dest) {
                    route.stats.prefetch(flows.worker);
                }
            }
        }
    }

    /// Forwards each packet by the short way if its connection is steady, else by `process`.
    pub(crate) fn forward(
        &mut self,
        flows: &mut Flows,
        reassembly: &mut Reassembly,
        at: Context<'_>,
        process: impl Fn(&mut Flows, FramedPacket<'_>, Context<'_>) -> Verdict,
    ) {
        let mut steady = Steady::begin(flows, at);
        let insertions = flows.table.insertions();
        for (received, record) in self.frames.iter_mut().zip(&mut *self.records) {
            // A connection that an earlier packet of the burst has begun takes over the replies of an older one.
            let is_older =
                |direction| direction == Direction::Outbound && flows.table.insertions() != insertions;
            if let Way::Of(id, direction) = record.way
                && !is_older(direction)
            {
                let p = PlainPacket {
                    plain: &record.plain,
                    frame: &mut received.frame,
                    link: received.link,
                    hash: record.hash,
                };
                if let Some(link) = steady.forward(flows, p, id, direction) {
                    record.way = Way::Short(link);
                    continue;
                }
            }
            let number = match record.way {
                Way::General(number) => number,
                _ => {
                    self.steps.push(Step::of(received, Some(record.hash), flows, at.snapshot));
                    (self.steps.len() - 1) as u8
                }
            };
            record.way = Way::General(number);
            let step = &mut self.steps[usize::from(number)];
            match step.class {
                Class::Chain => *step = Step::of_joined(received, reassembly, flows, at, &process),
                _ => step.process(received, flows, at, &process),
            }
        }
        steady.end(flows);
    }

    /// Removes the frames, in their order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Received, Decided<'_>)> {
        let steps = &self.steps;
        self.frames.drain(..).zip(&*self.records).map(|(received, record)| {
            let decided = match record.way {
                Way::Short(link) => Decided::Forwarded(link),
                Way::General(number) => Decided::General(&steps[usize::from(number)]),
                _ => unreachable!("every frame has been forwarded one way or the other"),
            };
            (received, decided)
        })
    }
}

impl Step {
    /// Classifies a frame, and computes the hash of its connection's key if it is not known.
    fn of(
        Received { link, frame }: &mut Received,
        hash: Option<u64>,
        flows: &Flows,
        snapshot: &Snapshot,
    ) -> Self {
        let class = match frame.is_chain() {
            true => Class::Chain,
            false => classify(frame, *link, snapshot, &flows.counters),
        };
        let (hash, verdict) = match class {
            Class::Flow(packet) => {
                (hash.unwrap_or_else(|| flows.hash(&packet.connection_key())), Verdict::PassToKernel)
            }
            Class::Decided(verdict) => (0, verdict),
            Class::Fragment(_) | Class::Error(_) | Class::Chain => (0, Verdict::Held),
        };
        Self { class, hash, verdict }
    }

    /// Classifies and processes a frame by the joined bytes of its parts, and writes them back.
    // Not inlined, so that the path of other packets is short.
    #[inline(never)]
    fn of_joined(
        received: &mut Received,
        reassembly: &mut Reassembly,
        flows: &mut Flows,
        at: Context<'_>,
        process: impl Fn(&mut Flows, FramedPacket<'_>, Context<'_>) -> Verdict,
    ) -> Self {
        let no_room = Verdict::Drop(DropReason::NoHeadroom);
        let Some(frame) = reassembly.join(&received.frame) else {
            debug_assert!(false, "the buffer is free between packets, and holds any packet");
            return Self { class: Class::Decided(no_room), hash: 0, verdict: no_room };
        };
        let mut whole = Received { link: received.link, frame };
        let mut step = Self::of(&mut whole, None, flows, at.snapshot);
        step.process(&mut whole, flows, at, process);
        if !write_back(&whole.frame, &mut received.frame) {
            step.verdict = no_room;
        }
        reassembly.put_back(whole.frame);
        step
    }

    /// Processes a packet whose connection or service is looked up.
    #[inline(always)]
    fn process(
        &mut self,
        received: &mut Received,
        flows: &mut Flows,
        at: Context<'_>,
        process: impl Fn(&mut Flows, FramedPacket<'_>, Context<'_>) -> Verdict,
    ) {
        if let Class::Flow(packet) = &self.class {
            let Received { link, frame } = received;
            let (link, hash) = (*link, self.hash);
            let whole = FramedPacket { frame, link, packet, hash, is_reassembled: false };
            self.verdict = process(flows, whole, at);
        }
    }
}

/// The link address of frames that may be plain, and whether the driver leaves partial checksums. `None`: all frames of
/// the link are classified.
fn plain_address(link: LinkId, snapshot: &Snapshot) -> Option<(MacAddr, bool)> {
    snapshot.egress.link(link).filter(|info| info.active).map(|info| (info.mac, info.partial_checksums))
}

/// The hash of a plain packet's connection key.
#[inline]
fn hash(plain: &Plain, frame: &[u8], secret: &HashSecret) -> u64 {
    let port = |word: u64| (word >> 16) as u16;
    let (source, dest) = match plain.family {
        Family::V4 => (plain.source >> 16, plain.dest >> 16),
        Family::V6 => {
            let AddressesV6 { source, dest } = Plain::addresses_v6(frame);
            (secret.word_v6(source, port(plain.source)), secret.word_v6(dest, port(plain.dest)))
        }
    };
    secret.mix(source, dest, Protocol(plain.protocol))
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}
