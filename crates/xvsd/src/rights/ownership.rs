//! Directories and files of an xvsd that runs as a user: created, or given to the user, before xvsd gives up its
//! rights.
//!
//! Runs once, as root. Files that an xvsd of root has created become the user's, so an xvsd of the user can continue
//! after it, or take over from it. Files of another user stay unchanged, and are refused where they are used. The user
//! can write to these directories, so no symbolic link in them is followed, and no file with a second hard link is
//! changed.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchown, fstat, mkdirat, openat, statat,
};
use rustix::io::Errno;
use xvs_host::instance::name_of;
use xvs_xdp::pins::{self, folder_or_mount};

use xvs_ctl::config::Config;

/// A user with the user's own group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) user: Uid,
    pub(crate) group: Gid,
}

/// Gives a user the state directory, the socket with its directory, a new directory of the log of connections, and the
/// pins.
///
/// # Errors
///
/// The path and the system's refusal.
pub(crate) fn give(config: &Config, owner: Owner) -> io::Result<()> {
    let director = name_of(&config.socket);
    // Before the state, whose directory may be in the same directory.
    give_socket(&config.socket, owner).map_err(at(&config.socket))?;
    if let Some(parent) = &config.state_directory
        && let Some(parent) = state_folder(parent, owner).map_err(at(parent))?
        && let Some(own) = existing(&parent, Path::new(&director), owner).map_err(at(Path::new(&director)))?
    {
        files(&own, owner, |_| true)?;
    }
    if let Some(folder) = config.connection_log.file.as_deref().and_then(Path::parent) {
        give_log(folder, owner).map_err(at(folder))?;
    }
    // Without a bpffs there is no hold, which the start reports.
    let Ok(path) = folder_or_mount() else { return Ok(()) };
    if let Some(all) = folder(CWD, &path, owner, Mode::RWXU).map_err(at(&path))? {
        let director = director.replace('.', ":");
        if let Some(own) = existing(&all, Path::new(&director), owner).map_err(at(&path))? {
            files(&own, owner, |_| true)?;
        }
        pins::keep(all);
    }
    Ok(())
}

/// The socket's directory becomes the user's if it is created here, or is the default one; any other one stays
/// unchanged.
fn give_socket(socket: &Path, owner: Owner) -> io::Result<()> {
    let Some(parent) = socket.parent() else { return Ok(()) };
    let Some(name) = socket.file_name() else { return Ok(()) };
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    let is_own = parent == Path::new("/run/xvs") || !parent.exists();
    let parent = if is_own { folder(CWD, parent, owner, mode)? } else { open(CWD, parent)? };
    let Some(parent) = parent else { return Ok(()) };
    let lock = format!("{}.lock", name.to_string_lossy());
    files(&parent, owner, |one| one == name.as_encoded_bytes() || one == lock.as_bytes())
}

/// The directory of the log of connections becomes the user's if it is created here. Any other one stays unchanged;
/// then the log warns if the user may not write there.
fn give_log(path: &Path, owner: Owner) -> io::Result<()> {
    if !path.exists() {
        folder(CWD, path, owner, Mode::RWXU | Mode::RGRP | Mode::XGRP)?;
    }
    Ok(())
}

/// The directory of state directories. An existing one becomes the user's only if it is as xvsd creates it: only root
/// may use it, and it contains only directories with xvsd's lock. Any other directory, such as /run or /dev/shm, stays
/// unchanged, and the start fails when it is opened.
fn state_folder(path: &Path, owner: Owner) -> io::Result<Option<OwnedFd>> {
    match mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) => return existing(CWD, path, owner),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(parent) = open(CWD, path)? else { return Ok(None) };
    let about = fstat(&parent)?;
    if Uid::from_raw(about.st_uid) != owner.user {
        if Mode::from_raw_mode(about.st_mode) != Mode::RWXU {
            return Ok(None);
        }
        for entry in Dir::read_from(&parent)? {
            let entry = entry?;
            let name = entry.file_name();
            if ![c".", c".."].contains(&name) && !is_state(&parent, name) {
                return Ok(None);
            }
        }
    }
    existing(CWD, path, owner)
}

