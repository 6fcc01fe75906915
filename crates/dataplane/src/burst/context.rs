//! The arguments of every stage: a packet in its frame, and the context of its burst.

use std::time::Duration;

use xvs_proto::{LinkId, Packet, tcp};
use xvs_xdp::Frame;

use crate::clock::{Micros, Millis};
use crate::snapshot::Snapshot;

/// The values that are the same for all packets of a burst.
#[derive(Clone, Copy)]
pub struct Context<'s> {
    /// The snapshot in force.
    pub snapshot: &'s Snapshot,
    /// The time.
    pub now: Millis,
    /// The time in microseconds, for measuring response times.
    pub micros: Micros,
}

impl<'s> Context<'s> {
    /// The context at this time.
    pub fn new(snapshot: &'s Snapshot, now: Millis) -> Self {
        Self { snapshot, now, micros: now.into() }
    }

    /// The context at this time since the start of the clock.
    pub fn at(snapshot: &'s Snapshot, elapsed: Duration) -> Self {
        Self { snapshot, now: elapsed.into(), micros: elapsed.into() }
    }
}

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
    /// The packet with these headers if a stage has changed it, otherwise as it is.
    #[inline]
    pub(crate) fn with<'b>(&'b mut self, changed: Option<&'b Packet>) -> FramedPacket<'b> {
        FramedPacket { frame: self.frame, packet: changed.unwrap_or(self.packet), ..*self }
    }

    /// The transport header and what follows it in the packet.
    pub(crate) fn transport(&self) -> &[u8] {
        &self.frame.bytes()[self.packet.transport..self.packet.end]
    }

    /// The bytes of [`Self::transport`], for editing.
    pub(crate) fn transport_mut(&mut self) -> &mut [u8] {
        &mut self.frame.bytes_mut()[self.packet.transport..self.packet.end]
    }

    /// The 32-bit field at an offset in a TCP header (`tcp::field`).
    pub(crate) fn tcp_number(&self, at: usize) -> u32 {
        tcp::number(self.transport(), at)
    }
}
