//! The memory of `lblc` and `lblcr`: the real servers that serve each destination address of packets.
//!
//! The control thread creates the table when a service gets its scheduler, passes it to the next scheduler when
//! destinations change, and removes old entries. Workers read and write it when they choose. It identifies a real
//! server by its endpoint, so a server that is removed and added again is recognised. The size is bounded: 1,024
//! buckets of 32 entries. In a full bucket the least recently used entry is replaced. Unlike IPVS it hashes with a
//! secret: clients choose the addresses, and with addresses in one bucket they could evict those of others. No thread
//! waits: each entry has a version that is odd while a writer changes it. A reader that meets an odd version treats the
//! entry as absent; a writer that meets an odd version leaves the entry to the other writer.
//!
//! Cost: a look-up reads the 32 keys of a bucket and one entry. The schedulers decide whether an entry is still valid.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// The destinations that serve one address, by the identities of their endpoints; the most recently added one comes
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// When the entry was last looked up.
    pub(crate) used_millis: u64,
    /// When a destination was last added or removed.
    pub(crate) changed_millis: u64,
    /// The destinations, followed by zeroes.
    pub(crate) members: [u64; MEMBERS_MAX],
}

impl Entry {
    /// An entry without destinations.
    pub(crate) fn new(now_millis: u64) -> Self {
        Self { used_millis: now_millis, ..Self::default() }
    }

    /// The destinations.
    pub(crate) fn members(&self) -> &[u64] {
        let count = self.members.iter().position(|member| *member == 0).unwrap_or(MEMBERS_MAX);
        &self.members[..count]
    }

    /// Adds a destination before the others, unless the entry contains it already. A full entry loses its last one.
    pub(crate) fn add(&mut self, member: u64, now_millis: u64) {
        if !self.members().contains(&member) {
            self.members.rotate_right(1);
            self.members[0] = member;
            self.changed_millis = now_millis;
        }
    }

    /// Removes the destination at this index.
    pub(crate) fn remove(&mut self, place: usize, now_millis: u64) {
        self.members[place..].rotate_left(1);
        self.members[MEMBERS_MAX - 1] = 0;
        self.changed_millis = now_millis;
    }
}

/// The table of entries.
pub struct Memory {
    hasher: RandomState,
    /// Entries that were not used for this time are removed.
    expiration_seconds: Arc<AtomicU32>,
    /// The key of each entry's address, by bucket and position in it; 0 if there is no entry. Only the thread that made
    /// the version of the slot odd writes the key.
    keys: Box<[AtomicU64]>,
    slots: Box<[Slot]>,
    /// Only the control thread takes this lock.
    tending: Mutex<Tending>,
}

/// A shared entry. Its fields are written only while `version` is odd, by the thread that made it odd.
#[derive(Default)]
struct Slot {
    version: AtomicU64,
    words: [AtomicU64; 2 + MEMBERS_MAX],
}

/// The progress of the removal of old entries.
#[derive(Default)]
struct Tending {
    due_millis: Option<u64>,
    rounds: u64,
    /// The bucket where the next round begins.
    next_bucket: usize,
}

impl Memory {
    /// An empty table.
    pub(crate) fn new(expiration_seconds: Arc<AtomicU32>) -> Arc<Self> {
        Arc::new(Self {
            hasher: RandomState::new(),
            expiration_seconds,
            keys: (0..BUCKETS * BUCKET_ENTRIES).map(|_| AtomicU64::new(0)).collect(),
            slots: (0..BUCKETS * BUCKET_ENTRIES).map(|_| Slot::default()).collect(),
            tending: Mutex::default(),
        })
    }

    /// After how long unused entries are removed.
    pub(crate) fn expiration_millis(&self) -> u64 {
        u64::from(self.expiration_seconds.load(Ordering::Relaxed)) * 1000
    }

    /// The entry of an address.
    pub(crate) fn find(&self, addr: IpAddr) -> Option<Entry> {
        let key = self.key_of(addr);
        self.places(key).filter(|place| self.key(*place) == key).find_map(|place| {
            let slot = &self.slots[place];
            // Acquire: the reads below are at least as new as this version.
            let version = slot.version.load(Ordering::Acquire);
            let entry = slot.read();
            let same_key = self.key(place) == key;
            // If the reads above saw anything from a later writer, its version is seen below: the writer stored the odd
            // version before it, with a Release fence between.
            fence(Ordering::Acquire);
            let stable = version.is_multiple_of(2) && slot.version.load(Ordering::Relaxed) == version;
            (stable && same_key).then_some(entry)
        })
    }

    /// Stores an entry for an address, unless another thread is writing to the same slot.
    pub(crate) fn enter(&self, addr: IpAddr, entry: &Entry) {
        let key = self.key_of(addr);
        let place = self
            .places(key)
            .find(|place| self.key(*place) == key)
            .or_else(|| self.places(key).find(|place| self.key(*place) == 0))
            .or_else(|| self.places(key).min_by_key(|place| self.slots[*place].used_millis()));
        if let Some(place) = place {
            self.write(place, self.key(place), key, entry);
        }
    }

