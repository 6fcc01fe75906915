//! A packet that is being decided.

use xvs_proto::Packet;
use xvs_xdp::{Frame, LinkId};

/// A packet in its frame.
pub(crate) struct FramedPacket<'a> {
    /// The frame.
    pub(crate) frame: &'a mut Frame,
    /// Where it came in.
    pub(crate) link: LinkId,
    /// What it is, as it came.
    pub(crate) packet: &'a Packet,
    /// The hash of its connection's key.
    pub(crate) hash: u64,
}
