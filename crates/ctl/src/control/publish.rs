//! The published snapshot, and its publication in an order in which no packet of a service is missed.
//!
//! Steering is extended before anything changes. Then the snapshot is published. Steering is reduced when every worker
//! has the snapshot. The cost of each step depends on the size of the change, not of the configuration; but changes of
//! the network, mark rules, local addresses, and a family's first or last service need a pass over everything. Not
//! here: the changes (`change.rs`), the packets that a service needs (`steered.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_dataplane::offload::Ends;
use xvs_dataplane::snapshot::{Settings, Snapshot};
use xvs_dataplane::steering::SteeringError;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Rule;
use xvs_model::report::event::Kind;
use xvs_proto::{Endpoint, Family, Protocol};

use super::steered::{Services, SteeringUpdate};
use crate::control::Control;
use crate::control::datapath::{Datapath, Late};
use crate::steering::{Item, networks, of_destination, of_service, replies_from, rules_for};

/// The published snapshot, and the working copy for the next one.
pub(super) struct Publication {
    /// The working copy; between changes equal to the published snapshot.
    pub(super) snapshot: Snapshot,
    /// The pointer that workers load.
    pub(super) published: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that a worker may still hold, because it has not loaded the next one in time. They are kept so that
    /// no worker drops the last reference and has to free the memory.
    pub(super) held: Vec<Arc<Snapshot>>,
    /// A former snapshot that no worker holds, equal to the working copy at the last publication. The next snapshot is
    /// made of it, so that the cost of a change does not grow with the number of services.
    spare: Option<Snapshot>,
    /// The worker that has not taken up the last change in time.
    pub(super) late: Option<String>,
    /// The offloaded flows that end when every worker uses the published snapshot.
    pub(super) ends: Ends,
}

impl<D: Datapath> Control<D> {
    /// Extends steering by the packets that these commands need. Called before any change, so that a full map refuses
    /// the change as a whole.
    pub(super) fn extend_steering(&mut self, commands: &[Command]) -> Result<(), CommandError> {
        let mut items = BTreeSet::new();
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
                    items.extend(of_service(*key).chain(networks(&self.marks.compiled, *key)));
                }
                Command::Add(Rule::Destination { service, endpoint, options })
                | Command::EditDestination { service, endpoint, options } => {
                    items.extend(of_destination(*service, *endpoint, options.method));
                }
                _ => {}
            }
        }
        if rules.len() > self.state.marks().len() {
            let compiled = self.marks.with(&rules);
            let added = commands.iter().filter_map(|command| match command {
                Command::Add(Rule::Service { key, .. }) => Some(key),
                _ => None,
            });
            for key in self.state.services().map(|(key, _)| key).chain(added) {
                items.extend(networks(&compiled, *key));
            }
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
        self.publication.snapshot.sync_master = self.sync_master();
        self.publication.snapshot.sync_backup = self.sync_backup();
        let snapshot = &mut self.publication.snapshot;
        self.registry.build(&self.state, snapshot);
        snapshot.settings = self.settings.settings(&self.state);
        snapshot.nat_destinations = match snapshot.settings.nat_icmp_send {
            true => Arc::new(masqueraded(&self.state).collect()),
            false => Arc::default(),
        };
        self.publication.publish();
        let slow_starts = self.registry.take_slow_start_events().into_iter().map(|text| (text, None));
        self.events.record_all(Kind::Weight, self.epoch(), None, slow_starts);
        self.reserve_ports();
        if let Some(next_hops) =
            self.next_hops.update(&self.publication.snapshot.egress, self.registry.addresses())
        {
            self.datapath.keep_resolved(next_hops);
        }
        let patience = if self.publication.late.is_none() { WORKER_TIMEOUT } else { SHORT_WAIT };
        self.settle(patience).inspect_err(|late| self.publication.late = Some(late.worker.clone()))
    }

    /// Reserves the ports of local addresses that this machine has: the kernel does not use them.
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
        // Also if a worker is late; then again when the worker uses the snapshot.
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
        match self.steered.update(Services {
            state: &self.state,
            registry: &mut self.registry,
            marks: &self.marks.compiled,
            served,
        }) {
            SteeringUpdate::Remove(rules) => self.datapath.remove_steering(&rules),
            SteeringUpdate::Replace(rules) => self.datapath.set_steering(&rules),
        }
    }
}

