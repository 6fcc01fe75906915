//! One worker's AF_XDP sockets: a UMEM of its own, shared by one socket a queue of every attached interface.
//!
//! Set up by the control thread, used by the worker, once a burst. Every frame is in the pool's book: lent to a fill
//! ring or a TX ring, or out in the pipeline's hands; a descriptor that the book contradicts is counted and left
//! alone. A socket never has more frames in flight than its TX ring has slots, so the rings of one socket cannot
//! overflow; beyond that a frame is handed back. Nothing allocates after set-up.
//!
//! Cost a burst: one `sendto` for each 32 frames and interface in copy mode, none in zero-copy under load.

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
    XDP_UMEM_MIN_CHUNK_SIZE,
};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket as XskSocket, TxQueue, Umem};

use super::descriptor::Descriptors;
use super::mode::Mode;
use super::program::Attached;
use super::sys::{self, Kick};
use crate::port::{BURST, LinkId};
use crate::shm::{Frame, FrameLayout, FramePool, Span};

/// Before a received packet; outer headers are pushed into it (linux/bpf.h, XDP_PACKET_HEADROOM).
const HEADROOM_BYTES: u32 = 256;
/// An Ethernet header with two tags.
const LINK_HEADER_BYTES: u32 = 22;
/// Frames are lent to fill rings by so many.
const REFILL: u32 = BURST as u32;
/// Kept for the pipeline: the burst in hand, what it holds back, what the director originates.
const RESERVE: u32 = 4 * BURST as u32;

/// How many frames each socket of a worker may have lent to the kernel; both are powers of two, at least 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// Waiting for packets.
    pub receive: u32,
    /// Waiting to be sent.
    pub transmit: u32,
}

impl Default for RingSizes {
    /// With two interfaces of 1500 bytes MTU, one worker's UMEM has 6.5 MiB: less than the 8 MiB that
    /// `ulimit -l` mostly allows.
    fn default() -> Self {
        Self { receive: 1024, transmit: 512 }
    }
}

/// The queues of one interface that a worker owns.
#[derive(Debug, Clone, Copy)]
pub struct Queues<'a> {
    /// The interface.
    pub attached: &'a Attached,
    /// Its receive queues; the first is also sent by.
    pub queues: &'a [u32],
}

/// Whether the kernel copies frames between its memory and ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyMode {
    /// It does not: the drivers use our frames.
    ZeroCopy,
    /// It does, because this interface has it no other way.
    Copy {
        /// The interface.
        because_of: String,
    },
}

impl fmt::Display for CopyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroCopy => f.write_str("zero-copy"),
            Self::Copy { because_of } => write!(f, "copy (because of {because_of})"),
        }
    }
}

/// Why a worker's sockets could not be opened; none stays open.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Not enough memory may be locked.
    #[error(
        "{needed_bytes} bytes of packet memory may not be locked; raise `ulimit -l` or give CAP_IPC_LOCK"
    )]
    MemoryLimit {
        /// Bytes of this worker's UMEM.
        needed_bytes: u64,
    },
    /// The UMEM could not be made.
    #[error("packet memory: {0}")]
    Memory(io::Error),
    /// Ring sizes that are not powers of two of at least 64, or no queue for an interface.
    #[error("{0}")]
    Invalid(String),
    /// Another socket has the queue.
    #[error(
        "queue {queue} of {interface} already has an AF_XDP socket; two workers or two processes cannot share it"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// The kernel refused.
    #[error("AF_XDP socket on queue {queue} of {interface}: {source}")]
    Kernel {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What it said.
        source: io::Error,
    },
}

/// What the kernel and we counted on a socket since it was opened, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Received, but dropped by the kernel because the RX ring was full.
    pub receive_ring_full: u64,
    /// Received, but dropped by the kernel because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Received, but dropped by the kernel for another reason, such as a packet larger than a frame.
    pub receive_dropped: u64,
    /// Descriptors of ours that the kernel refused.
    pub transmit_invalid: u64,
    /// Descriptors of the kernel's that we refused.
    pub descriptors_refused: u64,
    /// Frames now lent for receiving.
    pub lent_to_receive: u32,
    /// Frames now lent for sending.
    pub lent_to_transmit: u32,
}

