//! Connection tables in files that outlive the process, and their take-over by the next process.
//!
//! The process may have been killed between any two stores. Only those fields of the entries are used that identify a
//! connection or that it needs later. Each entry is checked. The index is kept if it contains the keys of all entries
//! and no others; otherwise it is rebuilt, as the free list, counts and timers always are. An entry that is incomplete,
//! impossible or refers to an unknown destination is discarded. A table with another version or size, or from before
//! the machine's last start, is refused as a whole. Runs once, before there are workers. Cost: three passes over the
//! entries, and one over the index. A process that ends in order [leaves](Table::leave) the table so that no pass is
//! necessary.
//!
//! Before the take-over the table is a [`FormerTable`], which has no handles: nothing in this process can insert into
//! it, remove from it or walk it while another process may still use it, or before its free list is rebuilt.

use std::fs::File;
use std::mem::offset_of;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{array, io, thread};

use xvs_proto::HashSecret;

use super::buckets::{Buckets, Claim};
use super::connection::Connection;
use super::entry::{REMOVED, Record};
use super::flags::Flags;
use super::id::ConnId;
use super::keys::Keys;
use super::life::Life;
use super::slab::{Slab, Stock};
use super::table::{Boot, ENTRIES_MAX, Parts, Table, TableConfig};
use crate::clock::Millis;
use crate::shm::atomic::Ordering;
use crate::shm::layout::{Entry, HEADER_BYTES, Header, MAGIC, VERSION};
use crate::shm::{Mapping, file_bytes};

/// The files of a table, on a tmpfs and entirely allocated.
#[derive(Debug)]
pub struct TableFiles {
    /// Header, index and entries.
    pub connections: File,
    /// The second halves of entries.
    pub extensions: File,
}

/// The table of another process, which may still use it. [`Self::take_over`] makes it this process's table.
#[derive(Debug)]
pub struct FormerTable(Table);

/// The contents of a table.
#[derive(Debug)]
pub struct Survey {
    /// The number of connections and templates.
    pub live: usize,
    expected: u32,
    extent: u32,
    free: FreeEntries,
}

/// The free entries below the extent.
#[derive(Debug)]
enum FreeEntries {
    /// A walk has found them.
    Found(Vec<u32>),
    /// They are in the free list, except those in this [`Stock`].
    Listed([u32; 2]),
}

/// The result of a [repair](FormerTable::repair).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// The number of discarded entries.
    pub discarded: usize,
    /// Whether the index was rebuilt.
    pub is_rebuilt: bool,
}

/// Why a table is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// This program cannot continue with the table.
    #[error("{0}")]
    Refused(String),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] io::Error),
}

impl TableConfig {
    /// The lengths of the files of a new table: connections, extensions.
    ///
    /// # Errors
    ///
    /// Same as [`Table::create`].
    pub fn file_bytes(&self) -> io::Result<[u64; 2]> {
        let parts = Parts::of(self)?;
        Ok([parts.table_bytes(), parts.extension_bytes()].map(|bytes| file_bytes(bytes) as u64))
    }
}

impl Table {
    /// An empty table in zero-filled files with the lengths from [`TableConfig::file_bytes`].
    ///
    /// # Errors
    ///
    /// Same as [`Self::create`].
    pub fn create_in(
        files: &TableFiles,
        config: TableConfig,
        secret: HashSecret,
        boot: Boot,
    ) -> io::Result<Arc<Self>> {
        let parts = Parts::of(&config)?;
        let [mapping, extensions] = map(files, &config, &parts)?;
        Ok(Arc::new(Self::fresh(config, &parts, mapping, &extensions, secret, boot)))
    }

    /// A connection that was [surveyed](FormerTable::survey). Only for use before any handle of a worker is taken.
    pub fn surveyed(&self, id: ConnId) -> Connection<'_> {
        Connection { id, record: self.slab.record(id.0), offloaded: &self.offloaded }
    }
}

impl FormerTable {
    /// Maps the files of another process.
    ///
    /// # Errors
    /// The table in them is refused.
    pub fn map(files: &TableFiles, config: TableConfig, boot: Boot) -> Result<Self, AdoptError> {
        let (parts, secret) = header_of(&files.connections, &config, boot)?;
        let length = files.extensions.metadata()?.len();
        let expected = file_bytes(parts.extension_bytes()) as u64;
        if length != expected {
            return refused(format!("the file extensions beside it has {length} bytes, not {expected}"));
        }
        let [mapping, extensions] = map(files, &config, &parts)?;
        Ok(Self(Table::over(config, &parts, mapping, &extensions, secret)))
    }

