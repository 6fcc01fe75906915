//! Forwarding: sends a packet to its connection's destination, or a reply to its client.
//!
//! Runs for each packet of a connection. Every method has the same steps in the same order: next hop, time to live,
//! size, rewriting. A method edits the packet from the network header on. The link header is written here, for the link
//! on which the packet leaves, without a VLAN tag.

mod ends;
mod identification;
mod steps;

mod dr;
mod fullnat;
mod local;
mod nat;
pub(crate) mod network_header;
mod translate;
mod tunnel;

pub mod icmp;

use xvs_proto::{LinkId, Packet};
use xvs_sched::ForwardingMethod;
use xvs_xdp::Frame;

use self::steps::{admit_reply, check_size, finish, hop, strip};
use crate::egress::{Egress, Path};
use crate::verdict::{DropReason, Verdict};

pub use self::ends::Ends;
pub use self::identification::Identification;
pub use self::steps::{decrement_ttl, leave, link_header};
pub(crate) use self::translate::{length_towards, send_plain, sender_mtu};
pub(crate) use self::tunnel::{FlowHeaders, Template};
pub use self::tunnel::{Outer, overhead, room};

/// Sends a client's packet, received on `link`, to the connection's destination by the connection's method.
pub fn by_method(
    frame: &mut Frame,
    link: LinkId,
    packet: &Packet,
    ends: &Ends,
    path: Path,
    egress: &Egress,
    outer: Outer<'_>,
) -> Verdict {
    if path == Path::Local || ends.method == ForwardingMethod::Local {
        return local::deliver(frame, link, packet, ends, egress);
    }
    let sent = hop(path).and_then(|hop| match ends.method {
        ForwardingMethod::DirectRouting => dr::send(frame, packet, hop),
        ForwardingMethod::Nat => nat::send(frame, packet, ends, hop),
        ForwardingMethod::Tunnel => tunnel::send(frame, packet, ends, hop, outer),
        ForwardingMethod::FullNat => {
            let local = ends.local.ok_or(DropReason::NoLocalAddress)?;
            fullnat::send(frame, packet, ends, local, hop, outer.ids)
        }
        ForwardingMethod::Local => Err(DropReason::DestinationLocal),
    });
    finish(frame, path, sent)
}

/// Forwards a client's packet unchanged, on the path to its original address.
pub fn unchanged(frame: &mut Frame, packet: &Packet, path: Path) -> Verdict {
    let sent = hop(path).and_then(|hop| dr::send(frame, packet, hop));
    finish(frame, path, sent)
}

/// Sends a packet from the director itself, which begins with its network header.
pub(crate) fn made(frame: &mut Frame, path: Path) -> Verdict {
    finish(frame, path, hop(path))
}

/// Sends a reply, received on `link`, to the connection's client: from the virtual endpoint if the method is
/// masquerading, otherwise unchanged, because its source already is that endpoint. The time to live of this machine's
/// own replies does not change.
pub fn reply(
    frame: &mut Frame,
    link: LinkId,
    packet: &Packet,
    ends: &Ends,
    path: Path,
    ids: &mut Identification,
) -> Verdict {
    let crosses = packet.family() != ends.client.family();
    if path == Path::Local && ends.method.masquerades() && !crosses {
        return local::deliver_reply(frame, packet, ends);
    }
    let path = if crosses { local::by_lo(path) } else { path };
    let sent = hop(path).and_then(|hop| {
        if crosses {
            return translate::send(frame, packet, ends.virtual_endpoint, ends.client, hop, ids);
        }
        match link.is_own() {
            true => check_size(packet, hop.mtu, 0)?,
            false => admit_reply(frame, packet, hop.mtu)?,
        }
        nat::rewrite_reply(frame, packet, ends);
        strip(frame, packet);
        Ok(hop)
    });
    finish(frame, path, sent)
}

/// Whether a router refuses a packet with this verdict before its forwarding hooks. IPVS does not see such a packet.
pub fn is_refused(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Drop(DropReason::TtlExpired | DropReason::TooBig { .. }))
}
