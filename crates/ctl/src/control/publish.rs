//! From the desired state to what workers act on, in the order that keeps every packet where it belongs.
//!
//! What is steered is widened before anything changes; the snapshot is published; when every worker has it, what is
//! steered is narrowed. Each step costs what the change names, however much else is configured; what touches everything
//! (the network, mark rules, local addresses, the first or last service of a family) costs a pass over everything. Not
//! here: what a change is (`control.rs`), which packets a service needs (`steered.rs`).

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::egress::RouteTo;
use xvs_dataplane::steering::{SteeringError, SteeringRules};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::ServiceKey;

use super::{Control, Plant};
use crate::marks::lay_out;
use crate::message::{Command, CommandError};
use crate::steered::{Item, networks, of_commands, replies_from, steer};

/// What has to be worked out anew.
pub(super) enum Due<T> {
    These(BTreeSet<T>),
    Everything,
}

impl<T> Default for Due<T> {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl<T: Ord> Due<T> {
    pub(super) fn add(&mut self, one: T) {
        if let Self::These(these) = self {
            these.insert(one);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::These(these) if these.is_empty())
    }
}

/// How long a change may take to reach every worker.
const TAKE_UP: Duration = Duration::from_secs(1);
/// How long workers are waited for by whom nobody waits, and one that is late already: several bursts.
pub(super) const GLANCE: Duration = Duration::from_millis(5);

impl<P: Plant> Control<P> {
    /// Has the XDP program steer what these commands would have it steer: before anything is changed, so that a program
    /// that has no room refuses the change as a whole.
    pub(super) fn widen(&mut self, commands: &[Command]) -> Result<(), CommandError> {
        let mut items = of_commands(commands);
        let (mut locals, mut rules) = (self.state.locals().to_vec(), self.state.marks().to_vec());
        for command in commands {
            match command {
                Command::AddLocal(local) => {
                    locals.push(*local);
                    items.insert(Item::Locals(Family::of(local.addr)));
                    // If it is refused, nothing else tells that its ports are to be left alone again.
                    self.unsteered = Due::Everything;
                }
                Command::AddMark(rule) => rules.push(rule.clone()),
                Command::AddService { key, .. } => items.extend(networks(&self.laid_out, *key)),
                _ => {}
            }
        }
        if rules.len() > self.state.marks().len() {
            let laid_out = lay_out(&self.tables, &rules, &self.links);
            let added = commands.iter().filter_map(|command| match command {
                Command::AddService { key, .. } => Some(*key),
                _ => None,
            });
            let keys = self.state.services().map(|(key, _)| *key).chain(added);
            items.extend(keys.flat_map(|key| networks(&laid_out, key)));
        }
        if items.is_empty() {
            return Ok(());
        }
        let more = steer(items.iter().copied(), &locals);
        self.widened.append(&mut items);
        self.plant
            .widen(&more)
            .map_err(|error| CommandError::Failed { why: format!("xvs: {error}; nothing was changed") })
    }

    /// Makes the working snapshot the one that workers act on, and waits until they do.
    ///
    /// # Errors
    /// [`CommandError::Late`] and no other. The change is made all the same; what has to wait for the worker is done by
    /// [`Self::tick`].
    pub(super) fn publish(&mut self) -> Result<(), CommandError> {
        self.registry.build(&self.state, &mut self.snapshot);
        self.snapshot.settings = self.ipvs.in_force(&self.state, self.memory);
        self.snapshot.nat_destinations = match self.snapshot.settings.nat_icmp_send {
            true => Arc::new(self.masqueraded().collect()),
            false => Arc::default(),
        };
        self.snapshot.epoch += 1;
        // Kept until every worker has left it, so that no worker is the last to hold it and has to free it.
        self.held.push(self.published.swap(Arc::new(self.snapshot.clone())));
        self.reserve_ports();
        self.keep_resolved();
        let patience = if self.late.is_none() { TAKE_UP } else { GLANCE };
        self.settle(patience).map_err(|who| {
            self.late = Some(who.clone());
            CommandError::Late { who }
        })
    }

    /// Keeps the kernel off the local ports of addresses that are this machine's.
    fn reserve_ports(&mut self) {
        let here = self.state.locals().iter().filter(|local| self.snapshot.egress.is_local(local.addr));
        let wanted: Vec<_> = here.map(|local| (local.first_port, local.last_port)).collect();
        if wanted != self.reserved {
            self.plant.reserve_ports(&wanted);
            self.reserved = wanted;
        }
    }