    /// A table as its handles have left it; `None` while one is in use.
    pub fn left(table: Arc<Table>) -> Option<Self> {
        Arc::try_unwrap(table).ok().map(Self)
    }

    /// The secret that keys the hash of flows.
    pub fn secret(&self) -> &HashSecret {
        self.0.secret()
    }

    /// The number of entries: the indices of connections are below it.
    pub fn entries(&self) -> usize {
        self.0.entries()
    }

    /// Maps all pages into this process's page tables, so that [`Self::survey`] takes less time.
    pub fn touch(&self) {
        self.0.mapping.touch();
    }

    /// Walks a table that no thread changes during the walk, and that was left in order or [repaired](Self::repair).
    /// Changes nothing. `each` is called for each connection and template; `progress` is called repeatedly.
    pub fn survey(&self, mut each: impl FnMut(&Connection<'_>), progress: impl Fn()) -> Survey {
        let extent = self.extent_of_files();
        let (mut live, mut expected, mut free) = (0, 0, Vec::new());
        for index in 0..extent {
            if index % SHARE == 0 {
                progress();
            }
            let record = self.0.slab.record(index);
            if record.entry.life().is_live() {
                let connection = Connection { id: ConnId(index), record, offloaded: &self.0.offloaded };
                live += 1;
                expected += u32::from(connection.flags().contains(Flags::NO_CLIENT_PORT));
                each(&connection);
            } else {
                free.push(index);
            }
        }
        Survey { live, expected, extent, free: FreeEntries::Found(free) }
    }

    /// The survey that the table's former process [left](Table::leave) at this time or later, so that no walk is
    /// necessary; `None` if there is none.
    pub fn left_since(&self, since: Millis) -> Option<Survey> {
        let header = &self.0.slab.header[0];
        // Acquire: a reader that sees the time sees the rest.
        let left = header.left.load(Ordering::Acquire);
        (left != 0 && Millis(left) >= since).then(|| Survey {
            live: header.left_live.load(Ordering::Relaxed) as usize,
            expected: header.left_expected.load(Ordering::Relaxed),
            extent: self.extent_of_files(),
            free: FreeEntries::Listed(header.left_free.each_ref().map(|word| word.load(Ordering::Relaxed))),
        })
    }

    /// Takes over the table of a process that no longer uses it.
    pub fn take_over(self, survey: &Survey) -> Arc<Table> {
        let Table { slab, free_handles, config, counts, expected, .. } = &self.0;
        let header = &slab.header[0];
        let extent = survey.extent;
        // Relaxed: no other thread uses the table yet.
        header.extent.store(extent, Ordering::Relaxed);
        header.left.store(0, Ordering::Relaxed);
        expected.store(survey.expected, Relaxed);
        let stock = match &survey.free {
            FreeEntries::Listed(parts) => Stock::of(*parts),
            FreeEntries::Found(free) => {
                header.free.store(0, Ordering::Relaxed);
                let mut stock = Stock::default();
                free.iter().for_each(|index| stock.give(slab, *index));
                stock
            }
        };
        // The first handle gets the entries that are not in the list, and gives a surplus to the others.
        (0..free_handles.len()).for_each(|handle| _ = self.0.left_stock(handle).take());
        *self.0.left_stock(0) = Some(stock);
        for (worker, state) in free_handles.iter().take(config.workers).enumerate() {
            if let Some(state) = &mut *state.lock().unwrap_or_else(PoisonError::into_inner) {
                let [first, end] = [worker, worker + 1]
                    .map(|worker| (u64::from(extent) * worker as u64 / config.workers as u64) as u32);
                state.unlinked = first..end;
            }
        }
        counts[0].inserted.store(survey.live as u64, Relaxed);
        Arc::new(self.0)
    }

    /// The number of entries that were ever used, at most the number in the files.
    fn extent_of_files(&self) -> u32 {
        self.0.slab.extent().min(self.0.slab.entries.len() as u32)
    }

    /// Repairs a table whose process was killed at any moment: checks each entry and the index, and rebuilds the counts
    /// of templates, on all cores. `is_known` returns whether there is a destination with this number; `progress` is
    /// called repeatedly.
    ///
    /// The index is kept if the sum over its slots equals the sum over the keys of all entries, which holds unless the
    /// process was killed within a few instructions; otherwise it is rebuilt, at random positions.
    pub fn repair(
        &mut self,
        now: Millis,
        is_known: impl Fn(u32) -> bool + Sync,
        progress: impl Fn() + Sync,
    ) -> Repair {
        let extent = self.extent_of_files();
        let Table { slab, buckets, secret, .. } = &self.0;
        let discarded = AtomicUsize::new(0);
        // Entries that were about to be removed: a new connection between the same ends may have replaced them since.
        let closed = Mutex::new(Vec::new());
        // The sum over the keys that the index must contain, less the sum over those that it contains.
        let missing = AtomicU64::new(0);
        // Relaxed, here and below: no other thread uses the table yet.
        for_each_window(extent, &progress, |window| {
            let mut sum = 0_u64;
            for index in window {
                let record = slab.record(index);
                let entry = record.entry;
                if !entry.life().is_current() {
                    continue;
                }
                let is_possible = is_possible(record, now, &is_known);
                let keys = record.is_sound().then(|| Keys::of_entry(slab, secret, index));
                let controlled = entry.controlled.load(Ordering::Relaxed);
                if is_possible && controlled != REMOVED {
                    if let Some(keys) = keys.filter(|_| !is_detached(record)) {
                        sum = sum.wrapping_add(keys.share(index));
                    }
                    // Most lines stay as they are.
                    if controlled != 0 {
                        entry.controlled.store(0, Ordering::Relaxed);
                    }
                    continue;
                }
                keys.inspect(|keys| keys.unlink(buckets, index));
                if is_possible {
                    closed.lock().unwrap_or_else(PoisonError::into_inner).push(index);
                } else {
                    discard(entry, &discarded);
                }
            }
            missing.fetch_add(sum, Relaxed);
        });
        for_each_window(buckets.len() as u32, &progress, |window| {
            missing.fetch_sub(buckets.sum(window), Relaxed);
        });
        let is_rebuilt = missing.into_inner() != 0;
        if is_rebuilt {
            rebuild(slab, buckets, secret, extent, &discarded, &progress);
        }
        for index in closed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            slab.entry(index).controlled.store(0, Ordering::Relaxed);
            if !enter(slab, buckets, &Keys::of_entry(slab, secret, index), index) {
                discard(slab.entry(index), &discarded);
            }
        }
        for_each_window(extent, &progress, |window| {
            for entry in window.map(|index| slab.entry(index)).filter(|entry| entry.life().is_live()) {
                let is_counted = entry
                    .controller
                    .load(Ordering::Relaxed)
                    .checked_sub(1)
                    .filter(|controller| *controller < extent)
                    .map(|controller| slab.record(controller))
                    .is_some_and(|found| {
                        found.entry.life().is_live() && found.may_control() && found.entry.add_controlled()
                    });
                if !is_counted {
                    entry.controller.store(0, Ordering::Relaxed);
                }
            }
        });
        Repair { discarded: discarded.into_inner(), is_rebuilt }
    }
}

