//! The headers of a frame, parsed into a [`Packet`].
//!
//! Runs once for each frame. It checks every length that later stages rely on, so these index without failing. Cost:
//! one pass over the headers.

use std::net::IpAddr;
use std::ops::Range;

use crate::addr::{Endpoint, Family, Protocol};
use crate::flow::FlowKey;
use crate::ipv4::{self, Ipv4};
use crate::ipv6::{self, Ipv6};
use crate::malformed::Malformed;
use crate::{ethernet, icmp, icmpv6, sctp, tcp, udp};

/// The headers of a packet: their positions in the frame, and the fields on which later stages decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where the network header begins.
    pub network: usize,
    /// Offset of the transport header, after any IPv6 extension headers.
    pub transport: usize,
    /// Offset of the packet's end. Link padding may follow.
    pub end: usize,
    /// Protocol and endpoints. Ports are 0 in a later fragment, and in protocols without ports.
    pub flow: FlowKey,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Offset of the IPv6 fragment header. A whole packet that has one is an atomic fragment (RFC 6946).
    pub fragment_header: Option<usize>,
    /// Control bits of a TCP segment; all clear for other protocols.
    pub tcp_flags: tcp::Flags,
    /// The event that an SCTP packet's first chunk represents. `None` for other protocols, and for a packet without a
    /// chunk.
    pub sctp_event: Option<sctp::Event>,
    /// Type of an ICMP or ICMPv6 message.
    pub icmp_type: Option<u8>,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Whether routers must not fragment the packet. They never fragment IPv6.
    pub dont_fragment: bool,
    /// Length of the longest fragment of a reassembled IPv6 datagram, in bytes. It must fit the path MTU.
    pub longest_fragment: Option<usize>,
}

impl Packet {
    /// The version of IP.
    pub fn family(&self) -> Family {
        self.flow.dest.family()
    }

    /// Length of the packet in bytes, network header included; used for counters and MTU checks.
    pub fn length(&self) -> usize {
        self.end - self.network
    }

    /// Whether its protocol has ports.
    pub fn has_ports(&self) -> bool {
        matches!(self.flow.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
    }

    /// Whether the packet is an ICMP error of a type that IPVS relates to connections.
    ///
    /// Source: ipvs-behaviour, section 2.5.
    pub fn is_followed_error(&self) -> bool {
        let is_followed = match self.family() {
            Family::V4 => icmp::is_followed,
            Family::V6 => icmpv6::is_error,
        };
        self.icmp_type.is_some_and(is_followed)
    }

    /// The flow key by which the packet's connection is looked up. It is the packet's own flow, except for AH and ESP:
    /// they belong to the UDP flow between ports 500 that negotiated their keys (RFC 7296 §2).
    pub fn connection_key(&self) -> FlowKey {
        let FlowKey { protocol, source, dest } = self.flow;
        match protocol {
            Protocol::AH | Protocol::ESP => FlowKey {
                protocol: Protocol::UDP,
                source: Endpoint { port: IKE_PORT, ..source },
                dest: Endpoint { port: IKE_PORT, ..dest },
            },
            _ => self.flow,
        }
    }

    /// Whether the packet is an ICMP error about another packet.
    pub fn is_icmp_error(&self) -> bool {
        let is_error = match self.family() {
            Family::V4 => icmp::is_error,
            Family::V6 => icmpv6::is_error,
        };
        self.icmp_type.is_some_and(is_error)
    }
}

/// The port at which keys for AH and ESP are negotiated (RFC 7296 §2).
const IKE_PORT: u16 = 500;

/// The position of a packet in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// It is the whole datagram.
    Whole,
    /// The first fragment of a datagram.
    First,
    /// A later fragment, which contains no ports.
    Later,
}

impl Fragment {
    fn of(offset: u16, more: u16) -> Self {
        match (offset, more) {
            (0, 0) => Self::Whole,
            (0, _) => Self::First,
            _ => Self::Later,
        }
    }
}

/// The content of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// An IPv4 or IPv6 packet.
    Ip(Packet),
    /// Anything else, which is not parsed further.
    Other,
}