/// One queue of one interface.
struct Socket {
    link: LinkId,
    queue: u32,
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

/// A worker's sockets and the frames that travel among them.
pub struct Sockets {
    sockets: Vec<Socket>,
    /// By link: its first socket.
    senders: Vec<usize>,
    pool: FramePool,
    descriptors: Descriptors,
    sizes: RingSizes,
    copy: CopyMode,
    /// Where the next burst begins.
    turn: usize,
    /// Room for the descriptors of one burst.
    scratch: Vec<FrameDesc>,
}

impl Sockets {
    /// Opens one socket for each queue, over one UMEM, and lets the interfaces' programs steer to them. The place of
    /// an interface in `links` is its [`LinkId`]. Blocks for up to a second if a queue is taken: the kernel frees that of
    /// a socket closed before only some time afterwards.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(links: &[Queues<'_>], sizes: RingSizes) -> Result<Self, SocketError> {
        for _ in 0..50 {
            match Self::open_once(links, sizes) {
                Err(SocketError::Occupied { .. }) => thread::sleep(Duration::from_millis(20)),
                result => return result,
            }
        }
        Self::open_once(links, sizes)
    }

    fn open_once(links: &[Queues<'_>], sizes: RingSizes) -> Result<Self, SocketError> {
        let generic = links.iter().find(|link| link.attached.mode() == Mode::Generic);
        if let Some(link) = generic {
            return Self::bind(links, sizes, BindFlags::XDP_COPY, Some(link.attached));
        }
        match Self::bind(links, sizes, BindFlags::empty(), None) {
            // The first socket got zero-copy, and this one cannot: only copying suits all.
            Err(SocketError::Kernel { interface, source, .. })
                if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) =>
            {
                let cause = links.iter().map(|link| link.attached).find(|link| link.interface() == interface);
                Self::bind(links, sizes, BindFlags::XDP_COPY, cause)
            }
            result => result,
        }
    }

    fn bind(
        links: &[Queues<'_>],
        sizes: RingSizes,
        flags: BindFlags,
        cause: Option<&Attached>,
    ) -> Result<Self, SocketError> {
        let layout = layout(links, sizes);
        let (umem, mut pool) = area(layout, sizes)?;
        let descriptors = Descriptors::probe()
            .ok_or_else(|| SocketError::Invalid("xsk-rs lays descriptors out in an unknown way".into()))?;
        let config = SocketConfig::builder()
            .rx_queue_size(ring(sizes.receive)?)
            .tx_queue_size(ring(sizes.transmit)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let mut sockets = Vec::new();
        let mut senders = Vec::new();
        for (id, link) in links.iter().enumerate() {
            if link.queues.is_empty() {
                let name = link.attached.interface();
                return Err(SocketError::Invalid(format!("no queue of {name} for this worker")));
            }
            senders.push(sockets.len());
            for &queue in link.queues {
                sockets.push(Socket::open(LinkId(id as u16), link.attached, queue, config, &umem, sizes)?);
            }
        }
        let copied = sockets.iter().find(|socket| !sys::is_zero_copy(socket.fd()).unwrap_or(false));
        let copied = copied.map(|socket| links[usize::from(socket.link.0)].attached);
        let copy = match cause.or(copied) {
            Some(attached) => CopyMode::Copy { because_of: attached.interface().to_owned() },
            None => CopyMode::ZeroCopy,
        };
        let mut scratch = vec![FrameDesc::default(); BURST];
        for socket in &mut sockets {
            socket.refill(&mut pool, &mut scratch, descriptors, sizes);
            let attached = links[usize::from(socket.link.0)].attached;
            attached
                .enter_socket(socket.queue, socket.fd())
                .map_err(|source| socket_error(attached, socket.queue, source))?;
        }
        Ok(Self { sockets, senders, pool, descriptors, sizes, copy, turn: 0, scratch })
    }

    /// The frames' book, for packets that come from or go to elsewhere than the rings.
    pub fn pool(&mut self) -> &mut FramePool {
        &mut self.pool
    }

    /// How many frames are where.
    pub fn census(&self) -> crate::shm::Census {
        self.pool.census()
    }

    /// Whether frames are copied, and which interface is the reason.
    pub fn copy_mode(&self) -> &CopyMode {
        &self.copy
    }

    /// How many links there are.
    pub fn links(&self) -> usize {
        self.senders.len()
    }

    /// What to poll for packets.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(Socket::fd)
    }

    /// What was counted, for each queue.
    pub fn statistics(&self) -> impl Iterator<Item = (LinkId, u32, Statistics)> + '_ {
        self.sockets.iter().map(|socket| (socket.link, socket.queue, socket.statistics()))
    }

    /// Takes up to `room` packets ([`BURST`] at most) from the sockets in turn, a different one first each time.
    pub fn receive(&mut self, room: usize, mut take: impl FnMut(LinkId, Frame)) {
        let mut room = room.min(BURST);
        let count = self.sockets.len();
        self.turn = (self.turn + 1) % count.max(1);
        for step in 0..count {
            let socket = &mut self.sockets[(self.turn + step) % count];
            room -= socket.receive(&mut self.pool, &mut self.scratch[..room], &mut take);
            if room == 0 {
                break;
            }
        }
    }

