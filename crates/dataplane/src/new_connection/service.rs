//! The service of a packet without a connection, and the conditions on which the packet may begin one.
//!
//! Runs for each packet that belongs to no connection. Cost: the mark rules, and up to five look-ups of a service.

use std::net::IpAddr;

use xvs_proto::{FlowKey, LinkId, Malformed, Packet, Protocol, ftp, is_host, sctp, tcp};
use xvs_sched::ServiceKey;

use crate::burst::context::FramedPacket;
use crate::forward::decrement_ttl;
use crate::snapshot::{Service, Settings, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// A service, and the firewall mark of the packet that matched it; 0 if there is none.
#[derive(Clone, Copy)]
pub(crate) struct Marked<'s> {
    /// The service.
    pub(crate) service: &'s Service,
    /// The packet's mark.
    pub(crate) mark: u32,
}

/// The service for which `packet` begins a connection.
///
/// # Errors
/// The verdict on a packet that begins no connection.
pub(crate) fn find<'s>(packet: &Packet, link: LinkId, snapshot: &'s Snapshot) -> Result<Marked<'s>, Verdict> {
    match_service(packet, link, snapshot).map_err(|verdict| match is_unsolicited(packet, snapshot) {
        true if !link.is_own() => Verdict::Drop(DropReason::Unsolicited),
        _ => verdict,
    })
}

fn match_service<'s>(packet: &Packet, link: LinkId, snapshot: &'s Snapshot) -> Result<Marked<'s>, Verdict> {
    // Such a packet contains nothing that IPVS could read.
    let empty = packet.flow.protocol == Protocol::SCTP && packet.sctp_event.is_none();
    if !empty && !may_begin(packet, &snapshot.settings) {
        return Err(Verdict::PassToKernel);
    }
    if link.is_own() {
        return for_own(packet, link, snapshot).ok_or(Verdict::PassToKernel);
    }
    let mark = snapshot.marks.of(link, packet);
    match snapshot.services.for_packet(mark, packet.flow.protocol, packet.flow.dest) {
        Some(_) if empty => Err(Verdict::Drop(DropReason::Malformed(Malformed::SctpNoChunk))),
        Some(service) if is_valid_source(packet.flow.source.addr, packet.flow.dest.addr, link, snapshot) => {
            Ok(Marked { service, mark })
        }
        _ => Err(Verdict::PassToKernel),
    }
}

/// The service of a TCP packet without a connection, if the service may use the SYN proxy and the packet is for its own
/// port. Clients on this machine need no proxy.
pub(crate) fn behind_proxy<'s>(packet: &Packet, link: LinkId, snapshot: &'s Snapshot) -> Option<Marked<'s>> {
    if link.is_own() {
        return None;
    }
    let dest = packet.flow.dest;
    let mark = snapshot.marks.of(link, packet);
    snapshot
        .services
        .for_packet(mark, packet.flow.protocol, dest)
        .filter(|service| service.may_proxy() && [0, dest.port].contains(&service.port()))
        .filter(|_| is_valid_source(packet.flow.source.addr, dest.addr, link, snapshot))
        .map(|service| Marked { service, mark })
}

/// The service of a packet that this machine itself sends through `lo` to a service at its own endpoint. The packet has
/// no mark.
fn for_own<'s>(packet: &Packet, link: LinkId, snapshot: &'s Snapshot) -> Option<Marked<'s>> {
    let FlowKey { protocol, source, dest } = packet.flow;
    let is_ftp = protocol == Protocol::TCP && dest.port == ftp::CONTROL_PORT;
    if link != LinkId::LOOPBACK || is_ftp || !is_host(source.addr) {
        return None;
    }
    let key = ServiceKey::Address { protocol, endpoint: dest };
    snapshot.services.find(&key).map(|service| Marked { service, mark: 0 })
}

/// The verdict on a packet that begins no connection. The packet is edited to the form that an ICMP error must quote.
pub(crate) fn refuse(p: &mut FramedPacket<'_>, verdict: Verdict) -> Verdict {
    if verdict == Verdict::Drop(DropReason::Unsolicited) {
        // IPVS sends the error after the kernel's forwarding has decremented the time to live.
        decrement_ttl(p.frame, p.packet);
    }
    verdict
}

