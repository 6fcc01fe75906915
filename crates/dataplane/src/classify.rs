//! What a frame is to the director, before any table is asked.
//!
//! Runs once per frame, right after it was parsed. What the XDP program steered too broadly goes back to the
//! kernel here. Not here: whether a connection or a service takes the packet.

use xvs_proto::{Family, Fragment, Packet, Parsed, Protocol, ethernet, parse};

use crate::port::LinkId;
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// What is to be done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A connection or a service has to be found for it.
    Flow(Packet),
    /// It has to wait for the rest of its datagram.
    Fragment(Packet),
    /// It is decided already.
    Decided(Verdict),
}

/// Decides what can be decided from the frame alone.
pub fn classify(frame: &[u8], link: LinkId, snapshot: &Snapshot) -> Class {
    let packet = match parse(frame) {
        Ok(Parsed::Ip(packet)) if packet.family() == Family::V4 => packet,
        Ok(_) => return Class::Decided(Verdict::PassToKernel),
        Err(malformed) => return Class::Decided(Verdict::Drop(DropReason::Malformed(malformed))),
    };
    if packet.network != ethernet::HEADER_LEN {
        // Of a tagged network no link here tells; its packets stay with the kernel.
        return Class::Decided(Verdict::PassToKernel);
    }
    // As IPVS: what the link layer addressed to somebody else is not looked at, and a family without services
    // passes untouched.
    let to_us = snapshot.egress.link(link).is_some_and(|link| link.mac == ethernet::dest(frame));
    let ours = to_us && !snapshot.services.is_empty();
    if !ours || !matches!(packet.flow.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP) {
        return Class::Decided(Verdict::PassToKernel);
    }
    match packet.fragment {
        Fragment::Whole => Class::Flow(packet),
        Fragment::First | Fragment::Later => Class::Fragment(packet),
    }
}
