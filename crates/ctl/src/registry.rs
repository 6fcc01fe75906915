//! The live objects behind the desired state: numbers of destinations and services that outlive every change.
//!
//! Owned by the control thread. Turns a service as it is wanted into the one that workers use, gives each
//! destination the number by which connections refer to it, and keeps removed destinations in the trash for as long
//! as a connection may refer to them, so that one that is added again gets its connections and counts back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::{
    Destination, DestinationId, DestinationLive, Member, Path, Service, ServiceLive, Snapshot,
};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::scheduler::{self, Change};
use xvs_sched::{Candidates, ForwardingMethod, ServiceKey, State as Place, Weight};

use crate::estimator::Estimator;
use crate::message::{DestinationRow, ServiceRow};
use crate::state::{self, State};

/// How long a removed destination without connections is kept.
const TRASH_TIME: Duration = Duration::from_secs(120);

/// Whether a change of a service restarts its scheduler's walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// The destinations may have changed: the scheduler carries its state over.
    Carried,
    /// Only the service's own options have changed.
    Kept,
}

/// Live objects by identity.
pub struct Registry {
    workers: usize,
    services: BTreeMap<ServiceKey, Entry>,
    trash: HashMap<(ServiceKey, Endpoint), Trashed>,
    unused: Vec<DestinationId>,
    next: u32,
    /// Over all services, those gone included.
    pub total: Arc<ServiceLive>,
    total_estimator: Estimator,
}

struct Entry {
    live: Arc<ServiceLive>,
    estimator: Estimator,
    scheduler: String,
    place: Arc<AtomicU64>,
    destinations: Vec<Known>,
}

struct Known {
    endpoint: Endpoint,
    method: ForwardingMethod,
    id: DestinationId,
    live: Arc<DestinationLive>,
    estimator: Estimator,
}

struct Trashed {
    known: Known,
    service: Arc<ServiceLive>,
    since: Millis,
}

