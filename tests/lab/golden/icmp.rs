//! ICMP errors about connections, to the byte: their receiver, their form, and the reasons to drop them.
//!
//! `etherparse` writes errors and expected errors around quotes. In a quote, which is a truncated packet, the test
//! itself changes an address and a port.

use std::net::{IpAddr, SocketAddr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{EtherType, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber};
use serde_json::json;
use xvs::frames::{ACK, Complaint, Complaint6, Ipv4, Ipv6, Mac, SYN, ethernet, id};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::{Datagram, Judged, LabCluster, Transport};

use super::{FORWARDED, PASSED, assert_judged, assert_passed};

#[path = "icmp/fullnat.rs"]
mod fullnat;

/// The protocols, as options of `ipvsadm` and as packets.
const TRANSPORTS: [(&str, Transport); 2] = [("-t", Transport::Tcp(SYN)), ("-u", Transport::Udp)];
/// The error is consumed, and the client gets another one.
const RELAYED: &[(&str, u64)] = &[("consumed", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];

/// An end of a packet.
#[derive(Clone, Copy)]
enum End {
    Source,
    Dest,
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
struct Net {
    client: IpAddr,
    vip: IpAddr,
    server: IpAddr,
    inside: IpAddr,
    router: IpAddr,
}

fn nets() -> [Net; 2] {
    [
        Net {
            client: CLIENT.into(),
            vip: VIP.into(),
            server: server(1).into(),
            inside: INSIDE.into(),
            router: [10, 9, 8, 7].into(),
        },
        Net {
            client: CLIENT6.into(),
            vip: VIP6.into(),
            server: server6(1).into(),
            inside: INSIDE6.into(),
            router: "2001:db8:99::7".parse().expect("an address"),
        },
    ]
}

impl Net {
    /// Type, code and rest of header of several errors; the first reports that a packet is too big.
    fn errors(self) -> Vec<(u8, u8, [u8; 4])> {
        match self.vip {
            IpAddr::V4(_) => vec![(3, 4, [0, 0, 5, 0]), (3, 3, [0; 4]), (4, 0, [0; 4]), (11, 1, [0; 4])],
            IpAddr::V6(_) => vec![(2, 0, [0, 0, 5, 0]), (1, 4, [0; 4]), (3, 1, [0; 4]), (100, 7, [9; 4])],
        }
    }

    fn too_big(self, mtu: u16) -> (u8, u8, [u8; 4]) {
        let [high, low] = mtu.to_be_bytes();
        if self.vip.is_ipv4() { (3, 4, [0, 0, high, low]) } else { (2, 0, [0, 0, high, low]) }
    }
}

/// An ICMP error.
fn error(what: (u8, u8, [u8; 4]), from: IpAddr, to: IpAddr, ttl: u8, quote: &[u8]) -> Vec<u8> {
    let (type_u8, code_u8, bytes5to8) = what;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
            let message = [&Icmpv4Header::with_checksum(kind, quote).to_bytes()[..], quote].concat();
            let header = Ipv4 { ttl, tos: 0xc0, id: 0x4321, dont_fragment: true };
            header.packet(IpNumber::ICMP, from, to, &message)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
            let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quote);
            let message = [&header.expect("short enough").to_bytes()[..], quote].concat();
            Ipv6 { hop_limit: ttl, traffic_class: 0 }.packet(IpNumber::IPV6_ICMP, from, to, &message)
        }
        _ => panic!("one family"),
    }
}

fn framed(packet: &[u8], from: Mac, to: Mac) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
    ethernet(from, to, kind, packet)
}

fn from_router(cluster: &mut LabCluster, link: &str, packet: &[u8]) -> Judged {
    let to = if link == "wan" { WAN_MAC } else { LAN_MAC };
    cluster.inject(link, &framed(packet, GATEWAY_MAC, to))
}

fn to_server(packet: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    vec![("lan", framed(packet, LAN_MAC, server_mac(1)))]
}

fn to_client(packet: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    vec![("wan", framed(packet, WAN_MAC, GATEWAY_MAC))]
}

