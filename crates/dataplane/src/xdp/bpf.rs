//! libbpf, as far as we use it, behind safe calls.
//!
//! Set-up and control only. An [`Object`] owns its programs and maps until it is dropped; what the kernel still
//! uses (an attached program, the maps it refers to) lives on without it. libbpf itself reports on stderr why the
//! kernel's verifier refused a program.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use libxdp_sys as sys;

/// Bytes of a structure of options up to this field of 4 bytes. libbpf wants zero bytes after what it knows, and what
/// pads a structure at its end holds anything.
macro_rules! size_to {
    ($options:ty, $field:ident) => {
        std::mem::offset_of!($options, $field) + 4
    };
}

/// An object file, opened or loaded.
pub(super) struct Object(NonNull<sys::bpf_object>);

// SAFETY: libbpf keeps no thread-local state in an object; whoever owns it may use it from any one thread.
unsafe impl Send for Object {}

impl Object {
    /// Reads an object file.
    pub(super) fn open(image: &[u8]) -> io::Result<Self> {
        // SAFETY: `image` is readable for the call, and libbpf copies what it keeps; no options are given.
        let raw = unsafe { sys::bpf_object__open_mem(image.as_ptr().cast(), image.len(), ptr::null()) };
        NonNull::new(raw).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// Leaves a program out of the kernel.
    pub(super) fn leave_out(&mut self, name: &CStr) -> io::Result<()> {
        let program = self.find_program(name)?;
        // SAFETY: `program` belongs to this object.
        check(unsafe { sys::bpf_program__set_autoload(program.as_ptr(), false) }).map(drop)
    }

    /// Takes a map of another object instead of making a new one.
    pub(super) fn share(&mut self, name: &CStr, of: &Self) -> io::Result<()> {
        let theirs = of.map_fd(of.find_map(name)?)?;
        let ours = self.find_map(name)?;
        // SAFETY: `ours` belongs to this object, which is not loaded yet (else libbpf refuses); the descriptor is
        // duplicated.
        check(unsafe { sys::bpf_map__reuse_fd(ours.as_ptr(), theirs.as_raw_fd()) }).map(drop)
    }

    /// Sets the constants of the object, all of them at once.
    pub(super) fn set_constants(&mut self, bytes: &[u8]) -> io::Result<()> {
        let map = self.find_map(c".rodata")?;
        // SAFETY: `map` belongs to this object; libbpf copies `bytes` and refuses a length other than the map's.
        check(unsafe { sys::bpf_map__set_initial_value(map.as_ptr(), bytes.as_ptr().cast(), bytes.len()) })
            .map(drop)
    }

    /// Makes the maps and hands the programs to the kernel.
    pub(super) fn load(&mut self) -> io::Result<()> {
        // SAFETY: the object is open; loading twice is refused by libbpf.
        check(unsafe { sys::bpf_object__load(self.0.as_ptr()) }).map(drop)
    }

    /// A program that was loaded.
    pub(super) fn program(&self, name: &CStr) -> io::Result<BorrowedFd<'_>> {
        let program = self.find_program(name)?;
        // SAFETY: `program` belongs to this object.
        let fd = check(unsafe { sys::bpf_program__fd(program.as_ptr()) })?;
        // SAFETY: the descriptor stays open until the object is closed, which `self`'s borrow prevents.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// A map whose keys are `K` bytes long and whose values are a `u32`. Another layout is an error.
    pub(super) fn map<const K: usize>(&self, name: &CStr) -> io::Result<Map<'_, K>> {
        let map = self.find_map(name)?;
        // SAFETY: `map` belongs to this object.
        let key = unsafe { sys::bpf_map__key_size(map.as_ptr()) };
        // SAFETY: as above.
        let value = unsafe { sys::bpf_map__value_size(map.as_ptr()) };
        // SAFETY: as above.
        let limit = unsafe { sys::bpf_map__max_entries(map.as_ptr()) };
        if (key as usize, value as usize) != (K, size_of::<u32>()) {
            return Err(io::Error::other(format!("map {name:?} has keys of {key}, values of {value} bytes")));
        }
        Ok(Map { fd: self.map_fd(map)?, limit, key: PhantomData })
    }

