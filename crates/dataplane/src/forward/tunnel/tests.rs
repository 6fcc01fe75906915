//! Tests of outer headers of both families around packets of both families. The expected headers are from `etherparse`,
//! RFC 2784 and the GUE draft.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    IpDscp, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, UdpHeader, ether_type,
};
use xvs_proto::{HashSecret, LinkId, MacAddr, Parsed, parse};
use xvs_sched::ForwardingMethod;
use xvs_xdp::{FrameLayout, FramePool};

use std::net::IpAddr;

use super::*;
use crate::clock::Millis;
use crate::egress::Tunnel;
use crate::egress::path_mtu::PathMtu;
use crate::forward::Identification;

const SOURCE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 1);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0x11);
const GUE_PORT: u16 = 6080;
/// The hash whose source port is in the middle of the range.
const FLOW_HASH: u64 = 1 << 63;
const FLOW_PORT: u16 = 46883;
const FIRST_ID: u16 = 0x1235;

/// Every kind of tunnel, with the length of its headers after the outer network header.
const KINDS: [(Encapsulation, usize); 5] = [
    (Encapsulation::Ip, 0),
    (Encapsulation::Gre(Coverage::None), 4),
    (Encapsulation::Gre(Coverage::Whole), 8),
    (Encapsulation::Gue { port: GUE_PORT, coverage: Coverage::None }, 12),
    (Encapsulation::Gue { port: GUE_PORT, coverage: Coverage::Whole }, 12),
];

/// A frame with a UDP datagram to a virtual address in this family: time to live 64, traffic class 0xb8.
fn request(family: Family, data: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..data).map(|at| at as u8 ^ 0xa5).collect();
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 1, 0xfe], [2, 0, 0, 0, 1, 1]);
    let mut frame = Vec::new();
    let written = match family {
        Family::V4 => {
            let mut header =
                Ipv4Header::new(0, 64, IpNumber::UDP, [192, 0, 2, 200], [198, 51, 100, 1]).unwrap();
            header.dscp = IpDscp::try_new(0x2e).unwrap();
            header.dont_fragment = true;
            ethernet.ip(IpHeaders::Ipv4(header, Default::default())).udp(4000, 80).write(&mut frame, &data)
        }
        Family::V6 => {
            let header = Ipv6Header {
                traffic_class: 0xb8,
                flow_label: Ipv6FlowLabel::try_new(0x12345).unwrap(),
                payload_length: 0,
                next_header: IpNumber::UDP,
                hop_limit: 64,
                source: Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).octets(),
                destination: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).octets(),
            };
            ethernet.ip(IpHeaders::Ipv6(header, Default::default())).udp(4000, 80).write(&mut frame, &data)
        }
    };
    written.unwrap();
    frame
}

/// The packet of a request as it is inside a tunnel: with decremented time to live.
fn inside(family: Family, request: &[u8]) -> Vec<u8> {
    let mut packet = request[14..].to_vec();
    match family {
        Family::V4 => {
            let (mut header, data) = Ipv4Header::from_slice(&packet).unwrap();
            header.time_to_live -= 1;
            header.header_checksum = header.calc_header_checksum();
            packet = [&header.to_bytes()[..], data].concat();
        }
        Family::V6 => packet[7] -= 1,
    }
    packet
}

/// The expected outer packet for `inner`.
fn around(outer: Family, family: Family, encapsulation: Encapsulation, inner: &[u8]) -> Vec<u8> {
    let (ethertype, direct) = match family {
        Family::V4 => (ether_type::IPV4.0, IpNumber::IPV4),
        Family::V6 => (ether_type::IPV6.0, IpNumber::IPV6),
    };
    let gue = [&[0, direct.0, 0, 0], inner].concat();
    let udp = |summed: Coverage| {
        let mut udp = UdpHeader {
            source_port: FLOW_PORT,
            destination_port: GUE_PORT,
            length: 8 + gue.len() as u16,
            checksum: 0,
        };
        udp.checksum = match (summed, outer) {
            (Coverage::None, _) => 0,
            (Coverage::Whole, Family::V4) => {
                udp.calc_checksum_ipv4_raw(SOURCE.octets(), SERVER.octets(), &gue).unwrap()
            }
            (Coverage::Whole, Family::V6) => {
                udp.calc_checksum_ipv6_raw(SOURCE6.octets(), SERVER6.octets(), &gue).unwrap()
            }
        };
        [&udp.to_bytes()[..], &gue].concat()
    };
    let (protocol, payload) = match encapsulation {
        Encapsulation::Ip => (direct, inner.to_vec()),
        Encapsulation::Gre(coverage) => {
            let head = [if coverage == Coverage::Whole { 0x80 } else { 0 }, 0];
            let head = [head, ethertype.to_be_bytes()].concat();
            let sum = Sum16BitWords::new().add_slice(&head).add_slice(inner).ones_complement();
            let sum = [&sum.to_ne_bytes()[..], &[0, 0]].concat();
            let sum = if coverage == Coverage::Whole { &sum[..] } else { &[] };
            (IpNumber::GRE, [&head, sum, inner].concat())
        }
        Encapsulation::Gue { coverage, .. } => (IpNumber::UDP, udp(coverage)),
    };
    match outer {
        Family::V4 => {
            let length = payload.len() as u16;
            let mut header = Ipv4Header::new(length, 63, protocol, SOURCE.octets(), SERVER.octets()).unwrap();
            header.dscp = IpDscp::try_new(0x2e).unwrap();
            // The outer header of an IPv6 packet allows fragmentation.
            header.dont_fragment = family == Family::V4;
            header.identification = if header.dont_fragment { 0 } else { FIRST_ID };
            header.header_checksum = header.calc_header_checksum();
            [&header.to_bytes()[..], &payload].concat()
        }
        Family::V6 => {
            let header = Ipv6Header {
                traffic_class: 0xb8,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: payload.len() as u16,
                next_header: protocol,
                hop_limit: 63,
                source: SOURCE6.octets(),
                destination: SERVER6.octets(),
            };
            [&header.to_bytes()[..], &payload].concat()
        }
    }
}

