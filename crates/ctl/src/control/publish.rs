//! From the desired state to what workers act on, in the order that keeps every packet where it belongs.
//!
//! What is steered is extended before anything changes; the snapshot is published; when every worker has it, what is
//! steered is narrowed. Each step costs what the change names, however much else is configured; what touches everything
//! (the network, mark rules, local addresses, the first or last service of a family) costs a pass over everything. Not
//! here: what a change is (`control.rs`), which packets a service needs (`steered.rs`).

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::steering::SteeringError;
use xvs_model::command::{Command, CommandError};
use xvs_model::state::State;
use xvs_proto::{Endpoint, Family, Protocol};

use super::steered::{Services, SteeringUpdate};
use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::steering::{Item, networks, of_commands, replies_from, rules_for};

/// How long a change may take to reach every worker.
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long workers are waited for by whom nobody waits, and one that is late already: several bursts.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(5);

impl<D: Datapath> Control<D> {
    /// Has the XDP program steer what these commands would have it steer: before anything is changed, so that a program
    /// that has no room refuses the change as a whole.
    pub(super) fn extend_steering(&mut self, commands: &[Command]) -> Result<(), CommandError> {
        let mut items = of_commands(commands);
        let (mut locals, mut rules) = (self.state.locals().to_vec(), self.state.marks().to_vec());
        for command in commands {
            match command {
                Command::AddLocal(local) => {
                    locals.push(*local);
                    items.insert(Item::Locals(Family::of(local.addr)));
                    // If it is refused, nothing else tells that its ports are to be left alone again.
                    self.steered.set_all_due();
                }
                Command::AddMark(rule) => rules.push(rule.clone()),
                Command::AddService { key, .. } => items.extend(networks(self.marks.compiled(), *key)),
                _ => {}
            }
        }
        if rules.len() > self.state.marks().len() {
            let compiled = self.marks.with(&rules);
            let added = commands.iter().filter_map(|command| match command {
                Command::AddService { key, .. } => Some(*key),
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
            .map_err(|error| CommandError::Failed { why: format!("xvs: {error}; nothing was changed") })
    }

    /// Makes the working snapshot the one that workers act on, and waits until they do.
    ///
    /// # Errors
    /// [`CommandError::Late`] and no other. The change is made all the same; what has to wait for the worker is done by
    /// [`Self::tick`].
    pub(super) fn publish(&mut self) -> Result<(), CommandError> {
        let snapshot = &mut self.publication.snapshot;
        self.registry.build(&self.state, snapshot);
        snapshot.settings = self.settings.settings(&self.state);
        snapshot.nat_destinations = match snapshot.settings.nat_icmp_send {
            true => Arc::new(masqueraded(&self.state).collect()),
            false => Arc::default(),
        };
        self.publication.publish();
        self.reserve_ports();
        if let Some(next_hops) =
            self.next_hops.update(&self.publication.snapshot.egress, self.registry.addresses())
        {
            self.datapath.keep_resolved(next_hops);
        }
        let patience = if self.publication.late().is_none() { WORKER_TIMEOUT } else { SHORT_WAIT };
        self.settle(patience).map_err(|who| {
            self.publication.set_late(who.clone());
            CommandError::Late { who }
        })
    }

    /// Keeps the kernel off the local ports of addresses that are this machine's.
    fn reserve_ports(&mut self) {
        let here =
            self.state.locals().iter().filter(|local| self.publication.snapshot.egress.is_local(local.addr));
        let wanted: Vec<_> = here.map(|local| (local.first_port, local.last_port)).collect();
        if wanted != self.reserved {
            self.datapath.reserve_ports(&wanted);
            self.reserved = wanted;
        }
    }

    /// Waits for the workers, then does what had to wait for them.
    pub(super) fn settle(&mut self, patience: Duration) -> Result<(), String> {
        self.datapath.await_workers(patience)?;
        self.publication.all_current();
        if self.steered.is_due()
            && let Err(error) = self.reduce_steering()
        {
            tracing::error!("the XDP program does not steer as it should: {error}");
            self.steered.set_all_due();
        }
        Ok(())
    }

    /// Narrows what is steered to what should be: for the services that have changed, or for all.
    fn reduce_steering(&mut self) -> Result<(), SteeringError> {
        let served = [Family::V4, Family::V6].map(|family| self.publication.snapshot.services.any_of(family));
        let (state, registry, marks) = (&self.state, &mut self.registry, self.marks.compiled());
        match self.steered.update(Services { state, registry, marks, served }) {
            SteeringUpdate::Remove(rules) => self.datapath.remove_steering(&rules),
            SteeringUpdate::Replace(rules) => self.datapath.set_steering(&rules),
        }
    }
}

/// Where the masqueraded destinations that are configured now send from.
fn masqueraded(state: &State) -> impl Iterator<Item = (Protocol, Endpoint)> {
    let all =
        state.services().flat_map(|(key, service)| service.destinations.iter().map(move |one| (*key, one)));
    all.flat_map(|(key, one)| replies_from(key, one.endpoint, one.options.method))
}
