//! The follower of the network with a real kernel: after `ip` changes a namespace, the next view shows the change.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::json;
use xvs::netns::{Netns, must};
use xvs_dataplane::egress::{Egress, RouteTo};
use xvs_helper::task::Task;
use xvs_host::network::neighbours::{ChangeNeighbours, Neighbours};
use xvs_host::network::{Event, NetworkFollower, View, follow};
use xvs_proto::network::{Network, Table};

/// Longer than any step takes; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Makes a link that is up and has a carrier, though its far end is unused.
fn link(netns: &Netns, dev: &str) {
    netns.veth(dev, netns, &format!("{dev}-far"));
}

/// How many netlink events the kernel could not deliver in this thread's namespace (`net/netlink/af_netlink.c`,
/// `netlink_native_seq_show`).
fn lost_events() -> u32 {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").expect("procfs is mounted");
    let drops = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8)?.parse::<u32>().ok());
    drops.sum()
}

/// Follows until the network is as the test expects.
fn until(follower: &mut NetworkFollower, what: &str, expected: impl Fn(&View) -> bool) -> View {
    while !expected(follower.view()) {
        match follower.next(PATIENCE).expect("the follower goes on") {
            Event::Changed(_) => {}
            other => panic!("no view in which {what}, but {other:?} after {:#?}", follower.view()),
        }
    }
    follower.view().clone()
}

fn mac_of(network: &Network, addr: &str) -> Option<String> {
    network.neighbours.iter().find(|known| known.addr == ip(addr)).map(|known| known.mac.to_string())
}

#[test]
fn links_addresses_and_routes_are_followed_until_they_are_removed() {
    let netns = Netns::new("follow");
    netns.run(|| {
        let mut follower = NetworkFollower::open().unwrap();
        link(&netns, "wan");
        link(&netns, "lan");
        netns.ip("link set wan address 02:00:00:00:00:01 mtu 1400");
        netns.ip("addr add 10.0.0.1/24 dev wan");
        netns.ip("addr add 10.0.0.2/24 dev wan");
        netns.ip("addr add fd00::1/64 dev wan nodad");
        netns.ip("route add default via 10.0.0.254");
        netns.ip("route add unreachable 10.9.0.0/16");
        netns.ip("route add 10.5.0.0/16 nexthop via 10.0.0.7 dev wan weight 3 nexthop dev lan");
        netns.ip("route add 10.6.0.0/16 via inet6 fd00::9 dev wan src 10.0.0.2 mtu 1300");
        let view = until(&mut follower, "all routes are there", |view| {
            let egress = Egress::build(&view.network);
            egress.route(ip("10.6.0.1"), 0) != egress.route(ip("8.8.8.8"), 0)
                && egress.route(ip("fd00::5"), 0) != RouteTo::NoRoute
                && egress.is_local(ip("fd00::1"))
        });
        let wan = view.network.link_named("wan").unwrap();
        assert_eq!((wan.mac.to_string().as_str(), wan.mtu, wan.up), ("02:00:00:00:00:01", 1400, true));
        assert_eq!(wan.addresses[..2], [(ip("10.0.0.1"), 24), (ip("10.0.0.2"), 24)]);
        let egress = Egress::build(&view.network);
        let (wan, lan) = (wan.id, view.network.link_named("lan").unwrap().id);
        let by = |link, next_hop: &str| RouteTo::Via { link, next_hop: ip(next_hop) };
        assert_eq!(egress.route(ip("10.0.0.255"), 0), RouteTo::Local);
        assert!(egress.is_broadcast(ip("10.0.0.255")) && !egress.is_broadcast(ip("10.0.0.1")));
        assert_eq!(egress.route(ip("127.9.9.9"), 0), RouteTo::Local);
        assert_eq!(egress.route(ip("fd00::1"), 0), RouteTo::Local);
        assert_eq!(egress.route(ip("10.9.1.1"), 0), RouteTo::Unreachable);
        assert_eq!(egress.route(ip("8.8.8.8"), 0), by(wan, "10.0.0.254"));
        assert_eq!(egress.route(ip("10.6.0.1"), 0), by(wan, "fd00::9"));
        assert_eq!(egress.route(ip("10.5.0.1"), 0), by(wan, "10.0.0.7"));
        assert_eq!(egress.route(ip("10.5.0.1"), u64::MAX / 8 * 5), by(wan, "10.0.0.7"), "weight 3 of 4");
        assert_eq!(egress.route(ip("10.5.0.1"), u64::MAX), by(lan, "10.5.0.1"));
        assert_eq!([ip("10.6.0.1"), ip("8.8.8.8")].map(|to| egress.mtu(to, wan)), [Some(1300), Some(1400)]);
        assert_eq!(egress.source_for(ip("10.6.0.1"), wan), Some(ip("10.0.0.2")));
        assert_eq!(egress.source_for(ip("8.8.8.8"), wan), Some(ip("10.0.0.1")));

        // The kernel announces no route that it removes because of its link.
        netns.ip("link set wan down");
        let view = until(&mut follower, "wan is down", |view| !view.network.link_named("wan").unwrap().up);
        assert_eq!(Egress::build(&view.network).route(ip("8.8.8.8"), 0), RouteTo::NoRoute);
        netns.ip("link del wan");
        link(&netns, "third");
        let view = until(&mut follower, "third is there", |view| view.network.link_named("third").is_some());
        assert_eq!(view.network.link_named("wan"), None);
        assert_eq!(view.network.link_named("lan").unwrap().id, lan, "a link keeps its id");
    });
}

