//! Unused entries: free ones for new connections, and removed ones in limbo.
//!
//! Each handle has a [`Stock`]: a chain of free entries, and two chains in limbo. The entries of a chain in limbo are
//! reused when every handle has passed a quiescent point after the chain was closed. The chains run through the entries
//! themselves, so nothing is allocated and nothing overflows. Surplus entries go in batches to the free list of the
//! [`Slab`], from which other handles take them. Memory that was never used is touched only when there is no removed
//! entry. Taking and retiring an entry cost a few instructions; the free list costs one compare-and-swap for each
//! [`BATCH`] entries.

use std::mem;
use std::ops::Range;

use super::entry::Record;
use super::life::Life;
use super::quiescence::Quiescence;
use crate::shm::atomic::Ordering;
use crate::shm::layout::{Entry, Extension, Header, Numbers};
use crate::shm::{Cells, prefetch};

/// The number of entries that move together between a stock and the free list. Models move them one by one.
pub(super) const BATCH: u32 = if cfg!(loom) { 1 } else { 64 };

/// Maximum number of unused entries that one handle's stock may contain while another handle finds none. A worker's
/// reserve when the table is full has the same size: see [`crate::conn::handle::TableWorker::is_short`].
pub(super) const STRANDED_MAX: u32 = 3 * BATCH;

/// All entries, and the free list.
#[derive(Debug)]
pub(super) struct Slab {
    pub(super) header: Cells<Header>,
    pub(super) entries: Cells<Entry>,
    /// One for each entry.
    pub(super) extensions: Cells<Extension>,
    /// One for each entry.
    pub(super) numbers: Cells<Numbers>,
}

