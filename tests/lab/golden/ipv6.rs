//! IPv6 packets, to the byte: the differences from IPv4, and what is equal.
//!
//! Not here: tunnels.

use std::net::Ipv6Addr;

use etherparse::{EtherType, IpNumber};
use xvs::frames::{ACK, Complaint6, FIN, Ipv6, RST, SYN, ethernet};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac, server6,
};
use xvs::{Datagram, LabCluster, Transport};

use super::{BEGUN, FORWARDED, assert_judged, assert_passed, carrying, to_client, to_server};

/// The first packet of each kind that begins a connection.
const FIRST: [Transport; 4] = [Transport::Tcp(SYN), Transport::Udp, Transport::UdpUnsummed, Transport::Sctp];
/// An address without a route.
const NOWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1);

/// A cluster with a service of each protocol at port 80. Its only server has the method of this option, and this port.
fn cluster(method: &str, port: u16) -> LabCluster {
    with_server(LabCluster::new(), server6(1), port, method)
}

fn with_server(mut cluster: LabCluster, dest: Ipv6Addr, port: u16, options: &str) -> LabCluster {
    for protocol in ["-t", "-u", "--sctp-service"] {
        cluster.adm(&format!("-A {protocol} [{VIP6}]:80 -s rr"));
        cluster.adm(&format!("-a {protocol} [{VIP6}]:80 -r [{dest}]:{port} {options}"));
    }
    cluster
}

fn request(transport: Transport) -> Datagram {
    carrying(Datagram { tos: 0xb9, ..Datagram::new(transport, at(CLIENT6, 4000), at(VIP6, 80)) }, 0)
}

/// The server's reply to a client's packet.
fn reply(transport: Transport, port: u16) -> Datagram {
    let answering = match transport {
        Transport::Tcp(_) => Transport::Tcp(SYN | ACK),
        other => other,
    };
    carrying(Datagram::new(answering, at(server6(1), port), at(CLIENT6, 4000)), 0)
}

/// Inserts extension headers, the first of which is of this kind, behind the IPv6 header.
fn extended(mut frame: Vec<u8>, first: u8, extensions: &[u8]) -> Vec<u8> {
    let length = u16::from_be_bytes([frame[18], frame[19]]) + extensions.len() as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[20] = first;
    frame.splice(54..54, extensions.iter().copied());
    frame
}

/// The ICMP error to the client, from the virtual address.
fn error_to_client(complaint: Complaint6, about: &Datagram) -> (&'static str, Vec<u8>) {
    let message = complaint.about(&about.packet(), VIP6);
    ("wan", ethernet(WAN_MAC, GATEWAY_MAC, EtherType::IPV6, &message))
}

/// The ICMP error to the server, from the director's address on its link.
fn error_to_server(complaint: Complaint6, about: &Datagram) -> (&'static str, Vec<u8>) {
    let message = complaint.about(&about.packet(), INSIDE6);
    ("lan", ethernet(LAN_MAC, server_mac(1), EtherType::IPV6, &message))
}

#[test]
fn a_udp_checksum_whose_sum_is_zero_is_sent_as_all_ones() {
    let mut cluster = cluster("-m", 8080);
    let rewritten = |first: &Datagram| Datagram { ttl: 63, dest: at(server6(1), 8080), ..first.clone() };
    let mut packets =
        (0..=u16::MAX).map(|word| Datagram { data: word.to_be_bytes().to_vec(), ..request(Transport::Udp) });
    let first = packets
        .find(|first| to_server(1, &rewritten(first)).1[60..62] == [0xff, 0xff])
        .expect("one of all words makes every sum");
    assert_judged(&cluster.from_client(&first), "transmit", &[to_server(1, &rewritten(&first))], BEGUN);
}

#[test]
fn extension_headers_are_kept() {
    // Hop-by-hop and destination options, each with padding only (RFC 8200 section 4.2).
    let extensions = |next| [60, 0, 1, 4, 0, 0, 0, 0, next, 0, 1, 4, 0, 0, 0, 0];
    for method in ["-g", "-m"] {
        for (transport, next) in [(Transport::Tcp(SYN), 6), (Transport::Udp, 17), (Transport::Sctp, 132)] {
            let mut cluster = cluster(method, 80);
            let first = carrying(request(transport), 9);
            let frame = extended(first.frame(GATEWAY_MAC, WAN_MAC), 0, &extensions(next));
            let dest = if method == "-m" { at(server6(1), 80) } else { first.dest };
            let sent = to_server(1, &Datagram { ttl: 63, dest, ..first }).1;
            let want = extended(sent, 0, &extensions(next));
            assert_judged(&cluster.inject("wan", &frame), "transmit", &[("lan", want)], BEGUN);
        }
    }
}

