//! The index of the table: from a hash to the entries whose key may have this hash.
//!
//! A bucket is a cache line of slots. A slot contains a tag (the 16 bits of the hash that do not choose the bucket), a
//! state and the index of an entry. The hash of a key determines two buckets: the primary, which is filled first, and
//! the alternative. A look-up reads the line of the primary, and that of the alternative only on a miss. It compares
//! all tags of a bucket before it branches. Slots never move and no operation waits. When both buckets are full, the
//! key is refused. The number of buckets is arbitrary: the upper half of the hash times this number chooses one, so the
//! index is no larger than necessary.
//!
//! **Two workers may enter one key at once.** Each fills its entry, puts it into an empty slot as *tentative*, which
//! look-ups ignore, passes a SeqCst fence, and reads all slots of both buckets. One of the two fences comes first, and
//! the worker that passed the second one sees the slot of the other worker: tentative, final, or already emptied. (In
//! terms of the memory model: slot A, fence, read B against slot B, fence, read A cannot both read the old value.) A
//! worker that sees
//!
//! - a final slot with the same key, empties its own slot and uses the existing entry;
//! - a tentative slot with this key at a higher position, empties that slot by compare-and-swap;
//! - a tentative slot with this key at a lower position, empties its own slot and starts over; after [`PATIENCE`] such
//!   attempts it empties the other slot as well, so that no worker waits for one that does not run.
//!
//! Only then does it make its own slot final by compare-and-swap; it starts over if another worker has emptied the
//! slot. Two workers therefore cannot both succeed: the second one would have seen the slot of the first and left it
//! unchanged, and no rule above allows that.

use std::ops::Range;

use crate::shm::atomic::{AtomicU64, Ordering, fence};
use crate::shm::layout::{Bucket, SLOTS};
use crate::shm::{Cells, matching, prefetch};

/// The result of entering a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// The key now belongs to the caller's entry.
    Own,
    /// Another entry has the key.
    Existing(u32),
    /// Both buckets are full.
    Full,
}

/// The kind of a key. Only keys of the same kind compete for uniqueness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The key by which a client's packets find a connection.
    Request,
    /// The key that finds a connection by its replies.
    Reply,
}

/// The entry that a key refers to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) index: u32,
    /// Whether the entry has an extension, which is prefetched with it.
    pub(super) wide: bool,
}

impl Claim {
    fn word(self) -> u64 {
        u64::from(self.index) | if self.wide { WIDE } else { 0 }
    }
}

/// The possible match for a key, judging by the tags of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Candidate<T> {
    /// It may be the key of this entry.
    Found(T),
    /// It is not in this bucket.
    Elsewhere,
    /// Only a look-up can decide.
    Unsure,
}

/// All buckets.
#[derive(Debug)]
pub(super) struct Buckets {
    cells: Cells<Bucket>,
}

/// The slots that may contain a hash, and the upper half of a slot that contains it.
#[derive(Debug, Clone, Copy)]
struct Place {
    buckets: [usize; 2],
    tag: u64,
    /// The tag, with [`REPLY`] for a reply key that only one entry may have.
    contends: u64,
}

/// The slots of both buckets, each read once, not all at the same moment. Positions count through both buckets.
type Slots = [u64; 2 * SLOTS];

impl Buckets {
    /// The number of buckets for `connections` with two keys each: 25 slots for 16 keys, 25 bytes for each connection.
    /// Up to ten million connections, two choices of eight slots never overflowed at this size (simulated: the first
    /// overflow came at 65 to 80 % full).
    pub(super) fn needed(connections: usize) -> usize {
        (connections * 25).div_ceil(8 * SLOTS).max(2)
    }

    /// An index over these cells, at least 2.
    pub(super) fn new(cells: Cells<Bucket>) -> Self {
        Self { cells }
    }

    /// Empties all slots of these buckets. No other thread uses them.
    pub(super) fn clear(&self, buckets: Range<u32>) {
        // Relaxed: no other thread uses them.
        self.slots_of(buckets).for_each(|slot| slot.store(0, Ordering::Relaxed));
    }

