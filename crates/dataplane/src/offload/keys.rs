//! How the XDP program finds the record of a packet: the hash of a key is the number of the record, or that of a bucket
//! of a hash table in memory that the program shares with workers.
//!
//! A key consists of the client's end and the protocol of packets as they are received, so NAT requests and replies
//! have one key; the key of replies to local addresses of FULLNAT, which many connections share, consists of both ends.
//! If the connection's record has another number, an entry in the bucket, which is one cache line, contains it; the
//! entry has a tag, the other half of the hash. Records contain all endpoints, so equal hashes do not matter. Workers
//! enter and remove keys without a lock. A full bucket refuses a key: the ninth key for one client endpoint whose
//! record has another number, and by chance fewer than one in 7,000 others.

use std::net::IpAddr;
use std::sync::atomic::Ordering::{Relaxed, Release};

use xvs_proto::{Endpoint, Protocol};

use super::own::Own;
use super::shared::{BUCKET, Offload, SEED};
use crate::conn::{MAX_RECORDS, NO_CONNECTION, RecordState, offloaded_word as word};
use crate::forward::Ends;

/// The value of an entry for a record in the use with this number (`XVS_FLOW_RECORD` and others in `bpf/maps.h`).
pub(crate) fn value(number: u32, record: u32) -> u32 {
    number << MAX_RECORDS.ilog2() | record
}

/// The hashes of the keys of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hashes {
    pub(super) of_client: u64,
    /// The key of replies, with FULLNAT.
    pub(super) of_replies: Option<u64>,
}

impl Offload {
    /// The hashes of the keys of a connection.
    pub(super) fn hashes(&self, ends: &Ends, protocol: Protocol) -> Hashes {
        let seed = [0, 1].map(|word| self.state[SEED + word].load(Relaxed));
        Hashes {
            of_client: hash(seed, protocol, &[ends.client]),
            of_replies: ends.local.map(|local| hash(seed, protocol, &[local, ends.dest])),
        }
    }

    /// The record that the program finds by this hash alone.
    pub(super) fn nearest(&self, hash: u64) -> u32 {
        (hash as usize % self.keys.len()) as u32
    }

    /// Enters a key. Returns its position; `None` if its bucket is full, or another worker enters the same one.
    pub(super) fn enter(&self, hash: u64, value: u32) -> Option<usize> {
        let number = hash as usize % self.keys.len();
        let bucket = &self.keys[number];
        let tag = hash >> 32 | 1;
        let (at, former) = (0..)
            .zip(bucket)
            .map(|(at, entry)| (at, entry.load(Relaxed)))
            .find(|(_, entry)| *entry == 0 || entry >> 32 == tag && !self.is_meant_by(*entry))?;
        // Release: a program that finds the entry sees the record's earlier writes.
        bucket[at].compare_exchange(former, tag << 32 | u64::from(value), Release, Relaxed).ok()?;
        Some(number * BUCKET + at)
    }

    /// Whether the record of an entry is in force, in the use to which the entry refers.
    fn is_meant_by(&self, entry: u64) -> bool {
        let state = self.flows.state(entry as u32 % MAX_RECORDS as u32);
        state.has(RecordState::IN_FORCE)
            && value(state.number(), 0) == entry as u32 & !(MAX_RECORDS as u32 - 1)
    }

    /// Removes the keys of a record that has ended, and numbers its next use.
    pub(super) fn release(&self, own: &Own) {
        let number = self.flows.state(own.record).number();
        // An entry that stays refers to a use of the record that has ended.
        own.places.iter().flatten().for_each(|place| self.remove(*place, value(number, own.record)));
        self.reset(own.record);
    }

    /// Numbers the next use of a record that has ended.
    pub(super) fn reset(&self, record: u32) {
        let words = self.flows.record(record);
        words[word::CONNECTION].store(NO_CONNECTION, Relaxed);
        words[word::STATE].store(RecordState::unused(self.flows.state(record).number() + 1).0, Relaxed);
    }

    /// Removes the key at a position, unless another one has replaced it.
    fn remove(&self, place: usize, value: u32) {
        let place = &self.keys[place / BUCKET][place % BUCKET];
        let entry = place.load(Relaxed);
        if entry as u32 == value {
            let _ = place.compare_exchange(entry, 0, Relaxed, Relaxed);
        }
    }
}

