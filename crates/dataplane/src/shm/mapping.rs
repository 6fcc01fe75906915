//! Memory of the process or of one file, mapped once, and typed views of its parts.
//!
//! Created with a table. The memory is anonymous, or a file that outlives the process. Only [`prefetch`] and the
//! indexing of [`Cells`], which is that of a slice, run for packets. Anonymous memory reads as zero until it is
//! written, occupies memory only where it was touched (except with [`Memory::Resident`]), in units of a page, and all
//! memory stays mapped as long as any [`Cells`] in it exists. `layout.rs` defines the cells. In a loom model the same
//! types are plain boxed slices.

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

use super::layout::{Bucket, Entry, Extension, Header, Numbers, Tally};

/// When a table's memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    /// Anonymous pages are allocated when they are first used, files when they are created; in huge pages if the kernel
    /// has any, reserved (`vm.nr_hugepages`) or not.
    #[default]
    OnDemand,
    /// Like [`Self::OnDemand`], in small pages. A table with few connections takes less memory; a look-up in a large
    /// one also waits for page tables.
    SmallPages,
    /// Everything is allocated at once, in huge pages as with [`Self::OnDemand`]. For tables that are expected to
    /// become full.
    Resident,
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reserved => "reserved huge pages",
            Self::Transparent => "huge pages",
            Self::Small => "small pages",
        })
    }
}

/// The pages of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Reserved huge pages (hugetlbfs).
    Reserved,
    /// Ordinary memory that the kernel has put into huge pages, at least while it had any.
    Transparent,
    /// Small pages.
    Small,
}

