//! Object files, and their programs and maps in the kernel.
//!
//! An [`ObjectFile`] is opened and loaded, possibly in another process. The result is an [`Object`]: descriptors of
//! programs and maps. An attached program and its maps stay in the kernel when the descriptors are closed.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use libxdp_sys as sys;

use super::call::{check, size_to};
use super::info::{KernelMap, ProgramInfo};
use super::key::Key;
use super::sets::Sets;
use super::words::{Rows, Words};

/// An open object file, which is not loaded yet.
pub struct ObjectFile(NonNull<sys::bpf_object>);

impl ObjectFile {
    /// Reads an object file.
    pub fn open(image: &[u8]) -> io::Result<Self> {
        // SAFETY: `image` is readable during the call, and libbpf copies what it needs later; no options are given.
        let raw = unsafe { sys::bpf_object__open_mem(image.as_ptr().cast(), image.len(), ptr::null()) };
        NonNull::new(raw).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// Excludes a program from loading.
    pub fn leave_out(&mut self, name: &CStr) -> io::Result<()> {
        // SAFETY: the object is open and `name` ends with a zero byte.
        let raw = unsafe { sys::bpf_object__find_program_by_name(self.0.as_ptr(), name.as_ptr()) };
        let program = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: `program` belongs to this object.
        check(unsafe { sys::bpf_program__set_autoload(program.as_ptr(), false) }).map(drop)
    }

    /// Uses this map instead of a new one.
    pub fn share(&mut self, name: &CStr, map: BorrowedFd<'_>) -> io::Result<()> {
        let own = self.find_map(name)?;
        // SAFETY: `own` belongs to this object, which is not loaded yet; the kernel checks the descriptor, and libbpf
        // duplicates it.
        check(unsafe { sys::bpf_map__reuse_fd(own.as_ptr(), map.as_raw_fd()) }).map(drop)
    }

    /// Sets the number of entries of an array.
    pub fn set_entries(&mut self, name: &CStr, count: u32) -> io::Result<()> {
        let map = self.find_map(name)?;
        // SAFETY: `map` belongs to this object, which is not loaded yet.
        check(unsafe { sys::bpf_map__set_max_entries(map.as_ptr(), count) }).map(drop)
    }

    /// Sets all constants of the object.
    pub fn set_constants(&mut self, bytes: &[u8]) -> io::Result<()> {
        let map = self.find_map(c".rodata")?;
        // SAFETY: `map` belongs to this object; libbpf copies `bytes` and refuses a length other than the map's.
        check(unsafe { sys::bpf_map__set_initial_value(map.as_ptr(), bytes.as_ptr().cast(), bytes.len()) })
            .map(drop)
    }

    /// Creates the maps and loads the programs in the kernel.
    pub fn load(self) -> io::Result<Object> {
        let (programs, descriptors) = self.load_descriptors()?;
        Object::of(programs, descriptors)
    }

    /// Like [`Self::load`], for [`Object::of`] in another process: returns the number of programs, and all descriptors.
    pub fn load_descriptors(self) -> io::Result<(usize, Vec<OwnedFd>)> {
        // SAFETY: the object is open, and this is the only call, because it takes `self`.
        check(unsafe { sys::bpf_object__load(self.0.as_ptr()) })?;
        let mut descriptors = Vec::new();
        let mut program = ptr::null_mut();
        loop {
            // SAFETY: `program` is null or a program of this object.
            program = unsafe { sys::bpf_object__next_program(self.0.as_ptr(), program) };
            if program.is_null() {
                break;
            }
            // SAFETY: `program` belongs to this object.
            let fd = unsafe { sys::bpf_program__fd(program) };
            // A program that was left out has none.
            if fd >= 0 {
                // SAFETY: the descriptor stays open until the object is closed, which drops `self`.
                descriptors.push(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?);
            }
        }
        let programs = descriptors.len();
        let mut map = ptr::null_mut();
        loop {
            // SAFETY: `map` is null or a map of this object.
            map = unsafe { sys::bpf_object__next_map(self.0.as_ptr(), map) };
            if map.is_null() {
                return Ok((programs, descriptors));
            }
            // SAFETY: `map` belongs to this object.
            let fd = check(unsafe { sys::bpf_map__fd(map) })?;
            // SAFETY: as for programs.
            descriptors.push(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?);
        }
    }

    fn find_map(&self, name: &CStr) -> io::Result<NonNull<sys::bpf_map>> {
        // SAFETY: the object is open and `name` ends with a zero byte.
        let raw = unsafe { sys::bpf_object__find_map_by_name(self.0.as_ptr(), name.as_ptr()) };
        NonNull::new(raw).ok_or_else(io::Error::last_os_error)
    }
}

impl Drop for ObjectFile {
    fn drop(&mut self) {
        // SAFETY: this is the only owner, and nothing borrows its descriptors.
        unsafe { sys::bpf_object__close(self.0.as_ptr()) }
    }
}

/// Loaded programs and maps.
pub struct Object {
    programs: Vec<(String, OwnedFd)>,
    maps: Vec<KernelMap>,
}

impl Object {
    /// The object with these descriptors; the first `programs` of them are programs.
    ///
    /// # Errors
    ///
    /// A descriptor is neither a program's nor a map's, or the kernel's error.
    pub fn of(programs: usize, mut descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let maps = descriptors.split_off(programs.min(descriptors.len()));
        let programs = descriptors
            .into_iter()
            .map(|fd| Ok((ProgramInfo::of(fd.as_fd())?.name, fd)))
            .collect::<io::Result<_>>()?;
        Ok(Self { programs, maps: maps.into_iter().map(KernelMap::of).collect::<io::Result<_>>()? })
    }

