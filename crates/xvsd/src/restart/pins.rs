//! Pins of XDP programs at the start: the directory of this director's pins, and the error about a pin of another
//! director.

use std::io;
use std::time::Duration;

use thiserror::Error;
use xvs_ctl::config::Config;
use xvs_host::instance::{name_of, socket_of};
use xvs_host::state_directory::Others;
use xvs_xdp::AttachError;
use xvs_xdp::device::Program;
use xvs_xdp::pins::{Pins, folder, folder_or_mount};

use crate::error::DaemonError;

/// A reason why the XDP programs cannot be pinned.
#[derive(Debug, Error)]
pub(crate) enum NoPins {
    #[error(
        "there is no hold, so the kernel resets connections when xvsd ends: no bpffs is mounted ({0}); run `mount -t bpf \
         bpf /sys/fs/bpf` on the host and restart xvsd, or set hold = \"0\""
    )]
    NoHold(io::Error),
    /// The pins of the running process cannot be found.
    #[error(
        "its XDP programs are pinned in a bpffs, and this mount namespace has none ({0}); if it has one of its own, \
         `nsenter --mount --target PID` enters that"
    )]
    OtherNamespace(io::Error),
}

/// The pins of this director. Without a hold: `None`, and pins of an earlier process are removed.
pub(crate) fn open(config: &Config, others: Others) -> Result<Option<Pins>, NoPins> {
    let director = name_of(&config.socket);
    if config.hold.duration() == Duration::ZERO {
        match folder().map(|folder| Pins::of(&folder, &director).release()).transpose() {
            Ok(released) => {
                for interface in released.unwrap_or_default() {
                    tracing::info!("{interface}: the hold has ended, hold = 0");
                }
            }
            Err(error) => tracing::warn!("pins of an earlier xvsd cannot be removed: {error}"),
        }
        return Ok(None);
    }
    match (folder_or_mount(), others) {
        (Ok(folder), _) => Ok(Some(Pins::of(&folder, &director))),
        (Err(error), Others::Ended) => Err(NoPins::NoHold(error)),
        (Err(error), Others::Run) => Err(NoPins::OtherNamespace(error)),
    }
}

/// The error of an interface that cannot be attached. If another director's program is pinned there, the error names
/// that director.
pub(crate) fn explained(error: AttachError) -> DaemonError {
    match error {
        AttachError::Occupied {
            interface,
            program: Program { process: None, pinned_by: Some(director), .. },
        } => DaemonError::Pinned { interface, socket: socket_of(&director) },
        error => error.into(),
    }
}
