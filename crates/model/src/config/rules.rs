//! Rules files: the lines, the state that they want, and their faults.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use xvs_proto::quic::ServerId;
use xvs_proto::{Endpoint, Prefix};
use xvs_sched::ServiceKey;

use crate::config::access_list::ListKey;
use crate::config::command::{Command, CommandError};
use crate::config::desired_state::State;
use crate::config::maintenance::Disabled;
use crate::config::quic_change::QuicChange;
use crate::config::sync_daemon::SyncRole;
use crate::config::timeouts::Timeouts;

/// The state that rules want.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredRules {
    pub(crate) state: State,
    /// The timeouts that the rules set; 0: not set.
    pub(crate) timeouts: Timeouts,
}

/// A fault of a line of a rules file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Fault {
    /// The number of the faulty line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl From<State> for DesiredRules {
    /// This state, with the timeouts left as they are.
    fn from(state: State) -> Self {
        Self { state, timeouts: Timeouts::UNSET }
    }
}

impl DesiredRules {
    /// The state that these lines want.
    ///
    /// # Errors
    /// A fault for every line whose command is refused after those before it.
    pub fn of(lines: &[RuleLine]) -> Result<Self, Vec<Fault>> {
        let mut wanted = Self { timeouts: Timeouts::UNSET, ..Self::default() };
        let mut faults = Vec::new();
        for (place, RuleLine { number, command }) in lines.iter().enumerate() {
            if let Err(error) = wanted.apply(command) {
                let first = lines[..place].iter().rfind(|line| adds_the_same(&line.command, command));
                let why = match (duplicate_of(&error), first) {
                    (Some(what), Some(first)) => format!("line {} adds {what} already", first.number),
                    _ => error.to_string(),
                };
                faults.push(Fault { line: *number, why });
            }
        }
        if faults.is_empty() { Ok(wanted) } else { Err(faults) }
    }

    /// The wanted state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The timeouts that the rules set; 0: not set.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Wants these services as they run, so that they have no difference: rules do not apply to them.
    pub fn keep_running(&mut self, running: &State, services: impl IntoIterator<Item = ServiceKey>) {
        for key in services {
            self.state.set_service(key, running.service(&key).cloned());
        }
    }

    /// The same for the limits of these services.
    pub fn keep_limits<'a>(&mut self, running: &State, services: impl IntoIterator<Item = &'a ServiceKey>) {
        for key in services {
            self.state.set_limit(*key, running.limits().get(key).copied());
        }
    }

    /// Wants the local addresses that run, if the rules have none.
    pub fn keep_locals(&mut self, running: &State) {
        if self.state.locals().is_empty() {
            self.state.set_locals(running.locals());
        }
    }

    fn apply(&mut self, command: &Command) -> Result<(), CommandError> {
        if matches!(command, Command::Zero(_)) {
            let why = "rules do not zero counters; `xvsadm -Z` does".to_owned();
            return Err(CommandError::InvalidOperation { why });
        }
        self.state.apply(command)?;
        if let Command::SetTimeouts(timeouts) = command {
            self.timeouts.update(*timeouts);
        }
        Ok(())
    }
}

/// Whether both commands add the same object.
fn adds_the_same(line: &Command, other: &Command) -> bool {
    let adds = |command: &Command| {
        matches!(
            command,
            Command::AddService { .. }
                | Command::AddDestination { .. }
                | Command::AddLocal(_)
                | Command::AddMark(_)
        )
    };
    adds(line)
        && adds(other)
        && object_of(line) == object_of(other)
        && (object_of(line) != Object::Marks || line == other)
}

/// The object that a line adds for the second time.
fn duplicate_of(error: &CommandError) -> Option<String> {
    Some(match error {
        CommandError::ServiceExists(key) => format!("virtual service {key}"),
        CommandError::DestinationExists { service, endpoint } => {
            format!("real server {endpoint} of virtual service {service}")
        }
        CommandError::LocalExists(local) => format!("local address {}", local.addr),
        CommandError::MarkExists(rule) => format!("mark rule {rule}"),
        _ => return None,
    })
}

/// A line of a rules file that has a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleLine {
    /// Its number, from 1.
    pub number: usize,
    /// Its command.
    pub command: Command,
}

/// The object that a rule configures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A local address.
    Local(IpAddr),
    /// A service.
    Service(ServiceKey),
    /// A destination of a service.
    Destination(ServiceKey, Endpoint),
    /// The mark rules.
    Marks,
    /// A disabled real server.
    Disabled(Disabled),
    /// What each client of a service may do.
    Limit(ServiceKey),
    /// An entry of an access list.
    Listed(ListKey, Prefix),
    /// The file of an access list.
    ListFile(ListKey),
    /// A QUIC configuration of a service, by its number.
    Quic(ServiceKey, u8),
    /// A server ID of a service.
    ServerId(ServiceKey, ServerId),
    /// The timeouts.
    Timeouts,
    /// The synchronization daemon of a role.
    Daemon(SyncRole),
    /// Counters, all services: they are not compared.
    Other,
}

impl Object {
    /// The service itself, or the service of a destination.
    pub fn service(self) -> Option<ServiceKey> {
        match self {
            Self::Service(key) | Self::Destination(key, _) => Some(key),
            _ => None,
        }
    }

    /// The same, or the service of a limit.
    pub fn service_or_limited(self) -> Option<ServiceKey> {
        match self {
            Self::Limit(key) => Some(key),
            other => other.service(),
        }
    }
}

/// The object that a command configures.
pub fn object_of(command: &Command) -> Object {
    match command {
        Command::AddLocal(local) => Object::Local(local.addr),
        Command::DeleteLocal(addr) => Object::Local(*addr),
        Command::AddService { key, .. } | Command::EditService { key, .. } | Command::DeleteService(key) => {
            Object::Service(*key)
        }
        Command::AddDestination { service, endpoint, .. }
        | Command::EditDestination { service, endpoint, .. }
        | Command::DeleteDestination { service, endpoint } => Object::Destination(*service, *endpoint),
        Command::AddMark(_) | Command::DeleteMark(_) => Object::Marks,
        Command::Disable(server) | Command::Enable(server) => Object::Disabled(*server),
        Command::SetLimit { service, .. } | Command::DeleteLimit(service) => Object::Limit(*service),
        Command::AddListed { list, prefix, .. } | Command::DeleteListed { list, prefix } => {
            Object::Listed(*list, *prefix)
        }
        Command::SetListFile { list, .. } | Command::UnsetListFile(list) => Object::ListFile(*list),
        Command::Quic { service, change } => match *change {
            QuicChange::Add { config, .. } | QuicChange::Delete { config } => Object::Quic(*service, config),
            QuicChange::AddId { id, .. } | QuicChange::DeleteId { id } => Object::ServerId(*service, id),
        },
        Command::SetTimeouts(_) => Object::Timeouts,
        Command::StartDaemon(daemon) => Object::Daemon(daemon.role),
        Command::StopDaemon(role) => Object::Daemon(*role),
        Command::Flush | Command::Zero(_) => Object::Other,
    }
}
