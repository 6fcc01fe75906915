//! FULLNAT between IPv6 and IPv4, to the byte. Source of the rules: RFC 7915, sections 4 and 5.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use serde_json::json;
use xvs::frames::{ACK, SYN, id, resum};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::{Datagram, Judged, LabCluster, Transport};
use xvs_model::protocol::client::Director as _;
use xvs_model::protocol::question::Request;
use xvs_model::report::connection::Filter;

use super::fragments::fragments;
use super::{BEGUN, FORWARDED, assert_judged, to_client, to_server};
use crate::fast_path::make_partial;

/// The only local port, so that it is known which one is used.
const PORT: u16 = 5000;

/// The addresses of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) client: IpAddr,
    pub(super) vip: IpAddr,
    pub(super) local: IpAddr,
    pub(super) server: IpAddr,
}

/// A client of IPv6 with a server of IPv4, and the reverse.
pub(super) fn both() -> [Ends; 2] {
    [
        Ends { client: CLIENT6.into(), vip: VIP6.into(), local: INSIDE.into(), server: server(1).into() },
        Ends { client: CLIENT.into(), vip: VIP.into(), local: INSIDE6.into(), server: server6(1).into() },
    ]
}

/// A cluster with a service of each protocol at port 80, whose only server is at port 8080.
pub(super) fn cluster(ends: Ends, mtu: u32) -> LabCluster {
    let mut cluster = LabCluster::with_mtu(mtu);
    let (local, ports) = (ends.local.to_string(), format!("{PORT}-{PORT}"));
    let answer = cluster.ask(json!({ "xvs": ["laddr", "add", local, "--ports", ports] }));
    assert_eq!(answer["exit"], 0, "{answer}");
    for protocol in ["-t", "-u", "--sctp-service"] {
        cluster.adm(&format!("-A {protocol} {} -s rr", at(ends.vip, 80)));
        let server = at(ends.server, 8080);
        cluster.adm(&format!("-a {protocol} {} -r {server} --fullnat", at(ends.vip, 80)));
    }
    cluster
}

pub(super) fn request(ends: Ends, transport: Transport, bytes: usize) -> Datagram {
    super::carrying(Datagram::new(transport, at(ends.client, 4000), at(ends.vip, 80)), bytes)
}

pub(super) fn reply(ends: Ends, transport: Transport, bytes: usize) -> Datagram {
    super::carrying(Datagram::new(transport, at(ends.server, 8080), at(ends.local, PORT)), bytes)
}

/// The request as the server gets it, and the reply as the client gets it.
pub(super) fn at_server(ends: Ends, request: &Datagram, judged: &Judged) -> Datagram {
    translated(request, (ends.local, PORT), (ends.server, 8080), judged)
}

pub(super) fn at_client(ends: Ends, reply: &Datagram, judged: &Judged) -> Datagram {
    translated(reply, (ends.vip, 80), (ends.client, 4000), judged)
}

/// A packet with these ends. One of IPv4 may be fragmented if it has at most 1,260 bytes; then it has an
/// identification, otherwise 0 (RFC 7915, section 5.1).
fn translated(packet: &Datagram, from: (IpAddr, u16), to: (IpAddr, u16), judged: &Judged) -> Datagram {
    let (source, dest) = (at(from.0, from.1), at(to.0, to.1));
    let packet = Datagram { ttl: packet.ttl - 1, source, dest, ..packet.clone() };
    let dont_fragment = packet.packet().len() > 1260;
    let given = judged.sent.first().map_or(0, |(_, frame)| id(frame));
    Datagram { dont_fragment, id: if dont_fragment { 0 } else { given }, ..packet }
}

#[test]
fn both_ends_and_the_header_are_replaced_in_both_directions() {
    for ends in both() {
        for transport in [Transport::Tcp(SYN), Transport::Udp, Transport::Sctp] {
            for bytes in [0, 1, 1100, 1213, 1400] {
                let mut cluster = cluster(ends, 1500);
                // Of IPv4 what is longer than 1,280 bytes in IPv6 would be fragmented.
                let request =
                    Datagram { tos: 0x28, dont_fragment: bytes > 1200, ..request(ends, transport, bytes) };
                let first = cluster.from_client(&request);
                let want = to_server(1, &at_server(ends, &request, &first));
                assert_judged(&first, "transmit", &[want], BEGUN);
                let answering = match transport {
                    Transport::Tcp(_) => Transport::Tcp(SYN | ACK),
                    other => other,
                };
                let reply =
                    Datagram { tos: 0xb8, dont_fragment: bytes > 1200, ..reply(ends, answering, bytes) };
                let judged = cluster.from_server(&reply);
                let want = to_client(&at_client(ends, &reply, &judged));
                assert_judged(&judged, "transmit", &[want], FORWARDED);
            }
        }
    }
}

