//! One AF_XDP socket: the four rings of one queue of one interface.
//!
//! Used by the worker, once a burst. What the kernel says in a ring is believed only as far as the pool confirms it;
//! the rest is counted and left alone. A socket never has more frames in flight than its TX ring has slots, nor more
//! lent for receiving than its fill ring has, so no ring overflows.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use rustix::io::{FdFlags, fcntl_setfd};
use xsk_rs::config::{Interface, SocketConfig};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket as XskSocket, TxQueue, Umem};

use super::attach::Attached;
use super::descriptor::Descriptors;
use super::sockets::{CopyMode, SocketError};
use super::sys::{self, Kick};
use super::umem::RingSizes;
use crate::port::{BURST, LinkId};
use crate::shm::{Frame, FramePool, Span};

/// What the kernel and we counted on a socket since it was opened, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Received, but dropped by the kernel because the RX ring was full.
    pub receive_ring_full: u64,
    /// Received, but dropped by the kernel because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Received, but dropped by the kernel for another reason, such as a packet larger than a frame.
    pub receive_dropped: u64,
    /// Descriptors of frames to fill that the kernel refused.
    pub fill_invalid: u64,
    /// Descriptors of frames to send that the kernel refused.
    pub transmit_invalid: u64,
    /// How often the kernel looked for a frame to send and found none.
    pub transmit_ring_empty: u64,
    /// Descriptors of the kernel's that we refused.
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
    descriptors: Descriptors,
    transmit: TxQueue,
    receive: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Descriptors to be produced at the next flush.
    pending: Vec<FrameDesc>,
    /// Produced and not completed.
    in_flight: u32,
    /// Lent for receiving and not received.
    filled: u32,
    state: LinkState,
    descriptors_refused: u64,
}

/// Whether sending makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Up,
    /// The kernel said so.
    Down,
    /// As `Down`, but somebody wanted to send since: worth asking again.
    Asked,
}

