//! The live objects behind the desired state: numbers of destinations and services that outlive every change.
//!
//! Owned by the control thread. Turns a service as it is wanted into the one that workers use, gives each
//! destination the number by which connections refer to it, and keeps removed destinations in the trash for as long
//! as a connection may refer to them, so that one that is added again gets its connections and counts back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::CallIds;
use xvs_dataplane::egress::path_mtu::PathMtu;
use xvs_dataplane::egress::{Path, RouteTo};
use xvs_dataplane::snapshot;
use xvs_dataplane::snapshot::{
    ClientMask, Destination, DestinationId, DestinationLive, Encapsulation, Member, Persistence,
    PersistenceScope, Service, ServiceLive, Snapshot,
};
use xvs_model::command::Command;
use xvs_model::destination::DestinationOptions;
use xvs_model::listing::{DestinationRow, ServiceRow};
use xvs_model::service::{Netmask, ServiceOptions};
use xvs_model::state::State;
use xvs_proto::Endpoint;
use xvs_sched::scheduler::{Change, Flags, Memory, Setup, Tuning};
use xvs_sched::{ForwardingMethod, ServiceKey, State as Place, Weight, scheduler};

use crate::registry::estimator::Estimator;
use crate::registry::load_feedback::Report;
use crate::registry::tunnels::encapsulation;
use crate::steering::{Item, of_destination, of_service};

pub mod estimator;
pub mod load_feedback;
mod load_reports;
pub mod tunnels;

/// How long a removed destination without connections is kept.
const TRASH_TIME: Duration = Duration::from_secs(120);
/// How many SIP calls there is room for where nothing else is said.
pub const SIP_CALLS: usize = 65_536;

/// Live objects by identity.
pub struct Registry {
    workers: usize,
    /// How many Call-IDs there is room for, once there is a service with `--pe sip`.
    pub sip_calls: usize,
    services: BTreeMap<ServiceKey, ServiceEntry>,
    trash: BTreeMap<(ServiceKey, Endpoint), Trashed>,
    free_ids: Vec<DestinationId>,
    /// Services that have changed since the last [`Self::build`].
    unbuilt: BTreeSet<ServiceKey>,
    next_id: u32,
    /// What is known of the way to an address, for as long as there is a destination.
    path_mtus: HashMap<IpAddr, Weak<PathMtu>>,
    /// Settings that schedulers look up while they work.
    pub tuning: Tuning,
    /// Over all services, those gone included.
    pub total: Arc<ServiceLive>,
    total_estimator: Estimator,
}

struct ServiceEntry {
    live: Arc<ServiceLive>,
    estimator: Estimator,
    scheduler: String,
    place: Arc<AtomicU64>,
    /// What its scheduler knows of clients; the next one of the same name goes on with it.
    memory: Option<Arc<Memory>>,
    destinations: Vec<DestinationEntry>,
}

struct DestinationEntry {
    endpoint: Endpoint,
    method: ForwardingMethod,
    /// Those of its connections: they keep theirs when an edit changes it.
    methods: BTreeSet<ForwardingMethod>,
    /// The operator's.
    weight: Weight,
    encapsulation: Encapsulation,
    path_mtu: Arc<PathMtu>,
    /// The last weight above 0 since it was added; 0 if there was none.
    last_weight: Weight,
    /// What load reports have made of it.
    report: Option<Report>,
    id: DestinationId,
    live: Arc<DestinationLive>,
    estimator: Estimator,
}

impl DestinationEntry {
    fn set_options(&mut self, options: &DestinationOptions) {
        self.method = options.method;
        self.methods.insert(options.method);
        if self.weight != options.weight {
            self.report = None;
        }
        self.weight = options.weight;
        self.encapsulation = encapsulation(options.tunnel);
        if !options.weight.is_quiescent() {
            self.last_weight = options.weight;
        }
        self.live.set_thresholds(options.upper_threshold, options.lower_threshold);
    }

    /// As its service's scheduler sees it.
    fn listed(&self) -> xvs_sched::Destination {
        let weight = self.weight_in_force();
        let last_weight = if weight.is_quiescent() { self.last_weight } else { weight };
        xvs_sched::Destination { endpoint: self.endpoint, weight, last_weight }
    }

    /// The weight that schedulers go by.
    fn weight_in_force(&self) -> Weight {
        match self.report {
            Some(report) if !self.weight.is_quiescent() => report.weight(),
            _ => self.weight,
        }
    }

    /// Forgets methods that no connection has any more. No worker may go by what was before the last edit.
    fn forget_unused_methods(&mut self) {
        if !self.has_connections() {
            self.methods.retain(|method| *method == self.method);
        }
    }

    fn has_connections(&self) -> bool {
        let load = self.live.load();
        load.active + load.inactive > 0
    }
}