#[test]
fn a_connection_that_is_drained_is_reset_at_both_ends_in_their_own_families() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        cluster.from_client(&request(ends, Transport::Tcp(SYN), 0));
        cluster.from_server(&reply(ends, Transport::Tcp(SYN | ACK), 0));
        cluster.from_client(&request(ends, Transport::Tcp(ACK), 0));
        let wanted = Request::ResetConnections(Filter::default());
        cluster.lab().director.call(wanted).expect("there is a connection");
        let judged = cluster.from_client(&request(ends, Transport::Tcp(ACK), 100));
        let reset = |frame: &[u8]| {
            let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
            let Some(TransportSlice::Tcp(segment)) = packet.transport else { panic!("TCP") };
            let (source, dest, sum): (IpAddr, IpAddr, _) = match packet.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let [from, to] = [ip.header().source(), ip.header().destination()];
                    (from.into(), to.into(), segment.calc_checksum_ipv4(from, to))
                }
                Some(NetSlice::Ipv6(ip)) => {
                    let [from, to] = [ip.header().source(), ip.header().destination()];
                    (from.into(), to.into(), segment.calc_checksum_ipv6(from, to))
                }
                _ => panic!("IP"),
            };
            assert!(segment.rst() && segment.payload().is_empty(), "{ends:?}");
            assert_eq!(sum, Ok(segment.checksum()), "{ends:?}");
            (at(source, segment.source_port()), at(dest, segment.destination_port()))
        };
        let resets: Vec<_> = judged.sent.iter().map(|(link, frame)| (link.as_str(), reset(frame))).collect();
        let to_server = (at(ends.local, PORT), at(ends.server, 8080));
        let to_client = (at(ends.vip, 80), at(ends.client, 4000));
        assert_eq!(resets, [("lan", to_server), ("wan", to_client)]);
    }
}

#[test]
fn addresses_that_belong_to_no_host_on_a_network_are_not_translated() {
    let [six, four] = both();
    let sources: [(Ends, &[&str]); 2] = [
        (six, &["::", "::1", "ff02::1", "::ffff:192.0.2.9", "fe80::9"]),
        (four, &["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.0.9"]),
    ];
    for (ends, sources) in sources {
        let mut cluster = cluster(ends, 1500);
        for source in sources {
            let source = at(source.parse::<IpAddr>().expect("an address"), 4000);
            let judged = cluster.from_client(&Datagram { source, ..request(ends, Transport::Udp, 10) });
            assert_ne!(judged.verdict, "transmit", "{source}");
            assert!(judged.sent.is_empty(), "{source}: {judged:?}");
        }
        assert!(cluster.connections().is_empty());
    }
}

#[test]
fn packets_of_ipv4_that_may_be_fragmented_have_different_identifications() {
    let [ends, _] = both();
    let mut cluster = cluster(ends, 1500);
    let ids = [0; 3].map(|_| id(&cluster.from_client(&request(ends, Transport::Udp, 100)).sent[0].1));
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && !ids.contains(&0), "{ids:?}");
}

#[test]
fn a_datagram_without_checksum_gets_one_because_ipv6_demands_it() {
    let [_, ends] = both();
    let mut cluster = cluster(ends, 1500);
    let judged = cluster.from_client(&request(ends, Transport::UdpUnsummed, 33));
    let want = at_server(ends, &request(ends, Transport::Udp, 33), &judged);
    assert_judged(&judged, "transmit", &[to_server(1, &want)], BEGUN);
}

/// The path MTU in an ICMP error of the family.
fn told(judged: &Judged) -> (&str, u32) {
    let (link, frame) = &judged.sent[0];
    let word = |at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    match frame[14] >> 4 {
        4 => (link, word(14 + 20 + 6)),
        _ => (link, word(14 + 40 + 6)),
    }
}

