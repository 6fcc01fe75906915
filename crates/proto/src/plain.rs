//! Plain packets: whole packets without options or extension headers that carry TCP or UDP, in untagged frames.
//!
//! Most packets are plain. They are read and rewritten here at fixed offsets, with one length check and without
//! branches on their content. [`crate::parse`] accepts every packet that [`Plain::read`] accepts, with the same result,
//! and rewriting gives the same bytes as the views [`Ipv4`](crate::ipv4::Ipv4), [`Ipv6`](crate::ipv6::Ipv6), [`tcp`]
//! and [`udp`]; tests compare them.

use std::net::IpAddr;

use crate::addr::{Endpoint, Family, MacAddr, Protocol};
use crate::checksum::folded;
use crate::flow::FlowKey;
use crate::{ethernet, ipv4, ipv6, tcp, udp};

/// Bytes up to the end of the network header.
const TRANSPORT_V4: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;
const TRANSPORT_V6: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
/// Minimum length of a frame with a plain packet: up to the end of a UDP header.
const LEAST_V4: usize = TRANSPORT_V4 + udp::HEADER_LEN;
const LEAST_V6: usize = TRANSPORT_V6 + udp::HEADER_LEN;

/// The bytes of a frame that contain both link addresses.
pub type LinkAddresses = [u8; ethernet::field::SOURCE.end];

/// The fields of a plain packet that forwarding needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain {
    /// The sender: the IPv4 address in bits 32 to 63 (0 for IPv6), the port in bits 16 to 31.
    pub source: u64,
    /// The receiver, encoded like `source`.
    pub dest: u64,
    /// Length of the packet in bytes, without link header and link padding.
    pub len: u16,
    /// IPv4 or IPv6.
    pub family: Family,
    /// TCP or UDP.
    pub protocol: u8,
    /// The control bits of TCP; none for UDP.
    pub flags: tcp::Flags,
    /// Whether routers must not fragment it.
    pub dont_fragment: bool,
}

/// The addresses of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressesV6 {
    /// The sender.
    pub source: u128,
    /// The receiver.
    pub dest: u128,
}

impl Default for Plain {
    fn default() -> Self {
        Self {
            source: 0,
            dest: 0,
            len: 0,
            family: Family::V4,
            protocol: 0,
            flags: tcp::Flags(0),
            dont_fragment: false,
        }
    }
}

impl Plain {
    /// Reads a frame of `len` bytes, of which `frame` may contain only the first bytes. Returns whether the packet is
    /// plain, is sent to this link address, and has a time to live that allows another hop. Otherwise `self` is
    /// undefined.
    #[inline(always)]
    pub fn read(&mut self, frame: &[u8], len: usize, to: MacAddr) -> bool {
        match frame.get(ethernet::HEADER_LEN) {
            Some(0x45) => self.read_v4(frame, len, to),
            Some(first) if first >> 4 == 6 => self.read_v6(frame, len, to),
            _ => false,
        }
    }

