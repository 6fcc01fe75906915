//! Fragmented datagrams: the fragments that leave, and the ICMP errors to their sender.

use std::net::{IpAddr, Ipv6Addr};

use xvs::frames::{Complaint6, ethernet, id, resum};
use xvs::lab_cluster::{CLIENT, CLIENT6, GATEWAY_MAC, SILENT, VIP, VIP6, WAN_MAC, at, server, server6};
use xvs::{Datagram, Judged, LabCluster, Transport};

use etherparse::EtherType;
use serde_json::json;

/// The next header that begins a fragment header.
const FRAGMENT: u8 = 44;

/// A cluster with a UDP service at port 80. Its only server has the method of this option.
fn cluster(mtu: u32, vip: IpAddr, dest: IpAddr, method: &str) -> LabCluster {
    let mut cluster = LabCluster::with_mtu(mtu);
    let (service, dest) = (at(vip, 80), at(dest, 80));
    cluster.configure(&[&format!("-A -u {service}"), &format!("-a -u {service} -r {dest} {method}")]);
    cluster
}

fn request(bytes: usize) -> Datagram {
    Datagram::new(Transport::Udp, at(CLIENT, 4000), at(VIP, 80)).carrying(bytes)
}

fn request6(bytes: usize) -> Datagram {
    Datagram::new(Transport::Udp, at(CLIENT6, 4000), at(VIP6, 80)).carrying(bytes)
}

/// The frames of a UDP datagram's fragments, each with the given number of bytes; the last has the rest.
pub(super) fn fragments(packet: &Datagram, each: usize) -> Vec<Vec<u8>> {
    let whole = packet.frame(GATEWAY_MAC, WAN_MAC);
    let headers = if packet.dest.is_ipv4() { 34 } else { 54 };
    let parts = whole[headers..].chunks(each);
    let last = parts.len() - 1;
    let fragment = |(number, part): (usize, &[u8])| {
        let (offset, more) = ((number * each) as u16, u16::from(number < last));
        let mut frame = whole[..headers].to_vec();
        if packet.dest.is_ipv4() {
            let flags = u16::from(packet.dont_fragment) << 14 | more << 13;
            frame[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            frame[20..22].copy_from_slice(&(flags | (offset / 8)).to_be_bytes());
            resum(&mut frame);
        } else {
            frame[18..20].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
            frame[20] = FRAGMENT;
            frame.extend([17, 0]);
            frame.extend((offset | more).to_be_bytes());
            frame.extend([0, 0, 0, 7]);
        }
        frame.extend(part);
        frame
    };
    parts.enumerate().map(fragment).collect()
}

/// The result of the last fragment, and so of the datagram.
fn sent(cluster: &mut LabCluster, packet: &Datagram, each: usize) -> Judged {
    let judged = fragments(packet, each).iter().map(|frame| cluster.inject("wan", frame)).last();
    judged.expect("a fragment")
}

fn lengths(judged: &Judged) -> Vec<usize> {
    judged.sent.iter().map(|(_, frame)| frame.len() - 14).collect()
}

#[test]
fn an_ipv6_datagram_whose_fragments_exceed_the_path_mtu_is_dropped_with_an_error_that_reports_it() {
    for (method, mtu, room) in [("-g", 1280, 1280), ("-m", 1280, 1280), ("-i", 1400, 1360)] {
        let mut cluster = cluster(mtu, VIP6.into(), server6(1).into(), method);
        let packet = request6(3000);
        assert_eq!(sent(&mut cluster, &packet, room - 48).verdict, "transmit", "{method}");
        let judged = sent(&mut cluster, &packet, room - 40);
        assert_eq!(judged.verdict, "drop too_big", "{method}");
        let quoted = Datagram { ttl: 63, ..packet };
        let message = Complaint6::packet_too_big(room as u32).about(&quoted.packet(), VIP6);
        let want = ethernet(WAN_MAC, GATEWAY_MAC, EtherType::IPV6, &message);
        assert_eq!(judged.sent, [("wan".to_owned(), want)], "{method}");
    }
}

#[test]
fn an_ipv6_datagram_that_is_no_longer_than_its_largest_fragment_leaves_whole() {
    let mut cluster = cluster(1500, VIP6.into(), server6(1).into(), "-g");
    let judged = sent(&mut cluster, &request6(1232), 1232);
    assert_eq!((lengths(&judged), judged.sent[0].1[20]), (vec![1280], 17));
    let judged = sent(&mut cluster, &request6(1240), 1232);
    assert_eq!((lengths(&judged), judged.sent[0].1[20]), (vec![1280, 64], FRAGMENT));
}

#[test]
fn fragments_of_tunnelled_datagrams_over_ipv6_have_at_least_1280_bytes() {
    for (vip, network) in [(IpAddr::from(VIP), 20), (VIP6.into(), 40)] {
        let request = |bytes| if vip.is_ipv4() { request(bytes) } else { request6(bytes) };
        let mut cluster = cluster(1500, vip, server6(1).into(), "-i");
        for each in [8, 48] {
            let judged = sent(&mut cluster, &request(300), each);
            assert_eq!(lengths(&judged), [40 + network + 308], "{vip}, {each} bytes a fragment");
            assert_ne!(judged.sent[0].1[20], FRAGMENT);
        }
        let judged = sent(&mut cluster, &request(2992), 200);
        assert_eq!(lengths(&judged), [1280, 1280, 48 + network + 3000 - 2 * 1232], "{vip}");
        // A datagram with larger fragments leaves in fragments as large.
        let judged = sent(&mut cluster, &request(2992), 1400);
        assert!(lengths(&judged).into_iter().max().is_some_and(|most| (1401..=1448).contains(&most)));
    }
}

#[test]
fn an_identification_of_zero_is_kept_unless_it_means_none() {
    for method in ["-g", "-m"] {
        let mut cluster = cluster(1400, VIP.into(), server(1).into(), method);
        let without = Datagram { id: 0, ..request(1450) };
        for judged in [cluster.from_client(&without), sent(&mut cluster, &without, 1000)] {
            let ids: Vec<_> = judged.sent.iter().map(|(_, frame)| id(frame)).collect();
            assert_eq!(ids, [0, 0], "{method}");
        }
        // A packet that must not be fragmented needs none (RFC 6864), but it was received in fragments.
        let unfragmentable = Datagram { id: 0, dont_fragment: true, ..request(1300) };
        let judged = sent(&mut cluster, &unfragmentable, 1000);
        let ids: Vec<_> = judged.sent.iter().map(|(_, frame)| id(frame)).collect();
        assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0] != 0, "{ids:?}");
    }
}

