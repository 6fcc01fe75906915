//! The data that workers, the control thread and the XDP program share.

use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use xvs_xdp::bpf::Object;

use super::unused::Unused;
use crate::bpf::{XVS_BUCKET, in_words, xvs_offload};
use crate::clock::Millis;
use crate::conn::{
    MAX_RECORDS, Offloaded, RECORD, RecordState, SLOTS, Table, offloaded_word as word, random_secret, tcp,
};
use crate::shm::words::{self, Rows, Words};
use crate::snapshot::DestinationId;

/// The size of `struct xvs_offload`, in 64-bit words.
pub(crate) const STATE_WORDS: usize = SLOT_WORDS + SLOTS / 2;
/// The indices of its words. Switch, epoch and slots are halves of words; the seed has two.
pub(super) const SEED: usize = in_words(offset_of!(xvs_offload, seed));
pub(crate) const LAYOUT: usize = in_words(offset_of!(xvs_offload, layout));
pub(crate) const CLOCK: usize = in_words(offset_of!(xvs_offload, clock_ns));
const LAST_BUCKET: usize = in_words(offset_of!(xvs_offload, buckets));
pub(super) const TCP: usize = in_words(offset_of!(xvs_offload, tcp.row));
const ACTIVE: usize = in_words(offset_of!(xvs_offload, tcp.active));
pub(crate) const SLOT_WORDS: usize = in_words(offset_of!(xvs_offload, slots));
/// The version of the layout of records (`struct xvs_flow`), raised with each change: the next xvsd reads an earlier
/// one's records only if they have such a layout. Records with layout 0 have their counts at the same indices.
pub(crate) const LAYOUT_KNOWN: u64 = 1;
/// The entries of a bucket of keys.
pub(crate) const BUCKET: usize = XVS_BUCKET as usize;
/// Records are short when fewer than one in this number is free.
const SHORT_PART: usize = 8;
/// At most one record in this number is for an incomplete handshake, so that forged SYNs leave room for others.
const HALF_OPEN_PART: usize = 8;

/// The maps by which the program forwards.
pub(crate) mod map {
    use std::ffi::CStr;

    pub(crate) const STATE: &CStr = c"offload";
    pub(crate) const RECORDS: &CStr = c"records";
    pub(crate) const KEYS: &CStr = c"keys";
    pub(crate) const MOVES: &CStr = c"moves";
}

/// What workers, the control thread and the XDP program share.
#[derive(Debug)]
pub struct Offload {
    pub(super) state: Words<STATE_WORDS>,
    /// Buckets, as many as records.
    pub(super) keys: Rows<BUCKET>,
    pub(crate) flows: Arc<Offloaded>,
    pub(super) unused: Unused,
    pub(super) settings: Settings,
    /// Keys that found no room.
    pub(super) refused: AtomicU64,
    /// The number of records in force, as workers have last seen it.
    pub(super) in_force: AtomicUsize,
}

/// How flows are offloaded.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The number of a client's packets that workers process before offload.
    pub after: u32,
    /// Maximum number of connections that are offloaded at once, at most the number of records in the maps.
    pub records: u32,
    /// For test runs, in which the kernel makes all packets arrive on one interface: the index of that interface.
    /// `None` means the connection's own.
    pub ingress: Option<u32>,
}

impl Settings {
    /// The size of a record and of its bucket of keys, in bytes.
    pub const RECORD_BYTES: u64 = 8 * (RECORD + BUCKET) as u64;

    /// The number of records beside a table of this size: an eighth, rounded up to a power of two, from 16,384 to
    /// 1,048,576. Each takes [`Self::RECORD_BYTES`], which the kernel allocates at once.
    pub fn records_beside(connections: usize) -> u32 {
        (connections / 8).clamp(1 << 14, MAX_RECORDS).next_power_of_two() as u32
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { after: 1, records: MAX_RECORDS as u32, ingress: None }
    }
}

/// A record is in force while its epochs equal those of its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epochs {
    /// The epoch of all records.
    pub(super) all: u32,
    /// The epoch of the destination's slot.
    pub(super) slot: u32,
}

impl Offload {
    /// An offload without records, for a table with this number of entries.
    ///
    /// # Errors
    /// The kernel cannot map the maps.
    pub(crate) fn of(object: &Object, entries: usize, settings: Settings) -> io::Result<Self> {
        Self::over(
            words::of_object(object, map::STATE)?,
            words::rows_of_object(object, map::KEYS)?,
            Offloaded::new(
                words::rows_of_object(object, map::RECORDS)?,
                words::of_object(object, map::MOVES)?,
                entries,
            ),
            settings,
        )
    }

