//! The document of the status page, `GET /status.json`: the services of one page, with their real servers and what
//! health checks say of them in words.
//!
//! Names and shapes of fields are an interface for programs, listed in docs/json.md. Not here: who fills it in
//! (`status/page.rs` of `ctl`), how it is shown (`status/page.html` there).

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::report::listing::Rates;
use crate::report::status::StatusReport;

/// What the status page shows at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StatusPage<'a> {
    /// The director's status, without a comparison of its rules file and without settings.
    pub status: &'a StatusReport,
    /// The rates of all services; `None`: there is no earlier look to compare with.
    pub rates: Option<Rates>,
    /// The services with a problem, whatever the search.
    pub with_problem: usize,
    /// The services that match the search.
    pub matching: usize,
    /// The number of this page, from 1.
    pub page: usize,
    /// The number of pages, at least 1.
    pub pages: usize,
    /// Whether any TCP packet but a reset may begin a connection.
    pub sloppy_tcp: bool,
    /// The local addresses that new connections of FULLNAT use.
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
    /// The service as printed, `TCP 192.0.2.1:80`.
    pub service: String,
    /// It and its options as in a rules file, `-t 192.0.2.1:80 -s mh -p 300`.
    pub rule: String,
    /// Whether it works.
    pub state: ServiceState,
    /// Why it does not work; `None`: it does.
    pub why: Option<String>,
    /// The number of its real servers that can get a connection.
    pub usable: usize,
    /// Connections in an active state.
    pub active: u64,
    /// Its other connections.
    pub inactive: u64,
    /// Its rates since the last look; `None`: there was none.
    pub rates: Option<Rates>,
    /// Its real servers, in IPVS's order; behind them those that are not in the service.
    pub servers: Vec<PageServer>,
}

/// A real server of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageServer {
    /// Its endpoint; without a port if it uses that of each service.
    pub server: String,
    /// Its state.
    pub state: ServerState,
    /// More about the state: since when, and the results of the last checks. May be empty.
    pub words: String,
    /// How packets reach it, as listed; `None`: it is not in the service.
    pub method: Option<&'static str>,
    /// The weight that schedulers use; `None`: it is not in the service.
    pub weight: Option<u32>,
    /// Connections in an active state; `None`: it is not in the service, and its connections wait.
    pub active: Option<u32>,
    /// Its other connections.
    pub inactive: Option<u32>,
    /// Its rates since the last look; `None`: there was none.
    pub rates: Option<Rates>,
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
    /// Its checks pass.
    Up,
    /// It has no check.
    Unchecked,
    /// It is up, and the last runs of a check failed.
    Failing,
    /// Its last connections were not answered.
    Unanswered,
    /// Its upper threshold keeps new connections away.
    Overloaded,
    /// It has weight 0: it keeps its connections and gets no new ones.
    Quiescent,
    /// An operator has disabled it.
    Disabled,
    /// There is no route to it, or its next hop does not answer.
    Unreachable,
    /// Its checks say that it is down.
    Down,
    /// It is the sorry server, which serves while there is no quorum.
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
