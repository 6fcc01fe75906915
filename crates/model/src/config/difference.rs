//! Differences between the running state and the state that a rules file wants, and the commands that remove them.
//!
//! The wanted state is the result of the file's commands on an empty state, as with `xvsadm -R`. The two states are
//! compared object by object: services, destinations, local addresses, disabled real servers, entries and files of
//! access lists, QUIC configurations and server IDs, the mark rules, the timeouts. Entries of lists that end by
//! themselves are never deleted. No command touches an object that is equal in both, so its connections, counters and
//! scheduler state stay; an object that differs is edited. The order of destinations and of local addresses is not
//! compared; the order of mark rules is. Timeouts that a file does not set stay, and so do synchronization daemons that
//! it does not start. Pure; cost: one pass over both states. Not here: reading files (`rules.rs` of `ipvsadm`),
//! carrying out the commands (`control/apply.rs` of `ctl`).

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use xvs_sched::{Above, ForwardingMethod, ServiceKey};

use crate::config::access_list::Until;
use crate::config::command::{Command, CommandError};
use crate::config::desired_state::State;
use crate::config::destination::{DestinationOptions, Tunnel};
use crate::config::firewall_mark::MarkRule;
use crate::config::quic_change::QuicChange;
use crate::config::rules::{DesiredRules, Object, object_of};
use crate::config::service::{Netmask, ServiceOptions};
use crate::config::sync_daemon::{SyncDaemon, SyncRole};

/// The state that these commands create from an empty one.
///
/// # Errors
/// The error of the first command that is refused after those before it.
pub fn state_of(commands: &[Command]) -> Result<State, CommandError> {
    let mut state = State::default();
    commands.iter().try_for_each(|command| state.apply(command).map(|_| ()))?;
    Ok(state)
}

/// Commands that create a state from an empty one.
pub fn commands_of(state: &State) -> Vec<Command> {
    let mut commands = vec![Command::SetTimeouts(state.timeouts())];
    commands.extend(rules(state));
    commands.extend(state.marks().iter().cloned().map(Command::AddMark));
    commands.extend(state.daemons().iter().cloned().map(Command::StartDaemon));
    commands
}

/// An object that differs between the running and the wanted state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The command that would add it as it is now; `None`: it does not exist.
    pub before: Option<Command>,
    /// The command that adds it or, if it exists, edits it; `None`: it is to be deleted.
    pub after: Option<Command>,
}

impl Difference {
    /// The object.
    pub fn object(&self) -> Object {
        self.before.as_ref().or(self.after.as_ref()).map_or(Object::Other, object_of)
    }

    /// The commands that remove the difference.
    fn commands(&self) -> impl Iterator<Item = Command> {
        let gone = match (&self.before, &self.after) {
            (Some(Command::AddService { key, .. }), None) => Some(Command::DeleteService(*key)),
            (Some(Command::AddDestination { service, endpoint, .. }), None) => {
                Some(Command::DeleteDestination { service: *service, endpoint: *endpoint })
            }
            (Some(Command::AddLocal(local)), _) => Some(Command::DeleteLocal(local.addr)),
            (Some(Command::AddMark(rule)), _) => Some(Command::DeleteMark(rule.clone())),
            (Some(Command::Disable(server)), None) => Some(Command::Enable(*server)),
            (Some(Command::SetLimit { service, .. }), None) => Some(Command::DeleteLimit(*service)),
            (Some(Command::AddListed { list, prefix, .. }), None) => {
                Some(Command::DeleteListed { list: *list, prefix: *prefix })
            }
            (Some(Command::SetListFile { list, .. }), None) => Some(Command::UnsetListFile(*list)),
            (Some(Command::Quic { service, change }), _) => {
                Some(Command::Quic { service: *service, change: change.deletion() })
            }
            (Some(Command::StartDaemon(daemon)), _) => Some(Command::StopDaemon(daemon.role)),
            _ => None,
        };
        gone.into_iter().chain(self.after.clone())
    }
}

/// The differences between the running and the wanted state: local addresses first, then each service with its
/// destinations, then mark rules and timeouts.
pub fn differences(running: &State, wanted: &DesiredRules) -> Vec<Difference> {
    let mut all = all_differences(running, wanted);
    // These entries of lists end by themselves.
    all.retain(|difference| match difference {
        Difference { before: Some(Command::AddListed { until: Some(_), .. }), after } => after.is_some(),
        _ => true,
    });
    all
}

