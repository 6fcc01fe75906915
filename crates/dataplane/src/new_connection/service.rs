//! Which packets begin a connection, and of which service.
//!
//! Runs when a packet matches no connection. Cost: the mark rules, and up to five look-ups of a service.

use std::net::IpAddr;

use xvs_proto::LinkId;
use xvs_proto::{Malformed, Packet, Protocol, is_host, sctp, tcp};
use xvs_xdp::Frame;

use crate::forward::decrement_ttl;
use crate::snapshot::{FTP_DATA, Service, Settings, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// A service, with the firewall mark of the packet that belongs to it; 0 is none.
#[derive(Clone, Copy)]
pub(crate) struct Marked<'s> {
    /// The service.
    pub(crate) service: &'s Service,
    /// The packet's mark.
    pub(crate) mark: u32,
}

/// The service whose connection `packet` begins.
///
/// # Errors
/// The verdict on a packet that begins none.
pub(crate) fn find<'s>(packet: &Packet, link: LinkId, snapshot: &'s Snapshot) -> Result<Marked<'s>, Verdict> {
    match_service(packet, link, snapshot).map_err(|verdict| match is_unsolicited(packet, snapshot) {
        true => Verdict::Drop(DropReason::Unsolicited),
        false => verdict,
    })
}

fn match_service<'s>(packet: &Packet, link: LinkId, snapshot: &'s Snapshot) -> Result<Marked<'s>, Verdict> {
    // Of what IPVS would have to read there is nothing.
    let empty = packet.flow.protocol == Protocol::SCTP && packet.sctp_event.is_none();
    if !empty && !may_begin(packet, &snapshot.settings) {
        return Err(Verdict::PassToKernel);
    }
    let mark = snapshot.marks.of(link, packet);
    match snapshot.services.for_packet(mark, packet.flow.protocol, packet.flow.dest) {
        Some(_) if empty => Err(Verdict::Drop(DropReason::Malformed(Malformed::SctpNoChunk))),
        Some(service) if is_valid_source(packet.flow.source.addr, packet.flow.dest.addr, snapshot) => {
            Ok(Marked { service, mark })
        }
        _ => Err(Verdict::PassToKernel),
    }
}

/// The verdict on a packet that begins no connection, which is edited as its sender is to see it.
pub(crate) fn refuse(frame: &mut Frame, packet: &Packet, verdict: Verdict) -> Verdict {
    if verdict == Verdict::Drop(DropReason::Unsolicited) {
        // The kernel's forwarding has taken one off when IPVS tells the sender.
        decrement_ttl(frame, packet);
    }
    verdict
}

/// Refuses a packet from the port of FTP's data, which begins no connection; IPVS sees so only after `drop_packet`.
///
/// # Errors
/// The verdict on such a packet.
pub(crate) fn refuse_ftp_data(packet: &Packet, snapshot: &Snapshot) -> Result<(), Verdict> {
    match is_ftp_data(packet) {
        false => Ok(()),
        true if is_unsolicited(packet, snapshot) => Err(Verdict::Drop(DropReason::Unsolicited)),
        true => Err(Verdict::PassToKernel),
    }
}

/// Whether a packet comes from the port of FTP's data.
pub(crate) fn is_ftp_data(packet: &Packet) -> bool {
    packet.flow.source.port == FTP_DATA
}

/// Whether a masqueraded destination speaks to somebody who did not ask, and is to be told so. What it says to the
/// director itself is between the two of them.
fn is_unsolicited(packet: &Packet, snapshot: &Snapshot) -> bool {
    snapshot.settings.nat_icmp_send
        && !is_reset(packet)
        && snapshot.nat_destinations.contains(&(packet.flow.protocol, packet.flow.source))
        && !snapshot.egress.is_local(packet.flow.dest.addr)
}

/// Whether a packet from outside to `dest` may have this source. The kernel refuses such packets before IPVS sees them
/// (RFC 1812 §5.3.7, RFC 4291 §2.5), and gets these back. Of IPv6 it does not refuse one with an address of its own.
pub(crate) fn is_valid_source(source: IpAddr, dest: IpAddr, snapshot: &Snapshot) -> bool {
    is_host(source) && !(source.is_ipv4() && (source == dest || snapshot.egress.is_local(source)))
}

/// Whether a packet is the first of its connection as its protocol has it: then it may also take the place of an old
/// one. TCP: a SYN, acknowledging or not. SCTP: an INIT.
pub(crate) fn is_first(packet: &Packet) -> bool {
    match packet.flow.protocol {
        Protocol::TCP => packet.tcp_flags.has(tcp::Flags::SYN),
        Protocol::SCTP => packet.sctp_event == Some(sctp::Event::Init),
        _ => false,
    }
}

/// Whether a packet begins with the end of its connection: a TCP reset, an SCTP abort as the first chunk. It begins no
/// other, and its sender is told nothing.
pub(crate) fn is_reset(packet: &Packet) -> bool {
    packet.tcp_flags.has(tcp::Flags::RST) || packet.sctp_event == Some(sctp::Event::Abort)
}

/// TCP: a SYN that does not reset; any that does not reset if sloppy. UDP: every datagram. SCTP: an INIT; all but an
/// ABORT if sloppy.
pub(crate) fn may_begin(packet: &Packet, settings: &Settings) -> bool {
    match packet.flow.protocol {
        Protocol::TCP => (is_first(packet) || settings.sloppy_tcp) && !is_reset(packet),
        Protocol::SCTP => (is_first(packet) || settings.sloppy_sctp) && !is_reset(packet),
        Protocol::UDP => true,
        _ => false,
    }
}
