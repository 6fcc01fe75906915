//! Deferred interrupts of an interface: while a worker runs its driver, the card need not interrupt.
//!
//! Two settings of the whole interface: the number of times that the kernel may find no packet before the card
//! interrupts again (`napi_defer_hard_irqs`), and the wait in between (`gro_flush_timeout`; Linux 5.8,
//! Documentation/networking/napi.rst). The settings for each queue (Linux 6.13) would add nothing, because workers use
//! all queues of an interface. An operator's values are not changed. xvsd's values are recognised by their numbers, so
//! a director that starts after a killed one removes them.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};

/// Defers the interrupts of an interface, or ends the deferral.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeferInterrupts {
    /// The interface's name.
    pub interface: String,
    /// The kernel's index of it.
    pub index: u32,
    /// Whether they are deferred from now on.
    pub defer: bool,
}

impl Task for DeferInterrupts {
    const NAME: &'static str = "defer-interrupts";
    type Done = ();

    /// Errors name the setting.
    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        // An attacker may control the requester: the name must be a single directory.
        if self.interface.contains('/') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // `/sys` may belong to another network namespace.
        let sys = sysfs().map_err(|error| io::Error::new(error.kind(), format!("sysfs: {error}")))?;
        let folder = Folder { sys, path: format!("class/net/{}", self.interface) };
        if folder.read("ifindex")? != u64::from(self.index) {
            return Err(io::Error::from_raw_os_error(Errno::NODEV.raw_os_error()));
        }
        let now = [folder.read(SETTINGS[0])?, folder.read(SETTINGS[1])?];
        let wanted = if self.defer { DEFERRED } else { IMMEDIATE };
        if now == wanted || now != DEFERRED && now != IMMEDIATE {
            return Ok(((), Vec::new()));
        }
        for (file, value) in SETTINGS.into_iter().zip(wanted) {
            folder.write(file, value)?;
        }
        Ok(((), Vec::new()))
    }
}

/// The directory of an interface. Errors name the file.
struct Folder {
    sys: OwnedFd,
    /// Path relative to `sys`.
    path: String,
}

impl Folder {
    fn read(&self, file: &str) -> io::Result<u64> {
        let mut text = String::new();
        self.open(file, OFlags::RDONLY)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|error| self.failed(file, error))?;
        text.trim().parse::<u64>().map_err(|error| self.failed(file, io::Error::other(error)))
    }

    fn write(&self, file: &str, value: u64) -> io::Result<()> {
        self.open(file, OFlags::WRONLY)
            .and_then(|mut file| file.write_all(value.to_string().as_bytes()))
            .map_err(|error| self.failed(file, error))
    }

    fn open(&self, file: &str, flags: OFlags) -> io::Result<File> {
        let path = format!("{}/{file}", self.path);
        Ok(openat(&self.sys, path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    fn failed(&self, file: &str, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("/sys/{}/{file}: {error}", self.path))
    }
}

/// The directory `/sys` for this thread's network namespace.
fn sysfs() -> rustix::io::Result<OwnedFd> {
    let system = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&system)?;
    fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

const SETTINGS: [&str; 2] = ["napi_defer_hard_irqs", "gro_flush_timeout"];
const IMMEDIATE: [u64; 2] = [0, 0];
/// A fifth of a millisecond, plus seven nanoseconds by which xvsd recognises its own values.
const DEFERRED: [u64; 2] = [2, 200_007];