    /// Waits for the workers, then does what had to wait for them.
    pub(super) fn settle(&mut self, patience: Duration) -> Result<(), String> {
        self.plant.await_workers(patience)?;
        self.held.clear();
        self.late = None;
        if self.steering_is_due()
            && let Err(error) = self.steer_no_more()
        {
            tracing::error!("the XDP program does not steer as it should: {error}");
            self.unsteered = Due::Everything;
        }
        Ok(())
    }

    /// Has those kept resolved whom packets are sent to: the gateways, and the next hops towards destinations.
    fn keep_resolved(&mut self) {
        let egress = &self.snapshot.egress;
        let towards = |addr| match egress.route(addr, 0) {
            RouteTo::Via { link, next_hop } => Some((egress.link(link)?.ifindex, next_hop)),
            _ => None,
        };
        let wanted = match mem::take(&mut self.unresolved) {
            Due::These(added) => {
                let added: BTreeSet<_> = added.into_iter().filter_map(towards).collect();
                if added.is_subset(&self.resolved) {
                    return;
                }
                &self.resolved | &added
            }
            Due::Everything => {
                let towards = self.registry.addresses().filter_map(towards);
                self.gateways.iter().copied().chain(towards).collect()
            }
        };
        if wanted != self.resolved {
            self.plant.keep_resolved(&wanted);
            self.resolved = wanted;
        }
    }

    /// Where the masqueraded destinations that are configured now send from.
    fn masqueraded(&self) -> impl Iterator<Item = (Protocol, Endpoint)> {
        let services = self.state.services();
        let all = services.flat_map(|(key, service)| service.destinations.iter().map(move |one| (*key, one)));
        all.flat_map(|(key, one)| replies_from(key, one.endpoint, one.options.method))
    }

    /// Whether the XDP program may steer other packets than it should.
    pub(super) fn steering_is_due(&self) -> bool {
        !(self.unsteered.is_empty() && self.widened.is_empty())
    }

    /// Narrows what is steered to what should be: for the services that have changed, or for all.
    fn steer_no_more(&mut self) -> Result<(), SteeringError> {
        let served = [Family::V4, Family::V6].map(|family| self.snapshot.services.any_of(family));
        let same = mem::replace(&mut self.served, served) == served;
        let mut gone = mem::take(&mut self.widened);
        match mem::take(&mut self.unsteered) {
            Due::These(keys) if same => {
                gone.extend(keys.into_iter().flat_map(|key| self.account(key)));
                let gone = gone.into_iter().filter(|item| !self.accounts.hold(item));
                self.plant.take_back(&steer(gone, &[self.state.locals(), &self.left].concat()))
            }
            _ => {
                let rules = self.steering();
                self.plant.narrow(&rules)
            }
        }
    }

    /// All that is to be steered.
    fn steering(&mut self) -> SteeringRules {
        let keys: BTreeSet<_> = self.registry.service_keys().chain(self.accounts.keys()).collect();
        keys.into_iter().for_each(|key| _ = self.account(key));
        if !self.registry.has_full_nat_connections() {
            self.left.clear();
        }
        let mut rules = steer(self.accounts.items(), &[self.state.locals(), &self.left].concat());
        rules.local_addresses.clone_from(&self.local);
        // A family without services passes untouched.
        let served = |family: Family| self.served[family as usize];
        rules.services.retain(|(_, endpoint)| served(endpoint.family()));
        rules.nat_destinations.retain(|(_, endpoint)| served(endpoint.family()));
        rules.translated.retain(|addr, _| served(Family::of(*addr)));
        rules.wide.retain(|network| served(Family::of(network.addr())));
        rules
    }

    /// Works out what is steered for a service. Returns what is not any more.
    fn account(&mut self, key: ServiceKey) -> Vec<Item> {
        let mut items = self.registry.steered(key);
        let lives_on = self.registry.has_connections(key);
        if lives_on || self.state.service(&key).is_some() {
            items.extend(networks(&self.laid_out, key));
        }
        if lives_on {
            // Those that its mark's rules of before began go on.
            items.extend(self.accounts.networks(key));
        }
        self.accounts.set(key, items)
    }
}
