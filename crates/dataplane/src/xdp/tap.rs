//! A TAP whose frames arrive on another interface.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

use super::bpf::{Direction, Object, attach_tc, prepare_tc};
use super::program::{Attached, index_of};
use super::sys::{Request, make_tap};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reinject.bpf.o"));

/// An interface of ours, without addresses, that the kernel removes when this is dropped.
pub(crate) struct Tap {
    fd: OwnedFd,
    name: String,
    marker: Vec<u8>,
}

impl Tap {
    /// Makes a TAP in this thread's network namespace from which every frame goes to the ingress of an interface.
    pub(crate) fn towards(attached: &Attached) -> io::Result<Self> {
        let mut object = Object::open(OBJECT)?;
        object.set_constants(&attached.index().to_ne_bytes())?;
        object.load()?;

        let fd = open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let name = make_tap(fd.as_fd(), "xvs%d")?;
        no_ipv6(&name)?;
        let mut request = Request::new(&name)?;
        let index = index_of(&name)?;
        prepare_tc(index)?;
        attach_tc(object.program(c"reinject")?, index, Direction::Ingress)?;
        attach_tc(object.program(c"discard")?, index, Direction::Egress)?;
        request.add_flags(libc::IFF_UP | libc::IFF_NOARP)?;
        Ok(Self { fd, name, marker: attached.marker().to_vec() })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Hands a frame to the kernel.
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::writev(&self.fd, &[IoSlice::new(&self.marker), IoSlice::new(frame)])?;
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
