//! Masquerading: the packet is rewritten to the destination's endpoint, replies back to the virtual one.
//!
//! As under IPVS, checksums are updated, not recomputed: one that came wrong leaves wrong. Only a UDP datagram without
//! checksum gets one, and SCTP's is computed anew where the port changes.

use std::net::IpAddr;

use xvs_proto::checksum::Delta;
use xvs_proto::ipv4::Ipv4;
use xvs_proto::ipv6::Ipv6;
use xvs_proto::{Endpoint, Packet, Protocol, sctp, tcp, udp};

use super::{Ends, admit_request, strip};
use crate::shm::Frame;
use crate::snapshot::Hop;
use crate::verdict::DropReason;

/// Which end of a packet is rewritten.
#[derive(Clone, Copy)]
pub(super) enum End {
    Source,
    Dest,
}

pub(super) fn send_request(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    hop: Hop,
) -> Result<(), DropReason> {
    admit_request(frame, packet, hop.mtu, 0)?;
    rewrite(frame, packet, End::Dest, packet.flow.dest, ends.dest);
    strip(frame, packet);
    Ok(())
}

/// Has a reply come from the virtual endpoint.
pub(super) fn rewrite_reply(frame: &mut Frame, packet: &Packet, ends: &Ends) {
    rewrite(frame, packet, End::Source, packet.flow.source, ends.virtual_endpoint);
}

fn rewrite(frame: &mut Frame, packet: &Packet, end: End, from: Endpoint, to: Endpoint) {
    debug_assert_eq!(from.family(), to.family(), "a masqueraded connection's ends are of one family");
    let bytes = &mut frame.bytes_mut()[packet.network..packet.end];
    set_address(bytes, end, to.addr);
    if matches!(packet.flow.protocol, Protocol::AH | Protocol::ESP) {
        // No ports; what sums there are cannot be made right without the keys.
        return;
    }
    let (port, source, dest) = match end {
        End::Source => (tcp::field::SOURCE, to.addr, packet.flow.dest.addr),
        End::Dest => (tcp::field::DEST, packet.flow.source.addr, to.addr),
    };
    let segment = &mut bytes[packet.transport - packet.network..];
    segment[port].copy_from_slice(&to.port.to_be_bytes());
    let delta = Delta::default().addr(from.addr, to.addr).word(from.port, to.port);
    match packet.flow.protocol {
        Protocol::UDP => udp::update_checksum(segment, delta, source, dest),
        // Its sum does not cover the addresses.
        Protocol::SCTP if from.port == to.port => {}
        Protocol::SCTP => sctp::write_checksum(segment),
        _ => tcp::update_checksum(segment, delta),
    }
}

/// Replaces an address of the packet that `packet` begins with.
pub(super) fn set_address(packet: &mut [u8], end: End, addr: IpAddr) {
    match (end, addr) {
        (End::Source, IpAddr::V4(addr)) => Ipv4::edit(packet).set_source(addr),
        (End::Dest, IpAddr::V4(addr)) => Ipv4::edit(packet).set_dest(addr),
        (End::Source, IpAddr::V6(addr)) => Ipv6::edit(packet).set_source(addr),
        (End::Dest, IpAddr::V6(addr)) => Ipv6::edit(packet).set_dest(addr),
    }
}
