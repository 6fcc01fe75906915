//! Files of the state directory: read only if they are xvsd's own, and replaced as a whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// The content of a file, and when it was last written, in milliseconds since 1970; `None`: there is none.
///
/// # Errors
/// The file system's error, or the file does not belong to the user of xvsd.
pub fn read(path: &Path) -> Result<Option<(Vec<u8>, u64)>, String> {
    let mut options = File::options();
    // A FIFO must not stop xvsd.
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let user = rustix::process::geteuid().as_raw();
    match metadata.uid() {
        _ if !metadata.is_file() => return Err("it is not a regular file".to_owned()),
        owner if owner != user => {
            return Err(format!("it belongs to user {owner}, and xvsd runs as user {user}"));
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let millis = metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000;
    // No file is older than 1970.
    Ok(Some((bytes, millis.try_into().unwrap_or(0))))
}

/// Replaces a file by one with this content, which only its owner may read. If the process is killed meanwhile, the old
/// file stays. Returns the new file, for more content.
///
/// # Errors
/// The file system's error; the old file stays.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let new = path.with_extension("new");
    let write = || {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&new)?;
        file.write_all(bytes)?;
        fs::rename(&new, path).map(|()| file)
    };
    write().inspect_err(|_| {
        // It may not exist, or be all that is left to remove.
        let _ = fs::remove_file(&new);
    })
}