    #[inline(always)]
    fn read_v4(&mut self, frame: &[u8], len: usize, to: MacAddr) -> bool {
        let Some(head) = frame.first_chunk::<LEAST_V4>() else { return false };
        let total = half(head, at(ipv4::field::TOTAL_LEN.start));
        let protocol = head[at(ipv4::field::PROTOCOL)];
        let part = half(head, at(ipv4::field::FLAGS_OFFSET.start));
        // In the machine's byte order, as RFC 1071 §2B allows: a correct sum is all ones in either order.
        let sum: u64 =
            [0, 4, 8, 12, 16].into_iter().map(|field| word(head, at(field)).to_be()).map(u64::from).sum();
        // Not `&&`: a branch for each condition costs more than all conditions.
        let is_plain = (head[ethernet::field::DEST] == to.0)
            & (half(head, ethernet::field::ETHERTYPE.start) == ethernet::TYPE_IPV4)
            & (part & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) == 0)
            & (head[at(ipv4::field::TTL)] > 1)
            & (usize::from(total) >= ipv4::HEADER_LEN + transport_len(protocol))
            & (len >= ethernet::HEADER_LEN + usize::from(total))
            & (frame.len() >= TRANSPORT_V4 + transport_len(protocol))
            & (folded(sum) == 0xffff);
        self.source = u64::from(word(head, SOURCE_V4)) << 32 | u64::from(half(head, TRANSPORT_V4)) << 16;
        self.dest =
            u64::from(word(head, SOURCE_V4 + 4)) << 32 | u64::from(half(head, TRANSPORT_V4 + 2)) << 16;
        self.len = total;
        self.family = Family::V4;
        self.protocol = protocol;
        self.flags = control(frame, TRANSPORT_V4, protocol);
        self.dont_fragment = part & ipv4::DONT_FRAGMENT != 0;
        is_plain
    }

    #[inline(always)]
    fn read_v6(&mut self, frame: &[u8], len: usize, to: MacAddr) -> bool {
        let Some(head) = frame.first_chunk::<LEAST_V6>() else { return false };
        let payload = usize::from(half(head, at(ipv6::field::PAYLOAD_LEN.start)));
        let protocol = head[at(ipv6::field::NEXT_HEADER)];
        let total = ipv6::HEADER_LEN + payload;
        let is_plain = (head[ethernet::field::DEST] == to.0)
            & (half(head, ethernet::field::ETHERTYPE.start) == ethernet::TYPE_IPV6)
            & (head[at(ipv6::field::HOP_LIMIT)] > 1)
            & (payload >= transport_len(protocol))
            & (total <= usize::from(u16::MAX))
            & (len >= ethernet::HEADER_LEN + total)
            & (frame.len() >= TRANSPORT_V6 + transport_len(protocol));
        self.source = u64::from(half(head, TRANSPORT_V6)) << 16;
        self.dest = u64::from(half(head, TRANSPORT_V6 + 2)) << 16;
        self.len = total as u16;
        self.family = Family::V6;
        self.protocol = protocol;
        self.flags = control(frame, TRANSPORT_V6, protocol);
        self.dont_fragment = true;
        is_plain
    }

    /// The addresses of an IPv6 packet.
    ///
    /// # Panics
    /// If `self` was not read from the frame.
    #[inline]
    pub fn addresses_v6(frame: &[u8]) -> AddressesV6 {
        let head = frame.first_chunk::<LEAST_V6>().expect("a plain packet");
        AddressesV6 { source: address_v6(head, SOURCE_V6), dest: address_v6(head, SOURCE_V6 + 16) }
    }

    /// The sender's address.
    ///
    /// # Panics
    ///
    /// If `self` was not read from the frame.
    #[inline]
    pub fn source_addr(&self, frame: &[u8]) -> IpAddr {
        match self.family {
            Family::V4 => address_v4(self.source),
            Family::V6 => IpAddr::from(Self::addresses_v6(frame).source.to_be_bytes()),
        }
    }

    /// The protocol and both endpoints.
    ///
    /// # Panics
    ///
    /// If `self` was not read from the frame.
    #[inline]
    pub fn flow(&self, frame: &[u8]) -> FlowKey {
        let [source, dest] = match self.family {
            Family::V4 => [address_v4(self.source), address_v4(self.dest)],
            Family::V6 => {
                let AddressesV6 { source, dest } = Self::addresses_v6(frame);
                [source, dest].map(|addr| IpAddr::from(addr.to_be_bytes()))
            }
        };
        FlowKey {
            protocol: Protocol(self.protocol),
            source: Endpoint { addr: source, port: (self.source >> 16) as u16 },
            dest: Endpoint { addr: dest, port: (self.dest >> 16) as u16 },
        }
    }

    /// Whether the checksum field contains the sum of the pseudo-header, like a [partial
    /// checksum](crate::partial_checksum).
    ///
    /// # Panics
    ///
    /// If `self` was not read from the frame.
    #[inline]
    pub fn may_be_partial(&self, frame: &[u8]) -> bool {
        let (transport, addresses) = match self.family {
            Family::V4 => (TRANSPORT_V4, (self.source >> 32) + (self.dest >> 32)),
            Family::V6 => {
                let AddressesV6 { source, dest } = Self::addresses_v6(frame);
                (TRANSPORT_V6, sum_of_words(source) + sum_of_words(dest))
            }
        };
        let len = usize::from(self.len) + ethernet::HEADER_LEN - transport;
        let sum = folded(addresses + u64::from(self.protocol) + len as u64);
        self.checksum(frame, transport).is_some_and(|at| frame[at..at + 2] == sum.to_be_bytes())
    }

    /// Whether it is a TCP segment.
    #[inline]
    pub fn is_tcp(&self) -> bool {
        self.protocol == Protocol::TCP.0
    }

    /// Decrements the time to live.
    ///
    /// # Panics
    /// If `self` was not read from the frame.
    #[inline]
    pub fn decrement_ttl(&self, frame: &mut [u8]) {
        let head = frame.first_chunk_mut::<LEAST_V4>().expect("a plain packet");
        match self.family {
            Family::V4 => {
                head[at(ipv4::field::TTL)] -= 1;
                update(head, at(ipv4::field::CHECKSUM.start), TTL_DELTA);
            }
            Family::V6 => head[at(ipv6::field::HOP_LIMIT)] -= 1,
        }
    }

    /// The type of service (IPv6: traffic class) and the time to live (hop limit) in the frame.
    ///
    /// # Panics
    /// If `self` was not read from the frame.
    #[inline]
    pub fn tos_and_ttl(&self, frame: &[u8]) -> (u8, u8) {
        let head = frame.first_chunk::<LEAST_V4>().expect("a plain packet");
        match self.family {
            Family::V4 => (head[at(ipv4::field::TOS)], head[at(ipv4::field::TTL)]),
            Family::V6 => (head[at(0)] << 4 | head[at(1)] >> 4, head[at(ipv6::field::HOP_LIMIT)]),
        }
    }

    /// Addresses the frame to the next hop: replaces the link addresses and decrements the time to live.
    ///
    /// # Panics
    ///
    /// If `self` was not read from the frame.
    #[inline]
    pub fn readdress(&self, frame: &mut [u8], link: &LinkAddresses) {
        frame[..link.len()].copy_from_slice(link);
        self.decrement_ttl(frame);
    }

    /// Like [`Self::readdress`] for an IPv4 packet; also replaces the encoded endpoints and updates the checksums.
    /// Returns `false` and changes nothing if the packet is a UDP datagram without a checksum.
    ///
    /// # Panics
    ///
    /// If `self` was not read from the frame.
    #[inline]
    pub fn masquerade(&self, frame: &mut [u8], source: u64, dest: u64, link: &LinkAddresses) -> bool {
        let Some(sum_at) = self.checksum(frame, TRANSPORT_V4) else { return false };
        self.readdress(frame, link);
        let head = frame.first_chunk_mut::<LEAST_V4>().expect("a plain packet");
        head[SOURCE_V4..SOURCE_V4 + 4].copy_from_slice(&((source >> 32) as u32).to_be_bytes());
        head[SOURCE_V4 + 4..TRANSPORT_V4].copy_from_slice(&((dest >> 32) as u32).to_be_bytes());
        head[TRANSPORT_V4..TRANSPORT_V4 + 2].copy_from_slice(&((source >> 16) as u16).to_be_bytes());
        head[TRANSPORT_V4 + 2..TRANSPORT_V4 + 4].copy_from_slice(&((dest >> 16) as u16).to_be_bytes());
        let addresses = address_delta(self.source, source) + address_delta(self.dest, dest);
        update(head, at(ipv4::field::CHECKSUM.start), addresses);
        self.update_transport(frame, sum_at, addresses + self.ports_delta(source, dest));
        true
    }

    /// Like [`Self::masquerade`] for an IPv6 packet; `source` and `dest` encode only the ports.
    ///
    /// # Panics
    ///
    /// If `self` was not read from the frame.
    #[inline]
    pub fn masquerade_v6(
        &self,
        frame: &mut [u8],
        (source, source_port): (u128, u64),
        (dest, dest_port): (u128, u64),
        link: &LinkAddresses,
    ) -> bool {
        let Some(sum_at) = self.checksum(frame, TRANSPORT_V6) else { return false };
        let old = Self::addresses_v6(frame);
        self.readdress(frame, link);
        let head = frame.first_chunk_mut::<LEAST_V6>().expect("a plain packet");
        head[SOURCE_V6..SOURCE_V6 + 16].copy_from_slice(&source.to_be_bytes());
        head[SOURCE_V6 + 16..TRANSPORT_V6].copy_from_slice(&dest.to_be_bytes());
        head[TRANSPORT_V6..TRANSPORT_V6 + 2].copy_from_slice(&((source_port >> 16) as u16).to_be_bytes());
        head[TRANSPORT_V6 + 2..TRANSPORT_V6 + 4].copy_from_slice(&((dest_port >> 16) as u16).to_be_bytes());
        let addresses = [!old.source, source, !old.dest, dest].into_iter().map(sum_of_words).sum::<u64>();
        self.update_transport(frame, sum_at, addresses + self.ports_delta(source_port, dest_port));
        true
    }

    /// The position of the transport checksum; `None` if the packet has none.
    #[inline]
    fn checksum(&self, frame: &[u8], transport: usize) -> Option<usize> {
        if self.is_tcp() {
            return Some(transport + tcp::field::CHECKSUM.start);
        }
        let at = transport + udp::field::CHECKSUM.start;
        (frame[at..at + 2] != [0, 0]).then_some(at)
    }

    /// The difference that new ports make to a sum.
    fn ports_delta(&self, source: u64, dest: u64) -> u64 {
        port_delta(self.source, source) + port_delta(self.dest, dest)
    }

    #[inline]
    fn update_transport(&self, frame: &mut [u8], at: usize, delta: u64) {
        update(frame, at, delta);
        if !self.is_tcp() && frame[at..at + 2] == [0, 0] {
            frame[at..at + 2].fill(0xff);
        }
    }
}