#[test]
fn senders_learn_the_path_mtu_of_the_other_family_in_their_own() {
    // Bytes of data in UDP. The path to servers carries 1,400 bytes, that to clients 1,500.
    let [six, four] = both();
    let mut of = cluster(six, 1400);
    assert_eq!(of.from_client(&request(six, Transport::Udp, 1372)).verdict, "transmit");
    let judged = of.from_client(&request(six, Transport::Udp, 1373));
    assert_eq!((judged.verdict.as_str(), told(&judged)), ("drop too_big", ("wan", 1420)));
    let reply = |ends, bytes| Datagram { dont_fragment: true, ..reply(ends, Transport::Udp, bytes) };
    assert_eq!(of.from_server(&reply(six, 1452)).verdict, "transmit");
    let judged = of.from_server(&reply(six, 1453));
    assert_eq!((judged.verdict.as_str(), told(&judged)), ("drop too_big", ("lan", 1480)));

    let mut of = cluster(four, 1400);
    let request = |bytes| Datagram { dont_fragment: true, ..request(four, Transport::Udp, bytes) };
    assert_eq!(of.from_client(&request(1352)).verdict, "transmit");
    let judged = of.from_client(&request(1353));
    assert_eq!((judged.verdict.as_str(), told(&judged)), ("drop too_big", ("wan", 1380)));
    assert_eq!(of.from_server(&reply(four, 1472)).verdict, "transmit");
    let judged = of.from_server(&reply(four, 1473));
    assert_eq!((judged.verdict.as_str(), told(&judged)), ("drop too_big", ("lan", 1520)));
}

/// The value of the MSS option, the first of a segment.
fn mss(judged: &Judged) -> u16 {
    let frame = &judged.sent[0].1;
    let option = if frame[14] >> 4 == 4 { 14 + 40 } else { 14 + 60 };
    assert_eq!(frame[option..option + 2], [2, 4], "{frame:x?}");
    u16::from_be_bytes([frame[option + 2], frame[option + 3]])
}

#[test]
fn the_mss_is_lowered_to_what_both_paths_carry_with_their_own_headers() {
    for (ends, to_server, to_client) in
        both().into_iter().flat_map(|ends| [(ends, 1500_u16, 1500), (ends, 1400, 1500)])
    {
        let headers = |addr: IpAddr| if addr.is_ipv4() { 40 } else { 60 };
        let most = (to_server - headers(ends.server)).min(to_client - headers(ends.client));
        let mut cluster = cluster(ends, u32::from(to_server));
        let with_mss = |packet: Datagram, mss: u16| {
            let mut frame = framed(&packet);
            let segment = if frame[14] >> 4 == 4 { 34 } else { 54 };
            frame.extend([2, 4]);
            frame.extend(mss.to_be_bytes());
            frame[segment + 12] = 6 << 4;
            // Its checksum is not looked at.
            let length = (frame.len() - segment) as u16;
            if frame[14] >> 4 == 4 {
                frame[16..18].copy_from_slice(&(20 + length).to_be_bytes());
                resum(&mut frame);
            } else {
                frame[18..20].copy_from_slice(&length.to_be_bytes());
            }
            frame
        };
        let syn = with_mss(request(ends, Transport::Tcp(SYN), 0), 1460);
        assert_eq!(mss(&cluster.inject("wan", &syn)), most, "{ends:?}");
        let mut answer = with_mss(reply(ends, Transport::Tcp(SYN | ACK), 0), 1460);
        answer[..6].copy_from_slice(&xvs::lab_cluster::LAN_MAC);
        assert_eq!(mss(&cluster.inject("lan", &answer)), most, "{ends:?}");
        let syn = with_mss(request(ends, Transport::Tcp(SYN), 0), 536);
        assert_eq!(mss(&cluster.inject("wan", &syn)), 536, "never raised");
    }
}

#[test]
fn a_sender_of_ipv6_is_never_told_less_than_1280_and_a_narrower_path_gets_fragments() {
    let [ends, _] = both();
    let mut cluster = cluster(ends, 1000);
    let judged = cluster.from_client(&request(ends, Transport::Udp, 1233));
    assert_eq!((judged.verdict.as_str(), told(&judged)), ("drop too_big", ("wan", 1280)));
    let whole = request(ends, Transport::Udp, 1232);
    let judged = cluster.from_client(&whole);
    assert_eq!(judged.verdict, "transmit");
    let want = at_server(ends, &whole, &judged);
    assert_eq!(joined(&judged), want.packet()[20..]);
    assert!(judged.sent.iter().all(|(_, frame)| frame.len() - 14 <= 1000 && id(frame) == want.id));
}

