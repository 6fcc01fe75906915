//! Classification: the class of a frame by its bytes and its link, before any look-up.
//!
//! Runs once for each frame, directly after parsing. Frames that the XDP program steered needlessly go back to the
//! kernel. Two edits are made. The fragment header of an atomic fragment (IPv6) is removed, at the cost of moving the
//! bytes before it. Partial checksums are completed on links whose driver leaves them. Fragments have no partial
//! checksums: the kernel completes a checksum before it fragments a packet.

use xvs_proto::ipv6::{FRAGMENT_HEADER_LEN, Ipv6, extension};
use xvs_proto::{Family, Fragment, LinkId, Packet, Parsed, Protocol, ethernet, parse, partial_checksum};
use xvs_xdp::Frame;

use crate::counters::WorkerCounters;
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// The class of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A packet whose connection or service is looked up.
    Flow(Packet),
    /// A fragment, which waits for the other fragments of its datagram.
    Fragment(Packet),
    /// An ICMP error about another packet, whose connection is looked up.
    Error(Packet),
    /// A frame whose verdict is decided.
    Decided(Verdict),
}

/// Classifies a frame. Completed checksums are counted.
pub fn classify(frame: &mut Frame, link: LinkId, snapshot: &Snapshot, counters: &WorkerCounters) -> Class {
    let info = snapshot.egress.link(link);
    // As the kernel does. The kernel may already use the member, and would reset connections that it does not know.
    if info.is_some_and(|info| !info.active) {
        return Class::Decided(Verdict::Drop(DropReason::InactiveMember));
    }
    let packet = match parse(frame.bytes()) {
        Ok(Parsed::Ip(packet)) => packet,
        Ok(Parsed::Other) => return Class::Decided(Verdict::PassToKernel),
        Err(_) if is_unserved(frame.bytes(), snapshot) => return Class::Decided(Verdict::PassToKernel),
        Err(malformed) => return Class::Decided(Verdict::Drop(DropReason::Malformed(malformed))),
    };
    if packet.network != ethernet::HEADER_LEN {
        // A tag that is still present belongs to no VLAN of this machine.
        return Class::Decided(Verdict::PassToKernel);
    }
    // As in IPVS: a frame with another machine's link address is ignored, unless this machine sends it, and a family
    // without services goes to the kernel unchanged.
    let is_addressed = link.is_own() || info.is_some_and(|info| info.mac == ethernet::dest(frame.bytes()));
    // This includes packets that go back to the kernel, which expects complete checksums in frames from the TAP.
    if info.is_some_and(|info| info.partial_checksums)
        && packet.fragment == Fragment::Whole
        && partial_checksum::complete(frame.bytes_mut(), &packet)
    {
        counters.checksums_completed.add(1);
    }
    if is_addressed && packet.is_followed_error() {
        return classify_error(frame, packet, snapshot);
    }
    let served = [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::AH, Protocol::ESP];
    match packet.fragment {
        _ if !is_addressed || !snapshot.services.any_of(packet.family()) => {
            Class::Decided(Verdict::PassToKernel)
        }
        Fragment::Whole if served.contains(&packet.flow.protocol) => {
            Class::Flow(without_fragment_header(frame, packet))
        }
        Fragment::First | Fragment::Later if may_hold(frame.bytes(), &packet, &served) => {
            Class::Fragment(packet)
        }
        _ => Class::Decided(Verdict::PassToKernel),
    }
}

/// Classifies an ICMP error. An error in a family without services may be about a tunnel that carries the other family.
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
/// kernel unchanged, however malformed it is.
fn is_unserved(frame: &[u8], snapshot: &Snapshot) -> bool {
    let Ok(link) = ethernet::parse(frame) else { return false };
    let family = Family::of_ethertype(link.ethertype);
    link.payload != ethernet::HEADER_LEN || family.is_some_and(|family| !snapshot.services.any_of(family))
}

/// Whether the datagram of a fragment may contain one of these protocols, judging by the fields that all its fragments
/// share. An IPv6 fragment header may be followed by destination options, and only the first fragment contains the
/// header after them.
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
    // The bytes before the fragment header move up.
    bytes.copy_within(..at, FRAGMENT_HEADER_LEN);
    frame.shrink_front(FRAGMENT_HEADER_LEN);
    Packet {
        transport: packet.transport - FRAGMENT_HEADER_LEN,
        end: packet.end - FRAGMENT_HEADER_LEN,
        fragment_header: None,
        ..packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xvs_proto::network::{Link, Network};
    use xvs_xdp::{FrameLayout, FramePool};

    use crate::egress::Egress;

    /// A SYN from 192.0.2.10 to 192.0.2.1, whose checksum field contains the sum of the pseudo-header.
    const PARTIAL: &[u8] = b"\x02\0\0\0\x01\x01\x02\0\0\0\x01\xfe\x08\0\
        \x45\0\0\x28\0\0\x40\0\x40\x06\xb6\xc4\xc0\0\x02\x0a\xc0\0\x02\x01\
        \x03\xe8\0\x50\0\0\0\x07\0\0\0\0\x50\x02\x04\0\x84\x26\0\0";

    /// The class of [`PARTIAL`] from a link, without services, and its frame.
    fn classified(edit: impl FnOnce(&mut Link), counters: &WorkerCounters) -> (Class, Frame) {
        let mut network = Network::default();
        network.add_link("wan", "02:00:00:00:01:01".parse().unwrap(), &[], 1500).unwrap();
        edit(&mut network.links[0]);
        let snapshot = Snapshot { egress: Egress::build(&network).into(), ..Snapshot::default() };
        let layout = FrameLayout { frame_size_bytes: 128, headroom_bytes: 32, frames: 1 };
        let mut frame = FramePool::in_memory(layout).take().unwrap();
        assert!(frame.resize(PARTIAL.len()));
        frame.bytes_mut().copy_from_slice(PARTIAL);
        (classify(&mut frame, LinkId(0), &snapshot, counters), frame)
    }

    #[test]
    fn a_partial_checksum_is_completed_and_counted_only_on_a_link_whose_driver_leaves_it_so() {
        for partial_checksums in [false, true] {
            let counters = WorkerCounters::default();
            let (class, frame) = classified(|link| link.partial_checksums = partial_checksums, &counters);
            assert_eq!(class, Class::Decided(Verdict::PassToKernel), "there is no service");
            assert_eq!(frame.bytes() != PARTIAL, partial_checksums);
            assert_eq!(counters.checksums_completed.value(), u64::from(partial_checksums));
        }
    }

    #[test]
    fn what_a_member_receives_that_its_bond_does_not_use_is_dropped_with_its_reason() {
        for active in [true, false] {
            let (class, _) = classified(|link| link.active = active, &WorkerCounters::default());
            let dropped = Verdict::Drop(DropReason::InactiveMember);
            assert_eq!(class, Class::Decided(if active { Verdict::PassToKernel } else { dropped }));
        }
    }
}