    fn map_fd(&self, map: NonNull<sys::bpf_map>) -> io::Result<BorrowedFd<'_>> {
        // SAFETY: `map` belongs to this object.
        let fd = check(unsafe { sys::bpf_map__fd(map.as_ptr()) })?;
        // SAFETY: the descriptor stays open until the object is closed, which `self`'s borrow prevents.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn find_program(&self, name: &CStr) -> io::Result<NonNull<sys::bpf_program>> {
        // SAFETY: the object is open and `name` ends with a zero byte.
        let raw = unsafe { sys::bpf_object__find_program_by_name(self.0.as_ptr(), name.as_ptr()) };
        NonNull::new(raw).ok_or_else(io::Error::last_os_error)
    }

    fn find_map(&self, name: &CStr) -> io::Result<NonNull<sys::bpf_map>> {
        // SAFETY: the object is open and `name` ends with a zero byte.
        let raw = unsafe { sys::bpf_object__find_map_by_name(self.0.as_ptr(), name.as_ptr()) };
        NonNull::new(raw).ok_or_else(io::Error::last_os_error)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: this is the only owner, and borrows of its descriptors ended before.
        unsafe { sys::bpf_object__close(self.0.as_ptr()) }
    }
}

/// A map with keys of `K` bytes and values of four.
pub(super) struct Map<'object, const K: usize> {
    fd: BorrowedFd<'object>,
    limit: u32,
    key: PhantomData<[u8; K]>,
}

impl<const K: usize> Map<'_, K> {
    /// How many keys it holds at most.
    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Enters or changes a key.
    pub(super) fn set(&self, key: &[u8; K], value: u32) -> io::Result<()> {
        let (key, value) = (key.as_ptr().cast(), (&raw const value).cast::<c_void>());
        // SAFETY: the map's keys have `K` and its values four bytes (checked by `Object::map`), which the kernel
        // copies during the call.
        check(unsafe { sys::bpf_map_update_elem(self.fd.as_raw_fd(), key, value, 0) }).map(drop)
    }

    /// Removes a key; that it was not there is no error.
    pub(super) fn unset(&self, key: &[u8; K]) -> io::Result<()> {
        // SAFETY: as for `set`.
        let result = check(unsafe { sys::bpf_map_delete_elem(self.fd.as_raw_fd(), key.as_ptr().cast()) });
        result
            .map(drop)
            .or_else(|error| if error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) })
    }
}

/// Puts an XDP program on an interface until the returned link is closed.
pub(super) fn attach_xdp(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: the options are integers, pointers that may be null, and a union of these.
    let mut options: sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_to!(sys::bpf_link_create_opts, flags);
    options.flags = flags;
    let (program, interface) = (program.as_raw_fd(), interface as c_int);
    // SAFETY: `options` says its size and is read during the call only.
    let link = unsafe { sys::bpf_link_create(program, interface, sys::bpf_attach_type_BPF_XDP, &options) };
    let link = check(link)?;
    // SAFETY: the call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// What is attached to an interface, and what XDP its driver has.
pub(super) fn query_xdp(interface: u32) -> io::Result<sys::bpf_xdp_query_opts> {
    // SAFETY: the options are integers.
    let mut options: sys::bpf_xdp_query_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<sys::bpf_xdp_query_opts>();
    // SAFETY: `options` says its size and is written during the call only.
    check(unsafe { sys::bpf_xdp_query(interface as c_int, 0, &mut options) })?;
    Ok(options)
}

/// Takes a program off its interface, also while another process (a child about to start) still holds the link open.
pub(super) fn detach(link: BorrowedFd<'_>) {
    // SAFETY: the call takes nothing but the descriptor. If the interface is gone it fails, and nothing is attached.
    let _ = unsafe { sys::bpf_link_detach(link.as_raw_fd()) };
}

/// What an XDP program returns for a frame.
pub(super) fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    // SAFETY: the options are integers and pointers that may be null.
    let mut options: sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
    options.sz = size_to!(sys::bpf_test_run_opts, repeat);
    options.data_in = frame.as_ptr().cast();
    options.data_size_in = frame.len() as u32;
    options.repeat = 1;
    // SAFETY: `options` says its size; `frame` is readable for its length and copied; nothing is written back
    // but into `options`.
    check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    Ok(options.retval)
}

/// A side of an interface that traffic control sees.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    /// What the interface hands to the kernel.
    Ingress,
    /// What the kernel hands to the interface.
    Egress,
}

/// Makes an interface ready for [`attach_tc`]. It stays so until the interface goes.
pub(super) fn prepare_tc(interface: u32) -> io::Result<()> {
    let both = sys::bpf_tc_attach_point_BPF_TC_INGRESS | sys::bpf_tc_attach_point_BPF_TC_EGRESS;
    let mut hook = hook(interface, both);
    // SAFETY: `hook` says its size and is used during the call only.
    check(unsafe { sys::bpf_tc_hook_create(&mut hook) }).map(drop)
}

/// Puts a traffic control program on one side of an interface. It stays there until the interface goes.
pub(super) fn attach_tc(program: BorrowedFd<'_>, interface: u32, direction: Direction) -> io::Result<()> {
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

/// What libbpf returns: a value, or an error number below zero.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