/// Enters the keys of all current entries into an empty index, except of those that were about to be removed.
fn rebuild(
    slab: &Slab,
    buckets: &Buckets,
    secret: &HashSecret,
    extent: u32,
    discarded: &AtomicUsize,
    progress: impl Fn() + Sync,
) {
    for_each_window(buckets.len() as u32, &progress, |window| buckets.clear(window));
    for_each_window(extent, progress, |window| {
        // All keys of a window are computed before the first one is entered, so that their buckets are fetched
        // together.
        let keys: [Option<Keys>; WINDOW] = array::from_fn(|at| {
            let index = window.start + at as u32;
            window
                .contains(&index)
                .then(|| slab.entry(index))
                .filter(|entry| {
                    entry.life().is_current() && entry.controlled.load(Ordering::Relaxed) != REMOVED
                })
                .map(|_| Keys::of_entry(slab, secret, index))
                .inspect(|keys| keys.prefetch(buckets))
        });
        for (index, keys) in window.zip(keys) {
            if keys.is_some_and(|keys| !enter(slab, buckets, &keys, index)) {
                discard(slab.entry(index), discarded);
            }
        }
    });
}

/// Whether an entry contains a connection or template that the table can keep.
fn is_possible(record: Record<'_>, now: Millis, is_known: impl Fn(u32) -> bool) -> bool {
    let life = record.entry.life();
    life.is_live()
        && record.is_sound()
        && life.deadline() < now + FARTHEST_DEADLINE
        && !is_half_completed(record.entry)
        && is_known(record.entry.dest.load(Ordering::Relaxed))
}

