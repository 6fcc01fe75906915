//! Connections that an operator has had reset (`xvs drain --then reset`): both ends are told at the next packet.
//!
//! The table keeps no sequence numbers, and a reset that says a wrong one is ignored, so what it takes is read from a
//! packet of the connection: its sender gets a reset from the endpoint that it spoke to, and the packet goes on as a reset,
//! without data and options, by the connection's method. State and deadline follow from that as from any reset. What comes
//! later finds the mark still there and is answered alike, until the connection expires: so an end whose reset was lost, or
//! came too late to fit, hears again. Cost for other connections: a look at their flags.
//!
//! Not here: who sets the mark (`ctl`, `connections.rs`). A SYN meets it as the end of an old connection (`burst/lookup.rs`).
//!
//! Source: RFC 9293 §3.10.7.1 (numbers of a reset), RFC 5961 §3.2 (which resets an end believes).

use std::net::IpAddr;

use xvs_proto::LinkId;
use xvs_proto::{Endpoint, Packet, Protocol, checksum, ipv4, ipv6, tcp};
use xvs_xdp::Frame;

use super::client_address::without_data;
use super::icmp_reply::hop_to;
use crate::conn::{Connection, Flags};
use crate::egress::Unresolved;
use crate::forward::link_header;
use crate::port::Port;
use crate::snapshot::Snapshot;

/// A reset for the sender of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    source: Endpoint,
    dest: Endpoint,
    numbers: tcp::ResetNumbers,
}

/// Turns a packet of a connection that is to be reset into a reset, and adds one for its sender. `Some`: what the packet has
/// become, its headers at the same places of the frame.
#[inline]
pub(crate) fn apply(
    resets: &mut Vec<Reset>,
    frame: &mut Frame,
    packet: &Packet,
    connection: &Connection<'_>,
) -> Option<Packet> {
    match connection.flags().contains(Flags::RESET) {
        true => reset_both(resets, frame, packet),
        false => None,
    }
}

// Apart, so that what every packet runs through is short.
#[inline(never)]
fn reset_both(resets: &mut Vec<Reset>, frame: &mut Frame, packet: &Packet) -> Option<Packet> {
    let segment = &mut frame.bytes_mut()[packet.transport..packet.end];
    let (source, dest) = (packet.flow.source, packet.flow.dest);
    // A wrong sum would become a right one, around numbers that nobody has meant. What ends here stays as it came.
    let sum = || checksum::transport(source.addr, dest.addr, Protocol::TCP.0, segment);
    if packet.flow.protocol != Protocol::TCP || packet.ttl <= 1 || sum() != 0 {
        return None;
    }
    let numbers = tcp::reset_numbers(segment)?;
    let tcp_flags = tcp::make_reset(segment);
    // A burst has no more packets than there is room for.
    if resets.len() < resets.capacity() {
        resets.push(Reset { source: dest, dest: source, numbers });
    }
    let cut = without_data(frame, packet, tcp::HEADER_LEN, &[]);
    Some(Packet { tcp_flags, longest_fragment: None, ..cut })
}

impl Reset {
    /// Writes it into a frame of its own. `None` if the way is unknown, or no frame is free.
    pub fn emit(
        &self,
        snapshot: &Snapshot,
        port: &mut impl Port,
        unresolved: &Unresolved,
    ) -> Option<(LinkId, Frame)> {
        let hop = hop_to(self.dest.addr, snapshot, unresolved)?;
        let mut frame = port.allocate()?;
        let network_len = match self.dest.addr {
            IpAddr::V4(_) => ipv4::HEADER_LEN,
            IpAddr::V6(_) => ipv6::HEADER_LEN,
        };
        let fits = frame.resize(network_len + tcp::HEADER_LEN);
        debug_assert!(fits, "two headers fit every frame");
        let (network, segment) = frame.bytes_mut().split_at_mut(network_len);
        tcp::emit_reset(segment, self.source, self.dest, self.numbers);
        let payload_len = tcp::HEADER_LEN as u16;
        match (self.source.addr, self.dest.addr) {
            (IpAddr::V4(source), IpAddr::V4(dest)) => ipv4::Header {
                tos: 0,
                payload_len,
                id: 0,
                dont_fragment: true,
                ttl: HOPS,
                protocol: Protocol::TCP,
                source,
                dest,
            }
            .emit(network),
            (IpAddr::V6(source), IpAddr::V6(dest)) => ipv6::Header {
                traffic_class: 0,
                payload_len,
                next_header: Protocol::TCP,
                hop_limit: HOPS,
                source,
                dest,
            }
            .emit(network),
            _ => debug_assert!(false, "a packet's ends are of one family"),
        }
        match link_header(&mut frame, hop) {
            Ok(hop) => Some((hop.link, frame)),
            Err(_) => {
                port.recycle(frame);
                None
            }
        }
    }
}

/// How far it may come.
const HOPS: u8 = 64;
