//! Other processes, by descriptors (pidfd_open(2)), so a later process with the same number is not mistaken for one of
//! them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process, also after its end.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process with this number.
    ///
    /// # Errors
    ///
    /// There is no such process, or the kernel refuses.
    pub fn open(number: u32) -> io::Result<Self> {
        let number = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(number, PidfdFlags::empty())?))
    }

    /// The process at the other end of a Unix socket, whose number is `number`: the one that connected or listened,
    /// even if it has passed its end on to another process. Before Linux 6.5 the kernel identifies it only by its
    /// number, which may belong to another process once it has ended.
    ///
    /// # Errors
    ///
    /// It has ended, or the kernel refuses.
    pub fn of_peer(socket: &impl AsFd, number: u32) -> io::Result<Self> {
        match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(process) => Ok(Self(process)),
            Err(Errno::ENOPROTOOPT) => Self::open(number),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end, at most for this time. Returns whether it has ended; then all its files are closed.
    pub fn ends_within(&self, time: Duration) -> bool {
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&time)) == Ok(1)
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Kills the process, and waits for its end, at most for [`END`]. Returns whether it has ended: this process may
    /// have no right to kill it.
    pub fn kill(&self) -> bool {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
        self.ends_within(END)
    }
}

/// Maximum time that an ending process may take until the kernel has closed all its files.
pub const END: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_seen_to_run_and_after_a_kill_to_have_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.has_ended());
        assert!(!process.ends_within(Duration::from_millis(10)));
        process.kill();
        assert!(process.has_ended());
        child.wait().unwrap();
        assert!(process.has_ended());
        assert!(Process::open(0).is_err());
    }
}
