//! FULLNAT between the families: a client of IPv6 has a real server of IPv4, or the reverse.
//!
//! The network header is replaced by one of the other family (RFC 7915 §4.1, §5.1). Traffic class and type of service
//! are copied, and the hop limit is decremented. Flow label and options have no form in the other family. A packet of
//! IPv4 that may not be fragmented, and every packet of IPv6, has to fit the path, or its sender learns a path MTU in
//! its own family. A packet of IPv4 that may be fragmented leaves in fragments of at most 1,280 bytes. What becomes a
//! packet of IPv4 of at most 1,260 bytes may be fragmented on its way, so it gets an identification. A datagram that
//! arrived in fragments leaves in fragments. Not here: ICMP errors (`translate/icmp.rs`).

pub(super) mod icmp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xvs_proto::checksum::Delta;
use xvs_proto::ipv6::extension;
use xvs_proto::{Endpoint, Family, FlowKey, Packet, Protocol, ipv4, ipv6, tcp};
use xvs_xdp::Frame;

use super::admission::check_ttl;
use super::identification::Identification;
use super::nat::update_checksum;
use crate::egress::Hop;
use crate::verdict::DropReason;

/// The difference between the lengths of the two headers, in bytes.
pub(super) const DIFFERENCE: u32 = (ipv6::HEADER_LEN - ipv4::HEADER_LEN) as u32;
/// The length up to which a packet of IPv4 may be fragmented, in bytes: what the least packet too big for any path of
/// IPv6 becomes (RFC 7915 §5.1).
const FRAGMENTABLE_LEN: usize = ipv6::MIN_MTU as usize - DIFFERENCE as usize;

/// The addresses of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Addresses {
    /// Of IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// Of IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Addresses {
    /// Source and destination, which are of one family.
    fn of(source: IpAddr, dest: IpAddr) -> Option<Self> {
        match (source, dest) {
            (IpAddr::V4(source), IpAddr::V4(dest)) => Some(Self::V4(source, dest)),
            (IpAddr::V6(source), IpAddr::V6(dest)) => Some(Self::V6(source, dest)),
            _ => None,
        }
    }

    /// The most bytes that can follow the header.
    fn longest_payload(self) -> u16 {
        match self {
            Self::V4(..) => u16::MAX - ipv4::HEADER_LEN as u16,
            Self::V6(..) => u16::MAX,
        }
    }

    fn header_len(self) -> usize {
        match self {
            Self::V4(..) => ipv4::HEADER_LEN,
            Self::V6(..) => ipv6::HEADER_LEN,
        }
    }
}

/// What is written into a network header.
#[derive(Debug, Clone, Copy)]
struct Fields {
    tos: u8,
    ttl: u8,
    protocol: Protocol,
    payload_len: u16,
    /// The identification of a packet of IPv4 that may be fragmented.
    id: Option<u16>,
}

impl Fields {
    fn emit(self, addresses: Addresses, bytes: &mut [u8]) {
        let Self { tos, ttl, protocol, payload_len, id } = self;
        match addresses {
            Addresses::V4(source, dest) => {
                let (id, dont_fragment) = (id.unwrap_or(0), id.is_none());
                ipv4::Header { tos, payload_len, id, dont_fragment, ttl, protocol, source, dest }.emit(bytes);
            }
            Addresses::V6(source, dest) => {
                let (traffic_class, next_header, hop_limit) = (tos, protocol, ttl);
                ipv6::Header { traffic_class, payload_len, next_header, hop_limit, source, dest }.emit(bytes);
            }
        }
    }
}

