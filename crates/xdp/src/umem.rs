//! A worker's packet memory (UMEM): how large it is, and its registration with the kernel.
//!
//! Made once for a worker. The kernel locks the memory, so its size meets RLIMIT_MEMLOCK; the limit is raised as far as this
//! process may. Not here: which frame is where (`frame.rs`).

use std::ffi::CString;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libxdp_sys as sys;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::rings::{CompletionRing, FillRing, ReceiveRing, TransmitRing};
use crate::burst::{BURST, HELD};
use crate::frame::{FrameLayout, FramePool};

/// How many frames each socket of a worker may have lent to the kernel; both are powers of two, at least 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// Waiting for packets.
    pub receive: u32,
    /// Waiting to be sent.
    pub transmit: u32,
}

impl Default for RingSizes {
    /// With two interfaces of 1500 bytes MTU, one worker's UMEM has 7 MiB: less than the 8 MiB that
    /// `ulimit -l` mostly allows.
    fn default() -> Self {
        Self { receive: 1024, transmit: 512 }
    }
}

/// Frames for packets of up to `mtu` bytes, and enough of them for all rings of so many queues to be full.
pub(super) fn layout(mtu: u32, queues: usize, sizes: RingSizes) -> FrameLayout {
    FrameLayout {
        frame_size_bytes: frame_size_bytes(mtu),
        headroom_bytes: HEADROOM_BYTES,
        frames: frames(queues, sizes),
    }
}

/// How many bytes of locked memory a worker takes for so many queues of all its interfaces, of which this is the largest
/// MTU.
pub fn umem_bytes(mtu: u32, queues: usize, sizes: RingSizes) -> u64 {
    bytes(layout(mtu, queues, sizes))
}

fn bytes(layout: FrameLayout) -> u64 {
    u64::from(layout.frames) * u64::from(layout.frame_size_bytes)
}

fn frame_size_bytes(mtu: u32) -> u32 {
    let small = mtu + LINK_HEADER_BYTES + HEADROOM_BYTES <= SMALL_FRAME_BYTES;
    if small { SMALL_FRAME_BYTES } else { LARGE_FRAME_BYTES }
}

fn frames(queues: usize, sizes: RingSizes) -> u32 {
    queues as u32 * (sizes.receive + sizes.transmit) + RESERVE
}

/// Why there is no packet memory.
#[derive(Debug)]
pub(super) enum UmemError {
    /// So many bytes may not be locked.
    MemoryLimit(u64),
    /// The kernel refused.
    Kernel(io::Error),
}

/// Packet memory that is registered with the kernel. Kept by its sockets and by the pool of its frames.
#[derive(Debug)]
pub(super) struct Umem {
    /// What libxdp reads and writes whenever a socket is made or deleted.
    state: Mutex<State>,
    /// Unmapped after `state`'s UMEM was deleted: see `drop`.
    area: Area,
}

#[derive(Debug)]
struct State {
    umem: NonNull<sys::xsk_umem>,
    /// The rings that came with the UMEM, until a socket has them: until then libxdp remembers the pointers, and the first
    /// socket must be made with the same ones.
    first: Option<(FillRing, CompletionRing)>,
}

// SAFETY: libxdp keeps nothing of a UMEM for a thread, and all calls with it are made under the lock around this value.
unsafe impl Send for State {}

impl Umem {
    /// Maps memory and registers it. Returns it with the pool of its frames.
    pub(super) fn create(layout: FrameLayout, sizes: RingSizes) -> Result<(Arc<Self>, FramePool), UmemError> {
        let over_limit = |error: &io::Error| error.raw_os_error() == Some(libc::ENOBUFS);
        let register = || Self::register(layout, sizes);
        let umem =
            register()
                .or_else(|error| {
                    if over_limit(&error) && lift_memory_limit().is_ok() { register() } else { Err(error) }
                })
                .map_err(|error| match over_limit(&error) {
                    true => UmemError::MemoryLimit(bytes(layout)),
                    false => UmemError::Kernel(error),
                })?;
        let umem = Arc::new(umem);
        let (base, owner) = (umem.area.base, Box::new(Arc::clone(&umem)));
        // SAFETY: the area has as many bytes as this layout, and is unmapped when the last clone of `umem` is dropped, of
        // which `owner` is one. Only frames of this pool lead to its bytes: nothing else takes `base`, and this function
        // makes one pool of each area. The kernel accesses what rings name, which is what the pool has lent.
        let pool = unsafe { FramePool::over(base, layout, owner) };
        Ok((umem, pool))
    }

