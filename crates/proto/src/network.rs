//! The director's network: links, addresses, routes, policy rules, neighbours.
//!
//! The control plane copies these values from the kernel; the lab and tests build them with [`Network::add_link`] and
//! similar methods. `xvs_dataplane::egress::Egress` builds a snapshot's look-up tables from them. The packet path does
//! not read them.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Family, MacAddr, Prefix};
use thiserror::Error;

/// The director's network. By default it contains only the kernel's default policy rules.
///
/// ```
/// use xvs_proto::MacAddr;
/// use xvs_proto::network::{Network, RouteAction};
///
/// let mut network = Network::default();
/// let mac = MacAddr([2, 0, 0, 0, 0, 1]);
/// network.add_link("lan", mac, &[("192.0.2.1".parse().unwrap(), 24)], 1500)?;
/// network.add_route("0.0.0.0/0".parse().unwrap(), Some("192.0.2.254".parse().unwrap()), "lan")?;
/// let route = network.route_to("198.51.100.2".parse::<std::net::IpAddr>().unwrap()).unwrap();
/// let RouteAction::Unicast(hops) = &route.action else { panic!("not forwarded") };
/// assert_eq!(hops[0].via, Some("192.0.2.254".parse().unwrap()));
/// # Ok::<(), xvs_proto::network::NetworkError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The interfaces, each with a different id.
    pub links: Vec<Link>,
    /// The policy rules that xvs follows. The rules of each family are in the order in which the kernel tries them.
    pub rules: Vec<Rule>,
    /// The routes in the tables that these rules look up.
    pub routes: Vec<Route>,
    /// The resolved neighbours.
    pub neighbours: Vec<Neighbour>,
    /// The marks in all policy rules, followed or not: the kernel looks up packets with these marks in tables other
    /// than local and main.
    pub policy_rule_marks: Vec<PolicyRuleMark>,
}

/// A policy rule (ip-rule(8)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The family of the packets that the rule matches.
    pub family: Family,
    /// Priority; rules with lower numbers are tried first.
    pub priority: u32,
    /// The sources that the rule matches; `None` matches any.
    pub from: Option<Prefix>,
    /// The destinations that the rule matches; `None` matches any.
    pub to: Option<Prefix>,
    /// The mark that the rule matches; `None` matches any.
    pub mark: Option<PolicyRuleMark>,
    /// The VRF that the rule matches, by the VRF's table; `None` matches packets in any VRF and in none.
    pub vrf: Option<Table>,
    /// The action for matching packets.
    pub action: PolicyAction,
}

/// The action of a policy rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAction {
    /// Packets are routed by this table. If it has no route, the next rule is tried.
    Lookup(Table),
    /// Packets are refused (actions blackhole, unreachable and prohibit).
    Refuse,
}

/// The key of a route look-up. Like IPVS, xvs routes packets as if this machine had sent them: their input interface is
/// `lo`. Only packets received on an interface in a VRF are routed in that VRF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteKey {
    /// The destination.
    pub dest: IpAddr,
    /// The source; the unspecified address if it is not chosen yet.
    pub source: IpAddr,
    /// The firewall mark; 0: none.
    pub mark: u32,
    /// The VRF of the interface on which the packet was received, by the VRF's table; `None` if it is in no VRF.
    pub vrf: Option<Table>,
}

/// The mark in a policy rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRuleMark {
    /// The value of the bits in the mask.
    pub mark: u32,
    /// The bits that are compared.
    pub mask: u32,
}

