//! Frames of every form: to other machines, with tags, truncated, contradictory, of other protocols.

use etherparse::{EtherType, IpNumber};
use xvs::frames::{Ipv4, SYN, ethernet, resum};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, VIP, WAN_MAC, at, server};
use xvs::{Datagram, LabCluster, Transport};

use super::{assert_judged, assert_passed};

fn cluster() -> LabCluster {
    let mut cluster = LabCluster::new();
    for protocol in ["-t", "-u"] {
        cluster.adm(&format!("-A {protocol} {VIP}:80 -s rr"));
        cluster.adm(&format!("-a {protocol} {VIP}:80 -r {}:80 -g", server(1)));
    }
    cluster
}

fn syn() -> Datagram {
    Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 80))
}

fn frame() -> Vec<u8> {
    syn().frame(GATEWAY_MAC, WAN_MAC)
}

/// The frame with these tags before its EtherType.
fn tagged(tags: &[u16]) -> Vec<u8> {
    let mut frame = frame();
    for &tag in tags.iter().rev() {
        let [high, low] = tag.to_be_bytes();
        frame.splice(12..12, [high, low, 0x00, 0x05]);
    }
    frame
}

/// Injects a frame, which must be dropped for this reason without any other effect.
#[track_caller]
fn assert_dropped(frame: &[u8], reason: &str) {
    let mut cluster = cluster();
    let judged = cluster.inject("wan", frame);
    let counter = format!("drop_{reason}");
    assert_judged(&judged, &format!("drop {reason}"), &[], &[(&counter, 1), ("rx_packets", 1)]);
    assert_eq!(cluster.connections(), [] as [String; 0]);
}

#[test]
fn a_frame_to_another_link_address_goes_to_the_kernel() {
    for mac in [[2, 0, 0, 0, 1, 2], [0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0; 6]] {
        let mut cluster = cluster();
        assert_passed(&cluster.inject("wan", &syn().frame(GATEWAY_MAC, mac)));
        assert_eq!(cluster.connections(), [] as [String; 0]);
    }
}

#[test]
fn a_frame_to_the_address_of_another_link_goes_to_the_kernel() {
    let mut cluster = cluster();
    assert_passed(&cluster.inject("lan", &frame()));
}

#[test]
fn packets_with_unknown_vlan_tags_go_to_the_kernel() {
    for tags in [&[0x8100][..], &[0x88a8], &[0x8100, 0x8100], &[0x88a8, 0x8100]] {
        let mut cluster = cluster();
        assert_passed(&cluster.inject("wan", &tagged(tags)));
        assert_eq!(cluster.connections(), [] as [String; 0]);
    }
}

#[test]
fn a_frame_with_three_vlan_tags_is_dropped() {
    assert_dropped(&tagged(&[0x8100, 0x8100, 0x8100]), "vlan_too_deep");
    assert_dropped(&tagged(&[0x88a8, 0x8100, 0x8100, 0x8100]), "vlan_too_deep");
}

#[test]
fn truncated_frames_of_every_length_are_dropped_with_the_reason() {
    let whole = syn().carrying(6).frame(GATEWAY_MAC, WAN_MAC);
    assert_eq!(whole.len(), 60);
    for length in 0..60 {
        let reason = if length < 14 { "ethernet_too_short" } else { "ipv4_too_short" };
        assert_dropped(&whole[..length], reason);
    }
    for length in 0..18 {
        assert_dropped(&tagged(&[0x8100])[..length], "ethernet_too_short");
    }
}

#[test]
fn packets_with_a_truncated_transport_header_are_dropped_with_the_reason() {
    for (protocol, needed, reason) in [
        (IpNumber::TCP, 20, "tcp_too_short"),
        (IpNumber::UDP, 8, "udp_too_short"),
        (IpNumber::ICMP, 8, "icmp_too_short"),
    ] {
        for length in 0..needed {
            let header = Ipv4 { ttl: 64, tos: 0, id: 1, dont_fragment: false };
            let packet = header.packet(protocol, CLIENT, VIP, &vec![0xa5; length]);
            let mut frame = ethernet(GATEWAY_MAC, WAN_MAC, EtherType::IPV4, &packet);
            assert_dropped(&frame, reason);
            frame.resize(60, 0xa5);
            assert_dropped(&frame, reason);
        }
    }
}

#[test]
fn a_wrong_header_length_is_refused() {
    for ihl in 0..5 {
        let mut frame = frame();
        frame[14] = 0x40 | ihl;
        resum(&mut frame);
        assert_dropped(&frame, "ipv4_header_length");
    }
    // A header that is longer than the packet.
    for ihl in 11..16 {
        let mut frame = frame();
        frame[14] = 0x40 | ihl;
        assert_dropped(&frame, "ipv4_header_length");
    }
}

