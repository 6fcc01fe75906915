//! Requests of clients to the director. Each names the variant of [`Reply`](crate::reply::Reply) that answers it.

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::capture::CaptureRequest;
use crate::command::Command;
use crate::connection::Filter;
use crate::event::EventQuery;
use crate::explain::Question;
use crate::load_report::Server;

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// One change; answered by `Reply::Done`.
    Change(Command),
    /// Several changes, published at once. A refused one is reported and the others are carried out; answered by
    /// `Reply::Restored`.
    Restore(Vec<Command>),
    /// Changes what runs into what these rules describe, as one change or not at all; answered by `Reply::Applied`
    /// with the differences.
    Apply {
        /// The commands that make the wanted state out of an empty one.
        rules: Vec<Command>,
        /// After how many seconds it is taken back, unless it is confirmed.
        confirm_within_seconds: Option<u32>,
    },
    /// Decides about applied rules that wait to be confirmed; answered by `Reply::Done`, or by `Reply::Applied` with
    /// the differences that were taken back.
    Confirm(Verdict),
    /// The commands that make the running state out of an empty one; answered by `Reply::Rules`.
    Rules,
    /// Every service; answered by `Reply::Services`.
    ListServices,
    /// One service; answered by `Reply::Services` with one row.
    ListService(ServiceKey),
    /// Every connection and template; answered by `Reply::Connections` in parts.
    ListConnections,
    /// The connections, or templates, that match, each with its detail; answered by `Reply::Connections` in parts.
    FindConnections(Filter),
    /// The number of connections, or templates, that match; answered by `Reply::Count`.
    CountConnections(Filter),
    /// Ends the connections, or templates, that match, without a packet to either end; answered by `Reply::Ended`.
    EndConnections(Filter),
    /// Has matching TCP connections reset at their next packet, and ends the others; answered by `Reply::Ended`.
    ResetConnections(Filter),
    /// The timeouts in force; answered by `Reply::Timeouts`.
    Timeouts,
    /// The synchronization daemons that run; answered by `Reply::Daemons`.
    Daemons,
    /// The mark rules that were set; answered by `Reply::Marks`.
    Marks,
    /// The local addresses of FULLNAT; answered by `Reply::LocalAddresses`.
    LocalAddresses,
    /// How many connections each of them has; answered by `Reply::LocalUse`.
    LocalUse,
    /// Sets what `sysctl net.ipv4.vs.KEY` sets in the kernel, or `feedback.KEY`; answered by `Reply::Done`.
    Set {
        /// The setting's name.
        key: String,
        /// Its new value as typed.
        value: String,
    },
    /// The load of a real server; answered by `Reply::Done`.
    ReportLoad {
        /// The real server.
        server: Server,
        /// 0 to 100.
        load_percent: f64,
    },
    /// Weights that follow load reports; answered by `Reply::Feedback`.
    Feedback,
    /// The health of real servers; answered by `Reply::Health`.
    Health,
    /// The status of the director; answered by `Reply::Status`.
    Status,
    /// Whether the workers and the control thread make progress; answered by `Reply::Done`, or refused with the name
    /// of one that does not.
    Healthy {
        /// How long workers and the control thread may take to show it.
        within_millis: u32,
    },
    /// Every counter; answered by `Reply::Counters`.
    Counters,
    /// Totals of every service and destination; answered by `Reply::Traffic`.
    Traffic,
    /// Events, remembered and new ones; answered by `Reply::Events` in parts.
    Events(EventQuery),
    /// What would happen to a packet; answered by `Reply::Explained`.
    Explain(Question),
    /// Packets as they are forwarded, until the client sends another byte or closes the connection; answered by
    /// `Reply::Captured` in parts, of which the first, empty one says that the capture has begun, and by
    /// `Reply::CaptureEnded`.
    Capture(CaptureRequest),
    /// What `xvs doctor` compares with the machine; answered by `Reply::Examined`.
    Examine,
    /// Reads the keepalived.conf anew; answered by `Reply::Reloaded`.
    Reload,
}

impl Request {
    /// The access that it needs.
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
            // Packets hold the data of clients and servers.
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

/// The decision about rules that wait to be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They stay.
    Keep,
    /// The former state is restored, except for what other commands have changed since.
    TakeBack,
}

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read.
    Read,
    /// Read and change.
    Change,
}
