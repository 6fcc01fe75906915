//! Replies to requests that succeeded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::config::difference::Difference;
use crate::config::load_feedback::FeedbackRow;
use crate::config::refusal::CommandError;
use crate::config::sync_daemon::SyncDaemon;
use crate::config::timeouts::Timeouts;
use crate::objects::Rule;
use crate::objects::disabled::DisabledServers;
use crate::objects::limit::LimitReport;
use crate::objects::listed::ListRow;
use crate::objects::local::{LocalAddress, LocalReport};
use crate::objects::mark::MarkRule;
use crate::objects::quic::QuicRow;
use crate::report::capture::{CapturedPacket, Missed};
use crate::report::connection::{ConnectionRow, Ended};
use crate::report::daemon_facts::DaemonFacts;
use crate::report::event::EventBatch;
use crate::report::explain::Report;
use crate::report::health::HealthReport;
use crate::report::listing::ServiceRow;
use crate::report::setting::Setting;
use crate::report::status::StatusReport;
use crate::report::traffic::Traffic;

/// The reply to a request that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The change is in force for every packet from now on.
    Done,
    /// The running daemon has noted its successor.
    Prepares {
        /// The time of systemd's watchdog, which the successor has to notify from then on.
        watchdog_millis: Option<u64>,
    },
    /// The result of each command of a batch, in the batch's order.
    Restored(Vec<Result<(), CommandError>>),
    /// The differences between the running and the wanted state that were removed; empty if there were none.
    Applied(Vec<Difference>),
    /// The rules of the fleet in etcd are changed, with this revision; the directors take them up later.
    Fleet(u64),
    /// The running state.
    Rules {
        /// The rules that create it from an empty state.
        #[serde(rename = "commands")]
        rules: Vec<Rule>,
        /// Services owned by health checks, which are not compared with rules.
        #[serde(rename = "governed")]
        owned: Vec<ServiceKey>,
        /// The limits of clients that health checks own, which are not compared with rules either.
        #[serde(default)]
        owned_limits: Vec<Rule>,
    },
    /// Services in no particular order, each with its destinations in IPVS's order.
    Services(Vec<ServiceRow>),
    /// A part of the connections.
    Connections(Vec<ConnectionRow>),
    /// The number of matching connections.
    Count(u64),
    /// The numbers of connections that were ended and that are to be reset.
    Ended(Ended),
    /// The timeouts in force.
    Timeouts(Timeouts),
    /// The running synchronization daemons, the master first.
    Daemons(Vec<SyncDaemon>),
    /// The mark rules of `xvs mark`, in the order in which they apply.
    Marks(Vec<MarkRule>),
    /// The local addresses, in the order of the commands.
    LocalAddresses(Vec<LocalAddress>),
    /// The disabled real servers.
    Disabled(DisabledServers),
    /// The limits of clients.
    Limits(LimitReport),
    /// Access lists, that of all services first.
    Lists(Vec<ListRow>),
    /// The QUIC configurations and server IDs, by service.
    Quic(Vec<QuicRow>),
    /// The connections of each local address.
    LocalUse(LocalReport),
    /// The settings in force, in the order of their keys.
    Settings(Vec<Setting>),
    /// Destinations whose weights follow load reports.
    Feedback(Vec<FeedbackRow>),
    /// The totals of all services, in no particular order.
    Traffic(Box<Traffic>),
    /// A part of the events.
    Events(EventBatch),
    /// What would happen to a packet.
    Explained(Box<Report>),
    /// A part of the captured packets.
    Captured(Vec<CapturedPacket>),
    /// The capture has ended; the numbers of frames that it missed.
    CaptureEnded(Missed),
    /// The status of the director.
    Status(Box<StatusReport>),
    /// The health of real servers; `None` without a keepalived.conf.
    Health(Option<HealthReport>),
    /// Counters by name, summed over the workers.
    Counters(BTreeMap<String, u64>),
    /// The daemon's own view of the machine.
    Examined(DaemonFacts),
    /// xvs.toml and the keepalived.conf were read and accepted: the changes, a line each.
    Reloaded(String),
}

#[cfg(any(test, feature = "samples"))]
impl Reply {
    /// The rules of a director with these services, and with what these commands add. For tests alone.
    pub fn rules_of(services: &[ServiceRow], more: impl IntoIterator<Item = Rule>) -> Self {
        let mut rules = Vec::new();
        for row in services {
            rules.push(Rule::Service { key: row.key, options: row.options.clone() });
            // The one added last comes first.
            rules.extend(row.destinations.iter().rev().map(|dest| Rule::Destination {
                service: row.key,
                endpoint: dest.endpoint,
                options: dest.options.clone(),
            }));
        }
        rules.extend(more);
        Self::Rules { rules, owned: Vec::new(), owned_limits: Vec::new() }
    }
}