#[test]
fn an_atomic_fragment_header_is_removed_at_any_position() {
    let options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = [17, 0, 0, 0, 0, 0, 0, 7];
    for method in ["-g", "-m"] {
        let first = carrying(request(Transport::Udp), 5);
        let dest = if method == "-m" { at(server6(1), 80) } else { first.dest };
        let sent = to_server(1, &Datagram { ttl: 63, dest, ..first.clone() }).1;
        for (before, kind, after) in
            [(vec![], 44, sent.clone()), (options(44).to_vec(), 60, extended(sent, 60, &options(17)))]
        {
            let mut cluster = cluster(method, 80);
            let extensions = [&before[..], &fragment].concat();
            let mut frame = extended(first.frame(GATEWAY_MAC, WAN_MAC), kind, &extensions);
            frame.extend([0xa5; 6]);
            assert_judged(&cluster.inject("wan", &frame), "transmit", &[("lan", after)], BEGUN);
        }
        let mut cluster = cluster(method, 80);
        cluster.inject("wan", &extended(first.frame(GATEWAY_MAC, WAN_MAC), 44, &fragment));
        assert_eq!(cluster.stats()[3], format!("-> [{}]:80 1 1 0 53 0", server6(1)), "as reassembled");
    }
}

#[test]
fn a_packet_with_too_many_extension_headers_is_dropped() {
    let options =
        |count: usize| [[60, 0, 1, 4, 0, 0, 0, 0].repeat(count - 1), vec![17, 0, 1, 4, 0, 0, 0, 0]].concat();
    for (count, verdict) in [(6, "transmit"), (7, "drop ipv6_extensions"), (100, "drop ipv6_extensions")] {
        let frame = extended(request(Transport::Udp).frame(GATEWAY_MAC, WAN_MAC), 60, &options(count));
        assert_eq!(cluster("-m", 80).inject("wan", &frame).verdict, verdict, "{count}");
    }
}

#[test]
fn truncated_packets_of_every_length_are_dropped_with_the_reason() {
    let whole = request(Transport::Tcp(SYN)).frame(GATEWAY_MAC, WAN_MAC);
    for length in 14..whole.len() {
        let mut frame = whole[..length].to_vec();
        assert_eq!(cluster("-m", 80).inject("wan", &frame).verdict, "drop ipv6_too_short", "{length}");
        if length >= 54 {
            frame[18..20].copy_from_slice(&(length as u16 - 54).to_be_bytes());
            assert_eq!(cluster("-m", 80).inject("wan", &frame).verdict, "drop tcp_too_short", "{length}");
        }
    }
}

#[test]
fn a_packet_whose_hop_limit_has_run_out_is_dropped_and_its_client_gets_an_error() {
    for (method, answers) in [("-g", 1), ("-m", 0)] {
        for ttl in [1, 0] {
            let mut cluster = cluster(method, 80);
            let first = Datagram { ttl, ..carrying(request(Transport::Udp), 7) };
            let moved = [
                ("connections", 1),
                ("drop_ttl_expired", 1),
                ("originated", 1),
                ("rx_packets", 1),
                ("tx_packets", 1),
            ];
            let want = error_to_client(Complaint6::TIME_EXCEEDED, &first);
            assert_judged(&cluster.from_client(&first), "drop ttl_expired", &[want], &moved);
            // An error about a directly routed packet is counted like a reply.
            let out = answers * (40 + 8 + 55);
            assert_eq!(
                cluster.stats()[3],
                format!("-> [{}]:80 1 1 {answers} 55 {out}", server6(1)),
                "{method}"
            );
        }
    }
}

