//! The report of a service at one moment: data from workers, health checks and operators about it and its real servers.
//!
//! The status page, `xvs top` and the warnings each show a part of the report in their own form. The thread that serves
//! the client builds it from the published snapshot. Totals since `xvsadm -Z` and IPVS's rates are in
//! `registry/estimator.rs` in `ctl`.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use xvs_dataplane::clock::Millis;
use xvs_dataplane::egress::Path;
use xvs_dataplane::snapshot::{Member, Service, Snapshot};
use xvs_model::objects::disabled::DisabledServers;
use xvs_model::report::health::{HealthReport, RealServerHealth, SorryServerHealth, VirtualServerHealth};
use xvs_model::report::response::ResponseTimes;
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::response_minute::ResponsesOf;

/// The sources of the reports.
pub(crate) struct Services<'a> {
    pub(crate) snapshot: &'a Snapshot,
    health: HashMap<ServiceKey, &'a VirtualServerHealth>,
    disabled: &'a DisabledServers,
    /// The times of the last full minute.
    responses: &'a ResponsesOf,
    pub(crate) now: Millis,
}

impl<'a> Services<'a> {
    /// The services of a snapshot; without `health` the reports have no results of checks, and are cheaper.
    pub(crate) fn new(
        snapshot: &'a Snapshot,
        health: Option<&'a HealthReport>,
        disabled: &'a DisabledServers,
        responses: &'a ResponsesOf,
        now: Millis,
    ) -> Self {
        let health = health
            .into_iter()
            .flat_map(|health| &health.virtual_servers)
            .flat_map(|server| server.keys().map(move |key| (key, server)))
            .collect();
        Self { snapshot, health, disabled, responses, now }
    }

    /// A report of each service, in no particular order.
    pub(crate) fn reports(&self) -> impl Iterator<Item = ServiceReport<'a>> {
        self.snapshot.services.iter().map(|service| self.report(service))
    }

    /// The report of this service.
    pub(crate) fn report(&self, service: &'a Service) -> ServiceReport<'a> {
        let health = self.health.get(&service.key).copied();
        let checked = health.map_or(&[][..], |health| &health.real_servers);
        let mut absent: Vec<_> = checked.iter().map(Some).collect();
        let indices = health.map(|health| real_server_indices(health, service)).unwrap_or_default();
        let mut servers = Vec::with_capacity(service.members.len());
        for (place, member) in service.members.iter().enumerate() {
            let index = indices.get(place).copied().flatten();
            if let Some(index) = index {
                absent[index] = None;
            }
            let disabled = self.disabled.includes(service.key, member.endpoint);
            servers.push(ServerReport {
                member,
                health: index.map(|index| &checked[index]),
                disabled,
                obstacle: obstacle(member, self.snapshot, disabled),
                unanswered: member.live.recently_unanswered(self.now),
                responses: self.responses.get(&member.id),
            });
        }
        ServiceReport { service, health, servers, absent: absent.into_iter().flatten().collect() }
    }
}

/// A service.
pub(crate) struct ServiceReport<'a> {
    pub(crate) service: &'a Service,
    /// The virtual server in keepalived.conf, if there is one.
    pub(crate) health: Option<&'a VirtualServerHealth>,
    /// The real servers that are in the service, in IPVS's order.
    pub(crate) servers: Vec<ServerReport<'a>>,
    /// The other real servers in keepalived.conf, in its order.
    pub(crate) absent: Vec<&'a RealServerHealth>,
}

