//! A new connection: which packets may begin one, and what it begins as.
//!
//! Runs when a packet matches no connection. Cost: one look-up of a service; for a packet that may begin a
//! connection, one choice of the service's scheduler. Not here: the connection's entry in the table.

use std::net::IpAddr;

use xvs_proto::{Endpoint, Malformed, Packet, Protocol, sctp, tcp};
use xvs_sched::{Request, ServiceKey};

use crate::clock::Millis;
use crate::snapshot::{Member, Service, Settings, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// The port that FTP servers send data from; such connections are never scheduled.
const FTP_DATA: u16 = 20;

impl Snapshot {
    /// Whether a service of this protocol is at this endpoint.
    pub fn serves(&self, protocol: Protocol, endpoint: Endpoint) -> bool {
        self.services.find(&ServiceKey::Address { protocol, endpoint }).is_some()
    }
}

/// The service whose connection `packet` begins.
///
/// # Errors
/// The verdict on a packet that begins none.
pub fn service<'s>(packet: &Packet, snapshot: &'s Snapshot) -> Result<&'s Service, Verdict> {
    let key = ServiceKey::Address { protocol: packet.flow.protocol, endpoint: packet.flow.dest };
    // Of what IPVS would have to read there is nothing.
    let empty = packet.flow.protocol == Protocol::SCTP && packet.sctp_event.is_none();
    if !empty && !may_begin(packet, &snapshot.settings) {
        return Err(Verdict::PassToKernel);
    }
    match snapshot.services.find(&key) {
        Some(_) if empty => Err(Verdict::Drop(DropReason::Malformed(Malformed::SctpNoChunk))),
        Some(service)
            if packet.flow.source.port != FTP_DATA && may_ask(packet.flow.source.addr, snapshot) =>
        {
            Ok(service)
        }
        _ => Err(Verdict::PassToKernel),
    }
}

/// Whether a packet from outside may have this source. The kernel refuses such packets before IPVS sees them (RFC 1812
/// §5.3.7, RFC 4291 §2.5), and gets these back. Of IPv6 it does not refuse one with an address of its own.
fn may_ask(source: IpAddr, snapshot: &Snapshot) -> bool {
    match source {
        IpAddr::V4(v4) => {
            let nobody = v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast();
            !nobody && !snapshot.egress.is_local(source)
        }
        IpAddr::V6(v6) => {
            let mapped = v6.to_ipv4_mapped().is_some();
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || mapped)
        }
    }
}

/// Chooses a destination for a new connection, and the endpoint there. `random`: bits that are fresh for each choice.
///
/// # Errors
/// The verdict on a packet that nobody takes.
pub fn choose<'s>(
    packet: &Packet,
    service: &'s Service,
    now: Millis,
    random: u64,
) -> Result<(&'s Member, Endpoint), Verdict> {
    let request = Request { source: packet.flow.source, dest: packet.flow.dest, now_millis: now.0, random };
    let member = service.choose(&request).ok_or(Verdict::Drop(DropReason::NoDestination))?;
    let port = if member.endpoint.port == 0 { packet.flow.dest.port } else { member.endpoint.port };
    Ok((member, Endpoint { port, ..member.endpoint }))
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
fn may_begin(packet: &Packet, settings: &Settings) -> bool {
    match packet.flow.protocol {
        Protocol::TCP => (is_first(packet) || settings.sloppy_tcp) && !is_reset(packet),
        Protocol::SCTP => (is_first(packet) || settings.sloppy_sctp) && !is_reset(packet),
        Protocol::UDP => true,
        _ => false,
    }
}