/// Refuses a packet from the FTP data port, which begins no connection. IPVS checks this only after `drop_packet`.
///
/// # Errors
///
/// The verdict on such a packet.
pub(crate) fn refuse_ftp_data(packet: &Packet, snapshot: &Snapshot) -> Result<(), Verdict> {
    match is_ftp_data(packet) {
        false => Ok(()),
        true if is_unsolicited(packet, snapshot) => Err(Verdict::Drop(DropReason::Unsolicited)),
        true => Err(Verdict::PassToKernel),
    }
}

/// Whether a packet comes from the FTP data port.
pub(crate) fn is_ftp_data(packet: &Packet) -> bool {
    packet.flow.source.port == ftp::DATA_PORT
}

/// Whether a packet comes from a masqueraded destination without a client's request, and an ICMP error must be sent to
/// the destination. Packets to the director itself are excluded.
fn is_unsolicited(packet: &Packet, snapshot: &Snapshot) -> bool {
    snapshot.settings.nat_icmp_send
        && !is_reset(packet)
        && snapshot.nat_destinations.contains(&(packet.flow.protocol, packet.flow.source))
        && !snapshot.egress.is_own(packet.flow.dest.addr)
}

/// Whether a packet to `dest` that a link received from the wire may have this source. The kernel refuses others before
/// IPVS sees them (RFC 1812 §5.3.7, RFC 4291 §2.5), so they go back to the kernel; so does an IPv6 packet with an
/// address of the director as its source, which would have its reply delivered here.
pub(crate) fn is_valid_source(source: IpAddr, dest: IpAddr, link: LinkId, snapshot: &Snapshot) -> bool {
    is_host(source) && source != dest && !snapshot.is_local(link, source)
}

/// Whether a packet is the first of a connection by the rules of its protocol: a TCP SYN, with or without ACK, or an
/// SCTP INIT. Such a packet may replace an old connection.
pub(crate) fn is_first(packet: &Packet) -> bool {
    match packet.flow.protocol {
        Protocol::TCP => packet.tcp_flags.has(tcp::Flags::SYN),
        Protocol::SCTP => packet.sctp_event == Some(sctp::Event::Init),
        _ => false,
    }
}

/// Whether a packet ends its connection: a TCP reset, or an SCTP packet whose first chunk is an ABORT. It begins no
/// connection, and its sender gets no ICMP error.
pub(crate) fn is_reset(packet: &Packet) -> bool {
    packet.tcp_flags.has(tcp::Flags::RST) || packet.sctp_event == Some(sctp::Event::Abort)
}

/// Whether a packet may begin a connection. TCP: a SYN without RST; with `sloppy_tcp` any packet without RST. UDP:
/// every datagram. SCTP: an INIT; with `sloppy_sctp` every packet except an ABORT.
pub(crate) fn may_begin(packet: &Packet, settings: &Settings) -> bool {
    match packet.flow.protocol {
        Protocol::TCP => (is_first(packet) || settings.sloppy_tcp) && !is_reset(packet),
        Protocol::SCTP => (is_first(packet) || settings.sloppy_sctp) && !is_reset(packet),
        Protocol::UDP => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Egress;
    use xvs_proto::network::Network;

    #[test]
    fn a_packet_from_the_wire_with_an_address_of_this_machine_as_its_source_begins_no_connection() {
        let mut network = Network::default();
        let own: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let addresses = [(own[0], 24), (own[1], 64)];
        network.add_link("wan", "02:00:00:00:01:01".parse().unwrap(), &addresses, 1500).unwrap();
        let snapshot = Snapshot { egress: Egress::build(&network).into(), ..Snapshot::default() };
        for (own, client) in own.into_iter().zip(["198.51.100.10", "2001:db8:1::10"]) {
            assert!(
                !is_valid_source(own, own, LinkId(0), &snapshot)
                    && is_valid_source(client.parse().unwrap(), own, LinkId(0), &snapshot)
            );
        }
    }
}
