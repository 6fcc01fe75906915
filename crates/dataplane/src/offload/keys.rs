//! Where the XDP program finds the record of a packet: a hash table in memory that it shares with workers.
//!
//! A key is the endpoints and the protocol of packets as they are received. Its hash names a bucket, which is one cache
//! line, and a tag; the bucket's entry with this tag names the record, where the key stands as a whole. Workers enter
//! and remove keys without a lock. A bucket that is full refuses a key: of as many as there are records, one of 7,000.

use std::net::IpAddr;
use std::sync::atomic::Ordering::{Relaxed, Release};

use xvs_proto::FlowKey;

use super::own::Own;
use super::shared::{BUCKET, BUCKETS, KEYS, Offload, SEED};
use crate::conn::{RECORDS, offloaded_word as word};

/// The uses of a record until they are numbered anew: entries have so many bits for them.
const USES: u64 = 1 << (u32::BITS - 1 - RECORDS.ilog2());

/// What an entry says of a record's part (`XVS_FLOW_RECORD` and others in `bpf/maps.h`).
pub(crate) fn value(number: u32, part: u32, record: u32) -> u32 {
    number << (RECORDS.ilog2() + 1) | part << RECORDS.ilog2() | record
}

/// The hash of a key, which the program computes in the same way. A secret seed keeps clients from choosing the bucket.
fn hash(seed: u64, key: &FlowKey) -> u64 {
    let mut hash = seed;
    let mut add = |low: u32, high: u32| {
        hash = (hash ^ u64::from(low) ^ u64::from(high) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    };
    let [source, dest] =
        [key.source, key.dest].map(|end| u32::from(u16::from_ne_bytes(end.port.to_be_bytes())));
    add(source | dest << 16, key.protocol.0.into());
    match (key.source.addr, key.dest.addr) {
        (IpAddr::V4(source), IpAddr::V4(dest)) => {
            add(u32::from_ne_bytes(source.octets()), u32::from_ne_bytes(dest.octets()));
        }
        (IpAddr::V6(source), IpAddr::V6(dest)) => {
            let (source, dest) = (source.octets(), dest.octets());
            for (source, dest) in source.as_chunks().0.iter().zip(dest.as_chunks().0) {
                add(u32::from_ne_bytes(*source), u32::from_ne_bytes(*dest));
            }
        }
        // No packet is of two families.
        _ => {}
    }
    hash
}

impl Offload {
    /// Enters a key. Returns its place; `None`: its bucket is full, or another worker enters the same one.
    pub(super) fn enter(&self, key: &FlowKey, value: u32) -> Option<usize> {
        let hash = hash(self.state[SEED].load(Relaxed), key);
        let tag = hash >> 32 | 1;
        let first = KEYS + hash as usize % BUCKETS * BUCKET;
        let bucket = &self.state[first..first + BUCKET];
        // An equal tag is of an earlier record of this key, as good as always.
        let place = |wanted: u64| bucket.iter().position(|entry| entry.load(Relaxed) >> 32 == wanted);
        let at = place(tag).or_else(|| place(0))?;
        let former = bucket[at].load(Relaxed);
        let is_free = former == 0 || former >> 32 == tag;
        // Release: a program that finds the entry finds the record as it was written before.
        let entered = || bucket[at].compare_exchange(former, tag << 32 | u64::from(value), Release, Relaxed);
        (is_free && entered().is_ok()).then_some(first + at)
    }

    /// Removes the keys of a record that has ended, and numbers its next use.
    pub(super) fn release(&self, own: &Own) {
        let state = &self.flows.record(own.record)[word::STATE];
        let number = state.load(Relaxed) >> 1;
        for (part, place) in (0..).zip(own.places) {
            // One that stays names a use that has ended.
            place.into_iter().for_each(|place| self.remove(place, value(number as u32, part, own.record)));
        }
        state.store(((number + 1) % USES) << 1, Relaxed);
    }

    /// Removes the key at a place, unless another one is there by now.
    fn remove(&self, place: usize, value: u32) {
        let entry = self.state[place].load(Relaxed);
        if entry as u32 == value {
            let _ = self.state[place].compare_exchange(entry, 0, Relaxed, Relaxed);
        }
    }
}
