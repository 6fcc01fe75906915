//! Rules files: the lines, the state that they want, and their faults.

use std::fmt;

use serde::Serialize;
use xvs_sched::ServiceKey;

use crate::config::command::Command;
use crate::config::desired_state::State;
use crate::config::refusal::CommandError;
use crate::config::timeouts::Timeouts;
use crate::objects::Rule;

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
    /// The fault.
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

    /// Wants the local addresses that run, if the rules have none.
    pub fn keep_locals(&mut self, running: &State) {
        if self.state.locals().is_empty() {
            self.state.set_locals(running.locals());
        }
    }

    fn apply(&mut self, command: &Command) -> Result<(), CommandError> {
        if matches!(command, Command::Zero(_)) {
            let why = "rules do not zero counters; `xvsadm -Z` does".to_owned();
            return Err(CommandError::invalid(why));
        }
        self.state.apply(command)?;
        if let Command::Add(Rule::Timeouts(timeouts)) = command {
            self.timeouts.update(*timeouts);
        }
        Ok(())
    }
}

/// Whether both commands add the same object.
fn adds_the_same(line: &Command, other: &Command) -> bool {
    match (line, other) {
        (Command::Add(line), Command::Add(other)) => line.object() == other.object(),
        _ => false,
    }
}

/// The object that a line adds for the second time.
fn duplicate_of(error: &CommandError) -> Option<String> {
    Some(match error {
        CommandError::ServiceExists(key) => format!("virtual service {key}"),
        CommandError::DestinationExists { service, endpoint } => {
            format!("real server {endpoint} of virtual service {service}")
        }
        CommandError::LocalExists { addr, .. } => format!("local address {addr}"),
        CommandError::MarkExists(rule) => format!("mark rule {rule}"),
        _ => return None,
    })
}

/// A line of a rules file that has a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleLine {
    /// The number, from 1.
    pub number: usize,
    /// The command.
    pub command: Command,
}

impl RuleLine {
    /// Commands as the lines of a file, from the first one on.
    pub fn numbered(commands: &[Command]) -> Vec<Self> {
        (1..).zip(commands.iter().cloned()).map(|(number, command)| Self { number, command }).collect()
    }
}
