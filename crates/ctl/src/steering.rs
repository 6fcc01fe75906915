//! Steered items: the endpoints, networks and addresses whose packets the XDP program steers, by the service that needs
//! them.
//!
//! Kept by the control thread, which writes the resulting rules to the XDP program. An item that several services need
//! is steered until none needs it any more. Cost of a change: proportional to its items. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use xvs_dataplane::steering::SteeringRules;
use xvs_model::config::destination::Destination;
use xvs_model::objects::local::LocalAddress;
use xvs_proto::{Endpoint, Family, Prefix, Protocol, ftp};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::firewall_marks::CompiledMarks;

/// An item that is steered for a service. Port 0 means any port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    /// Packets to this endpoint.
    To(Protocol, Endpoint),
    /// Packets from this endpoint.
    From(Protocol, Endpoint),
    /// Packets to this network, which may get a firewall mark.
    Network(Prefix),
    /// ICMP errors from routers about tunnels to this address.
    TunnelEnd(IpAddr),
    /// Packets to the local addresses of FULLNAT, in this family.
    Locals(Family),
    /// Packets from this machine's own clients to this endpoint.
    Clients(Protocol, Endpoint),
}

/// The steered items of all services.
#[derive(Debug, Default)]
pub(crate) struct SteeredItems {
    by_service: BTreeMap<ServiceKey, BTreeSet<Item>>,
    /// The number of services that need each item; never 0.
    service_counts: BTreeMap<Item, usize>,
}

impl SteeredItems {
    /// Sets the items of a service. Returns its former items that it no longer needs; another service may need them.
    pub(crate) fn set(&mut self, key: ServiceKey, items: BTreeSet<Item>) -> Vec<Item> {
        let before = self.by_service.remove(&key).unwrap_or_default();
        for item in items.difference(&before) {
            *self.service_counts.entry(*item).or_default() += 1;
        }
        let gone: Vec<_> = before.difference(&items).copied().collect();
        for item in &gone {
            let count = self.service_counts.get_mut(item).expect("every item of a service is counted");
            *count -= 1;
            if *count == 0 {
                self.service_counts.remove(item);
            }
        }
        if !items.is_empty() {
            self.by_service.insert(key, items);
        }
        gone
    }

    /// Whether any service needs this item.
    pub(crate) fn contains(&self, item: &Item) -> bool {
        self.service_counts.contains_key(item)
    }

    /// The items of all services, each once.
    pub(crate) fn all(&self) -> impl Iterator<Item = Item> {
        self.service_counts.keys().copied()
    }

    /// The services that have items.
    pub(crate) fn keys(&self) -> impl Iterator<Item = ServiceKey> {
        self.by_service.keys().copied()
    }

    /// The networks steered for the firewall mark of a service.
    pub(crate) fn networks(&self, key: ServiceKey) -> impl Iterator<Item = Item> {
        self.by_service
            .get(&key)
            .into_iter()
            .flatten()
            .copied()
            .filter(|item| matches!(item, Item::Network(_)))
    }
}

/// The rules that steer these items; `locals` are the local addresses of FULLNAT, each with a range of ports.
pub(crate) fn rules_for(items: impl IntoIterator<Item = Item>, locals: &[LocalAddress]) -> SteeringRules {
    let mut rules = SteeringRules::default();
    for item in items {
        match item {
            Item::To(protocol, endpoint) => _ = rules.services.insert((protocol, endpoint)),
            Item::From(protocol, endpoint) => _ = rules.nat_destinations.insert((protocol, endpoint)),
            Item::Network(network) => _ = rules.wide.insert(network),
            Item::TunnelEnd(addr) => _ = rules.tunnel_ends.insert(addr),
            Item::Locals(family) => {
                for local in locals.iter().filter(|local| Family::of(local.addr) == family) {
                    let ports =
                        rules.translated.entry(local.addr).or_insert((local.first_port, local.last_port));
                    *ports = (ports.0.min(local.first_port), ports.1.max(local.last_port));
                }
            }
            Item::Clients(protocol, endpoint) => _ = rules.own_clients.insert((protocol, endpoint)),
        }
    }
    rules
}

