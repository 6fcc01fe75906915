//! The Call-IDs of templates for services with `--pe sip`. They are stored beside the connection table, whose entries
//! have no room for them.
//!
//! A worker that creates a template writes a slot before any look-up can find the template. Look-ups by endpoints,
//! which several templates may share, read the slot. Each worker takes slots from its own range in turn. A slot is free
//! when its template has been removed. If all inspected slots are in use, a template is evicted. Slots therefore need
//! not be released, no worker waits, and nothing is allocated after the start. A worker that still uses a removed or
//! detached template may read another template's Call-ID here; it then also sees that the template is no longer valid.
//! Cost: at most five cache lines for a comparison; at most 64 inspected slots for a new template. `eviction.rs`
//! chooses the evicted template.

use std::array;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use xvs_proto::sip::CALL_ID_MAX;

use super::connection::Connection;
use super::handle::TableWorker;
use super::id::ConnId;

/// All slots.
#[derive(Default)]
pub struct CallIds {
    slots: Box<[Slot]>,
    /// The slot that each worker inspects next. That worker is the only writer.
    next: Box<[AtomicUsize]>,
    /// SipHash, because clients choose Call-IDs.
    hasher: RandomState,
}

/// One Call-ID.
#[derive(Default)]
struct Slot {
    /// The template's generation in the upper half, its index plus one in the lower half; 0 if there is no template.
    owner: AtomicU64,
    /// The length in the first byte, then the bytes.
    words: [AtomicU64; WORDS],
}

