//! A new connection: which packets may begin one, and what it begins as.
//!
//! Runs when a packet matches no connection. Cost: the mark rules, two look-ups of a service; for a packet that may begin a
//! connection, one choice of the service's scheduler. Not here: the connection's entry in the table.

use std::net::IpAddr;
use std::sync::Arc;

use xvs_proto::{Endpoint, Malformed, Packet, Protocol, is_host, sctp, tcp};
use xvs_sched::{ForwardingMethod, Request, ServiceKey};
use xvs_xdp::LinkId;

use crate::clock::Millis;
use crate::conn::ConnId;
use crate::snapshot::{DestinationId, DestinationLive, FTP, FTP_DATA, Member, Service, Settings, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// What was chosen for a new connection.
pub(crate) struct Chosen<'s> {
    pub(crate) id: DestinationId,
    /// The endpoint there.
    pub(crate) dest: Endpoint,
    pub(crate) method: ForwardingMethod,
    pub(crate) live: &'s Arc<DestinationLive>,
    /// The template that chose, and counts the connection already.
    pub(crate) template: Option<ConnId>,
}

/// The port of a service; 0 if it is of every port, or of a mark.
pub(crate) fn service_port(service: &Service) -> u16 {
    match service.key {
        ServiceKey::Address { endpoint, .. } => endpoint.port,
        ServiceKey::Mark { .. } => 0,
    }
}

/// The service whose connection `packet` begins, and the packet's mark.
///
/// # Errors
/// The verdict on a packet that begins none.
pub fn service<'s>(
    packet: &Packet,
    link: LinkId,
    snapshot: &'s Snapshot,
) -> Result<(&'s Service, u32), Verdict> {
    // Of what IPVS would have to read there is nothing.
    let empty = packet.flow.protocol == Protocol::SCTP && packet.sctp_event.is_none();
    if !empty && !may_begin(packet, &snapshot.settings) {
        return Err(Verdict::PassToKernel);
    }
    let mark = snapshot.marks.of(link, packet);
    match snapshot.services.for_packet(mark, packet.flow.protocol, packet.flow.dest) {
        Some(_) if empty => Err(Verdict::Drop(DropReason::Malformed(Malformed::SctpNoChunk))),
        Some(service) if may_ask(packet.flow.source.addr, packet.flow.dest.addr, snapshot) => {
            Ok((service, mark))
        }
        _ => Err(Verdict::PassToKernel),
    }
}

/// Whether a packet from outside to `dest` may have this source. The kernel refuses such packets before IPVS sees them
/// (RFC 1812 §5.3.7, RFC 4291 §2.5), and gets these back. Of IPv6 it does not refuse one with an address of its own.
pub(crate) fn may_ask(source: IpAddr, dest: IpAddr, snapshot: &Snapshot) -> bool {
    is_host(source) && !(source.is_ipv4() && (source == dest || snapshot.egress.is_local(source)))
}

/// Whether a packet comes from the port of FTP's data, which begins no connection; IPVS sees so only after `drop_packet`.
pub fn is_ftp_data(packet: &Packet) -> bool {
    packet.flow.source.port == FTP_DATA
}

/// What a scheduler is asked for a packet. `random`: bits that are fresh for each choice.
pub(crate) fn request(packet: &Packet, now: Millis, random: u64) -> Request {
    Request { source: packet.flow.source, dest: packet.flow.dest, now_millis: now.0, random }
}

/// Chooses a destination for a new connection of a service without persistence, and the endpoint there. It serves its
/// own port only.
///
/// # Errors
/// The verdict on a packet that nobody takes.
pub(crate) fn choose<'s>(
    packet: &Packet,
    service: &'s Service,
    request: &Request,
) -> Result<Chosen<'s>, Verdict> {
    let port = packet.flow.dest.port;
    if matches!(service.key, ServiceKey::Address { endpoint, .. } if endpoint.port != port) {
        return Err(nobody(packet, service));
    }
    let Member { id, endpoint, method, live, .. } = member(packet, service, request)?;
    let port = if endpoint.port == 0 { port } else { endpoint.port };
    let dest = Endpoint { port, ..*endpoint };
    Ok(Chosen { id: *id, dest, method: *method, live, template: None })
}

/// Lets a service's scheduler choose for a packet.
///
/// # Errors
/// As [`choose`].
pub(crate) fn member<'s>(
    packet: &Packet,
    service: &'s Service,
    request: &Request,
) -> Result<&'s Member, Verdict> {
    service.choose(request).ok_or_else(|| nobody(packet, service))
}

/// What becomes of a packet that no destination takes: beside FTP's port it may be somebody else's.
fn nobody(packet: &Packet, service: &Service) -> Verdict {
    match service_port(service) {
        FTP if packet.flow.dest.port != FTP => Verdict::PassToKernel,
        _ => Verdict::Drop(DropReason::NoDestination),
    }
}

/// Drops one of so many packets that could begin a connection (`drop_packet`).
#[derive(Debug, Default)]
pub struct Defence {
    passed: u32,
}

impl Defence {
    /// Whether to drop this one: the first, and then each `rate`-th; a rate of 0 drops none.
    pub fn drops(&mut self, rate: u32) -> bool {
        if rate == 0 {
            self.passed = 0;
            return false;
        }
        let drops = self.passed == 0;
        self.passed = (self.passed + 1) % rate;
        drops
    }
}

/// Whether a packet is the first of its connection as its protocol has it: then it may also take the place of an old
/// one. TCP: a SYN, acknowledging or not. SCTP: an INIT.
pub fn is_first(packet: &Packet) -> bool {
    match packet.flow.protocol {
        Protocol::TCP => packet.tcp_flags.has(tcp::Flags::SYN),
        Protocol::SCTP => packet.sctp_event == Some(sctp::Event::Init),
        _ => false,
    }
}

/// Whether a packet begins with the end of its connection: a TCP reset, an SCTP abort as the first chunk. It begins no
/// other, and its sender is told nothing.
pub fn is_reset(packet: &Packet) -> bool {
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
