//! The proof that a TCP client receives the packets sent to its address, and that a connection is more than another
//! director's words.
//!
//! A packet of a connection that only an unsigned message knows shows that the connection exists. The client's proof is
//! for connections whose replies pass the director (NAT, FULLNAT), at each packet: the client's handshake, whose ACK
//! acknowledges the destination's SYN; a sender with a forged source address cannot know its number. A full table keeps
//! such a connection (`new_connection/eviction.rs`). Under direct routing and tunnels nothing can be proven. A
//! connection that passes the client's address to its destination keeps another number in the same word, and stays
//! unproven. Cost: a check of the flags; until the proof, also of the packet's numbers.

use xvs_proto::{Packet, Protocol, tcp};

use super::framed_packet::FramedPacket;
use crate::conn::{Connection, Flags};

/// An ACK of up to this many bytes behind the destination's SYN is a proof, too: the ACK of the handshake may be lost,
/// and the next one also acknowledges data. A guess hits one in 65,536.
const WINDOW: u32 = 1 << 16;

/// Takes note of a reply, and of the number of a SYN+ACK.
#[inline]
pub(crate) fn reply(p: &FramedPacket<'_>, connection: &Connection<'_>) {
    connection.note_seen();
    if p.packet.tcp_flags.has(tcp::Flags::SYN) && is_open(p.packet, connection) {
        connection.set_destination_sequence(p.tcp_number(tcp::field::SEQUENCE.start).wrapping_add(1));
    }
}

/// Takes note of a request, and marks the connection as proven when the client acknowledges that number.
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