#[test]
fn ipv6_routes_are_followed_with_gateways_next_hops_sources_and_mtus() {
    let netns = Netns::new("follow6");
    netns.run(|| {
        let mut follower = NetworkFollower::open().unwrap();
        for (dev, net) in [("wan", "2001:db8:1"), ("lan", "2001:db8:2")] {
            link(&netns, dev);
            netns.ip(&format!("addr add {net}::1/64 dev {dev} nodad"));
        }
        netns.ip("addr add 2001:db8:1::100/128 dev wan nodad");
        netns.ip("route add default via fe80::fe dev wan");
        netns.ip("route add unreachable 2001:db8:9::/48");
        netns.ip("route add 2001:db8:6::/48 via 2001:db8:1::9 src 2001:db8:1::100 mtu 1300");
        netns.ip("-6 route add 2001:db8:5::/48 nexthop via 2001:db8:1::7 weight 3 nexthop via 2001:db8:2::7");
        let view = until(&mut follower, "the last route is there", |view| {
            let egress = Egress::build(&view.network);
            // The kernel adds local routes when it gets to it.
            egress.is_local(ip("2001:db8:1::100"))
                && egress.route(ip("2001:db8:5::1"), 0) != egress.route(ip("2001:db8:7::1"), 0)
                && egress.route(ip("2001:db8:7::1"), 0) != RouteTo::NoRoute
        });
        let egress = Egress::build(&view.network);
        let [wan, lan] = ["wan", "lan"].map(|name| view.network.link_named(name).unwrap().id);
        let by = |link, next_hop: &str| RouteTo::Via { link, next_hop: ip(next_hop) };
        assert!(egress.is_local(ip("2001:db8:1::100")) && egress.is_local(ip("::1")));
        assert_eq!(egress.route(ip("2001:db8:2::5"), 0), by(lan, "2001:db8:2::5"));
        assert_eq!(egress.route(ip("2001:db8:7::1"), 0), by(wan, "fe80::fe"));
        assert_eq!(egress.route(ip("2001:db8:9::1"), 0), RouteTo::Unreachable);
        assert_eq!(egress.route(ip("2001:db8:6::1"), 0), by(wan, "2001:db8:1::9"));
        assert_eq!(egress.mtu(ip("2001:db8:6::1"), wan), Some(1300));
        assert_eq!(egress.source_for(ip("2001:db8:6::1"), wan), Some(ip("2001:db8:1::100")));
        assert_eq!(egress.source_for(ip("2001:db8:2::5"), lan), Some(ip("2001:db8:2::1")));
        assert_eq!(
            egress.route(ip("2001:db8:5::1"), u64::MAX / 8 * 5),
            by(wan, "2001:db8:1::7"),
            "weight 3 of 4"
        );
        assert_eq!(egress.route(ip("2001:db8:5::1"), u64::MAX), by(lan, "2001:db8:2::7"));
    });
}

