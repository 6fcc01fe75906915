//! What the journal keeps of each change.
//!
//! A change is noted once it is carried out, and written before it is published and answered. Services owned by health
//! checks, and the timeouts of a keepalived.conf, are not noted: the file gives them again. A service that becomes owned
//! leaves the journal. Not here: the file (`journal/`).

use xvs_dataplane::clock::Millis;
use xvs_model::config::command::{Command, CommandError};
use xvs_model::config::desired_state::State;
use xvs_model::config::rules::object_of;
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::Request;
use xvs_model::report::setting::Source;
use xvs_sched::ServiceKey;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::owned_services::OwnedServices;
use crate::journal::Journal;
use crate::journal::format::Entry;
use crate::journal::replay::{TimeoutsBySource, commands_without_timeouts};

impl<D: Datapath> Control<D> {
    /// Takes the timeouts of an earlier daemon over, and begins a journal with the present state. `settings` are those
    /// of `xvs set` that were carried out.
    ///
    /// # Errors
    /// As for [`Self::handle`]. A journal that cannot be written becomes a warning.
    pub(crate) fn keep(
        &mut self,
        timeouts: &TimeoutsBySource,
        settings: impl IntoIterator<Item = (String, String)>,
        journal: Option<Journal>,
        now: Millis,
    ) -> Result<(), CommandError> {
        for (timeouts, source) in timeouts.iter() {
            let command = Command::SetTimeouts(timeouts);
            self.admit(&self.state, &command)?;
            self.change(&command, now)?;
            self.settings.note_timeouts(&command, source);
        }
        if let Some(mut journal) = journal {
            let timeouts = self.settings.sourced_timeouts(self.state.timeouts());
            let timeouts = timeouts.into_iter().filter(|(_, source)| *source != Source::Default);
            timeouts.for_each(|(timeouts, source)| journal.note(&Entry::Timeouts(timeouts, source)));
            settings.into_iter().for_each(|(key, value)| journal.note(&Entry::Set { key, value }));
            journal.write_anew(&entries(&self.state, &self.owned));
            self.journal = Some(journal);
        }
        self.publish()
    }

    /// Carries out a command of the keepalived.conf.
    ///
    /// # Errors
    /// As for [`Self::handle`].
    pub(crate) fn change_for_keepalived(&mut self, command: &Command, now: Millis) -> Result<Reply, CommandError> {
        // The file sets its timeouts again at the next start, over those that were set before it.
        let journal = match command {
            Command::SetTimeouts(_) => self.journal.take(),
            _ => None,
        };
        let answer = self.handle(&Request::Change(command.clone()), now);
        self.journal = journal.or(self.journal.take());
        if answer.is_ok() {
            self.settings.note_timeouts(command, Source::KeepalivedConf);
        }
        answer
    }

    /// Notes commands that were carried out, and where timeouts that they set come from.
    pub(super) fn note<'a>(&mut self, commands: impl IntoIterator<Item = &'a Command>, source: Source) {
        for command in commands {
            self.settings.note_timeouts(command, source);
            let Some(journal) = &mut self.journal else { continue };
            match command {
                Command::Zero(_) => {}
                Command::SetTimeouts(timeouts) => journal.note(&Entry::Timeouts(*timeouts, source)),
                _ if object_of(command).service().is_some_and(|key| self.owned.owns(&key)) => {}
                _ => journal.note(&Entry::Change(command.clone())),
            }
        }
    }

    /// Notes rules that were applied and wait to be confirmed.
    pub(super) fn note_unconfirmed(&mut self, commands: &[Command]) {
        commands.iter().for_each(|command| self.settings.note_timeouts(command, Source::RulesFile));
        self.note_entry(|| Entry::Unconfirmed(commands.to_vec()));
    }

    /// Notes that the sources of the timeouts are those in force.
    pub(super) fn note_timeout_sources(&mut self) {
        for (timeouts, source) in self.settings.sourced_timeouts(self.state.timeouts()) {
            self.note_entry(|| Entry::Timeouts(timeouts, source));
        }
    }

    /// Notes that a service is owned by health checks from now on.
    pub(super) fn note_owned(&mut self, key: ServiceKey) {
        if !self.owned.owns(&key) && self.state.service(&key).is_some() {
            self.note_entry(|| Entry::Change(Command::DeleteService(key)));
        }
    }

    /// Notes one line.
    pub(super) fn note_entry(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(journal) = &mut self.journal {
            journal.note(&entry());
        }
    }

    /// Writes what was noted.
    pub(super) fn save(&mut self) {
        let Self { journal: Some(journal), state, owned, unconfirmed, .. } = self else { return };
        // While rules wait to be confirmed, the journal must also have the state before them.
        journal.save(|| unconfirmed.is_none().then(|| entries(state, owned)));
    }
}

/// The changes that give a state from an empty one, without owned services.
fn entries(state: &State, owned: &OwnedServices) -> Vec<Entry> {
    let mut state = state.clone();
    owned.services().for_each(|key| state.set_service(key, None));
    commands_without_timeouts(&state).map(Entry::Change).collect()
}
