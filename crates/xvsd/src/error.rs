//! Errors that prevent the daemon's start.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use xvs_ctl::bonds::BondError;
use xvs_ctl::config::ConfigError;
use xvs_ctl::placement::PlacementError;
use xvs_host::state_directory::StateDirectoryError;
use xvs_model::config::refusal::CommandError;
use xvs_xdp::{AttachError, SocketError};

use crate::restart::take_over::TakeOverError;

/// Why the daemon does not start, or cannot attach an interface again.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(
        "{interface} has the XDP program of the director with the socket {socket}, which does not run; `XVS_SOCKET={socket} \
         xvs stop --release` removes it", socket = socket.display()
    )]
    Pinned { interface: String, socket: PathBuf },
    #[error(transparent)]
    Membership(#[from] BondError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(
        "xvsd lacks {missing}; run it as root, and in a container add the capabilities (`--cap-add`); as another user, give \
         them by systemd (`AmbientCapabilities={units}`)"
    )]
    Rights { missing: String, units: String },
    #[error(
        "xvsd may open {limit} files only, and needs {needed}; raise `ulimit -n`, or `LimitNOFILE=` of its systemd unit"
    )]
    Files { limit: u64, needed: u64 },
    #[error(
        "the XDP program cannot be loaded ({0}); the kernel must allow bpf(2): see the requirements in docs/install.md, and \
         whether a user namespace, seccomp or lockdown forbids it"
    )]
    Program(io::Error),
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error("the running xvsd cannot be taken over: {0}; restart it instead (`systemctl restart xvsd`)")]
    TakeOver(String),
    #[error(
        "worker {worker} does not close its sockets; they are opened again once it does; if `xvs healthy` still names it \
         after some seconds, it hangs by a bug: restart xvsd"
    )]
    StuckWorker { worker: usize },
    #[error(transparent)]
    Successor(#[from] TakeOverError),
    #[error("rules: {0}")]
    Begin(CommandError),
    #[error("{0}; correct the file, then start or take over again")]
    Lists(CommandError),
    #[error("state_directory: {0}")]
    StateDirectory(#[from] StateDirectoryError),
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
}

impl DaemonError {
    /// Whether a start with the same configuration and rights would fail again, so that a retry is useless.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Config(_) | Self::Rights { .. } | Self::Files { .. } | Self::Placement(_) => true,
            // These may change while systemd retries; an interface of another kind stays as it is.
            Self::Attach(
                AttachError::NoSuchInterface { .. }
                | AttachError::Occupied { .. }
                | AttachError::Refused { .. }
                | AttachError::Kernel { .. },
            ) => false,
            Self::Attach(_) => true,
            Self::Pinned { .. }
            | Self::Membership(_)
            | Self::Socket(_)
            | Self::Program(_)
            | Self::StateDirectory(_)
            | Self::TakeOver(_)
            | Self::Begin(_)
            | Self::Lists(_)
            | Self::StuckWorker { .. }
            | Self::Successor(_)
            | Self::System { .. } => false,
        }
    }
}

/// The error of a system call, with its purpose.
pub fn system(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |error| DaemonError::System { what, error }
}
