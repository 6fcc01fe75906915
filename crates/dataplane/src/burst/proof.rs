//! The proof that a TCP client receives the packets sent to its address, and that a connection known from another
//! director exists.
//!
//! For a connection that is known only from an unsigned message, any packet proves that it exists. The client's proof
//! applies to connections whose replies pass through the director (NAT, FULLNAT), and is checked at each packet: it is
//! the client's handshake, whose ACK acknowledges the destination's SYN; a sender with a forged source address cannot
//! know its sequence number. A full table keeps such a connection (`new_connection/eviction.rs`). With direct routing
//! and tunnels nothing can be proven. A connection that passes the client's address to its destination uses the same
//! field for another number, and stays unproven. Cost: a check of the flags; until the proof, also of the packet's
//! numbers.

use xvs_proto::{Packet, Protocol, tcp};

use super::framed_packet::FramedPacket;
use crate::conn::{Connection, Flags};

/// An ACK up to this many bytes after the destination's SYN is a proof, too: the ACK of the handshake may be lost, and
/// the next one also acknowledges data. A guess succeeds once in 65,536.
const WINDOW: u32 = 1 << 16;

/// Records a reply, and the sequence number of a SYN+ACK.
#[inline]
pub(crate) fn reply(p: &FramedPacket<'_>, connection: &Connection<'_>) {
    connection.note_seen();
    if p.packet.tcp_flags.has(tcp::Flags::SYN) && is_open(p.packet, connection) {
        connection.set_destination_sequence(p.tcp_number(tcp::field::SEQUENCE.start).wrapping_add(1));
    }
}

/// Records a request, and marks the connection as proven when the client acknowledges that number.
#[inline]
pub(crate) fn request(p: &FramedPacket<'_>, connection: &Connection<'_>) {
    connection.note_seen();
    let flags = p.packet.tcp_flags;
    if !is_open(p.packet, connection) || flags.has(tcp::Flags::SYN) || !flags.has(tcp::Flags::ACK) {
        return;
    }
    let due = connection.destination_sequence();
    let acknowledged = p.tcp_number(tcp::field::ACKNOWLEDGEMENT.start);
    if due != 0 && acknowledged.wrapping_sub(due) < WINDOW {
        let _ = connection.set_flags(Flags::PROVEN);
    }
}

/// Whether the proof is possible but missing.
fn is_open(packet: &Packet, connection: &Connection<'_>) -> bool {
    packet.flow.protocol == Protocol::TCP
        && connection.method().masquerades()
        && !connection.flags().intersects(Flags::PROVEN | Flags::PROXY | Flags::TOA)
}
