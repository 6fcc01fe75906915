//! Differences between the running state and the state that a rules file wants, and the commands that remove them.
//!
//! The wanted state is the result of the file's commands on an empty state, as with `xvsadm -R`. The two states are
//! compared object by object: services, destinations, nouns, the timeouts. List entries that expire are never deleted.
//! No command touches an object that is equal in both, so its connections, counters and scheduler state stay; an object
//! that differs is edited. The order of destinations and of local addresses is not compared; the order of mark rules
//! is. Timeouts that a file does not set stay, and synchronization daemons that it does not start continue. Pure; cost:
//! one pass over both states, and memory for the services that differ.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::config::command::Command;
use crate::config::desired_state::State;
use crate::config::destination::{DestinationOptions, Tunnel};
use crate::config::refusal::CommandError;
use crate::config::rules::DesiredRules;
use crate::config::service::{Netmask, ServiceOptions};
use crate::config::sync_daemon::{SyncDaemon, SyncRole};
use crate::objects::mark::MarkRule;
use crate::objects::noun::Turn;
use crate::objects::{Object, Rule};

/// The state that these commands create from an empty one.
///
/// # Errors
/// The error of the first command that is refused after those before it.
pub fn state_of<T: Into<Command>>(commands: impl IntoIterator<Item = T>) -> Result<State, CommandError> {
    let mut state = State::default();
    commands.into_iter().try_for_each(|command| state.apply(&command.into()))?;
    Ok(state)
}

/// The rules that create a state from an empty one, in an order in which each can be added.
pub fn rules_of(state: &State) -> Vec<Rule> {
    iter::once(Rule::Timeouts(state.timeouts()))
        .chain(rules(state))
        .chain(state.marks().iter().cloned().map(Rule::Mark))
        .chain(state.daemons().iter().cloned().map(Rule::Daemon))
        .collect()
}

/// An object that differs between the running and the wanted state. One of the two sides is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The object as it is now; `None` if it does not exist.
    pub before: Option<Rule>,
    /// The command that adds it or, if it exists, edits it; `None` if it is to be deleted.
    pub after: Option<Command>,
}

impl Difference {
    /// The object.
    pub fn object(&self) -> Option<Object> {
        match &self.before {
            Some(rule) => Some(rule.object()),
            None => self.after.as_ref()?.object(),
        }
    }

    /// The service itself, or the service of a destination.
    pub fn service(&self) -> Option<ServiceKey> {
        self.object()?.service()
    }

    /// The commands that remove the difference.
    fn commands(&self) -> impl Iterator<Item = Command> {
        self.before
            .as_ref()
            .filter(|rule| self.after.is_none() || rule.is_replaced())
            .map(|rule| Command::Delete(rule.object()))
            .into_iter()
            .chain(self.after.clone())
    }
}

/// The differences between the running and the wanted state: local addresses first, then each service with its
/// destinations, then mark rules and timeouts.
pub fn differences(running: &State, wanted: &DesiredRules) -> Vec<Difference> {
    let mut all = all_differences(running, wanted);
    // Without it in the rules, what ends by itself is not deleted.
    all.retain(|difference| {
        difference.after.is_some() || !difference.before.as_ref().is_some_and(Rule::ends)
    });
    all
}

fn all_differences(running: &State, wanted: &DesiredRules) -> Vec<Difference> {
    // Usually little of a large configuration differs; a list of all rules would take more memory than both states.
    let before = rules_unlike(running, &wanted.state);
    let mut added = rules_unlike(&wanted.state, running);
    let mut new = by_object(&added);
    let old: HashSet<_> = before.iter().map(Rule::object).collect();
    added.retain(|rule| !old.contains(&rule.object()));
    let mut all = Vec::new();
    for rule in before {
        match new.remove(&rule.object()) {
            Some(same) if same == rule => {}
            changed => all.push(Difference { after: changed.map(edit), before: Some(rule) }),
        }
    }
    all.extend(added.into_iter().map(|rule| Difference { before: None, after: Some(Command::Add(rule)) }));
    all.sort_by_key(Difference::service);
    all.extend(marks(running.marks(), wanted.state.marks()));
    for daemon in wanted.state.daemons() {
        let before = daemon_of(running, daemon.role);
        if before != Some(daemon) {
            let after = Some(Command::Add(Rule::Daemon(daemon.clone())));
            all.push(Difference { before: before.cloned().map(Rule::Daemon), after });
        }
    }
    let mut timeouts = running.timeouts();
    timeouts.update(wanted.timeouts);
    if timeouts != running.timeouts() {
        let before = Some(Rule::Timeouts(running.timeouts()));
        all.push(Difference { before, after: Some(Command::Add(Rule::Timeouts(timeouts))) });
    }
    all
}

/// The differences between the running state and a file that has changed: `old` is what it defined, `new` what it
/// defines now. What neither of them defines stays as it is.
pub fn file_differences(running: &State, old: &State, new: &DesiredRules) -> Vec<Difference> {
    let defined: HashSet<_> = rules(old).iter().map(Rule::object).collect();
    let mut all = differences(running, new);
    all.retain(|difference| match &difference.before {
        _ if difference.after.is_some() => true,
        // A rule that the file defines too is deleted only to put it in the right order.
        Some(Rule::Mark(rule)) => old.marks().contains(rule) || new.state.marks().contains(rule),
        Some(rule) => defined.contains(&rule.object()),
        None => false,
    });
    // Daemons that the file started, that still run as it started them, and that it does not start any more.
    let gone = daemons_without(old, &new.state);
    all.extend(gone.filter(|daemon| daemon_of(running, daemon.role) == Some(daemon)).map(end_of));
    all
}

