//! The directory of a director's state: on a tmpfs, accessible only to xvsd's user, used by one process at a time.
//!
//! On a tmpfs the state outlives the process but not the machine, and no write waits for a disk. The files contain
//! secrets of the director, so no other user may read or replace them. Anything that has the name of such a file but
//! cannot be one, such as a directory or another user's file, is renamed at the start.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock, fstatvfs, statfs};
use rustix::io::Errno;
use rustix::process::geteuid;
use thiserror::Error;

use crate::instance::socket_of;
use crate::lock_file::{Lock, LockAttempt, Owner, lock_within, open_or_create};
use crate::notice::Notice;
use crate::process::END;

/// The directory, which this process uses exclusively until this value is dropped.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    /// `None` if another process has the directory, from which this one takes over.
    lock: Option<Lock>,
    /// Sentences about entries that got another name.
    set_aside: Vec<Notice>,
}

/// Why a directory cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum StateDirectoryError {
    #[error(
        "{path} is not on a tmpfs; choose a directory on one for state_directory, such as /dev/shm/xvs, or set \
         state_directory = \"\" (then a restart loses all connections)",
        path = .0.display()
    )]
    NotTmpfs(PathBuf),
    #[error(
        "{path} belongs to user {owner}, and xvsd runs as user {user}; if xvsd has run as that user, `chown -R {user}: \
         {path}`, else `rm -r {path}`; then restart xvsd",
        path = path.display()
    )]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error("{path} may be used by other users, too (mode {mode:04o}); `chmod 700 {path}`, or choose another state_directory",
        path = path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("{path} is not a directory; remove it, or choose another state_directory", path = .0.display())]
    NotADirectory(PathBuf),
    #[error("{path} is {what}; remove it, and start xvsd again", path = path.display())]
    NoFile { path: PathBuf, what: String },
    #[error("{path} is used by process {by}; give each xvsd a socket or a state_directory of its own", path = path.display())]
    Held { path: PathBuf, by: String },
    #[error(
        "{path} needs {needed_mib} MiB, and its tmpfs has {free_mib} MiB left; make the tmpfs larger (`mount -o \
         remount,size=...`), lower conn_table_size, or choose another state_directory",
        path = path.display()
    )]
    Full { path: PathBuf, needed_mib: u64, free_mib: u64 },
    #[error("{path}: {error}; let xvsd write there, or choose another state_directory", path = path.display())]
    System { path: PathBuf, error: io::Error },
}

/// Whether another xvsd uses the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// All that used it have ended.
    Ended,
    /// A running one uses it, and this process takes over from it.
    Run,
}

