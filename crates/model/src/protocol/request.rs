//! Requests of clients to the director, as they are sent.
//!
//! Not here: the type of each answer (`question.rs`).

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::config::command::Command;
use crate::config::load_report::Server;
use crate::objects::list_key::ListKind;
use crate::report::capture::CaptureRequest;
use crate::report::connection::Filter;
use crate::report::event::EventQuery;
use crate::report::explain::Question;

/// A request of a client.
///
/// On the socket the variants of both types stand side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Changes the rules of the fleet in etcd.
    Fleet(FleetRequest),
    /// Every connection and template, in parts.
    ListConnections,
    /// The connections, or templates, that match, each with its detail, in parts.
    FindConnections(Filter),
    /// The number of connections, or templates, that match.
    CountConnections(Filter),
    /// Ends the connections, or templates, that match, without a packet to either end.
    EndConnections(Filter),
    /// Marks matching TCP connections for a reset at their next packet and ends the others.
    ResetConnections(Filter),
    /// The number of connections of each local address.
    LocalUse,
    /// The health of real servers.
    Health,
    /// The status of the director.
    Status,
    /// Whether the workers and the control thread make progress. Refused with the name of a thread that makes none.
    Healthy {
        /// The time within which each of them must make progress.
        within_millis: u32,
    },
    /// Every counter.
    Counters,
    /// Totals of every service and destination.
    Traffic,
    /// Remembered and new events, in parts.
    Events(EventQuery),
    /// What would happen to a packet.
    Explain(Question),
    /// Captures packets until the client sends another byte or closes the connection. The first part is empty:
    /// the capture has begun. The last part has the numbers of missed frames.
    Capture(CaptureRequest),
    /// The daemon's view of the machine, for `xvs doctor`.
    Examine,
    /// Reads xvs.toml and the keepalived.conf again.
    Reload,
    /// As [`Reload`](Self::Reload), also if faults of the keepalived.conf end services that it served.
    ReloadAcceptingLoss,
    /// A step of a successor that takes over from the daemon.
    TakeOver(TakeOverStep),
    /// Ends the daemon, which replies before that.
    Stop {
        /// Whether the kernel gets all packets at once, and not after the hold.
        release: bool,
    },
    /// The control thread answers it.
    #[serde(untagged)]
    Control(ControlRequest),
}

/// A request that changes or reads the desired state, which the control thread owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    /// One change.
    Change(Command),
    /// Several changes, published together. A refused one is reported and the others are carried out.
    Restore(Vec<Command>),
    /// Changes the running state to what these rules describe, all of it or nothing.
    Apply {
        /// Commands that create the wanted state from an empty one.
        rules: Vec<Command>,
        /// Seconds after which the change is reverted unless it is confirmed; `None`: it stays.
        confirm_within_seconds: Option<u32>,
        /// Whether the running local addresses stay if the rules have none, as with rules of a fleet: each director has
        /// its own.
        #[serde(default)]
        keeps_locals: bool,
    },
    /// Keeps or takes back applied rules that wait for confirmation.
    Confirm(Verdict),
    /// Commands that create the running state from an empty one.
    Rules,
    /// Every service.
    ListServices,
    /// One service.
    ListService(ServiceKey),
    /// The timeouts in force.
    Timeouts,
    /// The running synchronization daemons.
    Daemons,
    /// The mark rules of `xvs mark`.
    Marks,
    /// The local addresses of FULLNAT.
    LocalAddresses,
    /// The disabled real servers.
    Disabled,
    /// The limits of clients, and the clients that they concern most.
    Limits {
        /// The most clients.
        clients: u32,
    },
    /// The access lists of this kind.
    Lists(ListKind),
    /// The QUIC configurations and server IDs.
    Quic,
    /// Sets a setting: one that the kernel has as `sysctl net.ipv4.vs.KEY`, one of xvs alone, or `feedback.KEY`.
    Set {
        /// The setting's name.
        key: String,
        /// Its new value, as text.
        value: String,
    },
    /// The settings in force.
    Settings,
    /// Reports the load of a real server.
    ReportLoad {
        /// The real server.
        server: Server,
        /// 0 to 100.
        load_percent: f64,
    },
    /// Destinations whose weights follow load reports.
    Feedback,
}

impl From<ControlRequest> for Request {
    fn from(request: ControlRequest) -> Self {
        Self::Control(request)
    }
}

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

impl Request {
    /// The access that the request needs.
    pub fn access(&self) -> Access {
        match self {
            Self::Control(request) => request.access(),
            Self::Fleet(_)
            | Self::EndConnections(_)
            | Self::ResetConnections(_)
            | Self::Reload
            | Self::ReloadAcceptingLoss
            | Self::TakeOver(_)
            | Self::Stop { .. } => Access::Change,
            // Packets contain the data of clients and servers.
            Self::Capture(_) => Access::Change,
            Self::ListConnections
            | Self::FindConnections(_)
            | Self::CountConnections(_)
            | Self::LocalUse
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

    /// Whether it may be sent twice, because the second does nothing more.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.access() == Access::Read || matches!(self, Self::Reload | Self::ReloadAcceptingLoss)
    }
}

impl ControlRequest {
    /// The access that the request needs.
    pub fn access(&self) -> Access {
        match self {
            Self::Change(_)
            | Self::Restore(_)
            | Self::Apply { .. }
            | Self::Confirm(_)
            | Self::Set { .. }
            | Self::ReportLoad { .. } => Access::Change,
            Self::ListServices
            | Self::ListService(_)
            | Self::Rules
            | Self::Timeouts
            | Self::Daemons
            | Self::Marks
            | Self::LocalAddresses
            | Self::Disabled
            | Self::Limits { .. }
            | Self::Lists(_)
            | Self::Quic
            | Self::Settings
            | Self::Feedback => Access::Read,
        }
    }
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

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn requests_of_both_types_have_one_form_and_an_unknown_one_is_refused() {
        for (form, request) in [
            (json!("status"), Request::Status),
            (json!({"stop": {"release": true}}), Request::Stop { release: true }),
            (json!("list_services"), ControlRequest::ListServices.into()),
            (json!({"limits": {"clients": 3}}), ControlRequest::Limits { clients: 3 }.into()),
            (json!({"change": "flush"}), ControlRequest::Change(Command::Flush).into()),
            (json!({"restore": ["flush"]}), ControlRequest::Restore(vec![Command::Flush]).into()),
        ] {
            assert_eq!(to_value(&request).unwrap(), form);
            assert_eq!(from_value::<Request>(form).unwrap(), request);
        }
        for unknown in [json!("nothing"), json!({"stop": {}}), json!({"restore": "flush"}), json!(["status"])]
        {
            assert!(from_value::<Request>(unknown.clone()).is_err(), "{unknown}");
        }
    }
}
