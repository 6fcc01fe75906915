//! Notices: changes of status, for scripts, FIFOs, mails, the event stream and the log.

use std::fmt;
use std::sync::Arc;

use xvs_model::health_checks::check::{Check, Probe, Script, Timing};
use xvs_model::health_checks::virtual_server::{Globals, VirtualServer};
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
    /// The status as keepalived names it.
    fn as_named(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
        }
    }

    /// The status of a check before its first probe, if its real server is new (`alpha` in keepalived.conf).
    pub fn at_first(timing: &Timing) -> Self {
        (!timing.begins_down).into()
    }

    /// The status of a new or edited check of a real server that was up or down. Only an agent's reply takes its check
    /// down, so an agent check that replaces another kind of check does not.
    pub(super) fn of_new(check: &Check, server_was_up: bool) -> Self {
        (server_was_up || matches!(check.probe, Probe::Agent(..))).into()
    }
}

impl From<bool> for Status {
    fn from(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Down }
    }
}

/// A change of status, reported to scripts, FIFOs, mails, the event stream and the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The virtual server.
    pub virtual_server: Arc<VirtualServer>,
    /// Index of the real server; `None` if the notice is about the quorum of the virtual server.
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

    /// Whether the file configures a mail about it. Source: keepalived-behaviour, sections 2.3 and 2.4.
    pub fn is_mailed(&self, globals: &Globals) -> bool {
        let (own, default) = match self.server {
            Some(server) => (self.virtual_server.real_servers[server].smtp_alert, true),
            None => (self.virtual_server.smtp_alert, false),
        };
        own.or(globals.smtp_alert).unwrap_or(default)
    }

    /// The line for FIFOs, without a line feed: `RS [10.1.0.1]:tcp:80 [10.0.0.1]:tcp:80 UP` or
    /// `VS [10.0.0.1]:tcp:80 DOWN`.
    ///
    /// Source: keepalived-behaviour, section 5.5.
    pub fn line(&self) -> String {
        let (virtual_server, status) = (self.virtual_server_as_named(), self.status.as_named());
        match self.server_as_named() {
            Some(server) => format!("RS {server} {virtual_server} {status}"),
            None => format!("VS {virtual_server} {status}"),
        }
    }

    /// The subject of a mail, like keepalived's: `[LB1] Realserver [10.1.0.1]:tcp:80 of virtual server
    /// [10.0.0.1]:tcp:80 - UP`.
    pub fn subject(&self, router_id: &str) -> String {
        let (virtual_server, status) = (self.virtual_server_as_named(), self.status.as_named());
        match self.server_as_named() {
            Some(server) => {
                format!("[{router_id}] Realserver {server} of virtual server {virtual_server} - {status}")
            }
            None => format!("[{router_id}] Virtualserver {virtual_server} - {status}"),
        }
    }

    /// The real server as keepalived names it; `None` if the notice is about the quorum.
    fn server_as_named(&self) -> Option<String> {
        let server = &self.virtual_server.real_servers[self.server?];
        Some(named_endpoint(server.endpoint, self.virtual_server.protocol()))
    }

    /// The virtual server as keepalived names it.
    fn virtual_server_as_named(&self) -> String {
        let file = &self.virtual_server;
        match (file.group(), file.services.first()) {
            (None, Some((ServiceKey::Mark { mark, .. }, _))) => format!("FWM {mark}"),
            (None, Some((ServiceKey::Address { endpoint, .. }, _))) => {
                named_endpoint(*endpoint, file.protocol())
            }
            (group, _) => format!("[{}]:{}", group.unwrap_or_default(), file.ordinal),
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

/// An endpoint as keepalived names it: `[10.0.0.1]:tcp:80`.
fn named_endpoint(Endpoint { addr, port }: Endpoint, protocol: Option<Protocol>) -> String {
    let protocol = protocol.map_or("none".to_owned(), |protocol| protocol.to_string().to_lowercase());
    format!("[{addr}]:{protocol}:{port}")
}

#[cfg(test)]
mod tests {
    use xvs_keepalived::read;

    use crate::command::testing::Folder;
    use crate::virtual_server::notice::*;

    /// The first virtual server in a file with this one, and the settings of `global_defs`.
    fn file(globals: &str, virtual_server: &str) -> (Arc<VirtualServer>, Globals) {
        let folder = Folder::new();
        let path = folder.path("keepalived.conf");
        let text = format!("global_defs {{\n{globals}\n}}\n{virtual_server}\n");
        std::fs::write(&path, text).unwrap();
        let read = read(&path, "lb1").unwrap();
        (Arc::new(read.virtual_servers[0].clone()), read.globals)
    }

    fn with_server(head: &str, more: &str) -> String {
        format!(
            "virtual_server_group web {{\n127.0.0.102 80\n127.0.0.103 80\n}}\n\
             virtual_server {head} {{\nlvs_sched rr\nlvs_method NAT\n{more}\nreal_server 127.0.0.11 8001 {{\n}}\n}}"
        )
    }

    /// From runs of keepalived 2.2.7 with these files.
    #[test]
    fn subjects_are_those_of_keepalived() {
        for (head, protocol, of_server, of_quorum) in [
            (
                "127.0.0.100 80",
                "protocol TCP",
                "[LB1] Realserver [127.0.0.11]:tcp:8001 of virtual server [127.0.0.100]:tcp:80 - DOWN",
                "[LB1] Virtualserver [127.0.0.100]:tcp:80 - UP",
            ),
            (
                "fwmark 7",
                "",
                "[LB1] Realserver [127.0.0.11]:none:8001 of virtual server FWM 7 - DOWN",
                "[LB1] Virtualserver FWM 7 - UP",
            ),
            (
                "group web",
                "protocol TCP",
                "[LB1] Realserver [127.0.0.11]:tcp:8001 of virtual server [web]:0 - DOWN",
                "[LB1] Virtualserver [web]:0 - UP",
            ),
        ] {
            let (virtual_server, _) = file("", &with_server(head, protocol));
            let server = Notice { virtual_server, server: Some(0), status: Status::Down };
            let quorum = Notice { server: None, status: Status::Up, ..server.clone() };
            assert_eq!([server.subject("LB1"), quorum.subject("LB1")], [of_server, of_quorum]);
        }
    }

    #[test]
    fn mails_are_about_real_servers_and_not_about_quorums_unless_the_file_says_otherwise() {
        let mailed = |globals: &str, more: &str| {
            let (virtual_server, globals) = file(globals, &with_server("127.0.0.100 80", more));
            let server = Notice { virtual_server, server: Some(0), status: Status::Down };
            let quorum = Notice { server: None, ..server.clone() };
            [server.is_mailed(&globals), quorum.is_mailed(&globals)]
        };
        assert_eq!(mailed("", ""), [true, false]);
        assert_eq!(mailed("", "smtp_alert"), [true, true]);
        assert_eq!(mailed("smtp_alert", ""), [true, true]);
        assert_eq!(mailed("smtp_alert_checker off", ""), [false, false]);
        assert_eq!(mailed("smtp_alert_checker off", "smtp_alert"), [false, true]);
    }
}
