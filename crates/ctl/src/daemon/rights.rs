//! The rights that xvsd needs: capabilities, and enough open files.
//!
//! Checked before anything is started, so that the error names the missing right and not the system call that fails
//! without it. Not here: locked memory, of which the packet memory's error tells.

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::daemon::error::{DaemonError, system};

/// The fewest open files: with fewer, xvsd fails at some call of its start. With these it serves two interfaces, runs
/// few health checks at once, and takes few clients.
const FILES_MIN: u64 = 96;

/// The capabilities that the kernel requires, each with others that it accepts instead.
const NEEDED: [(&str, CapabilitySet); 4] = [
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ("CAP_NET_RAW", CapabilitySet::NET_RAW),
    ("CAP_BPF", CapabilitySet::BPF.union(CapabilitySet::SYS_ADMIN)),
    ("CAP_PERFMON", CapabilitySet::PERFMON.union(CapabilitySet::SYS_ADMIN)),
];

/// Checks the capabilities of the process and its limit of open files.
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
    // Not raised here: the engine of the health checks does so, and gives scripts the limit that xvsd was started with.
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < FILES_MIN => Err(DaemonError::Files { limit, needed: FILES_MIN }),
        _ => Ok(()),
    }
}
