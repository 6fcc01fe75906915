//! Egress: routes, next hops and their link addresses, read-only.
//!
//! [`Egress`] is built from a [`Network`] whenever that changes, and is part of a snapshot. It is consulted for each
//! packet without a known next hop. It follows the kernel's policy rules in their order, by default table local before
//! table main. The longest prefix in a table wins, then the lowest metric. The flow's hash chooses among several next
//! hops. Packets received on an interface in a VRF are looked up in that VRF. Cost: with the default rules a route is
//! one to four loads (IPv6: at most sixteen), a neighbour one hash probe; nothing is allocated.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hashbrown::HashMap;
use xvs_proto::{Family, LinkId, MacAddr};

use self::next_hop::{Gateway, Used};
use self::routes::{Action, Routes, Target, aligned};
use xvs_proto::network::{
    Link, LinkKind, Neighbour, Network, PolicyAction, PolicyRuleMark, RouteKey, Rule, Table,
};

mod next_hop;
mod path;
pub mod path_mtu;
mod routes;
mod tunnel;

pub use self::next_hop::{Hop, Unresolved, UnresolvedHop};
pub use self::path::Path;
pub use self::tunnel::{Encapsulation, Tunnel};

/// The look-up tables of one [`Network`].
#[derive(Debug, Default)]
pub struct Egress {
    /// Indexed by [`LinkId`].
    links: Vec<Option<LinkInfo>>,
    by_ifindex: HashMap<u32, LinkId>,
    /// The VLANs over each link.
    vlans: HashMap<(LinkId, u16), LinkId>,
    /// Whether any link is a VLAN or a bond.
    is_layered: bool,
    has_bonds: bool,
    /// The VRFs of the links, each by its table.
    vrfs: Box<[Table]>,
    routes: Routes,
    neighbours: HashMap<NeighbourKey, Known>,
    rules: Vec<Rule>,
    /// Whether any of the rules has a mark.
    by_mark: bool,
    policy_rule_marks: Vec<PolicyRuleMark>,
}

/// A resolved neighbour.
#[derive(Debug)]
struct Known {
    neighbour: Neighbour,
    used: Used,
}

/// The properties of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// The kernel's index of the interface.
    pub ifindex: u32,
    /// Link address; all zero if the link has none.
    pub mac: MacAddr,
    /// The largest packet without link header, in bytes.
    pub mtu: u32,
    /// Whether the link is administratively up and has a carrier.
    pub up: bool,
    /// Whether the link's bond uses it; true for a link that is not a member of a bond.
    pub active: bool,
    /// Whether packets received on the link may have partial checksums.
    pub partial_checksums: bool,
    /// Whether the XDP program may forward packets that arrive or leave on the link (offload).
    pub offloads: bool,
    /// Whether the program runs in generic mode.
    pub generic: bool,
    /// Whether the link accepts frames that the XDP program redirects to it.
    pub takes_redirected: bool,
    /// The interface name.
    pub name: String,
    /// The link or links that carry the frames.
    below: Below,
    /// The link whose frames this one carries: itself, or the bond of which it is an active member.
    above: LinkId,
    /// The table of the VRF that it is a member of.
    pub vrf: Option<Table>,
    /// The link's addresses with their prefix lengths, primary first. [`Egress::source_for`] chooses from them.
    addresses: Vec<(IpAddr, u8)>,
}

/// The links that carry the frames of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Below {
    /// The interface itself.
    Nothing,
    /// Another link, on which the frames have this VLAN's tag.
    Vlan(LinkId, u16),
    /// The active members of a bond, in order of their ids.
    Bond(Box<[LinkId]>),
}

/// The result of a route look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTo {
    /// The packet is delivered to this machine.
    Local,
    /// The packet leaves by a link.
    Via {
        /// The link.
        link: LinkId,
        /// The neighbour to which the packet is sent: the gateway, or the destination itself.
        next_hop: IpAddr,
    },
    /// A route refuses the packet (unreachable, prohibit, blackhole).
    Unreachable,
    /// No route matches it.
    NoRoute,
}

