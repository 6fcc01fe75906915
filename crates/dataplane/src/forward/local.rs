//! The director itself as the destination: the kernel gets the packet, which only NAT rewrites.
//!
//! Each packet is checked for an address of the director, as in IPVS. A destination may therefore become local, or
//! cease to be local, while it has connections. Time to live and size are not checked, because the packet is not
//! forwarded. The replies of the kernel's own stack pass through the pipeline if NAT has rewritten the request
//! (`steering/own.rs`). `steering/reinject.rs` passes the frame to the kernel.

use xvs_proto::network::RouteKey;
use xvs_proto::{LinkId, MacAddr, Packet, ethernet};
use xvs_sched::ForwardingMethod;
use xvs_xdp::Frame;

use super::ends::Ends;
use super::nat::{End, rewrite, rewrite_reply};
use crate::egress::{Egress, Hop, Path};
use crate::verdict::{DropReason, Verdict};

/// Delivers a packet as if `link` had received it for the destination. Drops a packet to a loopback address, as IPVS
/// does; a FULLNAT packet, whose reply would not leave this machine; and a packet to an address that this machine does
/// not have, because the kernel would send it back.
pub(super) fn deliver(
    frame: &mut Frame,
    link: LinkId,
    packet: &Packet,
    ends: &Ends,
    egress: &Egress,
) -> Verdict {
    let dest = packet.connection_key().dest;
    match ends.method {
        ForwardingMethod::Nat | ForwardingMethod::FullNat if ends.dest == dest => Verdict::PassToKernel,
        ForwardingMethod::Nat if !ends.dest.addr.is_loopback() => {
            rewrite(frame, packet, [(End::Dest, ends.dest)]);
            // A packet that the SYN proxy has created has no destination link address yet.
            if frame.bytes().starts_with(&MacAddr::default().0)
                && let Some(received) = egress.link(link.wire())
            {
                ethernet::set_addresses(frame.bytes_mut(), MacAddr::default(), received.mac);
            }
            Verdict::Transmit(link.own())
        }
        ForwardingMethod::Nat | ForwardingMethod::FullNat => Verdict::Drop(DropReason::DestinationLocal),
        _ if egress.is_local(RouteKey::from(dest.addr).of_vrf(egress.vrf(link))) => Verdict::PassToKernel,
        _ => Verdict::Drop(DropReason::DestinationLocal),
    }
}

/// Delivers a reply to a client on the director.
pub(super) fn deliver_reply(frame: &mut Frame, packet: &Packet, ends: &Ends) -> Verdict {
    rewrite_reply(frame, packet, ends);
    by_loopback(frame)
}

/// Delivers a packet as if the director had sent it to itself: the virtual address may belong to the director. `lo` has
/// the link address 0.
pub(super) fn by_loopback(frame: &mut Frame) -> Verdict {
    ethernet::set_addresses(frame.bytes_mut(), MacAddr::default(), MacAddr::default());
    Verdict::Transmit(LinkId::LOOPBACK)
}

/// The path of a translated packet: through `lo` if it is sent to the director itself.
pub(super) fn by_lo(path: Path) -> Path {
    let mac = MacAddr::default();
    match path {
        Path::Local => {
            Path::To(Hop { link: LinkId::LOOPBACK, source_mac: mac, dest_mac: mac, mtu: u16::MAX.into() })
        }
        other => other,
    }
}
