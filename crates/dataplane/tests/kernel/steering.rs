//! The steering program, run by the kernel on literal frames (BPF_PROG_TEST_RUN). Needs root, or CAP_BPF, CAP_NET_ADMIN
//! and CAP_PERFMON; fails without them.
//!
//! Frames are from etherparse, an independent encoder, or written out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, PacketBuilder};
use xvs_dataplane::steering::{Steering, SteeringRules, Verdict};
use xvs_proto::{Endpoint, Protocol};

pub(crate) const CLIENT: [u8; 4] = [203, 0, 113, 7];
pub(crate) const VIP: [u8; 4] = [192, 0, 2, 1];
pub(crate) const WIDE: [u8; 4] = [192, 0, 2, 65];
pub(crate) const ANY_PORT: [u8; 4] = [192, 0, 2, 3];
pub(crate) const REAL_ANY_PORT: [u8; 4] = [198, 51, 100, 3];
const TUNNEL_END: [u8; 4] = [198, 51, 100, 4];
pub(crate) const REAL: [u8; 4] = [198, 51, 100, 2];
pub(crate) const SELF: [u8; 4] = [198, 51, 100, 1];
/// A local address of FULLNAT.
pub(crate) const LOCAL: [u8; 4] = [198, 51, 100, 4];
pub(crate) const OTHER: [u8; 4] = [192, 0, 2, 9];
/// The local port of probes.
const PROBE_PORT: u16 = 40_000;

const CLIENT6: u16 = 0xc;
const VIP6: u16 = 0x1;
const ANY_PORT6: u16 = 0x3;
const TUNNEL_END6: u16 = 0x4;
const REAL6: u16 = 0x2;
const SELF6: u16 = 0x5;
const LOCAL6: u16 = 0x6;
const OTHER6: u16 = 0x9;

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
}

pub(crate) fn at(addr: impl Into<IpAddr>, port: u16) -> Endpoint {
    Endpoint::new(addr, port)
}

pub(crate) fn rules() -> SteeringRules {
    SteeringRules {
        services: [
            (Protocol::TCP, at(VIP, 80)),
            (Protocol::UDP, at(VIP, 53)),
            (Protocol::SCTP, at(VIP, 3868)),
            (Protocol::TCP, at(ANY_PORT, 0)),
            (Protocol::TCP, at(v6(ANY_PORT6), 0)),
            (Protocol::TCP, at(v6(VIP6), 443)),
            (Protocol::UDP, at(v6(VIP6), 500)),
        ]
        .into(),
        own_clients: [(Protocol::TCP, at(VIP, 80))].into(),
        nat_destinations: [
            (Protocol::TCP, at(REAL, 8080)),
            (Protocol::TCP, at(v6(REAL6), 8443)),
            (Protocol::UDP, at(REAL_ANY_PORT, 0)),
        ]
        .into(),
        wide: ["192.0.2.64/28".parse().unwrap(), "2001:db8:77::/48".parse().unwrap()].into(),
        translated: [(LOCAL.into(), (5000, 5999)), (v6(LOCAL6).into(), (1, 65535))].into(),
        probe_sources: [at(SELF, PROBE_PORT), at(v6(SELF6), PROBE_PORT)].into(),
        tunnel_ends: [TUNNEL_END.into(), v6(TUNNEL_END6).into()].into(),
        local_addresses: [SELF.into(), v6(SELF6).into()].into(),
    }
}

/// A loaded program with [`rules`].
pub(crate) fn steering() -> Steering {
    let mut steering =
        Steering::load_for_test_runs().expect("run as root: the kernel must take BPF programs");
    steering.update(&rules()).unwrap();
    steering
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
}

pub(crate) fn tcp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet().ipv4(from.0, to.0, 64).tcp(from.1, to.1, 1, 1000).write(&mut frame, b"hello").unwrap();
    frame
}

pub(crate) fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet().ipv4(from.0, to.0, 64).udp(from.1, to.1).write(&mut frame, b"hello").unwrap();
    frame
}

fn tcp6(from: (u16, u16), to: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet()
        .ipv6(v6(from.0).octets(), v6(to.0).octets(), 64)
        .tcp(from.1, to.1, 1, 1000)
        .write(&mut frame, b"hello")
        .unwrap();
    frame
}

