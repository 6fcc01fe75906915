//! The connection table: one for all workers, of fixed size, without locks. The hash is `FlowKey::hash` in `proto`; the
//! index is in `buckets.rs`.
//!
//! The table is created once, or taken over from a process that has ended (`adopt.rs`). Each worker takes its
//! [`TableWorker`](super::TableWorker), and each thread that lists or sweeps takes a
//! [`TableReader`](super::TableReader). A worker finds, inserts, removes and times connections within a burst, and then
//! calls [`quiescent`](super::TableWorker::quiescent). Before it sleeps it calls [`park`](super::TableWorker::park).
//!
//! Promises: no thread waits for another. Nothing is allocated after the start. Two workers that insert one connection
//! at the same time get one entry. A live entry never moves. An entry that a worker has found stays readable until the
//! worker's quiescent point. Cost: a look-up reads a line of the index and one of the entry (two lines of the index for
//! a miss); both can be prefetched. Memory: see [`TableConfig`].

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64 as Statistic};
use std::sync::{Arc, Mutex, OnceLock};

use crossbeam::utils::CachePadded;
use xvs_proto::HashSecret;

use super::buckets::Buckets;
use super::entry::Record;
#[cfg(doc)]
use super::flags::Flags;
use super::id::ConnId;
use super::log::ConnectionLog;
use super::offloaded::Offloaded;
use super::quiescence::Quiescence;
use super::request_times::RequestTimes;
use super::slab::{STRANDED_MAX, Slab, Stock};
use super::wheel::Wheel;
use crate::clock::{Micros, Millis};
use crate::shm::atomic::Ordering;
use crate::shm::layout::{Bucket, Entry, Extension, HEADER_BYTES, Header, MAGIC, Numbers, VERSION};
use crate::shm::{Mapping, Memory, Pages};

/// The size of a table. A connection costs 64 bytes, or 128 with IPv6 or a local endpoint; 16 more bytes if the
/// director has answered its SYN; 25 bytes of the index; and 8 more in each worker that has ever timed an entry at its
/// index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableConfig {
    /// Maximum number of connections and templates.
    pub capacity: usize,
    /// The number of workers.
    pub workers: usize,
    /// When its memory is allocated.
    pub memory: Memory,
}

impl TableConfig {
    /// The memory of a table that is full of the largest connections, in bytes: [`Self::mapped_bytes`] and the workers'
    /// timers.
    pub fn full_bytes(&self) -> usize {
        self.mapped_bytes().saturating_add(self.entries().saturating_mul(self.workers * Wheel::ENTRY_BYTES))
    }

    /// The share of [`Self::full_bytes`] that can be in reserved huge pages: the index, and the entries with their
    /// extensions.
    pub fn mapped_bytes(&self) -> usize {
        let index = Buckets::needed(self.capacity.min(ENTRIES_MAX)) * size_of::<Bucket>();
        let per_entry = size_of::<Entry>() + size_of::<Extension>() + size_of::<Numbers>();
        HEADER_BYTES + index + self.entries().saturating_mul(per_entry)
    }

    /// The number of entries: one for each connection, and those that workers and readers may keep unused.
    fn entries(&self) -> usize {
        self.capacity.saturating_add((self.workers + READERS) * STRANDED_MAX as usize)
    }
}

/// The end of an epoch ([`Table::close_epoch`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

/// Sums over all workers, read one after the other: exact while no worker changes the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableCounts {
    /// Connections inserted since the start.
    pub inserted: u64,
    /// Connections removed since the start.
    pub removed: u64,
    /// Insertions refused because there was no room.
    pub full: u64,
}

