//! All configuration that a worker reads: one immutable value behind one pointer, loaded once a burst.
//!
//! The control thread builds a [`Snapshot`] that shares what did not change with the one before it, and publishes
//! it. Numbers that live longer than a snapshot (connections, counters, a scheduler's place) are atomics in
//! objects that snapshots share, so that a change of weight loses none of them. Cost: one pointer load a burst,
//! one hash look-up a new connection, one index a packet.

mod copy;
pub(crate) mod load;
pub mod local_addresses;
pub mod marks;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use xvs_proto::checksum::Coverage;
use xvs_proto::{Endpoint, Family, MacAddr, Protocol};
use xvs_sched::{
    Candidates, Choice, ClientAddress, ForwardingMethod, Load, Request, Scheduler, ServiceKey, State, Weight,
};

use crate::capture::Captures;
use crate::conn::CallIds;
use crate::counters::SharedStats;
use crate::egress::path_mtu::PathMtu;
use crate::egress::{Egress, RouteTo};
use crate::new_connection::persistence::Persistence;
use crate::slow_path::mss::MssClamp;
use crate::snapshot::load::Occupancy;
use crate::snapshot::local_addresses::LocalAddresses;
use crate::snapshot::marks::Marks;
use xvs_xdp::LinkId;

pub use crate::snapshot::copy::{Asked, Candidate};

/// What a worker acts on.
#[derive(Clone)]
pub struct Snapshot {
    /// How many were published up to it; 0 is never published.
    pub epoch: u64,
    /// The services.
    pub services: Services,
    /// Every destination, also removed ones that connections still refer to, by [`DestinationId`].
    pub destinations: Destinations,
    /// Routes and next hops.
    pub egress: Arc<Egress>,
    /// Masqueraded destinations; empty unless `nat_icmp_send` asks for them.
    pub nat_destinations: Arc<HashSet<(Protocol, Endpoint)>>,
    /// By which packets are marked; asked of those that meet no connection.
    pub marks: Arc<Marks>,
    /// The Call-IDs by which templates of services with `--pe sip` are told apart; room for none until there is such
    /// a service.
    pub call_ids: Arc<CallIds>,
    /// What FULLNAT's destinations see instead of clients.
    pub locals: Arc<LocalAddresses>,
    /// Who watches packets; mostly nobody.
    pub captures: Captures,
    /// Timeouts and settings.
    pub settings: Settings,
}

impl Snapshot {
    /// No services, no routes.
    pub fn empty() -> Self {
        Self {
            epoch: 0,
            services: Services::default(),
            destinations: Destinations::default(),
            egress: Arc::new(Egress::default()),
            nat_destinations: Arc::default(),
            marks: Arc::default(),
            call_ids: Arc::default(),
            locals: Arc::default(),
            captures: Arc::default(),
            settings: Settings::default(),
        }
    }

    /// How many virtual services there are, and destinations of all of them. Costs a look at each service.
    pub fn configured(&self) -> (usize, usize) {
        let count = |(services, dests), service: &Service| (services + 1, dests + service.members.len());
        self.services.iter().fold((0, 0), count)
    }
}

/// What `xvsadm --set` and the `[ipvs]` keys of `xvs.toml` change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Timeout of an established TCP connection.
    pub tcp_established: Duration,
    /// Timeout of a TCP connection that one end has finished.
    pub tcp_fin_wait: Duration,
    /// Timeout of a UDP connection.
    pub udp: Duration,
    /// How many ICMP errors a worker sends in a second; 0 means as many as there are.
    pub icmp_msgs_per_sec: u32,
    /// When a new SYN takes the place of an old connection between the same endpoints.
    pub conn_reuse_mode: ConnReuse,
    /// Whether connections of a removed destination end at once, instead of being dropped until they expire.
    pub expire_nodest_conn: bool,
    /// Whether a client's template is of no use while its destination is quiescent.
    pub expire_quiescent_template: bool,
    /// Whether UDP datagrams of a removed destination are scheduled anew even without `expire_nodest_conn`.
    pub udp_nodest_reschedule: bool,
    /// Whether any TCP packet but a reset may begin a connection.
    pub sloppy_tcp: bool,
    /// Whether any SCTP packet but an abort may begin a connection.
    pub sloppy_sctp: bool,
    /// Whether half-open TCP connections are judged by the defensive table.
    pub secure_tcp: bool,
    /// Of so many packets that could begin a connection one is dropped; 0: none.
    pub drop_packet_rate: u32,
    /// Whether connections that look worthless are ended, some each second.
    pub drops_entries: bool,
    /// Whether a destination that speaks without being asked is told so.
    pub nat_icmp_send: bool,
    /// Of which connections the maximum segment size is lowered to what their way takes.
    pub mss_clamp: MssClamp,
    /// Whether tunnels forbid fragmentation as the packet inside does, and refuse what is too big for them.
    pub pmtu_disc: bool,
    /// Whether marked packets that no destination takes go where they were sent to.
    pub cache_bypass: bool,
    /// Whether an ICMP error about a packet of no connection begins one, as if it were the client's packet.
    pub schedule_icmp: bool,
    /// Whether what clients send is left to the kernel (`backup_only`); replies are translated all the same.
    pub requests_stay: bool,
}

