//! FULLNAT between the families beside tayga, another implementation of RFC 7915: the same packets, to the byte, but
//! for identification, don't-fragment bit (tayga sets it in all) and header checksum of IPv4. Client and local endpoint
//! have equal ports, which tayga does not change.
//!
//! `tayga/record` makes the recording.

use etherparse::EtherType;
use serde_json::Value;
use xvs::LabCluster;
use xvs::frames::{ethernet, hex, unhex};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server6,
};

fn cluster() -> LabCluster {
    let mut cluster = LabCluster::new();
    for local in [INSIDE.to_string(), INSIDE6.to_string()] {
        cluster.xvs(&format!("laddr add {local} --ports 5000-5000"));
    }
    for protocol in ["-t", "-u"] {
        for (vip, server) in [(at(VIP6, 80), at(server(1), 80)), (at(VIP, 80), at(server6(1), 80))] {
            cluster.adm(&format!("-A {protocol} {vip} -s rr"));
            cluster.adm(&format!("-a {protocol} {vip} -r {server} --fullnat"));
        }
    }
    // The connections to which errors and replies belong.
    for (client, vip) in [(at(CLIENT6, 5000), at(VIP6, 80)), (at(CLIENT, 5000), at(VIP, 80))] {
        for transport in [xvs::Transport::Tcp(xvs::frames::SYN), xvs::Transport::Udp] {
            let first = xvs::Datagram::new(transport, client, vip);
            assert_eq!(cluster.from_client(&first).verdict, "transmit");
        }
    }
    cluster
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// A packet without what translators choose.
fn plain(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let quotes = |packet: &[u8], header: usize| packet.len() > header + 28;
    let blank = |header: &mut [u8]| {
        header[4..7].fill(0);
        header[10..12].fill(0);
    };
    if packet[0] >> 4 == 4 {
        blank(&mut packet);
        if packet[9] == 1 && quotes(&packet, 20) {
            blank(&mut packet[28..]);
        }
    }
    packet
}

#[test]
fn each_packet_and_each_error_becomes_what_tayga_makes_of_it() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("tayga/recorded.json")).expect("a recording");
    assert!(cases.len() > 80);
    let mut cluster = cluster();
    let (mut different, mut left_out) = (Vec::new(), 0);
    for (number, case) in cases.iter().enumerate() {
        let (link, packet) = (text(&case["link"]), unhex(text(&case["in"])));
        let kind = if packet[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
        let to = if link == "wan" { WAN_MAC } else { LAN_MAC };
        let judged = cluster.inject(link, &ethernet(GATEWAY_MAC, to, kind, &packet));
        let sent: Vec<_> = judged.sent.iter().map(|(_, frame)| hex(&plain(&frame[14..]))).collect();
        let wanted = case["out"].as_array().expect("packets");
        let wanted: Vec<_> = wanted.iter().map(|packet| hex(&plain(&unhex(text(packet))))).collect();
        if wanted.is_empty() {
            // What tayga drops, and the RFC translates: no checksum of UDP, errors with address unreachable.
            left_out += 1;
        } else if sent != wanted {
            different.push(format!("{number} {}: {}\n  {sent:?}\n  {wanted:?}", judged.verdict, case["in"]));
        }
    }
    assert_eq!(left_out, 4);
    assert!(different.is_empty(), "{} of {}:\n{}", different.len(), cases.len(), different.join("\n"));
}
