//! A TAP interface with traffic control programs on both sides.
//!
//! A frame that is written to the TAP reaches the kernel as if the TAP had received it, through the program on its
//! ingress side. A frame that passes the program on its egress side can be read. The kernel removes the TAP when its
//! [`Tap`] is dropped. Cost: one system call for each frame.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task, given, only};

use super::bpf::{Direction, attach_tc, prepare_tc};
use super::sys::{Request, index_of, make_tap};

/// The names of the director's TAPs; `%d` represents the first free number.
const NAMES: &str = "xvs%d";

/// Whether an interface with this name and driver is a director's TAP.
pub fn is_director_tap(name: &str, driver: &str) -> bool {
    let digits = name.strip_prefix(NAMES.trim_end_matches("%d"));
    driver == "tun" && digits.is_some_and(|digits| digits.parse::<u32>().is_ok())
}

/// A TAP interface without addresses.
pub struct Tap {
    fd: OwnedFd,
    name: String,
    index: u32,
}

impl Tap {
    /// Creates a TAP in this thread's network namespace, with one program for frames that are written to it and one for
    /// frames that the kernel sends through it.
    pub fn open(ingress: BorrowedFd<'_>, egress: BorrowedFd<'_>) -> io::Result<Self> {
        let ((name, index), fd) = only(MakeTap.run(&[ingress, egress])?)?;
        Ok(Self { fd, name, index })
    }

    /// The kernel's index of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Passes a frame, consisting of these slices, to the kernel. Never blocks.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.fd, parts)?;
        Ok(())
    }

    /// Reads a frame that the kernel has sent through the TAP, truncated to `frame`. Returns its length. Never blocks.
    ///
    /// # Errors
    ///
    /// There is no frame, or the kernel's error.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, frame)?)
    }
}

/// Creates a TAP with the programs for [`Tap::open`].
#[derive(Debug, Serialize, Deserialize)]
pub struct MakeTap;

impl Task for MakeTap {
    const NAME: &'static str = "make-tap";
    /// The TAP's name and index.
    type Done = (String, u32);

    fn carry_out(&self, programs: &[BorrowedFd<'_>]) -> io::Result<Answer<Self::Done>> {
        let fd =
            open(TUN, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(no_tun)?;
        let name = make_tap(fd.as_fd(), NAMES)?;
        no_ipv6(&name)?;
        let index = index_of(&name)?;
        prepare_tc(index)?;
        attach_tc(given(programs, 0)?, index, Direction::Ingress)?;
        attach_tc(given(programs, 1)?, index, Direction::Egress)?;
        Request::new(&name)?.add_flags(libc::IFF_UP | libc::IFF_NOARP)?;
        Ok(((name, index), vec![fd]))
    }
}

impl AsFd for Tap {
    /// For waiting until there is a frame to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The error for a failure to open [`TUN`], with the next step.
fn no_tun(error: Errno) -> io::Error {
    let step = match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            "`modprobe tun`, or add the device to the container (`--device /dev/net/tun`)"
        }
        Errno::ACCESS | Errno::PERM => {
            "allow it: `DeviceAllow=/dev/net/tun rw` in a systemd unit, `--device /dev/net/tun` for a container"
        }
        other => return other.into(),
    };
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{TUN}: {error}; {step}"))
}

/// Keeps the kernel from assigning an interface an IPv6 address and from sending router solicitations through it.
fn no_ipv6(interface: &str) -> io::Result<()> {
    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match fs::read_to_string(&setting) {
        // A kernel without IPv6 has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(value) if value.trim() == "1" => Ok(()),
        _ => fs::write(&setting, "1").map_err(|error| {
            let step = "make /proc/sys writable, or set net.ipv6.conf.default.disable_ipv6=1 if nothing here uses IPv6";
            io::Error::new(error.kind(), format!("{setting}: {error}; {step}"))
        }),
    }
}

/// The device through which TAPs are created.
const TUN: &str = "/dev/net/tun";
