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
    services: BTreeMap<ServiceKey, Entry>,
    trash: BTreeMap<(ServiceKey, Endpoint), Trashed>,
    unused: Vec<DestinationId>,
    /// Services that have changed since the last [`Self::build`].
    unbuilt: BTreeSet<ServiceKey>,
    next: u32,
    /// What is known of the way to an address, for as long as there is a destination.
    path_mtus: HashMap<IpAddr, Weak<PathMtu>>,
    /// Settings that schedulers look up while they work.
    pub tuning: Tuning,
    /// Over all services, those gone included.
    pub total: Arc<ServiceLive>,
    total_estimator: Estimator,
}

struct Entry {
    live: Arc<ServiceLive>,
    estimator: Estimator,
    scheduler: String,
    place: Arc<AtomicU64>,
    /// What its scheduler knows of clients; the next one of the same name goes on with it.
    memory: Option<Arc<Memory>>,
    destinations: Vec<Known>,
}

struct Known {
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

impl Known {
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
    fn tidy(&mut self) {
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
    known: Known,
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
            unused: Vec::new(),
            unbuilt: BTreeSet::new(),
            next: 0,
            path_mtus: HashMap::new(),
            tuning: Tuning::default(),
            total: Arc::new(ServiceLive::new(workers)),
            total_estimator: Estimator::default(),
        }
    }

