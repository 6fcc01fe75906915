//! The PROXY header before each datagram behind FULLNAT, to the byte. Source of its form: «The PROXY protocol»,
//! section 2.2.

use std::net::IpAddr;

use xvs::frames::{Complaint, ethernet, id, resum};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::{Datagram, Judged, LabCluster, Transport};

use super::between_families::Ends;
use super::fragments::fragments;
use super::{to_client, to_server};
use crate::client_address::proxy_header;

const PORT: u16 = 5000;

/// Clients and servers of each family.
fn all() -> [Ends; 4] {
    let outside: [(IpAddr, IpAddr); 2] = [(CLIENT.into(), VIP.into()), (CLIENT6.into(), VIP6.into())];
    let inside: [(IpAddr, IpAddr); 2] =
        [(INSIDE.into(), server(1).into()), (INSIDE6.into(), server6(1).into())];
    let ends = |((client, vip), (local, server))| Ends { client, vip, local, server };
    [(0, 0), (1, 1), (1, 0), (0, 1)].map(|(out, into): (usize, usize)| ends((outside[out], inside[into])))
}

/// A cluster with a service of datagrams, whose path to servers has this MTU.
fn cluster(ends: Ends, mtu: u32) -> LabCluster {
    let mut cluster = LabCluster::with_mtu(mtu);
    cluster.xvs(&format!("laddr add {} --ports {PORT}-{PORT}", ends.local));
    cluster.adm(&format!("-A -u {} -s rr --client-address proxy", at(ends.vip, 53)));
    cluster.adm(&format!("-a -u {} -r {} --fullnat", at(ends.vip, 53), at(ends.server, 5353)));
    cluster
}

fn request(ends: Ends, bytes: usize) -> Datagram {
    Datagram::new(Transport::Udp, at(ends.client, 4000), at(ends.vip, 53)).carrying(bytes)
}

fn header(ends: Ends) -> Vec<u8> {
    proxy_header(at(ends.client, 4000), at(ends.vip, 53), 2)
}

/// The datagram as the server gets it. Between the families it has an identification if it may be fragmented.
fn at_server(ends: Ends, request: &Datagram, judged: &Judged) -> Datagram {
    let (source, dest) = (at(ends.local, PORT), at(ends.server, 5353));
    let data = [&header(ends)[..], &request.data].concat();
    let sent =
        Datagram { source, dest, data, transport: Transport::Udp, ttl: request.ttl - 1, ..request.clone() };
    let crosses = ends.client.is_ipv4() != ends.server.is_ipv4();
    let dont_fragment = if crosses { sent.packet().len() > 1260 } else { request.dont_fragment };
    let given = judged.sent.first().map_or(0, |(_, frame)| id(frame));
    let id = match dont_fragment {
        true if crosses => 0,
        true => request.id,
        false => given,
    };
    Datagram { dont_fragment, id, ..sent }
}

#[test]
fn each_datagram_carries_the_header_and_replies_carry_none() {
    for ends in all() {
        let mut cluster = cluster(ends, 1500);
        for bytes in [0, 1, 33, 34, 1100, 1280, 1300] {
            for transport in [Transport::Udp, Transport::UdpUnsummed] {
                if ends.client.is_ipv6() && transport == Transport::UdpUnsummed {
                    continue;
                }
                for dont_fragment in [false, true] {
                    let request = Datagram { transport, dont_fragment, tos: 0x28, ..request(ends, bytes) };
                    let judged = cluster.from_client(&request);
                    let (link, want) = to_server(1, &at_server(ends, &request, &judged));
                    if want.len() > 14 + 1280
                        && ends.server.is_ipv6()
                        && ends.client.is_ipv4()
                        && !dont_fragment
                    {
                        // It leaves in fragments, of at most 1,280 bytes.
                        assert!(judged.sent.len() > 1, "{ends:?} {bytes}");
                        continue;
                    }
                    assert_eq!(judged.verdict, "transmit", "{ends:?} {bytes}");
                    assert_eq!(judged.sent, [(link.to_owned(), want)], "{ends:?} {bytes} {transport:?}");
                }
            }
        }
        let reply = Datagram::new(Transport::Udp, at(ends.server, 5353), at(ends.local, PORT)).carrying(100);
        let judged = cluster.from_server(&reply);
        let (source, dest) = (at(ends.vip, 53), at(ends.client, 4000));
        let id = judged.sent.first().map_or(0, |(_, frame)| id(frame));
        let want = to_client(&Datagram { source, dest, id, ttl: 63, ..reply }).1;
        assert_eq!(judged.sent, [("wan".to_owned(), want)], "{ends:?}");
    }
}

