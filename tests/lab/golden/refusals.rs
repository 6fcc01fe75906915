//! Packets that cannot be forwarded: dropped with a reason, with an ICMP error where the kernel sends one.

use std::net::Ipv4Addr;

use etherparse::EtherType;
use serde_json::json;
use xvs::frames::{ACK, Complaint, FIN, SYN, ethernet, hex, id};
use xvs::lab_cluster::{
    CLIENT, GATEWAY_MAC, INSIDE, LAN_MAC, NOWHERE, SILENT, VIP, WAN_MAC, at, server, server_mac,
};
use xvs::{Datagram, Judged, LabCluster, Transport};

use super::{BEGUN, FORWARDED, assert_judged, assert_passed, to_client, to_server};

const BOTH: [Transport; 2] = [Transport::Tcp(SYN), Transport::Udp];

/// A cluster with a TCP and a UDP service at port 80. Their only server has the method of this option.
fn cluster(method: &str, mtu: u32) -> LabCluster {
    let mut cluster = LabCluster::with_mtu(mtu);
    serve(&mut cluster, server(1), method);
    cluster
}

fn serve(cluster: &mut LabCluster, dest: Ipv4Addr, options: &str) {
    for protocol in ["-t", "-u"] {
        cluster.adm(&format!("-A {protocol} {VIP}:80 -s wlc"));
        cluster.adm(&format!("-a {protocol} {VIP}:80 -r {dest}:80 {options}"));
    }
}

fn request(transport: Transport) -> Datagram {
    Datagram { tos: 0x29, ..Datagram::new(transport, at(CLIENT, 4000), at(VIP, 80)) }
}

/// The ICMP error to the client, from the virtual address.
fn error_to_client(judged: &Judged, complaint: Complaint, about: &Datagram) -> (&'static str, Vec<u8>) {
    let id = judged.sent.first().map_or(0, |(_, frame)| id(frame));
    let message = complaint.about(&about.packet(), VIP, id);
    ("wan", ethernet(WAN_MAC, GATEWAY_MAC, EtherType::IPV4, &message))
}

/// The ICMP error to the server, from the director's address on its link.
fn error_to_server(judged: &Judged, complaint: Complaint, about: &Datagram) -> (&'static str, Vec<u8>) {
    let id = judged.sent.first().map_or(0, |(_, frame)| id(frame));
    let message = complaint.about(&about.packet(), INSIDE, id);
    ("lan", ethernet(LAN_MAC, server_mac(1), EtherType::IPV4, &message))
}

#[test]
fn a_packet_whose_time_to_live_has_run_out_is_dropped_and_its_client_gets_an_error() {
    for method in ["-g", "-m", "-i"] {
        for transport in BOTH {
            for ttl in [1, 0] {
                let mut cluster = cluster(method, 1500);
                let first = Datagram { ttl, ..request(transport).carrying(7) };
                let judged = cluster.from_client(&first);
                let want = error_to_client(&judged, Complaint::TIME_EXCEEDED, &first);
                let moved = [
                    ("connections", 1),
                    ("drop_ttl_expired", 1),
                    ("originated", 1),
                    ("rx_packets", 1),
                    ("tx_packets", 1),
                ];
                assert_judged(&judged, "drop ttl_expired", &[want], &moved);
                // The connection exists and its packet is counted nevertheless. The error is counted as a reply for
                // methods whose replies bypass the director.
                assert_eq!(cluster.connections().len(), 1);
                let out = if method == "-m" { (0, 0) } else { (1, judged.sent[0].1.len() - 14) };
                let (length, name) = (first.packet().len(), at(server(1), 80));
                let row = format!("-> {name} 1 1 {} {length} {}", out.0, out.1);
                assert!(cluster.stats().contains(&row), "{row}");
            }
        }
    }
}

