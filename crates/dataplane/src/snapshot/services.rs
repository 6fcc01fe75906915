//! The services by key, and a service as new connections need it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{
    Candidates, Choice, ClientAddress, ForwardingMethod, Load, Request, Scheduler, ServiceKey, State, Weight,
};

use super::destinations::DestinationId;
use super::live::{DestinationLive, ServiceLive};
use super::persistence::Persistence;

/// The port that FTP servers send data from; such connections are never scheduled.
pub(crate) const FTP_DATA: u16 = 20;
/// The port that FTP clients speak to first.
pub(crate) const FTP: u16 = 21;
/// The first port that a program without rights may take; FTP's passive data connections go to such ones.
const FIRST_UNPRIVILEGED: u16 = 1024;

const SHARDS: usize = 64;

/// The services by key. Changing one copies one shard of the map.
#[derive(Clone)]
pub struct Services {
    shards: [Arc<HashMap<ServiceKey, Arc<Service>>>; SHARDS],
    /// In all shards together, of each family, so that a packet need not ask each whether it is empty.
    counts: [usize; 2],
    hasher: hashbrown::DefaultHashBuilder,
}

impl Default for Services {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Arc::default()), counts: [0; 2], hasher: Default::default() }
    }
}

impl Services {
    fn shard(&self, key: &ServiceKey) -> usize {
        use std::hash::BuildHasher;
        // The map uses the low and the topmost bits of the same kind of hash; take others.
        (self.hasher.hash_one(key) >> 40) as usize % SHARDS
    }

    /// The service of this very key.
    pub fn find(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.shards[self.shard(key)].get(key)
    }

    /// The service of a packet with this firewall mark (0: none) to this endpoint: that of the mark, of the very
    /// endpoint, FTP's at the address for a port that FTP may have told the client, or that of every port.
    ///
    /// Source: ipvs-behaviour, section 1.1.
    pub fn for_packet(&self, mark: u32, protocol: Protocol, dest: Endpoint) -> Option<&Arc<Service>> {
        let at = |port| self.find(&ServiceKey::Address { protocol, endpoint: Endpoint { port, ..dest } });
        let marked = || self.find(&ServiceKey::Mark { mark, family: dest.family() });
        let by_mark = if mark == 0 { None } else { marked() };
        let ftp = protocol == Protocol::TCP && (dest.port == FTP_DATA || dest.port >= FIRST_UNPRIVILEGED);
        by_mark.or_else(|| at(dest.port)).or_else(|| if ftp { at(FTP) } else { None }).or_else(|| at(0))
    }

    /// Adds or replaces a service.
    pub fn insert(&mut self, service: Arc<Service>) {
        let (shard, key) = (self.shard(&service.key), service.key);
        let replaced = Arc::make_mut(&mut self.shards[shard]).insert(key, service);
        self.counts[key.family() as usize] += usize::from(replaced.is_none());
    }

    /// Takes a service out.
    pub fn remove(&mut self, key: &ServiceKey) {
        let shard = self.shard(key);
        let removed = Arc::make_mut(&mut self.shards[shard]).remove(key);
        self.counts[key.family() as usize] -= usize::from(removed.is_some());
    }

    /// Every service, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.all().map(Arc::as_ref)
    }

    /// The same, as they are shared.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    /// Whether there is any of this family: else none of its packets is touched.
    pub fn any_of(&self, family: Family) -> bool {
        self.counts[family as usize] > 0
    }
}

/// A virtual service, as new connections need it.
pub struct Service {
    /// What its packets have in common.
    pub key: ServiceKey,
    /// Its destinations in IPVS's order: the one added last comes first.
    pub members: Box<[Member]>,
    /// Chooses among them.
    pub scheduler: Box<dyn Scheduler>,
    /// Whether each UDP datagram is scheduled for itself.
    pub one_packet: bool,
    /// How destinations behind FULLNAT learn who their clients are.
    pub client_address: ClientAddress,
    /// Which clients stay with their destination, and for how long; `None`: nobody does.
    pub persistence: Option<Persistence>,
    /// The scheduler's state; shared by snapshots until the members change.
    pub place: Arc<AtomicU64>,
    /// Its numbers.
    pub live: Arc<ServiceLive>,
}

