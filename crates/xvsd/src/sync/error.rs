//! Errors that prevent the start of a daemon of connection synchronization.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use thiserror::Error;
use xvs_ctl::secret_file::SecretFileError;

/// Why a daemon of connection synchronization cannot be started.
#[derive(Debug, Error)]
pub(crate) enum SyncError {
    /// The file of the key cannot be read, or everyone may read it.
    #[error(transparent)]
    KeyFile(#[from] SecretFileError),
    /// The file contains no key.
    #[error("sync_key_file {}: not 64 hexadecimal digits; {HOW}", .0.display())]
    NoKey(PathBuf),
    #[error("messages cannot be signed: {0}")]
    Signer(io::Error),
    #[error("the addresses of {interface} cannot be read: {error}")]
    Addresses { interface: String, error: io::Error },
    #[error("{interface} has no {family} address; add one (`ip address add`), or choose another interface")]
    NoAddress { interface: String, family: &'static str },
    #[error("{interface}: the socket to {to} cannot be opened: {error}")]
    Destination { interface: String, to: IpAddr, error: io::Error },
    #[error("{interface}: the socket of UDP port {port} cannot be opened: {error}")]
    Port { interface: String, port: u16, error: io::Error },
    #[error("{interface}: TCP port {port}: {error}; end what has it, or choose another --mcast-port")]
    TablePort { interface: String, port: u16, error: io::Error },
    #[error("its thread cannot be started: {0}")]
    Thread(io::Error),
    /// There is no reader for the table.
    #[error("another master daemon is still ending; try again")]
    StillEnding,
}

/// How to make a key.
pub(super) const HOW: &str = "`openssl rand -hex 32` prints a key";
