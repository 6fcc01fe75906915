//! From a frame's bytes to what the pipeline works with.
//!
//! Runs once per frame. Checks every length that later stages rely on, so that they index without failing. Cost:
//! one pass over the headers. Not here: what the packet means to a service.

use std::net::IpAddr;

use crate::addr::{Endpoint, Protocol};
use crate::flow::FlowKey;
use crate::ipv4::{self, Ipv4};
use crate::malformed::Malformed;
use crate::{ethernet, icmp, sctp, tcp, udp};

/// A packet's headers, as positions in its frame and the fields that decide what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Where the network header begins.
    pub network: usize,
    /// Where the transport header begins.
    pub transport: usize,
    /// Where the packet ends; link padding may follow.
    pub end: usize,
    /// Protocol and endpoints. Ports are 0 in a fragment that does not begin a datagram, and in protocols without.
    pub flow: FlowKey,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Control bits of a TCP segment, else none.
    pub tcp_flags: tcp::Flags,
    /// What an SCTP packet's first chunk says; none in other protocols, and in a packet without a chunk.
    pub sctp_event: Option<sctp::Event>,
    /// Type of an ICMP message.
    pub icmp_type: Option<u8>,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
}

impl Packet {
    /// Bytes of the packet, network header included: what counters count and an MTU limits.
    pub fn length(&self) -> usize {
        self.end - self.network
    }

    /// Whether it is itself a report about another packet.
    pub fn is_icmp_error(&self) -> bool {
        self.icmp_type.is_some_and(icmp::is_error)
    }
}

/// A packet's place in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// It is the whole datagram.
    Whole,
    /// It begins a datagram that goes on in others.
    First,
    /// It continues one: there are no ports in it.
    Later,
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// An IPv4 packet.
    Ipv4(Packet),
    /// Something that is not looked at further.
    Other,
}

/// Reads a frame's headers.
///
/// # Errors
/// [`Malformed`] for a frame that contradicts itself.
pub fn parse(frame: &[u8]) -> Result<Parsed, Malformed> {
    let link = ethernet::parse(frame)?;
    if link.ethertype != ethernet::TYPE_IPV4 {
        return Ok(Parsed::Other);
    }
    let network = link.payload;
    let view = Ipv4::parse(&frame[network..])?;
    let transport = network + view.header_len();
    let end = network + usize::from(view.total_len());
    let word = view.flags_and_offset();
    let fragment = match (word & ipv4::OFFSET_MASK, word & ipv4::MORE_FRAGMENTS) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let protocol = view.protocol();
    let mut packet = Packet {
        network,
        transport,
        end,
        flow: FlowKey {
            protocol,
            source: Endpoint { addr: IpAddr::V4(view.source()), port: 0 },
            dest: Endpoint { addr: IpAddr::V4(view.dest()), port: 0 },
        },
        fragment,
        tcp_flags: tcp::Flags::default(),
        sctp_event: None,
        icmp_type: None,
        ttl: view.ttl(),
        tos: view.tos(),
        dont_fragment: word & ipv4::DONT_FRAGMENT != 0,
    };
    if fragment != Fragment::Later {
        read_transport(&mut packet, &frame[transport..end])?;
    }
    Ok(Parsed::Ipv4(packet))
}

/// Reads what the first bytes of a datagram's payload say.
fn read_transport(packet: &mut Packet, segment: &[u8]) -> Result<(), Malformed> {
    let (needed, otherwise) = match packet.flow.protocol {
        Protocol::TCP => (tcp::HEADER_LEN, Malformed::TcpTooShort),
        Protocol::UDP => (udp::HEADER_LEN, Malformed::UdpTooShort),
        Protocol::SCTP => (sctp::HEADER_LEN, Malformed::SctpTooShort),
        Protocol::ICMP => (icmp::HEADER_LEN, Malformed::IcmpTooShort),
        _ => return Ok(()),
    };
    if segment.len() < needed {
        return Err(otherwise);
    }
    if packet.flow.protocol == Protocol::ICMP {
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

    fn ipv4(frame: &[u8]) -> Packet {
        match parse(frame) {
            Ok(Parsed::Ipv4(packet)) => packet,
            other => panic!("not an IPv4 packet: {other:?}"),
        }
    }

    /// Corrects the header checksum after a test edited the header.
    fn resum(frame: &mut [u8]) {
        frame[24..26].fill(0);
        let sum = crate::checksum::Sum::default().bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }

    #[test]
    fn a_syn_is_read_with_its_endpoints_and_flags() {
        let packet = ipv4(&syn());
        assert_eq!(packet.flow.to_string_for_test(), "TCP 192.0.2.10:1000 > 198.51.100.1:80");
        assert_eq!(packet.tcp_flags, tcp::Flags::SYN);
        assert_eq!((packet.network, packet.transport, packet.end, packet.length()), (14, 34, 54, 40));
        assert_eq!(packet.fragment, Fragment::Whole);
    }

    #[test]
    fn link_padding_is_not_part_of_the_packet() {
        let mut frame = syn();
        frame.resize(60, 0xa5);
        assert_eq!(ipv4(&frame).end, 54);
    }

    #[test]
    fn a_later_fragment_never_yields_ports_and_a_first_one_does() {
        let mut frame = syn();
        frame[20..22].copy_from_slice(&0x2000u16.to_be_bytes());
        resum(&mut frame);
        assert_eq!(ipv4(&frame).fragment, Fragment::First);
        assert_eq!(ipv4(&frame).flow.dest.port, 80);
        frame[20..22].copy_from_slice(&0x0001u16.to_be_bytes());
        resum(&mut frame);
        assert_eq!(ipv4(&frame).fragment, Fragment::Later);
        assert_eq!((ipv4(&frame).flow.source.port, ipv4(&frame).flow.dest.port), (0, 0));
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
        let packet = ipv4(&frame);
        assert_eq!(packet.flow.to_string_for_test(), "SCTP 192.0.2.10:1000 > 198.51.100.1:80");
        assert_eq!((packet.sctp_event, packet.tcp_flags), (Some(sctp::Event::Init), tcp::Flags::default()));
        frame[16..18].copy_from_slice(&32u16.to_be_bytes());
        resum(&mut frame);
        assert_eq!(ipv4(&frame).sctp_event, None, "the chunk lies behind the packet's end");
    }

    #[test]
    fn other_ethertypes_are_not_looked_at() {
        let mut frame = syn();
        frame[12..14].copy_from_slice(&0x0806u16.to_be_bytes());
        assert_eq!(parse(&frame), Ok(Parsed::Other));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_it_accepts_lies_within_the_frame(
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
            if let Ok(Parsed::Ipv4(packet)) = parse(&frame) {
                prop_assert!(packet.network < packet.transport && packet.transport <= packet.end);
                prop_assert!(packet.end <= frame.len());
            }
        }
    }

    impl FlowKey {
        fn to_string_for_test(self) -> String {
            format!("{} {} > {}", self.protocol, self.source, self.dest)
        }
    }
}
