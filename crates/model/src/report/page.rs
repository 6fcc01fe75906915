//! The document of the status page, `GET /status.json`: the services on one page, with their real servers and health as
//! text.
//!
//! Names and shapes of fields are an interface for programs, listed in docs/json.md. `status/page.rs` of `xvsd` builds
//! it, and `status/page.html` displays it.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use xvs_sched::ClientLimit;

use crate::report::listing::{Rates, Stats};
use crate::report::response::ResponseSummary;
use crate::report::status::StatusReport;

/// The content of the status page at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StatusPage<'a> {
    /// The document of `xvs status --json`, with `rules` null and `settings` empty.
    pub status: &'a StatusReport,
    /// The rates of all services since the last look at the director, at least a second before; `None`: there was none
    /// in the last 30 seconds.
    pub rates: Option<Rates>,
    /// The totals of all services, deleted ones included. `xvsadm -Z` zeroes no totals of this document.
    pub totals: Stats,
    /// Active connections of all services.
    pub active: u64,
    /// Other connections of all services.
    pub inactive: u64,
    /// The number of services whose `state` is not `ok`, whatever the query.
    pub with_problem: usize,
    /// The number of services that match the query.
    pub matching: usize,
    /// The number of this page, from 1.
    pub page: usize,
    /// The number of pages, at least 1.
    pub pages: usize,
    /// Whether any TCP packet but a reset may begin a connection.
    pub sloppy_tcp: bool,
    /// The local addresses of FULLNAT that new connections use.
    pub local_addresses: Vec<IpAddr>,
    /// The local addresses of other directors, whose connections go on here.
    pub standby_addresses: Vec<IpAddr>,
    /// The services of this page, by protocol and address.
    pub services: Vec<&'a PageService>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageService {
    /// The service as listings print it, such as `TCP 192.0.2.1:80`.
    pub service: String,
    /// The service and its options as in a rules file, such as `-t 192.0.2.1:80 -s mh -p 300`.
    pub rule: String,
    /// Whether it works.
    pub state: ServiceState,
    /// Why it is down; `None`: it is not.
    pub why: Option<String>,
    /// The number of its real servers that can get a connection.
    pub usable: usize,
    /// Active connections of its real servers.
    pub active: u64,
    /// Other connections of its real servers.
    pub inactive: u64,
    /// The rates since the last look at the director; `None`: there was none in the last 30 seconds, or the service is
    /// newer.
    pub rates: Option<Rates>,
    /// The totals since it was added.
    pub totals: Stats,
    /// What each of its clients may do, and all together; `None`: anything.
    pub limit: Option<ClientLimit>,
    /// The real servers in IPVS's order; behind them those that checks have taken out, and the sorry server.
    pub servers: Vec<PageServer>,
}

/// A real server of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageServer {
    /// The real server's endpoint; without a port if it uses that of each service.
    pub server: String,
    /// The state.
    pub state: ServerState,
    /// Since when it has this state, results of the last checks, and what to do; may be empty.
    pub words: String,
    /// How packets reach it: `Masq`, `Local`, `Tunnel`, `Route` or `FullNat`; `None`: it is not in the service.
    pub method: Option<&'static str>,
    /// The weight that schedulers use; `None`: it is not in the service.
    pub weight: Option<u32>,
    /// The active connections; `None`: it is not in the service.
    pub active: Option<u32>,
    /// The other connections; `None`: it is not in the service.
    pub inactive: Option<u32>,
    /// The rates since the last look at the director; `None`: there was none in the last 30 seconds, or it was not in
    /// the service then.
    pub rates: Option<Rates>,
    /// The totals since it was added; `None`: it is not in the service.
    pub totals: Option<Stats>,
    /// How long it took until its first reply in the last full minute; `None`: no connection was measured then.
    pub response: Option<ResponseSummary>,
    /// The number of connections from which it gets no new ones; `None`: there is none.
    pub upper_threshold: Option<u32>,
    /// The number of connections below which it gets new ones again; `None`: it has no upper threshold.
    pub lower_threshold: Option<u32>,
}

/// Whether a service works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// It works.
    Ok,
    /// It works, and a real server has a problem.
    Warning,
    /// No real server can get a connection, or there is no quorum.
    Down,
}

/// The state of a real server in a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// The checks pass.
    Up,
    /// It has no check.
    Unchecked,
    /// It is up, and the last runs of a check failed.
    Failing,
    /// The last connections were not answered.
    Unanswered,
    /// The upper threshold keeps new connections away.
    Overloaded,
    /// The weight is 0: it keeps its connections and gets no new ones.
    Quiescent,
    /// An operator has disabled it (`xvs disable`).
    Disabled,
    /// There is no route to it, or its next hop does not answer.
    Unreachable,
    /// The checks say that it is down.
    Down,
    /// It is the sorry server, which serves while there is no quorum, or stands by.
    Sorry,
}

impl ServerState {
    /// Whether an operator needs to look at it. What operators have decided is no problem.
    pub fn is_problem(self) -> bool {
        match self {
            Self::Failing | Self::Unanswered | Self::Overloaded | Self::Unreachable | Self::Down => true,
            Self::Up | Self::Unchecked | Self::Quiescent | Self::Disabled | Self::Sorry => false,
        }
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Unchecked => "not checked",
            Self::Failing => "failing",
            Self::Unanswered => "answers no client",
            Self::Overloaded => "overloaded",
            Self::Quiescent => "quiescent",
            Self::Disabled => "disabled",
            Self::Unreachable => "unreachable",
            Self::Down => "down",
            Self::Sorry => "sorry server",
        })
    }
}
