//! Reassembly of fragments: they are held until their datagram is whole.
//!
//! Runs for each fragment, and when a waiting fragment times out. As in IPVS, nothing is decided or counted before the
//! whole datagram was received: an incomplete one begins no connection. Fragments wait in the frames in which they were
//! received, so the kernel gets them back unchanged if they belong to no service. The worker that received the first
//! fragment of a datagram collects all of them; other workers hand theirs over (`handoff.rs`).
//!
//! The fragments of a reassembled datagram cover it exactly once. A fragment that overlaps another one ends its
//! datagram. Exception, as in Linux: a fragment whose bytes were all received before is dropped alone, whatever it
//! contains, so repeating a fragment cannot end the datagram of another sender. Not detected: a datagram that reuses
//! the identification of an incomplete one, and whose fragments fill exactly its gaps; the transport checksum is then
//! incorrect.
//!
//! Cost: one comparison with each waiting fragment, at most [`HELD`]; one copy of a whole datagram. Bounded: when there
//! is no room, the oldest datagram to the address with the most fragments is dropped, so a flood of fragments to one
//! service does not end the datagrams of others. `forward.rs` forwards the datagram.

mod assembly;
mod coverage;
mod forward;
mod fragment;
pub mod handoff;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use xvs_proto::flow::HashSecret;
use xvs_proto::{Family, LinkId, Packet, ethernet};
use xvs_xdp::{BURST, Frame, FrameLayout, FramePool, HELD};

use self::coverage::{Coverage, State};
use self::fragment::{Held, Key, LARGEST, read};
use self::handoff::{FRAME_BYTES, Handoff};
use crate::clock::Millis;
use crate::port::{Port, Received};
use crate::verdict::DropReason;

pub use self::coverage::PER_DATAGRAM;

/// The timeout of an incomplete datagram: as in Linux (`ipfrag_time`), and RFC 8200 §4.5.
const TIMEOUT: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];
/// Room for the link header and outer headers before a datagram.
const HEADROOM: usize = 256;

/// One worker's waiting fragments.
pub struct Reassembly {
    worker: usize,
    handoff: Arc<Handoff>,
    secret: HashSecret,
    /// Waiting fragments, in the order of their arrival.
    held: Vec<Held>,
    /// Fragments that no longer wait, for the caller.
    released: Vec<Received>,
    /// A pool with one frame, which is large enough for any packet.
    room: FramePool,
    /// The time of the last fragment's arrival.
    last: Millis,
}

/// The result for a fragment.
#[derive(Debug)]
pub enum Gathered {
    /// It waits.
    Waits,
    /// Another worker has a copy of it.
    HandedOver,
    /// The fragment is dropped, and possibly the other fragments of its datagram, too.
    Refused(DropReason),
    /// It completed its datagram.
    Whole(Datagram),
}

/// A whole datagram in one frame.
#[derive(Debug)]
pub struct Datagram {
    /// The frame. It is larger than the frames of a port, so it must be returned by [`Reassembly::put_back`].
    pub frame: Frame,
    /// The link on which the first fragment was received.
    pub link: LinkId,
    /// The length of the largest fragment's packet, in bytes.
    pub largest: usize,
}

