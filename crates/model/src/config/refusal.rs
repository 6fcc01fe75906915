//! The reasons for which requests are refused.

use std::fmt::Display;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::quic::ServerId;
use xvs_proto::{Endpoint, Prefix, Protocol};
use xvs_sched::{ServiceKey, scheduler};

use crate::config::load_report::Server;
use crate::config::sync_daemon::SyncRole;
use crate::config::unknown_name;
use crate::objects::list_key::ListKey;

/// Why a request was refused or failed. Nothing has changed, except with [`CommandError::Late`].
///
/// Each variant of the first group corresponds to an errno of the kernel's IPVS.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum CommandError {
    #[error("virtual service {0} exists already; edit it, or delete it first")]
    ServiceExists(ServiceKey),
    #[error("no virtual service {0}; `xvsadm -Ln` lists the configured ones")]
    NoSuchService(ServiceKey),
    #[error("no virtual service {0}; add it before its destinations")]
    ServiceNotDefined(ServiceKey),
    #[error("virtual service {service} has destination {endpoint} already; edit it, or delete it first")]
    DestinationExists { service: ServiceKey, endpoint: Endpoint },
    #[error("virtual service {service} has no destination {endpoint}; `xvsadm -Ln` lists those that it has")]
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
    #[error("mark rule {0} exists already; `xvs mark list` shows the existing ones")]
    MarkExists(String),
    #[error("no mark rule {0}; `xvs mark list` shows those that can be deleted")]
    NoSuchMark(String),
    #[error(
        "local address {addr} --ports {first_port}-{last_port}{} exists already; delete it before you give it other \
         ports, or another use", if *standby { " --standby" } else { "" }
    )]
    LocalExists { addr: IpAddr, first_port: u16, last_port: u16, standby: bool },
    #[error("no local address {0}; `xvs laddr list` shows the configured ones")]
    NoSuchLocal(IpAddr),
    #[error("service {0} has no limit; `xvs limit list` shows those that can be deleted")]
    NoSuchLimit(ServiceKey),
    #[error("real server {0} is not disabled; `xvs status` shows those that are")]
    NotDisabled(Server),
    #[error(
        "real server {server} is disabled as part of {broader}; enable that, in all its services, or leave it"
    )]
    DisabledAsPart { server: Server, broader: String },
    #[error("{prefix} is no entry of the {list}; `xvs {} list` shows those that a command added", list.kind.name())]
    NotListed { list: ListKey, prefix: Prefix },
    #[error("the {0} has no file; `xvs {name} list` shows the files", name = .0.kind.name())]
    NoListFile(ListKey),
    #[error("service {service} has no QUIC configuration {config}; `xvs quic list` shows those that it has")]
    NoSuchQuic { service: ServiceKey, config: u8 },
    #[error("service {service} has no server ID {id}; `xvs quic list` shows those that it has")]
    NoSuchServerId { service: ServiceKey, id: ServerId },
    #[error("no interface {0}; `ip link` shows those that exist")]
    NoSuchDevice(String),
    #[error(
        "permission denied: only root and the group xvs may change the configuration or see packets; others may read it"
    )]
    PermissionDenied,
    #[error("no room for {what}; its size is a setting of xvs.toml")]
    NoRoom { what: String },

    #[error(
        "xvs: the change is published, but {who} has not applied it within a second; `xvs status` warns until it has"
    )]
    Late { who: String },
    #[error("xvs: {object}: {what} not supported yet; {next}")]
    NotSupported { object: String, what: String, next: String },
    #[error("no setting {key:?}; {}", advised(key, known))]
    UnknownSetting { key: String, known: Vec<String> },
    #[error("{key} cannot be {value:?}; it takes {range}")]
    BadSetting { key: String, value: String, range: String },
    #[error("no virtual service has real server {0}; `xvsadm -Ln` lists the configured ones")]
    UnknownServer(Server),
    #[error(
        "no service of real server {server} follows load reports; `xvs set feedback.services \"{service}\"` makes that service follow them"
    )]
    NotFollowed { server: Server, service: ServiceKey },
    #[error("the request cannot be read: {why}")]
    Malformed { why: String },
    #[error("a request of {bytes} bytes is longer than the limit of {limit}; send it in parts")]
    TooLong { bytes: u64, limit: u64 },
    #[error(
        "xvsd speaks version {ours} of the control protocol and this program version {theirs}; \
         install both from one release, then restart xvsd"
    )]
    WrongVersion { ours: u32, theirs: u32 },
    #[error("xvsd serves its largest number of clients already; try again, or end one of them")]
    TooManyClients,
    #[error("{why}")]
    Failed { why: String },
}

/// The setting that an unknown name probably means, or all known settings.
fn advised(key: &str, known: &[String]) -> String {
    unknown_name::advice(key, known.iter().map(String::as_str))
        .unwrap_or_else(|| format!("known: {}", known.join(", ")))
}

impl CommandError {
    /// The error if nothing was changed; `None` for [`Self::Late`], whose change is published.
    pub fn refusal(&self) -> Option<&Self> {
        (!matches!(self, Self::Late { .. })).then_some(self)
    }

    /// The error for a command that is wrong in itself.
    pub fn invalid(why: impl Into<String>) -> Self {
        Self::InvalidOperation { why: why.into() }
    }

    /// The error for what xvs itself cannot do, with its prefix.
    pub fn failed(why: impl Display) -> Self {
        Self::Failed { why: format!("xvs: {why}") }
    }

    /// The error of a daemon that is ending.
    pub fn ending() -> Self {
        Self::failed("the daemon is ending")
    }

    /// The error for an unknown scheduler name, with the known ones.
    pub fn scheduler_not_found(name: &str) -> Self {
        let known = scheduler::names().map(str::to_owned).collect();
        Self::SchedulerNotFound { name: name.to_owned(), known }
    }
}
