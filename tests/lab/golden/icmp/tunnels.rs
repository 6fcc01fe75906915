//! Errors about a tunnel's own packets: the client gets an error about its own packet, and the path MTU is learned.

use std::net::IpAddr;

use xvs::frames::{Complaint, Complaint6, id};
use xvs::lab_cluster::at;
use xvs::{Datagram, Judged, LabCluster, Transport};

use super::super::{assert_judged, assert_passed};
use super::*;

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
