//! The registry's files that outlive the process, and the restoration of the registry from them.
//!
//! At the start every recorded destination is in the trash, with its number, totals and connections. A destination that
//! is configured again leaves the trash, like any removed destination that is added again. A service that is configured
//! again within two minutes gets its totals back, and with the same scheduler the scheduler's position.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::counters::StatsValues;
use xvs_dataplane::snapshot::{Counts, Destination, DestinationId, DestinationLive, ServiceLive, Snapshot};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, Load, ServiceKey, Weight};

use super::numbers::{NUMBERS, Placed, Record, Records};
use super::{DestinationEntry, Registry, ServiceEntry, destination};
use crate::registry::estimator::{Estimator, fields};

/// The name of a destination's record.
type DestinationName = (ServiceKey, Endpoint);
/// The name of a service's record: its key (`None` for the totals) and its scheduler.
type ServiceName = (Option<ServiceKey>, String);

/// The files of the registry.
#[derive(Debug)]
pub struct Kept {
    destinations: Records,
    services: Records,
    /// The index of each service's record, and the scheduler in it.
    places: BTreeMap<Option<ServiceKey>, (u32, String)>,
    free_places: Vec<u32>,
    /// Why the last write failed.
    failure: Option<String>,
}

/// The content of the files at the start.
#[derive(Debug, Default)]
pub struct Found {
    destinations: Placed<DestinationName>,
    services: Placed<ServiceName>,
}

/// A service that is not configured again yet.
pub(super) struct ServiceBefore {
    pub(super) live: Arc<ServiceLive>,
    scheduler: String,
    place: u64,
    estimator: Estimator,
    since: Millis,
}

impl Kept {
    /// Opens the files of destinations and of services, and reads them.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn open(destinations: File, services: File) -> io::Result<(Self, Found)> {
        let (destinations, found_destinations) = Records::read(destinations)?;
        let (services, found_services) = Records::read::<ServiceName>(services)?;
        let places: BTreeMap<_, _> = found_services
            .iter()
            .map(|(place, Record { name: (key, scheduler), .. })| (*key, (*place, scheduler.clone())))
            .collect();
        let used: BTreeSet<_> = places.values().map(|(place, _)| *place).collect();
        let end = found_services.last().map_or(0, |(place, _)| place + 1);
        let free_places = (0..end).rev().filter(|place| !used.contains(place)).collect();
        Ok((
            Self { destinations, services, places, free_places, failure: None },
            Found { destinations: found_destinations, services: found_services },
        ))
    }

    /// Reads the numbers again, which the process that hands over has changed since [`Self::open`], but no name.
    ///
    /// # Errors
    ///
    /// The files cannot be read.
    pub fn read_numbers(&mut self, found: &mut Found) -> io::Result<()> {
        self.destinations.read_numbers(&mut found.destinations)?;
        self.services.read_numbers(&mut found.services)
    }

    fn set_destination(&mut self, key: ServiceKey, dest: &DestinationEntry) {
        let DestinationId(place) = dest.id;
        self.destinations.set(place, &Record { name: (key, dest.endpoint), numbers: dest.numbers() });
    }

    fn set_service(&mut self, key: Option<ServiceKey>, scheduler: &str, numbers: [u64; NUMBERS]) {
        let next = self.places.len() as u32;
        let Self { places, free_places, services, .. } = self;
        match places.get_mut(&key) {
            // A take-over writes tens of thousands, and a name costs more than its numbers.
            Some((place, recorded)) if recorded == scheduler => services.set_numbers(*place, numbers),
            known => {
                let place = known.map(|(place, _)| *place).or_else(|| free_places.pop()).unwrap_or(next);
                places.insert(key, (place, scheduler.to_owned()));
                services.set(place, &Record { name: (key, scheduler.to_owned()), numbers });
            }
        }
    }

    /// Forgets the record of a destination whose number may serve another one.
    pub(super) fn clear_destination(&mut self, DestinationId(number): DestinationId) {
        self.destinations.clear(number);
    }

    /// Forgets the record of a deleted service.
    pub(super) fn clear_service(&mut self, key: ServiceKey) {
        if let Some((place, _)) = self.places.remove(&Some(key)) {
            self.services.clear(place);
            self.free_places.push(place);
        }
    }

    fn write(&mut self) {
        let result = self.destinations.write().and_then(|()| self.services.write());
        if let (Err(error), None) = (&result, &self.failure) {
            tracing::warn!("the numbers of destinations cannot be saved: {error}");
        }
        self.failure = result.err().map(|error| error.to_string());
    }
}

