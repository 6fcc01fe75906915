//! All configuration that a worker reads: one immutable value behind one pointer, loaded once a burst.
//!
//! The control thread builds a [`Snapshot`] that shares what did not change with the one before it, and publishes
//! it. Numbers that live longer than a snapshot (connections, counters, a scheduler's place) are atomics in
//! objects that snapshots share, so that a change of weight loses none of them. Cost: one pointer load a burst,
//! one hash look-up a new connection, one index a packet.

mod settings;

pub mod local_addresses;
pub mod marks;
mod persistence;

mod destinations;
mod services;

mod live;
mod load;

pub(crate) mod copy;

use std::sync::Arc;

use hashbrown::HashSet;
use xvs_proto::LinkId;
use xvs_proto::{Endpoint, Packet, Protocol};

use self::local_addresses::LocalAddresses;
use self::marks::Marks;
use crate::capture::Captures;
use crate::conn::CallIds;
use crate::egress::Egress;

pub use self::destinations::{Destination, DestinationId, Destinations, Encapsulation, Tunnel};
pub use self::live::{DestinationLive, ServiceLive};
pub use self::load::Activity;
pub use self::persistence::{ClientMask, Persistence, PersistenceScope};
pub(crate) use self::services::{FTP, FTP_DATA};
pub use self::services::{Member, Service, Services};
pub use self::settings::{ConnReuse, MssClamp, Settings};

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

impl Snapshot {
    /// Whether a packet that came in by a link belongs to a service.
    pub fn serves(&self, link: LinkId, packet: &Packet) -> bool {
        let key = packet.connection_key();
        self.services.for_packet(self.marks.of(link, packet), key.protocol, key.dest).is_some()
    }
}