fn all_differences(running: &State, wanted: &DesiredRules) -> Vec<Difference> {
    let (before, after) = (rules(running), rules(&wanted.state));
    let (old, mut new) = (by_object(&before), by_object(&after));
    let mut all = Vec::new();
    for rule in before {
        match new.remove(&object_of(&rule)) {
            Some(same) if same == rule => {}
            changed => all.push(Difference { after: changed.map(edit), before: Some(rule) }),
        }
    }
    let added = after.into_iter().filter(|rule| !old.contains_key(&object_of(rule)));
    all.extend(added.map(|rule| Difference { before: None, after: Some(rule) }));
    all.sort_by_key(|difference| difference.object().service());
    all.extend(marks(running.marks(), wanted.state.marks()));
    all.extend(wanted.state.daemons().iter().filter_map(|daemon| {
        let before = daemon_of(running, daemon.role);
        let [before, after] = [before, Some(daemon)].map(|one| one.cloned().map(Command::StartDaemon));
        (before != after).then_some(Difference { before, after })
    }));
    let mut timeouts = running.timeouts();
    timeouts.update(wanted.timeouts);
    if timeouts != running.timeouts() {
        let [before, after] =
            [running.timeouts(), timeouts].map(|timeouts| Some(Command::SetTimeouts(timeouts)));
        all.push(Difference { before, after });
    }
    all
}

/// The differences between the running state and a file that has changed: `old` is what it defined, `new` what it
/// defines now. What neither of them defines stays as it is.
pub fn file_differences(running: &State, old: &State, new: &DesiredRules) -> Vec<Difference> {
    let defined: HashSet<_> = rules(old).iter().map(object_of).collect();
    let mut all = differences(running, new);
    all.retain(|difference| match &difference.before {
        _ if difference.after.is_some() => true,
        // A rule that the file defines too is deleted only to get its place among them.
        Some(Command::AddMark(rule)) => old.marks().contains(rule) || new.state.marks().contains(rule),
        _ => defined.contains(&difference.object()),
    });
    // Those that the file started, as they still run, and does not start any more.
    let gone = daemons_without(old, &new.state);
    all.extend(gone.filter(|gone| match gone.object() {
        Object::Daemon(role) => daemon_of(running, role) == daemon_of(old, role),
        _ => false,
    }));
    all
}

/// The commands that remove these differences, ordered so that none is refused because another one is still to come.
pub fn commands_for(differences: &[Difference]) -> Vec<Command> {
    let mut commands: Vec<_> = differences.iter().flat_map(Difference::commands).collect();
    commands.sort_by_key(|command| match command {
        Command::DeleteDestination { .. }
        | Command::DeleteLocal(_)
        | Command::DeleteMark(_)
        | Command::DeleteLimit(_)
        | Command::DeleteListed { .. }
        | Command::UnsetListFile(_)
        | Command::Quic { change: QuicChange::Delete { .. } | QuicChange::DeleteId { .. }, .. }
        | Command::Enable(_) => 0,
        Command::DeleteService(_) => 1,
        Command::AddDestination { .. } | Command::EditDestination { .. } => 3,
        // Needs a configuration of its length.
        Command::Quic { change: QuicChange::AddId { .. }, .. } => 3,
        // Depends on the methods as they will be.
        Command::SetLimit { limit, .. } if limit.above == Above::SynProxy => 4,
        _ => 2,
    });
    commands
}

/// The differences from `applied` to `former` of objects that `running` still has as in `applied`, and the number of
/// those that have changed since.
pub fn reversal(running: &State, applied: &State, former: &State) -> (Vec<Difference>, usize) {
    let wanted = DesiredRules { state: former.clone(), timeouts: former.timeouts() };
    let mut differences = all_differences(applied, &wanted);
    differences.extend(daemons_without(applied, former));
    let all = differences.len();
    let [now, then] = [running, applied].map(|state| by_object(&rules(state)));
    let destinations = |state: &State, key: ServiceKey| {
        let found = state.service(&key).into_iter().flat_map(|service| &service.destinations);
        found.map(|dest| (dest.endpoint, dest.options.clone())).collect::<BTreeMap<_, _>>()
    };
    differences.retain(|difference| match difference.object() {
        Object::Marks => running.marks() == applied.marks(),
        Object::Timeouts => running.timeouts() == applied.timeouts(),
        Object::Daemon(role) => daemon_of(running, role) == daemon_of(applied, role),
        // Its deletion would also delete destinations that were added since.
        Object::Service(key)
            if difference.after.is_none() && destinations(running, key) != destinations(applied, key) =>
        {
            false
        }
        // Its service was changed or deleted since.
        Object::Destination(key, _) if now.get(&Object::Service(key)) != then.get(&Object::Service(key)) => {
            false
        }
        object => now.get(&object) == then.get(&object),
    });
    let left = all - differences.len();
    (differences, left)
}

