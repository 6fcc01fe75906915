//! Reads the kernel's tables: netlink messages become the values of `xvs_proto::network`.
//!
//! Each function reads one table. The order of the result does not depend on the kernel's hashing, so two readings of
//! an unchanged table are equal. Cost: one dump each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    BondMode, BondPortState, InfoBond, InfoBondPort, InfoData, InfoKind, InfoPortData, InfoVlan, InfoVrf,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MiiStatus, VlanProtocol,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use xvs_proto::network::{Link, LinkKind, Network, NextHop, Route, RouteAction, Table, Vlan};
use xvs_proto::{MacAddr, Prefix};

use crate::network::netlink::Netlink;
use crate::network::nexthops::Nexthops;
use crate::notice::Notice;

/// The links with their addresses. A link in `before` keeps its id; a new link gets a free id.
pub(super) fn links(netlink: &mut Netlink, before: &[Link]) -> io::Result<Vec<Link>> {
    let mut addresses: BTreeMap<u32, Vec<(IpAddr, u8)>> = BTreeMap::new();
    for reply in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(message) = reply
            && let Some(found) = address(&message)
        {
            addresses.entry(message.header.index).or_default().push(found);
        }
    }
    let mut network = Network::default();
    let mut added = Vec::new();
    let mut only_active = BTreeMap::new();
    for reply in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(message) = reply else { continue };
        let mut link = link(&message);
        only_active.extend(only_active_member(&message).map(|member| (link.ifindex, member)));
        link.addresses = addresses.remove(&link.ifindex).unwrap_or_default();
        match before.iter().find(|known| known.ifindex == link.ifindex) {
            Some(known) => network.links.push(Link { id: known.id, ..link }),
            None => added.push(link),
        }
    }
    for link in added {
        let id = network.free_link_id();
        network.links.push(Link { id, ..link });
    }
    network.links.sort_by_key(|link| link.id);
    for link in &mut network.links {
        let member = link.master.and_then(|bond| only_active.get(&bond));
        link.active &= member.is_none_or(|member| *member == link.ifindex);
    }
    Ok(network.links)
}

/// The routes of these tables, and a notice of each route that is not followed.
pub(super) fn routes(
    netlink: &mut Netlink,
    tables: &BTreeSet<Table>,
    links: &[Link],
) -> io::Result<(Vec<Route>, Vec<Notice>)> {
    let nexthops = Nexthops::read(netlink)?;
    let mut routes = Vec::new();
    let mut warnings = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for reply in netlink.dump(RouteNetlinkMessage::GetRoute(request))? {
            let RouteNetlinkMessage::NewRoute(message) = reply else { continue };
            if message.header.address_family != family {
                continue;
            }
            routes.extend(route(&message, tables, &nexthops, &mut warnings));
        }
    }
    routes.iter_mut().for_each(|route| enter_vrf(route, links));
    // The sort is stable: routes with equal keys keep the kernel's order.
    routes.sort_by_key(|route| (route.table, route.dest, route.metric));
    Ok((routes, warnings))
}

/// Makes a route whose interface is a VRF continue in the VRF's table.
fn enter_vrf(route: &mut Route, links: &[Link]) {
    let RouteAction::Unicast(hops) = &route.action else { return };
    let [NextHop { ifindex, via: None, .. }] = hops.as_slice() else { return };
    if let Some(Link { kind: LinkKind::Vrf(table), .. }) = links.iter().find(|link| link.ifindex == *ifindex)
    {
        route.action = RouteAction::Vrf(*table);
    }
}

/// The path MTU of an address, in bytes, if its route has one or a router has reported one; `None` if the MTU of the
/// link applies.
pub fn path_mtu(netlink: &mut Netlink, dest: IpAddr) -> io::Result<Option<u32>> {
    let mut request = RouteMessage::default();
    (request.header.address_family, request.header.destination_prefix_length) = match dest {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.attributes = vec![RouteAttribute::Destination(dest.into())];
    for reply in netlink.get(RouteNetlinkMessage::GetRoute(request))? {
        if let RouteNetlinkMessage::NewRoute(message) = reply
            && let Some(mtu) = mtu_of(&message)
        {
            return Ok(Some(mtu));
        }
    }
    Ok(None)
}

/// The MTU of a route.
fn mtu_of(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) => Some(*mtu),
            _ => None,
        }),
        _ => None,
    })
}

/// One neighbour entry of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NeighbourEntry {
    pub(super) ifindex: u32,
    pub(super) addr: IpAddr,
    /// Link address; `None` if the entry is in a state in which the kernel does not send to it.
    pub(super) mac: Option<MacAddr>,
    pub(super) upkeep: Upkeep,
    /// The program that added the entry, a number as for routes (`NDA_PROTOCOL`); 0 if unknown.
    pub(super) protocol: u8,
}