/// An interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The link's id in the data plane. It must not change while the ifindex exists, so that frames received before a
    /// change still refer to their link. A new link gets [`Network::free_link_id`].
    pub id: LinkId,
    /// The kernel's interface index, never 0.
    pub ifindex: u32,
    /// The interface name.
    pub name: String,
    /// Link address; all zero if the link has none.
    pub mac: MacAddr,
    /// Length of the largest packet that the link sends, in bytes, without link header.
    pub mtu: u32,
    /// Whether the link is administratively up and has a carrier.
    pub up: bool,
    /// Addresses and prefix lengths, in the kernel's order (primary first).
    pub addresses: Vec<(IpAddr, u8)>,
    /// The VLAN id and lower link, if the link is a VLAN.
    pub vlan: Option<Vlan>,
    /// Whether neighbours on the link resolve each other's addresses by ARP or neighbour discovery; false for loopback,
    /// dummy and TUN.
    pub resolves: bool,
    /// The kernel's index of the bridge, bond, team or VRF that the link is a member of.
    pub master: Option<u32>,
    /// The table of the VRF that it is a member of.
    pub vrf: Option<Table>,
    /// Whether it consists of member links.
    pub kind: LinkKind,
    /// Whether the link's bond sends and receives through it; true for a link that is not a member of a bond.
    pub active: bool,
    /// Whether packets received on the link may have [partial checksums](crate::partial_checksum).
    pub partial_checksums: bool,
    /// Whether the XDP program may forward packets that arrive or leave on the link (offload).
    pub offloads: bool,
    /// Whether the program runs in generic mode.
    pub generic: bool,
    /// Whether the link accepts frames that the XDP program redirects to it.
    pub takes_redirected: bool,
}

/// Whether a link consists of member links, and how it uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// It has no members.
    Single,
    /// A bond that receives and sends each packet through one active member.
    Bond,
    /// A bond in another mode, with the mode's name.
    OtherBond(&'static str),
    /// A bridge.
    Bridge,
    /// A team.
    Team,
    /// A VRF, with its table.
    Vrf(Table),
}

/// The VLAN of a link: its frames carry one 802.1Q tag on the lower link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// The VLAN id, 1 to 4094.
    pub id: u16,
    /// The kernel's index of the lower link.
    pub over: u32,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The table that has it.
    pub table: Table,
    /// The destination.
    pub dest: Prefix,
    /// Among routes to the same destination, the one with the lowest metric is used; the first one wins a tie.
    pub metric: u32,
    /// The action for packets that take this route.
    pub action: RouteAction,
    /// The source address that the kernel prefers for its own packets.
    pub preferred_source: Option<IpAddr>,
    /// The MTU of the route, in bytes, if it has one (`ip route … mtu`).
    pub mtu: Option<u32>,
}

/// A routing table, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub u32);

impl Table {
    /// This machine's own addresses.
    pub const LOCAL: Self = Self(255);
    /// The routes of operators and routing daemons.
    pub const MAIN: Self = Self(254);
    /// Normally empty.
    pub const DEFAULT: Self = Self(253);
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LOCAL => f.write_str("local"),
            Self::MAIN => f.write_str("main"),
            Self::DEFAULT => f.write_str("default"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

/// The action of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteAction {
    /// Packets are delivered to this machine (types local and anycast).
    Local,
    /// Packets are delivered to this machine and to all others on a link.
    Broadcast,
    /// Packets are forwarded to one of these next hops, chosen by flow.
    Unicast(Vec<NextHop>),
    /// Packets are refused (types unreachable, prohibit and blackhole).
    Unreachable,
    /// The look-up in this table finds no route, even if a shorter prefix matches (type throw).
    Throw,
    /// Packets are routed by this VRF's table: the route's interface is the VRF.
    Vrf(Table),
}

/// A next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The interface.
    pub ifindex: u32,
    /// The gateway; `None` if the destination is on the link.
    pub via: Option<IpAddr>,
    /// The share of this next hop among the route's next hops; at least 1.
    pub weight: u32,
}

/// A resolved neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface that it is reached by.
    pub ifindex: u32,
    /// The address.
    pub addr: IpAddr,
    /// The link address.
    pub mac: MacAddr,
}

/// The reason why an item could not be added to a [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// No link has this name.
    #[error("there is no link {0}; add it first")]
    UnknownLink(String),
    /// A link with this name already exists.
    #[error("there is a link {0} already; links cannot be replaced")]
    DuplicateLink(String),
    /// Not a VLAN id.
    #[error("{0} is no VLAN id; those are 1 to 4094")]
    VlanId(u16),
    /// The prefix length exceeds the family's 32 or 128 bits.
    #[error("{0}/{1} is no address with a prefix length; IPv4 has up to 32 bits, IPv6 up to 128")]
    PrefixLength(IpAddr, u8),
}

