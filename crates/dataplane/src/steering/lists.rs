//! Access lists in the maps of the steering program.
//!
//! Runs on the control thread. Each part of a list is a separate set, which is filled before the program sees it and
//! then replaced as a whole. While lists change, for some milliseconds, the program refuses nothing, and workers do. If
//! the kernel refuses a set, the program has no lists. Cost: a system call for each 4,096 networks of a set that has
//! changed, and a comparison of the first stage's bits. Not here: the packets that a list refuses
//! (`snapshot/lists.rs`).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xvs_sched::ServiceKey;
use xvs_xdp::bpf::{KeySet, Object, Words};

use super::maps::{EndpointKey, Roles, endpoint_key, network_key};
use super::{Entries, SteeringError, converge};
use crate::snapshot::lists::{List, Lists, Networks, Scope};

/// The names of the maps.
const FILTER: &CStr = c"list_filter";
const DROPS: &CStr = c"list_drops";
const SCOPES: &CStr = c"list_scopes";
const LENGTHS: &CStr = c"list_lengths";
const LISTS: &CStr = c"lists";
const OF_SCOPES: Entries =
    Entries { what: "services of access lists", step: "give fewer services lists of their own" };

/// The lists in the maps.
pub(super) struct ListMaps {
    filter: Words<{ filter::COUNT }>,
    drops: Words<{ drops::COUNT }>,
    lists: Option<Arc<Lists>>,
    /// Whether networks are steered for marks.
    is_marked: bool,
    /// The scope of each service with its own lists, from 1 on.
    scopes: BTreeMap<ServiceKey, u32>,
    installed: Roles<{ size_of::<EndpointKey>() }>,
    places: BTreeMap<u32, Arc<Networks>>,
    /// The drops of each place that its list has counted already.
    counted: BTreeMap<u32, u64>,
}

/// The words of `struct xvs_list_filter`.
pub(super) mod filter {
    use crate::snapshot::lists::Filter;
    pub(super) const STATE: usize = 0;
    pub(in crate::steering) const WORDS: usize = 1;
    pub(in crate::steering) const COUNT: usize = WORDS + Filter::WORDS;
    pub(in crate::steering) const LISTS: u64 = 1 << 0;
    pub(in crate::steering) const ALLOWS: u64 = 1 << 1;
    pub(in crate::steering) const WIDE_V6: u64 = 1 << 2;
    pub(in crate::steering) const SCOPED: u64 = 1 << 3;
    pub(in crate::steering) const MARKED: u64 = 1 << 4;
}

/// The words of `struct xvs_list_drops`.
pub(super) mod drops {
    /// The words of a place, and of a stripe of it.
    pub(super) const PLACE: usize = 8 * STRIPE;
    pub(super) const STRIPE: usize = 8;
    pub(in crate::steering) const COUNT: usize = PLACE * 4 * super::SCOPES_MAX;
}

/// The most scopes.
pub(super) const SCOPES_MAX: usize = 256;

/// The value of the map of prefix lengths.
pub(super) mod lengths {
    pub(in crate::steering) const V6: usize = 33;
    pub(in crate::steering) const SIZE: usize = 2 + V6 + 129;
}

impl ListMaps {
    pub(super) fn of(object: &Object) -> io::Result<Self> {
        Ok(Self {
            filter: object.words(FILTER)?,
            drops: object.words(DROPS)?,
            lists: None,
            is_marked: false,
            scopes: BTreeMap::new(),
            installed: Roles::new(),
            places: BTreeMap::new(),
            counted: BTreeMap::new(),
        })
    }

    /// Replaces the lists. `wide` are the services of every port whose packets belong to no other service.
    pub(super) fn set(
        &mut self,
        object: &Object,
        lists: Option<(Arc<Lists>, Vec<ServiceKey>)>,
    ) -> Result<(), SteeringError> {
        self.count();
        let (lists, wide) = lists.map_or((None, Vec::new()), |(lists, wide)| (Some(lists), wide));
        let done = self.replace(object, lists.as_deref(), &wide);
        if done.is_err() {
            // The former lists are not used either: what they refuse may be allowed now.
            self.filter[filter::STATE].store(0, Ordering::Relaxed);
        }
        self.lists = lists.filter(|_| done.is_ok());
        done
    }

