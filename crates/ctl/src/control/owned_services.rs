//! The wanted state of services owned by health checks, refused commands, and drift.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::reconcile::Repair;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Object;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_sched::ServiceKey;

use super::follow::{Change, Follow};

/// Services owned by health checks.
#[derive(Default)]
pub(super) struct OwnedServices {
    /// The wanted state, which has the owned services and nothing else.
    pub(super) wanted: State,
    /// The last refused command for each object, with its error.
    pub(super) refused: BTreeMap<Object, (Command, CommandError)>,
    /// Services that may have changed since drift was last computed.
    pub(super) dirty: BTreeSet<ServiceKey>,
    /// For each service with drift, the commands that restore the wanted state.
    pub(super) drift: BTreeMap<ServiceKey, Vec<Command>>,
    /// The commands of `drift` as command lines.
    pub(super) drift_lines: Arc<[String]>,
    pub(super) repair: Repair,
}

impl OwnedServices {
    /// Keys of all owned services, whether or not they exist in the desired state.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceKey> {
        self.wanted.services().map(|(key, _)| *key)
    }

    /// Whether health checks own this object: an owned service, one of its destinations, or a wanted limit.
    pub(super) fn owns(&self, object: Option<Object>) -> bool {
        match object {
            Some(Object::Limit(key)) => self.wanted.limits().contains_key(&key),
            Some(object) => object.service().is_some_and(|key| self.wanted.service(&key).is_some()),
            None => false,
        }
    }

    /// The warnings about refused commands, and about drift.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        use WarningKind::{KeepalivedCommandRefused, KeepalivedDrift};
        let mut warnings = Vec::new();
        for (command, error) in self.refused.values().take(NAMED_REFUSALS) {
            let line = command_line(command);
            let text = format!("{ORIGIN}: {line}: refused, and tried again each second: {error}");
            warnings.push(Warning::new(KeepalivedCommandRefused, line, text));
        }
        if let more @ 1.. = self.refused.len().saturating_sub(NAMED_REFUSALS) {
            let text = format!("{ORIGIN}: {more} more commands are refused");
            warnings.push(Warning::new(KeepalivedCommandRefused, "", text));
        }
        let lead = match self.drift_lines.len() {
            0 => return warnings,
            1 => "1 command restores".to_owned(),
            several => format!("{several} commands restore"),
        };
        let text = format!("services of the keepalived.conf were changed by hand; {lead} them: `xvs health`");
        warnings.push(Warning::new(KeepalivedDrift, "", text));
        warnings
    }
}

impl Follow for OwnedServices {
    fn follow(&mut self, change: &mut Change<'_>) {
        if *change.command == Command::Flush {
            self.dirty.extend(self.wanted.services().map(|(key, _)| *key));
        }
        let service = change.command.object().and_then(|object| object.owned_with());
        self.dirty.extend(service.filter(|key| self.wanted.service(key).is_some()));
    }
}

/// The origin of these commands in events, the log and warnings.
pub(super) const ORIGIN: &str = "health";

/// The number of refused commands with a warning each.
const NAMED_REFUSALS: usize = 8;
