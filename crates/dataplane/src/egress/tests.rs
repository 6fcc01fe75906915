//! Look-ups in literal tables, and in random ones compared with a scan of all routes.

use std::net::Ipv6Addr;

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
        table: Table::MAIN,
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
        table: Table::MAIN,
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

/// A rule for IPv4 packets that looks up a table.
fn rule(priority: u32, table: Table) -> Rule {
    let action = PolicyAction::Lookup(table);
    Rule { family: Family::V4, priority, from: None, to: None, mark: None, vrf: None, action }
}

/// The director with a default route on lan in table 100, and this rule before the rule for table main.
fn with_rule(rule: Rule) -> Network {
    let mut network = director();
    network.add_route(prefix("0.0.0.0/0"), Some(ip("10.1.0.9")), "lan").unwrap();
    let RouteAction::Unicast(hops) = &mut network.routes.last_mut().unwrap().action else { panic!() };
    let by_lan = hops.pop().unwrap();
    network.routes.push(Route {
        table: Table(100),
        dest: prefix("0.0.0.0/0"),
        metric: 0,
        action: RouteAction::Unicast(vec![by_lan]),
        preferred_source: None,
        mtu: None,
    });
    network.rules.insert(1, rule);
    network
}

fn key(dest: &str, source: &str, mark: u32) -> RouteKey {
    RouteKey { dest: ip(dest), source: ip(source), mark, vrf: None }
}

#[test]
fn a_rule_for_a_source_chooses_the_table_of_its_packets_alone() {
    let network = with_rule(Rule { from: Some(prefix("198.51.100.2")), ..rule(100, Table(100)) });
    let egress = Egress::build(&network);
    let (first, second) = (key("192.0.2.1", "198.51.100.1", 0), key("192.0.2.1", "198.51.100.2", 0));
    assert_eq!(egress.route(first, 0), via(WAN, "10.0.0.254"));
    assert_eq!(egress.route(second, 0), via(LAN, "10.1.0.9"));
    assert_eq!(egress.route(ip("192.0.2.1"), 0), via(WAN, "10.0.0.254"), "a source that is not chosen yet");
    assert_eq!(
        egress.route(key("10.1.0.1", "198.51.100.2", 0), 0),
        RouteTo::Local,
        "table local comes before"
    );
    let text = |key| egress.rule_of(key).map(Rule::to_string);
    assert_eq!(text(second).as_deref(), Some("100: from 198.51.100.2/32 lookup 100"));
    assert_eq!(text(first).as_deref(), Some("32766: from all lookup main"));
    assert_eq!(Egress::build(&director()).rule_of(second), None, "without other rules none is named");
}

#[test]
fn a_rule_for_a_mark_compares_the_bits_of_its_mask() {
    let mark = Some(PolicyRuleMark { mark: 0x11, mask: 0xf });
    let egress = Egress::build(&with_rule(Rule { mark, ..rule(100, Table(100)) }));
    for (mark, expected) in
        [(1, via(LAN, "10.1.0.9")), (0xf1, via(LAN, "10.1.0.9")), (2, via(WAN, "10.0.0.254"))]
    {
        assert_eq!(egress.route(key("192.0.2.1", "198.51.100.1", mark), 0), expected, "mark {mark:#x}");
    }
    assert!(egress.routes_by_mark() && !Egress::build(&director()).routes_by_mark());
}

#[test]
fn a_rule_for_a_destination_precedes_main_and_a_refusing_one_ends_the_look_up() {
    let to = Some(prefix("192.0.2.0/24"));
    let egress = Egress::build(&with_rule(Rule { to, ..rule(100, Table(100)) }));
    assert_eq!(egress.route(ip("192.0.2.1"), 0), via(LAN, "10.1.0.9"));
    assert_eq!(egress.route(ip("192.0.3.1"), 0), via(WAN, "10.0.0.254"));
    let refuse = Rule { to, action: PolicyAction::Refuse, ..rule(100, Table(100)) };
    let egress = Egress::build(&with_rule(refuse));
    assert_eq!(egress.route(ip("192.0.2.1"), 0), RouteTo::Unreachable);
    let refusing = egress.rule_of(ip("192.0.2.1").into()).map(Rule::to_string);
    assert_eq!(refusing.as_deref(), Some("100: from all to 192.0.2.0/24 unreachable"));
}