    fn register(layout: FrameLayout, sizes: RingSizes) -> io::Result<Self> {
        let area = Area::map(bytes(layout) as usize)?;
        let (fill, completion) = (FillRing::unset(), CompletionRing::unset());
        let config = sys::xsk_umem_config {
            fill_size: sizes.receive,
            comp_size: sizes.transmit,
            frame_size: layout.frame_size_bytes,
            frame_headroom: 0,
            flags: 0,
        };
        let (mut umem, start, size) = (null_mut(), area.base.as_ptr().cast(), area.size_bytes as u64);
        let (fill_ring, completion_ring) = (fill.as_ptr(), completion.as_ptr());
        // SAFETY: `start` is that of `size` mapped bytes, which stay mapped until after the UMEM is deleted, as do the rings
        // stay where they are: the fields of this type and its `drop` see to both.
        let result =
            unsafe { sys::xsk_umem__create(&mut umem, start, size, fill_ring, completion_ring, &config) };
        check(result)?;
        let umem = NonNull::new(umem).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { state: Mutex::new(State { umem, first: Some((fill, completion)) }), area })
    }

    /// Makes a socket with these rings and binds it. Returns it with its fill and completion rings, which are unset if the
    /// UMEM has a socket of this queue already.
    ///
    /// The rings must stay until the socket is deleted: [`super::queue::Rings`] sees to it.
    pub(super) fn open_socket(
        &self,
        interface: &str,
        queue: u32,
        transmit: &TransmitRing,
        receive: &ReceiveRing,
        config: &sys::xsk_socket_config,
    ) -> io::Result<(NonNull<sys::xsk_socket>, FillRing, CompletionRing)> {
        let name = CString::new(interface).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let mut state = self.state();
        let fresh = (FillRing::unset(), CompletionRing::unset());
        let (fill, completion) = state.first.as_ref().unwrap_or(&fresh);
        let (mut socket, umem) = (null_mut(), state.umem.as_ptr());
        let [transmit, fill] = [transmit.as_ptr(), fill.as_ptr()];
        let [receive, completion] = [receive.as_ptr(), completion.as_ptr()];
        // SAFETY: the UMEM is alive and the lock held. While it has rings of its own it gets these same ones, as libxdp
        // wants it; all rings are allocated, and what libxdp remembers of them outlives the socket (`Rings`). The name
        // ends with a zero byte, and both it and `config` are only read.
        let result = unsafe {
            sys::xsk_socket__create_shared(
                &mut socket,
                name.as_ptr(),
                queue,
                umem,
                receive,
                transmit,
                fill,
                completion,
                config,
            )
        };
        // If it failed, the UMEM's own rings are still the UMEM's.
        check(result)?;
        let socket = NonNull::new(socket).ok_or(io::ErrorKind::OutOfMemory)?;
        let (fill, completion) = state.first.take().unwrap_or(fresh);
        Ok((socket, fill, completion))
    }

    /// Closes a socket of this UMEM and unmaps its rings.
    ///
    /// # Safety
    /// `socket` came from [`Self::open_socket`] of this UMEM, is not used after, and its rings still stand where they were.
    pub(super) unsafe fn delete_socket(&self, socket: NonNull<sys::xsk_socket>) {
        let _state = self.state();
        // SAFETY: as the caller promises; the lock keeps others from the UMEM, which the call changes.
        unsafe { sys::xsk_socket__delete(socket.as_ptr()) };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        let state = self.state();
        // SAFETY: every socket keeps an `Arc` of this value until it is deleted, so there is none left. The area and the
        // rings, which are fields, are still there. The call can fail only for a UMEM that has sockets.
        let _ = unsafe { sys::xsk_umem__delete(state.umem.as_ptr()) };
    }
}

/// Anonymous memory, mapped and touched.
#[derive(Debug)]
struct Area {
    base: NonNull<u8>,
    size_bytes: usize,
}

// SAFETY: it is an address and a length; what lies there is reached through the pool's frames only.
unsafe impl Send for Area {}
// SAFETY: as for `Send`.
unsafe impl Sync for Area {}

impl Area {
    fn map(size_bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the address is the kernel's choice, so no other mapping is replaced.
        let start =
            unsafe { mmap_anonymous(null_mut(), size_bytes, access, MapFlags::SHARED | MapFlags::POPULATE) }?;
        let base = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, size_bytes })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the range is what `map` got, and nothing leads there any more: the owner's UMEM is deleted, and its pool
        // keeps the owner alive while a frame is out. It can fail only for a range that is not ours.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size_bytes) };
    }
}

/// What libxdp returns: 0, or an error number below zero.
fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Lets this process lock as much memory as it wants, or else as it may.
fn lift_memory_limit() -> io::Result<()> {
    let allowed = getrlimit(Resource::Memlock).maximum;
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })
        .or_else(|_| setrlimit(Resource::Memlock, Rlimit { current: allowed, maximum: allowed }))?;
    Ok(())
}

/// Before a received packet; outer headers are pushed into it (linux/bpf.h, XDP_PACKET_HEADROOM).
const HEADROOM_BYTES: u32 = 256;
/// An Ethernet header with two tags.
const LINK_HEADER_BYTES: u32 = 22;
/// The smallest frame that the kernel takes (net/xdp/xdp_umem.c, XDP_UMEM_MIN_CHUNK_SIZE), and a page.
const SMALL_FRAME_BYTES: u32 = 2048;
const LARGE_FRAME_BYTES: u32 = 4096;
/// Kept for the pipeline: the burst in hand, what it holds back, what the director originates. While it takes no more
/// than three bursts of it, every fill ring can be refilled, whatever the TX rings hold.
const RESERVE: u32 = 4 * BURST as u32 + HELD as u32;
