//! Access lists: networks whose packets services do not get (deny), or the only networks whose packets services get
//! (allow).
//!
//! A packet to a service is checked by its source, whether or not it has a connection, so the connections of a denied
//! client are cut. A deny list wins over an allow list, and a client has to pass every list. Replies, ICMP errors and
//! packets that belong to no service are never checked. While there are lists, workers check every packet to a service;
//! the XDP program drops most refused packets earlier (`steering/lists.rs`). Cost: a check of one bit for a packet
//! whose client is in no list. For other packets, and with allow lists for all packets: a look-up of the service, and
//! one for each prefix length in use. A change to a list rebuilds the bits: a pass over all networks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{HashMap, HashSet};
use xvs_proto::{LinkId, Packet, Prefix};
use xvs_sched::ServiceKey;

use super::Snapshot;
use crate::bpf::{XVS_V4_BITS, XVS_V6_BITS};
use crate::verdict::DropReason;

/// All lists.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    /// The lists of all services.
    pub all: Scope,
    /// The lists of single services.
    pub services: HashMap<ServiceKey, Scope>,
    filter: Filter,
    /// Whether there is an allow list.
    allows: bool,
}

/// The lists of all services, or of one: each has networks from commands and networks from a file.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Packets from these are dropped.
    pub deny: List,
    /// If it is in force, all other packets are dropped.
    pub allow: List,
}

/// A list.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// The list's networks: from commands, and from its file.
    pub parts: [Option<Arc<Networks>>; 2],
    /// Packets that workers have dropped by it.
    pub dropped: Arc<AtomicU64>,
}

impl Lists {
    /// These lists. Costs a pass over their networks.
    pub fn new(all: Scope, services: impl IntoIterator<Item = (ServiceKey, Scope)>) -> Self {
        let services: HashMap<_, _> = services.into_iter().collect();
        let mut filter = Filter::default();
        let mut allows = false;
        for Scope { deny, allow } in services.values().chain([&all]) {
            deny.networks().chain(allow.networks()).for_each(|networks| filter.add(networks));
            allows |= allow.is_in_force();
        }
        Self { all, services, filter, allows }
    }

    /// Whether a list has a network.
    pub fn is_in_force(&self) -> bool {
        self.services
            .values()
            .chain([&self.all])
            .any(|scope| scope.deny.is_in_force() || scope.allow.is_in_force())
    }

    /// The bits of the first stage.
    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Whether there is an allow list.
    pub(crate) fn allows(&self) -> bool {
        self.allows
    }

    /// Whether a packet from this source may be refused. True also for a few other sources.
    pub(crate) fn concern(&self, source: IpAddr) -> bool {
        self.allows || self.filter.may_have(source)
    }

    /// The list that refuses a packet to a service, with the reason; `None` if the packet may pass.
    fn refusal(&self, service: &ServiceKey, source: IpAddr) -> Option<(&List, DropReason)> {
        let scopes = self.services.get(service).into_iter().chain([&self.all]);
        scopes
            .clone()
            .map(|scope| &scope.deny)
            .find(|list| list.has(source))
            .map(|list| (list, DropReason::Denied))
            .or_else(|| {
                scopes
                    .map(|scope| &scope.allow)
                    .find(|list| list.is_in_force() && !list.has(source))
                    .map(|list| (list, DropReason::NotAllowed))
            })
    }

    /// A copy of the lists, without counting drops.
    pub(crate) fn uncounted(&self) -> Self {
        let services = self.services.iter().map(|(key, scope)| (*key, scope.uncounted())).collect();
        Self { all: self.all.uncounted(), services, ..self.clone() }
    }
}

impl Scope {
    fn uncounted(&self) -> Self {
        Self { deny: self.deny.uncounted(), allow: self.allow.uncounted() }
    }
}

impl Snapshot {
    /// Whether a list refuses a packet, as [`Self::refuses`] does.
    pub(crate) fn is_refused(&self, link: LinkId, packet: &Packet, is_reply: impl FnOnce() -> bool) -> bool {
        self.refusal(link, packet, is_reply).is_some()
    }

    /// The reason why a list refuses a packet, which is counted at the list; `None` if it may pass. A reply on a
    /// connection always may, even if it goes to a local address with a service.
    #[inline]
    pub fn refuses(
        &self,
        link: LinkId,
        packet: &Packet,
        is_reply: impl FnOnce() -> bool,
    ) -> Option<DropReason> {
        let (list, reason) = self.refusal(link, packet, is_reply)?;
        // Relaxed: the count orders nothing.
        list.dropped.fetch_add(1, Ordering::Relaxed);
        Some(reason)
    }

