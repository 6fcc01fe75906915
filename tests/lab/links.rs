//! Local delivery, VLANs, and packets with invalid addresses, played through the lab.
//!
//! Not here: interfaces that come and go (`netlab/links.rs`), and tags alone (`port/vlan_and_bond.rs`).

use std::net::Ipv4Addr;

use serde_json::json;
use xvs::frames::{ACK, Ipv4, Mac, SYN};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, LAN_MAC, OUTSIDE, VIP, VIP6, WAN_MAC, at, server, server_mac,
};
use xvs::{BothPaths, Datagram, LabCluster, Transport, offload};

/// IP protocol numbers.
const ESP: u8 = 50;
const AH: u8 = 51;
/// The link address of `lo`.
const NO_MAC: Mac = [0; 6];

/// The cluster with the virtual address on an interface, as operators of IPVS have it.
fn with_local_vip() -> LabCluster {
    let mut cluster = LabCluster::new();
    let (mac, addresses) = ("02:00:00:00:09:01", [format!("{VIP}/32"), format!("{VIP6}/128")]);
    cluster.ok(json!({ "link": "vips", "mac": mac, "addresses": addresses }));
    cluster
}

fn syn(port: u16) -> Datagram {
    Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80))
}

/// A frame with a VLAN tag put in.
fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0x00, vlan], &frame[12..]].concat()
}

#[test]
fn a_destination_on_the_director_gets_packets_unchanged_whatever_their_ttl() {
    for method in ["-g", "-i"] {
        for here in [INSIDE, VIP, Ipv4Addr::LOCALHOST] {
            let mut cluster = with_local_vip();
            cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
            cluster.adm(&format!("-a -t {VIP}:80 -r {here}:80 {method}"));
            for ttl in [64, 1, 0] {
                let judged = cluster.from_client(&Datagram { ttl, ..syn(1000) });
                assert_eq!((judged.verdict.as_str(), judged.sent), ("pass", vec![]), "{method} {here} {ttl}");
            }
            let listed = cluster.adm("-L -n -c");
            assert!(listed.contains("SYN_RECV"), "the connection is kept: {listed}");
            cluster.advance(2.5);
            let counted = cluster.adm("-L -n --stats --exact");
            assert!(counted.contains("1        3        0      120        0"), "{counted}");
        }
    }
}

#[test]
fn ipv6_packets_are_delivered_locally_too() {
    let mut cluster = with_local_vip();
    cluster.adm(&format!("-A -t [{VIP6}]:80 -s rr"));
    cluster.adm(&format!("-a -t [{VIP6}]:80 -r [{VIP6}]:80 -g"));
    let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT6, 1000), at(VIP6, 80));
    assert_eq!(cluster.from_client(&syn).verdict, "pass");
}

#[test]
fn a_direct_routing_destination_on_the_director_needs_the_virtual_address_there() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {INSIDE}:80 -g"));
    assert_eq!(cluster.from_client(&syn(1000)).verdict, "drop destination_local");
}

#[test]
fn packets_are_delivered_locally_once_their_destination_is_an_address_of_the_director() {
    let mut cluster = with_local_vip();
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g", server(1)));
    cluster.adm(&format!("-A -u {VIP}:53 -s rr"));
    cluster.adm(&format!("-a -u {VIP}:53 -r {}:53 -m", server(1)));
    let question = Datagram::new(Transport::Udp, at(CLIENT, 1000), at(VIP, 53));
    assert_eq!(cluster.from_client(&syn(1000)).verdict, "transmit");
    assert_eq!(cluster.from_client(&question).verdict, "transmit");
    let address = [format!("{}/32", server(1))];
    cluster.ok(json!({ "link": "taken-over", "mac": "02:00:00:00:08:01", "addresses": address }));
    let ack = Datagram { transport: Transport::Tcp(ACK), ..syn(1000) };
    assert_eq!(cluster.from_client(&ack).verdict, "pass");
    assert_eq!(cluster.from_client(&question).verdict, "pass");
}