/// An IPv4 frame of any protocol, with these bytes after the header.
fn ip(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet().ipv4(from, to, 64).write(&mut frame, IpNumber(protocol), payload).unwrap();
    frame
}

/// An IPv6 frame. The payload includes extension headers, if there are any.
fn ip6(from: u16, to: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ethernet()
        .ipv6(v6(from).octets(), v6(to).octets(), 64)
        .write(&mut frame, IpNumber::IPV6_NO_NEXT_HEADER, payload)
        .unwrap();
    frame[14 + 6] = next;
    frame
}

/// A fragment of a TCP packet: 32 bytes from byte `8 * offset` on.
fn fragment(from: [u8; 4], to: [u8; 4], offset: u16, more: bool) -> Vec<u8> {
    let mut header = Ipv4Header::new(32, 64, IpNumber::TCP, from, to).unwrap();
    header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
    header.more_fragments = more;
    let mut frame = Vec::new();
    ethernet()
        .ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        .tcp(1, 1, 1, 1)
        .write(&mut frame, &[])
        .unwrap();
    frame
}

/// An ICMP or ICMPv6 error of type `kind`, which quotes up to `len` bytes of the packet in the frame `about`.
fn icmp(kind: u8, about: &[u8], len: usize) -> Vec<u8> {
    let quote = &about[14..];
    [&[kind, 0, 0, 0, 0, 0, 0, 0], &quote[..len.min(quote.len())]].concat()
}

pub(crate) fn assert_all(steering: &Steering, expected: Verdict, frames: &[(&str, Vec<u8>)]) {
    for (what, frame) in frames {
        assert_eq!(steering.test_run(frame).unwrap(), expected, "{what}: {frame:02x?}");
    }
}

/// Inserts tags behind the addresses.
fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

const CTAG: [u8; 4] = [0x81, 0x00, 0x00, 0x64];
const STAG: [u8; 4] = [0x88, 0xa8, 0x00, 0x0a];

#[test]
fn every_port_of_a_wide_network_is_steered_and_in_ipv6_also_packets_from_it() {
    let steering = steering();
    let wide = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1);
    let six = |from: Ipv6Addr, to: Ipv6Addr| {
        let mut frame = Vec::new();
        ethernet().ipv6(from.octets(), to.octets(), 64).udp(53, 4000).write(&mut frame, b"hello").unwrap();
        frame
    };
    let steered = [
        ("to it", udp((CLIENT, 4000), (WIDE, 9))),
        ("to it in IPv6", six(v6(CLIENT6), wide)),
        ("a reply in IPv6", six(wide, v6(CLIENT6))),
    ];
    assert_all(&steering, Verdict::Steered, &steered);
    let left = [
        ("a reply in IPv4, which the kernel refuses", udp((WIDE, 53), (CLIENT, 4000))),
        ("from it to this machine", six(wide, v6(SELF6))),
    ];
    assert_all(&steering, Verdict::Kernel, &left);
}

#[test]
fn an_endpoint_with_port_zero_stands_for_every_port_of_its_address_in_its_protocol() {
    let steering = steering();
    assert_all(
        &steering,
        Verdict::Steered,
        &[
            ("to port 22", tcp((CLIENT, 4000), (ANY_PORT, 22))),
            ("to port 0", tcp((CLIENT, 4000), (ANY_PORT, 0))),
            ("to port 65535, IPv6", tcp6((CLIENT6, 4000), (ANY_PORT6, 65535))),
            ("a fragment", fragment(CLIENT, ANY_PORT, 4, false)),
            ("a reply from port 53", udp((REAL_ANY_PORT, 53), (CLIENT, 4000))),
            ("an error about a reply", ip(OTHER, VIP, 1, &icmp(3, &tcp((ANY_PORT, 9), (CLIENT, 1)), 28))),
        ],
    );
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("another protocol", udp((CLIENT, 4000), (ANY_PORT, 22))),
            ("from a destination by another protocol", tcp((REAL_ANY_PORT, 53), (CLIENT, 4000))),
            ("to this machine", udp((REAL_ANY_PORT, 53), (SELF, 4000))),
        ],
    );
}

