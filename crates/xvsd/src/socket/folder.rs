//! The control socket's directory: its check, and the socket's appearance in it with its group and mode.
//!
//! Runs at a start. The owner of the directory could serve in xvsd's place, or have xvsd change the owner and mode of
//! another file, so a directory of another user is refused. After the check all names are relative to the open
//! directory, and group and mode are set through a descriptor of the socket itself.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, chownat, fstat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use xvs_host::own_folder::{self, Writers};

use crate::socket::start_error::{StartError, beside};

/// The directory, and the socket's name in it.
#[derive(Debug)]
pub(super) struct Folder {
    folder: OwnedFd,
    name: OsString,
    socket: PathBuf,
}

impl Folder {
    /// Opens the directory of this socket, and creates it if it is missing.
    pub(super) fn of(socket: &Path) -> Result<Self, StartError> {
        let path = match socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(path).map_err(StartError::system("mkdir", path))?;
        Ok(Self {
            folder: own_folder::open(path, Writers::Owner)?,
            name: socket.file_name().ok_or_else(|| StartError::NotASocket(socket.to_owned()))?.to_owned(),
            socket: socket.to_owned(),
        })
    }

    /// Binds the socket. The socket has another name until its group and mode are set. Then it replaces a stale socket,
    /// so that clients always find a socket while this process takes over.
    pub(super) fn bind(&self, group: Option<u32>, mode: u32) -> Result<UnixListener, StartError> {
        let new = beside(Path::new(&self.name), ".new").into_os_string();
        if self.has_socket(&new)? {
            unlinkat(&self.folder, &new, AtFlags::empty()).map_err(self.failed("unlink"))?;
        }
        self.has_socket(&self.name)?;
        let path = beside(&self.socket, ".new");
        let listener = UnixListener::bind(&path).map_err(StartError::system("bind", &path))?;
        self.give(&new, group, mode).inspect_err(|_| {
            let _ = unlinkat(&self.folder, &new, AtFlags::empty());
        })?;
        Ok(listener)
    }

    /// Removes the socket.
    pub(super) fn remove(&self) {
        // A socket that remains is stale, and the next server replaces it.
        let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
    }

    /// Sets group and mode of the bound socket, and gives it its name.
    fn give(&self, new: &OsStr, group: Option<u32>, mode: u32) -> Result<(), StartError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = openat(&self.folder, new, flags, Mode::empty()).map_err(self.failed("open"))?;
        let about = fstat(&socket).map_err(self.failed("stat"))?;
        // In a directory such as /tmp a link or a socket of another user could have had the name before.
        if FileType::from_raw_mode(about.st_mode) != FileType::Socket || about.st_uid != geteuid().as_raw() {
            return Err(StartError::NotASocket(beside(&self.socket, ".new")));
        }
        if let Some(group) = group {
            chownat(&socket, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)
                .map_err(self.failed("chown"))?;
        }
        // fchmod(2) refuses a descriptor that is only a location (O_PATH).
        fs::set_permissions(format!("/proc/self/fd/{}", socket.as_raw_fd()), Permissions::from_mode(mode))
            .map_err(StartError::system("chmod", &self.socket))?;
        renameat(&self.folder, new, &self.folder, &self.name).map_err(self.failed("rename"))
    }

    /// Whether there is a socket with this name. Another kind of file is an error.
    fn has_socket(&self, name: &OsStr) -> Result<bool, StartError> {
        match statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => Ok(true),
            Ok(_) => Err(StartError::NotASocket(self.socket.with_file_name(name))),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("stat")(error)),
        }
    }

    fn failed(&self, call: &'static str) -> impl FnOnce(Errno) -> StartError {
        let failed = StartError::system(call, &self.socket);
        move |error| failed(io::Error::from(error))
    }
}
