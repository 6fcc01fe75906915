//! Which packets the XDP program steers to the director.
//!
//! Computed by the control thread at every change of configuration; plain values, no system call. Not here: how they stand
//! in the program's maps (`maps.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use xvs_proto::{Endpoint, Prefix, Protocol};

/// Which packets are the director's. Everything else stays with the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SteeringRules {
    /// Packets *to* these are the director's, and so are fragments and ICMP errors to their addresses. Port 0 is every
    /// port.
    pub services: BTreeSet<(Protocol, Endpoint)>,
    /// Packets *from* these are, unless they go to a local address; so are fragments from their addresses. Besides
    /// masqueraded destinations, virtual endpoints whose replies may pass here. Port 0 is every port.
    pub nat_destinations: BTreeSet<(Protocol, Endpoint)>,
    /// Every TCP, UDP, SCTP, AH and ESP packet to these is, and every fragment and ICMP error: what may be marked.
    /// In IPv6 also what comes from these, unless it goes to a local address.
    pub wide: BTreeSet<Prefix>,
    /// Packets to these ports of these addresses are, first and last port: where FULLNAT's replies come to. So are
    /// fragments to the addresses.
    pub translated: BTreeMap<IpAddr, (u16, u16)>,
    /// Where tunnels lead: ICMP errors about packets to these that may be a tunnel's are the director's.
    pub tunnel_ends: BTreeSet<IpAddr>,
    /// Addresses of this machine: what its own programs say to a destination is not a client's connection.
    pub local_addresses: BTreeSet<IpAddr>,
}

impl SteeringRules {
    /// Steers also what `more` steers; its local addresses are not looked at.
    pub fn add(&mut self, more: &Self) {
        self.services.extend(&more.services);
        self.nat_destinations.extend(&more.nat_destinations);
        self.wide.extend(&more.wide);
        self.tunnel_ends.extend(&more.tunnel_ends);
        for (addr, ports) in &more.translated {
            let known = self.translated.entry(*addr).or_insert(*ports);
            *known = spanning(*known, *ports);
        }
    }

    /// Steers no longer what `less` names; its local addresses are not looked at, nor its ports: an address goes whole.
    pub fn subtract(&mut self, less: &Self) {
        less.services.iter().for_each(|service| _ = self.services.remove(service));
        less.nat_destinations.iter().for_each(|from| _ = self.nat_destinations.remove(from));
        less.wide.iter().for_each(|network| _ = self.wide.remove(network));
        less.tunnel_ends.iter().for_each(|end| _ = self.tunnel_ends.remove(end));
        less.translated.keys().for_each(|addr| _ = self.translated.remove(addr));
    }
}

/// The ports of either, and those between.
pub(super) fn spanning(one: (u16, u16), other: (u16, u16)) -> (u16, u16) {
    (one.0.min(other.0), one.1.max(other.1))
}
