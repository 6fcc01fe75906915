//! What every method does with a packet before it is rewritten: time to live, size, headers of the link that go.

use xvs_proto::ipv4::Ipv4;
use xvs_proto::ipv6::Ipv6;
use xvs_proto::{Family, Packet};
use xvs_xdp::Frame;

use crate::verdict::DropReason;

/// What a router does first: refuses a packet that has come too far.
pub(super) fn check_ttl(packet: &Packet) -> Result<(), DropReason> {
    if packet.ttl <= 1 { Err(DropReason::TtlExpired) } else { Ok(()) }
}

/// Takes one off a packet's time to live, or hop limit.
pub fn decrement_ttl(frame: &mut Frame, packet: &Packet) {
    let bytes = &mut frame.bytes_mut()[packet.network..];
    match packet.family() {
        Family::V4 => Ipv4::edit(bytes).decrement_ttl(),
        Family::V6 => Ipv6::edit(bytes).decrement_hop_limit(),
    }
}

/// Refuses a packet that does not fit the way and must not be fragmented; of the way's `mtu` the method needs
/// `overhead` for itself, both in bytes.
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

/// What IPVS does with a client's packet before it rewrites it. What is too big is reported with the time to live
/// that it would have left with.
pub(super) fn admit_request(
    frame: &mut Frame,
    packet: &Packet,
    mtu: u32,
    overhead: u32,
) -> Result<(), DropReason> {
    check_ttl(packet)?;
    decrement_ttl(frame, packet);
    check_size(packet, mtu, overhead)
}

/// What a router does with a packet: the kernel's own forwarding does it before IPVS sees the reply, so what is refused
/// is reported as it came.
pub(super) fn admit_reply(frame: &mut Frame, packet: &Packet, mtu: u32) -> Result<(), DropReason> {
    check_ttl(packet)?;
    check_size(packet, mtu, 0)?;
    decrement_ttl(frame, packet);
    Ok(())
}

/// Leaves of the frame the packet alone, without link header and link padding; positions in `packet` are then
/// counted from its network header.
pub(super) fn strip(frame: &mut Frame, packet: &Packet) {
    frame.shrink_front(packet.network);
    let shorter = frame.resize(packet.length());
    debug_assert!(shorter, "parse saw the packet end inside the frame");
}