    /// The number of buckets.
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// The sum of [`share_of`] over all keys in these buckets. Empties tentative slots. No other thread uses them.
    pub(super) fn sum(&self, buckets: Range<u32>) -> u64 {
        // Relaxed: no other thread uses them.
        self.slots_of(buckets).fold(0, |sum, slot| match slot.load(Ordering::Relaxed) {
            0 => sum,
            word if word & FINAL != 0 => sum.wrapping_add(mixed(word)),
            _ => {
                slot.store(0, Ordering::Relaxed);
                sum
            }
        })
    }

    fn slots_of(&self, buckets: Range<u32>) -> impl Iterator<Item = &AtomicU64> {
        self.cells[buckets.start as usize..buckets.end as usize].iter().flat_map(|bucket| &bucket.slots)
    }

    /// Prefetches the cache line that a look-up reads first.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.cells[self.primary(hash)]);
    }

    /// Prefetches both cache lines that the insertion of a key reads.
    #[inline]
    pub(super) fn prefetch_both(&self, hash: u64) {
        self.place(hash).buckets.iter().for_each(|&bucket| prefetch(&self.cells[bucket]));
    }

    /// Calls `fetch` for each entry that a look-up in the primary bucket will compare, with the entry's index and
    /// whether it has an extension. If there is no such entry, prefetches the alternative bucket.
    // Always inlined: a call and its arguments cost as much as the comparison.
    #[inline(always)]
    pub(super) fn prefetch_entries(&self, hash: u64, mut fetch: impl FnMut(u32, bool)) {
        let primary = self.primary(hash);
        let slots = &self.cells[primary].slots;
        let mut hits = hits(slots, tag(hash));
        if hits == 0 {
            prefetch(&self.cells[self.alternative(hash, primary)]);
        }
        while hits != 0 {
            // Relaxed: the entry is only prefetched; a look-up reads the slot again.
            let word = slots[hits.trailing_zeros() as usize].load(Ordering::Relaxed);
            fetch(word as u32, word & WIDE != 0);
            hits &= hits - 1;
        }
    }

    /// The first entry with the tag of this hash in its primary bucket that is not shadowed: most likely the one that a
    /// look-up finds. If the bucket has no entry with the tag, prefetches the alternative one.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> Candidate<Claim> {
        let primary = self.primary(hash);
        let found = self.first(primary, tag(hash));
        if matches!(found, Candidate::Elsewhere) {
            prefetch(&self.cells[self.alternative(hash, primary)]);
        }
        found
    }

    /// Like [`Self::candidate`], in the alternative bucket.
    #[inline]
    pub(super) fn second_candidate(&self, hash: u64) -> Candidate<Claim> {
        self.first(self.alternative(hash, self.primary(hash)), tag(hash))
    }

    #[inline(always)]
    fn first(&self, bucket: usize, tag: u64) -> Candidate<Claim> {
        let slots = &self.cells[bucket].slots;
        let mut hits = hits(slots, tag);
        if hits == 0 {
            return Candidate::Elsewhere;
        }
        while hits != 0 {
            // Acquire: the entry is read afterwards.
            let word = slots[hits.trailing_zeros() as usize].load(Ordering::Acquire);
            if is_final(word, tag) && word & SHADOWED == 0 {
                return Candidate::Found(Claim { index: word as u32, wide: word & WIDE != 0 });
            }
            hits &= hits - 1;
        }
        Candidate::Unsure
    }

    /// The result of `test` for the first entry with this hash for which `test` returns one. An entry that is shadowed
    /// by a newer one (see [`enter_beside`](Self::enter_beside)) is used only if no other passes the test.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, mut test: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let tag = tag(hash);
        let primary = self.primary(hash);
        let mut shadowed = None;
        let mut bucket = primary;
        loop {
            let slots = &self.cells[bucket].slots;
            let mut hits = hits(slots, tag);
            while hits != 0 {
                // Acquire: the entry is read afterwards. The slot may have changed since the tags were compared.
                let word = slots[hits.trailing_zeros() as usize].load(Ordering::Acquire);
                hits &= hits - 1;
                if is_final(word, tag)
                    && let Some(answer) = test(word as u32)
                {
                    if word & SHADOWED == 0 {
                        return Some(answer);
                    }
                    shadowed = Some(answer);
                }
            }
            if bucket != primary {
                return shadowed;
            }
            bucket = self.alternative(hash, primary);
        }
    }

    /// Enters a key that only one entry may have. `same` returns whether an entry has it. The caller has filled the
    /// entry.
    pub(super) fn enter_alone(
        &self,
        hash: u64,
        claim: Claim,
        key: Key,
        same: impl Fn(u32) -> bool,
    ) -> Entered {
        let mut place = self.place(hash);
        if key == Key::Reply {
            place.contends |= REPLY;
        }
        let own = place.contends | TENTATIVE | claim.word();
        let last = place.contends | FINAL | claim.word();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let slots = self.slots(place);
            if let Some(&word) =
                slots.iter().find(|&&word| place.contends(word) && word & FINAL != 0 && same(word as u32))
            {
                return Entered::Existing(word as u32);
            }
            let Some(position) = vacancy(&slots) else { return Entered::Full };
            // Release: a thread that sees the slot sees the filled entry. If another worker took the slot first, all
            // slots are read again.
            if !self.exchange(place, position, 0, own) {
                continue;
            }
            // The fence that the module's argument orders against the other worker's.
            fence(Ordering::SeqCst);
            match self.settle(place, position, attempts, &same) {
                // A failure means that another worker has emptied the slot.
                Rivals::None if self.exchange(place, position, own, last) => return Entered::Own,
                Rivals::None => {}
                Rivals::First(other) => {
                    self.exchange(place, position, own, 0);
                    return Entered::Existing(other);
                }
                Rivals::Lower => {
                    self.exchange(place, position, own, 0);
                }
            }
        }
    }

    /// Enters a key that several entries may have; `same` returns whether another entry has it. A look-up then finds
    /// this entry, and none of the earlier ones, until this one is unlinked. After that it finds the first of the
    /// earlier ones by position. If two entries are entered at the same time, each may shadow the other. Never returns
    /// [`Entered::Existing`].
    pub(super) fn enter_beside(&self, hash: u64, claim: Claim, same: impl Fn(u32) -> bool) -> Entered {
        let place = self.place(hash);
        loop {
            let slots = self.slots(place);
            let Some(position) = vacancy(&slots) else { return Entered::Full };
            if !self.exchange(place, position, 0, place.tag | FINAL | BESIDE | claim.word()) {
                continue;
            }
            for (position, &word) in slots.iter().enumerate() {
                if place.is_final(word) && word & SHADOWED == 0 && same(word as u32) {
                    // A failure means that another worker has unlinked it in the meantime.
                    self.exchange(place, position, word, word | SHADOWED);
                }
            }
            return Entered::Own;
        }
    }

    /// The entries in both buckets for this hash; none if at least `needed` of the slots are empty.
    pub(super) fn occupants_if_full(&self, hash: u64, needed: usize) -> impl Iterator<Item = u32> + use<> {
        let slots = self.slots(self.place(hash));
        let full = slots.iter().filter(|&&word| word == 0).count() < needed;
        slots.into_iter().filter(move |word| full && word & FINAL != 0).map(|word| word as u32)
    }

    /// Empties the slot that contains this entry's key. Several threads may do so at once: the index is not entered
    /// into a slot again before they all have passed a quiescent point.
    pub(super) fn unlink(&self, hash: u64, index: u32) {
        let place = self.place(hash);
        for position in 0..2 * SLOTS {
            loop {
                // Acquire, like every read of a slot. A final slot changes only by being emptied or shadowed.
                let word = self.slot(place, position).load(Ordering::Acquire);
                // The exchange has Release ordering: earlier accesses to the entry precede it.
                if !place.is_final(word) || word as u32 != index || self.exchange(place, position, word, 0) {
                    break;
                }
            }
        }
    }

    /// Searches for rivals of the tentative slot at `own`, and empties the slots of those that yield to it.
    fn settle(&self, place: Place, own: usize, attempts: u32, same: &impl Fn(u32) -> bool) -> Rivals {
        for position in (0..2 * SLOTS).filter(|&position| position != own) {
            loop {
                let word = self.slot(place, position).load(Ordering::Acquire);
                if !place.contends(word) || !same(word as u32) {
                    break;
                }
                if word & FINAL != 0 {
                    return Rivals::First(word as u32);
                }
                if position < own && attempts <= PATIENCE {
                    return Rivals::Lower;
                }
                // A failure means that the rival has become final or has withdrawn in the meantime: the slot is read
                // again.
                if self.exchange(place, position, word, 0) {
                    break;
                }
            }
        }
        Rivals::None
    }

    fn exchange(&self, place: Place, position: usize, old: u64, new: u64) -> bool {
        // Release: the entry to which `new` refers is filled before. Acquire: a chain of changes to one slot orders
        // them all.
        self.slot(place, position).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn slot(&self, place: Place, position: usize) -> &AtomicU64 {
        &self.cells[place.buckets[position / SLOTS]].slots[position % SLOTS]
    }

    fn slots(&self, place: Place) -> Slots {
        std::array::from_fn(|position| self.slot(place, position).load(Ordering::Acquire))
    }

    #[inline]
    fn primary(&self, hash: u64) -> usize {
        scaled(hash, self.cells.len())
    }

    /// A bucket other than the primary. The upper bits of the product depend on all bits of the hash.
    #[inline]
    fn alternative(&self, hash: u64, primary: usize) -> usize {
        let other = primary + 1 + scaled(hash.wrapping_mul(SPREAD), self.cells.len() - 1);
        if other < self.cells.len() { other } else { other - self.cells.len() }
    }

    #[inline]
    fn place(&self, hash: u64) -> Place {
        let primary = self.primary(hash);
        let tag = tag(hash);
        Place { buckets: [primary, self.alternative(hash, primary)], tag, contends: tag }
    }
}

