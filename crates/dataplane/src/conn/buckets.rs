//! The index: from a hash to the entries that may have it.
//!
//! A bucket is a cache line of slots; a slot holds a tag (16 bits of the hash that do not choose the bucket), a
//! state and an entry's index. A key may stand in two buckets, which its hash determines: its primary, which is filled
//! first, and an alternative. A look-up reads the primary's line, and the other only on a miss. It
//! compares all tags of a bucket before it branches. Nothing moves and nothing waits; when both buckets are full,
//! the key is refused. There may be any number of buckets: the upper half of a hash times that number chooses one,
//! so the index is no larger than it must be.
//!
//! **Two workers may enter one key at once.** Each writes its entry, puts it into an empty slot as *tentative*, which
//! look-ups ignore, passes a SeqCst fence, and reads all slots of both buckets. Of two such fences one is first, and
//! who passed the second sees the other's slot: tentative, final, or gone again. (In words of the memory model: slot
//! A, fence, read B against slot B, fence, read A cannot both read the old value.) Who sees
//!
//! - a final one of the same key, gives way and uses it;
//! - a tentative one at a higher position, kills it (compare-and-swap to empty);
//! - a tentative one at a lower position, withdraws and starts over, but after [`PATIENCE`] times kills that too, so
//!   that nobody waits for a worker that does not run.
//!
//! Only then it makes its own final, by compare-and-swap, and starts over if it was killed. So of two that both saw
//! themselves through, the second would have had to see the first's slot and to leave it alone: none does.

use crate::shm::atomic::{AtomicU64, Ordering, fence};
use crate::shm::layout::{Bucket, SLOTS};
use crate::shm::{Cells, prefetch};

/// What became of entering a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// The key is the caller's.
    Own,
    /// Another entry has it.
    Existing(u32),
    /// Both buckets are full.
    Full,
}

/// Of two kinds of keys, those of one kind are never taken for those of the other where they contend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// By which a client's packets find their connection.
    Request,
    /// By which replies do.
    Reply,
}

/// The entry that a key leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) index: u32,
    /// Whether it has an extension, which is to be prefetched with it.
    pub(super) wide: bool,
}

impl Claim {
    fn word(self) -> u64 {
        u64::from(self.index) | if self.wide { WIDE } else { 0 }
    }
}

/// All buckets.
#[derive(Debug)]
pub(super) struct Buckets {
    cells: Cells<Bucket>,
}

/// Where a hash may stand, and the upper half of a slot that has it.
#[derive(Debug, Clone, Copy)]
struct Place {
    buckets: [usize; 2],
    tag: u64,
    /// The tag, with [`REPLY`] for such a key that nobody else may have.
    contends: u64,
}

/// The slots of both buckets at one moment (not the same for all); positions count through both.
type Slots = [u64; 2 * SLOTS];

impl Buckets {
    /// How many buckets so many connections need, each with two keys: 25 slots for 16 keys, 25 bytes a connection. Up
    /// to ten million connections, two choices of eight slots were never seen to overflow at that (simulated: first
    /// at 65 to 80 % full).
    pub(super) fn needed(connections: usize) -> usize {
        (connections * 25).div_ceil(8 * SLOTS).max(2)
    }

    /// Over at least 2 cells.
    pub(super) fn new(cells: Cells<Bucket>) -> Self {
        Self { cells }
    }

