//! Services owned by health checks: what they should be, and what is not so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xvs_ipvsadm::command_line;
use xvs_model::command::{Command, CommandError};
use xvs_model::reconcile::Repair;
use xvs_model::rules::{Object, object_of};
use xvs_model::state::State;
use xvs_sched::ServiceKey;

/// What is wanted of owned services, and what is not so.
#[derive(Default)]
pub(super) struct OwnedServices {
    /// These services and nothing else.
    pub wanted: State,
    pub refused: BTreeMap<Object, (Command, CommandError)>,
    /// Those that may have changed since drift was last worked out.
    pub dirty: BTreeSet<ServiceKey>,
    /// What leads back, of each service that is not as wanted.
    pub drift: BTreeMap<ServiceKey, Vec<Command>>,
    /// The same as one would type it.
    pub drift_lines: Arc<[String]>,
    pub repair: Repair,
}

impl OwnedServices {
    /// Takes note of a command that was carried out.
    pub(super) fn note(&mut self, command: &Command) {
        match object_of(command).service() {
            Some(key) if self.wanted.service(&key).is_some() => _ = self.dirty.insert(key),
            None if *command == Command::Flush => {
                self.dirty.extend(self.wanted.services().map(|(key, _)| *key));
            }
            _ => {}
        }
    }

    /// Those that are owned, whether or not they are there.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceKey> {
        self.wanted.services().map(|(key, _)| *key)
    }

    /// Sentences for the operator: what is refused, and what somebody else has changed.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let refused = self.refused.values().take(NAMED_REFUSALS).map(|(command, error)| {
            format!("{ORIGIN}: {}: refused, and tried again each second: {error}", command_line(command))
        });
        let more = self.refused.len().saturating_sub(NAMED_REFUSALS);
        let more = (more > 0).then(|| format!("{ORIGIN}: {more} more commands are refused"));
        let lead = match self.drift_lines.len() {
            0 => None,
            1 => Some("1 command leads".to_owned()),
            several => Some(format!("{several} commands lead")),
        };
        let drift = lead.map(|lead| {
            format!("{ORIGIN}: somebody has changed its services; {lead} back, see `xvs health`")
        });
        refused.chain(more).chain(drift)
    }
}

/// On whose behalf: of commands in events, in the log and in warnings.
pub(super) const ORIGIN: &str = "health";

/// Commands that are refused and named in warnings.
pub(super) const NAMED_REFUSALS: usize = 8;
