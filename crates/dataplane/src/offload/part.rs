//! The XDP program's orders for the packets in one direction, as words of a record.

use std::net::IpAddr;

use xvs_proto::checksum::Delta;
use xvs_proto::plain::LinkAddresses;
use xvs_proto::{Family, FlowKey, MacAddr, ipv4};

use crate::forward::{FlowHeaders, sender_mtu};
use crate::shm::atomic::AtomicU64;
use crate::shm::atomic::Ordering::Relaxed;

/// How packets in one direction arrive, are rewritten, and leave.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The kernel's index of the interface on which they arrive, and its link address.
    pub(super) from: (u32, MacAddr),
    /// Whether that interface may deliver partial checksums.
    pub(super) partial_checksums: bool,
    /// The index of the interface on which they leave, and the link addresses there.
    pub(super) to: (u32, LinkAddresses),
    /// The longest packet that may leave, in bytes without link header.
    pub(super) mtu: u32,
    /// Their endpoints as received, and as sent.
    pub(super) before: FlowKey,
    pub(super) after: FlowKey,
    /// Whether workers process packets that a router may fragment.
    pub(super) unfragmented: bool,
    /// The headers of a tunnel.
    pub(super) outer: Option<FlowHeaders>,
}

/// The fields of one direction (`struct xvs_flow_part` in `bpf/maps.h`), as byte ranges.
pub(crate) mod field {
    use std::ops::Range;
    pub(crate) const IN_IFINDEX: Range<usize> = 0..4;
    pub(crate) const OUT_IFINDEX: Range<usize> = 4..8;
    pub(crate) const LINK: Range<usize> = 8..20;
    pub(crate) const TO: Range<usize> = 20..26;
    pub(crate) const MTU: Range<usize> = 26..28;
    /// IPv4 addresses of source and destination as sent, and their ports.
    pub(crate) const ENDS: Range<usize> = 28..40;
    pub(crate) const NETWORK_SUM: Range<usize> = 40..42;
    pub(crate) const TRANSPORT_SUM: Range<usize> = 42..44;
    pub(crate) const FLAGS: Range<usize> = 44..48;
    /// Like [`ENDS`], as received.
    pub(crate) const OLD_ENDS: Range<usize> = 48..60;
    pub(crate) const PROTOCOL: usize = 60;
    pub(crate) const FAMILY: usize = 61;
}

/// The flags of one direction (`bpf/maps.h`).
const READDRESSED: u32 = 1 << 0;
const UNFRAGMENTED: u32 = 1 << 1;
const PARTIAL: u32 = 1 << 2;
const UDP: u32 = 1 << 3;
const TRANSLATED: u32 = 1 << 4;
const OUTER_SHIFT: u32 = 8;

/// The size of the orders for one direction, in 64-bit words.
pub(super) const WORDS: usize = 8;
/// The size of two IPv6 addresses, in 64-bit words.
pub(super) const ADDRESS_WORDS: usize = 4;

impl Part {
    /// Whether packets need the end of the record: outer headers other than those of IP in IP over IPv4, or IPv6
    /// addresses as sent.
    pub(super) fn needs_last_line(&self) -> bool {
        let is_readdressed = self.before != self.after && self.after.source.family() == Family::V6;
        is_readdressed || self.outer_words().is_some()
    }

    /// The outer headers at the end of the record, if packets need them.
    pub(super) fn outer_words(&self) -> Option<[u64; 2 * ADDRESS_WORDS]> {
        self.outer.as_ref().filter(|outer| outer.addresses().is_none()).map(FlowHeaders::words)
    }

    /// The words that the program reads: the orders, and the IPv6 addresses as received and as sent.
    pub(super) fn words(&self) -> ([u64; WORDS], [[u64; ADDRESS_WORDS]; 2]) {
        let Self { before, after, outer, .. } = self;
        let outer = outer.as_ref();
        let network = Delta::default()
            .addr(before.source.addr, after.source.addr)
            .addr(before.dest.addr, after.dest.addr);
        let transport =
            network.word(before.source.port, after.source.port).word(before.dest.port, after.dest.port);
        let family = before.source.family();
        let is_translated = family != after.source.family();
        let mtu = if is_translated { sender_mtu(family, self.mtu) } else { self.mtu };
        let flags = flag(before != after, READDRESSED)
            | flag(self.unfragmented, UNFRAGMENTED)
            | flag(self.partial_checksums, PARTIAL)
            | flag(is_translated, TRANSLATED)
            | outer.map_or(0, |outer| (outer.len as u32) << OUTER_SHIFT | flag(outer.has_udp, UDP));
        let network_sum = outer.map_or(network.folded(), |outer| outer.sum);
        let (old_ends, old_addresses) = ends(before);
        let (mut ends, addresses) = ends(after);
        if let Some(of_tunnel) = outer.and_then(FlowHeaders::addresses) {
            ends[..8].copy_from_slice(of_tunnel);
        }
        let mut bytes = [0; 8 * WORDS];
        bytes[field::IN_IFINDEX].copy_from_slice(&self.from.0.to_ne_bytes());
        bytes[field::OUT_IFINDEX].copy_from_slice(&self.to.0.to_ne_bytes());
        bytes[field::LINK].copy_from_slice(&self.to.1);
        bytes[field::TO].copy_from_slice(&self.from.1.0);
        bytes[field::MTU].copy_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_ne_bytes());
        bytes[field::ENDS].copy_from_slice(&ends);
        bytes[field::NETWORK_SUM].copy_from_slice(&network_sum.to_be_bytes());
        bytes[field::TRANSPORT_SUM].copy_from_slice(&transport.folded().to_be_bytes());
        bytes[field::FLAGS].copy_from_slice(&flags.to_ne_bytes());
        bytes[field::OLD_ENDS].copy_from_slice(&old_ends);
        bytes[field::PROTOCOL] = before.protocol.0;
        bytes[field::FAMILY] = if family == Family::V4 { 4 } else { 6 };
        (words(&bytes), [words(&old_addresses), words(&addresses)])
    }
}

