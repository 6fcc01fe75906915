//! The handshake of a connection, as the director sees it: the proof that the client exists, SYNs that have no answer,
//! and the time until the destination's first reply.
//!
//! Runs for each packet of a connection on the general path, and for the first UDP reply. Cost: a check of the flags,
//! or of a field of the entry; until the proof, also of the packet's numbers; for the first reply a store in the
//! destination's histogram.
//!
//! **Proof** that a TCP client receives the packets sent to its address. It applies to connections whose replies pass
//! through the director (NAT, FULLNAT): the client's ACK acknowledges the destination's SYN; a sender with a forged
//! source address cannot know its sequence number. A full table keeps such a connection (`new_connection/eviction.rs`).
//! With direct routing and tunnels nothing can be proven. A connection that passes the client's address to its
//! destination uses the same field for another number, and stays unproven. Any packet proves the existence of a
//! connection that is known only from another director's unsigned message.
//!
//! **Unanswered SYNs.** A real server without a route back through the director (NAT), or without the virtual address
//! (direct routing, tunnels), receives every SYN, but the client gets no answer. Each such connection counts once at
//! its destination, when its second packet repeats the first one's sequence number; a flood of random packets does not
//! repeat it. The first established connection resets the count (`burst/state.rs`). With NAT a real server answers a
//! client in its own network directly. Such a client never connects, whether or not others do. The connections of such
//! clients have a separate count; the first established one resets it.
//!
//! **Response time**: from a client's SYN to the SYN+ACK, and from the first UDP datagram to the first one in reply.
//! The resolution is a burst: its packets have the time of its start. If a client repeats its SYN, the time is measured
//! from the first one, as the client sees it. A connection has at most one time: none if the SYN proxy has answered the
//! SYN, or if another request has taken its slot (`conn/request_times.rs`). `offload/sweep.rs` measures SYN+ACKs that
//! the XDP program forwards.

use xvs_proto::{Packet, Protocol, tcp};
use xvs_sched::ForwardingMethod;

use super::context::{Context, FramedPacket};
use super::flows::Flows;
use crate::conn::tcp::TcpState;
use crate::conn::{Connection, Flags, Spare};
use crate::snapshot::{Destination, Snapshot};

/// An ACK up to this many bytes after the destination's SYN is a proof, too: the ACK of the handshake may be lost, and
/// the next one also acknowledges data. A guess succeeds once in 65,536.
const WINDOW: u32 = 1 << 16;

/// Whether a packet that begins a connection expects a first reply.
pub(crate) fn is_request(packet: &Packet) -> bool {
    packet.flow.protocol == Protocol::UDP || is_syn(packet.tcp_flags)
}

/// The data that the entry of a connection begun by this packet also contains.
pub(crate) fn spare(packet: &Packet) -> Spare {
    if packet.flow.protocol == Protocol::UDP { Spare::AWAITS_REPLY } else { Spare::NONE }
}

/// Records a request: marks the connection as proven if the client acknowledges the destination's SYN, and counts the
/// connection if this packet is the first that repeats its SYN.
#[inline]
pub(crate) fn request(
    p: &FramedPacket<'_>,
    connection: &Connection<'_>,
    destination: &Destination,
    cx: Context<'_>,
) {
    connection.note_seen();
    let flags = p.packet.tcp_flags;
    if is_open(p.packet, connection) && !flags.has(tcp::Flags::SYN) && flags.has(tcp::Flags::ACK) {
        let due = connection.destination_sequence();
        let acknowledged = p.tcp_number(tcp::field::ACKNOWLEDGEMENT.start);
        if due != 0 && acknowledged.wrapping_sub(due) < WINDOW {
            let _ = connection.set_flags(Flags::PROVEN);
        }
    }
    if is_syn(flags) && repeats(p, connection) {
        match is_beside_its_destination(connection, cx.snapshot) {
            true => destination.live.count_neighbour(connection.client().addr, cx.now),
            false => destination.live.count_unanswered(cx.now),
        }
    }
}

/// Records a reply: the sequence number of a SYN+ACK, and the response time of the connection if this is its first
/// reply.
#[inline]
pub(crate) fn reply(
    flows: &Flows,
    p: &FramedPacket<'_>,
    connection: &Connection<'_>,
    destination: Option<&Destination>,
    cx: Context<'_>,
) {
    connection.note_seen();
    let flags = p.packet.tcp_flags;
    if flags.has(tcp::Flags::SYN) && is_open(p.packet, connection) {
        connection.set_destination_sequence(p.tcp_number(tcp::field::SEQUENCE.start).wrapping_add(1));
    }
    match p.packet.flow.protocol {
        Protocol::UDP if connection.awaits_reply() => connection.set_replied(),
        Protocol::TCP if flags.has(tcp::Flags::SYN) && flags.has(tcp::Flags::ACK) => {}
        _ => return,
    }
    count_response(flows, connection, destination, cx);
}

/// Records the response time of a UDP connection whose first reply this is.
// Not inlined: later replies have nothing to count.
#[inline(never)]
pub(crate) fn datagram(flows: &Flows, connection: &Connection<'_>, cx: Context<'_>) {
    connection.set_replied();
    count_response(flows, connection, cx.snapshot.destinations.of(connection), cx);
}

/// Whether a connection's destination answers the client directly, bypassing this director.
pub(crate) fn is_beside_its_destination(connection: &Connection<'_>, snapshot: &Snapshot) -> bool {
    connection.method() == ForwardingMethod::Nat
        && snapshot.egress.are_neighbours(connection.client().addr, connection.dest().addr)
}

/// Whether a segment asks for a connection.
fn is_syn(flags: tcp::Flags) -> bool {
    flags.has(tcp::Flags::SYN) && !flags.has(tcp::Flags::ACK)
}

/// Whether the proof is possible but missing.
fn is_open(packet: &Packet, connection: &Connection<'_>) -> bool {
    packet.flow.protocol == Protocol::TCP
        && connection.method().masquerades()
        && !connection.flags().intersects(Flags::PROVEN | Flags::PROXY | Flags::TOA)
}

/// Whether a client's SYN is the second packet of its connection and repeats the first. Notes the number of the first.
fn repeats(p: &FramedPacket<'_>, connection: &Connection<'_>) -> bool {
    if p.packet.flow.protocol != Protocol::TCP {
        return false;
    }
    let next = p.tcp_number(tcp::field::SEQUENCE.start).wrapping_add(1);
    let masquerades = connection.method().masquerades();
    match connection.in_packets() {
        1 => {
            if !masquerades {
                connection.set_first_sequence(next);
            }
            false
        }
        // A masqueraded connection does not store the client's number: 0 until the destination's SYN+ACK.
        2 => {
            let noted = connection.first_sequence();
            TcpState::of(connection.state()) == TcpState::SynRecv
                && (noted == next || masquerades && noted == 0)
        }
        _ => false,
    }
}

fn count_response(
    flows: &Flows,
    connection: &Connection<'_>,
    destination: Option<&Destination>,
    cx: Context<'_>,
) {
    // Checked before the time is taken: the record contains the same time if the program has forwarded a SYN+ACK.
    let is_recorded = connection.has_recorded_response();
    let table = flows.table.table();
    if let Some(micros) = table.response_micros(connection.id(), connection.generation(), cx.micros)
        && let Some(destination) = destination
        && !is_recorded
    {
        destination.live.responses.count(flows.worker, micros);
    }
}
