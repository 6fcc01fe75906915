//! The live objects behind the desired state: counters, numbers and schedulers of services and destinations.
//!
//! Owned by the control thread. Builds the services that workers use. Gives each destination the number by which
//! connections refer to it. Keeps a removed destination in the trash while connections may refer to it; a destination
//! that is added again gets its connections and counters back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::CallIds;
use xvs_dataplane::counters::SharedStats;
use xvs_dataplane::egress::path_mtu::PathMtu;
use xvs_dataplane::snapshot::{Destination, DestinationId, PersistenceScope, Snapshot};
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::objects::disabled::{Disabled, DisabledServers};
use xvs_model::objects::quic::QuicKey;
use xvs_model::objects::{Object, Rule};
use xvs_model::report::listing::{DestinationRow, ServiceRow};
use xvs_proto::Endpoint;
use xvs_sched::scheduler::{Change, Tuning};
use xvs_sched::{ForwardingMethod, ServiceKey, State as Place, Weight, scheduler};

use crate::quic_key::QuicKeys;
use crate::registry::entries::{
    DestinationEntry, ServiceEntry, Trashed, build, destination, in_vrfs, path, trash_range,
};
use crate::registry::estimator::Estimator;
use crate::registry::kept::{Kept, ServiceBefore};
use crate::steering::{Item, of_destination, of_service};

mod entries;
pub mod estimator;
pub mod kept;
pub mod load_feedback;
mod load_reports;
mod numbers;
pub mod quic;
pub mod responses;
mod slow_start;
mod time_feedback;
mod trash;
pub mod tunnels;

/// Default number of SIP calls that are distinguished.
pub const SIP_CALLS: usize = 65_536;

/// Live objects of services and destinations.
pub struct Registry {
    workers: usize,
    /// Capacity of the Call-ID store, which is created with the first service with `--pe sip`.
    pub sip_calls: usize,
    services: BTreeMap<ServiceKey, ServiceEntry>,
    trash: BTreeMap<(ServiceKey, Endpoint), Trashed>,
    /// The time of the next scan of the trash; `None` if the trash was empty at the last scan.
    pub(crate) trash_scan: Option<Millis>,
    free_ids: Vec<DestinationId>,
    /// Services that have changed since the last [`Self::build`].
    unbuilt: BTreeSet<ServiceKey>,
    /// Services of which a destination starts slowly.
    starting: BTreeSet<ServiceKey>,
    /// Slow starts that have begun and are not recorded yet.
    slow_start_events: Vec<String>,
    /// The time of the last change.
    changed_at: Millis,
    next_id: u32,
    /// Path MTUs by destination address, kept while a destination has the address.
    path_mtus: HashMap<IpAddr, Weak<PathMtu>>,
    /// Settings that schedulers read while they run.
    pub tuning: Tuning,
    /// The keys of QUIC configurations.
    pub(crate) quic_keys: QuicKeys,
    /// Totals of all services, including deleted ones.
    pub total: SharedStats,
    total_estimator: Estimator,
    /// Files that outlive the process; `None` without a state directory.
    kept: Option<Kept>,
    /// Services from before the start that have not been configured again yet.
    before: BTreeMap<ServiceKey, ServiceBefore>,
}

