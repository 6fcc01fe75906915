//! The destination that a QUIC connection ID identifies: a client that has changed its address keeps its destination.
//!
//! Runs for each UDP packet that begins a connection to a service with QUIC configurations, after the client's limit
//! and before the scheduler, whose state it does not change. It neither creates nor uses templates. An ID that
//! identifies no destination of the service has no effect. Cost: [`Quic::find`]; for services without QUIC
//! configurations a comparison. Packets of existing connections need no ID.
//!
//! A packet with a short header continues a QUIC connection, so its destination may be quiescent or overloaded. A long
//! header may begin one, with an ID that the client has chosen at random, or at will: its ID selects only destinations
//! that may get new connections.
//!
//! Source: draft-ietf-quic-load-balancers-21, §4.2 (a routable ID decides, with either header), §4.3 (fallback).

use xvs_proto::quic::Header;
use xvs_proto::{Packet, Protocol, ethernet, udp};
use xvs_xdp::Frame;

use crate::burst::flows::Flows;
use crate::snapshot::quic::{Quic, Unnamed};
use crate::snapshot::{Member, Service};

/// The destination that the connection ID in a packet identifies; counted. `None` if the service's scheduler chooses.
pub(crate) fn choose<'s>(
    flows: &Flows,
    frame: &Frame,
    packet: &Packet,
    service: &'s Service,
) -> Option<&'s Member> {
    match look(frame.bytes(), packet, service)? {
        Ok(member) => {
            flows.counters.quic_routed.add(1);
            Some(member)
        }
        Err(unrouted) => {
            flows.counters.quic_unroutable.add(unrouted.continues.into());
            None
        }
    }
}

/// The destination that the connection ID in a packet identifies. `None` if the service has no QUIC configurations, or
/// the packet is not UDP.
pub(crate) fn look<'s>(
    frame: &[u8],
    packet: &Packet,
    service: &'s Service,
) -> Option<Result<&'s Member, Unrouted>> {
    let quic = service.quic.as_ref()?;
    // The packet that an ICMP error quotes is the server's, with an ID of the client.
    if packet.flow.protocol != Protocol::UDP || packet.network != ethernet::HEADER_LEN {
        return None;
    }
    Some(route(quic, frame.get(packet.transport + udp::HEADER_LEN..packet.end)?, service))
}

fn route<'s>(quic: &Quic, datagram: &[u8], service: &'s Service) -> Result<&'s Member, Unrouted> {
    let (continues, id) = match Header::of(datagram) {
        Some(Header::Short(id)) => (true, id),
        Some(Header::Long(id)) => (false, id),
        None => (false, &[][..]),
    };
    let named = quic.find(id).map(|number| &service.members[number]);
    named
        .and_then(|member| match continues || !member.weight.is_quiescent() && !member.live.is_overloaded() {
            true => Ok(member),
            false => Err(Unnamed::NotForNew(member.endpoint)),
        })
        .map_err(|why| Unrouted { continues, why })
}

/// A packet whose connection ID does not choose its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unrouted {
    /// Whether the packet continues a QUIC connection, which most likely breaks at another destination.
    continues: bool,
    /// The reason.
    pub(crate) why: Unnamed,
}