fn flag(is_set: bool, flag: u32) -> u32 {
    if is_set { flag } else { 0 }
}

/// The encoded endpoints of a flow, and its IPv6 addresses.
fn ends(flow: &FlowKey) -> ([u8; 12], [u8; 8 * ADDRESS_WORDS]) {
    let mut ends = [0; 12];
    let mut addresses = [0; 8 * ADDRESS_WORDS];
    for (number, end) in [flow.source, flow.dest].into_iter().enumerate() {
        match end.addr {
            IpAddr::V4(addr) => ends[4 * number..][..4].copy_from_slice(&addr.octets()),
            IpAddr::V6(addr) => addresses[16 * number..][..16].copy_from_slice(&addr.octets()),
        }
        ends[8 + 2 * number..][..2].copy_from_slice(&end.port.to_be_bytes());
    }
    (ends, addresses)
}

/// Whether, according to these words, packets leave on the interface with this index with these link addresses.
pub(super) fn leaves_by(part: &[AtomicU64], ifindex: u32, addresses: &LinkAddresses) -> bool {
    let words: [_; WORDS] = std::array::from_fn(|at| part[at].load(Relaxed).to_ne_bytes());
    let bytes = words.as_flattened();
    bytes[field::OUT_IFINDEX] == ifindex.to_ne_bytes() && bytes[field::LINK] == *addresses
}

impl FlowHeaders {
    /// The addresses in an IPv4 header that is the only outer header, all of whose other fields the program knows.
    fn addresses(&self) -> Option<&[u8]> {
        let is_alone = self.family == Family::V4 && self.len == ipv4::HEADER_LEN;
        is_alone.then(|| &self.bytes[ipv4::field::SOURCE.start..ipv4::HEADER_LEN])
    }

    /// The words that the program reads.
    fn words(&self) -> [u64; 2 * ADDRESS_WORDS] {
        let mut bytes = [0; 16 * ADDRESS_WORDS];
        bytes[..self.len].copy_from_slice(&self.bytes[..self.len]);
        words(&bytes)
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    std::array::from_fn(|at| u64::from_ne_bytes(bytes.as_chunks().0[at]))
}

#[cfg(test)]
mod tests {
    use xvs_proto::{Endpoint, Protocol};

    use crate::offload::part::*;

    #[test]
    fn the_end_of_a_record_is_needed_for_new_ipv6_addresses_and_all_outer_headers_but_those_of_ip_in_ip() {
        let flow = |source: &str, dest: &str| {
            let [source, dest] =
                [source, dest].map(|addr| Endpoint::new(addr.parse::<IpAddr>().unwrap(), 80));
            FlowKey { protocol: Protocol::UDP, source, dest }
        };
        let (v4, v6) = (flow("192.0.2.1", "198.51.100.1"), flow("2001:db8::1", "2001:db8::2"));
        let tunnel = |family, len| {
            Some(FlowHeaders { bytes: [0; _], len, family, sum: 0, has_udp: false, room: 1480 })
        };
        for (before, after, outer, is_needed) in [
            (v4, v4, None, false),
            (v4, flow("192.0.2.1", "198.51.100.2"), None, false),
            (v6, v6, None, false),
            (v6, flow("2001:db8::1", "2001:db8::3"), None, true),
            (v4, v6, None, true),
            (v4, v4, tunnel(Family::V4, 20), false),
            (v4, v4, tunnel(Family::V4, 24), true),
            (v4, v4, tunnel(Family::V6, 40), true),
        ] {
            let case = format!("{before:?} {after:?} {outer:?}");
            let part = Part {
                from: (1, MacAddr::default()),
                partial_checksums: false,
                to: (2, LinkAddresses::default()),
                mtu: 1500,
                before,
                after,
                unfragmented: false,
                outer,
            };
            assert_eq!(part.needs_last_line(), is_needed, "{case}");
        }
    }
}
