//! The steps before and after rewriting that all methods share: the next hop, checks of time to live and size, the
//! removal of the old link header, and the link header for the next hop.

use xvs_proto::ipv4::Ipv4;
use xvs_proto::ipv6::Ipv6;
use xvs_proto::{Family, LinkId, Packet, ethernet};
use xvs_xdp::Frame;

use crate::egress::{Hop, Path, UnresolvedHop};
use crate::verdict::{DropReason, Verdict};

pub(super) fn hop(path: Path) -> Result<Hop, DropReason> {
    match path {
        Path::To(hop) | Path::NoNeighbour { hop, .. } => Ok(hop),
        Path::Local => Err(DropReason::DestinationLocal),
        Path::NoRoute => Err(DropReason::NoRoute),
    }
}

/// Refuses a packet whose time to live has expired, as a router does.
pub(super) fn check_ttl(packet: &Packet) -> Result<(), DropReason> {
    if packet.ttl <= 1 { Err(DropReason::TtlExpired) } else { Ok(()) }
}

/// Decrements a packet's time to live, or hop limit.
pub fn decrement_ttl(frame: &mut Frame, packet: &Packet) {
    let bytes = &mut frame.bytes_mut()[packet.network..];
    match packet.family() {
        Family::V4 => Ipv4::edit(bytes).decrement_ttl(),
        Family::V6 => Ipv6::edit(bytes).decrement_hop_limit(),
    }
}

/// Refuses a packet that is larger than the path MTU and must not be fragmented. The method needs `overhead` bytes of
/// the path's `mtu` for its own headers.
pub(super) fn check_size(packet: &Packet, mtu: u32, overhead: u32) -> Result<(), DropReason> {
    let largest = u32::from(u16::MAX);
    let room = mtu.min(largest).saturating_sub(overhead);
    if packet.longest_fragment.unwrap_or(packet.length()) <= room as usize {
        return Ok(());
    }
    match packet.dont_fragment {
        true => Err(DropReason::TooBig { mtu: room as u16 }),
        false if packet.length() > (largest - overhead) as usize => Err(DropReason::NoHeadroom),
        false => Ok(()),
    }
}

/// IPVS's checks of a client's packet before it is rewritten. An error about a packet that is too big quotes it with
/// its decremented time to live.
pub(super) fn admit_request(frame: &mut Frame, packet: &Packet, mtu: u32) -> Result<(), DropReason> {
    check_ttl(packet)?;
    decrement_ttl(frame, packet);
    check_size(packet, mtu, 0)
}

/// A router's checks of a reply. The kernel's forwarding performs them before IPVS sees the reply, so an error quotes
/// the packet as it was received.
pub(super) fn admit_reply(frame: &mut Frame, packet: &Packet, mtu: u32) -> Result<(), DropReason> {
    check_ttl(packet)?;
    check_size(packet, mtu, 0)?;
    decrement_ttl(frame, packet);
    Ok(())
}

/// Removes link header and link padding from the frame, so that it contains only the packet. Positions in `packet` then
/// count from its network header.
pub(super) fn strip(frame: &mut Frame, packet: &Packet) {
    frame.shrink_front(packet.network);
    let shorter = frame.resize(packet.length());
    debug_assert!(shorter, "parse saw the packet end inside the frame");
}

pub(super) fn finish(frame: &mut Frame, path: Path, sent: Result<Hop, DropReason>) -> Verdict {
    match (sent.and_then(|hop| link_header(frame, hop)), path) {
        (Ok(Hop { link, mtu, .. }), Path::NoNeighbour { next_hop: addr, .. }) => {
            Verdict::Waiting(UnresolvedHop { link, addr, mtu })
        }
        (Ok(hop), _) => leave(frame, hop.link, hop.mtu),
        (Err(reason), _) => Verdict::Drop(reason),
    }
}

/// The verdict on a frame with its link header, for a path with this MTU in bytes.
pub fn leave(frame: &Frame, link: LinkId, mtu: u32) -> Verdict {
    match frame.len() - ethernet::HEADER_LEN > mtu as usize {
        true => Verdict::Fragment { link, mtu },
        false => Verdict::Transmit(link),
    }
}

/// Prepends a link header to a packet that begins with its network header. The version in that header determines the
/// EtherType.
pub fn link_header(frame: &mut Frame, hop: Hop) -> Result<Hop, DropReason> {
    if !frame.grow_front(ethernet::HEADER_LEN) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    let family = if bytes[ethernet::HEADER_LEN] >> 4 == 6 { Family::V6 } else { Family::V4 };
    ethernet::emit(bytes, hop.source_mac, hop.dest_mac, family.ethertype());
    Ok(hop)
}
