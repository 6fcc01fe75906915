//! ICMP errors that the director sends about packets it did not forward.
//!
//! Runs after a packet was dropped for a reason that its sender is told. Bounded by a rate per worker, as the
//! kernel bounds its own. Those that tell a size are not counted: whoever misses one sends what does not fit for ever, and
//! they are shorter than what they are about wherever the way takes 576 bytes (IPv6: 1280). An error about an error, or to an address that is nobody's, is never sent (RFC 1122
//! §3.2.2, RFC 4443 §2.4).

use std::net::IpAddr;

use xvs_proto::LinkId;
use xvs_proto::{Packet, icmp, icmpv6, is_host};
use xvs_xdp::Frame;

use crate::clock::Millis;
use crate::egress::{Hop, Path, Unresolved};
use crate::forward::{Identification, link_header};
use crate::port::Port;
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

/// A bucket of permissions to send, full at the start and refilled evenly over the second.
#[derive(Debug, Default)]
pub struct RateLimit {
    /// What the bucket lacks, in thousandths of a permission.
    lacking: u64,
    at: Millis,
}

impl RateLimit {
    /// How many may be sent at once after a silence, as a share of a second's.
    const BURST_SHARE: u64 = 20;

    /// Whether one more may be sent at `now`; `per_second` of 0 is no limit.
    pub fn allows(&mut self, now: Millis, per_second: u32) -> bool {
        let rate = u64::from(per_second);
        let full = (rate * 1000 / Self::BURST_SHARE).max(1000);
        let refill = now.0.saturating_sub(self.at.0).saturating_mul(rate);
        self.lacking = self.lacking.saturating_sub(refill);
        self.at = now;
        if rate == 0 {
            return true;
        }
        let allowed = self.lacking + 1000 <= full;
        if allowed {
            self.lacking += 1000;
        }
        allowed
    }
}

/// What an error is about.
pub struct IcmpError<'a> {
    /// The packet as it lies in its frame.
    pub packet: &'a Packet,
    /// The frame.
    pub frame: &'a Frame,
    /// Where it came in.
    pub link: LinkId,
    /// What is wrong with it.
    pub error: icmp::Error,
    /// In whose name its sender is told.
    pub source: ErrorSource,
}

/// In whose name an error is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorSource {
    /// That of the address that the packet was sent to if a service is there, else the director's: a server whose reply
    /// was refused must not hear from the client's address.
    Service,
    /// That of the address that the packet was sent to, which is known to be a service's.
    Receiver,
    /// The director's.
    Director,
}

impl<'a> IcmpError<'a> {
    /// What the sender of a packet is to be told of a verdict on it, if anything.
    pub fn of(packet: &'a Packet, frame: &'a Frame, link: LinkId, verdict: Verdict) -> Option<Self> {
        let Verdict::Drop(reason) = verdict else { return None };
        Some(Self { packet, frame, link, error: reason.icmp_error()?, source: ErrorSource::Service })
    }

    /// Whether the rate of errors counts it (kernel `Documentation/networking/ip-sysctl.rst`, `icmp_ratemask`).
    pub fn is_limited(&self) -> bool {
        !matches!(self.error, icmp::Error::FragmentationNeeded { .. })
    }

    /// Writes the error into a frame of its own. `None` if nobody is to be told, the way back is unknown, or no
    /// frame is free.
    pub fn emit(
        &self,
        snapshot: &Snapshot,
        port: &mut impl Port,
        ids: &mut Identification,
        unresolved: &Unresolved,
    ) -> Option<(LinkId, Frame)> {
        let sender = self.packet.flow.source.addr;
        if self.packet.is_icmp_error() || !is_host(sender) || self.is_multicast_or_broadcast(snapshot) {
            return None;
        }
        let hop = hop_to(sender, snapshot, unresolved)?;
        let source = self.source_address(snapshot)?;
        let offending = &self.frame.bytes()[self.packet.network..self.packet.end];
        let mut frame = port.allocate()?;
        let fits = frame.resize(match source {
            IpAddr::V4(_) => self.error.length(offending.len()),
            IpAddr::V6(_) => icmpv6::length(offending.len()),
        });
        debug_assert!(fits, "1280 bytes fit every frame");
        match source {
            IpAddr::V4(source) => self.error.emit(frame.bytes_mut(), source, offending, ids.take()),
            IpAddr::V6(source) => icmpv6::emit(self.error, frame.bytes_mut(), source, offending),
        }
        match link_header(&mut frame, hop) {
            Ok(hop) => Some((hop.link, frame)),
            Err(_) => {
                port.recycle(frame);
                None
            }
        }
    }

    /// Whether the packet was for others too. What the link layer sent to many was passed to the kernel before.
    fn is_multicast_or_broadcast(&self, snapshot: &Snapshot) -> bool {
        let dest = self.packet.flow.dest.addr;
        !is_host(dest) || snapshot.egress.is_broadcast(dest)
    }

    /// The speaker's address: ours is that on the side that the packet came from.
    fn source_address(&self, snapshot: &Snapshot) -> Option<IpAddr> {
        match self.source {
            ErrorSource::Receiver => Some(self.packet.flow.dest.addr),
            ErrorSource::Service if snapshot.serves(self.link, self.packet) => {
                Some(self.packet.flow.dest.addr)
            }
            _ => snapshot.egress.source_for(self.packet.flow.source.addr, self.link),
        }
    }
}

/// The way to whom the director itself speaks, if it is known.
pub(crate) fn hop_to(receiver: IpAddr, snapshot: &Snapshot, unresolved: &Unresolved) -> Option<Hop> {
    match Path::find(&snapshot.egress, receiver, 0) {
        Path::To(hop) => Some(hop),
        Path::NoNeighbour { link, next_hop } => {
            // Full: others wait to be resolved.
            let _ = unresolved.push((link, next_hop));
            None
        }
        Path::Local | Path::NoRoute => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_zero_is_none_and_any_other_is_kept_over_seconds() {
        let mut limit = RateLimit::default();
        assert!((0..10_000).all(|_| limit.allows(Millis(5), 0)));
        let mut limit = RateLimit::default();
        assert!(limit.allows(Millis(0), 1), "the bucket is full at the start");
        assert!(!limit.allows(Millis(999), 1));
        assert!(limit.allows(Millis(1000), 1));
        let mut limit = RateLimit::default();
        let allowed = (0..10_000).filter(|ms| limit.allows(Millis(1_000_000 + ms), 100)).count();
        // Ten seconds at 100, and what the bucket held: a twentieth of a second's.
        assert!((1000..=1005).contains(&allowed), "{allowed}");
    }
}
