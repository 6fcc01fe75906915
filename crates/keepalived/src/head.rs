//! The head of a virtual server: its services, and the endpoints of real servers in them.

use xvs_model::destination::Tunnel;
use xvs_proto::{Endpoint, Family};
use xvs_sched::ForwardingMethod;

use crate::blocks::Block;
use crate::groups::Entry;
use crate::values::{Faults, Method, port};

/// What a `virtual_server` is about.
pub(crate) struct Head {
    /// Its services.
    pub(crate) entries: Vec<Entry>,
    /// Whether they are a group's.
    pub(crate) is_group: bool,
}

/// What keepalived takes if no method is said.
pub(crate) const NAT: Method = (ForwardingMethod::Nat, Tunnel::Ipip);

/// The family that a virtual server has by this server, unless a tunnel leads to it.
pub(crate) fn family(endpoint: Endpoint, method: Option<Method>) -> Option<Family> {
    let is_tunnel = method.is_some_and(|(method, _)| method == ForwardingMethod::Tunnel);
    (!is_tunnel).then_some(endpoint.family())
}

/// An address and perhaps a port.
pub(crate) fn endpoint(block: &Block, faults: &mut Faults) -> Option<Endpoint> {
    let addr = faults.address(block)?;
    let port = port(block.arguments().get(1).map(String::as_str));
    if let Err(why) = &port {
        faults.refuse(block, why);
    }
    Some(Endpoint::new(addr, port.ok()?))
}

/// The endpoint with the port that it has in the services, if that is not another in each; a port that it cannot have
/// is told.
pub(crate) fn in_services(
    written: Endpoint,
    method: ForwardingMethod,
    head: &Head,
    block: &Block,
    faults: &mut Faults,
) -> Endpoint {
    let mut warn = |text: String| faults.warn(&block.place, format!("`{}`: {text}", block.text));
    let is_written = written.port != 0 && !method.masquerades();
    let port = match head.entries[..] {
        [Entry::Address(_, port)] if !head.is_group => {
            if is_written && written.port != port {
                warn(format!("by this method its port is the virtual server's, {port}"));
            }
            if is_written || written.port == 0 { port } else { written.port }
        }
        [Entry::Mark(..)] if !head.is_group && is_written => {
            warn("by this method it takes marked packets at their own port; its own is left out".to_owned());
            0
        }
        _ => {
            let other = |entry: &Entry| !matches!(entry, Entry::Address(_, port) if *port == written.port);
            if is_written && head.entries.iter().any(other) {
                warn("by this method its port is that of each service of the group".to_owned());
            }
            written.port
        }
    };
    Endpoint { port, ..written }
}
