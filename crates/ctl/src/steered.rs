//! What is steered for a service, a destination, a tunnel, a local address.
//!
//! Asked by the control thread when it works out what the XDP program is to be told. Pure.

use std::collections::BTreeSet;

use xvs_dataplane::xdp::SteeringRules;
use xvs_proto::{Endpoint, Family, Prefix, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::locals::LocalAddress;
use crate::marks::LaidOut;
use crate::message::Command;

/// Has packets to a service that are known by their endpoint steered. In IPv6 also those from it: the kernel routes replies
/// by direct routing where the director is the servers' router, and IPVS sees them; in IPv4 it refuses them.
pub(crate) fn steer_service(rules: &mut SteeringRules, key: ServiceKey) {
    let ServiceKey::Address { protocol, endpoint } = key else { return };
    let port = if takes_any_port(key) { 0 } else { endpoint.port };
    let steered = (protocol, Endpoint { port, ..endpoint });
    rules.services.insert(steered);
    if endpoint.family() == Family::V6 {
        rules.nat_destinations.insert(steered);
    }
}

/// Has packets steered that a command makes the director's; those of marks are not among them.
pub(crate) fn steer_command(rules: &mut SteeringRules, command: &Command, locals: &[LocalAddress]) {
    match command {
        Command::AddService { key, .. } => steer_service(rules, *key),
        Command::AddDestination { service, endpoint, options }
        | Command::EditDestination { service, endpoint, options } => {
            rules.nat_destinations.extend(steered_from(*service, *endpoint, options.method));
            match options.method {
                ForwardingMethod::FullNat => steer_locals(rules, locals),
                ForwardingMethod::Tunnel => _ = rules.tunnel_ends.insert(endpoint.addr),
                _ => {}
            }
        }
        Command::AddLocal(local) => steer_locals(rules, std::slice::from_ref(local)),
        _ => {}
    }
}

/// Has packets to local addresses steered.
pub(crate) fn steer_locals(rules: &mut SteeringRules, locals: &[LocalAddress]) {
    for local in locals {
        let ports = rules.translated.entry(local.addr).or_insert((local.first_port, local.last_port));
        *ports = (ports.0.min(local.first_port), ports.1.max(local.last_port));
    }
}

/// Where the packets of a mark's service go.
pub(crate) fn reach(laid_out: &LaidOut, key: ServiceKey) -> BTreeSet<Prefix> {
    match key {
        ServiceKey::Mark { mark, family } => laid_out.reach(mark, family),
        ServiceKey::Address { .. } => BTreeSet::new(),
    }
}

/// Where the replies of a destination come from that are to be translated.
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
    let nat = method == ForwardingMethod::Nat;
    let from = move |protocol| (protocol, Endpoint { port, ..destination });
    protocols.into_iter().filter(move |_| nat).map(from)
}

/// The same as the XDP program is told it, where port 0 is any port.
pub(crate) fn steered_from(
    service: ServiceKey,
    destination: Endpoint,
    method: ForwardingMethod,
) -> impl Iterator<Item = (Protocol, Endpoint)> {
    // Such connections keep their client's port, or take the destination's.
    let any = takes_any_port(service);
    let port = move |port| if any { 0 } else { port };
    replies_from(service, destination, method)
        .map(move |(protocol, from)| (protocol, Endpoint { port: port(from.port), ..from }))
}

/// Whether a service's connections go to more ports than one: by a mark, by port 0, and of FTP, whose data connections
/// go elsewhere (ipvs-behaviour, section 1.1).
fn takes_any_port(service: ServiceKey) -> bool {
    match service {
        ServiceKey::Mark { .. } => true,
        ServiceKey::Address { protocol, endpoint } => {
            endpoint.port == 0 || protocol == Protocol::TCP && endpoint.port == FTP
        }
    }
}

const FTP: u16 = 21;
