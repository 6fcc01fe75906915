//! The director itself as the destination: the kernel gets the packet as it came.
//!
//! Whether an address is the director's own is asked for each packet, as IPVS does, so a destination may become local,
//! or cease to be, under its connections. Time to live and size play no part: the packet is not sent on. What the
//! kernel's own stack answers leaves without passing here. Not here: giving the frame to the kernel (`steering/reinject.rs`).

use xvs_proto::Packet;
use xvs_sched::ForwardingMethod;

use super::ends::Ends;
use crate::egress::Egress;
use crate::verdict::{DropReason, Verdict};

/// Delivers a packet that needs no change to arrive here. One that NAT would have to rewrite is dropped, because its
/// answer would come from the wrong endpoint; so is one to an address that is not this machine's, which the kernel
/// would send back to where it came from.
pub(super) fn deliver(packet: &Packet, ends: &Ends, egress: &Egress) -> Verdict {
    let dest = packet.connection_key().dest;
    let arrives = match ends.method {
        ForwardingMethod::Nat | ForwardingMethod::FullNat => ends.dest == dest,
        _ => egress.is_local(dest.addr),
    };
    if arrives { Verdict::PassToKernel } else { Verdict::Drop(DropReason::DestinationLocal) }
}
