//! Builds the desired state from the lines of a journal.
//!
//! Pure. Rules that were not yet confirmed are reverted, as when their time is over. A line that this release of xvs
//! refuses is left out and reported.

use std::collections::BTreeMap;

use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::{Difference, commands_for, reversal, rules_of};
use xvs_model::config::timeouts::Timeouts;
use xvs_model::objects::Rule;
use xvs_model::report::setting::Source;

use crate::journal::format::Entry;

/// The content of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replayed {
    /// The desired state, without services from keepalived.conf.
    pub state: State,
    /// The timeouts that were set, each with its source.
    pub timeouts: TimeoutsBySource,
    /// The settings of `xvs set`, by their keys.
    pub settings: BTreeMap<String, String>,
    /// The changes that were reverted because they were not confirmed.
    pub taken_back: Vec<Difference>,
    /// The lines that are now refused, each with the reason.
    pub refused: Vec<String>,
}

/// Timeouts by their sources; in each field at most one of them is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimeoutsBySource(Vec<(Timeouts, Source)>);

impl Replayed {
    /// Replays the lines in their order.
    pub fn of(entries: &[Entry]) -> Self {
        let mut replayed = Self::default();
        let mut unconfirmed = None;
        for entry in entries {
            match entry {
                Entry::Change(command) => replayed.apply(command, Source::XvsadmSet),
                Entry::Timeouts(timeouts, source) => {
                    replayed.apply(&Command::Add(Rule::Timeouts(*timeouts)), *source);
                }
                Entry::Set { key, value } => _ = replayed.settings.insert(key.clone(), value.clone()),
                Entry::Toml(_, undone) => undone.iter().for_each(|key| _ = replayed.settings.remove(key)),
                Entry::Unconfirmed(commands) => {
                    let former = (replayed.state.clone(), replayed.timeouts.clone());
                    commands.iter().for_each(|command| replayed.apply(command, Source::RulesFile));
                    unconfirmed = Some((former, replayed.state.clone()));
                }
                Entry::Confirmed => unconfirmed = None,
            }
        }
        if let Some(((former, timeouts), applied)) = unconfirmed {
            (replayed.taken_back, _) = reversal(&replayed.state, &applied, &former);
            let commands = commands_for(&replayed.taken_back);
            commands.iter().for_each(|command| replayed.apply(command, Source::Default));
            if commands.iter().any(|command| matches!(command, Command::Add(Rule::Timeouts(_)))) {
                replayed.timeouts = timeouts;
            }
        }
        replayed
    }

    /// Carries out a command, and records the source of timeouts.
    pub fn apply(&mut self, command: &Command, source: Source) {
        match self.state.apply(command) {
            Ok(()) => {
                if let Command::Add(Rule::Timeouts(timeouts)) = command {
                    self.timeouts.note(*timeouts, source);
                }
            }
            Err(error) => self.refused.push(format!("{}: refused: {error}", command_line(command))),
        }
    }
}

/// The rules that lead from an empty state to this one, except timeouts.
pub fn rules_without_timeouts(state: &State) -> impl Iterator<Item = Rule> {
    rules_of(state).into_iter().filter(|rule| !matches!(rule, Rule::Timeouts(_)))
}

impl TimeoutsBySource {
    /// Records timeouts that were set; a 0 keeps the former value with its source.
    pub fn note(&mut self, set: Timeouts, source: Source) {
        let mut new = set;
        for field in Timeouts::FIELDS.into_iter().filter(|field| *field(&mut new) != 0) {
            self.0.iter_mut().for_each(|(timeouts, _)| *field(timeouts) = 0);
        }
        self.0.push((set, source));
        self.0.retain(|(timeouts, _)| *timeouts != Timeouts::UNSET);
    }

    /// The timeouts with their sources.
    pub fn iter(&self) -> impl Iterator<Item = (Timeouts, Source)> {
        self.0.iter().copied()
    }
}
