//! The packets of each forwarding method, to the byte.

use std::net::SocketAddr;

use etherparse::{EtherType, IpNumber};
use xvs::frames::{ACK, FIN, Ipv4, RST, SYN, ethernet, id, resum};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac, server6,
};
use xvs::{Datagram, LabCluster, Transport};

use super::{BEGUN, FORWARDED, assert_judged, carrying, to_client, to_server};

/// The first packet of each kind that begins a connection.
const FIRST: [Transport; 3] = [Transport::Tcp(SYN), Transport::Udp, Transport::UdpUnsummed];
/// Lengths of data, including odd ones, small ones and the largest ones.
const LENGTHS: [usize; 8] = [0, 1, 2, 3, 17, 512, 1451, 1452];

/// A client, the virtual endpoint and a server.
struct Ends {
    client: SocketAddr,
    vip: SocketAddr,
    server: SocketAddr,
}

/// The ends in IPv4 and in IPv6, with this port of the server.
fn families(port: u16) -> [Ends; 2] {
    [
        Ends { client: at(CLIENT, 4000), vip: at(VIP, 80), server: at(server(1), port) },
        Ends { client: at(CLIENT6, 4000), vip: at(VIP6, 80), server: at(server6(1), port) },
    ]
}

impl Ends {
    /// A cluster with a service of each protocol. Its only server has the method of this option.
    fn cluster(&self, method: &str) -> LabCluster {
        let Self { vip, server, .. } = self;
        let mut cluster = LabCluster::new();
        for protocol in ["-t", "-u", "--sctp-service"] {
            cluster.adm(&format!("-A {protocol} {vip} -s rr"));
            cluster.adm(&format!("-a {protocol} {vip} -r {server} {method}"));
        }
        cluster
    }

    fn request(&self, transport: Transport) -> Datagram {
        Datagram::new(transport, self.client, self.vip)
    }
}

/// The cluster for IPv4.
fn cluster(method: &str, port: u16) -> LabCluster {
    families(port)[0].cluster(method)
}

fn request(transport: Transport) -> Datagram {
    families(80)[0].request(transport)
}

/// The server's reply to a client's packet.
fn reply(transport: Transport, port: u16) -> Datagram {
    Datagram::new(transport, at(server(1), port), at(CLIENT, 4000))
}

/// The transport of a masqueraded packet: a UDP datagram without checksum gets one.
fn summed(transport: Transport) -> Transport {
    match transport {
        Transport::UdpUnsummed => Transport::Udp,
        other => other,
    }
}

/// A frame of the tunnel to the first server with `inner` inside and this identification.
fn tunnelled(inner: &Datagram, tos: u8, id: u16) -> (&'static str, Vec<u8>) {
    let outer = Ipv4 { ttl: inner.ttl, tos, id, dont_fragment: inner.dont_fragment };
    let packet = outer.packet(IpNumber::IPV4, INSIDE, server(1), &inner.packet());
    ("lan", ethernet(LAN_MAC, server_mac(1), EtherType::IPV4, &packet))
}

/// Every kind of first packet, including SCTP, in both families, with every length that fits the MTU.
fn first_packets() -> impl Iterator<Item = (usize, Transport, usize)> {
    let transports = FIRST.into_iter().chain([Transport::Sctp]);
    let pairs = transports.flat_map(|transport| [(0, transport), (1, transport)]);
    pairs.flat_map(|(family, transport)| LENGTHS.map(|length| (family, transport, length.min(1400))))
}

#[test]
fn direct_routing_changes_the_link_header_and_the_time_to_live_and_nothing_else() {
    for (family, transport, length) in first_packets() {
        let ends = &families(80)[family];
        let mut cluster = ends.cluster("-g");
        let first = Datagram { tos: 0xb9, ..carrying(ends.request(transport), length) };
        let want = to_server(1, &Datagram { ttl: 63, ..first.clone() });
        assert_judged(&cluster.from_client(&first), "transmit", std::slice::from_ref(&want), BEGUN);
        assert_judged(&cluster.from_client(&first), "transmit", &[want], FORWARDED);
    }
}

#[test]
fn masquerading_rewrites_the_destination_and_its_port_and_keeps_every_checksum() {
    for port in [80, 8080] {
        for (family, transport, length) in first_packets() {
            let ends = &families(port)[family];
            let mut cluster = ends.cluster("-m");
            let first =
                Datagram { tos: 0x28, dont_fragment: true, ..carrying(ends.request(transport), length) };
            let want = Datagram { ttl: 63, dest: ends.server, transport: summed(transport), ..first.clone() };
            assert_judged(&cluster.from_client(&first), "transmit", &[to_server(1, &want)], BEGUN);
            assert_judged(&cluster.from_client(&first), "transmit", &[to_server(1, &want)], FORWARDED);
        }
    }
}

