//! Limits on SYNs in the maps of the steering program.
//!
//! Runs on the control thread. Each limit has a number, which is in the upper half of the value of its service's
//! endpoint while the program decides. The program does not decide for services with every port, with a mark, or at an
//! address that mark rules name. Cost of a change: a comparison for each limit. `snapshot/syn_limits.rs` defines the
//! effect of a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use xvs_sched::{ServiceKey, SynRate};
use xvs_xdp::bpf::Object;

use super::maps::{EndpointKey, Image, Roles, endpoint_key};
use crate::bpf::{XVS_SERVICE, XVS_STRIPES, XVS_SYN_LIMITS, in_words, xvs_syn_limit};
use crate::snapshot::clients::interval_and_early;
use crate::snapshot::syn_limits::{ProgramWords, SynLimit, SynLimits};

/// The name of the map.
pub(super) const MAP: &CStr = c"syn_limits";

/// The number of words of a limit, and the indices of some.
const LIMIT: usize = in_words(size_of::<xvs_syn_limit>());
const DUE: usize = in_words(offset_of!(xvs_syn_limit, due_ns));
const INTERVAL: usize = in_words(offset_of!(xvs_syn_limit, interval_ns));
const EARLY: usize = in_words(offset_of!(xvs_syn_limit, early_ns));
const DROPPED: usize = in_words(offset_of!(xvs_syn_limit, dropped));
const STRIPE: usize = (LIMIT - DROPPED) / XVS_STRIPES as usize;

/// The roles of an endpoint, without the number of its limit.
const ROLES: u32 = 0xffff;
const NUMBER_SHIFT: u32 = 16;

/// The limits in the maps.
pub(super) struct SynMaps {
    words: Arc<ProgramWords>,
    /// The limits by endpoint, with their numbers, from 1.
    limits: BTreeMap<EndpointKey, (usize, Arc<SynLimit>)>,
    /// The drops of each number that its limit has already counted.
    counted: BTreeMap<usize, u64>,
}

impl SynMaps {
    pub(super) fn of(object: &Object) -> io::Result<Self> {
        Ok(Self { words: Arc::new(object.words(MAP)?), limits: BTreeMap::new(), counted: BTreeMap::new() })
    }

    /// Replaces the limits. Returns the endpoints whose values may have changed.
    pub(super) fn set(&mut self, limits: &SynLimits) -> BTreeSet<EndpointKey> {
        self.count();
        let former = std::mem::take(&mut self.limits);
        let wanted: BTreeMap<_, _> = limits
            .iter()
            .filter_map(|(key, limit)| match *key {
                ServiceKey::Address { protocol, endpoint } if endpoint.port != 0 => {
                    Some((endpoint_key(protocol, endpoint), limit))
                }
                _ => None,
            })
            .collect();
        let mut numbers: BTreeMap<_, _> =
            wanted.keys().filter_map(|key| Some((*key, former.get(key)?.0))).collect();
        let taken: BTreeSet<_> = numbers.values().copied().collect();
        let mut free = (1..XVS_SYN_LIMITS as usize).filter(|number| !taken.contains(number));
        for (key, limit) in wanted {
            // Without a number, workers decide.
            let Some(number) = numbers.remove(&key).or_else(|| free.next()) else { continue };
            if former.get(&key).is_none_or(|(_, former)| !Arc::ptr_eq(former, limit)) {
                self.write(number, limit.rate);
            }
            self.limits.insert(key, (number, limit.clone()));
        }
        self.limits.keys().chain(former.keys()).copied().collect()
    }

    fn write(&self, number: usize, rate: SynRate) {
        let (interval, early) = interval_and_early(rate.rate, rate.burst);
        for (place, word) in [(DUE, 0), (INTERVAL, interval), (EARLY, early)] {
            self.words[number * LIMIT + place].store(word, Relaxed);
        }
    }

    /// Adds the numbers of limits to the values that endpoints get.
    pub(super) fn enter(&self, change: &mut Roles<EndpointKey>, installed: &Image) {
        for (key, value) in change {
            let number = self.limits.get(key).map_or(0, |(number, _)| *number as u32);
            let is_certain = number != 0 && *value & XVS_SERVICE != 0 && !installed.marks(key);
            *value = *value & ROLES | if is_certain { number << NUMBER_SHIFT } else { 0 };
        }
    }

    /// Records in the limits of these endpoints whether the program decides.
    pub(super) fn tell<'a>(&self, keys: impl IntoIterator<Item = &'a EndpointKey>, installed: &Image) {
        for key in keys {
            if let Some((number, limit)) = self.limits.get(key) {
                let value = installed.endpoints.get(key).copied().unwrap_or(0);
                limit.set_program(&self.words, number * LIMIT + DUE, value >> NUMBER_SHIFT != 0);
            }
        }
    }

    /// The endpoints of the limits.
    pub(super) fn endpoints(&self) -> BTreeSet<EndpointKey> {
        self.limits.keys().copied().collect()
    }

    /// The values of these endpoints as they are, without limits.
    pub(super) fn roles(keys: BTreeSet<EndpointKey>, installed: &Image) -> Roles<EndpointKey> {
        keys.into_iter().filter_map(|key| Some((key, installed.endpoints.get(&key)? & ROLES))).collect()
    }

    /// Adds the drops since the last call to the counts of the limits.
    pub(super) fn count(&mut self) {
        for (number, limit) in self.limits.values() {
            let now: u64 = self.words[number * LIMIT..][DROPPED..LIMIT]
                .iter()
                .step_by(STRIPE)
                .map(|word| word.load(Relaxed))
                .sum();
            let before = self.counted.insert(*number, now).unwrap_or(0);
            limit.dropped.fetch_add(now.wrapping_sub(before), Relaxed);
        }
    }
}
