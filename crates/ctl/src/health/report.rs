//! What is known of the health of real servers, as `xvs health`, metrics and `xvs top` show it.
//!
//! Put together by who is asked, from what checks have written down; a time is in milliseconds since 1970 (UTC).

use serde::{Deserialize, Serialize};

/// Everything that a keepalived.conf has watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The file.
    pub file: String,
    /// When it was last read with success.
    pub read_at_millis: u64,
    /// Why it was last not taken over, if it was read again since and refused.
    pub refused: Option<String>,
    /// How often it was read with success since the start.
    pub reads: u64,
    /// How often it was read and refused.
    pub refusals: u64,
    /// How many of its statements are left out or assumed.
    pub faults: usize,
    /// Commands that lead back to what is wanted from what somebody has changed by hand, as one would type them.
    pub drift: Vec<String>,
    /// Its virtual servers, in its order.
    pub virtual_servers: Vec<VirtualServerHealth>,
}

/// A virtual server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VirtualServerHealth {
    /// What follows `virtual_server` in the file.
    pub name: String,
    /// Its services as `xvsadm -Ln` names them.
    pub services: Vec<String>,
    /// Whether it has its quorum.
    pub is_well: bool,
    /// Since when that is so.
    pub since_millis: u64,
    /// Weight of its real servers that are up.
    pub live_weight: u64,
    /// Weight that it needs.
    pub quorum: u32,
    /// How much more it takes to have its quorum again, and less to lose it.
    pub hysteresis: u32,
    /// Who serves while it has no quorum.
    pub sorry_server: Option<SorryServerHealth>,
    /// Its real servers, in the file's order.
    pub real_servers: Vec<RealServerHealth>,
}

/// A sorry server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SorryServerHealth {
    /// Its endpoint.
    pub endpoint: String,
    /// Whether it serves now.
    pub serves: bool,
}

/// A real server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RealServerHealth {
    /// Its endpoint; port 0: that of each service.
    pub endpoint: String,
    /// Whether all its checks pass.
    pub is_up: bool,
    /// Since when that is so.
    pub since_millis: u64,
    /// Its weights.
    pub weights: Weights,
    /// Its checks, in the file's order.
    pub checks: Vec<CheckHealth>,
}

/// The weights of a real server in the first of its services, by who set them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// The file's.
    pub operator: u32,
    /// What its health makes of that; `None`: it is taken out of the table.
    pub health: Option<u32>,
    /// What its load reports make of that; `None`: there are none.
    pub feedback: Option<u32>,
    /// By which packets are scheduled; `None`: it is not in the table.
    pub in_force: Option<u32>,
}

/// A check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckHealth {
    /// What is asked.
    pub probe: String,
    /// What its answers have come to.
    pub state: CheckState,
    /// Since when it is up or down.
    pub since_millis: u64,
    /// Why it was last not well, or not asked; `None`: never.
    pub last_error: Option<ErrorSeen>,
    /// When it is asked next; `None`: it is being asked, or it is a file, which tells by itself.
    pub next_millis: Option<u64>,
    /// How often it was asked.
    pub asked: u64,
    /// How often it was not well.
    pub failed: u64,
    /// How long the last answer took, in microseconds.
    pub took_micros: Option<u64>,
}

/// A failure and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorSeen {
    /// In words.
    pub what: String,
    /// When.
    pub at_millis: u64,
}

/// What a check's answers have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// It counts as up, and was not asked yet.
    AssumedUp,
    /// It counts as down, and was not asked yet.
    AssumedDown,
    /// It passes.
    Up,
    /// It is up, and has failed so many times of those that take it down.
    Failing {
        /// Failures in a row.
        failures: u32,
        /// That many take it down.
        fall: u32,
    },
    /// It fails.
    Down,
    /// It is down, and has passed so many times of those that bring it up.
    Rising {
        /// Successes in a row.
        successes: u32,
        /// That many bring it up.
        rise: u32,
    },
    /// It rests while the virtual server's address is not here; it counts as what it was.
    Suspended {
        /// Whether it counts as up.
        is_up: bool,
    },
}
