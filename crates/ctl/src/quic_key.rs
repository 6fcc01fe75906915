//! The keys of QUIC configurations, read from files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use thiserror::Error;

use crate::secret_file::SecretFileError;

/// The keys of QUIC configurations by file, or the reason why a file contains none.
pub(crate) type QuicKeys = BTreeMap<PathBuf, Result<[u8; 16], QuicKeyError>>;

/// The reason why a file contains no key, with the next step.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuicKeyError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The file has other text than a key.
    #[error("QUIC key {path}: not 32 hexadecimal digits; {HOW}", path = .0.display())]
    NotHexadecimal(PathBuf),
}

/// How an operator gets a key.
pub(crate) const HOW: &str = "`openssl rand -hex 16` prints a key";