/// The endpoints from which replies of the configured masqueraded destinations come.
fn masqueraded(state: &State) -> impl Iterator<Item = (Protocol, Endpoint)> {
    state
        .services()
        .flat_map(|(key, service)| service.destinations.iter().map(move |one| (*key, one)))
        .flat_map(|(key, one)| replies_from(key, one.endpoint, one.options.method))
}

impl Publication {
    /// Publishes an empty snapshot with these settings.
    pub(super) fn new(settings: Settings) -> Self {
        let snapshot = Snapshot { settings, ..Snapshot::default() };
        let published = Arc::new(ArcSwap::from_pointee(snapshot.clone()));
        Self { snapshot, published, held: Vec::new(), spare: None, late: None, ends: Ends::default() }
    }

    /// Publishes the working copy under the next number.
    pub(super) fn publish(&mut self) {
        self.snapshot.epoch += 1;
        let next = self.spare.take().map(|mut spare| {
            spare.catch_up(&self.snapshot);
            spare
        });
        let before = self.published.swap(Arc::new(next.unwrap_or_else(|| self.snapshot.clone())));
        self.ends.add(&before, &self.snapshot);
        self.held.push(before);
    }

    /// Notes that every worker uses the published snapshot, and that flows have ended.
    pub(super) fn all_current(&mut self) {
        // A listing may still hold a snapshot.
        if let Some(mut former) = self.held.drain(..).filter_map(Arc::into_inner).next_back() {
            // At once, because the former snapshot would keep deleted objects.
            former.catch_up(&self.snapshot);
            self.spare = Some(former);
        }
        self.late = None;
        self.ends = Ends::default();
    }
}

/// The time that a publication waits for every worker.
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);
/// The time to wait for workers if no client waits, or if a worker is late already: several bursts.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use xvs_dataplane::snapshot::DestinationId;
    use xvs_model::config::command::Command;
    use xvs_model::objects::Object;
    use xvs_proto::Endpoint;

    use crate::control::Control;
    use crate::control::tests::{Machine, add, add_service, control, service};

    use super::*;

    /// The endpoints of available destinations, and the number of services.
    fn content(snapshot: &Snapshot) -> (Vec<Endpoint>, usize) {
        let numbered = (0..1000).filter_map(|id| snapshot.destinations.find(DestinationId(id)));
        let available = numbered.filter(|destination| destination.available);
        (available.map(|destination| destination.endpoint).collect(), snapshot.services.iter().count())
    }

    /// Changes the configuration. Returns the published content, which equals the content of the working copy.
    fn changed(control: &mut Control<Machine>, command: Command) -> (Vec<Endpoint>, usize) {
        control.run(command).unwrap();
        let published = content(&control.published().load());
        assert_eq!(published, content(&control.publication.snapshot));
        published
    }

    #[test]
    fn a_snapshot_made_of_a_former_one_is_complete_and_one_that_is_still_read_stays_as_it_was() {
        let mut control = control();
        changed(&mut control, add_service());
        // More than a page of destinations.
        for last in 1..=200 {
            changed(&mut control, add([10, 0, 0, last]));
            assert!(control.publication.spare.is_some());
        }
        let listed = control.published().load_full();
        let before = content(&listed);
        assert_eq!((before.0.len(), before.1), (200, 1));
        let endpoint = Endpoint::new([10, 0, 0, 1], 80);
        changed(&mut control, Command::Delete(Object::Destination { service: service(), endpoint }));
        assert!(control.publication.spare.is_none(), "the listing has it");
        let after = changed(&mut control, add([10, 0, 1, 1]));
        assert!(!after.0.contains(&endpoint) && after.0.len() == 200);
        assert!(control.publication.spare.is_some());
        assert_eq!(changed(&mut control, Command::Flush), (Vec::new(), 0));
        assert_eq!(content(&listed), before);
    }
}
