//! Rules as a whole: what a file of them wants, how that differs from what runs, and the commands that make it so.
//!
//! A file is carried out on an empty state, so it means what `xvsadm -R` makes of it; then two states are compared thing
//! by thing: a service, one of its destinations, a local address, the mark rules, the timeouts. What is in both and
//! alike is not touched by any command, so its connections, counters and scheduler's state stay; what is in both and
//! not alike is edited. The order of destinations and of local addresses is no difference, that of mark rules is.
//! Timeouts that a file does not set are left as they are. Pure; a walk over both states. Not here: files
//! (`adm/rules.rs`), and who carries it out (`control/apply.rs`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::adm::{Resolver, RuleLine, read_all};
use crate::marks::MarkRule;
use crate::message::{Command, CommandError};
use crate::state::{DestinationOptions, Netmask, ServiceOptions, State, Timeouts, Tunnel};
use crate::support::supported;

/// What rules want.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    state: State,
    /// Those that the rules set; 0: they do not say.
    timeouts: Timeouts,
}

/// What is wrong with a line of a rules file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which line, from 1 on.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl From<State> for Wanted {
    /// These services, whatever the timeouts.
    fn from(state: State) -> Self {
        Self { state, timeouts: UNSAID }
    }
}

impl Wanted {
    /// What these lines want.
    ///
    /// # Errors
    /// Every line that cannot be carried out after those before it.
    pub fn of(lines: &[RuleLine]) -> Result<Self, Vec<Fault>> {
        let mut wanted = Self { timeouts: UNSAID, ..Self::default() };
        let mut faults = Vec::new();
        for (place, RuleLine { number, command }) in lines.iter().enumerate() {
            if let Err(error) = wanted.take(command) {
                let first = lines[..place].iter().rfind(|line| adds_the_same(&line.command, command));
                let why = match (twice(&error), first) {
                    (Some(what), Some(first)) => format!("{what} stands in line {} already", first.number),
                    _ => error.to_string(),
                };
                faults.push(Fault { line: *number, why });
            }
        }
        if faults.is_empty() { Ok(wanted) } else { Err(faults) }
    }

    /// The commands of a rules file's text, and what they want.
    ///
    /// # Errors
    /// Every line that cannot be read, or not be carried out after those before it, in their order.
    pub fn read(text: &str, resolver: &dyn Resolver) -> Result<(Vec<Command>, Self), Vec<Fault>> {
        let (lines, mut faults) = read_all(text, resolver);
        match Self::of(&lines) {
            Ok(wanted) if faults.is_empty() => {
                Ok((lines.into_iter().map(|line| line.command).collect(), wanted))
            }
            Ok(_) => Err(faults),
            Err(more) => {
                faults.extend(more);
                faults.sort_by_key(|fault| fault.line);
                Err(faults)
            }
        }
    }

    /// Wants these services as they run: they are not the rules' business.
    pub fn leave(&mut self, running: &State, services: impl IntoIterator<Item = ServiceKey>) {
        for key in services {
            self.state.put(key, running.service(&key).cloned());
        }
    }

    fn take(&mut self, command: &Command) -> Result<(), CommandError> {
        if matches!(command, Command::Zero(_)) {
            let why = "rules do not zero counters; `xvsadm -Z` does".to_owned();
            return Err(CommandError::InvalidOperation { why });
        }
        supported(command)?;
        self.state.apply(command)?;
        if let Command::SetTimeouts(timeouts) = command {
            self.timeouts.update(*timeouts);
        }
        Ok(())
    }
}

/// The state that these commands make.
///
/// # Errors
/// The first command that cannot be carried out after those before it.
pub fn state_of(commands: &[Command]) -> Result<State, CommandError> {
    let mut state = State::default();
    commands.iter().try_for_each(|command| state.apply(command).map(|_| ()))?;
    Ok(state)
}

/// The commands that make a state out of nothing.
pub fn commands_of(state: &State) -> Vec<Command> {
    let mut commands = vec![Command::SetTimeouts(state.timeouts())];
    commands.extend(rules(state));
    commands.extend(state.marks().iter().cloned().map(Command::AddMark));
    commands
}

/// One thing that is not as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The command that would make it as it is; `None` if it is not there.
    pub before: Option<Command>,
    /// The command that adds it or, if it is there, edits it; `None` if it goes.
    pub after: Option<Command>,
}

impl Difference {
    /// What it is about.
    pub(crate) fn thing(&self) -> Thing {
        self.before.as_ref().or(self.after.as_ref()).map_or(Thing::Other, thing)
    }

    /// Those that lead from the one to the other.
    fn commands(&self) -> impl Iterator<Item = Command> {
        let gone = match (&self.before, &self.after) {
            (Some(Command::AddService { key, .. }), None) => Some(Command::DeleteService(*key)),
            (Some(Command::AddDestination { service, endpoint, .. }), None) => {
                Some(Command::DeleteDestination { service: *service, endpoint: *endpoint })
            }
            (Some(Command::AddLocal(local)), _) => Some(Command::DeleteLocal(local.addr)),
            (Some(Command::AddMark(rule)), _) => Some(Command::DeleteMark(rule.clone())),
            _ => None,
        };
        gone.into_iter().chain(self.after.clone())
    }
}