    /// Brings the line that a look-up reads first into the cache.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.cells[self.primary(hash)]);
    }

    /// Brings both lines that entering a key reads into the cache.
    #[inline]
    pub(super) fn prefetch_both(&self, hash: u64) {
        self.place(hash).buckets.iter().for_each(|&bucket| prefetch(&self.cells[bucket]));
    }

    /// For each entry that a look-up in the primary bucket will compare, calls `fetch`, also with whether it has an
    /// extension; if there is none, brings the alternative into the cache.
    // Always: a call and what it passes cost as much as the comparison.
    #[inline(always)]
    pub(super) fn prefetch_entries(&self, hash: u64, mut fetch: impl FnMut(u32, bool)) {
        let primary = self.primary(hash);
        let slots = &self.cells[primary].slots;
        let mut hits = hits(slots, tag(hash));
        if hits == 0 {
            prefetch(&self.cells[self.alternative(hash, primary)]);
        }
        while hits != 0 {
            // Relaxed: nothing is read behind it.
            let word = slots[hits.trailing_zeros() as usize].load(Ordering::Relaxed);
            fetch(word as u32, word & WIDE != 0);
            hits &= hits - 1;
        }
    }

    /// The first of the entries with this hash for which `test` has an answer. An entry in whose place a newer one
    /// answers (see [`enter_beside`](Self::enter_beside)) is taken only if there is no other.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, mut test: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let (tag, primary) = (tag(hash), self.primary(hash));
        let mut shadowed = None;
        let mut bucket = primary;
        loop {
            let slots = &self.cells[bucket].slots;
            let mut hits = hits(slots, tag);
            while hits != 0 {
                // Acquire: the entry is read after. The slot may have changed since.
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

    /// Enters a key that no two entries may have; `same` tells whether an entry has it. The entry must be filled.
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
        let (own, last) = (place.contends | TENTATIVE | claim.word(), place.contends | FINAL | claim.word());
        for attempt in 0.. {
            let slots = self.slots(place);
            let mut finals = slots.iter().filter(|&&word| place.contends(word) && word & FINAL != 0);
            if let Some(&word) = finals.find(|&&word| same(word as u32)) {
                return Entered::Existing(word as u32);
            }
            let Some(position) = vacancy(&slots) else { return Entered::Full };
            // Release: whoever sees the slot sees the entry filled. If another was faster, all is looked at anew.
            if !self.exchange(place, position, 0, own) {
                continue;
            }
            // The one that the module's argument orders against the rival's.
            fence(Ordering::SeqCst);
            match self.settle(place, position, attempt, &same) {
                // A failure means that own slot was killed: then it is empty already.
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
        unreachable!("the loop has no end but its returns")
    }

    /// Enters a key that several entries may have: `same` tells whether another entry has it. From then on this one
    /// is found and not those that were there, until it is unlinked. Of several that were there, whichever stands
    /// first is found after. Two that enter at one time may each stand in front. Never [`Entered::Existing`].
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
                    // A failure means that it was unlinked meanwhile.
                    self.exchange(place, position, word, word | SHADOWED);
                }
            }
            return Entered::Own;
        }
    }

    /// The entries that stand where a key with this hash could; none while so many slots there are empty.
    pub(super) fn occupants_if_full(&self, hash: u64, needed: usize) -> impl Iterator<Item = u32> + use<> {
        let slots = self.slots(self.place(hash));
        let full = slots.iter().filter(|&&word| word == 0).count() < needed;
        slots.into_iter().filter(move |word| full && word & FINAL != 0).map(|word| word as u32)
    }

    /// Empties the slot of an entry's key, which was entered. Several may do so at once: the index is in no slot again
    /// before they all have passed a quiescent point.
    pub(super) fn unlink(&self, hash: u64, index: u32) {
        let place = self.place(hash);
        for position in 0..2 * SLOTS {
            loop {
                // Acquire: as every read of a slot. A final slot changes by being emptied or shadowed only.
                let word = self.slot(place, position).load(Ordering::Acquire);
                let there = place.is_final(word) && word as u32 == index;
                // The Release in it: comes after what was done with the entry.
                if !there || self.exchange(place, position, word, 0) {
                    break;
                }
            }
        }
    }

    /// Looks for rivals of the tentative slot at `own`, and removes those that may be removed.
    fn settle(&self, place: Place, own: usize, attempt: u32, same: &impl Fn(u32) -> bool) -> Rivals {
        for position in (0..2 * SLOTS).filter(|&position| position != own) {
            loop {
                let word = self.slot(place, position).load(Ordering::Acquire);
                if !place.contends(word) || !same(word as u32) {
                    break;
                }
                if word & FINAL != 0 {
                    return Rivals::First(word as u32);
                }
                if position < own && attempt < PATIENCE {
                    return Rivals::Lower;
                }
                // If it fails, the rival has become final or has withdrawn in this moment: look again.
                if self.exchange(place, position, word, 0) {
                    break;
                }
            }
        }
        Rivals::None
    }

    fn exchange(&self, place: Place, position: usize, old: u64, new: u64) -> bool {
        // Release for the entry behind `new`; Acquire so that a chain of changes of one slot orders them all.
        let slot = self.slot(place, position);
        slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
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

    /// Another bucket than the primary. The upper bits of the product depend on all of the hash.
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

    /// Whether a slot is taken, or to be taken, by a key of which there may be one only and which may be this one.
    fn contends(self, word: u64) -> bool {
        word & (FINAL | TENTATIVE) != 0 && word & (TAG | REPLY | BESIDE) == self.contends
    }
}

