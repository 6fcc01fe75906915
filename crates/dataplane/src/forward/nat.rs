//! Masquerading: the packet is rewritten to the destination's endpoint, replies back to the virtual one.
//!
//! As under IPVS, checksums are updated, not recomputed: one that came wrong leaves wrong. Only a UDP datagram without
//! checksum gets one, and SCTP's is computed anew where the port changes.

use std::ops::Range;

use xvs_proto::checksum::Delta;
use xvs_proto::ipv4::Ipv4;
use xvs_proto::{Endpoint, Packet, Protocol, sctp, tcp, udp};

use super::{Ends, admit_request, check_size, check_ttl, decrement_ttl, strip, v4};
use crate::shm::Frame;
use crate::snapshot::Hop;
use crate::verdict::DropReason;

/// Which end of a packet is rewritten.
enum End {
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

pub(super) fn send_reply(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    hop: Hop,
) -> Result<(), DropReason> {
    // The kernel's own forwarding does this, before IPVS sees the reply: what is refused is quoted as it came.
    check_ttl(packet)?;
    check_size(packet, hop.mtu, 0)?;
    decrement_ttl(frame, packet);
    rewrite(frame, packet, End::Source, packet.flow.source, ends.virtual_endpoint);
    strip(frame, packet);
    Ok(())
}

fn rewrite(frame: &mut Frame, packet: &Packet, end: End, from: Endpoint, to: Endpoint) {
    let (Some(old), Some(new)) = (v4(from), v4(to)) else {
        debug_assert!(false, "a connection's ends are of one family");
        return;
    };
    let bytes = &mut frame.bytes_mut()[packet.network..packet.end];
    let mut header = Ipv4::edit(&mut *bytes);
    let port: Range<usize> = match end {
        End::Source => {
            header.set_source(new);
            tcp::field::SOURCE
        }
        End::Dest => {
            header.set_dest(new);
            tcp::field::DEST
        }
    };
    let addrs = (header.source(), header.dest());
    let segment = &mut bytes[packet.transport - packet.network..];
    segment[port].copy_from_slice(&to.port.to_be_bytes());
    let delta = Delta::default().ipv4(old, new).word(from.port, to.port);
    match packet.flow.protocol {
        Protocol::UDP => udp::update_checksum(segment, delta, addrs.0.into(), addrs.1.into()),
        // Its sum does not cover the addresses.
        Protocol::SCTP if from.port == to.port => {}
        Protocol::SCTP => sctp::write_checksum(segment),
        _ => tcp::update_checksum(segment, delta),
    }
}
