//! ICMP errors about connections, to the byte: their receiver, their form, and the reasons to drop them.
//!
//! `etherparse` writes errors and expected errors around quotes. In a quote, which is a truncated packet, the test
//! itself changes an address and a port.

use std::net::{IpAddr, SocketAddr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{EtherType, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber};
use serde_json::json;
use xvs::frames::{ACK, Ipv4, Ipv6, Mac, SYN, ethernet};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::{Datagram, Judged, LabCluster, Transport};

use super::{FORWARDED, PASSED, assert_judged, assert_passed};

#[path = "icmp/fullnat.rs"]
mod fullnat;
#[path = "icmp/tunnels.rs"]
mod tunnels;

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
pub(super) fn error(what: (u8, u8, [u8; 4]), from: IpAddr, to: IpAddr, ttl: u8, quote: &[u8]) -> Vec<u8> {
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

pub(super) fn from_router(cluster: &mut LabCluster, link: &str, packet: &[u8]) -> Judged {
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
