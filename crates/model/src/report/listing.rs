//! Services and destinations as listings show them, with their totals and rates.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ServiceKey, Weight};

use crate::config::destination::DestinationOptions;
use crate::config::service::ServiceOptions;
use crate::report::response::ResponseTimes;

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
    /// How long it took until its first reply, since it was added; left out if no connection was measured.
    #[serde(default, skip_serializing_if = "ResponseTimes::is_empty")]
    pub responses: ResponseTimes,
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Rates"))]
pub struct Rates<N = u64> {
    /// Scheduled connections a second.
    pub connections: N,
    /// Packets towards real servers, a second.
    pub in_packets: N,
    /// Packets towards clients, a second.
    pub out_packets: N,
    /// Bytes of IP packets towards real servers, a second.
    pub in_bytes: N,
    /// Bytes of IP packets towards clients, a second.
    pub out_bytes: N,
}

impl Stats {
    /// The rates since the totals `before`, which are this many seconds old. A total that has become smaller was reset
    /// in between, and counts from 0.
    pub fn rates_since(&self, before: &Self, seconds: f64) -> Rates<f64> {
        Rates {
            connections: per_second(before.connections, self.connections, seconds),
            in_packets: per_second(before.in_packets, self.in_packets, seconds),
            out_packets: per_second(before.out_packets, self.out_packets, seconds),
            in_bytes: per_second(before.in_bytes, self.in_bytes, seconds),
            out_bytes: per_second(before.out_bytes, self.out_bytes, seconds),
        }
    }
}

fn per_second(before: u64, now: u64, seconds: f64) -> f64 {
    now.checked_sub(before).unwrap_or(now) as f64 / seconds
}

impl Rates<f64> {
    /// Whole numbers.
    pub fn rounded(self) -> Rates {
        Rates {
            connections: self.connections.round() as u64,
            in_packets: self.in_packets.round() as u64,
            out_packets: self.out_packets.round() as u64,
            in_bytes: self.in_bytes.round() as u64,
            out_bytes: self.out_bytes.round() as u64,
        }
    }
}

impl AddAssign for Rates<f64> {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.in_packets += other.in_packets;
        self.out_packets += other.out_packets;
        self.in_bytes += other.in_bytes;
        self.out_bytes += other.out_bytes;
    }
}

#[cfg(any(test, feature = "samples"))]
impl Stats {
    /// A sample, as those of `sample.rs`.
    pub(crate) fn sample() -> Self {
        Self { connections: 1, in_packets: 2, out_packets: 3, in_bytes: 4, out_bytes: 5 }
    }
}

#[cfg(any(test, feature = "samples"))]
impl Rates {
    /// A sample, as those of `sample.rs`.
    pub(crate) fn sample() -> Self {
        Self { connections: 1, in_packets: 2, out_packets: 3, in_bytes: 4, out_bytes: 5 }
    }
}
