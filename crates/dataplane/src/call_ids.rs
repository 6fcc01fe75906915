//! The Call-IDs that templates of services with `--pe sip` stand for, beside the connection table, whose entries have
//! no room for them.
//!
//! A slot is written by the worker that makes a template, before anybody can find it, and read by whoever finds the
//! template by the endpoints that it shares with others. Each worker takes slots from a part of its own, going round:
//! one is free when the template that it was written for is there no more. So nobody gives a slot back, nobody waits,
//! and nothing is allocated after the start. Who still holds a template that has been removed may read another's
//! Call-ID here: then it is not the one that was looked for, which is right. Cost: of a comparison, five cache lines
//! at most; of a new template, a look at up to 64 slots. Not here: how a message is read (`xvs-proto`, `sip.rs`).

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use hashbrown::DefaultHashBuilder;
use xvs_proto::sip::CALL_ID_MAX;

use crate::conn::{ConnId, Connection, TableWorker};

/// All slots.
#[derive(Default)]
pub struct CallIds {
    slots: Box<[Slot]>,
    /// Where each worker looks next; it is the one writer.
    hands: Box<[AtomicUsize]>,
    hasher: DefaultHashBuilder,
}

/// One Call-ID.
#[derive(Default)]
struct Slot {
    /// The template's generation in the upper half, its index plus one in the lower; 0: never used.
    owner: AtomicU64,
    /// Its length in the first byte, then its bytes.
    words: [AtomicU64; WORDS],
}

impl CallIds {
    /// Room for this many, shared out among the workers.
    pub fn new(slots: usize, workers: usize) -> Self {
        let each = slots / workers.max(1);
        Self {
            slots: (0..each * workers).map(|_| Slot::default()).collect(),
            hands: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Whether there is room for none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// A hash of a Call-ID, by a secret of this run.
    pub fn hash(&self, call_id: &[u8]) -> u64 {
        self.hasher.hash_one(call_id)
    }

    /// Writes a Call-ID into a free slot of this worker's: what its template is to carry as its mark. `None` if
    /// all that are looked at are in use.
    pub(crate) fn write(&self, worker: usize, call_id: &[u8], table: &TableWorker) -> Option<u32> {
        let each = self.slots.len().checked_div(self.hands.len())?;
        let hand = self.hands.get(worker)?;
        for _ in 0..LOOKED_AT.min(each) {
            let at = hand.load(Relaxed);
            hand.store((at + 1) % each, Relaxed);
            let number = worker * each + at;
            let slot = &self.slots[number];
            if slot.is_free(table) {
                // Relaxed, all of these: the insertion of the template releases them to who finds it.
                slot.words.iter().zip(packed(call_id)).for_each(|(word, value)| word.store(value, Relaxed));
                slot.owner.store(0, Relaxed);
                return Some(number as u32 + 1);
            }
        }
        None
    }

    /// The template that a slot was written for has been made; until then the slot is free.
    pub(crate) fn settle(&self, mark: u32, template: &Connection<'_>) {
        if let Some(slot) = self.slot(mark) {
            let owner = u64::from(template.generation()) << 32 | (u64::from(template.id().index()) + 1);
            slot.owner.store(owner, Relaxed);
        }
    }

    /// Whether a template that carries this mark stands for this Call-ID.
    pub(crate) fn is(&self, mark: u32, call_id: &[u8]) -> bool {
        let same = |slot: &Slot| {
            let words = slot.words.iter().take(call_id.len() / 8 + 1).zip(packed(call_id));
            words.fold(true, |same, (word, value)| same & (word.load(Relaxed) == value))
        };
        self.slot(mark).is_some_and(same)
    }

    /// The Call-ID of a template that carries this mark; for listings.
    pub fn read(&self, mark: u32) -> Option<Vec<u8>> {
        let slot = self.slot(mark)?;
        let bytes: Vec<u8> = slot.words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
        let (length, rest) = bytes.split_first()?;
        Some(rest[..usize::from(*length)].to_vec())
    }

    fn slot(&self, mark: u32) -> Option<&Slot> {
        self.slots.get((mark as usize).checked_sub(1)?)
    }
}

impl Slot {
    fn is_free(&self, table: &TableWorker) -> bool {
        let owner = self.owner.load(Relaxed);
        match (owner as u32).checked_sub(1) {
            Some(index) => table.recall(ConnId(index), (owner >> 32) as u32).is_none(),
            None => true,
        }
    }
}

/// A Call-ID as a slot holds it.
fn packed(call_id: &[u8]) -> [u64; WORDS] {
    debug_assert!(call_id.len() <= CALL_ID_MAX);
    let mut bytes = [0; 8 * WORDS];
    bytes[0] = call_id.len() as u8;
    bytes[1..=call_id.len()].copy_from_slice(call_id);
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    words
}

/// Words of a slot: the length and the longest Call-ID.
const WORDS: usize = (CALL_ID_MAX + 1) / 8;
/// How many slots are looked at for a new template.
const LOOKED_AT: usize = 64;
