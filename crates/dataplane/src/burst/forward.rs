//! Forwarding of a client's packet, with the worker's IP identifications.
//!
//! Runs for each packet of a connection. `forward/` rewrites the packet.

use xvs_proto::network::RouteKey;
use xvs_proto::{LinkId, Packet};
use xvs_xdp::Frame;

use super::context::Context;
use super::flows::Flows;
use super::framed_packet::FramedPacket;
use crate::egress::Path;
use crate::egress::path_mtu::PathMtu;
use crate::forward::{self, Ends, Outer};
use crate::snapshot::{Destination, Encapsulation};
use crate::verdict::Verdict;

/// Forwards a client's packet, received on `link`, to a destination.
#[inline]
pub(crate) fn request(
    flows: &mut Flows,
    frame: &mut Frame,
    link: LinkId,
    packet: &Packet,
    ends: &Ends,
    destination: &Destination,
    cx: Context<'_>,
) -> Verdict {
    if link == LinkId::LOOPBACK && !ends.method.masquerades() {
        // A client on the director has the virtual address, so a reply to the client would not leave the real server.
        return Verdict::PassToKernel;
    }
    let outer = outer(flows, packet, destination, cx);
    forward::request(frame, link, packet, ends, destination.path, &cx.snapshot.egress, outer)
}

/// The path of a packet to the client of a connection.
#[inline]
pub(crate) fn path_to_client(p: &FramedPacket<'_>, ends: &Ends, cx: Context<'_>) -> Path {
    Path::find_by(&cx.snapshot.egress, ends.client.addr, p.hash, || {
        let mark = cx.snapshot.routing_mark(p.link, p.packet);
        Some(ends.key_to_client(mark).of_vrf(cx.snapshot.egress.vrf(p.link)))
    })
    .unwrap_or(Path::NoRoute)
}

/// Forwards a client's packet to a real server that is not configured here. A tunnel then uses IP in IP.
pub(crate) fn unbound(flows: &mut Flows, p: FramedPacket<'_>, ends: &Ends, cx: Context<'_>) -> Verdict {
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
    forward::request(p.frame, p.link, p.packet, ends, path, &cx.snapshot.egress, outer)
}

/// The parameters of the headers that a tunnel to a destination adds.
#[inline]
fn outer<'a>(
    flows: &'a mut Flows,
    packet: &Packet,
    destination: &'a Destination,
    cx: Context<'_>,
) -> Outer<'a> {
    let flow_hash = match destination.tunnel.encapsulation {
        Encapsulation::Gue { .. } => flows.table.hash(&packet.flow),
        Encapsulation::Ip | Encapsulation::Gre(_) => 0,
    };
    Outer {
        tunnel: destination.tunnel,
        pmtu_disc: cx.snapshot.settings.pmtu_disc,
        path_mtu: &destination.path_mtu,
        now: cx.now,
        flow_hash,
        ids: &mut flows.ids,
    }
}
