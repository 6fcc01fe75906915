//! The director itself as the destination: the kernel gets the unchanged packet.
//!
//! Each packet is checked for an address of the director, as IPVS does. So a destination may become local, or cease to
//! be local, while it has connections. Time to live and size are not checked, because the packet is not forwarded. The
//! replies of the kernel's own stack do not pass through the pipeline. Not here: giving the frame to the kernel
//! (`steering/reinject.rs`).

use xvs_proto::Packet;
use xvs_sched::ForwardingMethod;

use super::ends::Ends;
use crate::egress::Egress;
use crate::verdict::{DropReason, Verdict};

/// Delivers a packet that needs no rewriting. A packet that NAT would have to rewrite is dropped, because the reply
/// would come from the wrong endpoint. So is a packet to an address that this machine does not have, because the kernel
/// would send it back.
pub(super) fn deliver(packet: &Packet, ends: &Ends, egress: &Egress) -> Verdict {
    let dest = packet.connection_key().dest;
    let arrives = match ends.method {
        ForwardingMethod::Nat | ForwardingMethod::FullNat => ends.dest == dest,
        _ => egress.is_local(dest.addr),
    };
    if arrives { Verdict::PassToKernel } else { Verdict::Drop(DropReason::DestinationLocal) }
}
