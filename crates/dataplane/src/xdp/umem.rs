//! A worker's packet memory: how large, and the book of its frames.
//!
//! Made once a worker. The kernel has the memory locked, so its size meets RLIMIT_MEMLOCK; the limit is raised as far
//! as this process may.

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::ptr::{NonNull, with_exposed_provenance_mut};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xsk_rs::Umem;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig, XDP_UMEM_MIN_CHUNK_SIZE};
use xsk_rs::umem::frame::FrameDesc;

use super::socket::os_error;
use super::sockets::{Queues, SocketError};
use crate::fragments::HELD;
use crate::port::BURST;
use crate::shm::{FrameLayout, FramePool};

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

/// Frames for the largest packet of any of the interfaces, and enough of them for every ring to be full.
pub(super) fn layout(links: &[Queues<'_>], sizes: RingSizes) -> FrameLayout {
    let mtu = links.iter().map(|link| link.attached.mtu()).max().unwrap_or(0);
    let sockets: usize = links.iter().map(|link| link.queues.len()).sum();
    FrameLayout {
        frame_size_bytes: frame_size_bytes(mtu),
        headroom_bytes: HEADROOM_BYTES,
        frames: frames(sockets, sizes),
    }
}

/// How many bytes of locked memory a worker takes for so many queues of all its interfaces, of which this is the largest
/// MTU.
pub fn umem_bytes(mtu: u32, queues: usize, sizes: RingSizes) -> u64 {
    u64::from(frames(queues, sizes)) * u64::from(frame_size_bytes(mtu))
}

fn frame_size_bytes(mtu: u32) -> u32 {
    let small = mtu + LINK_HEADER_BYTES + HEADROOM_BYTES <= XDP_UMEM_MIN_CHUNK_SIZE;
    if small { 2048 } else { 4096 }
}

fn frames(queues: usize, sizes: RingSizes) -> u32 {
    queues as u32 * (sizes.receive + sizes.transmit) + RESERVE
}

/// Makes the UMEM and the book of its frames.
pub(super) fn area(layout: FrameLayout, sizes: RingSizes) -> Result<(Umem, FramePool), SocketError> {
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

/// A ring of so many slots.
pub(super) fn ring(slots: u32) -> Result<QueueSize, SocketError> {
    let invalid =
        || SocketError::Invalid(format!("a ring of {slots}: it must be a power of two, at least 64"));
    if slots < BURST as u32 { Err(invalid()) } else { QueueSize::new(slots).map_err(|_| invalid()) }
}

/// Before a received packet; outer headers are pushed into it (linux/bpf.h, XDP_PACKET_HEADROOM).
const HEADROOM_BYTES: u32 = 256;
/// An Ethernet header with two tags.
const LINK_HEADER_BYTES: u32 = 22;
/// Kept for the pipeline: the burst in hand, what it holds back, what the director originates. While it takes no more
/// than three bursts of it, every fill ring can be refilled, whatever the TX rings hold.
const RESERVE: u32 = 4 * BURST as u32 + HELD as u32;
