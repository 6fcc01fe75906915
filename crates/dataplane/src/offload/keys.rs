//! The hash table in which the XDP program finds the record of a packet, in memory that it shares with workers.
//!
//! A key consists of the endpoints and the protocol of packets as they are received. Its hash gives a bucket, which is
//! one cache line, and a tag. The bucket's entry with this tag names the record, which contains the whole key. Workers
//! enter and remove keys without a lock. A full bucket refuses a key: with all records in use, one key in 7,000.

use std::net::IpAddr;
use std::sync::atomic::Ordering::{Relaxed, Release};

use xvs_proto::FlowKey;

use super::own::Own;
use super::shared::{BUCKET, Offload, SEED};
use crate::conn::{MAX_RECORDS, NO_CONNECTION, RecordState, offloaded_word as word};
use crate::shm::atomic::AtomicU64;

/// What an entry says about a record's part (`XVS_FLOW_RECORD` and others in `bpf/maps.h`).
pub(crate) fn value(number: u32, part: u32, record: u32) -> u32 {
    number << (MAX_RECORDS.ilog2() + 1) | part << MAX_RECORDS.ilog2() | record
}

impl Offload {
    /// Enters a key. Returns its place; `None`: its bucket is full, or another worker enters the same one.
    pub(super) fn enter(&self, key: &FlowKey, value: u32) -> Option<usize> {
        let hash = hash([0, 1].map(|word| self.state[SEED + word].load(Relaxed)), key);
        let tag = hash >> 32 | 1;
        let number = hash as usize % self.keys.len();
        let bucket = &self.keys[number];
        // An equal tag is almost always that of an earlier record of this key.
        let at = tagged(bucket, tag).or_else(|| tagged(bucket, 0))?;
        let former = bucket[at].load(Relaxed);
        if former != 0 && former >> 32 != tag {
            return None;
        }
        // Release: a program that finds the entry finds the record as it was written before.
        bucket[at].compare_exchange(former, tag << 32 | u64::from(value), Release, Relaxed).ok()?;
        Some(number * BUCKET + at)
    }

    /// Removes the keys of a record that has ended, and numbers its next use.
    pub(super) fn release(&self, own: &Own) {
        let number = self.flows.state(own.record).number();
        for (part, place) in (0..).zip(own.places) {
            // An entry that stays names a use of the record that has ended.
            place.into_iter().for_each(|place| self.remove(place, value(number, part, own.record)));
        }
        self.reset(own.record);
    }

    /// Numbers the next use of a record that has ended.
    pub(super) fn reset(&self, record: u32) {
        let words = self.flows.record(record);
        words[word::CONNECTION].store(NO_CONNECTION, Relaxed);
        words[word::STATE].store(RecordState::unused(self.flows.state(record).number() + 1).0, Relaxed);
    }

    /// Removes the key at a place, unless another one is there by now.
    fn remove(&self, place: usize, value: u32) {
        let place = &self.keys[place / BUCKET][place % BUCKET];
        let entry = place.load(Relaxed);
        if entry as u32 == value {
            let _ = place.compare_exchange(entry, 0, Relaxed, Relaxed);
        }
    }
}

/// The hash of a key, which the program computes in the same way. A secret seed keeps clients from choosing the bucket.
///
/// Each word of addresses is a factor of a product in 128 bits, whose halves are folded, as in `xvs_proto`'s hash of
/// flows: so each bit of a key reaches all bits of the bucket and the tag, also where only some bits differ.
fn hash(seed: [u64; 2], key: &FlowKey) -> u64 {
    let [source, dest] =
        [key.source, key.dest].map(|end| u64::from(u16::from_ne_bytes(end.port.to_be_bytes())));
    let ends = source | dest << 16 | u64::from(key.protocol.0) << 32;
    let mut hash = seed[0] ^ ends;
    match (key.source.addr, key.dest.addr) {
        (IpAddr::V4(source), IpAddr::V4(dest)) => hash = added(hash, seed[1], source.octets(), dest.octets()),
        (IpAddr::V6(source), IpAddr::V6(dest)) => {
            for (source, dest) in source.octets().as_chunks().0.iter().zip(dest.octets().as_chunks().0) {
                hash = added(hash, seed[1], *source, *dest);
            }
        }
        // No packet is of two families.
        _ => {}
    }
    multiplied(seed[0] ^ hash, seed[1])
}

