//! Packets that the XDP program steers for the services, and the services whose steered packets are to be recomputed.

use std::collections::BTreeSet;
use std::mem;
use std::net::IpAddr;

use xvs_dataplane::steering::SteeringRules;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::objects::Object;
use xvs_model::objects::local::LocalAddress;
use xvs_proto::network::{Network, RouteAction, Table};
use xvs_proto::{Endpoint, Family, Prefix};
use xvs_sched::ServiceKey;

use super::due::Due;
use crate::firewall_marks::CompiledMarks;
use crate::registry::Registry;
use crate::steering::{Item, SteeredItems, networks, rules_for};

/// The packets that are steered.
#[derive(Default)]
pub(super) struct Steered {
    /// What is steered for each service; out of date for those in `due`.
    items: SteeredItems,
    /// Services whose steering may have changed since the last update.
    due: Due<ServiceKey>,
    /// What is steered for commands before they are carried out.
    added: BTreeSet<Item>,
    /// Whether there were services of IPv4 and of IPv6 at the last update.
    served: [bool; 2],
    /// Deleted local addresses that connections may still use.
    pub(super) deleted_locals: Vec<LocalAddress>,
    /// Addresses of this machine.
    local: BTreeSet<IpAddr>,
    /// The local port of probes of real servers through their virtual address, while there are such checks.
    probe_port: Option<u16>,
}

/// An update of steering.
pub(super) enum SteeringUpdate {
    /// Stop steering these.
    Remove(SteeringRules),
    /// Steer these and nothing else.
    Replace(SteeringRules),
}

/// What the steering of services depends on.
pub(super) struct Services<'a> {
    pub(super) state: &'a State,
    pub(super) registry: &'a mut Registry,
    pub(super) marks: &'a CompiledMarks,
    /// Whether there are services of IPv4 and of IPv6.
    pub(super) served: [bool; 2],
}

impl Steered {
    /// Notes a command that is about to be carried out on this state.
    pub(super) fn note(&mut self, command: &Command, before: &State) {
        match command.object() {
            None if *command == Command::Flush => self.set_all_due(),
            Some(Object::Mark(_)) => self.set_all_due(),
            Some(Object::Local(addr)) => {
                if let Command::Delete(_) = command {
                    self.deleted_locals.extend(before.locals().iter().filter(|local| local.addr == addr));
                }
                self.set_all_due();
            }
            // An edited service is steered as before.
            Some(Object::Service(_)) if matches!(command, Command::EditService { .. }) => {}
            Some(Object::Service(key) | Object::Destination { service: key, .. }) => self.due.add(key),
            _ => {}
        }
    }

    /// Marks a service to be recomputed.
    pub(super) fn set_due(&mut self, key: ServiceKey) {
        self.due.add(key);
    }

    /// Marks everything to be recomputed.
    pub(super) fn set_all_due(&mut self) {
        self.due = Due::Everything;
    }

    /// Replaces the addresses of this machine.
    pub(super) fn set_network(&mut self, network: &Network) {
        let local = local(network);
        // Not for each neighbour that the kernel has resolved.
        if local != self.local {
            self.local = local;
            self.set_all_due();
        }
    }

    /// Replaces the local port of probes.
    pub(super) fn set_probe_port(&mut self, port: Option<u16>) {
        self.probe_port = port;
        self.set_all_due();
    }

    /// Notes that these are steered from now on, in addition.
    pub(super) fn add(&mut self, mut items: BTreeSet<Item>) {
        self.added.append(&mut items);
    }

    /// Whether steering may differ from what is needed.
    pub(super) fn is_due(&self) -> bool {
        !(self.due.is_empty() && self.added.is_empty())
    }

    /// The update to what is needed: for the services that have changed, or for all.
    pub(super) fn update(&mut self, mut services: Services<'_>) -> SteeringUpdate {
        let same = mem::replace(&mut self.served, services.served) == services.served;
        let mut gone = mem::take(&mut self.added);
        match mem::take(&mut self.due) {
            Due::These(keys) if same => {
                gone.extend(keys.into_iter().flat_map(|key| self.update_service(key, &mut services)));
                let gone = gone.into_iter().filter(|item| !self.items.contains(item));
                SteeringUpdate::Remove(rules_for(
                    gone,
                    &[services.state.locals(), &self.deleted_locals].concat(),
                ))
            }
            _ => SteeringUpdate::Replace(self.all(&mut services)),
        }
    }

    /// Everything that is to be steered.
    fn all(&mut self, services: &mut Services<'_>) -> SteeringRules {
        let keys: BTreeSet<_> = services.registry.service_keys().chain(self.items.keys()).collect();
        keys.into_iter().for_each(|key| _ = self.update_service(key, services));
        if !services.registry.has_full_nat_connections() {
            self.deleted_locals.clear();
        }
        let mut rules =
            rules_for(self.items.all(), &[services.state.locals(), &self.deleted_locals].concat());
        rules.local_addresses.clone_from(&self.local);
        if let Some(port) = self.probe_port {
            let sources = self.local.iter().filter(|addr| !addr.is_loopback());
            rules.probe_sources = sources.map(|addr| Endpoint { addr: *addr, port }).collect();
        }
        // The XDP program passes packets of a family without services.
        rules.services.retain(|(_, endpoint)| self.serves(endpoint.family()));
        rules.nat_destinations.retain(|(_, endpoint)| self.serves(endpoint.family()));
        rules.own_clients.retain(|(_, endpoint)| self.serves(endpoint.family()));
        rules.translated.retain(|addr, _| self.serves(Family::of(*addr)));
        rules.probe_sources.retain(|source| self.serves(source.family()));
        rules.wide.retain(|network| self.serves(Family::of(network.addr())));
        rules
    }

    fn serves(&self, family: Family) -> bool {
        self.served[family as usize]
    }

    /// Recomputes what is steered for a service. Returns what is no longer steered for it.
    fn update_service(&mut self, key: ServiceKey, services: &mut Services<'_>) -> Vec<Item> {
        let mut items = services.registry.steered(key);
        let lives_on = services.registry.has_connections(key);
        if lives_on || services.state.service(&key).is_some() {
            items.extend(networks(services.marks, key));
        }
        if lives_on {
            // Connections created by earlier rules of the service's mark continue.
            items.extend(self.items.networks(key));
        }
        self.items.set(key, items)
    }
}

/// Addresses that the kernel delivers to this machine, whatever policy rules say.
fn local(network: &Network) -> BTreeSet<IpAddr> {
    let is_of_vrf = |table| network.links.iter().any(|link| link.vrf == Some(table));
    let is_used = |table| [Table::LOCAL, Table::MAIN].contains(&table) || is_of_vrf(table);
    let delivered = network
        .routes
        .iter()
        .filter(|route| is_used(route.table))
        .filter(|route| matches!(route.action, RouteAction::Local | RouteAction::Broadcast));
    delivered
        .map(|route| route.dest)
        .filter(|dest| *dest == Prefix::host(dest.addr()))
        .map(Prefix::addr)
        .collect()
}
