//! ICMP errors that the director sends about dropped packets.
//!
//! Runs after a packet was dropped for a reason that has an ICMP error. Each worker limits the rate of its errors, as
//! the kernel does. Errors that report an MTU are not limited: a sender that misses one would send oversized packets
//! for ever. They are shorter than the dropped packet if the path MTU is at least 576 bytes (IPv6: 1280). An error
//! about an error, or to an address that does not belong to a single host, is never sent (RFC 1122 §3.2.2, RFC 4443
//! §2.4).

use std::net::IpAddr;

use xvs_proto::network::RouteKey;
use xvs_proto::{LinkId, Packet, icmp, icmpv6, is_host};
use xvs_xdp::Frame;

use crate::clock::Millis;
use crate::egress::{Hop, Path, Unresolved};
use crate::forward::{Identification, link_header};
use crate::port::Port;
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

/// A token bucket, full at the start and refilled evenly.
#[derive(Debug, Default)]
pub struct RateLimit {
    /// The missing tokens, in thousandths of a token.
    lacking: u64,
    at: Millis,
}

impl RateLimit {
    /// The divisor for the capacity of the bucket: the tokens of a second divided by this.
    const BURST_SHARE: u64 = 20;

    /// Whether one more error may be sent at `now`. A `per_second` of 0 means no limit.
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

/// An ICMP error to be sent.
pub struct IcmpError<'a> {
    /// The packet that the error concerns, by its positions in the frame.
    pub packet: &'a Packet,
    /// The frame of that packet.
    pub frame: &'a Frame,
    /// The link by which that packet was received.
    pub link: LinkId,
    /// The error.
    pub error: icmp::Error,
    /// The source of the error.
    pub source: ErrorSource,
}

/// The source address of an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorSource {
    /// The address to which the packet was sent if it belongs to a service, otherwise the director's own. A server
    /// whose reply was refused must not get an error from the client's address.
    Service,
    /// The address to which the packet was sent, which is known to belong to a service.
    Receiver,
    /// The director's own address.
    Director,
}

impl<'a> IcmpError<'a> {
    /// The error for the sender of a packet with this verdict, if there is one.
    pub fn of(packet: &'a Packet, frame: &'a Frame, link: LinkId, verdict: Verdict) -> Option<Self> {
        let Verdict::Drop(reason) = verdict else { return None };
        Some(Self { packet, frame, link, error: reason.icmp_error()?, source: ErrorSource::Service })
    }

    /// Whether the rate limit applies (kernel `Documentation/networking/ip-sysctl.rst`, `icmp_ratemask`).
    pub fn is_limited(&self) -> bool {
        !matches!(self.error, icmp::Error::FragmentationNeeded { .. })
    }

    /// Writes the error into a new frame. `None` if the sender must not get one, its next hop is unknown, or no frame
    /// is free.
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
        let virtual_address = self.virtual_address(snapshot);
        let mut key = RouteKey::from(sender).of_vrf(snapshot.egress.vrf(self.link));
        if let Some(source) = virtual_address {
            key.source = source;
        }
        let hop = hop_to(key, snapshot, unresolved)?;
        // The director's own address is the one on the link on which the packet was received.
        let source = virtual_address.or_else(|| snapshot.egress.source_for(key, self.link))?;
        // The first buffer of a packet in several buffers has more bytes than an error quotes.
        let first = self.frame.bytes();
        let offending = &first[self.packet.network..self.packet.end.min(first.len())];
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

    /// Whether the packet was multicast or broadcast by its IP address. Link-layer multicasts and broadcasts were
    /// passed to the kernel before.
    fn is_multicast_or_broadcast(&self, snapshot: &Snapshot) -> bool {
        let dest = self.packet.flow.dest.addr;
        let key = RouteKey::from(dest).of_vrf(snapshot.egress.vrf(self.link));
        !is_host(dest) || snapshot.egress.is_broadcast(key)
    }

    /// The source address, unless it is the director's own. As in the kernel, the director's own is chosen only after
    /// the route.
    fn virtual_address(&self, snapshot: &Snapshot) -> Option<IpAddr> {
        match self.source {
            ErrorSource::Receiver => Some(self.packet.flow.dest.addr),
            ErrorSource::Service if snapshot.serves(self.link, self.packet) => {
                Some(self.packet.flow.dest.addr)
            }
            _ => None,
        }
    }
}

/// The next hop for packets that the director itself sends, if it is resolved.
pub(crate) fn hop_to(key: RouteKey, snapshot: &Snapshot, unresolved: &Unresolved) -> Option<Hop> {
    match Path::find(&snapshot.egress, key, 0) {
        Path::To(hop) => Some(hop),
        Path::NoNeighbour { hop, next_hop } => {
            // A full queue refuses it: other next hops are resolved first.
            let _ = unresolved.push((hop.link, next_hop));
            None
        }
        Path::Local | Path::NoRoute => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_zero_is_unlimited_and_any_other_rate_is_kept_over_seconds() {
        let mut limit = RateLimit::default();
        assert!((0..10_000).all(|_| limit.allows(Millis(5), 0)));
        let mut limit = RateLimit::default();
        assert!(limit.allows(Millis(0), 1), "the bucket is full at the start");
        assert!(!limit.allows(Millis(999), 1));
        assert!(limit.allows(Millis(1000), 1));
        let mut limit = RateLimit::default();
        let allowed = (0..10_000).filter(|ms| limit.allows(Millis(1_000_000 + ms), 100)).count();
        // Ten seconds at 100, and the capacity of the bucket: a twentieth of a second.
        assert!((1000..=1005).contains(&allowed), "{allowed}");
    }
}
