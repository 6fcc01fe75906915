//! Where chains hang, and protocols by their names.

use xvs_proto::Protocol;

/// Where on its way a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting,
    Input,
}

/// One order for chains of both hooks.
pub(super) fn chain_order(hook: Hook, priority: i64) -> i64 {
    match hook {
        Hook::Prerouting => priority,
        // Priorities have 32 bits.
        Hook::Input => priority + (1 << 40),
    }
}

/// Protocols by their names in rules.
pub(super) fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::TCP),
        "udp" => Some(Protocol::UDP),
        "sctp" => Some(Protocol::SCTP),
        "icmp" => Some(Protocol::ICMP),
        "ipip" | "ipencap" => Some(Protocol::IPIP),
        "gre" => Some(Protocol::GRE),
        "esp" => Some(Protocol(50)),
        "ah" => Some(Protocol(51)),
        "icmpv6" | "ipv6-icmp" => Some(Protocol(58)),
        "udplite" => Some(Protocol(136)),
        _ => None,
    }
}