impl Registry {
    /// None yet, for this many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            services: BTreeMap::new(),
            trash: HashMap::new(),
            unused: Vec::new(),
            next: 0,
            total: Arc::new(ServiceLive::new(workers)),
            total_estimator: Estimator::default(),
        }
    }

    /// Brings a snapshot in line with one service of the desired state, also if that is gone.
    pub fn update(&mut self, key: ServiceKey, state: &State, walk: Walk, snapshot: &mut Snapshot, now: Millis) {
        match state.service(&key) {
            Some(wanted) => self.put(key, wanted, walk, snapshot, now),
            None => self.remove(key, snapshot, now),
        }
    }

    /// Removes every service that the desired state no longer has.
    pub fn flush(&mut self, snapshot: &mut Snapshot, now: Millis) {
        let keys: Vec<_> = self.services.keys().copied().collect();
        for key in keys {
            self.remove(key, snapshot, now);
        }
    }

    fn remove(&mut self, key: ServiceKey, snapshot: &mut Snapshot, now: Millis) {
        let Some(entry) = self.services.remove(&key) else { return };
        snapshot.services.remove(&key);
        for known in entry.destinations {
            self.discard(key, known, &entry.live, snapshot, now);
        }
    }

    fn put(&mut self, key: ServiceKey, wanted: &state::Service, walk: Walk, snapshot: &mut Snapshot, now: Millis) {
        let mut entry = self.services.remove(&key).unwrap_or_else(|| Entry {
            live: Arc::new(ServiceLive::new(self.workers)),
            estimator: Estimator::default(),
            scheduler: wanted.options.scheduler.clone(),
            place: Arc::default(),
            destinations: Vec::new(),
        });
        let places: HashMap<_, _> =
            wanted.destinations.iter().enumerate().map(|(at, destination)| (destination.endpoint, at)).collect();
        let moved: Vec<_> =
            entry.destinations.iter().map(|known| places.get(&known.endpoint).copied()).collect();
        let mut old: HashMap<_, _> = entry.destinations.drain(..).map(|known| (known.endpoint, known)).collect();
        for destination in &wanted.destinations {
            let known = old.remove(&destination.endpoint);
            let mut known = known.unwrap_or_else(|| self.adopt(key, destination.endpoint, &entry.live));
            known.method = destination.options.method;
            snapshot.destinations.set(known.id, Some(available(&known, &entry.live, snapshot)));
            entry.destinations.push(known);
        }
        for known in old.into_values() {
            self.discard(key, known, &entry.live, snapshot, now);
        }
        let service = build(key, wanted, &mut entry, &moved, walk);
        snapshot.services.insert(Arc::new(service));
        self.services.insert(key, entry);
    }

    /// The live object of a destination that is added: out of the trash, or new.
    fn adopt(&mut self, key: ServiceKey, endpoint: Endpoint, service: &Arc<ServiceLive>) -> Known {
        if let Some(Trashed { mut known, service: before, .. }) = self.trash.remove(&(key, endpoint)) {
            if !Arc::ptr_eq(&before, service) {
                known.estimator = Estimator::from(known.live.stats.sum());
            }
            return known;
        }
        let id = self.unused.pop().unwrap_or_else(|| {
            self.next += 1;
            DestinationId(self.next - 1)
        });
        Known {
            endpoint,
            method: ForwardingMethod::DirectRouting,
            id,
            live: Arc::new(DestinationLive::new(self.workers)),
            estimator: Estimator::default(),
        }
    }

    fn discard(
        &mut self,
        key: ServiceKey,
        known: Known,
        service: &Arc<ServiceLive>,
        snapshot: &mut Snapshot,
        now: Millis,
    ) {
        let gone = Destination { available: false, ..available(&known, service, snapshot) };
        snapshot.destinations.set(known.id, Some(gone));
        let trashed = Trashed { known, service: service.clone(), since: now };
        self.trash.insert((key, trashed.known.endpoint), trashed);
    }

    /// Forgets removed destinations that nothing refers to any more. Returns whether the snapshot changed.
    pub fn empty_trash(&mut self, snapshot: &mut Snapshot, now: Millis) -> bool {
        let before = self.unused.len();
        self.trash.retain(|_, trashed| {
            let load = trashed.known.live.load();
            if load.active + load.inactive > 0 {
                trashed.since = now;
            }
            let keep = trashed.since.until(now) < TRASH_TIME;
            if !keep {
                snapshot.destinations.set(trashed.known.id, None);
                self.unused.push(trashed.known.id);
            }
            keep
        });
        self.unused.len() > before
    }

    /// Works out every destination's path anew. Returns whether any changed.
    pub fn reroute(&self, snapshot: &mut Snapshot) -> bool {
        let mut changed = false;
        for known in self.known() {
            let Some(destination) = snapshot.destinations.find(known.id) else { continue };
            let path = Path::find(&snapshot.egress, known.endpoint.addr, 0);
            if destination.path != path {
                let rerouted = Destination { path, ..destination.clone() };
                snapshot.destinations.set(known.id, Some(rerouted));
                changed = true;
            }
        }
        changed
    }

    fn known(&self) -> impl Iterator<Item = &Known> {
        let live = self.services.values().flat_map(|entry| &entry.destinations);
        live.chain(self.trash.values().map(|trashed| &trashed.known))
    }

    /// The protocol and endpoint of every masqueraded destination whose replies may come, removed ones included.
    pub fn nat_destinations(&self) -> impl Iterator<Item = (Protocol, Endpoint)> {
        let live = self.services.iter().flat_map(|(key, entry)| entry.destinations.iter().map(|known| (*key, known)));
        let trash = self.trash.iter().map(|((key, _), trashed)| (*key, &trashed.known));
        live.chain(trash).filter(|(_, known)| known.method == ForwardingMethod::Nat).filter_map(|(key, known)| {
            match key {
                ServiceKey::Address { protocol, endpoint } => {
                    let port = if known.endpoint.port == 0 { endpoint.port } else { known.endpoint.port };
                    Some((protocol, Endpoint { port, ..known.endpoint }))
                }
                ServiceKey::Mark { .. } => None,
            }
        })
    }

    /// Every service, and those gone whose connections may live on.
    pub fn service_keys(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.keys().copied().chain(self.trash.keys().map(|(key, _)| *key))
    }

    /// The addresses that destinations are reached at.
    pub fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        self.known().map(|known| known.endpoint.addr)
    }

    /// Takes a look at every counter.
    pub fn tick(&mut self) {
        self.total_estimator.tick(self.total.stats.sum());
        for entry in self.services.values_mut() {
            entry.estimator.tick(entry.live.stats.sum());
            for known in &mut entry.destinations {
                known.estimator.tick(known.live.stats.sum());
            }
        }
    }

    /// Zeroes what is shown of one service and its destinations, or of all and the total.
    pub fn zero(&mut self, key: Option<ServiceKey>) {
        if key.is_none() {
            self.total_estimator.zero();
        }
        for (_, entry) in self.services.iter_mut().filter(|(of, _)| key.is_none_or(|key| key == **of)) {
            entry.estimator.zero();
            entry.destinations.iter_mut().for_each(|known| known.estimator.zero());
        }
    }

    /// A service as listings show it.
    pub fn row(&self, key: ServiceKey, wanted: &state::Service) -> Option<ServiceRow> {
        let entry = self.services.get(&key)?;
        let destinations = entry.destinations.iter().zip(&wanted.destinations).map(|(known, destination)| {
            let load = known.live.load();
            DestinationRow {
                endpoint: known.endpoint,
                options: destination.options.clone(),
                active: load.active,
                inactive: load.inactive,
                persistent: 0,
                stats: known.estimator.stats(),
                rates: known.estimator.rates(),
            }
        });
        Some(ServiceRow {
            key,
            options: wanted.options.clone(),
            stats: entry.estimator.stats(),
            rates: entry.estimator.rates(),
            destinations: destinations.collect(),
        })
    }
}

