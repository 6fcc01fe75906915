//! The contents of the steering program's maps, and their change for a change of rules.
//!
//! Plain values, no system call. The cost of a change depends only on its size. Not here: writing the maps (`mod.rs`).

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use xvs_proto::{Endpoint, Prefix, Protocol};

use super::rules::{OwnSender, SteeringRules, spanning};
pub(super) use crate::bpf::xvs_endpoint as EndpointKey;
use crate::bpf::{
    XVS_ANY_PORT, XVS_CLIENTS, XVS_DESTINATION, XVS_FILTER_BITS, XVS_LOCAL, XVS_LOCAL_PROTOCOL,
    XVS_MARKER_SIZE, XVS_PROBE, XVS_SERVICE, XVS_TRANSLATED, XVS_TUNNEL, XVS_V4, XVS_V6, in_words,
    xvs_address, xvs_filter, xvs_network, xvs_prefix,
};

/// The contents of a map, or the wanted contents of some of its keys: key to roles; 0: the key is not in the map.
pub(super) type Roles<K> = BTreeMap<K, u32>;

/// The contents of all steering maps, or a change of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Image {
    pub(super) endpoints: Roles<EndpointKey>,
    pub(super) addresses: Roles<xvs_address>,
    pub(super) prefixes: Roles<xvs_prefix>,
    /// Not roles but ports. The last port is never 0.
    pub(super) translated: Roles<xvs_address>,
}

impl Image {
    pub(super) fn of(rules: &SteeringRules) -> Self {
        let mut image = Self::steered_by(rules);
        for &addr in &rules.local_addresses {
            *image.addresses.entry(address_key(addr)).or_default() |= XVS_LOCAL;
        }
        image
    }

    /// The contents for these rules without the local addresses.
    fn steered_by(rules: &SteeringRules) -> Self {
        let mut image = Self::default();
        for (endpoints, role) in [(&rules.services, XVS_SERVICE), (&rules.nat_destinations, XVS_DESTINATION)]
        {
            for &(protocol, at) in endpoints {
                *image.endpoints.entry(endpoint_key(protocol, at)).or_default() |= role;
                *image.addresses.entry(address_key(at.addr)).or_default() |= role;
            }
        }
        for &(protocol, at) in &rules.own_clients {
            *image.endpoints.entry(endpoint_key(protocol, at)).or_default() |= XVS_CLIENTS;
        }
        for &at in &rules.probe_sources {
            *image.endpoints.entry(endpoint_key(Protocol::TCP, at)).or_default() |= XVS_PROBE;
            *image.addresses.entry(address_key(at.addr)).or_default() |= XVS_PROBE;
        }
        for &addr in &rules.tunnel_ends {
            *image.addresses.entry(address_key(addr)).or_default() |= XVS_TUNNEL;
        }
        for (&addr, &ports) in &rules.translated {
            *image.addresses.entry(address_key(addr)).or_default() |= XVS_TRANSLATED;
            image.translated.insert(address_key(addr), join_ports(ports));
        }
        image.prefixes = rules.wide.iter().map(|&prefix| (prefix_key(prefix), XVS_SERVICE)).collect();
        image
    }

    /// The change that turns this into `wanted`. Cost: one pass over both.
    pub(super) fn towards(&self, mut wanted: Self) -> Self {
        clear_others(&mut wanted.endpoints, &self.endpoints);
        clear_others(&mut wanted.addresses, &self.addresses);
        clear_others(&mut wanted.prefixes, &self.prefixes);
        clear_others(&mut wanted.translated, &self.translated);
        wanted
    }

    /// The change that adds the traffic of `rules`, as [`SteeringRules::add`] defines. The cost is proportional to
    /// `rules`.
    pub(super) fn with(&self, rules: &SteeringRules) -> Self {
        let mut change = Self::steered_by(rules);
        change.endpoints.iter_mut().for_each(|(key, roles)| *roles |= roles_of(&self.endpoints, key));
        change.addresses.iter_mut().for_each(|(key, roles)| *roles |= roles_of(&self.addresses, key));
        for (key, ports) in &mut change.translated {
            let known = self.translated.get(key).copied().unwrap_or(*ports);
            *ports = join_ports(spanning(split_ports(*ports), split_ports(known)));
        }
        change
    }

