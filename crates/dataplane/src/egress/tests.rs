//! Look-ups in literal tables, and in random ones compared with a scan of all routes.

use proptest::prelude::*;
use xvs_proto::Prefix;

use super::*;
use xvs_proto::network::{Neighbour, NextHop, Route, RouteAction, Table};

const WAN: LinkId = LinkId(0);
const LAN: LinkId = LinkId(1);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

/// A director between 10.0.0.0/24 (wan, with the default gateway) and 10.1.0.0/24 (lan).
fn director() -> Network {
    let mut network = Network::default();
    network.add_link("wan", mac(1), &[(ip("10.0.0.1"), 24), (ip("fd00::1"), 64)], 1500).unwrap();
    network.add_link("lan", mac(2), &[(ip("10.1.0.1"), 24)], 9000).unwrap();
    network.add_route(prefix("0.0.0.0/0"), Some(ip("10.0.0.254")), "wan").unwrap();
    network.add_neighbour(ip("10.0.0.254"), mac(254), "wan").unwrap();
    network
}

fn via(link: LinkId, next_hop: &str) -> RouteTo {
    RouteTo::Via { link, next_hop: ip(next_hop) }
}

#[test]
fn the_longest_prefix_wins_and_table_local_comes_first() {
    let mut network = director();
    network.add_route(prefix("10.2.0.0/16"), Some(ip("10.1.0.9")), "lan").unwrap();
    // A host route in table main to an address of the director must not take precedence over table local.
    network.add_route(prefix("10.1.0.1/32"), Some(ip("10.0.0.254")), "wan").unwrap();
    let egress = Egress::build(&network);
    assert_eq!(egress.route(ip("10.1.0.1"), 0), RouteTo::Local);
    assert_eq!(egress.route(ip("10.1.0.255"), 0), RouteTo::Local);
    assert_eq!(egress.route(ip("10.1.0.7"), 0), via(LAN, "10.1.0.7"));
    assert_eq!(egress.route(ip("10.2.3.4"), 0), via(LAN, "10.1.0.9"));
    assert_eq!(egress.route(ip("192.0.2.1"), 0), via(WAN, "10.0.0.254"));
    assert_eq!(egress.route(ip("fd00::7"), 0), via(WAN, "fd00::7"));
    assert_eq!(egress.route(ip("2001:db8::1"), 0), RouteTo::NoRoute);
    assert!(egress.is_local(ip("fd00::1")) && !egress.is_local(ip("10.1.0.7")));
}

#[test]
fn the_lowest_metric_wins_and_a_route_by_an_unknown_link_refuses_its_packets() {
    let mut network = director();
    let route = |metric, action| Route {
        table: Table::Main,
        dest: prefix("10.3.0.0/16"),
        metric,
        action,
        preferred_source: None,
        mtu: None,
    };
    let by = |ifindex| RouteAction::Unicast(vec![NextHop { ifindex, via: None, weight: 1 }]);
    network.routes.extend([route(30, RouteAction::Unreachable), route(20, by(1)), route(10, by(2))]);
    assert_eq!(Egress::build(&network).route(ip("10.3.0.1"), 0), via(LAN, "10.3.0.1"));
    network.links.pop();
    assert_eq!(Egress::build(&network).route(ip("10.3.0.1"), 0), RouteTo::Unreachable);
    network.routes.retain(|route| route.metric != 10);
    assert_eq!(Egress::build(&network).route(ip("10.3.0.1"), 0), via(WAN, "10.3.0.1"));
}

#[test]
fn flows_spread_over_a_multipath_route_by_weight_and_each_keeps_its_next_hop() {
    let mut network = director();
    let hops = vec![
        NextHop { ifindex: 1, via: Some(ip("10.0.0.253")), weight: 3 },
        NextHop { ifindex: 2, via: Some(ip("10.1.0.253")), weight: 1 },
    ];
    network.routes.push(Route {
        table: Table::Main,
        dest: prefix("10.4.0.0/16"),
        metric: 0,
        action: RouteAction::Unicast(hops),
        preferred_source: None,
        mtu: None,
    });
    let egress = Egress::build(&network);
    let step = u64::MAX / 1000 + 1;
    let first = (0..1000).filter(|n| egress.route(ip("10.4.0.1"), n * step) == via(WAN, "10.0.0.253"));
    assert_eq!(first.count(), 750);
    assert_eq!(egress.route(ip("10.4.0.1"), u64::MAX), via(LAN, "10.1.0.253"));
    assert_eq!(egress.route(ip("10.4.0.1"), 0), egress.route(ip("10.4.0.1"), u64::from(u32::MAX)));
}