impl Network {
    /// Adds a link that is up, with the routes that the kernel adds for its addresses: local, broadcast and connected
    /// routes.
    ///
    /// `addresses` are the director's addresses with the prefix lengths of their networks; `mtu_bytes` is the length of
    /// the largest packet without link header.
    ///
    /// # Errors
    ///
    /// The name is already used, or a prefix length is too large for its family.
    pub fn add_link(
        &mut self,
        name: &str,
        mac: MacAddr,
        addresses: &[(IpAddr, u8)],
        mtu_bytes: u32,
    ) -> Result<LinkId, NetworkError> {
        if self.link_named(name).is_some() {
            return Err(NetworkError::DuplicateLink(name.to_owned()));
        }
        let ifindex = self.links.iter().map(|link| link.ifindex).max().unwrap_or(0) + 1;
        let mut routes = Vec::new();
        for &(addr, len) in addresses {
            let net = Prefix::new(addr, len).ok_or(NetworkError::PrefixLength(addr, len))?;
            implied_routes(addr, net, ifindex, &mut routes);
        }
        let id = self.free_link_id();
        self.links.push(Link {
            id,
            ifindex,
            name: name.to_owned(),
            mac,
            mtu: mtu_bytes,
            up: true,
            addresses: addresses.to_vec(),
            vlan: None,
            resolves: mac != MacAddr::default(),
            master: None,
            vrf: None,
            kind: LinkKind::Single,
            active: true,
            partial_checksums: false,
            offloads: false,
            generic: false,
            takes_redirected: false,
        });
        self.routes.append(&mut routes);
        Ok(id)
    }

    /// Turns the link `name` into a VLAN on the link `over`.
    ///
    /// # Errors
    ///
    /// The link `over` does not exist, or `id` is not a VLAN id.
    pub fn make_vlan(&mut self, name: &str, id: u16, over: &str) -> Result<(), NetworkError> {
        if !(1..=4094).contains(&id) {
            return Err(NetworkError::VlanId(id));
        }
        let over = self.known_link(over)?.ifindex;
        if let Some(link) = self.links.iter_mut().find(|link| link.name == name) {
            link.vlan = Some(Vlan { id, over });
        }
        Ok(())
    }

    /// Adds a route to the main table with metric 0, through a gateway or directly on the link. An existing route to
    /// the same destination becomes a multipath route whose next hops have equal shares.
    ///
    /// # Errors
    ///
    /// The link does not exist.
    pub fn add_route(&mut self, dest: Prefix, via: Option<IpAddr>, link: &str) -> Result<(), NetworkError> {
        let hop = NextHop { ifindex: self.known_link(link)?.ifindex, via, weight: 1 };
        let sibling = self.routes.iter_mut().find_map(|route| match &mut route.action {
            RouteAction::Unicast(hops) if route.dest == dest && route.table == Table::MAIN => Some(hops),
            _ => None,
        });
        match sibling {
            Some(hops) => hops.push(hop),
            None => self.routes.push(Route {
                table: Table::MAIN,
                dest,
                metric: 0,
                action: RouteAction::Unicast(vec![hop]),
                preferred_source: None,
                mtu: None,
            }),
        }
        Ok(())
    }

    /// Adds a resolved neighbour, or changes the link address of an existing one.
    ///
    /// # Errors
    ///
    /// The link does not exist.
    pub fn add_neighbour(&mut self, addr: IpAddr, mac: MacAddr, link: &str) -> Result<(), NetworkError> {
        let ifindex = self.known_link(link)?.ifindex;
        self.neighbours.retain(|known| (known.ifindex, known.addr) != (ifindex, addr));
        self.neighbours.push(Neighbour { ifindex, addr, mac });
        Ok(())
    }