#[test]
fn a_masqueraded_reply_comes_from_the_virtual_endpoint_with_correct_checksums() {
    for port in [80, 8080] {
        for (family, transport, length) in first_packets() {
            let ends = &families(port)[family];
            let mut cluster = ends.cluster("-m");
            cluster.from_client(&carrying(ends.request(transport), 0));
            let answering = match transport {
                Transport::Tcp(_) => Transport::Tcp(SYN | ACK),
                udp => udp,
            };
            let answer = carrying(Datagram::new(answering, ends.server, ends.client), length);
            let want = Datagram { ttl: 63, source: ends.vip, transport: summed(answering), ..answer.clone() };
            assert_judged(&cluster.from_server(&answer), "transmit", &[to_client(&want)], FORWARDED);
        }
    }
}

#[test]
fn a_tunnel_carries_the_packet_whole_behind_an_outer_header() {
    for transport in FIRST {
        for length in LENGTHS {
            let mut cluster = cluster("-i", 80);
            let first = Datagram { tos: 0xb8, ..request(transport).carrying(length.min(1440)) };
            let inner = Datagram { ttl: 63, ..first.clone() };
            let judged = cluster.from_client(&first);
            let id = id(&judged.sent[0].1);
            assert_judged(&judged, "transmit", &[tunnelled(&inner, 0xb8, id)], BEGUN);
        }
    }
}

#[test]
fn a_tunnel_copies_the_dont_fragment_bit_and_then_needs_no_identification() {
    let mut cluster = cluster("-i", 80);
    let first = Datagram { dont_fragment: true, ..request(Transport::Tcp(SYN)) };
    let inner = Datagram { ttl: 63, ..first.clone() };
    assert_judged(&cluster.from_client(&first), "transmit", &[tunnelled(&inner, 0, 0)], BEGUN);
}

#[test]
fn a_tunnel_replaces_congestion_experienced_by_ect_0_in_the_outer_header() {
    let mut cluster = cluster("-i", 80);
    for (inner_tos, outer_tos) in [(0xbb, 0xba), (0xba, 0xba), (0xb9, 0xb9), (0x00, 0x00), (0x03, 0x02)] {
        let packet = Datagram { tos: inner_tos, dont_fragment: true, ..request(Transport::Udp) };
        let inner = Datagram { ttl: 63, ..packet.clone() };
        assert_eq!(cluster.from_client(&packet).sent[0].1, tunnelled(&inner, outer_tos, 0).1);
    }
}

#[test]
fn tunnel_packets_that_may_be_fragmented_have_different_identifications() {
    let mut cluster = cluster("-i", 80);
    let mut ids: Vec<_> =
        (0..50).map(|_| id(&cluster.from_client(&request(Transport::Udp)).sent[0].1)).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50);
}

#[test]
fn a_checksum_whose_sum_is_zero_is_all_ones_in_udp_and_stays_zero_in_tcp() {
    for (transport, sum, at_byte) in
        [(Transport::Tcp(SYN), 0u16, 50), (Transport::Udp, 0xffff, 40), (Transport::UdpUnsummed, 0xffff, 40)]
    {
        let mut cluster = cluster("-m", 8080);
        let rewritten = |first: &Datagram| Datagram {
            ttl: 63,
            dest: at(server(1), 8080),
            transport: summed(transport),
            ..first.clone()
        };
        let packets =
            (0..=u16::MAX).map(|word| Datagram { data: word.to_be_bytes().to_vec(), ..request(transport) });
        let first = packets
            .into_iter()
            .find(|first| to_server(1, &rewritten(first)).1[at_byte..at_byte + 2] == sum.to_be_bytes())
            .expect("one of all words makes every sum");
        assert_judged(&cluster.from_client(&first), "transmit", &[to_server(1, &rewritten(&first))], BEGUN);
    }
}

#[test]
fn a_wrong_transport_checksum_stays_wrong() {
    for (transport, at_byte) in [(Transport::Tcp(SYN), 50), (Transport::Udp, 40)] {
        for method in ["-g", "-m", "-i"] {
            let mut cluster = cluster(method, 80);
            let first = Datagram { dont_fragment: true, ..request(transport).carrying(10) };
            let mut frame = first.frame(GATEWAY_MAC, WAN_MAC);
            frame[at_byte + 1] ^= 0x40;
            let dest = if method == "-m" { at(server(1), 80) } else { first.dest };
            let right = Datagram { ttl: 63, dest, ..first };
            let (mut want, sums) = match method {
                "-i" => (tunnelled(&right, 0, 0).1, at_byte + 20..at_byte + 22),
                _ => (to_server(1, &right).1, at_byte..at_byte + 2),
            };
            let judged = cluster.inject("wan", &frame);
            let got = &judged.sent[0].1;
            assert_ne!(got[sums.clone()], want[sums.clone()], "{method} {transport:?}");
            want[sums.clone()].copy_from_slice(&got[sums]);
            assert_judged(&judged, "transmit", &[("lan", want)], BEGUN);
        }
    }
}