struct Trashed {
    dest: DestinationEntry,
    service: Arc<ServiceLive>,
    since: Millis,
}

impl Registry {
    /// None yet, for this many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            sip_calls: SIP_CALLS,
            services: BTreeMap::new(),
            trash: BTreeMap::new(),
            free_ids: Vec::new(),
            unbuilt: BTreeSet::new(),
            next_id: 0,
            path_mtus: HashMap::new(),
            tuning: Tuning::default(),
            total: Arc::new(ServiceLive::new(workers)),
            total_estimator: Estimator::default(),
        }
    }

    /// Takes in a command that the desired state has carried out. Services that change reach the snapshot with
    /// [`Self::build`], so that a batch costs one building of each.
    pub fn apply(&mut self, command: &Command, snapshot: &mut Snapshot, now: Millis) {
        match command {
            Command::AddService { key, options } => self.add_service(*key, &options.scheduler),
            Command::EditService { key, options } => self.edit_service(*key, &options.scheduler),
            Command::DeleteService(key) => self.remove_service(*key, snapshot, now),
            Command::Flush => {
                let keys: Vec<_> = self.services.keys().copied().collect();
                keys.into_iter().for_each(|key| self.remove_service(key, snapshot, now));
            }
            Command::AddDestination { service, endpoint, options } => {
                let Some(mut entry) = self.services.remove(service) else { return };
                let mut dest = self.restore_or_create(*service, *endpoint, &entry.live);
                dest.last_weight = Weight(0);
                dest.set_options(options);
                entry.destinations.insert(0, dest);
                self.changed(*service, entry, Change::Added);
            }
            Command::EditDestination { service, endpoint, options } => {
                let Some(mut entry) = self.services.remove(service) else { return };
                if let Some(dest) = entry.destinations.iter_mut().find(|dest| dest.endpoint == *endpoint) {
                    dest.set_options(options);
                }
                self.changed(*service, entry, Change::Edited);
            }
            Command::DeleteDestination { service, endpoint } => {
                let Some(mut entry) = self.services.remove(service) else { return };
                if let Some(position) = entry.destinations.iter().position(|dest| dest.endpoint == *endpoint)
                {
                    let dest = entry.destinations.remove(position);
                    self.move_to_trash(*service, dest, &entry.live, snapshot, now);
                    self.changed(*service, entry, Change::Removed(position));
                }
            }
            Command::Zero(key) => self.zero(*key),
            Command::SetTimeouts(_)
            | Command::StartDaemon(_)
            | Command::StopDaemon(_)
            | Command::AddMark(_)
            | Command::DeleteMark(_)
            | Command::AddLocal(_)
            | Command::DeleteLocal(_) => {}
        }
    }

    fn add_service(&mut self, key: ServiceKey, scheduler: &str) {
        let entry = ServiceEntry {
            live: Arc::new(ServiceLive::new(self.workers)),
            estimator: Estimator::default(),
            scheduler: scheduler.to_owned(),
            place: Arc::default(),
            memory: None,
            destinations: Vec::new(),
        };
        self.services.insert(key, entry);
        self.unbuilt.insert(key);
    }

    /// Another scheduler begins anew; the same one goes on.
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
        snapshot.services.remove(&key);
        for dest in entry.destinations {
            self.move_to_trash(key, dest, &entry.live, snapshot, now);
        }
    }

    /// Puts a service back whose destinations have changed; its scheduler's state survives as it says.
    fn changed(&mut self, key: ServiceKey, mut entry: ServiceEntry, change: Change) {
        let before = Place(entry.place.load(Ordering::Relaxed));
        let mut weights = entry.destinations.iter().map(DestinationEntry::weight_in_force);
        let after = scheduler::carry(&entry.scheduler, before, change, &mut weights);
        entry.place = Arc::new(AtomicU64::new(after.0));
        self.services.insert(key, entry);
        self.unbuilt.insert(key);
    }

    /// Enters all services that have changed in a snapshot.
    pub fn build(&mut self, state: &State, snapshot: &mut Snapshot) {
        for key in std::mem::take(&mut self.unbuilt) {
            let Some((entry, wanted)) = self.services.get_mut(&key).zip(state.service(&key)) else {
                continue;
            };
            for dest in &entry.destinations {
                snapshot.destinations.set(dest.id, Some(destination(dest, &entry.live, snapshot)));
            }
            let Some(service) = build(key, wanted, entry, &self.tuning) else { continue };
            let by_call =
                service.persistence.is_some_and(|persistence| persistence.scope == PersistenceScope::Call);
            if by_call && snapshot.call_ids.is_empty() {
                snapshot.call_ids = Arc::new(CallIds::new(self.sip_calls, self.workers));
            }
            snapshot.services.insert(Arc::new(service));
        }
    }

    /// The live object of a destination that is added: out of the trash, or new.
    fn restore_or_create(
        &mut self,
        key: ServiceKey,
        endpoint: Endpoint,
        service: &Arc<ServiceLive>,
    ) -> DestinationEntry {
        if let Some(Trashed { mut dest, service: before, .. }) = self.trash.remove(&(key, endpoint)) {
            if !Arc::ptr_eq(&before, service) {
                dest.estimator = Estimator::from(dest.live.stats.sum());
            }
            return dest;
        }
        let id = self.free_ids.pop().unwrap_or_else(|| {
            self.next_id += 1;
            DestinationId(self.next_id - 1)
        });
        DestinationEntry {
            endpoint,
            method: ForwardingMethod::DirectRouting,
            methods: BTreeSet::new(),
            weight: Weight(0),
            encapsulation: Encapsulation::Ip,
            path_mtu: self.path_mtu(endpoint.addr),
            last_weight: Weight(0),
            report: None,
            id,
            live: Arc::new(DestinationLive::new(self.workers)),
            estimator: Estimator::default(),
        }
    }

    /// What is known of the way to an address: the same for all destinations there.
    fn path_mtu(&mut self, addr: IpAddr) -> Arc<PathMtu> {
        let kept = self.path_mtus.entry(addr).or_default();
        kept.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *kept = Arc::downgrade(&new);
            new
        })
    }

    fn move_to_trash(
        &mut self,
        key: ServiceKey,
        mut dest: DestinationEntry,
        service: &Arc<ServiceLive>,
        snapshot: &mut Snapshot,
        now: Millis,
    ) {
        dest.report = None;
        let gone = Destination { available: false, ..destination(&dest, service, snapshot) };
        snapshot.destinations.set(dest.id, Some(gone));
        let trashed = Trashed { dest, service: service.clone(), since: now };
        self.trash.insert((key, trashed.dest.endpoint), trashed);
    }

    /// Forgets removed destinations that nothing refers to any more. Returns whether there were removed ones.
    pub fn empty_trash(&mut self, snapshot: &mut Snapshot, now: Millis) -> bool {
        let any = !self.trash.is_empty();
        self.trash.retain(|_, trashed| {
            if trashed.dest.has_connections() || trashed.dest.live.templates() > 0 {
                trashed.since = now;
            }
            let keep = trashed.since.until(now) < TRASH_TIME;
            if !keep {
                snapshot.destinations.set(trashed.dest.id, None);
                self.free_ids.push(trashed.dest.id);
            }
            keep
        });
        self.path_mtus.retain(|_, path_mtu| path_mtu.strong_count() > 0);
        any
    }

    /// Works out every destination's path anew. Returns whether any changed.
    pub fn reroute(&self, snapshot: &mut Snapshot) -> bool {
        let mut changed = false;
        for dest in self.destinations() {
            let Some(destination) = snapshot.destinations.find(dest.id) else { continue };
            let path = Path::find(&snapshot.egress, dest.endpoint.addr, 0);
            let tunnel = tunnel(dest, snapshot);
            if (destination.path, destination.tunnel) != (path, tunnel) {
                let rerouted = Destination { path, tunnel, ..destination.clone() };
                snapshot.destinations.set(dest.id, Some(rerouted));
                changed = true;
            }
        }
        changed
    }

    fn destinations(&self) -> impl Iterator<Item = &DestinationEntry> {
        let live = self.services.values().flat_map(|entry| &entry.destinations);
        live.chain(self.trash.values().map(|trashed| &trashed.dest))
    }

    /// What is steered for a service as it is, and for the connections of what it was. To be asked when every worker acts
    /// on the last change. Its mark is not looked at.
    pub(crate) fn steered(&mut self, key: ServiceKey) -> BTreeSet<Item> {
        let entry = self.services.get_mut(&key);
        let configured = entry.is_some();
        let destinations = entry.into_iter().flat_map(|entry| &mut entry.destinations);
        let gone = self.trash.range_mut(trash_range(key)).map(|(_, trashed)| &mut trashed.dest);
        let gone = gone.filter(|dest| dest.has_connections());
        let mut items = BTreeSet::new();
        let mut lingers = false;
        for dest in destinations.chain(gone.inspect(|_| lingers = true)) {
            dest.forget_unused_methods();
            items.extend(dest.methods.iter().flat_map(|method| of_destination(key, dest.endpoint, *method)));
        }
        items.extend((configured || lingers).then(|| of_service(key)).into_iter().flatten());
        items
    }

    /// Whether something may be steered for connections alone: of what was deleted, or was another method's.
    pub fn has_leftover_steering(&self) -> bool {
        !self.trash.is_empty() || self.destinations().any(|dest| dest.methods.len() > 1)
    }

    /// Whether there may be FULLNAT connections.
    pub fn has_full_nat_connections(&self) -> bool {
        self.destinations()
            .any(|dest| dest.methods.contains(&ForwardingMethod::FullNat) && dest.has_connections())
    }

    /// Every service, and those gone that may have connections.
    pub fn service_keys(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.keys().copied().chain(self.trash.keys().map(|(key, _)| *key))
    }

    /// Whether a service, or one that it was before, has connections.
    pub fn has_connections(&self, key: ServiceKey) -> bool {
        let live = self.services.get(&key).into_iter().flat_map(|entry| &entry.destinations);
        let gone = self.trash.range(trash_range(key)).map(|(_, trashed)| &trashed.dest);
        live.chain(gone).any(DestinationEntry::has_connections)
    }

    /// The addresses that destinations are reached at.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.destinations().map(|dest| dest.endpoint.addr)
    }

    /// Takes a look at every counter, and at what schedulers remember.
    pub fn sample_counters(&mut self, now: Millis) {
        self.total_estimator.tick(self.total.stats.sum());
        for entry in self.services.values_mut() {
            entry.memory.iter().for_each(|memory| memory.tend(now.0));
            entry.estimator.tick(entry.live.stats.sum());
            for dest in &mut entry.destinations {
                dest.estimator.tick(dest.live.stats.sum());
            }
        }
    }

    /// Zeroes what is shown of one service and its destinations, or of all and the total.
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
    pub fn row(&self, key: ServiceKey, wanted: &xvs_model::service::Service) -> Option<ServiceRow> {
        let entry = self.services.get(&key)?;
        let destinations = entry.destinations.iter().zip(&wanted.destinations).map(|(dest, destination)| {
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

/// Everything of a service in the trash.
fn trash_range(key: ServiceKey) -> RangeInclusive<(ServiceKey, Endpoint)> {
    let first = Endpoint { addr: Ipv4Addr::UNSPECIFIED.into(), port: 0 };
    let last = Endpoint { addr: Ipv6Addr::from_bits(u128::MAX).into(), port: u16::MAX };
    (key, first)..=(key, last)
}

/// What tunnels to a destination look like.
fn tunnel(dest: &DestinationEntry, snapshot: &Snapshot) -> snapshot::Tunnel {
    let egress = &snapshot.egress;
    let source = match egress.route(dest.endpoint.addr, 0) {
        RouteTo::Via { link, .. } => egress.source_for(dest.endpoint.addr, link),
        _ => None,
    };
    snapshot::Tunnel { source, encapsulation: dest.encapsulation }
}

fn destination(dest: &DestinationEntry, service: &Arc<ServiceLive>, snapshot: &Snapshot) -> Destination {
    Destination {
        available: true,
        endpoint: dest.endpoint,
        method: dest.method,
        weight: dest.weight_in_force(),
        path: Path::find(&snapshot.egress, dest.endpoint.addr, 0),
        path_mtu: dest.path_mtu.clone(),
        tunnel: tunnel(dest, snapshot),
        live: dest.live.clone(),
        service: service.clone(),
    }
}

/// A service as workers use it; `None` if its scheduler has no such name, which was checked when it was named.
fn build(
    key: ServiceKey,
    wanted: &xvs_model::service::Service,
    entry: &mut ServiceEntry,
    tuning: &Tuning,
) -> Option<Service> {
    let listed: Vec<_> = entry.destinations.iter().map(DestinationEntry::listed).collect();
    let setup = Setup {
        destinations: &listed,
        flags: Flags(wanted.options.flags.0),
        memory: entry.memory.take(),
        tuning: tuning.clone(),
    };
    let scheduler = scheduler::build(&entry.scheduler, &setup)?;
    entry.memory = scheduler.memory().cloned();
    let members = entry.destinations.iter().map(|dest| Member {
        id: dest.id,
        endpoint: dest.endpoint,
        method: dest.method,
        weight: dest.weight_in_force(),
        own_weight: dest.weight,
        live: dest.live.clone(),
    });
    Some(Service {
        key,
        members: members.collect(),
        scheduler,
        one_packet: wanted.options.one_packet,
        client_address: wanted.options.client_address,
        persistence: persistence(&wanted.options),
        place: entry.place.clone(),
        live: entry.live.clone(),
    })
}

fn persistence(options: &ServiceOptions) -> Option<Persistence> {
    let mask = match options.netmask {
        Netmask::V4(mask) => ClientMask::V4(mask),
        Netmask::V6(bits) => ClientMask::V6(bits),
    };
    let scope =
        if options.persistence_engine.is_some() { PersistenceScope::Call } else { PersistenceScope::Client };
    let timeout_seconds = options.persistence_timeout_seconds?;
    Some(Persistence { timeout_seconds, mask, scope })
}
