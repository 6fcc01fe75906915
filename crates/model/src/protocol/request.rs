//! Values in requests, and the access that a request needs.

use serde::{Deserialize, Serialize};

/// The steps of a take-over, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakeOverStep {
    /// The client is a successor that prepares itself. Until it has taken over or failed, nothing is changed.
    Begin,
    /// The daemon closes its sockets.
    Pause,
    /// The successor takes the connection table.
    TakeTable,
    /// The successor forwards: the daemon ends.
    Done,
}

/// The decision about applied rules that wait for confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They stay.
    Keep,
    /// The state before them is restored, except where other commands have changed it since.
    TakeBack,
}

/// A change of the rules of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetRequest {
    /// Writes rules that all directors are to run.
    Apply {
        /// The rules file.
        text: String,
        /// The revision of the rules that these replace, as the client has seen it; `None`: there were none.
        former: Option<u64>,
        /// Seconds after which all directors return to the former rules unless these are confirmed; `None`: they stay.
        confirm_within_seconds: Option<u32>,
    },
    /// Keeps or takes back rules that wait for confirmation.
    Confirm(Verdict),
}

/// The access of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read.
    Read,
    /// Read and change.
    Change,
}
