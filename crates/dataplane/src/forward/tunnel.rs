//! Tunnelling: the packet travels whole inside another, addressed to the destination, alone (IP in IP) or behind a
//! GRE header or behind UDP and GUE headers.
//!
//! The outer header takes its type of service, time to live and don't-fragment bit from the inner one, as IPVS
//! does; its identification is 0 where fragmentation is forbidden (RFC 6864). Where the packet must not be fragmented
//! its sender is told of the path less the tunnel's own headers; else the outer packet is as long as it comes to be.

use std::net::IpAddr;
use std::ops::Range;

use xvs_proto::checksum::{Coverage, Delta};
use xvs_proto::{Endpoint, Family, Packet, Protocol, ethernet, gre, gue, ipv4, ipv6, udp};
use xvs_sched::ForwardingMethod;
use xvs_xdp::Frame;

use super::admission::{check_size, check_ttl, decrement_ttl, strip};
use super::ends::Ends;
use super::identification::Identification;
use crate::clock::Millis;
use crate::egress::Hop;
use crate::egress::path_mtu::PathMtu;
use crate::snapshot::{Encapsulation, Tunnel};
use crate::verdict::DropReason;

/// The least path over IPv4 that a tunnel can use, in bytes beside its own headers (RFC 791: every link takes 68).
const LEAST_MTU_V4: u32 = 68;

/// The ports that GUE packets come from, one a flow: those that Linux gives to sockets (kernel
/// `Documentation/networking/ip-sysctl.rst`, `ip_local_port_range`).
const SOURCE_PORTS: Range<u16> = 32768..60999;

/// What a tunnel writes around a packet.
#[derive(Debug)]
pub struct Outer<'a> {
    /// The headers.
    pub tunnel: Tunnel,
    /// The setting of this name.
    pub pmtu_disc: bool,
    /// What routers have told of the way beyond the link.
    pub path_mtu: &'a PathMtu,
    /// The time.
    pub now: Millis,
    /// The same for all packets of a flow; of GUE alone, which shows it in its source port.
    pub flow_hash: u64,
    /// Where identifications come from.
    pub ids: &'a mut Identification,
}

pub(super) fn send(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    hop: Hop,
    outer: Outer<'_>,
) -> Result<Hop, DropReason> {
    let dest = ends.dest.addr;
    let Some(source) = outer.tunnel.source.filter(|source| source.is_ipv4() == dest.is_ipv4()) else {
        // The director has no address of the destination's family.
        return Err(DropReason::NoRoute);
    };
    let (network_len, least_mtu) = match dest {
        IpAddr::V4(_) => (ipv4::HEADER_LEN, LEAST_MTU_V4),
        IpAddr::V6(_) => (ipv6::HEADER_LEN, ipv6::MIN_MTU),
    };
    let encapsulation = outer.tunnel.encapsulation;
    let overhead = header_len(ends.dest, encapsulation);
    let path_mtu = outer.path_mtu.at(outer.now);
    check_ttl(packet)?;
    decrement_ttl(frame, packet);
    if hop.mtu < least_mtu + overhead as u32 {
        return Err(DropReason::PathTooNarrow);
    }
    // Of an IPv6 packet the sender is told whatever the setting: nobody fragments it on its way.
    if outer.pmtu_disc || packet.family() == Family::V6 {
        let widest = widest(packet.family(), hop.mtu, path_mtu, overhead as u32);
        check_size(packet, widest, overhead as u32)?;
    }
    let mtu = hop.mtu.min(path_mtu);
    strip(frame, packet);
    if !frame.grow_front(overhead) || frame.len() > usize::from(u16::MAX) {
        return Err(DropReason::NoHeadroom);
    }
    let inner = Inner::of(packet.family());
    let (network, payload) = frame.bytes_mut().split_at_mut(network_len);
    match encapsulation {
        Encapsulation::Ip => {}
        Encapsulation::Gre(coverage) => gre::emit(payload, inner.ethertype, coverage),
        Encapsulation::Gue { port, coverage } => {
            gue::emit(&mut payload[udp::HEADER_LEN..], inner.protocol);
            udp::emit(payload, source_port(outer.flow_hash), port);
            if coverage == Coverage::Whole {
                // There is none yet, so it is computed.
                udp::update_checksum(payload, Delta::default(), source, dest);
            }
        }
    }
    emit_network(network, payload.len() as u16, packet, (source, dest), outer);
    Ok(Hop { mtu, ..hop })
}

