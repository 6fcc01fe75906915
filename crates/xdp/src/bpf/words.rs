//! The values of a BPF array in this process's memory: 64-bit integers that programs and threads share without system
//! calls.

use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

/// The integers in a map whose values have `N` of them in total. The map stays in the kernel as long as they are
/// mapped.
#[derive(Debug)]
pub struct Words<const N: usize>(Rows<N>);

/// The values of a map, `N` integers each. The map stays in the kernel as long as they are mapped.
#[derive(Debug)]
pub struct Rows<const N: usize>(NonNull<[[AtomicU64; N]]>);

// SAFETY: the mapping is memory of the whole process, and every byte of it that is read belongs to an atomic.
unsafe impl<const N: usize> Send for Rows<N> {}
// SAFETY: as for `Send`.
unsafe impl<const N: usize> Sync for Rows<N> {}

impl<const N: usize> Rows<N> {
    /// Maps the first `count` rows of an array with `BPF_F_MMAPABLE`.
    pub(super) fn map(array: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses. The kernel refuses a length above the array's.
        let base = unsafe { mmap(null_mut(), length::<N>(count), access, MapFlags::SHARED, array, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self(NonNull::slice_from_raw_parts(base, count)))
    }
}

impl<const N: usize> Words<N> {
    /// Maps the first values of an array with `BPF_F_MMAPABLE`, `N` integers in total.
    pub(super) fn map(array: BorrowedFd<'_>) -> io::Result<Self> {
        Rows::map(array, 1).map(Self)
    }
}

/// Whole pages, as the kernel allocates the array.
fn length<const N: usize>(count: usize) -> usize {
    (count * size_of::<[AtomicU64; N]>()).next_multiple_of(page_size())
}

impl<const N: usize> Deref for Rows<N> {
    type Target = [[AtomicU64; N]];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the mapping is at least this long, page-aligned, and stays until `self` is dropped. Programs and
        // other processes change the integers, which atomics allow.
        unsafe { self.0.as_ref() }
    }
}

impl<const N: usize> Deref for Words<N> {
    type Target = [AtomicU64; N];

    fn deref(&self) -> &Self::Target {
        &self.0[0]
    }
}

impl<const N: usize> Drop for Rows<N> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping of `map`, and no reference to it outlives `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), length::<N>(self.0.len())) };
    }
}