/// The path MTU in an ICMP error.
fn told(judged: &Judged) -> u16 {
    let frame = &judged.sent[0].1;
    let at = if frame[14] >> 4 == 4 { 14 + 20 + 6 } else { 14 + 40 + 6 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn a_client_learns_a_path_mtu_that_leaves_room_for_the_header_in_its_own_family() {
    for ends in all() {
        let mut cluster = cluster(ends, 1400);
        let with = |bytes| Datagram { dont_fragment: true, ..request(ends, bytes) };
        let headers = |addr: IpAddr| if addr.is_ipv4() { 28 } else { 48 };
        let room = 1400 - headers(ends.server) - header(ends).len();
        assert_eq!(cluster.from_client(&with(room)).verdict, "transmit", "{ends:?}");
        let judged = cluster.from_client(&with(room + 1));
        assert_eq!(judged.verdict, "drop too_big", "{ends:?}");
        assert_eq!(usize::from(told(&judged)), room + headers(ends.client), "{ends:?}");
        // What may be fragmented is.
        if ends.client.is_ipv4() {
            let judged = cluster.from_client(&request(ends, room + 1));
            assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("transmit", 2), "{ends:?}");
        }
    }
}

#[test]
fn a_datagram_of_ipv6_that_every_path_carries_leaves_in_fragments_if_the_header_makes_it_too_long() {
    for (ends, mtu) in [(all()[1], 1280), (all()[2], 576)] {
        let mut cluster = cluster(ends, mtu);
        let longest = request(ends, 1280 - 48);
        let judged = cluster.from_client(&longest);
        assert_eq!((judged.verdict.as_str(), judged.sent.len() > 1), ("transmit", true), "{ends:?}");
        let headers = if ends.server.is_ipv4() { 14 + 20 } else { 14 + 40 + 8 };
        let payload: Vec<u8> = judged.sent.iter().flat_map(|(_, frame)| &frame[headers..]).copied().collect();
        assert_eq!(payload[8..], [&header(ends)[..], &longest.data].concat(), "{ends:?}");
        assert!(judged.sent.iter().all(|(_, frame)| frame.len() <= 14 + mtu as usize), "{ends:?}");
        let judged = cluster.from_client(&request(ends, 1280 - 48 + 1));
        assert_eq!((judged.verdict.as_str(), told(&judged)), ("drop too_big", 1280), "{ends:?}");
    }
}

#[test]
fn a_datagram_whose_length_field_is_wrong_leaves_as_it_is() {
    let ends = all()[0];
    let mut cluster = cluster(ends, 1500);
    cluster.from_client(&request(ends, 4));
    for length in [0_u16, 7, 8 + 33 + 1, u16::MAX] {
        let mut frame = request(ends, 33).frame(GATEWAY_MAC, WAN_MAC);
        frame[38..40].copy_from_slice(&length.to_be_bytes());
        let judged = cluster.inject("wan", &frame);
        for (_, sent) in &judged.sent {
            assert_eq!((sent.len(), &sent[38..40]), (frame.len(), &frame[38..40]), "{length}");
        }
    }
}

#[test]
fn a_datagram_in_fragments_carries_one_header() {
    let ends = all()[0];
    let mut cluster = cluster(ends, 1500);
    let request = request(ends, 3000);
    let (mut last, mut payload) = (None, Vec::<u8>::new());
    for frame in fragments(&request, 1000) {
        last = Some(cluster.inject("wan", &frame));
    }
    let judged = last.expect("there are fragments");
    for (_, frame) in &judged.sent {
        payload.extend(&frame[34..]);
    }
    let whole = at_server(ends, &request, &judged).packet();
    assert_eq!(payload, whole[20..]);
    assert!(judged.sent.len() > 1);
}

#[test]
fn an_error_about_a_datagram_passes_and_the_next_one_keeps_to_the_narrower_path() {
    let ends = all()[0];
    let mut cluster = cluster(ends, 1500);
    let large = Datagram { dont_fragment: true, ..request(ends, 1400) };
    let judged = cluster.from_client(&large);
    let message = Complaint::fragmentation_needed(1300).about(&judged.sent[0].1[14..], server(9), 1);
    let mut error = ethernet(server_mac(9), LAN_MAC, etherparse::EtherType::IPV4, &message);
    resum(&mut error);
    let relayed = cluster.inject("lan", &error);
    let frame = &relayed.sent[0].1;
    // The quoted datagram is between the client's endpoints; its length is as it was sent.
    assert_eq!(frame[54..58], CLIENT.octets());
    assert_eq!(frame[66..68], (8 + 28 + 1400_u16).to_be_bytes());
    let judged = cluster.from_client(&large);
    assert_eq!((judged.verdict.as_str(), told(&judged)), ("drop too_big", 1300 - 28));
    assert_eq!(
        cluster.from_client(&Datagram { dont_fragment: true, ..request(ends, 1244) }).verdict,
        "transmit"
    );
}

#[test]
fn a_datagram_whose_hops_are_used_up_and_one_that_would_be_too_long_do_not_leave() {
    for ends in all() {
        let mut cluster = cluster(ends, 1500);
        let last = Datagram { ttl: 1, ..request(ends, 10) };
        assert_eq!(cluster.from_client(&last).verdict, "drop ttl_expired", "{ends:?}");
    }
    let ends = all()[0];
    let mut cluster = cluster(ends, 1500);
    let longest = 65_535 - 28 - header(ends).len();
    for (bytes, verdict) in [(longest, "transmit"), (longest + 1, "drop no_headroom")] {
        let sent =
            fragments(&request(ends, bytes), 1400).iter().map(|frame| cluster.inject("wan", frame)).last();
        assert_eq!(sent.expect("there are fragments").verdict, verdict, "{bytes}");
    }
}
