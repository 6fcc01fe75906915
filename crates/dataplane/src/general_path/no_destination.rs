//! Packets of connections without a destination: it was removed, or never existed here (`cache_bypass`, and connections
//! from another director). `new_connection/bypass.rs` begins connections without a destination.

use xvs_proto::network::RouteKey;
use xvs_proto::{Family, LinkId, Packet};
use xvs_xdp::Frame;

use super::icmp_originate::{ErrorSource, IcmpError};
use super::reset;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::burst::framed_packet::FramedPacket;
use crate::burst::{self, state};
use crate::conn::{ConnId, Direction};
use crate::egress::Path;
use crate::forward::{self, Ends};
use crate::verdict::{DropReason, Verdict};

/// Drops a client's packet whose connection has lost its destination.
pub(crate) fn refuse(flows: &mut Flows, mut p: FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    reset::apply(&mut flows.answers, &mut p, &flows.table.connection(id), cx);
    Verdict::Drop(DropReason::DestinationUnavailable)
}

/// Forwards a client's packet on a `cache_bypass` connection to its original address, and one on another director's
/// connection to the real server that is not configured here. Drops the packet if the connection's destination was
/// removed.
pub(crate) fn request(flows: &mut Flows, p: FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    let connection = flows.table.connection(id);
    if !connection.is_bypass() && !connection.is_unbound() {
        return Verdict::Drop(DropReason::DestinationUnavailable);
    }
    let unbound = connection.is_unbound().then(|| Ends::of(&connection));
    connection.count_in_packet();
    flows.tally(id, Direction::Inbound, p.packet.length(), cx.now);
    state::advance(flows, id, p.packet, Direction::Inbound, None, cx);
    flows.announce(id, cx);
    match unbound {
        Some(ends) => burst::forward::unbound(flows, p, &ends, cx),
        None => send(flows, p.frame, p.link, p.packet, cx),
    }
}

/// Forwards a packet, received on `link`, unchanged to its original address.
pub(crate) fn send(
    flows: &Flows,
    frame: &mut Frame,
    link: LinkId,
    packet: &Packet,
    cx: Context<'_>,
) -> Verdict {
    let hash = flows.table.hash(&packet.flow);
    let egress = &cx.snapshot.egress;
    let path = Path::find(egress, RouteKey::from(packet.flow.dest.addr).of_vrf(egress.vrf(link)), hash);
    forward::unchanged(frame, packet, path)
}

/// The ICMP error that the sender of a packet gets. A packet on a `cache_bypass` connection was sent to another host,
/// whose address the director must not use as a source. Its sender therefore gets no error in IPv4, and in IPv6 an
/// error from the director, as from the kernel.
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
