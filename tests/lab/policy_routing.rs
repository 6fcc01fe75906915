//! Policy routing in the lab: the source and mark by which each kind of packet is routed.
//!
//! Every packet takes the fast path where it can, and the general path in a second director (`support/both_paths.rs`).
//! Not here: real sockets (`netlab/policy.rs`), and every form of rule (`netlab/policy_rules.rs`).

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use serde_json::json;
use xvs::frames::{ACK, Complaint, SYN, ethernet};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::{Datagram, LabCluster, Transport};
use xvs_model::protocol::client::Director as _;
use xvs_model::protocol::question::Request;
use xvs_model::report::connection::Filter;
use xvs_proto::Family;
use xvs_proto::network::{NextHop, PolicyAction, PolicyRuleMark, Route, RouteAction, Rule, Table};

/// The selectors of a rule.
#[derive(Clone, Copy, Default)]
struct Selectors {
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    mark: Option<u32>,
}

/// A client and a service with one server, and a rule that sends packets by the link `wan2`.
struct Play {
    cluster: LabCluster,
    client: SocketAddr,
    vip: SocketAddr,
}

impl Play {
    fn new(family: Family, method: &str, selectors: Selectors) -> Self {
        let [client, vip, server, inside, gateway] = match family {
            Family::V4 => {
                [at(CLIENT, 4000), at(VIP, 80), at(server(1), 80), at(INSIDE, 0), at([10, 77, 0, 2], 0)]
            }
            Family::V6 => {
                [at(CLIENT6, 4000), at(VIP6, 80), at(server6(1), 80), at(INSIDE6, 0), at(GATEWAY6, 0)]
            }
        };
        let (inside, gateway) = (inside.ip().to_string(), gateway.ip());
        let mut cluster = LabCluster::new();
        let addresses = json!(["10.77.0.1/24", "2001:db8:77::1/64"]);
        cluster.ok(json!({ "link": "wan2", "mac": "02:00:00:00:03:01", "addresses": addresses }));
        cluster.ok(json!({ "neighbor": gateway, "mac": "02:00:00:00:03:fe", "link": "wan2" }));
        cluster.change_network(|network| {
            let ifindex = network.link_named("wan2").expect("it was added").ifindex;
            let everything = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
            network.routes.push(Route {
                table: Table(100),
                dest: everything.parse().expect("a network"),
                metric: 0,
                action: RouteAction::Unicast(vec![NextHop { ifindex, via: Some(gateway), weight: 1 }]),
                preferred_source: None,
                mtu: None,
            });
            let [from, to] = [selectors.from, selectors.to].map(|addr| addr.map(xvs_proto::Prefix::host));
            let mark = selectors.mark.map(|mark| PolicyRuleMark { mark, mask: u32::MAX });
            let action = PolicyAction::Lookup(Table(100));
            let main = network.rules.iter().position(|rule| rule.family == family && rule.priority > 0);
            let rule = Rule { family, priority: 100, from, to, mark, vrf: None, action };
            network.rules.insert(main.expect("a default rule"), rule);
        });
        cluster.xvs(&format!("laddr add {inside} --ports 5000-5999"));
        for protocol in ["-t", "-u"] {
            cluster.adm(&format!("-A {protocol} {vip} -s rr"));
            cluster.adm(&format!("-a {protocol} {vip} -r {server} {method}"));
        }
        Self { cluster, client, vip }
    }

    /// The link by which a client's packet leaves, and its ends behind the director.
    fn request(&mut self, transport: Transport) -> (String, SocketAddr, SocketAddr) {
        let frame = Datagram::new(transport, self.client, self.vip).frame(GATEWAY_MAC, WAN_MAC);
        let judged = self.cluster.inject("wan", &frame);
        assert_eq!(judged.verdict, "transmit");
        let (from, to) = ends(&judged.sent[0].1);
        (judged.sent[0].0.clone(), from, to)
    }

    /// The link by which the reply to a request leaves, and whether it took the fast path.
    fn reply(&mut self, transport: Transport) -> (String, bool) {
        let (_, to, from) = self.request(transport);
        let frame = Datagram::new(transport, from, to).frame(server_mac(1), LAN_MAC);
        let judged = self.cluster.inject("lan", &frame);
        assert_eq!(judged.verdict, "transmit");
        assert_eq!(ends(&judged.sent[0].1), (self.vip, self.client));
        (judged.sent[0].0.clone(), self.cluster.general_path() == 0)
    }

    fn mark(&mut self, rule: &str) {
        self.cluster.xvs(&format!("mark add {rule}"));
    }
}

