//! Passes the client's address to a FULLNAT destination: in a PROXY header before the client's first byte, or before
//! each datagram, or in a TCP option.
//!
//! Runs for each packet of a connection whose service is configured for it; other packets cost one check of the flags.
//!
//! **PROXY.** The header precedes the client's first byte in the stream. The client's sequence numbers are therefore
//! raised by the length of the header, and the destination's acknowledgements and SACK blocks are lowered by that
//! length. Until the destination acknowledges the header, every segment that begins at the first byte carries it, also
//! the end of the handshake. A retransmission by the client therefore replaces a lost header with the same bytes. The
//! MSS in the SYN+ACK is reduced by the length of the header, so the first segment has room for it. If there is still
//! no room, or a router has reported a smaller path MTU, the header is sent without the data, and the client
//! retransmits them. The length of the header follows from the family. The connection stores only the number of the
//! first byte, and whether the header was acknowledged. With UDP each datagram carries the header: servers read
//! datagrams one by one, and a lost datagram takes its header with it. The client learns a path MTU that leaves room
//! for it.
//!
//! **TOA.** Every segment that begins at the first byte carries the option (kind 254: port, address). If there is no
//! room the option is omitted and counted.

use std::net::IpAddr;

use xvs_proto::checksum::Delta;
use xvs_proto::ipv4::Ipv4;
use xvs_proto::ipv6::{self, Ipv6};
use xvs_proto::{Endpoint, Family, Packet, Protocol, proxy, tcp, udp};
use xvs_xdp::Frame;

use super::mss;
use crate::burst::context::FramedPacket;
use crate::clock::Millis;
use crate::conn::{Connection, Flags};
use crate::counters::WorkerCounters;
use crate::forward;
use crate::snapshot::Destination;
use crate::verdict::DropReason;

/// The option kind that the kernel module `toa` reads.
const TOA: u8 = 254;

/// Adds the client's address to a client's packet that is not rewritten yet. Returns the changed packet, whose headers
/// are at the same positions in the frame; `None` if `p.packet` still describes the frame.
///
/// # Errors
///
/// A datagram has no room for the header, and is as it was received.
#[inline]
pub(crate) fn add(
    p: &mut FramedPacket<'_>,
    connection: &Connection<'_>,
    destination: &Destination,
    now: Millis,
    counters: &WorkerCounters,
) -> Result<Option<Packet>, DropReason> {
    match p.packet.flow.protocol {
        _ if !lengthens(connection) => Ok(None),
        Protocol::TCP => Ok(before_stream(p, connection, destination, now, counters)),
        Protocol::UDP => before_datagram(p, connection, destination, now),
        // ESP and AH of a connection of UDP.
        _ => Ok(None),
    }
}

/// Puts the header before the data of a datagram.
#[inline(never)]
fn before_datagram(
    p: &mut FramedPacket<'_>,
    connection: &Connection<'_>,
    destination: &Destination,
    now: Millis,
) -> Result<Option<Packet>, DropReason> {
    let packet = p.packet;
    let Some(hop) = destination.path.hop().filter(|_| packet.ttl > 1) else { return Ok(None) };
    let length = tcp::word(p.transport(), udp::field::LENGTH.start);
    if !(udp::HEADER_LEN..=packet.end - packet.transport).contains(&usize::from(length)) {
        // The server discards it.
        return Ok(None);
    }
    let mut header = [0; proxy::MAX_LEN];
    let len = proxy::emit(&mut header, Protocol::UDP, connection.client(), connection.virtual_endpoint());
    let family = destination.endpoint.family();
    let needed = forward::length_towards(packet, family) + len;
    if needed.max(packet.length() + len) > usize::from(u16::MAX) {
        return Err(DropReason::NoHeadroom);
    }
    let mtu = hop.mtu.min(destination.path_mtu.at(now));
    let is_too_big = packet.dont_fragment && packet.longest_fragment.is_none() && needed > mtu as usize;
    // An IPv6 sender may ignore values below 1,280 bytes (RFC 8201 §4).
    let least = if packet.family() == Family::V6 { ipv6::MIN_MTU } else { 0 };
    if is_too_big && packet.length() > least as usize {
        let sender = if family == packet.family() { mtu } else { forward::sender_mtu(packet.family(), mtu) };
        let reported = sender.saturating_sub(len as u32).max(least);
        return Err(DropReason::TooBig { mtu: u16::try_from(reported).unwrap_or(u16::MAX) });
    }
    let changed = insert(p, udp::HEADER_LEN, &header[..len]).ok_or(DropReason::NoHeadroom)?;
    // Then the director fragments it.
    Ok(Some(Packet { dont_fragment: packet.dont_fragment && !is_too_big, ..changed }))
}

