//! Where replies come from that are to be translated, as the XDP program and the data plane are told it.
//!
//! Asked at each change of configuration; pure. Not here: for which destinations (`registry.rs`, `control.rs`).

use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

/// Where the replies of a destination come from that are to be translated.
pub fn replies_from(
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
pub fn steered_from(
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
pub fn takes_any_port(service: ServiceKey) -> bool {
    match service {
        ServiceKey::Mark { .. } => true,
        ServiceKey::Address { protocol, endpoint } => {
            endpoint.port == 0 || protocol == Protocol::TCP && endpoint.port == FTP
        }
    }
}

const FTP: u16 = 21;
