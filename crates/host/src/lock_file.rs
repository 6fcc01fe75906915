//! Lock files with flock(2). The file contains the holder's process id; the kernel releases the lock when the holder
//! ends.
//!
//! Every process that can open the file can lock it. The file, even an existing one, is therefore made accessible only
//! to its owner. It is not removed when the lock is released: removing it would be a race.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{process, thread};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::process::Process;

/// A lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock(File);

/// The result of [`lock`].
#[derive(Debug)]
pub enum LockAttempt {
    /// This process has the lock.
    Locked(Lock),
    /// Another process has the lock.
    Held(Held),
}

/// A lock that another process has.
#[derive(Debug)]
pub struct Held {
    file: File,
    /// The holder's process id; `None` if the holder has not written it yet.
    pub by: Option<u32>,
}

/// Whose lock files are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Only this process's user: another user could keep the lock for ever.
    Own,
    /// Any user: whoever keeps the lock only makes this program end.
    Anyone,
}

/// Takes the lock if it is free.
///
/// # Errors
///
/// The file cannot be opened, it does not belong to the owner, or its name is a symbolic link (`ELOOP`): a lock in a
/// directory that others can write to must not truncate a file of their choice.
pub fn lock(path: &Path, of: Owner) -> io::Result<LockAttempt> {
    let mut file = open_or_create(path)?;
    let owner = file.metadata()?.uid();
    if of == Owner::Own && owner != geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to user {owner}, who could keep it; remove it")));
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Lock::write_pid(file).map(LockAttempt::Locked),
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(LockAttempt::Held(Held { file, by: text.trim().parse().ok() }))
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens a file for reading and writing, and creates it for this user alone if it is missing. Follows no symbolic link.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)
}

/// Like [`lock`], but waits for at most this time if another process has the lock: a killed process has it until the
/// kernel has closed all its files.
///
/// # Errors
///
/// Same as [`lock`].
pub fn lock_within(path: &Path, of: Owner, time: Duration) -> io::Result<LockAttempt> {
    let until = Instant::now() + time;
    loop {
        match lock(path, of)? {
            LockAttempt::Held(held) if Instant::now() < until => {
                match held.by.and_then(|by| Process::open(by).ok()) {
                    Some(holder) => _ = holder.ends_within(INTERVAL),
                    None => thread::sleep(INTERVAL),
                }
            }
            result => return Ok(result),
        }
    }
}

/// The time between two attempts.
const INTERVAL: Duration = Duration::from_millis(5);

impl Held {
    /// Waits until the lock is free, and takes it.
    ///
    /// # Errors
    /// The errors of flock(2).
    pub fn wait(self) -> io::Result<Lock> {
        flock(&self.file, FlockOperation::LockExclusive)?;
        Lock::write_pid(self.file)
    }
}

impl Lock {
    /// Writes the process id into the file.
    fn write_pid(mut file: File) -> io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", process::id())?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started has a copy of the descriptor until it
        // executes its program.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};
    use std::{env, fs, thread};

    use crate::lock_file::*;

    #[test]
    fn a_symbolic_link_is_refused_and_its_target_stays() {
        let path = env::temp_dir().join(format!("xvs-lock-link-{}", process::id()));
        let target = path.with_extension("target");
        fs::write(&target, "precious").unwrap();
        symlink(&target, &path).unwrap();
        assert_eq!(lock(&path, Owner::Own).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        for path in [path, target] {
            fs::remove_file(path).unwrap();
        }
    }

    /// Needs root.
    #[test]
    fn a_lock_file_of_another_user_is_refused_with_the_step() {
        let path = env::temp_dir().join(format!("xvs-lock-owner-{}", process::id()));
        fs::write(&path, "").unwrap();
        chown(&path, Some(65534), None).unwrap();
        let why = lock(&path, Owner::Own).unwrap_err().to_string();
        assert_eq!(why, "it belongs to user 65534, who could keep it; remove it");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_lock_that_is_dropped_is_free_even_if_a_copy_of_its_descriptor_is_open() {
        let path = env::temp_dir().join(format!("xvs-lock-copy-{}", process::id()));
        let LockAttempt::Locked(held) = lock(&path, Owner::Own).unwrap() else { panic!("the lock is free") };
        let _copy = held.0.try_clone().unwrap();
        drop(held);
        assert!(matches!(lock(&path, Owner::Own).unwrap(), LockAttempt::Locked(_)));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_lock_file_names_its_holder_and_even_an_old_one_becomes_readable_for_its_owner_alone() {
        let path = env::temp_dir().join(format!("xvs-lock-{}", process::id()));
        fs::write(&path, "4711\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let LockAttempt::Locked(held) = lock(&path, Owner::Own).unwrap() else { panic!("the lock is free") };
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let LockAttempt::Held(waiting) = lock(&path, Owner::Own).unwrap() else { panic!("the lock is held") };
        assert_eq!(waiting.by, Some(process::id()));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| waiting.wait().unwrap());
            drop(held);
            waiter.join().unwrap();
        });
        fs::remove_file(&path).unwrap();
    }
}
