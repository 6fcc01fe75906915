//! The handshake of the SYN proxy with a destination.
//!
//! Runs when a client has acknowledged a cookie, when the destination answers, and when it does not. The packets to the
//! destination are written here as if the client had sent them; the pipeline then passes them through the stages of a
//! client's packets. The balance, the counters and a PROXY header therefore need no special case. `mod.rs` sends
//! cookies to clients.

use xvs_proto::{LinkId, Packet, Protocol};
use xvs_sched::ClientLimit;
use xvs_xdp::Frame;

use super::{Answered, Proof, Taken, answered, refuse, take_segment, write_syn};
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::burst::framed_packet::FramedPacket;
use crate::burst::state;
use crate::conn::{Complete, ConnId, Flags};
use crate::new_connection::connect::connect_complete;
use crate::new_connection::insert::Begun;
use crate::new_connection::service::Marked;
use crate::verdict::Verdict;

/// The result for a packet that the handshake has processed.
pub(crate) enum Step {
    /// It gets this verdict.
    Decided(Verdict),
    /// The frame now contains a packet on this connection to the destination, as if its client had sent it.
    Written(ConnId, Written),
}

/// A packet that was written into a frame.
pub(crate) struct Written {
    packet: Packet,
    hash: u64,
}

impl Written {
    /// The packet in its frame, which was received on `link`.
    pub(crate) fn packet<'a>(&'a self, frame: &'a mut Frame, link: LinkId) -> FramedPacket<'a> {
        FramedPacket { frame, link, packet: &self.packet, hash: self.hash, is_reassembled: false }
    }
}

/// Whether a packet without a connection may be for a service with the SYN proxy.
#[inline]
pub(crate) fn may_take(packet: &Packet, cx: Context<'_>) -> bool {
    cx.snapshot.services.any_proxied() && packet.flow.protocol == Protocol::TCP
}

/// Processes a packet for which [`may_take`] is true, or a packet from the destination of connection `id`, which is
/// awaited. `None` if the packet is not for the proxy.
pub(crate) fn take(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    id: Option<ConnId>,
    cx: Context<'_>,
) -> Option<Step> {
    if let Some(id) = id {
        return reply(flows, p, id, cx);
    }
    Some(match take_segment(flows, p, cx)? {
        Taken::Decided(verdict) => Step::Decided(verdict),
        Taken::Proven(marked, proof) => begin(flows, p, marked, proof, cx),
    })
}

/// Creates a connection for a client that has acknowledged a cookie. Its destination gets a SYN.
fn begin<'s>(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    marked: Marked<'s>,
    proof: Proof,
    cx: Context<'s>,
) -> Step {
    let limit = marked.service.client_limit.map(ClientLimit::of_proven);
    let complete: Complete<'_> = Some(&|connection| super::begin(connection, &proof));
    let id = match connect_complete(flows, p.frame, p.packet, marked, limit, complete, cx) {
        Ok(Begun::Connection(id)) => id,
        // The client repeats the packet, which then finds the connection. A one-packet connection is UDP.
        Ok(Begun::Existing(_) | Begun::OnePacket(..)) => return Step::Decided(Verdict::Consumed),
        Err(verdict) => {
            refuse(flows, p, &proof, cx);
            return Step::Decided(verdict);
        }
    };
    p.frame.shrink_front(p.packet.network);
    match syn(flows, p.frame, id) {
        Some(written) => Step::Written(id, written),
        None => Step::Decided(Verdict::Consumed),
    }
}

/// Writes the client's SYN of a connection. `None` if the frame has no room, or the destination has answered.
pub(crate) fn syn(flows: &Flows, frame: &mut Frame, id: ConnId) -> Option<Written> {
    let packet = write_syn(frame, &flows.table.connection(id))?;
    Some(Written { packet, hash: flows.table.hash(&packet.flow) })
}

/// Whether a connection waits for its destination's answer. Its client repeats its packets until its window is open.
pub(crate) fn is_awaited(flows: &Flows, id: ConnId) -> bool {
    flows.table.connection(id).flags().contains(Flags::HANDSHAKE)
}

/// Reads a packet from the destination of a connection that waits for it. `None` if the packet goes on to the client.
fn reply(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Option<Step> {
    let packet = match answered(flows, p, id, cx) {
        Answered::Refused => return None,
        Answered::Otherwise => return Some(Step::Decided(Verdict::Consumed)),
        Answered::Accepted(packet) => packet,
    };
    let destination = cx.snapshot.destinations.of(&flows.table.connection(id));
    state::advance_on_reply(flows, id, p.packet, destination, cx);
    Some(Step::Written(id, Written { packet, hash: p.hash }))
}