    #[inline]
    fn refusal(
        &self,
        link: LinkId,
        packet: &Packet,
        is_reply: impl FnOnce() -> bool,
    ) -> Option<(&List, DropReason)> {
        let lists = self.lists.as_deref().filter(|lists| lists.concern(packet.flow.source.addr))?;
        let service = self.service_of(link, packet)?;
        lists.refusal(&service.key, packet.flow.source.addr).filter(|_| !is_reply())
    }
}

impl List {
    /// Whether it has a network.
    pub fn is_in_force(&self) -> bool {
        self.networks().any(|networks| !networks.is_empty())
    }

    /// The number of networks. A network in both sets counts twice.
    pub fn size(&self) -> usize {
        self.networks().map(Networks::len).sum()
    }

    /// Whether an address is in one of the list's networks.
    fn has(&self, addr: IpAddr) -> bool {
        self.networks().any(|networks| networks.have(addr))
    }

    fn uncounted(&self) -> Self {
        Self { parts: self.parts.clone(), dropped: Arc::default() }
    }

    fn networks(&self) -> impl Iterator<Item = &Networks> {
        self.parts.iter().flatten().map(Arc::as_ref)
    }
}

/// A set of networks, by their prefix lengths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Vec<(u8, HashSet<u32>)>,
    v6: Vec<(u8, HashSet<u128>)>,
}

impl FromIterator<Prefix> for Networks {
    fn from_iter<I: IntoIterator<Item = Prefix>>(prefixes: I) -> Self {
        let mut networks = Self::default();
        for prefix in prefixes {
            match prefix.addr() {
                IpAddr::V4(addr) => enter(&mut networks.v4, prefix.len(), u32::from(addr)),
                IpAddr::V6(addr) => enter(&mut networks.v6, prefix.len(), u128::from(addr)),
            }
        }
        networks
    }
}

fn enter<A: Eq + std::hash::Hash>(lengths: &mut Vec<(u8, HashSet<A>)>, len: u8, addr: A) {
    let place = match lengths.iter().position(|(known, _)| *known == len) {
        Some(place) => place,
        None => {
            lengths.push((len, HashSet::new()));
            lengths.len() - 1
        }
    };
    lengths[place].1.insert(addr);
}

impl Networks {
    /// The number of networks.
    pub fn len(&self) -> usize {
        self.v4
            .iter()
            .map(|(_, networks)| networks.len())
            .chain(self.v6.iter().map(|(_, networks)| networks.len()))
            .sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an address is in one of the networks.
    fn have(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => {
                let addr = u32::from(addr);
                self.v4.iter().any(|(len, networks)| {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*len)).unwrap_or(0);
                    networks.contains(&(addr & mask))
                })
            }
            IpAddr::V6(addr) => {
                let addr = u128::from(addr);
                self.v6.iter().any(|(len, networks)| {
                    let mask = u128::MAX.checked_shl(128 - u32::from(*len)).unwrap_or(0);
                    networks.contains(&(addr & mask))
                })
            }
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Prefix> {
        let v4 = self
            .v4
            .iter()
            .flat_map(|(len, all)| all.iter().map(|addr| (IpAddr::from(addr.to_be_bytes()), *len)));
        let v6 = self
            .v6
            .iter()
            .flat_map(|(len, all)| all.iter().map(|addr| (IpAddr::from(addr.to_be_bytes()), *len)));
        v4.chain(v6).filter_map(|(addr, len)| Prefix::new(addr, len))
    }

    /// The prefix lengths of each family.
    pub(crate) fn lengths(&self) -> [BTreeSet<u8>; 2] {
        [self.v4.iter().map(|(len, _)| *len).collect(), self.v6.iter().map(|(len, _)| *len).collect()]
    }
}

/// The first stage of all lists: a bit for each IPv4 /24, and one for each hash of an IPv6 /48. An address whose bit is
/// 0 is in no list.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    words: Arc<[u64]>,
    /// Whether an IPv6 network is larger than a /48, so that each address may be in it.
    pub(crate) wide_v6: bool,
}

/// The bits of IPv4, which come first.
const V4_BITS: usize = XVS_V4_BITS as usize;