#[test]
fn routes_by_nexthop_objects_have_the_hops_of_the_objects_and_follow_their_changes() {
    let netns = Netns::new("nexthops");
    netns.run(|| {
        fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap();
        let mut follower = NetworkFollower::open().unwrap();
        for (dev, net) in [("wan", 1), ("lan", 2)] {
            link(&netns, dev);
            netns.ip(&format!("addr add 10.0.{net}.1/24 dev {dev}"));
            netns.ip(&format!("addr add 2001:db8:{net}::1/64 dev {dev} nodad"));
        }
        netns.ip("route add 10.0.0.0/8 via 10.0.1.66");
        for words in [
            "id 1 via 10.0.1.7 dev wan",
            "id 2 via 10.0.2.7 dev lan",
            "id 3 via inet6 fe80::9 dev wan",
            "id 4 via 2001:db8:1::7 dev wan",
            "id 5 via 2001:db8:2::7 dev lan",
            "id 6 blackhole",
            "id 7 encap ip id 5 dst 10.0.1.9 via 10.0.1.7 dev wan",
            "id 10 group 1,3/2",
            "id 11 group 1/2 type resilient buckets 8",
            "id 12 group 4,3/5",
        ] {
            netns.ip(&format!("nexthop add {words}"));
        }
        for (number, id) in [(1, 1), (2, 10), (3, 11), (4, 3), (5, 6), (6, 7)] {
            netns.ip(&format!("route add 10.{number}.0.0/16 nhid {id}"));
        }
        netns.ip("-6 route add 2001:db8:101::/64 nhid 4");
        netns.ip("-6 route add 2001:db8:102::/64 nhid 12");
        // Routes without objects, one of whose next hops is encapsulated.
        let hops = "nexthop via 10.0.1.7 dev wan nexthop encap ip id 5 dst 10.0.2.9 via 10.0.2.7 dev lan";
        netns.ip(&format!("route add 10.7.0.0/16 {hops}"));
        let view = until(&mut follower, "the last route is named", |view| view.warnings.len() == 2);
        for (warning, expected) in view.warnings.iter().zip([
            "the route to 10.6.0.0/16 by nexthop object 7 with an encapsulation is not followed",
            "the route to 10.7.0.0/16 with an encapsulation is not followed",
        ]) {
            assert!(warning.text.starts_with(expected), "{warning}");
        }
        let [wan, lan] = ["wan", "lan"].map(|name| view.network.link_named(name).unwrap().id);
        let by = |link, next_hop: &str| RouteTo::Via { link, next_hop: ip(next_hop) };
        let route = |view: &View, dest: &str, hash| Egress::build(&view.network).route(ip(dest), hash);
        // With weights of three to one.
        let below_three_quarters = u64::MAX / 8 * 5;
        for (dest, hash, expected) in [
            ("10.1.0.1", 0, by(wan, "10.0.1.7")),
            ("10.2.0.1", below_three_quarters, by(wan, "10.0.1.7")),
            ("10.2.0.1", u64::MAX, by(lan, "10.0.2.7")),
            ("10.3.0.1", 0, by(wan, "10.0.1.7")),
            ("10.3.0.1", u64::MAX, by(lan, "10.0.2.7")),
            ("10.4.0.1", 0, by(wan, "fe80::9")),
            ("10.5.0.1", 0, RouteTo::Unreachable),
            ("10.6.0.1", 0, by(wan, "10.0.1.66")),
            ("10.7.0.1", 0, by(wan, "10.0.1.66")),
            ("2001:db8:101::1", 0, by(wan, "2001:db8:1::7")),
            ("2001:db8:102::1", below_three_quarters, by(wan, "2001:db8:1::7")),
            ("2001:db8:102::1", u64::MAX, by(lan, "2001:db8:2::7")),
        ] {
            assert_eq!(route(&view, dest, hash), expected, "{dest} {hash}");
        }
        // The kernel announces objects alone: the members of a group, a single one, and one that is removed.
        netns.ip("nexthop replace id 10 group 2");
        until(&mut follower, "the group changes", |view| route(view, "10.2.0.1", 0) == by(lan, "10.0.2.7"));
        netns.ip("nexthop replace id 4 via 2001:db8:1::8 dev wan");
        for dest in ["2001:db8:101::1", "2001:db8:102::1"] {
            let next_hop = by(wan, "2001:db8:1::8");
            until(&mut follower, "the object changes", |view| route(view, dest, 0) == next_hop);
        }
        netns.ip("link set wan-far down");
        until(&mut follower, "the member without a carrier is gone", |view| {
            route(view, "10.3.0.1", 0) == by(lan, "10.0.2.7")
                && route(view, "2001:db8:102::1", 0) == by(lan, "2001:db8:2::7")
        });
    });
}

