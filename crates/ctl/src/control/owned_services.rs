//! Services owned by health checks: the wanted state with its limits, refused commands, and drift.

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
    /// The wanted state: these services and nothing else.
    pub wanted: State,
    pub refused: BTreeMap<Object, (Command, CommandError)>,
    /// Services that may have changed since drift was last computed.
    pub dirty: BTreeSet<ServiceKey>,
    /// For each service with drift, the commands that restore the wanted state.
    pub drift: BTreeMap<ServiceKey, Vec<Command>>,
    /// The commands of `drift` as command lines.
    pub drift_lines: Arc<[String]>,
    pub repair: Repair,
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
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        use WarningKind::{KeepalivedCommandRefused, KeepalivedDrift};
        let refused = self.refused.values().take(NAMED_REFUSALS).map(|(command, error)| {
            let line = command_line(command);
            let text = format!("{ORIGIN}: {line}: refused, and tried again each second: {error}");
            Warning::new(KeepalivedCommandRefused, line, text)
        });
        let more = self.refused.len().saturating_sub(NAMED_REFUSALS);
        let more = (more > 0).then(|| {
            Warning::new(KeepalivedCommandRefused, "", format!("{ORIGIN}: {more} more commands are refused"))
        });
        let lead = match self.drift_lines.len() {
            0 => None,
            1 => Some("1 command restores".to_owned()),
            several => Some(format!("{several} commands restore")),
        };
        let drift = lead.map(|lead| {
            let text =
                format!("services of the keepalived.conf were changed by hand; {lead} them: `xvs health`");
            Warning::new(KeepalivedDrift, "", text)
        });
        refused.chain(more).chain(drift)
    }
}

/// Origin of these commands in events, the log and warnings.
pub(super) const ORIGIN: &str = "health";

/// How many refused commands are named in warnings.
pub(super) const NAMED_REFUSALS: usize = 8;
