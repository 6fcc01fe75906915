//! The document of the graphs on the status page, `GET /history.json`: counts for the last hour, by time step.
//!
//! Names and shapes of fields are an interface for programs, listed in docs/json.md. `last_hour.rs` of `xvsd` records
//! it, and `status/page.html` displays it.

use std::collections::BTreeMap;

use serde::Serialize;

/// Counts of the last hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LastHour {
    /// The sums of all services, deleted ones included.
    pub totals: TotalCounts,
    /// The services of the page that the query chooses.
    pub services: ServiceCounts,
}

/// Counts of an hour in order of time, each of one step. The last one is the last step that is over.
///
/// `None`: xvsd did not run in that step, or not long enough to count. There are fewer if xvsd began to count later.
pub type Counts = Vec<Option<u32>>;

/// The sums of all services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TotalCounts {
    /// The time that each number counts, in seconds.
    pub step_seconds: u64,
    /// Scheduled connections, in order of time, up to the last step that is over; null: xvsd did not run in that step.
    pub connections: Counts,
    /// Packets towards real servers, by the same steps.
    pub in_packets: Counts,
    /// Packets towards clients, by the same steps.
    pub out_packets: Counts,
    /// Dropped packets of all reasons, by the same steps.
    pub dropped_packets: Counts,
}

/// The services of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceCounts {
    /// The time that each number counts, in seconds.
    pub step_seconds: u64,
    /// Scheduled connections of each service by its name, in order of time, up to the last step that is over; null:
    /// xvsd did not run in that step.
    pub connections: BTreeMap<String, Counts>,
}
