//! Commands, which change the desired state, and why one is refused.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ServiceKey, scheduler};

use crate::destination::DestinationOptions;
use crate::firewall_mark::MarkRule;
use crate::load_report::Server;
use crate::local_address::LocalAddress;
use crate::service::ServiceOptions;
use crate::sync_daemon::{SyncDaemon, SyncRole};
use crate::timeouts::Timeouts;

/// One change of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A new service, without destinations.
    AddService {
        /// Which.
        key: ServiceKey,
        /// All that is said of it.
        options: ServiceOptions,
    },
    /// Replaces all options of a service; its destinations stay.
    EditService {
        /// Which.
        key: ServiceKey,
        /// All that is said of it.
        options: ServiceOptions,
    },
    /// Deletes a service with its destinations.
    DeleteService(ServiceKey),
    /// A new destination, before the others.
    AddDestination {
        /// Of which service.
        service: ServiceKey,
        /// Which.
        endpoint: Endpoint,
        /// All that is said of it.
        options: DestinationOptions,
    },
    /// Replaces all options of a destination; it keeps its place.
    EditDestination {
        /// Of which service.
        service: ServiceKey,
        /// Which.
        endpoint: Endpoint,
        /// All that is said of it.
        options: DestinationOptions,
    },
    /// Deletes a destination.
    DeleteDestination {
        /// Of which service.
        service: ServiceKey,
        /// Which.
        endpoint: Endpoint,
    },
    /// Deletes all services.
    Flush,
    /// Zeroes the counters of one service and its destinations, or of all.
    Zero(Option<ServiceKey>),
    /// New timeouts; a 0 keeps the value in force.
    SetTimeouts(Timeouts),
    /// Starts a synchronization daemon.
    StartDaemon(SyncDaemon),
    /// Stops one.
    StopDaemon(SyncRole),
    /// A new mark rule, behind the others.
    AddMark(MarkRule),
    /// Deletes the mark rule that says the same.
    DeleteMark(MarkRule),
    /// A new local address for FULLNAT.
    AddLocal(LocalAddress),
    /// Deletes a local address; connections that come from it go on.
    DeleteLocal(IpAddr),
}

/// Why a request was not carried out. Nothing has changed then, but for [`CommandError::Late`].
///
/// The first group corresponds to what the kernel's IPVS answers by errno.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum CommandError {
    #[error("virtual service {0} exists already; edit it, or delete it first")]
    ServiceExists(ServiceKey),
    #[error("no virtual service {0}; list shows those configured")]
    NoSuchService(ServiceKey),
    #[error("no virtual service {0} that could have destinations; add it first")]
    ServiceNotDefined(ServiceKey),
    #[error("virtual service {service} has destination {endpoint} already; edit it, or delete it first")]
    DestinationExists { service: ServiceKey, endpoint: Endpoint },
    #[error("virtual service {service} has no destination {endpoint}; list shows those it has")]
    NoSuchDestination { service: ServiceKey, endpoint: Endpoint },
    #[error("no scheduler or persistence engine {name:?}; known: {}", known.join(", "))]
    SchedulerNotFound { name: String, known: Vec<String> },
    #[error("{what} is out of range")]
    OutOfRange { what: String },
    #[error("invalid: {why}")]
    InvalidOperation { why: String },
    #[error("protocol {0} has no virtual services; use TCP, UDP or SCTP")]
    ProtocolNotSupported(Protocol),
    #[error("the {} daemon runs already; stop it first", .0.name())]
    DaemonRunning(SyncRole),
    #[error("no {} daemon runs", .0.name())]
    NoDaemon(SyncRole),
    #[error("mark rule {0} exists already; `xvs mark list` shows those there are")]
    MarkExists(String),
    #[error("no mark rule {0}; `xvs mark list` shows those that can be deleted")]
    NoSuchMark(String),
    #[error("local address {} exists already, with ports {}-{}; delete it first to give it others", .0.addr, .0.first_port, .0.last_port)]
    LocalExists(LocalAddress),
    #[error("no local address {0}; `xvs laddr list` shows those there are")]
    NoSuchLocal(IpAddr),
    #[error("no interface {0}; `ip link` shows those there are")]
    NoSuchDevice(String),
    #[error("permission denied: root and the group xvs may change and see packets, others may only look")]
    PermissionDenied,
    #[error("no room for {what}; its size is a setting of xvs.toml")]
    NoRoom { what: String },

    #[error(
        "xvs: the change is made, but {who} has not taken it up within a second; `xvs status` tells until it has"
    )]
    Late { who: String },
    #[error("xvs: {object}: {what} not supported yet; {next}")]
    NotSupported { object: String, what: String, next: String },
    #[error("no setting {key:?}; known: {}", known.join(", "))]
    UnknownSetting { key: String, known: Vec<String> },
    #[error("{key} cannot be {value:?}; it takes {range}")]
    BadSetting { key: String, value: String, range: String },
    #[error("no virtual service has real server {0}; `xvsadm -Ln` lists those there are")]
    UnknownServer(Server),
    #[error(
        "no service of real server {server} follows load reports; `xvs set feedback.services \"{service}\"` has that one follow them"
    )]
    NotFollowed { server: Server, service: ServiceKey },
    #[error("the request cannot be read: {why}")]
    Malformed { why: String },
    #[error("a request of {bytes} bytes is longer than the {limit} that xvsd takes; send it in parts")]
    TooLong { bytes: u64, limit: u64 },
    #[error(
        "xvsd speaks version {ours} of the control protocol and this program version {theirs}; \
         install both from one release, then restart xvsd"
    )]
    WrongVersion { ours: u32, theirs: u32 },
    #[error("xvsd serves as many clients as it takes; try again, or end one")]
    TooManyClients,
    #[error("{why}")]
    Failed { why: String },
}

impl CommandError {
    /// The same, unless the change was made.
    pub fn refusal(&self) -> Option<&Self> {
        (!matches!(self, Self::Late { .. })).then_some(self)
    }

    /// A name that no scheduler has, with those that there are.
    pub fn scheduler_not_found(name: &str) -> Self {
        let known = scheduler::names().map(str::to_owned).collect();
        Self::SchedulerNotFound { name: name.to_owned(), known }
    }

    /// A name that no persistence engine has.
    pub fn engine_not_found(name: &str) -> Self {
        Self::SchedulerNotFound { name: name.to_owned(), known: Vec::new() }
    }
}