fn available(known: &Known, service: &Arc<ServiceLive>, snapshot: &Snapshot) -> Destination {
    Destination {
        available: true,
        path: Path::find(&snapshot.egress, known.endpoint.addr, 0),
        live: known.live.clone(),
        service: service.clone(),
    }
}

/// A service as workers use it.
fn build(
    key: ServiceKey,
    wanted: &state::Service,
    entry: &mut Entry,
    moved: &[Option<usize>],
    walk: Walk,
) -> Service {
    let weights: Vec<Weight> = wanted.destinations.iter().map(|destination| destination.options.weight).collect();
    let members = entry.destinations.iter().zip(&wanted.destinations).map(|(known, destination)| Member {
        id: known.id,
        endpoint: known.endpoint,
        method: destination.options.method,
        weight: destination.options.weight,
        live: known.live.clone(),
    });
    let name = &wanted.options.scheduler;
    let scheduler = scheduler::build(name, &weights).unwrap_or_else(|| Box::new(Nobody));
    if *name != entry.scheduler {
        entry.place = Arc::default();
        entry.scheduler.clone_from(name);
    } else if walk == Walk::Carried {
        let before = Place(entry.place.load(Ordering::Relaxed));
        entry.place = Arc::new(AtomicU64::new(scheduler.carry(before, Change { moved }).0));
    }
    Service { key, members: members.collect(), scheduler, place: entry.place.clone() }
}

/// The scheduler named `none`: a service that never schedules.
struct Nobody;

impl xvs_sched::Scheduler for Nobody {
    fn pick(&self, state: Place, _: &dyn Candidates) -> xvs_sched::Choice {
        xvs_sched::Choice { position: None, state }
    }

    fn carry(&self, state: Place, _: Change<'_>) -> Place {
        state
    }
}
