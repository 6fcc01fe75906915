//! Reads the files that a key of xvs.toml, a command or a rule names, especially those with a secret.
//!
//! The user who names a file may not be allowed to read it, but xvsd is. Reading therefore never waits, only regular
//! files are read, their size is limited, and no error contains text from the file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

/// The reason why the file that a key of xvs.toml names is not used, with the next step.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SecretFileError {
    /// The file cannot be read.
    #[error("{key} {path}: {error}; {how}", path = path.display())]
    Unreadable {
        /// The key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: String,
        /// The next step.
        how: &'static str,
    },
    /// Every user may read or change the file.
    #[error("{0} {path}: every user may read or change it; `chmod o= {path}`", path = .1.display())]
    Public(&'static str, PathBuf),
}

/// Reads the file that a key of xvs.toml names. `how` is the next step if there is none.
///
/// # Errors
///
/// The file cannot be read, or every user may read or change it.
pub fn read(key: &'static str, path: &Path, how: &'static str) -> Result<String, SecretFileError> {
    match read_file(path) {
        Ok((mode, text)) if mode & 0o007 == 0 => Ok(text),
        Ok(_) => Err(SecretFileError::Public(key, path.to_owned())),
        Err(error) => {
            let error = error.to_string();
            Err(SecretFileError::Unreadable { key, path: path.to_owned(), error, how })
        }
    }
}

/// Reads a text file. Also returns its mode.
pub fn read_file(path: &Path) -> io::Result<(u32, String)> {
    let (mode, bytes) = read_bytes(path, LONGEST)?;
    // The library's own error contains none of the text either, but its length.
    let text =
        String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not text"))?;
    Ok((mode, text))
}

/// Reads a file of at most `longest` bytes. Also returns its mode. Waits for nothing: a pipe is refused.
pub(crate) fn read_bytes(path: &Path, longest: u64) -> io::Result<(u32, Vec<u8>)> {
    // Also checked before it is opened, which would start a watchdog, for example.
    if !fs::metadata(path)?.is_file() {
        return Err(not_a_file());
    }
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let about = file.metadata()?;
    let mut bytes = Vec::new();
    if !about.is_file() {
        return Err(not_a_file());
    }
    match file.take(longest + 1).read_to_end(&mut bytes)? as u64 > longest {
        true => {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {} KiB", longest >> 10)))
        }
        false => Ok((about.mode(), bytes)),
    }
}

fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a file")
}

/// No file with a secret is longer, in bytes.
const LONGEST: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_pipe_a_device_a_folder_and_a_file_that_is_too_long_are_refused_without_waiting() {
        let folder = std::env::temp_dir().join(format!("xvs-files-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (pipe, long) = (folder.join("pipe"), folder.join("long"));
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(&long, [b'1'; 1025]).unwrap();
        for (path, why) in [
            (pipe.as_path(), "not a file"),
            (Path::new("/dev/zero"), "not a file"),
            (folder.as_path(), "not a file"),
            (long.as_path(), "longer than 1 KiB"),
        ] {
            assert_eq!(read_bytes(path, 1024).unwrap_err().to_string(), why, "{path:?}");
        }
        assert_eq!(read_bytes(&long, 1025).unwrap().1, [b'1'; 1025]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
