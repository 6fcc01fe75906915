//! Totals and connections of every service and destination, for `xvs top`.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use crate::report::health::CheckState;
use crate::report::listing::Stats;
use crate::report::response::ResponseSummary;
use crate::report::status::StatusReport;

/// Totals at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Traffic {
    /// The moment, in milliseconds since the daemon's start.
    pub at_millis: u64,
    /// The director's status, without a comparison of its rules file.
    pub status: StatusReport,
    /// The services, in no particular order.
    pub services: Vec<ServiceTraffic>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceTraffic {
    /// The key.
    pub key: ServiceKey,
    /// Totals since it was added.
    pub stats: Stats,
    /// The number of its real servers that health checks hold down, including those removed from the service.
    #[serde(default)]
    pub down: usize,
    /// The destinations, in IPVS's order.
    pub destinations: Vec<DestinationTraffic>,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DestinationTraffic {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// The weight that schedulers use.
    pub weight: Weight,
    /// Whether it is disabled.
    pub disabled: bool,
    /// Connections in an active state.
    pub active: u32,
    /// The other connections.
    pub inactive: u32,
    /// TCP connections whose clients repeated their SYN, or that were refused, since the last one that was established.
    pub unanswered: u32,
    /// The state of the failing check; `None`: no check fails, or it has none.
    pub trouble: Option<CheckState>,
    /// Totals since it was added.
    pub stats: Stats,
    /// How long it took until its first reply in the last full minute; `None`: no connection was measured then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponseSummary>,
}
