//! Routes by longest prefix: a trie with eight bits of an address in each step, for the tables that policy rules look
//! up.
//!
//! Built with the snapshot, read for each packet. Consecutive rules for all packets share one trie, built in the
//! precedence of their tables: routes are written over the addresses that they match, from the least to the most
//! preferred. The kernel's default rules need one trie for each family. Cost: two loads for each step, at most four
//! steps (IPv6: sixteen), no allocation. Steps that do not distinguish longer prefixes are skipped, so most addresses
//! that only a default route matches take one. With other rules, a comparison for each rule, and the trie of each rule
//! that matches. Memory: a node of 1 KiB for each address prefix that longer prefixes continue.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use xvs_proto::{Family, LinkId};

use xvs_proto::network::{Network, PolicyAction, Route, RouteAction, RouteKey, Rule, Table};

use super::next_hop::Gateway;

/// The routes of all tables, by the rules that look them up.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Routes {
    v4: Lookups,
    v6: Lookups,
    targets: Vec<Target>,
}

/// The look-ups of a family, in the order of its rules.
#[derive(Debug, Default, PartialEq)]
struct Lookups {
    /// The look-ups before the last one; none with the kernel's default rules.
    steps: Vec<Step>,
    /// The tables that the last rules look up for all packets.
    last: Trie,
}

/// A rule, and the routes that it looks up; if it matches all packets, also those of the following rules for all
/// packets.
#[derive(Debug, PartialEq)]
struct Step {
    rule: Rule,
    trie: Arc<Trie>,
}

/// The result of a route.
#[derive(Debug, PartialEq)]
pub(super) struct Target {
    pub(super) action: Action,
    pub(super) preferred_source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
    /// The table of the route; `None` if a rule refuses the packets.
    pub(super) table: Option<Table>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Local,
    Broadcast,
    Unreachable,
    Send(NextHops),
}

/// One or more next hops, never none.
#[derive(Debug, PartialEq)]
pub(super) struct NextHops {
    hops: Vec<NextHop>,
    total: u64,
}

#[derive(Debug, PartialEq)]
pub(super) struct NextHop {
    pub(super) link: LinkId,
    pub(super) via: Option<IpAddr>,
    /// The resolved `via`, so that a packet costs no other look-up.
    pub(super) gateway: Option<Gateway>,
    /// The sum of the weights up to and including this one.
    weight_up_to: u64,
}

impl Routes {
    /// The tries of a network's rules and routes.
    pub(super) fn build(network: &Network, by_ifindex: &HashMap<u32, LinkId>) -> Self {
        let mut targets = Vec::new();
        Self {
            v4: Lookups::build(network, Family::V4, by_ifindex, &mut targets),
            v6: Lookups::build(network, Family::V6, by_ifindex, &mut targets),
            targets,
        }
    }

    /// Whether packets in a family to the same address may take different routes.
    pub(super) fn has_steps(&self, family: Family) -> bool {
        !self.of(family).steps.is_empty()
    }

    /// Sets the gateways that `resolve` returns for a route's next hop, by link and address.
    pub(super) fn find_gateways(&mut self, resolve: impl Fn(&Target, LinkId, IpAddr) -> Option<Gateway>) {
        for target in &mut self.targets {
            let Action::Send(hops) = &target.action else { continue };
            let gateways: Vec<_> = hops.hops.iter().map(|hop| resolve(target, hop.link, hop.via?)).collect();
            let Action::Send(hops) = &mut target.action else { continue };
            hops.hops.iter_mut().zip(gateways).for_each(|(hop, gateway)| hop.gateway = gateway);
        }
    }

    /// The route of packets to `dest`. `key`, called only if a rule examines more than the address, returns the
    /// complete key. `None` if `key` returned `None`.
    #[inline]
    pub(super) fn find(
        &self,
        dest: IpAddr,
        key: impl FnOnce() -> Option<RouteKey>,
    ) -> Option<Option<&Target>> {
        let (family, bits) = aligned(dest);
        let lookups = self.of(family);
        let leaf = match lookups.steps.is_empty() {
            true => lookups.last.find(bits),
            false => lookups.by_rules(bits, &key()?),
        };
        Some((leaf as usize).checked_sub(1).and_then(|leaf| self.targets.get(leaf)))
    }

