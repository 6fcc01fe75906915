//! What a frame is to the director, before any table is asked.
//!
//! Runs once per frame, right after it was parsed. What the XDP program steered too broadly goes back to the
//! kernel here. One thing is edited: an IPv6 fragment header that says nothing is taken out, at the cost of moving what
//! stands before it. Not here: whether a connection or a service takes the packet.

use xvs_proto::LinkId;
use xvs_proto::ipv6::{FRAGMENT_HEADER_LEN, Ipv6, extension};
use xvs_proto::{Family, Fragment, Packet, Parsed, Protocol, ethernet, parse};
use xvs_xdp::Frame;

use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// What is to be done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A connection or a service has to be found for it.
    Flow(Packet),
    /// It has to wait for the rest of its datagram.
    Fragment(Packet),
    /// It is an ICMP error: the connection of the packet in question has to be found.
    Error(Packet),
    /// It is decided already.
    Decided(Verdict),
}

/// Decides what can be decided from the frame alone.
pub fn classify(frame: &mut Frame, link: LinkId, snapshot: &Snapshot) -> Class {
    let packet = match parse(frame.bytes()) {
        Ok(Parsed::Ip(packet)) => packet,
        Ok(Parsed::Other) => return Class::Decided(Verdict::PassToKernel),
        Err(_) if is_unserved(frame.bytes(), snapshot) => return Class::Decided(Verdict::PassToKernel),
        Err(malformed) => return Class::Decided(Verdict::Drop(DropReason::Malformed(malformed))),
    };
    if packet.network != ethernet::HEADER_LEN {
        // A tag that is still there is that of no link here.
        return Class::Decided(Verdict::PassToKernel);
    }
    // As IPVS: what the link layer addressed to somebody else is not looked at, and a family without services
    // passes untouched.
    let to_us = snapshot.egress.link(link).is_some_and(|link| link.mac == ethernet::dest(frame.bytes()));
    if to_us && packet.is_followed_error() {
        return classify_error(frame, packet, snapshot);
    }
    let ours = to_us && snapshot.services.any_of(packet.family());
    let served = [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::AH, Protocol::ESP];
    match packet.fragment {
        _ if !ours => Class::Decided(Verdict::PassToKernel),
        Fragment::Whole if served.contains(&packet.flow.protocol) => {
            Class::Flow(without_fragment_header(frame, packet))
        }
        Fragment::First | Fragment::Later if may_hold(frame.bytes(), &packet, &served) => {
            Class::Fragment(packet)
        }
        _ => Class::Decided(Verdict::PassToKernel),
    }
}

/// An error of a family without services may be about a tunnel that carries the other family.
fn classify_error(frame: &mut Frame, packet: Packet, snapshot: &Snapshot) -> Class {
    match (packet.fragment, packet.family()) {
        _ if ![Family::V4, Family::V6].iter().any(|family| snapshot.services.any_of(*family)) => {
            Class::Decided(Verdict::PassToKernel)
        }
        (Fragment::Whole, _) => Class::Error(without_fragment_header(frame, packet)),
        (_, Family::V6) if snapshot.services.any_of(Family::V6) => {
            Class::Decided(Verdict::Drop(DropReason::IcmpFragment))
        }
        _ => Class::Decided(Verdict::PassToKernel),
    }
}

/// Whether a frame says that it is of a family without services, or of a network that is none here: that passes untouched,
/// be it as broken as it is.
fn is_unserved(frame: &[u8], snapshot: &Snapshot) -> bool {
    let Ok(link) = ethernet::parse(frame) else { return false };
    let family = match link.ethertype {
        _ if link.payload != ethernet::HEADER_LEN => return true,
        ethernet::TYPE_IPV4 => Family::V4,
        ethernet::TYPE_IPV6 => Family::V6,
        _ => return false,
    };
    !snapshot.services.any_of(family)
}

/// Whether a fragment's datagram may hold one of these protocols, by what every fragment of it says alike: behind an IPv6
/// fragment header there may be destination options, and what they are followed by only the first fragment shows.
fn may_hold(frame: &[u8], packet: &Packet, served: &[Protocol]) -> bool {
    match packet.fragment_header {
        None => served.contains(&packet.flow.protocol),
        Some(at) => served.contains(&Protocol(frame[at])) || frame[at] == extension::DESTINATION_OPTIONS,
    }
}

/// Takes the fragment header out of a packet that is whole, as the kernel does before IPVS sees it.
fn without_fragment_header(frame: &mut Frame, packet: Packet) -> Packet {
    let Some(at) = packet.fragment_header else { return packet };
    let bytes = frame.bytes_mut();
    Ipv6::edit(&mut bytes[packet.network..]).unlink_fragment_header(at - packet.network);
    // What stands before it moves up.
    bytes.copy_within(..at, FRAGMENT_HEADER_LEN);
    frame.shrink_front(FRAGMENT_HEADER_LEN);
    Packet {
        transport: packet.transport - FRAGMENT_HEADER_LEN,
        end: packet.end - FRAGMENT_HEADER_LEN,
        fragment_header: None,
        ..packet
    }
}