/// A quote with another endpoint at one end. The checksum of its IPv4 header is updated, others are not.
fn readdressed(quote: &[u8], end: End, to: SocketAddr) -> Vec<u8> {
    let mut quote = quote.to_vec();
    let (addr, transport) = match (to.ip(), end) {
        (IpAddr::V4(_), End::Source) => (12, 20),
        (IpAddr::V4(_), End::Dest) => (16, 20),
        (IpAddr::V6(_), End::Source) => (8, 40),
        (IpAddr::V6(_), End::Dest) => (24, 40),
    };
    match to.ip() {
        IpAddr::V4(to) => quote[addr..addr + 4].copy_from_slice(&to.octets()),
        IpAddr::V6(to) => quote[addr..addr + 16].copy_from_slice(&to.octets()),
    }
    let port = if let End::Source = end { transport } else { transport + 2 };
    quote[port..port + 2].copy_from_slice(&to.port().to_be_bytes());
    if to.is_ipv4() {
        quote[10..12].fill(0);
        let sum = Sum16BitWords::new().add_slice(&quote[..20]).ones_complement();
        quote[10..12].copy_from_slice(&sum.to_ne_bytes());
    }
    quote
}

/// A cluster with a connection from the client's port 4000 to port 80 of the virtual address, with this method and
/// protocol.
fn connected(net: Net, (option, transport): (&str, Transport), method: &str, port: u16) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A {option} {} -s rr", at(net.vip, 80)));
    cluster.adm(&format!("-a {option} {} -r {} {method}", at(net.vip, 80), at(net.server, port)));
    let first = Datagram::new(transport, at(net.client, 4000), at(net.vip, 80));
    assert_eq!(cluster.from_client(&first).verdict, "transmit");
    cluster
}

/// A reply as the client receives it, and a request as the masqueraded server receives it.
fn seen(net: Net, transport: Transport) -> (Datagram, Datagram) {
    let (client, vip) = (at(net.client, 4000), at(net.vip, 80));
    let packet = |source, dest| Datagram::new(transport, source, dest).carrying(600);
    (packet(vip, client), packet(client, at(net.server, 8080)))
}

/// Lengths of the quoted part of a packet: up to its ports, the minimum of RFC 792, an odd number, a large number.
fn cuts(packet: &Datagram) -> [usize; 4] {
    let header = if packet.dest.is_ipv4() { 20 } else { 40 };
    [header + 4, header + 8, header + 99, 548]
}

#[test]
fn an_error_about_a_reply_reaches_the_masqueraded_server_as_one_about_its_own_packet() {
    for net in nets() {
        for transport in TRANSPORTS {
            let mut cluster = connected(net, transport, "-m", 8080);
            let (reply, _) = seen(net, transport.1);
            for what in net.errors() {
                for cut in cuts(&reply) {
                    let quote = &reply.packet()[..cut];
                    let received = error(what, net.router, net.vip, 64, quote);
                    let left = readdressed(quote, End::Source, at(net.server, 8080));
                    let want = to_server(&error(what, net.router, net.server, 63, &left));
                    let judged = from_router(&mut cluster, "wan", &received);
                    assert_judged(&judged, "transmit", &want, FORWARDED);
                }
            }
        }
    }
}

#[test]
fn an_error_about_a_masqueraded_request_reaches_the_client_from_the_virtual_address() {
    for net in nets() {
        for transport in TRANSPORTS {
            let mut cluster = connected(net, transport, "-m", 8080);
            let (_, request) = seen(net, transport.1);
            for what in net.errors() {
                for (cut, from) in
                    cuts(&request).into_iter().zip([net.server, net.router].into_iter().cycle())
                {
                    let quote = &request.packet()[..cut];
                    let received = error(what, from, net.client, 64, quote);
                    let left = readdressed(quote, End::Dest, at(net.vip, 80));
                    let want = to_client(&error(what, net.vip, net.client, 63, &left));
                    let judged = from_router(&mut cluster, "lan", &received);
                    assert_judged(&judged, "transmit", &want, FORWARDED);
                }
            }
        }
    }
}

#[test]
fn errors_are_counted_as_packets_and_change_neither_state_nor_timeout() {
    let net = nets()[0];
    let mut cluster = connected(net, TRANSPORTS[0], "-m", 8080);
    cluster.advance(20.0);
    let (reply, request) = seen(net, Transport::Tcp(ACK));
    let (port, host) = ((3, 3, [0; 4]), (3, 1, [0; 4]));
    from_router(&mut cluster, "wan", &error(port, net.router, net.vip, 64, &reply.packet()[..28]));
    from_router(&mut cluster, "lan", &error(host, net.router, net.client, 64, &request.packet()[..28]));
    assert_eq!(cluster.only_connection(), ("00:40".to_owned(), "SYN_RECV".to_owned()));
    let stats = cluster.stats();
    assert!(stats[0].ends_with(" 1 2 1 96 56"), "{stats:?}");
}

