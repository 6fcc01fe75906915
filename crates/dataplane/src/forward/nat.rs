//! Masquerading: requests are rewritten to the destination's endpoint, replies back to the virtual endpoint.
//!
//! As in IPVS, checksums are updated, not recomputed: a packet that arrives with an incorrect checksum leaves with an
//! incorrect one. Exceptions: a UDP datagram without a checksum gets one, and the SCTP checksum is recomputed if a port
//! changes.

use std::net::IpAddr;

use xvs_proto::checksum::Delta;
use xvs_proto::ipv4::Ipv4;
use xvs_proto::ipv6::Ipv6;
use xvs_proto::{Endpoint, FlowKey, Packet, Protocol, sctp, tcp, udp};
use xvs_sched::ForwardingMethod;
use xvs_xdp::Frame;

use super::ends::Ends;
use super::steps::{admit_request, strip};
use crate::egress::Hop;
use crate::verdict::DropReason;

/// The endpoint of a packet that is rewritten.
#[derive(Clone, Copy)]
pub(super) enum End {
    Source,
    Dest,
}

pub(super) fn send(frame: &mut Frame, packet: &Packet, ends: &Ends, hop: Hop) -> Result<Hop, DropReason> {
    admit_request(frame, packet, hop.mtu)?;
    rewrite(frame, packet, [(End::Dest, ends.dest)]);
    strip(frame, packet);
    Ok(hop)
}

/// Rewrites a reply on a masqueraded connection to come from the virtual endpoint and, if the destination knows the
/// client by a local endpoint, to go to the client, who belongs to the same family.
pub(super) fn rewrite_reply(frame: &mut Frame, packet: &Packet, ends: &Ends) {
    match ends.method {
        ForwardingMethod::Nat => rewrite(frame, packet, [(End::Source, ends.virtual_endpoint)]),
        ForwardingMethod::FullNat => {
            rewrite(frame, packet, [(End::Source, ends.virtual_endpoint), (End::Dest, ends.client)]);
        }
        _ => {}
    }
}

/// Writes these endpoints into a packet, and updates its checksums.
#[inline]
pub(super) fn rewrite<const N: usize>(frame: &mut Frame, packet: &Packet, ends: [(End, Endpoint); N]) {
    let bytes = &mut frame.bytes_mut()[packet.network..packet.end];
    let transport = packet.transport - packet.network;
    // AH and ESP have no ports, and their integrity checks cannot be updated without the keys.
    let portless = matches!(packet.flow.protocol, Protocol::AH | Protocol::ESP);
    let FlowKey { mut source, mut dest, .. } = packet.flow;
    let mut delta = Delta::default();
    for (end, to) in ends {
        let (from, port) = match end {
            End::Source => (std::mem::replace(&mut source, to), tcp::field::SOURCE),
            End::Dest => (std::mem::replace(&mut dest, to), tcp::field::DEST),
        };
        debug_assert_eq!(from.family(), to.family(), "a masqueraded connection's ends are of one family");
        set_address(bytes, end, to.addr);
        if !portless {
            bytes[transport..][port].copy_from_slice(&to.port.to_be_bytes());
            delta = delta.addr(from.addr, to.addr).word(from.port, to.port);
        }
    }
    if !portless {
        update_checksum(&mut bytes[transport..], &packet.flow, delta, source, dest);
    }
}

/// Updates the checksum of a segment of `flow` whose ends are now these.
#[inline]
pub(super) fn update_checksum(
    segment: &mut [u8],
    flow: &FlowKey,
    delta: Delta,
    source: Endpoint,
    dest: Endpoint,
) {
    match flow.protocol {
        Protocol::UDP => udp::update_checksum(segment, delta, source.addr, dest.addr),
        // The SCTP checksum does not cover the addresses.
        Protocol::SCTP if flow.source.port == source.port && flow.dest.port == dest.port => {}
        Protocol::SCTP => sctp::write_checksum(segment),
        _ => tcp::update_checksum(segment, delta),
    }
}

/// Replaces an address in the network header at the beginning of `packet`.
pub(super) fn set_address(packet: &mut [u8], end: End, addr: IpAddr) {
    match (end, addr) {
        (End::Source, IpAddr::V4(addr)) => Ipv4::edit(packet).set_source(addr),
        (End::Dest, IpAddr::V4(addr)) => Ipv4::edit(packet).set_dest(addr),
        (End::Source, IpAddr::V6(addr)) => Ipv6::edit(packet).set_source(addr),
        (End::Dest, IpAddr::V6(addr)) => Ipv6::edit(packet).set_dest(addr),
    }
}
