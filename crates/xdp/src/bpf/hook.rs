//! Attaching BPF programs to interfaces: XDP with a BPF link or over netlink, and traffic control (tc).

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, ptr};

use libxdp_sys as sys;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task, given};

use super::call::{check, repeated, size_to};
use crate::mode::Mode;

/// Attaches an XDP program to an interface until the returned link is closed.
pub fn attach_xdp(program: BorrowedFd<'_>, interface: u32, mode: Mode) -> io::Result<OwnedFd> {
    // SAFETY: the options consist of integers, pointers that may be null, and a union of these.
    let mut options: sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_to!(sys::bpf_link_create_opts, flags);
    options.flags = mode.flags();
    let program = program.as_raw_fd();
    let interface = interface as c_int;
    let link = repeated(|| {
        // SAFETY: `options` contains its size, and is read only during the call.
        check(unsafe { sys::bpf_link_create(program, interface, sys::bpf_attach_type_BPF_XDP, &options) })
    })?;
    // SAFETY: the call has just created this descriptor, which no other value owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Replaces the XDP program of a link.
pub fn replace_xdp(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no options are given; libbpf passes two descriptors to the kernel, which checks them.
    check(unsafe { sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), ptr::null()) }).map(drop)
}

/// Attaches an XDP program to an interface over netlink, independently of any process, or detaches the program there.
/// Without a mode: native if the driver supports XDP, otherwise generic.
pub fn set_xdp(interface: u32, program: Option<BorrowedFd<'_>>, mode: Option<Mode>) -> io::Result<()> {
    // -1 means no program: kernel `net/core/dev.c`, `dev_change_xdp_fd`.
    let program = program.map_or(-1, |program| program.as_raw_fd());
    let flags = mode.map_or(0, Mode::flags);
    // SAFETY: no options are given; libbpf passes three integers to the kernel, which checks them.
    check(unsafe { sys::bpf_xdp_attach(interface as c_int, program, flags, ptr::null()) }).map(drop)
}

/// Runs a program at a kernel tracepoint as long as the result is open.
///
/// # Errors
///
/// The kernel has no such tracepoint, or refuses the program.
pub fn follow_tracepoint(name: &CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero byte and is read only during the call; the kernel checks the descriptor.
    let fd = check(unsafe { sys::bpf_raw_tracepoint_open(name.as_ptr(), program.as_raw_fd()) })?;
    // SAFETY: the call has just created this descriptor, which no other value owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Detaches a program from its interface, even if another process (a child that is being started) still has the link
/// open.
pub fn detach(link: BorrowedFd<'_>) {
    // SAFETY: the call takes only the descriptor. It fails if the interface is gone; then nothing is attached.
    let _ = unsafe { sys::bpf_link_detach(link.as_raw_fd()) };
}

/// A side of an interface for traffic control.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Direction {
    /// Packets from the interface to the kernel.
    Ingress,
    /// Packets from the kernel to the interface.
    Egress,
}

impl Direction {
    fn attach_point(self) -> sys::bpf_tc_attach_point {
        match self {
            Self::Ingress => sys::bpf_tc_attach_point_BPF_TC_INGRESS,
            Self::Egress => sys::bpf_tc_attach_point_BPF_TC_EGRESS,
        }
    }
}

/// Prepares an interface for [`attach_tc`], until the interface is removed.
pub fn prepare_tc(interface: u32) -> io::Result<()> {
    let both = sys::bpf_tc_attach_point_BPF_TC_INGRESS | sys::bpf_tc_attach_point_BPF_TC_EGRESS;
    let mut hook = hook(interface, both);
    // SAFETY: `hook` contains its size, and is used only during the call.
    check(unsafe { sys::bpf_tc_hook_create(&mut hook) }).map(drop)
}

/// Attaches a traffic control program to one side of an interface, until the interface is removed or [`DetachTc`] runs.
/// Replaces a program that this function attached before. Returns the program's id.
pub fn attach_tc(program: BorrowedFd<'_>, interface: u32, direction: Direction) -> io::Result<u32> {
    let mut options = tc_filter();
    (options.prog_fd, options.flags) = (program.as_raw_fd(), sys::bpf_tc_flags_BPF_TC_F_REPLACE);
    // SAFETY: both contain their sizes, and are used only during the call.
    check(unsafe { sys::bpf_tc_attach(&hook(interface, direction.attach_point()), &mut options) })?;
    Ok(options.prog_id)
}

/// The id of the program that [`attach_tc`] attached to one side of an interface.
///
/// # Errors
///
/// There is none, or the interface is gone.
pub fn attached_tc(interface: u32, direction: Direction) -> io::Result<u32> {
    let mut attached = tc_filter();
    // SAFETY: both contain their sizes, and are used only during the call.
    check(unsafe { sys::bpf_tc_query(&hook(interface, direction.attach_point()), &mut attached) })?;
    Ok(attached.prog_id)
}

/// [`attach_tc`] of the program that is given.
#[derive(Debug, Serialize, Deserialize)]
pub struct AttachTc {
    /// The interface's index.
    pub interface: u32,
    /// The side of the interface.
    pub direction: Direction,
}

impl Task for AttachTc {
    const NAME: &'static str = "attach-tc";
    /// The program's id.
    type Done = u32;

    fn carry_out(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<Answer<u32>> {
        Ok((attach_tc(given(descriptors, 0)?, self.interface, self.direction)?, Vec::new()))
    }
}

/// Detaches the program with this id, which [`attach_tc`] attached, unless another process has replaced it.
#[derive(Debug, Serialize, Deserialize)]
pub struct DetachTc {
    /// The program's id.
    pub program: u32,
    /// The interface's index.
    pub interface: u32,
    /// The interface's side.
    pub direction: Direction,
}

impl Task for DetachTc {
    const NAME: &'static str = "detach-tc";
    type Done = ();

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        let Self { program, interface, direction } = *self;
        if attached_tc(interface, direction)? == program {
            let hook = hook(interface, direction.attach_point());
            // SAFETY: both contain their sizes, and are used only during the call.
            check(unsafe { sys::bpf_tc_detach(&hook, &tc_filter()) })?;
        }
        Ok(((), Vec::new()))
    }
}

/// Handle and priority of xvs's tc programs: unlikely to be used by others, and before programs without a priority.
fn tc_filter() -> sys::bpf_tc_opts {
    sys::bpf_tc_opts {
        sz: size_to!(sys::bpf_tc_opts, priority),
        prog_fd: 0,
        flags: 0,
        prog_id: 0,
        handle: 0x0078_7673,
        priority: 0x7876,
    }
}

fn hook(interface: u32, attach_point: sys::bpf_tc_attach_point) -> sys::bpf_tc_hook {
    sys::bpf_tc_hook {
        sz: size_to!(sys::bpf_tc_hook, parent),
        ifindex: interface as c_int,
        attach_point,
        parent: 0,
    }
}