// Not inlined, to keep the path of other packets short.
#[inline(never)]
fn before_stream(
    p: &mut FramedPacket<'_>,
    connection: &Connection<'_>,
    destination: &Destination,
    now: Millis,
    counters: &WorkerCounters,
) -> Option<Packet> {
    let packet = p.packet;
    let flags = connection.flags();
    // A packet that is not sent stays unchanged, because an ICMP error may quote it.
    let hop = destination.path.hop()?;
    let header_len = tcp::header_len(p.transport())?;
    let most = (hop.mtu as usize).min(usize::from(u16::MAX));
    let len = forward::length_towards(packet, destination.endpoint.family());
    let room = most.min(destination.path_mtu.at(now) as usize).saturating_sub(len);
    if packet.ttl <= 1 || packet.dont_fragment && len > most {
        return None;
    }
    let sequence = p.tcp_number(tcp::field::SEQUENCE.start);
    if packet.tcp_flags.has(tcp::Flags::SYN) {
        connection.set_first_sequence(sequence.wrapping_add(1));
        let _ = connection.clear_flags(Flags::PROXY_ACKNOWLEDGED);
        // Data in the SYN would come before the header.
        return flags.contains(Flags::PROXY).then(|| without_data(p, header_len, &[]));
    }
    let is_first = sequence == connection.first_sequence() && !flags.contains(Flags::PROXY_ACKNOWLEDGED);
    if !is_first || packet.tcp_flags.has(tcp::Flags::RST) {
        // A reset with the number of the first byte: with ACK, the segment that completed the handshake has carried the
        // header; without ACK, the destination expects the first byte.
        if flags.contains(Flags::PROXY) && (!is_first || packet.tcp_flags.has(tcp::Flags::ACK)) {
            let raised = sequence.wrapping_add(proxy_len(connection));
            tcp::set_number(p.transport_mut(), tcp::field::SEQUENCE.start, raised);
        }
        return None;
    }
    if flags.contains(Flags::TOA) {
        return with_option(p, connection.client(), room, counters);
    }
    let mut bytes = [0; proxy::MAX_LEN];
    let emitted = proxy::emit(&mut bytes, Protocol::TCP, connection.client(), connection.virtual_endpoint());
    let header = &bytes[..emitted];
    if room >= header.len()
        && let Some(changed) = insert(p, header_len, header)
    {
        return Some(changed);
    }
    // No byte may be sent before the header.
    Some(without_data(p, header_len, header))
}

/// The length of a connection's PROXY header, in bytes.
fn proxy_len(connection: &Connection<'_>) -> u32 {
    proxy::header_len(connection.client().family()) as u32
}

/// Whether this step may lengthen packets of a connection.
pub(crate) fn lengthens(connection: &Connection<'_>) -> bool {
    connection.flags().intersects(Flags::PROXY | Flags::PROXY_DATAGRAMS | Flags::TOA)
}

/// Subtracts the length of the PROXY header from the numbers of a reply that is not rewritten yet.
#[inline]
pub(crate) fn remove(p: &mut FramedPacket<'_>, connection: &Connection<'_>) {
    if connection.flags().contains(Flags::PROXY) {
        lower_numbers(p, connection);
    }
}

#[inline(never)]
fn lower_numbers(p: &mut FramedPacket<'_>, connection: &Connection<'_>) {
    let flags = p.packet.tcp_flags;
    let segment = p.transport_mut();
    let by = proxy_len(connection);
    if flags.has(tcp::Flags::SYN) {
        mss::reduce(segment, by as u16);
    }
    if !flags.has(tcp::Flags::ACK) {
        return;
    }
    let beyond =
        tcp::number(segment, tcp::field::ACKNOWLEDGEMENT.start).wrapping_sub(connection.first_sequence());
    if (by..1 << 31).contains(&beyond) && !connection.flags().contains(Flags::PROXY_ACKNOWLEDGED) {
        let _ = connection.set_flags(Flags::PROXY_ACKNOWLEDGED);
    }
    tcp::map_acknowledged(segment, |number| lowered(number, connection, by));
}

/// Replaces the sequence number in a request that an error quotes with the client's own number.
pub(crate) fn quoted(frame: &mut Frame, quote: &Packet, connection: &Connection<'_>) {
    if !connection.flags().contains(Flags::PROXY) {
        return;
    }
    let by = proxy_len(connection);
    tcp::map_quoted(&mut frame.bytes_mut()[quote.transport..quote.end], |number| {
        lowered(number, connection, by)
    });
}