/// The hash with one more word of each address.
fn added(hash: u64, seed: u64, source: [u8; 4], dest: [u8; 4]) -> u64 {
    let [source, dest] = [source, dest].map(|word| u64::from(u32::from_ne_bytes(word)));
    multiplied(hash, seed ^ source ^ dest << 32)
}

fn multiplied(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

/// The first entry of a bucket with this tag; an empty one has 0.
fn tagged(bucket: &[AtomicU64; BUCKET], tag: u64) -> Option<usize> {
    bucket.iter().position(|entry| entry.load(Relaxed) >> 32 == tag)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use xvs_proto::{Endpoint, Protocol};

    use super::*;

    /// Flows of 4,096 clients or ports, of which only some bits differ.
    const FLOWS: u32 = 4096;

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + number).into()
    }

    fn v6(number: u32) -> IpAddr {
        Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number)).into()
    }

    /// Each of these flows, and those of its replies from a real server.
    fn flows(client: impl Fn(u32) -> Endpoint, server: IpAddr) -> [Vec<FlowKey>; 2] {
        let protocol = Protocol::UDP;
        let at = Endpoint::new(server, 53);
        let requests = (0..FLOWS).map(|number| FlowKey { protocol, source: client(number), dest: at });
        let replies = (0..FLOWS).map(|number| FlowKey { protocol, source: at, dest: client(number) });
        [requests.collect(), replies.collect()]
    }

    /// Of 4,096 keys, about 63 share a bucket with a former one if buckets are chosen by chance.
    #[test]
    fn keys_that_differ_in_some_bits_alone_are_spread_over_the_buckets() {
        let all = [
            flows(|number| Endpoint::new(v4(number), 5353), v4(1 << 16)),
            flows(|number| Endpoint::new(v4(number << 12), 5353), v4(1)),
            flows(|number| Endpoint::new(v4(9), 1024 + number as u16), v4(1)),
            flows(|number| Endpoint::new(v4(number >> 6), 1024 + (number as u16 & 63)), v4(1)),
            flows(|number| Endpoint::new(v6(number), 5353), v6(1 << 16)),
            flows(|number| Endpoint::new(v6(number << 20), 5353), v6(1)),
            flows(|number| Endpoint::new(v6(9), 1024 + number as u16), v6(1)),
        ];
        let seeds =
            [[0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]];
        for (at, flows) in all.iter().flatten().enumerate() {
            for seed in seeds {
                let hashes: Vec<_> = flows.iter().map(|key| hash(seed, key)).collect();
                let buckets: BTreeSet<_> = hashes.iter().map(|hash| hash % (1 << 17)).collect();
                let tags: BTreeSet<_> = hashes.iter().map(|hash| hash >> 32 | 1).collect();
                assert!(buckets.len() > 3950, "flows {at}: {} buckets", buckets.len());
                assert!(tags.len() > 4090, "flows {at}: {} tags", tags.len());
            }
        }
    }

    #[test]
    fn an_entry_has_room_for_the_last_record_and_numbers_of_uses_begin_anew() {
        let last = RecordState::unused(RecordState::USES as u32 - 1);
        assert_eq!(value(last.number(), 1, MAX_RECORDS as u32 - 1), u32::MAX);
        assert_eq!(RecordState::unused(last.number() + 1).number(), 0);
    }

    #[test]
    fn each_bit_of_a_key_reaches_each_bit_of_its_hash() {
        let seed = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];
        let of = |bits: u128| {
            let [source, dest] = [bits, bits >> 48]
                .map(|end| Endpoint::new(Ipv4Addr::from_bits(end as u32), (end >> 32) as u16));
            hash(seed, &FlowKey { protocol: Protocol::UDP, source, dest })
        };
        for bit in 0..96 {
            let changes = (0..64_u32).map(|number| {
                let bits = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834);
                of(bits) ^ of(bits ^ 1 << bit)
            });
            let reached = changes.fold((0, 0), |(set, clear), change| (set | change, clear | !change));
            assert_eq!(reached, (u64::MAX, u64::MAX), "bit {bit}");
        }
    }
}
