//! Forwarded packets that did not leave: after the XDP program has redirected a frame, the interface may refuse it.
//!
//! Only the kernel's tracepoints see that; programs count there (`bpf/losses.bpf.c`). Not here: what is done about it.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::Relaxed;

use xvs_xdp::bpf::{Words, follow_tracepoint};

use super::objects::Load;

/// The words of `struct xvs_losses`: three counts of each place.
pub(super) const COUNT: usize = 3 * PLACES;
const PLACES: usize = 4096;
/// The tracepoints and the programs there.
const TRACEPOINTS: [(&CStr, &CStr); 3] = [
    (c"xdp_devmap_xmit", c"refused"),
    (c"xdp_redirect_err", c"not_redirected"),
    (c"xdp_exception", c"exception"),
];

/// Packets that were to leave by an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaving {
    /// They have left; not counted in generic mode.
    pub sent: u64,
    /// The interface has refused them.
    pub refused: u64,
    /// In generic mode: its queue was full or stopped.
    pub full: u64,
}

/// The counts of this thread's network namespace, as long as this value exists.
#[derive(Debug)]
pub struct Losses {
    packets: Words<COUNT>,
    _tracepoints: [OwnedFd; 3],
}

impl Losses {
    /// Counts from now on.
    ///
    /// # Errors
    /// The kernel refuses: it has no such tracepoints, or no BTF.
    pub fn follow() -> io::Result<Self> {
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
        let object = Load::Losses(namespace as u32).object(None)?;
        let [refused, failed, exception] =
            TRACEPOINTS.map(|(tracepoint, program)| follow_tracepoint(tracepoint, object.program(program)?));
        Ok(Self { packets: object.words(c"losses")?, _tracepoints: [refused?, failed?, exception?] })
    }

    /// Those of the interface of this index.
    pub fn of(&self, ifindex: u32) -> Leaving {
        let [sent, refused, full] =
            [0, 1, 2].map(|kind| self.packets[kind * PLACES + ifindex as usize % PLACES].load(Relaxed));
        Leaving { sent, refused, full }
    }
}
