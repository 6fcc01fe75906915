//! The destinations by number, and a destination as the packets of its connections need it.

use std::net::IpAddr;
use std::sync::Arc;

use xvs_proto::Endpoint;
use xvs_proto::checksum::Coverage;
use xvs_sched::{ForwardingMethod, Weight};

use super::live::{DestinationLive, ServiceLive};
use crate::conn::Connection;
use crate::egress::Path;
use crate::egress::path_mtu::PathMtu;

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
    #[inline]
    pub fn find(&self, id: DestinationId) -> Option<&Destination> {
        let id = id.0 as usize;
        self.pages.get(id / PAGE)?.get(id % PAGE)?.as_ref()
    }

    /// The destination of a connection, also one that is no longer configured.
    #[inline]
    pub fn of(&self, connection: &Connection<'_>) -> Option<&Destination> {
        self.find(DestinationId(connection.dest_ref()))
    }

    /// The destination of a connection, if it is still configured.
    #[inline]
    pub fn available_for(&self, connection: &Connection<'_>) -> Option<&Destination> {
        self.of(connection).filter(|destination| destination.available)
    }

    /// Every destination that has a number.
    pub fn iter(&self) -> impl Iterator<Item = &Destination> {
        self.pages.iter().flat_map(|page| page.iter()).flatten()
    }

    /// What each destination becomes, by the same numbers.
    pub(super) fn map(&self, one: impl Fn(&Destination) -> Destination) -> Self {
        let page = |page: &Arc<Vec<Option<Destination>>>| {
            Arc::new(page.iter().map(|destination| destination.as_ref().map(&one)).collect())
        };
        Self { pages: self.pages.iter().map(page).collect() }
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
