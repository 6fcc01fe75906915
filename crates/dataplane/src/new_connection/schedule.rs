//! The destination that a service's scheduler chooses for a new connection.
//!
//! Runs for each new connection of a service without persistence, and for each new template. Cost: one choice of the
//! scheduler.

use std::sync::Arc;

use xvs_proto::{Endpoint, Packet, ftp};
use xvs_sched::{ForwardingMethod, Request, ServiceKey};

use crate::conn::ConnId;
use crate::snapshot::{DestinationId, DestinationLive, Member, Service};
use crate::verdict::{DropReason, Verdict};

/// The choice for a new connection.
#[derive(Clone, Copy)]
pub(crate) struct Chosen<'s> {
    pub(crate) id: DestinationId,
    /// The endpoint at the destination.
    pub(crate) dest: Endpoint,
    pub(crate) method: ForwardingMethod,
    pub(crate) live: &'s Arc<DestinationLive>,
    /// The template that determined the destination. It already counts the connection.
    pub(crate) template: Option<ConnId>,
}

/// Chooses a destination, and the endpoint there, for a new connection to a service without persistence. A destination
/// that the packet names is chosen. Such a service accepts only packets to its own port.
///
/// # Errors
///
/// The verdict on a packet that no destination accepts.
pub(crate) fn choose<'s>(
    worker: usize,
    packet: &Packet,
    service: &'s Service,
    named: Option<&'s Member>,
    request: &Request,
) -> Result<Chosen<'s>, Verdict> {
    let port = packet.flow.dest.port;
    if matches!(service.key, ServiceKey::Address { endpoint, .. } if endpoint.port != port) {
        return Err(no_destination(packet, service));
    }
    let Member { id, endpoint, method, live, .. } =
        named.map_or_else(|| member(worker, packet, service, request), Ok)?;
    let dest = if endpoint.port == 0 { Endpoint { port, ..*endpoint } } else { *endpoint };
    Ok(Chosen { id: *id, dest, method: *method, live, template: None })
}

/// The scheduler's choice for a packet.
///
/// # Errors
///
/// The verdict on a packet that no destination accepts.
pub(crate) fn member<'s>(
    worker: usize,
    packet: &Packet,
    service: &'s Service,
    request: &Request,
) -> Result<&'s Member, Verdict> {
    service.choose(worker, request).ok_or_else(|| no_destination(packet, service))
}

/// The verdict on a packet that no destination accepts. A packet to a port other than FTP's may be for the kernel.
fn no_destination(packet: &Packet, service: &Service) -> Verdict {
    match service.port() {
        ftp::CONTROL_PORT if packet.flow.dest.port != ftp::CONTROL_PORT => Verdict::PassToKernel,
        _ => Verdict::Drop(DropReason::NoDestination),
    }
}