    /// A loaded program.
    pub fn program(&self, name: &CStr) -> io::Result<BorrowedFd<'_>> {
        self.programs
            .iter()
            .find(|(known, _)| known.as_bytes() == name.to_bytes())
            .map(|(_, program)| program.as_fd())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A map, for another object that shares it.
    pub fn map_descriptor(&self, name: &CStr) -> io::Result<BorrowedFd<'_>> {
        self.find_map(name).map(KernelMap::as_fd)
    }

    /// A map whose keys are as long as `K` and whose values are `u32`.
    ///
    /// # Errors
    /// There is no such map, or its layout is another one.
    pub fn map<K: Key>(&self, name: &CStr) -> io::Result<Map<'_, K>> {
        self.find_map(name)?.entries()
    }

    /// An array of sets of keys.
    ///
    /// # Errors
    /// There is no such map. A map of another kind refuses every set.
    pub fn sets(&self, name: &CStr) -> io::Result<Sets<'_>> {
        let map = self.find_map(name)?;
        map.check_layout(size_of::<u32>(), size_of::<u32>())?;
        Ok(Sets(map.as_fd()))
    }

    /// Sets the value of an array at a place.
    ///
    /// # Errors
    /// There is no such map or place, or its layout is another one.
    pub fn set_value<V: Key>(&self, name: &CStr, place: u32, value: &V) -> io::Result<()> {
        let map = self.find_map(name)?;
        map.check_layout(size_of::<u32>(), size_of::<V>())?;
        let key = (&raw const place).cast();
        let value = (&raw const *value).cast::<c_void>();
        // SAFETY: keys have four bytes and values those of `V` (checked above), all of which are initialized; the
        // kernel copies both during the call.
        check(unsafe { sys::bpf_map_update_elem(map.as_fd().as_raw_fd(), key, value, 0) }).map(drop)
    }

    /// Maps an array with `BPF_F_MMAPABLE`, whose values have `N` 64-bit integers in total, into this process's memory.
    ///
    /// # Errors
    ///
    /// There is no such map, it has another layout, or the kernel refuses.
    pub fn words<const N: usize>(&self, name: &CStr) -> io::Result<Words<N>> {
        self.find_map(name)?.map_words()
    }

    /// Maps an array with `BPF_F_MMAPABLE`, whose values have `N` 64-bit integers each, into this process's memory.
    ///
    /// # Errors
    ///
    /// Same as [`Self::words`].
    pub fn rows<const N: usize>(&self, name: &CStr) -> io::Result<Rows<N>> {
        self.find_map(name)?.map_rows()
    }

    fn find_map(&self, name: &CStr) -> io::Result<&KernelMap> {
        self.maps
            .iter()
            .find(|map| map.name.as_bytes() == name.to_bytes())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A map with keys like `K` and values of four bytes.
pub struct Map<'object, K> {
    fd: BorrowedFd<'object>,
    limit: u32,
    key: PhantomData<K>,
}

