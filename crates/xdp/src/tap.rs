//! A TAP with traffic control programs on both sides.
//!
//! What is written to it arrives at the kernel as if it had come in by the TAP, and meets the program on its ingress side.
//! The kernel removes it when its [`Tap`] is dropped. Cost: one system call a frame.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

use super::bpf::{Direction, attach_tc, prepare_tc};
use super::sys::{Request, index_of, make_tap};

/// An interface of ours, without addresses.
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Makes a TAP in this thread's network namespace, with these programs for what is written to it and for what the kernel
    /// sends by it. `pattern` is its name, in which `%d` stands for the first free number.
    pub fn open(pattern: &str, ingress: BorrowedFd<'_>, egress: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let name = make_tap(fd.as_fd(), pattern)?;
        no_ipv6(&name)?;
        let mut request = Request::new(&name)?;
        let index = index_of(&name)?;
        prepare_tc(index)?;
        attach_tc(ingress, index, Direction::Ingress)?;
        attach_tc(egress, index, Direction::Egress)?;
        request.add_flags(libc::IFF_UP | libc::IFF_NOARP)?;
        Ok(Self { fd, name })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands a frame, in these parts, to the kernel. Never blocks.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.fd, parts)?;
        Ok(())
    }
}

/// Keeps the kernel from giving an interface an address, and from soliciting routers by it.
fn no_ipv6(interface: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        // A kernel without IPv6 has no such file.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