#[test]
fn nat_to_any_endpoint_of_the_director_is_delivered_unless_it_is_a_loopback_address() {
    for here in [format!("{VIP}:80"), format!("{VIP}:8080"), format!("{INSIDE}:80")] {
        let mut cluster = with_local_vip();
        cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
        cluster.adm(&format!("-a -t {VIP}:80 -r {here} -m"));
        for ttl in [64, 1] {
            let judged = cluster.from_client(&Datagram { ttl, ..syn(1000) });
            assert_eq!((judged.verdict.as_str(), judged.sent), ("pass", vec![]), "{here}");
        }
    }
    let mut cluster = with_local_vip();
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    // As under IPVS, which accepts the command.
    cluster.adm(&format!("-a -t {VIP}:80 -r 127.0.0.1:80 -m"));
    assert_eq!(cluster.from_client(&syn(1001)).verdict, "drop destination_local");
}

#[test]
fn nat_to_the_director_is_refused_for_services_of_any_port() {
    let mut cluster = with_local_vip();
    cluster.adm(&format!("-A -t {VIP}:21 -s rr"));
    cluster.adm(&format!("-A -t {VIP}:0 -s rr -p 60"));
    cluster.adm("-A -f 1 -s rr");
    let services = [["-t", &format!("{VIP}:21"), "21"], ["-t", &format!("{VIP}:0"), "0"], ["-f", "1", "80"]];
    for [option, service, port] in services {
        let here = format!("{INSIDE}:{port}");
        let answer = cluster.ask(json!({ "adm": ["-a", option, service, "-r", here, "-m"] }));
        let message = answer["stderr"].as_str().unwrap_or_default();
        assert_ne!(answer["exit"], 0, "{service}");
        assert!(message.contains(&here) && message.contains("use -g"), "{message}");
    }
}

#[test]
fn a_client_on_the_director_has_nat_and_fullnat_and_its_own_kernel_for_other_methods() {
    for method in ["-m", "--fullnat", "-g", "-i"] {
        let mut cluster = with_local_vip();
        cluster.xvs(&format!("laddr add {INSIDE}"));
        cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 {method}", server(1)));
        let syn = Datagram::new(Transport::Tcp(SYN), at(VIP, 1000), at(VIP, 80));
        let judged = cluster.inject("lo", &syn.frame(NO_MAC, NO_MAC));
        if matches!(method, "-g" | "-i") {
            assert_eq!((judged.verdict.as_str(), judged.sent), ("pass", vec![]), "{method}");
            continue;
        }
        let [(link, frame)] = &judged.sent[..] else { panic!("{method}: {judged:?}") };
        assert_eq!((link.as_str(), &frame[..6], &frame[6..12]), ("lan", &server_mac(1)[..], &LAN_MAC[..]));
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let source: [u8; 4] = frame[26..30].try_into().unwrap();
        let expected = if method == "-m" { VIP } else { INSIDE };
        assert_eq!((Ipv4Addr::from(source), port(36)), (expected, 80), "{method}");
        let reply = Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(source, port(34)));
        let judged = cluster.from_server(&reply);
        assert_eq!((judged.verdict.as_str(), judged.sent), ("pass", vec![]), "{method}");
        assert!(cluster.adm("-Lnc").contains("ESTABLISHED") || cluster.adm("-Lnc").contains("SYN_RECV"));
    }
}

#[test]
fn what_the_director_sends_to_itself_begins_a_connection_only_for_a_service_of_that_port() {
    let mut cluster = with_local_vip();
    for service in [format!("-t {VIP}:21"), format!("-t {VIP}:0"), "-f 1".to_owned()] {
        cluster.adm(&format!("-A {service} -s rr -p 60"));
        cluster.adm(&format!(
            "-a {service} -r {}:{} -m",
            server(1),
            service.rsplit(':').next().unwrap_or("0").replace("-f 1", "80")
        ));
    }
    for port in [21, 22, 80] {
        let syn = Datagram::new(Transport::Tcp(SYN), at(VIP, 1000), at(VIP, port));
        assert_eq!(cluster.inject("lo", &syn.frame(NO_MAC, NO_MAC)).verdict, "pass", "{port}");
    }
    assert_eq!(cluster.connections(), [""; 0]);
}

/// An ESP or AH packet of the client's, or to it.
fn sealed(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, ttl: u8) -> Vec<u8> {
    let header = Ipv4 { ttl, tos: 0, id: 7, dont_fragment: true };
    header.packet(etherparse::IpNumber(protocol), from, to, &[0x5a; 24])
}

fn framed(from: Mac, to: Mac, packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[0x08, 0x00], packet].concat()
}