impl KernelMap {
    /// Its entries, if its keys are as long as `K` and its values are `u32`.
    ///
    /// # Errors
    /// Its layout is another one.
    pub fn entries<K: Key>(&self) -> io::Result<Map<'_, K>> {
        self.check_layout(size_of::<K>(), size_of::<u32>())?;
        Ok(Map { fd: self.as_fd(), limit: self.limit, key: PhantomData })
    }
}

impl<K: Key> Map<'_, K> {
    /// The most keys that it holds.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Enters or changes the value of a key.
    pub fn set(&self, key: &K, value: u32) -> io::Result<()> {
        let key = (&raw const *key).cast();
        let value = (&raw const value).cast::<c_void>();
        // SAFETY: the map's keys have the bytes of `K`, all of which are initialized, and its values four (checked by
        // `Object::map`); the kernel copies both during the call.
        check(unsafe { sys::bpf_map_update_elem(self.fd.as_raw_fd(), key, value, 0) }).map(drop)
    }

    /// The value of a key; `None`: the map does not have it.
    pub fn get(&self, key: &K) -> io::Result<Option<u32>> {
        let mut value = 0_u32;
        let key = (&raw const *key).cast();
        let into = (&raw mut value).cast::<c_void>();
        // SAFETY: as for `set`; the kernel writes the four bytes of a value.
        match check(unsafe { sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), key, into) }) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a key. A missing key is not an error.
    pub fn unset(&self, key: &K) -> io::Result<()> {
        let key = (&raw const *key).cast();
        // SAFETY: as for `set`.
        check(unsafe { sys::bpf_map_delete_elem(self.fd.as_raw_fd(), key) })
            .map(drop)
            .or_else(|error| if error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) })
    }
}

/// Runs an XDP program on a frame. Returns the result and the modified frame.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    run(program, frame, 1).map(|(returned, after, _)| (returned, after))
}

/// Runs an XDP program on a frame several times, for a benchmark. Returns the result and the mean time of a run in
/// nanoseconds.
pub fn test_run_repeated(program: BorrowedFd<'_>, frame: &[u8], times: u32) -> io::Result<(u32, u32)> {
    run(program, frame, times).map(|(returned, _, nanos)| (returned, nanos))
}

fn run(program: BorrowedFd<'_>, frame: &[u8], times: u32) -> io::Result<(u32, Vec<u8>, u32)> {
    let mut after = vec![0; TEST_FRAME_BYTES];
    // SAFETY: the options consist of integers and pointers that may be null.
    let mut options: sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
    options.sz = size_to!(sys::bpf_test_run_opts, duration);
    options.data_in = frame.as_ptr().cast();
    options.data_size_in = frame.len() as u32;
    options.data_out = after.as_mut_ptr().cast();
    options.data_size_out = after.len() as u32;
    options.repeat = times as c_int;
    // SAFETY: `options` contains its size; `frame` is readable for its length and copied; `after` is writable for its
    // length, and the call writes nothing else except `options`.
    check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    after.truncate(options.data_size_out as usize);
    Ok((options.retval, after, options.duration))
}

/// Runs an XDP program on copies of a frame, as if a driver had received them: a copy that the program redirects is
/// sent by that interface. A copy may contain changes from earlier runs. Other threads on this core run only after each
/// `batch` copies, of which there may be at most 256. Needs kernel 5.18.
pub fn run_live(program: BorrowedFd<'_>, frame: &[u8], copies: u32, batch: u32) -> io::Result<()> {
    // SAFETY: as in `test_run`.
    let mut options: sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
    options.sz = size_to!(sys::bpf_test_run_opts, batch_size);
    options.data_in = frame.as_ptr().cast();
    options.data_size_in = frame.len() as u32;
    options.repeat = copies as c_int;
    options.batch_size = batch;
    options.flags = sys::BPF_F_TEST_XDP_LIVE_FRAMES;
    // SAFETY: `options` contains its size; `frame` is readable for its length and copied. Only `options` is written.
    check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) }).map(drop)
}

/// One page: the longest frame on which the kernel runs a program.
const TEST_FRAME_BYTES: usize = 4096;
