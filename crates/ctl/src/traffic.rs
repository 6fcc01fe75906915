//! What carries how much: totals and connections of every service and destination, for `xvs top`.
//!
//! Made by the thread of the client that asks, from what workers count and act on, as they stand now: rates are the
//! reader's to compute, from two of these. Cost: some 200 bytes for each destination. Not here: rates as IPVS has them
//! (`estimator.rs`), how it looks (`cli/top/`).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xvs_dataplane::counters::{SharedStats, StatsValues};
use xvs_dataplane::snapshot::{Member, Service};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

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
    /// Since it was added.
    pub stats: Stats,
}

impl Traffic {
    /// As it is now.
    pub fn now(shared: &Shared) -> Self {
        let snapshot = shared.published.load_full();
        let services = snapshot.services.iter().map(service).collect();
        Self { at_millis: shared.now().0, status: status::report(shared), services }
    }
}

fn service(service: &Service) -> ServiceTraffic {
    let destinations = service.members.iter().map(destination).collect();
    ServiceTraffic { key: service.key, stats: stats(&service.live.stats), destinations }
}

fn destination(member: &Member) -> DestinationTraffic {
    let load = member.live.load();
    DestinationTraffic {
        endpoint: member.endpoint,
        method: member.method,
        weight: member.weight,
        active: load.active,
        inactive: load.inactive,
        stats: stats(&member.live.stats),
    }
}

fn stats(counted: &SharedStats) -> Stats {
    let StatsValues { connections, in_packets, out_packets, in_bytes, out_bytes } = counted.sum();
    Stats { connections, in_packets, out_packets, in_bytes, out_bytes }
}