#[test]
fn options_of_the_ipv4_header_are_kept() {
    // Three no-operation options and the end of the list (RFC 791 section 3.1).
    let with_options = |mut frame: Vec<u8>, at: usize| {
        frame.splice(at + 20..at + 20, [1, 1, 1, 0]);
        frame[at] = 0x46;
        let length = u16::from_be_bytes([frame[at + 2], frame[at + 3]]) + 4;
        frame[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
        frame
    };
    for method in ["-g", "-m"] {
        for transport in FIRST {
            let mut cluster = cluster(method, 8080);
            let first = request(transport).carrying(5);
            let mut frame = with_options(first.frame(GATEWAY_MAC, WAN_MAC), 14);
            resum(&mut frame);
            let (dest, transport) = match method {
                "-m" => (at(server(1), 8080), summed(transport)),
                _ => (first.dest, transport),
            };
            let sent = to_server(1, &Datagram { ttl: 63, dest, transport, ..first }).1;
            let mut want = with_options(sent, 14);
            resum(&mut want);
            assert_judged(&cluster.inject("wan", &frame), "transmit", &[("lan", want)], BEGUN);
        }
    }
}

#[test]
fn padding_of_a_short_frame_is_not_forwarded() {
    for method in ["-g", "-m", "-i"] {
        let mut cluster = cluster(method, 80);
        let first = Datagram { dont_fragment: true, ..request(Transport::Udp).carrying(3) };
        let mut frame = first.frame(GATEWAY_MAC, WAN_MAC);
        frame.resize(60, 0xa5);
        let dest = if method == "-m" { at(server(1), 80) } else { first.dest };
        let sent = Datagram { ttl: 63, dest, ..first };
        let want = if method == "-i" { tunnelled(&sent, 0, 0) } else { to_server(1, &sent) };
        assert_judged(&cluster.inject("wan", &frame), "transmit", &[want], BEGUN);
    }
}

#[test]
fn a_packet_of_exactly_the_mtu_is_forwarded_whole() {
    for (method, room) in [("-g", 1500), ("-m", 1500), ("-i", 1480)] {
        let mut cluster = cluster(method, 80);
        let first = Datagram { dont_fragment: true, ..request(Transport::Udp).carrying(room - 28) };
        let dest = if method == "-m" { at(server(1), 80) } else { first.dest };
        let sent = Datagram { ttl: 63, dest, ..first.clone() };
        let want = if method == "-i" { tunnelled(&sent, 0, 0) } else { to_server(1, &sent) };
        assert_judged(&cluster.from_client(&first), "transmit", &[want], BEGUN);
    }
}

#[test]
fn a_client_port_of_zero_is_legal() {
    let mut cluster = cluster("-m", 80);
    let first = Datagram { source: at(CLIENT, 0), ..request(Transport::Udp) };
    let want = Datagram { ttl: 63, dest: at(server(1), 80), ..first.clone() };
    assert_judged(&cluster.from_client(&first), "transmit", &[to_server(1, &want)], BEGUN);
}

#[test]
fn a_time_to_live_of_two_leaves_as_one_in_both_directions() {
    let mut cluster = cluster("-m", 80);
    let first = Datagram { ttl: 2, ..request(Transport::Tcp(SYN)) };
    let want = Datagram { ttl: 1, dest: at(server(1), 80), ..first.clone() };
    assert_judged(&cluster.from_client(&first), "transmit", &[to_server(1, &want)], BEGUN);
    let answer = Datagram { ttl: 2, ..reply(Transport::Tcp(SYN | ACK), 80) };
    let want = Datagram { ttl: 1, source: at(VIP, 80), ..answer.clone() };
    assert_judged(&cluster.from_server(&answer), "transmit", &[to_client(&want)], FORWARDED);
}

#[test]
fn every_method_counts_the_packets_and_their_ip_lengths_before_encapsulation() {
    for (method, replies) in [("-m", true), ("-g", false), ("-i", false)] {
        let mut cluster = cluster(method, 80);
        cluster.from_client(&request(Transport::Tcp(SYN)));
        if replies {
            cluster.from_server(&reply(Transport::Tcp(SYN | ACK), 80));
        }
        cluster.from_client(&request(Transport::Tcp(ACK)).carrying(101));
        cluster.from_client(&request(Transport::Udp).carrying(33));
        let out = if replies { "1 181 40" } else { "0 181 0" };
        assert_eq!(
            cluster.stats(),
            [
                format!("TCP {VIP}:80 1 2 {out}"),
                format!("-> {}:80 1 2 {out}", server(1)),
                format!("UDP {VIP}:80 1 1 0 61 0"),
                format!("-> {}:80 1 1 0 61 0", server(1)),
                format!("SCTP {VIP}:80 0 0 0 0 0"),
                format!("-> {}:80 0 0 0 0 0", server(1)),
            ],
            "{method}"
        );
    }
}

#[test]
fn one_port_of_a_server_may_serve_two_services_and_replies_come_from_the_right_one() {
    let mut cluster = LabCluster::new();
    for port in [80, 81] {
        cluster.adm(&format!("-A -t {VIP}:{port} -s rr"));
        cluster.adm(&format!("-a -t {VIP}:{port} -r {}:8080 -m", server(1)));
    }
    for (port, client) in [(80, 4000), (81, 4001)] {
        let first = Datagram::new(Transport::Tcp(SYN), at(CLIENT, client), at(VIP, port));
        let want = Datagram { ttl: 63, dest: at(server(1), 8080), ..first.clone() };
        assert_judged(&cluster.from_client(&first), "transmit", &[to_server(1, &want)], BEGUN);
    }
    for (port, client) in [(80, 4000), (81, 4001)] {
        let answer = Datagram::new(Transport::Tcp(ACK), at(server(1), 8080), at(CLIENT, client));
        let want = Datagram { ttl: 63, source: at(VIP, port), ..answer.clone() };
        assert_judged(&cluster.from_server(&answer), "transmit", &[to_client(&want)], FORWARDED);
    }
}

#[test]
fn replies_that_match_two_connections_belong_to_the_newest_and_after_its_end_to_the_other() {
    let mut cluster = LabCluster::new();
    for port in [80, 81] {
        cluster.adm(&format!("-A -t {VIP}:{port} -s rr"));
        cluster.adm(&format!("-a -t {VIP}:{port} -r {}:8080 -m", server(1)));
        let first = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, port));
        assert_eq!(cluster.from_client(&first).verdict, "transmit");
    }
    let answer = Datagram::new(Transport::Tcp(ACK), at(server(1), 8080), at(CLIENT, 4000));
    let from = |port| to_client(&Datagram { ttl: 63, source: at(VIP, port), ..answer.clone() });
    assert_judged(&cluster.from_server(&answer), "transmit", &[from(81)], FORWARDED);
    // The older connection is refreshed by its client's packets; the newer one ends.
    cluster.from_client(&Datagram::new(Transport::Tcp(ACK), at(CLIENT, 4000), at(VIP, 80)));
    let end = Datagram::new(Transport::Tcp(RST), at(CLIENT, 4000), at(VIP, 81));
    assert_eq!(cluster.from_client(&end).verdict, "transmit");
    cluster.advance(10.0);
    assert_eq!(cluster.connections().len(), 1);
    assert_judged(&cluster.from_server(&answer), "transmit", &[from(80)], FORWARDED);
}

