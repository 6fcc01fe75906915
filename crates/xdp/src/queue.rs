//! The kernel's socket for one queue of one interface, with its four rings.
//!
//! The control thread creates and deletes it; the worker uses its rings.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use libxdp_sys as sys;

use super::rings::{CompletionRing, FillRing, ReceiveRing, TransmitRing};
use super::umem::Umem;

/// The rings of one queue of one interface, and their socket.
pub(super) struct Rings {
    pub(super) transmit: TransmitRing,
    pub(super) receive: ReceiveRing,
    pub(super) fill: FillRing,
    pub(super) completion: CompletionRing,
    socket: NonNull<sys::xsk_socket>,
    umem: Arc<Umem>,
}

// SAFETY: only this value gives access to the socket and its rings, and libxdp stores nothing about them for a
// particular thread. The state that the sockets of one UMEM share changes only under the UMEM's lock, when a socket is
// created or deleted.
unsafe impl Send for Rings {}

impl Rings {
    /// Creates a socket with this UMEM and binds it to a queue.
    ///
    /// # Errors
    ///
    /// The kernel's error; EBUSY if the UMEM already has a socket for this queue.
    pub(super) fn open(
        umem: &Arc<Umem>,
        interface: &str,
        queue: u32,
        config: &sys::xsk_socket_config,
    ) -> io::Result<Self> {
        let transmit = TransmitRing::unset();
        let receive = ReceiveRing::unset();
        let (socket, fill, completion) = umem.open_socket(interface, queue, &transmit, &receive, config)?;
        let rings = Self { transmit, receive, fill, completion, socket, umem: Arc::clone(umem) };
        match rings.fill.is_set() {
            true => Ok(rings),
            // libxdp has attached the socket to the rings of this queue's earlier socket.
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
        // SAFETY: `open_socket` of this UMEM created the socket, and this is its only owner. The call reads the rings,
        // which are fields and are freed after it.
        unsafe { self.umem.delete_socket(self.socket) };
    }
}
