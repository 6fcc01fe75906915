//! What the XDP program is told: which packets are the director's, as the content of its maps.
//!
//! Computed by the control thread at every change of configuration; plain values, no system call. The layouts are
//! those of `bpf/maps.h`. Not here: writing the maps (`program.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use xvs_proto::{Endpoint, Prefix, Protocol};

/// Which packets are the director's. Everything else stays with the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SteeringRules {
    /// Packets *to* these are the director's, and so are fragments and ICMP errors to their addresses. Port 0 is every
    /// port.
    pub services: BTreeSet<(Protocol, Endpoint)>,
    /// Packets *from* these are, unless they go to a local address; so are fragments from their addresses. Besides
    /// masqueraded destinations, virtual endpoints whose replies may pass here. Port 0 is every port.
    pub nat_destinations: BTreeSet<(Protocol, Endpoint)>,
    /// Every TCP, UDP, SCTP, AH and ESP packet to these is, and every fragment and ICMP error: what may be marked.
    /// In IPv6 also what comes from these, unless it goes to a local address.
    pub wide: BTreeSet<Prefix>,
    /// Packets to these ports of these addresses are, first and last port: where FULLNAT's replies come to. So are
    /// fragments to the addresses.
    pub translated: BTreeMap<IpAddr, (u16, u16)>,
    /// Where tunnels lead: ICMP errors about packets to these that may be a tunnel's are the director's.
    pub tunnel_ends: BTreeSet<IpAddr>,
    /// Addresses of this machine: what its own programs say to a destination is not a client's connection.
    pub local_addresses: BTreeSet<IpAddr>,
}

impl SteeringRules {
    /// The rules by which everything is steered that either `self` or `other` steers.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            services: &self.services | &other.services,
            nat_destinations: &self.nat_destinations | &other.nat_destinations,
            wide: &self.wide | &other.wide,
            translated: spanning(&self.translated, &other.translated),
            tunnel_ends: &self.tunnel_ends | &other.tunnel_ends,
            // A local address is an exception: it may hold only while both agree.
            local_addresses: &self.local_addresses & &other.local_addresses,
        }
    }
}

/// The ports of either, and those between.
fn spanning(
    one: &BTreeMap<IpAddr, (u16, u16)>,
    other: &BTreeMap<IpAddr, (u16, u16)>,
) -> BTreeMap<IpAddr, (u16, u16)> {
    let mut all = one.clone();
    for (addr, &(first, last)) in other {
        let ports = all.entry(*addr).or_insert((first, last));
        *ports = (ports.0.min(first), ports.1.max(last));
    }
    all
}

/// A map of the program as it should be or is: key to roles.
pub(super) type Roles<const K: usize> = BTreeMap<[u8; K], u32>;

/// The content of all steering maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Image {
    pub(super) endpoints: Roles<{ endpoint::SIZE }>,
    pub(super) addresses: Roles<{ address::SIZE }>,
    pub(super) prefixes: Roles<{ prefix::SIZE }>,
    /// No roles: ports.
    pub(super) translated: Roles<{ address::SIZE }>,
}

impl Image {
    pub(super) fn of(rules: &SteeringRules) -> Self {
        let mut image = Self::default();
        let roles = [(&rules.services, SERVICE), (&rules.nat_destinations, DESTINATION)];
        for (endpoints, role) in roles {
            for &(protocol, at) in endpoints {
                *image.endpoints.entry(endpoint_key(protocol, at)).or_default() |= role;
                *image.addresses.entry(address_key(at.addr)).or_default() |= role;
            }
        }
        for (addrs, role) in [(&rules.local_addresses, LOCAL), (&rules.tunnel_ends, TUNNEL)] {
            for &addr in addrs {
                *image.addresses.entry(address_key(addr)).or_default() |= role;
            }
        }
        for (&addr, &(first, last)) in &rules.translated {
            *image.addresses.entry(address_key(addr)).or_default() |= TRANSLATED;
            image.translated.insert(address_key(addr), u32::from(first) << 16 | u32::from(last));
        }
        image.prefixes = rules.wide.iter().map(|&prefix| (prefix_key(prefix), SERVICE)).collect();
        image
    }
}

/// What stands before a frame that the program shall leave to the kernel.
pub(crate) type Marker = [u8; 16];

const SERVICE: u32 = 1 << 0;
const DESTINATION: u32 = 1 << 1;
const LOCAL: u32 = 1 << 2;
const TRANSLATED: u32 = 1 << 3;
const TUNNEL: u32 = 1 << 4;

mod endpoint {
    use std::ops::Range;
    pub(super) const ADDR: Range<usize> = 0..16;
    pub(super) const PORT: Range<usize> = 16..18;
    pub(super) const PROTOCOL: usize = 18;
    pub(super) const FAMILY: usize = 19;
    pub(in super::super) const SIZE: usize = 20;
}