impl Filter {
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    #[inline]
    fn may_have(&self, addr: IpAddr) -> bool {
        let bit = match addr {
            IpAddr::V4(addr) => (u32::from(addr) >> 8) as usize,
            IpAddr::V6(_) if self.wide_v6 => return true,
            IpAddr::V6(addr) => V4_BITS + hash48((u128::from(addr) >> 64) as u64),
        };
        // Without lists there are no words.
        self.words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn add(&mut self, networks: &Networks) {
        if networks.is_empty() {
            return;
        }
        if self.words.is_empty() {
            self.words = vec![0; (V4_BITS + XVS_V6_BITS as usize) / 64].into();
        }
        let words = Arc::make_mut(&mut self.words);
        for (len, networks) in &networks.v4 {
            let bits = 1 << (24 - u32::from(*len.min(&24)));
            for addr in networks {
                let first = (addr >> 8) as usize;
                (first..first + bits).for_each(|bit| words[bit / 64] |= 1 << (bit % 64));
            }
        }
        for (len, networks) in &networks.v6 {
            self.wide_v6 |= *len < 48;
            for addr in networks.iter().filter(|_| *len >= 48) {
                let bit = V4_BITS + hash48((addr >> 64) as u64);
                words[bit / 64] |= 1 << (bit % 64);
            }
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self { words: Arc::new([]), wide_v6: false }
    }
}

/// The hash of an address's /48, given the first half of its bits. The XDP program computes the same hash.
fn hash48(upper: u64) -> usize {
    ((upper >> 16).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 41) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(all: &[&str]) -> Option<Arc<Networks>> {
        Some(Arc::new(all.iter().map(|text| text.parse::<Prefix>().unwrap()).collect()))
    }

    fn list(all: &[&str]) -> List {
        List { parts: [networks(all), None], ..List::default() }
    }

    #[test]
    fn deny_wins_over_allow_and_a_client_has_to_pass_every_list() {
        let service: ServiceKey = "TCP 198.51.100.1:80".parse().unwrap();
        let other: ServiceKey = "TCP 198.51.100.1:81".parse().unwrap();
        let own = Scope { deny: list(&["192.0.2.8/29"]), allow: list(&["192.0.2.0/24"]) };
        let all = Scope { deny: list(&["203.0.113.7", "192.0.2.77"]), allow: List::default() };
        let lists = Lists::new(all, [(service, own)]);
        let reason = |service, source: &str| {
            lists.refusal(&service, source.parse().unwrap()).map(|(_, reason)| reason)
        };
        assert_eq!(reason(service, "192.0.2.1"), None);
        assert_eq!(reason(service, "192.0.2.9"), Some(DropReason::Denied));
        assert_eq!(reason(service, "192.0.2.77"), Some(DropReason::Denied));
        assert_eq!(reason(service, "203.0.113.8"), Some(DropReason::NotAllowed));
        assert_eq!(reason(other, "203.0.113.8"), None);
        assert_eq!(reason(other, "203.0.113.7"), Some(DropReason::Denied));
    }

    #[test]
    fn every_address_of_a_network_passes_the_first_stage_whatever_the_prefix_length() {
        for prefix in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/23", "192.0.2.0/24", "192.0.2.77/32"] {
            let lists = Lists::new(Scope { deny: list(&[prefix]), ..Scope::default() }, []);
            let prefix: Prefix = prefix.parse().unwrap();
            let (first, wild) = match prefix.addr() {
                IpAddr::V4(addr) => (u32::from(addr), u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0)),
                IpAddr::V6(_) => unreachable!(),
            };
            for addr in [first, first | wild, first | (wild / 3)] {
                assert!(lists.concern(IpAddr::from(addr.to_be_bytes())), "{prefix}");
            }
            if first > 0 {
                assert!(!lists.concern(IpAddr::from((first - 257).to_be_bytes())), "{prefix}");
            }
        }
        for prefix in ["::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1:2::/64", "2001:db8::1/128"] {
            let lists = Lists::new(Scope { deny: list(&[prefix]), ..Scope::default() }, []);
            let prefix: Prefix = prefix.parse().unwrap();
            assert!(lists.concern(prefix.addr()), "{prefix}");
        }
        let lists = Lists::new(Scope { deny: list(&["2001:db8:1::/48"]), ..Scope::default() }, []);
        assert!(!lists.concern("2001:db8:2::1".parse().unwrap()));
    }
}