/// The table. Only its workers and readers change it.
#[derive(Debug)]
pub struct Table {
    pub(super) config: TableConfig,
    pub(super) secret: HashSecret,
    pub(super) mapping: Arc<Mapping>,
    pub(super) buckets: Buckets,
    pub(super) slab: Slab,
    pub(super) quiescence: Quiescence,
    pub(super) counts: Box<[CachePadded<HandleCounts>]>,
    /// The number of entries with [`Flags::NO_CLIENT_PORT`].
    pub(super) expected: AtomicU32,
    /// The requests whose first reply has not passed.
    pub(super) requests: RequestTimes,
    /// The connections whose packets the XDP program forwards; unset if it forwards none.
    pub(super) offloaded: OnceLock<Arc<Offloaded>>,
    /// The log of connections; unset if there is none.
    log: OnceLock<Arc<ConnectionLog>>,
    /// The state of each handle that is not taken: workers first, then readers. Locked only to take or to return a
    /// handle.
    pub(super) free_handles: Box<[Mutex<Option<HandleState>>]>,
    /// The unused entries of each handle that no thread uses. Locked only when a thread begins or ceases to use it.
    pub(super) stocks: Box<[Mutex<Option<Stock>>]>,
}

/// Counts of one handle, whose owner is the only writer. They order no other memory.
#[derive(Debug, Default)]
pub(super) struct HandleCounts {
    pub(super) inserted: Statistic,
    pub(super) removed: Statistic,
    pub(super) full: Statistic,
}

/// The part of a handle that persists when its owner changes.
#[derive(Debug, Default)]
pub(super) struct HandleState {
    pub(super) wheel: Wheel,
    /// The entries, by index, that the worker has yet to link in its wheel because it has taken the table over.
    pub(super) unlinked: Range<u32>,
    /// When it last linked some of them.
    pub(super) linked_at: Millis,
}

impl Table {
    /// Creates an empty table.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a capacity of 0 or one that 31-bit indices do not cover; otherwise the kernel's error for the
    /// request for memory or random numbers.
    pub fn create(config: TableConfig) -> io::Result<Arc<Self>> {
        Self::keyed(config, random_secret()?)
    }

    /// Sets the connections whose packets the XDP program forwards, once.
    pub(crate) fn set_offloaded(&self, offloaded: Arc<Offloaded>) {
        let _ = self.offloaded.set(offloaded);
    }

    /// Sets the log of connections. Called once, before there are handles.
    pub fn set_log(&self, log: Arc<ConnectionLog>) {
        let _ = self.log.set(log);
    }

    /// The log of connections, if there is one.
    #[inline]
    pub(crate) fn log(&self) -> Option<&ConnectionLog> {
        self.log.get().map(|log| &**log)
    }

    /// Makes workers process the packets of a connection from now on, if the XDP program forwards them.
    #[inline]
    pub fn end_offload(&self, id: ConnId) {
        if let Some(offloaded) = self.offloaded.get() {
            offloaded.end(id);
        }
    }

    /// Records that the connection with this generation has just received its first request; see
    /// [`Self::response_micros`].
    pub(crate) fn note_request(&self, id: ConnId, generation: u32, now: Micros) {
        self.requests.put(id, generation, now);
    }

    /// The microseconds since the first request of a connection, if its time is known and its reply has not passed.
    pub(crate) fn awaited_micros(&self, id: ConnId, generation: u32, now: Micros) -> Option<u64> {
        Some(RequestTimes::since(self.requests.of(id, generation)?, now))
    }

    /// Like [`Self::awaited_micros`], once.
    pub(crate) fn response_micros(&self, id: ConnId, generation: u32, now: Micros) -> Option<u64> {
        self.awaited_micros(id, generation, now).inspect(|_| self.forget_request(id, generation))
    }

    /// Discards the time of a connection's first request.
    pub(crate) fn forget_request(&self, id: ConnId, generation: u32) {
        self.requests.forget(id, generation);
    }

    /// Like [`Self::create`], with this secret, so that hashes equal those of another table.
    ///
    /// # Errors
    ///
    /// Same as [`Self::create`].
    pub fn keyed(config: TableConfig, secret: HashSecret) -> io::Result<Arc<Self>> {
        let parts = Parts::of(&config)?;
        let mapping = Mapping::create(parts.table_bytes(), config.memory)?;
        // A separate mapping, so that a table with only IPv4 needs no memory for extensions, nor reserved huge pages.
        let on_demand = if config.memory == Memory::Resident { Memory::OnDemand } else { config.memory };
        let extensions = Mapping::create(parts.extension_bytes(), on_demand)?;
        let table = Self::fresh(config, &parts, mapping, &extensions, secret, Boot::default());
        // The header, at the beginning, has been written.
        table.note_huge_pages(config.memory == Memory::OnDemand && table.mapping.begins_huge());
        Ok(Arc::new(table))
    }