#[test]
fn a_table_without_a_route_and_a_throw_route_lead_to_the_next_rule() {
    let mut network = with_rule(rule(100, Table(100)));
    assert_eq!(Egress::build(&network).route(ip("192.0.2.1"), 0), via(LAN, "10.1.0.9"));
    let throw = |dest| Route {
        table: Table(100),
        dest: prefix(dest),
        metric: 0,
        action: RouteAction::Throw,
        preferred_source: None,
        mtu: None,
    };
    network.routes.push(throw("192.0.2.0/25"));
    let egress = Egress::build(&network);
    assert_eq!(egress.route(ip("192.0.2.1"), 0), via(WAN, "10.0.0.254"));
    assert_eq!(egress.route(ip("192.0.2.129"), 0), via(LAN, "10.1.0.9"));
    network.routes.retain(|route| route.table != Table(100));
    assert_eq!(Egress::build(&network).route(ip("192.0.2.129"), 0), via(WAN, "10.0.0.254"));
}

/// The result of a scan of all rules and routes.
fn scan(network: &Network, key: RouteKey) -> RouteTo {
    let RouteKey { dest, source, mark, vrf } = key;
    for rule in &network.rules {
        let unknown = source == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let concerned = rule.family == Family::of(dest)
            && rule.from.is_none_or(|from| from.contains(source) && !unknown)
            && rule.to.is_none_or(|to| to.contains(dest))
            && rule.mark.is_none_or(|of| (of.mark ^ mark) & of.mask == 0)
            && rule.vrf.is_none_or(|of| Some(of) == vrf);
        if !concerned {
            continue;
        }
        let PolicyAction::Lookup(table) = rule.action else { return RouteTo::Unreachable };
        match best(network, table, dest) {
            None | Some(RouteAction::Throw) => {}
            Some(RouteAction::Vrf(table)) => {
                let found =
                    best(network, *table, dest).filter(|action| !matches!(action, RouteAction::Vrf(_)));
                return found.map_or(RouteTo::Unreachable, |action| outcome(action, dest));
            }
            Some(action) => return outcome(action, dest),
        }
    }
    RouteTo::NoRoute
}

/// The action of the longest matching prefix in a table.
fn best(network: &Network, table: Table, dest: IpAddr) -> Option<&RouteAction> {
    let matching = network.routes.iter().filter(|route| route.table == table && route.dest.contains(dest));
    // `min_by_key` returns the first of several equal routes.
    let best = matching.min_by_key(|route| (u8::MAX - route.dest.len(), route.metric));
    best.map(|route| &route.action)
}

fn outcome(action: &RouteAction, dest: IpAddr) -> RouteTo {
    match action {
        RouteAction::Local | RouteAction::Broadcast => RouteTo::Local,
        RouteAction::Unicast(hops) => match hops.iter().find(|hop| (1..=2).contains(&hop.ifindex)) {
            Some(hop) => {
                let link = LinkId(hop.ifindex as u16 - 1);
                RouteTo::Via { link, next_hop: hop.via.unwrap_or(dest) }
            }
            None => RouteTo::Unreachable,
        },
        RouteAction::Unreachable | RouteAction::Throw | RouteAction::Vrf(_) => RouteTo::Unreachable,
    }
}

/// Addresses that differ in few bits, so that random prefixes often contain random destinations.
fn addr() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), any::<u16>()).prop_map(|(v4, bits)| spread(v4, bits))
}

fn spread(v4: bool, bits: u16) -> IpAddr {
    let spread = u32::from(bits & 0xf) | u32::from(bits >> 4 & 0xf) << 12 | u32::from(bits >> 8) << 24;
    if v4 {
        IpAddr::V4(spread.into())
    } else {
        IpAddr::V6((u128::from(spread) << 96 | u128::from(spread)).into())
    }
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (addr(), 0u8..=128).prop_map(|(addr, len)| {
        let len = if addr.is_ipv4() { len / 4 } else { len };
        Prefix::new(addr, len).unwrap()
    })
}

