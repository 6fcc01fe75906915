//! One anonymous memory file, mapped once, and typed views of its parts.
//!
//! Made when a table is made; nothing here runs per packet except [`prefetch`] and the indexing of [`Cells`], which
//! is that of a slice. Promise: what is mapped reads as zero until written, costs memory only where it was touched
//! (unless [`Memory::Resident`] was asked for), and stays mapped as long as any [`Cells`] of it exists. Not here:
//! what the cells mean (`layout.rs`). Where a loom model runs, the same types are plain boxed slices.

#[cfg(not(loom))]
use std::{
    ffi::c_void,
    io,
    ops::Deref,
    ptr::{NonNull, null_mut},
    sync::Arc,
};

#[cfg(not(loom))]
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};

use super::layout::{Bucket, Entry, Extension, Header};

/// What a table's memory may cost at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    /// Pages are touched when they are first used. Huge pages only if the machine has reserved some
    /// (`vm.nr_hugepages`); with small pages a look-up in a large table waits for page tables too.
    #[default]
    OnDemand,
    /// Everything is allocated at once, as huge pages if the kernel finds them, reserved or not. For tables that
    /// are expected to fill.
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

/// Which pages a mapping got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Reserved huge pages (hugetlbfs).
    Reserved,
    /// Ordinary memory that the kernel has put into huge pages.
    Collapsed,
    /// Small ones.
    Small,
}

/// A kind of cell that may be laid over fresh memory.
///
/// # Safety
/// Every byte belongs to an atomic, so that shared references are sound whoever writes, and all bytes zero are a
/// valid value.
pub(crate) unsafe trait Cell: Default {}

// SAFETY: `layout.rs` declares atomics and arrays of atomics only, in `repr(C)` with no padding that is read; the
// zero of an atomic integer is all bytes zero.
unsafe impl Cell for Header {}
// SAFETY: as for `Header`.
unsafe impl Cell for Bucket {}
// SAFETY: as for `Header`.
unsafe impl Cell for Entry {}
// SAFETY: as for `Header`.
unsafe impl Cell for Extension {}

/// The mapping of a memory file, which it keeps alive.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    size_bytes: usize,
    pages: Pages,
    /// The addresses around `base`; unmaps all of them when dropped.
    _reservation: Reservation,
}