/// How an entry is kept up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upkeep {
    /// Resolved when it is used, removed when it is not.
    OnDemand,
    /// Resolved by the kernel at all times.
    Managed,
    /// Never: an operator added the entry with its link address.
    Permanent,
}

/// All neighbour entries of both families.
pub(super) fn neighbours(netlink: &mut Netlink) -> io::Result<Vec<NeighbourEntry>> {
    let mut entries = Vec::new();
    for reply in netlink.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))? {
        if let RouteNetlinkMessage::NewNeighbour(message) = reply {
            entries.extend(neighbour(&message));
        }
    }
    Ok(entries)
}

/// The entry in a neighbour message; `None` for other entries (a bridge's table, a multicast group).
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<NeighbourEntry> {
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let mut addr = None;
    let mut mac = None;
    let mut upkeep = Upkeep::OnDemand;
    let mut protocol = 0;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => addr = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => addr = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
            NeighbourAttribute::Protocol(number) => protocol = (*number).into(),
            NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::Managed) => {
                upkeep = Upkeep::Managed;
            }
            _ => {}
        }
    }
    // The states in which the kernel sends (NUD_VALID in include/net/neighbour.h), except that of its own entries for
    // multicast and loopback (NUD_NOARP).
    let usable = match message.header.state {
        NeighbourState::Permanent => {
            upkeep = Upkeep::Permanent;
            true
        }
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => {
            true
        }
        NeighbourState::Noarp => return None,
        _ => false,
    };
    Some(NeighbourEntry {
        ifindex: message.header.ifindex,
        addr: addr?,
        mac: mac.filter(|_| usable),
        upkeep,
        protocol,
    })
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        id: xvs_proto::LinkId(0),
        ifindex: message.header.index,
        name: String::new(),
        mac: MacAddr::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        addresses: Vec::new(),
        vlan: None,
        resolves: !message.header.flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback),
        master: None,
        vrf: None,
        kind: LinkKind::Single,
        active: true,
        // A property of the driver, which netlink does not report.
        partial_checksums: false,
        offloads: false,
        generic: false,
        takes_redirected: false,
    };
    let mut below = None;
    let mut tag = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = mac_of(bytes).unwrap_or_default(),
            LinkAttribute::Link(ifindex) => below = Some(*ifindex),
            LinkAttribute::LinkInfo(infos) => {
                tag = vlan_tag(infos);
                link.kind = kind(infos);
                link.active = is_active(infos, link.up);
                link.vrf = vrf_of_member(infos);
            }
            LinkAttribute::Controller(ifindex) => link.master = Some(*ifindex),
            _ => {}
        }
    }
    link.vlan = tag.zip(below).map(|(id, over)| Vlan { id, over });
    link
}

/// Whether a link has members, and of which kind.
fn kind(infos: &[LinkInfo]) -> LinkKind {
    match bond(infos) {
        Some((BondMode::Broadcast, _)) => LinkKind::OtherBond("broadcast"),
        Some((BondMode::BalanceAlb, _)) => LinkKind::OtherBond("balance-alb"),
        Some(_) => LinkKind::Bond,
        None if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) => LinkKind::Bridge,
        None if is_team(infos) => LinkKind::Team,
        None => vrf(infos).map_or(LinkKind::Single, LinkKind::Vrf),
    }
}

/// The table of a VRF.
fn vrf(infos: &[LinkInfo]) -> Option<Table> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vrf(data)) => table(data),
        _ => None,
    })
}

/// The table of the VRF that a link is a member of.
fn vrf_of_member(infos: &[LinkInfo]) -> Option<Table> {
    infos.iter().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::VrfPort(data)) => table(data),
        _ => None,
    })
}

fn table(data: &[InfoVrf]) -> Option<Table> {
    data.iter().find_map(|info| match info {
        InfoVrf::TableId(number) => Some(Table(*number)),
        _ => None,
    })
}

fn is_team(infos: &[LinkInfo]) -> bool {
    infos.iter().any(|info| matches!(info, LinkInfo::Kind(kind) if kind.to_string() == "team"))
}

/// The mode of a bond, and its active member (0 if there is none) in modes that have one.
fn bond(infos: &[LinkInfo]) -> Option<(BondMode, Option<u32>)> {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bond(data)) => Some(data),
        _ => None,
    })?;
    let mode = data.iter().find_map(|info| match info {
        InfoBond::Mode(mode) => Some(*mode),
        _ => None,
    })?;
    let member = data.iter().find_map(|info| match info {
        InfoBond::ActivePort(member) => Some(*member),
        _ => None,
    });
    Some((mode, member))
}

