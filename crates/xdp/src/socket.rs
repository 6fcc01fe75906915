//! One AF_XDP socket: the four rings of one queue of one interface.
//!
//! The worker uses it for each burst. A ring entry is accepted only if the pool confirms it; all others are counted and
//! ignored. A socket never has more frames in flight than its TX ring has slots, nor more lent for receiving than its
//! fill ring has slots, so no ring overflows.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use libxdp_sys::xsk_socket_config;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt;
use rustix::net::xdp::XdpStatistics;

use super::attach::Attached;
use super::error::SocketError;
use super::mode::CopyMode;
use super::queue::Rings;
use super::sys::{self, Kick, SEVERAL_BUFFERS};
use super::umem::{RingSizes, Umem};
use crate::burst::BURST;
use crate::frame::{Frame, FramePool, Span};
use xvs_proto::network::LinkId;

/// A socket's counters since it was opened, from the kernel and the director, and its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Received, but dropped by the kernel because the RX ring was full.
    pub receive_ring_full: u64,
    /// Received, but dropped by the kernel because the fill ring was empty. 0 in zero-copy mode, in which the card
    /// drops.
    pub fill_ring_empty: u64,
    /// Received, but dropped by the kernel for another reason, such as a packet larger than a frame.
    pub receive_dropped: u64,
    /// Descriptors of frames for receiving that the kernel refused.
    pub fill_invalid: u64,
    /// Descriptors of frames to send that the kernel refused.
    pub transmit_invalid: u64,
    /// How often the kernel checked for a frame to send and found none.
    pub transmit_ring_empty: u64,
    /// The kernel's descriptors that the director refused.
    pub descriptors_refused: u64,
    /// Frames now lent for receiving.
    pub lent_to_receive: u32,
    /// Frames now lent for sending.
    pub lent_to_transmit: u32,
}

/// One queue of one interface.
pub(super) struct Socket {
    pub(super) link: LinkId,
    pub(super) queue: u32,
    sizes: RingSizes,
    rings: Rings,
    /// Frames for the TX ring at the next flush.
    pending: Vec<Span>,
    /// Submitted and not completed.
    in_flight: u32,
    /// Lent for receiving and not received.
    filled: u32,
    state: LinkState,
    descriptors_refused: u64,
    /// Whether a packet may have several descriptors.
    takes_chains: bool,
    arriving: Arriving,
}

/// A packet of which not all buffers have been received yet.
enum Arriving {
    /// There is none.
    Nothing,
    /// The frames received so far.
    Parts(Frame),
    /// One of its buffers was refused, so the others are discarded.
    Refused,
}

/// Whether the link can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Up,
    /// The kernel reported it down.
    Down,
    /// Like `Down`, and a frame was to be sent since: the next flush tries again.
    Retry,
}

