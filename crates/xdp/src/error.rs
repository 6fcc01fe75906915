//! The error of opening a worker's sockets.

use std::io;

use super::attach::Attached;
use super::kernel::NO_SOCKETS;
use super::umem::UmemError;

/// The reason why a worker's sockets could not be opened. None of them stays open.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The process may not lock enough memory.
    #[error(
        "{needed_bytes} bytes of packet memory may not be locked; raise `ulimit -l` (LimitMEMLOCK= of a unit), give \
         CAP_IPC_LOCK, or lower `receive_ring`"
    )]
    MemoryLimit {
        /// The size of this worker's UMEM in bytes.
        needed_bytes: u64,
    },
    /// The UMEM could not be created.
    #[error("packet memory: {0}")]
    Memory(io::Error),
    /// A ring size is below 64 or not a power of two, or an interface has no queue for the worker.
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
    /// There are no such sockets.
    #[error("{NO_SOCKETS}")]
    NoSockets,
    /// The kernel refused.
    #[error("AF_XDP socket on queue {queue} of {interface}: {source}")]
    Kernel {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The kernel's error.
        source: io::Error,
    },
}

impl SocketError {
    /// The operator's error message if a queue could not be opened.
    pub(super) fn of(attached: &Attached, queue: u32, source: io::Error) -> Self {
        let interface = attached.interface().to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) => Self::Occupied { interface, queue },
            Some(libc::EAFNOSUPPORT) => Self::NoSockets,
            _ => Self::Kernel { interface, queue, source },
        }
    }
}

impl From<UmemError> for SocketError {
    fn from(error: UmemError) -> Self {
        match error {
            UmemError::MemoryLimit(needed_bytes) => Self::MemoryLimit { needed_bytes },
            // The packet memory belongs to a socket.
            UmemError::Kernel(source) if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => Self::NoSockets,
            UmemError::Kernel(source) => Self::Memory(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_af_xdp_the_step_is_named() {
        let source = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        let said = SocketError::from(UmemError::Kernel(source)).to_string();
        assert!(said.contains("CONFIG_XDP_SOCKETS") && said.contains("RestrictAddressFamilies="), "{said}");
    }
}
