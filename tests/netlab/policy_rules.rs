//! Routes by policy rules, compared with the kernel's own answers.
//!
//! Random rules, tables and addresses are entered into a namespace. The follower reads them, and each look-up must have
//! the result of `ip route get`. Needs root. Not here: packets (`policy.rs`).

use std::cell::Cell;
use std::fmt::Write;
use std::net::IpAddr;
use std::process::Stdio;

use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use xvs::netns::{Netns, must};
use xvs_dataplane::egress::{Egress, RouteTo};
use xvs_host::network::NetworkFollower;
use xvs_proto::network::RouteKey;

/// The number of random networks.
const CASES: u32 = 12;
/// The number of look-ups in each.
const PACKETS: usize = 30;
const FLAGS: [&str; 2] = ["-4", "-6"];
/// Addresses of `lo`, from which packets may come; IPv4 and IPv6.
const SOURCES: [[&str; 2]; 3] = [
    ["198.51.100.1", "2001:db8:100::1"],
    ["198.51.100.2", "2001:db8:100::2"],
    ["203.0.113.9", "2001:db8:113::9"],
];
/// Addresses to which packets go.
const DESTS: [[&str; 2]; 5] = [
    ["192.0.2.1", "2001:db8:2::1"],
    ["192.0.2.130", "2001:db8:2::8001"],
    ["10.0.1.7", "fd00:1::7"],
    ["10.0.2.1", "fd00:2::1"],
    ["10.9.9.9", "fd09::9"],
];
/// Networks of sources and destinations.
const FROM: [[&str; 2]; 5] = [
    ["198.51.100.1", "2001:db8:100::1"],
    ["198.51.100.0/30", "2001:db8:100::/126"],
    ["203.0.113.0/24", "2001:db8:113::/64"],
    ["128.0.0.0/1", "2000::/3"],
    ["0.0.0.0/1", "::/1"],
];
const TO: [[&str; 2]; 6] = [
    ["192.0.2.0/24", "2001:db8:2::/64"],
    ["192.0.2.128/25", "2001:db8:2::8000/113"],
    ["10.0.1.0/24", "fd00:1::/64"],
    ["10.0.2.1", "fd00:2::1"],
    ["8.0.0.0/5", "fd00::/8"],
    ["0.0.0.0/0", "::/0"],
];
const TABLES: [&str; 5] = ["100", "101", "1000", "main", "local"];

/// A random line of `ip rule add`, without its priority, in the words of both families.
fn rule() -> impl Strategy<Value = [String; 2]> {
    let from = prop::option::weighted(0.5, 0..FROM.len());
    let to = prop::option::weighted(0.3, 0..TO.len());
    let mark = prop::option::weighted(0.4, prop_oneof!["1", "2", "0x1/0x3", "0/0x2", "0x10/0xf0"]);
    let action = prop_oneof![
        6 => prop::sample::select(&TABLES[..]).prop_map(|table| format!("lookup {table}")),
        1 => prop_oneof!["blackhole", "unreachable", "prohibit"],
    ];
    let input = prop::option::weighted(0.2, prop_oneof!["lo", "d1"]);
    (from, to, mark, input, action).prop_map(|(from, to, mark, input, action)| {
        [0, 1].map(|family| {
            let mut line = String::new();
            let _ = from.map(|at| write!(line, " from {}", FROM[at][family]));
            let _ = to.map(|at| write!(line, " to {}", TO[at][family]));
            let _ = mark.as_ref().map(|mark| write!(line, " fwmark {mark}"));
            let _ = input.as_ref().map(|dev| write!(line, " iif {dev}"));
            // Without a selector, `ip` needs one to tell a type from a selector.
            if line.is_empty() {
                line += " from all";
            }
            format!("{line} {action}")
        })
    })
}

/// A random line of `ip route replace`, in the words of both families.
fn route() -> impl Strategy<Value = [String; 2]> {
    let kind = prop_oneof![
        5 => (1..=3, any::<bool>()).prop_map(|(dev, via)| {
            let gateway = |net: String| if via { format!(" via {net} onlink") } else { String::new() };
            [gateway(format!("10.0.{dev}.254")), gateway(format!("fd00:{dev}::fe"))]
                .map(|gateway| ("", format!(" dev d{dev}{gateway}")))
        }),
        1 => prop::sample::select(vec!["unreachable", "blackhole", "prohibit", "throw"])
            .prop_map(|kind| [(kind, String::new()), (kind, String::new())]),
        1 => Just([("local", " dev lo".to_owned()), ("local", " dev lo".to_owned())]),
    ];
    (0..TO.len(), 0..4usize, kind).prop_map(|(to, table, kind)| {
        // In main it would make gateways addresses of this machine, which the kernel refuses.
        let table = TABLES[if kind[0].0 == "local" { table % 3 } else { table }];
        [0, 1].map(|family| {
            let (kind, next) = &kind[family];
            format!("{kind} {}{next} table {table}", TO[to][family])
        })
    })
}

