//! Deferred interrupts of an interface: while a worker drives its driver, the card need not interrupt.
//!
//! Two settings of the whole interface: how often the kernel may find no packet before the card interrupts again
//! (`napi_defer_hard_irqs`), and how long it waits in between (`gro_flush_timeout`; Linux 5.8,
//! Documentation/networking/napi.rst). The settings of each queue (Linux 6.13) would add nothing, because workers have
//! all queues of an interface. Values of an operator are left as they are. Those of xvsd are recognised by their
//! number, so a director that starts after a killed one takes them away.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};

/// Defers the interrupts of an interface, or ends that.
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

    /// Its errors name the setting.
    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        // An attacker may control the requester: the name is one folder.
        if self.interface.contains('/') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // `/sys` may be that of another network namespace.
        let sys = sysfs().map_err(|error| io::Error::new(error.kind(), format!("sysfs: {error}")))?;
        let path = |file: &str| format!("class/net/{}/{file}", self.interface);
        let failed =
            |file, error: io::Error| io::Error::new(error.kind(), format!("/sys/{}: {error}", path(file)));
        let open =
            |file, flags| openat(&sys, path(file), flags | OFlags::CLOEXEC, Mode::empty()).map(File::from);
        let read = |file| {
            let mut text = String::new();
            let read = open(file, OFlags::RDONLY).map_err(io::Error::from);
            read.and_then(|mut file| file.read_to_string(&mut text)).map_err(|error| failed(file, error))?;
            text.trim().parse::<u64>().map_err(|error| failed(file, io::Error::other(error)))
        };
        if read("ifindex")? != u64::from(self.index) {
            return Err(io::Error::from_raw_os_error(Errno::NODEV.raw_os_error()));
        }
        let now = [read(SETTINGS[0])?, read(SETTINGS[1])?];
        let wanted = if self.defer { DEFERRED } else { IMMEDIATE };
        if now == wanted || now != DEFERRED && now != IMMEDIATE {
            return Ok(((), Vec::new()));
        }
        for (file, value) in SETTINGS.into_iter().zip(wanted) {
            let written = open(file, OFlags::WRONLY).map_err(io::Error::from);
            let written = written.and_then(|mut file| file.write_all(value.to_string().as_bytes()));
            written.map_err(|error| failed(file, error))?;
        }
        Ok(((), Vec::new()))
    }
}

/// The folder `/sys` of this thread's network namespace.
fn sysfs() -> rustix::io::Result<OwnedFd> {
    let system = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&system)?;
    fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

const SETTINGS: [&str; 2] = ["napi_defer_hard_irqs", "gro_flush_timeout"];
const IMMEDIATE: [u64; 2] = [0, 0];
/// A fifth of a millisecond, and seven nanoseconds by which xvsd knows its own.
const DEFERRED: [u64; 2] = [2, 200_007];
