//! Tunnelling: the whole packet travels inside another one to the destination, directly (IP in IP), after a GRE header,
//! or after UDP and GUE headers.
//!
//! The outer header takes type of service, time to live and don't-fragment bit from the inner one, as in IPVS. Its
//! identification is 0 if fragmentation is forbidden (RFC 6864). If the packet must not be fragmented, an error about
//! its size reports the path MTU minus the tunnel's own headers. Otherwise the outer packet may have any length and
//! leaves in fragments.

mod template;

use std::ops::Range;

use xvs_proto::checksum::{Coverage, Delta};
use xvs_proto::{Endpoint, Family, Packet, Protocol, gre, gue, ipv6, udp};
use xvs_sched::ForwardingMethod;
use xvs_xdp::Frame;

use super::ends::Ends;
use super::identification::Identification;
use super::network_header::{Addresses, Fields};
use super::steps::{check_size, check_ttl, decrement_ttl, strip};
use crate::clock::Millis;
use crate::egress::path_mtu::PathMtu;
use crate::egress::{Encapsulation, Hop, Tunnel};
use crate::verdict::DropReason;

pub(crate) use self::template::{FlowHeaders, Template};

/// The source ports of GUE packets, one for each flow: the range that Linux uses for sockets (kernel
/// `Documentation/networking/ip-sysctl.rst`, `ip_local_port_range`).
const SOURCE_PORTS: Range<u16> = 32768..60999;

/// The parameters of the outer headers.
#[derive(Debug)]
pub struct Outer<'a> {
    /// The headers.
    pub tunnel: Tunnel,
    /// The setting `pmtu_disc`.
    pub pmtu_disc: bool,
    /// The path MTU beyond the link, as routers reported it in ICMP errors.
    pub path_mtu: &'a PathMtu,
    /// The time.
    pub now: Millis,
    /// Equal for all packets in a flow. Used only by GUE, for its source port.
    pub flow_hash: u64,
    /// The source of identifications.
    pub ids: &'a mut Identification,
}

pub(super) fn send(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    hop: Hop,
    outer: Outer<'_>,
) -> Result<Hop, DropReason> {
    let addresses = outer.tunnel.addresses(ends.dest).ok_or(DropReason::NoRoute)?;
    let overhead = header_len(ends.dest, outer.tunnel.encapsulation);
    let path_mtu = outer.path_mtu.at(outer.now);
    check_ttl(packet)?;
    decrement_ttl(frame, packet);
    if hop.mtu < least_mtu(ends.dest.family()) + overhead as u32 {
        return Err(DropReason::PathTooNarrow);
    }
    // The size of an IPv6 packet is checked whatever the setting: routers do not fragment IPv6.
    if outer.pmtu_disc || packet.family() == Family::V6 {
        let overhead = overhead as u32;
        check_size(packet, widest(packet.family(), hop.mtu, path_mtu, overhead), overhead)?;
    }
    strip(frame, packet);
    let carried = Carried {
        family: packet.family(),
        tos: packet.tos,
        ttl: packet.ttl - 1,
        dont_fragment: packet.dont_fragment,
    };
    if !frame.grow_front(overhead) || frame.len() > usize::from(u16::MAX) {
        return Err(DropReason::NoHeadroom);
    }
    encapsulate(frame.bytes_mut(), carried, addresses, overhead, outer);
    Ok(Hop { mtu: hop.mtu.min(path_mtu), ..hop })
}

/// The fields of the inner packet that the outer headers copy.
#[derive(Clone, Copy)]
struct Carried {
    family: Family,
    tos: u8,
    /// The time to live with which it enters the tunnel.
    ttl: u8,
    dont_fragment: bool,
}

impl Carried {
    /// The identification for an outer IPv4 header; `None` if the packet may not be fragmented.
    #[inline]
    fn identification(self, pmtu_disc: bool, ids: &mut Identification) -> Option<u16> {
        // The don't-fragment rule of IPv6 does not apply to the routers of an IPv4 path.
        let dont_fragment = pmtu_disc && self.dont_fragment && self.family == Family::V4;
        (!dont_fragment).then(|| ids.take())
    }
}

