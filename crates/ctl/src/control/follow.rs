//! Features that keep data beside the desired state, and how each follows a change of the state.

use std::sync::Arc;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::local_addresses::LocalAddresses;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::objects::limit::ServiceLimit;
use xvs_model::objects::{Object, Rule};

use crate::registry::Registry;

/// A command that was entered in the desired state.
pub(super) struct Change<'a> {
    pub(super) command: &'a Command,
    /// The state after the command.
    pub(super) state: &'a State,
    /// The working snapshot.
    pub(super) snapshot: &'a mut Snapshot,
    pub(super) now: Millis,
}

/// A feature that keeps data beside the desired state.
pub(super) trait Follow {
    /// Enters the change in the feature's data and in the working snapshot.
    fn follow(&mut self, change: &mut Change<'_>);
}

impl Follow for Registry {
    fn follow(&mut self, change: &mut Change<'_>) {
        self.apply(change.command, change.state, change.snapshot, change.now);
    }
}

/// The local addresses of FULLNAT. The feature keeps them only in the snapshot.
pub(super) struct Locals;

impl Follow for Locals {
    fn follow(&mut self, change: &mut Change<'_>) {
        let Some(Object::Local(_)) = change.command.object() else { return };
        let [own, standby] = [false, true].map(|standby| {
            change
                .state
                .locals()
                .iter()
                .filter(move |local| local.standby == standby)
                .map(|local| (local.addr, local.ports()))
        });
        change.snapshot.locals = Arc::new(LocalAddresses::new(own, standby));
    }
}

/// The limits of SYNs that the data plane has. A limit outlives its service.
#[derive(Default)]
pub(super) struct PublishedLimits {
    /// Whether the data plane's limits are out of date.
    pub(super) due: bool,
}

impl Follow for PublishedLimits {
    fn follow(&mut self, change: &mut Change<'_>) {
        let Change { command, state, .. } = change;
        if matches!(command, Command::Add(Rule::Limit(ServiceLimit { limit, .. })) if limit.is_of_clients()) {
            change.snapshot.clients.provide();
        }
        self.due |= match command.object() {
            None => **command == Command::Flush && !state.limits().is_empty(),
            Some(Object::Limit(_)) => true,
            Some(Object::Service(key)) => state.limits().contains_key(&key),
            Some(_) => false,
        };
    }
}