#[test]
fn a_reply_whose_time_to_live_has_run_out_is_dropped_and_not_counted_and_its_server_gets_an_error() {
    let mut cluster = cluster("-m", 1500);
    cluster.from_client(&request(Transport::Tcp(SYN)));
    let answer =
        Datagram { ttl: 1, ..Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(CLIENT, 4000)) };
    let judged = cluster.from_server(&answer);
    let want = error_to_server(&judged, Complaint::TIME_EXCEEDED, &answer);
    let moved = [("drop_ttl_expired", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
    assert_judged(&judged, "drop ttl_expired", &[want], &moved);
    assert_eq!(cluster.stats()[0], format!("TCP {VIP}:80 1 1 0 40 0"));
}

#[test]
fn a_packet_above_the_path_mtu_is_dropped_with_an_error_that_reports_it() {
    for (method, room) in [("-g", 1400), ("-m", 1400), ("-i", 1380)] {
        for transport in BOTH {
            let mut cluster = cluster(method, 1400);
            let headers = if transport == Transport::Udp { 28 } else { 40 };
            let first = Datagram { dont_fragment: true, ..request(transport).carrying(room + 1 - headers) };
            let judged = cluster.from_client(&first);
            // The quote has the time to live that the packet would have left with.
            let quoted = Datagram { ttl: 63, ..first.clone() };
            let want = error_to_client(&judged, Complaint::fragmentation_needed(room as u16), &quoted);
            let moved = [
                ("connections", 1),
                ("drop_too_big", 1),
                ("originated", 1),
                ("rx_packets", 1),
                ("tx_packets", 1),
            ];
            assert_judged(&judged, "drop too_big", &[want], &moved);
        }
    }
}

#[test]
fn a_reply_above_the_path_mtu_is_dropped_and_not_counted_with_an_error_that_reports_it() {
    let mut cluster = cluster("-m", 1500);
    cluster.from_client(&request(Transport::Tcp(SYN)));
    let answer = Datagram::new(Transport::Tcp(ACK), at(server(1), 80), at(CLIENT, 4000));
    let answer = Datagram { dont_fragment: true, ..answer.carrying(1461) };
    let judged = cluster.from_server(&answer);
    // Linux checks the size before it decrements the time to live.
    let want = error_to_server(&judged, Complaint::fragmentation_needed(1500), &answer);
    let moved = [("drop_too_big", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
    assert_judged(&judged, "drop too_big", &[want], &moved);
    assert_eq!(cluster.stats()[0], format!("TCP {VIP}:80 1 1 0 40 0"));
}

#[test]
fn a_packet_above_the_path_mtu_that_may_be_fragmented_leaves_in_fragments() {
    for (method, room) in [("-g", 1400), ("-m", 1400), ("-i", 1380)] {
        for transport in BOTH {
            let mut cluster = cluster(method, 1400);
            let headers = if transport == Transport::Udp { 28 } else { 40 };
            let first = request(transport).carrying(room + 1 - headers);
            let moved = [("connections", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 2)];
            let judged = cluster.from_client(&first);
            let sent: Vec<_> = judged.sent.iter().map(|(link, frame)| (&link[..], frame.clone())).collect();
            assert_judged(&judged, "transmit", &sent, &moved);
            let [(_, one), (_, rest)] = &judged.sent[..] else { panic!("{judged:?}") };
            assert_eq!((one.len(), &one[20..22]), (14 + 20 + 1376, &[0x20, 0][..]));
            let (offset, sent) = (1376 / 8, room + 1 + if method == "-i" { 20 } else { 0 });
            assert_eq!((rest.len(), &rest[20..22]), (14 + 20 + sent - 20 - 1376, &[0, offset as u8][..]));
            assert_eq!(one[18..20], rest[18..20], "one identification");
        }
    }
}

#[test]
fn the_time_to_live_is_checked_before_the_size() {
    let mut cluster = cluster("-g", 1400);
    let first = Datagram { ttl: 1, dont_fragment: true, ..request(Transport::Udp).carrying(1400) };
    assert_eq!(cluster.from_client(&first).verdict, "drop ttl_expired");
}

#[test]
fn a_service_without_a_usable_destination_sends_the_client_an_error_also_for_tcp() {
    let moved = [("drop_no_destination", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
    for scheduler in ["rr", "wrr", "wlc"] {
        for transport in BOTH {
            let mut cluster = LabCluster::new();
            for protocol in ["-t", "-u"] {
                cluster.adm(&format!("-A {protocol} {VIP}:80 -s {scheduler}"));
            }
            let first = request(transport).carrying(600);
            let judged = cluster.from_client(&first);
            let want = error_to_client(&judged, Complaint::PORT_UNREACHABLE, &first);
            assert_judged(&judged, "drop no_destination", &[want], &moved);

            for protocol in ["-t", "-u"] {
                cluster.adm(&format!("-a {protocol} {VIP}:80 -r {}:80 -g -w 0", server(1)));
            }
            let judged = cluster.from_client(&first);
            let want = error_to_client(&judged, Complaint::PORT_UNREACHABLE, &first);
            assert_judged(&judged, "drop no_destination", &[want], &moved);
            assert_eq!(cluster.connections(), [] as [String; 0]);
            assert_eq!(cluster.stats()[1], format!("-> {}:80 0 0 0 0 0", server(1)));
        }
    }
}

#[test]
fn a_quiescent_destination_keeps_its_connections_and_takes_no_new_one() {
    let mut cluster = cluster("-m", 1500);
    cluster.from_client(&request(Transport::Tcp(SYN)));
    cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -m -w 0", server(1)));
    let next = request(Transport::Tcp(ACK)).carrying(5);
    let want = to_server(1, &Datagram { ttl: 63, dest: at(server(1), 80), ..next.clone() });
    assert_judged(&cluster.from_client(&next), "transmit", &[want], FORWARDED);
    let answer = Datagram::new(Transport::Tcp(ACK), at(server(1), 80), at(CLIENT, 4000));
    let want = to_client(&Datagram { ttl: 63, source: at(VIP, 80), ..answer.clone() });
    assert_judged(&cluster.from_server(&answer), "transmit", &[want], FORWARDED);
    let other = Datagram { source: at(CLIENT, 4001), ..request(Transport::Tcp(SYN)) };
    assert_eq!(cluster.from_client(&other).verdict, "drop no_destination");
}

#[test]
fn a_destination_without_a_route_is_reported_as_an_unreachable_host() {
    for method in ["-g", "-m", "-i"] {
        for transport in BOTH {
            let mut cluster = LabCluster::new();
            serve(&mut cluster, NOWHERE, method);
            let first = request(transport);
            let judged = cluster.from_client(&first);
            let want = error_to_client(&judged, Complaint::HOST_UNREACHABLE, &first);
            let moved = [
                ("connections", 1),
                ("drop_no_route", 1),
                ("originated", 1),
                ("rx_packets", 1),
                ("tx_packets", 1),
            ];
            assert_judged(&judged, "drop no_route", &[want], &moved);
        }
    }
}

#[test]
fn packets_to_a_destination_that_is_not_resolved_wait_and_leave_in_their_order_once_it_is() {
    for method in ["-g", "-i", "-m"] {
        let mut cluster = LabCluster::new();
        serve(&mut cluster, SILENT, method);
        let datagram = |bytes| request(Transport::Udp).carrying(bytes);
        let waits = |more: &[(&'static str, u64)]| [more, &[("rx_packets", 1), ("waited", 1)]].concat();
        let judged = cluster.from_client(&datagram(1));
        assert_judged(&judged, "consumed no_neighbour", &[], &waits(&[("connections", 1)]));
        assert_judged(&cluster.from_client(&datagram(2)), "consumed no_neighbour", &[], &waits(&[]));
        assert_eq!(cluster.counters()["held"], 2);
        cluster.ok(json!({ "neighbor": SILENT, "mac": "02:00:00:00:02:99", "link": "lan" }));
        let judged = cluster.from_client(&datagram(3));
        assert_eq!(judged.verdict, "transmit");
        // A cluster whose server is resolved from the start sends the same bytes.
        let mut other = LabCluster::new();
        other.ok(json!({ "neighbor": SILENT, "mac": "02:00:00:00:02:99", "link": "lan" }));
        serve(&mut other, SILENT, method);
        let want: Vec<_> = (1..=3).flat_map(|bytes| other.from_client(&datagram(bytes)).sent).collect();
        assert_eq!(judged.sent, want, "{method}");
        assert_eq!(cluster.counters().get("held"), None);
    }
}

#[test]
fn packets_to_a_destination_that_stays_unresolved_are_dropped_after_a_second() {
    let mut cluster = LabCluster::new();
    serve(&mut cluster, SILENT, "-g");
    cluster.from_client(&request(Transport::Udp));
    cluster.advance(0.9);
    assert_eq!(cluster.counters()["held"], 1);
    assert_eq!(cluster.wait(0.2), []);
    let counters = cluster.counters();
    assert_eq!((counters.get("held"), counters["drop_no_neighbour"]), (None, 1));
}

#[test]
fn eight_packets_wait_for_a_next_hop_and_sixty_four_for_all_and_further_ones_are_dropped() {
    let mut cluster = LabCluster::new();
    serve(&mut cluster, SILENT, "-g");
    let mut verdict = |number: u16| {
        let from = Datagram { source: at(CLIENT, 4000 + number), ..request(Transport::Udp) };
        cluster.from_client(&from).verdict
    };
    let verdicts: Vec<_> = (0..10).map(&mut verdict).collect();
    assert_eq!(verdicts[..8], ["consumed no_neighbour"; 8]);
    assert_eq!(verdicts[8..], ["drop no_neighbour"; 2]);
    // Replies to clients on the director's own network, each a next hop of its own.
    let mut cluster = LabCluster::new();
    serve(&mut cluster, server(1), "-m");
    let mut waiting = 0;
    for number in 0..80 {
        let client = at(Ipv4Addr::new(192, 0, 2, 20 + number), 4000);
        cluster.from_client(&Datagram { source: client, ..request(Transport::Udp) });
        let reply = Datagram::new(Transport::Udp, at(server(1), 80), client);
        waiting += u32::from(cluster.from_server(&reply).verdict == "consumed no_neighbour");
    }
    assert_eq!((waiting, cluster.counters()["held"], cluster.counters()["drop_no_neighbour"]), (64, 64, 16));
}

#[test]
fn a_client_without_a_route_gets_no_error_and_that_is_counted() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {VIP}:80"));
    let first = Datagram { source: at(NOWHERE, 4000), ..request(Transport::Udp) };
    let moved = [("answers_withheld", 1), ("drop_no_destination", 1), ("rx_packets", 1)];
    assert_judged(&cluster.from_client(&first), "drop no_destination", &[], &moved);
}

#[test]
fn packets_from_an_address_that_is_no_hosts_go_to_the_kernel() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {VIP}:80"));
    let invalid = [
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(0, 1, 2, 3),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(239, 255, 255, 255),
    ];
    for source in invalid {
        let first = Datagram { source: at(source, 4000), ..request(Transport::Udp) };
        assert_passed(&cluster.from_client(&first));
    }
}

#[test]
fn errors_are_sent_from_the_start_and_at_the_configured_rate() {
    let mut cluster = LabCluster::new();
    cluster.ok(json!({ "set": { "icmp_msgs_per_sec": 1000 } }));
    cluster.adm(&format!("-A -u {VIP}:80"));
    let errors = |cluster: &mut LabCluster, times: usize| -> usize {
        (0..times).map(|_| cluster.from_client(&request(Transport::Udp)).sent.len()).sum()
    };
    // A twentieth of a second's errors may be sent at once (kernel documentation, icmp_msgs_burst).
    assert_eq!(errors(&mut cluster, 60), 50);
    cluster.advance(0.01);
    assert_eq!(errors(&mut cluster, 60), 10);
    cluster.advance(10.0);
    assert_eq!(errors(&mut cluster, 60), 50);
    let withheld = cluster.counters()["answers_withheld"];
    assert_eq!(withheld, 180 - 110);
}

#[test]
fn errors_that_report_an_mtu_are_not_limited() {
    let mut cluster = cluster("-g", 1400);
    cluster.adm(&format!("-A -u {VIP}:81"));
    cluster.set("icmp_msgs_per_sec", 1);
    let unserved = Datagram { dest: at(VIP, 81), ..request(Transport::Udp) };
    let errors = |cluster: &mut LabCluster, about: &Datagram| cluster.from_client(about).sent.len();
    assert_eq!([0; 2].map(|_| errors(&mut cluster, &unserved)), [1, 0]);
    let long = Datagram { dont_fragment: true, ..request(Transport::Udp).carrying(1400) };
    assert_eq!([0; 3].map(|_| errors(&mut cluster, &long)), [1; 3]);
    // They do not use up the limit of other errors.
    cluster.advance(1.0);
    assert_eq!([&long, &unserved, &unserved].map(|about| errors(&mut cluster, about)), [1, 1, 0]);
}

#[test]
fn packets_to_a_port_without_a_service_go_to_the_kernel() {
    let mut cluster = cluster("-m", 1500);
    for transport in BOTH {
        assert_passed(&cluster.from_client(&Datagram { dest: at(VIP, 81), ..request(transport) }));
        assert_passed(&cluster.from_client(&Datagram { dest: at(server(2), 80), ..request(transport) }));
    }
}

#[test]
fn a_service_takes_packets_of_its_own_protocol_only() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80"));
    assert_passed(&cluster.from_client(&request(Transport::Udp)));
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {VIP}:80"));
    assert_passed(&cluster.from_client(&request(Transport::Tcp(SYN))));
}

#[test]
fn tcp_packets_without_a_connection_go_to_the_kernel() {
    let mut cluster = cluster("-m", 1500);
    for flags in [ACK, FIN, FIN | ACK, 0] {
        assert_passed(&cluster.from_client(&request(Transport::Tcp(flags))));
    }
}

#[test]
fn packets_of_a_server_that_are_no_replies_go_to_the_kernel() {
    let mut cluster = cluster("-m", 1500);
    cluster.from_client(&request(Transport::Tcp(SYN)));
    for (source, dest) in [
        (at(server(1), 80), at(CLIENT, 4001)),
        (at(server(1), 81), at(CLIENT, 4000)),
        (at(server(2), 80), at(CLIENT, 4000)),
    ] {
        for transport in [Transport::Tcp(ACK), Transport::Tcp(SYN), Transport::Udp] {
            assert_passed(&cluster.from_server(&Datagram::new(transport, source, dest)));
        }
    }
}

#[test]
fn a_masqueraded_server_that_sends_without_a_request_gets_an_error_if_configured() {
    let mut cluster = cluster("-m", 1500);
    cluster.ok(json!({ "set": { "nat_icmp_send": 1 } }));
    let unsolicited = Datagram::new(Transport::Tcp(ACK), at(server(1), 80), at(CLIENT, 4001));
    let judged = cluster.from_server(&unsolicited);
    assert_eq!(judged.verdict, "drop unasked");
    let message = Complaint::PORT_UNREACHABLE;
    let quoted = Datagram { ttl: 63, ..unsolicited.clone() };
    assert_eq!(
        judged.sent,
        [error_to_server(&judged, message, &quoted)].map(|(link, frame)| (link.to_owned(), frame))
    );
    for (command, masqueraded) in [
        (format!("-e -t {VIP}:80 -r {}:80 -m -w 0", server(1)), true),
        (format!("-e -t {VIP}:80 -r {}:80 -g", server(1)), false),
        (format!("-e -t {VIP}:80 -r {}:80 -m", server(1)), true),
        (format!("-d -t {VIP}:80 -r {}:80", server(1)), false),
        (format!("-a -t {VIP}:80 -r {}:80 -m", server(1)), true),
        (format!("-D -t {VIP}:80"), false),
    ] {
        cluster.adm(&command);
        let want = if masqueraded { "drop unasked" } else { "pass" };
        assert_eq!(cluster.from_server(&unsolicited).verdict, want, "{command}");
    }
}

#[test]
fn a_server_of_direct_routing_or_a_tunnel_has_no_replies_from_its_own_address() {
    for method in ["-g", "-i"] {
        let mut cluster = cluster(method, 1500);
        cluster.from_client(&request(Transport::Tcp(SYN)));
        let answer = Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(CLIENT, 4000));
        assert_passed(&cluster.from_server(&answer));
    }
}

#[test]
fn an_ipv4_reply_of_direct_routing_or_a_tunnel_is_forwarded_with_forward_shared_only() {
    for method in ["-g", "-i"] {
        let mut cluster = cluster(method, 1500);
        cluster.from_client(&request(Transport::Tcp(SYN)));
        let answer = Datagram::new(Transport::Tcp(SYN | ACK), at(VIP, 80), at(CLIENT, 4000));
        assert_passed(&cluster.from_server(&answer));
        cluster.set("forward_shared", 1);
        let want = to_client(&Datagram { ttl: 63, ..answer.clone() });
        assert_judged(&cluster.from_server(&answer), "transmit", &[want], FORWARDED);
        cluster.from_client(&request(Transport::Tcp(ACK)));
        cluster.from_client(&request(Transport::Tcp(FIN | ACK)));
        assert_eq!(cluster.only_connection().1, "CLOSE_WAIT", "not FIN_WAIT, where replies are not seen");
        cluster.set("forward_shared", 0);
        assert_passed(&cluster.from_server(&answer));
        let other = Datagram { dest: at(CLIENT, 4001), ..answer };
        assert_passed(&cluster.from_server(&other));
    }
}

#[test]
fn packets_from_the_ftp_data_port_begin_no_connection() {
    let mut cluster = cluster("-m", 1500);
    for transport in BOTH {
        assert_passed(&cluster.from_client(&Datagram { source: at(CLIENT, 20), ..request(transport) }));
    }
}

#[test]
fn without_any_service_all_packets_go_to_the_kernel() {
    let mut cluster = LabCluster::new();
    for transport in BOTH {
        assert_passed(&cluster.from_client(&request(transport)));
        assert_passed(&cluster.from_server(&request(transport)));
    }
}

#[test]
fn a_packet_may_leave_by_the_link_that_received_it() {
    let mut cluster = LabCluster::new();
    cluster.ok(json!({ "neighbor": "192.0.2.9", "mac": "02:00:00:00:01:09", "link": "wan" }));
    cluster.adm(&format!("-A -u {VIP}:80"));
    cluster.adm(&format!("-a -u {VIP}:80 -r 192.0.2.9:80 -g"));
    let first = request(Transport::Udp);
    let want = Datagram { ttl: 63, ..first.clone() }.frame(WAN_MAC, [2, 0, 0, 0, 1, 9]);
    let judged = cluster.inject("wan", &first.frame(GATEWAY_MAC, WAN_MAC));
    assert_judged(&judged, "transmit", &[("wan", want)], BEGUN);
}

#[test]
fn in_a_full_table_clients_with_one_datagram_are_evicted_and_those_with_more_stay() {
    let mut cluster = cluster("-g", 1500);
    let first = |number: u32| {
        let client = Ipv4Addr::new(192, 0, 2, 200 + (number >> 16) as u8);
        Datagram { source: at(client, number as u16), ..request(Transport::Udp) }
    };
    let known = first(1);
    for _ in 0..2 {
        assert_eq!(cluster.from_client(&known).verdict, "transmit");
    }
    // More than the table holds. Frames go to the lab directly, because not every answer is checked.
    for number in 2..70_000 {
        let frame = hex(&first(number).frame(GATEWAY_MAC, WAN_MAC));
        cluster.lab().answer(&format!(r#"{{"inject":"wan","frame":"{frame}"}}"#));
    }
    let counters = cluster.counters();
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    // Packets from the FTP data port go to the kernel.
    assert_eq!(count("passed_to_kernel"), 2);
    assert_eq!(count("connections") + count("drop_table_full") + 2, 69_999);
    assert!(count("evicted") > 3000, "{}", count("evicted"));
    // The table's hash secret is random, so a few may be refused.
    assert!(count("drop_table_full") < 100, "{}", count("drop_table_full"));
    let judged = cluster.from_client(&known);
    assert_eq!(judged.verdict, "transmit");
    assert_eq!(cluster.counters()["connections"], count("connections"), "it is still the same connection");
    let (active, inactive) = (cluster.loads()[1].1, cluster.loads()[1].2);
    assert_eq!((active, inactive), (0, count("connections") - count("evicted")));
    cluster.advance(301.0);
    assert_eq!(cluster.connections(), [] as [String; 0]);
    assert_eq!(cluster.loads()[1].2, 0);
    assert_eq!(cluster.from_client(&first(69_999)).verdict, "transmit");
}