#[test]
fn packets_to_a_service_are_steered_and_other_packets_to_its_address_are_not() {
    let steering = steering();
    let ports = |dest: u16| [&4000u16.to_be_bytes()[..], &dest.to_be_bytes(), &[0; 8]].concat();
    assert_all(
        &steering,
        Verdict::Steered,
        &[
            ("TCP", tcp((CLIENT, 4000), (VIP, 80))),
            ("UDP", udp((CLIENT, 4000), (VIP, 53))),
            ("SCTP", ip(CLIENT, VIP, 132, &ports(3868))),
            ("TCP over IPv6", tcp6((CLIENT6, 4000), (VIP6, 443))),
            ("ESP to a UDP service on 500", ip6(CLIENT6, VIP6, 50, &[0; 16])),
            ("AH to a UDP service on 500", ip6(CLIENT6, VIP6, 51, &[0; 16])),
            ("from this machine's own address", tcp((SELF, 4000), (VIP, 80))),
        ],
    );
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("another port", tcp((CLIENT, 4000), (VIP, 22))),
            ("another protocol", udp((CLIENT, 4000), (VIP, 80))),
            ("another address", tcp((CLIENT, 4000), (OTHER, 80))),
            ("a reply of the service", tcp((VIP, 80), (CLIENT, 4000))),
            ("ESP without a UDP service on 500", ip(CLIENT, VIP, 50, &[0; 16])),
            ("ping", ip(CLIENT, VIP, 1, &[8, 0, 0, 0, 0, 0, 0, 0])),
            ("ping over IPv6", ip6(CLIENT6, VIP6, 58, &[128, 0, 0, 0, 0, 0, 0, 0])),
            ("VRRP", ip(CLIENT, VIP, 112, &[0; 16])),
            ("ARP", [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat()),
        ],
    );
}

#[test]
fn packets_from_a_nat_destination_are_steered_unless_they_go_to_this_machine() {
    let steering = steering();
    assert_all(
        &steering,
        Verdict::Steered,
        &[("IPv4", tcp((REAL, 8080), (CLIENT, 4000))), ("IPv6", tcp6((REAL6, 8443), (CLIENT6, 4000)))],
    );
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("to this machine", tcp((REAL, 8080), (SELF, 4000))),
            ("to this machine over IPv6", tcp6((REAL6, 8443), (SELF6, 4000))),
            ("from another port", tcp((REAL, 22), (CLIENT, 4000))),
            ("from another protocol", udp((REAL, 8080), (CLIENT, 4000))),
            ("to it", tcp((CLIENT, 4000), (REAL, 8080))),
        ],
    );
}

#[test]
fn tcp_to_the_local_port_of_probes_is_steered_and_nothing_else_to_its_address() {
    let steering = steering();
    assert_all(
        &steering,
        Verdict::Steered,
        &[
            ("IPv4", tcp((VIP, 80), (SELF, PROBE_PORT))),
            ("IPv6", tcp6((VIP6, 443), (SELF6, PROBE_PORT))),
            ("from a destination", tcp((REAL, 8080), (SELF, PROBE_PORT))),
        ],
    );
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("another port", tcp((VIP, 80), (SELF, PROBE_PORT + 1))),
            ("another protocol", udp((VIP, 80), (SELF, PROBE_PORT))),
            ("another address", tcp((VIP, 80), (OTHER, PROBE_PORT))),
            ("from it", tcp((SELF, PROBE_PORT), (OTHER, 80))),
            ("a fragment", fragment(VIP, SELF, 4, false)),
            ("an error", ip(OTHER, SELF, 1, &icmp(3, &tcp((SELF, 22), (CLIENT, 1)), 28))),
        ],
    );
}

