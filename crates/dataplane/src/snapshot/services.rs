//! Services by key, with the data that new connections need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use xvs_proto::{Endpoint, Family, Protocol, ftp};
use xvs_sched::{
    Above, Candidates, Choice, ClientAddress, ClientLimit, ForwardingMethod, Load, Request, Scheduler,
    ServiceKey, State, SynProxy, Weight,
};

use super::destinations::{DestinationId, share};
use super::live::{DestinationLive, ServiceLive};
use super::persistence::Persistence;
use super::quic::Quic;
use super::slow_start::{CONNECTION, SlowStart, Turn};
use crate::clock::Millis;

const SHARDS: usize = 256;

/// The services by key. Changing one service copies one shard of the map.
#[derive(Clone)]
pub struct Services {
    shards: [Arc<HashMap<ServiceKey, Arc<Service>>>; SHARDS],
    /// For each family, the number of its services and of services in the other family with a FULLNAT destination in
    /// it, so that a packet need not check every shard.
    counts: [usize; 2],
    /// The number of services for which SYNs may be answered with cookies.
    proxied: usize,
    hasher: hashbrown::DefaultHashBuilder,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Arc::default()),
            counts: [0; 2],
            proxied: 0,
            hasher: Default::default(),
        }
    }
}

impl Services {
    fn shard(&self, key: &ServiceKey) -> usize {
        use std::hash::BuildHasher;
        // The map uses the lowest and the topmost bits of the same kind of hash, so this uses others.
        (self.hasher.hash_one(key) >> 40) as usize % SHARDS
    }

    /// Makes this, an earlier version of `later`, equal to it. Cost: a comparison for each shard.
    pub(super) fn catch_up(&mut self, later: &Self) {
        let Self { shards, counts, proxied, hasher } = later;
        share(&mut self.shards, shards);
        (self.counts, self.proxied) = (*counts, *proxied);
        self.hasher.clone_from(hasher);
    }

    /// The service with exactly this key.
    pub fn find(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.shards[self.shard(key)].get(key)
    }

    /// The service for a packet with this firewall mark (0 if none) to this endpoint, in this order: the service for
    /// the mark, the service for exactly this endpoint, the FTP service at the address if the port may be that of a
    /// data connection, the service for all ports.
    ///
    /// Source: ipvs-behaviour, section 1.1.
    pub fn for_packet(&self, mark: u32, protocol: Protocol, dest: Endpoint) -> Option<&Arc<Service>> {
        let by_mark = match mark {
            0 => None,
            _ => self.find(&ServiceKey::Mark { mark, family: dest.family() }),
        };
        let is_data = protocol == Protocol::TCP
            && (dest.port == ftp::DATA_PORT || dest.port >= ftp::FIRST_UNPRIVILEGED);
        by_mark
            .or_else(|| self.at(protocol, dest))
            .or_else(|| match is_data {
                true => self.at(protocol, Endpoint { port: ftp::CONTROL_PORT, ..dest }),
                false => None,
            })
            .or_else(|| self.at(protocol, Endpoint { port: 0, ..dest }))
    }

    fn at(&self, protocol: Protocol, endpoint: Endpoint) -> Option<&Arc<Service>> {
        self.find(&ServiceKey::Address { protocol, endpoint })
    }

    /// Adds or replaces a service.
    pub fn insert(&mut self, service: Arc<Service>) {
        let key = service.key;
        let shard = self.shard(&key);
        self.proxied += usize::from(service.may_proxy());
        self.count(&service, 1);
        let replaced = Arc::make_mut(&mut self.shards[shard]).insert(key, service);
        self.count_out(replaced.as_deref());
    }

    /// Removes a service.
    pub fn remove(&mut self, key: &ServiceKey) {
        let shard = self.shard(key);
        let removed = Arc::make_mut(&mut self.shards[shard]).remove(key);
        self.count_out(removed.as_deref());
    }

    fn count(&mut self, service: &Service, by: isize) {
        for (family, count) in [Family::V4, Family::V6].into_iter().zip(&mut self.counts) {
            if service.concerns(family) {
                *count = count.saturating_add_signed(by);
            }
        }
    }

    fn count_out(&mut self, former: Option<&Service>) {
        if let Some(former) = former {
            self.count(former, -1);
        }
        self.proxied -= usize::from(former.is_some_and(Service::may_proxy));
    }

    /// All services, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.all().map(Arc::as_ref)
    }

    /// All services, as shared references.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    /// Whether any service may use the SYN proxy. If not, no packet needs the look-up of its service for that.
    #[inline]
    pub fn any_proxied(&self) -> bool {
        self.proxied > 0
    }

    /// Whether there is a service in this family, or one in the other family with a FULLNAT destination in this one. If
    /// not, no packet of the family is changed.
    pub fn any_of(&self, family: Family) -> bool {
        self.counts[family as usize] > 0
    }
}