/// The positions of the source addresses; the destination addresses follow.
const SOURCE_V4: usize = at(ipv4::field::SOURCE.start);
const SOURCE_V6: usize = at(ipv6::field::SOURCE.start);

/// The position of a field of the network header.
#[inline(always)]
const fn at(field: usize) -> usize {
    ethernet::HEADER_LEN + field
}

#[inline(always)]
fn half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([head[at], head[at + 1]])
}

#[inline(always)]
fn word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[inline(always)]
fn address_v6(head: &[u8; LEAST_V6], at: usize) -> u128 {
    u128::from_be_bytes(std::array::from_fn(|byte| head[at + byte]))
}

/// The address in an encoded IPv4 endpoint.
#[inline(always)]
fn address_v4(word: u64) -> IpAddr {
    IpAddr::from(((word >> 32) as u32).to_be_bytes())
}

/// The difference that a new IPv4 address makes to a sum.
#[inline(always)]
fn address_delta(old: u64, new: u64) -> u64 {
    (!old >> 32) + (new >> 32)
}

#[inline(always)]
fn port_delta(old: u64, new: u64) -> u64 {
    (!old >> 16 & 0xffff) + (new >> 16 & 0xffff)
}

/// The sum of an IPv6 address, as 32-bit words.
#[inline]
fn sum_of_words(bits: u128) -> u64 {
    (0..4).map(|word| u64::from((bits >> (32 * word)) as u32)).sum()
}

