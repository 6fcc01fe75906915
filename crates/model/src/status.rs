//! The status of the director, as `xvs status` shows it and `xvs status --json` prints it.
//!
//! A snapshot of one moment: the daemon's thread that serves the client fills it in from counters and from the
//! published configuration. Names of fields and shapes are interface; docs/json.md lists them. Not here: which warnings
//! there are (`ctl/status.rs`), and how the report looks on a screen (`cli/status.rs`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::health::Counts;

/// The status of the director.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Whether there are warnings.
    pub state: Level,
    /// What needs the operator's attention, a sentence each.
    pub warnings: Vec<String>,
    /// The daemon's version.
    pub version: String,
    /// Time since the daemon started.
    pub uptime_seconds: u64,
    /// The number of the configuration in force; each published change adds one.
    pub epoch: u64,
    /// Virtual services.
    pub services: u64,
    /// Virtual services without a destination that can take a connection.
    pub services_without_destination: u64,
    /// Destinations of all services.
    pub destinations: u64,
    /// Real servers and virtual servers that are well; `None` without a keepalived.conf.
    pub health: Option<Counts>,
    /// The attached interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The workers, by number.
    pub workers: Vec<WorkerStatus>,
    /// The connection table.
    pub table: TableStatus,
    /// Packets dropped since the daemon started, by reason.
    pub drops: Vec<Drops>,
    /// Time until applied rules are taken back; `None` if none wait for `xvs confirm`.
    pub unconfirmed_seconds: Option<u64>,
    /// Packets dropped recently.
    pub recent_drops: RecentDrops,
    /// The rules file of xvs.toml compared with what runs; `None` without one.
    pub rules: Option<RulesStatus>,
}

/// Whether the director needs attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is no warning.
    Ok,
    /// There are warnings.
    Warning,
}

/// An interface as it is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// The mode of XDP: `native` or `generic`.
    pub mode: String,
    /// Why the mode is not native.
    pub why_not_native: Option<String>,
    /// Receive queues.
    pub queues: u32,
    /// Whether it can be used now.
    pub state: LinkState,
    /// How often it was removed, came back and was attached again.
    pub attached_again: u32,
}

/// Whether an interface can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is up and has a carrier.
    Up,
    /// It is down or has no carrier.
    Down,
    /// It does not exist any more. A later one of the same name is attached in its place.
    Gone,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// Its receive queues, by interface.
    pub queues: BTreeMap<String, Vec<u32>>,
    /// Whether the kernel copies its frames, and because of which interface.
    pub copy_mode: String,
    /// The share of the last five seconds in which it was busy, with one decimal; `None` at the start.
    pub busy_percent: Option<f64>,
    /// Its counters that are not zero, by name.
    pub counters: BTreeMap<String, u64>,
}

/// The connection table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Connections that it can hold.
    pub size: u64,
    /// Connections that it holds.
    pub connections: u64,
    /// The second as a share of the first, with one decimal.
    pub percent: f64,
    /// The pages of its memory.
    pub pages: String,
}

/// Packets dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// The reason, by the name of its counter.
    pub reason: String,
    /// How many packets.
    pub packets: u64,
    /// The reason in a sentence.
    pub what: String,
}

/// Packets dropped in the last minute, or since the start if that is shorter ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentDrops {
    /// The time that was counted.
    pub seconds: u64,
    /// Reasons by which packets were dropped in that time.
    pub reasons: Vec<Drops>,
}

/// A rules file compared with what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesStatus {
    /// The file.
    pub file: String,
    /// What the comparison found.
    #[serde(flatten)]
    pub found: RulesFound,
}

/// What comparing a rules file with what runs has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RulesFound {
    /// Why the file cannot be compared.
    Error(String),
    /// Faults of the file, which is not compared then.
    Faults(u64),
    /// Differences between the file and what runs.
    Differences(u64),
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
        })
    }
}

impl LinkState {
    /// The warning about an interface that cannot be used.
    pub fn complaint(self, name: &str) -> Option<String> {
        match self {
            Self::Up => None,
            Self::Down => Some(format!("{name} is down; `ip link set {name} up`, or check its cable")),
            Self::Gone => Some(format!("{name} is gone; it is attached again when it is back and up")),
        }
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Gone => "gone",
        })
    }
}

impl WorkerStatus {
    /// Packets received.
    pub fn received(&self) -> u64 {
        self.counted("rx_packets")
    }

    /// Packets sent.
    pub fn sent(&self) -> u64 {
        self.counted("tx_packets")
    }

    /// Packets passed to the kernel.
    pub fn passed_to_kernel(&self) -> u64 {
        self.counted("passed_to_kernel")
    }

    fn counted(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_link_that_is_not_up_has_a_complaint_with_the_next_step() {
        assert_eq!(LinkState::Up.complaint("wan"), None);
        assert_eq!(
            LinkState::Down.complaint("wan").unwrap(),
            "wan is down; `ip link set wan up`, or check its cable"
        );
        assert_eq!(
            LinkState::Gone.complaint("wan").unwrap(),
            "wan is gone; it is attached again when it is back and up"
        );
    }

    #[test]
    fn what_comparing_a_rules_file_has_found_stands_beside_the_files_name() {
        for (found, printed) in [
            (RulesFound::Error("no such file".to_owned()), json!({ "file": "r", "error": "no such file" })),
            (RulesFound::Faults(2), json!({ "file": "r", "faults": 2 })),
            (RulesFound::Differences(0), json!({ "file": "r", "differences": 0 })),
        ] {
            let rules = RulesStatus { file: "r".to_owned(), found };
            assert_eq!(json!(rules), printed);
            assert_eq!(serde_json::from_value::<RulesStatus>(printed).unwrap(), rules);
        }
    }
}
