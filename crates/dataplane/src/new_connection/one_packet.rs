//! One-packet scheduling (`--ops`): packets that are forwarded and counted without a connection in the table.

use xvs_proto::{FlowKey, Packet};

use super::schedule::Chosen;
use crate::burst::context::{Context, FramedPacket};
use crate::burst::flows::Flows;
use crate::forward::Ends;
use crate::snapshot::DestinationId;
use crate::sync::announce::Announcer;
use crate::verdict::{DropReason, Verdict};

/// Counts a connection of one packet. Returns its endpoints.
pub(crate) fn begin(flows: &mut Flows, packet: &Packet, chosen: &Chosen<'_>, cx: Context<'_>) -> Ends {
    let Chosen { id, dest, method, live, template } = *chosen;
    if let Some(template) = template
        && let Some(announcer) = Announcer::of(cx.snapshot, flows.worker, cx.now)
    {
        announcer.one_packet(&flows.table, template);
    }
    flows.release_template(template);
    flows.count_connection(id, cx.snapshot);
    live.count_one_packet();
    let FlowKey { source: client, dest: virtual_endpoint, .. } = packet.flow;
    Ends { client, virtual_endpoint, dest, local: None, method }
}

/// Forwards the packet.
pub(crate) fn send(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    ends: &Ends,
    id: DestinationId,
    cx: Context<'_>,
) -> Verdict {
    let Some(destination) = cx.snapshot.destination(p.link, id) else {
        return Verdict::Drop(DropReason::DestinationUnavailable);
    };
    flows.count_request(destination, p.packet);
    flows.forward(p, ends, destination, cx)
}
