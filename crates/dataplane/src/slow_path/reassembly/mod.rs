//! Reassembly that come in: held until their datagram is whole, then put together.
//!
//! Runs for each fragment, and when the time of one that waits is over. As under IPVS, nothing is decided or counted
//! of a datagram before all of it is here: one that stays incomplete begins no connection. Its fragments wait as the
//! frames that they came in, so that the kernel gets them back as they were if it is not a service's. The worker that
//! met the first of them gathers them; others hand theirs over (`handoff.rs`).
//!
//! Promise: what is put together covers its datagram exactly once. A fragment that overlaps another ends its datagram,
//! except that one all of whose bytes were here is dropped alone, whatever they say, as by Linux: nobody ends others'
//! datagrams by repeating a part. Not seen: a datagram that takes the identification of another
//! while that one is incomplete, and whose fragments fill just the gaps; the transport's checksum is then wrong.
//!
//! Cost: one look at each fragment that waits, at most [`HELD`]; one copy of a whole datagram. Bounded: the datagram
//! that waits longest goes when there is no room. Not here: what becomes of the datagram (`datagram.rs`).

mod forward;
pub mod handoff;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use xvs_proto::flow::HashSecret;
use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::ipv6::{self, Ipv6};
use xvs_proto::{Endpoint, Family, FlowKey, Packet, Protocol, ethernet};
use xvs_xdp::{BURST, Frame, FrameLayout, FramePool, HELD, LinkId};

use crate::clock::Millis;
use crate::port::{Port, Received};
use crate::slow_path::reassembly::handoff::Handoff;
use crate::verdict::DropReason;

/// How many fragments one datagram may have: enough for the largest by links that take 576 bytes (RFC 791 §3.2).
pub const PER_DATAGRAM: usize = 128;
/// How long a datagram may be incomplete: as Linux (`ipfrag_time`), and RFC 8200 §4.5.
const TIMEOUT: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];
/// The largest datagram with its header, in bytes, by family: over IPv6 the header is not counted (RFC 8200 §3).
const LARGEST: [usize; 2] = [u16::MAX as usize, u16::MAX as usize + ipv6::HEADER_LEN];
/// Room for the link header and outer headers before a datagram.
const HEADROOM: usize = 256;

/// One worker's fragments that wait for others.
pub struct Reassembly {
    worker: usize,
    handoff: Arc<Handoff>,
    secret: HashSecret,
    /// In the order in which they came.
    held: Vec<Held>,
    /// Those that wait no longer, for the caller.
    released: Vec<Received>,
    /// Of one frame, which holds any datagram.
    room: FramePool,
    /// When the last fragment came.
    last: Millis,
}

/// A fragment that waits.
struct Held {
    received: Received,
    key: Key,
    tag: u64,
    part: Part,
    until: Millis,
}

/// What fragments of one datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    dest: IpAddr,
    /// None in IPv6, where only the first fragment knows (RFC 8200 §4.5).
    protocol: Protocol,
    id: u32,
}

/// Which part of its datagram a fragment is.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Where it begins in the datagram, in bytes.
    offset: usize,
    /// Bytes of the datagram in it.
    len: usize,
    more: bool,
    /// Where these bytes begin in the frame.
    at: usize,
    network: usize,
    dont_fragment: bool,
    tos: u8,
}

/// What became of a fragment.
#[derive(Debug)]
pub enum Gathered {
    /// It waits.
    Waits,
    /// Another worker has a copy of it.
    HandedOver,
    /// It goes nowhere, and perhaps others of its datagram with it.
    Refused(DropReason),
    /// It was the last one missing.
    Whole(Datagram),
}

/// A datagram as it came, in one frame.
#[derive(Debug)]
pub struct Datagram {
    /// The frame: larger than a port takes, so it goes back by [`Reassembly::put_back`].
    pub frame: Frame,
    /// Where its first fragment came in.
    pub link: LinkId,
    /// Bytes of the largest fragment's packet.
    pub largest: usize,
}

