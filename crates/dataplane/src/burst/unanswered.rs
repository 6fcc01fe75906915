//! TCP connections whose client repeats its SYN, because the first SYN had no answer.
//!
//! Runs for each packet from a client. A real server without a route back through the director (NAT), or without the
//! virtual address (direct routing, tunnels), receives every SYN, but the client gets no answer. Each such connection
//! counts once at its destination, when its second packet repeats the first one's sequence number; a flood of random
//! packets does not repeat it. The first established connection resets the count (`burst/state.rs`). Cost: a check of
//! the flags.
//!
//! With NAT a real server answers a client in its own network directly. Such a client never connects, whether or not
//! others do. The connections of such clients have a separate count; the first established one resets it.

use xvs_proto::{Protocol, tcp};
use xvs_sched::ForwardingMethod;

use super::context::Context;
use super::framed_packet::FramedPacket;
use crate::conn::Connection;
use crate::conn::tcp::TcpState;
use crate::snapshot::{Destination, Snapshot};

/// Counts the connection if this packet is the first that repeats its SYN.
#[inline]
pub(crate) fn count(
    p: &FramedPacket<'_>,
    connection: &Connection<'_>,
    destination: &Destination,
    cx: Context<'_>,
) {
    let flags = p.packet.tcp_flags;
    if flags.has(tcp::Flags::SYN) && !flags.has(tcp::Flags::ACK) && repeats(p, connection) {
        match is_beside_its_destination(connection, cx.snapshot) {
            true => destination.live.count_neighbour(connection.client().addr, cx.now),
            false => destination.live.count_unanswered(cx.now),
        }
    }
}

/// Whether a connection's destination answers the client directly, bypassing this director.
pub(crate) fn is_beside_its_destination(connection: &Connection<'_>, snapshot: &Snapshot) -> bool {
    connection.method() == ForwardingMethod::Nat
        && snapshot.egress.are_neighbours(connection.client().addr, connection.dest().addr)
}

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