/// Translates a packet into one from `source` to `dest`, of the other family, whose path is `hop`. Returns the path
/// with the length above which it leaves in fragments. The frame then contains the packet alone.
///
/// # Errors
/// The packet is not sent, and is as it was received unless the frame has no headroom.
// Not inlined, so that the path within a family is short.
#[inline(never)]
pub(super) fn send(
    frame: &mut Frame,
    packet: &Packet,
    source: Endpoint,
    dest: Endpoint,
    hop: Hop,
    ids: &mut Identification,
) -> Result<Hop, DropReason> {
    let addresses = Addresses::of(source.addr, dest.addr).ok_or(DropReason::NoLocalAddress)?;
    if !packet.has_ports() {
        return Err(DropReason::FullNatPortless);
    }
    check_header(frame.bytes(), packet)?;
    check_ttl(packet)?;
    let payload = packet.end - packet.transport;
    let len = addresses.header_len() + payload;
    let (is_fragmentable, widest) = match addresses {
        Addresses::V4(..) => (packet.longest_fragment.is_some() || len <= FRAGMENTABLE_LEN, hop.mtu),
        Addresses::V6(..) if packet.dont_fragment => (false, hop.mtu),
        Addresses::V6(..) => (true, hop.mtu.min(ipv6::MIN_MTU)),
    };
    if !is_fragmentable && len > widest as usize {
        return Err(DropReason::TooBig { mtu: told(packet.family(), widest) });
    }
    let payload_len = u16::try_from(payload).ok().filter(|len| *len <= addresses.longest_payload());
    let payload_len = payload_len.ok_or(DropReason::NoHeadroom)?;
    frame.shrink_front(packet.transport);
    if !frame.resize(payload) || !frame.grow_front(addresses.header_len()) {
        return Err(DropReason::NoHeadroom);
    }
    let (header, segment) = frame.bytes_mut().split_at_mut(addresses.header_len());
    let id = (is_fragmentable && matches!(addresses, Addresses::V4(..))).then(|| ids.take());
    let protocol = packet.flow.protocol;
    Fields { tos: packet.tos, ttl: packet.ttl - 1, protocol, payload_len, id }.emit(addresses, header);
    rewrite_ends(segment, &packet.flow, source, dest);
    Ok(Hop { mtu: widest, ..hop })
}

/// The length of a packet when it leaves by FULLNAT to an address of this family, in bytes.
pub(crate) fn length_towards(packet: &Packet, dest: Family) -> usize {
    match (packet.family() == dest, dest) {
        (true, _) => packet.length(),
        (false, Family::V4) => packet.end - packet.transport + ipv4::HEADER_LEN,
        (false, Family::V6) => packet.end - packet.transport + ipv6::HEADER_LEN,
    }
}

/// The path MTU that the sender of a packet of this family is told, where the other family has `mtu`.
fn told(family: Family, mtu: u32) -> u16 {
    let told = match family {
        Family::V4 => mtu.saturating_sub(DIFFERENCE),
        Family::V6 => (mtu + DIFFERENCE).max(ipv6::MIN_MTU),
    };
    u16::try_from(told).unwrap_or(u16::MAX)
}

/// Refuses a header that has no form in the other family: a source route, or an IPv6 routing header, that is not at its
/// end. Other options and extension headers are left out.
fn check_header(frame: &[u8], packet: &Packet) -> Result<(), DropReason> {
    let header = &frame[packet.network..packet.transport];
    match packet.family() {
        Family::V4 if is_source_routed(&header[ipv4::HEADER_LEN..]) => Err(DropReason::SourceRoute),
        Family::V6 if is_routed(header) => Err(DropReason::Untranslatable),
        _ => Ok(()),
    }
}

/// Whether an IPv6 header and its extension headers, which have been parsed, have a routing header with hosts that are
/// still to be visited (RFC 8200 §4.4).
fn is_routed(header: &[u8]) -> bool {
    let mut kind = header[ipv6::field::NEXT_HEADER];
    let mut rest = &header[ipv6::HEADER_LEN..];
    while let &[next, len, _, left, ..] = rest {
        if kind == extension::ROUTING && left > 0 {
            return true;
        }
        kind = next;
        rest = rest.get(extension::UNIT * (1 + usize::from(len))..).unwrap_or_default();
    }
    false
}

/// Whether options of IPv4 have a source route with an address that is still to be visited (RFC 791 §3.1).
fn is_source_routed(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    loop {
        options = match options {
            [] | [END, ..] => return false,
            [NOTHING, rest @ ..] => rest,
            [LOOSE | STRICT, len, pointer, ..] if pointer <= len => return true,
            [_, len, ..] if *len >= 2 => options.get(usize::from(*len)..).unwrap_or_default(),
            _ => return false,
        };
    }
}

/// Writes these endpoints' ports into a segment of this flow, and updates its checksum for their addresses.
fn rewrite_ends(segment: &mut [u8], flow: &FlowKey, source: Endpoint, dest: Endpoint) {
    write_ports(segment, source, dest);
    // Words of 0 add nothing to a sum, so addresses of different lengths can replace each other.
    let delta = Delta::default()
        .addr(flow.source.addr, source.addr)
        .addr(flow.dest.addr, dest.addr)
        .word(flow.source.port, source.port)
        .word(flow.dest.port, dest.port);
    update_checksum(segment, flow, delta, source, dest);
}

fn write_ports(segment: &mut [u8], source: Endpoint, dest: Endpoint) {
    segment[tcp::field::SOURCE].copy_from_slice(&source.port.to_be_bytes());
    segment[tcp::field::DEST].copy_from_slice(&dest.port.to_be_bytes());
}
