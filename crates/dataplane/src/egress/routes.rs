//! One routing table as a longest-prefix match over hash maps.
//!
//! Built with the snapshot, asked per packet. Prefixes of both families are leading bits of 128; for each family
//! the lengths in use are kept longest first, and a look-up probes one map with the destination cut to each.
//! Cost: one probe a length in use, 33 or 129 at worst; no allocation.

use std::net::IpAddr;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use xvs_proto::Family;

use crate::port::LinkId;

use super::aligned;
use super::model::{Route, RouteAction};

/// The routes of one table.
#[derive(Debug, Default)]
pub(super) struct Routes {
    v4: Prefixes,
    v6: Prefixes,
}

#[derive(Debug, Default)]
struct Prefixes {
    /// Lengths in use with their masks, longest first.
    lengths: Vec<(u8, u128)>,
    targets: HashMap<(u128, u8), Target>,
}

/// What the best route of a prefix does.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) action: Action,
    pub(super) preferred_source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
}

#[derive(Debug)]
pub(super) enum Action {
    Local,
    Unreachable,
    Send(Ways),
}

/// One or more next hops; never none.
#[derive(Debug)]
pub(super) struct Ways {
    ways: Vec<Way>,
    total: u64,
}

#[derive(Debug)]
pub(super) struct Way {
    pub(super) link: LinkId,
    pub(super) via: Option<IpAddr>,
    /// Sum of the weights up to and with this one.
    upto: u64,
}

impl Routes {
    /// The table of these routes: of those to the same prefix the lowest metric, of equals the first.
    pub(super) fn build<'a>(
        routes: impl Iterator<Item = &'a Route>,
        by_ifindex: &HashMap<u32, LinkId>,
    ) -> Self {
        let mut sorted: Vec<&Route> = routes.collect();
        sorted.sort_by_key(|route| route.metric);
        let mut built = Self::default();
        for route in sorted {
            let Some(action) = Action::of(&route.action, by_ifindex) else { continue };
            let (family, bits) = aligned(route.dest.addr());
            let target = Target { action, preferred_source: route.preferred_source, mtu: route.mtu };
            built.of_mut(family).insert(bits, route.dest.len(), target);
        }
        built
    }

    pub(super) fn find(&self, family: Family, bits: u128) -> Option<&Target> {
        let prefixes = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        prefixes.lengths.iter().find_map(|&(len, mask)| prefixes.targets.get(&(bits & mask, len)))
    }

    fn of_mut(&mut self, family: Family) -> &mut Prefixes {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl Prefixes {
    fn insert(&mut self, bits: u128, len: u8, target: Target) {
        if let Entry::Vacant(vacant) = self.targets.entry((bits, len)) {
            vacant.insert(target);
        }
        let at = self.lengths.partition_point(|&(longer, _)| longer > len);
        if self.lengths.get(at).is_none_or(|&(found, _)| found != len) {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            self.lengths.insert(at, (len, mask));
        }
    }
}

impl Target {
    /// The gateway of the first way by `link`, if that has one.
    pub(super) fn gateway_by(&self, link: LinkId) -> Option<IpAddr> {
        match &self.action {
            Action::Send(ways) => ways.ways.iter().find(|way| way.link == link)?.via,
            _ => None,
        }
    }
}

impl Action {
    fn of(action: &RouteAction, by_ifindex: &HashMap<u32, LinkId>) -> Option<Self> {
        let hops = match action {
            RouteAction::Local => return Some(Self::Local),
            RouteAction::Unreachable => return Some(Self::Unreachable),
            RouteAction::Unicast(hops) => hops,
        };
        let (mut ways, mut total) = (Vec::with_capacity(hops.len()), 0);
        for hop in hops {
            let Some(&link) = by_ifindex.get(&hop.ifindex) else { continue };
            total += u64::from(hop.weight.max(1));
            ways.push(Way { link, via: hop.via, upto: total });
        }
        (!ways.is_empty()).then_some(Self::Send(Ways { ways, total }))
    }
}

impl Ways {
    /// One of them, by the high half of a flow's hash.
    pub(super) fn pick(&self, flow_hash: u64) -> &Way {
        let [only] = self.ways.as_slice() else {
            let point = ((u128::from(flow_hash >> 32) * u128::from(self.total)) >> 32) as u64;
            let at = self.ways.partition_point(|way| way.upto <= point);
            return &self.ways[at.min(self.ways.len() - 1)];
        };
        only
    }
}