#[test]
fn ah_and_esp_follow_the_connection_of_udp_port_500_and_are_counted_there() {
    for (method, to) in [("-g", VIP), ("-m", server(1))] {
        // The program forwards the datagrams of the connection, but neither AH nor ESP.
        let mut cluster = LabCluster::beside(BothPaths::offloading());
        cluster.configure(&[
            &format!("-A -u {VIP}:500 -s rr"),
            &format!("-a -u {VIP}:500 -r {}:500 {method}", server(1)),
        ]);
        let request = |protocol| framed(GATEWAY_MAC, WAN_MAC, &sealed(protocol, CLIENT, VIP, 64));
        assert_eq!(cluster.inject("wan", &request(ESP)).verdict, "pass", "there is no connection yet");
        let negotiated = Datagram::new(Transport::Udp, at(CLIENT, 500), at(VIP, 500));
        let replied = Datagram::new(Transport::Udp, at(server(1), 500), at(CLIENT, 500));
        let before = offload::forwarded();
        for _ in 0..10 {
            assert_eq!(cluster.from_client(&negotiated).verdict, "transmit");
            cluster.from_server(&replied);
        }
        let offloaded = offload::forwarded();
        assert!(offloaded > before, "{method}");
        for protocol in [ESP, AH] {
            let sent = cluster.inject("wan", &request(protocol)).sent;
            let expected = framed(LAN_MAC, server_mac(1), &sealed(protocol, CLIENT, to, 63));
            assert_eq!(sent, [("lan".to_owned(), expected)]);
        }
        assert_eq!(offload::forwarded(), offloaded, "{method}");
        cluster.advance(2.5);
        // UDP without data is 28 bytes, the others 44.
        let counted = cluster.adm("-L -n --stats --exact");
        let expected = match method {
            "-m" => "1       12       10      368      280",
            _ => "1       12        0      368        0",
        };
        assert!(counted.contains(expected), "{counted}");
        let answer = framed(server_mac(1), LAN_MAC, &sealed(ESP, server(1), CLIENT, 64));
        let judged = cluster.inject("lan", &answer);
        if method == "-m" {
            let expected = framed(WAN_MAC, GATEWAY_MAC, &sealed(ESP, VIP, CLIENT, 63));
            assert_eq!(judged.sent, [("wan".to_owned(), expected)]);
        } else {
            assert_eq!(judged.verdict, "pass");
        }
    }
}

#[test]
fn ah_and_esp_under_fullnat_are_refused_unless_their_replies_would_find_the_connection() {
    for (port, finds) in [(5000, false), (500, true)] {
        let mut cluster = LabCluster::new();
        cluster.xvs(&format!("laddr add {INSIDE} --ports {port}-{port}"));
        cluster.adm(&format!("-A -u {VIP}:500 -s rr"));
        cluster.adm(&format!("-a -u {VIP}:500 -r {}:500 --fullnat", server(1)));
        let negotiated = Datagram::new(Transport::Udp, at(CLIENT, 500), at(VIP, 500));
        assert_eq!(cluster.from_client(&negotiated).verdict, "transmit");
        for protocol in [ESP, AH] {
            let request = framed(GATEWAY_MAC, WAN_MAC, &sealed(protocol, CLIENT, VIP, 64));
            let answer = framed(server_mac(1), LAN_MAC, &sealed(protocol, server(1), INSIDE, 64));
            let judged = cluster.inject("wan", &request);
            if finds {
                let expected = framed(LAN_MAC, server_mac(1), &sealed(protocol, INSIDE, server(1), 63));
                assert_eq!(judged.sent, [("lan".to_owned(), expected)]);
                let expected = framed(WAN_MAC, GATEWAY_MAC, &sealed(protocol, VIP, CLIENT, 63));
                assert_eq!(cluster.inject("lan", &answer).sent, [("wan".to_owned(), expected)]);
            } else {
                assert_eq!((judged.verdict.as_str(), judged.sent), ("drop fullnat_portless", vec![]));
                assert_eq!(cluster.inject("lan", &answer).verdict, "pass");
            }
        }
    }
}

#[test]
fn ah_and_esp_to_an_address_without_a_service_of_udp_500_stay_with_the_kernel() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -u {VIP}:53 -s rr"));
    cluster.adm(&format!("-a -u {VIP}:53 -r {}:53 -m", server(1)));
    for protocol in [ESP, AH] {
        let frame = framed(GATEWAY_MAC, WAN_MAC, &sealed(protocol, CLIENT, VIP, 64));
        assert_eq!(cluster.inject("wan", &frame).verdict, "pass");
    }
}

