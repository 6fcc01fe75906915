//! Why the server of the control socket does not start.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use xvs_host::own_folder::FolderError;

/// Why the server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Another server holds the lock.
    #[error(
        "another xvsd{} serves {}; stop it first, or choose another socket",
        by.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        socket.display()
    )]
    InUse {
        /// The socket that the other server serves.
        socket: PathBuf,
        /// The holder's process id, if the lock file contains it.
        by: Option<u32>,
    },
    /// The path exists, and is no socket.
    #[error("{} exists and is no socket; move it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket's directory is not safe.
    #[error("the control socket: {0}")]
    Folder(#[from] FolderError),
    /// A system call failed.
    #[error("{call} {}: {error}{}", path.display(), step(error))]
    System {
        /// The call.
        call: &'static str,
        /// The path in the system call.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
}

impl StartError {
    pub(super) fn system(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::System { call, path, error }
    }
}

/// The step after an error of the system.
fn step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run xvsd as root, or with --socket name a socket in a folder that its user can write to (in a systemd unit \
             `RuntimeDirectory=xvs` makes /run/xvs)"
        }
        _ => "",
    }
}

/// The path with this ending.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}