/// The items of an address service; none for a mark service. They include packets from its endpoint: replies of direct
/// routing and tunnels, if the director is the servers' router.
pub(crate) fn of_service(key: ServiceKey) -> impl Iterator<Item = Item> {
    let endpoint = match key {
        ServiceKey::Address { protocol, endpoint } => {
            let port = if takes_any_port(key) { 0 } else { endpoint.port };
            Some((protocol, Endpoint { port, ..endpoint }))
        }
        ServiceKey::Mark { .. } => None,
    };
    endpoint.into_iter().flat_map(|(protocol, at)| [Item::To(protocol, at), Item::From(protocol, at)])
}

/// The items of a destination with this forwarding method.
pub(crate) fn of_destination(
    service: ServiceKey,
    destination: Endpoint,
    method: ForwardingMethod,
) -> impl Iterator<Item = Item> {
    // Such connections keep the port to which the client sent, or use the destination's.
    let any = takes_any_port(service);
    let replies = replies_from(service, destination, method).map(move |(protocol, from)| {
        Item::From(protocol, Endpoint { port: if any { 0 } else { from.port }, ..from })
    });
    // An item for every port would match everything that the machine sends to itself.
    let clients = match service {
        ServiceKey::Address { protocol, endpoint } if method.masquerades() && !any => {
            Some(Item::Clients(protocol, endpoint))
        }
        _ => None,
    };
    replies.chain(clients).chain(match method {
        ForwardingMethod::Tunnel => Some(Item::TunnelEnd(destination.addr)),
        ForwardingMethod::FullNat => Some(Item::Locals(destination.family())),
        _ => None,
    })
}

/// The networks to steer for a mark service; none for an address service.
pub(crate) fn networks(compiled: &CompiledMarks, key: ServiceKey) -> impl Iterator<Item = Item> {
    let reached = match key {
        ServiceKey::Mark { mark, family } => compiled.networks_of(mark, family),
        ServiceKey::Address { .. } => BTreeSet::new(),
    };
    reached.into_iter().map(Item::Network)
}

/// The traffic that the XDP program steers for these services and destinations, except for marks and local addresses.
pub fn rules_of<'a>(services: impl Iterator<Item = (ServiceKey, &'a [Destination])>) -> SteeringRules {
    rules_for(
        services.flat_map(|(key, destinations)| {
            of_service(key).chain(
                destinations
                    .iter()
                    .flat_map(move |dest| of_destination(key, dest.endpoint, dest.options.method)),
            )
        }),
        &[],
    )
}

/// The endpoints from which a destination's replies come that must be translated (NAT).
pub(crate) fn replies_from(
    service: ServiceKey,
    destination: Endpoint,
    method: ForwardingMethod,
) -> impl Iterator<Item = (Protocol, Endpoint)> {
    let (protocols, virtual_port) = match service {
        ServiceKey::Address { protocol, endpoint } => (vec![protocol], endpoint.port),
        ServiceKey::Mark { .. } => (vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP], 0),
    };
    let port = if destination.port == 0 { virtual_port } else { destination.port };
    protocols
        .into_iter()
        .filter(move |_| method == ForwardingMethod::Nat)
        .map(move |protocol| (protocol, Endpoint { port, ..destination }))
}

/// Whether a service has connections to more than one port: mark services, port 0, and FTP, whose data connections use
/// other ports (ipvs-behaviour, section 1.1).
pub(crate) fn takes_any_port(service: ServiceKey) -> bool {
    match service {
        ServiceKey::Mark { .. } => true,
        ServiceKey::Address { protocol, endpoint } => {
            endpoint.port == 0 || protocol == Protocol::TCP && endpoint.port == ftp::CONTROL_PORT
        }
    }
}