impl Reassembly {
    /// Nothing waits. `secret` keys the hash by which workers find each other's datagrams.
    ///
    /// # Panics
    /// If `handoff` was made for fewer workers.
    pub fn new(worker: usize, handoff: Arc<Handoff>, secret: HashSecret) -> Self {
        assert!(!handoff.has_frames(worker), "a worker of the exchange, and a new one");
        let layout = FrameLayout {
            frame_size_bytes: (HEADROOM + ethernet::HEADER_LEN + LARGEST[1]) as u32,
            headroom_bytes: HEADROOM as u32,
            frames: 1,
        };
        Self {
            worker,
            handoff,
            secret,
            held: Vec::with_capacity(HELD),
            released: Vec::with_capacity(HELD),
            room: FramePool::in_memory(layout),
            last: Millis(0),
        }
    }

    /// Takes in what other workers have met, as long as the burst has room. Returns how many frames that was.
    pub fn receive(&mut self, burst: &mut Vec<Received>, port: &mut impl Port) -> usize {
        let before = burst.len();
        while burst.len() < BURST && self.handoff.has_frames(self.worker) {
            // Without a frame they wait in their queue.
            let Some(mut frame) = port.allocate() else { break };
            let Some(handed) = self.handoff.receive(self.worker) else {
                port.recycle(frame);
                break;
            };
            let (link, bytes) = handed.frame();
            if frame.resize(bytes.len()) {
                frame.bytes_mut().copy_from_slice(bytes);
            }
            self.handoff.put_back(handed);
            burst.push(Received { link, frame });
        }
        burst.len() - before
    }

    /// Takes a fragment. What waits no longer because of it is in [`Self::released`].
    pub fn take(&mut self, received: Received, packet: &Packet, now: Millis) -> Gathered {
        let (key, part) = read(received.frame.bytes(), packet);
        if let Err(reason) = part.check(packet.family()) {
            self.released.push(received);
            return Gathered::Refused(reason);
        }
        let tag = key.tag(&self.secret);
        let mut sum = Sum::default();
        let mut until = None;
        for other in self.held.iter().filter(|other| other.tag == tag && other.key == key) {
            until = Some(other.until);
            sum.add(&other.part);
            sum.repeated += other.part.shared_with(&part);
        }
        if until.is_none() {
            let gatherer = self.handoff.claim(tag, self.worker);
            if gatherer != self.worker {
                let sent = self.handoff.send(gatherer, received.link, received.frame.bytes());
                self.released.push(received);
                return if sent {
                    Gathered::HandedOver
                } else {
                    Gathered::Refused(DropReason::FragmentCrowded)
                };
            }
        }
        self.last = now;
        let until = until.unwrap_or(now + TIMEOUT[usize::from(packet.family() == Family::V6)]);
        sum.add(&part);
        if sum.repeats(&part) {
            self.released.push(received);
            return Gathered::Refused(DropReason::FragmentRepeated);
        }
        self.held.push(Held { received, key, tag, part, until });
        let reason = match sum.state() {
            State::Partial => return Gathered::Waits,
            State::Whole => match self.assemble(&key, sum.bytes) {
                Ok(datagram) => {
                    self.release(&key);
                    return Gathered::Whole(datagram);
                }
                Err(reason) => reason,
            },
            State::Contradictory => DropReason::FragmentConflict,
            State::TooMany => DropReason::FragmentCrowded,
        };
        self.release(&key);
        Gathered::Refused(reason)
    }

    /// Releases a datagram whose time is over, or for which there is no room, and says why; to be repeated until there
    /// is none.
    pub fn release_overdue(&mut self, now: Millis) -> Option<DropReason> {
        let over = self.held.iter().find(|held| held.until <= now).map(|held| held.key);
        let (key, reason) = match over {
            Some(key) => (key, DropReason::FragmentTimeout),
            None if self.held.len() == HELD => (self.held[0].key, DropReason::FragmentCrowded),
            None => return None,
        };
        self.release(&key);
        Some(reason)
    }

    /// Releases a datagram, whichever; `false` if there is none.
    pub fn abandon(&mut self) -> bool {
        let key = self.held.first().map(|held| held.key);
        key.inspect(|key| self.release(key)).is_some()
    }