#[test]
fn direct_routing_and_tunnels_forward_an_error_about_a_reply_unchanged_even_with_a_wrong_checksum() {
    for net in nets() {
        for transport in TRANSPORTS {
            let (reply, _) = seen(net, transport.1);
            let mut received = error(net.too_big(1280), net.router, net.vip, 64, &reply.packet()[..548]);
            let mut left = error(net.too_big(1280), net.router, net.vip, 63, &reply.packet()[..548]);
            let checksum = if net.vip.is_ipv4() { 22 } else { 42 };
            (received[checksum], left[checksum]) = (received[checksum] ^ 0xff, left[checksum] ^ 0xff);
            let mut cluster = connected(net, transport, "-g", 80);
            let judged = from_router(&mut cluster, "wan", &received);
            assert_judged(&judged, "transmit", &to_server(&left), FORWARDED);
            let mut cluster = connected(net, transport, "-i", 80);
            let judged = from_router(&mut cluster, "wan", &received);
            let outer = match (net.inside, net.server) {
                (IpAddr::V4(from), IpAddr::V4(to)) => Ipv4 { ttl: 63, tos: 0xc0, id: 0, dont_fragment: true }
                    .packet(IpNumber::IPV4, from, to, &left),
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    Ipv6 { hop_limit: 63, traffic_class: 0 }.packet(IpNumber::IPV6, from, to, &left)
                }
                _ => panic!("one family"),
            };
            assert_judged(&judged, "transmit", &to_server(&outer), FORWARDED);
        }
    }
}

#[test]
fn errors_with_a_wrong_checksum_about_a_masqueraded_connection_are_dropped_and_not_counted() {
    const MOVED: &[(&str, u64)] = &[("drop_icmp_checksum", 1), ("rx_packets", 1)];
    for net in nets() {
        let mut cluster = connected(net, TRANSPORTS[1], "-m", 8080);
        let (reply, request) = seen(net, Transport::Udp);
        for (link, to, quote) in [("wan", net.vip, reply), ("lan", net.client, request)] {
            let mut received = error(net.too_big(1280), net.router, to, 64, &quote.packet()[..99]);
            *received.last_mut().expect("bytes") ^= 1;
            assert_judged(&from_router(&mut cluster, link, &received), "drop icmp_checksum", &[], MOVED);
        }
        assert!(cluster.stats()[0].contains(" 1 1 0 "), "only the first packet counts");
    }
}

#[test]
fn an_error_whose_time_to_live_has_run_out_causes_no_other_error() {
    let net = nets()[0];
    let mut cluster = connected(net, TRANSPORTS[1], "-m", 8080);
    let (reply, request) = seen(net, Transport::Udp);
    for (link, to, quote) in [("wan", net.vip, reply), ("lan", net.client, request)] {
        let received = error((3, 1, [0; 4]), net.router, to, 1, &quote.packet()[..99]);
        let moved = [("drop_ttl_expired", 1), ("rx_packets", 1)];
        assert_judged(&from_router(&mut cluster, link, &received), "drop ttl_expired", &[], &moved);
    }
}

/// The options of a tunnel, and the length of its headers after the outer network header.
const TUNNELS: [(&str, usize); 5] = [
    ("-i", 0),
    ("-i --tun-type gre", 4),
    ("-i --tun-type gre --tun-csum", 8),
    ("-i --tun-type gue --tun-port 6181", 12),
    ("-i --tun-type gue --tun-port 6181 --tun-csum", 12),
];

/// Every combination of the families of the client's packet and of the tunnel.
fn mixes() -> impl Iterator<Item = (Net, Net)> {
    nets().into_iter().flat_map(|inner| nets().into_iter().map(move |outer| (inner, outer)))
}

