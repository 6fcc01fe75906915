//! Locks beside what they protect: one holder at a time, told by its process id, freed by the kernel when it dies.
//!
//! flock(2) needs no more than an open file, so whoever may read a lock file can hold it for ever: it is made, and an
//! old one is set, so that its owner alone may open it. The file stays when the lock goes; to remove it would be a race.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A lock; dropping it gives it back.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held to be dropped")] File);

/// What came of trying to lock.
#[derive(Debug)]
pub enum LockAttempt {
    /// It is ours.
    Locked(Lock),
    /// Another process has it.
    Held(Held),
}

/// A lock that another process has.
#[derive(Debug)]
pub struct Held {
    file: File,
    /// The holder's process id, unless it has just begun.
    pub by: Option<u32>,
}

/// Takes the lock if nobody has it.
///
/// # Errors
/// The file cannot be opened, or is somebody else's.
pub fn lock(path: &Path) -> io::Result<LockAttempt> {
    let mut options = File::options();
    let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Lock::sign(file).map(LockAttempt::Locked),
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(LockAttempt::Held(Held { file, by: text.trim().parse().ok() }))
        }
        Err(error) => Err(error.into()),
    }
}

impl Held {
    /// Waits until it is free, and takes it.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn wait(self) -> io::Result<Lock> {
        flock(&self.file, FlockOperation::LockExclusive)?;
        Lock::sign(self.file)
    }
}

impl Lock {
    /// Says in the file who holds it.
    fn sign(mut file: File) -> io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", process::id())?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, thread};

    use crate::lock_file::*;

    #[test]
    fn a_lock_names_its_holder_and_its_file_is_the_owners_alone_also_if_it_was_not() {
        let path = env::temp_dir().join(format!("xvs-lock-{}", process::id()));
        fs::write(&path, "4711\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let LockAttempt::Locked(held) = lock(&path).unwrap() else { panic!("nobody has it") };
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let LockAttempt::Held(waiting) = lock(&path).unwrap() else { panic!("it is held") };
        assert_eq!(waiting.by, Some(process::id()));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| waiting.wait().unwrap());
            drop(held);
            waiter.join().unwrap();
        });
        fs::remove_file(&path).unwrap();
    }
}