    /// The link with this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The route for packets with this key, according to the kernel's rules. `None` if there is no route or a rule
    /// refuses the packets. Cost: one pass over the routes for each rule.
    pub fn route_to(&self, key: impl Into<RouteKey>) -> Option<&Route> {
        let key = key.into();
        for rule in self.rules.iter().filter(|rule| rule.matches(&key)) {
            let PolicyAction::Lookup(table) = rule.action else { return None };
            let found = match self.route_in(table, key.dest) {
                Some(Route { action: RouteAction::Vrf(table), .. }) => {
                    return self.route_in(*table, key.dest);
                }
                found => found.filter(|route| route.action != RouteAction::Throw),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The route of a table to an address.
    fn route_in(&self, table: Table, dest: IpAddr) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| route.table == table && route.dest.contains(dest))
            .min_by_key(|route| (Reverse(route.dest.len()), route.metric))
    }

    /// The lowest id that no link uses.
    ///
    /// # Panics
    ///
    /// If there are 65,536 links.
    pub fn free_link_id(&self) -> LinkId {
        let taken: BTreeSet<LinkId> = self.links.iter().map(|link| link.id).collect();
        (0..=u16::MAX).map(LinkId).find(|id| !taken.contains(id)).expect("fewer than 65,536 links")
    }

    fn known_link(&self, name: &str) -> Result<&Link, NetworkError> {
        self.link_named(name).ok_or_else(|| NetworkError::UnknownLink(name.to_owned()))
    }
}

impl Default for Network {
    fn default() -> Self {
        let rules = [Family::V4, Family::V6].into_iter().flat_map(|family| {
            [Rule::unconditional(family, 0, Table::LOCAL), Rule::unconditional(family, 32_766, Table::MAIN)]
        });
        Self {
            links: Vec::new(),
            rules: rules.collect(),
            routes: Vec::new(),
            neighbours: Vec::new(),
            policy_rule_marks: Vec::new(),
        }
    }
}

impl Rule {
    fn unconditional(family: Family, priority: u32, table: Table) -> Self {
        let action = PolicyAction::Lookup(table);
        Self { family, priority, from: None, to: None, mark: None, vrf: None, action }
    }

    /// Whether the rule matches packets with this key. A source that is not chosen yet is 0.0.0.0 in IPv4; in IPv6 no
    /// prefix contains it (kernel `net/ipv6/fib6_rules.c`, `fib6_rule_match`).
    pub fn matches(&self, key: &RouteKey) -> bool {
        let has_source = !matches!(key.source, IpAddr::V6(source) if source.is_unspecified());
        Family::of(key.dest) == self.family
            && self.from.is_none_or(|from| has_source && from.contains(key.source))
            && self.to.is_none_or(|to| to.contains(key.dest))
            && self.mark.is_none_or(|PolicyRuleMark { mark, mask }| key.mark & mask == mark & mask)
            && (self.vrf.is_none() || self.vrf == key.vrf)
    }

    /// Whether the rule matches all packets of its family.
    pub fn is_unconditional(&self) -> bool {
        self.from.is_none() && self.to.is_none() && self.mark.is_none() && self.vrf.is_none()
    }
}

/// The format of `ip rule`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match self.from {
            Some(from) => write!(f, "{from}")?,
            None => f.write_str("all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        match self.mark {
            Some(PolicyRuleMark { mark, mask: u32::MAX }) => write!(f, " fwmark {mark:#x}")?,
            Some(PolicyRuleMark { mark, mask }) => write!(f, " fwmark {mark:#x}/{mask:#x}")?,
            None => {}
        }
        if let Some(vrf) = self.vrf {
            write!(f, " in the VRF of table {vrf}")?;
        }
        match self.action {
            PolicyAction::Lookup(table) => write!(f, " lookup {table}"),
            PolicyAction::Refuse => f.write_str(" unreachable"),
        }
    }
}