/// A cluster with a connection by a tunnel, and a large packet of it with the outer headers.
fn tunnelled(inner: Net, outer: Net, options: &str) -> (LabCluster, Datagram, Vec<u8>) {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {} -s rr", at(inner.vip, 80)));
    cluster.adm(&format!("-a -u {} -r {} {options}", at(inner.vip, 80), at(outer.server, 80)));
    let packet = Datagram::new(Transport::Udp, at(inner.client, 4000), at(inner.vip, 80));
    let packet = Datagram { dont_fragment: true, ..packet }.carrying(1350);
    let judged = cluster.from_client(&packet);
    let [(link, sent)] = &judged.sent[..] else { panic!("{judged:?}") };
    assert_eq!(link, "lan");
    (cluster, packet, sent[14..].to_vec())
}

/// The ICMP error to a client about its packet inside the tunnel, with this many bytes quoted.
fn error_to_client(
    inner: Net,
    packet: &Datagram,
    quoted: usize,
    v4: Complaint,
    v6: Complaint6,
    got: &Judged,
) -> Vec<u8> {
    let inside = Datagram { ttl: 63, ..packet.clone() }.packet();
    let inside = &inside[..quoted.min(inside.len())];
    match inner.vip {
        IpAddr::V4(vip) => v4.about(inside, vip, id(&got.sent[0].1)),
        IpAddr::V6(vip) => v6.about(inside, vip),
    }
}