/// How what runs differs from what is wanted: local addresses first, then each service with its destinations, then mark
/// rules and timeouts.
pub fn differences(running: &State, wanted: &Wanted) -> Vec<Difference> {
    let (before, after) = (rules(running), rules(&wanted.state));
    let (old, mut new) = (by_thing(&before), by_thing(&after));
    let mut all = Vec::new();
    for rule in before {
        match new.remove(&thing(&rule)) {
            Some(same) if same == rule => {}
            changed => all.push(Difference { after: changed.map(edit), before: Some(rule) }),
        }
    }
    let added = after.into_iter().filter(|rule| !old.contains_key(&thing(rule)));
    all.extend(added.map(|rule| Difference { before: None, after: Some(rule) }));
    all.sort_by_key(|difference| difference.thing().service());
    all.extend(marks(running.marks(), wanted.state.marks()));
    let mut timeouts = running.timeouts();
    timeouts.update(wanted.timeouts);
    if timeouts != running.timeouts() {
        let [before, after] =
            [running.timeouts(), timeouts].map(|timeouts| Some(Command::SetTimeouts(timeouts)));
        all.push(Difference { before, after });
    }
    all
}

/// The commands that make what runs as it is wanted, in an order in which none is refused for another's sake.
pub fn carried_out(differences: &[Difference]) -> Vec<Command> {
    let mut commands: Vec<_> = differences.iter().flat_map(Difference::commands).collect();
    commands.sort_by_key(|command| match command {
        Command::DeleteDestination { .. } | Command::DeleteLocal(_) | Command::DeleteMark(_) => 0,
        Command::DeleteService(_) => 1,
        Command::AddDestination { .. } | Command::EditDestination { .. } => 3,
        _ => 2,
    });
    commands
}

/// What leads from `applied` back to `former`, as far as `running` is still as it was applied; and how much is not.
pub fn back(running: &State, applied: &State, former: &State) -> (Vec<Difference>, usize) {
    let wanted = Wanted { state: former.clone(), timeouts: former.timeouts() };
    let mut differences = differences(applied, &wanted);
    let all = differences.len();
    let [now, then] = [running, applied].map(|state| by_thing(&rules(state)));
    let destinations = |state: &State, key: ServiceKey| {
        let found = state.service(&key).into_iter().flat_map(|service| &service.destinations);
        found.map(|dest| (dest.endpoint, dest.options.clone())).collect::<BTreeMap<_, _>>()
    };
    differences.retain(|difference| match difference.thing() {
        Thing::Marks => running.marks() == applied.marks(),
        Thing::Timeouts => running.timeouts() == applied.timeouts(),
        // With it would go what somebody else has added to it.
        Thing::Service(key)
            if difference.after.is_none() && destinations(running, key) != destinations(applied, key) =>
        {
            false
        }
        // Of a service that somebody else has made anew or deleted.
        Thing::Destination(key, _) if now.get(&Thing::Service(key)) != then.get(&Thing::Service(key)) => {
            false
        }
        thing => now.get(&thing) == then.get(&thing),
    });
    let left = all - differences.len();
    (differences, left)
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Thing {
    Local(IpAddr),
    Service(ServiceKey),
    Destination(ServiceKey, Endpoint),
    Marks,
    Timeouts,
    /// Daemons, counters, all services: rules say nothing of them that could be compared.
    Other,
}

impl Thing {
    /// The service that it is, or that it belongs to.
    pub(crate) fn service(self) -> Option<ServiceKey> {
        match self {
            Self::Service(key) | Self::Destination(key, _) => Some(key),
            _ => None,
        }
    }
}

/// What a command is about.
pub(crate) fn thing(command: &Command) -> Thing {
    match command {
        Command::AddLocal(local) => Thing::Local(local.addr),
        Command::DeleteLocal(addr) => Thing::Local(*addr),
        Command::AddService { key, .. } | Command::EditService { key, .. } | Command::DeleteService(key) => {
            Thing::Service(*key)
        }
        Command::AddDestination { service, endpoint, .. }
        | Command::EditDestination { service, endpoint, .. }
        | Command::DeleteDestination { service, endpoint } => Thing::Destination(*service, *endpoint),
        Command::AddMark(_) | Command::DeleteMark(_) => Thing::Marks,
        Command::SetTimeouts(_) => Thing::Timeouts,
        Command::Flush | Command::Zero(_) | Command::StartDaemon(_) | Command::StopDaemon(_) => Thing::Other,
    }
}

fn by_thing(rules: &[Command]) -> HashMap<Thing, Command> {
    rules.iter().map(|rule| (thing(rule), rule.clone())).collect()
}

/// Whether a line adds what another one adds.
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
    adds(line) && adds(other) && thing(line) == thing(other) && (thing(line) != Thing::Marks || line == other)
}