mod address {
    use std::ops::Range;
    pub(super) const ADDR: Range<usize> = 0..16;
    pub(super) const FAMILY: Range<usize> = 16..20;
    pub(in super::super) const SIZE: usize = 20;
}

mod prefix {
    use std::ops::Range;
    pub(super) const BITS: Range<usize> = 0..4;
    pub(super) const FAMILY: Range<usize> = 4..8;
    pub(super) const ADDR: Range<usize> = 8..24;
    pub(in super::super) const SIZE: usize = 24;
}

/// The number of the IP version, and the address in the first of 16 bytes.
fn split(addr: IpAddr) -> (u8, [u8; 16]) {
    match addr {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (4, bytes)
        }
        IpAddr::V6(v6) => (6, v6.octets()),
    }
}

fn endpoint_key(protocol: Protocol, at: Endpoint) -> [u8; endpoint::SIZE] {
    let (family, addr) = split(at.addr);
    let mut key = [0; endpoint::SIZE];
    key[endpoint::ADDR].copy_from_slice(&addr);
    key[endpoint::PORT].copy_from_slice(&at.port.to_be_bytes());
    key[endpoint::PROTOCOL] = protocol.0;
    key[endpoint::FAMILY] = family;
    key
}

pub(super) fn address_key(addr: IpAddr) -> [u8; address::SIZE] {
    let (family, addr) = split(addr);
    let mut key = [0; address::SIZE];
    key[address::ADDR].copy_from_slice(&addr);
    key[address::FAMILY].copy_from_slice(&u32::from(family).to_ne_bytes());
    key
}

fn prefix_key(prefix: Prefix) -> [u8; prefix::SIZE] {
    let (family, addr) = split(prefix.addr());
    let bits = 8 * prefix::FAMILY.len() as u32 + u32::from(prefix.len());
    let mut key = [0; prefix::SIZE];
    key[prefix::BITS].copy_from_slice(&bits.to_ne_bytes());
    key[prefix::FAMILY.start] = family;
    key[prefix::ADDR].copy_from_slice(&addr);
    key
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn keys_and_roles_are_laid_out_as_the_program_reads_them() {
        let mut source = String::from("#include \"bpf/maps.h\"\n#include <stddef.h>\n");
        let mut claim = |what: String| source.push_str(&format!("_Static_assert({what}, \"\");\n"));
        for (name, size) in
            [("endpoint", endpoint::SIZE), ("address", address::SIZE), ("prefix", prefix::SIZE)]
        {
            claim(format!("sizeof(struct xvs_{name}) == {size}"));
        }
        for (name, field, at) in [
            ("endpoint", "addr", endpoint::ADDR),
            ("endpoint", "port", endpoint::PORT),
            ("endpoint", "protocol", endpoint::PROTOCOL..endpoint::FAMILY),
            ("endpoint", "family", endpoint::FAMILY..endpoint::SIZE),
            ("address", "addr", address::ADDR),
            ("address", "family", address::FAMILY),
            ("prefix", "bits", prefix::BITS),
            ("prefix", "family", prefix::FAMILY),
            ("prefix", "addr", prefix::ADDR),
        ] {
            claim(format!("offsetof(struct xvs_{name}, {field}) == {}", at.start));
            claim(format!("sizeof(((struct xvs_{name} *)0)->{field}) == {}", at.len()));
        }
        claim(format!("XVS_MARKER_SIZE == {}", size_of::<Marker>()));
        for (name, value) in [
            ("SERVICE", SERVICE),
            ("DESTINATION", DESTINATION),
            ("LOCAL", LOCAL),
            ("TRANSLATED", TRANSLATED),
            ("TUNNEL", TUNNEL),
            ("FIRST_PORT(0x12345678)", 0x1234),
            ("LAST_PORT(0x12345678)", 0x5678),
        ] {
            claim(format!("XVS_{name} == {value}"));
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

    #[test]
    fn between_two_configurations_everything_of_either_is_steered() {
        let service = |last: u8| (Protocol::TCP, Endpoint::new([192, 0, 2, last], 80));
        let old = SteeringRules {
            services: [service(1)].into(),
            local_addresses: ["192.0.2.9".parse().unwrap(), "192.0.2.8".parse().unwrap()].into(),
            ..Default::default()
        };
        let new = SteeringRules {
            services: [service(2)].into(),
            local_addresses: ["192.0.2.9".parse().unwrap()].into(),
            ..Default::default()
        };
        let between = old.or(&new);
        assert_eq!(between.services, [service(1), service(2)].into());
        assert_eq!(between.local_addresses, new.local_addresses);
    }
}