/// The only active member of a bond in the mode balance-tlb, in which the kernel reports each as active.
fn only_active_member(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => bond(infos)
            .filter(|(mode, _)| *mode == BondMode::BalanceTlb)
            .map(|(_, member)| member.unwrap_or(0)),
        _ => None,
    })
}

/// Whether a bond uses this member (kernel `include/net/bonding.h`, `bond_slave_can_tx`). `up` is the member's own
/// state: a bond may detect the loss of a carrier later than the kernel. True for other links.
fn is_active(infos: &[LinkInfo], up: bool) -> bool {
    infos.iter().all(|info| match info {
        LinkInfo::PortData(InfoPortData::BondPort(port)) => {
            up && port.contains(&InfoBondPort::BondPortState(BondPortState::Active))
                && port.contains(&InfoBondPort::MiiStatus(MiiStatus::Up))
        }
        _ => true,
    })
}

/// The VLAN id of a link of kind vlan; `None` for other kinds, and for 802.1ad VLANs.
fn vlan_tag(infos: &[LinkInfo]) -> Option<u16> {
    let is_vlan = infos.contains(&LinkInfo::Kind(InfoKind::Vlan));
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) if is_vlan => Some(data),
        _ => None,
    })?;
    let outer = data.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
    data.iter().find_map(|info| match info {
        InfoVlan::Id(id) if !outer => Some(*id),
        _ => None,
    })
}

/// An address that may be used as a source: duplicate address detection is finished (RFC 4862 §5.4) or optimistic.
fn address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let mut peer = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(addr) => peer = Some(*addr),
            // On a point-to-point link, the attribute `Address` is the peer's.
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Flags(flags)
                if flags.contains(AddressFlags::Dadfailed)
                    || flags.contains(AddressFlags::Tentative)
                        && !flags.contains(AddressFlags::Optimistic) =>
            {
                return None;
            }
            _ => {}
        }
    }
    Some((local.or(peer)?, message.header.prefix_len))
}

/// The route in a route message; `None` if xvs does not need it, or cannot follow it, with a warning.
fn route(
    message: &RouteMessage,
    tables: &BTreeSet<Table>,
    nexthops: &Nexthops,
    warnings: &mut Vec<Notice>,
) -> Option<Route> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut dest = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut table = Table(u32::from(header.table));
    let mut metric = 0;
    let mut preferred_source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = Table(*id),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Destination(addr) => dest = ip_of(addr).unwrap_or(dest),
            RouteAttribute::PrefSource(addr) => preferred_source = ip_of(addr),
            _ => {}
        }
    }
    if !tables.contains(&table) {
        return None;
    }
    let dest = Prefix::new(dest, header.destination_prefix_length)?;
    let hops = if header.tos != 0 {
        Err("for one type of service (TOS)".to_owned())
    } else if header.source_prefix_length != 0 {
        Err("for a source prefix".to_owned())
    } else {
        hops(message, nexthops)
    };
    let hops = hops
        .map_err(|which| {
            let text =
                format!("the route to {dest} {which} is not followed: packets take the next best route");
            warnings.push(Notice::new(format_args!("route {dest} {which}"), text));
        })
        .ok()?;
    let action = match header.kind {
        RouteType::Unicast if hops.is_empty() => return None,
        RouteType::Unicast => RouteAction::Unicast(hops),
        RouteType::Local | RouteType::Anycast => RouteAction::Local,
        RouteType::Broadcast => RouteAction::Broadcast,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => RouteAction::Unreachable,
        RouteType::Throw => RouteAction::Throw,
        _ => return None,
    };
    Some(Route { table, dest, metric, action, preferred_source, mtu: mtu_of(message) })
}

/// The next hops of a route, without those that the kernel has marked dead. An error ends the sentence "the route to
/// PREFIX …" if xvs cannot follow the route.
fn hops(message: &RouteMessage, nexthops: &Nexthops) -> Result<Vec<NextHop>, String> {
    let mut ifindex = None;
    let mut multipath: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::NhId(id) => return nexthops.hops(*id),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::MultiPath(hops) => multipath = hops,
            _ => {}
        }
    }
    if message
        .attributes
        .iter()
        .chain(multipath.iter().flat_map(|hop| &hop.attributes))
        .any(|attribute| matches!(attribute, RouteAttribute::EncapType(_)))
    {
        return Err("with an encapsulation".to_owned());
    }
    let mut hops: Vec<_> = multipath
        .iter()
        .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead))
        .map(|hop| NextHop {
            ifindex: hop.interface_index,
            via: gateway(&hop.attributes),
            // The message has the weight minus one (rtnetlink(7), rtnh_hops).
            weight: u32::from(hop.hops) + 1,
        })
        .collect();
    if hops.is_empty()
        && let Some(ifindex) = ifindex
        && !message.header.flags.contains(RouteFlags::Dead)
    {
        hops.push(NextHop { ifindex, via: gateway(&message.attributes), weight: 1 });
    }
    Ok(hops)
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(addr) => ip_of(addr),
        RouteAttribute::Via(RouteVia::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Via(RouteVia::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    })
}

