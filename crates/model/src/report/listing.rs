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
    /// Its key.
    pub key: ServiceKey,
    /// Its options.
    pub options: ServiceOptions,
    /// Totals since its counters were zeroed.
    pub stats: Stats,
    /// Current rates.
    pub rates: Rates,
    /// Its destinations in IPVS's order.
    pub destinations: Vec<DestinationRow>,
}

/// A destination as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DestinationRow {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// Its options.
    pub options: DestinationOptions,
    /// The weight that schedulers use: that of `options`, unless load reports have changed it; 0 if it is disabled.
    pub weight_in_force: Weight,
    /// Connections in an active state.
    pub active: u32,
    /// Its other connections.
    pub inactive: u32,
    /// Its persistence templates.
    pub persistent: u32,
    /// Totals since its counters were zeroed.
    pub stats: Stats,
    /// Current rates.
    pub rates: Rates,
}

/// Totals of a service or destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets towards destinations.
    pub in_packets: u64,
    /// Packets towards clients.
    pub out_packets: u64,
    /// Bytes (IP total length) towards destinations.
    pub in_bytes: u64,
    /// Bytes (IP total length) towards clients.
    pub out_bytes: u64,
}

/// Rates per second, as computed by IPVS's estimator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rates {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets towards destinations.
    pub in_packets: u64,
    /// Packets towards clients.
    pub out_packets: u64,
    /// Bytes towards destinations.
    pub in_bytes: u64,
    /// Bytes towards clients.
    pub out_bytes: u64,
}
