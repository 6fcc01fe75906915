//! Packets that the XDP program steers for the services, and the services whose steering is to be recomputed.

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
    /// The items steered for each service; out of date for services in `due`.
    items: SteeredItems,
    /// Services whose steering may have changed since the last update.
    due: Due<ServiceKey>,
    /// The items steered for commands that are not carried out yet.
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

/// The services, and the other data on which their steering depends.
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

    /// Marks the steering of a service to be recomputed.
    pub(super) fn set_due(&mut self, key: ServiceKey) {
        self.due.add(key);
    }

    /// Marks all steering to be recomputed.
    pub(super) fn set_all_due(&mut self) {
        self.due = Due::Everything;
    }

    /// Replaces the addresses of this machine.
    pub(super) fn set_network(&mut self, network: &Network) {
        let local = local(network);
        // Not for each neighbour that the kernel resolves.
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

    /// Notes that these items are steered from now on, in addition.
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
                for key in keys {
                    gone.extend(self.update_service(key, &mut services));
                }
                gone.retain(|item| !self.items.contains(item));
                SteeringUpdate::Remove(rules_for(
                    gone,
                    &[services.state.locals(), &self.deleted_locals].concat(),
                ))
            }
            _ => SteeringUpdate::Replace(self.all(&mut services)),
        }
    }

    /// All packets to be steered.
    fn all(&mut self, services: &mut Services<'_>) -> SteeringRules {
        let keys: BTreeSet<_> = services.registry.service_keys().chain(self.items.keys()).collect();
        for key in keys {
            self.update_service(key, services);
        }
        if !services.registry.has_full_nat_connections() {
            self.deleted_locals.clear();
        }
        let mut rules =
            rules_for(self.items.all(), &[services.state.locals(), &self.deleted_locals].concat());
        rules.local_addresses.clone_from(&self.local);
        if let Some(port) = self.probe_port {
            rules.probe_sources = self
                .local
                .iter()
                .filter(|addr| !addr.is_loopback())
                .map(|addr| Endpoint { addr: *addr, port })
                .collect();
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

    /// Recomputes the items steered for a service. Returns the items that are no longer steered for the service.
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

/// Addresses that the kernel delivers to this machine, regardless of policy rules.
fn local(network: &Network) -> BTreeSet<IpAddr> {
    network
        .routes
        .iter()
        .filter(|route| {
            [Table::LOCAL, Table::MAIN].contains(&route.table)
                || network.links.iter().any(|link| link.vrf == Some(route.table))
        })
        .filter(|route| matches!(route.action, RouteAction::Local | RouteAction::Broadcast))
        .map(|route| route.dest)
        .filter(|dest| *dest == Prefix::host(dest.addr()))
        .map(Prefix::addr)
        .collect()
}