#[test]
fn every_transport_to_a_wide_prefix_is_steered_and_ping_is_not() {
    let steering = steering();
    assert_all(
        &steering,
        Verdict::Steered,
        &[
            ("TCP", tcp((CLIENT, 4000), (WIDE, 1))),
            ("UDP", udp((CLIENT, 4000), ([192, 0, 2, 79], 65535))),
            ("ESP", ip(CLIENT, WIDE, 50, &[0; 16])),
            ("fragment", fragment(CLIENT, WIDE, 100, false)),
            ("ICMP error", ip(CLIENT, WIDE, 1, &icmp(3, &tcp((WIDE, 80), (CLIENT, 4000)), 28))),
        ],
    );
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("beyond the prefix", tcp((CLIENT, 4000), ([192, 0, 2, 80], 1))),
            ("ping", ip(CLIENT, WIDE, 1, &[8, 0, 0, 0, 0, 0, 0, 0])),
        ],
    );
}

#[test]
fn a_default_prefix_covers_its_own_family_only() {
    let mut steering = steering();
    steering.update(&SteeringRules { wide: ["::/0".parse().unwrap()].into(), ..Default::default() }).unwrap();
    assert_all(&steering, Verdict::Steered, &[("IPv6", tcp6((CLIENT6, 1), (0x77, 2)))]);
    assert_all(&steering, Verdict::Kernel, &[("IPv4", tcp((CLIENT, 1), (VIP, 80)))]);
}

#[test]
fn an_ipv6_packet_with_the_bytes_of_an_ipv4_address_matches_no_ipv4_rule() {
    let steering = steering();
    for addr in [Ipv4Addr::from(VIP).to_ipv6_mapped().octets(), {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&VIP);
        bytes
    }] {
        let mut frame = Vec::new();
        ethernet().ipv6(addr, addr, 64).tcp(4000, 80, 1, 1).write(&mut frame, &[]).unwrap();
        assert_all(&steering, Verdict::Kernel, &[("an address of the wrong family", frame)]);
    }
}

#[test]
fn fragments_are_steered_by_their_addresses() {
    let steering = steering();
    // Fragment header: next, reserved, offset and flags, identification (RFC 8200 4.5).
    let later = [&[6, 0, 0x05, 0xa8, 0, 0, 0, 1][..], &[0; 16]].concat();
    let atomic = [&[6, 0, 0, 0, 0, 0, 0, 1][..], &tcp6((CLIENT6, 4000), (VIP6, 443))[54..]].concat();
    let atomic_elsewhere = [&[6, 0, 0, 0, 0, 0, 0, 1][..], &tcp6((CLIENT6, 4000), (VIP6, 22))[54..]].concat();
    assert_all(
        &steering,
        Verdict::Steered,
        &[
            ("first, to a service's address", fragment(CLIENT, VIP, 0, true)),
            ("last, to a service's address", fragment(CLIENT, VIP, 185, false)),
            ("from a destination's address", fragment(REAL, CLIENT, 185, true)),
            ("IPv6, to a service's address", ip6(CLIENT6, VIP6, 44, &later)),
            ("IPv6, from a destination's address", ip6(REAL6, CLIENT6, 44, &later)),
            (
                "IPv6, behind options",
                ip6(CLIENT6, VIP6, 0, &[&[44, 0, 0, 0, 0, 0, 0, 0], &later[..]].concat()),
            ),
            ("whole, behind a fragment header", ip6(CLIENT6, VIP6, 44, &atomic)),
        ],
    );
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("elsewhere", fragment(CLIENT, OTHER, 185, false)),
            ("from a destination to this machine", fragment(REAL, SELF, 185, false)),
            ("IPv6, elsewhere", ip6(CLIENT6, 0x77, 44, &later)),
            ("whole, to another port", ip6(CLIENT6, VIP6, 44, &atomic_elsewhere)),
        ],
    );
}