impl Slab {
    #[inline]
    pub(super) fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    #[inline]
    pub(super) fn record(&self, index: u32) -> Record<'_> {
        Record {
            entry: self.entry(index),
            extension: &self.extensions[index as usize],
            numbers: &self.numbers[index as usize],
        }
    }

    /// The first index that was never taken.
    pub(super) fn extent(&self) -> u32 {
        // Relaxed: a walk may miss an entry that is being inserted.
        self.header[0].extent.load(Ordering::Relaxed)
    }

    /// Whether a handle without entries would get none here.
    pub(super) fn is_exhausted(&self) -> bool {
        // Relaxed: a slightly old result suffices. Every worker reads the line of `extent` anyway, and it is hardly
        // ever written, so the line of the free list is read only after the table has been full once.
        self.extent() as usize >= self.entries.len()
            && self.header[0].free.load(Ordering::Relaxed) & INDEX == 0
    }

    /// Takes entries that were never used, at most a batch; empty if none are left.
    fn take_fresh(&self) -> Range<u32> {
        let limit = self.entries.len() as u32;
        // Relaxed: only the range is passed on, and its memory is still as the kernel created it.
        let taken = self.header[0].extent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |extent| {
            (extent < limit).then(|| limit.min(extent + BATCH))
        });
        match taken {
            Ok(start) => start..limit.min(start + BATCH),
            Err(_) => 0..0,
        }
    }

    /// Puts a chain of [`BATCH`] entries on the free list.
    fn push_batch(&self, chain: &Chain) {
        let head = &self.header[0].free;
        // Relaxed here and in the loop: only the value matters until the exchange.
        let mut old = head.load(Ordering::Relaxed);
        loop {
            // No other thread reads free entries, so any of their fields can contain the next batch.
            self.entry(chain.head - 1).client.store(old & INDEX, Ordering::Relaxed);
            let new = (old & !INDEX).wrapping_add(ONE_CHANGE) | u64::from(chain.head);
            // Release: a thread that takes the batch sees the chain, and that its entries were retired.
            match head.compare_exchange_weak(old, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Takes a batch off the free list.
    fn pop_batch(&self) -> Option<Chain> {
        let head = &self.header[0].free;
        // Acquire here and on failure: the chain's fields are read before the exchange.
        let mut old = head.load(Ordering::Acquire);
        loop {
            let first = (old & INDEX) as u32;
            if first == 0 {
                return None;
            }
            // Another handle may have taken the batch and reused the entry, so this may read any value. In that case
            // the count of changes above the index differs and the exchange fails.
            let next = self.entry(first - 1).client.load(Ordering::Relaxed);
            let new = (old & !INDEX).wrapping_add(ONE_CHANGE) | next & INDEX;
            match head.compare_exchange_weak(old, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(Chain { head: first, tail: 0, len: BATCH }),
                Err(now) => old = now,
            }
        }
    }
}

/// The unused entries of one handle.
#[derive(Debug, Default)]
pub(super) struct Stock {
    /// Entries that may be reused. The tail is not stored.
    free: Chain,
    /// Entries that were never used.
    fresh: Range<u32>,
    /// Entries retired since the last closing.
    open: Chain,
    /// Entries retired before the last closing.
    closed: Chain,
    /// The epoch that all slots must have seen before `closed` may be reused.
    target: u64,
}

impl Stock {
    /// An entry that no other thread can reach; `None` if there is none.
    pub(super) fn take(&mut self, slab: &Slab) -> Option<u32> {
        if let Some(index) = self.free.pop(slab).or_else(|| self.fresh.next()) {
            return Some(index);
        }
        if let Some(batch) = slab.pop_batch() {
            self.free = batch;
            return self.free.pop(slab);
        }
        self.fresh = slab.take_fresh();
        self.fresh.next()
    }

    /// Retires an entry that was unlinked, or whose key never became final. Only one caller retires an entry.
    pub(super) fn retire(&mut self, slab: &Slab, index: u32) {
        self.open.push(slab, index);
    }

    /// Accepts an entry that no other thread can reach. Surplus entries go to the free list.
    pub(super) fn give(&mut self, slab: &Slab, index: u32) {
        self.free.push(slab, index);
        self.share(slab, 1);
    }

    /// Accepts all entries from the stock of a handle that no thread uses, also those in limbo: no other thread uses
    /// the table.
    pub(super) fn give_all(&mut self, slab: &Slab, mut stock: Self) {
        for chain in [&mut stock.free, &mut stock.open, &mut stock.closed] {
            while let Some(index) = chain.pop(slab) {
                self.give(slab, index);
            }
        }
        stock.fresh.for_each(|index| self.give(slab, index));
    }

    /// The number of entries, and the index plus one of the first, if the stock was given all of them. [`Self::of`]
    /// restores the stock.
    pub(super) fn parts(&self) -> [u32; 2] {
        [self.free.len, self.free.head]
    }

    pub(super) fn of([len, head]: [u32; 2]) -> Self {
        Self { free: Chain { head, tail: 0, len }, ..Self::default() }
    }

    /// Closes the chain of retired entries, unless the last closed one still waits. Must be called before the handle's
    /// quiescent point, so that this quiescent point counts.
    pub(super) fn close(&mut self, quiescence: &Quiescence) {
        if self.closed.len == 0 && self.open.len > 0 {
            self.closed = mem::take(&mut self.open);
            self.target = quiescence.close();
        }
    }

    /// Frees the closed entries if all slots have seen their epoch, and moves up to `batches` batches of surplus to the
    /// free list.
    pub(super) fn collect(&mut self, slab: &Slab, quiescence: &Quiescence, batches: u32) {
        if self.closed.len > 0 && quiescence.has_passed(self.target) {
            self.free.append(slab, mem::take(&mut self.closed));
        }
        self.share(slab, batches);
    }

    /// Moves up to `batches` batches of surplus to the free list.
    fn share(&mut self, slab: &Slab, batches: u32) {
        for _ in 0..batches {
            if self.free.len < 2 * BATCH {
                break;
            }
            slab.push_batch(&self.free.split(slab));
        }
    }

    /// The number of unused entries, including those in limbo.
    pub(super) fn spare(&self) -> u32 {
        self.free.len + self.fresh.len() as u32 + self.in_limbo()
    }

    /// The number of entries that are neither in use nor free yet.
    pub(super) fn in_limbo(&self) -> u32 {
        self.open.len + self.closed.len
    }
}

/// Entries linked through their `life`, by index plus one; 0 ends the chain. Only the owner reads and changes it, so
/// every access is Relaxed.
#[derive(Debug, Default)]
struct Chain {
    head: u32,
    tail: u32,
    len: u32,
}

impl Chain {
    fn push(&mut self, slab: &Slab, index: u32) {
        slab.entry(index).life.store(Life::removed(self.head).0, Ordering::Relaxed);
        if self.head == 0 {
            self.tail = index + 1;
        }
        self.head = index + 1;
        self.len += 1;
    }

    fn pop(&mut self, slab: &Slab) -> Option<u32> {
        let index = self.head.checked_sub(1).filter(|_| self.len > 0)?;
        self.head = next(slab, index);
        self.len -= 1;
        if let Some(following) = self.head.checked_sub(1) {
            prefetch(slab.entry(following));
        }
        Some(index)
    }

    /// Prepends another chain, whose tail is known.
    fn append(&mut self, slab: &Slab, other: Self) {
        slab.entry(other.tail - 1).life.store(Life::removed(self.head).0, Ordering::Relaxed);
        self.head = other.head;
        self.len += other.len;
    }

    /// Removes the first [`BATCH`] entries. The chain must have at least that many.
    fn split(&mut self, slab: &Slab) -> Self {
        let mut last = self.head;
        for _ in 0..BATCH - 1 {
            last = next(slab, last - 1);
        }
        let batch = Self { head: self.head, tail: last, len: BATCH };
        self.head = next(slab, last - 1);
        self.len -= BATCH;
        slab.entry(last - 1).life.store(Life::removed(0).0, Ordering::Relaxed);
        batch
    }
}

fn next(slab: &Slab, index: u32) -> u32 {
    Life(slab.entry(index).life.load(Ordering::Relaxed)).next()
}

/// The bits of the free list's head that contain an index plus one. Above them is a count of changes, which
/// distinguishes a head that has returned from one that never changed.
const INDEX: u64 = u32::MAX as u64;
const ONE_CHANGE: u64 = 1 << 32;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::shm::layout::HEADER_BYTES;
    use crate::shm::{Mapping, Memory};

    fn slab(entries: usize) -> Slab {
        let mapping = Mapping::create(HEADER_BYTES + entries * 128, Memory::OnDemand).unwrap();
        Slab {
            header: mapping.cells(0, 1),
            entries: mapping.cells(HEADER_BYTES, entries),
            extensions: mapping.cells(HEADER_BYTES + entries * 64, entries),
            numbers: mapping.cells(HEADER_BYTES + entries * 128, entries),
        }
    }

    fn quiesce(stock: &mut Stock, slab: &Slab, quiescence: &Quiescence) {
        stock.close(quiescence);
        quiescence.quiescent(0);
        stock.collect(slab, quiescence, 100);
    }

    #[test]
    fn every_entry_is_taken_exactly_once() {
        let slab = slab(200);
        let (mut one, mut other) = (Stock::default(), Stock::default());
        let mut taken: Vec<u32> = (0..50).filter_map(|_| one.take(&slab)).collect();
        taken.extend(std::iter::from_fn(|| other.take(&slab)));
        taken.extend(std::iter::from_fn(|| one.take(&slab)));
        assert_eq!((taken.len(), taken.iter().collect::<HashSet<_>>().len()), (200, 200));
    }

    #[test]
    fn entries_retired_by_one_handle_serve_another_except_for_its_reserve() {
        let slab = slab(1000);
        let quiescence = Quiescence::new(1);
        quiescence.unpark(0);
        let (mut one, mut other) = (Stock::default(), Stock::default());
        while let Some(index) = one.take(&slab) {
            one.retire(&slab, index);
        }
        assert!(other.take(&slab).is_none(), "all are in limbo");
        assert_eq!(one.in_limbo(), 1000);
        quiesce(&mut one, &slab, &quiescence);
        assert_eq!(one.in_limbo(), 0);
        let taken: HashSet<u32> = std::iter::from_fn(|| other.take(&slab)).collect();
        assert!(taken.len() >= 1000 - STRANDED_MAX as usize, "{}", taken.len());
        let rest: HashSet<u32> = std::iter::from_fn(|| one.take(&slab)).collect();
        assert_eq!((taken.len() + rest.len(), taken.intersection(&rest).count()), (1000, 0));
    }

    #[test]
    fn unused_memory_is_not_touched_while_removed_entries_can_be_reused() {
        let slab = slab(1000);
        let quiescence = Quiescence::new(1);
        quiescence.unpark(0);
        let mut stock = Stock::default();
        for _ in 0..1000 {
            let index = stock.take(&slab).unwrap();
            stock.retire(&slab, index);
            quiesce(&mut stock, &slab, &quiescence);
        }
        assert_eq!(slab.extent(), BATCH);
    }
}