    #[inline]
    fn of(&self, family: Family) -> &Lookups {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Lookups {
    fn build(
        network: &Network,
        family: Family,
        by_ifindex: &HashMap<u32, LinkId>,
        targets: &mut Vec<Target>,
    ) -> Self {
        // Consecutive rules for all packets form one look-up in several tables. A throw route leads to the next rule,
        // so its table is the last one of a look-up.
        let mut lookups: Vec<(&Rule, Vec<Table>)> = Vec::new();
        // Packets are received only on links, so VRFs without a link cost nothing.
        let concerns =
            |rule: &&Rule| rule.vrf.is_none() || network.links.iter().any(|link| link.vrf == rule.vrf);
        for rule in network.rules.iter().filter(|rule| rule.family == family).filter(concerns) {
            match (rule.action, lookups.last_mut()) {
                (PolicyAction::Lookup(table), Some((before, tables)))
                    if rule.is_unconditional()
                        && before.is_unconditional()
                        && tables.last().is_some_and(|last| !throws(network, *last)) =>
                {
                    tables.push(table);
                }
                (PolicyAction::Lookup(table), _) => lookups.push((rule, vec![table])),
                (PolicyAction::Refuse, _) => lookups.push((rule, Vec::new())),
            }
        }
        let last = lookups
            .pop_if(|(rule, tables)| rule.is_unconditional() && !tables.is_empty())
            .map(|(_, tables)| Trie::of_tables(network, family, &tables, by_ifindex, targets));
        let mut known: HashMap<Vec<Table>, Arc<Trie>> = HashMap::new();
        let steps = lookups.into_iter().map(|(rule, tables)| {
            let trie = known.entry(tables).or_insert_with_key(|tables| {
                Arc::new(Trie::of_tables(network, family, tables, by_ifindex, targets))
            });
            Step { rule: rule.clone(), trie: trie.clone() }
        });
        Self { steps: steps.collect(), last: last.unwrap_or_default() }
    }

    /// The entry for packets, encoded as a trie's entry.
    #[inline(never)]
    fn by_rules(&self, bits: u128, key: &RouteKey) -> u32 {
        self.steps
            .iter()
            .filter(|step| step.rule.matches(key))
            .map(|step| step.trie.find(bits))
            .find(|leaf| *leaf != 0)
            .unwrap_or_else(|| self.last.find(bits))
    }
}

fn throws(network: &Network, table: Table) -> bool {
    network.routes.iter().any(|route| route.table == table && route.action == RouteAction::Throw)
}

#[derive(Debug, PartialEq)]
struct Trie {
    /// Parents come before their children; the first one is the root.
    nodes: Vec<Node>,
    /// An entry with the meaning of a node's.
    root: u32,
}

/// All addresses with the same prefix, by their next byte.
#[derive(Debug, Clone, PartialEq)]
struct Node {
    /// The beginning.
    prefix: u128,
    /// Length of the prefix in bits.
    depth: u8,
    /// The bits of the prefix that no step before this node has compared: see [`Trie::shorten`].
    unread: u128,
    /// The entry for addresses that differ in one of these bits.
    other: u32,
    /// 0 (no route), the index of a target plus one, or [`CHILD`] with the index of a node.
    entries: [u32; 256],
}

impl Default for Trie {
    fn default() -> Self {
        let root = Node { prefix: 0, depth: 0, unread: 0, other: 0, entries: [0; 256] };
        Self { nodes: vec![root], root: CHILD }
    }
}

impl Trie {
    /// The routes of these tables; appends their targets. Precedence: the first table, the longest prefix, the lowest
    /// metric, the first route. An empty list of tables refuses all packets.
    fn of_tables(
        network: &Network,
        family: Family,
        tables: &[Table],
        by_ifindex: &HashMap<u32, LinkId>,
        targets: &mut Vec<Target>,
    ) -> Self {
        let mut trie = Self::default();
        if tables.is_empty() {
            let refused =
                Target { action: Action::Unreachable, preferred_source: None, mtu: None, table: None };
            trie.paint(0, 0, add(targets, refused));
        }
        for table in tables.iter().rev() {
            for route in of_table(network, family, *table) {
                let leaf = match route.action {
                    RouteAction::Throw => 0,
                    _ => add(targets, Target::of(route, *table, by_ifindex)),
                };
                trie.paint(aligned(route.dest.addr()).1, route.dest.len(), leaf);
                let RouteAction::Vrf(vrf) = route.action else { continue };
                for inner in of_table(network, family, vrf) {
                    // The route's effect is limited to the longer of both prefixes.
                    if let Some(part) = [inner.dest, route.dest]
                        .into_iter()
                        .max_by_key(|dest| dest.len())
                        .filter(|part| inner.dest.contains(part.addr()) && route.dest.contains(part.addr()))
                    {
                        let leaf = add(targets, Target::of(inner, *table, by_ifindex));
                        trie.paint(aligned(part.addr()).1, part.len(), leaf);
                    }
                }
            }
        }
        trie.shorten();
        trie
    }

    #[inline]
    fn find(&self, bits: u128) -> u32 {
        let mut entry = self.root;
        while entry & CHILD != 0 {
            let node = &self.nodes[(entry & !CHILD) as usize];
            if (bits ^ node.prefix) & node.unread != 0 {
                return node.other;
            }
            entry = node.entries[(bits << node.depth >> 120) as usize];
        }
        entry
    }

    /// Sets the entry of every address that begins with the first `len` bits of `bits`.
    fn paint(&mut self, bits: u128, len: u8, leaf: u32) {
        let mut at = 0;
        while len > self.nodes[at].depth + 8 {
            let depth = self.nodes[at].depth;
            let byte = (bits << depth >> 120) as usize;
            let entry = self.nodes[at].entries[byte];
            at = if entry & CHILD != 0 {
                (entry & !CHILD) as usize
            } else {
                let child = self.nodes.len();
                let deeper = depth + 8;
                let prefix = bits & !(u128::MAX >> deeper);
                self.nodes.push(Node { prefix, depth: deeper, unread: 0, other: 0, entries: [entry; 256] });
                self.nodes[at].entries[byte] = CHILD | child as u32;
                child
            };
        }
        let Node { depth, entries, .. } = &mut self.nodes[at];
        let first = (bits << *depth >> 120) as usize;
        entries[first..first + (256 >> (len - *depth))].fill(leaf);
    }

    /// Skips nodes in which all addresses except those of one child have the same entry.
    fn shorten(&mut self) {
        let only_children: Vec<_> = self.nodes.iter().map(Node::only_child).collect();
        self.root = self.past(self.root, &only_children);
        for at in 0..self.nodes.len() {
            let mut entries = self.nodes[at].entries;
            for entry in entries.iter_mut().filter(|entry| **entry & CHILD != 0) {
                *entry = self.past(*entry, &only_children);
            }
            self.nodes[at].entries = entries;
        }
    }

    /// The entry that replaces `entry` when nodes are skipped; `only_children` is indexed by node.
    fn past(&mut self, entry: u32, only_children: &[Option<(u32, u32)>]) -> u32 {
        let mut to = entry;
        let mut other = None;
        while to & CHILD != 0
            && let Some((child, leaf)) = only_children[(to & !CHILD) as usize]
            && other.is_none_or(|other| other == leaf)
        {
            (to, other) = (child, Some(leaf));
        }
        if let Some(other) = other {
            let node = &mut self.nodes[(to & !CHILD) as usize];
            (node.unread, node.other) = (!(u128::MAX >> node.depth), other);
        }
        to
    }
}

/// The routes of a table, from the least to the most preferred.
fn of_table(network: &Network, family: Family, table: Table) -> Vec<&Route> {
    let mut found: Vec<&Route> = network
        .routes
        .iter()
        .rev()
        .filter(|route| route.table == table)
        .filter(|route| Family::of(route.dest.addr()) == family)
        .collect();
    found.sort_by_key(|route| (route.dest.len(), Reverse(route.metric)));
    found
}

/// Appends a target. Returns its entry.
fn add(targets: &mut Vec<Target>, target: Target) -> u32 {
    targets.push(target);
    targets.len() as u32
}

impl Node {
    /// The only entry with a child, and the entry of all other addresses.
    fn only_child(&self) -> Option<(u32, u32)> {
        let mut children = self.entries.iter().filter(|entry| **entry & CHILD != 0);
        let child = *children.next()?;
        let other = self.entries[usize::from(self.entries[0] == child)];
        let is_only = self.entries.iter().filter(|entry| **entry != other).count() == 1;
        (is_only && other & CHILD == 0).then_some((child, other))
    }
}

impl Target {
    /// The target of a route found by a look-up in `table`.
    fn of(route: &Route, table: Table, by_ifindex: &HashMap<u32, LinkId>) -> Self {
        Self {
            // The kernel would send on links that xvs does not use. Such packets must not leave on another link.
            action: Action::of(&route.action, by_ifindex).unwrap_or(Action::Unreachable),
            preferred_source: route.preferred_source,
            mtu: route.mtu,
            table: Some(table),
        }
    }

    /// The largest packet, in bytes, on a link with this MTU.
    pub(super) fn mtu_by(&self, link: u32) -> u32 {
        self.mtu.map_or(link, |mtu| mtu.min(link))
    }

    /// The gateway of the first next hop on `link`, if it has one.
    pub(super) fn gateway_on(&self, link: LinkId) -> Option<IpAddr> {
        match &self.action {
            Action::Send(hops) => hops.hops.iter().find(|hop| hop.link == link)?.via,
            _ => None,
        }
    }
}

impl Action {
    fn of(action: &RouteAction, by_ifindex: &HashMap<u32, LinkId>) -> Option<Self> {
        let nexthops = match action {
            RouteAction::Local => return Some(Self::Local),
            RouteAction::Broadcast => return Some(Self::Broadcast),
            // A route to a VRF refuses packets to which the VRF's table has no route.
            RouteAction::Unreachable | RouteAction::Throw | RouteAction::Vrf(_) => {
                return Some(Self::Unreachable);
            }
            RouteAction::Unicast(nexthops) => nexthops,
        };
        let mut hops = Vec::with_capacity(nexthops.len());
        let mut total = 0;
        for hop in nexthops {
            let Some(&link) = by_ifindex.get(&hop.ifindex) else { continue };
            total += u64::from(hop.weight.max(1));
            hops.push(NextHop { link, via: hop.via, gateway: None, weight_up_to: total });
        }
        (!hops.is_empty()).then_some(Self::Send(NextHops { hops, total }))
    }
}

impl NextHops {
    /// The next hop that the upper half of a flow's hash selects.
    #[inline]
    pub(super) fn pick(&self, flow_hash: u64) -> &NextHop {
        if let [only] = self.hops.as_slice() {
            return only;
        }
        let point = ((u128::from(flow_hash >> 32) * u128::from(self.total)) >> 32) as u64;
        // `point` is below `total`, the cumulative weight of the last next hop.
        &self.hops[self.hops.partition_point(|hop| hop.weight_up_to <= point)]
    }
}

/// The address bits, left-aligned, so that prefixes of both families are the same kind of mask.
pub(super) fn aligned(addr: IpAddr) -> (Family, u128) {
    match addr {
        IpAddr::V4(v4) => (Family::V4, u128::from(u32::from(v4)) << 96),
        IpAddr::V6(v6) => (Family::V6, u128::from(v6)),
    }
}

/// The bit that indicates an entry with the index of a node.
const CHILD: u32 = 1 << 31;
