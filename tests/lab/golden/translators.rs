//! FULLNAT between the families beside tayga and jool, two other implementations of RFC 7915: the same packets, to the
//! byte, but for identification and header checksum of IPv4, and what is named below. Client and local endpoint have
//! equal ports, which neither changes.
//!
//! `translators/record` makes the recordings: tayga 0.9.2, and jool 4.1.9 in Linux 6.1.

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
fn plain(packet: &[u8], differs: fn(&mut [u8])) -> String {
    let mut packet = packet.to_vec();
    let blank = |header: &mut [u8]| {
        header[4..6].fill(0);
        header[10..12].fill(0);
        differs(header);
    };
    if packet[0] >> 4 == 4 {
        blank(&mut packet);
        if packet[9] == 1 && packet.len() > 48 {
            blank(&mut packet[28..]);
        }
    }
    hex(&packet)
}

/// Gives the lab the packets of a recording, of which the other translator does not translate `left_out`, and blanks
/// what `differs` in a header of IPv4.
fn each_is_equal(recording: &str, left_out: usize, differs: fn(&mut [u8])) {
    let cases: Vec<Value> = serde_json::from_str(recording).expect("a recording");
    assert!(cases.len() > 80);
    let mut cluster = cluster();
    let (mut different, mut not_translated) = (Vec::new(), 0);
    for (number, case) in cases.iter().enumerate() {
        let (link, packet) = (text(&case["link"]), unhex(text(&case["in"])));
        let kind = if packet[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
        let to = if link == "wan" { WAN_MAC } else { LAN_MAC };
        let judged = cluster.inject(link, &ethernet(GATEWAY_MAC, to, kind, &packet));
        let sent: Vec<_> = judged.sent.iter().map(|(_, frame)| plain(&frame[14..], differs)).collect();
        let wanted: Vec<_> =
            case["out"].as_array().expect("packets").iter().map(|packet| unhex(text(packet))).collect();
        if wanted.iter().all(|wanted| wanted[0] >> 4 == packet[0] >> 4) {
            // Nothing, or an error for the sender.
            not_translated += 1;
        } else if sent != wanted.iter().map(|packet| plain(packet, differs)).collect::<Vec<_>>() {
            different
                .push(format!("{number} {}: {}\n  {sent:?}\n  {wanted:02x?}", judged.verdict, case["in"]));
        }
    }
    assert_eq!(not_translated, left_out);
    assert!(different.is_empty(), "{} of {}:\n{}", different.len(), cases.len(), different.join("\n"));
}

/// tayga sets «don't fragment» in all packets. It drops UDP without a checksum, and errors with the code «address
/// unreachable», which RFC 7915 translates.
#[test]
fn each_packet_and_each_error_becomes_what_tayga_makes_of_it() {
    each_is_equal(include_str!("translators/tayga.json"), 4, |header| header[6] = 0);
}

/// jool loses the precedence, the upper three bits of the traffic class. It refuses UDP without a checksum.
#[test]
fn each_packet_and_each_error_becomes_what_jool_makes_of_it() {
    each_is_equal(include_str!("translators/jool.json"), 2, |header| header[1] &= 0x1f);
}