// SAFETY: the mapping is memory of the whole process, and the only views of it that are handed out are slices of
// all-atomic cells; `base` itself never leaves.
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
    /// What `memfd_create`, `ftruncate` or `mmap` answered for small pages; lack of huge pages is no error.
    pub(crate) fn create(size_bytes: usize, memory: Memory) -> io::Result<Arc<Self>> {
        let size_bytes = size_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        if let Ok(mapping) = Self::map(size_bytes, huge, Pages::Reserved) {
            return Ok(Arc::new(mapping));
        }
        let mut mapping = Self::map(size_bytes, MemfdFlags::empty(), Pages::Small)?;
        if memory == Memory::Resident && mapping.collapse() {
            mapping.pages = Pages::Collapsed;
        }
        Ok(Arc::new(mapping))
    }

    /// Which pages it has.
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
        // SAFETY: `offset` is not beyond the mapping's end, as just checked, so this stays within the one mapped
        // object that `base` points to.
        let first = unsafe { self.base.add(offset) }.cast::<C>();
        assert!(first.is_aligned(), "cells aligned");
        Cells { first, len, _mapping: Arc::clone(self) }
    }

    fn map(size_bytes: usize, flags: MemfdFlags, pages: Pages) -> io::Result<Self> {
        let file = memfd_create("xvs-connections", flags | MemfdFlags::CLOEXEC)?;
        ftruncate(&file, size_bytes as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        if pages == Pages::Reserved {
            // The kernel places files of huge pages at multiples of their size by itself. A fixed place would not do:
            // where there are no huge pages this fails, and the kernel may have unmapped what was there by then.
            // SAFETY: the address is the kernel's choice, so no other mapping is replaced; the file is ours alone
            // and never truncated again.
            let start = unsafe { mmap(null_mut(), size_bytes, access, MapFlags::SHARED, &file, 0) }?;
            let base = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
            return Ok(Self {
                base,
                size_bytes,
                pages,
                _reservation: Reservation { start: base, size_bytes },
            });
        }
        // A file's huge page must lie at a multiple of its size in the address space too, and the kernel places
        // ordinary files anywhere: so a range that is larger by one is reserved, and the file put into it.
        let reserved_bytes = size_bytes + HUGE_PAGE_BYTES;
        // SAFETY: the address is the kernel's choice, so no other mapping is replaced.
        let start =
            unsafe { mmap_anonymous(null_mut(), reserved_bytes, ProtFlags::empty(), MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let reservation = Reservation { start, size_bytes: reserved_bytes };
        let aligned = start.as_ptr().wrapping_add(start.as_ptr().align_offset(HUGE_PAGE_BYTES));
        // SAFETY: `aligned` is less than one huge page after `start`, so the range lies in the reservation, which
        // nobody else knows of; only that is replaced. The file is ours alone and never truncated again, so no
        // page of it can vanish under the mapping.
        let mapped =
            unsafe { mmap(aligned.cast(), size_bytes, access, MapFlags::SHARED | MapFlags::FIXED, &file, 0) };
        let base = match mapped {
            Ok(base) => NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            Err(error) => {
                // The kernel may have unmapped the range by now, and another thread have mapped something there: so
                // it is no longer ours to unmap.
                std::mem::forget(reservation);
                return Err(error.into());
            }
        };
        Ok(Self { base, size_bytes, pages, _reservation: reservation })
    }

    /// Asks for huge pages now; whether all of it has them.
    fn collapse(&self) -> bool {
        // The kernel (6.18) refuses a range of which nothing was ever touched, with EINVAL.
        for offset in (0..self.size_bytes).step_by(HUGE_PAGE_BYTES) {
            // SAFETY: `offset` is below the size of the mapping that `base` points to.
            let byte = unsafe { self.base.add(offset) };
            // SAFETY: the byte is mapped and, the mapping being not yet handed out, in nobody else's hands.
            let _ = unsafe { byte.read_volatile() };
        }
        let start = self.base.as_ptr().cast::<c_void>();
        // SAFETY: the range is the whole of our own mapping; collapsing changes which pages hold it and no byte.
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
        // SAFETY: the range is what `mmap` returned and was given. Its owner is the mapping, on which every `Cells`
        // holds a count, so none is left that could reach the memory. The call can fail only for a range that is
        // not ours, so its result says nothing.
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

// SAFETY: it is a counted reference to a mapping, which may be sent, and derefs to cells made of atomics.
#[cfg(not(loom))]
unsafe impl<C: Cell> Send for Cells<C> {}
// SAFETY: as for `Send`; it has no method that writes but those of the cells.
#[cfg(not(loom))]
unsafe impl<C: Cell> Sync for Cells<C> {}

#[cfg(not(loom))]
impl<C: Cell> Deref for Cells<C> {
    type Target = [C];

    fn deref(&self) -> &[C] {
        // SAFETY: `Mapping::cells` checked that `len` cells lie within the mapping and are aligned; `_mapping`
        // keeps it mapped for as long as `self` is borrowed; fresh memory is zero, which `Cell` promises to be a
        // value; all writers, in this process and any other, go through the same atomics.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

/// Brings a cell's line into the cache: a hint, which has no other effect.
#[inline]
pub(crate) fn prefetch<T>(cell: &T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of every x86_64, and a prefetch of whatever address neither faults nor writes.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(cell).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = cell;
}

/// A huge page of x86_64, and of aarch64 with 4 KiB base pages.
#[cfg(not(loom))]
const HUGE_PAGE_BYTES: usize = 2 << 20;

#[cfg(loom)]
pub(crate) use model::{Cells, Mapping};

/// The same interface over boxed slices: loom's atomics have no fixed layout and must be constructed.
#[cfg(loom)]
mod model {
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
    fn mappings_that_threads_make_at_once_do_not_take_each_others_memory() {
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
