//! Where a packet leaves: routes, next hops and their link addresses, read-only.
//!
//! [`Egress`] is built from a [`Network`] whenever that changes, becomes part of a snapshot and is asked for each
//! packet that is not bound to a known next hop. It answers as the kernel would with its three default rules: table
//! local before table main, longest prefix, lowest metric, among several ways one by flow.
//! Cost: a route is one to four loads (IPv6: sixteen at most), a neighbour one hash probe; nothing allocates.
//! Not here: following the kernel, and resolving.

use std::net::IpAddr;

use hashbrown::HashMap;
use xvs_proto::LinkId;
use xvs_proto::{Family, MacAddr};

use self::routes::{Action, Routes, Target, aligned};
use xvs_proto::network::{Link, Network, RuledMark};

mod path;
pub mod path_mtu;
mod routes;
mod unresolved;

pub use self::path::{Hop, Path};
pub use self::unresolved::Unresolved;

/// The look-up tables of one [`Network`].
#[derive(Debug, Default)]
pub struct Egress {
    /// By [`LinkId`].
    links: Vec<Option<LinkInfo>>,
    by_ifindex: HashMap<u32, LinkId>,
    /// The VLANs over each link.
    vlans: HashMap<(LinkId, u16), LinkId>,
    routes: Routes,
    neighbours: HashMap<NeighbourKey, MacAddr>,
    ruled_marks: Vec<RuledMark>,
}

/// What the data plane knows of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// The kernel's index of it.
    pub ifindex: u32,
    /// Its link address; all zero where it has none.
    pub mac: MacAddr,
    /// The largest packet it sends, in bytes, without link header.
    pub mtu: u32,
    /// Whether it is administratively up and has a carrier.
    pub up: bool,
    /// Its name.
    pub name: String,
    /// The link below it and the number in its tag, if it is a VLAN.
    vlan: Option<(LinkId, u16)>,
    /// Its addresses with their prefix lengths, primary first: what [`Egress::source_for`] chooses from.
    addresses: Vec<(IpAddr, u8)>,
}

/// Where a packet to some destination goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTo {
    /// To this machine.
    Local,
    /// Out by a link.
    Via {
        /// The link.
        link: LinkId,
        /// Whose link address it is sent to: the gateway, or the destination itself.
        next_hop: IpAddr,
    },
    /// A route refuses it (unreachable, prohibit, blackhole).
    Unreachable,
    /// No route matches it.
    NoRoute,
}

impl Egress {
    /// The tables of this network. A way by a link that is not among its links is left out; a route with no way
    /// left refuses what it matches: the kernel would send that by a link that is not ours, and it must not leave by
    /// another.
    pub fn build(network: &Network) -> Self {
        let by_ifindex: HashMap<u32, LinkId> =
            network.links.iter().map(|link| (link.ifindex, link.id)).collect();
        let mut links = Vec::new();
        for link in &network.links {
            let place = usize::from(link.id.0);
            if links.len() <= place {
                links.resize(place + 1, None);
            }
            let vlan = link.vlan.and_then(|vlan| Some((*by_ifindex.get(&vlan.over)?, vlan.id)));
            links[place] = Some(LinkInfo::of(link, vlan));
        }
        let vlans = network.links.iter().filter_map(|link| {
            let vlan = links[usize::from(link.id.0)].as_ref()?.vlan?;
            Some((vlan, link.id))
        });
        let vlans = vlans.collect();
        let routes = Routes::build(&network.routes, &by_ifindex);
        let neighbours = network
            .neighbours
            .iter()
            .filter_map(|known| {
                let link = *by_ifindex.get(&known.ifindex)?;
                Some((neighbour_key(link, known.addr), known.mac))
            })
            .collect();
        Self { links, by_ifindex, vlans, routes, neighbours, ruled_marks: network.ruled_marks.clone() }
    }

    /// Where a packet to `dest` goes; whether that link is up, [`Self::link`] tells.
    ///
    /// Among the ways of a multipath route `flow_hash` chooses, each in proportion to its weight: the high half of
    /// its bits counts, so the low half may have chosen before.
    pub fn route(&self, dest: IpAddr, flow_hash: u64) -> RouteTo {
        match self.target(dest) {
            None => RouteTo::NoRoute,
            Some(target) => match &target.action {
                Action::Local | Action::Broadcast => RouteTo::Local,
                Action::Unreachable => RouteTo::Unreachable,
                Action::Send(hops) => {
                    let hop = hops.pick(flow_hash);
                    RouteTo::Via { link: hop.link, next_hop: hop.via.unwrap_or(dest) }
                }
            },
        }
    }

    /// Whether a policy rule of the kernel leads packets of this mark elsewhere: to this machine, where somebody wants
    /// them served whatever their address is.
    pub fn delivers_mark(&self, mark: u32) -> bool {
        self.ruled_marks.iter().any(|rule| mark & rule.mask == rule.mark)
    }

    /// The link address of a neighbour; `None` where it is not resolved.
    pub fn neighbour(&self, link: LinkId, addr: IpAddr) -> Option<MacAddr> {
        self.neighbours.get(&neighbour_key(link, addr)).copied()
    }

    /// The link of this id; `None` if it is gone, which a frame received before the change may still ask.
    pub fn link(&self, id: LinkId) -> Option<&LinkInfo> {
        self.links.get(usize::from(id.0))?.as_ref()
    }

