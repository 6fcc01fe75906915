//! The snapshot: all configuration that a worker reads, as one immutable value behind one pointer.
//!
//! The control thread builds a [`Snapshot`], which shares unchanged parts with the previous one, and publishes it.
//! Numbers that outlive a snapshot (connections, counters, a scheduler's state) are atomics in objects that snapshots
//! share, so a change of weight loses none of them. Cost: one pointer load for each burst, one hash look-up for each
//! new connection, one array access for each packet.

mod settings;

pub mod lists;
pub mod local_addresses;
pub mod marks;
mod persistence;

mod destinations;
pub mod quic;
mod route;
mod services;
pub mod slow_start;
pub mod syn_limits;

pub mod clients;
mod live;
mod load;
pub mod sync_backup;
pub mod sync_master;
pub mod vip_probes;

pub(crate) mod copy;

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use xvs_proto::network::RouteKey;
use xvs_proto::{Endpoint, LinkId, Packet, Protocol};
use xvs_sched::ServiceKey;

use self::clients::Clients;
use self::lists::Lists;
use self::local_addresses::LocalAddresses;
use self::marks::Marks;
use self::syn_limits::SynLimits;
use self::sync_backup::SyncBackup;
use self::sync_master::SyncMaster;
use self::vip_probes::VipProbes;
use crate::capture::Captures;
use crate::conn::{CallIds, Connection};
use crate::egress::{Egress, Path};
pub use crate::egress::{Encapsulation, Tunnel};
use crate::forward::Ends;

pub use self::destinations::{Destination, DestinationId, Destinations, PathInVrf};
pub use self::live::{Counts, DestinationLive, ServiceLive};
pub use self::load::{Activity, Change};
pub use self::persistence::{ClientMask, Persistence, PersistenceScope};
pub(crate) use self::route::Route;
pub use self::services::{Member, Service, Services};
pub use self::settings::{ConnReuse, MssClamp, Settings};

/// The configuration that workers use. The default has no services and no routes.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// The number of snapshots that were published up to and including it; 0 is never published.
    pub epoch: u64,
    /// The services.
    pub services: Services,
    /// Every destination by [`DestinationId`], including removed ones to which connections still refer.
    pub destinations: Destinations,
    /// Routes and next hops.
    pub egress: Arc<Egress>,
    /// Masqueraded destinations; empty unless `nat_icmp_send` is set.
    pub nat_destinations: Arc<HashSet<(Protocol, Endpoint)>>,
    /// The mark rules, which apply to packets without a connection.
    pub marks: Arc<Marks>,
    /// The Call-IDs of templates for services with `--pe sip`; without slots until there is such a service.
    pub call_ids: Arc<CallIds>,
    /// The clients of services with limits.
    pub clients: Arc<Clients>,
    /// The director's endpoints for FULLNAT.
    pub locals: Arc<LocalAddresses>,
    /// The access lists; `None` if every client may use every service.
    pub lists: Option<Arc<Lists>>,
    /// The limits of SYNs; `None`: no service has one.
    pub syn_limits: Option<Arc<SynLimits>>,
    /// Active captures, usually none.
    pub captures: Captures,
    /// The master daemon of connection synchronization; `None` if none runs.
    pub sync_master: Option<Arc<SyncMaster>>,
    /// The backup daemon of connection synchronization; `None` if none runs.
    pub sync_backup: Option<Arc<SyncBackup>>,
    /// Probes of real servers through their virtual address; `None` if no health check uses them.
    pub vip_probes: Option<Arc<VipProbes>>,
    /// Timeouts and settings.
    pub settings: Settings,
    /// The number of destinations that were removed while `expire_nodest_conn` was set. Each queues a flush of
    /// connections to removed destinations.
    pub removals: u64,
}

