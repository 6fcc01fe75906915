//! Packets of connections that have no destination: it was removed, or there never was one (`cache_bypass`).
//!
//! Not here: which packets begin a connection without a destination (`new_connection/bypass.rs`).

use xvs_proto::{Family, Packet};
use xvs_xdp::Frame;

use super::icmp_reply::{ErrorSource, IcmpError};
use super::reset;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::burst::framed_packet::FramedPacket;
use crate::burst::state;
use crate::conn::{ConnId, Direction};
use crate::egress::Path;
use crate::forward;
use crate::verdict::{DropReason, Verdict};

/// Drops a client's packet whose connection's destination was removed.
pub(crate) fn refuse(flows: &mut Flows, p: FramedPacket<'_>, id: ConnId) -> Verdict {
    reset::apply(&mut flows.resets, p.frame, p.packet, &flows.table.connection(id));
    Verdict::Drop(DropReason::DestinationUnavailable)
}

/// Sends a client's packet of such a connection on to where it was sent, if there never was a destination.
pub(crate) fn request(flows: &mut Flows, p: FramedPacket<'_>, id: ConnId, at: Context<'_>) -> Verdict {
    let connection = flows.table.connection(id);
    if !connection.is_bypass() {
        return Verdict::Drop(DropReason::DestinationUnavailable);
    }
    connection.count_in_packet();
    state::advance(flows, id, p.packet, Direction::Inbound, None, at);
    send(flows, p.frame, p.packet, at)
}

/// Sends a packet on as it is, to where it was sent.
pub(crate) fn send(flows: &Flows, frame: &mut Frame, packet: &Packet, at: Context<'_>) -> Verdict {
    let hash = flows.table.hash(&packet.flow);
    let path = Path::find(&at.snapshot.egress, packet.flow.dest.addr, hash);
    let verdict = forward::unchanged(frame, packet, path);
    flows.report_unresolved(verdict, path);
    verdict
}

/// What the sender of a packet is told. Where the packet was sent to by a connection without a destination is
/// another host, in whose name nobody may speak: in IPv4 nothing is said, in IPv6 the director says it, as the kernel.
pub(crate) fn admit<'a>(
    flows: &Flows,
    error: IcmpError<'a>,
    connection: Option<ConnId>,
) -> Option<IcmpError<'a>> {
    let is_bypassed = connection.is_some_and(|id| flows.table.connection(id).is_bypass());
    match error.packet.family() {
        _ if !is_bypassed => Some(error),
        Family::V4 => None,
        Family::V6 => Some(IcmpError { source: ErrorSource::Director, ..error }),
    }
}