#[test]
fn a_neighbours_new_link_address_is_a_change_and_a_stale_state_is_not() {
    let netns = Netns::new("neigh");
    netns.run(|| {
        link(&netns, "wan");
        netns.ip("addr add 10.0.0.1/24 dev wan");
        netns.ip("neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev wan nud reachable");
        let mut follower = NetworkFollower::open().unwrap();
        assert_eq!(mac_of(&follower.view().network, "10.0.0.9").as_deref(), Some("02:00:00:00:00:09"));
        // The first report is of the change after the flaps.
        netns.ip("neigh change 10.0.0.9 lladdr 02:00:00:00:00:09 dev wan nud stale");
        netns.ip("neigh change 10.0.0.9 lladdr 02:00:00:00:00:09 dev wan nud reachable");
        while let Event::Changed(view) = follower.next(Duration::from_millis(100)).unwrap() {
            let link = view.network.link_named("wan").unwrap();
            assert!(
                link.addresses.len() > 1,
                "only the link-local address may have become usable: {view:#?}"
            );
        }
        netns.ip("neigh change 10.0.0.9 lladdr 02:00:00:00:00:0a dev wan nud stale");
        until(&mut follower, "the link address is new", |view| {
            mac_of(&view.network, "10.0.0.9").as_deref() == Some("02:00:00:00:00:0a")
        });
        netns.ip("neigh change 10.0.0.9 dev wan nud failed");
        until(&mut follower, "it failed", |view| mac_of(&view.network, "10.0.0.9").is_none());
        netns.ip("neigh replace 10.0.0.9 lladdr 02:00:00:00:00:0b dev wan");
        until(&mut follower, "it is back", |view| mac_of(&view.network, "10.0.0.9").is_some());
        netns.ip("neigh del 10.0.0.9 dev wan");
        until(&mut follower, "it is gone", |view| mac_of(&view.network, "10.0.0.9").is_none());
    });
}

#[test]
fn policy_rules_and_routes_that_are_not_followed_are_named() {
    let netns = Netns::new("rules");
    netns.run(|| {
        let mut follower = NetworkFollower::open().unwrap();
        assert_eq!(follower.view().warnings, [], "a fresh namespace has only default rules");
        for (words, described, because) in [
            ("oif lo lookup 100", "oif lo lookup 100", "oif"),
            ("uidrange 0-9 lookup 100", "lookup 100", "uidrange"),
            ("ipproto tcp lookup 100", "lookup 100", "ipproto"),
            ("sport 80 lookup 100", "lookup 100", "sport"),
            ("dport 80 lookup 100", "lookup 100", "dport"),
            ("tos 0x10 lookup 100", "lookup 100", "tos"),
            ("not from 10.7.0.0/16 lookup 100", "not from 10.7.0.0/16 lookup 100", "not"),
            ("goto 32766", "goto", "goto"),
            ("lookup main suppress_prefixlength 0", "lookup 254", "suppress_prefixlength"),
        ] {
            netns.ip(&format!("rule add {words} priority 500"));
            let view = until(&mut follower, "the rule is named", |view| !view.warnings.is_empty());
            let expected =
                format!("policy rule 500 ({described}) is not followed, because of `{because}`: its packets");
            assert!(view.warnings[0].text.starts_with(&expected), "{view:?}");
            netns.ip("rule del priority 500");
            until(&mut follower, "the rule is gone", |view| view.warnings.is_empty());
        }
        netns.ip("route add 10.8.0.0/16 dev lo tos 0x10");
        let view = until(&mut follower, "the route is named", |view| !view.warnings.is_empty());
        assert!(
            view.warnings[0].text.starts_with("the route to 10.8.0.0/16 for one type of service"),
            "{view:?}"
        );
    });
}

