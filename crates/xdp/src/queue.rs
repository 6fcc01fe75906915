//! The kernel's socket of one queue of one interface, with its four rings.
//!
//! Made and deleted by the control thread; its rings are used by the worker.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use libxdp_sys as sys;

use super::rings::{CompletionRing, FillRing, ReceiveRing, TransmitRing};
use super::umem::Umem;

/// The rings of one queue of one interface, and the kernel's socket that they belong to.
pub(super) struct Rings {
    pub(super) transmit: TransmitRing,
    pub(super) receive: ReceiveRing,
    pub(super) fill: FillRing,
    pub(super) completion: CompletionRing,
    socket: NonNull<sys::xsk_socket>,
    umem: Arc<Umem>,
}

// SAFETY: socket and rings are reached through this value only, and libxdp keeps nothing of them for a thread; what sockets
// of one UMEM share is touched under the UMEM's lock, when one is made or deleted.
unsafe impl Send for Rings {}

impl Rings {
    /// Makes a socket of this UMEM and binds it to a queue.
    ///
    /// # Errors
    /// What the kernel says; EBUSY if the UMEM has a socket of this queue already.
    pub(super) fn open(
        umem: &Arc<Umem>,
        interface: &str,
        queue: u32,
        config: &sys::xsk_socket_config,
    ) -> io::Result<Self> {
        let (transmit, receive) = (TransmitRing::unset(), ReceiveRing::unset());
        let (socket, fill, completion) = umem.open_socket(interface, queue, &transmit, &receive, config)?;
        let rings = Self { transmit, receive, fill, completion, socket, umem: Arc::clone(umem) };
        match rings.fill.is_set() {
            true => Ok(rings),
            // libxdp has put it on the rings of the socket that was there before.
            false => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is deleted when `self` is dropped.
        let fd = unsafe { sys::xsk_socket__fd(self.socket.as_ptr()) };
        // SAFETY: the descriptor is open until then, which `self`'s borrow prevents.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: `open_socket` of this UMEM made the socket, and this is its only owner. The rings, which the call reads,
        // are fields and are freed after it.
        unsafe { self.umem.delete_socket(self.socket) };
    }
}