/// The largest packet of a family that fits a connection's tunnel by a way whose link and routers take these many bytes.
pub fn room(ends: &Ends, tunnel: Tunnel, link_mtu: u32, path_mtu: u32, family: Family) -> u32 {
    widest(family, link_mtu, path_mtu, overhead(ends, tunnel)).saturating_sub(overhead(ends, tunnel))
}

/// Bytes that a connection's method puts before a packet.
pub fn overhead(ends: &Ends, tunnel: Tunnel) -> u32 {
    match ends.method {
        ForwardingMethod::Tunnel => header_len(ends.dest, tunnel.encapsulation) as u32,
        _ => 0,
    }
}

/// The largest outer packet around one of this family by a way whose link and routers take these many bytes. Senders of
/// IPv6 cannot do with less than its least MTU, so what the link takes then leaves in fragments (RFC 2473 §7.1).
fn widest(family: Family, link_mtu: u32, path_mtu: u32, overhead: u32) -> u32 {
    let least = match family {
        Family::V4 => 0,
        Family::V6 => ipv6::MIN_MTU + overhead,
    };
    path_mtu.max(least).min(link_mtu)
}

/// Bytes that a tunnel to this destination puts before a packet.
fn header_len(dest: Endpoint, encapsulation: Encapsulation) -> usize {
    let network_len = if dest.addr.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    network_len + encapsulation.header_len()
}

/// Writes the outer network header around `packet`, before so many bytes.
fn emit_network(
    network: &mut [u8],
    payload_len: u16,
    packet: &Packet,
    ends: (IpAddr, IpAddr),
    outer: Outer<'_>,
) {
    let encapsulation = outer.tunnel.encapsulation;
    let protocol = encapsulation.protocol().unwrap_or(Inner::of(packet.family()).protocol);
    let (tos, ttl) = (outer_tos(packet.tos), packet.ttl - 1);
    match ends {
        (IpAddr::V4(source), IpAddr::V4(dest)) => {
            // An IPv6 packet says nothing about the routers of an IPv4 path.
            let dont_fragment = outer.pmtu_disc && packet.dont_fragment && packet.family() == Family::V4;
            let id = if dont_fragment { 0 } else { outer.ids.take() };
            ipv4::Header { tos, payload_len, id, dont_fragment, ttl, protocol, source, dest }.emit(network);
        }
        (IpAddr::V6(source), IpAddr::V6(dest)) => {
            let (traffic_class, next_header, hop_limit) = (tos, protocol, ttl);
            ipv6::Header { traffic_class, payload_len, next_header, hop_limit, source, dest }.emit(network);
        }
        _ => debug_assert!(false, "a tunnel's ends are of one family"),
    }
}

/// How a packet inside a tunnel is announced.
struct Inner {
    protocol: Protocol,
    ethertype: u16,
}

impl Inner {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { protocol: Protocol::IPIP, ethertype: ethernet::TYPE_IPV4 },
            Family::V6 => Self { protocol: Protocol::IPV6, ethertype: ethernet::TYPE_IPV6 },
        }
    }
}

impl Encapsulation {
    /// Bytes between the outer network header and the packet.
    fn header_len(self) -> usize {
        match self {
            Self::Ip => 0,
            Self::Gre(coverage) => gre::header_len(coverage),
            Self::Gue { .. } => udp::HEADER_LEN + gue::HEADER_LEN,
        }
    }

    /// What the outer network header announces, if it is not the packet itself.
    fn protocol(self) -> Option<Protocol> {
        match self {
            Self::Ip => None,
            Self::Gre(_) => Some(Protocol::GRE),
            Self::Gue { .. } => Some(Protocol::UDP),
        }
    }
}

/// The port that shows a flow to routers and receive queues.
fn source_port(flow_hash: u64) -> u16 {
    let span = u64::from(SOURCE_PORTS.end - SOURCE_PORTS.start);
    SOURCE_PORTS.start + (((flow_hash >> 32) * span) >> 32) as u16
}

/// DSCP and ECN are copied, except that congestion experienced inside starts anew outside (RFC 3168 §9.1).
fn outer_tos(inner: u8) -> u8 {
    const ECN: u8 = 0b11;
    const ECT_0: u8 = 0b10;
    if inner & ECN == ECN { inner & !ECN | ECT_0 } else { inner }
}

#[cfg(test)]
mod tests;