    /// An empty table over zeroed memory.
    pub(super) fn fresh(
        config: TableConfig,
        parts: &Parts,
        mapping: Arc<Mapping>,
        extensions: &Arc<Mapping>,
        secret: HashSecret,
        boot: Boot,
    ) -> Self {
        let table = Self::over(config, parts, mapping, extensions, secret);
        write_header(&table.slab.header[0], parts, &secret, boot);
        table
    }

    /// Records, before there are handles, whether the kernel has put a new table into huge pages.
    pub fn note_huge_pages(&self, are_huge: bool) {
        // Relaxed: the table is passed to other threads afterwards.
        self.slab.header[0].huge_pages.store(are_huge.into(), Ordering::Relaxed);
    }

    /// The table over memory that contains one already.
    pub(super) fn over(
        config: TableConfig,
        parts: &Parts,
        mapping: Arc<Mapping>,
        extensions: &Arc<Mapping>,
        secret: HashSecret,
    ) -> Self {
        let handles = config.workers + READERS;
        Self {
            config,
            secret,
            buckets: Buckets::new(mapping.cells(HEADER_BYTES, parts.buckets)),
            slab: Slab {
                header: mapping.cells(0, 1),
                entries: mapping.cells(parts.entries_offset(), parts.entries),
                extensions: extensions.cells(0, parts.entries),
                numbers: extensions.cells(parts.numbers_offset(), parts.entries),
            },
            quiescence: Quiescence::new(handles),
            counts: (0..handles).map(|_| CachePadded::default()).collect(),
            expected: AtomicU32::default(),
            requests: RequestTimes::new(parts.entries),
            offloaded: OnceLock::new(),
            log: OnceLock::new(),
            free_handles: (0..handles)
                .map(|handle| {
                    let timed = if handle < config.workers { parts.entries } else { 0 };
                    Mutex::new(Some(HandleState { wheel: Wheel::new(timed), ..HandleState::default() }))
                })
                .collect(),
            stocks: (0..handles).map(|_| Mutex::default()).collect(),
            mapping,
        }
    }

    /// The secret that keys the hash of flows.
    pub fn secret(&self) -> &HashSecret {
        &self.secret
    }

    /// The number of connections. It may or may not include those that are being inserted or removed.
    pub fn live(&self) -> usize {
        let TableCounts { inserted, removed, .. } = self.counts();
        inserted.saturating_sub(removed) as usize
    }

    /// Counts since the start.
    pub fn counts(&self) -> TableCounts {
        // Removals first, so that a removal is hardly ever counted without its insertion.
        let removed = self.sum(|handle| &handle.removed);
        let inserted = self.sum(|handle| &handle.inserted);
        TableCounts { inserted, removed, full: self.sum(|handle| &handle.full) }
    }

    fn sum(&self, of: fn(&HandleCounts) -> &Statistic) -> u64 {
        self.counts.iter().map(|handle| of(handle).load(Relaxed)).sum()
    }

    /// The requested size.
    pub fn config(&self) -> TableConfig {
        self.config
    }

    /// Closes an epoch: every worker sees all earlier stores of the caller after its next quiescent point. A
    /// configuration that was replaced before may therefore be freed when there is no [`Self::laggard`] any more.
    pub fn close_epoch(&self) -> Epoch {
        Epoch(self.quiescence.close())
    }

    /// The number of a worker, or otherwise of a reader (numbered after the workers), that may still use data from
    /// before the end of this epoch.
    pub fn laggard(&self, epoch: Epoch) -> Option<usize> {
        self.quiescence.laggard(epoch.0)
    }