    /// The frames that wait no longer, for the caller to dispose of.
    pub fn released(&mut self) -> &mut Vec<Received> {
        &mut self.released
    }

    /// How many frames wait.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes the frame of a datagram back.
    pub fn put_back(&mut self, datagram: Datagram) {
        self.room.put(datagram.frame);
    }

    /// When to look again though no frame comes: a time is over, or another worker may have met what is missing.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        let frames = self.handoff.has_frames(self.worker).then_some(now + LOOK_AFTER);
        let Some(over) = self.held.iter().map(|held| held.until).min() else { return frames };
        if !self.handoff.is_shared() {
            return Some(over);
        }
        let waited = Duration::from_millis(now.0.saturating_sub(self.last.0));
        Some(over.min(now + LOOK_AFTER.max(waited / LOOK_SHARE)))
    }

    fn release(&mut self, key: &Key) {
        let mut claimed = None;
        for held in self.held.extract_if(.., |held| held.key == *key) {
            claimed = Some(held.tag);
            self.released.push(held.received);
        }
        claimed.inspect(|tag| self.handoff.release(*tag));
    }

    /// Copies the parts of a datagram of so many bytes behind the first one's headers.
    fn assemble(&mut self, key: &Key, bytes: usize) -> Result<Datagram, DropReason> {
        let mut frame = self.room.take().ok_or(DropReason::FragmentCrowded)?;
        let assembled = write(&mut frame, self.held.iter().filter(|held| held.key == *key), bytes);
        match assembled {
            Ok((link, largest)) => Ok(Datagram { frame, link, largest }),
            Err(reason) => {
                self.room.put(frame);
                Err(reason)
            }
        }
    }
}

/// After how long a worker looks for what others have met, and which share of the time that it has waited already.
const LOOK_AFTER: Duration = Duration::from_millis(1);
const LOOK_SHARE: u32 = 8;

impl Held {
    fn bytes(&self) -> &[u8] {
        &self.received.frame.bytes()[self.part.range()]
    }

    /// Bytes of its packet.
    fn length(&self) -> usize {
        self.part.at - self.part.network + self.part.len
    }
}

impl Key {
    fn tag(&self, secret: &HashSecret) -> u64 {
        let source = Endpoint::new(self.source, self.id as u16);
        let dest = Endpoint::new(self.dest, (self.id >> 16) as u16);
        FlowKey { protocol: self.protocol, source, dest }.hash(secret)
    }
}

impl Part {
    fn end(&self) -> usize {
        self.offset + self.len
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.at..self.at + self.len
    }

    /// What can be said of a fragment alone. Source: RFC 791 §3.2, RFC 8200 §4.5.
    fn check(&self, family: Family) -> Result<(), DropReason> {
        let odd = self.len == 0 || self.more && !self.len.is_multiple_of(UNIT);
        let (is_v6, fragment_header) = match family {
            Family::V4 => (false, 0),
            Family::V6 => (true, ipv6::FRAGMENT_HEADER_LEN),
        };
        let headers = self.at - self.network - fragment_header;
        let too_large = headers + self.end() > LARGEST[usize::from(is_v6)];
        if odd || too_large { Err(DropReason::FragmentLength) } else { Ok(()) }
    }

    /// Bytes of the datagram that are in both.
    fn shared_with(&self, other: &Self) -> usize {
        self.end().min(other.end()).saturating_sub(self.offset.max(other.offset))
    }
}

/// The unit of fragment offsets, in bytes.
const UNIT: usize = 8;

/// What the fragments of one datagram are together.
#[derive(Debug, Default)]
struct Sum {
    bytes: usize,
    pieces: usize,
    /// The furthest end of any.
    end: usize,
    /// Where the last one ends, if it is here.
    total: Option<usize>,
    /// Bytes of the new one that were here before.
    repeated: usize,
}

enum State {
    Partial,
    Whole,
    Contradictory,
    TooMany,
}