/// Source and destination of a frame's packet; of IP in IP, with port 0.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a valid packet");
    let (source, dest): (IpAddr, IpAddr) = match packet.net.expect("a network header") {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => panic!("not ARP"),
    };
    let (from, to) = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    (SocketAddr::new(source, from), SocketAddr::new(dest, to))
}

fn vip(family: Family) -> IpAddr {
    if family == Family::V4 { VIP.into() } else { VIP6.into() }
}

#[test]
fn replies_are_routed_from_the_virtual_address_and_take_the_fast_path() {
    for family in [Family::V4, Family::V6] {
        for method in ["-m", "--fullnat"] {
            let selectors = Selectors { from: Some(vip(family)), ..Selectors::default() };
            let mut play = Play::new(family, method, selectors);
            assert_eq!(play.reply(Transport::Udp).0, "wan2", "{method}, {family:?}");
            assert_eq!(play.reply(Transport::Udp), ("wan2".to_owned(), true), "{method}, {family:?}");
            assert_eq!(play.request(Transport::Udp).0, "lan");
            let other = Selectors { from: Some(at(server(1), 0).ip()), ..Selectors::default() };
            let mut play = Play::new(family, method, if family == Family::V4 { other } else { NONE });
            assert_eq!(play.reply(Transport::Udp).0, if family == Family::V4 { "wan" } else { "wan2" });
        }
    }
}

#[test]
fn a_reply_is_routed_by_its_own_mark_on_the_general_path_and_a_request_by_none() {
    for family in [Family::V4, Family::V6] {
        let mut play = Play::new(family, "-m", Selectors { mark: Some(2), ..Selectors::default() });
        assert_eq!(play.reply(Transport::Udp).0, "wan");
        assert_eq!(play.reply(Transport::Udp), ("wan".to_owned(), true), "no packet is marked");
        play.mark(&format!("-d {} --set-mark 2", vip(family)));
        assert_eq!(play.request(Transport::Udp).0, "lan", "requests have no mark");
        let reply = play.reply(Transport::Udp);
        assert_eq!(reply, ("wan".to_owned(), true), "no rule marks what goes to the client");
        let server = if family == Family::V4 { IpAddr::from(server(1)) } else { server6(1).into() };
        play.mark(&format!("-s {server} --set-mark 2"));
        assert_eq!(play.reply(Transport::Udp), ("wan2".to_owned(), false), "{family:?}");
    }
}

#[test]
fn requests_are_routed_by_the_real_servers_address_and_not_from_the_client() {
    for family in [Family::V4, Family::V6] {
        let [server, client] = match family {
            Family::V4 => [server(1).into(), IpAddr::from(CLIENT)],
            Family::V6 => [server6(1).into(), IpAddr::from(CLIENT6)],
        };
        for method in ["-m", "-g", "-i", "--fullnat"] {
            for (selectors, link) in [
                (Selectors { to: Some(server), ..NONE }, "wan2"),
                (Selectors { from: Some(client), ..NONE }, "lan"),
            ] {
                let mut play = Play::new(family, method, selectors);
                for _ in 0..2 {
                    assert_eq!(play.request(Transport::Udp).0, link, "{method}, {family:?}");
                }
            }
        }
    }
}

#[test]
fn the_outer_packets_of_ipv4_tunnels_are_routed_from_the_directors_address_and_those_of_ipv6_are_not() {
    for (family, link) in [(Family::V4, "wan2"), (Family::V6, "lan")] {
        let inside = if family == Family::V4 { IpAddr::from(INSIDE) } else { INSIDE6.into() };
        let mut play = Play::new(family, "-i", Selectors { from: Some(inside), ..NONE });
        let (by, source, _) = play.request(Transport::Udp);
        assert_eq!((by.as_str(), source.ip()), (link, inside));
        let mut play = Play::new(family, "-m", Selectors { from: Some(inside), ..NONE });
        assert_eq!(play.request(Transport::Udp).0, "lan");
    }
}