/// The commands that remove these differences, in an order in which no command fails because a later one is missing.
pub fn commands_for(differences: &[Difference]) -> Vec<Command> {
    let mut commands: Vec<_> = differences.iter().flat_map(Difference::commands).collect();
    commands.sort_by_key(|command| match command {
        // Directly before the start of another daemon of its role.
        Command::Delete(Object::Daemon(_)) => Turn::Any,
        Command::Delete(Object::Service(_)) => Turn::ServiceDeleted,
        Command::Delete(_) => Turn::Deleted,
        Command::EditDestination { .. } => Turn::Dependent,
        Command::Add(rule) => rule.turn(),
        Command::EditService { .. } | Command::Flush | Command::Zero(_) => Turn::Any,
    });
    commands
}

/// The differences from `applied` to `former` of objects that `running` still has as in `applied`, and the number of
/// those that have changed since.
pub fn reversal(running: &State, applied: &State, former: &State) -> (Vec<Difference>, usize) {
    let wanted = DesiredRules { state: former.clone(), timeouts: former.timeouts() };
    let mut differences = all_differences(applied, &wanted);
    differences.extend(daemons_without(applied, former).map(end_of));
    let all = differences.len();
    let now = by_object(&rules(running));
    let then = by_object(&rules(applied));
    let is_unchanged = |object: &Object| now.get(object) == then.get(object);
    differences.retain(|difference| match difference.object() {
        Some(Object::Mark(_)) => running.marks() == applied.marks(),
        Some(Object::Timeouts) => running.timeouts() == applied.timeouts(),
        Some(Object::Daemon(role)) => daemon_of(running, role) == daemon_of(applied, role),
        // The deletion would also delete destinations that were added since.
        Some(Object::Service(key))
            if difference.after.is_none() && destinations(running, key) != destinations(applied, key) =>
        {
            false
        }
        // The service may have been changed or deleted since.
        Some(object @ Object::Destination { service, .. }) => {
            is_unchanged(&Object::Service(service)) && is_unchanged(&object)
        }
        Some(object) => is_unchanged(&object),
        None => false,
    });
    let left = all - differences.len();
    (differences, left)
}

/// The destinations of a service, whatever their order.
fn destinations(state: &State, key: ServiceKey) -> BTreeMap<Endpoint, &DestinationOptions> {
    state
        .service(&key)
        .into_iter()
        .flat_map(|service| &service.destinations)
        .map(|dest| (dest.endpoint, &dest.options))
        .collect()
}

/// Daemons of a state whose role another state has no daemon of.
fn daemons_without<'a>(state: &'a State, other: &'a State) -> impl Iterator<Item = &'a SyncDaemon> {
    state.daemons().iter().filter(|daemon| daemon_of(other, daemon.role).is_none())
}

fn end_of(daemon: &SyncDaemon) -> Difference {
    Difference { before: Some(Rule::Daemon(daemon.clone())), after: None }
}

fn daemon_of(state: &State, role: SyncRole) -> Option<&SyncDaemon> {
    state.daemons().iter().find(|daemon| daemon.role == role)
}

fn by_object(rules: &[Rule]) -> HashMap<Object, Rule> {
    rules.iter().map(|rule| (rule.object(), rule.clone())).collect()
}

/// The nouns of a state but mark rules, its services and destinations. Options without effect have their default.
fn rules(state: &State) -> Vec<Rule> {
    rules_unlike(state, &State::default())
}

/// Like [`rules`], without the services that have the same options and destinations in `other`.
fn rules_unlike(state: &State, other: &State) -> Vec<Rule> {
    let mut rules: Vec<_> = state.nouns().filter(|rule| !matches!(rule, Rule::Mark(_))).collect();
    for (key, service) in state.services().filter(|(key, service)| other.service(key) != Some(service)) {
        rules.push(Rule::Service { key: *key, options: effective_service(*key, &service.options) });
        // IPVS's order: the one added last comes first.
        rules.extend(service.destinations.iter().rev().map(|dest| Rule::Destination {
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

/// The command that gives an existing object these options.
fn edit(rule: Rule) -> Command {
    match rule {
        Rule::Service { key, options } => Command::EditService { key, options },
        Rule::Destination { service, endpoint, options } => {
            Command::EditDestination { service, endpoint, options }
        }
        rule => Command::Add(rule),
    }
}

/// The differences of mark rules. A rule can only be added after the others. So the running rules that match the first
/// wanted rules, in order, stay; the other running rules are deleted, and the other wanted rules are added.
fn marks(running: &[MarkRule], wanted: &[MarkRule]) -> Vec<Difference> {
    let mut keep = wanted.iter().peekable();
    let mut all = Vec::new();
    for rule in running {
        if keep.next_if_eq(&rule).is_none() {
            all.push(Difference { before: Some(Rule::Mark(rule.clone())), after: None });
        }
    }
    for rule in keep {
        all.push(Difference { before: None, after: Some(Command::Add(Rule::Mark(rule.clone()))) });
    }
    all
}
