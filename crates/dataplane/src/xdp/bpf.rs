//! libbpf, as far as we use it, behind safe calls.
//!
//! Set-up and control only. An [`Object`] owns its programs and maps until it is dropped; what the kernel still
//! uses (an attached program, the maps it refers to) lives on without it. libbpf itself reports on stderr why the
//! kernel's verifier refused a program.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use libxdp_sys as sys;

use super::mode::Mode;

/// Bytes of a structure of options up to this field of 4 bytes. libbpf wants zero bytes after what it knows, and what
/// pads a structure at its end holds anything.
macro_rules! size_to {
    ($options:ty, $field:ident) => {
        std::mem::offset_of!($options, $field) + 4
    };
}

/// An object file, opened or loaded.
pub(crate) struct Object(NonNull<sys::bpf_object>);

// SAFETY: libbpf keeps no thread-local state in an object; whoever owns it may use it from any one thread.
unsafe impl Send for Object {}

impl Object {
    /// Reads an object file.
    pub(crate) fn open(image: &[u8]) -> io::Result<Self> {
        // SAFETY: `image` is readable for the call, and libbpf copies what it keeps; no options are given.
        let raw = unsafe { sys::bpf_object__open_mem(image.as_ptr().cast(), image.len(), ptr::null()) };
        NonNull::new(raw).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// Leaves a program out of the kernel.
    pub(crate) fn leave_out(&mut self, name: &CStr) -> io::Result<()> {
        let program = self.find_program(name)?;
        // SAFETY: `program` belongs to this object.
        check(unsafe { sys::bpf_program__set_autoload(program.as_ptr(), false) }).map(drop)
    }

    /// Takes a map of another object instead of making a new one.
    pub(crate) fn share(&mut self, name: &CStr, of: &Self) -> io::Result<()> {
        let theirs = of.map_fd(of.find_map(name)?)?;
        let ours = self.find_map(name)?;
        // SAFETY: `ours` belongs to this object, which is not loaded yet (else libbpf refuses); the descriptor is
        // duplicated.
        check(unsafe { sys::bpf_map__reuse_fd(ours.as_ptr(), theirs.as_raw_fd()) }).map(drop)
    }

    /// Sets the constants of the object, all of them at once.
    pub(crate) fn set_constants(&mut self, bytes: &[u8]) -> io::Result<()> {
        let map = self.find_map(c".rodata")?;
        // SAFETY: `map` belongs to this object; libbpf copies `bytes` and refuses a length other than the map's.
        check(unsafe { sys::bpf_map__set_initial_value(map.as_ptr(), bytes.as_ptr().cast(), bytes.len()) })
            .map(drop)
    }

    /// Makes the maps and hands the programs to the kernel.
    pub(crate) fn load(&mut self) -> io::Result<()> {
        // SAFETY: the object is open; loading twice is refused by libbpf.
        check(unsafe { sys::bpf_object__load(self.0.as_ptr()) }).map(drop)
    }

    /// A program that was loaded.
    pub(crate) fn program(&self, name: &CStr) -> io::Result<BorrowedFd<'_>> {
        let program = self.find_program(name)?;
        // SAFETY: `program` belongs to this object.
        let fd = check(unsafe { sys::bpf_program__fd(program.as_ptr()) })?;
        // SAFETY: the descriptor stays open until the object is closed, which `self`'s borrow prevents.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// A map whose keys are `K` bytes long and whose values are a `u32`. Another layout is an error.
    pub(crate) fn map<const K: usize>(&self, name: &CStr) -> io::Result<Map<'_, K>> {
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
pub(crate) struct Map<'object, const K: usize> {
    fd: BorrowedFd<'object>,
    limit: u32,
    key: PhantomData<[u8; K]>,
}

impl<const K: usize> Map<'_, K> {
    /// How many keys it holds at most.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Enters or changes a key.
    pub(crate) fn set(&self, key: &[u8; K], value: u32) -> io::Result<()> {
        let (key, value) = (key.as_ptr().cast(), (&raw const value).cast::<c_void>());
        // SAFETY: the map's keys have `K` and its values four bytes (checked by `Object::map`), which the kernel
        // copies during the call.
        check(unsafe { sys::bpf_map_update_elem(self.fd.as_raw_fd(), key, value, 0) }).map(drop)
    }

