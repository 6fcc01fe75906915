//! Changes of the steered traffic, shown by the kernel on literal frames. Needs root, or CAP_BPF, CAP_NET_ADMIN and
//! CAP_PERFMON; fails without them.

use std::net::Ipv4Addr;

use xvs_dataplane::steering::{MapSizes, Steering, SteeringError, SteeringRules, Verdict};
use xvs_proto::{Endpoint, Prefix, Protocol};

use crate::steering::{
    ANY_PORT, CLIENT, LOCAL, OTHER, REAL, REAL_ANY_PORT, SELF, VIP, WIDE, assert_all, at, rules, steering,
    tcp, udp,
};

#[test]
fn during_a_change_the_traffic_of_both_configurations_is_steered_and_afterwards_only_the_new() {
    let mut steering = steering();
    let old = tcp((CLIENT, 4000), (VIP, 80));
    let new = tcp((CLIENT, 4000), (OTHER, 80));
    let reply = tcp((REAL, 8080), (SELF, 4000));
    let mut wanted = rules();
    wanted.services = [(Protocol::TCP, at(OTHER, 80))].into();
    wanted.local_addresses.clear();

    steering.add(&wanted).unwrap();
    assert_all(&steering, Verdict::Steered, &[("old", old.clone()), ("new", new.clone())]);
    assert_all(&steering, Verdict::Kernel, &[("still local", reply.clone())]);

    steering.set(&wanted).unwrap();
    assert_all(&steering, Verdict::Steered, &[("new", new), ("no longer local", reply)]);
    assert_all(&steering, Verdict::Kernel, &[("old", old)]);
}

#[test]
fn a_removed_service_is_not_steered_and_others_at_its_address_still_are() {
    let mut steering = steering();
    let less = SteeringRules { services: [(Protocol::TCP, at(VIP, 80))].into(), ..Default::default() };
    steering.subtract(&less).unwrap();
    assert_all(&steering, Verdict::Kernel, &[("removed", tcp((CLIENT, 4000), (VIP, 80)))]);
    assert_all(&steering, Verdict::Steered, &[("another service", udp((CLIENT, 4000), (VIP, 53)))]);
    steering.add(&less).unwrap();
    assert_all(&steering, Verdict::Steered, &[("again", tcp((CLIENT, 4000), (VIP, 80)))]);
}

/// The program's filter has the bits of all keys in the maps before the program needs them.
#[test]
fn the_first_rule_of_each_kind_is_in_force_at_once_and_so_is_its_removal() {
    let of = |rules: &dyn Fn(&mut SteeringRules)| {
        let mut more = SteeringRules::default();
        rules(&mut more);
        more
    };
    let kinds = [
        ("service", of(&|more| more.services = [(Protocol::TCP, at(VIP, 80))].into())),
        ("any port", of(&|more| more.services = [(Protocol::TCP, at(ANY_PORT, 0))].into())),
        ("real server", of(&|more| more.nat_destinations = [(Protocol::TCP, at(REAL, 8080))].into())),
        (
            "real server with any port",
            of(&|more| more.nat_destinations = [(Protocol::UDP, at(REAL_ANY_PORT, 0))].into()),
        ),
        ("probe", of(&|more| more.probe_sources = [at(SELF, 40_000)].into())),
        ("local ports", of(&|more| more.translated = [(LOCAL.into(), (5000, 5999))].into())),
        ("network", of(&|more| more.wide = ["192.0.2.64/28".parse().unwrap()].into())),
    ];
    let frames = [
        tcp((CLIENT, 4000), (VIP, 80)),
        tcp((CLIENT, 4000), (ANY_PORT, 7)),
        tcp((REAL, 8080), (CLIENT, 4000)),
        udp((REAL_ANY_PORT, 7), (CLIENT, 4000)),
        tcp((CLIENT, 4000), (SELF, 40_000)),
        udp((CLIENT, 4000), (LOCAL, 5000)),
        udp((CLIENT, 4000), (WIDE, 9)),
    ];
    let mut steering = Steering::load_for_test_runs().unwrap();
    for ((kind, rules), frame) in kinds.iter().zip(frames) {
        let frame = [(*kind, frame)];
        assert_all(&steering, Verdict::Kernel, &frame);
        steering.add(rules).unwrap();
        assert_all(&steering, Verdict::Steered, &frame);
        steering.subtract(rules).unwrap();
        assert_all(&steering, Verdict::Kernel, &frame);
        steering.set(rules).unwrap();
        assert_all(&steering, Verdict::Steered, &frame);
        steering.set(&SteeringRules::default()).unwrap();
        assert_all(&steering, Verdict::Kernel, &frame);
    }
}

#[test]
fn a_full_map_names_its_limit_and_keeps_its_entries() {
    let mut steering = steering();
    let mut wanted = rules();
    let nets = (0..=1u32 << 14)
        .map(|net| format!("{}/32", Ipv4Addr::from(0x0a00_0000 + net)).parse::<Prefix>().unwrap());
    wanted.wide.extend(nets);
    let error = steering.update(&wanted).unwrap_err();
    assert!(matches!(error, SteeringError::Full { what: "networks", limit: 16384, .. }), "{error}");
    assert_all(&steering, Verdict::Steered, &[("before", tcp((CLIENT, 4000), (VIP, 80)))]);

    steering.update(&rules()).unwrap();
    assert_all(&steering, Verdict::Kernel, &[("removed", tcp((CLIENT, 4000), ([10, 0, 0, 1], 80)))]);
}

#[test]
fn as_many_endpoints_and_addresses_are_steered_as_the_setting_says_and_one_more_names_the_setting() {
    let sizes = MapSizes { endpoints: 1024, ..MapSizes::default() };
    let server = |number: u32| Endpoint { addr: Ipv4Addr::from(0x0a00_0000 + number).into(), port: 80 };
    let servers = |count: u32| SteeringRules {
        nat_destinations: (0..count).map(|number| (Protocol::TCP, server(number))).collect(),
        ..SteeringRules::default()
    };
    let ends = |count: u32| SteeringRules {
        tunnel_ends: (0..count).map(|number| server(number).addr).collect(),
        ..SteeringRules::default()
    };
    // The endpoints of one address.
    let ports = |count: u16| SteeringRules {
        services: (0..count).map(|port| (Protocol::TCP, at(VIP, 1 + port))).collect(),
        ..SteeringRules::default()
    };
    for (exact, more, what) in [
        (servers(1024), servers(1025), "addresses"),
        (ends(1024), ends(1025), "addresses"),
        (ports(1024), ports(1025), "endpoints"),
    ] {
        let mut steering = Steering::load(sizes).unwrap();
        steering.update(&exact).unwrap();
        let error = steering.update(&more).unwrap_err().to_string();
        let step = "raise `steered_endpoints` in xvs.toml, which `xvs reload` applies";
        assert_eq!(error, format!("steering holds at most 1024 {what}; {step}"));
        steering.update(&exact).unwrap();
    }
    for endpoints in [0, 1023, (1 << 24) + 1] {
        let refused = Steering::load(MapSizes { endpoints, ..sizes }).err().unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    }
}