impl From<IpAddr> for RouteKey {
    /// The key of packets to this address that have no source and no mark yet.
    fn from(dest: IpAddr) -> Self {
        let source = match dest {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self { dest, source, mark: 0, vrf: None }
    }
}

impl RouteKey {
    /// The key of packets in this VRF; `None` for packets in no VRF.
    pub fn of_vrf(self, vrf: Option<Table>) -> Self {
        Self { vrf, ..self }
    }
}

/// Adds the routes that the kernel adds for an address (kernel `net/ipv4/fib_frontend.c`, `fib_add_ifaddr`, and
/// `net/ipv6/addrconf.c`, `addrconf_prefix_route`).
fn implied_routes(addr: IpAddr, net: Prefix, ifindex: u32, routes: &mut Vec<Route>) {
    routes.push(implied_route(addr, Table::LOCAL, Prefix::host(addr), RouteAction::Local));
    if net == Prefix::host(addr) {
        return;
    }
    if addr.is_loopback() {
        routes.push(implied_route(addr, Table::LOCAL, net, RouteAction::Local));
        return;
    }
    let to_link = RouteAction::Unicast(vec![NextHop { ifindex, via: None, weight: 1 }]);
    routes.push(implied_route(addr, Table::MAIN, net, to_link));
    if net.len() < 31
        && let IpAddr::V4(first) = net.addr()
    {
        let host_bits = u32::MAX.checked_shr(u32::from(net.len())).unwrap_or(0);
        let broadcast = Prefix::host(Ipv4Addr::from(u32::from(first) | host_bits).into());
        routes.push(implied_route(addr, Table::LOCAL, broadcast, RouteAction::Broadcast));
    }
}

fn implied_route(addr: IpAddr, table: Table, dest: Prefix, action: RouteAction) -> Route {
    let metric = if addr.is_ipv6() && table == Table::MAIN { CONNECTED_METRIC_V6 } else { 0 };
    Route { table, dest, metric, action, preferred_source: addr.is_ipv4().then_some(addr), mtu: None }
}

/// Metric of connected routes for IPv6 addresses (kernel `IP6_RT_PRIO_ADDRCONF`).
const CONNECTED_METRIC_V6: u32 = 256;

/// The id of an interface: its index in the link lists of the snapshot and the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u16);

impl LinkId {
    const OWN: u16 = 1 << 15;

    /// The machine's own end of the loopback interface, which has no other end.
    pub const LOOPBACK: Self = Self(u16::MAX);

    /// The machine's own end of this link. A frame received from it was sent by this machine over the link; a frame
    /// sent to it reaches this machine as if received on the link.
    pub fn own(self) -> Self {
        Self(self.0 | Self::OWN)
    }

    /// Whether it is the machine's own end of a link.
    pub fn is_own(self) -> bool {
        self.0 & Self::OWN != 0
    }

    /// The link to which an own end belongs; any other link is returned unchanged.
    pub fn wire(self) -> Self {
        Self(self.0 & !Self::OWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_link_adds_the_local_broadcast_and_connected_routes_of_its_addresses() {
        let mut network = Network::default();
        let addresses = [
            ("10.0.0.1".parse().unwrap(), 24),
            ("10.1.1.1".parse().unwrap(), 32),
            ("fd00::1".parse().unwrap(), 64),
        ];
        assert_eq!(network.add_link("wan", MAC, &addresses, 1500), Ok(LinkId(0)));
        let of = |table| -> Vec<String> {
            let found = network.routes.iter().filter(|route| route.table == table);
            found.map(|route| route.dest.to_string()).collect()
        };
        assert_eq!(of(Table::LOCAL), ["10.0.0.1/32", "10.0.0.255/32", "10.1.1.1/32", "fd00::1/128"]);
        assert_eq!(of(Table::MAIN), ["10.0.0.0/24", "fd00::/64"]);
    }

    #[test]
    fn an_invalid_addition_is_refused_with_its_reason_and_changes_nothing() {
        let mut network = Network::default();
        let bad = network.add_link("wan", MAC, &[("10.0.0.1".parse().unwrap(), 33)], 1500).unwrap_err();
        assert!(bad.to_string().starts_with("10.0.0.1/33"), "{bad}");
        assert_eq!(network, Network::default());
        network.add_link("wan", MAC, &[], 1500).unwrap();
        assert!(network.add_link("wan", MAC, &[], 1500).is_err());
        let missing = network.add_route("0.0.0.0/0".parse().unwrap(), None, "lan").unwrap_err();
        assert_eq!(missing.to_string(), "there is no link lan; add it first");
    }
}