impl Egress {
    /// Builds the tables for this network. A next hop on a link that is not in `network.links` is left out. A route
    /// without a remaining next hop refuses the packets that it matches: the kernel would send them on a link that xvs
    /// does not use, and they must not leave on another.
    pub fn build(network: &Network) -> Self {
        let by_ifindex: HashMap<u32, LinkId> =
            network.links.iter().map(|link| (link.ifindex, link.id)).collect();
        let mut links = Vec::new();
        for link in &network.links {
            let place = usize::from(link.id.0);
            if links.len() <= place {
                links.resize(place + 1, None);
            }
            links[place] = Some(LinkInfo::of(link, network, &by_ifindex));
        }
        let vrfs: BTreeSet<_> = network.links.iter().filter_map(|link| link.vrf).collect();
        let neighbours = network
            .neighbours
            .iter()
            .filter_map(|known| {
                let key = neighbour_key(*by_ifindex.get(&known.ifindex)?, known.addr);
                Some((key, Known { neighbour: *known, used: Used::default() }))
            })
            .collect();
        let mut routes = Routes::build(network, &by_ifindex);
        let egress = Self {
            vlans: network
                .links
                .iter()
                .filter_map(|link| match links[usize::from(link.id.0)].as_ref()?.below {
                    Below::Vlan(over, vlan) => Some(((over, vlan), link.id)),
                    _ => None,
                })
                .collect(),
            is_layered: links.iter().flatten().any(|link| link.below != Below::Nothing),
            has_bonds: links.iter().flatten().any(|link| matches!(link.below, Below::Bond(_))),
            links,
            routes: Routes::default(),
            by_ifindex,
            vrfs: vrfs.into_iter().collect(),
            neighbours,
            rules: network.rules.clone(),
            by_mark: network.rules.iter().any(|rule| rule.mark.is_some()),
            policy_rule_marks: network.policy_rule_marks.clone(),
        };
        routes.find_gateways(|target, link, gateway| match egress.resolve(target, link, gateway) {
            (Path::To(hop), Some(used)) => Some(Gateway { hop, used: used.clone() }),
            _ => None,
        });
        Self { routes, ..egress }
    }

    /// The route of a packet. [`Self::link`] tells whether its link is up.
    ///
    /// `flow_hash` chooses among the next hops of a multipath route, each in proportion to its weight. Only the upper
    /// half of the hash is used, so the lower half may have been used for another choice.
    pub fn route(&self, key: impl Into<RouteKey>, flow_hash: u64) -> RouteTo {
        let key = key.into();
        match self.target(key) {
            None => RouteTo::NoRoute,
            Some(target) => match &target.action {
                Action::Local | Action::Broadcast => RouteTo::Local,
                Action::Unreachable => RouteTo::Unreachable,
                Action::Send(hops) => {
                    let hop = hops.pick(flow_hash);
                    RouteTo::Via { link: hop.link, next_hop: hop.via.unwrap_or(key.dest) }
                }
            },
        }
    }

    /// The policy rule that chooses a packet's route or refuses the packet. `None` if no rule distinguishes packets to
    /// the same address, or no table has a route.
    pub fn rule_of(&self, key: RouteKey) -> Option<&Rule> {
        let found = self.target(key).filter(|_| self.routes.has_steps(Family::of(key.dest)))?;
        self.rules.iter().filter(|rule| rule.matches(&key)).find(|rule| match rule.action {
            PolicyAction::Lookup(table) => found.table == Some(table),
            PolicyAction::Refuse => found.table.is_none(),
        })
    }

    /// The VRF of the packets received on this link or on its own end, by the VRF's table.
    #[inline]
    pub fn vrf(&self, link: LinkId) -> Option<Table> {
        // Most machines have none, and this runs for each packet.
        if self.vrfs.is_empty() { None } else { self.link(link.wire())?.vrf }
    }

    /// The VRFs of the links, each by its table.
    pub fn vrfs(&self) -> &[Table] {
        &self.vrfs
    }

    /// The VRF in which an address belongs to this machine; `None` if it does so outside any VRF. For the director's
    /// own packets from a virtual address.
    pub fn vrf_of_address(&self, addr: IpAddr) -> Option<Table> {
        self.vrfs
            .iter()
            .copied()
            .filter(|_| !self.is_local(addr))
            .find(|vrf| self.is_local(RouteKey::from(addr).of_vrf(Some(*vrf))))
    }

    /// A link in a VRF, or in none, for the director's own packets that are forwarded as if received there.
    pub fn link_in(&self, vrf: Option<Table>) -> LinkId {
        self.links().find(|(_, info)| info.vrf == vrf).map_or(LinkId(0), |(link, _)| link)
    }