impl Found {
    /// The numbers of the recorded destinations.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.destinations.iter().map(|(number, _)| *number)
    }

    /// The recorded services.
    pub fn services(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.iter().filter_map(|(_, record)| record.name.0)
    }
}

impl DestinationEntry {
    fn numbers(&self) -> [u64; NUMBERS] {
        let counted = self.estimator.since_zero(self.live.stats.sum());
        let overloaded = u64::from(self.live.is_overloaded());
        let Counts { load: Load { active, inactive }, templates } = self.live.counts();
        let [weight, active, inactive, templates] =
            [self.last_weight.0, active, inactive, templates].map(u64::from);
        numbers(counted, &[weight, self.method_bits(), overloaded, active, inactive, templates])
    }

    fn method_bits(&self) -> u64 {
        self.methods.iter().fold(0, |bits, method| bits | 1 << *method as u64)
    }
}

impl ServiceEntry {
    fn numbers(&self) -> [u64; NUMBERS] {
        numbers(self.estimator.since_zero(self.live.stats()), &[self.place.load(Ordering::Relaxed)])
    }
}

impl Registry {
    /// Restores the names and numbers in these files, without the counts. For an empty registry, before any worker.
    pub fn return_to(&mut self, found: &Found, snapshot: &mut Snapshot, now: Millis) {
        for (_, Record { name: (key, scheduler), .. }) in &found.services {
            let Some(key) = key else { continue };
            self.before.insert(
                *key,
                ServiceBefore {
                    live: Arc::default(),
                    scheduler: scheduler.clone(),
                    place: 0,
                    estimator: Estimator::default(),
                    since: now,
                },
            );
        }
        self.next_id = found.destinations.last().map_or(0, |(number, _)| number + 1);
        let mut unused: BTreeSet<_> = (0..self.next_id).collect();
        for (number, Record { name: (key, endpoint), numbers }) in &found.destinations {
            unused.remove(number);
            let live = Arc::new(DestinationLive::new(self.workers));
            let service = self.before.get(key).map(|before| before.live.clone()).unwrap_or_default();
            service.add(&live);
            let dest = DestinationEntry {
                methods: METHODS
                    .into_iter()
                    .filter(|method| numbers[METHODS_AT] >> *method as u64 & 1 == 1)
                    .collect(),
                last_weight: Weight(numbers[WEIGHT_AT] as u32),
                ..DestinationEntry::new(*endpoint, self.path_mtu(endpoint.addr), DestinationId(*number), live)
            };
            let gone = Destination { available: false, ..destination(*key, &dest, &service, snapshot) };
            snapshot.destinations.set(dest.id, Some(gone));
            // If two have the same name, the later one stays: the other was in the trash.
            self.discard(*key, dest, service, now);
        }
        self.free_ids.extend(unused.into_iter().rev().map(DestinationId));
    }

    /// Continues from the counts in the files, and keeps the files up to date from now on. `counts` are the connections
    /// of each destination, by number; `None` means those in the files. Called after [`Self::return_to`], before there
    /// are workers.
    pub fn resume(&mut self, mut kept: Kept, found: Found, counts: Option<&[Counts]>) {
        let numbers: HashMap<_, _> = found
            .destinations
            .iter()
            .map(|(number, record)| (DestinationId(*number), record.numbers))
            .collect();
        let live = self.services.values_mut().flat_map(|entry| &mut entry.destinations);
        for dest in live.chain(self.trash.values_mut().map(|trashed| &mut trashed.dest)) {
            let Some(&numbers) = numbers.get(&dest.id) else { continue };
            let counts = match counts {
                Some(counts) => counts.get(dest.id.0 as usize).copied().unwrap_or_default(),
                None => connections(numbers),
            };
            let counted = counted(numbers);
            dest.live.resume(counts, numbers[OVERLOADED_AT] != 0, counted);
            dest.estimator = Estimator::resumed(counted);
            if dest.method_bits() != numbers[METHODS_AT] {
                kept.destinations.set_numbers(dest.id.0, dest.numbers());
            }
        }
        for (_, Record { name: (key, scheduler), numbers }) in found.services {
            let counted = counted(numbers);
            let place = numbers[PLACE_AT];
            let Some(key) = key else {
                self.total.resume(counted);
                self.total_estimator = Estimator::resumed(counted);
                continue;
            };
            if let Some(before) = self.before.get_mut(&key) {
                before.live.resume(counted);
                (before.estimator, before.place) = (Estimator::resumed(counted), place);
            } else if let Some(entry) = self.services.get_mut(&key) {
                entry.live.resume(counted);
                entry.estimator = Estimator::resumed(counted);
                if entry.scheduler == scheduler {
                    entry.place.store(place, Ordering::Relaxed);
                }
            }
        }
        // All numbers are recorded with the next sample; now only names that the files do not contain.
        let kept = self.kept.insert(kept);
        for (key, entry) in &self.services {
            if kept.places.get(&Some(*key)).is_none_or(|(_, recorded)| *recorded != entry.scheduler) {
                kept.set_service(Some(*key), &entry.scheduler, entry.numbers());
            }
            entry
                .destinations
                .iter()
                .filter(|dest| !numbers.contains_key(&dest.id))
                .for_each(|dest| kept.set_destination(*key, dest));
        }
        kept.write();
    }

