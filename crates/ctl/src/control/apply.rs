//! `xvs apply`: rules applied as a whole, and reverted if they are not confirmed in time.
//!
//! All differences are published in one snapshot. If nothing differs, or any command is refused, nothing is published.
//! Until the rules are confirmed, the former state is kept here, even if the client has disconnected. When the time is
//! over, each object that the rules changed is restored. An object that was changed again in the meantime stays as it
//! is. Objects owned by health checks stay unchanged, whatever the rules say about them. Not here: the comparison of
//! two states (`xvs_model::config::difference`).

use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::difference::{Difference, commands_for, differences, reversal};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::rules::{DesiredRules, RuleLine};
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::question::Reply;
use xvs_model::protocol::request::Verdict;
use xvs_model::report::event::Kind;
use xvs_model::report::setting::Source;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::unconfirmed::Unconfirmed;
use crate::events::applied;
use crate::journal::format::Entry;

impl<D: Datapath> Control<D> {
    /// The state that rules want; with `keeps_locals` and the running local addresses if the rules have none.
    ///
    /// # Errors
    /// The faults of the rules.
    pub(super) fn wanted(&self, rules: &[Command], keeps_locals: bool) -> Result<DesiredRules, CommandError> {
        let mut wanted = DesiredRules::of(&RuleLine::numbered(rules)).map_err(|faults| {
            CommandError::invalid(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        if keeps_locals {
            wanted.keep_locals(&self.state);
        }
        Ok(wanted)
    }

    /// Makes the desired state equal to this one, except for objects owned by health checks; the reply has the
    /// differences.
    ///
    /// # Errors
    /// The first command that is refused, or earlier rules are not confirmed yet; then nothing has changed. Or a worker
    /// is late; the change is published all the same.
    pub(super) fn apply(
        &mut self,
        wanted: &DesiredRules,
        confirm_within_seconds: Option<u32>,
        now: Millis,
    ) -> Result<Reply, CommandError> {
        if let Some(unconfirmed) = &self.unconfirmed {
            let left = now.until(unconfirmed.until).as_secs();
            return Err(CommandError::failed(format_args!(
                "rules that were applied before wait to be confirmed, for {left} s more; \
                 `xvs confirm` keeps them, `xvs confirm --take-back` reverts them; those of a fleet: `xvs fleet confirm`"
            )));
        }
        let mut differences = differences(&self.state, wanted);
        differences.retain(|difference| !self.owned.owns(difference.object()));
        let commands = commands_for(&differences);
        if commands.is_empty() {
            return Ok(Reply::Applied(differences));
        }
        let mut applied = self.state.clone();
        let mut prepared = Vec::with_capacity(commands.len());
        for command in &commands {
            self.kernel.admit(&applied, command)?;
            let accepted = self.admit(&applied, command)?;
            prepared.push(self.read_file_of(accepted)?);
            applied.enter(accepted);
        }
        let former = self.state.clone();
        let timeout_sources = self.settings.timeout_sources();
        self.extend_steering(&commands)?;
        // The commands that can fail come first.
        let (of_daemons, others): (Vec<_>, Vec<_>) = prepared.into_iter().partition(|prepared| {
            matches!(
                prepared.accepted.command(),
                Command::Add(Rule::Daemon(_)) | Command::Delete(Object::Daemon(_))
            )
        });
        self.change_daemons(of_daemons, now)?;
        for prepared in others {
            self.carry_out(prepared, now)?;
        }
        match confirm_within_seconds {
            Some(_) => self.note_unconfirmed(&commands),
            None => self.note(&commands, Source::RulesFile),
        }
        self.unconfirmed = confirm_within_seconds.map(|seconds| {
            let until = now + Duration::from_secs(seconds.into());
            Unconfirmed { until, former, applied, timeout_sources }
        });
        self.publish()?;
        Ok(Reply::Applied(differences))
    }

    /// Keeps the applied rules, or reverts them at once; then the reply has the differences.
    ///
    /// # Errors
    /// All applied rules are confirmed or reverted. Or as for [`Self::apply`].
    pub(super) fn confirm(&mut self, verdict: Verdict, now: Millis) -> Result<Reply, CommandError> {
        let Some(unconfirmed) = self.unconfirmed.take() else {
            return Err(CommandError::failed(
                "no rules wait to be confirmed; the time may be over, see `xvs status`",
            ));
        };
        match verdict {
            Verdict::Keep => {
                self.note_entry(|| Entry::Confirmed);
                self.save();
                Ok(Reply::Done)
            }
            Verdict::TakeBack => {
                let taken_back = self.take_back(unconfirmed, now)?;
                self.publish()?;
                Ok(Reply::Applied(taken_back))
            }
        }
    }

    /// Reverts rules that were not confirmed in time. Returns when the next call is due; `None`: no rules wait.
    pub(super) fn expire_unconfirmed(&mut self, now: Millis) -> Result<Option<Millis>, CommandError> {
        if let Some(over) = self.unconfirmed.take_if(|unconfirmed| unconfirmed.until <= now) {
            let differences = self.take_back(over, now)?;
            // A late worker becomes a warning.
            let _ = self.publish();
            let events = applied("not confirmed in time", &differences);
            self.events.record_all(Kind::Change, self.epoch(), None, events);
        }
        Ok(self.unconfirmed_until())
    }

    /// End of the time in which the applied rules can be confirmed; `None`: no rules wait.
    pub fn unconfirmed_until(&self) -> Option<Millis> {
        self.unconfirmed.as_ref().map(|unconfirmed| unconfirmed.until)
    }

    /// Changes the desired state back, and returns the differences made. Refused commands are logged.
    fn take_back(&mut self, unconfirmed: Unconfirmed, now: Millis) -> Result<Vec<Difference>, CommandError> {
        let (mut differences, left) = reversal(&self.state, &unconfirmed.applied, &unconfirmed.former);
        differences.retain(|difference| !self.owned.owns(difference.object()));
        if let Err(error) = self.extend_steering(&commands_for(&differences)) {
            // Nothing has changed. Without another attempt the former state would be lost.
            self.unconfirmed = Some(Unconfirmed { until: now + RETRY, ..unconfirmed });
            return Err(error);
        }
        tracing::warn!(
            "unconfirmed rules are reverted: {} changes; {left} are kept, because the same objects were changed since",
            differences.len()
        );
        let mut refused = Vec::new();
        for command in commands_for(&differences) {
            if let Err(error) = self.prepare_and_carry_out(&command, now) {
                tracing::error!("{}: refused: {error}", command_line(&command));
                refused.push(command);
            } else if matches!(command, Command::Add(Rule::Timeouts(_))) {
                self.settings.restore_timeout_sources(unconfirmed.timeout_sources);
                self.note_timeout_sources();
            } else {
                self.note([&command], Source::Default);
            }
        }
        self.note_entry(|| Entry::Confirmed);
        differences.retain(|difference| {
            !commands_for(std::slice::from_ref(difference)).iter().any(|done| refused.contains(done))
        });
        Ok(differences)
    }
}

/// Pause before a refused reversal of rules is tried again.
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use xvs_model::config::load_feedback::Feedback;
    use xvs_model::config::settings::Ipvs;
    use xvs_model::config::timeouts::Timeouts;
    use xvs_model::protocol::question::ControlRequest;

    use crate::control::apply::*;
    use crate::in_memory::MemoryDatapath;

    #[test]
    fn timeouts_that_are_taken_back_are_shown_with_their_former_values_and_sources() {
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let timeouts =
            |tcp_seconds| Command::Add(Rule::Timeouts(Timeouts { tcp_seconds, ..Timeouts::UNSET }));
        let mut shown = |request: ControlRequest| {
            control.handle(&request, Millis(0)).unwrap();
            let all = control.settings_in_force().iter();
            let mut tcp = all.filter(|setting| setting.key == "timeouts.tcp_seconds");
            tcp.next().map(|setting| (setting.value.as_u64(), setting.source)).unwrap()
        };
        let typed = (Some(100), Source::XvsadmSet);
        assert_eq!(shown(ControlRequest::Change(timeouts(100))), typed);
        let rules = vec![timeouts(200)];
        let applied =
            shown(ControlRequest::Apply { rules, confirm_within_seconds: Some(9), keeps_locals: false });
        assert_eq!(applied, (Some(200), Source::RulesFile));
        assert_eq!(shown(ControlRequest::Confirm(Verdict::TakeBack)), typed);
    }
}
