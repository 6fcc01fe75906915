//! Packets of connections without a destination: it was removed, or never existed here (`cache_bypass`, and connections
//! from another director). `new_connection/bypass.rs` begins connections without a destination.

use xvs_proto::Family;
use xvs_proto::network::RouteKey;

use super::icmp_originate::{ErrorSource, IcmpError};
use super::reset;
use crate::burst::context::{Context, FramedPacket};
use crate::burst::flows::Flows;
use crate::burst::state;
use crate::conn::{ConnId, Direction};
use crate::egress::Path;
use crate::egress::path_mtu::PathMtu;
use crate::forward::{self, Ends, Outer};
use crate::snapshot::Encapsulation;
use crate::verdict::{DropReason, Verdict};

/// Drops a client's packet whose connection has lost its destination.
pub(crate) fn refuse(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    reset::apply(&mut flows.answers, p, &flows.table.connection(id), cx);
    Verdict::Drop(DropReason::DestinationUnavailable)
}

/// Forwards a client's packet on a `cache_bypass` connection to its original address, and one on another director's
/// connection to the real server that is not configured here. Drops the packet if the connection's destination was
/// removed.
pub(crate) fn send(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
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
        Some(ends) => to_unbound(flows, p, &ends, cx),
        None => bypass(flows, p, cx),
    }
}

/// Forwards a client's packet to a real server that is not configured here. A tunnel then uses IP in IP.
fn to_unbound(flows: &mut Flows, p: &mut FramedPacket<'_>, ends: &Ends, cx: Context<'_>) -> Verdict {
    let vrf = cx.snapshot.egress.vrf(p.link);
    let tunnel = cx.snapshot.egress.tunnel_to(RouteKey::from(ends.dest.addr).of_vrf(vrf), Encapsulation::Ip);
    let key = tunnel.route_key(ends.dest.addr, ends.method).of_vrf(vrf);
    let path = Path::find(&cx.snapshot.egress, key, flows.table.hash(&p.packet.flow));
    let outer = Outer {
        tunnel,
        pmtu_disc: cx.snapshot.settings.pmtu_disc,
        path_mtu: &PathMtu::default(),
        now: cx.now,
        flow_hash: 0,
        ids: &mut flows.ids,
    };
    forward::by_method(p.frame, p.link, p.packet, ends, path, &cx.snapshot.egress, outer)
}

/// Forwards a packet unchanged to its original address.
pub(crate) fn bypass(flows: &Flows, p: &mut FramedPacket<'_>, cx: Context<'_>) -> Verdict {
    let egress = &cx.snapshot.egress;
    let key = RouteKey::from(p.packet.flow.dest.addr).of_vrf(egress.vrf(p.link));
    forward::unchanged(p.frame, p.packet, Path::find(egress, key, flows.table.hash(&p.packet.flow)))
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
