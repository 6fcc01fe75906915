//! The registry's entries for a service and for a destination, and their parts that workers use.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::egress::Path;
use xvs_dataplane::egress::path_mtu::PathMtu;
use xvs_dataplane::snapshot::slow_start::SlowStart;
use xvs_dataplane::snapshot::{
    self, ClientMask, Destination, DestinationId, DestinationLive, Encapsulation, Member, PathInVrf,
    Persistence, PersistenceScope, Service, ServiceLive, Snapshot,
};
use xvs_model::config::destination::DestinationOptions;
use xvs_model::config::service::{self, Netmask, ServiceOptions};
use xvs_proto::Endpoint;
use xvs_proto::network::{RouteKey, Table};
use xvs_sched::scheduler::{Flags, Memory, Setup, Tuning};
use xvs_sched::{ClientLimit, ForwardingMethod, ServiceKey, Weight, scheduler};

use super::estimator::Estimator;
use super::load_feedback::Report;
use super::responses::Look;
use super::tunnels::encapsulation;

pub(super) struct ServiceEntry {
    pub(super) live: Arc<ServiceLive>,
    pub(super) estimator: Estimator,
    pub(super) scheduler: String,
    pub(super) place: Arc<AtomicU64>,
    /// The scheduler's memory of clients; kept while the scheduler's name stays the same.
    pub(super) memory: Option<Arc<Memory>>,
    /// The time since which a destination takes new connections; `None` if none does.
    pub(super) serving_since: Option<Millis>,
    pub(super) destinations: Vec<DestinationEntry>,
}

pub(super) struct DestinationEntry {
    pub(super) endpoint: Endpoint,
    pub(super) method: ForwardingMethod,
    /// The methods of the destination's connections: existing connections keep their method when an edit changes it.
    pub(super) methods: BTreeSet<ForwardingMethod>,
    /// The operator's weight.
    pub(super) weight: Weight,
    /// Whether an operator has disabled the destination, whatever its weight.
    pub(super) disabled: bool,
    pub(super) encapsulation: Encapsulation,
    pub(super) path_mtu: Arc<PathMtu>,
    /// The last weight above 0 since the destination was added; 0 if there was none.
    pub(super) last_weight: Weight,
    /// The last load report or measured time, if it still counts.
    pub(super) report: Option<Report>,
    /// The last reading of the times until the first reply, if the service follows them.
    pub(super) look: Option<Look>,
    /// Whether the destination took new connections when its service was last built.
    pub(super) took_connections: bool,
    /// The slow start; `None` if the destination gets its full share.
    pub(super) slow_start: Option<SlowStart>,
    pub(super) id: DestinationId,
    pub(super) live: Arc<DestinationLive>,
    pub(super) estimator: Estimator,
}

impl DestinationEntry {
    /// A destination without options, methods and counts.
    pub(super) fn new(
        endpoint: Endpoint,
        path_mtu: Arc<PathMtu>,
        id: DestinationId,
        live: Arc<DestinationLive>,
    ) -> Self {
        Self {
            endpoint,
            method: ForwardingMethod::DirectRouting,
            methods: BTreeSet::new(),
            weight: Weight(0),
            disabled: false,
            encapsulation: Encapsulation::Ip,
            path_mtu,
            last_weight: Weight(0),
            report: None,
            look: None,
            took_connections: false,
            slow_start: None,
            id,
            live,
            estimator: Estimator::default(),
        }
    }

