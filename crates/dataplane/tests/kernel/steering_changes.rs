//! Changes of the steered traffic, shown by the kernel on literal frames. Needs root, or CAP_BPF, CAP_NET_ADMIN and
//! CAP_PERFMON; fails without them.

use std::net::Ipv4Addr;

use xvs_dataplane::steering::{Steering, SteeringError, SteeringRules, Verdict};
use xvs_proto::{Prefix, Protocol};

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
    assert!(matches!(error, SteeringError::Full { what: "networks", limit: 16384 }), "{error}");
    assert_all(&steering, Verdict::Steered, &[("before", tcp((CLIENT, 4000), (VIP, 80)))]);

    steering.update(&rules()).unwrap();
    assert_all(&steering, Verdict::Kernel, &[("removed", tcp((CLIENT, 4000), ([10, 0, 0, 1], 80)))]);
}