    /// Queues a frame for the next [`Self::flush`]. It comes back if there is no such link, if the link is down or
    /// if its ring is full. What was in the ring when the link went down is sent once it is up again.
    pub fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        let Some(&sender) = self.senders.get(usize::from(link.0)) else { return Err(frame) };
        let socket = &mut self.sockets[sender];
        if socket.state != LinkState::Up {
            socket.state = LinkState::Asked;
            return Err(frame);
        }
        if socket.in_flight + socket.pending.len() as u32 >= self.sizes.transmit {
            return Err(frame);
        }
        socket.pending.push(self.descriptors.at(self.pool.lend(frame)));
        Ok(())
    }

    /// Submits what was queued, takes back what was sent, refills. Returns whether the kernel has left something
    /// unsent that another flush may send.
    pub fn flush(&mut self) -> Unsent {
        let mut unsent = Unsent::Nothing;
        for socket in &mut self.sockets {
            socket.submit();
            socket.kick(self.sizes, &self.copy);
            socket.reap(&mut self.pool, &mut self.scratch);
            socket.refill(&mut self.pool, &mut self.scratch, self.descriptors, self.sizes);
            if socket.state == LinkState::Up && socket.unsent(self.sizes) > 0 {
                unsent = Unsent::Some;
            }
        }
        unsent
    }
}

/// Whether frames wait for the kernel to send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// All that was submitted to links that are up is on its way.
    Nothing,
    /// Some are still in a TX ring.
    Some,
}

