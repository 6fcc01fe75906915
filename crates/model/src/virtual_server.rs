//! Virtual servers of a keepalived.conf: services, real servers with their checks, and what is run when their state
//! changes.

use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ServiceKey;

use crate::check::{Check, Script};
use crate::command::Command;
use crate::destination::DestinationOptions;
use crate::fault::{Fault, Place, Severity};
use crate::service::ServiceOptions;
use crate::timeouts::Timeouts;

/// A server of a virtual server.
#[derive(Debug, Clone, PartialEq)]
pub struct RealServer {
    /// Where it stands.
    pub place: Place,
    /// Its endpoint; port 0: that of each service.
    pub endpoint: Endpoint,
    /// How packets reach it, and its share of them.
    pub options: DestinationOptions,
    /// Down it stays, with weight 0, instead of being removed.
    pub inhibit_on_failure: bool,
    /// Run when it comes up.
    pub notify_up: Option<Script>,
    /// Run when it goes down.
    pub notify_down: Option<Script>,
    /// It is up while all of them pass; without any it always is.
    pub checks: Vec<Check>,
}

impl RealServer {
    /// Whether it is down until its checks have passed.
    pub fn begins_down(&self) -> bool {
        self.checks.iter().any(|check| check.timing.begins_down)
    }
}

/// A server that serves while the others cannot.
#[derive(Debug, Clone, PartialEq)]
pub struct SorryServer {
    /// Where it stands.
    pub place: Place,
    /// Its endpoint; port 0: that of each service.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub options: DestinationOptions,
    /// It stays, with weight 0, while others serve.
    pub inhibit: bool,
}

/// A virtual server: one service, or several of a group with the same real servers.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualServer {
    /// Where it stands.
    pub place: Place,
    /// What follows `virtual_server`.
    pub name: String,
    /// Which of the virtual servers of its group it is, from 0, in the file's order.
    pub ordinal: usize,
    /// Its services, in the order in which they are made, each once.
    pub services: Vec<(ServiceKey, ServiceOptions)>,
    /// Weight of servers that are up from which on it is well.
    pub quorum: u32,
    /// How much more it takes to be well again, and less to be no more.
    pub hysteresis: u32,
    /// Run when it comes to be well.
    pub quorum_up: Option<Script>,
    /// Run when it is well no more.
    pub quorum_down: Option<Script>,
    /// Whether scripts are told of the end when the daemon stops.
    pub omega: bool,
    /// Whether checks rest while its address is not here.
    pub ha_suspend: bool,
    /// Who serves while it is not well.
    pub sorry_server: Option<SorryServer>,
    /// Who serves while it is, never none.
    pub real_servers: Vec<RealServer>,
}

impl VirtualServer {
    /// What is the same of it in another reading of the file, and of no other virtual server: its service, or the group
    /// with the protocol.
    pub fn identity(&self) -> String {
        match (self.group(), self.services.first()) {
            (None, Some((key, _))) => key.to_string(),
            (_, first) => {
                format!("{} {:?} {:?}", self.name, self.protocol(), first.map(|(key, _)| key.family()))
            }
        }
    }

    /// The protocol of its addresses; `None`: it has only marks.
    pub fn protocol(&self) -> Option<Protocol> {
        self.services.iter().find_map(|(key, _)| match key {
            ServiceKey::Address { protocol, .. } => Some(*protocol),
            ServiceKey::Mark { .. } => None,
        })
    }

    /// The name of the group that its services are of.
    pub fn group(&self) -> Option<&str> {
        self.name.strip_prefix("group ").and_then(|name| name.split(' ').next())
    }
}

/// What holds for all virtual servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Globals {
    /// Who scripts run as that name nobody: a user and perhaps a group.
    pub script_user: Option<(String, Option<String>)>,
    /// Programs that others than root could change are not run as root.
    pub enable_script_security: bool,
    /// The FIFO that is told of virtual servers and real servers, and in keepalived of VRRP too.
    pub notify_fifo: Option<Fifo>,
    /// The FIFO that is told of virtual servers and real servers alone.
    pub lvs_notify_fifo: Option<Fifo>,
    /// Scripts of real servers that are up from the start run too.
    pub rs_init_notifies: bool,
    /// The table is emptied at the start.
    pub lvs_flush: bool,
}

/// A FIFO that is told of what happens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fifo {
    /// Where it is.
    pub path: String,
    /// Whose it is, if it is made.
    pub user: Option<String>,
    /// The same of its group.
    pub group: Option<String>,
    /// What reads it, with its path as last argument.
    pub script: Option<Script>,
}

/// What a file wants.
#[derive(Debug)]
pub struct Configuration {
    /// Its virtual servers, in its order.
    pub virtual_servers: Vec<VirtualServer>,
    /// What it says for all of them.
    pub globals: Globals,
    /// Timeouts that it sets; 0: as they are.
    pub timeouts: Timeouts,
    /// What is wrong with it, in the order of its places. With an [error](Severity::Error) it is not to be used.
    pub faults: Vec<Fault>,
}

impl Configuration {
    /// Whether it may be used.
    pub fn is_usable(&self) -> bool {
        self.faults.iter().all(|fault| fault.severity < Severity::Error)
    }

    /// The command that sets its timeouts, if it sets any.
    pub fn timeouts(&self) -> Option<Command> {
        (self.timeouts != Timeouts::UNSET).then_some(Command::SetTimeouts(self.timeouts))
    }
}
