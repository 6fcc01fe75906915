//! Files in the state directory: read only if they belong to xvsd, and replaced as a whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use thiserror::Error;

/// Why a file of the state directory is not read.
#[derive(Debug, Error)]
pub enum StateFileError {
    /// The file system's error.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// It is a pipe or a device, for example.
    #[error("it is not a regular file")]
    Irregular,
    /// xvsd never writes as much.
    #[error("it has {0} bytes, more than xvsd writes")]
    TooLong(u64),
    /// Another user could have written it.
    #[error("it belongs to user {owner}, and xvsd runs as user {user}")]
    Foreign {
        /// The user it belongs to.
        owner: u32,
        /// The user of xvsd.
        user: u32,
    },
}

/// The content of a file, and when it was last written, in milliseconds since 1970; `None` if there is none.
///
/// # Errors
///
/// See [`StateFileError`].
pub fn read(path: &Path) -> Result<Option<(Vec<u8>, u64)>, StateFileError> {
    let mut options = File::options();
    // A FIFO must not stop xvsd.
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    let user = rustix::process::geteuid().as_raw();
    match metadata.uid() {
        _ if !metadata.is_file() => return Err(StateFileError::Irregular),
        _ if metadata.len() > LONGEST => return Err(StateFileError::TooLong(metadata.len())),
        owner if owner != user => return Err(StateFileError::Foreign { owner, user }),
        _ => {}
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let millis = metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000;
    // No file is older than 1970.
    Ok(Some((bytes, millis.try_into().unwrap_or(0))))
}

/// Replaces a file with one that has this content, and that only its owner may read. If the process is killed in the
/// meantime, the old file stays. Returns the new file, for more content.
///
/// # Errors
///
/// The file system's error; the old file stays.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let new = path.with_extension("new");
    // A killed process has left it, or it is not a file and must not be opened.
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })?;
    Ok(file)
}

/// Maximum length of a file that is read: 300,000 real servers need a tenth. Memory is needed for all of it.
const LONGEST: u64 = 1 << 30;