    fn replace(
        &mut self,
        object: &Object,
        lists: Option<&Lists>,
        wide: &[ServiceKey],
    ) -> Result<(), SteeringError> {
        self.number(lists);
        let wanted = lists.map(|lists| self.wanted(lists)).unwrap_or_default();
        let mut filled = Vec::new();
        for (place, networks) in &wanted {
            let known = self.places.get(place);
            if known.is_some_and(|known| Arc::ptr_eq(known, networks) || known == networks) {
                continue;
            }
            let room = networks.len().max(1) as u32;
            filled.push((*place, KeySet::new(room, networks.iter().map(network_key))?, networks.clone()));
        }
        let gone: Vec<_> = self.places.keys().filter(|place| !wanted.contains_key(place)).copied().collect();
        // Relaxed, as all words here: a program that is late by an instant checks with the former lists.
        self.filter[filter::STATE].store(0, Ordering::Relaxed);
        let sets = object.sets(LISTS)?;
        for place in gone {
            object.set_value(LENGTHS, place, &[0; lengths::SIZE])?;
            sets.put(place, None)?;
            self.places.remove(&place);
        }
        for (place, set, networks) in filled {
            sets.put(place, Some(&set))?;
            object.set_value(LENGTHS, place, &lengths_of(&networks))?;
            self.places.insert(place, networks);
        }
        let mut scopes: BTreeMap<_, u32> = self.installed.keys().map(|key| (*key, 0)).collect();
        let all =
            wide.iter().map(|key| (*key, 0)).chain(self.scopes.iter().map(|(key, scope)| (*key, *scope)));
        // The value 0 removes a key, so scopes are counted from 1 there.
        scopes.extend(all.filter_map(|(key, scope)| match key {
            ServiceKey::Address { protocol, endpoint } => Some((endpoint_key(protocol, endpoint), scope + 1)),
            ServiceKey::Mark { .. } => None,
        }));
        converge(OF_SCOPES, &object.map(SCOPES)?, &mut self.installed, &scopes)?;
        let Some(lists) = lists else { return Ok(()) };
        let filter = lists.filter();
        for (word, bits) in self.filter[filter::WORDS..].iter().zip(filter.words()) {
            if word.load(Ordering::Relaxed) != *bits {
                word.store(*bits, Ordering::Relaxed);
            }
        }
        let mut state = filter::LISTS;
        for (flag, is_set) in [
            (filter::ALLOWS, lists.allows()),
            (filter::WIDE_V6, filter.wide_v6),
            (filter::SCOPED, !self.scopes.is_empty()),
            (filter::MARKED, self.is_marked),
        ] {
            state |= if is_set { flag } else { 0 };
        }
        self.filter[filter::STATE].store(state, Ordering::Relaxed);
        Ok(())
    }

    /// Notes whether networks are steered for marks. Called before the first one is, and after the last one was.
    pub(super) fn set_marked(&mut self, is_marked: bool) {
        self.is_marked = is_marked;
        let state = &self.filter[filter::STATE];
        // The control thread alone writes the word.
        let before = state.load(Ordering::Relaxed);
        if before != 0 {
            let flag = if is_marked { filter::MARKED } else { 0 };
            state.store(before & !filter::MARKED | flag, Ordering::Relaxed);
        }
    }

    /// Gives each service with its own lists a unique number.
    fn number(&mut self, lists: Option<&Lists>) {
        self.scopes.retain(|key, _| lists.is_some_and(|lists| lists.services.contains_key(key)));
        let services = lists.into_iter().flat_map(|lists| lists.services.keys());
        for key in services {
            if self.scopes.contains_key(key) {
                continue;
            }
            let mut numbers = 1..SCOPES_MAX as u32;
            let free = numbers.find(|number| self.scopes.values().all(|taken| taken != number));
            if let Some(number) = free {
                self.scopes.insert(*key, number);
            }
        }
    }

    /// The scopes with their numbers.
    fn numbered<'a>(&self, lists: &'a Lists) -> Vec<(u32, &'a Scope)> {
        let own = self.scopes.iter().filter_map(|(key, number)| Some((*number, lists.services.get(key)?)));
        own.chain([(0, &lists.all)]).collect()
    }

    /// The networks of each place.
    fn wanted(&self, lists: &Lists) -> BTreeMap<u32, Arc<Networks>> {
        let parts = self.numbered(lists).into_iter().flat_map(|(number, scope)| {
            let parts = [&scope.deny, &scope.allow].into_iter().flat_map(|list| &list.parts);
            (4 * number..).zip(parts.cloned().collect::<Vec<_>>())
        });
        let there = parts.filter_map(|(place, networks)| Some((place, networks?)));
        there.filter(|(_, networks)| !networks.is_empty()).collect()
    }

    /// Adds what was dropped since the last call to the counts of the lists.
    pub(super) fn count(&mut self) {
        let Some(lists) = self.lists.clone() else { return };
        for (number, scope) in self.numbered(&lists) {
            for (place, List { dropped, .. }) in (4 * number..).step_by(2).zip([&scope.deny, &scope.allow]) {
                for place in [place, place + 1] {
                    let stripes = self.drops[place as usize * drops::PLACE..][..drops::PLACE].iter();
                    let now: u64 = stripes.step_by(drops::STRIPE).map(load).sum();
                    let before = self.counted.insert(place, now).unwrap_or(0);
                    dropped.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
                }
            }
        }
    }
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// The value of a place in the map of prefix lengths.
fn lengths_of(networks: &Networks) -> [u8; lengths::SIZE] {
    let mut value = [0; lengths::SIZE];
    let [v4, v6] = networks.lengths();
    (value[0], value[1]) = (v4.len() as u8, v6.len() as u8);
    value[2..].iter_mut().zip(v4).for_each(|(at, len)| *at = len);
    value[2 + lengths::V6..].iter_mut().zip(v6).for_each(|(at, len)| *at = len);
    value
}
