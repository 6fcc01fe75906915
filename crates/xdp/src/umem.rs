//! A worker's packet memory (UMEM): its size and its registration with the kernel.
//!
//! Created once for each worker. The kernel locks the memory, so RLIMIT_MEMLOCK limits its size; the limit is raised as
//! far as this process is allowed.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libxdp_sys as sys;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::rings::{CompletionRing, FillRing, ReceiveRing, TransmitRing};
use crate::bpf::check;
use crate::burst::{BURST, HELD, WAITING};
use crate::drivers::{HEADROOM_BYTES, LINK_HEADER_BYTES};
use crate::frame::{FrameLayout, FramePool};

/// Maximum numbers of frames that each socket of a worker may lend to the kernel. Both are powers of two, at least 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// Frames for received packets.
    pub receive: u32,
    /// Frames to be sent.
    pub transmit: u32,
}

impl Default for RingSizes {
    /// Enough frames for the windows of several TCP connections. With fewer, TCP loses packets whenever the worker has
    /// to wait for its core (docs/costs.md). With two interfaces and 2048-byte frames, one worker's UMEM has 19 MiB.
    fn default() -> Self {
        Self { receive: 4096, transmit: 512 }
    }
}

/// The layout with frames of this size for packets of up to `mtu` bytes, and enough of them to fill all rings of the
/// queues.
pub(super) fn layout(mtu: u32, frame_bytes: u32, queues: usize, sizes: RingSizes) -> FrameLayout {
    let parts = (mtu + LINK_HEADER_BYTES).div_ceil(frame_bytes - HEADROOM_BYTES);
    let frames = queues as u32 * (sizes.receive + sizes.transmit) + PIPELINE + KEPT * parts;
    FrameLayout { frame_size_bytes: frame_bytes, headroom_bytes: HEADROOM_BYTES, frames }
}

/// The size of locked memory in bytes, for a worker with `queues` queues on all its interfaces. `mtu` is their largest
/// MTU, `frame_bytes` their largest [`crate::frame_bytes`].
pub fn umem_bytes(mtu: u32, frame_bytes: u32, queues: usize, sizes: RingSizes) -> u64 {
    bytes(layout(mtu, frame_bytes, queues, sizes))
}

fn bytes(layout: FrameLayout) -> u64 {
    u64::from(layout.frames) * u64::from(layout.frame_size_bytes)
}

/// The reason why packet memory could not be created.
#[derive(Debug)]
pub(super) enum UmemError {
    /// The process may not lock this number of bytes.
    MemoryLimit(u64),
    /// The kernel refused.
    Kernel(io::Error),
}

/// Packet memory that is registered with the kernel. Its sockets and the pool of its frames keep it alive.
#[derive(Debug)]
pub(super) struct Umem {
    /// The state that libxdp reads and writes whenever a socket is created or deleted.
    state: Mutex<State>,
    /// Unmapped after the UMEM in `state` is deleted: see `drop`.
    area: Area,
}

#[derive(Debug)]
struct State {
    umem: NonNull<sys::xsk_umem>,
    /// The rings of the UMEM, until the first socket takes them over: libxdp keeps pointers to them, and the first
    /// socket must be created with the same ones.
    first: Option<(FillRing, CompletionRing)>,
}

// SAFETY: libxdp stores nothing about a UMEM for a particular thread, and all calls that use it run under the lock
// around this value.
unsafe impl Send for State {}

impl Umem {
    /// Maps memory and registers it with the kernel. Returns it with the pool of its frames.
    pub(super) fn create(layout: FrameLayout, sizes: RingSizes) -> Result<(Arc<Self>, FramePool), UmemError> {
        let registered = match Self::register(layout, sizes) {
            Err(error) if is_over_limit(&error) && lift_memory_limit().is_ok() => {
                Self::register(layout, sizes)
            }
            result => result,
        };
        let umem = Arc::new(registered.map_err(|error| match is_over_limit(&error) {
            true => UmemError::MemoryLimit(bytes(layout)),
            false => UmemError::Kernel(error),
        })?);
        let base = umem.area.base;
        let owner = Box::new(Arc::clone(&umem));
        // SAFETY: the area has as many bytes as this layout, and is unmapped when the last clone of `umem` is dropped,
        // of which `owner` is one. Only frames of this pool give access to its bytes: no other code uses `base`, and
        // this function creates one pool for each area. The kernel accesses only frames that rings name, which the pool
        // has lent.
        let pool = unsafe { FramePool::over(base, layout, owner) };
        Ok((umem, pool))
    }

