//! The time until a destination's first reply: from a client's SYN to the SYN+ACK, and from the first UDP datagram to
//! the first one in reply.
//!
//! Runs for each new connection, for each reply on the general path, and for the first UDP reply. The resolution is a
//! burst: its packets have the time of its start. If a client repeats its SYN, the time is measured from the first one,
//! as the client sees it. A connection has at most one time: none if the SYN proxy has answered the SYN, or if another
//! request has taken its slot (`conn/request_times.rs`). Cost: a check of flags or of a field of the entry; for the
//! first reply a store in the destination's histogram. `offload/sweep.rs` measures SYN+ACKs that the XDP program
//! forwards.

use xvs_proto::{Packet, Protocol, tcp};

use super::context::Context;
use super::flows::Flows;
use crate::conn::{ConnId, Spare};
use crate::snapshot::Destination;

/// Whether a packet that begins a connection expects a first reply.
pub(crate) fn is_request(packet: &Packet) -> bool {
    let flags = packet.tcp_flags;
    packet.flow.protocol == Protocol::UDP || flags.has(tcp::Flags::SYN) && !flags.has(tcp::Flags::ACK)
}

/// What the entry of a connection that this packet begins has besides.
pub(crate) fn spare(packet: &Packet) -> Spare {
    if packet.flow.protocol == Protocol::UDP { Spare::AWAITS_REPLY } else { Spare::NONE }
}

/// Records the response time of a connection if this is its first reply.
#[inline]
pub(crate) fn reply(
    flows: &Flows,
    packet: &Packet,
    id: ConnId,
    destination: Option<&Destination>,
    cx: Context<'_>,
) {
    match packet.flow.protocol {
        Protocol::UDP if flows.table.connection(id).awaits_reply() => {
            flows.table.connection(id).set_replied();
        }
        Protocol::TCP if packet.tcp_flags.has(tcp::Flags::SYN) && packet.tcp_flags.has(tcp::Flags::ACK) => {}
        _ => return,
    }
    count(flows, id, destination, cx);
}

/// Records the response time of a UDP connection whose first reply this is.
// Not inlined: later replies have nothing to count.
#[inline(never)]
pub(crate) fn datagram(flows: &Flows, id: ConnId, cx: Context<'_>) {
    let connection = flows.table.connection(id);
    connection.set_replied();
    count(flows, id, cx.snapshot.destinations.of(&connection), cx);
}

fn count(flows: &Flows, id: ConnId, destination: Option<&Destination>, cx: Context<'_>) {
    let connection = flows.table.connection(id);
    // Checked before the time is taken: the record contains the same time if the program has forwarded a SYN+ACK.
    let is_recorded = connection.has_recorded_response();
    let micros = flows.table.table().response_micros(id, connection.generation(), cx.micros);
    if let Some(micros) = micros
        && let Some(destination) = destination
        && !is_recorded
    {
        destination.live.responses.count(flows.worker, micros);
    }
}