fn any_table() -> impl Strategy<Value = Table> {
    prop_oneof![Just(Table::LOCAL), Just(Table::MAIN), Just(Table(100)), Just(Table(101))]
}

fn route() -> impl Strategy<Value = Route> {
    let action =
        prop_oneof![
            Just(RouteAction::Local),
            Just(RouteAction::Broadcast),
            Just(RouteAction::Unreachable),
            Just(RouteAction::Throw),
            any_table().prop_map(RouteAction::Vrf),
            (1u32..4, prop::option::of(addr()))
                .prop_map(|(ifindex, via)| RouteAction::Unicast(vec![NextHop { ifindex, via, weight: 1 }])),
        ];
    (any_table(), any_prefix(), 0u32..4, action).prop_map(|(table, dest, metric, action)| Route {
        table,
        dest,
        metric,
        action,
        preferred_source: None,
        mtu: None,
    })
}

/// A rule; a prefix of the other family in it matches no packet.
fn any_rule() -> impl Strategy<Value = Rule> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let action =
        prop_oneof![5 => any_table().prop_map(PolicyAction::Lookup), 1 => Just(PolicyAction::Refuse)];
    let mark = (0u32..4, 0u32..4).prop_map(|(mark, mask)| PolicyRuleMark { mark, mask });
    let mark = prop::option::weighted(0.3, mark);
    let [from, to] = [(); 2].map(|()| prop::option::weighted(0.3, any_prefix()));
    (family, from, to, mark, any_vrf(), action).prop_map(|(family, from, to, mark, vrf, action)| Rule {
        family,
        priority: 0,
        from,
        to,
        mark,
        vrf,
        action,
    })
}

/// A VRF of one of the director's links.
fn any_vrf() -> impl Strategy<Value = Option<Table>> {
    prop::option::weighted(0.3, prop_oneof![Just(Table(100)), Just(Table(101))])
}

fn any_key() -> impl Strategy<Value = RouteKey> {
    (any::<bool>(), any::<u16>(), prop::option::of(any::<u16>()), 0u32..4, any_vrf()).prop_map(
        |(v4, dest, source, mark, vrf)| {
            let key = RouteKey::from(spread(v4, dest)).of_vrf(vrf);
            RouteKey { source: source.map_or(key.source, |source| spread(v4, source)), mark, ..key }
        },
    )
}

