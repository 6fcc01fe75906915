//! Resets of connections by an operator (`xvs drain --then reset`): both ends are reset at the connection's next
//! packet.
//!
//! The table stores no sequence numbers, and a reset with a wrong one is ignored. The numbers are therefore read from a
//! packet of the connection. The sender of this packet gets a reset from the endpoint to which it was sent. The packet
//! itself is turned into a reset, without data and options, and forwarded by the connection's method. State and
//! deadline follow from it as from any reset. The flag stays, and later packets are treated identically until the
//! connection expires. An end whose reset was lost, or came too late to be valid, therefore gets another one. Cost for
//! other connections: one check of their flags.
//!
//! `connections.rs` in `ctl` sets the flag; a SYN ends the old connection (`burst/lookup.rs`).
//!
//! Source: RFC 9293 §3.10.7.1 (numbers in a reset), RFC 5961 §3.2 (which resets an end accepts).

use xvs_proto::{FlowKey, Packet, Protocol, tcp};

use super::client_address::without_data;
use super::tcp_originate::{Answer, tell};
use crate::burst::context::{Context, FramedPacket};
use crate::conn::{Connection, Flags};
use crate::forward::Ends;

/// Turns a packet of a connection with the reset flag into a reset, and adds a reset for its sender. Returns the
/// changed packet, whose headers are at the same positions in the frame; `None` if the packet is unchanged.
#[inline]
pub(crate) fn apply(
    answers: &mut Vec<Answer>,
    p: &mut FramedPacket<'_>,
    connection: &Connection<'_>,
    cx: Context<'_>,
) -> Option<Packet> {
    match connection.flags().contains(Flags::RESET) {
        true => reset_both(answers, p, &Ends::of(connection), cx),
        false => None,
    }
}

// Not inlined, to keep the path of other packets short.
#[inline(never)]
fn reset_both(
    answers: &mut Vec<Answer>,
    p: &mut FramedPacket<'_>,
    ends: &Ends,
    cx: Context<'_>,
) -> Option<Packet> {
    let packet = p.packet;
    let segment = p.transport_mut();
    let FlowKey { source, dest, .. } = packet.flow;
    // An incorrect checksum would be replaced with a correct one, around corrupt numbers. A packet that is not
    // forwarded stays unchanged.
    if packet.flow.protocol != Protocol::TCP || packet.ttl <= 1 || !tcp::is_summed(segment, &packet.flow) {
        return None;
    }
    let numbers = tcp::reset_numbers(segment)?;
    let tcp_flags = tcp::make_reset(segment);
    // As for forwarded packets, the source matters only towards the client.
    let key = match dest == ends.virtual_endpoint {
        true => ends.key_to_client(0),
        false => source.addr.into(),
    }
    .of_vrf(cx.snapshot.egress.vrf(p.link));
    tell(answers, Answer { ends: (dest, source), header: numbers.into(), key });
    Some(Packet { tcp_flags, longest_fragment: None, ..without_data(p, tcp::HEADER_LEN, &[]) })
}