    /// Removes a key; that it was not there is no error.
    pub(crate) fn unset(&self, key: &[u8; K]) -> io::Result<()> {
        // SAFETY: as for `set`.
        let result = check(unsafe { sys::bpf_map_delete_elem(self.fd.as_raw_fd(), key.as_ptr().cast()) });
        result
            .map(drop)
            .or_else(|error| if error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) })
    }
}

/// Puts an XDP program on an interface until the returned link is closed.
pub(crate) fn attach_xdp(program: BorrowedFd<'_>, interface: u32, mode: Mode) -> io::Result<OwnedFd> {
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
pub(crate) fn set_xdp(interface: u32, program: Option<BorrowedFd<'_>>, mode: Option<Mode>) -> io::Result<()> {
    // Instead of a program: kernel `net/core/dev.c`, `dev_change_xdp_fd`.
    let program = program.map_or(-1, |program| program.as_raw_fd());
    let flags = mode.map_or(0, Mode::flags);
    // SAFETY: no options are given; libbpf passes three integers on to the kernel, which checks them.
    check(unsafe { sys::bpf_xdp_attach(interface as c_int, program, flags, ptr::null()) }).map(drop)
}

/// The XDP program of an interface, and what XDP its driver has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct XdpState {
    /// The program's id, and where it runs; `None` there: in the device itself.
    pub(crate) program: Option<(u32, Option<Mode>)>,
    /// `enum netdev_xdp_act` (linux/netdev.h).
    pub(crate) features: u64,
}

/// Asks the kernel about an interface.
pub(crate) fn query_xdp(interface: u32) -> io::Result<XdpState> {
    // SAFETY: the options are integers.
    let mut options: sys::bpf_xdp_query_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<sys::bpf_xdp_query_opts>();
    // SAFETY: `options` says its size and is written during the call only.
    check(unsafe { sys::bpf_xdp_query(interface as c_int, 0, &mut options) })?;
    let program = match options {
        sys::bpf_xdp_query_opts { drv_prog_id: id @ 1.., .. } => Some((id, Some(Mode::Native))),
        sys::bpf_xdp_query_opts { skb_prog_id: id @ 1.., .. } => Some((id, Some(Mode::Generic))),
        sys::bpf_xdp_query_opts { prog_id: id @ 1.., .. } => Some((id, None)),
        _ => None,
    };
    Ok(XdpState { program, features: options.feature_flags })
}

/// A program in the kernel, whoever loaded it.
#[derive(Debug)]
pub(crate) struct ProgramInfo {
    /// Its name, as much as the kernel keeps of it.
    pub(crate) name: String,
    /// The ids of its maps; of more than eight the first eight.
    pub(crate) maps: Vec<u32>,
}

/// Asks the kernel about a program.
pub(crate) fn program_info(id: u32) -> io::Result<ProgramInfo> {
    // SAFETY: takes and returns integers.
    let fd = check(unsafe { sys::bpf_prog_get_fd_by_id(id) })?;
    // SAFETY: the call has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut maps = [0_u32; 8];
    // SAFETY: the structure is integers and arrays of them.
    let mut info: sys::bpf_prog_info = unsafe { std::mem::zeroed() };
    info.nr_map_ids = maps.len() as u32;
    info.map_ids = maps.as_mut_ptr() as u64;
    let mut len = size_of::<sys::bpf_prog_info>() as u32;
    // SAFETY: `info` is `len` bytes long; of buffers it names `maps` alone, with its length, which is ours to write
    // until the call ends.
    check(unsafe { sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut len) })?;
    Ok(ProgramInfo { name: text(&info.name), maps: maps.into_iter().filter(|&id| id != 0).collect() })
}

/// A map in the kernel, whoever made it.
#[derive(Debug)]
pub(crate) struct KernelMap {
    fd: OwnedFd,
    /// Its name.
    pub(crate) name: String,
    /// How many keys it holds at most.
    pub(crate) limit: u32,
    key_bytes: u32,
    value_bytes: u32,
}

