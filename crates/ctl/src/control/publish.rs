//! Publication of a snapshot, in an order in which no packet of a service is missed.
//!
//! Steering is extended before anything changes. Then the snapshot is published. Steering is reduced when every worker
//! has the snapshot. The cost of each step depends on the size of the change, not of the configuration; but changes of
//! the network, mark rules, local addresses, and a family's first or last service need a pass over everything. Not
//! here: the changes (`mod.rs`), the packets that a service needs (`steered.rs`).

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::steering::SteeringError;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Rule;
use xvs_proto::{Endpoint, Family, Protocol};

use super::steered::{Services, SteeringUpdate};
use crate::control::Control;
use crate::control::datapath::{Datapath, Late};
use crate::steering::{Item, networks, of_commands, replies_from, rules_for};

/// How long a publication waits for every worker.
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a wait is if no client waits for it, or if a worker is late already: several bursts.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(5);

impl<D: Datapath> Control<D> {
    /// Extends steering by what these commands need. This comes before any change, so that a full map refuses the
    /// change as a whole.
    pub(super) fn extend_steering(&mut self, commands: &[Command]) -> Result<(), CommandError> {
        let mut items = of_commands(commands);
        let mut locals = self.state.locals().to_vec();
        let mut rules = self.state.marks().to_vec();
        for command in commands {
            match command {
                Command::Add(Rule::Local(local)) => {
                    locals.push(*local);
                    items.insert(Item::Locals(Family::of(local.addr)));
                    // If the command is refused, nothing else ends the steering of its ports.
                    self.steered.set_all_due();
                }
                Command::Add(Rule::Mark(rule)) => rules.push(rule.clone()),
                Command::Add(Rule::Service { key, .. }) => {
                    items.extend(networks(self.marks.compiled(), *key))
                }
                _ => {}
            }
        }
        if rules.len() > self.state.marks().len() {
            let compiled = self.marks.with(&rules);
            let added = commands.iter().filter_map(|command| match command {
                Command::Add(Rule::Service { key, .. }) => Some(*key),
                _ => None,
            });
            let keys = self.state.services().map(|(key, _)| *key).chain(added);
            items.extend(keys.flat_map(|key| networks(&compiled, key)));
        }
        if items.is_empty() {
            return Ok(());
        }
        let more = rules_for(items.iter().copied(), &locals);
        self.steered.add(items);
        self.datapath
            .add_steering(&more)
            .map_err(|error| CommandError::failed(format_args!("{error}; nothing was changed")))
    }

    /// Writes the journal, publishes the working snapshot, and waits until every worker uses it.
    ///
    /// # Errors
    /// A worker is late. The change is published all the same; [`Self::tick`] does what has to wait for the worker.
    pub(super) fn publish(&mut self) -> Result<(), Late> {
        self.save();
        self.publish_lists();
        self.publish_syn_limits();
        let synchronized = (self.sync_master(), self.sync_backup());
        let snapshot = &mut self.publication.snapshot;
        self.registry.build(&self.state, snapshot);
        snapshot.settings = self.settings.settings(&self.state);
        (snapshot.sync_master, snapshot.sync_backup) = synchronized;
        snapshot.nat_destinations = match snapshot.settings.nat_icmp_send {
            true => Arc::new(masqueraded(&self.state).collect()),
            false => Arc::default(),
        };
        self.publication.publish();
        self.record_slow_starts();
        self.reserve_ports();
        if let Some(next_hops) =
            self.next_hops.update(&self.publication.snapshot.egress, self.registry.addresses())
        {
            self.datapath.keep_resolved(next_hops);
        }
        let patience = if self.publication.late.is_none() { WORKER_TIMEOUT } else { SHORT_WAIT };
        self.settle(patience).inspect_err(|late| self.publication.late = Some(late.worker.clone()))
    }

    /// Reserves the ports of local addresses that are this machine's: the kernel does not use them.
    fn reserve_ports(&mut self) {
        let wanted: Vec<_> = self
            .state
            .locals()
            .iter()
            .filter(|local| self.publication.snapshot.egress.is_own(local.addr))
            .map(|local| (local.first_port, local.last_port))
            .collect();
        if wanted != self.reserved {
            self.datapath.reserve_ports(&wanted);
            self.reserved = wanted;
        }
    }

    /// Waits for the workers, then reduces steering.
    pub(super) fn settle(&mut self, patience: Duration) -> Result<(), Late> {
        let awaited = self.datapath.await_workers(patience);
        // Also if a worker is late; then again when it has caught up.
        self.datapath.end_offload(&self.publication.ends);
        awaited?;
        self.publication.all_current();
        if self.steered.is_due()
            && let Err(error) = self.reduce_steering()
        {
            tracing::error!("steering cannot be updated: {error}");
            self.steered.set_all_due();
        }
        Ok(())
    }

    /// Reduces steering to what is needed: for the services that have changed, or for all.
    fn reduce_steering(&mut self) -> Result<(), SteeringError> {
        let served = [Family::V4, Family::V6].map(|family| self.publication.snapshot.services.any_of(family));
        let marks = self.marks.compiled();
        let services = Services { state: &self.state, registry: &mut self.registry, marks, served };
        match self.steered.update(services) {
            SteeringUpdate::Remove(rules) => self.datapath.remove_steering(&rules),
            SteeringUpdate::Replace(rules) => self.datapath.set_steering(&rules),
        }
    }
}

/// Endpoints that replies of the configured masqueraded destinations come from.
fn masqueraded(state: &State) -> impl Iterator<Item = (Protocol, Endpoint)> {
    state
        .services()
        .flat_map(|(key, service)| service.destinations.iter().map(move |one| (*key, one)))
        .flat_map(|(key, one)| replies_from(key, one.endpoint, one.options.method))
}
