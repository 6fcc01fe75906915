//! Errors that keep the daemon from starting.

use std::io;

use thiserror::Error;
use xvs_xdp::{AttachError, SocketError};

use crate::config::ConfigError;
use crate::workers::membership::Membership;
use crate::workers::placement::PlacementError;

/// Why the daemon does not start, or cannot attach an interface again.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("{0}")]
    Member(Membership),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(
        "the XDP program cannot be loaded ({0}); xvsd needs root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON"
    )]
    Program(io::Error),
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
}

/// The error of a system call, with its purpose.
pub fn system(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |error| DaemonError::System { what, error }
}
