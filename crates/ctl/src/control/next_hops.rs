//! Next hops that the kernel keeps resolved: gateways, and next hops to destinations.

use std::collections::BTreeSet;
use std::mem;
use std::net::IpAddr;

use xvs_dataplane::egress::{Egress, RouteTo};
use xvs_model::config::command::Command;
use xvs_model::objects::Rule;
use xvs_proto::network::{Network, RouteAction, RouteKey};

use super::due::Due;
use super::follow::{Change, Follow};

/// Neighbours, each with the kernel's index of its link.
pub(super) type Neighbours = BTreeSet<(u32, IpAddr)>;

/// The next hops of the director.
#[derive(Default)]
pub(super) struct NextHops {
    gateways: Neighbours,
    /// The next hops that the kernel keeps resolved now.
    resolved: Neighbours,
    /// Destinations whose next hops may be missing in `resolved`.
    unresolved: Due<IpAddr>,
}

impl Follow for NextHops {
    fn follow(&mut self, change: &mut Change<'_>) {
        if let Command::Add(Rule::Destination { endpoint, .. }) = change.command {
            self.unresolved.add(endpoint.addr);
        }
    }
}

impl NextHops {
    /// Notes that destinations were removed.
    pub(super) fn forget(&mut self) {
        self.unresolved = Due::Everything;
    }

    /// Replaces the network. The kernel forgets the neighbours of a link that goes down, so all are entered again.
    pub(super) fn set_network(&mut self, network: &Network) {
        self.gateways = gateways(network);
        self.resolved.clear();
        self.unresolved = Due::Everything;
    }

    /// The next hops to keep resolved; `None`: no change since the last call. `destinations` are the addresses of all
    /// destinations.
    pub(super) fn update(
        &mut self,
        egress: &Egress,
        destinations: impl Iterator<Item = IpAddr>,
    ) -> Option<&Neighbours> {
        let wanted = match mem::take(&mut self.unresolved) {
            Due::These(added) => {
                let added: Neighbours = added.into_iter().flat_map(|addr| towards(addr, egress)).collect();
                if added.is_subset(&self.resolved) {
                    return None;
                }
                &self.resolved | &added
            }
            Due::Everything => self
                .gateways
                .iter()
                .copied()
                .chain(destinations.flat_map(|addr| towards(addr, egress)))
                .collect(),
        };
        let differs = wanted != self.resolved;
        self.resolved = wanted;
        differs.then_some(&self.resolved)
    }
}

/// The interfaces and next hops of packets to an address, in each VRF and outside VRFs.
fn towards(addr: IpAddr, egress: &Egress) -> impl Iterator<Item = (u32, IpAddr)> {
    [None].into_iter().chain(egress.vrfs().iter().copied().map(Some)).filter_map(move |vrf| {
        match egress.route(RouteKey::from(addr).of_vrf(vrf), 0) {
            RouteTo::Via { link, next_hop } => Some((egress.link(link)?.ifindex, next_hop)),
            _ => None,
        }
    })
}

/// Gateways of all routes over links that the director uses.
fn gateways(network: &Network) -> Neighbours {
    network
        .routes
        .iter()
        .filter_map(|route| match &route.action {
            RouteAction::Unicast(hops) => Some(hops),
            RouteAction::Local
            | RouteAction::Broadcast
            | RouteAction::Unreachable
            | RouteAction::Throw
            | RouteAction::Vrf(_) => None,
        })
        .flatten()
        .filter(|hop| network.links.iter().any(|link| link.ifindex == hop.ifindex))
        .filter_map(|hop| Some((hop.ifindex, hop.via?)))
        .collect()
}
