//! Forwarding of marked packets without a destination to their original address (`cache_bypass`).
//!
//! If the kernel would deliver the packet locally by a policy rule for the mark, it gets a connection without a
//! destination, as in IPVS: listed as 0.0.0.0:0, with its own states, and in no destination's counts. If the kernel
//! would forward the packet, it goes to the kernel: IPVS never processes it. Source: ipvs-behaviour, section 2.3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xvs_proto::{Endpoint, Family, Packet, is_host};
use xvs_sched::{ForwardingMethod, ServiceKey};

use super::connect::{Begun, FIRST_TIMEOUT};
use super::service::Marked;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::conn::{Flags, Inserted, NewConnection, Spare};
use crate::snapshot::{DestinationId, Service, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// Inserts a connection without a destination, if `verdict` is that no destination accepts the packet and the packet
/// may bypass the service.
///
/// # Errors
///
/// The verdict on a packet that begins no connection: `verdict`, unless it goes to the kernel or the table is full.
pub(crate) fn begin(
    flows: &mut Flows,
    packet: &Packet,
    marked: Marked<'_>,
    verdict: Verdict,
    cx: Context<'_>,
) -> Result<Begun, Verdict> {
    if verdict != Verdict::Drop(DropReason::NoDestination) || !may_bypass(marked.service, packet, cx.snapshot)
    {
        return Err(verdict);
    }
    if !cx.snapshot.egress.delivers_mark(marked.mark) {
        return Err(Verdict::PassToKernel);
    }
    let nowhere: IpAddr = match packet.flow.dest.family() {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let new = NewConnection {
        protocol: packet.flow.protocol,
        client: packet.flow.source,
        virtual_endpoint: packet.flow.dest,
        dest: Endpoint::new(nowhere, 0),
        method: ForwardingMethod::DirectRouting,
        flags: Flags::NONE,
        state: 0,
        expires: cx.now + FIRST_TIMEOUT,
        spare: Spare::NONE,
        dest_ref: DestinationId::NONE.0,
        mark: marked.mark,
        controller: None,
        local: None,
    };
    match flows.insert(&new, None, cx) {
        Inserted::New(id) => Ok(Begun::Connection(id)),
        Inserted::Existing(id) => Ok(Begun::Existing(id)),
        // `LocalTaken` is impossible without a local endpoint.
        Inserted::Full | Inserted::LocalTaken => Err(Verdict::Drop(DropReason::TableFull)),
    }
}

/// Whether a packet that no destination of this service accepts is forwarded to its original address.
fn may_bypass(service: &Service, packet: &Packet, snapshot: &Snapshot) -> bool {
    let to = packet.flow.dest.addr;
    snapshot.settings.cache_bypass
        && matches!(service.key, ServiceKey::Mark { .. })
        && is_host(to)
        && !snapshot.egress.is_own(to)
}
