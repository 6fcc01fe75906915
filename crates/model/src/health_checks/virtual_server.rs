//! Virtual servers from keepalived.conf: services, real servers with their checks, and the scripts run when a state
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
    /// The position in the file.
    pub place: Place,
    /// The endpoint; port 0 stands for the port of each service.
    pub endpoint: Endpoint,
    /// The options as a destination.
    pub options: DestinationOptions,
    /// While down, it stays in the service with weight 0 instead of being removed.
    pub inhibit_on_failure: bool,
    /// Script that runs when it comes up.
    pub notify_up: Option<Script>,
    /// Script that runs when it goes down.
    pub notify_down: Option<Script>,
    /// Whether mails report changes; `None` for [`Globals::smtp_alert`], by default yes.
    pub smtp_alert: Option<bool>,
    /// The checks: the server is up while all of them pass; without checks it is always up.
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
    /// The position in the file.
    pub place: Place,
    /// The endpoint; port 0 stands for the port of each service.
    pub endpoint: Endpoint,
    /// The options as a destination.
    pub options: DestinationOptions,
    /// Whether it stays in the service with weight 0 while the quorum holds, instead of being removed.
    pub inhibit: bool,
}

/// A virtual server: one service, or several of a group with the same real servers.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualServer {
    /// The position in the file.
    pub place: Place,
    /// The text after `virtual_server`.
    pub name: String,
    /// The index among the virtual servers of the group, from 0, in the file's order.
    pub ordinal: usize,
    /// The services, in the order in which they are added, without duplicates.
    pub services: Vec<(ServiceKey, ServiceOptions)>,
    /// The limit for the clients of each service; `None` if the file does not mention it.
    pub limit: Option<ClientLimit>,
    /// The total weight of up real servers that it needs.
    pub quorum: u32,
    /// How much more weight it needs to regain the quorum, and how much less to lose it.
    pub hysteresis: u32,
    /// Script that runs when it gains the quorum.
    pub quorum_up: Option<Script>,
    /// Script that runs when it loses the quorum.
    pub quorum_down: Option<Script>,
    /// Whether mails report the quorum; `None` for [`Globals::smtp_alert`], by default no.
    pub smtp_alert: Option<bool>,
    /// Whether the scripts for a removal run when the daemon stops.
    pub omega: bool,
    /// Whether its checks are suspended while this machine does not have its address.
    pub ha_suspend: bool,
    /// The server that serves while it has no quorum.
    pub sorry_server: Option<SorryServer>,
    /// The real servers; at least one.
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

    /// The protocol of the services; `None` if it has only firewall marks.
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
    /// The settings for mails; `None` if none are sent.
    pub mail: Option<MailSettings>,
    /// Whether there are mails about virtual servers and real servers that do not say it themselves.
    pub smtp_alert: Option<bool>,
}

/// A FIFO that state changes are written to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fifo {
    /// The path.
    pub path: String,
    /// The owner on creation.
    pub user: Option<String>,
    /// The group on creation.
    pub group: Option<String>,
    /// The program that reads it; the FIFO's path is its last argument.
    pub script: Option<Script>,
}

/// The content of keepalived.conf.
#[derive(Debug)]
pub struct Configuration {
    /// The virtual servers, in the file's order.
    pub virtual_servers: Vec<VirtualServer>,
    /// The settings for all virtual servers.
    pub globals: Globals,
    /// The timeouts; 0 if not set.
    pub timeouts: Timeouts,
    /// The faults, ordered by position. With an [error](Severity::Error) the configuration must not be used.
    pub faults: Vec<Fault>,
    /// The sections left out because of faults, with their services.
    pub left_out: Vec<LeftOut>,
}

impl Configuration {
    /// Whether a check connects through a virtual address.
    pub fn has_checks_through_vips(&self) -> bool {
        self.virtual_servers
            .iter()
            .flat_map(|one| &one.real_servers)
            .flat_map(|server| &server.checks)
            .any(|check| matches!(check.probe, Probe::ThroughVip(_)))
    }

    /// The services in force that would end because of faults, and these faults. Services that the file no longer names
    /// are not included.
    pub fn lost(&self, in_force: &[ServiceKey]) -> (Vec<ServiceKey>, Vec<&Fault>) {
        let named = self.virtual_servers.iter().flat_map(|one| &one.services).map(|(key, _)| *key);
        let known: HashSet<_> = self.left_out.iter().flat_map(|left_out| left_out.services.clone()).collect();
        let served: HashSet<_> = named.filter(|key| !known.contains(key)).collect();
        let may_be_any = self.left_out.iter().any(|left_out| left_out.services.is_empty());
        let mut lost = in_force.to_vec();
        lost.retain(|key| !served.contains(key) && (may_be_any || known.contains(key)));
        let causes = self
            .left_out
            .iter()
            .filter(|left_out| {
                let services = &left_out.services;
                services.is_empty() && !lost.is_empty() || services.iter().any(|key| lost.contains(key))
            })
            .map(|left_out| &left_out.fault)
            .collect();
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
