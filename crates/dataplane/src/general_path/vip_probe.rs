//! Probes of real servers through their virtual address: sending packets, and recognising replies.
//!
//! A health check begins a probe; a worker sends a SYN from a local address of the director to the virtual endpoint,
//! forwarded to the real server like a client's packet. A reply from the virtual endpoint arrives at any worker,
//! because the XDP program steers the local port of the probes. A SYN with the correct acknowledgement means that the
//! server accepts connections; it gets a reset on the same path. A reset means that it refuses them. Any other packet
//! to that port ends here, so the kernel neither resets the server's connection nor logs one of its own addresses as a
//! source. Cost for other packets: a comparison of the port, if no connection and no service matches the packet.
//!
//! `snapshot/vip_probes.rs` stores the probes in flight, and the crate `health` interprets the result.

use xvs_proto::network::RouteKey;
use xvs_proto::{Protocol, tcp};
use xvs_xdp::{BURST, Frame};

use super::tcp_originate::{ETHERNET_MTU, as_received, largest_segment, tcp_frame};
use crate::burst::context::{Context, FramedPacket};
use crate::burst::flows::Flows;
use crate::burst::transmit::Transmitter;
use crate::egress::Path;
use crate::egress::path_mtu::PathMtu;
use crate::forward::{self, Ends, Outer};
use crate::port::Port;
use crate::snapshot::vip_probes::{VipPath, VipProbes, VipStage};
use crate::verdict::{DropReason, Verdict};

/// Processes a packet to the local port of the probes, and records the result of its probe. `None` if it is another
/// packet.
#[inline]
pub(crate) fn take_reply(p: &FramedPacket<'_>, cx: Context<'_>) -> Option<Verdict> {
    let probes = cx.snapshot.vip_probes.as_deref()?;
    let flow = &p.packet.flow;
    if flow.protocol != Protocol::TCP
        || flow.dest.port != probes.port
        || !cx.snapshot.is_local(p.link, flow.dest.addr)
    {
        return None;
    }
    note_reply(probes, p);
    Some(Verdict::Consumed)
}

#[inline(never)]
fn note_reply(probes: &VipProbes, p: &FramedPacket<'_>) {
    let flags = p.packet.tcp_flags;
    let flow = &p.packet.flow;
    let stage = match flags.has(tcp::Flags::ACK) {
        true if flags.has(tcp::Flags::RST) => VipStage::Refused,
        true if flags.has(tcp::Flags::SYN) => VipStage::Accepted,
        // An acknowledgement for an earlier connection, or not a reply to a SYN.
        _ => return,
    };
    let number = p.tcp_number(tcp::field::ACKNOWLEDGEMENT.start);
    let Some(slot) = probes.acknowledged(flow.dest, flow.source, number) else { return };
    let held = probes.probe(slot);
    let Some(probe) = held.as_deref() else { return };
    let before = probe.stage();
    if before.is_open()
        && probe.advance(before, stage)
        && stage == VipStage::Accepted
        && !probes.set_due(slot)
    {
        // Without the reset the server repeats its reply, until it gives up.
        probe.advance(VipStage::Accepted, VipStage::Done);
    }
}

/// Sends the packets of due probes, at most a burst of them.
pub(crate) fn send(
    probes: &VipProbes,
    flows: &mut Flows,
    transmitter: &mut Transmitter,
    cx: Context<'_>,
    port: &mut impl Port,
) {
    for slot in (0..BURST).map_while(|_| probes.next_due()) {
        let held = probes.probe(slot);
        let Some(probe) = held.as_deref() else { continue };
        let stage = probe.stage();
        let after = match stage {
            VipStage::Queued | VipStage::Unsent(_) | VipStage::Sent => {
                let header = tcp::Header {
                    sequence: probe.sequence,
                    flags: tcp::Flags::SYN,
                    window: u16::MAX,
                    options: tcp::Options {
                        mss: Some(largest_segment(probe.path.virtual_endpoint.family(), ETHERNET_MTU)),
                        ..Default::default()
                    },
                    ..Default::default()
                };
                match originate(&header, &probe.path, flows, transmitter, cx, port) {
                    Ok(()) => VipStage::Sent,
                    // A repeated SYN that cannot be sent does not make the first one unsent.
                    Err(_) if stage == VipStage::Sent => VipStage::Sent,
                    Err(reason) => VipStage::Unsent(reason),
                }
            }
            VipStage::Accepted => {
                let numbers = tcp::ResetNumbers::Expected(probe.sequence.wrapping_add(1));
                // If it cannot be sent, it counts as lost on the wire.
                let _ = originate(&numbers.into(), &probe.path, flows, transmitter, cx, port);
                VipStage::Done
            }
            VipStage::Done | VipStage::Refused => continue,
        };
        // A reply that has arrived in the meantime has advanced the probe.
        let _ = probe.advance(stage, after);
    }
}

/// Creates a packet with this TCP header, forwards it like a client's, and sends it.
fn originate(
    header: &tcp::Header,
    path: &VipPath,
    flows: &mut Flows,
    transmitter: &mut Transmitter,
    cx: Context<'_>,
    port: &mut impl Port,
) -> Result<(), DropReason> {
    let mut frame =
        tcp_frame(port, (path.local, path.virtual_endpoint), header).ok_or(DropReason::TransmitRefused)?;
    let reason = match forward(&mut frame, path, flows, cx) {
        Verdict::Transmit(link) => match transmitter.send_made(link, frame, port) {
            true => return Ok(()),
            false => return Err(DropReason::TransmitRefused),
        },
        Verdict::Drop(reason) => reason,
        Verdict::Waiting(next_hop) => {
            transmitter.resolve(next_hop);
            DropReason::NoNeighbour
        }
        _ => DropReason::NeedsFragmenting,
    };
    port.recycle(frame);
    Err(reason)
}

fn forward(frame: &mut Frame, path: &VipPath, flows: &mut Flows, cx: Context<'_>) -> Verdict {
    let egress = &cx.snapshot.egress;
    let Some(packet) = as_received(frame, path.virtual_endpoint.family()) else {
        return Verdict::Drop(DropReason::NoHeadroom);
    };
    let ends = Ends {
        client: path.local,
        virtual_endpoint: path.virtual_endpoint,
        dest: path.server,
        local: None,
        method: path.method,
    };
    // Like a client's packet that this VRF receives.
    let vrf = egress.vrf_of_address(path.virtual_endpoint.addr);
    let tunnel = egress.tunnel_to(RouteKey::from(path.server.addr).of_vrf(vrf), path.encapsulation);
    let next = Path::find(egress, tunnel.route_key(path.server.addr, path.method).of_vrf(vrf), 0);
    if next == Path::Local {
        return Verdict::Drop(DropReason::DestinationLocal);
    }
    let outer = Outer {
        tunnel,
        pmtu_disc: cx.snapshot.settings.pmtu_disc,
        // A SYN fits any path.
        path_mtu: &PathMtu::default(),
        now: cx.now,
        flow_hash: flows.table.hash(&packet.flow),
        ids: &mut flows.ids,
    };
    // The link matters only for this machine's own addresses.
    forward::by_method(frame, egress.link_in(vrf), &packet, &ends, next, egress, outer)
}
