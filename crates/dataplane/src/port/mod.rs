//! Where a worker's frames come from and go to.
//!
//! [`Port`] is all that the pipeline knows of the outside. [`xdp`] is the wire: queues of every attached
//! interface. [`memory`] is the same without a kernel, for tests, benches and the lab; [`tagged`] goes around either.

use std::time::Duration;

use xvs_proto::LinkId;
use xvs_xdp::{Census, Frame};

use crate::verdict::{DropReason, Verdict};

pub mod memory;
pub mod tagged;
pub mod xdp;

/// A frame with the link that it came in by.
#[derive(Debug)]
pub struct Received {
    /// Where it came in.
    pub link: LinkId,
    /// The frame, whole, from the Ethernet header on.
    pub frame: Frame,
}

/// Packets that the XDP program steered to a port and that the kernel dropped before it had them.
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

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Frames may be there, or somebody called for the worker.
    Ready,
    /// Nothing happened for as long as it was told to wait.
    TimedOut,
}

/// A worker's way to its queues. Every frame handed over is owned: it goes out by exactly one of the methods.
pub trait Port {
    /// Appends frames that have come in to `burst`, until it holds [`BURST`](xvs_xdp::BURST) or there are none.
    fn receive(&mut self, burst: &mut Vec<Received>);

    /// Sends a frame out by a link. The frame comes back if the link is gone or down, or if its ring is full.
    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame>;

    /// Gives a frame to the kernel as if it had come in by `link` and no XDP program had been there.
    /// The frame comes back if that could not be done.
    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame>;

    /// An empty frame for a packet that the director originates; `None` if all are in use.
    fn allocate(&mut self) -> Option<Frame>;

    /// Takes back a frame that goes nowhere.
    fn recycle(&mut self, frame: Frame);

    /// Takes back a frame that came in and is dropped.
    fn discard(&mut self, received: Received, _: DropReason) {
        self.recycle(received.frame);
    }

    /// What became of the next frame of the burst, in its order; the frame has left.
    fn settled(&mut self, _: Verdict) {}

    /// Ends a burst: what was transmitted is made known to the kernel, the receive queues are refilled.
    fn flush(&mut self);

    /// Sleeps until a frame comes in, the worker is called, or the time is over; `None` waits for ever.
    fn wait(&mut self, at_most: Option<Duration>) -> Woken;

    /// How many frames are where.
    fn census(&self) -> Census;

    /// What the kernel has dropped of what came for this port, since it was opened. Asking may cost system calls.
    fn kernel_drops(&self) -> KernelDrops {
        KernelDrops::default()
    }
}
