//! The director's network as the kernel has it: what routes and next hops are computed from.
//!
//! Plain values, built by the control plane from netlink (or by hand in the lab) and turned into the look-up
//! tables of a snapshot by [`super::Egress`]. Nothing here is looked at per packet.

use std::net::IpAddr;

use xvs_proto::{MacAddr, Prefix};

/// Everything that forwarding depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// The interfaces.
    pub links: Vec<Link>,
    /// The routes of the tables local and main.
    pub routes: Vec<Route>,
    /// The resolved neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// An interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's index of it, never 0.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its link address; all zero where it has none.
    pub mac: MacAddr,
    /// The largest packet it sends, in bytes, without link header.
    pub mtu: u32,
    /// Whether it is administratively up and has a carrier.
    pub up: bool,
    /// Its addresses with the length of their prefix, in the kernel's order (primary first).
    pub addresses: Vec<(IpAddr, u8)>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it leads to.
    pub dest: Prefix,
    /// Preference among routes to the same destination: the lowest wins.
    pub metric: u32,
    /// What to do with packets that it matches.
    pub action: RouteAction,
    /// The source address that the kernel prefers for packets of its own.
    pub preferred_source: Option<IpAddr>,
}

/// What a route does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteAction {
    /// Delivers to this machine (table local, types local and broadcast).
    Local,
    /// Sends on by one of these, chosen by flow.
    Unicast(Vec<Hop>),
    /// Refuses: unreachable, prohibit and blackhole alike.
    Unreachable,
}

/// A way that a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The interface.
    pub ifindex: u32,
    /// The gateway; `None` where the destination is itself on the link.
    pub via: Option<IpAddr>,
    /// Its share among its siblings; at least 1.
    pub weight: u32,
}

/// A resolved neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface that it is reached by.
    pub ifindex: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its link address.
    pub mac: MacAddr,
}
