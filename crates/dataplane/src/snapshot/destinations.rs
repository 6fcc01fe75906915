//! Destinations by number, with the data that packets on their connections need.

use std::array;
use std::sync::Arc;

use xvs_proto::Endpoint;
use xvs_proto::network::Table;
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use super::live::{DestinationLive, ServiceLive};
use super::route::Route;
use crate::conn::{Connection, NO_DESTINATION};
use crate::egress::path_mtu::PathMtu;
use crate::egress::{Path, Tunnel};
use crate::forward::Template;
use crate::shm::prefetch;

/// The number of a destination in connections. It is reused only when no connection contains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationId(pub u32);

impl DestinationId {
    /// A number that no destination has.
    pub const NONE: Self = Self(NO_DESTINATION);
}

/// A destination, with the data that packets on its connections need.
#[derive(Clone)]
pub struct Destination {
    /// Whether it is still configured. If not, packets on its connections are dropped.
    pub available: bool,
    /// The service that it belongs to.
    pub key: ServiceKey,
    /// The destination's endpoint; port 0 keeps the packet's port.
    pub endpoint: Endpoint,
    /// The forwarding method of new connections.
    pub method: ForwardingMethod,
    /// The weight in force.
    pub weight: Weight,
    /// The path to it.
    pub path: Path,
    /// The path MTU that routers on this path have reported.
    pub path_mtu: Arc<PathMtu>,
    /// The outer headers of tunnels to it.
    pub tunnel: Tunnel,
    /// Path and tunnel for packets in each VRF.
    pub in_vrfs: Arc<[PathInVrf]>,
    /// The destination's connections and counters.
    pub live: Arc<DestinationLive>,
    /// The numbers of the destination's service.
    pub service: Arc<ServiceLive>,
}

/// The path of a VRF's packets to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInVrf {
    /// The VRF, by its table.
    pub vrf: Table,
    /// The path.
    pub path: Path,
    /// The outer headers of tunnels.
    pub tunnel: Tunnel,
}

/// A destination as packets of a VRF reach it.
#[derive(Clone)]
struct InVrf {
    vrf: Table,
    route: Option<Route>,
    destination: Destination,
}

impl Destination {
    /// The best path to the destination for packets in any VRF or in none: one that works, otherwise one to a neighbour
    /// that is not resolved.
    pub fn best_path(&self) -> Path {
        [self.path]
            .into_iter()
            .chain(self.in_vrfs.iter().map(|of| of.path))
            .min_by_key(|path| match path {
                Path::To(_) | Path::Local => 0,
                Path::NoNeighbour { .. } => 1,
                Path::NoRoute => 2,
            })
            .unwrap_or(self.path)
    }

    /// It, as packets of each VRF reach it.
    fn by_vrf(&self) -> Vec<InVrf> {
        self.in_vrfs
            .iter()
            .map(|&PathInVrf { vrf, path, tunnel }| {
                let destination = Self { path, tunnel, in_vrfs: Arc::default(), ..self.clone() };
                InVrf { vrf, route: destination.route(), destination }
            })
            .collect()
    }

    /// The route to the destination. `None` if it is not available, or its next hop is not resolved.
    fn route(&self) -> Option<Route> {
        let Path::To(hop) = self.path else { return None };
        let tunnel = match self.method {
            ForwardingMethod::Tunnel => Template::pair(self.tunnel, self.endpoint, hop, &self.path_mtu),
            _ => None,
        };
        self.available.then(|| Route::by(&hop, tunnel, self.live.stats.clone()))
    }
}

const PAGE: usize = 64;

/// Destinations by number, in pages: changing one destination copies one page.
#[derive(Clone, Default)]
pub struct Destinations {
    pages: Vec<Arc<Page>>,
}

/// Destinations with consecutive numbers.
#[derive(Clone)]
struct Page {
    /// Side by side, because most packets need nothing else.
    routes: [Option<Route>; PAGE],
    destinations: Vec<Option<Destination>>,
    /// For each index; empty without VRFs.
    in_vrfs: Vec<Vec<InVrf>>,
}

impl Page {
    fn new(destinations: Vec<Option<Destination>>) -> Self {
        Self {
            routes: array::from_fn(|place| destinations[place].as_ref()?.route()),
            in_vrfs: destinations
                .iter()
                .map(|known| known.as_ref().map(Destination::by_vrf).unwrap_or_default())
                .collect(),
            destinations,
        }
    }

    /// The values on which the routing of packets to a destination depends.
    fn routing(&self, place: usize) -> impl PartialEq {
        (
            self.destinations[place].as_ref().map(|known| (known.tunnel, &known.in_vrfs)),
            self.routes[place].as_ref().map(Route::way),
        )
    }

    fn in_vrf(&self, place: usize, vrf: Table) -> Option<&InVrf> {
        self.in_vrfs[place].iter().find(|of| of.vrf == vrf)
    }
}

