//! The port: the source and the target of a worker's frames.
//!
//! [`Port`] is the pipeline's only interface to the outside. [`xdp`] implements it with the queues of all attached
//! interfaces. [`memory`] implements it without a kernel, for tests, benches and the lab. [`vlan_and_bond`] wraps
//! either and handles VLAN tags and bonds.

use std::time::Duration;

use xvs_proto::{LinkId, Packet, Parsed, parse, parse_cut};
use xvs_xdp::{Census, Frame};

use crate::verdict::{DropReason, Verdict};

pub mod memory;
pub mod vlan_and_bond;
mod waiting;
pub mod xdp;

/// A frame with the link by which it was received.
#[derive(Debug)]
pub struct Received {
    /// The link.
    pub link: LinkId,
    /// The whole frame, from the Ethernet header on.
    pub frame: Frame,
}

/// The packet of an untagged frame. `None` if it has another type or is malformed. For a frame in several buffers only
/// the first is read, like the quote of an ICMP error, which may be truncated, too.
pub(crate) fn packet_of(frame: &Frame) -> Option<Packet> {
    let bytes = frame.bytes();
    match parse(bytes) {
        Ok(Parsed::Ip(packet)) => Some(packet),
        Err(_) if frame.is_chain() => parse_cut(bytes),
        Ok(Parsed::Other) | Err(_) => None,
    }
}

/// Packets that the XDP program steered to a port and that the kernel dropped before the port received them.
///
/// Source: `struct xdp_statistics` in `include/uapi/linux/if_xdp.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelDrops {
    /// The RX ring was full: the worker was not fast enough.
    pub ring_full: u64,
    /// The fill ring was empty: no frame was free.
    pub fill_ring_empty: u64,
    /// Another reason, such as a packet larger than a frame.
    pub other: u64,
}

/// The reason why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Frames may have arrived, or another thread has woken the worker.
    Ready,
    /// The time is over.
    TimedOut,
}

/// A worker's access to its queues. Frames are owned: each one leaves by exactly one of the methods.
pub trait Port {
    /// Appends received frames to `burst`, until it contains [`BURST`](xvs_xdp::BURST) or there are no more.
    fn receive(&mut self, burst: &mut Vec<Received>);

    /// Sends a frame on a link. A frame to the machine's own end of a link is given to the kernel, as if the link had
    /// received it. Returns the frame if the link is gone or down, or if its ring is full.
    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame>;

    /// Gives a frame to the kernel as if `link` had received it and there were no XDP program. A frame that this
    /// machine itself has sent on `link` leaves on it, or reaches this machine again through `lo`. Returns the frame if
    /// that fails.
    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame>;

    /// An empty frame for a packet that the director originates; `None` if all are in use.
    fn allocate(&mut self) -> Option<Frame>;

    /// A frame for a packet of this length, or a chain if the packet does not fit into one; the content is undefined.
    fn allocate_packet(&mut self, len: usize) -> Option<Frame> {
        let mut packet = self.allocate()?;
        while !packet.spread(len) {
            let Some(frame) = self.allocate() else {
                self.recycle(packet);
                return None;
            };
            if let Err(frame) = packet.append(frame) {
                self.recycle(frame);
                self.recycle(packet);
                return None;
            }
        }
        Some(packet)
    }

    /// Takes back a frame that is not sent.
    fn recycle(&mut self, frame: Frame);

    /// Takes back a received frame that is dropped.
    fn discard(&mut self, received: Received, _: DropReason) {
        self.recycle(received.frame);
    }

    /// Reports the verdict on the next frame of the burst, in order; the frame has already left.
    fn settled(&mut self, _: Verdict) {}

    /// Ends a burst: notifies the kernel of transmitted frames and refills the receive queues.
    fn flush(&mut self);

    /// Sleeps until a frame arrives, another thread wakes the worker, or the time is over; `None` waits without limit.
    /// Returns at once if the last [`Self::receive`] had frames.
    fn wait(&mut self, at_most: Option<Duration>) -> Woken;

    /// The number of frames in each state.
    fn census(&self) -> Census;

    /// The packets for this port that the kernel has dropped since it was opened. The call may cost system calls.
    fn kernel_drops(&self) -> KernelDrops {
        KernelDrops::default()
    }
}

/// Writes a packet over another one, in its slots. Outer headers use headroom. Returns `false` if there is too little.
pub(crate) fn write_back(whole: &Frame, to: &mut Frame) -> bool {
    if !to.grow_front(whole.len().saturating_sub(to.len())) || !to.spread(whole.len()) {
        return false;
    }
    to.write(|at, part| whole.read(at, part));
    true
}
