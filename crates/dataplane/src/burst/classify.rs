//! Classification: the class of a frame by its bytes and its link, before any look-up.
//!
//! Runs once for each frame, right after it was parsed. Frames that the XDP program steered without need go back to the
//! kernel here. One thing is edited: the header of an atomic fragment (IPv6) is removed, at the cost of moving the
//! bytes before it. Not here: whether a connection or a service takes the packet.

use xvs_proto::LinkId;
use xvs_proto::ipv6::{FRAGMENT_HEADER_LEN, Ipv6, extension};
use xvs_proto::{Family, Fragment, Packet, Parsed, Protocol, ethernet, parse};
use xvs_xdp::Frame;

use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// The class of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A packet whose connection or service is looked up.
    Flow(Packet),
    /// A fragment, which waits for the others of its datagram.
    Fragment(Packet),
    /// An ICMP error about another packet, whose connection is looked up.
    Error(Packet),
    /// A frame whose verdict is known already.
    Decided(Verdict),
}

/// Classifies a frame.
pub fn classify(frame: &mut Frame, link: LinkId, snapshot: &Snapshot) -> Class {
    let packet = match parse(frame.bytes()) {
        Ok(Parsed::Ip(packet)) => packet,
        Ok(Parsed::Other) => return Class::Decided(Verdict::PassToKernel),
        Err(_) if is_unserved(frame.bytes(), snapshot) => return Class::Decided(Verdict::PassToKernel),
        Err(malformed) => return Class::Decided(Verdict::Drop(DropReason::Malformed(malformed))),
    };
    if packet.network != ethernet::HEADER_LEN {
        // A tag that is still there belongs to no VLAN of this machine.
        return Class::Decided(Verdict::PassToKernel);
    }
    // As under IPVS: a frame with another machine's link address is ignored, and a family without services goes to the
    // kernel untouched.
    let is_addressed =
        snapshot.egress.link(link).is_some_and(|link| link.mac == ethernet::dest(frame.bytes()));
    if is_addressed && packet.is_followed_error() {
        return classify_error(frame, packet, snapshot);
    }
    let may_serve = is_addressed && snapshot.services.any_of(packet.family());
    let served = [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::AH, Protocol::ESP];
    match packet.fragment {
        _ if !may_serve => Class::Decided(Verdict::PassToKernel),
        Fragment::Whole if served.contains(&packet.flow.protocol) => {
            Class::Flow(without_fragment_header(frame, packet))
        }
        Fragment::First | Fragment::Later if may_hold(frame.bytes(), &packet, &served) => {
            Class::Fragment(packet)
        }
        _ => Class::Decided(Verdict::PassToKernel),
    }
}

/// Classifies an ICMP error. An error of a family without services may be about a tunnel that carries the other family.
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

/// Whether a malformed frame belongs to a family without services, or to an unknown VLAN. Such a frame goes to the
/// kernel untouched, however malformed it is.
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

/// Whether the datagram of a fragment may hold one of these protocols, by the fields that all its fragments share.
/// Behind an IPv6 fragment header there may be destination options, and only the first fragment shows what follows
/// them.
fn may_hold(frame: &[u8], packet: &Packet, served: &[Protocol]) -> bool {
    match packet.fragment_header {
        None => served.contains(&packet.flow.protocol),
        Some(at) => served.contains(&Protocol(frame[at])) || frame[at] == extension::DESTINATION_OPTIONS,
    }
}

/// Removes the fragment header of a whole packet, as the kernel does before IPVS processes it.
fn without_fragment_header(frame: &mut Frame, packet: Packet) -> Packet {
    let Some(at) = packet.fragment_header else { return packet };
    let bytes = frame.bytes_mut();
    Ipv6::edit(&mut bytes[packet.network..]).unlink_fragment_header(at - packet.network);
    // The bytes before it move up.
    bytes.copy_within(..at, FRAGMENT_HEADER_LEN);
    frame.shrink_front(FRAGMENT_HEADER_LEN);
    Packet {
        transport: packet.transport - FRAGMENT_HEADER_LEN,
        end: packet.end - FRAGMENT_HEADER_LEN,
        fragment_header: None,
        ..packet
    }
}