impl Destinations {
    /// The destination with this number.
    #[inline]
    pub fn find(&self, id: DestinationId) -> Option<&Destination> {
        let id = id.0 as usize;
        self.pages.get(id / PAGE)?.destinations.get(id % PAGE)?.as_ref()
    }

    /// The destination with this number, as packets in this VRF, or in none, reach it.
    #[inline]
    pub fn find_in(&self, vrf: Option<Table>, id: DestinationId) -> Option<&Destination> {
        let Some(vrf) = vrf else { return self.find(id) };
        let place = id.0 as usize % PAGE;
        self.pages
            .get(id.0 as usize / PAGE)?
            .in_vrf(place, vrf)
            .map(|of| &of.destination)
            .or_else(|| self.find(id))
    }

    /// The route to the destination with this number, if it is available and its next hop is resolved.
    #[inline]
    pub(crate) fn route(&self, id: DestinationId) -> Option<&Route> {
        let id = id.0 as usize;
        self.pages.get(id / PAGE)?.routes[id % PAGE].as_ref()
    }

    /// Like [`Self::route`], for packets in this VRF, or in none.
    #[inline]
    pub(crate) fn route_in(&self, vrf: Option<Table>, id: DestinationId) -> Option<&Route> {
        let Some(vrf) = vrf else { return self.route(id) };
        let place = id.0 as usize % PAGE;
        match self.pages.get(id.0 as usize / PAGE)?.in_vrf(place, vrf) {
            Some(of) => of.route.as_ref(),
            None => self.route(id),
        }
    }

    /// Prefetches [`Self::route`].
    #[inline]
    pub(crate) fn prefetch_route(&self, id: DestinationId) {
        let id = id.0 as usize;
        if let Some(page) = self.pages.get(id / PAGE) {
            prefetch(&page.routes[id % PAGE]);
        }
    }

    /// The destination of a connection, even if it is no longer configured.
    #[inline]
    pub fn of(&self, connection: &Connection<'_>) -> Option<&Destination> {
        self.find(DestinationId(connection.dest_ref()))
    }

    /// The destination of a connection, if it is still configured.
    #[inline]
    pub fn available_for(&self, connection: &Connection<'_>) -> Option<&Destination> {
        self.of(connection).filter(|destination| destination.available)
    }

    /// All destinations that have a number.
    pub fn iter(&self) -> impl Iterator<Item = &Destination> {
        self.pages.iter().flat_map(|page| &page.destinations).flatten()
    }

    /// The destinations whose route or tunnel differs from that in `before`. Cost: a comparison for each page, and for
    /// each route in a changed page.
    pub(crate) fn rerouted_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = DestinationId> + 'a {
        self.pages
            .iter()
            .zip(&before.pages)
            .enumerate()
            .filter(|(_, (after, before))| !Arc::ptr_eq(after, before))
            .flat_map(|(page, (after, before))| {
                (0..PAGE)
                    .filter(|place| after.routing(*place) != before.routing(*place))
                    .map(move |place| DestinationId((page * PAGE + place) as u32))
            })
    }

    /// Applies a function to each destination; the numbers do not change.
    pub(super) fn map(&self, one: impl Fn(&Destination) -> Destination) -> Self {
        let pages = self.pages.iter().map(|page| {
            Arc::new(Page::new(page.destinations.iter().map(|known| known.as_ref().map(&one)).collect()))
        });
        Self { pages: pages.collect() }
    }

    /// Makes this, an earlier version of `later`, equal to it. Cost: a comparison for each page.
    pub(super) fn catch_up(&mut self, later: &Self) {
        self.pages.truncate(later.pages.len());
        share(&mut self.pages, &later.pages);
        self.pages.extend_from_slice(&later.pages[self.pages.len()..]);
    }

    /// Sets or clears the destination with this number.
    pub fn set(&mut self, id: DestinationId, destination: Option<Destination>) {
        let id = id.0 as usize;
        while self.pages.len() <= id / PAGE {
            self.pages.push(Arc::new(Page::new(vec![None; PAGE])));
        }
        let page = Arc::make_mut(&mut self.pages[id / PAGE]);
        page.routes[id % PAGE] = destination.as_ref().and_then(Destination::route);
        page.in_vrfs[id % PAGE] = destination.as_ref().map(Destination::by_vrf).unwrap_or_default();
        page.destinations[id % PAGE] = destination;
    }
}

/// Replaces the parts of an earlier version with the parts of a later one. Shared parts are not touched.
pub(super) fn share<T>(parts: &mut [Arc<T>], later: &[Arc<T>]) {
    for (part, later) in parts.iter_mut().zip(later) {
        if !Arc::ptr_eq(part, later) {
            part.clone_from(later);
        }
    }
}