/// The identifications of sent IPv6 fragments.
fn ids6(judged: &Judged) -> Vec<u32> {
    let at = |frame: &[u8]| u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]]);
    judged.sent.iter().map(|(_, frame)| at(frame)).collect()
}

#[test]
fn identifications_of_ipv6_fragments_have_32_bits_and_are_unpredictable_for_other_receivers() {
    let mut cluster = cluster(1500, VIP6.into(), server6(1).into(), "-g");
    let mut of = |client: Ipv6Addr| {
        let packet = Datagram { source: at(client, 4000), ..request6(2000) };
        let ids = ids6(&sent(&mut cluster, &packet, 1000));
        assert!(ids.len() > 1 && ids.iter().all(|id| *id == ids[0]), "{ids:x?}");
        ids[0]
    };
    let other = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0xc9);
    let (first, others, second) = (of(CLIENT6), of(other), of(CLIENT6));
    assert_eq!(second, first.wrapping_add(2), "one sequence, so that identifications are reused late");
    assert!(others.wrapping_sub(first) > 0xffff, "{first:x} {others:x}");
}

#[test]
fn a_reassembled_datagram_is_dropped_while_its_next_hop_is_not_resolved() {
    let mut cluster = cluster(1500, VIP.into(), SILENT.into(), "-m");
    let judged = sent(&mut cluster, &request(3000), 1480);
    assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("drop no_neighbour", 0));
    cluster.ok(json!({ "neighbor": SILENT, "mac": "02:00:00:00:02:99", "link": "lan" }));
    assert_eq!(sent(&mut cluster, &request(3000), 1480).sent.len(), 3);
}