    /// Takes in a command that the desired state has carried out. Services that change reach the snapshot with
    /// [`Self::build`], so that a batch costs one building of each.
    pub fn follow(&mut self, command: &Command, snapshot: &mut Snapshot, now: Millis) {
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
                let mut known = self.adopt(*service, *endpoint, &entry.live);
                known.last_weight = Weight(0);
                known.set_options(options);
                entry.destinations.insert(0, known);
                self.changed(*service, entry, Change::Added);
            }
            Command::EditDestination { service, endpoint, options } => {
                let Some(mut entry) = self.services.remove(service) else { return };
                if let Some(known) = entry.destinations.iter_mut().find(|known| known.endpoint == *endpoint) {
                    known.set_options(options);
                }
                self.changed(*service, entry, Change::Edited);
            }
            Command::DeleteDestination { service, endpoint } => {
                let Some(mut entry) = self.services.remove(service) else { return };
                if let Some(position) =
                    entry.destinations.iter().position(|known| known.endpoint == *endpoint)
                {
                    let known = entry.destinations.remove(position);
                    self.discard(*service, known, &entry.live, snapshot, now);
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
        let entry = Entry {
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
        for known in entry.destinations {
            self.discard(key, known, &entry.live, snapshot, now);
        }
    }

    /// Puts a service back whose destinations have changed; its scheduler's state survives as it says.
    fn changed(&mut self, key: ServiceKey, mut entry: Entry, change: Change) {
        let before = Place(entry.place.load(Ordering::Relaxed));
        let mut weights = entry.destinations.iter().map(Known::weight_in_force);
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
            for known in &entry.destinations {
                snapshot.destinations.set(known.id, Some(available(known, &entry.live, snapshot)));
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
        let known = self.path_mtus.entry(addr).or_default();
        known.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *known = Arc::downgrade(&new);
            new
        })
    }

    fn discard(
        &mut self,
        key: ServiceKey,
        mut known: Known,
        service: &Arc<ServiceLive>,
        snapshot: &mut Snapshot,
        now: Millis,
    ) {
        known.report = None;
        let gone = Destination { available: false, ..available(&known, service, snapshot) };
        snapshot.destinations.set(known.id, Some(gone));
        let trashed = Trashed { known, service: service.clone(), since: now };
        self.trash.insert((key, trashed.known.endpoint), trashed);
    }

    /// Forgets removed destinations that nothing refers to any more. Returns whether there were removed ones.
    pub fn empty_trash(&mut self, snapshot: &mut Snapshot, now: Millis) -> bool {
        let any = !self.trash.is_empty();
        self.trash.retain(|_, trashed| {
            if trashed.known.has_connections() || trashed.known.live.templates() > 0 {
                trashed.since = now;
            }
            let keep = trashed.since.until(now) < TRASH_TIME;
            if !keep {
                snapshot.destinations.set(trashed.known.id, None);
                self.unused.push(trashed.known.id);
            }
            keep
        });
        self.path_mtus.retain(|_, path_mtu| path_mtu.strong_count() > 0);
        any
    }

    /// Works out every destination's path anew. Returns whether any changed.
    pub fn reroute(&self, snapshot: &mut Snapshot) -> bool {
        let mut changed = false;
        for known in self.known() {
            let Some(destination) = snapshot.destinations.find(known.id) else { continue };
            let path = Path::find(&snapshot.egress, known.endpoint.addr, 0);
            let tunnel = tunnel(known, snapshot);
            if (destination.path, destination.tunnel) != (path, tunnel) {
                let rerouted = Destination { path, tunnel, ..destination.clone() };
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

    /// What is steered for a service as it is, and for the connections of what it was. To be asked when every worker acts
    /// on the last change. Its mark is not looked at.
    pub(crate) fn steered(&mut self, key: ServiceKey) -> BTreeSet<Item> {
        let entry = self.services.get_mut(&key);
        let configured = entry.is_some();
        let destinations = entry.into_iter().flat_map(|entry| &mut entry.destinations);
        let gone = self.trash.range_mut(all_of(key)).map(|(_, trashed)| &mut trashed.known);
        let gone = gone.filter(|known| known.has_connections());
        let mut items = BTreeSet::new();
        let mut lingers = false;
        for known in destinations.chain(gone.inspect(|_| lingers = true)) {
            known.tidy();
            items
                .extend(known.methods.iter().flat_map(|method| of_destination(key, known.endpoint, *method)));
        }
        items.extend((configured || lingers).then(|| of_service(key)).into_iter().flatten());
        items
    }

    /// Whether something may be steered for connections alone: of what was deleted, or was another method's.
    pub fn outlives_itself(&self) -> bool {
        !self.trash.is_empty() || self.known().any(|known| known.methods.len() > 1)
    }

    /// Whether there may be FULLNAT connections.
    pub fn has_full_nat_connections(&self) -> bool {
        self.known()
            .any(|known| known.methods.contains(&ForwardingMethod::FullNat) && known.has_connections())
    }

    /// Every service, and those gone that may have connections.
    pub fn service_keys(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.keys().copied().chain(self.trash.keys().map(|(key, _)| *key))
    }

    /// Whether a service, or one that it was before, has connections.
    pub fn has_connections(&self, key: ServiceKey) -> bool {
        let live = self.services.get(&key).into_iter().flat_map(|entry| &entry.destinations);
        let gone = self.trash.range(all_of(key)).map(|(_, trashed)| &trashed.known);
        live.chain(gone).any(Known::has_connections)
    }

    /// The addresses that destinations are reached at.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.known().map(|known| known.endpoint.addr)
    }

    /// Takes a look at every counter, and at what schedulers remember.
    pub fn tick(&mut self, now: Millis) {
        self.total_estimator.tick(self.total.stats.sum());
        for entry in self.services.values_mut() {
            entry.memory.iter().for_each(|memory| memory.tend(now.0));
            entry.estimator.tick(entry.live.stats.sum());
            for known in &mut entry.destinations {
                known.estimator.tick(known.live.stats.sum());
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
            entry.destinations.iter_mut().for_each(|known| known.estimator.zero());
        }
    }

    /// A service as listings show it.
    pub fn row(&self, key: ServiceKey, wanted: &xvs_model::service::Service) -> Option<ServiceRow> {
        let entry = self.services.get(&key)?;
        let destinations = entry.destinations.iter().zip(&wanted.destinations).map(|(known, destination)| {
            let load = known.live.load();
            DestinationRow {
                endpoint: known.endpoint,
                options: destination.options.clone(),
                weight_in_force: known.weight_in_force(),
                active: load.active,
                inactive: load.inactive,
                persistent: known.live.templates(),
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

/// Everything of a service in the trash.
fn all_of(key: ServiceKey) -> RangeInclusive<(ServiceKey, Endpoint)> {
    let first = Endpoint { addr: Ipv4Addr::UNSPECIFIED.into(), port: 0 };
    let last = Endpoint { addr: Ipv6Addr::from_bits(u128::MAX).into(), port: u16::MAX };
    (key, first)..=(key, last)
}

/// What tunnels to a destination look like.
fn tunnel(known: &Known, snapshot: &Snapshot) -> snapshot::Tunnel {
    let egress = &snapshot.egress;
    let source = match egress.route(known.endpoint.addr, 0) {
        RouteTo::Via { link, .. } => egress.source_for(known.endpoint.addr, link),
        _ => None,
    };
    snapshot::Tunnel { source, encapsulation: known.encapsulation }
}

fn available(known: &Known, service: &Arc<ServiceLive>, snapshot: &Snapshot) -> Destination {
    Destination {
        available: true,
        endpoint: known.endpoint,
        method: known.method,
        weight: known.weight_in_force(),
        path: Path::find(&snapshot.egress, known.endpoint.addr, 0),
        path_mtu: known.path_mtu.clone(),
        tunnel: tunnel(known, snapshot),
        live: known.live.clone(),
        service: service.clone(),
    }
}

/// A service as workers use it; `None` if its scheduler has no such name, which was checked when it was named.
fn build(
    key: ServiceKey,
    wanted: &xvs_model::service::Service,
    entry: &mut Entry,
    tuning: &Tuning,
) -> Option<Service> {
    let listed: Vec<_> = entry.destinations.iter().map(Known::listed).collect();
    let setup = Setup {
        destinations: &listed,
        flags: Flags(wanted.options.flags.0),
        memory: entry.memory.take(),
        tuning: tuning.clone(),
    };
    let scheduler = scheduler::build(&entry.scheduler, &setup)?;
    entry.memory = scheduler.memory().cloned();
    let members = entry.destinations.iter().map(|known| Member {
        id: known.id,
        endpoint: known.endpoint,
        method: known.method,
        weight: known.weight_in_force(),
        own_weight: known.weight,
        live: known.live.clone(),
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