/// Whether it is the directory of a director's state.
fn is_state(parent: &OwnedFd, name: &CStr) -> bool {
    let own = open(parent, Path::new(OsStr::from_bytes(name.to_bytes())));
    matches!(&own, Ok(Some(own)) if statat(own, "lock", AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

/// Opens a directory, creates it if it is missing, and gives it to a user. `None` if it belongs to another user.
fn folder(at: impl AsFd, path: &Path, owner: Owner, mode: Mode) -> io::Result<Option<OwnedFd>> {
    match mkdirat(&at, path, mode) {
        Ok(()) | Err(Errno::EXIST) => existing(at, path, owner),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory that need not exist, and gives it to a user. `None` if it does not exist, or belongs to another
/// user.
fn existing(at: impl AsFd, path: &Path, owner: Owner) -> io::Result<Option<OwnedFd>> {
    let Some(folder) = open(at, path)? else { return Ok(None) };
    match Uid::from_raw(fstat(&folder)?.st_uid) {
        Uid::ROOT => fchown(&folder, Some(owner.user), Some(owner.group))?,
        user if user == owner.user => {}
        _ => return Ok(None),
    }
    Ok(Some(folder))
}

/// `None` if there is none, or it is not a directory.
fn open(at: impl AsFd, path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(at, path, flags, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives root's files and sockets in a directory to a user, if their names are chosen.
fn files(folder: &OwnedFd, owner: Owner, is_chosen: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_chosen(name.to_bytes()) {
            continue;
        }
        let about = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_file =
            [FileType::RegularFile, FileType::Socket].contains(&FileType::from_raw_mode(about.st_mode));
        if is_file && about.st_nlink == 1 && Uid::from_raw(about.st_uid) == Uid::ROOT {
            chownat(folder, name, Some(owner.user), Some(owner.group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A directory that is removed on drop.
    struct Parent(PathBuf);

    impl Drop for Parent {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn owner_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().uid()
    }

    /// Needs root.
    #[test]
    fn a_folder_of_state_that_xvsd_has_not_made_stays_roots() {
        let parent = Parent(std::env::temp_dir().join(format!("xvs-state-folder-{}", std::process::id())));
        let owner = Owner { user: Uid::from_raw(1), group: Gid::from_raw(1) };
        let made = |name: &str, mode: u32| {
            let path = parent.0.join(name);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let given = |path: &Path| state_folder(path, owner).unwrap().is_some();
        for path in [made("run", 0o755), made("shm", 0o1777), made("set-group", 0o2700)] {
            assert!(!given(&path) && owner_of(&path) == 0, "{path:?}");
        }
        let of_others = made("home", 0o700);
        fs::create_dir(of_others.join(".ssh")).unwrap();
        assert!(!given(&of_others) && owner_of(&of_others) == 0, "not of xvsd alone");

        let of_xvsd = made("xvs", 0o700);
        fs::create_dir(of_xvsd.join("director")).unwrap();
        fs::write(of_xvsd.join("director/lock"), "").unwrap();
        let new = parent.0.join("new");
        for path in [of_xvsd, new] {
            assert!(given(&path) && owner_of(&path) == 1, "{path:?}");
            assert!(given(&path), "again");
        }
    }

    /// Needs root.
    #[test]
    fn a_user_gets_what_root_has_left_and_nothing_behind_a_link_or_of_another_user() {
        let parent = Parent(std::env::temp_dir().join(format!("xvs-ownership-{}", std::process::id())));
        let (outside, state) = (parent.0.join("outside"), parent.0.join("state"));
        fs::create_dir_all(&outside).unwrap();
        let owner = Owner { user: Uid::from_raw(1), group: Gid::from_raw(1) };
        let given = |path: &Path| folder(CWD, path, owner, Mode::RWXU).unwrap();

        let made = given(&state).unwrap();
        assert_eq!((owner_of(&state), fs::metadata(&state).unwrap().mode() & 0o777), (1, 0o700));
        fs::write(outside.join("secret"), "").unwrap();
        fs::write(state.join("root's"), "").unwrap();
        fs::write(state.join("another's"), "").unwrap();
        lchown(state.join("another's"), Some(2), Some(2)).unwrap();
        fs::hard_link(outside.join("secret"), state.join("second-name")).unwrap();
        symlink(outside.join("secret"), state.join("link")).unwrap();
        symlink(&outside, state.join("folder")).unwrap();
        files(&made, owner, |_| true).unwrap();
        for (name, user) in [("root's", 1), ("another's", 2), ("second-name", 0), ("link", 0), ("folder", 0)]
        {
            assert_eq!(owner_of(&state.join(name)), user, "{name}");
        }
        assert!(
            existing(&made, Path::new("folder"), owner).unwrap().is_none(),
            "a link in the place of a folder"
        );
        assert_eq!((owner_of(&outside), owner_of(&outside.join("secret"))), (0, 0));

        lchown(&outside, Some(2), Some(2)).unwrap();
        assert!(given(&outside).is_none(), "another user's");
        assert_eq!(owner_of(&outside), 2);
    }
}