/// A virtual service, with the data that new connections need.
pub struct Service {
    /// The key that its packets match.
    pub key: ServiceKey,
    /// The service and its options as in a rules file, for reports.
    pub rule: Arc<str>,
    /// The destinations in IPVS's order: the most recently added one comes first.
    pub members: Box<[Member]>,
    /// Whether any destination starts slowly.
    pub is_starting: bool,
    /// The scheduler.
    pub scheduler: Box<dyn Scheduler>,
    /// Whether each UDP datagram is scheduled separately.
    pub one_packet: bool,
    /// How FULLNAT destinations receive the client's address.
    pub client_address: ClientAddress,
    /// The limit on each client; `None` if there is none.
    pub client_limit: Option<ClientLimit>,
    /// When the director answers SYNs itself.
    pub syn_proxy: SynProxy,
    /// Persistence; `None` if the service is not persistent.
    pub persistence: Option<Persistence>,
    /// The QUIC configurations; `None` if there are none.
    pub quic: Option<Arc<Quic>>,
    /// The scheduler's state; shared by snapshots until the members change.
    pub place: Arc<AtomicU64>,
    /// The service's counters.
    pub live: Arc<ServiceLive>,
}

/// A destination, with the data that its service's scheduler needs.
#[derive(Clone)]
pub struct Member {
    /// The destination's number.
    pub id: DestinationId,
    /// The destination's endpoint; port 0 keeps the packet's port.
    pub endpoint: Endpoint,
    /// The forwarding method.
    pub method: ForwardingMethod,
    /// The weight in force.
    pub weight: Weight,
    /// The weight that the operator configured. Load reports may have changed the weight in force.
    pub own_weight: Weight,
    /// The slow start; `None` if the destination gets its full share.
    pub slow_start: Option<SlowStart>,
    /// The destination's connections.
    pub live: Arc<DestinationLive>,
}

impl Member {
    /// Whether it may be chosen.
    fn is_usable(&self) -> bool {
        !self.weight.is_quiescent() && !self.live.is_overloaded()
    }

    /// The fraction of its share of new connections that the destination gets now, in percent; `None` if all of it.
    pub fn slow_start_percent(&self, now: Millis) -> Option<u32> {
        self.slow_start.as_ref().filter(|slow| !slow.is_over(now)).map(|slow| slow.percent(now))
    }
}

impl Service {
    /// The service's port; 0 if it serves all ports or a mark.
    pub fn port(&self) -> u16 {
        match self.key {
            ServiceKey::Address { endpoint, .. } => endpoint.port,
            ServiceKey::Mark { .. } => 0,
        }
    }

    /// Whether packets of this family may belong to the service's connections.
    pub(crate) fn concerns(&self, family: Family) -> bool {
        self.key.family() == family
            || self.members.iter().any(|member| {
                member.method == ForwardingMethod::FullNat && member.endpoint.family() == family
            })
    }

    /// Whether the director may answer a SYN itself.
    pub(crate) fn may_proxy(&self) -> bool {
        self.syn_proxy != SynProxy::Off
            || self.client_limit.is_some_and(|limit| limit.above == Above::SynProxy)
    }

    /// Whether any destination may be chosen.
    pub(crate) fn has_available(&self) -> bool {
        self.members.iter().any(Member::is_usable)
    }

    /// Chooses a destination for a worker and commits the scheduler's next state; `None` if no destination may be
    /// chosen.
    pub fn choose(&self, worker: usize, request: &Request) -> Option<&Member> {
        if self.is_starting {
            return self.choose_slowly(worker, request);
        }
        self.choose_among(&Seen { members: &self.members, worker, slow: None }, request)
    }

    /// Like [`Self::choose`], while a destination starts slowly. If only such destinations are usable, they share all
    /// new connections in proportion to the shares that they would get. If none may be chosen, those that wait may.
    #[cold]
    fn choose_slowly(&self, worker: usize, request: &Request) -> Option<&Member> {
        let now = Millis(request.now_millis);
        let usable = || self.members.iter().filter(|member| member.is_usable());
        let starting = || usable().filter_map(|member| member.slow_start.as_ref());
        let others = usable().any(|member| member.slow_start.is_none());
        let all = if others { 1.0 } else { starting().map(|slow| slow.share(now)).sum() };
        starting().for_each(|slow| slow.earn(slow.share(now) / all));
        let most = starting().map(SlowStart::credit).max().filter(|_| !others);
        let slow = Some(Turn { now, price: most.map_or(CONNECTION, |most| most.min(CONNECTION)) });
        let [paced, all] = [slow, None].map(|slow| Seen { members: &self.members, worker, slow });
        let chosen = self.choose_among(&paced, request).or_else(|| self.choose_among(&all, request))?;
        chosen.slow_start.iter().for_each(SlowStart::pay);
        Some(chosen)
    }

