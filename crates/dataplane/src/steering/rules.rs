//! The rules by which the XDP program steers packets to the director.
//!
//! Computed by the control thread at every configuration change. Plain values, no system call. `maps.rs` encodes them
//! for the program's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use xvs_proto::{Endpoint, Prefix, Protocol};

/// The steered traffic. All other packets go to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SteeringRules {
    /// Services: packets *to* these endpoints are steered, and so are fragments and ICMP errors to their addresses.
    /// Port 0 means every port.
    pub services: BTreeSet<(Protocol, Endpoint)>,
    /// Packets *from* these endpoints are steered, unless they go to a local address; so are fragments from their
    /// addresses. They are masqueraded destinations, and virtual endpoints whose replies may pass through the director.
    /// Port 0 means every port.
    pub nat_destinations: BTreeSet<(Protocol, Endpoint)>,
    /// Networks with packets that may be marked: every TCP, UDP, SCTP, AH and ESP packet, fragment and ICMP error to
    /// these is steered. IPv6 packets from these are steered, too, unless they go to a local address.
    pub wide: BTreeSet<Prefix>,
    /// The first and last local port of FULLNAT for each address: replies to these ports are steered, and so are
    /// fragments to the addresses.
    pub translated: BTreeMap<IpAddr, (u16, u16)>,
    /// The local endpoints of probes: whole TCP packets to these are steered.
    pub probe_sources: BTreeSet<Endpoint>,
    /// Services that masquerade: packets that this machine itself sends *to* these endpoints through `lo` are
    /// redirected to the director.
    pub own_clients: BTreeSet<(Protocol, Endpoint)>,
    /// The ends of tunnels: ICMP errors about packets to these that may be tunnelled are steered.
    pub tunnel_ends: BTreeSet<IpAddr>,
    /// The addresses of this machine. Connections of its own programs to a destination are not steered.
    pub local_addresses: BTreeSet<IpAddr>,
}

impl SteeringRules {
    /// Adds the traffic that `more` steers. Ignores its local addresses.
    pub fn add(&mut self, more: &Self) {
        self.services.extend(&more.services);
        self.nat_destinations.extend(&more.nat_destinations);
        self.wide.extend(&more.wide);
        self.probe_sources.extend(&more.probe_sources);
        self.own_clients.extend(&more.own_clients);
        self.tunnel_ends.extend(&more.tunnel_ends);
        for (addr, ports) in &more.translated {
            let known = self.translated.entry(*addr).or_insert(*ports);
            *known = spanning(*known, *ports);
        }
    }

    /// Removes the traffic that `less` names. Ignores its local addresses and its ports: the whole address is removed.
    pub fn subtract(&mut self, less: &Self) {
        less.services.iter().for_each(|service| _ = self.services.remove(service));
        less.nat_destinations.iter().for_each(|from| _ = self.nat_destinations.remove(from));
        less.wide.iter().for_each(|network| _ = self.wide.remove(network));
        less.probe_sources.iter().for_each(|source| _ = self.probe_sources.remove(source));
        less.own_clients.iter().for_each(|service| _ = self.own_clients.remove(service));
        less.tunnel_ends.iter().for_each(|end| _ = self.tunnel_ends.remove(end));
        less.translated.keys().for_each(|addr| _ = self.translated.remove(addr));
    }
}

/// A sender on this machine whose packets are redirected to the director.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnSender {
    /// Real servers, by an attached interface.
    Server,
    /// Clients, by `lo`.
    Client,
}

/// The range that contains both ranges of ports.
pub(super) fn spanning(one: (u16, u16), other: (u16, u16)) -> (u16, u16) {
    (one.0.min(other.0), one.1.max(other.1))
}
