//! libbpf, as far as we use it, behind safe calls.
//!
//! Set-up and control only. An [`Object`] owns its programs and maps until it is dropped; what the kernel still
//! uses (an attached program, the maps it refers to) lives on without it. libbpf itself reports on stderr why the
//! kernel's verifier refused a program.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use libxdp_sys as sys;

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
        if (key as usize, value as usize) != (K, size_of::<u32>()) {
            return Err(io::Error::other(format!("map {name:?} has keys of {key}, values of {value} bytes")));
        }
        Ok(Map { fd: self.map_fd(map)?, key: PhantomData })
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
    key: PhantomData<[u8; K]>,
}

impl<const K: usize> Map<'_, K> {
    /// Enters or changes a key.
    pub(super) fn set(&self, key: &[u8; K], value: u32) -> io::Result<()> {
        let (key, value) = (key.as_ptr().cast(), (&raw const value).cast::<c_void>());
        // SAFETY: the map's keys have `K` and its values four bytes (checked by `Object::map`), which the kernel
        // copies during the call.
        check(unsafe { sys::bpf_map_update_elem(self.fd.as_raw_fd(), key, value, 0) }).map(drop)
    }
}

/// What libbpf returns: a value, or an error number below zero.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
