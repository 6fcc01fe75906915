//! What carries how much: totals and connections of every service and destination, for `xvs top`.
//!
//! Made by the thread of the client that asks, from what workers count and act on, as they stand now: rates are the
//! reader's to compute, from two of these. Cost: some 200 bytes for each destination. Not here: rates as IPVS has them
//! (`estimator.rs`), how it looks (`cli/top/`).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xvs_dataplane::counters::{SharedStats, StatsValues};
use xvs_dataplane::snapshot::{Member, Service};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use crate::health::report::{CheckState, VirtualServerHealth};
use crate::message::Stats;
use crate::shared::Shared;
use crate::status;

/// Everything at a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// When, in milliseconds since the daemon's start.
    pub at_millis: u64,
    /// What `xvs status --json` says.
    pub status: Value,
    /// In no order.
    pub services: Vec<ServiceTraffic>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    /// Which.
    pub key: ServiceKey,
    /// Since it was added.
    pub stats: Stats,
    /// Real servers that are down by their checks, those that are not in the table for it included.
    #[serde(default)]
    pub down: usize,
    /// In IPVS's order.
    pub destinations: Vec<DestinationTraffic>,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationTraffic {
    /// Which.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// What schedulers go by.
    pub weight: Weight,
    /// Connections in an active state.
    pub active: u32,
    /// Its other connections.
    pub inactive: u32,
    /// What its checks have come to, if they say that it is not well.
    pub trouble: Option<CheckState>,
    /// Since it was added.
    pub stats: Stats,
}

impl Traffic {
    /// As it is now.
    pub fn now(shared: &Shared) -> Self {
        let (snapshot, health) = (shared.published.load_full(), shared.health());
        let watched = health.iter().flat_map(|health| &health.virtual_servers);
        let watched: HashMap<_, _> =
            watched.flat_map(|server| server.keys().map(move |key| (key, server))).collect();
        let services = snapshot.services.iter();
        let services = services.map(|one| service(one, watched.get(&one.key).copied())).collect();
        Self { at_millis: shared.now().0, status: status::report(shared, health.as_ref()), services }
    }
}

fn service(service: &Service, health: Option<&VirtualServerHealth>) -> ServiceTraffic {
    let places = health.map(|health| health.places(service)).unwrap_or_default();
    let trouble = |number: usize| {
        let place = places.get(number).copied().flatten()?;
        health.and_then(|health| health.real_servers[place].trouble())
    };
    let destinations = service.members.iter().enumerate();
    let destinations = destinations.map(|(number, member)| destination(member, trouble(number))).collect();
    let servers = health.iter().flat_map(|health| &health.real_servers);
    let down = servers.filter(|server| !server.is_up).count();
    ServiceTraffic { key: service.key, stats: stats(&service.live.stats), down, destinations }
}

fn destination(member: &Member, trouble: Option<CheckState>) -> DestinationTraffic {
    let load = member.live.load();
    DestinationTraffic {
        endpoint: member.endpoint,
        method: member.method,
        weight: member.weight,
        active: load.active,
        inactive: load.inactive,
        trouble,
        stats: stats(&member.live.stats),
    }
}

fn stats(counted: &SharedStats) -> Stats {
    let StatsValues { connections, in_packets, out_packets, in_bytes, out_bytes } = counted.sum();
    Stats { connections, in_packets, out_packets, in_bytes, out_bytes }
}