/// Clients on VLAN 5 of `wan`, servers on VLAN 7 of `lan`, each side tagged if its argument says so.
fn with_vlans(clients: bool, servers: bool) -> LabCluster {
    let mut cluster = LabCluster::new();
    if clients {
        cluster.ok(json!({ "link": "wan.5", "vlan": 5, "over": "wan", "addresses": ["10.5.0.1/24"] }));
        cluster.ok(json!({ "neighbor": "10.5.0.2", "mac": "02:00:00:00:05:02", "link": "wan.5" }));
        cluster.ok(json!({ "route": format!("{CLIENT}/32"), "via": "10.5.0.2", "link": "wan.5" }));
    }
    if servers {
        cluster.ok(json!({ "link": "lan.7", "vlan": 7, "over": "lan", "addresses": ["10.7.0.1/24"] }));
        cluster.ok(json!({ "neighbor": "10.7.0.11", "mac": "02:00:00:00:07:0b", "link": "lan.7" }));
    }
    let dest = if servers { Ipv4Addr::new(10, 7, 0, 11) } else { server(1) };
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {dest}:80 -m"));
    cluster
}

#[test]
fn vlan_tags_are_removed_added_or_changed_between_the_two_sides_and_restored_in_replies() {
    for (clients, servers) in [(true, false), (false, true), (true, true)] {
        let mut cluster = with_vlans(clients, servers);
        let client_mac: Mac = if clients { [2, 0, 0, 0, 5, 2] } else { GATEWAY_MAC };
        let (dest, dest_mac): (_, Mac) = match servers {
            true => (Ipv4Addr::new(10, 7, 0, 11), [2, 0, 0, 0, 7, 0x0b]),
            false => (server(1), server_mac(1)),
        };
        let on_wan = |frame: Vec<u8>| if clients { tagged(&frame, 5) } else { frame };
        let on_lan = |frame: Vec<u8>| if servers { tagged(&frame, 7) } else { frame };

        let judged = cluster.inject("wan", &on_wan(syn(1000).frame(client_mac, WAN_MAC)));
        let forwarded = Datagram { dest: at(dest, 80), ttl: 63, ..syn(1000) };
        assert_eq!(judged.sent, [("lan".to_owned(), on_lan(forwarded.frame(LAN_MAC, dest_mac)))]);

        let reply = Datagram::new(Transport::Tcp(SYN | ACK), at(dest, 80), at(CLIENT, 1000));
        let judged = cluster.inject("lan", &on_lan(reply.frame(dest_mac, LAN_MAC)));
        let translated = Datagram { source: at(VIP, 80), ttl: 63, ..reply };
        assert_eq!(judged.sent, [("wan".to_owned(), on_wan(translated.frame(WAN_MAC, client_mac)))]);
    }
}

#[test]
fn one_interface_may_be_both_sides_with_two_vlan_tags() {
    let mut cluster = LabCluster::new();
    cluster.ok(json!({ "link": "wan.5", "vlan": 5, "over": "wan", "addresses": ["10.5.0.1/24"] }));
    cluster.ok(json!({ "link": "wan.7", "vlan": 7, "over": "wan", "addresses": ["10.7.0.1/24"] }));
    cluster.ok(json!({ "neighbor": "10.7.0.11", "mac": "02:00:00:00:07:0b", "link": "wan.7" }));
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r 10.7.0.11:80 -g"));
    let judged = cluster.inject("wan", &tagged(&syn(1000).frame(GATEWAY_MAC, WAN_MAC), 5));
    let forwarded = Datagram { ttl: 63, ..syn(1000) }.frame(WAN_MAC, [2, 0, 0, 0, 7, 0x0b]);
    assert_eq!(judged.sent, [("wan".to_owned(), tagged(&forwarded, 7))]);
}

#[test]
fn an_error_about_a_tagged_packet_goes_back_tagged() {
    let mut cluster = with_vlans(true, false);
    let late = Datagram { ttl: 1, ..syn(1000) }.frame([2, 0, 0, 0, 5, 2], WAN_MAC);
    let judged = cluster.inject("wan", &tagged(&late, 5));
    assert_eq!(judged.verdict, "drop ttl_expired");
    let (link, error) = &judged.sent[0];
    assert_eq!(
        (link.as_str(), &error[..6], &error[12..16]),
        ("wan", &[2, 0, 0, 0, 5, 2][..], &[0x81, 0, 0, 5][..])
    );
}

