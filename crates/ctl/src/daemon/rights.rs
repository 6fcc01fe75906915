//! The rights that xvsd needs: capabilities, and enough open files.
//!
//! Checked before anything is started, so that the error names the missing right and not the system call that fails
//! without it. Not here: locked memory, of which the packet memory's error tells.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::daemon::error::{DaemonError, system};

/// The largest limit of open files that xvsd sets itself: scripts inherit it, and some programs try to close every
/// number below it.
const FILES_MAX: u64 = 65_536;
/// The fewest open files: two for each of 64 clients, about 30 for each interface and its sockets, and as many for
/// health checks.
const FILES_MIN: u64 = 256;

/// The capabilities that the kernel requires, each with others that it accepts instead.
const NEEDED: [(&str, CapabilitySet); 4] = [
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ("CAP_NET_RAW", CapabilitySet::NET_RAW),
    ("CAP_BPF", CapabilitySet::BPF.union(CapabilitySet::SYS_ADMIN)),
    ("CAP_PERFMON", CapabilitySet::PERFMON.union(CapabilitySet::SYS_ADMIN)),
];

/// Checks the capabilities of the process, and raises its limit of open files as far as it may.
///
/// # Errors
/// [`DaemonError::Rights`] or [`DaemonError::Files`].
pub fn check() -> Result<(), DaemonError> {
    let has = capabilities(None).map_err(|error| system("capabilities")(error.into()))?.effective;
    let missing: Vec<_> =
        NEEDED.iter().filter(|(_, any)| !has.intersects(*any)).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        return Err(DaemonError::Rights { missing: missing.join(", "), units: missing.join(" ") });
    }
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = maximum.unwrap_or(FILES_MAX).min(FILES_MAX);
    let current = match current {
        Some(current) if current < raised => {
            let limit = Rlimit { current: Some(raised), maximum };
            setrlimit(Resource::Nofile, limit)
                .map_err(|error| system("the limit of open files")(error.into()))?;
            raised
        }
        current => current.unwrap_or(u64::MAX),
    };
    if current < FILES_MIN { Err(DaemonError::Files { limit: current, needed: FILES_MIN }) } else { Ok(()) }
}