impl Socket {
    pub(super) fn open(
        link: LinkId,
        attached: &Attached,
        queue: u32,
        config: &xsk_socket_config,
        umem: &Arc<Umem>,
    ) -> Result<Self, SocketError> {
        let rings = Rings::open(umem, attached.interface(), queue, config)
            .map_err(|error| SocketError::of(attached, queue, error))?;
        let sizes = RingSizes { receive: config.rx_size, transmit: config.tx_size };
        // libxdp opens the socket without CLOEXEC: child processes would inherit it and keep the queue.
        fcntl_setfd(rings.fd(), FdFlags::CLOEXEC)
            .map_err(|error| SocketError::of(attached, queue, error.into()))?;
        Ok(Self {
            link,
            queue,
            sizes,
            rings,
            pending: Vec::with_capacity(sizes.transmit as usize),
            in_flight: 0,
            filled: 0,
            state: LinkState::Up,
            descriptors_refused: 0,
            takes_chains: config.bind_flags & SEVERAL_BUFFERS != 0,
            arriving: Arriving::Nothing,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.rings.fd()
    }

    /// Receives up to `room` descriptors. Returns their number.
    pub(super) fn receive(
        &mut self,
        pool: &mut FramePool,
        room: usize,
        take: &mut impl FnMut(LinkId, Frame),
    ) -> usize {
        let Self { link, rings, descriptors_refused, arriving, .. } = self;
        let received = rings.receive.receive(room, |span| {
            let frame = pool.reclaim(span);
            *descriptors_refused += u64::from(frame.is_none());
            match (frame, &arriving) {
                (Some(frame), Arriving::Nothing) if !span.continues => take(*link, frame),
                (frame, _) => {
                    if let Some(whole) = arriving.add(frame, span.continues, pool) {
                        take(*link, whole);
                    }
                }
            }
        });
        // A kernel that returns more frames than were lent to it was refused above.
        self.filled = self.filled.saturating_sub(received as u32);
        received
    }

    /// Returns the frames of an incomplete packet to the pool.
    pub(super) fn abandon(&mut self, pool: &mut FramePool) {
        self.arriving.add(None, false, pool);
    }

    /// Queues a frame for [`Self::submit`]. Returns it if the link is down, or if the ring has too few free entries for
    /// the packet.
    pub(super) fn queue(&mut self, pool: &mut FramePool, frame: Frame) -> Result<(), Frame> {
        if self.state != LinkState::Up {
            self.state = LinkState::Retry;
            return Err(frame);
        }
        let mut needed = 1;
        if frame.is_chain() {
            if !self.takes_chains {
                return Err(frame);
            }
            needed = frame.parts().count() as u32;
        }
        if self.in_flight + self.pending.len() as u32 + needed > self.sizes.transmit {
            return Err(frame);
        }
        pool.lend(frame, |span| self.pending.push(span));
        Ok(())
    }

    pub(super) fn submit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // The ring has enough free entries: `in_flight` counts at least the entries in it, and `queue` keeps the sum
        // below its size. If the kernel's index implies otherwise, the frames wait for the next flush.
        if self.rings.transmit.send(&self.pending) {
            self.in_flight += self.pending.len() as u32;
            self.pending.clear();
        }
    }

    /// Makes the kernel send. In copy mode one call sends 32 frames, so it is repeated as often as needed. If `polls`,
    /// [`super::polling`] is in force; then `sendto` runs the receive queue's loop and wakes nothing (net/xdp/xsk.c,
    /// `xsk_no_wakeup`), and a driver may have another loop for sending, like igb with one queue. `poll` wakes it.
    pub(super) fn kick(&mut self, copy: &CopyMode, polls: bool) {
        if self.state == LinkState::Down && self.pending.is_empty() {
            return;
        }
        let probing = self.state == LinkState::Retry;
        let calls = match copy {
            CopyMode::Copy { .. } => self.unsent().div_ceil(32) + 1,
            CopyMode::ZeroCopy => u32::from(self.rings.transmit.needs_wakeup() && self.unsent() > 0),
        };
        for _ in 0..calls.max(u32::from(probing)) {
            if self.unsent() == 0 && self.state == LinkState::Up {
                break;
            }
            match sys::kick_transmit(self.fd()) {
                Kick::Down => {
                    self.state = LinkState::Down;
                    break;
                }
                Kick::Sent | Kick::Again => self.state = LinkState::Up,
            }
        }
        if polls && *copy == CopyMode::ZeroCopy && self.wants_another_kick() {
            sys::wake(self.fd());
        }
    }

    /// Whether frames wait for the kernel on a link that is up.
    pub(super) fn wants_another_kick(&mut self) -> bool {
        self.state == LinkState::Up && self.unsent() > 0
    }

    /// Whether a driver in zero-copy mode has no frame for receiving: all lent frames are in the fill ring. The driver
    /// takes them once it is woken, and may set its wake-up flag only after the last check.
    pub(super) fn is_starved(&mut self) -> bool {
        self.filled > 0 && self.rings.fill.waiting(self.sizes.receive) >= self.filled
    }

    /// The number of submitted frames that the kernel has not taken yet.
    fn unsent(&mut self) -> u32 {
        self.rings.transmit.waiting(self.sizes.transmit)
    }

    pub(super) fn reap(&mut self, pool: &mut FramePool) {
        while self.in_flight > 0 {
            let Self { rings, descriptors_refused, .. } = self;
            let completed = rings.completion.complete(BURST, |offset| {
                *descriptors_refused += u64::from(!pool.restore(offset));
            });
            self.in_flight = self.in_flight.saturating_sub(completed as u32);
            if completed < BURST {
                break;
            }
        }
    }

    pub(super) fn refill(&mut self, pool: &mut FramePool) {
        while self.filled + REFILL <= self.sizes.receive && pool.census().home >= REFILL {
            // The ring has `receive` slots, and `filled` counts at least the entries in it. If the kernel's index
            // implies otherwise, the frames are lent at a later flush.
            let is_lent = self
                .rings
                .fill
                .lend(REFILL, || pool.lend_empty().expect("so many frames are in the pool").offset);
            if !is_lent {
                break;
            }
            self.filled += REFILL;
        }
        if self.rings.fill.needs_wakeup() {
            sys::kick_receive(self.fd());
        }
    }

    pub(super) fn statistics(&self, copy: &CopyMode) -> Statistics {
        Statistics {
            descriptors_refused: self.descriptors_refused,
            lent_to_receive: self.filled,
            lent_to_transmit: self.in_flight + self.pending.len() as u32,
            // A socket whose interface is gone has no statistics; its counts are lost.
            ..sockopt::xdp_statistics(self.fd())
                .map_or(Statistics::default(), |kernel| Statistics::of(&kernel, copy))
        }
    }
}

impl Arriving {
    /// Adds the next buffer's frame, or `None` if it was refused. Returns the packet if that was its last buffer.
    fn add(&mut self, part: Option<Frame>, continues: bool, pool: &mut FramePool) -> Option<Frame> {
        let so_far = std::mem::replace(self, if continues { Self::Refused } else { Self::Nothing });
        let whole = match (so_far, part) {
            (Self::Nothing, Some(part)) => part,
            (Self::Parts(mut frame), Some(part)) => match frame.append(part) {
                Ok(()) => frame,
                Err(part) => {
                    pool.put(part);
                    pool.put(frame);
                    return None;
                }
            },
            (Self::Parts(frame), None) | (Self::Refused, Some(frame)) => {
                pool.put(frame);
                return None;
            }
            (Self::Nothing | Self::Refused, None) => return None,
        };
        if !continues {
            return Some(whole);
        }
        *self = Self::Parts(whole);
        None
    }
}

impl Statistics {
    /// Converts the kernel's counters. In copy mode the kernel counts a packet that finds the fill ring empty twice, in
    /// `rx_fill_ring_empty_descs` and in `rx_dropped` (net/xdp/xsk.c, `__xsk_rcv`; xsk_buff_pool.c, `__xp_alloc`). In
    /// zero-copy mode the first counts how often a driver that was filling its own ring found no frame, also at the
    /// start; a packet is lost only when that ring is empty, too, and then the card counts it.
    fn of(kernel: &XdpStatistics, copy: &CopyMode) -> Self {
        let fill_ring_empty = match copy {
            CopyMode::Copy { .. } => kernel.rx_fill_ring_empty_descs.unwrap_or(0),
            CopyMode::ZeroCopy => 0,
        };
        Self {
            receive_ring_full: kernel.rx_ring_full.unwrap_or(0),
            fill_ring_empty,
            // The kernel may increase one counter between the reads of the two, so the difference may be slightly
            // negative.
            receive_dropped: kernel.rx_dropped.saturating_sub(fill_ring_empty),
            fill_invalid: kernel.rx_invalid_descs,
            transmit_invalid: kernel.tx_invalid_descs,
            transmit_ring_empty: kernel.tx_ring_empty_descs.unwrap_or(0),
            ..Self::default()
        }
    }
}

/// The number of frames that are lent to a fill ring at a time.
const REFILL: u32 = BURST as u32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameLayout;