impl Place {
    fn is_final(self, word: u64) -> bool {
        is_final(word, self.tag)
    }

    /// Whether a slot contains, finally or tentatively, a key that only one entry may have and that may be this key.
    fn contends(self, word: u64) -> bool {
        word & (FINAL | TENTATIVE) != 0 && word & (TAG | REPLY | BESIDE) == self.contends
    }
}

/// The contribution of this entry's key to the sum over the buckets.
pub(super) fn share_of(hash: u64, index: u32) -> u64 {
    mixed(tag(hash) | u64::from(index))
}

/// A number in which all bits depend on the tag and the index in a slot.
fn mixed(word: u64) -> u64 {
    let product = (word & TAG | u64::from(word as u32)).wrapping_mul(SPREAD);
    (product ^ product >> 32).wrapping_mul(SPREAD)
}

/// A bit for each slot that is final and has the tag.
#[inline(always)]
fn hits(slots: &[AtomicU64; SLOTS], tag: u64) -> u32 {
    matching(slots, TAG | FINAL, tag | FINAL)
}

/// The tag of a hash, at its position in a slot: the lowest bits of the hash, which choose no bucket.
#[inline]
fn tag(hash: u64) -> u64 {
    hash << 48
}

#[inline]
fn is_final(word: u64, tag: u64) -> bool {
    word & (TAG | FINAL) == tag | FINAL
}