#[test]
fn a_version_other_than_four_is_refused() {
    for version in (0..16).filter(|version| *version != 4) {
        let mut frame = frame();
        frame[14] = version << 4 | 5;
        resum(&mut frame);
        assert_dropped(&frame, "ipv4_version");
    }
}

#[test]
fn a_wrong_total_length_is_refused() {
    for (total, reason) in [
        (0u16, "ipv4_header_length"),
        (19, "ipv4_header_length"),
        (20, "tcp_too_short"),
        (39, "tcp_too_short"),
        (41, "ipv4_too_short"),
        (u16::MAX, "ipv4_too_short"),
    ] {
        let mut frame = frame();
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        resum(&mut frame);
        assert_dropped(&frame, reason);
    }
}

#[test]
fn a_header_with_any_single_wrong_bit_is_refused() {
    for at in 14..34 {
        for bit in 0..8 {
            let mut frame = frame();
            frame[at] ^= 1 << bit;
            let mut cluster = cluster();
            let judged = cluster.inject("wan", &frame);
            assert!(judged.verdict.starts_with("drop ipv4_"), "byte {at} bit {bit}: {judged:?}");
            assert_eq!(cluster.connections(), [] as [String; 0]);
        }
    }
}

#[test]
fn fragments_wait_and_those_with_an_impossible_length_are_dropped() {
    for (flags_and_offset, transport, verdict) in [
        (0x2000u16, Transport::Tcp(SYN), "drop fragment_length"),
        (0x2000, Transport::Udp, "consumed"),
        (0x2001, Transport::Udp, "consumed"),
        (0x0001, Transport::Tcp(SYN), "consumed"),
        (0x00b9, Transport::Udp, "consumed"),
        (0x1fff, Transport::Udp, "drop fragment_length"),
    ] {
        let first = Datagram { transport, ..syn() }.carrying(40);
        let mut frame = first.frame(GATEWAY_MAC, WAN_MAC);
        frame[20..22].copy_from_slice(&flags_and_offset.to_be_bytes());
        resum(&mut frame);
        let mut cluster = cluster();
        assert_eq!(cluster.inject("wan", &frame).verdict, verdict, "{flags_and_offset:x}");
        assert_eq!(cluster.counters().get("held").copied(), (verdict == "consumed").then_some(1));
    }
}

#[test]
fn a_packet_with_the_reserved_flag_is_no_fragment() {
    let mut frame = frame();
    frame[20..22].copy_from_slice(&0x8000u16.to_be_bytes());
    resum(&mut frame);
    assert_eq!(cluster().inject("wan", &frame).verdict, "transmit");
}

#[test]
fn packets_of_protocols_without_services_go_to_the_kernel() {
    let known = [1, 6, 17];
    for protocol in (0..=255).filter(|protocol| !known.contains(protocol)) {
        let header = Ipv4 { ttl: 64, tos: 0, id: 1, dont_fragment: false };
        let packet = header.packet(IpNumber(protocol), CLIENT, VIP, &[0xa5; 40]);
        let mut cluster = cluster();
        assert_passed(&cluster.inject("wan", &ethernet(GATEWAY_MAC, WAN_MAC, EtherType::IPV4, &packet)));
    }
}

#[test]
fn a_ping_of_the_virtual_address_goes_to_the_kernel() {
    let header = Ipv4 { ttl: 64, tos: 0, id: 1, dont_fragment: false };
    let mut echo = etherparse::Icmpv4Header::with_checksum(
        etherparse::Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: 7, seq: 1 }),
        &[0xa5; 56],
    )
    .to_bytes()
    .to_vec();
    echo.extend([0xa5; 56]);
    let packet = header.packet(IpNumber::ICMP, CLIENT, VIP, &echo);
    assert_passed(&cluster().inject("wan", &ethernet(GATEWAY_MAC, WAN_MAC, EtherType::IPV4, &packet)));
}

#[test]
fn frames_with_arp_and_other_ethertypes_go_to_the_kernel() {
    for ether_type in
        [EtherType::ARP, EtherType::IPV6, EtherType(0x88cc), EtherType(0x0000), EtherType(0x05dc)]
    {
        for payload in [&[][..], &[0xa5; 46], &syn().packet()] {
            let mut cluster = cluster();
            assert_passed(&cluster.inject("wan", &ethernet(GATEWAY_MAC, WAN_MAC, ether_type, payload)));
        }
    }
}

#[test]
fn the_lab_refuses_a_frame_that_is_longer_than_any_packet_and_counts_nothing() {
    let mut cluster = cluster();
    let answer = cluster.ask(serde_json::json!({ "inject": "wan", "frame": "00".repeat(70_000) }));
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("70000 bytes")), "{answer}");
    assert_eq!(cluster.counters().get("rx_packets"), None);
}