    pub(super) fn set_options(&mut self, options: &DestinationOptions) {
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

    /// The destination as schedulers see it.
    pub(super) fn listed(&self) -> xvs_sched::Destination {
        let weight = self.weight_in_force();
        let last_weight = if weight.is_quiescent() { self.last_weight } else { weight };
        xvs_sched::Destination { endpoint: self.endpoint, weight, last_weight }
    }

    /// The weight that schedulers use.
    pub(super) fn weight_in_force(&self) -> Weight {
        match self.report {
            _ if self.disabled => Weight(0),
            Some(report) if !self.weight.is_quiescent() => report.weight(),
            _ => self.weight,
        }
    }

    /// Whether the destination takes new connections, unless it is overloaded.
    pub(super) fn takes_connections(&self) -> bool {
        !self.weight_in_force().is_quiescent()
    }

    /// Forgets methods that no connection has. Every worker must already use the last edit.
    pub(super) fn forget_unused_methods(&mut self) {
        if !self.has_connections() {
            self.methods.retain(|method| *method == self.method);
        }
    }

    pub(super) fn has_connections(&self) -> bool {
        let load = self.live.load();
        load.active + load.inactive > 0
    }
}

/// A removed destination.
pub(super) struct Trashed {
    pub(super) dest: DestinationEntry,
    pub(super) service: Arc<ServiceLive>,
    /// The first scan of the trash that found the destination without connections.
    pub(super) idle_since: Option<Millis>,
}

/// The keys of a service's destinations in the trash.
pub(super) fn trash_range(key: ServiceKey) -> RangeInclusive<(ServiceKey, Endpoint)> {
    let first = Endpoint { addr: Ipv4Addr::UNSPECIFIED.into(), port: 0 };
    let last = Endpoint { addr: Ipv6Addr::from_bits(u128::MAX).into(), port: u16::MAX };
    (key, first)..=(key, last)
}

/// The path of packets in a VRF, or in none, to a destination, and the outer headers of tunnels.
pub(super) fn path(
    dest: &DestinationEntry,
    vrf: Option<Table>,
    snapshot: &Snapshot,
) -> (Path, snapshot::Tunnel) {
    let addr = dest.endpoint.addr;
    let tunnel = snapshot.egress.tunnel_to(RouteKey::from(addr).of_vrf(vrf), dest.encapsulation);
    (Path::find(&snapshot.egress, tunnel.route_key(addr, dest.method).of_vrf(vrf), 0), tunnel)
}

/// Like the path outside VRFs, for each VRF.
pub(super) fn in_vrfs(dest: &DestinationEntry, snapshot: &Snapshot) -> Arc<[PathInVrf]> {
    snapshot
        .egress
        .vrfs()
        .iter()
        .map(|&vrf| {
            let (path, tunnel) = path(dest, Some(vrf), snapshot);
            PathInVrf { vrf, path, tunnel }
        })
        .collect()
}

pub(super) fn destination(
    key: ServiceKey,
    dest: &DestinationEntry,
    service: &Arc<ServiceLive>,
    snapshot: &Snapshot,
) -> Destination {
    let (path, tunnel) = path(dest, None, snapshot);
    Destination {
        available: true,
        key,
        endpoint: dest.endpoint,
        method: dest.method,
        weight: dest.weight_in_force(),
        path,
        path_mtu: dest.path_mtu.clone(),
        tunnel,
        in_vrfs: in_vrfs(dest, snapshot),
        live: dest.live.clone(),
        service: service.clone(),
    }
}

/// A service as workers use it; `None` for an unknown scheduler, which the desired state has already refused.
pub(super) fn build(
    key: ServiceKey,
    wanted: &service::Service,
    entry: &mut ServiceEntry,
    tuning: &Tuning,
    client_limit: Option<ClientLimit>,
) -> Option<Service> {
    let listed: Vec<_> = entry.destinations.iter().map(DestinationEntry::listed).collect();
    let setup = Setup {
        destinations: &listed,
        family: Some(key.family()),
        flags: Flags(wanted.options.flags.0),
        memory: entry.memory.take(),
        tuning: tuning.clone(),
    };
    let scheduler = scheduler::build(&entry.scheduler, &setup)?;
    entry.memory = scheduler.memory().cloned();
    Some(Service {
        key,
        rule: xvs_ipvsadm::service_line(&key, &wanted.options).into(),
        members: entry
            .destinations
            .iter()
            .map(|dest| Member {
                id: dest.id,
                endpoint: dest.endpoint,
                method: dest.method,
                weight: dest.weight_in_force(),
                own_weight: dest.weight,
                slow_start: dest.slow_start.clone(),
                live: dest.live.clone(),
            })
            .collect(),
        is_starting: entry.destinations.iter().any(|dest| dest.slow_start.is_some()),
        scheduler,
        one_packet: wanted.options.one_packet,
        client_address: wanted.options.client_address,
        client_limit,
        syn_proxy: wanted.options.syn_proxy,
        persistence: persistence(&wanted.options),
        quic: None,
        place: entry.place.clone(),
        live: entry.live.clone(),
    })
}

/// The persistence that these options request; `None` if the service is not persistent.
fn persistence(options: &ServiceOptions) -> Option<Persistence> {
    Some(Persistence {
        timeout_seconds: options.persistence_timeout_seconds?,
        mask: match options.netmask {
            Netmask::V4(mask) => ClientMask::V4(mask),
            Netmask::V6(bits) => ClientMask::V6(bits),
        },
        scope: match options.persistence_engine {
            Some(_) => PersistenceScope::Call,
            None => PersistenceScope::Client,
        },
    })
}
