//! The pins of this director at the start: where they are, and those of other directors.

use std::time::Duration;

use xvs_ctl::config::Config;
use xvs_host::instance::{name_of, socket_of};
use xvs_host::state_directory::Others;
use xvs_xdp::AttachError;
use xvs_xdp::device::Program;
use xvs_xdp::pins::{Pins, folder, folder_or_mount};

use crate::error::DaemonError;

/// The pins of this director. Without a hold: `None`, and pins of an earlier process are removed.
///
/// # Errors
/// The warning that no hold is possible.
pub(crate) fn open(config: &Config, others: Others) -> Result<Option<Pins>, String> {
    let director = name_of(&config.socket);
    let hold = config.hold.duration();
    if hold == Duration::ZERO {
        match folder().map(|folder| Pins::of(&folder, &director).release()).transpose() {
            Ok(released) => {
                let released = released.unwrap_or_default();
                released
                    .iter()
                    .for_each(|interface| tracing::info!("{interface}: the hold has ended, hold = 0"));
            }
            Err(error) => tracing::warn!("pins of an earlier xvsd cannot be removed: {error}"),
        }
        return Ok(None);
    }
    let pins = folder_or_mount().map(|folder| Some(Pins::of(&folder, &director)));
    pins.map_err(|error| match others {
        Others::Ended => format!(
            "there is no hold, so the kernel resets connections when xvsd ends: no bpffs is mounted ({error}); run `mount \
             -t bpf bpf /sys/fs/bpf` on the host and restart xvsd, or set hold = \"0\""
        ),
        Others::Run => format!(
            "its XDP programs are pinned in a bpffs, and this mount namespace has none ({error}); if it has one of its own, \
             `nsenter --mount --target PID` enters that"
        ),
    })
}

/// The error of an interface that cannot be attached: it names the director whose program is pinned there.
pub(crate) fn explained(error: AttachError) -> DaemonError {
    match error {
        AttachError::Occupied {
            interface,
            program: Program { process: None, pinned_by: Some(director), .. },
        } => DaemonError::Pinned { interface, socket: socket_of(&director) },
        error => error.into(),
    }
}
