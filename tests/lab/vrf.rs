//! VRFs in the lab: each kind of packet takes the routes of the VRF of the interface that received it.
//!
//! Every packet takes the fast path where it can, and the general path in a second director (`support/both_paths.rs`).
//! Not here: look-ups (`dataplane`, `egress/tests.rs`), and the kernel's own VRFs (`tests/vm/vrf.sh`).

use std::net::{IpAddr, SocketAddr};

use xvs::frames::{ACK, SYN};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::{Datagram, LabCluster, Transport};
use xvs_model::protocol::client::Director as _;
use xvs_model::protocol::question::Request;
use xvs_model::report::connection::Filter;
use xvs_proto::network::{Network, NextHop, PolicyAction, Route, RouteAction, Rule, Table};
use xvs_proto::{Family, Prefix};

const BLUE: Table = Table(10);
const RED: Table = Table(20);

/// The VRFs of wan and lan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vrfs {
    /// Both are in one.
    One,
    /// Each is in one of its own, and routes are leaked.
    Two,
    /// Only wan is in one, and the route to clients is also in the main table.
    OfClients,
}

impl Vrfs {
    const ALL: [Self; 3] = [Self::One, Self::Two, Self::OfClients];

    fn enter(self, network: &mut Network) {
        enter(network, "wan", BLUE);
        match self {
            Self::One => enter(network, "lan", BLUE),
            Self::Two => enter(network, "lan", RED),
            Self::OfClients => {}
        }
    }

    /// Adds the routes by which one VRF reaches another.
    fn leak(self, network: &mut Network) {
        let lan = network.link_named("lan").expect("a link").ifindex;
        let by_lan = RouteAction::Unicast(vec![NextHop { ifindex: lan, via: None, weight: 1 }]);
        for family in [Family::V4, Family::V6] {
            let (client, servers) = match family {
                Family::V4 => ("192.0.2.128/25", "203.0.113.0/24"),
                Family::V6 => ("2001:db8:c::/48", "2001:db8:2::/64"),
            };
            match self {
                Self::One => {}
                Self::Two => {
                    network.routes.push(route(BLUE, servers, by_lan.clone()));
                    network.routes.push(route(RED, client, RouteAction::Vrf(BLUE)));
                }
                Self::OfClients => network.routes.push(route(Table::MAIN, client, RouteAction::Vrf(BLUE))),
            }
        }
    }
}

fn route(table: Table, dest: &str, action: RouteAction) -> Route {
    let dest = dest.parse().expect("a network");
    Route { table, dest, metric: 0, action, preferred_source: None, mtu: None }
}

/// Moves a link and its routes to a VRF, as the kernel does, and adds the VRF's rules.
fn enter(network: &mut Network, name: &str, vrf: Table) {
    let link = network.links.iter_mut().find(|link| link.name == name).expect("a link");
    link.vrf = Some(vrf);
    let ifindex = link.ifindex;
    let networks: Vec<_> = link.addresses.iter().filter_map(|&(addr, len)| Prefix::new(addr, len)).collect();
    for route in &mut network.routes {
        let is_of_link = match &route.action {
            RouteAction::Unicast(hops) => hops[0].ifindex == ifindex,
            _ => networks.iter().any(|network| network.contains(route.dest.addr())),
        };
        if is_of_link {
            route.table = vrf;
        }
    }
    for family in [Family::V4, Family::V6] {
        let main = network.rules.iter().position(|rule| rule.family == family && rule.priority > 1000);
        let action = PolicyAction::Lookup(vrf);
        let rule = Rule { family, priority: 1000, from: None, to: None, mark: None, vrf: Some(vrf), action };
        if !network.rules.contains(&rule) {
            network.rules.insert(main.expect("a default rule"), rule);
        }
    }
}

/// A client and a service with one server.
struct Play {
    cluster: LabCluster,
    client: SocketAddr,
    vip: SocketAddr,
}

impl Play {
    fn new(family: Family, method: &str, vrfs: Vrfs) -> Self {
        let [client, vip, server, inside] = match family {
            Family::V4 => [at(CLIENT, 4000), at(VIP, 80), at(server(1), 80), at(INSIDE, 0)],
            Family::V6 => [at(CLIENT6, 4000), at(VIP6, 80), at(server6(1), 80), at(INSIDE6, 0)],
        };
        let mut cluster = LabCluster::new();
        cluster.change_network(|network| vrfs.enter(network));
        cluster.xvs(&format!("laddr add {} --ports 5000-5999", inside.ip()));
        for protocol in ["-t", "-u"] {
            cluster.adm(&format!("-A {protocol} {vip} -s rr"));
            cluster.adm(&format!("-a {protocol} {vip} -r {server} {method}"));
        }
        Self { cluster, client, vip }
    }

    fn leaked(family: Family, method: &str, vrfs: Vrfs) -> Self {
        let mut play = Self::new(family, method, vrfs);
        play.cluster.change_network(|network| vrfs.leak(network));
        play
    }

    /// The verdict on a client's packet, and the link and ends of what is sent for it.
    fn request(&mut self, transport: Transport) -> (String, Vec<(String, SocketAddr, SocketAddr)>) {
        let frame = Datagram::new(transport, self.client, self.vip).frame(GATEWAY_MAC, WAN_MAC);
        self.judge("wan", &frame)
    }

