//! Files with a secret, such as a key or a token: text that not every user of the machine may read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Reads the file that a key of xvs.toml names. `how` is the next step if there is none.
///
/// # Errors
/// A sentence that names key and file, what is wrong and the next step.
pub(crate) fn read(key: &str, path: &Path, how: &str) -> Result<String, String> {
    let read = read_file(path);
    let path = path.display();
    let (mode, text) = read.map_err(|error| format!("{key} {path}: {error}; {how}"))?;
    match mode & 0o007 {
        0 => Ok(text),
        _ => Err(format!("{key} {path}: every user may read or change it; `chmod o= {path}`")),
    }
}

/// Reads a file of text. Returns its mode too. Waits for nothing: a pipe is refused.
pub(crate) fn read_file(path: &Path) -> io::Result<(u32, String)> {
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let (about, mut text) = (file.metadata()?, String::new());
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    match file.take(LONGEST + 1).read_to_string(&mut text)? as u64 > LONGEST {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok((about.mode(), text)),
    }
}

/// No such file is longer, in bytes.
const LONGEST: u64 = 64 << 10;