    /// Whether the mark of a packet may choose its route.
    pub fn routes_by_mark(&self) -> bool {
        self.by_mark
    }

    /// Whether a policy rule of the kernel delivers packets with this mark to this machine, whatever their address.
    pub fn delivers_mark(&self, mark: u32) -> bool {
        self.policy_rule_marks.iter().any(|rule| mark & rule.mask == rule.mark)
    }

    /// Whether packets that had a path before have the same one now: only neighbours on links were added or removed.
    /// Cost: a pass over all routes and neighbours.
    pub(crate) fn keeps_paths_of(&self, before: &Self) -> bool {
        (&self.links, &self.rules, &self.policy_rule_marks)
            == (&before.links, &before.rules, &before.policy_rule_marks)
            && !before.neighbours.iter().any(|(key, known)| {
                let now = self.neighbours.get(key);
                now.is_some_and(|now| now.neighbour.mac != known.neighbour.mac)
            })
            && self.routes == before.routes
    }

    /// The link address of a neighbour; `None` if it is not resolved.
    pub fn neighbour(&self, link: LinkId, addr: IpAddr) -> Option<MacAddr> {
        self.neighbours.get(&neighbour_key(link, addr)).map(|known| known.neighbour.mac)
    }

    /// The neighbours, by interface index and address, to which packets were sent since the last call.
    pub fn take_used(&self) -> impl Iterator<Item = (u32, IpAddr)> + '_ {
        self.neighbours
            .values()
            .filter(|known| known.used.take())
            .map(|known| (known.neighbour.ifindex, known.neighbour.addr))
    }

    /// The link with this id; `None` if it was removed. A frame that was received before may still refer to it.
    pub fn link(&self, id: LinkId) -> Option<&LinkInfo> {
        self.links.get(usize::from(id.0))?.as_ref()
    }

    /// The name of a link or of the link to which an own end belongs; a number if it was removed.
    pub fn name_of(&self, link: LinkId) -> String {
        match self.link(link.wire()) {
            Some(info) => info.name.clone(),
            None if link == LinkId::LOOPBACK => "lo".to_owned(),
            None => format!("link {}", link.0),
        }
    }

    /// The link whose frames have this tag on `over`. A tag of 0 carries only a priority and means `over` itself.
    pub fn untagged(&self, over: LinkId, vlan: u16) -> Option<LinkId> {
        if vlan == 0 { Some(over) } else { self.vlans.get(&(over, vlan)).copied() }
    }

    /// The link below a VLAN, and its VLAN ID; `None` for any other link.
    pub fn tag(&self, link: LinkId) -> Option<(LinkId, u16)> {
        match self.link(link)?.below {
            Below::Vlan(over, vlan) => Some((over, vlan)),
            _ => None,
        }
    }

    /// Whether another link carries the frames of this one: it is a VLAN or a bond.
    pub fn is_layered(&self, link: LinkId) -> bool {
        // Most machines have neither, and this runs for each packet.
        self.is_layered && self.link(link).is_some_and(|link| link.below != Below::Nothing)
    }

    /// Whether any link is a bond.
    pub fn has_bonds(&self) -> bool {
        self.has_bonds
    }

    /// The active members of a bond; `None` for any other link.
    pub fn members(&self, link: LinkId) -> Option<&[LinkId]> {
        match &self.link(link)?.below {
            Below::Bond(members) => Some(members),
            _ => None,
        }
    }

    /// The link whose frames this interface receives: itself, or the bond of which it is an active member. For an own
    /// end, the own end of that link.
    pub fn above(&self, link: LinkId) -> LinkId {
        let above = self.link(link.wire()).map_or(link.wire(), |info| info.above);
        if link.is_own() { above.own() } else { above }
    }

    /// The link with this index of the kernel.
    pub fn link_by_ifindex(&self, ifindex: u32) -> Option<LinkId> {
        self.by_ifindex.get(&ifindex).copied()
    }

    /// All links with their ids, in order of their ids.
    pub fn links(&self) -> impl Iterator<Item = (LinkId, &LinkInfo)> {
        (0..=u16::MAX).map(LinkId).zip(&self.links).filter_map(|(id, link)| Some((id, link.as_ref()?)))
    }

    /// The largest packet to `dest` that may leave on `link`, in bytes without link header: the link's MTU, or less if
    /// the route has a smaller one. `None` if the link was removed. Path MTUs that the kernel has learned from ICMP are
    /// not included.
    pub fn mtu(&self, dest: impl Into<RouteKey>, link: LinkId) -> Option<u32> {
        let most = self.link(link)?.mtu;
        Some(self.target(dest.into()).map_or(most, |target| target.mtu_by(most)))
    }

    /// Whether the kernel would deliver a packet to this machine.
    pub fn is_local(&self, dest: impl Into<RouteKey>) -> bool {
        self.target(dest.into())
            .is_some_and(|target| matches!(target.action, Action::Local | Action::Broadcast))
    }

    /// Whether an address belongs to this machine, in any VRF or in none.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.is_local(addr) || self.vrf_of_address(addr).is_some()
    }

    /// Whether two hosts are in one network on a link, so that their packets to each other need no router.
    pub fn are_neighbours(&self, one: IpAddr, other: IpAddr) -> bool {
        [None]
            .into_iter()
            .chain(self.vrfs.iter().copied().map(Some))
            .any(|vrf| self.are_neighbours_in(vrf, one, other))
    }

    fn are_neighbours_in(&self, vrf: Option<Table>, one: IpAddr, other: IpAddr) -> bool {
        let Some(link) = self.link_to(vrf, one).filter(|link| self.link_to(vrf, other) == Some(*link)) else {
            return false;
        };
        self.link(link)
            .into_iter()
            .flat_map(|info| &info.addresses)
            .any(|&(addr, len)| common(addr, one) >= len && common(addr, other) >= len)
    }

    /// The link on which packets in a VRF, or in none, reach a host without a router.
    fn link_to(&self, vrf: Option<Table>, host: IpAddr) -> Option<LinkId> {
        match self.route(RouteKey::from(host).of_vrf(vrf), 0) {
            RouteTo::Via { link, next_hop } if next_hop == host => Some(link),
            _ => None,
        }
    }

    /// Whether a packet is sent to a broadcast address of one of this machine's links.
    pub fn is_broadcast(&self, dest: impl Into<RouteKey>) -> bool {
        self.target(dest.into()).is_some_and(|target| matches!(target.action, Action::Broadcast))
    }

    /// The source address that the director itself uses for packets to `dest` on `link`; `None` if it has none in that
    /// family.
    ///
    /// The route's preferred source comes first. Otherwise, for IPv4: the link's first address in the network of the
    /// gateway, then the link's first address, then the first address of another link (kernel `net/ipv4/devinet.c`,
    /// `inet_select_addr`). For IPv6: the link's address with the same scope and the longest common prefix, then those
    /// of other links (RFC 6724 §5, rules 2, 5 and 8). Other links are those in the same VRF.
    pub fn source_for(&self, dest: impl Into<RouteKey>, link: LinkId) -> Option<IpAddr> {
        let key = dest.into();
        let dest = key.dest;
        let target = self.target(key);
        if let Some(source) = target.and_then(|target| target.preferred_source) {
            return Some(source);
        }
        let on_link = self.link(link).map_or(&[][..], |info| &info.addresses);
        let vrf = self.vrf(link);
        let elsewhere = self
            .links()
            .filter(|&(id, info)| id != link && info.vrf == vrf)
            .flat_map(|(_, info)| &info.addresses)
            .filter(|(addr, _)| !addr.is_loopback());
        match dest {
            IpAddr::V4(_) => {
                let gateway = target.and_then(|target| target.gateway_on(link));
                let mut of_family = on_link.iter().filter(|(addr, _)| addr.is_ipv4());
                let beside = of_family
                    .clone()
                    .find(|&&(addr, len)| gateway.is_some_and(|gateway| common(addr, gateway) >= len));
                beside
                    .or_else(|| of_family.next())
                    .or_else(|| elsewhere.into_iter().find(|(addr, _)| addr.is_ipv4()))
                    .map(|&(addr, _)| addr)
            }
            IpAddr::V6(_) => best_v6(on_link.iter(), dest).or_else(|| best_v6(elsewhere, dest)),
        }
    }

    /// The outer headers of tunnels to this address.
    pub fn tunnel_to(&self, dest: impl Into<RouteKey>, encapsulation: Encapsulation) -> Tunnel {
        let dest = dest.into();
        let source = match self.route(dest, 0) {
            RouteTo::Via { link, .. } => self.source_for(dest, link),
            _ => None,
        };
        Tunnel { source, encapsulation }
    }

    /// An address of this family on the link that the route to `dest` uses, other than those in `excluded`: that of
    /// [`Self::source_for`] if possible, otherwise the link's first one.
    pub fn source_of_family(
        &self,
        dest: impl Into<RouteKey>,
        family: Family,
        excluded: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let dest = dest.into();
        let RouteTo::Via { link, .. } = self.route(dest, 0) else { return None };
        let on_link = self.link(link).into_iter().flat_map(|info| &info.addresses).map(|(addr, _)| *addr);
        self.source_for(dest, link).into_iter().chain(on_link).find(|addr| {
            Family::of(*addr) == family && !addr.is_loopback() && !is_link_local_v6(*addr) && !excluded(*addr)
        })
    }

    /// The path to a neighbour on a link, and whether the neighbour is used.
    fn resolve(&self, target: &Target, link: LinkId, next_hop: IpAddr) -> (Path, Option<&Used>) {
        let Some(info) = self.link(link).filter(|info| info.up) else { return (Path::NoRoute, None) };
        let dest_mac = MacAddr::default();
        let hop = Hop { link, source_mac: info.mac, dest_mac, mtu: target.mtu_by(info.mtu) };
        match self.neighbours.get(&neighbour_key(link, next_hop)) {
            None => (Path::NoNeighbour { hop, next_hop }, None),
            Some(known) => (Path::To(Hop { dest_mac: known.neighbour.mac, ..hop }), Some(&known.used)),
        }
    }

    #[inline]
    fn target(&self, key: RouteKey) -> Option<&Target> {
        self.routes.find(key.dest, || Some(key))?
    }
}