/// The packet that a frame becomes on a path with this MTU.
fn sent(
    outer: Family,
    encapsulation: Encapsulation,
    request: &[u8],
    mtu: u32,
) -> Result<Vec<u8>, DropReason> {
    let layout = FrameLayout { frame_size_bytes: 4096, headroom_bytes: 256, frames: 1 };
    let mut pool = FramePool::in_memory(layout);
    let mut frame = pool.take().unwrap();
    // Padding of the link follows the packet.
    assert!(frame.resize(request.len() + 3));
    frame.bytes_mut().fill(0xa5);
    frame.bytes_mut()[..request.len()].copy_from_slice(request);
    let Ok(Parsed::Ip(packet)) = parse(frame.bytes()) else { panic!("the request is an IP packet") };
    let (source, server): (IpAddr, IpAddr) = match outer {
        Family::V4 => (SOURCE.into(), SERVER.into()),
        Family::V6 => (SOURCE6.into(), SERVER6.into()),
    };
    let ends = Ends {
        client: packet.flow.source,
        local: None,
        virtual_endpoint: packet.flow.dest,
        dest: xvs_proto::Endpoint { addr: server, port: 80 },
        method: ForwardingMethod::Tunnel,
    };
    let mac = MacAddr([2, 0, 0, 0, 2, 1]);
    let hop = Hop { link: LinkId(0), source_mac: mac, dest_mac: mac, mtu };
    let mut ids = Identification { last: u32::from(FIRST_ID) - 1, secret: HashSecret([3, 5, 7]) };
    let outer = Outer {
        path_mtu: &PathMtu::default(),
        now: Millis(0),
        tunnel: Tunnel { source: Some(source), encapsulation },
        pmtu_disc: true,
        flow_hash: FLOW_HASH,
        ids: &mut ids,
    };
    let done = send(&mut frame, &packet, &ends, hop, outer).map(|_| frame.bytes().to_vec());
    pool.put(frame);
    done
}

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn network_len(outer: Family) -> usize {
    if outer == Family::V4 { 20 } else { 40 }
}

#[test]
fn every_kind_of_tunnel_carries_both_families_over_both_families() {
    for outer in BOTH {
        for family in BOTH {
            for (encapsulation, _) in KINDS {
                for data in [0, 1, 2, 17, 1000, 1001] {
                    let request = request(family, data);
                    let want = around(outer, family, encapsulation, &inside(family, &request));
                    let what = format!("{family:?} in {outer:?} by {encapsulation:?}, {data} bytes");
                    assert_eq!(sent(outer, encapsulation, &request, 1500), Ok(want), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_packet_too_big_for_the_tunnel_is_refused_with_the_largest_size_that_fits() {
    for outer in BOTH {
        for family in BOTH {
            for (encapsulation, between) in KINDS {
                let room = 1500 - network_len(outer) - between;
                let headers = 8 + network_len(family);
                assert!(sent(outer, encapsulation, &request(family, room - headers), 1500).is_ok());
                let refused = sent(outer, encapsulation, &request(family, room - headers + 1), 1500);
                assert_eq!(refused, Err(DropReason::TooBig { mtu: room as u16 }));
            }
        }
    }
}

#[test]
fn a_tunnel_needs_a_path_mtu_of_its_headers_plus_1280_bytes_for_ipv6_and_68_for_ipv4() {
    for (outer, least) in [(Family::V4, 68), (Family::V6, 1280)] {
        for (encapsulation, between) in KINDS {
            let mtu = (least + network_len(outer) + between) as u32;
            assert!(sent(outer, encapsulation, &request(Family::V4, 0), mtu).is_ok());
            let refused = sent(outer, encapsulation, &request(Family::V4, 0), mtu - 1);
            assert_eq!(refused, Err(DropReason::PathTooNarrow));
        }
    }
}

#[test]
fn congestion_experienced_inside_becomes_ect_0_outside() {
    assert_eq!(outer_tos(0xb8 | 0b11), 0xb8 | 0b10);
    for tos in [0xb8, 0xb8 | 0b01, 0xb8 | 0b10, 0] {
        assert_eq!(outer_tos(tos), tos);
    }
}

#[test]
fn gue_source_ports_are_in_the_range_that_linux_uses_for_sockets() {
    assert_eq!(source_port(0), 32768);
    assert_eq!(source_port(u64::MAX), 60998);
    assert_eq!(source_port(FLOW_HASH), FLOW_PORT);
}