impl Socket {
    pub(super) fn open(
        link: LinkId,
        attached: &Attached,
        queue: u32,
        config: SocketConfig,
        umem: &Umem,
        (sizes, descriptors): (RingSizes, Descriptors),
    ) -> Result<Self, SocketError> {
        let failed = |source| socket_error(attached, queue, source);
        let interface = Interface::from_str(attached.interface()).map_err(|error| failed(error.into()))?;
        // SAFETY: nobody else of this process has a ring of this queue: the kernel refuses a second socket on it
        // with EBUSY, and one of this UMEM is told from a new one by the rings that come with it (below).
        let opened = unsafe { XskSocket::new(config, umem, &interface, queue) };
        let (transmit, receive, rings) = opened.map_err(|error| failed(os_error(&error)))?;
        let (fill, completion) = rings.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EBUSY)))?;
        let socket = Self {
            link,
            queue,
            sizes,
            descriptors,
            transmit,
            receive,
            fill,
            completion,
            pending: Vec::with_capacity(sizes.transmit as usize),
            in_flight: 0,
            filled: 0,
            state: LinkState::Up,
            descriptors_refused: 0,
        };
        // The library makes it so that programs that are started would keep the queue.
        fcntl_setfd(socket.fd(), FdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        Ok(socket)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is closed when the last of its queues is dropped, and `receive` is one of them, which
        // `self`'s borrow keeps.
        unsafe { BorrowedFd::borrow_raw(self.receive.fd().as_raw_fd()) }
    }

    pub(super) fn receive(
        &mut self,
        pool: &mut FramePool,
        room: &mut [FrameDesc],
        take: &mut impl FnMut(LinkId, Frame),
    ) -> usize {
        // SAFETY: `room` is only written to; the addresses are believed only as far as the pool confirms them.
        let received = unsafe { self.receive.consume(room) };
        for desc in &room[..received] {
            match pool.reclaim(Span { offset: desc.addr(), len: desc.lengths().data() }) {
                Some(frame) => take(self.link, frame),
                None => self.descriptors_refused += 1,
            }
        }
        // A kernel that returns more than it was lent was refused above.
        self.filled = self.filled.saturating_sub(received as u32);
        received
    }

    /// Queues a frame for [`Self::submit`]; it comes back if the link is down or if there is no room.
    pub(super) fn queue(&mut self, pool: &mut FramePool, frame: Frame) -> Result<(), Frame> {
        if self.state != LinkState::Up {
            self.state = LinkState::Asked;
            return Err(frame);
        }
        if self.in_flight + self.pending.len() as u32 >= self.sizes.transmit {
            return Err(frame);
        }
        self.pending.push(self.descriptors.at(pool.lend(frame)));
        Ok(())
    }

    pub(super) fn submit(&mut self) {
        // SAFETY: the pool of this UMEM lent these frames for sending (`transmit`), and nobody touches them until it
        // has them back.
        let produced = unsafe { self.transmit.produce(&self.pending) };
        // The ring has room: `in_flight` counts at least what is in it, and `transmit` keeps the sum below its size.
        debug_assert_eq!(produced, self.pending.len());
        self.in_flight += produced as u32;
        self.pending.drain(..produced);
    }

    /// Makes the kernel send. In copy mode it takes 32 frames a call, so it is asked as often as that needs.
    pub(super) fn kick(&mut self, copy: &CopyMode) {
        if self.state == LinkState::Down && self.pending.is_empty() {
            return;
        }
        let probing = self.state == LinkState::Asked;
        let calls = match copy {
            CopyMode::Copy { .. } => self.unsent().div_ceil(32) + 1,
            CopyMode::ZeroCopy => u32::from(self.transmit.needs_wakeup() && self.unsent() > 0),
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
    }

    /// Whether frames wait for the kernel to take them, on a link that is up.
    pub(super) fn wants_another_kick(&mut self) -> bool {
        self.state == LinkState::Up && self.unsent() > 0
    }

    /// Submitted and not yet taken by the kernel.
    fn unsent(&mut self) -> u32 {
        self.sizes.transmit - self.transmit.nb_free_exact()
    }

    pub(super) fn reap(&mut self, pool: &mut FramePool, room: &mut [FrameDesc]) {
        while self.in_flight > 0 {
            // SAFETY: `room` is only written to; the addresses are believed only as far as the pool confirms them.
            let completed = unsafe { self.completion.consume(room) };
            for desc in &room[..completed] {
                self.descriptors_refused += u64::from(!pool.restore(desc.addr()));
            }
            self.in_flight = self.in_flight.saturating_sub(completed as u32);
            if completed < room.len() {
                break;
            }
        }
    }

    pub(super) fn refill(&mut self, pool: &mut FramePool, chunk: &mut [FrameDesc]) {
        debug_assert_eq!(chunk.len(), REFILL as usize);
        while self.filled + REFILL <= self.sizes.receive && pool.census().home >= REFILL {
            for desc in &mut *chunk {
                let span = pool.lend_empty().expect("as many frames were at home");
                *desc = self.descriptors.at(span);
            }
            // SAFETY: the pool of this UMEM has just lent these frames, empty, and nobody touches them until the
            // kernel returns them.
            let produced = unsafe { self.fill.produce(chunk) };
            // The ring has `receive` slots and `filled` counts at least what is in it.
            debug_assert_eq!(produced, chunk.len());
            self.filled += produced as u32;
        }
        if self.fill.needs_wakeup() {
            sys::kick_receive(self.fd());
        }
    }

    pub(super) fn statistics(&self) -> Statistics {
        // A socket whose interface is gone has no statistics; what it counted is lost with it.
        let kernel = self.receive.fd().xdp_statistics().unwrap_or_default();
        Statistics {
            receive_ring_full: kernel.rx_ring_full(),
            fill_ring_empty: kernel.rx_fill_ring_empty_descs(),
            receive_dropped: kernel.rx_dropped(),
            fill_invalid: kernel.rx_invalid_descs(),
            transmit_invalid: kernel.tx_invalid_descs(),
            transmit_ring_empty: kernel.tx_ring_empty_descs(),
            descriptors_refused: self.descriptors_refused,
            lent_to_receive: self.filled,
            lent_to_transmit: self.in_flight + self.pending.len() as u32,
        }
    }
}

/// What to tell an operator when a queue could not be opened.
pub(super) fn socket_error(attached: &Attached, queue: u32, source: io::Error) -> SocketError {
    let interface = attached.interface().to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => SocketError::Occupied { interface, queue },
        _ => SocketError::Kernel { interface, queue, source },
    }
}

/// The system's error behind one of xsk-rs.
pub(super) fn os_error(error: &dyn std::error::Error) -> io::Error {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

/// Frames are lent to fill rings by so many.
const REFILL: u32 = BURST as u32;