/// The content of fragments of either family, joined.
fn joined(judged: &Judged) -> Vec<u8> {
    let mut all = Vec::new();
    for (_, frame) in &judged.sent {
        let (at, offset) = match frame[14] >> 4 {
            4 => (34, usize::from(u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff) * 8),
            _ => (62, usize::from(u16::from_be_bytes([frame[56], frame[57]]) & 0xfff8)),
        };
        assert_eq!(offset, all.len(), "{:x?}", judged.sent);
        all.extend(&frame[at..]);
    }
    all
}

#[test]
fn a_packet_of_ipv4_that_may_be_fragmented_leaves_in_fragments_that_every_path_of_ipv6_carries() {
    let [_, ends] = both();
    let mut cluster = cluster(ends, 1500);
    let whole = request(ends, Transport::Udp, 1300);
    let judged = cluster.from_client(&whole);
    assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("transmit", 2));
    assert!(judged.sent.iter().all(|(_, frame)| frame.len() - 14 <= 1280 && frame[20] == 44));
    assert_eq!(joined(&judged), at_server(ends, &whole, &judged).packet()[40..]);
    // What fits is not fragmented, and has no fragment header.
    let judged = cluster.from_client(&request(ends, Transport::Udp, 1232));
    assert_eq!((judged.sent.len(), judged.sent[0].1[20]), (1, 17));
}

#[test]
fn a_datagram_that_arrives_in_fragments_leaves_in_fragments() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        let whole = request(ends, Transport::Udp, 8000);
        let parts = fragments(&whole, 1208);
        let judged = parts.iter().map(|frame| cluster.inject("wan", frame)).last().expect("a fragment");
        assert_eq!(judged.verdict, "transmit");
        let want = at_server(ends, &Datagram { dont_fragment: false, ..whole }, &judged).packet();
        let header = if ends.server.is_ipv4() { 20 } else { 40 };
        assert_eq!(joined(&judged), want[header..]);
        for (link, frame) in &judged.sent {
            assert_eq!(link, "lan");
            // The don't-fragment bit is cleared (RFC 7915, section 5.1.1).
            assert!(ends.server.is_ipv6() || frame[20] & 0x40 == 0, "{frame:x?}");
        }
    }
}

#[test]
fn a_datagram_whose_length_has_no_form_in_ipv4_is_refused() {
    let [ends, _] = both();
    let mut cluster = cluster(ends, 1500);
    // The length of IPv4 has that of its header in it (RFC 791 §3.1), that of IPv6 has not (RFC 8200 §3).
    let longest = 65_535 - 20 - 8;
    for (bytes, verdict) in
        [(longest, "transmit"), (longest + 1, "drop no_headroom"), (65_527, "drop no_headroom")]
    {
        let whole = request(ends, Transport::Udp, bytes);
        let parts = fragments(&whole, 1208);
        let judged = parts.iter().map(|frame| cluster.inject("wan", frame)).last().expect("a fragment");
        assert_eq!(judged.verdict, verdict, "{bytes}");
        if verdict == "transmit" {
            assert_eq!(joined(&judged).len(), 8 + bytes);
        } else {
            assert!(judged.sent.is_empty(), "{bytes}");
        }
    }
}

#[test]
fn checksums_that_are_left_to_a_device_are_completed() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        cluster.leave_checksums();
        cluster.from_client(&request(ends, Transport::Udp, 10));
        let ways = [
            ("wan", request(ends, Transport::Udp, 33).frame(GATEWAY_MAC, WAN_MAC)),
            ("lan", reply(ends, Transport::Udp, 33).frame(server_mac(1), LAN_MAC)),
        ];
        for (link, whole) in ways {
            let expected = cluster.inject(link, &whole);
            let mut partial = whole;
            let header = if partial[14] >> 4 == 4 { 20 } else { 40 };
            make_partial(&mut partial, 14 + header);
            let judged = cluster.inject(link, &partial);
            assert_eq!(judged.moved.get("checksums_completed"), Some(&1), "{ends:?} {link}: {judged:?}");
            assert_eq!(judged.verdict, "transmit");
            assert_eq!(plain(&judged.sent[0].1[14..]), plain(&expected.sent[0].1[14..]), "{ends:?} {link}");
        }
    }
}

