//! Probes of real servers through their virtual address: the probes in flight, and their replies.
//!
//! A probe is a SYN to the virtual endpoint that is forwarded to one real server, and the reply to it. The health
//! checks begin and end probes; workers send their packets and recognise the replies. Both share this object, and so do
//! consecutive snapshots. All probes have one local port, which distinguishes their packets from those of connections.
//! The sequence number identifies the probe. It is the same for each attempt with one server and endpoint: a server
//! that still waits for the end of an earlier attempt considers the SYN a repeated one and replies again. Cost of a
//! reply: one load for each slot that its probe may have. Workers take no lock; only the health checks do.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwapOption, Guard};
use crossbeam::queue::ArrayQueue;
use xvs_proto::Endpoint;
use xvs_sched::ForwardingMethod;

use crate::egress::Encapsulation;
use crate::verdict::DropReason;

/// The most probes in flight.
const CAPACITY: usize = 4096;
/// The number of slots that a probe may use, beginning with the one for its sequence number.
const PLACES: usize = 8;

/// The probes in flight.
pub struct VipProbes {
    /// The local port of all probes, which nothing else on this machine uses.
    pub port: u16,
    slots: Box<[ArcSwapOption<VipProbe>]>,
    /// Slots of probes that have a packet to send.
    due: ArrayQueue<usize>,
    /// Ended probes that a worker may still use, so that no worker frees one.
    ended: Mutex<Vec<Arc<VipProbe>>>,
    hasher: RandomState,
}

/// The path of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VipPath {
    /// The local address and the port of [`VipProbes::port`].
    pub local: Endpoint,
    /// The endpoint to which the SYN is addressed.
    pub virtual_endpoint: Endpoint,
    /// The real server to which it is forwarded.
    pub server: Endpoint,
    /// The forwarding method.
    pub method: ForwardingMethod,
    /// The headers of a tunnel.
    pub encapsulation: Encapsulation,
}

/// A probe in flight.
#[derive(Debug)]
pub struct VipProbe {
    /// The path of the probe.
    pub path: VipPath,
    /// The sequence number of the SYN.
    pub sequence: u32,
    stage: AtomicU32,
}

/// The stage of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VipStage {
    /// No worker has sent its SYN yet.
    Queued,
    /// The SYN could not be sent.
    Unsent(DropReason),
    /// The SYN was sent.
    Sent,
    /// The server accepts the connection; the reset that ends it is yet to be sent.
    Accepted,
    /// The server accepts the connection, and the reset was sent.
    Done,
    /// The server refuses the connection.
    Refused,
}

impl VipStage {
    const FIRST_UNSENT: u32 = 5;

    fn word(self) -> u32 {
        match self {
            Self::Queued => 0,
            Self::Sent => 1,
            Self::Accepted => 2,
            Self::Done => 3,
            Self::Refused => 4,
            Self::Unsent(reason) => Self::FIRST_UNSENT + reason.index() as u32,
        }
    }

    fn of(word: u32) -> Self {
        match word {
            0 => Self::Queued,
            1 => Self::Sent,
            2 => Self::Accepted,
            3 => Self::Done,
            4 => Self::Refused,
            unsent => {
                let index = (unsent - Self::FIRST_UNSENT) as usize;
                DropReason::all().nth(index).map_or(Self::Queued, Self::Unsent)
            }
        }
    }

    /// Whether the server has not replied yet.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Unsent(_) | Self::Sent)
    }
}

impl VipProbes {
    /// No probes. The caller keeps the port reserved while this value is in use.
    pub fn new(port: u16) -> Self {
        Self::with_slots(port, CAPACITY)
    }

    fn with_slots(port: u16, slots: usize) -> Self {
        Self {
            port,
            slots: (0..slots).map(|_| ArcSwapOption::empty()).collect(),
            due: ArrayQueue::new(slots.max(1)),
            ended: Mutex::default(),
            hasher: RandomState::new(),
        }
    }

    /// A copy with the same port, without probes, for a dry run.
    pub(super) fn separate_copy(&self) -> Self {
        Self::with_slots(self.port, 0)
    }

