//! Sets of keys that BPF programs read through an array of maps. A set is filled before a program sees it, and replaced
//! as a whole.
//!
//! For set-up and control. The kernel frees a replaced set once no program reads it. A set's memory is one allocation,
//! so freeing it is one step, whatever its size.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, ptr};

use libxdp_sys as sys;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task, only};

use super::call::check;
use super::key::Key;

/// A hash map of keys, whose values are four bytes without a meaning.
#[derive(Debug)]
pub struct KeySet(OwnedFd);

/// Maximum length of a key in bytes, and maximum number of keys in a set: more than any access list needs.
const KEY_MAX: u32 = 64;
const ROOM_MAX: u32 = 1 << 22;
/// The keys of one call.
const BATCH: usize = 1 << 12;

impl KeySet {
    /// The set of these keys. `room` is at least their number, and not 0.
    ///
    /// # Errors
    /// The kernel refuses: there is no memory.
    pub fn new<K: Key>(room: u32, keys: impl Iterator<Item = K>) -> io::Result<Self> {
        let set = Self(only(MakeKeySet { key_bytes: size_of::<K>() as u32, room }.run(&[])?)?.1);
        let mut keys = keys.peekable();
        let mut batch: Vec<K> = Vec::with_capacity(BATCH);
        while keys.peek().is_some() {
            batch.clear();
            batch.extend(keys.by_ref().take(BATCH));
            set.enter(&batch)?;
        }
        Ok(set)
    }

    fn enter<K: Key>(&self, keys: &[K]) -> io::Result<()> {
        let values = vec![0_u32; keys.len()];
        let from = keys.as_ptr().cast::<c_void>();
        let with = values.as_ptr().cast::<c_void>();
        let mut count = keys.len() as u32;
        // SAFETY: the map's keys have the bytes of `K`, all of which are initialized, and its values four, as `new`
        // makes it; there are `count` of both, which the kernel copies during the call. No options are given.
        check(unsafe { sys::bpf_map_update_batch(self.0.as_raw_fd(), from, with, &mut count, ptr::null()) })
            .map(drop)
    }
}

/// Creates the empty map of a [`KeySet`].
#[derive(Debug, Serialize, Deserialize)]
pub struct MakeKeySet {
    key_bytes: u32,
    room: u32,
}

impl Task for MakeKeySet {
    const NAME: &'static str = "make-key-set";
    type Done = ();

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        if self.key_bytes > KEY_MAX || self.room > ROOM_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the name ends with a zero byte, and no options are given.
        let fd = check(unsafe {
            sys::bpf_map_create(
                sys::bpf_map_type_BPF_MAP_TYPE_HASH,
                c"keys".as_ptr(),
                self.key_bytes,
                size_of::<u32>() as u32,
                self.room,
                ptr::null(),
            )
        })?;
        // SAFETY: the call has just created this descriptor, which no other value owns.
        Ok(((), vec![unsafe { OwnedFd::from_raw_fd(fd) }]))
    }
}

/// An array whose elements are maps like a [`KeySet`].
#[derive(Debug)]
pub struct Sets<'object>(pub(super) BorrowedFd<'object>);

impl Sets<'_> {
    /// Puts a set, or none, at a place of the array. On return no program still reads the former set.
    ///
    /// # Errors
    /// There is no such place, or the array is for other maps.
    pub fn put(&self, place: u32, set: Option<&KeySet>) -> io::Result<()> {
        let key = (&raw const place).cast::<c_void>();
        let done = match set {
            Some(set) => {
                let fd = set.0.as_raw_fd() as u32;
                // SAFETY: keys and values of an array of maps have four bytes; the kernel copies both during the call,
                // and refuses a map of another layout.
                unsafe { sys::bpf_map_update_elem(self.0.as_raw_fd(), key, (&raw const fd).cast(), 0) }
            }
            // SAFETY: as above.
            None => unsafe { sys::bpf_map_delete_elem(self.0.as_raw_fd(), key) },
        };
        match check(done) {
            Err(error) if set.is_none() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done.map(drop),
        }
    }
}
