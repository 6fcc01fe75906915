//! The setting of `lo` by which the kernel takes packets from its own addresses there.
//!
//! The kernel refuses packets from its own addresses, except those that it has sent by `lo` and that still have their
//! route. A frame that xvsd gives back to `lo` has none. Only the machine itself sends by `lo`, so the setting admits
//! nothing else, and it stays on.

use std::{fs, io};

/// Allows it.
///
/// # Errors
/// The kernel's error, with the setting.
pub fn accept_own_addresses() -> io::Result<()> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{ACCEPT_LOCAL}: {error}"));
    if fs::read_to_string(ACCEPT_LOCAL).map_err(failed)?.trim() == "1" {
        return Ok(());
    }
    fs::write(ACCEPT_LOCAL, "1").map_err(failed)
}

const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";
