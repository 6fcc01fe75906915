//! Fragments that come in: held until their datagram is whole, then put together.
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

mod assembly;
mod coverage;
mod forward;
mod fragment;
pub mod handoff;

use std::sync::Arc;
use std::time::Duration;

use xvs_proto::LinkId;
use xvs_proto::flow::HashSecret;
use xvs_proto::{Family, Packet, ethernet};
use xvs_xdp::{BURST, Frame, FrameLayout, FramePool, HELD};

use self::coverage::{Coverage, State};
use self::fragment::{Held, Key, LARGEST, read};
use self::handoff::Handoff;
use crate::clock::Millis;
use crate::port::{Port, Received};
use crate::verdict::DropReason;

pub use self::coverage::PER_DATAGRAM;

/// How long a datagram may be incomplete: as Linux (`ipfrag_time`), and RFC 8200 §4.5.
const TIMEOUT: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];
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
        let mut coverage = Coverage::default();
        let mut until = None;
        for other in self.held.iter().filter(|other| other.tag == tag && other.key == key) {
            until = Some(other.until);
            coverage.add(&other.part);
            coverage.add_repeated(&other.part, &part);
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
        let frames = self.handoff.has_frames(self.worker).then_some(now + POLL_INTERVAL);
        let Some(over) = self.held.iter().map(|held| held.until).min() else { return frames };
        if !self.handoff.is_shared() {
            return Some(over);
        }
        let waited = Duration::from_millis(now.0.saturating_sub(self.last.0));
        Some(over.min(now + POLL_INTERVAL.max(waited / POLL_SHARE)))
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
        let assembled = assembly::write(&mut frame, self.held.iter().filter(|held| held.key == *key), bytes);
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
const POLL_INTERVAL: Duration = Duration::from_millis(1);
const POLL_SHARE: u32 = 8;

#[cfg(test)]
mod tests;