#[test]
fn icmp_errors_are_steered_by_the_packet_that_they_quote() {
    let steering = steering();
    let about_reply = tcp((VIP, 80), (CLIENT, 4000));
    let about_request = tcp((CLIENT, 4000), (REAL, 8080));
    let about_probe = tcp((SELF, 4000), (REAL, 8080));
    let about_later_fragment = fragment(CLIENT, REAL, 185, false);
    let about_reply6 = tcp6((VIP6, 443), (CLIENT6, 4000));
    let about_request6 = tcp6((CLIENT6, 4000), (REAL6, 8443));
    assert_all(
        &steering,
        Verdict::Steered,
        &[
            ("unreachable, about a reply", ip(CLIENT, VIP, 1, &icmp(3, &about_reply, 28))),
            ("time exceeded, about a request", ip(OTHER, CLIENT, 1, &icmp(11, &about_request, 28))),
            ("source quench, from a destination", ip(REAL, CLIENT, 1, &icmp(4, &about_request, 28))),
            ("about a fragment of a request", ip(REAL, CLIENT, 1, &icmp(11, &about_later_fragment, 28))),
            ("about a packet to a service", ip(OTHER, CLIENT, 1, &icmp(3, &tcp((CLIENT, 1), (VIP, 80)), 28))),
            (
                "about a reply of a destination",
                ip(OTHER, REAL, 1, &icmp(3, &tcp((REAL, 8080), (CLIENT, 1)), 28)),
            ),
            ("too big, about a reply", ip6(CLIENT6, VIP6, 58, &icmp(2, &about_reply6, 60))),
            ("unreachable, about a request", ip6(REAL6, CLIENT6, 58, &icmp(1, &about_request6, 60))),
            ("to a service's address, whatever it quotes", ip(CLIENT, VIP, 1, &icmp(3, &about_probe, 0))),
        ],
    );
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("about this machine's own probe", ip(REAL, SELF, 1, &icmp(3, &about_probe, 28))),
            ("about another port", ip(REAL, CLIENT, 1, &icmp(3, &tcp((CLIENT, 1), (REAL, 22)), 28))),
            ("a quote cut before the ports", ip(REAL, CLIENT, 1, &icmp(3, &about_request, 22))),
            ("redirect", ip(REAL, CLIENT, 1, &icmp(5, &about_request, 28))),
            ("parameter problem", ip(REAL, CLIENT, 1, &icmp(12, &about_request, 28))),
            ("neighbour advertisement", ip6(REAL6, CLIENT6, 58, &icmp(136, &about_request6, 60))),
            ("an IPv6 error in IPv4", ip(REAL, CLIENT, 58, &icmp(1, &about_request, 28))),
        ],
    );
}

#[test]
fn icmp_errors_about_possibly_tunnelled_packets_to_the_end_of_a_tunnel_are_steered() {
    let steering = steering();
    let about = |to, protocol| ip(OTHER, SELF, 1, &icmp(3, &ip(SELF, to, protocol, &[0; 40]), 60));
    let about6 = |to, next| ip6(OTHER6, SELF6, 58, &icmp(2, &ip6(SELF6, to, next, &[0; 40]), 80));
    for protocol in [4, 41, 47, 17] {
        assert_all(
            &steering,
            Verdict::Steered,
            &[("IPv4", about(TUNNEL_END, protocol)), ("IPv6", about6(TUNNEL_END6, protocol))],
        );
        assert_all(
            &steering,
            Verdict::Kernel,
            &[("elsewhere", about(OTHER, protocol)), ("elsewhere, IPv6", about6(OTHER6, protocol))],
        );
    }
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("the director's own TCP", about(TUNNEL_END, 6)),
            ("its own TCP over IPv6", about6(TUNNEL_END6, 6)),
            ("a packet of the tunnel, back", ip(TUNNEL_END, SELF, 4, &[0; 40])),
            ("a ping", ip(TUNNEL_END, SELF, 1, &[0; 40])),
        ],
    );
}

#[test]
fn up_to_two_vlan_tags_are_skipped() {
    let steering = steering();
    for frame in [tcp((CLIENT, 4000), (VIP, 80)), tcp6((REAL6, 8443), (CLIENT6, 4000))] {
        assert_all(
            &steering,
            Verdict::Steered,
            &[("one tag", tagged(&frame, &[CTAG])), ("two tags", tagged(&frame, &[STAG, CTAG]))],
        );
        assert_all(&steering, Verdict::Kernel, &[("three tags", tagged(&frame, &[STAG, CTAG, CTAG]))]);
    }
    let other = tagged(&tcp((CLIENT, 4000), (VIP, 22)), &[CTAG]);
    assert_all(&steering, Verdict::Kernel, &[("not steered", other)]);
}