impl StateDirectory {
    /// Opens the directory of the director with this name in `parent`, and creates both if they are missing. Takes it
    /// if no other xvsd runs, and waits for a while for one that has been killed.
    ///
    /// # Errors
    ///
    /// See [`StateDirectoryError`].
    pub fn open(parent: &Path, name: &str, others: Others) -> Result<Self, StateDirectoryError> {
        let path = parent.join(name);
        for directory in [parent, &path] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(system(directory)(error));
                }
                _ => check(directory)?,
            }
        }
        let mut directory = Self { path, lock: None, set_aside: Vec::new() };
        if others == Others::Ended {
            directory.take()?;
            directory.set_all_aside()?;
        }
        Ok(directory)
    }

    /// Takes the directory for this process. Waits for a while if another one has it.
    ///
    /// # Errors
    /// [`StateDirectoryError::Held`], or the kernel refuses.
    pub fn take(&mut self) -> Result<(), StateDirectoryError> {
        let path = self.path.join("lock");
        if let Ok(about) = fs::symlink_metadata(&path) {
            // No xvsd that may use this directory has such a lock.
            self.set_aside(&path, &about)?;
        }
        match lock_within(&path, Owner::Own, END).map_err(system(&path))? {
            LockAttempt::Locked(lock) => {
                self.lock = Some(lock);
                Ok(())
            }
            LockAttempt::Held(held) => {
                let by = held.by.map_or_else(|| "another".to_owned(), |by| by.to_string());
                Err(StateDirectoryError::Held { path: self.path.clone(), by })
            }
        }
    }

    /// Whether another xvsd uses it still.
    pub fn others(&self) -> Others {
        if self.lock.is_some() { Others::Ended } else { Others::Run }
    }

    /// A message about the state left in the same directory by directors that do not run: it takes memory until the
    /// operator removes it. It is not removed here, because a director that is being upgraded does not run either.
    pub fn left_by_others(&self) -> Option<String> {
        let parent = self.path.parent()?;
        let mut left: Vec<_> = fs::read_dir(parent)
            .ok()?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                Some(((path != self.path).then(|| bytes_left(&path)).flatten()?, path))
            })
            .collect();
        left.sort_unstable();
        let mib = left.iter().map(|(bytes, _)| bytes).sum::<u64>() >> 20;
        let (_, largest) = left.last()?;
        let socket = socket_of(&largest.file_name()?.to_string_lossy());
        Some(format!(
            "{parent} has the state of {count} other directors that do not run, {mib} MiB; if they are not to start \
             again, remove it: the largest is that of the socket {socket}, `rm -r {largest}`",
            parent = parent.display(),
            count = left.len(),
            socket = socket.display(),
            largest = largest.display(),
        ))
    }

    /// Renames all entries that are not files of this user. Only for the process that has the directory.
    fn set_all_aside(&mut self) -> Result<(), StateDirectoryError> {
        for entry in fs::read_dir(&self.path).map_err(system(&self.path))? {
            let path = entry.map_err(system(&self.path))?.path();
            if path.extension().is_some_and(|ending| ending == REFUSED) {
                continue;
            }
            let about = fs::symlink_metadata(&path).map_err(system(&path))?;
            self.set_aside(&path, &about)?;
        }
        Ok(())
    }

    /// Renames an entry that cannot be a file of this user.
    fn set_aside(&mut self, path: &Path, about: &Metadata) -> Result<(), StateDirectoryError> {
        let Some(what) = no_file(about) else { return Ok(()) };
        let refused = refused_name(path);
        // An earlier entry with this name, of which only the last one is kept. It could not be replaced by another
        // kind.
        let _ = fs::remove_file(&refused).or_else(|_| fs::remove_dir_all(&refused));
        if fs::rename(path, &refused).is_err() {
            return Err(StateDirectoryError::NoFile { path: path.to_owned(), what });
        }
        let (path, refused) = (path.display(), refused.display());
        let text = format!(
            "{path} is {what}, not xvsd's file: it is kept as {refused}, and xvsd has begun without it"
        );
        self.set_aside.push(Notice::new(path, text));
        Ok(())
    }

    /// Notices of entries that were no files of xvsd, and have another name since the start.
    pub fn all_set_aside(&self) -> &[Notice] {
        &self.set_aside
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file for reading and writing, and creates it if it is missing.
    ///
    /// # Errors
    ///
    /// It belongs to another user, is a symbolic link or not a file, or the kernel refuses.
    pub fn file(&self, name: &str) -> Result<File, StateDirectoryError> {
        let path = self.path.join(name);
        if let Some(what) = fs::symlink_metadata(&path).ok().as_ref().and_then(no_file) {
            return Err(StateDirectoryError::NoFile { path, what });
        }
        open_or_create(&path).map_err(system(&path))
    }

    /// Creates a file, with this length, all of it zero and allocated: no write to it can fail. `prefer` may choose the
    /// kind of its memory: it gets the file before anything is allocated, and may allocate any part of it.
    ///
    /// # Errors
    ///
    /// [`StateDirectoryError::Full`], or as for [`Self::file`].
    pub fn new_file(
        &self,
        name: &str,
        bytes: u64,
        prefer: impl FnOnce(&File),
    ) -> Result<File, StateDirectoryError> {
        let path = self.path.join(name);
        self.remove(name)?;
        // A renamed entry would occupy memory for nothing.
        let _ = fs::remove_file(refused_name(&path));
        let file = self.file(name)?;
        if file.set_len(bytes).is_ok() {
            prefer(&file);
        }
        let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, bytes) else { return Ok(file) };
        // The allocated part would occupy memory for nothing.
        let _ = self.remove(name);
        Err(match error {
            Errno::NOSPC => StateDirectoryError::Full {
                path,
                needed_mib: bytes.div_ceil(1 << 20),
                free_mib: fstatvfs(&file).map_or(0, |about| about.f_bavail * about.f_frsize) >> 20,
            },
            other => system(&path)(other.into()),
        })
    }

    /// Removes the directory with all its files.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_all(&self) -> Result<(), StateDirectoryError> {
        fs::remove_dir_all(&self.path).map_err(system(&self.path))
    }

    /// Removes a file, if it exists.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, name: &str) -> Result<(), StateDirectoryError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system(&path)(error)),
            _ => Ok(()),
        }
    }
}

/// The memory of a director's state that no process uses; `None` if it is in use, or there is none.
fn bytes_left(path: &Path) -> Option<u64> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let lock = File::options().read(true).custom_flags(flags.bits() as i32).open(path.join("lock")).ok()?;
    // A director that starts at this moment tries again.
    flock(&lock, FlockOperation::NonBlockingLockShared).ok()?;
    let entries = fs::read_dir(path).ok()?;
    Some(entries.filter_map(|file| file.ok()?.metadata().ok()).map(|about| about.blocks() * 512).sum())
}

/// The kind of an entry that is not a file of this user; `None` if it is one.
fn no_file(about: &Metadata) -> Option<String> {
    let kind = about.file_type();
    let user = geteuid().as_raw();
    match about.uid() {
        _ if kind.is_dir() => Some("a directory".to_owned()),
        _ if kind.is_symlink() => Some("a symbolic link".to_owned()),
        _ if !kind.is_file() => Some("a pipe, a socket or a device".to_owned()),
        owner if owner != user => Some(format!("a file of user {owner}")),
        _ => None,
    }
}

/// The new name of a renamed entry.
fn refused_name(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".");
    path.push(REFUSED);
    path.into()
}

