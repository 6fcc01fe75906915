//! Requests: what a client asks of the director.

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::capture::CaptureRequest;
use crate::command::Command;
use crate::connection::Filter;
use crate::event::Asked;
use crate::explain::Question;
use crate::load_feedback::Server;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// One change; answered by [`Reply::Done`].
    Change(Command),
    /// Several changes, published at once. A refused one is reported and the others are carried out; answered by
    /// [`Reply::Restored`].
    Restore(Vec<Command>),
    /// Makes what runs as these rules want it, as one change, or not at all; answered by [`Reply::Applied`] with what
    /// differed.
    Apply {
        /// What makes the wanted state out of nothing.
        rules: Vec<Command>,
        /// After how many seconds it is taken back, if nobody confirms it.
        confirm_within_seconds: Option<u32>,
    },
    /// Decides about rules that were applied to be confirmed; answered by [`Reply::Done`], or by [`Reply::Applied`] with
    /// what was taken back.
    Confirm(Verdict),
    /// What makes the state that runs out of nothing; answered by [`Reply::Rules`].
    Rules,
    /// Every service; answered by [`Reply::Services`].
    ListServices,
    /// One service; answered by [`Reply::Services`] with one row.
    ListService(ServiceKey),
    /// Every connection and template; answered by [`Reply::Connections`] in parts.
    ListConnections,
    /// The connections, or templates, that fit, each with its detail; answered by [`Reply::Connections`] in parts.
    FindConnections(Filter),
    /// The number of connections, or templates, that match; answered by [`Reply::Count`].
    CountConnections(Filter),
    /// Ends the connections, or templates, that match, without a packet to either end; answered by [`Reply::Ended`].
    EndConnections(Filter),
    /// Has matching TCP connections reset at their next packet, and ends the others; answered by [`Reply::Ended`].
    ResetConnections(Filter),
    /// The timeouts in force.
    Timeouts,
    /// The synchronization daemons that run.
    Daemons,
    /// The mark rules that were set; answered by [`Reply::Marks`].
    Marks,
    /// The local addresses of FULLNAT; answered by [`Reply::LocalAddresses`].
    LocalAddresses,
    /// How many connections each of them has; answered by [`Reply::LocalUse`].
    LocalUse,
    /// Sets what `sysctl net.ipv4.vs.KEY` sets in the kernel, or `feedback.KEY`.
    Set {
        /// The setting's name.
        key: String,
        /// Its new value as typed.
        value: String,
    },
    /// A real server's load.
    ReportLoad {
        /// Whose.
        server: Server,
        /// 0 to 100.
        load_percent: f64,
    },
    /// Weights that follow load reports; answered by [`Reply::Feedback`].
    Feedback,
    /// The health of real servers; answered by [`Reply::Health`].
    Health,
    /// The status of the director; answered by [`Reply::Status`].
    Status,
    /// Whether the director moves; answered by [`Reply::Done`], or refused with what does not.
    Healthy {
        /// How long workers and the control thread may take to show it.
        within_millis: u32,
    },
    /// Every counter; answered by [`Reply::Counters`].
    Counters,
    /// What carries how much; answered by [`Reply::Traffic`].
    Traffic,
    /// What changed and changes; answered by [`Reply::Events`] in parts.
    Events(Asked),
    /// What would happen to a packet; answered by [`Reply::Explained`].
    Explain(Question),
    /// Packets as they pass, until the client sends anything more or hangs up; answered by [`Reply::Captured`] in parts,
    /// the first of which says that it has begun, and by [`Reply::CaptureEnded`].
    Capture(CaptureRequest),
    /// What `xvs doctor` compares with the machine; answered by [`Reply::Examined`].
    Examine,
    /// Reads the keepalived.conf anew; answered by [`Reply::Reloaded`].
    Reload,
}

impl Request {
    /// What it takes to be allowed to ask it.
    pub fn access(&self) -> Access {
        match self {
            Self::Change(_)
            | Self::Restore(_)
            | Self::Apply { .. }
            | Self::Confirm(_)
            | Self::EndConnections(_)
            | Self::ResetConnections(_)
            | Self::Set { .. }
            | Self::ReportLoad { .. }
            | Self::Reload => Access::Change,
            // What clients and servers say to each other is in them.
            Self::Capture(_) => Access::Change,
            Self::ListServices
            | Self::ListService(_)
            | Self::ListConnections
            | Self::FindConnections(_)
            | Self::CountConnections(_)
            | Self::Rules
            | Self::Timeouts
            | Self::Daemons
            | Self::Marks
            | Self::LocalAddresses
            | Self::LocalUse
            | Self::Feedback
            | Self::Health
            | Self::Status
            | Self::Healthy { .. }
            | Self::Counters
            | Self::Traffic
            | Self::Events(_)
            | Self::Explain(_)
            | Self::Examine => Access::Read,
        }
    }
}

/// What becomes of rules that wait to be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They stay.
    Keep,
    /// What was before is put back, but for what somebody else has changed since.
    TakeBack,
}

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Look.
    Read,
    /// Look and change.
    Change,
}
