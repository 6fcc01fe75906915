//! The kernel's information about any process's programs and maps.

use std::ffi::{c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libxdp_sys as sys;

use super::call::{check, size_to};
use super::key::Key;
use super::words::{Rows, Words};
use crate::mode::Mode;

/// The XDP program of an interface, and the XDP features of its driver.
#[derive(Debug, Clone, Copy)]
pub struct XdpState {
    /// The program's id and mode; no mode if it is offloaded to the device.
    pub program: Option<(u32, Option<Mode>)>,
    /// `enum netdev_xdp_act` (linux/netdev.h).
    pub features: u64,
}

/// Reads the XDP state of an interface.
pub fn query_xdp(interface: u32) -> io::Result<XdpState> {
    // SAFETY: the options consist of integers.
    let mut options: sys::bpf_xdp_query_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<sys::bpf_xdp_query_opts>();
    // SAFETY: `options` contains its size, and is written only during the call.
    check(unsafe { sys::bpf_xdp_query(interface as c_int, 0, &mut options) })?;
    let program = match options {
        sys::bpf_xdp_query_opts { drv_prog_id: id @ 1.., .. } => Some((id, Some(Mode::Native))),
        sys::bpf_xdp_query_opts { skb_prog_id: id @ 1.., .. } => Some((id, Some(Mode::Generic))),
        sys::bpf_xdp_query_opts { prog_id: id @ 1.., .. } => Some((id, None)),
        _ => None,
    };
    Ok(XdpState { program, features: options.feature_flags })
}

/// A program in the kernel, of any process.
#[derive(Debug)]
pub struct ProgramInfo {
    /// The program's name, as far as the kernel stores it.
    pub name: String,
    /// The ids of the program's maps.
    pub maps: Vec<u32>,
}

/// Reads the information about a program.
pub fn program_info(id: u32) -> io::Result<ProgramInfo> {
    // SAFETY: takes and returns integers.
    let fd = check(unsafe { sys::bpf_prog_get_fd_by_id(id) })?;
    // SAFETY: the call has just created this descriptor, which no other value owns.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    ProgramInfo::of(program.as_fd())
}

impl ProgramInfo {
    /// Reads the information about an open program.
    pub(super) fn of(program: BorrowedFd<'_>) -> io::Result<Self> {
        let mut maps = [0_u32; MAPS_MAX];
        // SAFETY: the structure consists of integers and arrays of them.
        let mut info: sys::bpf_prog_info = unsafe { std::mem::zeroed() };
        info.nr_map_ids = maps.len() as u32;
        info.map_ids = maps.as_mut_ptr() as u64;
        let mut len = size_of::<sys::bpf_prog_info>() as u32;
        // SAFETY: `info` is `len` bytes long. The only buffer that it names is `maps`, with its length, which stays
        // writable until the call ends. For a descriptor of another type the kernel writes no more than `len` bytes,
        // and expects no buffer at the position of `map_ids` (linux/bpf.h).
        check(unsafe { sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut len) })?;
        Ok(Self { name: text(&info.name), maps: maps.into_iter().filter(|&id| id != 0).collect() })
    }
}

/// Maximum number of maps in a program (`MAX_USED_MAPS`, linux/bpf_verifier.h).
const MAPS_MAX: usize = 64;

/// A map in the kernel, of any process.
#[derive(Debug)]
pub struct KernelMap {
    fd: OwnedFd,
    /// The kernel's id.
    pub id: u32,
    /// The map's name.
    pub name: String,
    /// Maximum number of keys in the map.
    pub limit: u32,
    key_bytes: u32,
    value_bytes: u32,
}

impl AsFd for KernelMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<KernelMap> for OwnedFd {
    fn from(map: KernelMap) -> Self {
        map.fd
    }
}

impl KernelMap {
    /// Opens the map with this id for reading.
    pub fn open(id: u32) -> io::Result<Self> {
        Self::open_with(id, sys::BPF_F_RDONLY)
    }

    /// This map, to be read and changed.
    pub fn writable(&self) -> io::Result<Self> {
        Self::open_with(self.id, 0)
    }