    /// Removes old entries as IPVS does, when it is time. The control thread calls this every few seconds.
    ///
    /// Each minute, if there are more than 16,384 entries, it removes some of those that were not used for six minutes.
    /// Each half hour it removes all that were not used for `lblc_expiration` or `lblcr_expiration`. Source:
    /// ipvs-behaviour, section 5.2.
    pub fn tend(&self, now_millis: u64) {
        let mut tending = self.tending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = *tending.due_millis.get_or_insert(now_millis + ROUND_MILLIS);
        while due <= now_millis {
            tending.rounds += 1;
            if tending.rounds.is_multiple_of(FULL_ROUND) {
                self.forget(0, due, self.expiration_millis(), usize::MAX);
            } else {
                let excess = self.entries().saturating_sub(ENTRIES);
                tending.next_bucket =
                    self.forget(tending.next_bucket, due, STALE_MILLIS, (excess * 4 / 3).min(ENTRIES / 2));
            }
            due += ROUND_MILLIS;
        }
        tending.due_millis = Some(due);
    }

    /// The number of entries.
    pub(crate) fn entries(&self) -> usize {
        self.keys.iter().filter(|key| key.load(Ordering::Relaxed) != 0).count()
    }

    /// Removes up to `goal` entries that were not used for this time, bucket by bucket. Returns the bucket at which it
    /// stopped.
    fn forget(&self, next_bucket: usize, now_millis: u64, unused_millis: u64, mut goal: usize) -> usize {
        for step in 0..BUCKETS {
            let bucket = (next_bucket + step) % BUCKETS;
            if goal == 0 {
                return bucket;
            }
            for place in bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES {
                let key = self.key(place);
                let stale = self.slots[place].used_millis() + unused_millis <= now_millis;
                if key != 0 && stale {
                    self.write(place, key, 0, &Entry::default());
                    goal = goal.saturating_sub(1);
                }
            }
        }
        next_bucket
    }

    /// Writes an entry to a slot whose key was `before`.
    fn write(&self, place: usize, before: u64, key: u64, entry: &Entry) {
        let slot = &self.slots[place];
        let version = slot.version.load(Ordering::Relaxed);
        let odd = version + 1;
        // Acquire: the key below is the one that the previous writer left.
        let held = version.is_multiple_of(2)
            && slot.version.compare_exchange(version, odd, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !held {
            return;
        }
        // A reader that sees any of the following writes sees the odd version, or a later one.
        fence(Ordering::Release);
        if self.key(place) == before {
            self.keys[place].store(key, Ordering::Relaxed);
            slot.write(entry);
        }
        // Release: a thread that sees the even version sees the entry.
        slot.version.store(odd + 1, Ordering::Release);
    }

    fn key(&self, place: usize) -> u64 {
        self.keys[place].load(Ordering::Relaxed)
    }

    /// A keyed hash that selects an address's bucket and identifies the address in it; never 0.
    fn key_of(&self, addr: IpAddr) -> u64 {
        self.hasher.hash_one(addr).max(1)
    }

    /// The slots that may contain the entry with this key.
    fn places(&self, key: u64) -> std::ops::Range<usize> {
        let bucket = key as usize % BUCKETS;
        bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES
    }
}

impl Slot {
    fn used_millis(&self) -> u64 {
        self.words[0].load(Ordering::Relaxed)
    }

    fn read(&self) -> Entry {
        let [used_millis, changed_millis, members @ ..] =
            std::array::from_fn::<_, { 2 + MEMBERS_MAX }, _>(|word| self.words[word].load(Ordering::Relaxed));
        Entry { used_millis, changed_millis, members }
    }

    fn write(&self, entry: &Entry) {
        let values = [entry.used_millis, entry.changed_millis].into_iter().chain(entry.members);
        self.words.iter().zip(values).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    }
}

/// Settings that may change while a scheduler is in use. The control thread writes them.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// `lblc_expiration`, in seconds.
    pub lblc_expiration_seconds: Arc<AtomicU32>,
    /// `lblcr_expiration`, in seconds.
    pub lblcr_expiration_seconds: Arc<AtomicU32>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            lblc_expiration_seconds: Arc::new(AtomicU32::new(DAY_SECONDS)),
            lblcr_expiration_seconds: Arc::new(AtomicU32::new(DAY_SECONDS)),
        }
    }
}