    /// The change that removes the traffic of `rules`, as [`SteeringRules::subtract`] defines. The cost is proportional
    /// to `rules`. An address keeps the role of services, destinations or probes while it has an endpoint with this
    /// role.
    pub(super) fn without(&self, rules: &SteeringRules) -> Self {
        let Self { endpoints, addresses, prefixes, translated } = Self::steered_by(rules);
        let endpoints: BTreeMap<_, u32> = endpoints
            .into_iter()
            .map(|(key, roles)| (key, roles_of(&self.endpoints, &key) & !roles))
            .collect();
        let addresses = addresses
            .into_iter()
            .map(|(at, roles)| {
                let left = self
                    .endpoints
                    .range(endpoints_at(&at))
                    .filter(|(key, _)| is_at(key, &at))
                    .fold(0, |left, (key, roles)| left | endpoints.get(key).unwrap_or(roles));
                let kept = left & (XVS_SERVICE | XVS_DESTINATION | XVS_PROBE);
                (at, roles_of(&self.addresses, &at) & (!roles | kept))
            })
            .collect();
        Self {
            addresses,
            prefixes: prefixes.into_keys().map(|key| (key, 0)).collect(),
            translated: translated.into_keys().map(|key| (key, 0)).collect(),
            endpoints,
        }
    }
}

/// The numbers of entries in the maps whose size is a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Steered endpoints.
    pub endpoints: usize,
    /// Their addresses, and others.
    pub addresses: usize,
}

impl From<&SteeringRules> for Counts {
    fn from(rules: &SteeringRules) -> Self {
        let image = Image::of(rules);
        Self { endpoints: image.endpoints.len(), addresses: image.addresses.len() }
    }
}

/// The number of words of the filter, the first of which states whether there are networks, and the index of its bits.
pub(super) const FILTER_WORDS: usize = in_words(size_of::<xvs_filter>());
const FILTER_BITS: usize = in_words(offset_of!(xvs_filter, words));

impl Image {
    /// The filter by which the program finds that a packet matches none of these keys.
    pub(super) fn filter(&self) -> Box<[u64; FILTER_WORDS]> {
        let mut words = Box::new([0; FILTER_WORDS]);
        words[0] = self.prefixes.values().any(|roles| *roles != 0).into();
        for (key, _) in self.endpoints.iter().filter(|(_, roles)| **roles != 0) {
            set_bit(&mut words, &key.addr, key.port, key.protocol);
        }
        for key in self.translated.keys() {
            set_bit(&mut words, &key.addr, XVS_ANY_PORT as u16, XVS_LOCAL_PROTOCOL as u8);
        }
        words
    }

    /// Whether packets to an endpoint may be marked.
    pub(super) fn marks(&self, key: &EndpointKey) -> bool {
        self.prefixes.keys().any(|prefix| is_in(key, prefix))
    }

    /// Whether this machine has the endpoint, and packets from this sender are redirected there: from a NAT real server
    /// at one port, unless that is a virtual endpoint, which its clients know; or from clients to a service.
    pub(super) fn has_own(&self, sender: OwnSender, key: &EndpointKey) -> bool {
        let at = xvs_address { addr: key.addr, family: key.family.into() };
        let roles = roles_of(&self.endpoints, key);
        let is_so = match sender {
            OwnSender::Server => {
                roles & (XVS_SERVICE | XVS_DESTINATION) == XVS_DESTINATION && key.port != XVS_ANY_PORT as u16
            }
            OwnSender::Client => roles & XVS_CLIENTS != 0,
        };
        is_so && roles_of(&self.addresses, &at) & XVS_LOCAL != 0
    }
}

/// Sets the bit of an endpoint, whose port is in network order, as the program computes it.
fn set_bit(words: &mut [u64; FILTER_WORDS], addr: &[u8; 16], port: u16, protocol: u8) {
    let folded = addr.as_chunks().0.iter().fold(0, |folded, word| folded ^ u32::from_ne_bytes(*word));
    let key = u64::from(folded) << 32 | u64::from(port) << 16 | u64::from(protocol);
    let bit = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - XVS_FILTER_BITS);
    words[FILTER_BITS + bit as usize / 64] |= 1 << (bit % 64);
}

