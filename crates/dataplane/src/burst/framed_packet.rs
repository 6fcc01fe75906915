//! A packet with its frame, link and hash.

use xvs_proto::{LinkId, Packet, tcp};
use xvs_xdp::Frame;

/// A packet in its frame.
pub(crate) struct FramedPacket<'a> {
    /// The frame.
    pub(crate) frame: &'a mut Frame,
    /// The link by which it was received.
    pub(crate) link: LinkId,
    /// The packet's headers as received.
    pub(crate) packet: &'a Packet,
    /// The hash of the connection's key.
    pub(crate) hash: u64,
    /// Whether it was received in fragments.
    pub(crate) is_reassembled: bool,
}

impl FramedPacket<'_> {
    /// The 32-bit field at an offset in a TCP header (`tcp::field`).
    pub(crate) fn tcp_number(&self, at: usize) -> u32 {
        tcp::number(&self.frame.bytes()[self.packet.transport..self.packet.end], at)
    }
}