/// What a line says for the second time.
fn twice(error: &CommandError) -> Option<String> {
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

/// What makes the local addresses, the services and their destinations of a state, without what is of no effect.
fn rules(state: &State) -> Vec<Command> {
    let mut rules: Vec<_> = state.locals().iter().copied().map(Command::AddLocal).collect();
    for (key, service) in state.services() {
        rules.push(Command::AddService { key: *key, options: effective_service(*key, &service.options) });
        // The one added last comes first.
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

/// The command that makes what is there as this one would add it.
fn edit(rule: Command) -> Command {
    match rule {
        Command::AddService { key, options } => Command::EditService { key, options },
        Command::AddDestination { service, endpoint, options } => {
            Command::EditDestination { service, endpoint, options }
        }
        other => other,
    }
}

/// Rules are added behind the others only: what stands before all that is new stays, if it is there in that order.
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

/// No timeout.
const UNSAID: Timeouts = Timeouts { tcp_seconds: 0, tcp_fin_seconds: 0, udp_seconds: 0 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adm::SystemResolver;

    fn faults(text: &str) -> Vec<String> {
        let read = Wanted::read(text, &SystemResolver::default());
        read.unwrap_err().iter().map(ToString::to_string).collect()
    }

    fn wanted(text: &str) -> Wanted {
        Wanted::read(text, &SystemResolver::default()).unwrap().1
    }

    #[test]
    fn every_fault_of_a_file_is_told_by_its_line_and_what_stands_twice_with_both() {
        let text = "\
-A -t 192.0.2.1:80 -s rr
-a -t 192.0.2.1:80 -r 192.0.2.11:80 -m

-A -t 192.0.2.1:80 -s nonsense
-A -t 192.0.2.1:80 -s wrr
# a comment
-a -t 192.0.2.1:80 -r 192.0.2.11 -g
-a -t 192.0.2.1:81 -r 192.0.2.11:80 -m
-A -t nonsense:
#xvs mark add --set-mark 1
#xvs mark add --set-mark 2
#xvs mark add --set-mark 1
#xvs laddr add 192.0.2.1
#xvs laddr add 192.0.2.1 --ports 5000-6000
#xvs laddr add 224.0.0.1
-L
-Z
--start-daemon backup --mcast-interface eth0
add a service
";
        let told = faults(text);
        let expected = [
            "line 4: virtual service TCP 192.0.2.1:80 stands in line 1 already",
            "line 5: virtual service TCP 192.0.2.1:80 stands in line 4 already",
            "line 7: real server 192.0.2.11:80 of virtual service TCP 192.0.2.1:80 stands in line 2 already",
            "line 8: no virtual service TCP 192.0.2.1:81 that could have destinations; add it first",
            "line 9: illegal virtual server address[:port] specified",
            "line 12: mark rule --set-mark 1 stands in line 10 already",
            "line 14: local address 192.0.2.1 stands in line 13 already",
            "line 15: invalid: real servers cannot answer to 224.0.0.1",
            "line 16: only what changes services can stand here",
            "line 17: invalid: rules do not zero counters; `xvsadm -Z` does",
        ];
        assert_eq!(told[..10], expected);
        assert!(told[10].starts_with("line 18: ") && told[10].contains("not supported"), "{}", told[10]);
        assert_eq!(told[11..], ["line 19: it does not begin with a command of ipvsadm, such as -A or -a"]);
    }

    #[test]
    fn what_a_file_says_at_last_is_what_it_wants() {
        let text =
            "-A -t 192.0.2.1:81\n-C\n-A -t 192.0.2.1:80 -s rr\n-E -t 192.0.2.1:80 -s wrr\n--set 0 0 5\n";
        let other = "--set 0 0 5\n-A -t 192.0.2.1:80 -s wrr\n";
        assert_eq!(wanted(text), wanted(other));
        assert_ne!(wanted(text), wanted("-A -t 192.0.2.1:80 -s wrr\n"));
    }

    #[test]
    fn mark_rules_that_stand_in_front_stay_and_others_are_added_behind() {
        let rules = |numbers: &[u32]| -> Vec<Command> {
            let line = |number: &u32| format!("#xvs mark add --set-mark {number}\n");
            wanted(&numbers.iter().map(line).collect::<String>())
                .state
                .marks()
                .iter()
                .cloned()
                .map(Command::AddMark)
                .collect()
        };
        for (running, new, changes) in [
            (&[1, 2, 3][..], &[1, 3, 2][..], 2),
            (&[1, 2], &[1, 2], 0),
            (&[1, 2], &[3, 1, 2], 5),
            (&[1, 2], &[2], 1),
        ] {
            let (mut state, text) = (state_of(&rules(running)).unwrap(), rules(new));
            let wanted = Wanted { state: state_of(&text).unwrap(), timeouts: UNSAID };
            let differences = differences(&state, &wanted);
            assert_eq!(differences.len(), changes, "{running:?} to {new:?}");
            for command in carried_out(&differences) {
                state.apply(&command).unwrap();
            }
            assert_eq!(state, wanted.state);
        }
    }
}
