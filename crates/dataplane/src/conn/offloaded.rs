//! The connections that the XDP program forwards, by records in memory that it shares with workers.
//!
//! One bit of a record's state says whether it is in force; clearing it is one store, from any thread, also from the
//! program. The table does so when it removes a connection. Cost for connections without a record: one load at their
//! end. Not here: what is in a record, and when there is one (`offload/`).

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use xvs_xdp::bpf::Words;

use super::id::ConnId;

/// The number of records.
pub(crate) const RECORDS: usize = 1 << 17;
/// The words of a record (`struct xvs_flow` in `bpf/maps.h`).
pub(crate) const RECORD: usize = 40;

/// The places of the words of a record.
pub(crate) mod word {
    /// The count of the record's uses, and in bit 0 whether it is in force.
    pub(crate) const STATE: usize = 0;
    /// The epoch, and the slot in the upper half.
    pub(crate) const EPOCH_AND_SLOT: usize = 1;
    /// The epoch of the slot.
    pub(crate) const SLOT_EPOCH: usize = 2;
    /// Packets and bytes of requests, then of replies, that no worker has taken yet.
    pub(crate) const COUNTS: usize = 3;
    /// The number of the connection and, in the upper half, its generation. The program has no use for it.
    pub(crate) const CONNECTION: usize = 7;
    /// What the program does with requests, then with replies.
    pub(crate) const PARTS: usize = 8;
    /// The words of a part.
    pub(crate) const PART: usize = 8;
    /// The IPv6 addresses of requests, then of replies, as received.
    pub(crate) const OLD_ADDRESSES: usize = 24;
    /// The same as sent.
    pub(crate) const ADDRESSES: usize = 32;
}

/// The records, and which connection each is of.
pub(crate) struct Offloaded {
    records: Words<{ RECORDS * RECORD }>,
    /// By connection: its record plus one; 0: it has none.
    of: Box<[AtomicU32]>,
}

impl Offloaded {
    /// For tables with this number of entries.
    pub(crate) fn new(records: Words<{ RECORDS * RECORD }>, entries: usize) -> Self {
        Self { records, of: (0..entries).map(|_| AtomicU32::new(0)).collect() }
    }

    /// The words of a record.
    pub(crate) fn record(&self, number: u32) -> &[AtomicU64] {
        &self.records[number as usize * RECORD..][..RECORD]
    }

    /// The record of a connection.
    pub(crate) fn of(&self, id: ConnId) -> Option<u32> {
        // Relaxed, here and below: the words of a record are separate atomics, and its memory is never freed.
        self.of[id.0 as usize].load(Ordering::Relaxed).checked_sub(1)
    }

    /// Gives a connection a record. Returns whether it had none.
    pub(crate) fn bind(&self, id: ConnId, record: u32) -> bool {
        let of = &self.of[id.0 as usize];
        of.compare_exchange(0, record + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Takes this record from a connection, unless it has another one by now.
    pub(crate) fn unbind(&self, id: ConnId, record: u32) {
        let of = &self.of[id.0 as usize];
        let _ = of.compare_exchange(record + 1, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes workers process the packets of a connection from now on.
    pub(crate) fn end(&self, id: ConnId) {
        // The caller has changed the connection; see `offload/begin.rs`.
        fence(Ordering::SeqCst);
        let of = &self.of[id.0 as usize];
        if of.load(Ordering::Relaxed) != 0
            && let Some(record) = of.swap(0, Ordering::Relaxed).checked_sub(1)
        {
            self.record(record)[word::STATE].fetch_and(!1, Ordering::Relaxed);
        }
    }

    /// Whether the program has forwarded packets of a connection that the connection does not count yet.
    pub(crate) fn has_news(&self, id: ConnId) -> bool {
        self.of(id).is_some_and(|record| {
            let counts = &self.record(record)[word::COUNTS..word::CONNECTION];
            counts.iter().any(|count| count.load(Ordering::Relaxed) != 0)
        })
    }
}

impl fmt::Debug for Offloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offloaded").finish_non_exhaustive()
    }
}
