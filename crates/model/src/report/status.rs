//! The status of the director, as `xvs status` shows it and `xvs status --json` prints it.
//!
//! The status at one moment: the daemon's thread that serves the client fills it in from counters and the published
//! configuration. Names and shapes of fields are an interface for programs, listed in docs/json.md. The warnings are in
//! `status/` of `xvsd`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::sync_daemon::SyncRole;
use crate::objects::limit::SynLimitSummary;
use crate::objects::listed::ListSummary;
use crate::report::fleet::FleetReport;
use crate::report::health::Counts;
use crate::report::setting::Setting;
use crate::report::warning::Warning;

/// The status of the director.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StatusReport {
    /// Whether there are warnings.
    pub state: Level,
    /// The warnings, a sentence each: the object, what is wrong, the next step.
    pub warnings: Vec<String>,
    /// The same warnings, each with its kind and its object, to filter them.
    #[serde(default)]
    pub warning_details: Vec<Warning>,
    /// The host name of the director's machine.
    #[serde(default)]
    pub host: String,
    /// The version of xvsd.
    pub version: String,
    /// Time since xvsd started.
    pub uptime_seconds: u64,
    /// The number of the configuration in force, its epoch; each published change adds one.
    pub epoch: u64,
    /// The number of virtual services.
    pub services: u64,
    /// The number of virtual services without a real server that can take a connection.
    pub services_without_destination: u64,
    /// The number of destinations: a real server counts once for each of its services.
    pub destinations: u64,
    /// What health checks found, in numbers; `None`: there is no keepalived.conf.
    pub health: Option<Counts>,
    /// The disabled real servers, each as the arguments of `xvs enable`: its address or endpoint, and the option of a
    /// service if it is disabled in that one alone.
    pub disabled: Vec<String>,
    /// The access lists in force.
    pub lists: Vec<ListSummary>,
    /// The limits of services' SYNs.
    pub syn_limits: Vec<SynLimitSummary>,
    /// The attached interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The workers, in the order of their numbers.
    pub workers: Vec<WorkerStatus>,
    /// The connection table.
    pub table: TableStatus,
    /// The connections whose packets the XDP program forwards; `None`: `offload` is off.
    pub offload: Option<OffloadStatus>,
    /// Packets dropped since xvsd started, by reason.
    pub drops: Vec<Drops>,
    /// How long packets of services are kept from the kernel after xvsd has ended; 0: not at all.
    pub hold_seconds: f64,
    /// Packets of services that were dropped because no xvsd served them, before this one started or while it opened
    /// its sockets.
    pub held_packets: u64,
    /// The running daemons of connection synchronization, the master first.
    pub sync: Vec<SyncStatus>,
    /// Lines of xvsd's log that could not be written since it started.
    pub log_lines_lost: u64,
    /// The log of connections; `None`: there is none.
    #[serde(default)]
    pub connection_log: Option<ConnectionLogStatus>,
    /// Time until the rules of `xvs apply --confirm-within` are reverted; `None`: nothing waits for `xvs confirm`.
    pub unconfirmed_seconds: Option<u64>,
    /// When the journal that xvsd began with was last written, in milliseconds since 1970; `None`: it began without
    /// one, with its files.
    pub journal_saved_at_millis: Option<u64>,
    /// Packets dropped in the last minute.
    pub recent_drops: RecentDrops,
    /// The rules file of xvs.toml compared with what runs, with one of `error`, `faults` and `differences`; `None`:
    /// xvs.toml names no rules file.
    pub rules: Option<RulesStatus>,
    /// The fleet of the director; `None`: it follows no rules in etcd.
    pub fleet: Option<FleetReport>,
    /// The rules of the kernel's IPVS; `None`: they are not followed.
    #[serde(default)]
    pub kernel: Option<KernelStatus>,
    /// The settings in force, in the order of their keys.
    pub settings: Vec<Setting>,
}

/// The services of the kernel's IPVS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KernelStatus {
    /// The number of services that xvs follows.
    pub services: u64,
    /// The number of services that xvs leaves to the kernel; there is a warning about each.
    pub services_left: u64,
}

/// Whether the director needs attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is no warning.
    Ok,
    /// There are warnings.
    Warning,
}

/// An attached interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InterfaceStatus {
    /// The interface's name.
    pub name: String,
    /// The mode of XDP: `native` (in the driver) or `generic` (in the kernel's receive path).
    pub mode: String,
    /// Why the mode is not native; `None`: it is.
    pub why_not_native: Option<String>,
    /// The number of its receive queues.
    pub queues: u32,
    /// Whether it can be used now.
    pub state: LinkState,
    /// How often it disappeared, came back and was attached again.
    pub attached_again: u32,
    /// Whether its XDP program stays when xvsd ends.
    pub pinned: bool,
    /// The bond that it was attached for; `None`: it was attached by its own name.
    pub bond: Option<BondMember>,
    /// The part in the offload of connections; `None`: `offload` is off.
    pub offload: Option<InterfaceOffload>,
}

/// The offload of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OffloadStatus {
    /// Connections whose packets the XDP program forwards, as seen within the last second.
    pub connections: u64,
    /// Packets that the XDP program has forwarded since xvsd started, up to a second late.
    pub packets: u64,
}

/// The log of connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConnectionLogStatus {
    /// The file; `None`: the log has none.
    pub file: Option<LogSinkStatus>,
    /// The IPFIX collector; `None`: the log has none.
    pub collector: Option<LogSinkStatus>,
    /// Records lost because too many waited for the thread that writes them.
    pub lost_records: u64,
}

