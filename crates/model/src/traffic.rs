//! Totals and connections of every service and destination, for `xvs top`.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use crate::health::CheckState;
use crate::listing::Stats;
use crate::status::StatusReport;

/// Totals at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// When, in milliseconds since the daemon's start.
    pub at_millis: u64,
    /// The director, without a comparison of its rules file.
    pub status: StatusReport,
    /// The services, in no order.
    pub services: Vec<ServiceTraffic>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    /// Which.
    pub key: ServiceKey,
    /// Totals since it was added.
    pub stats: Stats,
    /// Real servers that are down by their checks, also those that were removed from the service.
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
    /// The weight that schedulers use.
    pub weight: Weight,
    /// Connections in an active state.
    pub active: u32,
    /// Its other connections.
    pub inactive: u32,
    /// The state of the check because of which it is not well; `None`: it is well, or has no check.
    pub trouble: Option<CheckState>,
    /// Totals since it was added.
    pub stats: Stats,
}