impl CallIds {
    /// Creates this many slots, in equal ranges for the workers.
    pub fn new(slots: usize, workers: usize) -> Self {
        let each = slots / workers.max(1);
        Self {
            slots: (0..each * workers).map(|_| Slot::default()).collect(),
            next: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    /// An empty set of few slots with the same hash function.
    pub(crate) fn separate_copy(&self) -> Self {
        Self { hasher: self.hasher.clone(), ..Self::new(LOOKED_AT, 1) }
    }

    /// Whether it has no slots.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// A hash of a Call-ID, keyed with this value's secret.
    pub fn hash(&self, call_id: &[u8]) -> u64 {
        self.hasher.hash_one(call_id)
    }

    /// Writes a Call-ID into one of this worker's slots. Returns the mark that the template must carry. If all
    /// inspected slots are in use, calls `evict` for their templates in turn until one has been evicted; `None` if it
    /// evicts none.
    pub(crate) fn write(
        &self,
        worker: usize,
        call_id: &[u8],
        table: &mut TableWorker,
        mut evict: impl FnMut(&mut TableWorker, ConnId) -> bool,
    ) -> Option<u32> {
        let each = self.slots.len().checked_div(self.next.len()).filter(|&each| each > 0)?;
        let next = self.next.get(worker)?;
        let first = next.load(Relaxed);
        let mut looked_at = (0..LOOKED_AT.min(each)).map(|ahead| worker * each + (first + ahead) % each);
        let number =
            looked_at.clone().find(|&number| self.slots[number].owner(table).is_none()).or_else(|| {
                looked_at.find(|&number| self.slots[number].owner(table).is_some_and(|id| evict(table, id)))
            });
        next.store(number.map_or(first + LOOKED_AT, |number| number + 1) % each, Relaxed);
        let slot = &self.slots[number?];
        // Release: a thread that reads any of the words sees that the previous template was detached, if it was. The
        // template's insertion ensures that a thread which finds the new template sees all words.
        slot.words.iter().zip(packed(call_id)).for_each(|(word, value)| word.store(value, Release));
        slot.owner.store(0, Relaxed);
        number.map(|number| number as u32 + 1)
    }

    /// Assigns the slot to the template, which has now been inserted. Until then the slot counts as free.
    pub(crate) fn settle(&self, mark: u32, template: &Connection<'_>) {
        if let Some(slot) = self.slot(mark) {
            slot.owner.store(owner(template), Relaxed);
        }
    }

    /// Whether a template with this mark has this Call-ID.
    pub(crate) fn is(&self, mark: u32, call_id: &[u8]) -> bool {
        self.slot(mark).is_some_and(|slot| {
            slot.words
                .iter()
                .take(call_id.len() / 8 + 1)
                .zip(packed(call_id))
                // Acquire: pairs with the Release of `write`.
                .fold(true, |same, (word, value)| same & (word.load(Acquire) == value))
        })
    }

    /// The Call-ID of a template, for listings. `None` if the slot now belongs to another template.
    pub fn read(&self, template: &Connection<'_>) -> Option<Vec<u8>> {
        let slot = self.slot(template.mark()).filter(|slot| slot.owner.load(Relaxed) == owner(template))?;
        let bytes: Vec<u8> = slot.words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
        let (length, rest) = bytes.split_first()?;
        Some(rest[..usize::from(*length)].to_vec())
    }

    fn slot(&self, mark: u32) -> Option<&Slot> {
        self.slots.get((mark as usize).checked_sub(1)?)
    }
}

impl Slot {
    /// The template for which the slot was written, if it is still in the table.
    fn owner(&self, table: &TableWorker) -> Option<ConnId> {
        let owner = self.owner.load(Relaxed);
        table
            .recall(ConnId((owner as u32).checked_sub(1)?), (owner >> 32) as u32)
            .map(|template| template.id())
    }
}

/// The value of [`Slot::owner`] for a template.
fn owner(template: &Connection<'_>) -> u64 {
    u64::from(template.generation()) << 32 | (u64::from(template.id().index()) + 1)
}

/// A Call-ID in the format of a slot.
fn packed(call_id: &[u8]) -> [u64; WORDS] {
    debug_assert!(call_id.len() <= CALL_ID_MAX);
    let mut bytes = [0; 8 * WORDS];
    bytes[0] = call_id.len() as u8;
    bytes[1..=call_id.len()].copy_from_slice(call_id);
    array::from_fn(|word| u64::from_le_bytes(bytes.as_chunks().0[word]))
}

/// The number of 64-bit words in a slot: for the length and the longest Call-ID.
const WORDS: usize = (CALL_ID_MAX + 1) / 8;
/// The number of slots that are inspected for a new template.
const LOOKED_AT: usize = 64;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use xvs_proto::Endpoint;

    use super::*;
    use crate::conn::flags::Flags;
    use crate::conn::insertion::NewConnection;
    use crate::conn::table::{Table, TableConfig};
    use crate::shm::Memory;

    fn handle() -> TableWorker {
        let config = TableConfig { capacity: 1000, workers: 1, memory: Memory::OnDemand };
        Table::create(config).unwrap().handle(0).unwrap()
    }

    /// Creates the template of a SIP call, if there is room for its Call-ID.
    fn template(table: &mut TableWorker, call_ids: &CallIds, call_id: &[u8], port: u16) -> Option<ConnId> {
        let mark = call_ids.write(0, call_id, table, |_, _| false)?;
        let example = NewConnection::example();
        let client = Endpoint { port, ..example.client };
        let new = NewConnection { client, flags: Flags::TEMPLATE, mark, ..example };
        let id = table.insert_new(&new);
        call_ids.settle(mark, &table.connection(id));
        Some(id)
    }

    #[test]
    fn call_ids_of_every_length_are_distinguished_and_read_back() {
        let (mut table, call_ids) = (handle(), CallIds::new(255, 1));
        for length in 1..=255_u16 {
            let call_id: Vec<u8> = (0..length).map(|at| (at ^ length) as u8).collect();
            let id = template(&mut table, &call_ids, &call_id, length).unwrap();
            let mark = table.connection(id).mark();
            assert!(call_ids.is(mark, &call_id) && !call_ids.is(mark, &call_id[1..]));
            assert!(!call_ids.is(mark, &[&call_id[..usize::from(length) - 1], b"!"].concat()));
            assert_eq!(call_ids.read(&table.connection(id)), Some(call_id));
        }
    }

    #[test]
    fn when_all_slots_are_in_use_a_call_id_has_no_room_until_a_template_is_removed() {
        let (mut table, call_ids) = (handle(), CallIds::new(10, 1));
        let ids: Vec<_> = (0..10)
            .map(|call| template(&mut table, &call_ids, &[b'a' + call], call.into()).unwrap())
            .collect();
        assert_eq!(template(&mut table, &call_ids, b"late", 99), None);
        table.remove(ids[7]);
        let late = template(&mut table, &call_ids, b"late", 99).unwrap();
        assert_eq!(call_ids.read(&table.connection(late)), Some(b"late".to_vec()));
        assert_eq!(template(&mut table, &call_ids, b"later", 98), None);
    }

    #[test]
    fn when_all_slots_are_in_use_an_evicted_template_loses_its_slot_and_call_id() {
        let (mut table, call_ids) = (handle(), CallIds::new(10, 1));
        let ids: Vec<_> = (0..10)
            .map(|call| template(&mut table, &call_ids, &[b'a' + call], call.into()).unwrap())
            .collect();
        let mark = call_ids.write(0, b"late", &mut table, |_, id| id == ids[7]).unwrap();
        assert_eq!(mark, table.connection(ids[7]).mark());
        assert_eq!(call_ids.read(&table.connection(ids[7])), None);
        assert_eq!(call_ids.read(&table.connection(ids[6])), Some(b"g".to_vec()));
    }

    #[test]
    fn call_ids_are_hashed_by_a_secret_that_differs_in_each_run_and_not_in_a_copy() {
        let (one, other) = (CallIds::new(10, 1), CallIds::new(10, 1));
        assert_ne!(one.hash(b"a84b4c76e66710"), other.hash(b"a84b4c76e66710"));
        assert_eq!(one.hash(b"a84b4c76e66710"), one.separate_copy().hash(b"a84b4c76e66710"));
    }

    #[test]
    fn without_slots_no_call_id_is_stored() {
        let call_ids = CallIds::default();
        assert_eq!(call_ids.write(0, b"a", &mut handle(), |_, _| true), None);
        assert!(!call_ids.is(0, b"a") && !call_ids.is(1, b"a"));
    }
}
