//! One memory file, mapped once, and typed views of its parts.
//!
//! Made when a table is made. The file is anonymous, or one that outlives the process. Only [`prefetch`] and the
//! indexing of [`Cells`], which is that of a slice, run for packets. Promise: anonymous memory reads as zero until it
//! is written, occupies memory only where it was touched (except with [`Memory::Resident`]), and all memory stays
//! mapped as long as any [`Cells`] of it exists. Not here: the meaning of the cells (`layout.rs`). In a loom model the
//! same types are plain boxed slices.

#[cfg(not(loom))]
use std::{
    ffi::c_void,
    fs::File,
    io,
    ops::Deref,
    ptr::{NonNull, null_mut},
    sync::Arc,
    sync::atomic::{AtomicU8, Ordering},
};

#[cfg(not(loom))]
use rustix::{
    fd::AsFd,
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};

use super::layout::{Bucket, Entry, Extension, Header, Numbers};

/// When a table's memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    /// Pages are allocated when they are first used. Huge pages only if the machine has reserved some
    /// (`vm.nr_hugepages`). With small pages a look-up in a large table also waits for page tables.
    #[default]
    OnDemand,
    /// Everything is allocated at once, in huge pages if the kernel finds any, reserved or not. For tables that are
    /// expected to become full.
    Resident,
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reserved => "reserved huge pages",
            Self::Collapsed => "huge pages",
            Self::Small => "small pages",
        })
    }
}

/// The pages of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Reserved huge pages (hugetlbfs).
    Reserved,
    /// Ordinary memory that the kernel has put into huge pages.
    Collapsed,
    /// Small pages.
    Small,
}

/// A type of cell that may be placed in fresh memory.
///
/// # Safety
/// Every byte belongs to an atomic, so that shared references are sound whichever thread writes, and all bytes zero are
/// a valid value.
pub(crate) unsafe trait Cell: Default {}

// SAFETY: `layout.rs` declares only atomics and arrays of atomics, in `repr(C)` with no padding that is read. The zero
// of an atomic integer is all bytes zero.
unsafe impl Cell for Header {}
// SAFETY: as for `Header`.
unsafe impl Cell for Bucket {}
// SAFETY: as for `Header`.
unsafe impl Cell for Entry {}
// SAFETY: as for `Header`.
unsafe impl Cell for Extension {}
// SAFETY: as for `Header`.
unsafe impl Cell for Numbers {}

/// The mapping of a memory file, which stays alive with it.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    size_bytes: usize,
    pages: Pages,
    /// The addresses around `base`; unmaps all of them when dropped.
    _reservation: Reservation,
}

// SAFETY: the mapping is memory of the whole process. Other code gets only slices of all-atomic cells; `base` itself
// stays private.
#[cfg(not(loom))]
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; no method writes through `base`.
#[cfg(not(loom))]
unsafe impl Sync for Mapping {}

#[cfg(not(loom))]
impl Mapping {
    /// Maps at least `size_bytes` of zeros.
    ///
    /// # Errors
    /// The error of `memfd_create`, `ftruncate` or `mmap` for small pages. A lack of huge pages is no error.
    pub(crate) fn create(size_bytes: usize, memory: Memory) -> io::Result<Arc<Self>> {
        let size_bytes = file_bytes(size_bytes);
        let anonymous = |flags: MemfdFlags| -> io::Result<_> {
            let file = memfd_create("xvs-connections", flags | MemfdFlags::CLOEXEC)?;
            ftruncate(&file, size_bytes as u64)?;
            Ok(file)
        };
        let huge = anonymous(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
        if let Ok(mapping) = huge.and_then(|file| Self::of_huge_pages(&file, size_bytes)) {
            return Ok(Arc::new(mapping));
        }
        Self::of_small_pages(anonymous(MemfdFlags::empty())?, size_bytes, memory)
    }

    /// Maps a file of [`file_bytes`] on a tmpfs, all of which is allocated. It must not become shorter while it is
    /// mapped.
    ///
    /// # Errors
    /// It has another length. Or the error of `mmap`.
    pub(crate) fn of_file(file: &File, size_bytes: usize, memory: Memory) -> io::Result<Arc<Self>> {
        let size_bytes = file_bytes(size_bytes);
        let length = file.metadata()?.len();
        if length != size_bytes as u64 {
            return Err(io::Error::other(format!("the file has {length} bytes, not {size_bytes}")));
        }
        Self::of_small_pages(file, size_bytes, memory)
    }

    fn of_small_pages(file: impl AsFd, size_bytes: usize, memory: Memory) -> io::Result<Arc<Self>> {
        let mut mapping = Self::map(file, size_bytes)?;
        if memory == Memory::Resident && mapping.collapse() {
            mapping.pages = Pages::Collapsed;
        }
        Ok(Arc::new(mapping))
    }

    /// The kind of its pages.
    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    /// A view of `len` cells from byte `offset` on.
    ///
    /// # Panics
    /// If they do not lie inside the mapping or are not aligned.
    pub(crate) fn cells<C: Cell>(self: &Arc<Self>, offset: usize, len: usize) -> Cells<C> {
        let end = len.checked_mul(size_of::<C>()).and_then(|bytes| bytes.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.size_bytes), "cells within the mapping");
        // SAFETY: `offset` is not beyond the mapping's end, as was just checked, so the result stays within the one
        // mapped object that `base` points to.
        let first = unsafe { self.base.add(offset) }.cast::<C>();
        assert!(first.is_aligned(), "cells aligned");
        Cells { first, len, _mapping: Arc::clone(self) }
    }

