//! Files with a secret, such as a key or a token: text that not every user of the machine may read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Reads the file that a key of xvs.toml names. `how` is the next step if there is none.
///
/// # Errors
/// A sentence that names key and file, what is wrong and the next step.
pub(crate) fn read(key: &str, path: &Path, how: &str) -> Result<String, String> {
    let read = || -> io::Result<(u32, String)> {
        let file = File::open(path)?;
        let (mode, mut text) = (file.metadata()?.mode(), String::new());
        let read = file.take(LONGEST + 1).read_to_string(&mut text)?;
        match read as u64 > LONGEST {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok((mode, text)),
        }
    };
    let path = path.display();
    let (mode, text) = read().map_err(|error| format!("{key} {path}: {error}; {how}"))?;
    match mode & 0o007 {
        0 => Ok(text),
        _ => Err(format!("{key} {path}: every user may read or change it; `chmod o= {path}`")),
    }
}

/// No secret is longer, in bytes.
const LONGEST: u64 = 64 << 10;