    /// Begins a probe, which lasts until the returned value is dropped; `None` if too many are in flight. A worker
    /// sends the SYN when it is next awake.
    pub fn begin(self: &Arc<Self>, path: VipPath) -> Option<InFlight> {
        // A panic leaves the slots consistent, so poisoning is ignored.
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|probe| Arc::strong_count(probe) > 1);
        let sequence = self.hasher.hash_one((path.virtual_endpoint, path.server)) as u32;
        let slot = self.places(sequence).find(|slot| self.slots[*slot].load().is_none())?;
        let probe = Arc::new(VipProbe { path, sequence, stage: AtomicU32::new(VipStage::Queued.word()) });
        self.slots[slot].store(Some(probe.clone()));
        drop(ended);
        let begun = InFlight { probes: self.clone(), slot, probe };
        begun.send();
        Some(begun)
    }

    /// The next slot with a packet to send.
    pub(crate) fn next_due(&self) -> Option<usize> {
        // Popping costs a fence, and this runs for each burst.
        if self.due.is_empty() { None } else { self.due.pop() }
    }

    /// Records that the probe in a slot has a packet to send. `false` if too many have.
    pub(crate) fn set_due(&self, slot: usize) -> bool {
        self.due.push(slot).is_ok()
    }

    /// The probe in a slot.
    pub(crate) fn probe(&self, slot: usize) -> Guard<Option<Arc<VipProbe>>> {
        self.slots[slot].load()
    }

    /// The slot of the open probe with these ends whose SYN this number acknowledges.
    pub(crate) fn acknowledged(&self, local: Endpoint, from: Endpoint, number: u32) -> Option<usize> {
        let sequence = number.wrapping_sub(1);
        self.places(sequence).find(|slot| {
            self.slots[*slot].load().as_deref().is_some_and(|probe| {
                probe.path.local == local
                    && probe.path.virtual_endpoint == from
                    && probe.sequence == sequence
                    && probe.stage().is_open()
            })
        })
    }

    fn places(&self, sequence: u32) -> impl Iterator<Item = usize> + use<> {
        let slots = self.slots.len();
        (0..PLACES.min(slots)).map(move |place| (sequence as usize + place) % slots)
    }
}

impl VipProbe {
    /// The stage.
    pub fn stage(&self) -> VipStage {
        // Relaxed, here and below: only this integer is shared.
        VipStage::of(self.stage.load(Ordering::Relaxed))
    }

    /// Moves from `before` to `after`. `false` if the stage was another one; a reply may have arrived in the meantime.
    pub(crate) fn advance(&self, before: VipStage, after: VipStage) -> bool {
        let [before, after] = [before, after].map(VipStage::word);
        self.stage.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A probe that was begun. Dropping it ends the probe: a later reply is ignored.
pub struct InFlight {
    probes: Arc<VipProbes>,
    slot: usize,
    probe: Arc<VipProbe>,
}

impl InFlight {
    /// The stage of the probe.
    pub fn stage(&self) -> VipStage {
        self.probe.stage()
    }

    /// Lets a worker send the SYN, or send it again.
    pub fn send(&self) {
        // If too many have a packet to send, the caller tries again, because the stage does not change.
        let _ = self.probes.set_due(self.slot);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut ended = self.probes.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.extend(self.probes.slots[self.slot].swap(None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(server: u8) -> VipPath {
        VipPath {
            local: Endpoint::new([192, 0, 2, 1], 40_000),
            virtual_endpoint: Endpoint::new([198, 51, 100, 1], 80),
            server: Endpoint::new([192, 0, 2, server], 80),
            method: ForwardingMethod::DirectRouting,
            encapsulation: Encapsulation::Ip,
        }
    }

    #[test]
    fn every_stage_survives_its_form_as_a_word() {
        let reasons = DropReason::all().map(VipStage::Unsent);
        let others =
            [VipStage::Queued, VipStage::Sent, VipStage::Accepted, VipStage::Done, VipStage::Refused];
        for stage in reasons.chain(others) {
            assert_eq!(VipStage::of(stage.word()), stage);
        }
    }

    #[test]
    fn probes_of_several_servers_of_one_endpoint_are_told_apart_and_an_ended_one_is_forgotten() {
        let probes = Arc::new(VipProbes::new(40_000));
        let (one, other) = (probes.begin(path(11)).unwrap(), probes.begin(path(12)).unwrap());
        let (local, from) = (path(11).local, path(11).virtual_endpoint);
        let find = |number: u32| probes.acknowledged(local, from, number);
        let numbers = [&one, &other].map(|begun| begun.probe.sequence.wrapping_add(1));
        assert_eq!(numbers.map(find), [Some(one.slot), Some(other.slot)]);
        assert_eq!(probes.acknowledged(from, local, numbers[0]), None);
        assert_eq!(find(numbers[0].wrapping_add(1)), None);
        drop(one);
        assert_eq!(numbers.map(find), [None, Some(other.slot)]);
        let again = probes.begin(path(11)).unwrap();
        assert_eq!(again.probe.sequence.wrapping_add(1), numbers[0], "a repeated SYN");
    }

    #[test]
    fn at_most_eight_probes_of_one_number_are_in_flight_and_no_worker_frees_one() {
        let probes = Arc::new(VipProbes::new(40_000));
        let begun: Vec<_> = std::iter::from_fn(|| probes.begin(path(11))).collect();
        assert_eq!(begun.len(), PLACES);
        let held = probes.probe(begun[0].slot).clone();
        drop(begun);
        let ended = || probes.ended.lock().unwrap().len();
        assert_eq!(ended(), PLACES);
        let _next = probes.begin(path(11)).unwrap();
        assert_eq!(ended(), 1, "one is held by a worker");
        drop(held);
    }
}
