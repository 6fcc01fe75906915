//! FULLNAT between the families: an IPv6 client has an IPv4 real server, or the reverse.
//!
//! The network header is replaced with one of the other family (RFC 7915 §4.1, §5.1). Traffic class and type of service
//! are copied, and the hop limit is decremented. Flow label and options have no counterpart in the other family. An
//! IPv4 packet that may not be fragmented, and every IPv6 packet, has to fit the path; otherwise its sender learns a
//! path MTU in its own family. An IPv4 packet that may be fragmented leaves in fragments of at most 1,280 bytes. An
//! IPv6 packet that becomes an IPv4 packet of at most 1,260 bytes may be fragmented on its path, so it gets an
//! identification. A datagram that arrived in fragments leaves in fragments. `translate/icmp.rs` translates ICMP
//! errors.

pub(super) mod icmp;

use xvs_proto::checksum::Delta;
use xvs_proto::ipv6::extension;
use xvs_proto::plain::LinkAddresses;
use xvs_proto::{Endpoint, Family, FlowKey, Packet, Plain, ethernet, ipv4, ipv6, tcp};
use xvs_xdp::Frame;

use super::identification::Identification;
use super::nat::update_checksum;
use super::network_header::{Addresses, Fields};
use super::steps::check_ttl;
use crate::egress::Hop;
use crate::verdict::DropReason;

/// The difference between the lengths of the two headers, in bytes.
pub(super) const DIFFERENCE: u32 = (ipv6::HEADER_LEN - ipv4::HEADER_LEN) as u32;
/// The length up to which an IPv4 packet may be fragmented, in bytes: the translated length of the smallest IPv6 packet
/// that may be too big for a path (RFC 7915 §5.1).
const FRAGMENTABLE_LEN: usize = ipv6::MIN_MTU as usize - DIFFERENCE as usize;

impl Addresses {
    /// Whether a packet of this length may be fragmented after its translation, and the length in bytes above which it
    /// leaves in fragments or, if it may not be fragmented, does not leave. `mtu` is that of its path, in bytes.
    fn widest(self, len: usize, dont_fragment: bool, mtu: u32) -> (bool, u32) {
        match self {
            // IPv6 packets must not be fragmented, except those that already were.
            Self::V4(..) => (!dont_fragment || len <= FRAGMENTABLE_LEN, mtu),
            Self::V6(..) if dont_fragment => (false, mtu),
            Self::V6(..) => (true, mtu.min(ipv6::MIN_MTU)),
        }
    }

    /// The identification of an IPv4 packet that may be fragmented.
    fn identification(self, is_fragmentable: bool, ids: &mut Identification) -> Option<u16> {
        (is_fragmentable && matches!(self, Self::V4(..))).then(|| ids.take())
    }

    /// The most bytes that can follow the header.
    fn longest_payload(self) -> u16 {
        match self {
            Self::V4(..) => u16::MAX - ipv4::HEADER_LEN as u16,
            Self::V6(..) => u16::MAX,
        }
    }

    fn family(self) -> Family {
        match self {
            Self::V4(..) => Family::V4,
            Self::V6(..) => Family::V6,
        }
    }

    fn header_len(self) -> usize {
        self.family().header_len()
    }
}

/// Translates a packet into one from `source` to `dest`, in the other family, on the path `hop`. Returns the path with
/// the length above which the packet leaves in fragments. The frame then contains only the packet.
///
/// # Errors
///
/// The packet is not sent, and is as it was received unless the frame has no headroom.
// Not inlined, to keep the path within a family short.
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
    let is_joined = packet.longest_fragment.is_some();
    let (is_fragmentable, widest) = addresses.widest(len, packet.dont_fragment && !is_joined, hop.mtu);
    if !is_fragmentable && len > widest as usize {
        let mtu = u16::try_from(sender_mtu(packet.family(), widest)).unwrap_or(u16::MAX);
        return Err(DropReason::TooBig { mtu });
    }
    let payload_len = u16::try_from(payload)
        .ok()
        .filter(|len| *len <= addresses.longest_payload())
        .ok_or(DropReason::NoHeadroom)?;
    let fields = Fields {
        tos: packet.tos,
        ttl: packet.ttl - 1,
        protocol: packet.flow.protocol,
        payload_len,
        id: addresses.identification(is_fragmentable, ids),
    };
    match replace(frame, packet.transport, fields, addresses) {
        Some(segment) => rewrite_ends(segment, &packet.flow, source, dest),
        None => return Err(DropReason::NoHeadroom),
    }
    Ok(Hop { mtu: widest, ..hop })
}

