//! The handshake of the SYN proxy with a destination, by the stages of a client's packets.
//!
//! Runs when a client has acknowledged a cookie, when the destination answers, and when it does not. The packets to the
//! destination are made here as if the client had sent them, so they pass the stages of its packets, which the pipeline
//! gives: so the balance, the counters and a PROXY header are those of any connection.

use xvs_proto::{LinkId, Protocol};
use xvs_sched::ClientLimit;
use xvs_xdp::Frame;

use super::{Answered, Proof, Taken, answered, refuse, take_segment, wait, write_syn};
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::burst::framed_packet::FramedPacket;
use crate::burst::state;
use crate::conn::{ConnId, Flags};
use crate::new_connection::connect::connect;
use crate::new_connection::insert::Begun;
use crate::new_connection::service::Marked;
use crate::verdict::Verdict;

/// The stages of a client's packet of a connection.
type Send = fn(&mut Flows, FramedPacket<'_>, ConnId, Context<'_>) -> Verdict;

/// Takes a packet without a connection to a service behind the proxy. `None`: it goes on as any other.
#[inline]
pub(crate) fn take(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    at: Context<'_>,
    send: Send,
) -> Option<Verdict> {
    if !at.snapshot.services.any_proxied() || p.packet.flow.protocol != Protocol::TCP {
        return None;
    }
    Some(match take_segment(flows, p, at)? {
        Taken::Decided(verdict) => verdict,
        Taken::Proven(marked, proof) => begin(flows, p, marked, proof, at, send),
    })
}

/// Makes a new connection for a client that has acknowledged a cookie, and sends its destination a SYN.
fn begin<'s>(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    marked: Marked<'s>,
    proof: Proof,
    at: Context<'s>,
    send: Send,
) -> Verdict {
    let limit = marked.service.client_limit.map(ClientLimit::of_proven);
    let id = match connect(flows, p.frame, p.packet, marked, limit, at) {
        Ok(Begun::Connection(id)) => id,
        // One packet is a UDP datagram.
        Ok(Begun::OnePacket(..)) => return Verdict::Consumed,
        Err(verdict) => {
            refuse(flows, p.packet, &proof);
            return verdict;
        }
    };
    if !super::begin(&flows.table.connection(id), &proof) {
        return Verdict::Consumed;
    }
    p.frame.shrink_front(p.packet.network);
    send_syn(flows, p.frame, p.link, id, at, send)
}

/// Sends a destination another SYN, in an empty frame.
pub(crate) fn repeat(
    flows: &mut Flows,
    frame: &mut Frame,
    id: ConnId,
    at: Context<'_>,
    send: Send,
) -> Verdict {
    send_syn(flows, frame, LinkId(0), id, at, send)
}

fn send_syn(
    flows: &mut Flows,
    frame: &mut Frame,
    link: LinkId,
    id: ConnId,
    at: Context<'_>,
    send: Send,
) -> Verdict {
    let Some(packet) = write_syn(frame, &flows.table.connection(id)) else { return Verdict::Consumed };
    let hash = flows.table.hash(&packet.flow);
    let verdict =
        send(flows, FramedPacket { frame, link, packet: &packet, hash, is_reassembled: false }, id, at);
    wait(&mut flows.table, id, at.now);
    verdict
}

/// Whether a connection waits for its destination's answer. Its client repeats what it sends until its window is open.
pub(crate) fn is_awaited(flows: &Flows, id: ConnId) -> bool {
    flows.table.connection(id).flags().contains(Flags::HANDSHAKE)
}

/// Reads a destination's packet of a connection that waits for it. `None`: the packet goes on to the client, as do
/// those of all other connections.
#[inline]
pub(crate) fn reply(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    id: ConnId,
    at: Context<'_>,
    send: Send,
) -> Option<Verdict> {
    if !is_awaited(flows, id) {
        return None;
    }
    let packet = match answered(flows, p, id) {
        Answered::Refused => return None,
        Answered::Otherwise => return Some(Verdict::Consumed),
        Answered::Accepted(packet) => packet,
    };
    let destination = at.snapshot.destinations.of(&flows.table.connection(id));
    state::advance_on_reply(flows, id, p.packet, destination, at);
    let acknowledgement = FramedPacket { frame: &mut *p.frame, packet: &packet, ..*p };
    Some(send(flows, acknowledgement, id, at))
}