#[test]
fn links_keep_their_ids_when_another_goes() {
    let mut network = director();
    network.links.remove(0);
    let egress = Egress::build(&network);
    assert_eq!(egress.link(WAN), None);
    assert_eq!(egress.link_by_ifindex(2), Some(LAN));
    let lan = egress.link(LAN).unwrap();
    assert_eq!((lan.name.as_str(), lan.mtu, lan.mac, lan.up), ("lan", 9000, mac(2), true));
    assert_eq!(egress.links().map(|(id, _)| id).collect::<Vec<_>>(), [LAN]);
    assert_eq!(network.add_link("wan2", mac(3), &[], 1500), Ok(WAN));
}

#[test]
fn a_neighbour_is_known_by_its_link_and_address() {
    let mut network = director();
    network.neighbours.push(Neighbour { ifindex: 99, addr: ip("10.0.0.3"), mac: mac(3) });
    let egress = Egress::build(&network);
    assert_eq!(egress.neighbour(WAN, ip("10.0.0.254")), Some(mac(254)));
    assert_eq!(egress.neighbour(LAN, ip("10.0.0.254")), None);
    assert_eq!(egress.neighbour(WAN, ip("10.0.0.3")), None);
    assert_eq!(egress.neighbour(WAN, ip("::ffff:10.0.0.254")), None);
}

#[test]
fn the_source_is_the_routes_preferred_one_then_one_in_the_gateways_network_then_the_first() {
    let mut network = director();
    network.links[0].addresses = vec![(ip("192.0.2.1"), 24), (ip("10.0.0.1"), 24), (ip("fd00::1"), 64)];
    network.links[1].addresses.clear();
    let egress = Egress::build(&network);
    assert_eq!(egress.source_for(ip("10.0.0.7"), WAN), Some(ip("10.0.0.1")), "connected route's own");
    assert_eq!(egress.source_for(ip("8.8.8.8"), WAN), Some(ip("10.0.0.1")), "gateway's network");
    network.add_route(prefix("10.9.0.0/16"), None, "lan").unwrap();
    let egress = Egress::build(&network);
    assert_eq!(egress.source_for(ip("10.9.0.1"), WAN), Some(ip("192.0.2.1")), "first of the link");
    assert_eq!(egress.source_for(ip("10.9.0.1"), LAN), Some(ip("192.0.2.1")), "another link's");
    network.routes.last_mut().unwrap().preferred_source = Some(ip("198.51.100.9"));
    assert_eq!(Egress::build(&network).source_for(ip("10.9.0.1"), LAN), Some(ip("198.51.100.9")));
    assert_eq!(Egress::default().source_for(ip("10.9.0.1"), LAN), None);
}

#[test]
fn an_ipv6_source_has_the_scope_of_the_destination_and_the_longest_common_prefix() {
    let mut network = director();
    network.links[0].addresses =
        vec![(ip("fe80::1"), 64), (ip("2001:db8:1::1"), 64), (ip("2001:db8:2::1"), 64)];
    let egress = Egress::build(&network);
    assert_eq!(egress.source_for(ip("2001:db8:2::9"), WAN), Some(ip("2001:db8:2::1")));
    assert_eq!(egress.source_for(ip("fe80::9"), WAN), Some(ip("fe80::1")));
    assert_eq!(egress.source_for(ip("2001:db8:1::9"), LAN), Some(ip("2001:db8:1::1")), "another link's");
}

