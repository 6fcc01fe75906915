//! Replies: what the director answers when a request was carried out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::capture::{CapturedPacket, Missed};
use crate::command::{Command, CommandError};
use crate::connection::{ConnectionRow, Ended};
use crate::daemon_facts::DaemonFacts;
use crate::difference::Difference;
use crate::event::Heard;
use crate::explain::Report;
use crate::firewall_mark::MarkRule;
use crate::health::HealthReport;
use crate::listing::ServiceRow;
use crate::load_feedback::FeedbackRow;
use crate::local_address::{LocalAddress, LocalReport};
use crate::status::StatusReport;
use crate::sync_daemon::SyncDaemon;
use crate::timeouts::Timeouts;
use crate::traffic::Traffic;

/// What a client is answered when its request was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The change is in force for every packet from now on.
    Done,
    /// For each command of a batch, in its order, whether it was carried out.
    Restored(Vec<Result<(), CommandError>>),
    /// What differed, and does no more; nothing if there was nothing to do.
    Applied(Vec<Difference>),
    /// What makes the state that runs.
    Rules {
        /// The commands.
        commands: Vec<Command>,
        /// Services that are governed, which rules are not compared with.
        governed: Vec<ServiceKey>,
    },
    /// Services, in no particular order; their destinations in IPVS's.
    Services(Vec<ServiceRow>),
    /// Some connections.
    Connections(Vec<ConnectionRow>),
    /// How many connections match.
    Count(u64),
    /// How many connections were ended or are to be reset.
    Ended(Ended),
    /// The timeouts in force.
    Timeouts(Timeouts),
    /// The daemons that run, the master first.
    Daemons(Vec<SyncDaemon>),
    /// The mark rules that were set, in the order in which they apply.
    Marks(Vec<MarkRule>),
    /// The local addresses, in the order of the commands.
    LocalAddresses(Vec<LocalAddress>),
    /// The connections of each local address.
    LocalUse(LocalReport),
    /// Destinations whose weights follow load reports.
    Feedback(Vec<FeedbackRow>),
    /// All services, in no particular order.
    Traffic(Box<Traffic>),
    /// Some events.
    Events(Heard),
    /// What would happen to a packet.
    Explained(Box<Report>),
    /// Packets as they passed.
    Captured(Vec<CapturedPacket>),
    /// No more packets are captured.
    CaptureEnded(Missed),
    /// The status of the director.
    Status(Box<StatusReport>),
    /// The health of real servers; `None` without a keepalived.conf.
    Health(Option<HealthReport>),
    /// Counters by name, summed over the workers.
    Counters(BTreeMap<String, u64>),
    /// The daemon's own view of the machine.
    Examined(DaemonFacts),
    /// The keepalived.conf was read: what has changed, in a line.
    Reloaded(String),
}