/// A type of cell that may be located in fresh memory.
///
/// # Safety
///
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
// SAFETY: as for `Header`.
unsafe impl Cell for Tally {}

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
    ///
    /// The error of `mmap` for small pages. A lack of huge pages is not an error.
    pub(crate) fn create(size_bytes: usize, memory: Memory) -> io::Result<Arc<Self>> {
        let size_bytes = file_bytes(size_bytes);
        if memory != Memory::SmallPages
            && let Ok(mapping) = Self::of_reserved_pages(size_bytes)
        {
            return Ok(Arc::new(mapping));
        }
        let (_reservation, base) = Reservation::aligned(size_bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        // Private memory: a huge page of it needs no permission for shared memory (`shmem_enabled`), which is rare.
        let mut mapping = Self { base, size_bytes, pages: Pages::Small, _reservation };
        // The kernel may refuse any of this advice. A child that executes another program needs no copy of page tables.
        let _ = mapping.advise(libc::MADV_DONTFORK);
        let _ = mapping.advise(match memory {
            Memory::SmallPages => libc::MADV_NOHUGEPAGE,
            Memory::OnDemand | Memory::Resident => libc::MADV_HUGEPAGE,
        });
        if memory == Memory::Resident && mapping.collapse() {
            mapping.pages = Pages::Transparent;
        }
        Ok(Arc::new(mapping))
    }

    /// Maps a file of [`file_bytes`] on a tmpfs, all of which is allocated. It must not become shorter while it is
    /// mapped.
    ///
    /// # Errors
    ///
    /// The file has another length; or the error of `mmap`.
    pub(crate) fn of_file(file: &File, size_bytes: usize, memory: Memory) -> io::Result<Arc<Self>> {
        let size_bytes = file_bytes(size_bytes);
        let length = file.metadata()?.len();
        if length != size_bytes as u64 {
            return Err(io::Error::other(format!("the file has {length} bytes, not {size_bytes}")));
        }
        let mut mapping = Self::map(file, size_bytes)?;
        if memory == Memory::Resident && mapping.collapse() {
            mapping.pages = Pages::Transparent;
        }
        Ok(Arc::new(mapping))
    }

    /// The kind of pages, as far as it is known without [`Self::begins_huge`].
    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    /// Whether the kernel has put the first bytes of anonymous memory, which must have been written, into a huge page.
    pub(crate) fn begins_huge(&self) -> bool {
        // Only if they share a page are all other small pages in memory, too.
        let mut in_memory = [0; HUGE_PAGE_BYTES / SMALL_PAGE_BYTES];
        // SAFETY: a mapping is at least one huge page long, and the call writes a byte for each page in it, of which
        // none is smaller than `SMALL_PAGE_BYTES`.
        let result =
            unsafe { libc::mincore(self.base.as_ptr().cast(), HUGE_PAGE_BYTES, in_memory.as_mut_ptr()) };
        let pages = HUGE_PAGE_BYTES / rustix::param::page_size();
        result == 0 && in_memory[..pages].iter().all(|page| page & 1 == 1)
    }

    /// A view of `len` cells from byte `offset`.
    ///
    /// # Panics
    ///
    /// If they are not inside the mapping or not aligned.
    pub(crate) fn cells<C: Cell>(self: &Arc<Self>, offset: usize, len: usize) -> Cells<C> {
        let end = len.checked_mul(size_of::<C>()).and_then(|bytes| bytes.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.size_bytes), "cells within the mapping");
        // SAFETY: `offset` is not beyond the mapping's end, as was just checked, so the result stays within the one
        // mapped object to which `base` points.
        let first = unsafe { self.base.add(offset) }.cast::<C>();
        assert!(first.is_aligned(), "cells aligned");
        Cells { first, len, _mapping: Arc::clone(self) }
    }

    fn of_reserved_pages(size_bytes: usize) -> io::Result<Self> {
        let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB | MemfdFlags::CLOEXEC;
        let file = memfd_create("xvs-connections", flags)?;
        ftruncate(&file, size_bytes as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // The kernel places files of huge pages at multiples of their size by itself. A fixed address would not do:
        // without huge pages the call fails, and the kernel may already have unmapped the old range by then. SAFETY:
        // the address is the kernel's choice, so no other mapping is replaced. Only this function has the file, and it
        // is never truncated again.
        let start = unsafe { mmap(null_mut(), size_bytes, access, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let _reservation = Reservation { start: base, size_bytes };
        Ok(Self { base, size_bytes, pages: Pages::Reserved, _reservation })
    }

    fn map(file: impl AsFd, size_bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let (reservation, base) = Reservation::aligned(size_bytes, ProtFlags::empty())?;
        let aligned = base.as_ptr().cast();
        // SAFETY: the range is inside the reservation. No other code has its address, and nothing else is replaced. The
        // file is at least as long and is never truncated again, so no page of it can vanish under the mapping.
        let mapped =
            unsafe { mmap(aligned, size_bytes, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) };
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

    /// Maps all pages into this process's page tables, so that later accesses do not wait for the kernel.
    pub(crate) fn touch(&self) {
        for offset in (0..self.size_bytes).step_by(SMALL_PAGE_BYTES) {
            // SAFETY: `offset` is below the size of the mapping to which `base` points.
            let byte = unsafe { self.base.add(offset) }.cast::<AtomicU8>();
            // SAFETY: the byte is mapped, and all users of the memory access it through atomics.
            let _ = unsafe { byte.as_ref() }.load(Ordering::Relaxed);
        }
    }

    /// Requests huge pages now. Returns whether the whole mapping has them.
    fn collapse(&self) -> bool {
        // The kernel (6.18) refuses a range of which no page was ever written, with EINVAL. On a full tmpfs this advice
        // fails, where a write would kill the process.
        (0..self.size_bytes)
            .step_by(HUGE_PAGE_BYTES)
            .all(|offset| self.advise_part(offset, SMALL_PAGE_BYTES, libc::MADV_POPULATE_WRITE))
            && self.advise(libc::MADV_COLLAPSE)
    }

    fn advise(&self, advice: i32) -> bool {
        self.advise_part(0, self.size_bytes, advice)
    }

    /// Gives the kernel this advice, which must be one that changes no byte of the mapping. Returns whether it was
    /// accepted.
    fn advise_part(&self, offset: usize, size_bytes: usize, advice: i32) -> bool {
        assert!(offset + size_bytes <= self.size_bytes, "a part of the mapping");
        let start = self.base.as_ptr().wrapping_add(offset).cast::<c_void>();
        // SAFETY: the range is inside this mapping, and its bytes do not change.
        unsafe { libc::madvise(start, size_bytes, advice) == 0 }
    }
}

/// Allocates a zero-filled file in huge pages, as far as the kernel finds any. The file's length must be a multiple of
/// a huge page's, and nothing of it allocated yet. The rest stays unallocated. Returns whether the whole file has huge
/// pages.
///
/// In this order the kernel fills huge pages with zeros; in a file that is already allocated it would copy small pages
/// into them, which takes many times as long. It needs no permission for huge pages on this tmpfs (`huge=`).
#[cfg(not(loom))]
pub fn allocate_huge(file: &File) -> bool {
    let Ok(about) = file.metadata() else { return false };
    Mapping::map(file, about.len() as usize).is_ok_and(|mapping| mapping.collapse())
}

/// A model has no files.
#[cfg(loom)]
pub fn allocate_huge(_file: &std::fs::File) -> bool {
    false
}

/// A range of addresses that belongs to a mapping.
#[cfg(not(loom))]
#[derive(Debug)]
struct Reservation {
    start: NonNull<u8>,
    size_bytes: usize,
}

#[cfg(not(loom))]
impl Reservation {
    /// Private memory with at least `size_bytes` from the returned address, which is a multiple of a huge page: a huge
    /// page must be at a multiple of its size in the address space, but the kernel places mappings at any page.
    fn aligned(size_bytes: usize, access: ProtFlags) -> io::Result<(Self, NonNull<u8>)> {
        let size_bytes = size_bytes + HUGE_PAGE_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the address is the kernel's choice, so no other mapping is replaced.
        let start = unsafe { mmap_anonymous(null_mut(), size_bytes, access, flags) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let offset = start.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `offset` is less than a huge page, by which the range is longer than `size_bytes`.
        Ok((Self { start, size_bytes }, unsafe { start.add(offset) }))
    }
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

// SAFETY: it is a counted reference to a mapping, which is `Send`, and it derefs to cells that consist of atomics.
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
    #[cfg(all(target_arch = "aarch64", not(loom)))]
    // SAFETY: a prefetch of any address neither faults nor writes.
    unsafe {
        let at = std::ptr::from_ref(cell);
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(any(loom, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
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

/// The interface over boxed slices: loom's atomics have no fixed layout and must be constructed.
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

        pub(crate) fn begins_huge(&self) -> bool {
            false
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
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::shm::atomic::Ordering;

    #[test]
    fn fresh_cells_are_zero_and_outlive_the_handle_of_their_mapping() {
        for memory in [Memory::OnDemand, Memory::SmallPages, Memory::Resident] {
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
    fn huge_pages_are_requested_unless_small_ones_are_wanted() {
        for (memory, flag) in [(Memory::OnDemand, " hg "), (Memory::SmallPages, " nh ")] {
            let mapping = Mapping::create(1000, memory).unwrap();
            let entries: Cells<Entry> = mapping.cells(0, 1);
            entries[0].mark.store(7, Ordering::Relaxed);
            assert!(memory == Memory::OnDemand || !mapping.begins_huge());
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let from = format!("{:x}-", mapping.base.as_ptr() as usize);
            let flags = smaps
                .lines()
                .skip_while(|line| !line.starts_with(&from))
                .find(|line| line.starts_with("VmFlags:"))
                .unwrap();
            // Reserved huge pages are a different kind of mapping.
            assert!(flags.contains(flag) || mapping.pages() == Pages::Reserved, "{memory:?}: {flags}");
        }
    }

    #[test]
    fn a_file_in_huge_pages_is_as_long_as_before_and_all_zeros() {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        assert!(!allocate_huge(&File::from(memfd_create("empty", MemfdFlags::CLOEXEC).unwrap())));
        ftruncate(&file, 2 * HUGE_PAGE_BYTES as u64).unwrap();
        let is_huge = allocate_huge(&file);
        let about = file.metadata().unwrap();
        assert_eq!(about.len(), 2 * HUGE_PAGE_BYTES as u64);
        assert!(!is_huge || about.blocks() * 512 == about.len());
        let mapping = Mapping::of_file(&file, 2 * HUGE_PAGE_BYTES, Memory::OnDemand).unwrap();
        let entries: Cells<Entry> = mapping.cells(0, 2 * HUGE_PAGE_BYTES / size_of::<Entry>());
        assert!(entries.iter().all(|entry| entry.life.load(Ordering::Relaxed) == 0));
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