impl Snapshot {
    /// Makes this, an earlier version of `later`, equal to it. A clone of `later` increments the reference count of
    /// each shard of services and each page of destinations, in as many cache lines; this function only compares
    /// adjacent pointers.
    pub fn catch_up(&mut self, later: &Self) {
        let Self {
            epoch,
            services,
            destinations,
            egress,
            nat_destinations,
            marks,
            call_ids,
            clients,
            locals,
            lists,
            syn_limits,
            captures,
            sync_master,
            sync_backup,
            vip_probes,
            settings,
            removals,
        } = later;
        self.services.catch_up(services);
        self.destinations.catch_up(destinations);
        (self.epoch, self.removals) = (*epoch, *removals);
        self.egress.clone_from(egress);
        self.nat_destinations.clone_from(nat_destinations);
        self.marks.clone_from(marks);
        self.call_ids.clone_from(call_ids);
        self.clients.clone_from(clients);
        self.locals.clone_from(locals);
        self.lists.clone_from(lists);
        self.syn_limits.clone_from(syn_limits);
        self.captures.clone_from(captures);
        self.sync_master.clone_from(sync_master);
        self.sync_backup.clone_from(sync_backup);
        self.vip_probes.clone_from(vip_probes);
        self.settings.clone_from(settings);
    }

    /// The numbers of virtual services and of their destinations. Cost: one access to each service.
    pub fn configured(&self) -> (usize, usize) {
        self.services
            .iter()
            .fold((0, 0), |(services, dests), service| (services + 1, dests + service.members.len()))
    }
}

impl Snapshot {
    /// The mark of a reply that was received on a link, if it may choose the reply's route.
    pub fn routing_mark(&self, link: LinkId, packet: &Packet) -> u32 {
        if self.egress.routes_by_mark() { self.marks.of(link, packet) } else { 0 }
    }

    /// The key of the route look-up for a reply that is received on a link. `None` if its mark may matter.
    pub(crate) fn unmarked_key_to_client(&self, link: LinkId, ends: &Ends) -> Option<RouteKey> {
        let dest = ends.local.unwrap_or(ends.client).addr;
        let may_matter = self.egress.routes_by_mark() && self.marks.may_mark(dest);
        (!may_matter).then(|| ends.key_to_client(0).of_vrf(self.egress.vrf(link)))
    }

    /// The path to the client of a connection, for a packet to it that was received on a link.
    #[inline]
    pub(crate) fn path_to_client(&self, link: LinkId, packet: &Packet, ends: &Ends, flow_hash: u64) -> Path {
        Path::find_by(&self.egress, ends.client.addr, flow_hash, || {
            Some(ends.key_to_client(self.routing_mark(link, packet)).of_vrf(self.egress.vrf(link)))
        })
        .unwrap_or(Path::NoRoute)
    }

    /// The destination with this number, for a client's packet that was received on a link.
    #[inline]
    pub(crate) fn destination(&self, link: LinkId, id: DestinationId) -> Option<&Destination> {
        self.destinations.find_in(self.egress.vrf(link), id)
    }

    /// The available destination of a connection, for a client's packet that was received on a link.
    #[inline]
    pub(crate) fn destination_for(&self, link: LinkId, connection: &Connection<'_>) -> Option<&Destination> {
        self.destination(link, DestinationId(connection.dest_ref()))
            .filter(|destination| destination.available)
    }

    /// The path of clients' packets to a destination: in the VRF that has the virtual address, if there is one;
    /// otherwise the best of all paths.
    pub fn path_of_clients(&self, destination: &Destination) -> Path {
        let vrf = match destination.key {
            ServiceKey::Address { endpoint, .. } => self.egress.vrf_of_address(endpoint.addr),
            ServiceKey::Mark { .. } => None,
        };
        destination
            .in_vrfs
            .iter()
            .find(|of| Some(of.vrf) == vrf)
            .map_or_else(|| destination.best_path(), |of| of.path)
    }

    /// Whether this machine has an address, for packets that were received on a link.
    #[inline]
    pub(crate) fn is_local(&self, link: LinkId, addr: IpAddr) -> bool {
        self.egress.is_local(RouteKey::from(addr).of_vrf(self.egress.vrf(link)))
    }

    /// Whether a packet that was received on a link belongs to a service.
    pub fn serves(&self, link: LinkId, packet: &Packet) -> bool {
        self.service_of(link, packet).is_some()
    }

    /// The service of a packet that was received on a link, by its mark or its destination.
    pub(crate) fn service_of(&self, link: LinkId, packet: &Packet) -> Option<&Arc<Service>> {
        let key = packet.connection_key();
        self.services.for_packet(self.marks.of(link, packet), key.protocol, key.dest)
    }
}