impl LinkInfo {
    fn of(link: &Link, network: &Network, by_ifindex: &HashMap<u32, LinkId>) -> Self {
        let vlan = link.vlan.and_then(|vlan| Some((*by_ifindex.get(&vlan.over)?, vlan.id)));
        let below = match (link.kind, vlan) {
            (LinkKind::Bond, _) => {
                let mut members: Vec<_> = network
                    .links
                    .iter()
                    .filter(|member| is_active_in(member, link))
                    .map(|member| member.id)
                    .collect();
                members.sort_unstable();
                Below::Bond(members.into())
            }
            (_, Some((over, vlan))) => Below::Vlan(over, vlan),
            (_, None) => Below::Nothing,
        };
        let bond = network.links.iter().find(|bond| bond.kind == LinkKind::Bond && is_active_in(link, bond));
        Self {
            ifindex: link.ifindex,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            active: link.active,
            partial_checksums: link.partial_checksums,
            offloads: link.offloads,
            generic: link.generic,
            takes_redirected: link.takes_redirected,
            name: link.name.clone(),
            below,
            above: bond.map_or(link.id, |bond| bond.id),
            vrf: link.vrf,
            addresses: link.addresses.clone(),
        }
    }
}

fn is_active_in(member: &Link, bond: &Link) -> bool {
    member.active && member.master == Some(bond.ifindex)
}