fn ip_of(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mac_of(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

#[cfg(test)]
mod tests {
    use crate::network::tables::*;

    /// The VLAN of a link with these attributes over interface 3.
    fn of(infos: Vec<LinkInfo>) -> Option<Vlan> {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.attributes = vec![LinkAttribute::Link(3), LinkAttribute::LinkInfo(infos)];
        link(&message).vlan
    }

    #[test]
    fn a_vlan_is_identified_by_its_kind_its_id_and_the_link_below() {
        let data =
            |protocol| LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Protocol(protocol), InfoVlan::Id(5)]));
        let kind = || LinkInfo::Kind(InfoKind::Vlan);
        assert_eq!(of(vec![kind(), data(VlanProtocol::Ieee8021Q)]), Some(Vlan { id: 5, over: 3 }));
        // The frames of 802.1ad have another type of tag.
        assert_eq!(of(vec![kind(), data(VlanProtocol::Ieee8021Ad)]), None);
        assert_eq!(of(vec![LinkInfo::Kind(InfoKind::MacVlan)]), None);
    }

    #[test]
    fn bonds_are_told_by_their_mode_and_bridges_and_teams_by_their_kind() {
        let bond = |mode| {
            vec![LinkInfo::Kind(InfoKind::Bond), LinkInfo::Data(InfoData::Bond(vec![InfoBond::Mode(mode)]))]
        };
        for mode in [BondMode::ActiveBackup, BondMode::Ieee8023Ad, BondMode::BalanceRr, BondMode::BalanceTlb]
        {
            assert_eq!(kind(&bond(mode)), LinkKind::Bond, "{mode}");
        }
        for mode in [BondMode::Broadcast, BondMode::BalanceAlb] {
            assert_eq!(
                kind(&bond(mode)),
                LinkKind::OtherBond(if mode == BondMode::Broadcast { "broadcast" } else { "balance-alb" })
            );
        }
        assert_eq!(kind(&[LinkInfo::Kind(InfoKind::Bridge)]), LinkKind::Bridge);
        assert_eq!(kind(&[LinkInfo::Kind(InfoKind::Other("team".to_owned()))]), LinkKind::Team);
        assert_eq!(kind(&[LinkInfo::Kind(InfoKind::Veth)]), LinkKind::Single);
    }

    #[test]
    fn a_vrf_and_its_members_name_its_table_and_a_route_by_it_continues_there() {
        let table = || vec![InfoVrf::TableId(10)];
        let infos = vec![LinkInfo::Kind(InfoKind::Vrf), LinkInfo::Data(InfoData::Vrf(table()))];
        assert_eq!(kind(&infos), LinkKind::Vrf(Table(10)));
        assert_eq!(vrf_of_member(&infos), None);
        let member = [LinkInfo::Kind(InfoKind::Veth), LinkInfo::PortData(InfoPortData::VrfPort(table()))];
        assert_eq!((kind(&member), vrf_of_member(&member)), (LinkKind::Single, Some(Table(10))));
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.attributes = vec![LinkAttribute::LinkInfo(infos)];
        let links = [link(&message)];
        let entered = |ifindex, via| {
            let action = RouteAction::Unicast(vec![NextHop { ifindex, via, weight: 1 }]);
            let dest = "192.0.2.0/24".parse().unwrap();
            let mut route =
                Route { table: Table(20), dest, metric: 0, action, preferred_source: None, mtu: None };
            enter_vrf(&mut route, &links);
            route.action
        };
        assert_eq!(entered(9, None), RouteAction::Vrf(Table(10)));
        assert!(matches!(entered(8, None), RouteAction::Unicast(_)));
    }

    #[test]
    fn a_member_is_active_if_its_state_and_its_link_are_and_any_other_link_is() {
        let member = |state, link, up| {
            let port = vec![InfoBondPort::BondPortState(state), InfoBondPort::MiiStatus(link)];
            is_active(&[LinkInfo::PortData(InfoPortData::BondPort(port))], up)
        };
        assert!(member(BondPortState::Active, MiiStatus::Up, true));
        assert!(!member(BondPortState::Active, MiiStatus::Up, false));
        assert!(!member(BondPortState::Backup, MiiStatus::Up, true));
        assert!(!member(BondPortState::Active, MiiStatus::Down, true));
        assert!(is_active(&[LinkInfo::Kind(InfoKind::Veth)], false));
    }
}