#[test]
fn a_packet_above_the_path_mtu_is_dropped_with_an_error_of_1280_bytes_that_reports_it() {
    for method in ["-g", "-m"] {
        for transport in [Transport::Tcp(SYN), Transport::Udp, Transport::Sctp] {
            let mut cluster = with_server(LabCluster::with_mtu(1400), server6(1), 80, method);
            let headers = carrying(request(transport), 0).packet().len();
            let fits = carrying(request(transport), 1400 - headers);
            assert_eq!(cluster.from_client(&fits).verdict, "transmit");
            let first = carrying(request(transport), 1401 - headers);
            let quoted = Datagram { ttl: 63, ..first.clone() };
            let moved = [("drop_too_big", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
            let want = error_to_client(Complaint6::packet_too_big(1400), &quoted);
            assert_eq!(want.1.len(), 14 + 1280);
            assert_judged(&cluster.from_client(&first), "drop too_big", &[want], &moved);
        }
    }
}

#[test]
fn a_reply_that_a_router_refuses_is_dropped_and_not_counted_and_its_server_gets_an_error() {
    let moved = |reason| [(reason, 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
    let mut cluster = with_server(LabCluster::with_mtu(2000), server6(1), 80, "-m");
    cluster.from_client(&request(Transport::Udp));
    let last = Datagram { ttl: 1, ..reply(Transport::Udp, 80) };
    let want = error_to_server(Complaint6::TIME_EXCEEDED, &last);
    assert_judged(&cluster.from_server(&last), "drop ttl_expired", &[want], &moved("drop_ttl_expired"));
    let long = carrying(reply(Transport::Udp, 80), 1453);
    let want = error_to_server(Complaint6::packet_too_big(1500), &long);
    assert_judged(&cluster.from_server(&long), "drop too_big", &[want], &moved("drop_too_big"));
    assert_eq!(cluster.stats()[3], format!("-> [{}]:80 1 1 0 48 0", server6(1)));
}

#[test]
fn a_service_without_a_usable_destination_sends_the_client_an_error_also_for_tcp() {
    let mut cluster = with_server(LabCluster::new(), server6(1), 80, "-m -w 0");
    for transport in FIRST {
        let first = carrying(request(transport), 3);
        let want = error_to_client(Complaint6::PORT_UNREACHABLE, &first);
        let moved = [("drop_no_destination", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
        assert_judged(&cluster.from_client(&first), "drop no_destination", &[want], &moved);
    }
}

#[test]
fn a_destination_without_a_route_is_reported_as_an_unreachable_address() {
    let mut cluster = with_server(LabCluster::new(), NOWHERE6, 80, "-m");
    let first = request(Transport::Tcp(SYN));
    let judged = cluster.from_client(&first);
    assert_eq!(
        (judged.verdict.as_str(), &judged.sent[0].1),
        ("drop no_route", &error_to_client(Complaint6::ADDRESS_UNREACHABLE, &first).1)
    );
}

#[test]
fn a_source_address_that_is_no_single_host_gets_no_error() {
    for source in ["::", "::1", "ff02::1", "::ffff:192.0.2.200"] {
        let mut cluster = with_server(LabCluster::new(), server6(1), 80, "-m -w 0");
        let source: Ipv6Addr = source.parse().unwrap();
        assert_passed(
            &cluster.from_client(&Datagram { source: at(source, 4000), ..request(Transport::Udp) }),
        );
    }
}

#[test]
fn a_server_that_sends_without_a_request_gets_an_error_if_configured() {
    let mut cluster = cluster("-m", 80);
    let unsolicited = reply(Transport::Udp, 80);
    assert_passed(&cluster.from_server(&unsolicited));
    cluster.set("nat_icmp_send", 1);
    let want = error_to_server(Complaint6::PORT_UNREACHABLE, &Datagram { ttl: 63, ..unsolicited.clone() });
    let moved = [("drop_unasked", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
    assert_judged(&cluster.from_server(&unsolicited), "drop unasked", &[want], &moved);
    let reset = Datagram { transport: Transport::Tcp(RST), ..unsolicited };
    assert_passed(&cluster.from_server(&reset));
}

/// A directly routed connection whose server uses the director as its router, after the client's SYN.
fn with_both_directions() -> LabCluster {
    let mut cluster = cluster("-g", 80);
    cluster.from_client(&request(Transport::Tcp(SYN)));
    cluster
}

/// A packet of a directly routed server, whose source is the virtual endpoint.
fn direct_reply(flags: u8) -> Datagram {
    Datagram::new(Transport::Tcp(flags), at(VIP6, 80), at(CLIENT6, 4000))
}

#[test]
fn a_directly_routed_reply_through_the_director_is_forwarded_and_counted_and_changes_the_state() {
    let mut cluster = with_both_directions();
    let state = |cluster: &mut LabCluster| cluster.only_connection().1;
    let answer = direct_reply(SYN | ACK);
    let want = to_client(&Datagram { ttl: 63, ..answer.clone() });
    assert_judged(&cluster.from_server(&answer), "transmit", &[want], FORWARDED);
    assert_eq!(state(&mut cluster), "SYN_RECV");
    cluster.from_client(&request(Transport::Tcp(ACK)));
    assert_eq!(state(&mut cluster), "ESTABLISHED");
    cluster.from_client(&request(Transport::Tcp(FIN | ACK)));
    assert_eq!(state(&mut cluster), "CLOSE_WAIT", "not FIN_WAIT, where replies are seen");
    assert_eq!(cluster.stats()[1], format!("-> [{}]:80 1 3 1 180 60", server6(1)));
}

#[test]
fn a_reply_from_a_virtual_endpoint_without_a_connection_goes_to_the_kernel() {
    let mut cluster = with_both_directions();
    assert_passed(&cluster.from_server(&Datagram { dest: at(CLIENT6, 4001), ..direct_reply(ACK) }));
}

#[test]
fn packets_of_a_family_without_services_go_to_the_kernel_though_the_other_family_has_some() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", server(1)));
    let whole = request(Transport::Tcp(SYN)).frame(GATEWAY_MAC, WAN_MAC);
    let atomic = extended(whole.clone(), 44, &[6, 0, 0, 0, 0, 0, 0, 7]);
    for frame in [&whole, &atomic, &whole[..50].to_vec()] {
        assert_passed(&cluster.inject("wan", frame));
    }
    let mut cluster = self::cluster("-m", 80);
    let v4 = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 80)).frame(GATEWAY_MAC, WAN_MAC);
    for frame in [&v4, &v4[..30].to_vec()] {
        assert_passed(&cluster.inject("wan", frame));
    }
}

#[test]
fn connections_of_a_family_are_ineffective_until_it_has_a_service_again() {
    let mut cluster = cluster("-m", 80);
    cluster.from_client(&request(Transport::Udp));
    cluster.adm("-C");
    cluster.adm(&format!("-A -u {VIP}:80"));
    assert_passed(&cluster.from_client(&request(Transport::Udp)));
    assert_passed(&cluster.from_server(&reply(Transport::Udp, 80)));
    cluster.adm(&format!("-A -u [{VIP6}]:81"));
    assert_eq!(cluster.from_server(&reply(Transport::Udp, 80)).verdict, "transmit");
}

#[test]
fn packets_of_other_protocols_go_to_the_kernel() {
    let known = [6, 17, 132, 0, 43, 44, 60];
    for protocol in (0..=255).filter(|protocol| !known.contains(protocol)) {
        let header = Ipv6 { hop_limit: 64, traffic_class: 0 };
        let packet = header.packet(IpNumber(protocol), CLIENT6, VIP6, &[0xa5; 40]);
        let frame = ethernet(GATEWAY_MAC, WAN_MAC, EtherType::IPV6, &packet);
        assert_passed(&cluster("-m", 80).inject("wan", &frame));
    }
}

#[test]
fn an_ipv6_connection_and_an_ipv4_connection_with_equal_ports_are_separate() {
    let mut cluster = cluster("-m", 80);
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", server(1)));
    let v4 = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 80));
    for first in [request(Transport::Tcp(SYN)), v4] {
        assert_eq!(cluster.from_client(&first).verdict, "transmit");
    }
    assert_eq!(
        cluster.connections(),
        [
            format!("TCP 01:00 SYN_RECV {CLIENT}:4000 {VIP}:80 {}:80", server(1)),
            format!("TCP 01:00 SYN_RECV [{CLIENT6}]:4000 [{VIP6}]:80 [{}]:80", server6(1)),
        ]
    );
}

#[test]
fn by_direct_routing_and_tunnel_an_error_of_the_virtual_address_counts_as_a_reply() {
    let (client, vip) = (at(CLIENT6, 4000), at(VIP6, 80));
    for method in ["-g", "-i"] {
        let mut cluster = LabCluster::new();
        cluster.configure(&[
            &format!("-A -t {vip}"),
            &format!("-a -t {vip} -r {} {method}", at(server6(1), 80)),
        ]);
        let request = Datagram::new(Transport::Tcp(SYN), client, vip);
        assert_eq!(cluster.from_client(&request).verdict, "transmit");
        // 40 bytes of IPv6, 8 of ICMPv6, and the request's 60.
        let error = Complaint6::packet_too_big(1280).about(&request.packet(), VIP6);
        let frame = ethernet(server_mac(1), LAN_MAC, EtherType::IPV6, &error);
        assert_eq!(cluster.inject("lan", &frame).verdict, "pass");
        let stats = cluster.stats();
        assert!(stats[0].ends_with(" 1 1 1 60 108"), "{stats:?}");
    }
}
