//! One worker's AF_XDP sockets, one for each of its queues on every attached interface, with one UMEM.
//!
//! The control thread opens them; the worker uses them for each burst. A frame for which a TX ring has no room is
//! returned to the caller. Nothing allocates after set-up. Cost for each burst: one `sendto` for each 32 frames and
//! interface in copy mode, none in zero-copy mode under load. `socket.rs` checks descriptors and keeps rings from
//! overflowing.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use libxdp_sys as xdp;
use rustix::net::sockopt::xdp_options;
use rustix::net::xdp::XdpOptionsFlags;

use super::attach::Attached;
use super::drivers::SMALL_FRAME_BYTES;
use super::error::SocketError;
use super::mode::{CopyMode, Mode, WantedMode};
use super::polling::PreferBusyPolling;
use super::socket::{Socket, Statistics};
use super::sys::{self, LOOK_INTERVAL, OCCUPIED};
use super::umem::{RingSizes, Umem, layout};
use crate::burst::BURST;
use crate::frame::{Census, Frame, FrameLayout, FramePool};
use xvs_helper::task::Task as _;
use xvs_proto::network::LinkId;

/// The queues of one interface that a worker owns.
#[derive(Debug, Clone, Copy)]
pub struct Queues<'a> {
    /// The interface.
    pub attached: &'a Attached,
    /// The worker's receive queues. The first one is also used for sending.
    pub queues: &'a [u32],
}

/// A worker's packet memory, registered with the kernel, for sockets that are opened later.
pub struct PacketMemory {
    umem: Arc<Umem>,
    pool: FramePool,
}

