//! Polling: whether interrupts or the worker itself run the drivers' receive loops for the worker's queues.
//!
//! With preferred busy polling (`SO_PREFER_BUSY_POLL`, Linux 5.11) each `recvfrom` and `sendto` on an AF_XDP socket
//! runs the driver's receive loop (NAPI) in the calling thread (net/xdp/xsk.c, `sk_busy_loop`), and the driver's
//! interrupt stays masked as long as the interface defers interrupts (`napi_defer_hard_irqs`, `gro_flush_timeout`;
//! net/core/dev.c, `busy_poll_stop`). If a driver does not register its queues with a NAPI, or the kernel is older,
//! interrupts fill the rings as usual, and the worker, which does not sleep, finds the frames there.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use xvs_helper::process::Known;
use xvs_helper::task::{Answer, Task, known};

use super::sys::set_option;

/// How a worker waits for frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// It sleeps as soon as there are none.
    #[default]
    Sleep,
    /// The worker runs the drivers while frames arrive, and sleeps after a tenth of a millisecond without any.
    Adaptive,
    /// It always drives the drivers, and never sleeps.
    Busy,
}

impl fmt::Display for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sleep => "sleep",
            Self::Adaptive => "adaptive",
            Self::Busy => "busy",
        })
    }
}

/// Makes each call on these sockets, which are arguments, run their drivers' receive loops.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PreferBusyPolling;

impl Task for PreferBusyPolling {
    const NAME: &'static str = "prefer-busy-polling";
    type Done = ();

    fn carry_out(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        for socket in sockets {
            for (name, value) in
                [(PREFER_BUSY_POLL, 1), (BUSY_POLL_BUDGET, BUDGET), (libc::SO_BUSY_POLL, MICROS)]
            {
                set_option(*socket, name, value)?;
            }
        }
        Ok(((), Vec::new()))
    }
}

/// The task, for the rules of a helper.
pub const PREFER_BUSY_POLLING: Known = known::<PreferBusyPolling>();

/// asm-generic/socket.h.
const PREFER_BUSY_POLL: c_int = 69;
const BUSY_POLL_BUDGET: c_int = 70;

/// Maximum number of packets for one call: one burst.
const BUDGET: c_int = crate::burst::BURST as c_int;
/// A call on a non-blocking socket runs the loop once if this is not 0.
const MICROS: c_int = 20;