/// A number below `count`, in the same proportion to `count` as the hash to 2^64.
#[inline]
fn scaled(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// The rivals of a tentative slot.
enum Rivals {
    None,
    /// Another entry has the key already.
    First(u32),
    /// Another worker tries to enter the key, at a lower position.
    Lower,
}

/// An empty position: in the primary bucket while it has room to spare, otherwise in the emptier bucket.
fn vacancy(slots: &Slots) -> Option<usize> {
    let [primary, alternative] =
        [0, SLOTS].map(|first| slots[first..first + SLOTS].iter().filter(|&&word| word == 0).count());
    let first = if primary > SPARE || primary >= alternative { 0 } else { SLOTS };
    slots[first..first + SLOTS].iter().position(|&word| word == 0).map(|position| first + position)
}

/// The bits of a slot that are compared with the tag of a hash.
const TAG: u64 = 0xffff << 48;
/// Look-ups find the slot.
const FINAL: u64 = 1 << 32;
/// The entry of the slot is being inserted.
const TENTATIVE: u64 = 1 << 33;
/// The slot was entered by `enter_beside`. It does not compete for the uniqueness of its key.
const BESIDE: u64 = 1 << 35;
/// The slot contains a reply key that only one entry may have.
const REPLY: u64 = 1 << 36;
/// The entry has an extension.
const WIDE: u64 = 1 << 37;
/// Look-ups find a newer entry with the same key instead of this one.
const SHADOWED: u64 = 1 << 34;
/// The number of empty slots that a primary bucket keeps while the alternative is emptier.
const SPARE: usize = 4;
/// The number of times that a worker withdraws in favour of a rival at a lower position.
const PATIENCE: u32 = 3;
/// 2^64 divided by the golden ratio, odd.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::shm::{Mapping, Memory};
    use std::net::Ipv4Addr;
    use xvs_proto::{Endpoint, FlowKey, HashSecret, Protocol};

    fn buckets(len: usize) -> Buckets {
        Buckets::new(Mapping::create(len * 64, Memory::OnDemand).unwrap().cells(0, len))
    }

    fn claim(index: u32) -> Claim {
        Claim { index, wide: false }
    }

    fn spread(number: u64) -> u64 {
        let x = (number + 1).wrapping_mul(SPREAD);
        (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(17)
    }

    /// Pins the layout of this version, as the test in `entry.rs` does.
    #[test]
    fn the_bits_of_a_slot_are_those_of_this_layout_version() {
        let bits = [FINAL, TENTATIVE, SHADOWED, BESIDE, REPLY, WIDE].map(u64::trailing_zeros);
        let (version, len) = (crate::shm::layout::VERSION, size_of::<Bucket>());
        assert_eq!((version, len, TAG, bits), (7, 64, 0xffff << 48, [32, 33, 34, 35, 36, 37]));
    }

    #[test]
    fn every_requested_connection_has_room_for_two_keys() {
        let connections = 1 << 17;
        let buckets = buckets(Buckets::needed(connections));
        for key in 0..2 * connections as u64 {
            assert_eq!(
                buckets.enter_alone(spread(key), claim(key as u32), Key::Request, |_| false),
                Entered::Own
            );
        }
        for key in 0..2 * connections as u64 {
            let found = buckets.find(spread(key), |index| (index == key as u32).then_some(index));
            assert_eq!(found, Some(key as u32));
        }
    }

    #[test]
    fn most_keys_are_in_their_primary_bucket_if_each_connection_has_one_key() {
        let connections = 1 << 15;
        let buckets = buckets(Buckets::needed(connections));
        for key in 0..connections as u64 {
            assert_eq!(
                buckets.enter_alone(spread(key), claim(key as u32), Key::Request, |_| false),
                Entered::Own
            );
        }
        let primary = (0..connections as u64).filter(|&key| {
            let slots = buckets.slots(buckets.place(spread(key)));
            slots[..SLOTS].iter().any(|&word| word as u32 == key as u32 && word != 0)
        });
        assert!(primary.count() * 100 > connections * 92);
    }

    /// Balls thrown at random into bins with `mean` of them each: the variance over the bins is the mean (Poisson), and
    /// a bin with more than `mean + 12 * sqrt(mean)` does not occur.
    #[test]
    fn chosen_addresses_and_ports_fill_the_buckets_as_random_ones_do() {
        let secret = HashSecret([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0]);
        let (keys, mean) = (1u32 << 18, 4.0);
        let buckets = buckets(keys as usize / 4);
        // The sequences that a client can choose without knowing the secret.
        type Numbered = fn(u32) -> (u32, u32);
        let chosen: [(&str, Numbered); 5] = [
            ("every port of neighbours", |n| (0xc000_0200 + (n >> 16), n & 0xffff)),
            ("one port of sequential addresses", |n| (0x0a00_0000 + n, 4000)),
            ("addresses that differ in their upper bits only", |n| (n << 14, n >> 2 & 0xf000)),
            ("port and address that cancel out", |n| (0x0a00_0000 ^ n, n & 0xffff)),
            ("even steps", |n| (0x0a00_0000 + 64 * n, 1024 + (n & 0xff) * 256)),
        ];
        for (what, numbered) in chosen {
            let mut fill = vec![0u32; buckets.cells.len()];
            for (addr, port) in (0..keys).map(numbered) {
                let flow = FlowKey {
                    protocol: Protocol::TCP,
                    source: Endpoint::new(Ipv4Addr::from(addr), port as u16),
                    dest: Endpoint::new([198, 51, 100, 1], 80),
                };
                fill[buckets.place(flow.hash(&secret)).buckets[0]] += 1;
            }
            let variance =
                fill.iter().map(|&n| (f64::from(n) - mean).powi(2)).sum::<f64>() / fill.len() as f64;
            let fullest = fill.iter().max().copied().unwrap_or_default();
            println!("{what}: mean {mean}, variance {variance:.2}, fullest bucket {fullest}");
            assert!((0.9..1.1).contains(&(variance / mean)), "{what}: variance {variance}");
            assert!(f64::from(fullest) < mean + 12.0 * mean.sqrt(), "{what}: {fullest} in one bucket");
        }
    }

    #[test]
    fn a_key_whose_buckets_are_full_is_refused_until_another_is_unlinked() {
        let buckets = buckets(64);
        for index in 0..2 * SLOTS as u32 {
            assert_eq!(buckets.enter_alone(7, claim(index), Key::Request, |_| false), Entered::Own);
        }
        assert_eq!(buckets.enter_alone(7, claim(99), Key::Request, |_| false), Entered::Full);
        assert_eq!(buckets.enter_beside(7, claim(99), |_| false), Entered::Full);
        buckets.unlink(7, 3);
        assert_eq!(buckets.enter_alone(7, claim(99), Key::Request, |_| false), Entered::Own);
    }

    #[test]
    fn a_worker_that_stopped_during_an_insertion_blocks_no_other() {
        let buckets = buckets(2);
        let place = buckets.place(7);
        for stalled in [0, SLOTS + 3] {
            assert!(buckets.exchange(place, stalled, 0, place.tag | TENTATIVE | 1));
            assert_eq!(buckets.find(7, Some), None, "a tentative entry is not found");
            assert_eq!(buckets.enter_alone(7, claim(2), Key::Request, |_| true), Entered::Own);
            assert_eq!(buckets.slots(place).iter().filter(|&&word| word != 0).count(), 1);
            buckets.unlink(7, 2);
        }
    }

    #[test]
    fn the_newest_of_equal_keys_is_found_and_after_it_an_older_one() {
        let buckets = buckets(2);
        assert_eq!(buckets.enter_beside(7, claim(1), |_| true), Entered::Own);
        assert_eq!(buckets.enter_beside(7, claim(2), |_| true), Entered::Own);
        assert_eq!(buckets.find(7, Some), Some(2));
        buckets.unlink(7, 2);
        assert_eq!(buckets.find(7, Some), Some(1));
        assert_eq!(buckets.enter_beside(7, claim(3), |_| true), Entered::Own);
        buckets.unlink(7, 1);
        assert_eq!(buckets.find(7, Some), Some(3));
    }
}
