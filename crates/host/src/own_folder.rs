//! Directories in which xvsd creates files that other users must not replace: that of the control socket, and that of
//! the log of connections.
//!
//! A directory belongs to its owner permanently: the owner can replace a file there between two system calls. A
//! directory of another user is therefore refused, as after a return from `user` to root, and later operations use its
//! descriptor. `state_directory.rs` handles the state directory, which must also be on a tmpfs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::process::geteuid;
use thiserror::Error;

/// Who may write to a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// The owner; others only if they cannot replace each other's files (a sticky directory such as /tmp).
    Owner,
    /// Also a group, as in /var/log of some distributions.
    Group,
}

/// Why a folder is refused.
#[derive(Debug, Error)]
pub enum FolderError {
    /// Another user owns it.
    #[error(
        "{path} belongs to user {owner}, who could replace xvsd's files there, and xvsd runs as user {user}; `chown -R \
         {user}: {path}`, or choose another folder",
        path = path.display()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// The directory's owner.
        owner: u32,
        /// The user of xvsd.
        user: u32,
    },
    /// Others may write there.
    #[error(
        "{path} may be written by other users (mode {mode:04o}), who could replace xvsd's files there; `chmod go-w {path}`, \
         or choose another folder",
        path = path.display()
    )]
    Mode {
        /// The folder.
        path: PathBuf,
        /// The directory's mode.
        mode: u32,
    },
    /// It cannot be opened.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Opens a directory of root or of this process's user.
///
/// # Errors
///
/// See [`FolderError`].
pub fn open(path: &Path, writers: Writers) -> Result<OwnedFd, FolderError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from)?;
    let about = fstat(&folder).map_err(io::Error::from)?;
    let user = geteuid().as_raw();
    if ![0, user].contains(&about.st_uid) {
        return Err(FolderError::Owner { path: path.to_owned(), owner: about.st_uid, user });
    }
    let others = match writers {
        Writers::Owner => 0o022,
        Writers::Group => 0o002,
    };
    if about.st_mode & others != 0 && about.st_mode & STICKY == 0 {
        return Err(FolderError::Mode { path: path.to_owned(), mode: about.st_mode & 0o7777 });
    }
    Ok(folder)
}

/// `S_ISVTX`.
const STICKY: u32 = 0o1000;

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    /// Needs root.
    #[test]
    fn a_folder_is_refused_if_another_user_owns_it_or_can_replace_files_in_it() {
        let path = std::env::temp_dir().join(format!("xvs-own-folder-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let refused = |owner, mode, writers| {
            chown(&path, Some(owner), None).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            open(&path, writers).err().map(|error| error.to_string())
        };
        for mode in [0o755, 0o700, 0o1777] {
            assert_eq!(refused(0, mode, Writers::Owner), None, "{mode:o}");
        }
        assert_eq!(refused(0, 0o775, Writers::Group), None);
        let why = refused(0, 0o775, Writers::Owner).unwrap();
        assert!(why.contains("mode 0775") && why.contains("`chmod go-w /"), "{why}");
        assert!(refused(0, 0o777, Writers::Group).is_some());
        let why = refused(65534, 0o755, Writers::Group).unwrap();
        assert!(why.contains("belongs to user 65534") && why.contains("`chown -R 0: /"), "{why}");
        fs::remove_dir(&path).unwrap();
    }
}
