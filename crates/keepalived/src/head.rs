//! The head of a virtual server, and the endpoints of its real servers in its services.

use xvs_model::config::destination::Tunnel;
use xvs_proto::{Endpoint, Family};
use xvs_sched::ForwardingMethod;

use crate::blocks::Block;
use crate::groups::Entry;
use crate::values::{Faults, Method, port};

/// The head of a `virtual_server`.
pub(crate) struct Head {
    /// The services of the virtual server.
    pub(crate) entries: Vec<Entry>,
    /// Whether they belong to a group.
    pub(crate) is_group: bool,
}

/// The default method of keepalived.
pub(crate) const NAT: Method = (ForwardingMethod::Nat, Tunnel::Ipip);

/// The family that a server implies for its virtual server; `None` with method TUN, which can cross families.
pub(crate) fn family(endpoint: Endpoint, method: Option<Method>) -> Option<Family> {
    let is_tunnel = method.is_some_and(|(method, _)| method == ForwardingMethod::Tunnel);
    (!is_tunnel).then_some(endpoint.family())
}

/// Reads an address and an optional port.
pub(crate) fn endpoint(block: &Block, faults: &mut Faults) -> Option<Endpoint> {
    let addr = faults.address(block)?;
    port(block.arguments().get(1).map(String::as_str))
        .inspect_err(|why| faults.refuse(block, why))
        .map(|port| Endpoint::new(addr, port))
        .ok()
}

/// The endpoint of a server in the services. In a group, whose services may differ in port, the server keeps the
/// written port. Warns about a port that the method cannot use.
pub(crate) fn in_services(
    written: Endpoint,
    method: ForwardingMethod,
    head: &Head,
    block: &Block,
    faults: &mut Faults,
) -> Endpoint {
    let is_written = written.port != 0 && !method.masquerades();
    let port = match head.entries[..] {
        [Entry::Address(_, port)] if !head.is_group => {
            if is_written && written.port != port {
                faults.warn_of(block, format!("with this method its port is the virtual server's, {port}"));
            }
            if is_written || written.port == 0 { port } else { written.port }
        }
        [Entry::Mark(..)] if !head.is_group && is_written => {
            faults.warn_of(
                block,
                "with this method it gets marked packets at their own port; its port is left out",
            );
            0
        }
        _ => {
            let has_other = !head
                .entries
                .iter()
                .all(|entry| matches!(entry, Entry::Address(_, port) if *port == written.port));
            if is_written && has_other {
                faults.warn_of(block, "with this method its port is that of each service of the group");
            }
            written.port
        }
    };
    Endpoint { port, ..written }
}