    /// The link whose frames carry this tag on `over`; a tag of 0 carries a priority only, and changes no link.
    pub fn untagged(&self, over: LinkId, vlan: u16) -> Option<LinkId> {
        if vlan == 0 { Some(over) } else { self.vlans.get(&(over, vlan)).copied() }
    }

    /// The link below a VLAN and the number in its tag; `None` for any other link.
    pub fn tag(&self, link: LinkId) -> Option<(LinkId, u16)> {
        // Most machines have none, and this is asked for each packet.
        if self.vlans.is_empty() { None } else { self.link(link)?.vlan }
    }

    /// The link with this index of the kernel's.
    pub fn link_by_ifindex(&self, ifindex: u32) -> Option<LinkId> {
        self.by_ifindex.get(&ifindex).copied()
    }

    /// Every link with its id, by id.
    pub fn links(&self) -> impl Iterator<Item = (LinkId, &LinkInfo)> {
        (0..=u16::MAX).map(LinkId).zip(&self.links).filter_map(|(id, link)| Some((id, link.as_ref()?)))
    }

    /// The largest packet to `dest` that goes out by `link`, in bytes without link header: the link's, or less
    /// where the route says so. `None` if the link is gone. What the kernel has learned from ICMP is not known here.
    pub fn mtu(&self, dest: IpAddr, link: LinkId) -> Option<u32> {
        let most = self.link(link)?.mtu;
        Some(self.target(dest).and_then(|target| target.mtu).map_or(most, |mtu| mtu.min(most)))
    }

    /// Whether the kernel would deliver a packet to `addr` to this machine.
    pub fn is_local(&self, addr: IpAddr) -> bool {
        self.target(addr).is_some_and(|target| matches!(target.action, Action::Local | Action::Broadcast))
    }

    /// Whether a packet to `addr` is for everybody on a link of this machine.
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        self.target(addr).is_some_and(|target| matches!(target.action, Action::Broadcast))
    }

    /// The source address with which the director itself would send to `dest` by `link`; `None` if it has none
    /// of that family.
    ///
    /// The route's preferred source comes first. Else, for IPv4, the link's first address in the network of the
    /// gateway, its first one, and the first of another link (kernel `net/ipv4/devinet.c`, `inet_select_addr`);
    /// for IPv6 the link's address of the same scope with the longest common prefix, and then those of other
    /// links (RFC 6724 §5, rules 2, 5 and 8).
    pub fn source_for(&self, dest: IpAddr, link: LinkId) -> Option<IpAddr> {
        let target = self.target(dest);
        if let Some(source) = target.and_then(|target| target.preferred_source) {
            return Some(source);
        }
        let on_link = self.link(link).map_or(&[][..], |info| &info.addresses);
        let elsewhere = self.links().filter(|&(id, _)| id != link);
        let elsewhere =
            elsewhere.flat_map(|(_, info)| &info.addresses).filter(|(addr, _)| !addr.is_loopback());
        match dest {
            IpAddr::V4(_) => {
                let gateway = target.and_then(|target| target.gateway_on(link));
                let of_family = || on_link.iter().filter(|(addr, _)| addr.is_ipv4());
                let beside =
                    |&&(addr, len): &&(IpAddr, u8)| gateway.is_some_and(|gw| common(addr, gw) >= len);
                let found = of_family().find(beside).or_else(|| of_family().next());
                found
                    .or_else(|| elsewhere.into_iter().find(|(addr, _)| addr.is_ipv4()))
                    .map(|&(addr, _)| addr)
            }
            IpAddr::V6(_) => best_v6(on_link.iter(), dest).or_else(|| best_v6(elsewhere, dest)),
        }
    }

    fn target(&self, dest: IpAddr) -> Option<&Target> {
        let (family, bits) = aligned(dest);
        self.routes.find(family, bits)
    }
}

impl LinkInfo {
    fn of(link: &Link, vlan: Option<(LinkId, u16)>) -> Self {
        Self {
            ifindex: link.ifindex,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            name: link.name.clone(),
            vlan,
            addresses: link.addresses.clone(),
        }
    }
}

/// Link and family in one word, and the address: hashed in two steps.
type NeighbourKey = (u128, u32);

fn neighbour_key(link: LinkId, addr: IpAddr) -> NeighbourKey {
    let (family, bits) = aligned(addr);
    (bits, u32::from(link.0) << 1 | u32::from(family == Family::V6))
}

/// How many leading bits two addresses share; 0 across families.
fn common(a: IpAddr, b: IpAddr) -> u8 {
    let ((family, a), (other, b)) = (aligned(a), aligned(b));
    let width = if family == Family::V4 { 32 } else { 128 };
    if family == other { (a ^ b).leading_zeros().min(width) as u8 } else { 0 }
}

fn best_v6<'a>(candidates: impl Iterator<Item = &'a (IpAddr, u8)>, dest: IpAddr) -> Option<IpAddr> {
    let link_local = |addr: IpAddr| matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let mut best: Option<(u8, IpAddr)> = None;
    for &(addr, len) in candidates {
        let fits = addr.is_ipv6() && !addr.is_loopback() && link_local(addr) == link_local(dest);
        let shared = common(addr, dest).min(len);
        if fits && best.is_none_or(|(most, _)| shared > most) {
            best = Some((shared, addr));
        }
    }
    best.map(|(_, addr)| addr)
}

#[cfg(test)]
mod tests;
