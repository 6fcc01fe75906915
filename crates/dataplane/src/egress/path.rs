//! The path to an address: link, next hop and link addresses.

use std::net::IpAddr;

use xvs_proto::network::RouteKey;

use super::Egress;
use super::next_hop::{Gateway, Hop};
use super::routes::{Action, Target};

/// The path to a destination or client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Through a link to a resolved neighbour.
    To(Hop),
    /// On a link to a neighbour whose link address is not known yet.
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

impl Path {
    /// The path of packets for a flow with this hash.
    #[inline]
    pub fn find(egress: &Egress, key: impl Into<RouteKey>, flow_hash: u64) -> Self {
        let key = key.into();
        Self::find_by(egress, key.dest, flow_hash, || Some(key)).unwrap_or(Self::NoRoute)
    }

    /// The path to `dest`. `key`, called only if a policy rule examines more than the address, returns the complete
    /// key. `None` if `key` returned `None`.
    #[inline]
    pub(crate) fn find_by(
        egress: &Egress,
        dest: IpAddr,
        flow_hash: u64,
        key: impl FnOnce() -> Option<RouteKey>,
    ) -> Option<Self> {
        let target = egress.routes.find(dest, key)?;
        Some(target.map_or(Self::NoRoute, |target| Self::by(egress, target, dest, flow_hash)))
    }

    #[inline]
    fn by(egress: &Egress, target: &Target, dest: IpAddr, flow_hash: u64) -> Self {
        let next = match &target.action {
            Action::Local | Action::Broadcast => return Self::Local,
            Action::Unreachable => return Self::NoRoute,
            Action::Send(hops) => hops.pick(flow_hash),
        };
        match &next.gateway {
            Some(Gateway { hop, used }) => {
                used.mark();
                Self::To(*hop)
            }
            None => {
                let (path, used) = egress.resolve(target, next.link, next.via.unwrap_or(dest));
                used.inspect(|used| used.mark());
                path
            }
        }
    }

    /// The hop, resolved or not. `None` if no packet leaves.
    pub fn hop(self) -> Option<Hop> {
        match self {
            Self::To(hop) | Self::NoNeighbour { hop, .. } => Some(hop),
            Self::Local | Self::NoRoute => None,
        }
    }
}