#[test]
fn packets_whose_hops_are_used_up_are_refused_with_an_error_of_the_senders_family() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        let first = request(ends, Transport::Udp, 10);
        cluster.from_client(&first);
        for (judged, link) in [
            (cluster.from_client(&Datagram { ttl: 1, ..first.clone() }), "wan"),
            (cluster.from_server(&Datagram { ttl: 1, ..reply(ends, Transport::Udp, 10) }), "lan"),
        ] {
            assert_eq!((judged.verdict.as_str(), judged.sent[0].0.as_str()), ("drop ttl_expired", link));
        }
    }
}

#[test]
fn routing_headers_and_source_routes_are_refused_and_other_options_are_left_out() {
    let [six, four] = both();
    let mut of = cluster(six, 1500);
    let plain = request(six, Transport::Udp, 10);
    let with_header = |kind: u8, header: [u8; 8]| {
        let mut frame = framed(&plain);
        frame[20] = kind;
        frame.splice(54..54, header);
        frame[18..20].copy_from_slice(&26u16.to_be_bytes());
        frame
    };
    // A routing header with a host to be visited; one at its end, options for hops and for the receiver.
    let judged = of.inject("wan", &with_header(43, [17, 0, 253, 1, 0, 0, 0, 0]));
    assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("drop untranslatable", 0));
    for (kind, header) in
        [(43, [17, 0, 253, 0, 0, 0, 0, 0]), (0, [17, 0, 1, 4, 0, 0, 0, 0]), (60, [17, 0, 1, 4, 0, 0, 0, 0])]
    {
        let judged = of.inject("wan", &with_header(kind, header));
        let want = at_server(six, &plain, &judged);
        assert_eq!(
            (judged.verdict.as_str(), &judged.sent[..]),
            ("transmit", &owned(to_server(1, &want))[..])
        );
    }

    let mut of = cluster(four, 1500);
    let with_options = |options: [u8; 8]| {
        let mut frame = framed(&request(four, Transport::Udp, 10));
        frame.splice(34..34, options);
        frame[14] = 0x47;
        frame[16..18].copy_from_slice(&46u16.to_be_bytes());
        frame[24..26].fill(0);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&frame[14..42]).ones_complement();
        frame[24..26].copy_from_slice(&sum.to_ne_bytes());
        frame
    };
    for kind in [131, 137] {
        let judged = of.inject("wan", &with_options([1, kind, 7, 4, 192, 0, 2, 1]));
        assert_eq!(judged.verdict, "drop source_route");
        // Destination unreachable, source route failed.
        assert_eq!(judged.sent[0].1[34..36], [3, 5], "{kind}");
    }
    // A timestamp; a source route that is at its end.
    for options in [[68, 8, 9, 0, 0, 0, 0, 0], [1, 131, 7, 8, 192, 0, 2, 1]] {
        let judged = of.inject("wan", &with_options(options));
        let want = at_server(four, &request(four, Transport::Udp, 10), &judged);
        assert_eq!(
            (judged.verdict.as_str(), &judged.sent[..]),
            ("transmit", &owned(to_server(1, &want))[..])
        );
    }
}

fn owned((link, frame): (&str, Vec<u8>)) -> Vec<(String, Vec<u8>)> {
    vec![(link.to_owned(), frame)]
}

/// The frame of a client's packet.
fn framed(packet: &Datagram) -> Vec<u8> {
    packet.frame(xvs::lab_cluster::GATEWAY_MAC, xvs::lab_cluster::WAN_MAC)
}

/// A packet without what the director chooses (identification, don't-fragment bit, header checksum), and without the
/// type of service, which is not that of the tests' errors of the family.
pub(super) fn plain(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 6 {
        packet[..2].copy_from_slice(&[0x60, 0]);
    } else {
        (packet[1], packet[6]) = (0, 0);
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

#[test]
fn packets_of_a_connection_with_other_addresses_belong_to_no_connection() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        cluster.from_client(&request(ends, Transport::Tcp(SYN), 0));
        let other = Datagram { dest: at(ends.local, PORT + 1), ..reply(ends, Transport::Tcp(SYN | ACK), 0) };
        super::assert_passed(&cluster.from_server(&other));
        let mut frame = framed(&request(ends, Transport::Tcp(SYN), 0));
        frame[14] = 0x55;
        if ends.client.is_ipv4() {
            resum(&mut frame);
        }
        assert!(cluster.inject("wan", &frame).verdict.starts_with("drop "), "another version");
    }
}