    /// The entry of a service that is added: as before the start, or new.
    pub(super) fn service_before(&mut self, key: ServiceKey, scheduler: &str) -> ServiceEntry {
        let (live, estimator, place) = match self.before.remove(&key) {
            Some(before) if before.scheduler == scheduler => (before.live, before.estimator, before.place),
            Some(before) => (before.live, before.estimator, 0),
            None => Default::default(),
        };
        ServiceEntry {
            live,
            estimator,
            scheduler: scheduler.to_owned(),
            place: Arc::new(AtomicU64::new(place)),
            memory: None,
            serving_since: None,
            destinations: Vec::new(),
        }
    }

    /// Records the numbers of these services and of their destinations, before workers use them.
    pub(super) fn record(&mut self, changed: impl IntoIterator<Item = ServiceKey>) {
        let Some(kept) = &mut self.kept else { return };
        for key in changed {
            let Some(entry) = self.services.get(&key) else { continue };
            kept.set_service(Some(key), &entry.scheduler, entry.numbers());
            entry.destinations.iter().for_each(|dest| kept.set_destination(key, dest));
        }
        kept.write();
    }

    /// Records all numbers.
    pub fn record_all(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        for (key, entry) in &self.services {
            kept.set_service(Some(*key), &entry.scheduler, entry.numbers());
            for dest in &entry.destinations {
                kept.destinations.set_numbers(dest.id.0, dest.numbers());
            }
        }
        for trashed in self.trash.values() {
            kept.destinations.set_numbers(trashed.dest.id.0, trashed.dest.numbers());
        }
        kept.set_service(None, "", numbers(self.total_estimator.since_zero(self.total.sum()), &[]));
        kept.write();
    }

    /// Forgets services from before the start that have not been configured again, and path MTUs without a destination.
    pub fn forget_unused(&mut self, now: Millis) {
        self.path_mtus.retain(|_, path_mtu| path_mtu.strong_count() > 0);
        self.before.retain(|_, before| before.since.until(now) < BEFORE_TIME);
    }

    /// The reason why the files of [`Self::resume`] are not current; `None` if they are.
    pub fn keep_failure(&self) -> Option<&str> {
        self.kept.as_ref()?.failure.as_deref()
    }
}

/// The time that the totals of a service from before the start wait for its configuration.
const BEFORE_TIME: Duration = Duration::from_secs(120);
/// The indices of a destination's numbers after its counters.
const WEIGHT_AT: usize = 5;
const METHODS_AT: usize = 6;
const OVERLOADED_AT: usize = 7;
/// Active and inactive connections, then templates.
const CONNECTIONS_AT: usize = 8;
/// The index of the scheduler's position in a service's numbers, after its counters.
const PLACE_AT: usize = 5;

const METHODS: [ForwardingMethod; 5] = [
    ForwardingMethod::Nat,
    ForwardingMethod::Local,
    ForwardingMethod::Tunnel,
    ForwardingMethod::DirectRouting,
    ForwardingMethod::FullNat,
];

fn numbers(counted: StatsValues, rest: &[u64]) -> [u64; NUMBERS] {
    let mut all = [0; NUMBERS];
    all[..5].copy_from_slice(&fields(counted));
    all[5..][..rest.len()].copy_from_slice(rest);
    all
}

/// The connections of a destination.
fn connections(numbers: [u64; NUMBERS]) -> Counts {
    let [active, inactive, templates] = std::array::from_fn(|at| numbers[CONNECTIONS_AT + at] as u32);
    Counts { load: Load { active, inactive }, templates }
}

fn counted(numbers: [u64; NUMBERS]) -> StatsValues {
    let [connections, in_packets, out_packets, in_bytes, out_bytes, ..] = numbers;
    StatsValues { connections, in_packets, out_packets, in_bytes, out_bytes }
}