impl Registry {
    /// An empty registry for this many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            sip_calls: SIP_CALLS,
            services: BTreeMap::new(),
            trash: BTreeMap::new(),
            trash_scan: None,
            free_ids: Vec::new(),
            unbuilt: BTreeSet::new(),
            starting: BTreeSet::new(),
            slow_start_events: Vec::new(),
            changed_at: Millis(0),
            next_id: 0,
            path_mtus: HashMap::new(),
            tuning: Tuning::default(),
            quic_keys: QuicKeys::new(),
            total: SharedStats::new(workers),
            total_estimator: Estimator::default(),
            kept: None,
            before: BTreeMap::new(),
        }
    }

    /// Applies a command that the desired state has accepted; `state` is the state after it. [`Self::build`] enters the
    /// changed services in the snapshot, so a batch builds each service once.
    pub fn apply(&mut self, command: &Command, state: &State, snapshot: &mut Snapshot, now: Millis) {
        self.changed_at = now;
        match command {
            Command::Add(Rule::Service { key, options }) => self.add_service(*key, &options.scheduler),
            Command::EditService { key, options } => self.edit_service(*key, &options.scheduler),
            Command::Delete(Object::Service(key)) => self.remove_service(*key, snapshot, now),
            Command::Flush => {
                let keys: Vec<_> = self.services.keys().copied().collect();
                keys.into_iter().for_each(|key| self.remove_service(key, snapshot, now));
            }
            Command::Add(Rule::Destination { service, endpoint, options }) => {
                let Some(mut entry) = self.services.remove(service) else { return };
                let mut dest = self.restore_or_create(*service, *endpoint, &entry.live);
                dest.last_weight = Weight(0);
                dest.disabled = state.disabled().includes(*service, *endpoint);
                dest.set_options(options);
                entry.destinations.insert(0, dest);
                self.store_changed(*service, entry, Change::Added);
            }
            Command::EditDestination { service, endpoint, options } => {
                let Some(mut entry) = self.services.remove(service) else { return };
                if let Some(dest) = entry.destinations.iter_mut().find(|dest| dest.endpoint == *endpoint) {
                    dest.set_options(options);
                }
                self.store_changed(*service, entry, Change::Edited);
            }
            Command::Delete(Object::Destination { service, endpoint }) => {
                let Some(mut entry) = self.services.remove(service) else { return };
                if let Some(position) = entry.destinations.iter().position(|dest| dest.endpoint == *endpoint)
                {
                    let dest = entry.destinations.remove(position);
                    self.move_to_trash(*service, dest, &entry.live, snapshot, now);
                    self.store_changed(*service, entry, Change::Removed(position));
                }
            }
            Command::Zero(key) => self.zero(*key),
            Command::Add(_) | Command::Delete(_) => match command.object() {
                Some(Object::Disabled(servers)) => self.set_disabled(servers, state.disabled()),
                Some(Object::Limit(service) | Object::Quic(QuicKey { service, .. })) => {
                    self.unbuilt.extend(self.services.contains_key(&service).then_some(service));
                }
                // No other command concerns a service or its destinations.
                _ => {}
            },
        }
    }

    fn add_service(&mut self, key: ServiceKey, scheduler: &str) {
        let entry = self.service_before(key, scheduler);
        self.services.insert(key, entry);
        self.unbuilt.insert(key);
    }

    /// A different scheduler starts without state; the same one keeps its state.
    fn edit_service(&mut self, key: ServiceKey, scheduler: &str) {
        if let Some(entry) = self.services.get_mut(&key)
            && entry.scheduler != scheduler
        {
            scheduler.clone_into(&mut entry.scheduler);
            entry.place = Arc::default();
            entry.memory = None;
        }
        self.unbuilt.insert(key);
    }

    fn remove_service(&mut self, key: ServiceKey, snapshot: &mut Snapshot, now: Millis) {
        let Some(entry) = self.services.remove(&key) else { return };
        self.unbuilt.remove(&key);
        self.starting.remove(&key);
        self.kept.iter_mut().for_each(|kept| kept.clear_service(key));
        snapshot.services.remove(&key);
        for dest in entry.destinations {
            self.move_to_trash(key, dest, &entry.live, snapshot, now);
        }
    }

    /// Stores a service whose destinations have changed; its scheduler decides what state it keeps.
    fn store_changed(&mut self, key: ServiceKey, mut entry: ServiceEntry, change: Change) {
        let before = Place(entry.place.load(Ordering::Relaxed));
        let mut weights = entry.destinations.iter().map(DestinationEntry::weight_in_force);
        let after = scheduler::carry(&entry.scheduler, before, change, &mut weights);
        entry.place = Arc::new(AtomicU64::new(after.0));
        self.services.insert(key, entry);
        self.unbuilt.insert(key);
    }

    /// Records in the destinations that `changed` concerns whether they are disabled. Other services do not change.
    fn set_disabled(&mut self, changed: Disabled, disabled: &DisabledServers) {
        let concerned = match changed.service {
            Some(key) => self.services.range(key..=key),
            None => self.services.range(..),
        };
        let changing: Vec<_> = concerned
            .filter(|(key, entry)| {
                entry
                    .destinations
                    .iter()
                    .filter(|dest| changed.includes(**key, dest.endpoint))
                    .any(|dest| dest.disabled != disabled.includes(**key, dest.endpoint))
            })
            .map(|(key, _)| *key)
            .collect();
        for key in changing {
            let Some(mut entry) = self.services.remove(&key) else { continue };
            for dest in &mut entry.destinations {
                dest.disabled = disabled.includes(key, dest.endpoint);
            }
            self.store_changed(key, entry, Change::Edited);
        }
    }

    /// Enters all changed services in the snapshot.
    pub fn build(&mut self, state: &State, snapshot: &mut Snapshot) {
        let changed = std::mem::take(&mut self.unbuilt);
        self.record(changed.iter().copied());
        for key in changed {
            let Some(wanted) = state.service(&key) else { continue };
            self.begin_slow_starts(key, &wanted.options);
            let Some(entry) = self.services.get_mut(&key) else { continue };
            for dest in &entry.destinations {
                snapshot.destinations.set(dest.id, Some(destination(key, dest, &entry.live, snapshot)));
            }
            let limit = state.limits().get(&key).copied().filter(|limit| limit.is_of_clients());
            let Some(mut service) = build(key, wanted, entry, &self.tuning, limit) else { continue };
            service.quic = self.quic(state, &service);
            if service.persistence.is_some_and(|persistence| persistence.scope == PersistenceScope::Call)
                && snapshot.call_ids.is_empty()
            {
                snapshot.call_ids = Arc::new(CallIds::new(self.sip_calls, self.workers));
            }
            snapshot.services.insert(Arc::new(service));
        }
    }

    /// The path MTU of an address, shared by all destinations at that address.
    fn path_mtu(&mut self, addr: IpAddr) -> Arc<PathMtu> {
        let kept = self.path_mtus.entry(addr).or_default();
        kept.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *kept = Arc::downgrade(&new);
            new
        })
    }

    /// Recomputes every destination's path. Returns whether any changed.
    pub fn reroute(&self, snapshot: &mut Snapshot) -> bool {
        let mut changed = false;
        for dest in self.destinations() {
            let Some(destination) = snapshot.destinations.find(dest.id) else { continue };
            let (path, tunnel) = path(dest, None, snapshot);
            let in_vrfs = in_vrfs(dest, snapshot);
            if (destination.path, destination.tunnel, &destination.in_vrfs) != (path, tunnel, &in_vrfs) {
                let rerouted = Destination { path, tunnel, in_vrfs, ..destination.clone() };
                snapshot.destinations.set(dest.id, Some(rerouted));
                changed = true;
            }
        }
        changed
    }

    fn destinations(&self) -> impl Iterator<Item = &DestinationEntry> {
        self.services
            .values()
            .flat_map(|entry| &entry.destinations)
            .chain(self.trash.values().map(|trashed| &trashed.dest))
    }

    /// The items steered for a service as configured, and for connections of its earlier configuration. Excludes
    /// networks steered for its mark. Every worker must already use the last change.
    pub(crate) fn steered(&mut self, key: ServiceKey) -> BTreeSet<Item> {
        let entry = self.services.get_mut(&key);
        let configured = entry.is_some();
        let destinations = entry.into_iter().flat_map(|entry| &mut entry.destinations);
        let gone = self
            .trash
            .range_mut(trash_range(key))
            .map(|(_, trashed)| &mut trashed.dest)
            .filter(|dest| dest.has_connections());
        let mut items = BTreeSet::new();
        let mut has_leftovers = false;
        for dest in destinations.chain(gone.inspect(|_| has_leftovers = true)) {
            dest.forget_unused_methods();
            items.extend(dest.methods.iter().flat_map(|method| of_destination(key, dest.endpoint, *method)));
        }
        if configured || has_leftovers {
            items.extend(of_service(key));
        }
        items
    }

    /// The services for which something may be steered only for existing connections: those of a deleted destination,
    /// or with a former method.
    pub fn with_leftover_steering(&self) -> impl Iterator<Item = ServiceKey> {
        let edited = self
            .services
            .iter()
            .filter(|(_, entry)| entry.destinations.iter().any(|dest| dest.methods.len() > 1));
        self.trash.keys().map(|(key, _)| *key).chain(edited.map(|(key, _)| *key))
    }

    /// Whether FULLNAT connections may exist.
    pub fn has_full_nat_connections(&self) -> bool {
        self.destinations()
            .any(|dest| dest.methods.contains(&ForwardingMethod::FullNat) && dest.has_connections())
    }

    /// Keys of all services, and of deleted ones that may have connections.
    pub fn service_keys(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.keys().copied().chain(self.trash.keys().map(|(key, _)| *key))
    }

    /// Whether a service or its deleted predecessor has connections.
    pub fn has_connections(&self, key: ServiceKey) -> bool {
        let live = self.services.get(&key).into_iter().flat_map(|entry| &entry.destinations);
        let gone = self.trash.range(trash_range(key)).map(|(_, trashed)| &trashed.dest);
        live.chain(gone).any(DestinationEntry::has_connections)
    }

    /// Addresses of all destinations, including those in the trash.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.destinations().map(|dest| dest.endpoint.addr)
    }

    /// Samples every counter, as this number of samples that were due since the last one, and makes schedulers expire
    /// their memories. Returns the number of services and destinations.
    pub fn sample_counters(&mut self, now: Millis, samples: u32) -> usize {
        let mut counters = 0;
        self.total_estimator.tick(self.total.sum(), samples);
        for entry in self.services.values_mut() {
            entry.memory.iter().for_each(|memory| memory.tend(now.0));
            entry.estimator.tick(entry.live.stats(), samples);
            for dest in &mut entry.destinations {
                dest.estimator.tick(dest.live.stats.sum(), samples);
            }
            counters += 1 + entry.destinations.len();
        }
        self.record_all();
        counters
    }

    /// Zeroes the totals of a service and its destinations; `None`: of all services, and the total.
    fn zero(&mut self, key: Option<ServiceKey>) {
        if key.is_none() {
            self.total_estimator.zero();
        }
        for (_, entry) in self.services.iter_mut().filter(|(of, _)| key.is_none_or(|key| key == **of)) {
            entry.estimator.zero();
            entry.destinations.iter_mut().for_each(|dest| dest.estimator.zero());
        }
    }

    /// A service as listings show it.
    pub fn row(&self, key: ServiceKey, wanted: &xvs_model::config::service::Service) -> Option<ServiceRow> {
        let entry = self.services.get(&key)?;
        Some(ServiceRow {
            key,
            options: wanted.options.clone(),
            stats: entry.estimator.stats(),
            rates: entry.estimator.rates(),
            destinations: entry
                .destinations
                .iter()
                .zip(&wanted.destinations)
                .map(|(dest, destination)| {
                    let load = dest.live.load();
                    DestinationRow {
                        endpoint: dest.endpoint,
                        options: destination.options.clone(),
                        weight_in_force: dest.weight_in_force(),
                        active: load.active,
                        inactive: load.inactive,
                        persistent: dest.live.templates(),
                        stats: dest.estimator.stats(),
                        rates: dest.estimator.rates(),
                        responses: responses::responses(&dest.live),
                    }
                })
                .collect(),
        })
    }
}
