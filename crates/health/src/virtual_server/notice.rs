//! Notices: changes of status, for scripts, FIFOs, the event stream and the log.
//!
//! Not here: the receivers and the times of notices (`notify.rs`).

use std::fmt;
use std::sync::Arc;

use xvs_model::health_checks::check::{Check, Probe, Script, Timing};
use xvs_model::health_checks::virtual_server::VirtualServer;
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ServiceKey;

/// The status of a check, a real server or a virtual server; before the first probe, the assumed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The check passes; the real server may serve; the virtual server has its quorum.
    Up,
    /// The opposite of each.
    Down,
}

impl Status {
    /// The status of a check before its first probe, if its real server is new (`alpha` in keepalived.conf).
    pub fn at_first(timing: &Timing) -> Self {
        (!timing.begins_down).into()
    }

    /// The status of a new or edited check of a real server that was up or down. Only words of an agent take its check
    /// down, so one that takes the place of another kind of check does not.
    pub(super) fn of_new(check: &Check, server_was_up: bool) -> Self {
        (server_was_up || matches!(check.probe, Probe::Agent(..))).into()
    }
}

impl From<bool> for Status {
    fn from(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Down }
    }
}

/// A change of status, reported to scripts, FIFOs, the event stream and the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The virtual server.
    pub virtual_server: Arc<VirtualServer>,
    /// Index of the real server; `None`: the notice is about the quorum of the virtual server.
    pub server: Option<usize>,
    /// The new status.
    pub status: Status,
}

impl Notice {
    /// The script that the file configures for this change.
    pub fn script(&self) -> Option<&Script> {
        let file = &self.virtual_server;
        let (up, down) = match self.server {
            Some(server) => {
                let server = &file.real_servers[server];
                (&server.notify_up, &server.notify_down)
            }
            None => (&file.quorum_up, &file.quorum_down),
        };
        if self.status == Status::Up { up.as_ref() } else { down.as_ref() }
    }

    /// The line for FIFOs, without a line feed: `RS [10.1.0.1]:tcp:80 [10.0.0.1]:tcp:80 UP` or
    /// `VS [10.0.0.1]:tcp:80 DOWN`.
    ///
    /// Source: keepalived-behaviour, section 5.5.
    pub fn line(&self) -> String {
        let file = &self.virtual_server;
        let status = if self.status == Status::Up { "UP" } else { "DOWN" };
        let virtual_server = match (file.group(), file.services.first()) {
            (None, Some((ServiceKey::Mark { mark, .. }, _))) => format!("FWM {mark}"),
            (None, Some((ServiceKey::Address { endpoint, .. }, _))) => {
                fifo_endpoint(*endpoint, file.protocol())
            }
            (group, _) => format!("[{}]:{}", group.unwrap_or_default(), file.ordinal),
        };
        match self.server {
            Some(server) => {
                let endpoint = file.real_servers[server].endpoint;
                format!("RS {} {virtual_server} {status}", fifo_endpoint(endpoint, file.protocol()))
            }
            None => format!("VS {virtual_server} {status}"),
        }
    }
}

/// The text for the log and the event stream.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.virtual_server.name;
        let is_up = self.status == Status::Up;
        match self.server {
            Some(server) => {
                let endpoint = self.virtual_server.real_servers[server].endpoint;
                write!(f, "{endpoint} of {name} is {}", if is_up { "up" } else { "down" })
            }
            None => write!(f, "{name} has {} quorum", if is_up { "its" } else { "no" }),
        }
    }
}

/// An endpoint in a line for FIFOs: `[10.0.0.1]:tcp:80`.
fn fifo_endpoint(Endpoint { addr, port }: Endpoint, protocol: Option<Protocol>) -> String {
    let protocol = protocol.map_or("none".to_owned(), |protocol| protocol.to_string().to_lowercase());
    format!("[{addr}]:{protocol}:{port}")
}