/// Whether the address of an endpoint is in a network.
fn is_in(key: &EndpointKey, prefix: &xvs_prefix) -> bool {
    let mask = u128::MAX.checked_shl(FAMILY_BITS + 128 - prefix.bits).unwrap_or(0);
    let [network, addr] = [prefix.addr, key.addr].map(|bytes| u128::from_be_bytes(bytes) & mask);
    prefix.family[0] == key.family && network == addr
}

/// Clears the installed keys that are not wanted.
fn clear_others<K: Copy + Ord>(wanted: &mut Roles<K>, installed: &Roles<K>) {
    for key in installed.keys() {
        wanted.entry(*key).or_insert(0);
    }
}

fn roles_of<K: Ord>(map: &Roles<K>, key: &K) -> u32 {
    map.get(key).copied().unwrap_or(0)
}

/// The bytes before a frame that the program must leave to the kernel.
pub(crate) type Marker = [u8; XVS_MARKER_SIZE as usize];

/// The bits of a prefix that the family occupies.
const FAMILY_BITS: u32 = 32;

pub(super) fn network_key(prefix: Prefix) -> xvs_network {
    let (family, addr) = split(prefix.addr());
    xvs_network {
        addr: zerocopy::transmute!(addr),
        family_and_len: u32::from(family) << 8 | u32::from(prefix.len()),
    }
}

/// The number of the IP version, and the address at the beginning of 16 bytes.
fn split(addr: IpAddr) -> (u8, [u8; 16]) {
    match addr {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (XVS_V4 as u8, bytes)
        }
        IpAddr::V6(v6) => (XVS_V6 as u8, v6.octets()),
    }
}

pub(super) fn endpoint_key(protocol: Protocol, at: Endpoint) -> EndpointKey {
    let (family, addr) = split(at.addr);
    EndpointKey { addr, port: at.port.to_be(), protocol: protocol.0, family }
}

/// The keys of all endpoints at an address, and of some at others, which [`is_at`] excludes.
fn endpoints_at(at: &xvs_address) -> RangeInclusive<EndpointKey> {
    let first = EndpointKey { addr: at.addr, port: 0, protocol: 0, family: 0 };
    let last = EndpointKey { addr: at.addr, port: u16::MAX, protocol: u8::MAX, family: u8::MAX };
    first..=last
}

/// Whether an endpoint with the bytes of this address is also of its family.
fn is_at(endpoint: &EndpointKey, at: &xvs_address) -> bool {
    at.family == u32::from(endpoint.family)
}

fn join_ports((first, last): (u16, u16)) -> u32 {
    u32::from(first) << 16 | u32::from(last)
}

fn split_ports(ports: u32) -> (u16, u16) {
    ((ports >> 16) as u16, ports as u16)
}

fn address_key(addr: IpAddr) -> xvs_address {
    let (family, addr) = split(addr);
    xvs_address { addr, family: family.into() }
}