    /// The kind of pages in which the table is stored.
    pub fn pages(&self) -> Pages {
        match self.mapping.pages() {
            Pages::Small if self.slab.header[0].huge_pages.load(Ordering::Relaxed) != 0 => Pages::Transparent,
            pages => pages,
        }
    }

    /// One more than the greatest index that a connection ever had: the end of a walk.
    pub fn extent(&self) -> u32 {
        self.slab.extent()
    }

    /// The number of entries: the indices of connections are below it.
    pub fn entries(&self) -> usize {
        self.slab.entries.len()
    }

    #[inline]
    pub(super) fn entry(&self, id: ConnId) -> &Entry {
        self.slab.entry(id.0)
    }

    /// The first result of `test` for a connection with this hash.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, test: impl Fn(Record<'_>) -> Option<T>) -> Option<(ConnId, T)> {
        self.buckets.find(hash, |index| Some((ConnId(index), test(self.slab.record(index))?)))
    }
}

/// The numbers of cells of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) capacity: usize,
    pub(super) buckets: usize,
    pub(super) entries: usize,
}

impl Parts {
    /// # Errors
    /// `InvalidInput` for a capacity of 0 or one that 31-bit indices do not cover.
    pub(super) fn of(config: &TableConfig) -> io::Result<Self> {
        let capacity = config.capacity;
        let entries = config.entries();
        if capacity == 0 || entries > ENTRIES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a connection table of {capacity} entries; 1 to {ENTRIES_MAX} are possible"),
            ));
        }
        Ok(Self { capacity, buckets: Buckets::needed(capacity), entries })
    }

    fn entries_offset(&self) -> usize {
        HEADER_BYTES + self.buckets * size_of::<Bucket>()
    }

    pub(super) fn table_bytes(&self) -> usize {
        self.entries_offset() + self.entries * size_of::<Entry>()
    }

    fn numbers_offset(&self) -> usize {
        self.entries * size_of::<Extension>()
    }

    pub(super) fn extension_bytes(&self) -> usize {
        self.numbers_offset() + self.entries * size_of::<Numbers>()
    }
}

/// The identity of one start of the machine (`/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Boot(pub [u64; 2]);

fn write_header(header: &Header, parts: &Parts, secret: &HashSecret, boot: Boot) {
    header.version.store(VERSION, Ordering::Relaxed);
    header.capacity.store(parts.capacity as u64, Ordering::Relaxed);
    header.buckets.store(parts.buckets as u64, Ordering::Relaxed);
    header.entries.store(parts.entries as u64, Ordering::Relaxed);
    for (word, value) in header.secret.iter().zip(secret.0).chain(header.boot.iter().zip(boot.0)) {
        word.store(value, Ordering::Relaxed);
    }
    // Release: a reader that sees the magic number sees the rest.
    header.magic.store(MAGIC, Ordering::Release);
}

/// An unpredictable secret from the kernel.
///
/// # Errors
/// The kernel has no random numbers.
#[cfg(not(loom))]
pub fn random_secret() -> io::Result<HashSecret> {
    use rustix::rand::{GetRandomFlags, getrandom};
    let mut bytes = [0; 24];
    // A request for at most 256 bytes is always fulfilled completely (getrandom(2)).
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(HashSecret(std::array::from_fn(|word| u64::from_ne_bytes(bytes.as_chunks().0[word]))))
}

/// A fixed secret: all runs of a model must be equal.
#[cfg(loom)]
pub fn random_secret() -> io::Result<HashSecret> {
    Ok(HashSecret([0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d]))
}

#[cfg(test)]
impl Table {
    /// An empty table for one worker and ten connections.
    pub(crate) fn example() -> Arc<Self> {
        Self::create(TableConfig { capacity: 10, workers: 1, memory: Memory::OnDemand }).unwrap()
    }
}

/// The number of handles for threads that are not workers.
const READERS: usize = 4;
/// An index plus one must fit into 31 bits.
pub(super) const ENTRIES_MAX: usize = i32::MAX as usize - 1;
