//! Programs on interfaces: XDP by link or by netlink, and traffic control.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libxdp_sys as sys;

use super::call::{check, size_to};
use crate::mode::Mode;

/// Puts an XDP program on an interface until the returned link is closed.
pub fn attach_xdp(program: BorrowedFd<'_>, interface: u32, mode: Mode) -> io::Result<OwnedFd> {
    // SAFETY: the options are integers, pointers that may be null, and a union of these.
    let mut options: sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_to!(sys::bpf_link_create_opts, flags);
    options.flags = mode.flags();
    let (program, interface) = (program.as_raw_fd(), interface as c_int);
    // SAFETY: `options` says its size and is read during the call only.
    let link = unsafe { sys::bpf_link_create(program, interface, sys::bpf_attach_type_BPF_XDP, &options) };
    let link = check(link)?;
    // SAFETY: the call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Puts an XDP program on an interface by netlink, where it stays without any process, or takes the one there off.
/// Without a mode: native if the driver has XDP, else generic.
pub fn set_xdp(interface: u32, program: Option<BorrowedFd<'_>>, mode: Option<Mode>) -> io::Result<()> {
    // Instead of a program: kernel `net/core/dev.c`, `dev_change_xdp_fd`.
    let program = program.map_or(-1, |program| program.as_raw_fd());
    let flags = mode.map_or(0, Mode::flags);
    // SAFETY: no options are given; libbpf passes three integers on to the kernel, which checks them.
    check(unsafe { sys::bpf_xdp_attach(interface as c_int, program, flags, ptr::null()) }).map(drop)
}

/// Takes a program off its interface, also while another process (a child about to start) still holds the link open.
pub fn detach(link: BorrowedFd<'_>) {
    // SAFETY: the call takes nothing but the descriptor. If the interface is gone it fails, and nothing is attached.
    let _ = unsafe { sys::bpf_link_detach(link.as_raw_fd()) };
}

/// A side of an interface that traffic control sees.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    /// What the interface hands to the kernel.
    Ingress,
    /// What the kernel hands to the interface.
    Egress,
}

/// Makes an interface ready for [`attach_tc`]. It stays so until the interface goes.
pub fn prepare_tc(interface: u32) -> io::Result<()> {
    let both = sys::bpf_tc_attach_point_BPF_TC_INGRESS | sys::bpf_tc_attach_point_BPF_TC_EGRESS;
    let mut hook = hook(interface, both);
    // SAFETY: `hook` says its size and is used during the call only.
    check(unsafe { sys::bpf_tc_hook_create(&mut hook) }).map(drop)
}

/// Puts a traffic control program on one side of an interface. It stays there until the interface goes.
pub fn attach_tc(program: BorrowedFd<'_>, interface: u32, direction: Direction) -> io::Result<()> {
    let hook = hook(
        interface,
        match direction {
            Direction::Ingress => sys::bpf_tc_attach_point_BPF_TC_INGRESS,
            Direction::Egress => sys::bpf_tc_attach_point_BPF_TC_EGRESS,
        },
    );
    let mut options = sys::bpf_tc_opts {
        sz: size_to!(sys::bpf_tc_opts, priority),
        prog_fd: program.as_raw_fd(),
        flags: 0,
        prog_id: 0,
        handle: 1,
        priority: 1,
    };
    // SAFETY: both say their size and are used during the call only.
    check(unsafe { sys::bpf_tc_attach(&hook, &mut options) }).map(drop)
}

fn hook(interface: u32, attach_point: sys::bpf_tc_attach_point) -> sys::bpf_tc_hook {
    sys::bpf_tc_hook {
        sz: size_to!(sys::bpf_tc_hook, parent),
        ifindex: interface as c_int,
        attach_point,
        parent: 0,
    }
}