impl Sum {
    fn add(&mut self, part: &Part) {
        self.bytes += part.len;
        self.pieces += 1;
        self.end = self.end.max(part.end());
        if !part.more {
            // Of two ends the further one lies behind the other.
            self.total = Some(self.total.unwrap_or(part.end()).min(part.end()));
        }
    }

    /// Whether all of `new`, the last one added, was here before; of those before no two share a byte.
    fn repeats(&self, new: &Part) -> bool {
        self.repeated == new.len && self.total.is_none_or(|total| self.end <= total)
    }

    fn state(&self) -> State {
        match self.total {
            _ if self.repeated > 0 => State::Contradictory,
            Some(total) if self.end > total => State::Contradictory,
            Some(total) if self.bytes == total => State::Whole,
            _ if self.pieces >= PER_DATAGRAM => State::TooMany,
            _ => State::Partial,
        }
    }
}

/// Reads what a fragment says of itself.
fn read(frame: &[u8], packet: &Packet) -> (Key, Part) {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (id, protocol, offset, more, at) = match packet.fragment_header {
        None => {
            let flags = word(packet.network + ipv4::field::FLAGS_OFFSET.start);
            let id = u32::from(word(packet.network + ipv4::field::ID.start));
            let offset = usize::from(flags & ipv4::OFFSET_MASK) * UNIT;
            (id, packet.flow.protocol, offset, flags & ipv4::MORE_FRAGMENTS != 0, packet.transport)
        }
        Some(header) => {
            let flags = word(header + 2);
            let id = u32::from(word(header + 4)) << 16 | u32::from(word(header + 6));
            let offset = usize::from(flags & ipv6::OFFSET_MASK);
            let at = header + ipv6::FRAGMENT_HEADER_LEN;
            (id, Protocol(0), offset, flags & ipv6::MORE_FRAGMENTS != 0, at)
        }
    };
    let key = Key { source: packet.flow.source.addr, dest: packet.flow.dest.addr, protocol, id };
    let Packet { network, end, dont_fragment, tos, .. } = *packet;
    (key, Part { offset, len: end - at, more, at, network, dont_fragment, tos })
}

/// Writes a datagram of so many bytes from its parts. Returns where the first came in, and the length of the largest.
fn write<'h>(
    frame: &mut Frame,
    parts: impl Iterator<Item = &'h Held> + Clone,
    bytes: usize,
) -> Result<(LinkId, usize), DropReason> {
    let first = parts.clone().find(|held| held.part.offset == 0).ok_or(DropReason::FragmentConflict)?;
    let Part { at, network, .. } = first.part;
    let is_v6 = first.key.dest.is_ipv6();
    let headers = if is_v6 { at - ipv6::FRAGMENT_HEADER_LEN } else { at };
    let length = headers - network + bytes;
    // The fragment header that goes is written first, and then over.
    if length > LARGEST[usize::from(is_v6)] || !frame.resize((headers + bytes).max(at)) {
        return Err(DropReason::FragmentLength);
    }
    let whole = frame.bytes_mut();
    whole[..at].copy_from_slice(&first.received.frame.bytes()[..at]);
    let (mut seen, mut largest, mut largest_unfragmentable) = (0, 0, 0);
    if is_v6 {
        Ipv6::edit(&mut whole[network..]).unlink_fragment_header(headers - network);
        let payload_len = (length - ipv6::HEADER_LEN) as u16;
        whole[network..][ipv6::field::PAYLOAD_LEN].copy_from_slice(&payload_len.to_be_bytes());
    }
    for held in parts {
        whole[headers + held.part.offset..][..held.part.len].copy_from_slice(held.bytes());
        seen |= 1 << (held.part.tos & ipv4::CONGESTION_EXPERIENCED);
        largest = largest.max(held.length());
        if held.part.dont_fragment {
            largest_unfragmentable = largest_unfragmentable.max(held.length());
        }
    }
    let congestion = congestion(seen)?;
    if is_v6 {
        if congestion {
            // The class lies across the first two bytes.
            whole[network + 1] |= ipv4::CONGESTION_EXPERIENCED << 4;
        }
    } else {
        let flags = if largest_unfragmentable == largest { ipv4::DONT_FRAGMENT } else { 0 };
        let mut header = Ipv4::edit(&mut whole[network..]);
        header.set_part(length as u16, flags);
        if congestion {
            header.mark_congestion();
        }
    }
    // A header longer than the data leaves room behind it.
    let shorter = frame.resize(headers + bytes);
    debug_assert!(shorter, "it held as much before");
    Ok((first.received.link, largest))
}