/// What packets are looked up for: a family, destination, source if it is chosen, and mark.
type Packets = (usize, usize, Option<usize>, u32);

fn packets() -> impl Strategy<Value = Packets> {
    let mark = prop::sample::select(vec![0, 0, 1, 2, 3, 0x12]);
    (0..2usize, 0..DESTS.len(), prop::option::of(0..SOURCES.len()), mark)
}

/// A namespace with three links, of which the kernel sends by each.
fn network() -> Netns {
    let netns = Netns::new("policy");
    for number in 1..=3 {
        // Its far end is unused.
        netns.veth(&format!("d{number}"), &netns, &format!("far{number}"));
        netns.ip(&format!("addr add 10.0.{number}.1/24 dev d{number}"));
        netns.ip(&format!("addr add fd00:{number}::1/64 dev d{number} nodad"));
    }
    for [v4, v6] in SOURCES {
        netns.ip(&format!("addr add {v4}/32 dev lo"));
        netns.ip(&format!("addr add {v6}/128 dev lo nodad"));
    }
    must(netns.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]));
    netns
}

/// Runs lines of `ip` for a family, all of which must succeed.
fn batch(netns: &Netns, flag: &str, lines: &str) {
    let mut ip =
        netns.command("ip").args([flag, "-b", "-"]).stdin(Stdio::piped()).spawn().expect("ip starts");
    std::io::Write::write_all(&mut ip.stdin.take().expect("a pipe"), lines.as_bytes()).expect("ip reads");
    assert!(ip.wait().expect("ip ends").success(), "{lines}");
}

/// The kernel's answer, as `Egress` gives it: the interface and next hop. Refused packets have no route.
fn kernel(netns: &Netns, words: &str) -> Result<(String, String), &'static str> {
    let words: Vec<&str> = words.split(' ').collect();
    let output = netns.command("ip").args(&words).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<&str> = text.split_whitespace().collect();
    let after = |word| Some(found[found.iter().position(|found| *found == word)? + 1].to_owned());
    match found.first() {
        _ if !output.status.success() => Err("refused"),
        Some(&"unreachable" | &"blackhole" | &"prohibit") | None => Err("refused"),
        Some(&"local" | &"broadcast") => Err("local"),
        Some(dest) => {
            let dev = after("dev").expect("a route has a device");
            // A loopback device delivers what it sends.
            if dev == "lo" { Err("local") } else { Ok((dev, after("via").unwrap_or((*dest).to_owned()))) }
        }
    }
}

/// The same from the tables of xvs.
fn ours(egress: &Egress, key: RouteKey) -> Result<(String, String), &'static str> {
    match egress.route(key, 0) {
        RouteTo::Local => Err("local"),
        RouteTo::Unreachable | RouteTo::NoRoute => Err("refused"),
        RouteTo::Via { link, next_hop } => {
            let name = &egress.link(link).expect("a route is by a link").name;
            if name == "lo" { Err("local") } else { Ok((name.clone(), next_hop.to_string())) }
        }
    }
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

#[test]
fn routes_by_random_rules_and_tables_are_those_of_the_kernel() {
    let config = ProptestConfig {
        max_shrink_iters: 40,
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    };
    let networks = (
        prop::collection::vec(rule(), 0..9),
        prop::collection::vec(route(), 4..20),
        prop::collection::vec(packets(), PACKETS),
    );
    let (compared, ruled) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(config).run(&networks, |(rules, routes, packets)| {
        let netns = network();
        let lines = [0, 1].map(|family| {
            let rules = rules.iter().zip((1000..).step_by(10));
            let rules =
                rules.map(|(rule, priority)| format!("rule add priority {priority}{}\n", rule[family]));
            let routes = routes.iter().map(|route| format!("route replace {}\n", route[family]));
            routes.chain(rules).collect::<String>()
        });
        FLAGS.iter().zip(&lines).for_each(|(flag, lines)| batch(&netns, flag, lines));
        let follower = netns.run(|| NetworkFollower::open().expect("netlink"));
        prop_assert_eq!(&follower.view().warnings, &[]);
        let egress = Egress::build(&follower.view().network);
        for (family, dest, source, mark) in packets {
            let dest = DESTS[dest][family];
            let mut key = RouteKey { mark, ..RouteKey::from(addr(dest)) };
            let mut words = format!("{} route get {dest} mark {mark}", FLAGS[family]);
            if let Some(source) = source.map(|source| SOURCES[source][family]) {
                key.source = addr(source);
                words += &format!(" from {source}");
            }
            let found = ours(&egress, key);
            prop_assert_eq!(&found, &kernel(&netns, &words), "ip {}\n{}", words, lines[family]);
            compared.set(compared.get() + 1);
            ruled.set(ruled.get() + u32::from(found != ours(&egress, key.dest.into())));
        }
        Ok(())
    });
    match result {
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        result => result.expect("the cases are not rejected"),
    }
    assert_eq!(compared.get(), CASES * PACKETS as u32);
    assert!(ruled.get() > 0, "no source and no mark has chosen a route");
}
