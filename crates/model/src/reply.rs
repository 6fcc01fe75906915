//! Replies to requests that were carried out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::capture::{CapturedPacket, Missed};
use crate::command::{Command, CommandError};
use crate::connection::{ConnectionRow, Ended};
use crate::daemon_facts::DaemonFacts;
use crate::difference::Difference;
use crate::event::EventBatch;
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

/// The reply to a request that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The change is in force for every packet from now on.
    Done,
    /// For each command of a batch, in its order, whether it was carried out.
    Restored(Vec<Result<(), CommandError>>),
    /// The differences that were removed; none if there was nothing to do.
    Applied(Vec<Difference>),
    /// The commands that make the running state.
    Rules {
        /// The commands.
        commands: Vec<Command>,
        /// Services owned by health checks, which are not compared with rules.
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
    Events(EventBatch),
    /// What would happen to a packet.
    Explained(Box<Report>),
    /// Captured packets.
    Captured(Vec<CapturedPacket>),
    /// The capture has ended; the frames that it missed.
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