/// Whether a datagram met congestion, by the set of ECN fields that its fragments had: any of them did.
///
/// # Errors
/// Some were capable of ECN and others not: a sender writes one field into all of them (RFC 3168 §5.3).
fn congestion(seen: u8) -> Result<bool, DropReason> {
    const NOT_CAPABLE: u8 = 1;
    const CONGESTED: u8 = 1 << ipv4::CONGESTION_EXPERIENCED;
    match seen & NOT_CAPABLE != 0 && seen != NOT_CAPABLE {
        true => Err(DropReason::FragmentConflict),
        false => Ok(seen & CONGESTED != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::MemoryPort;
    use xvs_proto::{Parsed, parse};

    /// A worker's fragments, with frames to put them in.
    struct Bench {
        fragments: Reassembly,
        port: MemoryPort,
    }

    impl Bench {
        fn new() -> Self {
            let fragments = Reassembly::new(0, Arc::new(Handoff::new(1)), HashSecret([3, 5, 7]));
            Self { fragments, port: MemoryPort::with_links(1) }
        }

        fn take(&mut self, bytes: &[u8], now: u64) -> Gathered {
            let mut frame = self.port.allocate().unwrap();
            assert!(frame.resize(bytes.len()));
            frame.bytes_mut().copy_from_slice(bytes);
            let Ok(Parsed::Ip(packet)) = parse(bytes) else { panic!("not a packet") };
            let gathered = self.fragments.take(Received { link: LinkId(0), frame }, &packet, Millis(now));
            self.fragments.released().drain(..).for_each(|received| self.port.recycle(received.frame));
            gathered
        }

        /// Why a fragment was refused; none if it waits.
        fn refused(&mut self, bytes: &[u8]) -> Option<DropReason> {
            match self.take(bytes, 0) {
                Gathered::Waits => None,
                Gathered::Refused(reason) => Some(reason),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A fragment of UDP over IPv4: `len` bytes of `fill` from byte `8 * offset` on.
    fn v4(offset: u16, more: bool, len: usize, fill: u8) -> Vec<u8> {
        v4_with(offset, more, len, fill, 0)
    }

    fn v4_with(offset: u16, more: bool, len: usize, fill: u8, tos: u8) -> Vec<u8> {
        let header = ipv4::Header {
            tos,
            payload_len: len as u16,
            id: 77,
            dont_fragment: false,
            ttl: 64,
            protocol: Protocol::UDP,
            source: [192, 0, 2, 10].into(),
            dest: [198, 51, 100, 1].into(),
        };
        let mut frame = vec![fill; 34 + len];
        frame[..14].copy_from_slice(&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 0xfe, 8, 0]);
        header.emit(&mut frame[14..]);
        let more = if more { ipv4::MORE_FRAGMENTS } else { 0 };
        Ipv4::edit(&mut frame[14..]).set_part(20 + len as u16, offset | more);
        frame
    }

    /// As [`v4`], over IPv6.
    fn v6_filled(offset: u16, more: bool, len: usize, fill: u8) -> Vec<u8> {
        let mut frame = v6(&[], offset * 8, more, len);
        let data = frame.len() - len;
        frame[data..].fill(fill);
        frame
    }

    #[test]
    fn what_overlaps_or_contradicts_ends_its_datagram_and_what_repeats_itself_does_not() {
        overlaps_and_repeats(v4);
        // RFC 5722 §4 and RFC 8200 §4.5, which lets exact repetitions pass.
        overlaps_and_repeats(v6_filled);
    }

    fn overlaps_and_repeats(part: impl Fn(u16, bool, usize, u8) -> Vec<u8>) {
        use DropReason::{FragmentConflict, FragmentRepeated};
        for (second, reason) in [
            (part(2, true, 16, 1), FragmentConflict),
            (part(0, true, 16, 1), FragmentConflict),
            (part(0, true, 40, 1), FragmentConflict),
            (part(1, false, 8, 1), FragmentConflict),
            (part(1, true, 16, 1), FragmentRepeated),
            (part(1, true, 16, 2), FragmentRepeated),
            (part(1, true, 8, 2), FragmentRepeated),
            (part(2, true, 8, 2), FragmentRepeated),
            (part(2, true, 24, 2), FragmentRepeated),
        ] {
            // Units 1 and 2, and for what repeats them 3 and 4.
            let mut bench = Bench::new();
            assert_eq!(bench.refused(&part(1, true, 16, 1)), None);
            if reason == FragmentRepeated {
                assert_eq!(bench.refused(&part(3, true, 16, 1)), None);
            }
            let held = bench.fragments.held();
            assert_eq!(bench.refused(&second), Some(reason), "{second:x?}");
            assert_eq!(bench.fragments.held(), if reason == FragmentRepeated { held } else { 0 });
        }
        // Two ends, one behind the end, an end before the end.
        for behind in [part(9, false, 8, 1), part(9, true, 8, 1), part(1, false, 8, 1)] {
            let mut bench = Bench::new();
            assert_eq!(bench.refused(&part(5, false, 8, 1)), None);
            assert_eq!(bench.refused(&behind), Some(FragmentConflict));
            assert_eq!(bench.fragments.held(), 0);
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused_before_they_wait() {
        let mut bench = Bench::new();
        for frame in [v4(1, true, 12, 1), v4(1, false, 0, 1), v4(0x1fff, false, 8, 1), v4(8186, true, 32, 1)]
        {
            assert_eq!(bench.refused(&frame), Some(DropReason::FragmentLength), "{frame:x?}");
        }
        assert_eq!(bench.refused(&v4(8186, false, 27, 1)), None, "it ends at 65,535 with the header");
        assert_eq!(bench.fragments.held(), 1);
        let mut bench = Bench::new();
        for frame in [
            v6_filled(1, true, 12, 1),
            v6_filled(1, false, 0, 1),
            v6_filled(8191, false, 8, 1),
            v6_filled(8189, true, 24, 1),
        ] {
            assert_eq!(bench.refused(&frame), Some(DropReason::FragmentLength), "{frame:x?}");
        }
        assert_eq!(bench.refused(&v6_filled(8191, false, 7, 1)), None, "it ends at 65,535 behind the header");
        let options = [44, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(bench.refused(&v6(&options, 65_528, false, 7)), Some(DropReason::FragmentLength));
    }

    #[test]
    fn a_datagram_of_too_many_pieces_goes_and_so_does_the_oldest_when_there_is_no_room() {
        let mut bench = Bench::new();
        for piece in 0..PER_DATAGRAM as u16 - 1 {
            assert_eq!(bench.refused(&v4(piece + 1, true, 8, 1)), None);
        }
        assert_eq!(bench.refused(&v4(500, true, 8, 1)), Some(DropReason::FragmentCrowded));
        assert_eq!((bench.fragments.held(), bench.port.census().out), (0, 0));
        for datagram in 0..HELD as u8 as u16 + HELD as u16 {
            assert_eq!(bench.fragments.release_overdue(Millis(0)), None);
            let mut frame = v4(1, true, 8, 1);
            frame[18..20].copy_from_slice(&datagram.to_be_bytes());
            let sum = Sum16::of(&mut frame);
            frame[24..26].copy_from_slice(&sum);
            assert_eq!(bench.refused(&frame), None);
        }
        assert_eq!(bench.fragments.release_overdue(Millis(0)), Some(DropReason::FragmentCrowded));
        assert_eq!(bench.fragments.held(), HELD - 1);
        assert_eq!(bench.fragments.release_overdue(Millis(0)), None);
    }

    /// An IPv4 header's checksum, after a test edited the header.
    struct Sum16;

    impl Sum16 {
        fn of(frame: &mut [u8]) -> [u8; 2] {
            frame[24..26].fill(0);
            xvs_proto::checksum::Sum::default().bytes(&frame[14..34]).checksum().to_be_bytes()
        }
    }

    #[test]
    fn time_runs_from_the_first_that_came_and_is_longer_for_ipv6() {
        let mut bench = Bench::new();
        assert!(matches!(bench.take(&v4(0, true, 16, 1), 1000), Gathered::Waits));
        assert!(matches!(bench.take(&v4(2, true, 16, 1), 20_000), Gathered::Waits));
        assert!(matches!(bench.take(&v6(&[], 0, true, 16), 1000), Gathered::Waits));
        assert_eq!(bench.fragments.next_due(Millis(20_000)), Some(Millis(31_000)));
        assert_eq!(bench.fragments.release_overdue(Millis(30_999)), None);
        assert_eq!(bench.fragments.release_overdue(Millis(31_000)), Some(DropReason::FragmentTimeout));
        assert_eq!(bench.fragments.released().drain(..).map(|one| bench.port.recycle(one.frame)).count(), 2);
        assert_eq!(bench.fragments.release_overdue(Millis(60_999)), None);
        assert_eq!(bench.fragments.release_overdue(Millis(61_000)), Some(DropReason::FragmentTimeout));
    }

    #[test]
    fn congestion_that_one_fragment_met_is_the_datagrams_and_a_mixture_is_refused() {
        for (tos, want) in [([0b10, 0b11], Some(0b11)), ([0b10, 0b10], Some(0b10)), ([0b00, 0b11], None)] {
            let mut bench = Bench::new();
            assert!(matches!(bench.take(&v4_with(2, false, 16, 1, tos[1]), 0), Gathered::Waits));
            match bench.take(&v4_with(0, true, 16, 1, tos[0]), 0) {
                Gathered::Whole(datagram) => {
                    let Ok(Parsed::Ip(packet)) = parse(datagram.frame.bytes()) else { panic!("a packet") };
                    assert_eq!(Some(packet.tos), want);
                    bench.fragments.put_back(datagram);
                }
                Gathered::Refused(reason) => assert_eq!((reason, want), (DropReason::FragmentConflict, None)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A fragment of UDP over IPv6 behind these extension headers, whose bytes count up.
    fn v6(extensions: &[u8], offset: u16, more: bool, len: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 0xfe, 0x86, 0xdd];
        let header = ipv6::Header {
            traffic_class: 0xb8,
            payload_len: (extensions.len() + 8 + len) as u16,
            next_header: Protocol(if extensions.is_empty() { 44 } else { 0 }),
            hop_limit: 9,
            source: [0x20; 16].into(),
            dest: [0xfd; 16].into(),
        };
        frame.resize(54, 0);
        header.emit(&mut frame[14..]);
        frame.extend(extensions);
        frame.extend([17, 0]);
        frame.extend((offset | u16::from(more)).to_be_bytes());
        frame.extend([0, 1, 0, 7]);
        frame.extend((0..len).map(|at| (usize::from(offset) + at) as u8));
        frame
    }

    #[test]
    fn an_ipv6_datagram_loses_its_fragment_header_and_keeps_the_others() {
        let options = [44, 0, 1, 4, 0, 0, 0, 0];
        for extensions in [&[][..], &options] {
            let mut bench = Bench::new();
            assert!(matches!(bench.take(&v6(extensions, 32, false, 5), 0), Gathered::Waits));
            let Gathered::Whole(datagram) = bench.take(&v6(extensions, 0, true, 32), 0) else {
                panic!("it is whole")
            };
            let bytes = datagram.frame.bytes();
            let Ok(Parsed::Ip(packet)) = parse(bytes) else { panic!("a packet") };
            assert_eq!((packet.fragment_header, packet.flow.protocol), (None, Protocol::UDP));
            assert_eq!(packet.length(), 40 + extensions.len() + 37);
            let whole: Vec<u8> = (0..37).collect();
            assert_eq!(bytes[packet.transport..packet.end], whole);
            assert_eq!(datagram.largest, 40 + extensions.len() + 8 + 32);
            bench.fragments.put_back(datagram);
        }
    }
}