#[test]
fn a_too_big_error_about_a_tunnels_packet_reports_the_inner_size_to_the_client_and_holds_ten_minutes() {
    for (inner, outer) in mixes() {
        for (options, own) in TUNNELS {
            let (mut cluster, packet, sent) = tunnelled(inner, outer, options);
            let overhead = if outer.vip.is_ipv4() { 20 } else { 40 } + own;
            let cut = sent.len().min(500);
            let received = error(outer.too_big(1350), outer.router, outer.inside, 64, &sent[..cut]);
            let judged = from_router(&mut cluster, "lan", &received);
            let mtu = 1350 - overhead as u16;
            let (v4, v6) = (Complaint::fragmentation_needed(mtu), Complaint6::packet_too_big(mtu.into()));
            let want = error_to_client(inner, &packet, cut - overhead, v4, v6, &judged);
            assert_judged(&judged, "consumed", &to_client(&want), RELAYED);
            // IPVS counts the quoted packet and the error itself.
            let (stats, length) = (cluster.stats(), packet.packet().len());
            let counted = format!(" 1 1 2 {length} {}", cut - overhead + want.len());
            assert!(stats[0].ends_with(&counted), "{counted}: {stats:?}");

            let again = cluster.from_client(&packet);
            let want = error_to_client(inner, &packet, usize::MAX, v4, v6, &again);
            let moved = [("drop_too_big", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
            assert_judged(&again, "drop too_big", &to_client(&want), &moved);
            cluster.advance(598.5);
            assert_eq!(cluster.from_client(&packet).verdict, "transmit", "{options}: it has expired");
        }
    }
}

#[test]
fn other_errors_about_a_tunnels_packet_are_relayed_to_the_client_in_its_family() {
    for (inner, outer) in mixes() {
        for (options, own) in TUNNELS {
            let (mut cluster, packet, sent) = tunnelled(inner, outer, options);
            let overhead = if outer.vip.is_ipv4() { 20 } else { 40 } + own;
            let errors = if outer.vip.is_ipv4() {
                [(3, 2, [1, 2, 3, 4]), (11, 0, [0; 4])]
            } else {
                [(1, 4, [0; 4]), (3, 0, [5; 4])]
            };
            for what in errors {
                let received = error(what, outer.router, outer.inside, 64, &sent[..400]);
                let judged = from_router(&mut cluster, "lan", &received);
                let (v4, v6) = match inner.vip.is_ipv4() == outer.vip.is_ipv4() {
                    true => (
                        Complaint(what.0, what.1, what.2),
                        Complaint6(what.0, what.1, u32::from_be_bytes(what.2)),
                    ),
                    false => (Complaint::HOST_UNREACHABLE, Complaint6::ADDRESS_UNREACHABLE),
                };
                let want = error_to_client(inner, &packet, 400 - overhead, v4, v6, &judged);
                assert_judged(&judged, "consumed", &to_client(&want), RELAYED);
            }
        }
    }
}

#[test]
fn packets_that_may_be_fragmented_are_fragmented_by_the_director_without_an_error() {
    let [net, _] = nets();
    for (options, _) in TUNNELS {
        let mut cluster = LabCluster::new();
        cluster.adm(&format!("-A -u {} -s rr", at(net.vip, 80)));
        cluster.adm(&format!("-a -u {} -r {} {options}", at(net.vip, 80), at(net.server, 80)));
        let packet = Datagram::new(Transport::Udp, at(net.client, 4000), at(net.vip, 80)).carrying(1350);
        let sent = cluster.from_client(&packet).sent[0].1[14..].to_vec();
        let received = error(net.too_big(1300), net.router, net.inside, 64, &sent[..200]);
        let moved = [("consumed", 1), ("rx_packets", 1)];
        assert_judged(&from_router(&mut cluster, "lan", &received), "consumed", &[], &moved);
        let again = cluster.from_client(&packet);
        let lengths: Vec<_> = again.sent.iter().map(|(_, frame)| frame.len() - 14).collect();
        assert!(lengths.len() == 2 && lengths[0] <= 1300 && lengths[0] > 1290, "{options}: {lengths:?}");
    }
}

#[test]
fn a_tunnel_over_ipv6_with_less_than_1280_bytes_inside_fragments_and_reports_1280() {
    let [_, net] = nets();
    for (options, _) in TUNNELS {
        let (mut cluster, packet, sent) = tunnelled(net, net, options);
        // A value below the minimum MTU of IPv6 is not accepted.
        let received = error(net.too_big(600), net.router, net.inside, 64, &sent[..300]);
        let judged = from_router(&mut cluster, "lan", &received);
        let want = error_to_client(
            net,
            &packet,
            judged.sent[0].1.len() - 14 - 48,
            Complaint::PORT_UNREACHABLE,
            Complaint6::packet_too_big(1280),
            &judged,
        );
        assert_judged(&judged, "consumed", &to_client(&want), RELAYED);
        let least = Datagram::new(Transport::Udp, at(net.client, 4000), at(net.vip, 80)).carrying(1280 - 48);
        let again = cluster.from_client(&least);
        let lengths: Vec<_> = again.sent.iter().map(|(_, frame)| frame.len() - 14).collect();
        assert!(lengths.len() == 2 && lengths.iter().all(|length| *length <= 1280), "{options}: {lengths:?}");
    }
}

#[test]
fn a_path_mtu_holds_for_every_service_of_its_real_server() {
    let [net, _] = nets();
    let (mut cluster, packet, sent) = tunnelled(net, net, "-i");
    cluster.adm(&format!("-A -u {} -s rr", at(net.vip, 81)));
    cluster.adm(&format!("-a -u {} -r {} -i", at(net.vip, 81), at(net.server, 81)));
    from_router(&mut cluster, "lan", &error(net.too_big(1300), net.router, net.inside, 64, &sent[..200]));
    let other = Datagram { dest: at(net.vip, 81), ..packet };
    assert_eq!(cluster.from_client(&other).verdict, "drop too_big");
}

#[test]
fn an_error_about_a_tunnel_packet_that_the_director_did_not_send_goes_to_the_kernel_without_effect() {
    for (inner, outer) in mixes() {
        for (options, own) in TUNNELS {
            let (mut cluster, packet, sent) = tunnelled(inner, outer, options);
            let header = if outer.vip.is_ipv4() { 20 } else { 40 };
            let inside = header + own + if inner.vip.is_ipv4() { 20 } else { 40 };
            let changed = |at: usize| {
                let mut quote = sent[..300].to_vec();
                quote[at] ^= 1;
                error(outer.too_big(1300), outer.router, outer.inside, 64, &quote)
            };
            // From another address; to another server; about another client's packet.
            for received in [changed(header - 1 - header / 5), changed(header - 1), changed(inside + 1)] {
                assert_passed(&from_router(&mut cluster, "lan", &received));
            }
            // Quotes that end before the ports of the inner packet.
            for cut in 0..inside + 4 {
                let received = error(outer.too_big(1300), outer.router, outer.inside, 64, &sent[..cut]);
                assert_passed(&from_router(&mut cluster, "lan", &received));
            }
            let mut received = error(outer.too_big(1300), outer.router, outer.inside, 64, &sent[..300]);
            *received.last_mut().expect("bytes") ^= 1;
            assert_eq!(from_router(&mut cluster, "lan", &received).verdict, "drop icmp_checksum");
            assert_eq!(cluster.from_client(&packet).verdict, "transmit", "{options}");
        }
    }
}

#[test]
fn errors_about_no_connection_or_of_other_types_or_truncated_before_the_ports_go_to_the_kernel() {
    for net in nets() {
        for method in ["-m", "-g", "-i"] {
            let port = if method == "-m" { 8080 } else { 80 };
            let mut cluster = connected(net, TRANSPORTS[1], method, port);
            let (reply, request) = seen(net, Transport::Udp);
            let header = if net.vip.is_ipv4() { 20 } else { 40 };
            let unknown = Datagram { dest: at(net.client, 4001), ..reply.clone() }.packet();
            let mut about = |what, quote: &[u8]| {
                assert_passed(&from_router(
                    &mut cluster,
                    "wan",
                    &error(what, net.router, net.vip, 64, quote),
                ));
            };
            let reply = reply.packet();
            about(net.too_big(1280), &unknown[..99]);
            (0..header + 4).for_each(|cut| about(net.too_big(1280), &reply[..cut]));
            if net.vip.is_ipv4() {
                about((5, 1, [10, 0, 0, 1]), &reply[..99]);
                about((12, 0, [0; 4]), &reply[..99]);
                // A later fragment; a header that is too short, or longer than the packet; another version; a total
                // length that is too short.
                for (at, byte) in [(7, 1), (0, 0x44), (0, 0x4f), (0, 0x65), (3, 19)] {
                    let mut quote = reply[..50].to_vec();
                    quote[at] = byte;
                    if at == 3 {
                        quote[2] = 0;
                    }
                    about(net.too_big(1280), &quote);
                }
            }
            // About an error, and about a request as the client sent it.
            about(net.too_big(1280), &error(net.too_big(1280), net.vip, net.client, 64, &reply[..99]));
            about(net.too_big(1280), &Datagram { dest: at(net.vip, 80), ..request.clone() }.packet()[..99]);
            // To another address than that of the client that the quoted packet came from.
            let received = error(net.too_big(1280), net.router, net.inside, 64, &request.packet()[..99]);
            assert_passed(&from_router(&mut cluster, "lan", &received));
        }
    }
}

#[test]
fn an_icmpv6_error_in_fragments_is_dropped_and_one_with_an_atomic_fragment_header_is_not() {
    let [_, net] = nets();
    let mut cluster = connected(net, TRANSPORTS[1], "-m", 8080);
    let (reply, _) = seen(net, Transport::Udp);
    let whole = error(net.too_big(1280), net.router, net.vip, 64, &reply.packet()[..99]);
    let behind_header = |word: u16| {
        let mut packet = whole.clone();
        let [high, low] = word.to_be_bytes();
        packet.splice(40..40, [58, 0, high, low, 0, 0, 0, 7]);
        packet[6] = 44;
        packet[5] += 8;
        packet
    };
    let moved = [("drop_icmp_fragment", 1), ("rx_packets", 1)];
    assert_judged(&from_router(&mut cluster, "wan", &behind_header(1)), "drop icmp_fragment", &[], &moved);
    let expected = from_router(&mut cluster, "wan", &whole).sent;
    let judged = from_router(&mut cluster, "wan", &behind_header(0));
    assert_eq!((judged.verdict.as_str(), judged.sent), ("transmit", expected));
}

#[test]
fn a_removed_server_still_gets_errors_about_its_connections_and_they_are_not_counted() {
    let [net, _] = nets();
    let mut cluster = connected(net, TRANSPORTS[1], "-m", 8080);
    cluster.adm(&format!("-d -u {} -r {}", at(net.vip, 80), at(net.server, 8080)));
    let (reply, _) = seen(net, Transport::Udp);
    let received = error(net.too_big(1280), net.router, net.vip, 64, &reply.packet()[..99]);
    let judged = from_router(&mut cluster, "wan", &received);
    assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("transmit", 1));
    assert!(cluster.stats()[0].ends_with(" 1 1 0 28 0"), "the first packet alone");
}

#[test]
fn without_services_of_its_family_an_error_goes_to_the_kernel_unchanged() {
    let [net, other] = nets();
    let mut cluster = connected(net, TRANSPORTS[1], "-m", 8080);
    cluster.adm(&format!("-D -u {}", at(net.vip, 80)));
    let (reply, _) = seen(net, Transport::Udp);
    let received = error(net.too_big(1280), net.router, net.vip, 64, &reply.packet()[..99]);
    assert_passed(&from_router(&mut cluster, "wan", &received));
    cluster.adm(&format!("-A -u {} -s rr", at(other.vip, 80)));
    assert_passed(&from_router(&mut cluster, "wan", &received));
}

#[test]
fn an_error_about_a_connection_of_another_director_is_scheduled_if_configured() {
    const SCHEDULED: &[(&str, u64)] = &[("connections", 1), ("rx_packets", 1), ("tx_packets", 1)];
    for net in nets() {
        let mut cluster = LabCluster::new();
        cluster.adm(&format!("-A -t {} -s sh", at(net.vip, 80)));
        let (reply, _) = seen(net, Transport::Tcp(ACK));
        let quote = &reply.packet()[..99];
        let received = error(net.too_big(1280), net.router, net.vip, 64, quote);
        assert_judged(&from_router(&mut cluster, "wan", &received), "pass", &[], PASSED);
        cluster.set("schedule_icmp", 1);
        let moved = [("drop_no_destination", 1), ("rx_packets", 1)];
        assert_judged(&from_router(&mut cluster, "wan", &received), "drop no_destination", &[], &moved);
        let elsewhere = Datagram { source: at(net.vip, 81), ..reply.clone() }.packet();
        let elsewhere = error(net.too_big(1280), net.router, net.vip, 64, &elsewhere[..99]);
        assert_passed(&from_router(&mut cluster, "wan", &elsewhere));
        cluster.adm(&format!("-a -t {} -r {} -m", at(net.vip, 80), at(net.server, 8080)));
        let left = readdressed(quote, End::Source, at(net.server, 8080));
        let want = to_server(&error(net.too_big(1280), net.router, net.server, 63, &left));
        assert_judged(&from_router(&mut cluster, "wan", &received), "transmit", &want, SCHEDULED);
        assert_eq!(cluster.only_connection(), ("00:03".to_owned(), "NONE".to_owned()));
        assert_eq!(cluster.load(at(net.server, 8080)), (0, 1));
        assert_judged(&from_router(&mut cluster, "wan", &received), "transmit", &want, FORWARDED);
        let first = Datagram::new(Transport::Tcp(SYN), at(net.client, 4000), at(net.vip, 80));
        assert_eq!(cluster.from_client(&first).verdict, "transmit");
        assert_eq!(cluster.only_connection().1, "SYN_RECV");
    }
}

#[test]
fn an_error_about_esp_follows_the_isakmp_connection_and_its_quote_gets_no_ports() {
    let [net, _] = nets();
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {} -s rr", at(net.vip, 500)));
    cluster.adm(&format!("-a -u {} -r {} -m", at(net.vip, 500), at(net.server, 500)));
    let keys = Datagram::new(Transport::Udp, at(net.client, 500), at(net.vip, 500));
    assert_eq!(cluster.from_client(&keys).verdict, "transmit");
    let header = Ipv4 { ttl: 60, tos: 0, id: 9, dont_fragment: true };
    let esp = |source| header.packet(IpNumber::ENCAPSULATING_SECURITY_PAYLOAD, source, CLIENT, &[7; 64]);
    let received = error(net.too_big(1280), net.router, net.vip, 64, &esp(VIP));
    let want = to_server(&error(net.too_big(1280), net.router, net.server, 63, &esp(server(1))));
    assert_judged(&from_router(&mut cluster, "wan", &received), "transmit", &want, FORWARDED);
}

#[test]
fn a_server_that_is_the_director_itself_gets_errors_about_its_replies_from_its_kernel() {
    let [net, _] = nets();
    let mut cluster = LabCluster::new();
    cluster.ok(json!({ "link": "vip", "mac": "02:00:00:00:03:01", "addresses": [format!("{VIP}/32")] }));
    cluster.configure(&[&format!("-A -u {VIP}:80 -s rr"), &format!("-a -u {VIP}:80 -r {INSIDE}:80 -g")]);
    let first = Datagram::new(Transport::Udp, at(net.client, 4000), at(net.vip, 80));
    assert_eq!(cluster.from_client(&first).verdict, "pass");
    let (reply, _) = seen(net, Transport::Udp);
    let received = error(net.too_big(1280), net.router, net.vip, 64, &reply.packet()[..99]);
    assert_passed(&from_router(&mut cluster, "wan", &received));
    assert!(cluster.stats()[0].ends_with(" 1 2 0 155 0"), "it is counted");
}