/// The difference that a decremented time to live makes to the sum of a header: the complement of the old word, plus
/// the new word.
const TTL_DELTA: u64 = 0xffff - 0x100;

/// Minimum length of the transport header; for protocols other than TCP and UDP, more than any packet has.
#[inline(always)]
fn transport_len(protocol: u8) -> usize {
    match Protocol(protocol) {
        Protocol::TCP => tcp::HEADER_LEN,
        Protocol::UDP => udp::HEADER_LEN,
        _ => usize::MAX >> 1,
    }
}

/// The control bits of a TCP segment.
#[inline(always)]
fn control(frame: &[u8], transport: usize, protocol: u8) -> tcp::Flags {
    let bits = frame.get(transport + tcp::field::FLAGS).copied().unwrap_or_default();
    tcp::Flags(if protocol == Protocol::TCP.0 { bits } else { 0 })
}

/// Updates the checksum at this offset (RFC 1624 §3, equation 3).
#[inline]
fn update(bytes: &mut [u8], at: usize, delta: u64) {
    let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let new = !folded(u64::from(!field) + delta);
    bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{Delta, Sum, pseudo_header};
    use crate::ipv4::Ipv4;
    use crate::ipv6::Ipv6;
    use crate::{Endpoint, Fragment, Parsed, parse, partial_checksum};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use std::net::IpAddr;

    const TO: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);

    fn word(endpoint: Endpoint) -> u64 {
        let addr = match endpoint.addr {
            IpAddr::V4(addr) => u64::from(u32::from(addr)) << 32,
            IpAddr::V6(_) => 0,
        };
        addr | u64::from(endpoint.port) << 16
    }

    fn bits(addr: IpAddr) -> u128 {
        let IpAddr::V6(addr) = addr else { panic!("an IPv6 address") };
        addr.into()
    }

    /// Two endpoints of one family.
    fn ends() -> impl Strategy<Value = (Endpoint, Endpoint)> {
        let port = any::<u16>;
        prop_oneof![
            (any::<[u8; 4]>(), port(), any::<[u8; 4]>(), port())
                .prop_map(|(a, p, b, q)| (Endpoint::new(a, p), Endpoint::new(b, q))),
            (any::<[u16; 8]>(), port(), any::<[u16; 8]>(), port())
                .prop_map(|(a, p, b, q)| (Endpoint::new(a, p), Endpoint::new(b, q))),
        ]
    }

    fn made((from, to): (Endpoint, Endpoint), is_tcp: bool, data: usize, ttl: u8, flags: u8) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 1, 0xfe], TO.0);
        let (builder, transport) = match (from.addr, to.addr) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (link.ipv4(a.octets(), b.octets(), ttl), TRANSPORT_V4),
            (IpAddr::V6(a), IpAddr::V6(b)) => (link.ipv6(a.octets(), b.octets(), ttl), TRANSPORT_V6),
            _ => unreachable!("of one family"),
        };
        let (mut bytes, data) = (Vec::new(), vec![0x5a; data]);
        match is_tcp {
            true => {
                builder.tcp(from.port, to.port, 7, 1024).write(&mut bytes, &data).unwrap();
                // Any control bits. The checksum is then incorrect, which is not checked.
                bytes[transport + tcp::field::FLAGS] = flags;
            }
            false => builder.udp(from.port, to.port).write(&mut bytes, &data).unwrap(),
        }
        bytes
    }

    /// A frame with a valid packet, perhaps with link padding.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let parts = (ends(), any::<bool>(), 0..40usize, 0..9u8, any::<u8>(), 0..9usize);
        parts.prop_map(|(ends, is_tcp, data, ttl, flags, padding)| {
            let mut bytes = made(ends, is_tcp, data, ttl, flags);
            bytes.resize(bytes.len() + padding, 0xee);
            bytes
        })
    }

    /// Corrects the checksum of an IPv4 header, so that it does not mask other conditions.
    fn mend(frame: &mut [u8]) {
        if frame.len() > TRANSPORT_V4 && frame[14] == 0x45 {
            frame[24..26].fill(0);
            let sum = Sum::default().bytes(&frame[14..TRANSPORT_V4]).checksum();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }

    proptest! {
        #[test]
        fn a_plain_packet_is_parsed_to_the_same_values(
            frame in frame(),
            edits in prop::collection::vec((0..70usize, any::<u8>()), 0..3),
            cut in 0..200usize, alignment in 0..16usize,
        ) {
            let mut frame = frame;
            for (at, byte) in edits {
                if let Some(old) = frame.get_mut(at) {
                    *old = byte;
                }
            }
            frame.truncate(cut.max(1));
            mend(&mut frame);
            let frame = &[vec![0; alignment], frame].concat()[alignment..];
            let mut plain = Plain::default();
            if plain.read(frame, frame.len(), TO) {
                let Ok(Parsed::Ip(packet)) = parse(frame) else { panic!("not parsed") };
                let transport = if plain.family == Family::V4 { TRANSPORT_V4 } else { TRANSPORT_V6 };
                prop_assert_eq!((packet.family(), packet.network, packet.transport), (plain.family, 14, transport));
                prop_assert_eq!(packet.length(), usize::from(plain.len));
                prop_assert_eq!((packet.fragment, packet.fragment_header), (Fragment::Whole, None));
                prop_assert_eq!(packet.flow.protocol.0, plain.protocol);
                prop_assert_eq!(packet.tcp_flags, plain.flags);
                prop_assert_eq!(word(packet.flow.source), plain.source);
                prop_assert_eq!(word(packet.flow.dest), plain.dest);
                if plain.family == Family::V6 {
                    let AddressesV6 { source, dest } = Plain::addresses_v6(frame);
                    prop_assert_eq!((bits(packet.flow.source.addr), bits(packet.flow.dest.addr)), (source, dest));
                }
                prop_assert_eq!(packet.dont_fragment, plain.dont_fragment);
                prop_assert!(packet.ttl > 1);
                prop_assert_eq!(ethernet::dest(frame), TO);
            }
        }

        #[test]
        fn a_valid_packet_is_plain_if_its_time_to_live_allows_another_hop(
            ends in ends(), is_tcp: bool, data in 0..40usize, ttl: u8, flags: u8,
        ) {
            let mut plain = Plain::default();
            let frame = made(ends, is_tcp, data, ttl, flags);
            prop_assert_eq!(plain.read(&frame, frame.len(), TO), ttl > 1);
        }

        #[test]
        fn each_packet_whose_checksum_is_completed_may_be_partial(
            ends in ends(), is_tcp: bool, data in 0..40usize, flags: u8, changed in prop_oneof![Just(0), any::<u16>()],
        ) {
            let mut frame = made(ends, is_tcp, data, 64, flags);
            let mut plain = Plain::default();
            prop_assert!(plain.read(&frame, frame.len(), TO));
            let Ok(Parsed::Ip(packet)) = parse(&frame) else { panic!("not parsed") };
            let sum = packet.transport
                + if is_tcp { tcp::field::CHECKSUM.start } else { udp::field::CHECKSUM.start };
            let len = packet.end - packet.transport;
            let partial = pseudo_header(ends.0.addr, ends.1.addr, plain.protocol, len).folded();
            frame[sum..sum + 2].copy_from_slice(&(partial ^ changed).to_be_bytes());
            let may_be = plain.may_be_partial(&frame);
            prop_assert_eq!(may_be, changed == 0);
            prop_assert!(may_be || !partial_checksum::complete(&mut frame, &packet));
        }

        #[test]
        fn a_masqueraded_packet_equals_one_that_was_edited_field_by_field(
            frame in frame(), new in [ends(), ends()], both: bool, link: LinkAddresses,
            checksum in prop_oneof![Just(0), Just(0xffff), any::<u16>()],
        ) {
            let mut frame = frame;
            let mut plain = Plain::default();
            if !plain.read(&frame, frame.len(), TO) {
                return Ok(());
            }
            let Ok(Parsed::Ip(packet)) = parse(&frame) else { panic!("not parsed") };
            let Some((source, dest)) = new.into_iter().find(|(end, _)| end.family() == plain.family) else {
                return Ok(());
            };
            let (old, new) = (packet.flow, [if both { source } else { packet.flow.source }, dest]);
            let sum = packet.transport
                + if plain.is_tcp() { tcp::field::CHECKSUM.start } else { udp::field::CHECKSUM.start };
            frame[sum..sum + 2].copy_from_slice(&checksum.to_be_bytes());
            let mut expected = frame.clone();
            expected[..12].copy_from_slice(&link);
            match (new[0].addr, new[1].addr) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let mut header = Ipv4::edit(&mut expected[14..]);
                    header.decrement_ttl();
                    header.set_source(from);
                    header.set_dest(to);
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    let mut header = Ipv6::edit(&mut expected[14..]);
                    header.decrement_hop_limit();
                    header.set_source(from);
                    header.set_dest(to);
                }
                _ => unreachable!("of one family"),
            }
            let segment = &mut expected[packet.transport..packet.end];
            segment[..2].copy_from_slice(&new[0].port.to_be_bytes());
            segment[2..4].copy_from_slice(&new[1].port.to_be_bytes());
            let delta = Delta::default()
                .addr(old.source.addr, new[0].addr).word(old.source.port, new[0].port)
                .addr(old.dest.addr, new[1].addr).word(old.dest.port, new[1].port);
            match plain.is_tcp() {
                true => tcp::update_checksum(segment, delta),
                false => udp::update_checksum(segment, delta, new[0].addr, new[1].addr),
            }
            let before = frame.clone();
            let is_done = match plain.family {
                Family::V4 => plain.masquerade(&mut frame, word(new[0]), word(new[1]), &link),
                Family::V6 => {
                    let [from, to] = new.map(|end| (bits(end.addr), word(end)));
                    plain.masquerade_v6(&mut frame, from, to, &link)
                }
            };
            match is_done {
                true => prop_assert_eq!(frame, expected),
                false => {
                    prop_assert_eq!((plain.is_tcp(), checksum), (false, 0));
                    prop_assert_eq!(frame, before);
                }
            }
        }
    }
}