#[test]
fn a_route_may_lower_the_mtu_of_its_link_but_not_raise_it() {
    let mut network = director();
    network.add_route(prefix("10.2.0.0/16"), Some(ip("10.1.0.9")), "lan").unwrap();
    for (configured, allowed) in [(None, 9000), (Some(1400), 1400), (Some(65_000), 9000)] {
        network.routes.last_mut().unwrap().mtu = configured;
        assert_eq!(Egress::build(&network).mtu(ip("10.2.0.1"), LAN), Some(allowed));
    }
    assert_eq!(Egress::build(&network).mtu(ip("10.2.0.1"), LinkId(7)), None);
}

/// The result of a scan of all routes.
fn scan(network: &Network, dest: IpAddr) -> RouteTo {
    for table in [Table::Local, Table::Main] {
        let matching =
            network.routes.iter().filter(|route| route.table == table && route.dest.contains(dest));
        // `min_by_key` returns the first of several equal routes.
        let best = matching.min_by_key(|route| (u8::MAX - route.dest.len(), route.metric));
        match best.map(|route| &route.action) {
            None => {}
            Some(RouteAction::Local | RouteAction::Broadcast) => return RouteTo::Local,
            Some(RouteAction::Unreachable) => return RouteTo::Unreachable,
            Some(RouteAction::Unicast(hops)) => {
                let Some(hop) = hops.iter().find(|hop| (1..=2).contains(&hop.ifindex)) else {
                    return RouteTo::Unreachable;
                };
                let link = LinkId(hop.ifindex as u16 - 1);
                return RouteTo::Via { link, next_hop: hop.via.unwrap_or(dest) };
            }
        }
    }
    RouteTo::NoRoute
}

/// Addresses that differ in few bits, so that random prefixes often contain random destinations.
fn addr() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), any::<u16>()).prop_map(|(v4, bits)| {
        let spread = u32::from(bits & 0xf) | u32::from(bits >> 4 & 0xf) << 12 | u32::from(bits >> 8) << 24;
        if v4 {
            IpAddr::V4(spread.into())
        } else {
            IpAddr::V6((u128::from(spread) << 96 | u128::from(spread)).into())
        }
    })
}

fn route() -> impl Strategy<Value = Route> {
    let action =
        prop_oneof![
            Just(RouteAction::Local),
            Just(RouteAction::Broadcast),
            Just(RouteAction::Unreachable),
            (1u32..4, prop::option::of(addr()))
                .prop_map(|(ifindex, via)| RouteAction::Unicast(vec![NextHop { ifindex, via, weight: 1 }])),
        ];
    (any::<bool>(), addr(), 0u8..=128, 0u32..4, action).prop_map(|(local, addr, len, metric, action)| {
        let len = if addr.is_ipv4() { len / 4 } else { len };
        let dest = Prefix::new(addr, len).unwrap();
        let table = if local { Table::Local } else { Table::Main };
        Route { table, dest, metric, action, preferred_source: None, mtu: None }
    })
}

proptest! {
    #[test]
    fn a_look_up_finds_what_a_scan_of_all_routes_finds(
        routes in prop::collection::vec(route(), 0..40),
        dests in prop::collection::vec(addr(), 20),
        flow_hash in any::<u64>(),
    ) {
        let mut network = director();
        network.routes = routes;
        let egress = Egress::build(&network);
        for dest in dests {
            prop_assert_eq!(egress.route(dest, flow_hash), scan(&network, dest));
        }
    }
}

#[test]
fn a_neighbour_that_packets_were_sent_to_is_reported_once_and_others_are_not() {
    let mut network = director();
    network.add_neighbour(ip("10.1.0.7"), mac(7), "lan").unwrap();
    let egress = Egress::build(&network);
    let used = || egress.take_used().collect::<Vec<_>>();
    assert_eq!(egress.neighbour(LAN, ip("10.1.0.7")), Some(mac(7)));
    assert_eq!(used(), []);
    for _ in 0..2 {
        assert!(matches!(Path::find(&egress, ip("198.51.100.9"), 0), Path::To(_)));
    }
    assert_eq!(used(), [(network.links[0].ifindex, ip("10.0.0.254"))]);
    assert_eq!(used(), []);
}
