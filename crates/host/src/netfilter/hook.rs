//! Netfilter's hooks, and names of protocols in rules.

use xvs_proto::Protocol;

/// A hook at which base chains are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting,
    Input,
}

/// A number that orders the chains of both hooks: packets pass prerouting before input.
pub(super) fn chain_order(hook: Hook, priority: i64) -> i64 {
    match hook {
        Hook::Prerouting => priority,
        // Priorities have 32 bits, so every chain of prerouting comes before.
        Hook::Input => priority + (1 << 40),
    }
}

/// The protocol of a name in a rule.
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