#[test]
fn the_client_s_address_has_room_as_far_as_the_packet_that_leaves_has() {
    // What fits 1,500 bytes after the translation, though not before, or the reverse.
    for (form, option) in [("proxy", 0), ("toa", 1)] {
        for ends in both() {
            let mut cluster = cluster(ends, 1500);
            cluster.adm(&format!("-E -t {} -s rr --client-address {form}", at(ends.vip, 80)));
            let syn = Datagram { dont_fragment: true, ..request(ends, Transport::Tcp(SYN), 0) };
            assert_eq!(cluster.from_client(&syn).verdict, "transmit");
            let header = if ends.client.is_ipv4() { 20 } else { 40 };
            let more: usize = if ends.client.is_ipv4() { [28, 8][option] } else { [52, 20][option] };
            let inside = if ends.server.is_ipv4() { 20 } else { 40 };
            // The longest first segment with room for the address, and one byte more.
            let fits = 1500 - inside - 20 - more;
            for (bytes, has_it) in [(fits, true), (fits + 1, false)] {
                let mut frame =
                    framed(&Datagram { dont_fragment: true, ..request(ends, Transport::Tcp(ACK), bytes) });
                // The number after that of the SYN.
                let sequence = 14 + header + 4;
                let number = u32::from_be_bytes(frame[sequence..sequence + 4].try_into().unwrap()) + 1;
                frame[sequence..sequence + 4].copy_from_slice(&number.to_be_bytes());
                let judged = cluster.inject("wan", &frame);
                assert_eq!(judged.verdict, "transmit", "{form} {ends:?} {bytes}");
                let len = judged.sent[0].1.len() - 14;
                match (has_it, form) {
                    (true, "toa") => {
                        // Kind 254, length, port, address, as DPVS writes it.
                        let address = match ends.client {
                            IpAddr::V4(addr) => addr.octets().to_vec(),
                            IpAddr::V6(addr) => addr.octets().to_vec(),
                        };
                        let option = [&[254, more as u8], &4000u16.to_be_bytes()[..], &address].concat();
                        assert_eq!(judged.sent[0].1[14 + inside + 20..][..more], option, "{ends:?}");
                        assert_eq!(len, 1500, "{ends:?}");
                    }
                    (true, _) => assert_eq!(len, 1500, "{form} {ends:?}"),
                    // The header goes alone; without the option the segment goes as it is.
                    (false, "proxy") => assert_eq!(len, inside + 20 + more, "{ends:?}"),
                    (false, _) => assert_eq!(len, inside + 20 + bytes, "{ends:?}"),
                }
            }
        }
    }
}

#[test]
fn plain_packets_of_a_steady_connection_take_the_fast_path_in_both_directions_unless_their_size_matters() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        let most = 1500 - 48;
        cluster.from_client(&request(ends, Transport::Udp, 10));
        cluster.from_server(&reply(ends, Transport::Udp, 10));
        for (bytes, dont_fragment) in
            [(0, false), (1, true), (1212, false), (1213, true), (1232, false), (1233, true), (most, true)]
        {
            // Of IPv4 what is longer than 1,280 bytes in IPv6 is fragmented.
            let request = Datagram { dont_fragment, ..request(ends, Transport::Udp, bytes) };
            let judged = cluster.from_client(&request);
            let want = to_server(1, &at_server(ends, &request, &judged));
            assert_judged(&judged, "transmit", &[want], FORWARDED);
            assert_eq!(cluster.general_path(), 0, "{ends:?} {bytes}");
            let reply = Datagram { dont_fragment, ..reply(ends, Transport::Udp, bytes) };
            let judged = cluster.from_server(&reply);
            let want = to_client(&at_client(ends, &reply, &judged));
            assert_judged(&judged, "transmit", &[want], FORWARDED);
            assert_eq!(cluster.general_path(), 0, "{ends:?} {bytes}");
        }
        cluster.from_client(&Datagram { dont_fragment: true, ..request(ends, Transport::Udp, most + 1) });
        assert_eq!(cluster.general_path(), 1);
    }
}
