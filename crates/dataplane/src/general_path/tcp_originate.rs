//! TCP packets that the director itself creates: resets, probes, and packets of the SYN proxy.
//!
//! They have no data. A packet is written into a new frame, or into the frame of a packet that it replaces.

use xvs_proto::network::{RouteKey, Table};
use xvs_proto::{Endpoint, Family, LinkId, MacAddr, Packet, Parsed, Protocol, ethernet, parse, tcp};
use xvs_xdp::Frame;

use super::icmp_originate::hop_to;
use crate::egress::Unresolved;
use crate::forward::link_header;
use crate::forward::network_header::{Addresses, Fields};
use crate::port::Port;
use crate::snapshot::Snapshot;

/// A packet for one end of a connection, which is sent after the burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Source and destination.
    pub(crate) ends: (Endpoint, Endpoint),
    pub(crate) header: tcp::Header,
    /// The key of the packet's route look-up.
    pub(crate) key: RouteKey,
}

impl Answer {
    /// A packet to a client from a virtual endpoint, in this VRF.
    pub(super) fn to_client(
        client: Endpoint,
        virtual_endpoint: Endpoint,
        header: tcp::Header,
        vrf: Option<Table>,
    ) -> Self {
        let key = RouteKey { dest: client.addr, source: virtual_endpoint.addr, mark: 0, vrf };
        Self { ends: (virtual_endpoint, client), header, key }
    }

    /// Whether it is a reset.
    pub(crate) fn is_reset(&self) -> bool {
        self.header.flags.has(tcp::Flags::RST)
    }

    /// Writes the packet into a new frame. `None` if its next hop is unknown, or no frame is free.
    pub(crate) fn emit(
        &self,
        snapshot: &Snapshot,
        port: &mut impl Port,
        unresolved: &Unresolved,
    ) -> Option<(LinkId, Frame)> {
        let hop = hop_to(self.key, snapshot, unresolved)?;
        let mut frame = tcp_frame(port, self.ends, &self.header)?;
        match link_header(&mut frame, hop) {
            Ok(hop) => Some((hop.link, frame)),
            Err(_) => {
                port.recycle(frame);
                None
            }
        }
    }
}

/// Queues a packet for sending after the burst. If there are more than a burst has packets, it is dropped, as if lost
/// on the wire.
pub(super) fn tell(answers: &mut Vec<Answer>, answer: Answer) {
    if answers.len() < answers.capacity() {
        answers.push(answer);
    }
}

/// A new frame that contains an IP packet with this TCP header, from the first to the second of `ends`. `None` if no
/// frame is free.
pub(crate) fn tcp_frame(
    port: &mut impl Port,
    ends: (Endpoint, Endpoint),
    header: &tcp::Header,
) -> Option<Frame> {
    let mut frame = port.allocate()?;
    write(&mut frame, ends, header);
    Some(frame)
}

/// Makes the frame contain only this packet, without a link header.
pub(crate) fn write(frame: &mut Frame, ends: (Endpoint, Endpoint), header: &tcp::Header) {
    let (source, dest) = ends;
    let network_len = dest.family().header_len();
    let segment_len = header.length();
    let fits = frame.resize(network_len + segment_len);
    debug_assert!(fits, "two headers fit every frame");
    let (network, segment) = frame.bytes_mut().split_at_mut(network_len);
    header.emit(segment, source, dest);
    let Some(addresses) = Addresses::of(source.addr, dest.addr) else {
        debug_assert!(false, "a packet's ends are of one family");
        return;
    };
    Fields { tos: 0, ttl: HOPS, protocol: Protocol::TCP, payload_len: segment_len as u16, id: None }
        .emit(addresses, network);
}

/// Adds a link header to a packet from this file, so that the code for received packets forwards it. `None` if the
/// frame has no room.
pub(crate) fn as_received(frame: &mut Frame, family: Family) -> Option<Packet> {
    if !frame.grow_front(ethernet::HEADER_LEN) {
        return None;
    }
    ethernet::emit(frame.bytes_mut(), MacAddr::default(), MacAddr::default(), family.ethertype());
    match parse(frame.bytes()) {
        Ok(Parsed::Ip(packet)) => Some(packet),
        _ => {
            debug_assert!(false, "a packet of our own is well formed");
            None
        }
    }
}

/// The largest segment, in bytes of data, in a packet of this size.
pub(crate) fn largest_segment(family: Family, mtu: u16) -> u16 {
    mtu.saturating_sub((family.header_len() + tcp::HEADER_LEN) as u16)
}

/// The MTU of Ethernet, in bytes.
pub(crate) const ETHERNET_MTU: u16 = 1500;
/// The time to live.
const HOPS: u8 = 64;