    #[test]
    fn a_packet_of_several_parts_is_received_whole_and_not_at_all_if_a_part_is_refused() {
        let layout = FrameLayout { frame_size_bytes: 128, headroom_bytes: 32, frames: 6 };
        let (mut pool, mut arriving) = (FramePool::in_memory(layout), Arriving::Nothing);
        let mut add = |part: Option<u8>, continues| {
            let frame = part.map(|byte| {
                let mut frame = pool.take().unwrap();
                assert!(frame.resize(1));
                frame.bytes_mut()[0] = byte;
                frame
            });
            let whole = arriving.add(frame, continues, &mut pool)?;
            let bytes = whole.parts().flatten().copied().collect::<Vec<_>>();
            pool.put(whole);
            assert_eq!(pool.census().out, 0);
            Some(bytes)
        };
        assert_eq!(
            [add(Some(1), true), add(Some(2), true), add(Some(3), false)],
            [None, None, Some(vec![1, 2, 3])]
        );
        for refused in [[None, Some(2), Some(3)], [Some(1), None, Some(3)], [Some(1), Some(2), None]] {
            let [first, second, last] = refused;
            assert_eq!([add(first, true), add(second, true), add(last, false)], [None, None, None]);
            assert_eq!(add(Some(4), false), Some(vec![4]), "the next packet is whole");
        }
        assert_eq!([add(Some(1), true), add(Some(2), false)], [None, Some(vec![1, 2])]);
    }

    #[test]
    fn a_packet_that_found_the_fill_ring_empty_is_not_counted_as_dropped_for_another_reason_too() {
        let mut kernel = XdpStatistics {
            rx_dropped: 1005,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: Some(7),
            rx_fill_ring_empty_descs: Some(1000),
            tx_ring_empty_descs: None,
        };
        let of = |kernel: &XdpStatistics, copy: &CopyMode| {
            let found = Statistics::of(kernel, copy);
            (found.receive_ring_full, found.fill_ring_empty, found.receive_dropped)
        };
        let copy = CopyMode::Copy { because_of: "wan".to_owned() };
        assert_eq!(of(&kernel, &copy), (7, 1000, 5));
        assert_eq!(
            of(&kernel, &CopyMode::ZeroCopy),
            (7, 0, 1005),
            "the driver counts empty rings, not packets"
        );
        kernel.rx_dropped = 999;
        assert_eq!(of(&kernel, &copy), (7, 1000, 0), "read while the kernel counts");
    }
}
