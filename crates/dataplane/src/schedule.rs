//! A new connection: which packets may begin one, and what it begins as.
//!
//! Runs when a packet matches no connection. Cost: one look-up of a service; for a packet that may begin a
//! connection, one choice of the service's scheduler. Not here: the connection's entry in the table.

use std::net::IpAddr;

use xvs_proto::tcp::Flags;
use xvs_proto::{Endpoint, Packet, Protocol};
use xvs_sched::ServiceKey;

use crate::snapshot::{Member, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// The port that FTP servers send data from; such connections are never scheduled.
const FTP_DATA: u16 = 20;

impl Snapshot {
    /// Whether a service of this protocol is at this endpoint.
    pub fn serves(&self, protocol: Protocol, endpoint: Endpoint) -> bool {
        self.services.find(&ServiceKey::Address { protocol, endpoint }).is_some()
    }
}

/// Chooses a destination for the connection that `packet` begins, and the endpoint there.
///
/// # Errors
/// The verdict on a packet that begins none.
pub fn schedule<'s>(packet: &Packet, snapshot: &'s Snapshot) -> Result<(&'s Member, Endpoint), Verdict> {
    let key = ServiceKey::Address { protocol: packet.flow.protocol, endpoint: packet.flow.dest };
    if !begins_a_connection(packet) {
        return Err(Verdict::PassToKernel);
    }
    let service = snapshot.services.find(&key).ok_or(Verdict::PassToKernel)?;
    if packet.flow.source.port == FTP_DATA {
        return Err(Verdict::PassToKernel);
    }
    let member = service.choose().ok_or(Verdict::Drop(DropReason::NoDestination))?;
    let port = if member.endpoint.port == 0 { packet.flow.dest.port } else { member.endpoint.port };
    Ok((member, Endpoint { port, ..member.endpoint }))
}

/// TCP: a SYN that does not reset, acknowledging or not. UDP: every datagram.
fn begins_a_connection(packet: &Packet) -> bool {
    match packet.flow.protocol {
        Protocol::TCP => packet.tcp_flags.has(Flags::SYN) && !packet.tcp_flags.has(Flags::RST),
        Protocol::UDP => matches!(packet.flow.dest.addr, IpAddr::V4(_)),
        _ => false,
    }
}