impl PacketMemory {
    /// Creates memory for the sockets of these queues.
    ///
    /// # Errors
    ///
    /// There is not enough memory, or this process may not lock it.
    pub fn create(links: &[Queues<'_>], sizes: RingSizes) -> Result<Self, SocketError> {
        let (umem, pool) = Umem::create(layout_for(links, sizes), sizes)?;
        Ok(Self { umem, pool })
    }
}

fn layout_for(links: &[Queues<'_>], sizes: RingSizes) -> FrameLayout {
    let mtu = links.iter().map(|link| link.attached.mtu()).max().unwrap_or(0);
    let frame_bytes = links.iter().map(|link| link.attached.frame_bytes()).max();
    let queues = links.iter().map(|link| link.queues.len()).sum();
    layout(mtu, frame_bytes.unwrap_or(SMALL_FRAME_BYTES), queues, sizes)
}

/// A worker's sockets and their frames.
pub struct Sockets {
    sockets: Vec<Socket>,
    /// The first socket of each link; `None` if the interface is gone.
    senders: Vec<Option<usize>>,
    pool: FramePool,
    copy: CopyMode,
    /// Whether [`Self::prefer_busy_polling`] was called.
    polls: bool,
    /// The socket that comes first in the next burst.
    turn: usize,
}

impl Drop for Sockets {
    /// The kernel waits for a grace period when a socket is closed. Sockets that are closed together share one.
    fn drop(&mut self) {
        for socket in &mut self.sockets {
            socket.abandon(&mut self.pool);
        }
        let last: Vec<_> = self.fds().skip(1).flat_map(|fd| fd.try_clone_to_owned()).collect();
        self.sockets.clear();
        thread::scope(|scope| {
            for fd in last {
                // Without a thread the descriptor is closed here.
                let _ = thread::Builder::new().spawn_scoped(scope, || drop(fd));
            }
            // The UMEM has the descriptor of the first socket, and closes it.
            self.pool.close();
        });
    }
}

impl Sockets {
    /// Opens one socket for each queue, with one UMEM, and makes the interfaces' programs steer to them. The position
    /// of an interface in `links` is its [`LinkId`]. An interface that is gone gets no sockets. Blocks for up to a
    /// second if a queue is occupied, because the kernel frees the queue of a closed socket some time after the close.
    ///
    /// # Errors
    ///
    /// See [`SocketError`].
    pub fn open(links: &[Queues<'_>], sizes: RingSizes) -> Result<Self, SocketError> {
        Self::open_over(links, sizes, None, None)
    }

    /// Like [`Self::open`], with memory that was created before, which saves time, and without zero-copy if there is a
    /// reason to copy.
    ///
    /// # Errors
    ///
    /// Same as [`Self::open`].
    pub fn open_over(
        links: &[Queues<'_>],
        sizes: RingSizes,
        memory: Option<PacketMemory>,
        to_copy: Option<&str>,
    ) -> Result<Self, SocketError> {
        let copied = links
            .iter()
            .map(|link| link.attached)
            .find(|one| one.mode() == Mode::Generic || one.wanted().mode == WantedMode::Copy)
            .map(Attached::interface);
        if let Some(cause) = copied.or(to_copy) {
            return Self::bind(links, sizes, xdp::XDP_COPY, Some(cause), memory);
        }
        match Self::bind(links, sizes, 0, None, memory) {
            // The first socket got zero-copy mode, and this one cannot: all of them must copy.
            Err(SocketError::Kernel { interface, source, .. })
                if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) =>
            {
                Self::bind(links, sizes, xdp::XDP_COPY, Some(&interface), None)
            }
            result => result,
        }
    }

    fn bind(
        links: &[Queues<'_>],
        sizes: RingSizes,
        flags: u32,
        cause: Option<&str>,
        memory: Option<PacketMemory>,
    ) -> Result<Self, SocketError> {
        for slots in [sizes.receive, sizes.transmit] {
            if !slots.is_power_of_two() || slots < BURST as u32 {
                let text = format!("a ring of {slots} slots: it must be a power of two, at least 64");
                return Err(SocketError::Invalid(text));
            }
        }
        // An interface's settings may have changed since the memory was created.
        let PacketMemory { umem, mut pool } = memory
            .filter(|memory| memory.pool.layout() == layout_for(links, sizes))
            .map_or_else(|| PacketMemory::create(links, sizes), Ok)?;
        let needs_chains = links.iter().any(|link| link.attached.settings().needs_chains());
        let several_buffers = if needs_chains { sys::SEVERAL_BUFFERS } else { 0 };
        let config = xdp::xsk_socket_config {
            rx_size: sizes.receive,
            tx_size: sizes.transmit,
            // The program is loaded already.
            __bindgen_anon_1: xdp::xsk_socket_config__bindgen_ty_1 {
                libxdp_flags: xdp::XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
            },
            xdp_flags: 0,
            bind_flags: (flags | xdp::XDP_USE_NEED_WAKEUP) as u16 | several_buffers,
        };
        let mut sockets = Vec::new();
        let mut senders = Vec::new();
        for (id, link) in links.iter().enumerate() {
            if link.queues.is_empty() {
                let name = link.attached.interface();
                return Err(SocketError::Invalid(format!("no queue of {name} for this worker")));
            }
            if link.attached.is_gone() {
                senders.push(None);
                continue;
            }
            senders.push(Some(sockets.len()));
            for &queue in link.queues {
                let id = LinkId(id as u16);
                sockets.push(when_free(|| Socket::open(id, link.attached, queue, &config, &umem))?);
            }
        }
        let copied = sockets
            .iter()
            .find(|socket| {
                !xdp_options(socket.fd())
                    .is_ok_and(|options| options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
            })
            .map(|socket| links[usize::from(socket.link.0)].attached.interface());
        let copy = match cause.or(copied) {
            Some(cause) => CopyMode::Copy { because_of: cause.to_owned() },
            None => CopyMode::ZeroCopy,
        };
        for socket in &mut sockets {
            socket.refill(&mut pool);
            let attached = links[usize::from(socket.link.0)].attached;
            attached
                .enter_socket(socket.queue, socket.fd())
                .map_err(|source| SocketError::of(attached, socket.queue, source))?;
        }
        Ok(Self { sockets, senders, pool, copy, polls: false, turn: 0 })
    }

    /// Makes [`Self::drive`] run the drivers' receive loops.
    ///
    /// # Errors
    ///
    /// The kernel has no preferred busy polling, or the process may not use it.
    pub fn prefer_busy_polling(&mut self) -> io::Result<()> {
        // Set first: sockets that have accepted the option keep it if another one refuses.
        self.polls = true;
        self.fds().try_for_each(|socket| PreferBusyPolling.run(&[socket]).map(drop))
    }

    /// Runs the receive loop of each queue's driver once, after [`Self::prefer_busy_polling`]. Cost: a system call for
    /// each queue.
    pub fn drive(&self) {
        self.fds().for_each(sys::kick_receive);
    }

    /// The pool, for packets that do not pass through the rings.
    pub fn pool(&mut self) -> &mut FramePool {
        &mut self.pool
    }

    /// The number of frames in each state.
    pub fn census(&self) -> Census {
        self.pool.census()
    }

    /// Whether frames are copied, and the interface that is the reason.
    pub fn copy_mode(&self) -> &CopyMode {
        &self.copy
    }

    /// The number of links.
    pub fn links(&self) -> usize {
        self.senders.len()
    }

    /// The descriptors to poll for packets.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(Socket::fd)
    }

    /// The counters of each queue.
    pub fn statistics(&self) -> impl Iterator<Item = (LinkId, u32, Statistics)> + '_ {
        self.sockets.iter().map(|socket| (socket.link, socket.queue, socket.statistics(&self.copy)))
    }

    /// Receives packets from the sockets in turn, with up to `room` frames in total (at most [`BURST`]). Each call
    /// begins with another socket.
    pub fn receive(&mut self, room: usize, mut take: impl FnMut(LinkId, Frame)) {
        let mut room = room.min(BURST);
        let count = self.sockets.len();
        self.turn = (self.turn + 1) % count.max(1);
        for step in 0..count {
            let socket = &mut self.sockets[(self.turn + step) % count];
            room -= socket.receive(&mut self.pool, room, &mut take);
            if room == 0 {
                break;
            }
        }
    }

    /// Queues a frame for the next [`Self::flush`]. Returns it if there is no such link, if the link is down, or if its
    /// ring has no room for the whole packet. Frames that were in the ring when the link went down are sent once it is
    /// up again.
    pub fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        let Some(&Some(sender)) = self.senders.get(usize::from(link.0)) else { return Err(frame) };
        self.sockets[sender].queue(&mut self.pool, frame)
    }

    /// Submits queued frames, takes back sent ones, and refills the fill rings. If another flush is needed even though
    /// no frame arrives, returns the longest time until then.
    pub fn flush(&mut self) -> Option<Duration> {
        let mut again = None;
        for socket in &mut self.sockets {
            socket.submit();
            socket.kick(&self.copy, self.polls);
            socket.reap(&mut self.pool);
            socket.refill(&mut self.pool);
            let due = if socket.wants_another_kick() {
                Some(SEND_AGAIN)
            } else if self.copy == CopyMode::ZeroCopy && socket.is_starved() {
                Some(LOOK_AGAIN)
            } else {
                None
            };
            again = [again, due].into_iter().flatten().min();
        }
        again
    }
}

/// The delay before frames that the kernel has left unsent are submitted again.
const SEND_AGAIN: Duration = Duration::from_millis(1);
/// The delay before the flag of a driver without frames is checked again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Creates a socket once its queue is free. The UMEM and the sockets of other queues stay, because creating them again
/// takes far longer, and the kernel would have to free those queues, too.
fn when_free(open: impl Fn() -> Result<Socket, SocketError>) -> Result<Socket, SocketError> {
    let until = Instant::now() + OCCUPIED;
    loop {
        match open() {
            Err(SocketError::Occupied { .. }) if Instant::now() < until => thread::sleep(LOOK_INTERVAL),
            result => return result,
        }
    }
}