/// Removes an entry that is not in the index, and counts it.
fn discard(entry: &Entry, discarded: &AtomicUsize) {
    entry.generation.store(entry.generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    entry.life.store(Life::removed(0).0, Ordering::Relaxed);
    discarded.fetch_add(1, Relaxed);
}

/// Passes each window of the indices below `extent` to `each`, on all cores; calls `progress` for each share of them.
fn for_each_window(extent: u32, progress: impl Fn() + Sync, each: impl Fn(Range<u32>) + Sync) {
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 1..thread::available_parallelism().map_or(1, usize::from).min((extent / SHARE) as usize + 1)
        {
            // If a thread cannot be started, the others do its share.
            let _ = thread::Builder::new()
                .spawn_scoped(scope, || for_each_share(extent, &next, &progress, &each));
        }
        for_each_share(extent, &next, &progress, &each);
    });
}

/// Takes shares from `next`, and passes their windows to `each`.
fn for_each_share(extent: u32, next: &AtomicU32, progress: impl Fn(), each: impl Fn(Range<u32>)) {
    // Relaxed: this orders nothing; the end of the scope does.
    while let start = next.fetch_add(SHARE, Relaxed)
        && start < extent
    {
        progress();
        let end = (start + SHARE).min(extent);
        (start..end).step_by(WINDOW).for_each(|at| each(at..(at + WINDOW as u32).min(end)));
    }
}

/// Entries whose buckets are fetched together.
const WINDOW: usize = 16;
/// The number of entries that a thread takes at a time.
const SHARE: u32 = 1 << 14;

fn map(files: &TableFiles, config: &TableConfig, parts: &Parts) -> io::Result<[Arc<Mapping>; 2]> {
    Ok([
        Mapping::of_file(&files.connections, parts.table_bytes(), config.memory)?,
        Mapping::of_file(&files.extensions, parts.extension_bytes(), config.memory)?,
    ])
}

/// Checks the header of a table's file against the values that this program expects.
fn header_of(file: &File, config: &TableConfig, boot: Boot) -> Result<(Parts, HashSecret), AdoptError> {
    let mut bytes = [0; size_of::<Header>()];
    if file.metadata()?.len() < HEADER_BYTES as u64 {
        return refused("it is no connection table of xvsd");
    }
    file.read_exact_at(&mut bytes, 0)?;
    let [magic, version, capacity, buckets, entries] = [
        offset_of!(Header, magic),
        offset_of!(Header, version),
        offset_of!(Header, capacity),
        offset_of!(Header, buckets),
        offset_of!(Header, entries),
    ]
    .map(|at| word(&bytes, at));
    if magic != MAGIC {
        return refused("it is no connection table of xvsd");
    }
    if version != VERSION {
        return refused(format!("its layout has version {version}, and this xvsd has version {VERSION}"));
    }
    if Boot([0, 8].map(|byte| word(&bytes, offset_of!(Header, boot) + byte))) != boot {
        return refused("it is from before the machine's last start, or from another machine");
    }
    if capacity != config.capacity as u64 {
        return refused(format!(
            "it is for {capacity} connections, and conn_table_size is {}",
            config.capacity
        ));
    }
    // The number of entries also depends on the number of workers for which the table was created.
    let parts = Parts { entries: entries.min(ENTRIES_MAX as u64) as usize, ..Parts::of(config)? };
    if buckets != parts.buckets as u64
        || entries < capacity
        || file.metadata()?.len() != file_bytes(parts.table_bytes()) as u64
    {
        return refused("its header contradicts its length");
    }
    Ok((parts, HashSecret([0, 8, 16].map(|byte| word(&bytes, offset_of!(Header, secret) + byte)))))
}