/// The address, and link and family in one integer, so that it is hashed in two steps.
type NeighbourKey = (u128, u32);

fn neighbour_key(link: LinkId, addr: IpAddr) -> NeighbourKey {
    let (family, bits) = aligned(addr);
    (bits, u32::from(link.0) << 1 | u32::from(family == Family::V6))
}

/// The number of leading bits that two addresses share; 0 across families.
fn common(a: IpAddr, b: IpAddr) -> u8 {
    let (family, a) = aligned(a);
    let (other, b) = aligned(b);
    let width = if family == Family::V4 { 32 } else { 128 };
    if family == other { (a ^ b).leading_zeros().min(width) as u8 } else { 0 }
}

fn best_v6<'a>(candidates: impl Iterator<Item = &'a (IpAddr, u8)>, dest: IpAddr) -> Option<IpAddr> {
    let mut best: Option<(u8, IpAddr)> = None;
    for &(addr, len) in candidates {
        let fits = addr.is_ipv6() && !addr.is_loopback() && is_link_local_v6(addr) == is_link_local_v6(dest);
        let shared = common(addr, dest).min(len);
        if fits && best.is_none_or(|(most, _)| shared > most) {
            best = Some((shared, addr));
        }
    }
    best.map(|(_, addr)| addr)
}

fn is_link_local_v6(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests;
