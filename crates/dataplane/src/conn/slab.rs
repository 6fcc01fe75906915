//! Entries that are not in use: where a new connection gets one, and where a removed one waits.
//!
//! Each handle at the table has a [`Stock`]: a chain of free entries, and two chains in limbo, which are reused when
//! every handle has passed a quiescent point after they were closed. Chains run through the entries themselves, so
//! nothing is allocated and nothing overflows. Surplus goes to the [`Slab`]'s free list in batches, from which other
//! handles take; memory that was never used is touched only when no removed entry is to be had. Taking and retiring
//! cost a few instructions; the free list costs one compare-and-swap per [`BATCH`] entries.

use std::mem;
use std::ops::Range;

use super::entry::{Life, Record};
use super::quiescence::Quiescence;
use crate::shm::atomic::Ordering;
use crate::shm::layout::{Entry, Extension, Header};
use crate::shm::{Cells, prefetch};

/// How many entries travel together between a stock and the free list. Models move them one by one.
pub(super) const BATCH: u32 = if cfg!(loom) { 1 } else { 64 };

/// How many entries may lie in one handle's stock, unused, while another handle finds none. As many are a worker's reserve
/// when the table is full: see [`crate::conn::handle::TableWorker::is_short`].
pub(super) const STRANDED_MAX: u32 = 3 * BATCH;

/// All entries, and the free list.
#[derive(Debug)]
pub(super) struct Slab {
    pub(super) header: Cells<Header>,
    pub(super) entries: Cells<Entry>,
    /// One for each entry.
    pub(super) extensions: Cells<Extension>,
}

impl Slab {
    #[inline]
    pub(super) fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    #[inline]
    pub(super) fn record(&self, index: u32) -> Record<'_> {
        Record { entry: self.entry(index), extension: &self.extensions[index as usize] }
    }

    /// The first index that was never taken.
    pub(super) fn extent(&self) -> u32 {
        // Relaxed: a walk that misses an entry being inserted at this moment is none the worse.
        self.header[0].extent.load(Ordering::Relaxed)
    }

    /// Whether a handle that has no entry gets none here.
    pub(super) fn is_exhausted(&self) -> bool {
        // Relaxed: an answer of a moment ago does as well. The line of `extent` is one that every worker reads anyway
        // and hardly anyone writes, so the list's is looked at only when the table has been full once.
        self.extent() as usize >= self.entries.len()
            && self.header[0].free.load(Ordering::Relaxed) & INDEX == 0
    }

    /// Never used entries, at most a batch; empty if there are none left.
    fn take_fresh(&self) -> Range<u32> {
        let limit = self.entries.len() as u32;
        let grown = |extent: u32| (extent < limit).then(|| limit.min(extent + BATCH));
        // Relaxed: the range is all that is passed on, and its memory is as the kernel made it.
        match self.header[0].extent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) {
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
            // Free entries are looked at by nobody, so any word of theirs can name the next batch.
            self.entry(chain.head - 1).client.store(old & INDEX, Ordering::Relaxed);
            let new = (old & !INDEX).wrapping_add(ONE_CHANGE) | u64::from(chain.head);
            // Release: who takes the batch sees the chain, and that its entries were retired.
            match head.compare_exchange_weak(old, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Takes a batch off the free list.
    fn pop_batch(&self) -> Option<Chain> {
        let head = &self.header[0].free;
        // Acquire here and on failure: the chain's words are read before the exchange.
        let mut old = head.load(Ordering::Acquire);
        loop {
            let first = (old & INDEX) as u32;
            if first == 0 {
                return None;
            }
            // Another handle may have taken the batch and reused the entry, so this may read anything; then the
            // count of changes above the index differs and the exchange fails.
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
    /// May be reused. Its tail is not kept.
    free: Chain,
    /// Never used.
    fresh: Range<u32>,
    /// Retired since the last closing.
    open: Chain,
    /// Retired before it.
    closed: Chain,
    /// The epoch that all must have seen before `closed` may be reused.
    target: u64,
}

impl Stock {
    /// An entry that nobody else can reach, or `None` if there is none at hand.
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

    /// Takes an entry that was unlinked, or never linked finally; the caller is the only one to do so.
    pub(super) fn retire(&mut self, slab: &Slab, index: u32) {
        self.open.push(slab, index);
    }

    /// Closes what was retired, if the last closing is done with. To be called before the handle's quiescent point, so
    /// that this one counts.
    pub(super) fn close(&mut self, quiescence: &Quiescence) {
        if self.closed.len == 0 && self.open.len > 0 {
            self.closed = mem::take(&mut self.open);
            self.target = quiescence.close();
        }
    }

    /// Makes free what everybody has left, and gives up to `batches` of surplus to the others.
    pub(super) fn collect(&mut self, slab: &Slab, quiescence: &Quiescence, batches: u32) {
        if self.closed.len > 0 && quiescence.has_passed(self.target) {
            let closed = mem::take(&mut self.closed);
            self.free.append(slab, closed);
        }
        for _ in 0..batches {
            if self.free.len < 2 * BATCH {
                break;
            }
            slab.push_batch(&self.free.split(slab));
        }
    }

    /// Entries that are not in use: at hand, or in limbo.
    pub(super) fn spare(&self) -> u32 {
        self.free.len + self.fresh.len() as u32 + self.in_limbo()
    }

    /// Entries that are neither in use nor free yet.
    pub(super) fn in_limbo(&self) -> u32 {
        self.open.len + self.closed.len
    }
}

/// Entries linked through their `life`, by index plus one; 0 ends it. The owner alone follows and changes it, so
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

    /// Puts another chain, whose tail is known, in front.
    fn append(&mut self, slab: &Slab, other: Self) {
        slab.entry(other.tail - 1).life.store(Life::removed(self.head).0, Ordering::Relaxed);
        self.head = other.head;
        self.len += other.len;
    }

    /// Takes the first [`BATCH`] entries off; there are at least as many.
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

/// The part of the free list's head that is an index plus one; above it, a count of changes, which tells a head
/// that has come back from one that never left.
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
        }
    }

    fn quiesce(stock: &mut Stock, slab: &Slab, quiescence: &Quiescence) {
        stock.close(quiescence);
        quiescence.quiescent(0);
        stock.collect(slab, quiescence, 100);
    }

    #[test]
    fn every_entry_is_taken_once_and_then_there_are_none() {
        let slab = slab(200);
        let (mut one, mut other) = (Stock::default(), Stock::default());
        let mut taken: Vec<u32> = (0..50).filter_map(|_| one.take(&slab)).collect();
        taken.extend(std::iter::from_fn(|| other.take(&slab)));
        taken.extend(std::iter::from_fn(|| one.take(&slab)));
        assert_eq!((taken.len(), taken.iter().collect::<HashSet<_>>().len()), (200, 200));
    }

    #[test]
    fn what_one_seat_retires_another_can_take_but_for_what_may_be_stranded() {
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
    fn memory_is_touched_only_when_no_removed_entry_is_to_be_had() {
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
