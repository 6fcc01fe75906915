//! Leaving the table: a thread that does not use its handle for some time leaves its unused entries in the table, and a
//! process that ends in order leaves the table so that the next one need not read it. `adopt.rs` takes a table over.

use std::mem;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{MutexGuard, PoisonError};

use super::handle::{TableHandle, TableWorker};
use super::slab::Stock;
use super::table::Table;
use crate::clock::Millis;
use crate::shm::atomic::Ordering;

impl Table {
    /// Puts the free entries in order for another process, and stores the other results of a
    /// [survey](super::FormerTable::survey). Only while no thread uses the table.
    pub fn leave(&self, now: Millis) {
        let header = &self.slab.header[0];
        let mut stock = Stock::default();
        for handle in 0..self.stocks.len() {
            if let Some(left) = self.left_stock(handle).take() {
                stock.give_all(&self.slab, left);
            }
        }
        for (word, part) in header.left_free.iter().zip(stock.parts()) {
            word.store(part, Ordering::Relaxed);
        }
        header.left_live.store(self.live() as u64, Ordering::Relaxed);
        header.left_expected.store(self.expected.load(Relaxed), Ordering::Relaxed);
        header.left.store(now.0, Ordering::Release);
        // This process may use the table again.
        *self.left_stock(0) = Some(stock);
    }

    /// The unused entries of a handle that no thread uses.
    pub(super) fn left_stock(&self, handle: usize) -> MutexGuard<'_, Option<Stock>> {
        self.stocks[handle].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TableWorker {
    /// Like [`park`](Self::park); in addition another process may take over the table, if all handles have left it.
    pub fn leave(&mut self) {
        self.handle.leave();
    }

    /// Must be called after [`leave`](Self::leave) before any other operation.
    pub fn enter(&mut self) {
        self.handle.enter();
    }
}

impl TableHandle {
    pub(super) fn leave(&mut self) {
        self.park();
        // A handle that has left already has none.
        self.table.left_stock(self.number).get_or_insert_with(|| mem::take(&mut self.stock));
    }

    pub(super) fn enter(&mut self) {
        // Another process may have been about to get it.
        if let Some(stock) = self.table.left_stock(self.number).take() {
            self.stock = stock;
        }
        self.unpark();
    }

    /// The number of entries that the handle has removed and that are not free yet, also after [`leave`](Self::leave).
    pub(super) fn in_limbo(&self) -> u32 {
        self.table.left_stock(self.number).as_ref().map_or_else(|| self.stock.in_limbo(), Stock::in_limbo)
    }
}

impl Drop for TableHandle {
    fn drop(&mut self) {
        self.leave();
        *self.table.free_handles[self.number].lock().unwrap_or_else(PoisonError::into_inner) =
            Some(mem::take(&mut self.state));
    }
}