    fn open_with(id: u32, open_flags: u32) -> io::Result<Self> {
        let sz = size_to!(sys::bpf_get_fd_by_id_opts, open_flags);
        let options = sys::bpf_get_fd_by_id_opts { sz, open_flags };
        // SAFETY: `options` contains its size, and is read only during the call.
        let fd = check(unsafe { sys::bpf_map_get_fd_by_id_opts(id, &options) })?;
        // SAFETY: the call has just created this descriptor, which no other value owns.
        Self::of(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The map behind an open descriptor.
    ///
    /// # Errors
    ///
    /// The descriptor is not a map's, or the kernel's error.
    pub fn of(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the structure consists of integers and arrays of them.
        let mut info: sys::bpf_map_info = unsafe { std::mem::zeroed() };
        let mut len = size_of::<sys::bpf_map_info>() as u32;
        // SAFETY: `info` is zero, so it names no buffer, and `len` bytes long.
        check(unsafe { sys::bpf_map_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut len) })?;
        Ok(Self {
            fd,
            id: info.id,
            name: text(&info.name),
            limit: info.max_entries,
            key_bytes: info.key_size,
            value_bytes: info.value_size,
        })
    }

    /// Checks the lengths of keys and values.
    pub(super) fn check_layout(&self, key_bytes: usize, value_bytes: usize) -> io::Result<()> {
        if (self.key_bytes as usize, self.value_bytes as usize) == (key_bytes, value_bytes) {
            return Ok(());
        }
        let Self { name, key_bytes, value_bytes, .. } = self;
        Err(io::Error::other(format!("map {name} has keys of {key_bytes}, values of {value_bytes} bytes")))
    }

    /// The value of a key in a map with `u32` keys, as `N` 64-bit integers.
    ///
    /// # Errors
    ///
    /// The map has another layout, or the kernel's error.
    pub fn words<const N: usize>(&self, key: u32) -> io::Result<[u64; N]> {
        let mut words = [0_u64; N];
        self.check_layout(size_of::<u32>(), size_of_val(&words))?;
        let key = (&raw const key).cast();
        let value = words.as_mut_ptr().cast();
        // SAFETY: keys have four bytes, and values have the size of `words` (checked above), which the call fills.
        check(unsafe { sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), key, value) })?;
        Ok(words)
    }

    /// Maps an array with `BPF_F_MMAPABLE`, whose values have `N` 64-bit integers in total, into this process's memory.
    ///
    /// # Errors
    ///
    /// The map has another layout, or the kernel refuses.
    pub fn map_words<const N: usize>(&self) -> io::Result<Words<N>> {
        let of_value = N * size_of::<u64>() / self.limit.max(1) as usize;
        self.check_layout(size_of::<u32>(), of_value)?;
        if self.limit as usize * of_value != N * size_of::<u64>()
            || !of_value.is_multiple_of(size_of::<u64>())
        {
            return Err(io::Error::other(format!("map {} has {} entries", self.name, self.limit)));
        }
        Words::map(self.as_fd())
    }

    /// Maps an array with `BPF_F_MMAPABLE`, whose values have `N` 64-bit integers each, into this process's memory.
    ///
    /// # Errors
    ///
    /// The map has another layout, or the kernel refuses.
    pub fn map_rows<const N: usize>(&self) -> io::Result<Rows<N>> {
        self.check_layout(size_of::<u32>(), N * size_of::<u64>())?;
        Rows::map(self.as_fd(), self.limit as usize)
    }

    /// The keys of a map whose keys are as long as `K`. While other threads change it, some may be missing.
    ///
    /// # Errors
    /// Another layout.
    pub fn keys<K: Key>(&self) -> io::Result<Vec<K>> {
        if self.key_bytes as usize != size_of::<K>() {
            return Err(io::Error::other(format!("map {} has keys of {} bytes", self.name, self.key_bytes)));
        }
        let mut keys: Vec<K> = Vec::new();
        let mut next = K::new_zeroed();
        // A change by another thread may begin the walk anew.
        while keys.len() < self.limit as usize {
            let before = keys.last().map_or(std::ptr::null(), std::ptr::from_ref);
            let into = (&raw mut next).cast();
            // SAFETY: keys have the bytes of `K` (checked above), which may be any; `before` is null or one of them,
            // and the call fills `next`.
            let found = unsafe { sys::bpf_map_get_next_key(self.fd.as_raw_fd(), before.cast(), into) };
            if check(found).is_err() {
                break;
            }
            keys.push(next);
        }
        Ok(keys)
    }
}

/// A name of the kernel, without its padding.
fn text(padded: &[c_char]) -> String {
    let bytes: Vec<u8> = padded.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