impl Socket {
    fn open(
        link: LinkId,
        attached: &Attached,
        queue: u32,
        config: SocketConfig,
        umem: &Umem,
        sizes: RingSizes,
    ) -> Result<Self, SocketError> {
        let failed = |source| socket_error(attached, queue, source);
        let interface = Interface::from_str(attached.interface()).map_err(|error| failed(error.into()))?;
        // SAFETY: nobody else of this process has a ring of this queue: the kernel refuses a second socket on it
        // with EBUSY, and one of this UMEM is told from a new one by the rings that come with it (below).
        let opened = unsafe { XskSocket::new(config, umem, &interface, queue) };
        let (transmit, receive, rings) = opened.map_err(|error| failed(os_error(&error)))?;
        let (fill, completion) = rings.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EBUSY)))?;
        Ok(Self {
            link,
            queue,
            transmit,
            receive,
            fill,
            completion,
            pending: Vec::with_capacity(sizes.transmit as usize),
            in_flight: 0,
            filled: 0,
            state: LinkState::Up,
            descriptors_refused: 0,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is closed when the last of its queues is dropped, and `receive` is one of them, which
        // `self`'s borrow keeps.
        unsafe { BorrowedFd::borrow_raw(self.receive.fd().as_raw_fd()) }
    }

    fn receive(
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

    fn submit(&mut self) {
        // SAFETY: the pool of this UMEM lent these frames for sending (`transmit`), and nobody touches them until it
        // has them back.
        let produced = unsafe { self.transmit.produce(&self.pending) };
        // The ring has room: `in_flight` counts at least what is in it, and `transmit` keeps the sum below its size.
        debug_assert_eq!(produced, self.pending.len());
        self.in_flight += produced as u32;
        self.pending.drain(..produced);
    }

    /// Makes the kernel send. In copy mode it takes 32 frames a call, so it is asked as often as that needs.
    fn kick(&mut self, sizes: RingSizes, copy: &CopyMode) {
        if self.state == LinkState::Down && self.pending.is_empty() {
            return;
        }
        let probing = self.state == LinkState::Asked;
        let calls = match copy {
            CopyMode::Copy { .. } => self.unsent(sizes).div_ceil(32) + 1,
            CopyMode::ZeroCopy => u32::from(self.transmit.needs_wakeup() && self.unsent(sizes) > 0),
        };
        for _ in 0..calls.max(u32::from(probing)) {
            if self.unsent(sizes) == 0 && self.state == LinkState::Up {
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

    /// Submitted and not yet taken by the kernel.
    fn unsent(&mut self, sizes: RingSizes) -> u32 {
        sizes.transmit - self.transmit.nb_free_exact()
    }

    fn reap(&mut self, pool: &mut FramePool, room: &mut [FrameDesc]) {
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

    fn refill(
        &mut self,
        pool: &mut FramePool,
        chunk: &mut [FrameDesc],
        descriptors: Descriptors,
        sizes: RingSizes,
    ) {
        debug_assert_eq!(chunk.len(), REFILL as usize);
        while self.filled + REFILL <= sizes.receive && pool.census().home >= REFILL {
            for desc in &mut *chunk {
                let span = pool.lend_empty().expect("as many frames were at home");
                *desc = descriptors.at(span);
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

    fn statistics(&self) -> Statistics {
        // A socket whose interface is gone has no statistics; what it counted is lost with it.
        let kernel = self.receive.fd().xdp_statistics().unwrap_or_default();
        Statistics {
            receive_ring_full: kernel.rx_ring_full(),
            fill_ring_empty: kernel.rx_fill_ring_empty_descs(),
            receive_dropped: kernel.rx_dropped(),
            transmit_invalid: kernel.tx_invalid_descs(),
            descriptors_refused: self.descriptors_refused,
            lent_to_receive: self.filled,
            lent_to_transmit: self.in_flight + self.pending.len() as u32,
        }
    }
}

/// Frames for the largest packet of any of the interfaces, and enough of them for every ring to be full.
fn layout(links: &[Queues<'_>], sizes: RingSizes) -> FrameLayout {
    let packet = links.iter().map(|link| link.attached.mtu()).max().unwrap_or(0) + LINK_HEADER_BYTES;
    let small = packet + HEADROOM_BYTES <= XDP_UMEM_MIN_CHUNK_SIZE;
    let sockets: usize = links.iter().map(|link| link.queues.len()).sum();
    FrameLayout {
        frame_size_bytes: if small { 2048 } else { 4096 },
        headroom_bytes: HEADROOM_BYTES,
        frames: sockets as u32 * (sizes.receive + sizes.transmit) + RESERVE,
    }
}

/// Makes the UMEM and the book of its frames.
fn area(layout: FrameLayout, sizes: RingSizes) -> Result<(Umem, FramePool), SocketError> {
    let invalid = |error: &dyn fmt::Display| SocketError::Invalid(error.to_string());
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(layout.frame_size_bytes).map_err(|error| invalid(&error))?)
        .fill_queue_size(ring(sizes.receive)?)
        .comp_queue_size(ring(sizes.transmit)?)
        .build()
        .map_err(|error| invalid(&error))?;
    let frames = NonZeroU32::new(layout.frames).expect("the reserve is not zero");
    let make = || Umem::new(config, frames, false).map_err(|error| os_error(&error));
    let over_limit = |error: &io::Error| error.raw_os_error() == Some(libc::ENOBUFS);
    let (umem, _) = make()
        .or_else(|error| if over_limit(&error) && lift_memory_limit().is_ok() { make() } else { Err(error) })
        .map_err(|error| match over_limit(&error) {
            true => SocketError::MemoryLimit {
                needed_bytes: u64::from(layout.frames) * u64::from(layout.frame_size_bytes),
            },
            false => SocketError::Memory(error),
        })?;
    let first = FrameDesc::default();
    // SAFETY: the default descriptor is at address 0, in the first frame; no ring has a frame yet and the slice is
    // gone before one has.
    let start = unsafe { umem.data(&first) }.contents().as_ptr().addr();
    let base = NonNull::new(with_exposed_provenance_mut(start)).expect("a slice is not at null");
    let owner = Box::new(umem.clone());
    // SAFETY: the mapping begins at address 0's byte and has `frames` frames of this size, the UMEM's own numbers;
    // its address is exposed, as libxdp handed it to the kernel. It stays mapped while a clone of the `Umem` lives.
    // Only this pool's frames lead to its bytes: this module takes no other slice of it.
    let pool = unsafe { FramePool::over(base, layout, owner) };
    Ok((umem, pool))
}

/// Lets this process lock as much memory as it wants, or else as it may.
fn lift_memory_limit() -> io::Result<()> {
    let allowed = getrlimit(Resource::Memlock).maximum;
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })
        .or_else(|_| setrlimit(Resource::Memlock, Rlimit { current: allowed, maximum: allowed }))?;
    Ok(())
}

fn ring(slots: u32) -> Result<QueueSize, SocketError> {
    let invalid =
        || SocketError::Invalid(format!("a ring of {slots}: it must be a power of two, at least 64"));
    if slots < REFILL { Err(invalid()) } else { QueueSize::new(slots).map_err(|_| invalid()) }
}

fn socket_error(attached: &Attached, queue: u32, source: io::Error) -> SocketError {
    let interface = attached.interface().to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => SocketError::Occupied { interface, queue },
        _ => SocketError::Kernel { interface, queue, source },
    }
}

/// The system's error behind one of xsk-rs.
fn os_error(error: &dyn std::error::Error) -> io::Error {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}
