//! Reads the files that a key of xvs.toml, a command or a rule names, above all those with a secret.
//!
//! The user who names a file may not be allowed to read it, but xvsd is. So reading never waits, only regular files are
//! read, their size is limited, and no error has any of their text.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Reads the file that a key of xvs.toml names. `how` is the next step if there is none.
///
/// # Errors
/// A sentence that names key and file, what is wrong and the next step.
pub fn read(key: &str, path: &Path, how: &str) -> Result<String, String> {
    let read = read_file(path);
    let path = path.display();
    let (mode, text) = read.map_err(|error| format!("{key} {path}: {error}; {how}"))?;
    match mode & 0o007 {
        0 => Ok(text),
        _ => Err(format!("{key} {path}: every user may read or change it; `chmod o= {path}`")),
    }
}

/// Reads a file of text. Returns its mode too.
pub fn read_file(path: &Path) -> io::Result<(u32, String)> {
    let (mode, bytes) = read_bytes(path, LONGEST)?;
    // The library's own error contains none of the text either, but its length.
    let text =
        String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not text"))?;
    Ok((mode, text))
}

/// Reads a file of at most `longest` bytes. Also returns its mode. Waits for nothing: a pipe is refused.
pub(crate) fn read_bytes(path: &Path, longest: u64) -> io::Result<(u32, Vec<u8>)> {
    let not_a_file = || io::Error::new(io::ErrorKind::InvalidInput, "not a file");
    // Before it is opened too, which would start a watchdog, for example.
    if !fs::metadata(path)?.is_file() {
        return Err(not_a_file());
    }
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let (about, mut bytes) = (file.metadata()?, Vec::new());
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