/// The hash of a key, which the program computes identically. A secret seed keeps clients from choosing the bucket.
///
/// Each word of the addresses is a factor of a 128-bit product, whose halves are folded, as in `xvs_proto`'s flow hash:
/// each bit of a key therefore affects all bits of the bucket and the tag, even if keys differ in few bits.
fn hash(seed: [u64; 2], protocol: Protocol, ends: &[Endpoint]) -> u64 {
    let mut hash = seed[0] ^ u64::from(protocol.0) << 32;
    for end in ends {
        hash ^= u64::from(u16::from_ne_bytes(end.port.to_be_bytes()));
        match end.addr {
            IpAddr::V4(addr) => hash = with_words(hash, seed[1], &addr.octets()),
            IpAddr::V6(addr) => hash = with_words(hash, seed[1], &addr.octets()),
        }
    }
    multiplied(seed[0] ^ hash, seed[1])
}

/// The hash extended by the words of an address.
fn with_words(hash: u64, seed: u64, addr: &[u8]) -> u64 {
    addr.as_chunks()
        .0
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .fold(hash, |hash, word| multiplied(hash, seed ^ word))
}

fn multiplied(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// Keys for 4,096 clients or ports, of which only some bits differ.
    const KEYS: u32 = 4096;

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + number).into()
    }

    fn v6(number: u32) -> IpAddr {
        Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number)).into()
    }

    /// About 63 out of 4,096 keys share a bucket with a former one if buckets are chosen at random.
    #[test]
    fn keys_that_differ_in_some_bits_alone_are_spread_over_the_buckets() {
        let clients: [fn(u32) -> Endpoint; 7] = [
            |number| Endpoint::new(v4(number), 5353),
            |number| Endpoint::new(v4(number << 12), 5353),
            |number| Endpoint::new(v4(9), 1024 + number as u16),
            |number| Endpoint::new(v4(number >> 6), 1024 + (number as u16 & 63)),
            |number| Endpoint::new(v6(number), 5353),
            |number| Endpoint::new(v6(number << 20), 5353),
            |number| Endpoint::new(v6(9), 1024 + number as u16),
        ];
        let seeds =
            [[0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]];
        let other = Endpoint::new(v4(1), 53);
        let keys = clients.iter().flat_map(|client| {
            let one = (0..KEYS).map(|number| vec![client(number)]);
            [one.clone().collect(), one.map(|key| [key, vec![other]].concat()).collect::<Vec<_>>()]
        });
        for (at, keys) in keys.enumerate() {
            for seed in seeds {
                let hashes: Vec<_> = keys.iter().map(|key| hash(seed, Protocol::UDP, key)).collect();
                let buckets: BTreeSet<_> = hashes.iter().map(|hash| hash % (1 << 17)).collect();
                let tags: BTreeSet<_> = hashes.iter().map(|hash| hash >> 32 | 1).collect();
                assert!(buckets.len() > 3950, "keys {at}: {} buckets", buckets.len());
                assert!(tags.len() > 4090, "keys {at}: {} tags", tags.len());
            }
        }
    }

    #[test]
    fn an_entry_has_room_for_the_last_record_and_numbers_of_uses_begin_anew() {
        let last = RecordState::unused(RecordState::USES as u32 - 1);
        assert_eq!(value(last.number(), MAX_RECORDS as u32 - 1), u32::MAX >> 1);
        assert_eq!(RecordState::unused(last.number() + 1).number(), 0);
    }

    #[test]
    fn each_bit_of_a_key_reaches_each_bit_of_its_hash() {
        let seed = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];
        let of = |bits: u128| {
            let ends = [bits, bits >> 48]
                .map(|end| Endpoint::new(Ipv4Addr::from_bits(end as u32), (end >> 32) as u16));
            [hash(seed, Protocol::UDP, &ends[..1]), hash(seed, Protocol::UDP, &ends)]
        };
        for bit in 0..96 {
            // The second end belongs only to the key of both ends.
            for key in if bit < 48 { 0..2 } else { 1..2 } {
                let changes = (0..64_u32).map(|number| {
                    let bits = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834);
                    of(bits)[key] ^ of(bits ^ 1 << bit)[key]
                });
                let reached = changes.fold((0, 0), |(set, clear), change| (set | change, clear | !change));
                assert_eq!(reached, (u64::MAX, u64::MAX), "bit {bit} of key {key}");
            }
        }
    }
}