/// Maximum number of destinations in an entry.
pub(crate) const MEMBERS_MAX: usize = 16;
const BUCKETS: usize = 1024;
const BUCKET_ENTRIES: usize = 32;
/// Above this number, some entries are removed early.
const ENTRIES: usize = 16_384;
const ROUND_MILLIS: u64 = 60_000;
/// One round out of this number checks all entries.
const FULL_ROUND: u64 = 30;
const STALE_MILLIS: u64 = 360_000;
const DAY_SECONDS: u32 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn addr(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0900_0000 + number).into()
    }

    fn memory() -> Arc<Memory> {
        Memory::new(Tuning::default().lblc_expiration_seconds)
    }

    fn entry(now_millis: u64, members: &[u64]) -> Entry {
        let mut entry = Entry::new(now_millis);
        members.iter().rev().for_each(|member| entry.add(*member, now_millis));
        entry
    }

    #[test]
    fn members_come_last_first_once_each_and_the_oldest_of_too_many_goes() {
        let mut entry = Entry::new(0);
        for member in [1, 2, 1, 3] {
            entry.add(member, member);
        }
        assert_eq!((entry.members(), entry.changed_millis), (&[3, 2, 1][..], 3));
        entry.remove(1, 9);
        assert_eq!((entry.members(), entry.changed_millis), (&[3, 1][..], 9));
        (10..10 + MEMBERS_MAX as u64).for_each(|member| entry.add(member, 9));
        assert_eq!((entry.members().len(), entry.members()[0], entry.members()[15]), (16, 25, 10));
    }

    #[test]
    fn an_address_is_found_as_it_was_entered_last_and_others_are_not() {
        let memory = memory();
        memory.enter(addr(1), &entry(1, &[7]));
        memory.enter(addr(1), &entry(2, &[8, 7]));
        assert_eq!(memory.find(addr(1)), Some(entry(2, &[8, 7])));
        assert_eq!(memory.find(addr(2)), None);
        assert_eq!(memory.entries(), 1);
    }

    #[test]
    fn in_a_full_bucket_the_least_recently_used_entry_is_replaced() {
        let memory = memory();
        let crowd = crowd(&memory);
        for (number, addr) in crowd.iter().enumerate() {
            memory.enter(*addr, &entry(if number == 5 { 0 } else { 1 + number as u64 }, &[1]));
        }
        assert_eq!(memory.entries(), BUCKET_ENTRIES);
        let gone: Vec<_> = crowd.iter().filter(|addr| memory.find(**addr).is_none()).collect();
        assert_eq!(gone, [&crowd[5]]);
    }

    /// More addresses in one bucket than the bucket can contain.
    fn crowd(memory: &Memory) -> Vec<IpAddr> {
        let is_first = |addr: &IpAddr| memory.places(memory.key_of(*addr)).start == 0;
        (0..).map(addr).filter(is_first).take(BUCKET_ENTRIES + 1).collect()
    }

    #[test]
    fn addresses_of_one_bucket_are_in_several_buckets_of_another_memory() {
        let crowd = crowd(&memory());
        let other = memory();
        crowd.iter().for_each(|addr| other.enter(*addr, &entry(1, &[1])));
        assert!(crowd.iter().all(|addr| other.find(*addr).is_some()), "none was evicted");
    }

    #[test]
    fn a_flood_of_addresses_evicts_none_that_is_in_use_and_takes_no_more_memory() {
        let memory = memory();
        let used = addr(0);
        for number in 1..=200_000 {
            memory.enter(addr(number), &entry(number.into(), &[1]));
            if number % 1000 == 0 {
                assert!(memory.find(used).is_some() || number == 1000, "after {number} others");
                memory.enter(used, &entry(number.into(), &[7]));
            }
        }
        assert!(memory.entries() <= BUCKETS * BUCKET_ENTRIES);
    }

    #[test]
    fn every_half_hour_entries_unused_for_the_expiration_are_removed() {
        let memory = memory();
        memory.expiration_seconds.store(1000, Ordering::Relaxed);
        memory.tend(0);
        memory.enter(addr(1), &entry(800_000, &[1]));
        memory.enter(addr(2), &entry(800_001, &[1]));
        memory.tend(1_799_999);
        assert_eq!(memory.entries(), 2);
        memory.tend(1_800_000);
        assert_eq!((memory.find(addr(1)), memory.entries()), (None, 1));
        memory.tend(3_600_000);
        assert_eq!(memory.entries(), 0);
    }

    #[test]
    fn each_minute_a_third_more_than_the_excess_is_removed_if_unused_for_six() {
        let memory = memory();
        memory.tend(0);
        (0..18_000).for_each(|number| memory.enter(addr(number), &entry(60_000, &[1])));
        let all = memory.entries();
        memory.tend(419_999);
        assert_eq!(memory.entries(), all);
        memory.tend(420_000);
        let gone = all - memory.entries();
        let goal = (all - ENTRIES) * 4 / 3;
        assert!((goal..goal + BUCKET_ENTRIES).contains(&gone), "{gone} instead of {goal}");
        memory.tend(480_000);
        assert_eq!(memory.entries(), all - gone, "no more than there may be");
    }

    #[test]
    fn a_reader_sees_a_whole_entry_or_none_while_others_write() {
        let memory = memory();
        std::thread::scope(|scope| {
            for writer in 1..=2 {
                let memory = &memory;
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let member = round * 2 + writer;
                        memory.enter(addr(1), &entry(member, &[member, member + 1]));
                    }
                });
            }
            for _ in 0..20_000 {
                if let Some(Entry { used_millis, changed_millis, members }) = memory.find(addr(1)) {
                    assert_eq!(
                        (used_millis, members[0], members[1]),
                        (changed_millis, used_millis, used_millis + 1)
                    );
                }
            }
        });
    }
}