#[test]
fn icmp_errors_to_a_client_take_the_route_of_replies() {
    let mut play = Play::new(Family::V4, "-m", Selectors { from: Some(VIP.into()), ..NONE });
    let (_, client, dest) = play.request(Transport::Udp);
    // The server's error about the request.
    let IpAddr::V4(of_server) = dest.ip() else { panic!("an IPv4 address") };
    let request = Datagram::new(Transport::Udp, client, dest).packet();
    let error = Complaint::PORT_UNREACHABLE.about(&request, of_server, 7);
    let judged = play.cluster.inject("lan", &ethernet(server_mac(1), LAN_MAC, EtherType::IPV4, &error));
    assert_eq!((judged.verdict.as_str(), judged.sent[0].0.as_str()), ("transmit", "wan2"));
    // The director's own error.
    play.cluster.adm(&format!("-d -u {} -r {dest}", play.vip));
    let frame = Datagram::new(Transport::Udp, at(CLIENT, 4001), play.vip).frame(GATEWAY_MAC, WAN_MAC);
    let judged = play.cluster.inject("wan", &frame);
    assert_eq!((judged.verdict.as_str(), judged.sent[0].0.as_str()), ("drop no_destination", "wan2"));
    assert_eq!(ends(&judged.sent[0].1).0.ip(), IpAddr::from(VIP));
}

#[test]
fn explain_names_the_rule_and_the_table_and_a_client_comes_in_by_the_uplink_of_the_replies() {
    let mut play = Play::new(Family::V4, "-m", Selectors { from: Some(VIP.into()), ..NONE });
    let (_, to, from) = play.request(Transport::Udp);
    let mut explain = |from: SocketAddr, to: SocketAddr| {
        let words = format!("explain --proto udp --from {from} --to {to}");
        play.cluster.xvs_reading(&words).1.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let reply = explain(from, to);
    let hop = "next hop 192.0.2.200 via 10.77.0.2 on wan2, link address 02:00:00:00:03:fe, MTU 1500, \
               by policy rule 100: from 198.51.100.1/32 lookup 100";
    assert!(reply.contains(hop), "{reply}");
    let request = explain(at(CLIENT, 4001), at(VIP, 80));
    assert!(request.contains("received on wan2"), "{request}");
    assert!(request.contains("by policy rule 32766: from all lookup main"), "{request}");
}

#[test]
fn a_reset_to_the_client_takes_the_route_of_replies_and_one_to_the_server_that_of_requests() {
    let mut play = Play::new(Family::V4, "-m", Selectors { from: Some(VIP.into()), ..NONE });
    let (_, to, from) = play.request(Transport::Tcp(SYN));
    // From now on without a double: the lab has no command that resets a connection.
    let reset = Request::ResetConnections(Filter::default());
    assert!(play.cluster.lab().director.call(reset).is_ok());
    let links = |sent: Vec<(String, Vec<u8>)>| {
        sent.into_iter().map(|(link, frame)| (link, ends(&frame))).collect::<Vec<_>>()
    };
    let to_client = ("wan2".to_owned(), (play.vip, play.client));
    let to_server = ("lan".to_owned(), (to, from));
    let request = Datagram::new(Transport::Tcp(ACK), play.client, play.vip);
    let mut sent = links(play.cluster.from_client(&request).sent);
    sent.sort();
    assert_eq!(sent, [to_server.clone(), to_client.clone()], "of a client's packet");
    let reply = Datagram::new(Transport::Tcp(ACK), from, to);
    let mut sent = links(play.cluster.from_server(&reply).sent);
    sent.sort();
    assert_eq!(sent, [to_server, to_client], "of a server's packet");
}

#[test]
fn a_segment_size_is_lowered_to_what_the_uplink_of_the_virtual_address_carries() {
    let mut play = Play::new(Family::V4, "-m", Selectors { from: Some(VIP.into()), ..NONE });
    play.cluster.change_network(|network| {
        let wan2 = network.links.iter_mut().find(|link| link.name == "wan2").expect("it was added");
        wan2.mtu = 1300;
    });
    play.cluster.ok(json!({ "set": { "mss_clamp": "all" } }));
    let syn = |options: &[TcpOptionElement]| {
        let ip = PacketBuilder::ethernet2(GATEWAY_MAC, WAN_MAC).ipv4(CLIENT.octets(), VIP.octets(), 64);
        let tcp = ip.tcp(4000, 80, 1, 501).syn().options(options).expect("the option fits");
        let mut frame = Vec::new();
        tcp.write(&mut frame, &[]).expect("a vector takes all");
        frame
    };
    let sent = play.cluster.inject("wan", &syn(&[TcpOptionElement::MaximumSegmentSize(1460)])).sent;
    let packet = SlicedPacket::from_ethernet(&sent[0].1).expect("a valid packet");
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("a segment") };
    assert_eq!(tcp.options_iterator().next(), Some(Ok(TcpOptionElement::MaximumSegmentSize(1300 - 40))));
}

const NONE: Selectors = Selectors { from: None, to: None, mark: None };
const GATEWAY6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 2);
