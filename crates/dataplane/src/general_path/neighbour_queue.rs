//! Packets that wait for the link address of their next hop.
//!
//! Used for a packet whose next hop is not resolved, and once a burst while packets wait. A waiting packet is complete
//! except for that address, in the frame in which it was received. Packets leave in the order of arrival. No packet
//! waits for longer than [`AT_MOST`]. Bounded: [`WAITING`] packets, [`PER_NEXT_HOP`] for one next hop; further packets
//! are refused: the first packet of a connection is sent rather than a repetition. Cost: a look-up for each waiting
//! packet after a publication, otherwise a comparison. The kernel resolves the next hop (`egress/next_hop.rs`).

use std::time::Duration;

use xvs_proto::ethernet;
use xvs_xdp::WAITING;

use crate::clock::Millis;
use crate::egress::UnresolvedHop;
use crate::forward::leave;
use crate::port::Received;
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// The most packets that wait for one next hop.
pub const PER_NEXT_HOP: usize = 8;
/// Maximum wait. After a second a client repeats its SYN (RFC 6298 §2).
pub const AT_MOST: Duration = Duration::from_secs(1);
/// The interval at which the look-ups are repeated if no frame arrives.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// One worker's waiting packets, in the order of arrival.
#[derive(Debug)]
pub struct NeighbourQueue {
    packets: Vec<Waiting>,
    /// The snapshot in which none of the packets has its next hop.
    searched: u64,
}

#[derive(Debug)]
struct Waiting {
    received: Received,
    next_hop: UnresolvedHop,
    until: Millis,
}

impl NeighbourQueue {
    /// Room for as many packets as may wait.
    pub fn new() -> Self {
        Self { packets: Vec::with_capacity(WAITING), searched: 0 }
    }

    /// Keeps a frame with its link header, or returns it if there is no room.
    pub fn hold(&mut self, received: Received, next_hop: UnresolvedHop, now: Millis) -> Result<(), Received> {
        let same = self
            .packets
            .iter()
            .filter(|other| (other.next_hop.link, other.next_hop.addr) == (next_hop.link, next_hop.addr));
        if self.packets.len() == WAITING || same.count() == PER_NEXT_HOP {
            return Err(received);
        }
        self.packets.push(Waiting { received, next_hop, until: now + AT_MOST });
        Ok(())
    }

    /// A packet that no longer waits, with its verdict: its next hop is resolved, or it has waited too long.
    pub fn release(&mut self, snapshot: &Snapshot, now: Millis) -> Option<(Received, Verdict)> {
        let egress = &snapshot.egress;
        if self.searched != snapshot.epoch {
            if let Some((at, dest, source)) =
                self.packets.iter().enumerate().find_map(|(at, Waiting { next_hop, .. })| {
                    let mac = egress.neighbour(next_hop.link, next_hop.addr)?;
                    Some((at, mac, egress.link(next_hop.link)?.mac))
                })
            {
                let Waiting { mut received, next_hop, .. } = self.packets.remove(at);
                ethernet::set_addresses(received.frame.bytes_mut(), source, dest);
                let verdict = leave(&received.frame, next_hop.link, next_hop.mtu);
                return Some((received, verdict));
            }
            self.searched = snapshot.epoch;
        }
        let oldest = self.packets.first().filter(|oldest| oldest.until <= now)?;
        debug_assert!(self.packets.iter().all(|other| oldest.until <= other.until));
        Some((self.packets.remove(0).received, Verdict::Drop(DropReason::NoNeighbour)))
    }

    /// Any waiting packet, for a worker that ends.
    pub fn abandon(&mut self) -> Option<Received> {
        self.packets.pop().map(|waiting| waiting.received)
    }

    /// The number of waiting packets.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether no packet waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The time of the next [`Self::release`] if no frame arrives.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        (!self.is_empty()).then(|| now + POLL_INTERVAL)
    }
}

impl Default for NeighbourQueue {
    fn default() -> Self {
        Self::new()
    }
}
