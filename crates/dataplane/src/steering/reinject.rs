//! Reinjection: passes needlessly steered frames back to the kernel.
//!
//! Each attached interface has one [`Reinjector`], which all workers share. The kernel receives a reinjected frame as
//! if the interface had received it and there were no XDP program, so routing, `rp_filter` and `-i` rules see the
//! actual interface. The frame goes through a TAP (`xvs0`, `xvs1`, …) with a tc program that redirects to the
//! interface's ingress. The TAP appears in `ip link` and is removed when the process ends. Cost: one system call for
//! each frame; rare by design.
//!
//! Reinjected frames are not steered again. In native mode the XDP program runs before the point of redirection. In
//! generic mode the kernel runs it again, so the frame carries a marker, which the program recognises and removes.
//!
//! One worker reads from the TAP the frames that this machine itself has sent on the interface, while these are
//! redirected (`own.rs`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use xvs_xdp::tap::Tap;
use xvs_xdp::{Attached, Frame, index_of};

use crate::steering::marker;
use crate::steering::objects::Load;

/// The path back to the kernel for frames of one interface.
pub struct Reinjector {
    tap: Tap,
    /// The kernel's index of the interface.
    interface: u32,
    /// The bytes before each frame.
    marker: Vec<u8>,
    /// Whether packets are redirected to the TAP.
    is_read: AtomicBool,
}

impl Reinjector {
    /// Opens the TAP in this thread's network namespace. The reinjector is valid for the interface as attached; if that
    /// is removed and added again, it needs a new one.
    ///
    /// # Errors
    ///
    /// The kernel's error: `/dev/net/tun` or CAP_NET_ADMIN is missing, or the kernel has no clsact.
    pub fn open(attached: &Attached) -> io::Result<Self> {
        Self::of(attached.index(), marker(attached).to_vec())
    }

    /// Like [`Self::open`], for the loopback interface, which has to accept packets from the machine's own addresses.
    ///
    /// # Errors
    ///
    /// Same as [`Self::open`].
    pub fn open_loopback() -> io::Result<Self> {
        Self::of(index_of("lo")?, Vec::new())
    }

    fn of(interface: u32, marker: Vec<u8>) -> io::Result<Self> {
        let object = Load::Reinject(interface).object(None)?;
        let tap = Tap::open(object.program(c"reinject")?, object.program(c"discard")?)?;
        Ok(Self { tap, interface, marker, is_read: AtomicBool::new(false) })
    }

    /// The kernel's index of the interface.
    pub fn interface(&self) -> u32 {
        self.interface
    }

    /// The kernel's index of the TAP.
    pub(super) fn tap_index(&self) -> u32 {
        self.tap.index()
    }

    /// The TAP's name.
    pub fn tap(&self) -> &str {
        self.tap.name()
    }

    /// Passes a frame to the kernel. Never blocks.
    ///
    /// # Errors
    ///
    /// The kernel has no memory for it, or the TAP was taken down.
    pub fn inject(&self, frame: &Frame) -> io::Result<()> {
        let mut parts = [IoSlice::new(&self.marker); 1 + MAX_PARTS];
        let mut count = 1;
        for part in frame.parts() {
            *parts.get_mut(count).ok_or(io::ErrorKind::InvalidInput)? = IoSlice::new(part);
            count += 1;
        }
        self.tap.write(&parts[..count])
    }

    /// Whether there may be frames to read.
    pub fn is_read(&self) -> bool {
        // Relaxed, here and below: a worker that sees it late reads the frames a little later.
        self.is_read.load(Ordering::Relaxed)
    }

    /// Discards frames that no worker has read.
    pub(super) fn drain(&self) {
        let mut byte = [0];
        for _ in 0..KEPT {
            if self.tap.read(&mut byte).is_err() {
                return;
            }
        }
    }

    pub(super) fn set_read(&self, read: bool) {
        self.is_read.store(read, Ordering::Relaxed);
    }

    /// Reads a frame that this machine has sent on the interface, truncated to `frame`. Returns its length. Never
    /// blocks.
    ///
    /// # Errors
    ///
    /// There is none, or the kernel's error.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.tap.read(frame)
    }
}

impl AsFd for Reinjector {
    /// For waiting until there is a frame to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

/// Maximum number of slots of a frame: those of the longest packet, which the machine sends on `lo`, in the smallest
/// slots.
const MAX_PARTS: usize = 38;
/// More frames than a TAP keeps for a reader (linux/if_tun.h: 500).
const KEPT: usize = 1000;