/// Translates a plain packet, like [`send`], for a path with these link addresses and MTU, in bytes. Returns `false`
/// and changes only `ids` if the packet needs the general path: because of its size, or for lack of headroom.
pub(crate) fn send_plain(
    frame: &mut Frame,
    plain: &Plain,
    source: Endpoint,
    dest: Endpoint,
    link: &LinkAddresses,
    mtu: u32,
    ids: &mut Identification,
) -> bool {
    let Some(addresses) = Addresses::of(source.addr, dest.addr) else { return false };
    let flow = plain.flow(frame.bytes());
    let former_len = plain.family.header_len();
    let payload_len = plain.len - former_len as u16;
    let len = addresses.header_len() + usize::from(payload_len);
    let (is_fragmentable, widest) = addresses.widest(len, plain.dont_fragment, mtu);
    if len > widest as usize || frame.headroom() + former_len < addresses.header_len() || frame.is_chain() {
        return false;
    }
    let (tos, ttl) = plain.tos_and_ttl(frame.bytes());
    let id = addresses.identification(is_fragmentable, ids);
    let fields = Fields { tos, ttl: ttl - 1, protocol: flow.protocol, payload_len, id };
    match replace(frame, ethernet::HEADER_LEN + former_len, fields, addresses) {
        Some(segment) => rewrite_ends(segment, &flow, source, dest),
        None => return false,
    }
    let has_room = frame.grow_front(ethernet::HEADER_LEN);
    debug_assert!(has_room, "that of the former link header");
    let bytes = frame.bytes_mut();
    bytes[..link.len()].copy_from_slice(link);
    bytes[ethernet::field::ETHERTYPE].copy_from_slice(&addresses.family().ethertype().to_be_bytes());
    true
}

/// Replaces everything before the transport header with a network header, and removes the bytes after the packet.
/// Returns the segment; `None` if the frame has no room.
fn replace(frame: &mut Frame, transport: usize, fields: Fields, addresses: Addresses) -> Option<&mut [u8]> {
    frame.shrink_front(transport);
    if !frame.resize(fields.payload_len.into()) || !frame.grow_front(addresses.header_len()) {
        return None;
    }
    let (header, segment) = frame.bytes_mut().split_at_mut(addresses.header_len());
    fields.emit(addresses, header);
    Some(segment)
}

/// The length of a packet when it leaves with FULLNAT to an address in this family, in bytes.
pub(crate) fn length_towards(packet: &Packet, dest: Family) -> usize {
    match packet.family() == dest {
        true => packet.length(),
        false => packet.end - packet.transport + dest.header_len(),
    }
}

/// The path MTU for a sender in this family, if that in the other family is `mtu`, in bytes.
pub(crate) fn sender_mtu(family: Family, mtu: u32) -> u32 {
    match family {
        Family::V4 => mtu.saturating_sub(DIFFERENCE),
        Family::V6 => (mtu + DIFFERENCE).max(ipv6::MIN_MTU),
    }
}

/// Refuses a header that has no counterpart in the other family: a source route, or an IPv6 routing header, that is not
/// at its end. Other options and extension headers are left out.
fn check_header(frame: &[u8], packet: &Packet) -> Result<(), DropReason> {
    let header = &frame[packet.network..packet.transport];
    match packet.family() {
        Family::V4 if is_source_routed(&header[ipv4::HEADER_LEN..]) => Err(DropReason::SourceRoute),
        Family::V6 if is_routed(header) => Err(DropReason::Untranslatable),
        _ => Ok(()),
    }
}

/// Whether an IPv6 header and its extension headers, which have been parsed, contain a routing header with hosts still
/// to be visited (RFC 8200 §4.4).
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

/// Whether IPv4 options contain a source route with an address still to be visited (RFC 791 §3.1).
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

/// Writes the ports of these endpoints into a segment of `flow`, and updates its checksum for their addresses.
fn rewrite_ends(segment: &mut [u8], flow: &FlowKey, source: Endpoint, dest: Endpoint) {
    write_ports(segment, source, dest);
    // Zero words add nothing to a sum, so addresses of different lengths can replace each other.
    let delta = Delta::default()
        .addr(flow.source.addr, source.addr)
        .addr(flow.dest.addr, dest.addr)
        .word(flow.source.port, source.port)
        .word(flow.dest.port, dest.port);
    update_checksum(segment, flow, delta, source, dest);
}

pub(super) fn write_ports(segment: &mut [u8], source: Endpoint, dest: Endpoint) {
    segment[tcp::field::SOURCE].copy_from_slice(&source.port.to_be_bytes());
    segment[tcp::field::DEST].copy_from_slice(&dest.port.to_be_bytes());
}