    fn of_huge_pages(file: impl AsFd, size_bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // The kernel places files of huge pages at multiples of their size by itself. A fixed address would not do:
        // without huge pages the call fails, and the kernel may already have unmapped the old range by then.
        // SAFETY: the address is the kernel's choice, so no other mapping is replaced. Only the caller has the file,
        // and it is never truncated again.
        let start = unsafe { mmap(null_mut(), size_bytes, access, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let _reservation = Reservation { start: base, size_bytes };
        Ok(Self { base, size_bytes, pages: Pages::Reserved, _reservation })
    }

    fn map(file: impl AsFd, size_bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // A huge page of a file must also be at a multiple of its size in the address space, but the kernel places
        // ordinary files at any page. So a range that is larger by one huge page is reserved, and the file is mapped
        // into it.
        let reserved_bytes = size_bytes + HUGE_PAGE_BYTES;
        // SAFETY: the address is the kernel's choice, so no other mapping is replaced.
        let start =
            unsafe { mmap_anonymous(null_mut(), reserved_bytes, ProtFlags::empty(), MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let reservation = Reservation { start, size_bytes: reserved_bytes };
        let aligned = start.as_ptr().wrapping_add(start.as_ptr().align_offset(HUGE_PAGE_BYTES));
        // SAFETY: `aligned` is less than one huge page after `start`, so the range lies in the reservation. No other
        // code knows the reservation, and only that is replaced. The file is at least as long and is never truncated
        // again, so no page of it can vanish under the mapping.
        let mapped =
            unsafe { mmap(aligned.cast(), size_bytes, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) };
        let base = match mapped {
            Ok(base) => NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            Err(error) => {
                // The kernel may have unmapped the range already, and another thread may have mapped something there.
                // So this process must not unmap it again.
                std::mem::forget(reservation);
                return Err(error.into());
            }
        };
        Ok(Self { base, size_bytes, pages: Pages::Small, _reservation: reservation })
    }

    /// Enters all pages in this process's page tables, so that later accesses do not wait for the kernel.
    pub(crate) fn touch(&self) {
        self.touch_each(SMALL_PAGE_BYTES);
    }

    fn touch_each(&self, bytes: usize) {
        for offset in (0..self.size_bytes).step_by(bytes) {
            // SAFETY: `offset` is below the size of the mapping that `base` points to.
            let byte = unsafe { self.base.add(offset) }.cast::<AtomicU8>();
            // SAFETY: the byte is mapped, and all that have the memory access it by atomics.
            let _ = unsafe { byte.as_ref() }.load(Ordering::Relaxed);
        }
    }

    /// Requests huge pages now. Returns whether the whole mapping has them.
    fn collapse(&self) -> bool {
        // The kernel (6.18) refuses a range of which no page was ever touched, with EINVAL.
        self.touch_each(HUGE_PAGE_BYTES);
        let start = self.base.as_ptr().cast::<c_void>();
        // SAFETY: the range is exactly this mapping. Collapsing changes the pages that hold it and no byte.
        unsafe { libc::madvise(start, self.size_bytes, libc::MADV_COLLAPSE) == 0 }
    }
}

/// A range of addresses that belongs to a mapping.
#[cfg(not(loom))]
#[derive(Debug)]
struct Reservation {
    start: NonNull<u8>,
    size_bytes: usize,
}

#[cfg(not(loom))]
impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: `mmap` was given and returned this range. The mapping owns it, and every `Cells` holds a count on the
        // mapping, so none is left that could reach the memory. The call fails only for a range that this process does
        // not have, so its result is ignored.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.size_bytes) };
    }
}

/// A slice of cells in a mapping, which it keeps alive.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Cells<C> {
    first: NonNull<C>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: it is a counted reference to a mapping, which is `Send`, and it derefs to cells made of atomics.
#[cfg(not(loom))]
unsafe impl<C: Cell> Send for Cells<C> {}
// SAFETY: as for `Send`; only the methods of the cells write.
#[cfg(not(loom))]
unsafe impl<C: Cell> Sync for Cells<C> {}

#[cfg(not(loom))]
impl<C: Cell> Deref for Cells<C> {
    type Target = [C];

    fn deref(&self) -> &[C] {
        // SAFETY: `Mapping::cells` has checked that `len` cells lie within the mapping and are aligned. `_mapping`
        // keeps it mapped for as long as `self` is borrowed. Fresh memory is zero, which is a valid value by the
        // contract of `Cell`. All writers, in this process and any other, use the same atomics.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

/// Prefetches a cell's cache line: a hint without any other effect.
#[inline]
pub(crate) fn prefetch<T>(cell: &T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of every x86_64, and a prefetch of any address neither faults nor writes.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(cell).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = cell;
}

/// The length of a file for a mapping of at least `size_bytes` bytes: whole huge pages.
pub(crate) fn file_bytes(size_bytes: usize) -> usize {
    size_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES)
}

/// The size of a huge page on x86_64, and on aarch64 with 4 KiB base pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// The smallest page of any machine.
#[cfg(not(loom))]
const SMALL_PAGE_BYTES: usize = 4096;

#[cfg(loom)]
pub(crate) use model::{Cells, Mapping};

/// The same interface over boxed slices: loom's atomics have no fixed layout and must be constructed.
#[cfg(loom)]
mod model {
    use std::fs::File;
    use std::io;
    use std::ops::Deref;
    use std::sync::Arc;

    use super::{Cell, Memory, Pages};

    #[derive(Debug)]
    pub(crate) struct Mapping;

    impl Mapping {
        pub(crate) fn create(_size_bytes: usize, _memory: Memory) -> io::Result<Arc<Self>> {
            Ok(Arc::new(Self))
        }

        pub(crate) fn of_file(_file: &File, _size_bytes: usize, _memory: Memory) -> io::Result<Arc<Self>> {
            Ok(Arc::new(Self))
        }

        pub(crate) fn touch(&self) {}

        pub(crate) fn pages(&self) -> Pages {
            Pages::Small
        }

        pub(crate) fn cells<C: Cell>(self: &Arc<Self>, _offset: usize, len: usize) -> Cells<C> {
            Cells((0..len).map(|_| C::default()).collect())
        }
    }

    #[derive(Debug)]
    pub(crate) struct Cells<C>(Box<[C]>);

    impl<C: Cell> Deref for Cells<C> {
        type Target = [C];

        fn deref(&self) -> &[C] {
            &self.0
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::shm::atomic::Ordering;

    #[test]
    fn fresh_cells_are_zero_and_outlive_the_handle_of_their_mapping() {
        for memory in [Memory::OnDemand, Memory::Resident] {
            let mapping = Mapping::create(1000, memory).unwrap();
            let entries: Cells<Entry> = mapping.cells(64, 4);
            drop(mapping);
            assert!(entries.iter().all(|entry| entry.life.load(Ordering::Relaxed) == 0));
            entries[3].mark.store(7, Ordering::Relaxed);
            prefetch(&entries[3]);
            assert_eq!(entries[3].mark.load(Ordering::Relaxed), 7);
        }
    }

    #[test]
    fn two_views_of_one_place_see_each_others_writes() {
        let mapping = Mapping::create(4096, Memory::OnDemand).unwrap();
        let (a, b): (Cells<Entry>, Cells<Entry>) = (mapping.cells(64, 2), mapping.cells(128, 1));
        a[1].timer.store(5, Ordering::Relaxed);
        assert_eq!(b[0].timer.load(Ordering::Relaxed), 5);
    }

    #[test]
    #[should_panic(expected = "cells within the mapping")]
    fn cells_beyond_the_mapping_are_refused() {
        let mapping = Mapping::create(4096, Memory::OnDemand).unwrap();
        let _: Cells<Entry> = mapping.cells(mapping.size_bytes - 64, 2);
    }

    #[test]
    fn mappings_that_threads_create_concurrently_do_not_overlap() {
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                scope.spawn(move || {
                    let mut kept = std::collections::VecDeque::new();
                    for round in 0..2000 {
                        let mapping = Mapping::create(1 << 22, Memory::OnDemand).unwrap();
                        let entries: Cells<Entry> = mapping.cells(1 << 21, 1);
                        entries[0].mark.store(thread * 10_000 + round, Ordering::Relaxed);
                        kept.push_back((entries, thread * 10_000 + round));
                        if kept.len() > 3
                            && let Some((entries, mark)) = kept.pop_front()
                        {
                            assert_eq!(entries[0].mark.load(Ordering::Relaxed), mark);
                        }
                    }
                });
            }
        });
    }
}