    /// An offload over maps of zeros.
    pub(super) fn over(
        state: Words<STATE_WORDS>,
        keys: Rows<BUCKET>,
        flows: Offloaded,
        settings: Settings,
    ) -> io::Result<Self> {
        let records = settings.records.min(flows.records() as u32);
        state[LAST_BUCKET].store(keys.len() as u64 - 1, Relaxed);
        for (word, seed) in state[SEED..][..2].iter().zip(random_secret()?.0) {
            word.store(seed, Relaxed);
        }
        state[LAYOUT].store(LAYOUT_KNOWN, Relaxed);
        let (rows, active) = tcp::rows();
        rows.iter().zip(&state[TCP..ACTIVE]).for_each(|(row, word)| word.store(*row, Relaxed));
        state[ACTIVE].store(active, Relaxed);
        Ok(Self {
            state,
            keys,
            flows: Arc::new(flows),
            unused: Unused::all(records),
            settings: Settings { records, ..settings },
            refused: AtomicU64::new(0),
            in_force: AtomicUsize::new(0),
        })
    }

    /// Makes this the offload of a table, before it has workers.
    pub fn set_table(&self, table: &Table) {
        table.set_offloaded(self.flows.clone());
    }

    /// For each record and direction, the index of the interface on which packets leave, and their number. For tests.
    pub fn sent(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..self.settings.records).flat_map(move |record| {
            let words = self.flows.record(record);
            [0, 1].map(|part| {
                (
                    (words[word::PARTS + part * word::PART].load(Relaxed) >> 32) as u32,
                    words[word::COUNTS + 2 * part].load(Relaxed),
                )
            })
        })
    }

    /// The number of keys that found no room, so that workers forward their connections.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Sets the time that the program reads in test runs, whose clock is moved by hand.
    pub fn set_clock(&self, now: Millis) {
        self.state[CLOCK].store((now.0 * 1_000_000).max(1), Relaxed);
    }

    /// Whether there is room for one more record for a handshake.
    pub(super) fn admits_half_open(&self) -> bool {
        self.flows.half_open() < (self.settings.records as usize / HALF_OPEN_PART) as u64
    }

    /// How many more records should be free.
    pub(super) fn short_of(&self) -> usize {
        (self.settings.records as usize / SHORT_PART).saturating_sub(self.unused.len())
    }

    /// The records in use.
    pub(super) fn used(&self) -> usize {
        self.settings.records as usize - self.unused.len()
    }

    /// The number of connections whose packets the program forwards, as workers have seen it within the last second.
    pub fn in_force(&self) -> usize {
        // Relaxed: it orders nothing.
        self.in_force.load(Relaxed)
    }

    /// Switches forwarding by the program on or off. Only the control thread calls this.
    pub fn set_on(&self, is_on: bool) {
        self.set_half(0, |_| is_on.into());
    }

    /// Ends all records. Any thread may call this.
    pub(super) fn end_all(&self) {
        self.set_half(1, |epoch| epoch.wrapping_add(1));
    }

    pub(super) fn end_of(&self, destination: DestinationId) {
        self.set_half(half_of(destination), |epoch| epoch.wrapping_add(1));
    }

    /// Whether packets are forwarded by a record for this destination.
    pub(super) fn is_in_force(&self, record: u32, destination: DestinationId) -> bool {
        let epochs = self.flows.record(record)[word::EPOCHS].load(Relaxed);
        self.flows.state(record).has(RecordState::IN_FORCE)
            && Epochs { all: epochs as u32, slot: (epochs >> 32) as u32 } == self.epochs(destination)
    }

    /// The epochs for a destination's records. A decision from data that is read afterwards is at least as new.
    pub(super) fn epochs(&self, destination: DestinationId) -> Epochs {
        Epochs { all: self.half(1), slot: self.half(half_of(destination)) }
    }

    fn half(&self, place: usize) -> u32 {
        (self.state[place / 2].load(Acquire) >> (32 * (place % 2))) as u32
    }

    fn set_half(&self, place: usize, change: impl Fn(u32) -> u32) {
        let shift = 32 * (place % 2);
        // Release: a thread that reads it sees all earlier changes. The update never fails.
        let _ = self.state[place / 2].fetch_update(Release, Relaxed, |word| {
            let after = u64::from(change((word >> shift) as u32)) << shift;
            Some(word & !(0xffff_ffff << shift) | after)
        });
    }
}

/// The index of a destination's epoch, in halves of words.
fn half_of(destination: DestinationId) -> usize {
    2 * SLOT_WORDS + slot(destination) as usize
}

/// The slot of a destination.
pub(super) fn slot(destination: DestinationId) -> u32 {
    destination.0 % SLOTS as u32
}