fn check(path: &Path) -> Result<(), StateDirectoryError> {
    // Not followed: the owner of a symbolic link could redirect it.
    let about = fs::symlink_metadata(path).map_err(system(path))?;
    if !about.is_dir() {
        return Err(StateDirectoryError::NotADirectory(path.to_owned()));
    }
    let user = geteuid().as_raw();
    if about.uid() != user {
        return Err(StateDirectoryError::Owner { path: path.to_owned(), owner: about.uid(), user });
    }
    if about.mode() & 0o022 != 0 {
        return Err(StateDirectoryError::Mode { path: path.to_owned(), mode: about.mode() & 0o7777 });
    }
    let kind = statfs(path).map_err(|error| system(path)(error.into()))?.f_type;
    if kind as u64 != TMPFS_MAGIC {
        return Err(StateDirectoryError::NotTmpfs(path.to_owned()));
    }
    Ok(())
}

fn system(path: &Path) -> impl FnOnce(io::Error) -> StateDirectoryError {
    let path = path.to_owned();
    move |error| StateDirectoryError::System { path, error }
}

/// The suffix of an unusable entry's new name.
const REFUSED: &str = "refused";
/// linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A directory on the machine's tmpfs, removed on drop.
    struct Parent(PathBuf);

    impl Parent {
        fn new(name: &str) -> Self {
            let path = PathBuf::from(format!("/dev/shm/xvs-test-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            Self(path)
        }
    }

    impl Drop for Parent {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refusal(parent: &Path) -> String {
        StateDirectory::open(parent, "a", Others::Ended).unwrap_err().to_string()
    }

    #[test]
    fn a_directory_and_its_files_are_made_for_one_user_and_one_process() {
        let parent = Parent::new("made");
        let directory = StateDirectory::open(&parent.0.join("below"), "a", Others::Ended).unwrap();
        let file =
            directory.new_file("one", 5000, |file| assert_eq!(file.metadata().unwrap().blocks(), 0)).unwrap();
        let mode = |about: io::Result<Metadata>| about.unwrap().mode() & 0o777;
        assert_eq!((mode(fs::metadata(directory.path())), mode(file.metadata())), (0o700, 0o600));
        assert_eq!(file.metadata().unwrap().len(), 5000);
        let error = refusal(&parent.0.join("below"));
        assert!(error.contains(&format!("is used by process {}", std::process::id())), "{error}");
        StateDirectory::open(&parent.0.join("below"), "b", Others::Ended).unwrap();
        drop(directory);
        assert_eq!(
            StateDirectory::open(&parent.0.join("below"), "a", Others::Ended)
                .unwrap()
                .file("one")
                .unwrap()
                .metadata()
                .unwrap()
                .len(),
            5000
        );
    }

    #[test]
    fn the_state_of_directors_that_do_not_run_is_told_with_its_size_and_nothing_of_one_that_runs() {
        let parent = Parent::new("left");
        let open = |name| StateDirectory::open(&parent.0, name, Others::Ended).unwrap();
        let (own, running) = (open("run-own.sock"), open("run-other.sock"));
        fs::create_dir(parent.0.join("no-state")).unwrap();
        assert_eq!(own.left_by_others(), None);
        running.new_file("connections", 3 << 20, |_| ()).unwrap();
        assert_eq!(own.left_by_others(), None);
        drop(running);
        let said = own.left_by_others().unwrap();
        let command = format!("`rm -r {}/run-other.sock`", parent.0.display());
        assert!(
            said.contains("1 other directors") && said.contains("3 MiB") && said.ends_with(&command),
            "{said}"
        );
        assert!(said.contains("socket /run/other.sock"), "{said}");
        open("run-other.sock");
    }

    #[test]
    fn a_directory_that_is_no_tmpfs_or_open_to_others_or_none_is_refused_with_the_next_step() {
        let error = refusal(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(error.contains("is not on a tmpfs") && error.contains("/dev/shm/xvs"), "{error}");
        let parent = Parent::new("open");
        fs::set_permissions(&parent.0, fs::Permissions::from_mode(0o777)).unwrap();
        let error = refusal(&parent.0);
        assert!(error.contains("0777") && error.contains("chmod 700"), "{error}");
        let parent = Parent::new("links");
        fs::write(parent.0.join("file"), "").unwrap();
        symlink(&parent.0, parent.0.join("link")).unwrap();
        for name in ["file", "link"] {
            assert!(refusal(&parent.0.join(name)).contains("is not a directory"), "{name}");
        }
        let directory = StateDirectory::open(&parent.0, "a", Others::Ended).unwrap();
        symlink("/etc/hostname", directory.path().join("one")).unwrap();
        assert!(directory.file("one").is_err(), "a symbolic link in the place of a file");
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_both_sizes_and_leaves_nothing() {
        let parent = Parent::new("full");
        let directory = StateDirectory::open(&parent.0, "a", Others::Ended).unwrap();
        let error = directory.new_file("one", 1 << 50, |_| ()).unwrap_err().to_string();
        assert!(error.contains("needs 1073741824 MiB") && error.contains("conn_table_size"), "{error}");
        assert!(!directory.path().join("one").exists());
    }
}
