//! Access lists in the maps of the steering program.
//!
//! Runs on the control thread. Each part of a list is a separate set, which is filled before the program sees it and
//! then replaced as a whole. While lists change, for some milliseconds, the program refuses nothing, and workers do. If
//! the kernel refuses a set, the program has no lists. Cost: a system call for each 4,096 networks of a set that has
//! changed, and a comparison of the first stage's bits. `snapshot/lists.rs` defines which packets a list refuses.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xvs_sched::ServiceKey;
use xvs_xdp::bpf::{KeySet, Object, Words};
use zerocopy::FromZeros;

use super::maps::{EndpointKey, Roles, endpoint_key, network_key};
use super::{Entries, SteeringError, converge};
use crate::bpf::{
    XVS_ALLOW, XVS_ALLOWS, XVS_LIST_PLACES, XVS_LISTS, XVS_MARKED, XVS_SCOPED, XVS_SCOPES, XVS_STRIPES,
    XVS_V6_LENGTHS, XVS_WIDE_V6, in_words, xvs_lengths, xvs_list_drops, xvs_list_filter,
};
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
    filter: Words<{ in_words(size_of::<xvs_list_filter>()) }>,
    drops: Words<DROP_WORDS>,
    lists: Option<Arc<Lists>>,
    /// Whether networks are steered for marks.
    is_marked: bool,
    /// The number of each service with its own lists, from 1.
    scopes: BTreeMap<ServiceKey, u32>,
    installed: Roles<EndpointKey>,
    places: BTreeMap<u32, Arc<Networks>>,
    /// The drops at each index that its list has already counted.
    counted: BTreeMap<u32, u64>,
}

/// The words of the state of the lists, and of the bits of their first stage.
const STATE: usize = in_words(offset_of!(xvs_list_filter, state));
const FILTER_BITS: usize = in_words(offset_of!(xvs_list_filter, words));

/// The number of a scope's indices.
const PLACES: u32 = XVS_LIST_PLACES / XVS_SCOPES;

/// The number of words for all drops, for the drops at one index, and for one stripe of them.
const DROP_WORDS: usize = in_words(size_of::<xvs_list_drops>());
const DROP_WORDS_OF_PLACE: usize = DROP_WORDS / XVS_LIST_PLACES as usize;
const STRIPE: usize = DROP_WORDS_OF_PLACE / XVS_STRIPES as usize;

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

    /// Replaces the lists. `wide` are the services for every port whose packets belong to no other service.
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
            self.filter[STATE].store(0, Ordering::Relaxed);
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
            if self.places.get(place).is_some_and(|known| Arc::ptr_eq(known, networks) || known == networks) {
                continue;
            }
            let room = networks.len().max(1) as u32;
            filled.push((*place, KeySet::new(room, networks.iter().map(network_key))?, networks.clone()));
        }
        let gone: Vec<_> = self.places.keys().filter(|place| !wanted.contains_key(place)).copied().collect();
        // Relaxed, as all words here: a program that is late by an instant checks with the former lists.
        self.filter[STATE].store(0, Ordering::Relaxed);
        let sets = object.sets(LISTS)?;
        for place in gone {
            object.set_value(LENGTHS, place, &xvs_lengths::new_zeroed())?;
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
        // The value 0 removes a key, so scopes are counted from 1.
        scopes.extend(all.filter_map(|(key, scope)| match key {
            ServiceKey::Address { protocol, endpoint } => Some((endpoint_key(protocol, endpoint), scope + 1)),
            ServiceKey::Mark { .. } => None,
        }));
        converge(OF_SCOPES, &object.map(SCOPES)?, &mut self.installed, &scopes)?;
        let Some(lists) = lists else { return Ok(()) };
        let filter = lists.filter();
        for (word, bits) in self.filter[FILTER_BITS..].iter().zip(filter.words()) {
            if word.load(Ordering::Relaxed) != *bits {
                word.store(*bits, Ordering::Relaxed);
            }
        }
        let mut state = XVS_LISTS;
        for (flag, is_set) in [
            (XVS_ALLOWS, lists.allows()),
            (XVS_WIDE_V6, filter.wide_v6),
            (XVS_SCOPED, !self.scopes.is_empty()),
            (XVS_MARKED, self.is_marked),
        ] {
            state |= if is_set { flag } else { 0 };
        }
        self.filter[STATE].store(state.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Records whether networks are steered for marks. Called before the first one is added, and after the last one was
    /// removed.
    pub(super) fn set_marked(&mut self, is_marked: bool) {
        self.is_marked = is_marked;
        let state = &self.filter[STATE];
        // The control thread alone writes the word.
        let before = state.load(Ordering::Relaxed);
        if before != 0 {
            let flag = u64::from(XVS_MARKED);
            state.store(if is_marked { before | flag } else { before & !flag }, Ordering::Relaxed);
        }
    }

    /// Assigns a unique number to each service with its own lists.
    fn number(&mut self, lists: Option<&Lists>) {
        self.scopes.retain(|key, _| lists.is_some_and(|lists| lists.services.contains_key(key)));
        for key in lists.into_iter().flat_map(|lists| lists.services.keys()) {
            if self.scopes.contains_key(key) {
                continue;
            }
            if let Some(number) =
                (1..XVS_SCOPES).find(|number| self.scopes.values().all(|taken| taken != number))
            {
                self.scopes.insert(*key, number);
            }
        }
    }

    /// The scopes with their numbers.
    fn numbered<'a>(&self, lists: &'a Lists) -> Vec<(u32, &'a Scope)> {
        self.scopes
            .iter()
            .filter_map(|(key, number)| Some((*number, lists.services.get(key)?)))
            .chain([(0, &lists.all)])
            .collect()
    }

    /// The networks at each index.
    fn wanted(&self, lists: &Lists) -> BTreeMap<u32, Arc<Networks>> {
        self.numbered(lists)
            .into_iter()
            .flat_map(|(number, scope)| {
                (PLACES * number..).zip([&scope.deny, &scope.allow].into_iter().flat_map(|list| &list.parts))
            })
            .filter_map(|(place, networks)| Some((place, networks.clone()?)))
            .filter(|(_, networks)| !networks.is_empty())
            .collect()
    }

    /// Adds the drops since the last call to the counts of the lists.
    pub(super) fn count(&mut self) {
        let Some(lists) = self.lists.clone() else { return };
        for (number, scope) in self.numbered(&lists) {
            for (place, List { dropped, .. }) in
                (PLACES * number..).step_by(XVS_ALLOW as usize).zip([&scope.deny, &scope.allow])
            {
                for place in [place, place + 1] {
                    let now: u64 = self.drops[place as usize * DROP_WORDS_OF_PLACE..][..DROP_WORDS_OF_PLACE]
                        .iter()
                        .step_by(STRIPE)
                        .map(load)
                        .sum();
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

/// The value for these networks in the map of prefix lengths.
fn lengths_of(networks: &Networks) -> xvs_lengths {
    let [v4, v6] = networks.lengths();
    let mut value = xvs_lengths { v4: v4.len() as u8, v6: v6.len() as u8, ..xvs_lengths::new_zeroed() };
    value.len.iter_mut().zip(v4).for_each(|(at, len)| *at = len);
    value.len[XVS_V6_LENGTHS as usize..].iter_mut().zip(v6).for_each(|(at, len)| *at = len);
    value
}