    fn register(layout: FrameLayout, sizes: RingSizes) -> io::Result<Self> {
        let area = Area::map(bytes(layout) as usize)?;
        let fill = FillRing::unset();
        let completion = CompletionRing::unset();
        let config = sys::xsk_umem_config {
            fill_size: sizes.receive,
            comp_size: sizes.transmit,
            frame_size: layout.frame_size_bytes,
            frame_headroom: 0,
            flags: 0,
        };
        let mut umem = null_mut();
        // SAFETY: `area.base` points to `area.size_bytes` mapped bytes. They stay mapped, and the rings keep their
        // addresses, until after the UMEM is deleted: the fields of this type and its `drop` ensure both.
        check(unsafe {
            sys::xsk_umem__create(
                &mut umem,
                area.base.as_ptr().cast(),
                area.size_bytes as u64,
                fill.as_ptr(),
                completion.as_ptr(),
                &config,
            )
        })?;
        let umem = NonNull::new(umem).ok_or(io::ErrorKind::OutOfMemory)?;
        let this = Self { state: Mutex::new(State { umem, first: Some((fill, completion)) }), area };
        // SAFETY: the UMEM is alive, and the call returns its descriptor.
        let fd = unsafe { sys::xsk_umem__fd(umem.as_ptr()) };
        // SAFETY: the descriptor stays open as long as the UMEM.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // A script that inherited it would keep the first queue occupied.
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        Ok(this)
    }

    /// Creates a socket with these rings and binds it. Returns it with its fill and completion rings, which are unset
    /// if the UMEM already has a socket for this queue.
    ///
    /// The rings must stay until the socket is deleted; [`super::queue::Rings`] ensures this.
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
        let mut socket = null_mut();
        // If the call fails, the rings still belong to the UMEM.
        // SAFETY: the UMEM is alive and the lock held. While the UMEM has rings, the call gets these same ones, as
        // libxdp requires. All rings are allocated, and those that libxdp remembers outlive the socket (`Rings`). The
        // name ends with a zero byte, and both it and `config` are only read.
        check(unsafe {
            sys::xsk_socket__create_shared(
                &mut socket,
                name.as_ptr(),
                queue,
                state.umem.as_ptr(),
                receive.as_ptr(),
                transmit.as_ptr(),
                fill.as_ptr(),
                completion.as_ptr(),
                config,
            )
        })?;
        let socket = NonNull::new(socket).ok_or(io::ErrorKind::OutOfMemory)?;
        let (fill, completion) = state.first.take().unwrap_or(fresh);
        Ok((socket, fill, completion))
    }

    /// Closes a socket of this UMEM and unmaps its rings.
    ///
    /// # Safety
    ///
    /// `socket` came from [`Self::open_socket`] of this UMEM and is not used afterwards, and its rings still have their
    /// addresses.
    pub(super) unsafe fn delete_socket(&self, socket: NonNull<sys::xsk_socket>) {
        let _state = self.state();
        // SAFETY: as the caller guarantees; the lock excludes other calls with the UMEM, which this one changes.
        unsafe { sys::xsk_socket__delete(socket.as_ptr()) };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_over_limit(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

impl Drop for Umem {
    fn drop(&mut self) {
        let state = self.state();
        // SAFETY: every socket keeps an `Arc` of this value until it is deleted, so no socket is left. The area and the
        // rings are fields, so they are still there. The call can fail only for a UMEM that has sockets.
        let _ = unsafe { sys::xsk_umem__delete(state.umem.as_ptr()) };
    }
}

/// Anonymous memory, mapped and populated.
#[derive(Debug)]
struct Area {
    base: NonNull<u8>,
    size_bytes: usize,
}

// SAFETY: the value is an address and a length; only frames of the pool access the bytes there.
unsafe impl Send for Area {}
// SAFETY: as for `Send`.
unsafe impl Sync for Area {}

impl Area {
    fn map(size_bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so no other mapping is replaced.
        let start =
            unsafe { mmap_anonymous(null_mut(), size_bytes, access, MapFlags::SHARED | MapFlags::POPULATE) }?;
        let base = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, size_bytes })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: `map` got this range, and nothing refers to it any more: the owner's UMEM is deleted, and the pool
        // keeps the owner alive while a frame is out. The call can fail only for a range that is not mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size_bytes) };
    }
}

/// Raises the limit of locked memory to infinity, or otherwise as far as this process may.
fn lift_memory_limit() -> io::Result<()> {
    let allowed = getrlimit(Resource::Memlock).maximum;
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })
        .or_else(|_| setrlimit(Resource::Memlock, Rlimit { current: allowed, maximum: allowed }))?;
    Ok(())
}

/// Frames for the pipeline: the burst that it processes, and frames that the director originates. While the pipeline
/// uses at most three bursts of frames, every fill ring can be refilled, whatever the TX rings contain.
const PIPELINE: u32 = 4 * BURST as u32;
/// Maximum number of packets that the pipeline holds back.
const KEPT: u32 = (HELD + WAITING) as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_memory_grows_with_the_parts_of_the_packets_that_are_held_back() {
        let sizes = RingSizes::default();
        let kept = (4096 + 512) * 2 + 4 * 64;
        assert_eq!(umem_bytes(1500, 2048, 2, sizes), (kept + 320) * 2048);
        assert_eq!(umem_bytes(3498, 4096, 2, sizes), (kept + 320) * 4096);
        assert_eq!(umem_bytes(9000, 4096, 2, sizes), (kept + 3 * 320) * 4096);
    }
}