#[cfg(any(test, feature = "samples"))]
impl ConnectionLogStatus {
    /// A sample with all fields, as those of `sample.rs`.
    pub(crate) fn sample() -> Self {
        let sink = |name: &str, records, lost_records| LogSinkStatus {
            name: name.to_owned(),
            records,
            lost_records,
        };
        Self {
            file: Some(sink("/var/log/xvs/connections.json", 9000, 0)),
            collector: Some(sink("192.0.2.9:4739", 8900, 100)),
            lost_records: 2,
        }
    }
}

/// The file or the collector of the log of connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogSinkStatus {
    /// The path, or the address and port.
    pub name: String,
    /// Records written or sent since xvsd started.
    pub records: u64,
    /// Records that could not be written or sent.
    pub lost_records: u64,
}

/// The share of an interface in the offload of connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InterfaceOffload {
    /// Why packets that arrive or leave there are left to workers; `None`: they are not.
    pub why_not: Option<String>,
    /// Packets that the XDP program has forwarded to the interface, and that the interface has refused.
    pub refused_packets: u64,
}

/// The role of an interface in the bond that it was attached for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BondMember {
    /// The bond's name.
    pub name: String,
    /// Whether the bond sends and receives through this interface now.
    pub active: bool,
}

/// Whether an interface can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is up and has a carrier.
    Up,
    /// It is down or has no carrier.
    Down,
    /// It does not exist any more, and is attached again when it is back and up.
    Gone,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkerStatus {
    /// The core that the worker is pinned to; `None`: it is not pinned.
    pub core: Option<usize>,
    /// The numbers of its receive queues, by interface.
    pub queues: BTreeMap<String, Vec<u32>>,
    /// Whether the kernel copies its frames: `zero-copy`, or `copy (because of INTERFACE)`, or `of offload`.
    pub copy_mode: String,
    /// How it waits for packets: `sleep`, `adaptive` or `busy`.
    #[serde(default)]
    pub poll: String,
    /// The share of the last five to ten seconds in which it was busy, with one decimal; `None`: xvsd has just started.
    pub busy_percent: Option<f64>,
    /// The counters by name, without those that are 0; they count packets, unless the name says otherwise.
    pub counters: BTreeMap<String, u64>,
}

/// A daemon of connection synchronization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SyncStatus {
    /// The daemon's role.
    pub role: SyncRole,
    /// The interface of its messages.
    pub interface: String,
    /// The addresses of `--sync-peers`, the other directors; empty: it uses a multicast group.
    #[serde(default)]
    pub sync_peers: Vec<IpAddr>,
    /// The sync ID; 0 of a backup: it accepts every one.
    pub sync_id: u8,
    /// Messages that it has sent or read since it was started.
    pub messages: u64,
    /// Messages that the kernel did not take or has discarded, or that were refused as a whole.
    pub failed_messages: u64,
    /// Connections of other directors that were entered or refreshed; 0 of a master.
    pub connections: u64,
    /// Connections that are in no message, or could not be used.
    pub lost_connections: u64,
    /// The other directors: of a backup its `sync_peers` and those that it hears, of a master those that have asked for
    /// its connection table.
    pub peers: Vec<SyncPeer>,
}

/// Another director, as a daemon of connection synchronization knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SyncPeer {
    /// The other director's address.
    pub address: IpAddr,
    /// Time since its last message; `None`: nothing was heard, or the daemon here is a master.
    pub silent_seconds: Option<u64>,
    /// The messages that were read; 0 if the daemon here is a master.
    #[serde(default)]
    pub messages: u64,
    /// The messages that were refused as a whole; 0 if the daemon here is a master.
    #[serde(default)]
    pub refused_messages: u64,
    /// Why the last of the refused messages was refused; `None`: none was.
    pub refused: Option<String>,
    /// Whether the whole connection table was sent or received: a backup fetches it, a master sends it.
    pub table: SyncTable,
    /// Connections of the table that were sent or received.
    pub connections: u64,
    /// Connections that the table had at the beginning.
    pub of: u64,
    /// Why the table is not there, or is stale; `None`: it is whole or moving.
    pub why: Option<String>,
}

/// How it stands with the connection table of another director, or with one's own there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SyncTable {
    /// It was not sent or received.
    None,
    /// It is being sent or received.
    Moving,
    /// It was sent or received, and no loss was noticed since then.
    Whole,
    /// It was received, but then messages were lost here, or the director is not heard.
    Stale,
}

/// The connection table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TableStatus {
    /// The number of connections and templates that it can hold.
    pub size: u64,
    /// The number of connections and templates that it holds.
    pub connections: u64,
    /// How full it is: `connections` in percent of `size`, with one decimal.
    pub percent: f64,
    /// The kind of its memory pages: `reserved huge pages`, `huge pages` or `small pages`.
    pub pages: String,
}

/// Packets dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Drops {
    /// The name of the reason, such as `no_route`; its counter is `drop_no_route`.
    pub reason: String,
    /// Packets dropped for this reason.
    pub packets: u64,
    /// The reason, in a sentence.
    pub what: String,
}

/// Packets dropped in the last minute, or since the start if that is more recent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RecentDrops {
    /// The length of that minute; less at the start.
    pub seconds: u64,
    /// The dropped packets, by reason.
    pub reasons: Vec<Drops>,
}

/// The comparison of a rules file with the running state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RulesStatus {
    /// The file's path.
    pub file: String,
    /// The result.
    #[serde(flatten)]
    pub found: RulesFound,
}

/// The result of the comparison of a rules file with the running state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RulesFound {
    /// Why the file cannot be compared.
    Error(String),
    /// The number of faulty lines of the file, which is not compared; see `xvs check`.
    Faults(u64),
    /// The number of differences from what runs; see `xvs plan`.
    Differences(u64),
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
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
        self.serialize(f)
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

    use crate::report::status::*;

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
    fn the_result_of_comparing_a_rules_file_is_a_key_beside_the_files_name() {
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