/// Writes the outer headers, `overhead` bytes, before a packet.
fn encapsulate(bytes: &mut [u8], carried: Carried, addresses: Addresses, overhead: usize, outer: Outer<'_>) {
    let encapsulation = outer.tunnel.encapsulation;
    let (network, payload) = bytes.split_at_mut(overhead - encapsulation.header_len());
    let protocol = match encapsulation {
        Encapsulation::Ip => carried.family.protocol(),
        Encapsulation::Gre(coverage) => {
            gre::emit(payload, carried.family.ethertype(), coverage);
            Protocol::GRE
        }
        Encapsulation::Gue { port, coverage } => {
            gue::emit(&mut payload[udp::HEADER_LEN..], carried.family.protocol());
            udp::emit(payload, source_port(outer.flow_hash), port);
            if coverage == Coverage::Whole {
                // The field is 0, so this computes the checksum in full.
                let (source, dest) = addresses.ends();
                udp::update_checksum(payload, Delta::default(), source, dest);
            }
            Protocol::UDP
        }
    };
    let id = match addresses {
        Addresses::V4(..) => carried.identification(outer.pmtu_disc, outer.ids),
        Addresses::V6(..) => None,
    };
    let payload_len = payload.len() as u16;
    Fields { tos: outer_tos(carried.tos), ttl: carried.ttl, protocol, payload_len, id }
        .emit(addresses, network);
}

impl Tunnel {
    /// The addresses for the outer header. `None` if the director has no address in the destination's family.
    fn addresses(self, dest: Endpoint) -> Option<Addresses> {
        Addresses::of(self.source?, dest.addr)
    }
}

/// The minimum usable path MTU, in bytes without the tunnel's own headers (RFC 791: every link transmits 68).
fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => ipv6::MIN_MTU,
    }
}

/// The largest packet in a family that fits into a connection's tunnel. `link_mtu` and `path_mtu` in bytes.
pub fn room(ends: &Ends, tunnel: Tunnel, link_mtu: u32, path_mtu: u32, family: Family) -> u32 {
    widest(family, link_mtu, path_mtu, overhead(ends, tunnel)).saturating_sub(overhead(ends, tunnel))
}

/// The number of bytes that a connection's method prepends to a packet.
pub fn overhead(ends: &Ends, tunnel: Tunnel) -> u32 {
    match ends.method {
        ForwardingMethod::Tunnel => header_len(ends.dest, tunnel.encapsulation) as u32,
        _ => 0,
    }
}

/// The largest outer packet for an inner one in this family. `link_mtu` and `path_mtu` in bytes. IPv6 senders need at
/// least the minimum MTU of IPv6, so larger outer packets leave in fragments if the link allows their size (RFC 2473
/// §7.1).
fn widest(family: Family, link_mtu: u32, path_mtu: u32, overhead: u32) -> u32 {
    let least = match family {
        Family::V4 => 0,
        Family::V6 => ipv6::MIN_MTU + overhead,
    };
    path_mtu.max(least).min(link_mtu)
}

/// The number of bytes that a tunnel to this destination prepends to a packet.
fn header_len(dest: Endpoint, encapsulation: Encapsulation) -> usize {
    dest.family().header_len() + encapsulation.header_len()
}

impl Encapsulation {
    /// The number of bytes between the outer network header and the packet.
    fn header_len(self) -> usize {
        match self {
            Self::Ip => 0,
            Self::Gre(coverage) => gre::header_len(coverage),
            Self::Gue { .. } => udp::HEADER_LEN + gue::HEADER_LEN,
        }
    }
}

/// The source port, which identifies a flow to routers and receive queues.
fn source_port(flow_hash: u64) -> u16 {
    let span = u64::from(SOURCE_PORTS.end - SOURCE_PORTS.start);
    SOURCE_PORTS.start + (((flow_hash >> 32) * span) >> 32) as u16
}

/// Copies DSCP and ECN, but replaces congestion experienced with ECT(0) (RFC 3168 §9.1).
fn outer_tos(inner: u8) -> u8 {
    const ECN: u8 = 0b11;
    const ECT_0: u8 = 0b10;
    if inner & ECN == ECN { inner & !ECN | ECT_0 } else { inner }
}

#[cfg(test)]
mod tests;