    fn choose_among(&self, seen: &Seen<'_>, request: &Request) -> Option<&Member> {
        loop {
            // Relaxed: the state is all that is shared here.
            let before = self.place.load(Ordering::Relaxed);
            let Choice { position, state } = self.scheduler.choose(State(before), request, seen);
            if state.0 == before
                || self.place.compare_exchange(before, state.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                return position.map(|position| &self.members[position]);
            }
        }
    }
}

/// The destinations with the loads that a worker sees.
struct Seen<'s> {
    members: &'s [Member],
    worker: usize,
    /// The turn of the destinations that start slowly; `None` if all may be chosen.
    slow: Option<Turn>,
}

impl Candidates for Seen<'_> {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn weight(&self, position: usize) -> Weight {
        self.members[position].weight
    }

    fn load(&self, position: usize) -> Load {
        self.members[position].live.load_for(self.worker)
    }

    fn overloaded(&self, position: usize) -> bool {
        let Member { live, slow_start, .. } = &self.members[position];
        let slow = self.slow.zip(slow_start.as_ref());
        live.is_overloaded() || slow.is_some_and(|(turn, slow)| slow.waits(turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Activity, Change};

    fn service(port: u16) -> Service {
        Service {
            key: ServiceKey::tcp(Endpoint::new(std::net::Ipv4Addr::new(198, 51, 100, 1), port)),
            rule: "".into(),
            members: Box::new([]),
            is_starting: false,
            scheduler: xvs_sched::scheduler::build("rr", &Default::default()).unwrap(),
            one_packet: false,
            client_address: ClientAddress::Hidden,
            client_limit: None,
            syn_proxy: SynProxy::Off,
            persistence: None,
            quic: None,
            place: Arc::default(),
            live: Arc::default(),
        }
    }

    #[test]
    fn replacing_and_removing_services_keeps_their_count_correct() {
        let mut services = Services::default();
        services.remove(&service(80).key);
        assert!(!services.any_of(Family::V4));
        for port in [80, 443, 80, 80] {
            services.insert(service(port).into());
        }
        services.remove(&service(80).key);
        services.remove(&service(80).key);
        assert!(services.any_of(Family::V4) && !services.any_of(Family::V6));
        services.remove(&service(443).key);
        assert!(!services.any_of(Family::V4));
    }

    /// A service with this scheduler and three destinations.
    fn of_three(scheduler: &str) -> Service {
        let endpoint = |last| Endpoint::new(std::net::Ipv4Addr::new(192, 0, 2, last), 80);
        let (method, weight) = (ForwardingMethod::Nat, Weight(1));
        let member = |last| Member {
            id: DestinationId(last),
            endpoint: endpoint(last as u8),
            method,
            weight,
            own_weight: weight,
            slow_start: None,
            live: Arc::new(DestinationLive::new(2)),
        };
        let destinations = [1, 2, 3].map(|last| xvs_sched::Destination {
            endpoint: endpoint(last),
            weight,
            last_weight: weight,
        });
        let setup = xvs_sched::scheduler::Setup { destinations: &destinations, ..Default::default() };
        Service {
            key: ServiceKey::tcp(endpoint(100)),
            members: [1, 2, 3].map(member).into(),
            scheduler: xvs_sched::scheduler::build(scheduler, &setup).unwrap(),
            ..service(80)
        }
    }

    fn request() -> Request {
        let endpoint = |last| Endpoint::new(std::net::Ipv4Addr::new(192, 0, 2, last), 80);
        Request { source: endpoint(200), dest: endpoint(100), now_millis: 0, random: 0 }
    }

    #[test]
    fn concurrent_choices_of_workers_use_each_turn_once() {
        let service = of_three("rr");
        let turns = [1, 2, 3].map(|_| std::sync::atomic::AtomicU32::new(0));
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let (service, turns) = (&service, &turns);
                scope.spawn(move || {
                    for _ in 0..9_999 {
                        let chosen = service.choose(worker, &request()).unwrap();
                        turns[chosen.id.0 as usize - 1].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(turns.map(|count| count.into_inner()), [6666; 3]);
    }

    #[test]
    fn a_worker_sees_its_own_connections_at_once_and_those_of_others_after_their_burst_or_with_thresholds_at_once()
     {
        let service = of_three("lc");
        let begin = Change::Begin(Activity::Inactive);
        let choose = |worker| service.choose(worker, &request()).unwrap();
        let first = choose(0);
        assert!(first.live.defer(0, begin));
        assert_ne!(choose(0).id, first.id);
        assert_eq!(choose(1).id, first.id);
        first.live.add_deferred(0);
        let second = choose(1);
        assert_ne!(second.id, first.id);
        second.live.set_thresholds(9, 0);
        assert!(!second.live.defer(0, begin));
        assert_ne!(choose(1).id, second.id);
    }
}