impl ServiceReport<'_> {
    /// The reason, if none of the real servers can get a connection, because of these obstacles.
    pub(crate) fn why_unusable(
        &self,
        obstacle: impl Fn(&ServerReport<'_>) -> Option<Obstacle>,
    ) -> Option<&'static str> {
        let obstacles: BTreeSet<_> = self.servers.iter().map(obstacle).collect::<Option<_>>()?;
        let Some(first) = obstacles.first() else { return Some("has no real server; `xvsadm -a` adds one") };
        Some(match first {
            _ if obstacles.len() > 1 => {
                "has no real server that can take a connection: each is disabled, at weight 0, overloaded or not reachable; see `xvsadm -Ln --thresholds`, `ip neigh`"
            }
            Obstacle::Quiescent => "has only real servers of weight 0; `xvsadm -e … -w 1` gives one a weight",
            Obstacle::Disabled => "has only disabled real servers; `xvs enable` ends that",
            Obstacle::Overloaded => {
                "has only overloaded real servers; see `xvsadm -Ln --thresholds`, raise -x or add one"
            }
            Obstacle::NoRoute => {
                "has only real servers without a route by an attached interface; see `ip route`"
            }
            Obstacle::NoNeighbour => {
                "has only real servers whose next hop does not answer; see `ip neigh`, and whether they run"
            }
        })
    }

    /// The index of the sorry server among the real servers of the service. It may also be a real server in
    /// keepalived.conf, and is then the sorry server while it serves as such.
    pub(crate) fn place_of(&self, sorry: &SorryServerHealth) -> Option<usize> {
        let endpoints = endpoints(&sorry.endpoint, self.service.key)?;
        let place = self.servers.iter().position(|server| endpoints.contains(&server.member.endpoint))?;
        (sorry.serves || self.servers[place].health.is_none()).then_some(place)
    }
}

/// A real server that is in a service.
pub(crate) struct ServerReport<'a> {
    pub(crate) member: &'a Member,
    /// The real server in keepalived.conf, if it is one.
    pub(crate) health: Option<&'a RealServerHealth>,
    /// Whether an operator has disabled it.
    pub(crate) disabled: bool,
    /// Why it gets no new connections, or cannot be reached.
    pub(crate) obstacle: Option<Obstacle>,
    /// Connections that it has not answered lately.
    pub(crate) unanswered: u32,
    /// The time until its first reply in the last full minute; `None` if no connection was measured then.
    pub(crate) responses: Option<&'a ResponseTimes>,
}

impl ServerReport<'_> {
    /// The obstacle; a next hop counts only if it is one of those that have been silent for some seconds.
    pub(crate) fn lasting_obstacle(&self, silent: &BTreeSet<IpAddr>) -> Option<Obstacle> {
        self.obstacle.filter(|obstacle| {
            *obstacle != Obstacle::NoNeighbour || silent.contains(&self.member.endpoint.addr)
        })
    }
}

/// Why a destination gets no new connections, or is not reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    Quiescent,
    Disabled,
    Overloaded,
    NoRoute,
    NoNeighbour,
}

/// Whether a destination can get new connections and is reachable.
pub(crate) fn is_usable(member: &Member, snapshot: &Snapshot) -> bool {
    obstacle(member, snapshot, false).is_none()
}

fn obstacle(member: &Member, snapshot: &Snapshot, disabled: bool) -> Option<Obstacle> {
    if member.weight.is_quiescent() {
        return Some(if disabled { Obstacle::Disabled } else { Obstacle::Quiescent });
    }
    if member.live.is_overloaded() {
        return Some(Obstacle::Overloaded);
    }
    match snapshot.path_of_clients(snapshot.destinations.find(member.id)?) {
        Path::NoRoute => Some(Obstacle::NoRoute),
        Path::NoNeighbour { .. } => Some(Obstacle::NoNeighbour),
        Path::To(_) | Path::Local => None,
    }
}

/// For each destination of `service` its index among the virtual server's real servers, if it is one of them.
pub(crate) fn real_server_indices(server: &VirtualServerHealth, service: &Service) -> Vec<Option<usize>> {
    let mut indices = HashMap::new();
    for (index, server) in server.real_servers.iter().enumerate() {
        let Some([own, of_service]) = endpoints(&server.endpoint, service.key) else { continue };
        indices.insert(own, index);
        indices.entry(of_service).or_insert(index);
    }
    service.members.iter().map(|member| indices.get(&member.endpoint).copied()).collect()
}

/// The endpoints that a real server in keepalived.conf can have in a service: its own or, as only NAT permits another
/// port than the service's, its address with the service's port. The port of a mark service is 0.
fn endpoints(of_file: &str, service: ServiceKey) -> Option<[Endpoint; 2]> {
    let own: SocketAddr = of_file.parse().ok()?;
    let own = Endpoint::new(own.ip(), own.port());
    let port = match service {
        ServiceKey::Address { endpoint, .. } => endpoint.port,
        ServiceKey::Mark { .. } => 0,
    };
    Some([own, Endpoint { port, ..own }])
}
