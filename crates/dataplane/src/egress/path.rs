//! The path to an address: link, next hop and link addresses.

use std::net::IpAddr;

use xvs_proto::LinkId;
use xvs_proto::MacAddr;

use super::{Egress, RouteTo};

/// The path to a destination or client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// By a link to a resolved neighbour.
    To(Hop),
    /// By a link to a neighbour whose link address is not known yet.
    NoNeighbour {
        /// The hop, with a link address of zeros.
        hop: Hop,
        /// The neighbour to resolve.
        next_hop: IpAddr,
    },
    /// This machine itself.
    Local,
    /// There is no route, or its link is down.
    NoRoute,
}

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The link to leave by.
    pub link: LinkId,
    /// The link's own address.
    pub source_mac: MacAddr,
    /// The neighbour's link address.
    pub dest_mac: MacAddr,
    /// The largest packet on this path, in bytes without link header.
    pub mtu: u32,
}

impl Path {
    /// The path to `dest` for a flow with this hash.
    pub fn find(egress: &Egress, dest: IpAddr, flow_hash: u64) -> Self {
        let (link, next_hop) = match egress.route(dest, flow_hash) {
            RouteTo::Local => return Self::Local,
            RouteTo::Unreachable | RouteTo::NoRoute => return Self::NoRoute,
            RouteTo::Via { link, next_hop } => (link, next_hop),
        };
        let Some(info) = egress.link(link).filter(|info| info.up) else { return Self::NoRoute };
        let mtu = egress.mtu(dest, link).unwrap_or(info.mtu);
        let hop = |dest_mac| Hop { link, source_mac: info.mac, dest_mac, mtu };
        match egress.use_neighbour(link, next_hop) {
            None => Self::NoNeighbour { hop: hop(MacAddr::default()), next_hop },
            Some(dest_mac) => Self::To(hop(dest_mac)),
        }
    }

    /// The hop, resolved or not. `None`: no packet leaves.
    pub fn hop(self) -> Option<Hop> {
        match self {
            Self::To(hop) | Self::NoNeighbour { hop, .. } => Some(hop),
            Self::Local | Self::NoRoute => None,
        }
    }
}
