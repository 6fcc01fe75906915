//! Templates, as far as they are not connections: they are detached when they are of no use any more, and assured when
//! somebody has answered.
//!
//! Runs for new connections of persistent services, and once a connection when it is established. A template that is
//! detached stays in the table, counted, timed and listed, for as long as it controls connections, but nobody finds
//! it, so that another with its identity can take its place. Cost: a few atomic operations; nothing waits. Not here:
//! which template a packet needs (`persistence.rs`).

use super::entry::Life;
use super::seat::TableWorker;
use super::{ConnId, Connection, Flags};
use crate::shm::atomic::Ordering;

impl TableWorker {
    /// Takes a template out of the index. Any worker may that has found it, also after another has: when it returns,
    /// the template is found no more, and its identity is free.
    pub fn detach(&self, id: ConnId) {
        let connection = self.connection(id);
        debug_assert!(connection.is_template());
        // The flag first: who finds the template meanwhile knows that it is on its way out.
        let _ = connection.set_flags(Flags::DETACHED);
        let table = &self.seat.table;
        table.buckets.unlink(table.entry(id).client_hash(&table.secret), id.index());
    }

    /// Marks a template as one whose client is known to be there ([`ASSURED`]). Its deadline stays.
    pub fn assure(&self, id: ConnId) {
        let entry = self.seat.table.entry(id);
        let mut life = entry.life();
        while life.is_live() && life.state() & ASSURED == 0 {
            let assured = life.with(life.state() | ASSURED, life.deadline());
            // Relaxed: the word speaks for itself.
            match entry.life.compare_exchange_weak(life.0, assured.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => life = Life(now),
            }
        }
    }
}

impl Connection<'_> {
    /// Whether this template stands for no client any more.
    pub fn is_detached(&self) -> bool {
        self.flags().contains(Flags::DETACHED)
    }
}

/// State of a template: a connection that it controls was established, or answered where the protocol has no such
/// state.
///
/// Source: ipvs-behaviour, section 3.3.
pub const ASSURED: u8 = 1;