/// A sequence number of the destination in the client's numbering, which lacks the `by` bytes of the header.
fn lowered(number: u32, connection: &Connection<'_>, by: u32) -> u32 {
    match number.wrapping_sub(connection.first_sequence()) {
        _ if connection.flags().contains(Flags::PROXY_ACKNOWLEDGED) => number.wrapping_sub(by),
        beyond if beyond < 1 << 31 => number.wrapping_sub(beyond.min(by)),
        _ => number,
    }
}

/// Inserts the client's address before all other options of a segment, as LVS does; `None` if there is no room.
fn with_option(
    p: &mut FramedPacket<'_>,
    client: Endpoint,
    room: usize,
    counters: &WorkerCounters,
) -> Option<Packet> {
    let mut option = [0; 20];
    let len = match client.addr {
        IpAddr::V4(addr) => {
            option[4..8].copy_from_slice(&addr.octets());
            8
        }
        IpAddr::V6(addr) => {
            option[4..20].copy_from_slice(&addr.octets());
            20
        }
    };
    option[..2].copy_from_slice(&[TOA, len as u8]);
    option[2..4].copy_from_slice(&client.port.to_be_bytes());
    if room < len || tcp::header_len(p.transport())? + len > tcp::HEADER_LEN_MAX {
        counters.toa_no_room.add(1);
        return None;
    }
    let changed = insert(p, tcp::HEADER_LEN, &option[..len])?;
    let segment = &mut p.frame.bytes_mut()[changed.transport..changed.end];
    let offset = tcp::word(segment, tcp::field::DATA_OFFSET);
    tcp::set_word(segment, tcp::field::DATA_OFFSET, offset + ((len as u16 / 4) << 12));
    Some(changed)
}

/// Inserts an even number of bytes at an even offset in a packet's segment, and updates its checksums; `None` if the
/// frame has no room.
fn insert(p: &mut FramedPacket<'_>, offset: usize, more: &[u8]) -> Option<Packet> {
    let FramedPacket { frame, packet, .. } = p;
    let at = packet.transport + offset;
    let len = more.len();
    if !frame.grow_front(len) {
        return None;
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(len..len + at, 0);
    bytes[at..at + len].copy_from_slice(more);
    let changed = Packet { end: packet.end + len, ..**packet };
    set_length(frame, &changed);
    let lengths = [*packet, &changed].map(|packet| (packet.end - packet.transport) as u16);
    let delta = more
        .chunks_exact(2)
        .map(|word| u16::from_be_bytes([word[0], word[1]]))
        .fold(Delta::default(), |delta, word| delta.word(0, word))
        .word(lengths[0], lengths[1]);
    let flow = &packet.flow;
    let segment = &mut frame.bytes_mut()[changed.transport..changed.end];
    if flow.protocol == Protocol::UDP {
        let former = tcp::word(segment, udp::field::LENGTH.start);
        let length = former.wrapping_add(len as u16);
        segment[udp::field::LENGTH].copy_from_slice(&length.to_be_bytes());
        udp::update_checksum(segment, delta.word(former, length), flow.source.addr, flow.dest.addr);
    } else {
        tcp::update_checksum(segment, delta);
    }
    Some(changed)
}

/// Replaces a segment's data with `instead`, and clears FIN and PSH.
pub(crate) fn without_data(p: &mut FramedPacket<'_>, header_len: usize, instead: &[u8]) -> Packet {
    let FramedPacket { frame, packet, .. } = p;
    let data = packet.transport + header_len;
    if instead.is_empty() && data == packet.end {
        return **packet;
    }
    let changed = Packet { end: data + instead.len(), ..**packet };
    let fits = frame.len() >= changed.end || frame.resize(changed.end);
    debug_assert!(fits, "a frame has room for a header before its data or behind its end");
    frame.bytes_mut()[data..changed.end].copy_from_slice(instead);
    set_length(frame, &changed);
    let segment = &mut frame.bytes_mut()[changed.transport..changed.end];
    segment[tcp::field::FLAGS] &= !(tcp::Flags::FIN.0 | tcp::Flags::PSH.0);
    tcp::write_checksum(segment, &packet.flow);
    changed
}

/// Writes the packet's length into its network header.
pub(super) fn set_length(frame: &mut Frame, packet: &Packet) {
    let bytes = &mut frame.bytes_mut()[packet.network..];
    match packet.family() {
        Family::V4 => {
            let mut header = Ipv4::edit(bytes);
            header.set_part(packet.length() as u16, header.flags_and_offset());
        }
        Family::V6 => Ipv6::edit(bytes).set_payload_len((packet.length() - ipv6::HEADER_LEN) as u16),
    }
}