#[test]
fn round_robin_begins_at_the_server_added_last_and_takes_turns() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {VIP}:80 -s rr"));
    for number in 1..=3 {
        cluster.adm(&format!("-a -u {VIP}:80 -r {}:80 -g", server(number)));
    }
    for (turn, number) in [3, 2, 1, 3].into_iter().enumerate() {
        let first = Datagram { source: at(CLIENT, 5000 + turn as u16), ..request(Transport::Udp) };
        let want = to_server(number, &Datagram { ttl: 63, ..first.clone() });
        assert_judged(&cluster.from_client(&first), "transmit", &[want], BEGUN);
    }
}

#[test]
fn only_a_syn_without_reset_begins_a_tcp_connection() {
    for flags in 0..=(FIN | SYN | RST | ACK) {
        let (relevant, flags) = (flags & (FIN | SYN | RST | ACK) == flags, flags);
        if !relevant {
            continue;
        }
        let mut cluster = cluster("-g", 80);
        let first = request(Transport::Tcp(flags));
        let judged = cluster.from_client(&first);
        if flags & SYN != 0 && flags & RST == 0 {
            let want = to_server(1, &Datagram { ttl: 63, ..first });
            assert_judged(&judged, "transmit", &[want], BEGUN);
        } else {
            super::assert_passed(&judged);
            assert_eq!(cluster.connections(), [] as [String; 0], "{flags:#x}");
        }
    }
}