/// A destination as its service's scheduler sees it.
#[derive(Clone)]
pub struct Member {
    /// Its number.
    pub id: DestinationId,
    /// Where it is; port 0 keeps the packet's.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// Its share.
    pub weight: Weight,
    /// The share that the operator gave it, which load reports may have moved.
    pub own_weight: Weight,
    /// What it carries.
    pub live: Arc<DestinationLive>,
}

impl Service {
    /// Its port; 0 if it is of every port, or of a mark.
    pub fn port(&self) -> u16 {
        match self.key {
            ServiceKey::Address { endpoint, .. } => endpoint.port,
            ServiceKey::Mark { .. } => 0,
        }
    }

    /// Lets the scheduler choose and commits its next state; `None` if no destination may be chosen.
    pub fn choose(&self, request: &Request) -> Option<&Member> {
        loop {
            // Relaxed: the state is the whole of what is shared here.
            let before = self.place.load(Ordering::Relaxed);
            let Choice { position, state } = self.scheduler.choose(State(before), request, self);
            let unchanged = state.0 == before;
            let committed = unchanged
                || self.place.compare_exchange(before, state.0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if committed {
                return position.map(|position| &self.members[position]);
            }
        }
    }
}

impl Candidates for Service {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn weight(&self, position: usize) -> Weight {
        self.members[position].weight
    }

    fn load(&self, position: usize) -> Load {
        self.members[position].live.load()
    }

    fn overloaded(&self, position: usize) -> bool {
        self.members[position].live.is_overloaded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(port: u16) -> Arc<Service> {
        Arc::new(Service {
            key: ServiceKey::tcp(Endpoint::new(std::net::Ipv4Addr::new(198, 51, 100, 1), port)),
            members: Box::new([]),
            scheduler: xvs_sched::scheduler::build("rr", &Default::default()).unwrap(),
            one_packet: false,
            client_address: ClientAddress::Hidden,
            persistence: None,
            place: Arc::default(),
            live: Arc::new(ServiceLive::new(1)),
        })
    }

    #[test]
    fn there_are_services_from_the_first_to_the_last_however_often_one_is_replaced_or_removed() {
        let mut services = Services::default();
        services.remove(&service(80).key);
        assert!(!services.any_of(Family::V4));
        for port in [80, 443, 80, 80] {
            services.insert(service(port));
        }
        services.remove(&service(80).key);
        services.remove(&service(80).key);
        assert!(services.any_of(Family::V4) && !services.any_of(Family::V6));
        services.remove(&service(443).key);
        assert!(!services.any_of(Family::V4));
    }

    #[test]
    fn workers_that_choose_at_once_take_each_turn_once() {
        let endpoint = |last| Endpoint::new(std::net::Ipv4Addr::new(192, 0, 2, last), 80);
        let live = Arc::new(DestinationLive::new(2));
        let (method, weight) = (ForwardingMethod::Nat, Weight(1));
        let member = |last| Member {
            id: DestinationId(last),
            endpoint: endpoint(last as u8),
            method,
            weight,
            own_weight: weight,
            live: live.clone(),
        };
        let destinations = [1, 2, 3].map(|last| xvs_sched::Destination {
            endpoint: endpoint(last),
            weight,
            last_weight: weight,
        });
        let setup = xvs_sched::scheduler::Setup { destinations: &destinations, ..Default::default() };
        let service = Service {
            key: ServiceKey::tcp(endpoint(100)),
            members: [1, 2, 3].map(member).into(),
            scheduler: xvs_sched::scheduler::build("rr", &setup).unwrap(),
            one_packet: false,
            client_address: ClientAddress::Hidden,
            persistence: None,
            place: Arc::default(),
            live: Arc::new(ServiceLive::new(2)),
        };
        let request = Request { source: endpoint(200), dest: endpoint(100), now_millis: 0, random: 0 };
        let turns = [1, 2, 3].map(|_| std::sync::atomic::AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..9_999 {
                        let chosen = service.choose(&request).unwrap();
                        turns[chosen.id.0 as usize - 1].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(turns.map(|count| count.into_inner()), [6666; 3]);
    }
}