/// A bit for each slot that is final and has the tag.
#[inline]
fn hits(slots: &[AtomicU64; SLOTS], tag: u64) -> u32 {
    // Relaxed: what is read behind a hit reads the slot again.
    let hit = |position: usize| u32::from(is_final(slots[position].load(Ordering::Relaxed), tag)) << position;
    (0..SLOTS).fold(0, |hits, position| hits | hit(position))
}

/// The lowest bits of a hash, which choose no bucket, where a slot has its tag.
#[inline]
fn tag(hash: u64) -> u64 {
    hash << 48
}

#[inline]
fn is_final(word: u64, tag: u64) -> bool {
    word & (TAG | FINAL) == tag | FINAL
}

/// A number below `count`, as a fraction of it what the hash is of 2^64.
#[inline]
fn scaled(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// What stands in the way of a tentative slot.
enum Rivals {
    None,
    /// Somebody has the key.
    First(u32),
    /// Somebody who has precedence tries to get it.
    Lower,
}

/// An empty position: in the primary bucket as long as it has room to spare, else in the emptier one.
fn vacancy(slots: &Slots) -> Option<usize> {
    let empty = |bucket: usize| slots[bucket * SLOTS..][..SLOTS].iter().filter(|&&word| word == 0).count();
    let (primary, alternative) = (empty(0), empty(1));
    let first = if primary > SPARE || primary >= alternative { 0 } else { SLOTS };
    let among = &slots[first..first + SLOTS];
    among.iter().position(|&word| word == 0).map(|position| first + position)
}

/// The bits of a slot that are compared with those of a hash.
const TAG: u64 = 0xffff << 48;
/// The slot answers look-ups.
const FINAL: u64 = 1 << 32;
/// Its entry is being inserted.
const TENTATIVE: u64 = 1 << 33;
/// Entered beside others: no claim to its key, so none that contends for one looks at it.
const BESIDE: u64 = 1 << 35;
/// A key of replies that is entered alone.
const REPLY: u64 = 1 << 36;
/// The entry has an extension.
const WIDE: u64 = 1 << 37;
/// A newer entry answers in its place.
const SHADOWED: u64 = 1 << 34;
/// Empty slots that a primary bucket keeps while the alternative is emptier.
const SPARE: usize = 4;
/// How often a worker withdraws before a rival at a lower position.
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

    /// As that of `entry.rs`.
    #[test]
    fn the_versions_slots_have_these_bits() {
        let bits = [FINAL, TENTATIVE, SHADOWED, BESIDE, REPLY, WIDE].map(u64::trailing_zeros);
        let (version, len) = (crate::shm::layout::VERSION, size_of::<Bucket>());
        assert_eq!((version, len, TAG, bits), (3, 64, 0xffff << 48, [32, 33, 34, 35, 36, 37]));
    }

    #[test]
    fn two_keys_for_each_of_the_connections_asked_for_find_room() {
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
    fn most_keys_of_a_table_with_one_key_each_stand_in_their_primary_bucket() {
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

    /// Balls thrown at random into so many bins that each gets `mean` of them: their variance over bins is the mean
    /// (Poisson), and a bin of more than `mean + 12 * sqrt(mean)` is not met with.
    #[test]
    fn clients_that_choose_their_ports_and_addresses_fill_buckets_as_chance_would() {
        let secret = HashSecret([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0]);
        let (keys, mean) = (1u32 << 18, 4.0);
        let buckets = buckets(keys as usize / 4);
        // What somebody can number without knowing the secret.
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
    fn when_both_buckets_are_full_the_key_is_refused_until_one_leaves() {
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
    fn a_worker_that_stopped_in_the_middle_of_an_insertion_holds_nobody_up() {
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
    fn of_equal_keys_the_newest_is_found_and_then_the_one_before() {
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
