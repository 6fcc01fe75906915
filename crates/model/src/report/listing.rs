//! Services and destinations as listings show them, with their totals and rates.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ServiceKey, Weight};

use crate::config::destination::DestinationOptions;
use crate::config::service::ServiceOptions;

/// A service as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceRow {
    /// The service: an endpoint or a firewall mark.
    pub key: ServiceKey,
    /// The options of the service.
    pub options: ServiceOptions,
    /// Totals since the counters were zeroed.
    pub stats: Stats,
    /// Current rates, as averages of some seconds.
    pub rates: Rates,
    /// The destinations of the service, in IPVS's order.
    pub destinations: Vec<DestinationRow>,
}

/// A destination as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DestinationRow {
    /// The endpoint of the real server.
    pub endpoint: Endpoint,
    /// The options of the destination.
    pub options: DestinationOptions,
    /// The weight that schedulers use: that of `options`, unless load reports have changed it; 0 if it is disabled.
    pub weight_in_force: Weight,
    /// Active connections.
    pub active: u32,
    /// Other connections.
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
    /// Totals since the counters were zeroed.
    pub stats: Stats,
    /// Current rates, as averages of some seconds.
    pub rates: Rates,
}

/// Totals of a service or destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Stats {
    /// Scheduled connections.
    pub connections: u64,
    /// Packets towards real servers.
    pub in_packets: u64,
    /// Packets towards clients.
    pub out_packets: u64,
    /// Bytes of IP packets towards real servers.
    pub in_bytes: u64,
    /// Bytes of IP packets towards clients.
    pub out_bytes: u64,
}

/// Rates per second. In listings IPVS's estimator computes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rates {
    /// Scheduled connections a second.
    pub connections: u64,
    /// Packets towards real servers, a second.
    pub in_packets: u64,
    /// Packets towards clients, a second.
    pub out_packets: u64,
    /// Bytes of IP packets towards real servers, a second.
    pub in_bytes: u64,
    /// Bytes of IP packets towards clients, a second.
    pub out_bytes: u64,
}
