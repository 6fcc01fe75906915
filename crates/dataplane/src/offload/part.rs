//! What the XDP program does with the packets of one direction, in words of a record.

use std::net::IpAddr;

use xvs_proto::checksum::Delta;
use xvs_proto::plain::LinkAddresses;
use xvs_proto::{Family, FlowKey, MacAddr};

use crate::forward::{FlowHeaders, sender_mtu};
use crate::shm::atomic::AtomicU64;
use crate::shm::atomic::Ordering::Relaxed;

/// How packets of one direction arrive and leave, and how they are rewritten.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The kernel's index of the interface by which they arrive, and its link address.
    pub(super) from: (u32, MacAddr),
    /// Whether that interface may deliver partial checksums.
    pub(super) partial_checksums: bool,
    /// The index of the interface by which they leave, and the link addresses there.
    pub(super) to: (u32, LinkAddresses),
    /// The longest packet that leaves, in bytes without link header.
    pub(super) mtu: u32,
    /// Their endpoints as received, and as sent.
    pub(super) before: FlowKey,
    pub(super) after: FlowKey,
    /// Whether workers process packets that a router may fragment.
    pub(super) unfragmented: bool,
    /// The headers of a tunnel.
    pub(super) outer: Option<FlowHeaders>,
}

/// The flags of a part (`bpf/maps.h`).
const READDRESSED: u32 = 1 << 0;
const UNFRAGMENTED: u32 = 1 << 1;
const PARTIAL: u32 = 1 << 2;
const UDP: u32 = 1 << 3;
const TRANSLATED: u32 = 1 << 4;
const OUTER_SHIFT: u32 = 8;

/// The words of a part.
pub(super) const WORDS: usize = 8;
/// The words of two IPv6 addresses.
pub(super) const ADDRESS_WORDS: usize = 4;

impl Part {
    /// The words that the program reads: the part, and the IPv6 addresses as received and as sent.
    pub(super) fn words(&self) -> ([u64; WORDS], [[u64; ADDRESS_WORDS]; 2]) {
        let Self { before, after, outer, .. } = self;
        let outer = outer.as_ref();
        let network = Delta::default().addr(before.source.addr, after.source.addr);
        let network = network.addr(before.dest.addr, after.dest.addr);
        let transport = network.word(before.source.port, after.source.port);
        let transport = transport.word(before.dest.port, after.dest.port);
        let (family, sent) = (before.source.family(), after.source.family());
        let is_translated = family != sent;
        let mtu = if is_translated { sender_mtu(family, self.mtu) } else { self.mtu };
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(before != after, READDRESSED)
            | flag(self.unfragmented, UNFRAGMENTED)
            | flag(self.partial_checksums, PARTIAL)
            | flag(is_translated, TRANSLATED)
            | outer.map_or(0, |outer| (outer.len as u32) << OUTER_SHIFT | flag(outer.has_udp, UDP));
        let mut bytes = [0; 8 * WORDS];
        let mut wides = [[0; 8 * ADDRESS_WORDS]; 2];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.from.0.to_ne_bytes());
        put(4, &self.to.0.to_ne_bytes());
        put(8, &self.to.1);
        put(20, &self.from.1.0);
        put(26, &u16::try_from(mtu).unwrap_or(u16::MAX).to_ne_bytes());
        for (flow, at, wide) in [(before, 48, 0), (after, 28, 1)] {
            for (end, endpoint) in [flow.source, flow.dest].into_iter().enumerate() {
                match endpoint.addr {
                    IpAddr::V4(addr) => put(at + 4 * end, &addr.octets()),
                    IpAddr::V6(addr) => wides[wide][16 * end..16 * end + 16].copy_from_slice(&addr.octets()),
                }
                put(at + 8 + 2 * end, &endpoint.port.to_be_bytes());
            }
        }
        put(60, &[before.protocol.0, if family == Family::V4 { 4 } else { 6 }]);
        let network = outer.map_or(network.folded(), |outer| outer.sum);
        put(40, &network.to_be_bytes());
        put(42, &transport.folded().to_be_bytes());
        put(44, &flags.to_ne_bytes());
        (words(&bytes), wides.map(|wide| words(&wide)))
    }
}

/// Whether, by these words of a part, packets leave by the interface of this index with these link addresses.
pub(super) fn leaves_by(part: &[AtomicU64], ifindex: u32, addresses: &LinkAddresses) -> bool {
    let word = |place: usize| part[place].load(Relaxed).to_ne_bytes();
    word(0)[4..] == ifindex.to_ne_bytes() && word(1) == addresses[..8] && word(2)[..4] == addresses[8..]
}

impl FlowHeaders {
    /// The words that the program reads.
    pub(super) fn words(&self) -> [u64; 2 * ADDRESS_WORDS] {
        let mut bytes = [0; 16 * ADDRESS_WORDS];
        bytes[..self.len].copy_from_slice(&self.bytes[..self.len]);
        words(&bytes)
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let chunks = bytes.as_chunks::<8>().0;
    std::array::from_fn(|at| u64::from_ne_bytes(chunks[at]))
}