proptest! {
    #[test]
    fn a_look_up_finds_what_a_scan_of_all_rules_and_routes_finds(
        rules in prop::option::of(prop::collection::vec(any_rule(), 0..8)),
        routes in prop::collection::vec(route(), 0..40),
        keys in prop::collection::vec(any_key(), 20),
        flow_hash in any::<u64>(),
    ) {
        let mut network = director();
        for (link, vrf) in network.links.iter_mut().zip([Table(100), Table(101)]) {
            link.vrf = Some(vrf);
        }
        network.routes = routes;
        network.rules.extend(rules.clone().unwrap_or_default());
        if rules.is_some() {
            network.rules.rotate_left(2);
        }
        let egress = Egress::build(&network);
        for key in keys {
            prop_assert_eq!(egress.route(key, flow_hash), scan(&network, key));
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

/// The director with wan in the VRF with table 10 and lan in that with table 20, with the routes that the kernel
/// creates, and the rule for each VRF.
fn with_vrfs() -> Network {
    let mut network = director();
    for (place, vrf) in [Table(10), Table(20)].into_iter().enumerate() {
        let Link { ifindex, addresses, .. } = network.links[place].clone();
        network.links[place].vrf = Some(vrf);
        for route in &mut network.routes {
            let is_own = match &route.action {
                RouteAction::Unicast(hops) => hops[0].ifindex == ifindex,
                _ => addresses
                    .iter()
                    .any(|&(addr, len)| Prefix::new(addr, len).unwrap().contains(route.dest.addr())),
            };
            if is_own {
                route.table = vrf;
            }
        }
        network.rules.insert(1, Rule { vrf: Some(vrf), ..rule(1000, vrf) });
    }
    network
}

/// A route of a VRF's table.
fn leaked(table: Table, dest: &str, action: RouteAction) -> Route {
    Route { table, dest: prefix(dest), metric: 0, action, preferred_source: None, mtu: None }
}

#[test]
fn packets_of_a_vrf_take_the_routes_of_its_table_and_have_its_addresses() {
    let egress = Egress::build(&with_vrfs());
    assert_eq!([WAN, LAN, WAN.own()].map(|link| egress.vrf(link)), [10, 20, 10].map(|vrf| Some(Table(vrf))));
    let in_vrf = |dest, vrf| RouteKey::from(ip(dest)).of_vrf(vrf);
    let (wan, lan) = (Some(Table(10)), Some(Table(20)));
    assert_eq!(egress.route(in_vrf("192.0.2.1", wan), 0), via(WAN, "10.0.0.254"));
    assert_eq!(egress.route(in_vrf("10.1.0.7", lan), 0), via(LAN, "10.1.0.7"));
    for key in [in_vrf("192.0.2.1", lan), in_vrf("192.0.2.1", None), in_vrf("10.1.0.7", None)] {
        assert_eq!(egress.route(key, 0), RouteTo::NoRoute, "{key:?}");
    }
    assert_eq!(
        egress.route(in_vrf("10.1.0.7", wan), 0),
        via(WAN, "10.0.0.254"),
        "by the default route of its VRF"
    );
    assert!(egress.is_local(in_vrf("10.0.0.1", wan)) && !egress.is_local(in_vrf("10.0.0.1", lan)));
    assert!(egress.is_own(ip("10.0.0.1")) && !egress.is_own(ip("10.0.0.2")));
    assert_eq!(egress.vrf_of_address(ip("10.1.0.1")), lan);
    assert_eq!(egress.source_for(in_vrf("10.1.0.7", lan), LAN), Some(ip("10.1.0.1")));
    // Without an address on the link, no address from another VRF is chosen.
    let mut network = with_vrfs();
    network.links[1].addresses.clear();
    network.routes.retain(|route| route.table != Table(20));
    assert_eq!(Egress::build(&network).source_for(in_vrf("10.1.0.7", lan), LAN), None);
    let rule = egress.rule_of(in_vrf("10.1.0.7", lan)).map(Rule::to_string);
    assert_eq!(rule.as_deref(), Some("1000: from all in the VRF of table 20 lookup 20"));
}

#[test]
fn a_leaked_route_is_by_an_interface_of_another_vrf_or_by_the_vrf_itself() {
    let mut network = with_vrfs();
    let by_lan = RouteAction::Unicast(vec![NextHop { ifindex: 2, via: None, weight: 1 }]);
    network.routes.push(leaked(Table(10), "10.1.0.8", by_lan));
    // A narrower prefix, an equal one, and a destination to which the VRF has no route.
    network.routes.push(leaked(Table(10), "10.1.0.16/28", RouteAction::Vrf(Table(20))));
    network.routes.push(leaked(Table(10), "10.2.0.0/16", RouteAction::Vrf(Table(20))));
    // A longer prefix of the packet's own VRF wins.
    network.routes.push(leaked(Table(10), "10.1.0.18/32", RouteAction::Unreachable));
    network.routes.push(leaked(Table(20), "0.0.0.0/0", RouteAction::Vrf(Table(10))));
    let egress = Egress::build(&network);
    let wan = |dest| RouteKey::from(ip(dest)).of_vrf(Some(Table(10)));
    assert_eq!(egress.route(wan("10.1.0.8"), 0), via(LAN, "10.1.0.8"));
    assert_eq!(egress.route(wan("10.1.0.17"), 0), via(LAN, "10.1.0.17"));
    assert_eq!(egress.route(wan("10.1.0.18"), 0), RouteTo::Unreachable);
    assert_eq!(egress.route(wan("10.2.0.1"), 0), RouteTo::Unreachable, "a route from VRF to VRF to VRF");
    assert_eq!(egress.route(wan("10.1.0.32"), 0), via(WAN, "10.0.0.254"));
    let lan = RouteKey::from(ip("192.0.2.1")).of_vrf(Some(Table(20)));
    assert_eq!(egress.route(lan, 0), via(WAN, "10.0.0.254"), "the default route of the other VRF");
    assert_eq!(network.route_to(lan).map(|route| route.table), Some(Table(10)));
}