/// Parses the headers of a frame.
///
/// # Errors
///
/// [`Malformed`] if the frame contradicts itself.
///
/// ```
/// use xvs_proto::{Malformed, Parsed, Protocol, parse};
///
/// // UDP from 192.0.2.1:4660 to 198.51.100.2:53, without data.
/// let mut frame = [0; 42];
/// frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]);
/// frame[26..39].copy_from_slice(&[192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0, 53, 0]);
/// assert_eq!(parse(&frame), Err(Malformed::Ipv4Checksum));
/// frame[24..26].copy_from_slice(&[0x8e, 0x9a]);
/// frame[39] = 8;
/// let Ok(Parsed::Ip(packet)) = parse(&frame) else { panic!("not an IP packet") };
/// assert_eq!(packet.flow.protocol, Protocol::UDP);
/// assert_eq!(packet.flow.dest.to_string(), "198.51.100.2:53");
/// ```
pub fn parse(frame: &[u8]) -> Result<Parsed, Malformed> {
    let link = ethernet::parse(frame)?;
    let network = link.payload;
    let bytes = &frame[network..];
    let mut packet = match link.ethertype {
        ethernet::TYPE_IPV4 => ipv4_headers(&Ipv4::parse(bytes)?, network),
        ethernet::TYPE_IPV6 => ipv6_headers(&Ipv6::parse(bytes)?, network)?,
        _ => return Ok(Parsed::Other),
    };
    if packet.fragment != Fragment::Later {
        let segment = &frame[packet.transport..packet.end];
        read_transport(&mut packet, segment)?;
    }
    Ok(Parsed::Ip(packet))
}

/// Parses the packet of this family that an ICMP error quotes, within the error's frame. The packet ends where the
/// quote ends, so its length is that of the quoted bytes. Of the transport header only the ports are required. `None`
/// if the quote ends before the ports, or contradicts itself.
///
/// # Panics
///
/// If the frame is shorter than the quote's end.
pub fn quoted(frame: &[u8], quote: Range<usize>, family: Family) -> Option<Packet> {
    let bytes = &frame[quote.clone()];
    let mut packet = match family {
        Family::V4 => ipv4_headers(&Ipv4::quoted(bytes).ok()?, quote.start),
        Family::V6 => ipv6_headers(&Ipv6::quoted(bytes).ok()?, quote.start).ok()?,
    };
    packet.end = packet.end.min(quote.end);
    if packet.has_ports() && packet.fragment != Fragment::Later {
        let ports = frame[packet.transport..packet.end].first_chunk::<4>()?;
        packet.flow.source.port = u16::from_be_bytes([ports[0], ports[1]]);
        packet.flow.dest.port = u16::from_be_bytes([ports[2], ports[3]]);
    }
    Some(packet)
}

/// Parses the packet in an untagged frame that is truncated, like [`quoted`]. `None` if the packet is not IP, or is
/// malformed.
pub fn parse_cut(frame: &[u8]) -> Option<Packet> {
    let link = ethernet::parse(frame).ok()?;
    quoted(frame, link.payload..frame.len(), Family::of_ethertype(link.ethertype)?)
}

fn ipv4_headers(view: &Ipv4<&[u8]>, network: usize) -> Packet {
    let word = view.flags_and_offset();
    Packet {
        network,
        transport: network + view.header_len(),
        end: network + usize::from(view.total_len()),
        flow: portless(view.protocol(), IpAddr::V4(view.source()), IpAddr::V4(view.dest())),
        fragment: Fragment::of(word & ipv4::OFFSET_MASK, word & ipv4::MORE_FRAGMENTS),
        fragment_header: None,
        longest_fragment: None,
        tcp_flags: tcp::Flags::default(),
        sctp_event: None,
        icmp_type: None,
        ttl: view.ttl(),
        tos: view.tos(),
        dont_fragment: word & ipv4::DONT_FRAGMENT != 0,
    }
}

fn ipv6_headers(view: &Ipv6<&[u8]>, network: usize) -> Result<Packet, Malformed> {
    let chain = view.chain()?;
    let word = chain.fragment.map_or(0, |header| header.offset_and_more);
    Ok(Packet {
        network,
        transport: network + chain.transport,
        end: network + view.total_len(),
        flow: portless(chain.protocol, IpAddr::V6(view.source()), IpAddr::V6(view.dest())),
        fragment: Fragment::of(word & ipv6::OFFSET_MASK, word & ipv6::MORE_FRAGMENTS),
        fragment_header: chain.fragment.map(|header| network + header.at),
        longest_fragment: None,
        tcp_flags: tcp::Flags::default(),
        sctp_event: None,
        icmp_type: None,
        ttl: view.hop_limit(),
        tos: view.traffic_class(),
        dont_fragment: true,
    })
}