    /// The same of the server's reply to a request.
    fn reply(&mut self, transport: Transport) -> (String, Vec<(String, SocketAddr, SocketAddr)>) {
        let (_, sent) = self.request(transport);
        let frame = Datagram::new(transport, sent[0].2, sent[0].1).frame(server_mac(1), LAN_MAC);
        self.judge("lan", &frame)
    }

    fn judge(&mut self, link: &str, frame: &[u8]) -> (String, Vec<(String, SocketAddr, SocketAddr)>) {
        let judged = self.cluster.inject(link, frame);
        let sent = judged.sent.iter().map(|(link, frame)| {
            let (from, to) = ends(frame);
            (link.clone(), from, to)
        });
        (judged.verdict, sent.collect())
    }
}

/// Source and destination of a frame's packet; without ports of what is no UDP and TCP.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).expect("a valid packet");
    let (source, dest): (IpAddr, IpAddr) = match packet.net.expect("a network header") {
        etherparse::NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        etherparse::NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        etherparse::NetSlice::Arp(_) => panic!("not ARP"),
    };
    let (from, to) = match packet.transport {
        Some(etherparse::TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(etherparse::TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    (SocketAddr::new(source, from), SocketAddr::new(dest, to))
}

#[test]
fn requests_and_replies_take_the_routes_of_the_vrf_that_received_them() {
    for family in [Family::V4, Family::V6] {
        for vrfs in Vrfs::ALL {
            for method in ["-m", "-g", "-i", "--fullnat"] {
                let mut play = Play::leaked(family, method, vrfs);
                for _ in 0..2 {
                    let (verdict, sent) = play.request(Transport::Udp);
                    assert_eq!(
                        (verdict.as_str(), sent[0].0.as_str()),
                        ("transmit", "lan"),
                        "{method}, {vrfs:?}"
                    );
                }
                assert_eq!(play.cluster.general_path(), 0, "{method}, {vrfs:?}");
                if method == "-i" {
                    let inside = if family == Family::V4 { IpAddr::from(INSIDE) } else { INSIDE6.into() };
                    assert_eq!(play.request(Transport::Udp).1[0].1.ip(), inside, "{vrfs:?}");
                }
                if ["-m", "--fullnat"].contains(&method) {
                    for _ in 0..2 {
                        let reply = play.reply(Transport::Udp);
                        let sent = vec![("wan".to_owned(), play.vip, play.client)];
                        assert_eq!(reply, ("transmit".to_owned(), sent), "{method}, {vrfs:?}");
                    }
                    assert_eq!(play.cluster.general_path(), 0, "{method}, {vrfs:?}");
                }
            }
        }
    }
}

#[test]
fn without_a_leaked_route_packets_are_dropped_and_the_client_gets_the_error_in_its_vrf() {
    for family in [Family::V4, Family::V6] {
        let mut play = Play::new(family, "-m", Vrfs::Two);
        let (verdict, sent) = play.request(Transport::Udp);
        assert_eq!(verdict, "drop no_route");
        let (link, from, to) = &sent[0];
        assert_eq!((link.as_str(), from.ip(), to.ip()), ("wan", play.vip.ip(), play.client.ip()));
        // A request finds table main after its VRF's, a reply does not find the VRF's.
        let mut play = Play::new(family, "-m", Vrfs::OfClients);
        assert_eq!(play.reply(Transport::Udp).0, "drop no_route");
    }
}

#[test]
fn a_link_that_leaves_its_vrf_takes_open_connections_along() {
    let mut play = Play::leaked(Family::V4, "-m", Vrfs::Two);
    assert_eq!(play.reply(Transport::Udp).0, "transmit");
    play.cluster.change_network(|network| {
        network.links.iter_mut().for_each(|link| link.vrf = None);
    });
    assert_eq!(play.request(Transport::Udp).0, "drop no_route", "the routes are still those of the VRFs");
    play.cluster.change_network(|network| {
        network.routes.iter_mut().for_each(|route| route.table = Table::MAIN);
    });
    assert_eq!(play.request(Transport::Udp).0, "transmit");
}

#[test]
fn resets_to_both_ends_take_the_routes_of_the_vrf_of_the_packet() {
    let mut play = Play::leaked(Family::V4, "-m", Vrfs::Two);
    let (_, sent) = play.request(Transport::Tcp(SYN));
    let (_, to, from) = sent[0].clone();
    // From now on without a double: the lab has no command that resets a connection.
    let reset = Request::ResetConnections(Filter::default());
    assert!(play.cluster.lab().director.call(reset).is_ok());
    let both = [("lan".to_owned(), to, from), ("wan".to_owned(), play.vip, play.client)];
    let (_, mut sent) = play.request(Transport::Tcp(ACK));
    sent.sort();
    assert_eq!(sent, both, "of a client's packet");
    let frame = Datagram::new(Transport::Tcp(ACK), from, to).frame(server_mac(1), LAN_MAC);
    let (_, mut sent) = play.judge("lan", &frame);
    sent.sort();
    assert_eq!(sent, both, "of a server's packet");
}

#[test]
fn explain_finds_the_interface_of_a_client_in_its_vrf_and_names_the_rule() {
    let mut play = Play::leaked(Family::V4, "-m", Vrfs::Two);
    let words = format!("explain --proto udp --from {} --to {}", play.client, play.vip);
    let text = play.cluster.xvs_reading(&words).1.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("received on wan"), "{text}");
    let hop = "on lan, link address 02:00:00:00:02:0b, MTU 1500, by policy rule 1000: from all in the VRF of table 10 \
               lookup 10";
    assert!(text.contains(hop), "{text}");
}
