//! Virtual servers of a keepalived.conf: services, real servers with their checks, and the scripts run when a state
//! changes.

use std::collections::HashSet;

use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ClientLimit, ServiceKey};

use crate::config::command::Command;
use crate::config::destination::DestinationOptions;
use crate::config::service::ServiceOptions;
use crate::config::timeouts::Timeouts;
use crate::health_checks::check::{Check, Probe, Script};
use crate::health_checks::fault::{Fault, LeftOut, Place, Severity};
use crate::health_checks::mail::MailSettings;
use crate::objects::Rule;

/// A real server of a virtual server.
#[derive(Debug, Clone, PartialEq)]
pub struct RealServer {
    /// Its place in the file.
    pub place: Place,
    /// Its endpoint; port 0: that of each service.
    pub endpoint: Endpoint,
    /// Its options as a destination.
    pub options: DestinationOptions,
    /// While down, it stays in the service with weight 0 instead of being removed.
    pub inhibit_on_failure: bool,
    /// Script that runs when it comes up.
    pub notify_up: Option<Script>,
    /// Script that runs when it goes down.
    pub notify_down: Option<Script>,
    /// Whether there are mails about it; `None`: as [`Globals::smtp_alert`] says, by default yes.
    pub smtp_alert: Option<bool>,
    /// Its checks: it is up while all of them pass; without checks it is always up.
    pub checks: Vec<Check>,
}

impl RealServer {
    /// Whether it counts as down until its checks have passed.
    pub fn begins_down(&self) -> bool {
        self.checks.iter().any(|check| check.timing.begins_down)
    }
}

/// A server that serves while the virtual server has no quorum.
#[derive(Debug, Clone, PartialEq)]
pub struct SorryServer {
    /// Its place in the file.
    pub place: Place,
    /// Its endpoint; port 0: that of each service.
    pub endpoint: Endpoint,
    /// Its options as a destination.
    pub options: DestinationOptions,
    /// While the quorum holds, it stays in the service with weight 0 instead of being removed.
    pub inhibit: bool,
}

/// A virtual server: one service, or several of a group with the same real servers.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualServer {
    /// Its place in the file.
    pub place: Place,
    /// The text after `virtual_server`.
    pub name: String,
    /// Its index among the virtual servers of its group, from 0, in the file's order.
    pub ordinal: usize,
    /// Its services, in the order in which they are added, each once.
    pub services: Vec<(ServiceKey, ServiceOptions)>,
    /// The limit of the clients of each service; `None`: the file says nothing about it.
    pub limit: Option<ClientLimit>,
    /// The total weight of up real servers that it needs.
    pub quorum: u32,
    /// How much more weight it needs to regain the quorum, and how much less to lose it.
    pub hysteresis: u32,
    /// Script that runs when it gains the quorum.
    pub quorum_up: Option<Script>,
    /// Script that runs when it loses the quorum.
    pub quorum_down: Option<Script>,
    /// Whether there are mails about its quorum; `None`: as [`Globals::smtp_alert`] says, by default no.
    pub smtp_alert: Option<bool>,
    /// Whether the scripts for a removal run when the daemon stops.
    pub omega: bool,
    /// Whether its checks are suspended while its address is not on this machine.
    pub ha_suspend: bool,
    /// The server that serves while it has no quorum.
    pub sorry_server: Option<SorryServer>,
    /// Its real servers; at least one.
    pub real_servers: Vec<RealServer>,
}

impl VirtualServer {
    /// A name that is unique among virtual servers and stays the same when the file is read again: its service, or its
    /// group with protocol and family.
    pub fn identity(&self) -> String {
        match (self.group(), self.services.first()) {
            (None, Some((key, _))) => key.to_string(),
            (_, first) => {
                format!("{} {:?} {:?}", self.name, self.protocol(), first.map(|(key, _)| key.family()))
            }
        }
    }