/// A flow whose ports have not been read.
fn portless(protocol: Protocol, source: IpAddr, dest: IpAddr) -> FlowKey {
    FlowKey { protocol, source: Endpoint::new(source, 0), dest: Endpoint::new(dest, 0) }
}

/// Reads the first bytes of a datagram's payload.
fn read_transport(packet: &mut Packet, segment: &[u8]) -> Result<(), Malformed> {
    let icmp = match packet.family() {
        Family::V4 => Protocol::ICMP,
        Family::V6 => Protocol::ICMPV6,
    };
    let (needed, otherwise) = match packet.flow.protocol {
        Protocol::TCP => (tcp::HEADER_LEN, Malformed::TcpTooShort),
        Protocol::UDP => (udp::HEADER_LEN, Malformed::UdpTooShort),
        Protocol::SCTP => (sctp::HEADER_LEN, Malformed::SctpTooShort),
        protocol if protocol == icmp => (icmp::HEADER_LEN, Malformed::IcmpTooShort),
        _ => return Ok(()),
    };
    if segment.len() < needed {
        return Err(otherwise);
    }
    if packet.flow.protocol == icmp {
        packet.icmp_type = Some(segment[0]);
        return Ok(());
    }
    packet.flow.source.port = u16::from_be_bytes([segment[0], segment[1]]);
    packet.flow.dest.port = u16::from_be_bytes([segment[2], segment[3]]);
    match packet.flow.protocol {
        Protocol::TCP => packet.tcp_flags = tcp::Flags(segment[tcp::field::FLAGS]),
        Protocol::SCTP => packet.sctp_event = sctp::Event::of(segment),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn syn() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 1, 0xfe], [2, 0, 0, 0, 1, 1])
            .ipv4([192, 0, 2, 10], [198, 51, 100, 1], 64)
            .tcp(1000, 80, 7, 1024)
            .syn();
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &[]).unwrap();
        bytes
    }

    fn read(frame: &[u8]) -> Packet {
        match parse(frame) {
            Ok(Parsed::Ip(packet)) => packet,
            other => panic!("not a packet: {other:?}"),
        }
    }

    /// A UDP datagram over IPv6 after these extension headers; the first of them has this type.
    fn datagram_behind(first: u8, extensions: &[u8]) -> Vec<u8> {
        let udp = etherparse::UdpHeader { source_port: 1000, destination_port: 53, length: 12, checksum: 7 };
        let header = etherparse::Ipv6Header {
            traffic_class: 0xb8,
            payload_length: (extensions.len() + 12) as u16,
            next_header: first.into(),
            hop_limit: 9,
            source: [0x20; 16],
            destination: [0xfd; 16],
            ..Default::default()
        };
        let link = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 0xfe]].concat();
        [&link[..], &[0x86, 0xdd], &header.to_bytes(), extensions, &udp.to_bytes(), b"data"].concat()
    }

    /// Corrects the header checksum after a test edited the header.
    fn resum(frame: &mut [u8]) {
        frame[24..26].fill(0);
        let sum = crate::checksum::Sum::default().bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }

    #[test]
    fn a_syn_is_read_with_its_endpoints_and_flags() {
        let packet = read(&syn());
        assert_eq!(packet.flow.to_string_for_test(), "TCP 192.0.2.10:1000 > 198.51.100.1:80");
        assert_eq!(packet.tcp_flags, tcp::Flags::SYN);
        assert_eq!((packet.network, packet.transport, packet.end, packet.length()), (14, 34, 54, 40));
        assert_eq!(packet.fragment, Fragment::Whole);
    }

    #[test]
    fn link_padding_is_not_part_of_the_packet() {
        let mut frame = syn();
        frame.resize(60, 0xa5);
        assert_eq!(read(&frame).end, 54);
    }

    #[test]
    fn a_later_fragment_never_yields_ports_and_a_first_one_does() {
        let mut frame = syn();
        frame[20..22].copy_from_slice(&0x2000u16.to_be_bytes());
        resum(&mut frame);
        assert_eq!(read(&frame).fragment, Fragment::First);
        assert_eq!(read(&frame).flow.dest.port, 80);
        frame[20..22].copy_from_slice(&0x0001u16.to_be_bytes());
        resum(&mut frame);
        assert_eq!(read(&frame).fragment, Fragment::Later);
        assert_eq!((read(&frame).flow.source.port, read(&frame).flow.dest.port), (0, 0));
    }

    #[test]
    fn a_packet_that_ends_inside_its_transport_header_is_refused() {
        for (protocol, needed, reason) in [
            (6, 20, Malformed::TcpTooShort),
            (17, 8, Malformed::UdpTooShort),
            (132, 12, Malformed::SctpTooShort),
            (1, 8, Malformed::IcmpTooShort),
        ] {
            for len in 0..=needed {
                let mut frame = syn();
                frame[23] = protocol;
                frame[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
                resum(&mut frame);
                assert_eq!(parse(&frame).err(), (len < needed).then_some(reason), "{protocol} {len}");
            }
        }
    }

    #[test]
    fn an_sctp_packet_is_read_with_its_ports_and_the_event_of_its_first_chunk() {
        let mut frame = syn();
        frame[23] = 132;
        // After the common header: an INIT.
        frame[46..50].copy_from_slice(&[1, 0, 0, 20]);
        resum(&mut frame);
        let packet = read(&frame);
        assert_eq!(packet.flow.to_string_for_test(), "SCTP 192.0.2.10:1000 > 198.51.100.1:80");
        assert_eq!((packet.sctp_event, packet.tcp_flags), (Some(sctp::Event::Init), tcp::Flags::default()));
        frame[16..18].copy_from_slice(&32u16.to_be_bytes());
        resum(&mut frame);
        assert_eq!(read(&frame).sctp_event, None, "the chunk lies behind the packet's end");
    }

    #[test]
    fn an_ipv6_packet_is_read_through_its_extension_headers() {
        let options = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
        for (first, extensions) in [(17, &[][..]), (0, &options[..])] {
            let packet = read(&datagram_behind(first, extensions));
            assert_eq!(
                packet.flow.to_string_for_test(),
                "UDP [2020:2020:2020:2020:2020:2020:2020:2020]:1000 > [fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:53"
            );
            let transport = 54 + extensions.len();
            assert_eq!((packet.network, packet.transport, packet.end), (14, transport, transport + 12));
            assert_eq!((packet.ttl, packet.tos, packet.dont_fragment), (9, 0xb8, true));
            assert_eq!((packet.fragment, packet.fragment_header), (Fragment::Whole, None));
            assert_eq!((packet.family(), packet.is_icmp_error()), (Family::V6, false));
        }
    }

    #[test]
    fn an_atomic_fragment_is_a_whole_packet_and_others_are_first_or_later_fragments() {
        for (word, fragment, port) in [
            (0, Fragment::Whole, 53),
            (1, Fragment::First, 53),
            (8, Fragment::Later, 0),
            (9, Fragment::Later, 0),
        ] {
            let packet = read(&datagram_behind(44, &[17, 0, 0, word, 0, 0, 0, 7]));
            assert_eq!((packet.fragment, packet.fragment_header), (fragment, Some(54)));
            assert_eq!((packet.flow.protocol, packet.flow.dest.port), (Protocol::UDP, port));
        }
    }

    #[test]
    fn each_family_has_an_icmp_of_its_own() {
        let mut frame = datagram_behind(58, &[]);
        frame[54] = 1;
        assert!(read(&frame).is_icmp_error());
        frame[54] = 128;
        assert_eq!((read(&frame).icmp_type, read(&frame).is_icmp_error()), (Some(128), false));
        frame[20] = 1;
        assert_eq!(read(&frame).icmp_type, None, "ICMPv4 inside IPv6 is not ICMP");
    }

    #[test]
    fn an_ipv6_packet_that_ends_inside_its_transport_header_is_refused() {
        for (protocol, needed, reason) in [
            (6, 20, Malformed::TcpTooShort),
            (17, 8, Malformed::UdpTooShort),
            (132, 12, Malformed::SctpTooShort),
            (58, 8, Malformed::IcmpTooShort),
            (50, 0, Malformed::TcpTooShort),
        ] {
            for len in 0..=needed {
                let mut frame = datagram_behind(protocol, &[0; 8]);
                frame[19] = len as u8;
                assert_eq!(parse(&frame).err(), (len < needed).then_some(reason), "{protocol} {len}");
            }
        }
    }

    #[test]
    fn other_ethertypes_are_not_looked_at() {
        let mut frame = syn();
        frame[12..14].copy_from_slice(&0x0806u16.to_be_bytes());
        assert_eq!(parse(&frame), Ok(Parsed::Other));
    }

    #[test]
    fn a_quote_is_read_once_its_ports_are_there_and_ends_where_it_was_cut_or_the_packet_ends() {
        let v4 = syn()[14..].to_vec();
        let v6 = datagram_behind(60, &[17, 0, 1, 4, 0, 0, 0, 0])[14..].to_vec();
        for (bytes, family, ports) in [(v4, Family::V4, 24), (v6, Family::V6, 52)] {
            let frame = [vec![0xa5; 7], bytes.clone(), vec![0xa5; 9]].concat();
            for end in 0..=bytes.len() + 9 {
                let quote = quoted(&frame, 7..7 + end, family);
                assert_eq!(quote.is_some(), end >= ports, "{family:?} {end}");
                let Some(quote) = quote else { continue };
                assert_eq!((quote.network, quote.end), (7, 7 + end.min(bytes.len())));
                assert_eq!(quote.flow.source.port, 1000);
                assert_eq!((quote.tcp_flags, quote.icmp_type), (tcp::Flags::default(), None));
            }
        }
    }

    #[test]
    fn a_quote_may_have_a_wrong_header_checksum_and_lies_about_lengths_are_refused() {
        let quote = |at: usize, byte: u8| {
            let mut bytes = syn()[14..].to_vec();
            bytes[at] = byte;
            quoted(&bytes, 0..28, Family::V4)
        };
        assert!(quote(10, 0xff).is_some());
        for (at, byte) in [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 19)] {
            assert_eq!(quote(at, byte), None, "{at} {byte:x}");
        }
        let later = quote(7, 1).expect("a fragment");
        assert_eq!((later.fragment, later.flow.source.port), (Fragment::Later, 0));
        assert_eq!(quoted(&syn()[14..], 0..28, Family::V6), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_quote_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), start: prop::sample::Index, v6: bool) {
            let start = start.index(bytes.len() + 1);
            let family = if v6 { Family::V6 } else { Family::V4 };
            if let Some(first) = bytes.get_mut(start) {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(packet) = quoted(&bytes, start..bytes.len(), family) {
                prop_assert!(packet.transport <= packet.end && packet.end <= bytes.len());
            }
        }

        #[test]
        fn no_bytes_cause_a_panic_and_every_accepted_packet_lies_within_the_frame(
            mut noise in prop::collection::vec(any::<u8>(), 0..120),
            start in any::<prop::sample::Index>(),
            keep in 0usize..80,
        ) {
            let base = syn();
            let mut frame = base[..keep.min(base.len())].to_vec();
            frame.append(&mut noise);
            let _ = parse(&frame);
            if frame.len() >= 34 {
                let at = 14 + start.index(20);
                frame[at] ^= 0x11;
                resum(&mut frame);
            }
            lies_within(&frame)?;
        }

        #[test]
        fn no_ipv6_bytes_make_it_panic_either(
            mut noise in prop::collection::vec(any::<u8>(), 0..120),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            keep in 0usize..90,
        ) {
            let base = datagram_behind(0, &[44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 7]);
            let mut frame = base[..keep.min(base.len())].to_vec();
            frame.append(&mut noise);
            for (at, value) in edits {
                if frame.len() > 14 {
                    let at = 14 + at.index(frame.len() - 14);
                    frame[at] = value;
                }
            }
            lies_within(&frame)?;
        }
    }

    fn lies_within(frame: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(Parsed::Ip(packet)) = parse(frame) {
            prop_assert!(packet.network < packet.transport && packet.transport <= packet.end);
            prop_assert!(packet.end <= frame.len());
        }
        Ok(())
    }

    impl FlowKey {
        fn to_string_for_test(self) -> String {
            format!("{} {} > {}", self.protocol, self.source, self.dest)
        }
    }
}