fn prefix_key(prefix: Prefix) -> xvs_prefix {
    let (family, addr) = split(prefix.addr());
    xvs_prefix { bits: FAMILY_BITS + u32::from(prefix.len()), family: [family, 0, 0, 0], addr }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::clock::Millis;
    use crate::conn::{RECORD, RecordState as State, Used, offloaded_word as flow};
    use crate::offload::layout::{key_value, part};

    #[test]
    fn the_filter_has_a_bit_for_each_endpoint_and_each_local_address_of_fullnat() {
        let bits = |rules| -> u32 {
            let filter = Image::of(&rules).filter();
            assert_eq!(filter[0], u64::from(!rules.wide.is_empty()));
            filter[1..].iter().map(|word| word.count_ones()).sum()
        };
        let service =
            |number: u16| (Protocol::TCP, Endpoint::new([192, 0, 2, number as u8], 80 + number / 256));
        let empty = SteeringRules::default;
        assert_eq!(bits(empty()), 0);
        assert_eq!(bits(SteeringRules { wide: ["198.51.100.0/24".parse().unwrap()].into(), ..empty() }), 0);
        assert_eq!(bits(SteeringRules { local_addresses: [[192, 0, 2, 1].into()].into(), ..empty() }), 0);
        assert_eq!(
            bits(SteeringRules { translated: [([192, 0, 2, 1].into(), (1, 9))].into(), ..empty() }),
            1
        );
        // About 122 out of 4,096 endpoints share a bit if bits are chosen at random.
        let set = bits(SteeringRules { services: (0..4096).map(service).collect(), ..empty() });
        assert!(set > 3900, "{set}");
    }

    #[test]
    fn records_and_words_are_laid_out_as_the_program_reads_them() {
        let mut source = String::from("#include \"bpf/maps.h\"\n#include <stddef.h>\n");
        let mut claim = |what: String| source.push_str(&format!("_Static_assert({what}, \"\");\n"));
        for (name, size) in [("flow_part", 8 * flow::PART), ("flow", 8 * RECORD)] {
            claim(format!("sizeof(struct xvs_{name}) == {size}"));
        }
        for (field, word) in [
            ("state", flow::STATE),
            ("epoch", flow::EPOCHS),
            ("used", flow::USED),
            ("count", flow::COUNTS),
            ("part", flow::PARTS),
            ("part[1]", flow::PARTS + flow::PART),
            ("connection", flow::CONNECTION),
            ("old_v6", flow::OLD_ADDRESSES),
            ("v6", flow::ADDRESSES),
        ] {
            claim(format!("offsetof(struct xvs_flow, {field}) == {}", 8 * word));
        }
        for (field, at) in [
            ("in_ifindex", part::IN_IFINDEX),
            ("out_ifindex", part::OUT_IFINDEX),
            ("link", part::LINK),
            ("to", part::TO),
            ("mtu", part::MTU),
            ("source_v4", part::ENDS.start..part::ENDS.start + 4),
            ("dest_v4", part::ENDS.start + 4..part::ENDS.start + 8),
            ("source_port", part::ENDS.start + 8..part::ENDS.start + 10),
            ("dest_port", part::ENDS.start + 10..part::ENDS.end),
            ("network_sum", part::NETWORK_SUM),
            ("transport_sum", part::TRANSPORT_SUM),
            ("flags", part::FLAGS),
            ("old_source_v4", part::OLD_ENDS.start..part::OLD_ENDS.start + 4),
            ("old_dest_v4", part::OLD_ENDS.start + 4..part::OLD_ENDS.start + 8),
            ("old_source_port", part::OLD_ENDS.start + 8..part::OLD_ENDS.start + 10),
            ("old_dest_port", part::OLD_ENDS.start + 10..part::OLD_ENDS.end),
            ("protocol", part::PROTOCOL..part::PROTOCOL + 1),
            ("family", part::FAMILY..part::FAMILY + 1),
        ] {
            claim(format!("offsetof(struct xvs_flow_part, {field}) == {}", at.start));
            claim(format!("sizeof(((struct xvs_flow_part *)0)->{field}) == {}", at.len()));
        }
        let value = key_value(5, 7);
        claim(format!("XVS_FLOW_USE({value}u) == 5 && XVS_FLOW_RECORD({value}u) == 7"));
        claim(format!("offsetof(struct xvs_flow, outer) == {}", 8 * flow::ADDRESSES));
        for (name, bit) in [
            ("IN_FORCE", State::IN_FORCE),
            ("FOLLOWS", State::FOLLOWS),
            ("NO_OUTPUT", State::NO_OUTPUT),
            ("PROVEN", State::PROVEN),
            ("WAS_ESTABLISHED", State::WAS_ESTABLISHED),
            ("SECURE", State::SECURE),
            ("AWAITS", State::AWAITS),
            ("LAST_LINE", State::LAST_LINE),
            ("NEAR", State::NEAR),
            ("USES", State::USES),
        ] {
            claim(format!("XVS_FLOW_{name} == {bit}"));
        }
        let state = State::unused(5).begun(State::FOLLOWS, 10, Some(0x1234_5678));
        claim(format!("XVS_FLOW_STATE({}u) == 10 && XVS_FLOW_IN_USE(5) == {}", state.0, State::unused(5).0));
        claim(format!("XVS_FLOW_DUE({}u) == 0x12345678", state.0));
        claim(format!("XVS_FLOW_WITH_STATE({0}u, 1) == {1}u", state.0, state.0 & !(15 << 8) | 1 << 8));
        let timed = State::unused(5).begun(State::TIMED, 10, None);
        claim(format!("XVS_FLOW_RESPONSE({}u) == XVS_FLOW_TIMED", timed.0));
        let used = Used::new(7, Millis(4_000_000_000).into());
        claim(format!("XVS_FLOW_USED(7, 4000000000000000ull) == {0}u && XVS_FLOW_SLOT({0}u) == 7", used.0));
        assert_eq!((used.slot(), used.at()), (7, Millis(4_000_000_000)));
        for (name, value) in [("LIMIT_OF", 0x1234), ("FIRST_PORT", 0x1234), ("LAST_PORT", 0x5678)] {
            claim(format!("XVS_{name}(0x12345678) == {value}"));
        }
        let mut clang = Command::new("clang")
            .args(["-fsyntax-only", "-I.", "-xc", "-"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped())
            .spawn()
            .expect("clang, which compiled the program");
        clang.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        assert!(clang.wait().unwrap().success(), "maps.h and this module disagree");
    }

    fn from(last: u8, port: u16) -> (Protocol, Endpoint) {
        (Protocol::TCP, Endpoint::new([192, 0, 2, last], port))
    }

    /// Rules of every kind, chosen by the bits of a number.
    fn drawn(bits: u32) -> SteeringRules {
        let bit = |at: u32| bits >> at & 1 == 1;
        // The bytes of the second one begin with those of the first.
        let addrs: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "c000:201::".parse().unwrap()];
        let mut rules = SteeringRules::default();
        for (at, addr) in (0..).zip(addrs) {
            let at = 10 * at;
            let tcp = |port| (Protocol::TCP, Endpoint { addr, port });
            rules.services.extend(bit(at).then_some(tcp(80)));
            rules.services.extend(bit(at + 1).then_some(tcp(81)));
            rules.nat_destinations.extend(bit(at + 2).then_some(tcp(80)));
            rules.nat_destinations.extend(bit(at + 3).then_some(tcp(0)));
            rules.own_clients.extend(bit(at + 9).then_some(tcp(80)));
            rules.wide.extend(bit(at + 4).then(|| Prefix::host(addr)));
            rules.tunnel_ends.extend(bit(at + 5).then_some(addr));
            rules.probe_sources.extend(bit(at + 8).then_some(Endpoint { addr, port: 81 }));
            let ports = [(1000, 2000), (1500, 3000)][usize::from(bit(at + 7))];
            rules.translated.extend(bit(at + 6).then_some((addr, ports)));
        }
        rules
    }

    /// Applies a change as [`Steering`](super::super::Steering) does.
    fn apply(image: &mut Image, change: Image) {
        fn one<K: Ord>(map: &mut Roles<K>, change: Roles<K>) {
            map.extend(change);
            map.retain(|_, roles| *roles != 0);
        }
        one(&mut image.endpoints, change.endpoints);
        one(&mut image.addresses, change.addresses);
        one(&mut image.prefixes, change.prefixes);
        one(&mut image.translated, change.translated);
    }

    proptest::proptest! {
        #[test]
        fn incremental_changes_give_the_same_maps_as_the_rules_in_full(
            changes in proptest::collection::vec((0u8..3, proptest::num::u32::ANY), 1..20),
        ) {
            let (mut rules, mut image) = (SteeringRules::default(), Image::default());
            for (kind, bits) in changes {
                let drawn = drawn(bits);
                let change = match kind {
                    0 => {
                        rules.add(&drawn);
                        image.with(&drawn)
                    }
                    1 => {
                        rules.subtract(&drawn);
                        image.without(&drawn)
                    }
                    _ => {
                        rules = SteeringRules { local_addresses: [[192, 0, 2, 1].into()].into(), ..drawn };
                        image.towards(Image::of(&rules))
                    }
                };
                apply(&mut image, change);
                proptest::prop_assert_eq!(&image, &Image::of(&rules));
            }
        }
    }

    #[test]
    fn an_address_stays_until_its_last_endpoint_is_removed() {
        let rules = SteeringRules { services: [from(1, 80), from(1, 443)].into(), ..Default::default() };
        let mut image = Image::of(&rules);
        for (port, left) in [(80, 1), (443, 0)] {
            let change =
                image.without(&SteeringRules { services: [from(1, port)].into(), ..Default::default() });
            apply(&mut image, change);
            assert_eq!(image.addresses.len(), left);
        }
    }
}