fn refused<T>(why: impl Into<String>) -> Result<T, AdoptError> {
    Err(AdoptError::Refused(why.into()))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array::from_fn(|byte| bytes[at + byte]))
}

/// Enters the keys of an entry into the index, unless it is detached. Returns whether no other entry has one of them.
fn enter(slab: &Slab, buckets: &Buckets, keys: &Keys, index: u32) -> bool {
    let record = slab.record(index);
    is_detached(record) || keys.enter(buckets, slab, Claim { index, wide: record.is_wide() }).is_ok()
}

fn is_detached(record: Record<'_>) -> bool {
    Flags(record.entry.flags.load(Ordering::Relaxed)).contains(Flags::DETACHED)
}

/// Whether the process was killed while it wrote the numbers of a connection through the SYN proxy: some of them may be
/// the previous ones, so its segments cannot be translated for either end. A received connection has its numbers from
/// the beginning, except in a table that xvs 0.3.0 has left.
fn is_half_completed(entry: &Entry) -> bool {
    let flags = Flags(entry.flags.load(Ordering::Relaxed));
    flags.contains(Flags::HANDSHAKE) && flags.intersects(Flags::SYN_PROXY | Flags::SYNC)
}

/// No timeout is longer: a later deadline is damaged.
const FARTHEST_DEADLINE: Duration = Duration::from_secs(100 * 86_400);

#[cfg(test)]
impl FormerTable {
    /// A table as a kill of its process leaves it, after the repair, and the number of discarded entries.
    pub(crate) fn repaired(table: Arc<Table>) -> (Arc<Table>, usize) {
        let mut left = Self::left(table).unwrap();
        let Repair { discarded, .. } = left.repair(Millis(0), |_| true, || {});
        let survey = left.survey(|_| {}, || {});
        (left.take_over(&survey), discarded)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use xvs_proto::FlowKey;

    use super::*;
    use crate::conn::{NewConnection, TableWorker};

    fn found(worker: &TableWorker, new: &NewConnection) -> Option<ConnId> {
        let flow = FlowKey { protocol: new.protocol, source: new.client, dest: new.virtual_endpoint };
        worker.find(&flow, worker.hash(&flow)).map(|(id, _)| id)
    }

    #[test]
    fn a_connection_is_found_in_place_of_one_between_the_same_ends_whose_removal_a_kill_interrupted() {
        let table = Table::example();
        let (mut worker, new) = (table.handle(0).unwrap(), NewConnection::example());
        let old = worker.insert_new(&new);
        // The steps of a removal before another worker can insert.
        table.entry(old).close().unwrap();
        table.buckets.unlink(table.slab.record(old.0).request_flow().hash(&table.secret), old.0);
        if let Some(reply) = table.slab.record(old.0).reply_flow() {
            table.buckets.unlink(reply.hash(&table.secret), old.0);
        }
        let newer = worker.insert_new(&new);
        assert!(old.0 < newer.0);
        drop(worker);
        let (table, discarded) = FormerTable::repaired(table);
        assert_eq!((discarded, table.live()), (1, 1));
        assert_eq!(found(&table.handle(0).unwrap(), &new), Some(newer));
    }

    #[test]
    fn a_connection_that_was_only_examined_for_removal_at_a_kill_stays() {
        let table = Table::example();
        let (mut worker, new) = (table.handle(0).unwrap(), NewConnection::example());
        let id = worker.insert_new(&new);
        table.entry(id).close().unwrap();
        drop(worker);
        let (table, discarded) = FormerTable::repaired(table);
        assert_eq!((discarded, found(&table.handle(0).unwrap(), &new)), (0, Some(id)));
    }

    #[test]
    fn a_connection_whose_numbers_were_being_written_at_a_kill_is_discarded_and_not_waited_for() {
        for other in [Flags::SYN_PROXY, Flags::SYNC] {
            let table = Table::example();
            let mut worker = table.handle(0).unwrap();
            let new = NewConnection { flags: Flags::HANDSHAKE | other, ..NewConnection::example() };
            worker.insert_new(&new);
            drop(worker);
            let (table, discarded) = FormerTable::repaired(table);
            assert_eq!((discarded, found(&table.handle(0).unwrap(), &new)), (1, None), "{other:?}");
        }
    }
}