/// The bits of `conn_reuse_mode`: 1 reuses what has closed, 2 also what waits for a FIN that cannot be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnReuse(pub u8);

impl ConnReuse {
    /// Whether connections in TIME_WAIT or CLOSE (SCTP: CLOSED) give way.
    pub fn closed(self) -> bool {
        self.0 != 0
    }

    /// Whether connections in FIN_WAIT whose replies are not seen give way.
    pub fn half_seen(self) -> bool {
        self.0 & 2 != 0
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(900),
            tcp_fin_wait: Duration::from_secs(120),
            udp: Duration::from_secs(300),
            icmp_msgs_per_sec: 1000,
            conn_reuse_mode: ConnReuse(1),
            expire_nodest_conn: false,
            expire_quiescent_template: false,
            udp_nodest_reschedule: true,
            sloppy_tcp: false,
            sloppy_sctp: false,
            secure_tcp: false,
            drop_packet_rate: 0,
            drops_entries: false,
            nat_icmp_send: false,
            mss_clamp: MssClamp::Tunnels,
            pmtu_disc: true,
            cache_bypass: false,
            schedule_icmp: false,
            requests_stay: false,
        }
    }
}

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
        self.shards.iter().flat_map(|shard| shard.values()).map(Arc::as_ref)
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

/// Numbers of a service that outlive snapshots.
pub struct ServiceLive {
    /// Its counters.
    pub stats: SharedStats,
}

impl ServiceLive {
    /// Zeroes for this many workers.
    pub fn new(workers: usize) -> Self {
        Self { stats: SharedStats::new(workers) }
    }
}

/// Numbers of a destination that outlive snapshots.
pub struct DestinationLive {
    occupancy: Occupancy,
    templates: AtomicI32,
    /// Its counters.
    pub stats: SharedStats,
}

/// Which of a destination's counts a connection is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// `ActiveConn`.
    Active,
    /// `InActConn`.
    Inactive,
    /// `PersistConn`: it is a template. Schedulers do not look at these.
    Template,
}

impl DestinationLive {
    /// Zeroes for this many workers.
    pub fn new(workers: usize) -> Self {
        let (occupancy, templates) = Default::default();
        Self { occupancy, templates, stats: SharedStats::new(workers) }
    }

    /// Its connections now.
    pub fn load(&self) -> Load {
        let (active, inactive) = self.occupancy.counts();
        Load { active, inactive }
    }