impl KernelMap {
    /// The map of this id.
    pub(crate) fn open(id: u32) -> io::Result<Self> {
        // SAFETY: takes and returns integers.
        let fd = check(unsafe { sys::bpf_map_get_fd_by_id(id) })?;
        // SAFETY: the call has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the structure is integers and arrays of them.
        let mut info: sys::bpf_map_info = unsafe { std::mem::zeroed() };
        let mut len = size_of::<sys::bpf_map_info>() as u32;
        // SAFETY: `info` is zero (no buffers for the kernel to fill) and `len` bytes long.
        check(unsafe { sys::bpf_map_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut len) })?;
        let (key_bytes, value_bytes, limit) = (info.key_size, info.value_size, info.max_entries);
        Ok(Self { fd, name: text(&info.name), limit, key_bytes, value_bytes })
    }

    /// The words at a key of a map whose keys are a `u32` and whose values are so many words. Another layout is an error.
    pub(crate) fn words<const N: usize>(&self, key: u32) -> io::Result<[u64; N]> {
        let mut words = [0_u64; N];
        if (self.key_bytes as usize, self.value_bytes as usize) != (size_of::<u32>(), size_of_val(&words)) {
            let text = format!(
                "map {} has keys of {}, values of {} bytes",
                self.name, self.key_bytes, self.value_bytes
            );
            return Err(io::Error::other(text));
        }
        let (key, value) = ((&raw const key).cast(), words.as_mut_ptr().cast());
        // SAFETY: keys have four bytes and values those of `words` (checked above), which the call fills.
        check(unsafe { sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), key, value) })?;
        Ok(words)
    }
}

/// Takes a program off its interface, also while another process (a child about to start) still holds the link open.
pub(crate) fn detach(link: BorrowedFd<'_>) {
    // SAFETY: the call takes nothing but the descriptor. If the interface is gone it fails, and nothing is attached.
    let _ = unsafe { sys::bpf_link_detach(link.as_raw_fd()) };
}

/// What an XDP program returns for a frame, and the frame as it leaves it.
pub(crate) fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut after = vec![0; TEST_FRAME_BYTES];
    // SAFETY: the options are integers and pointers that may be null.
    let mut options: sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
    options.sz = size_to!(sys::bpf_test_run_opts, repeat);
    options.data_in = frame.as_ptr().cast();
    options.data_size_in = frame.len() as u32;
    options.data_out = after.as_mut_ptr().cast();
    options.data_size_out = after.len() as u32;
    options.repeat = 1;
    // SAFETY: `options` says its size; `frame` is readable for its length and copied; `after` is writable for its
    // length, and nothing else is written but into `options`.
    check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    after.truncate(options.data_size_out as usize);
    Ok((options.retval, after))
}

/// More than the kernel runs a program with: a page.
const TEST_FRAME_BYTES: usize = 4096;

/// A side of an interface that traffic control sees.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// What the interface hands to the kernel.
    Ingress,
    /// What the kernel hands to the interface.
    Egress,
}

/// Makes an interface ready for [`attach_tc`]. It stays so until the interface goes.
pub(crate) fn prepare_tc(interface: u32) -> io::Result<()> {
    let both = sys::bpf_tc_attach_point_BPF_TC_INGRESS | sys::bpf_tc_attach_point_BPF_TC_EGRESS;
    let mut hook = hook(interface, both);
    // SAFETY: `hook` says its size and is used during the call only.
    check(unsafe { sys::bpf_tc_hook_create(&mut hook) }).map(drop)
}

/// Puts a traffic control program on one side of an interface. It stays there until the interface goes.
pub(crate) fn attach_tc(program: BorrowedFd<'_>, interface: u32, direction: Direction) -> io::Result<()> {
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

/// A name as the kernel gives it, without its padding.
fn text(padded: &[c_char]) -> String {
    let bytes: Vec<u8> = padded.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What libbpf returns: a value, or an error number below zero.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