    /// The protocol of its services; `None`: it has only firewall marks.
    pub fn protocol(&self) -> Option<Protocol> {
        self.services.iter().find_map(|(key, _)| match key {
            ServiceKey::Address { protocol, .. } => Some(*protocol),
            ServiceKey::Mark { .. } => None,
        })
    }

    /// The name of the `virtual_server_group` that defines its services.
    pub fn group(&self) -> Option<&str> {
        self.name.strip_prefix("group ").and_then(|name| name.split(' ').next())
    }
}

/// Settings for all virtual servers, from `global_defs`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Globals {
    /// The default user of scripts, and perhaps their group.
    pub script_user: Option<(String, Option<String>)>,
    /// Programs that a user other than root can change are not run as root.
    pub enable_script_security: bool,
    /// The FIFO for state changes of virtual servers and real servers, and in keepalived of VRRP too.
    pub notify_fifo: Option<Fifo>,
    /// The FIFO for state changes of virtual servers and real servers alone.
    pub lvs_notify_fifo: Option<Fifo>,
    /// The `notify_up` scripts also run for real servers that are up from the start.
    pub rs_init_notifies: bool,
    /// All services are deleted at the start.
    pub lvs_flush: bool,
    /// Where mails go; `None`: none are sent.
    pub mail: Option<MailSettings>,
    /// Whether there are mails about virtual servers and real servers that do not say it themselves.
    pub smtp_alert: Option<bool>,
}

/// A FIFO that state changes are written to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fifo {
    /// Its path.
    pub path: String,
    /// Its owner when it is created.
    pub user: Option<String>,
    /// Its group when it is created.
    pub group: Option<String>,
    /// The program that reads it; the FIFO's path is its last argument.
    pub script: Option<Script>,
}

/// The content of a keepalived.conf.
#[derive(Debug)]
pub struct Configuration {
    /// Its virtual servers, in the file's order.
    pub virtual_servers: Vec<VirtualServer>,
    /// Its settings for all of them.
    pub globals: Globals,
    /// The timeouts that it sets; 0: not set.
    pub timeouts: Timeouts,
    /// Its faults, in the order of their places. With an [error](Severity::Error) it must not be used.
    pub faults: Vec<Fault>,
    /// What the faults have cost of services.
    pub left_out: Vec<LeftOut>,
}

impl Configuration {
    /// Whether a check connects through a virtual address.
    pub fn has_checks_through_vips(&self) -> bool {
        let servers = self.virtual_servers.iter().flat_map(|one| &one.real_servers);
        servers.flat_map(|server| &server.checks).any(|check| matches!(check.probe, Probe::ThroughVip(_)))
    }

    /// Of services that are in force, those that would end because of faults, and these faults. A service that the file
    /// does not name any more is none of them.
    pub fn lost(&self, in_force: &[ServiceKey]) -> (Vec<ServiceKey>, Vec<&Fault>) {
        let named = self.virtual_servers.iter().flat_map(|one| &one.services).map(|(key, _)| *key);
        let known: HashSet<_> = self.left_out.iter().flat_map(|left_out| left_out.services.clone()).collect();
        let served: HashSet<_> = named.filter(|key| !known.contains(key)).collect();
        let may_be_any = self.left_out.iter().any(|left_out| left_out.services.is_empty());
        let mut lost = in_force.to_vec();
        lost.retain(|key| !served.contains(key) && (may_be_any || known.contains(key)));
        let causes = self.left_out.iter().filter(|left_out| {
            let services = &left_out.services;
            services.is_empty() && !lost.is_empty() || services.iter().any(|key| lost.contains(key))
        });
        let causes = causes.map(|left_out| &left_out.fault).collect();
        (lost, causes)
    }

    /// Whether it has no error.
    pub fn is_usable(&self) -> bool {
        self.faults.iter().all(|fault| fault.severity < Severity::Error)
    }

    /// The command that sets its timeouts, if it sets any.
    pub fn timeouts(&self) -> Option<Command> {
        (self.timeouts != Timeouts::UNSET).then_some(Command::Add(Rule::Timeouts(self.timeouts)))
    }
}
