//! Links of XDP programs: their pins in a bpffs, and the kernel's information about them.
//!
//! A program stays attached as long as a descriptor or a pin refers to its link.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libxdp_sys as sys;

use super::call::check;

/// The kernel's information about a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// The id of the link's program.
    pub program: u32,
    /// The index of the link's interface in the interface's namespace; 0 if the interface is gone or the link was
    /// detached.
    pub interface: u32,
}

/// Pins a link under a path in a bpffs.
pub fn pin_link(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte and is read only during the call; the kernel checks the descriptor.
    check(unsafe { sys::bpf_obj_pin(link.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// Opens the pinned link of an XDP program.
///
/// # Errors
///
/// The pin belongs to another object, or the kernel's error.
pub fn open_link(path: &Path) -> io::Result<(OwnedFd, LinkInfo)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte and is read only during the call.
    let fd = check(unsafe { sys::bpf_obj_get(path.as_ptr()) })?;
    // SAFETY: the call has just created this descriptor, which no other value owns.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the structure consists of integers, pointers that may be null, and a union of these.
    let mut info: sys::bpf_link_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<sys::bpf_link_info>() as u32;
    // SAFETY: `info` is zero, so it names no buffer, and `len` bytes long. If the descriptor is not a link's, the
    // kernel writes information of another type, at most `len` bytes, or refuses.
    check(unsafe { sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut len) })?;
    if info.type_ != sys::bpf_link_type_BPF_LINK_TYPE_XDP {
        return Err(io::Error::other("not the link of an XDP program"));
    }
    // SAFETY: the kernel has filled in this link type's member of the union; any value of an integer is valid.
    let interface = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok((link, LinkInfo { program: info.prog_id, interface }))
}