    /// Its templates now.
    pub fn templates(&self) -> u32 {
        // Two workers' additions and subtractions may be seen in either order, so the count can dip below zero for a
        // moment.
        u32::try_from(self.templates.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Counts a connection or template in, before anybody can find it.
    pub fn enter(&self, activity: Activity) {
        match activity {
            Activity::Template => _ = self.templates.fetch_add(1, Ordering::Relaxed),
            _ => self.occupancy.enter(activity),
        }
    }

    /// A connection that was counted in is in the table: it may have reached the upper threshold.
    pub fn bound(&self) {
        self.occupancy.bound();
    }

    /// Counts a connection or template out; also one that was counted in and did not come about.
    pub fn leave(&self, activity: Activity) {
        match activity {
            Activity::Template => _ = self.templates.fetch_sub(1, Ordering::Relaxed),
            _ => self.occupancy.leave(activity),
        }
    }

    /// A connection that is counted has become active, or inactive, and was not before.
    pub fn turn(&self, to: Activity) {
        self.occupancy.turn(to);
    }

    /// A connection came and went with its one packet. It may leave the destination overloaded.
    pub fn pass(&self) {
        if self.occupancy.is_bounded() {
            self.enter(Activity::Inactive);
            self.bound();
            self.leave(Activity::Inactive);
        }
    }

    /// Sets the thresholds, in connections, and judges by them at once. An upper one of 0 is none; a lower one of 0 is
    /// three quarters of the upper one.
    pub fn set_thresholds(&self, upper: u32, lower: u32) {
        self.occupancy.set_bounds(upper, lower);
    }

    /// Whether it takes no new connections, because it reached its upper threshold and has not come down below its
    /// lower one since. Source: ipvs-behaviour, section 7.
    pub fn is_overloaded(&self) -> bool {
        self.occupancy.is_overloaded()
    }
}

/// The number by which connections refer to a destination. Reused only when no connection refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationId(pub u32);

/// A destination, as the packets of its connections need it.
#[derive(Clone)]
pub struct Destination {
    /// Whether it is still configured; packets of a removed one's connections are dropped.
    pub available: bool,
    /// Where it is; port 0 keeps the packet's.
    pub endpoint: Endpoint,
    /// How packets of new connections reach it.
    pub method: ForwardingMethod,
    /// Its share of new connections.
    pub weight: Weight,
    /// The way to it.
    pub path: Path,
    /// What routers of that way have told of it.
    pub path_mtu: Arc<PathMtu>,
    /// What tunnels to it look like.
    pub tunnel: Tunnel,
    /// What it carries and counts.
    pub live: Arc<DestinationLive>,
    /// Its service's numbers.
    pub service: Arc<ServiceLive>,
}

/// What tunnels to a destination look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The director's own address that they come from, of the destination's family.
    pub source: Option<IpAddr>,
    /// What stands between the outer network header and the packet.
    pub encapsulation: Encapsulation,
}

/// What stands between the outer network header and the packet in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    /// Nothing: IP in IP (RFC 2003, RFC 2473, RFC 4213).
    Ip,
    /// A GRE header (RFC 2784).
    Gre(Coverage),
    /// UDP and GUE headers (draft-ietf-intarea-gue).
    Gue {
        /// The UDP port that they are sent to.
        port: u16,
        /// What the UDP checksum covers.
        coverage: Coverage,
    },
}

const PAGE: usize = 64;

/// Destinations by number, in pages: changing one copies one page.
#[derive(Clone, Default)]
pub struct Destinations {
    pages: Vec<Arc<Vec<Option<Destination>>>>,
}

impl Destinations {
    /// The destination of this number.
    pub fn find(&self, id: DestinationId) -> Option<&Destination> {
        let id = id.0 as usize;
        self.pages.get(id / PAGE)?.get(id % PAGE)?.as_ref()
    }

    /// Every destination that has a number.
    pub fn iter(&self) -> impl Iterator<Item = &Destination> {
        self.pages.iter().flat_map(|page| page.iter()).flatten()
    }

    /// Sets or clears the destination of this number.
    pub fn set(&mut self, id: DestinationId, destination: Option<Destination>) {
        let id = id.0 as usize;
        while self.pages.len() <= id / PAGE {
            self.pages.push(Arc::new(vec![None; PAGE]));
        }
        Arc::make_mut(&mut self.pages[id / PAGE])[id % PAGE] = destination;
    }
}

/// The way to a destination or client, worked out from the network as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Out by a link to a known neighbour.
    To(Hop),
    /// Out by a link, to a neighbour whose link address is not known yet.
    NoNeighbour {
        /// The link.
        link: LinkId,
        /// Whom to resolve.
        next_hop: IpAddr,
    },
    /// This machine itself.
    Local,
    /// None.
    NoRoute,
}

/// A resolved next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The link to leave by.
    pub link: LinkId,
    /// The link's own address.
    pub source_mac: MacAddr,
    /// The neighbour's.
    pub dest_mac: MacAddr,
    /// The largest packet that the link sends, in bytes.
    pub mtu: u32,
}

impl Path {
    /// The way to `dest` for a flow of this hash.
    pub fn find(egress: &Egress, dest: IpAddr, flow_hash: u64) -> Self {
        let (link, next_hop) = match egress.route(dest, flow_hash) {
            RouteTo::Local => return Self::Local,
            RouteTo::Unreachable | RouteTo::NoRoute => return Self::NoRoute,
            RouteTo::Via { link, next_hop } => (link, next_hop),
        };
        let Some(info) = egress.link(link).filter(|info| info.up) else { return Self::NoRoute };
        match egress.neighbour(link, next_hop) {
            None => Self::NoNeighbour { link, next_hop },
            Some(dest_mac) => {
                let mtu = egress.mtu(dest, link).unwrap_or(info.mtu);
                Self::To(Hop { link, source_mac: info.mac, dest_mac, mtu })
            }
        }
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