impl Reassembly {
    /// A reassembly without fragments. `secret` keys the hash that assigns datagrams to slots; it is the same for all
    /// workers.
    ///
    /// # Panics
    ///
    /// If `handoff` was created for fewer workers.
    pub fn new(worker: usize, handoff: Arc<Handoff>, secret: HashSecret) -> Self {
        assert!(!handoff.has_frames(worker), "the queue of a new worker is empty");
        let layout = FrameLayout {
            frame_size_bytes: ((HEADROOM + ethernet::HEADER_LEN + LARGEST[1]) as u32).next_power_of_two(),
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

    /// Receives the fragments that other workers have handed over, while the burst has room. Returns their number.
    pub fn receive(&mut self, burst: &mut Vec<Received>, port: &mut impl Port) -> usize {
        let before = burst.len();
        while burst.len() < BURST && self.handoff.has_frames(self.worker) {
            // Without free frames they wait in their queue.
            let Some(mut frame) = port.allocate_packet(FRAME_BYTES) else { break };
            let Some(handed) = self.handoff.receive(self.worker) else {
                port.recycle(frame);
                break;
            };
            let (link, bytes) = handed.frame();
            if frame.resize(bytes.len()) {
                frame.write(|at, part| part.copy_from_slice(&bytes[at..][..part.len()]));
            }
            if let Some(surplus) = frame.split_surplus() {
                port.recycle(surplus);
            }
            self.handoff.put_back(handed);
            burst.push(Received { link, frame });
        }
        burst.len() - before
    }

    /// Accepts a fragment. Fragments that no longer wait afterwards are in [`Self::released`].
    pub fn take(&mut self, received: Received, packet: &Packet, now: Millis) -> Gathered {
        let (key, part) = read(&received.frame, packet);
        if let Err(reason) = part.check(packet.family()) {
            self.released.push(received);
            return Gathered::Refused(reason);
        }
        let tag = key.tag(&self.secret);
        let mut coverage = Coverage::default();
        let mut held_until = None;
        for other in self.held.iter().filter(|other| other.tag == tag && other.key == key) {
            held_until = Some(other.until);
            coverage.add(&other.part);
            coverage.add_repeated(&other.part, &part);
        }
        if held_until.is_none() {
            let gatherer = self.handoff.claim(tag, self.worker);
            if gatherer != self.worker {
                let sent = self.handoff.send(gatherer, received.link, &received.frame);
                self.released.push(received);
                return if sent {
                    Gathered::HandedOver
                } else {
                    Gathered::Refused(DropReason::FragmentCrowded)
                };
            }
        }
        self.last = now;
        let until = held_until.unwrap_or(now + TIMEOUT[usize::from(packet.family() == Family::V6)]);
        coverage.add(&part);
        if coverage.repeats(&part) {
            self.released.push(received);
            return Gathered::Refused(DropReason::FragmentRepeated);
        }
        self.held.push(Held { received, key, tag, part, until });
        let reason = match coverage.state() {
            State::Partial => return Gathered::Waits,
            State::Whole => match self.assemble(&key, coverage.bytes) {
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

    /// Releases one datagram that has timed out, or for which there is no room, and returns the reason. Must be
    /// repeated until it returns `None`.
    pub fn release_overdue(&mut self, now: Millis) -> Option<DropReason> {
        let over = self.held.iter().find(|held| held.until <= now).map(|held| held.key);
        let (key, reason) = match over {
            Some(key) => (key, DropReason::FragmentTimeout),
            None if self.held.len() == HELD => (self.crowding()?, DropReason::FragmentCrowded),
            None => return None,
        };
        self.release(&key);
        Some(reason)
    }

    /// Releases any datagram; `false` if there is none.
    pub fn abandon(&mut self) -> bool {
        let key = self.held.first().map(|held| held.key);
        key.inspect(|key| self.release(key)).is_some()
    }

    /// The fragments that no longer wait. The caller must dispose of their frames.
    pub fn released(&mut self) -> &mut Vec<Received> {
        &mut self.released
    }

    /// The number of waiting fragments.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Copies a packet in several buffers into one frame, which must be returned by [`Self::put_back`]. `None` if that
    /// frame is in use.
    pub fn join(&mut self, packet: &Frame) -> Option<Frame> {
        join(&mut self.room, packet)
    }

    /// Like [`Self::join`], for the packet in [`Self::released`] with this number.
    pub fn join_released(&mut self, number: usize) -> Option<Received> {
        let Received { link, frame } = self.released.get(number)?;
        join(&mut self.room, frame).map(|frame| Received { link: *link, frame })
    }

    /// Returns the frame of a datagram, or from [`Self::join`].
    pub fn put_back(&mut self, whole: Frame) {
        self.room.put(whole);
    }

    /// The time of the next check if no frame arrives: a datagram times out, or another worker may have received a
    /// missing fragment.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        let frames = self.handoff.has_frames(self.worker).then_some(now + POLL_INTERVAL);
        let Some(over) = self.held.iter().map(|held| held.until).min() else { return frames };
        if !self.handoff.is_shared() {
            return Some(over);
        }
        let waited = Duration::from_millis(now.0.saturating_sub(self.last.0));
        Some(over.min(now + POLL_INTERVAL.max(waited / POLL_SHARE)))
    }

    /// The oldest datagram to the address that has the most fragments here. Addresses may share a count.
    fn crowding(&self) -> Option<Key> {
        let mut counts = [0_usize; COUNTS];
        self.held.iter().for_each(|held| counts[place(held.key.dest)] += 1);
        let most = counts.iter().max();
        self.held.iter().map(|held| held.key).find(|key| Some(&counts[place(key.dest)]) == most)
    }

    fn release(&mut self, key: &Key) {
        let mut claimed = None;
        for held in self.held.extract_if(.., |held| held.key == *key) {
            claimed = Some(held.tag);
            self.released.push(held.received);
        }
        claimed.inspect(|tag| self.handoff.release(*tag));
    }

    /// Copies the fragments of a datagram of this number of bytes after the headers of the first one.
    fn assemble(&mut self, key: &Key, bytes: usize) -> Result<Datagram, DropReason> {
        let mut frame = self.room.take().ok_or(DropReason::FragmentCrowded)?;
        match assembly::write(&mut frame, self.held.iter().filter(|held| held.key == *key), bytes) {
            Ok((link, largest)) => Ok(Datagram { frame, link, largest }),
            Err(reason) => {
                self.room.put(frame);
                Err(reason)
            }
        }
    }
}

fn join(room: &mut FramePool, packet: &Frame) -> Option<Frame> {
    let mut whole = room.take()?;
    if !whole.resize(packet.len()) {
        room.put(whole);
        return None;
    }
    packet.read(0, whole.bytes_mut());
    Some(whole)
}

/// The counts of fragments by address.
const COUNTS: usize = 64;

/// The index of an address's count. Virtual addresses are few, and an attacker does not choose them.
fn place(addr: IpAddr) -> usize {
    let bits = match addr {
        IpAddr::V4(addr) => addr.to_bits(),
        IpAddr::V6(addr) => addr
            .segments()
            .iter()
            .fold(0_u32, |bits, segment| bits.wrapping_mul(31).wrapping_add((*segment).into())),
    };
    bits as usize % COUNTS
}

/// The minimum interval at which a worker checks for fragments from others.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// The interval grows with the time since the last fragment, divided by this.
const POLL_SHARE: u32 = 8;

#[cfg(test)]
mod tests;