#[test]
fn a_vlan_without_a_link_stays_with_the_kernel_and_the_lab_says_what_a_vlan_needs() {
    let mut cluster = with_vlans(true, true);
    for (link, vlan) in [("wan", 6), ("wan", 7), ("lan", 5)] {
        let mac = if link == "wan" { WAN_MAC } else { LAN_MAC };
        let judged = cluster.inject(link, &tagged(&syn(1000).frame(GATEWAY_MAC, mac), vlan));
        assert_eq!(judged.verdict, "pass", "VLAN {vlan} of {link}");
    }
    for (wrong, word) in [
        (json!({ "link": "x", "vlan": 0, "over": "wan" }), "1 to 4094"),
        (json!({ "link": "x", "vlan": 5, "over": "nowhere" }), "no link nowhere"),
        (json!({ "inject": "wan.5", "frame": "00" }), "no link wan.5"),
    ] {
        let error = cluster.ask(wrong.clone())["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(word), "{wrong}: {error}");
    }
}

#[test]
fn both_sides_may_be_one_untagged_interface() {
    let mut cluster = LabCluster::new();
    cluster.ok(json!({ "neighbor": "192.0.2.50", "mac": "02:00:00:00:01:50", "link": "wan" }));
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r 192.0.2.50:80 -m"));
    let judged = cluster.from_client(&syn(1000));
    let dest = at(Ipv4Addr::new(192, 0, 2, 50), 80);
    let forwarded = Datagram { dest, ttl: 63, ..syn(1000) };
    let server: Mac = [2, 0, 0, 0, 1, 0x50];
    assert_eq!(judged.sent, [("wan".to_owned(), forwarded.frame(WAN_MAC, server))]);
    let reply = Datagram::new(Transport::Tcp(SYN | ACK), dest, at(CLIENT, 1000));
    let judged = cluster.inject("wan", &reply.frame(server, WAN_MAC));
    let translated = Datagram { source: at(VIP, 80), ttl: 63, ..reply };
    assert_eq!(judged.sent, [("wan".to_owned(), translated.frame(WAN_MAC, GATEWAY_MAC))]);
}

#[test]
fn frames_for_another_mac_address_stay_with_the_kernel() {
    let mut cluster = with_vlans(true, false);
    for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], GATEWAY_MAC] {
        let frame = syn(1000).frame(GATEWAY_MAC, mac);
        assert_eq!(cluster.inject("wan", &frame).verdict, "pass", "{mac:?}");
        assert_eq!(cluster.inject("wan", &tagged(&frame, 5)).verdict, "pass", "{mac:?}");
    }
    assert_eq!(cluster.adm("-L -n -c").lines().count(), 2, "no connection came of it");
}

#[test]
fn multicast_unspecified_loopback_own_and_equal_source_addresses_are_refused() {
    for mut cluster in [LabCluster::new(), with_local_vip()] {
        cluster.adm(&format!("-A -u {VIP}:53 -s rr"));
        cluster.adm(&format!("-a -u {VIP}:53 -r {}:53 -m", server(1)));
        let invalid = [[224, 0, 0, 1], [255; 4], [0; 4], [0, 1, 2, 3], [127, 0, 0, 1]].map(Ipv4Addr::from);
        for source in invalid.into_iter().chain([OUTSIDE, Ipv4Addr::new(192, 0, 2, 127), VIP]) {
            let packet = Datagram::new(Transport::Udp, at(source, 53), at(VIP, 53));
            assert_eq!(cluster.from_client(&packet).verdict, "pass", "{source}");
        }
        assert_eq!(cluster.adm("-L -n -c").lines().count(), 2, "no connection came of it");
    }
}

#[test]
fn packets_to_groups_and_broadcasts_stay_with_the_kernel() {
    let mut cluster = with_local_vip();
    cluster.adm(&format!("-A -u {VIP}:53 -s rr"));
    cluster.adm(&format!("-a -u {VIP}:53 -r {}:53 -m", server(1)));
    for dest in [[224, 0, 0, 1], [255; 4], [192, 0, 2, 127]].map(Ipv4Addr::from) {
        let packet = Datagram::new(Transport::Udp, at(CLIENT, 1000), at(dest, 53));
        assert_eq!(cluster.from_client(&packet).verdict, "pass", "{dest}");
    }
}