/// The end of each daemon of a state whose role another state has no daemon of.
fn daemons_without<'a>(state: &'a State, other: &'a State) -> impl Iterator<Item = Difference> + use<'a> {
    let gone = state.daemons().iter().filter(|daemon| daemon_of(other, daemon.role).is_none());
    gone.map(|daemon| Difference { before: Some(Command::StartDaemon(daemon.clone())), after: None })
}

fn daemon_of(state: &State, role: SyncRole) -> Option<&SyncDaemon> {
    state.daemons().iter().find(|daemon| daemon.role == role)
}

fn by_object(rules: &[Command]) -> HashMap<Object, Command> {
    rules.iter().map(|rule| (object_of(rule), rule.clone())).collect()
}

/// Commands that add the local addresses, the disabled real servers, access lists, QUIC configurations, services and
/// destinations of a state. Options without effect have their default.
fn rules(state: &State) -> Vec<Command> {
    let mut rules: Vec<_> = state.locals().iter().copied().map(Command::AddLocal).collect();
    rules.extend(state.disabled().iter().map(Command::Disable));
    let limits = state.limits().iter();
    rules.extend(limits.map(|(key, limit)| Command::SetLimit { service: *key, limit: *limit }));
    for (&list, content) in state.lists().iter() {
        rules.extend(content.entries.iter().map(|(&prefix, until)| Command::AddListed {
            list,
            prefix,
            until: until.map(Until::At),
        }));
        rules.extend(content.file.clone().map(|path| Command::SetListFile { list, path }));
    }
    rules.extend(state.quic().iter().flat_map(|(service, quic)| quic.commands(*service)));
    for (key, service) in state.services() {
        rules.push(Command::AddService { key: *key, options: effective_service(*key, &service.options) });
        // IPVS's order: the one added last comes first.
        rules.extend(service.destinations.iter().rev().map(|dest| Command::AddDestination {
            service: *key,
            endpoint: dest.endpoint,
            options: effective_destination(&dest.options),
        }));
    }
    rules
}

fn effective_service(key: ServiceKey, options: &ServiceOptions) -> ServiceOptions {
    let netmask = match options.persistence_timeout_seconds {
        Some(_) => options.netmask,
        None => Netmask::host(key.family()),
    };
    ServiceOptions { netmask, ..options.clone() }
}

fn effective_destination(options: &DestinationOptions) -> DestinationOptions {
    let tunnel = match options.method {
        ForwardingMethod::Tunnel => options.tunnel,
        _ => Tunnel::Ipip,
    };
    DestinationOptions { tunnel, ..options.clone() }
}

/// The command that edits an existing object to what this command would add.
fn edit(rule: Command) -> Command {
    match rule {
        Command::AddService { key, options } => Command::EditService { key, options },
        Command::AddDestination { service, endpoint, options } => {
            Command::EditDestination { service, endpoint, options }
        }
        other => other,
    }
}

/// The differences of mark rules. A rule can only be added after the others. So the running rules that match the first
/// wanted ones, in order, stay; the other running rules are deleted, and the other wanted ones are added.
fn marks(running: &[MarkRule], wanted: &[MarkRule]) -> Vec<Difference> {
    let mut keep = wanted.iter().peekable();
    let mut all = Vec::new();
    for rule in running {
        match keep.next_if_eq(&rule) {
            Some(_) => {}
            None => all.push(Difference { before: Some(Command::AddMark(rule.clone())), after: None }),
        }
    }
    all.extend(keep.map(|rule| Difference { before: None, after: Some(Command::AddMark(rule.clone())) }));
    all
}