#[test]
fn ports_are_found_behind_headers_of_variable_length() {
    let steering = steering();
    let with_options = |words: u8, port: u16| {
        let mut frame = tcp((CLIENT, 4000), (VIP, port));
        frame[14] = 0x40 | (5 + words);
        // No-operation options (RFC 791 3.1).
        frame.splice(34..34, vec![1; 4 * usize::from(words)]);
        frame
    };
    let segment = tcp6((CLIENT6, 4000), (VIP6, 443))[54..].to_vec();
    let chain = |headers: usize| {
        let next = |last: usize, at: usize| if at == last { 6 } else { 60 };
        let options = (1..=headers).flat_map(|at| [next(headers, at), 1].into_iter().chain([0; 14]));
        ip6(
            CLIENT6,
            VIP6,
            if headers == 0 { 6 } else { 0 },
            &options.chain(segment.clone()).collect::<Vec<_>>(),
        )
    };
    for words in 0..=10 {
        assert_all(&steering, Verdict::Steered, &[("options", with_options(words, 80))]);
        assert_all(&steering, Verdict::Kernel, &[("options", with_options(words, 22))]);
    }
    for headers in 0..=6 {
        assert_all(&steering, Verdict::Steered, &[("extension headers", chain(headers))]);
    }
    assert_all(&steering, Verdict::Kernel, &[("a chain longer than hosts send", chain(7))]);
}

#[test]
fn a_truncated_frame_is_steered_only_if_it_contains_its_ports() {
    let steering = steering();
    let options = [&[6u8, 0, 0, 0, 0, 0, 0, 0][..], &tcp6((CLIENT6, 1), (VIP6, 443))[54..]].concat();
    let about = tcp((CLIENT, 4000), (REAL, 8080));
    for (frame, ports_end) in [
        (tcp((CLIENT, 4000), (VIP, 80)), 14 + 20 + 4),
        (tagged(&udp((CLIENT, 4000), (VIP, 53)), &[STAG, CTAG]), 14 + 8 + 20 + 4),
        (tcp6((CLIENT6, 4000), (VIP6, 443)), 14 + 40 + 4),
        (ip6(CLIENT6, VIP6, 60, &options), 14 + 40 + 8 + 4),
        (ip(REAL, CLIENT, 1, &icmp(3, &about, 64)), 14 + 20 + 8 + 20 + 4),
    ] {
        for len in 14..=frame.len() {
            let expected = if len < ports_end { Verdict::Kernel } else { Verdict::Steered };
            assert_all(&steering, expected, &[("truncated", frame[..len].to_vec())]);
        }
    }
}

#[test]
fn frames_with_malformed_headers_go_to_the_kernel() {
    let steering = steering();
    let with = |at: usize, byte: u8| {
        let mut frame = tcp((CLIENT, 4000), (VIP, 80));
        frame[at] = byte;
        frame
    };
    assert_all(
        &steering,
        Verdict::Kernel,
        &[
            ("version 5", with(14, 0x55)),
            ("header of 16 bytes", with(14, 0x44)),
            ("header beyond the frame", with(14, 0x4f)),
            ("version 4 in an IPv6 frame", {
                let mut frame = tcp6((CLIENT6, 4000), (VIP6, 443));
                frame[14] = 0x40;
                frame
            }),
        ],
    );
}

#[test]
fn packets_to_local_ports_of_fullnat_are_steered_and_to_other_ports_of_the_address_are_not() {
    let steering = steering();
    let verdict = |frame: &[u8]| steering.test_run(frame).unwrap();
    for port in [5000, 5500, 5999] {
        assert_eq!(verdict(&tcp((OTHER, 80), (LOCAL, port))), Verdict::Steered, "{port}");
        assert_eq!(verdict(&udp((OTHER, 80), (LOCAL, port))), Verdict::Steered, "{port}");
    }
    for port in [22, 4999, 6000, 0x8813] {
        assert_eq!(verdict(&tcp((OTHER, 80), (LOCAL, port))), Verdict::Kernel, "{port}");
    }
    assert_eq!(verdict(&tcp6((CLIENT6, 80), (LOCAL6, 22))), Verdict::Steered);
    assert_eq!(verdict(&tcp((LOCAL, 5500), (OTHER, 80))), Verdict::Kernel);
}