#[test]
fn a_table_is_read_while_a_rule_looks_it_up() {
    let netns = Netns::new("tables");
    netns.run(|| {
        link(&netns, "wan");
        netns.ip("addr add 10.0.0.1/24 dev wan");
        netns.ip("route add 10.7.0.0/16 via 10.0.0.9 table 100");
        let mut follower = NetworkFollower::open().unwrap();
        let of_table = |view: &View| {
            let routes = view.network.routes.iter().filter(|route| route.table == Table(100));
            routes.map(|route| route.dest.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of_table(follower.view()), [""; 0]);
        netns.ip("rule add from 10.7.0.0/16 fwmark 5/7 lookup 100 priority 500");
        let view = until(&mut follower, "the table is read", |view| of_table(view) == ["10.7.0.0/16"]);
        let added: Vec<_> = view.network.rules.iter().filter(|rule| rule.priority == 500).collect();
        assert_eq!(added.len(), 1, "{view:?}");
        assert_eq!(added[0].to_string(), "500: from 10.7.0.0/16 fwmark 0x5/0x7 lookup 100");
        assert_eq!(view.warnings, []);
        netns.ip("route add 10.8.0.0/16 via 10.0.0.9 table 100");
        until(&mut follower, "a further route is there", |view| of_table(view).len() == 2);
        netns.ip("rule del priority 500");
        until(&mut follower, "the table is forgotten", |view| of_table(view).is_empty());
    });
}

#[test]
fn after_lost_netlink_events_everything_is_read_again() {
    const MANY: usize = 60_000;
    let netns = Netns::new("enobufs");
    netns.run(|| {
        link(&netns, "wan");
        let mut follower = NetworkFollower::open().unwrap();
        let mut batch = netns.command("ip").args(["-b", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = batch.stdin.take().unwrap();
        // The follower does not read meanwhile, so the socket's buffer overflows.
        for n in 0..MANY {
            writeln!(input, "route add 10.{}.{}.0/24 dev wan", n >> 8, n & 255).unwrap();
        }
        writeln!(input, "link set wan address 02:00:00:00:00:77").unwrap();
        drop(input);
        assert!(batch.wait().unwrap().success());
        assert!(lost_events() > 0, "there were too few events for this test to test anything");
        let view = until(&mut follower, "every route is there", |view| view.network.routes.len() >= MANY);
        assert_eq!(view.network.link_named("wan").unwrap().mac.to_string(), "02:00:00:00:00:77");
    });
}

#[test]
fn a_follower_thread_reports_the_present_state_first_and_ends_when_dropped() {
    let netns = Netns::new("thread");
    netns.run(|| {
        let (sender, receiver) = mpsc::channel();
        let following = follow(move |view| drop(sender.send(view))).unwrap();
        let first = receiver.recv_timeout(PATIENCE).unwrap();
        assert!(first.network.link_named("lo").is_some());
        link(&netns, "wan");
        let mut seen = receiver.recv_timeout(PATIENCE).unwrap();
        while seen.network.link_named("wan").is_none() {
            seen = receiver.recv_timeout(PATIENCE).unwrap();
        }
        drop(following);
        assert!(
            receiver.iter().all(|view| view.network.link_named("wan").is_some()),
            "and the channel is closed"
        );
    });
}

#[test]
fn managed_neighbours_are_resolved_without_traffic_and_removed_when_no_longer_wanted() {
    let (director, server) = (Netns::new("managed-d"), Netns::new("managed-s"));
    director.veth("lan", &server, "eth");
    director.ip("addr add 10.1.0.1/24 dev lan");
    server.ip("addr add 10.1.0.2/24 dev eth");
    server.ip("addr add fd00::2/64 dev eth nodad");
    director.ip("addr add fd00::1/64 dev lan nodad");
    director.ip("neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev lan nud permanent");
    let listing = || {
        let output = must(director.command("ip").arg("neigh"));
        String::from_utf8(output.stdout).unwrap()
    };
    director.run(|| {
        let mut follower = NetworkFollower::open().unwrap();
        let lan = follower.view().network.link_named("lan").unwrap().ifindex;
        let mut neighbours = Neighbours::open().unwrap();
        let wanted = ["10.1.0.2", "fd00::2", "10.1.0.3"].map(|addr| (lan, ip(addr)));
        let mut wanted: BTreeSet<_> = wanted.into();
        let manage = |neighbours: &mut Neighbours, wanted: &BTreeSet<_>| {
            let refused = neighbours.manage(wanted).unwrap();
            assert!(refused.is_none(), "{refused:?}");
        };
        manage(&mut neighbours, &wanted);
        until(&mut follower, "both are resolved", |view| {
            mac_of(&view.network, "10.1.0.2").is_some() && mac_of(&view.network, "fd00::2").is_some()
        });
        assert!(listing().lines().any(|line| line.starts_with("10.1.0.2 ") && line.contains("managed")));
        assert!(listing().lines().any(|line| line.starts_with("10.1.0.3 ") && line.contains("PERMANENT")));

        // The kernel removes all of them with the link; the next call adds them again.
        director.ip("link set lan down");
        until(&mut follower, "it is forgotten", |view| mac_of(&view.network, "10.1.0.2").is_none());
        director.ip("link set lan up");
        until(&mut follower, "the link is back", |view| view.network.link_named("lan").unwrap().up);
        wanted.remove(&(lan, ip("fd00::2")));
        manage(&mut neighbours, &wanted);
        until(&mut follower, "it is resolved again", |view| mac_of(&view.network, "10.1.0.2").is_some());

        // More than one request has.
        let unknown = (2..2502).map(|host| (9999, Ipv4Addr::from(0x0a01_0000 + host).into())).collect();
        let refused = neighbours.manage(&unknown).unwrap().expect("there is no interface 9999");
        assert_eq!((refused.count, refused.addr), (2500, ip("10.1.0.2")));
        assert!(!listing().contains("10.1.0.2 "), "{}", listing());
        assert!(neighbours.resolve(&[(lan, ip("10.1.0.2"))].into()).unwrap().is_none());
        until(&mut follower, "it is resolved once", |view| mac_of(&view.network, "10.1.0.2").is_some());
        assert!(!listing().contains("managed"), "{}", listing());
        manage(&mut neighbours, &wanted);
        assert!(listing().contains("managed"), "{}", listing());
        drop(neighbours);
        assert!(!listing().contains("managed"), "{}", listing());
    });
}

#[test]
fn a_managed_neighbour_with_another_link_address_is_doubted_at_once() {
    let (director, server) = (Netns::new("doubt-d"), Netns::new("doubt-s"));
    director.veth("lan", &server, "eth");
    director.ip("addr add 10.1.0.1/24 dev lan");
    server.ip("addr add 10.1.0.2/24 dev eth");
    must(director.command("sysctl").args(["-qw", "net.ipv4.neigh.lan.locktime=0"]));
    must(server.command("sysctl").args(["-qw", "net.ipv4.conf.eth.arp_notify=1"]));
    director.run(|| {
        let mut follower = NetworkFollower::open().unwrap();
        let lan = follower.view().network.link_named("lan").unwrap().ifindex;
        let mut neighbours = Neighbours::open().unwrap();
        let wanted = [(lan, ip("10.1.0.2"))].into();
        neighbours.manage(&wanted).unwrap();
        until(&mut follower, "it is resolved", |view| mac_of(&view.network, "10.1.0.2").is_some());
        neighbours.manage(&wanted).unwrap();
        // A gratuitous ARP, as of a server that has moved, or of an attacker.
        server.ip("link set eth address 02:00:00:00:00:99");
        until(&mut follower, "it has moved", |view| {
            mac_of(&view.network, "10.1.0.2").as_deref() == Some("02:00:00:00:00:99")
        });
        neighbours.manage(&wanted).unwrap();
        let listed =
            String::from_utf8(must(director.command("ip").args(["neigh", "show", "10.1.0.2"])).stdout)
                .unwrap();
        assert!(listed.contains("managed") && !listed.contains("STALE"), "{listed}");
    });
}

#[test]
fn a_request_to_the_helper_removes_no_neighbour_of_an_operator() {
    let netns = Netns::new("own-neigh");
    link(&netns, "lan");
    netns.ip("addr add 10.1.0.1/24 dev lan");
    netns.ip("neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev lan nud permanent");
    let lan = netns.run(|| {
        let view = NetworkFollower::open().unwrap().view().clone();
        let lan = view.network.link_named("lan").unwrap().ifindex;
        let request = json!({"remove": [[lan, "10.1.0.3"]], "add": [], "is_managed": false});
        serde_json::from_value::<ChangeNeighbours>(request).unwrap().run(&[]).unwrap();
        lan
    });
    let output = must(netns.command("ip").arg("neigh"));
    assert!(String::from_utf8(output.stdout).unwrap().contains("10.1.0.3 "), "on interface {lan}");
}

#[test]
fn managed_neighbours_of_a_killed_director_are_taken_over_and_removed_by_the_next() {
    let netns = Netns::new("left");
    for (dev, network) in [("lan", "10.1.0.1/24"), ("other", "10.2.0.1/24")] {
        link(&netns, dev);
        netns.ip(&format!("addr add {network} dev {dev}"));
    }
    let listing = || {
        let output = must(netns.command("ip").arg("neigh"));
        String::from_utf8(output.stdout).unwrap()
    };
    netns.run(|| {
        let view = NetworkFollower::open().unwrap().view().clone();
        let [lan, other] = ["lan", "other"].map(|dev| view.network.link_named(dev).unwrap().ifindex);
        let mut killed = Neighbours::open().unwrap();
        let wanted = ["10.1.0.2", "10.1.0.3"].map(|addr| (lan, ip(addr)));
        killed.manage(&[wanted[0], wanted[1], (other, ip("10.2.0.2"))].into()).unwrap();
        // As after SIGKILL: the neighbours are not removed.
        mem::forget(killed);
        netns.ip("neigh add 10.1.0.4 dev lan managed");

        let mut next = Neighbours::open().unwrap();
        next.adopt(&[lan]).unwrap();
        next.manage(&[wanted[0]].into()).unwrap();
        assert!(listing().contains("10.1.0.2 ") && !listing().contains("10.1.0.3 "), "{}", listing());
        drop(next);
        assert!(!listing().contains("10.1.0.2 "), "{}", listing());
        assert!(listing().contains("10.2.0.2 "), "another director may have that interface: {}", listing());
        assert!(listing().contains("10.1.0.4 "), "an operator's entry: {}", listing());
    });
}

#[test]
fn a_stopped_follower_stops_waiting() {
    let netns = Netns::new("stop");
    netns.run(|| {
        let mut follower = NetworkFollower::open().unwrap();
        let stopper = follower.stopper();
        thread::scope(|scope| {
            scope.spawn(move || stopper.stop());
            while follower.next(PATIENCE).unwrap() != Event::Stopped {}
        });
        assert_eq!(follower.next(PATIENCE).unwrap(), Event::Stopped);
    });
}
