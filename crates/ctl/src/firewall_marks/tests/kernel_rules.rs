//! Tests of compiled rules as read from the output of the system's programs. The texts in `../printed/` are recorded
//! from iptables 1.8.9 and nftables 1.0.6, for rules in the kernel.

use std::net::{IpAddr, Ipv4Addr};
use xvs_host::netfilter::chain::Table;
use xvs_proto::Family;
use xvs_proto::Protocol;

use serde_json::{Value, json};
use xvs_host::netfilter::*;
use xvs_model::report::warning::texts;
use xvs_proto::LinkId;
use xvs_proto::network::Network;
use xvs_proto::{Endpoint, FlowKey};

use crate::firewall_marks::testing::packet;
use crate::firewall_marks::{CompiledMarks, compile};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const ETH0: u16 = 0;
const LAN0: u16 = 1;

fn compiled(tables: &[Table]) -> CompiledMarks {
    let mut network = Network::default();
    for name in ["eth0", "lan0"] {
        network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
    }
    compile(tables, &[], &network.links)
}

/// A packet from port 1500 of the client: protocol, destination, port, receiving link.
struct Case(Protocol, IpAddr, u16, u16);

fn to(protocol: Protocol, dest: impl Into<IpAddr>, port: u16, link: u16) -> Case {
    Case(protocol, dest.into(), port, link)
}

fn mark(compiled: &CompiledMarks, Case(protocol, dest, port, link): Case) -> u32 {
    let source = match dest {
        IpAddr::V4(_) => Endpoint::new(CLIENT, 1500),
        IpAddr::V6(_) => Endpoint::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xc], 1500),
    };
    let packet = packet(FlowKey { protocol, source, dest: Endpoint::new(dest, port) });
    compiled.marks.of(LinkId(link), &packet)
}

#[test]
fn rules_of_iptables_nft_mark_packets_and_those_that_cannot_be_followed_are_reported_with_the_reason() {
    let table = iptables_save::read(
        include_str!("../printed/iptables-nft-save.txt"),
        Family::V4,
        &iptables_save::MANGLE,
    )
    .unwrap();
    let compiled = compiled(&[table]);
    for (case, expected) in [
        (to(Protocol::TCP, VIP, 80, ETH0), 10),
        (to(Protocol::TCP, VIP, 443, ETH0), 1),
        (to(Protocol::TCP, VIP, 8005, ETH0), 1),
        (to(Protocol::TCP, VIP, 81, ETH0), 0),
        // Not from an interface eth+, but from one of the excluded ports.
        (to(Protocol::TCP, OTHER, 80, LAN0), 0),
        // Through the chain web: its return, all of it, its accept.
        (to(Protocol::UDP, OTHER, 1005, ETH0), 0),
        (to(Protocol::UDP, OTHER, 1006, ETH0), 0x104),
        (to(Protocol::UDP, OTHER, 1006, LAN0), 0),
        (to(Protocol::UDP, [10, 0, 0, 9], 1006, ETH0), 4),
        (to(Protocol::UDP, [10, 0, 0, 10], 1006, ETH0), 0x104),
        // In the chain INPUT.
        (to(Protocol::SCTP, OTHER, 9, ETH0), 5),
    ] {
        let what = format!("{} {}:{} by {}", case.0, case.1, case.2, case.3);
        assert_eq!(mark(&compiled, case), expected, "{what}");
    }
    let reported = [
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j MARK --set-xmark 0x63/0xffffffff", "--tcp-flags"),
        ("-m conntrack --ctstate NEW -j MARK --set-xmark 0x62/0xffffffff", "--ctstate NEW"),
        (
            "-p icmp -m addrtype --dst-type LOCAL -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
            "connection marks",
        ),
        ("-s 203.0.113.66/32 -j DROP", "before netfilter"),
    ];
    assert_eq!(compiled.unfollowed.len(), reported.len(), "{:#?}", compiled.unfollowed);
    for (sentence, (rule, why)) in compiled.unfollowed.iter().zip(reported) {
        let begins = format!("mark rule «iptables -t mangle -A PREROUTING {rule}» is not followed: ");
        assert!(sentence.text.starts_with(&begins) && sentence.text.contains(why), "{sentence}");
    }
}

#[test]
fn rules_of_iptables_legacy_and_ip6tables_are_read_alike() {
    let four = iptables_save::read(
        include_str!("../printed/iptables-legacy-save.txt"),
        Family::V4,
        &iptables_save::MANGLE,
    )
    .unwrap();
    let six = iptables_save::read(
        include_str!("../printed/ip6tables-nft-save.txt"),
        Family::V6,
        &iptables_save::MANGLE,
    )
    .unwrap();
    let compiled = compiled(&[four, six]);
    let vip6: IpAddr = "2001:db8::1".parse().unwrap();
    assert_eq!(mark(&compiled, to(Protocol::TCP, VIP, 80, ETH0)), 10);
    assert_eq!(mark(&compiled, to(Protocol::TCP, VIP, 443, ETH0)), 1);
    assert_eq!(mark(&compiled, to(Protocol::TCP, vip6, 80, ETH0)), 10);
    assert_eq!(mark(&compiled, to(Protocol::TCP, vip6, 81, ETH0)), 0);
    assert_eq!(texts(&compiled.unfollowed), [""; 0]);
}

#[test]
fn every_table_of_iptables_before_ipvs_can_mark() {
    let text = include_str!("../printed/iptables-legacy-save-tables.txt");
    let tables: Vec<_> =
        iptables_save::TABLES.iter().filter_map(|kind| iptables_save::read(text, Family::V4, kind)).collect();
    let compiled = compiled(&tables);
    assert_eq!(texts(&compiled.unfollowed), [""; 0]);
    let marks = [80, 81, 82, 83].map(|port| mark(&compiled, to(Protocol::TCP, VIP, port, ETH0)));
    assert_eq!(marks, [0x11, 2, 3, 0x10]);
}

#[test]
fn a_dormant_table_marks_nothing_and_a_chain_at_ingress_that_marks_is_reported() {
    let ruleset = nft::Ruleset::parse(
        include_str!("../printed/nft-elsewhere.json"),
        include_str!("../printed/nft-elsewhere.txt"),
    )
    .unwrap();
    let compiled = compiled(&ruleset.tables(&[]));
    assert_eq!(mark(&compiled, to(Protocol::TCP, VIP, 80, ETH0)), 0);
    let reported =
        |chain| format!("chain «{chain}» marks packets and is not followed: it is at the ingress hook");
    assert_eq!(texts(&compiled.unfollowed), ["nft inet atin in", "nft netdev dev in"].map(reported));
}

#[test]
fn rules_of_nftables_mark_packets_with_their_sets_and_maps_at_the_right_hooks() {
    let ruleset =
        nft::Ruleset::parse(include_str!("../printed/nft.json"), include_str!("../printed/nft.txt")).unwrap();
    let tables = ruleset.tables(&[]);
    let registered: Vec<_> =
        tables.iter().flat_map(|table| &table.bases).map(|base| base.registered).collect();
    assert_eq!(registered, [Some((4, 2)), Some((4, 3)), Some((3, 1))]);
    let compiled = compiled(&tables);
    for (case, expected) in [
        (to(Protocol::TCP, VIP, 80, ETH0), 10),
        (to(Protocol::UDP, VIP, 53, ETH0), 4),
        (to(Protocol::UDP, VIP, 1999, ETH0), 4),
        (to(Protocol::UDP, VIP, 2001, ETH0), 0),
        (to(Protocol::TCP, OTHER, 8010, ETH0), 5),
        (to(Protocol::TCP, OTHER, 8011, ETH0), 0),
        (to(Protocol::TCP, OTHER, 8010, LAN0), 0),
        (to(Protocol::TCP, [172, 16, 0, 9], 1, ETH0), 6),
        (to(Protocol::TCP, [172, 16, 0, 10], 1, ETH0), 0),
        (to(Protocol::TCP, [10, 9, 8, 7], 25, ETH0), 0x60),
        (to(Protocol::TCP, OTHER, 25, ETH0), 0),
        (to(Protocol::UDP, OTHER, 4, LAN0), 7),
        (to(Protocol::TCP, "2001:db8::1".parse::<IpAddr>().unwrap(), 23, ETH0), 8),
        (to(Protocol::TCP, "2001:db8::1".parse::<IpAddr>().unwrap(), 22, ETH0), 0),
        (to(Protocol::TCP, OTHER, 143, ETH0), 7),
        (to(Protocol::TCP, OTHER, 3001, ETH0), 2),
        (to(Protocol::TCP, OTHER, 5002, ETH0), 0x52),
        (to(Protocol::TCP, OTHER, 60000, ETH0), 0x12),
        // From the table that iptables-nft cannot print, and from the hook input.
        (to(Protocol::SCTP, OTHER, 9, ETH0), 11),
        (to(Protocol::SCTP, OTHER, 7, ETH0), 0x100b),
    ] {
        let what = format!("{} {}:{} by {}", case.0, case.1, case.2, case.3);
        assert_eq!(mark(&compiled, case), expected, "{what}");
    }
    let reported = [
        "ct state new meta mark set 0x00000009",
        "ip saddr 203.0.113.66 drop",
        "udp dport 9 meta mark set ct mark",
        "ip daddr . tcp dport { 10.0.0.1 . 80, 10.0.0.2 . 443 } meta mark set 0x00000004",
    ];
    assert_eq!(compiled.unfollowed.len(), reported.len(), "{:#?}", compiled.unfollowed);
    for (sentence, rule) in compiled.unfollowed.iter().zip(reported) {
        assert!(
            sentence.text.starts_with(&format!("mark rule «nft inet lvs pre: {rule}» is not followed: ")),
            "{sentence}"
        );
    }
}

#[test]
fn a_rule_that_is_not_followed_has_the_same_text_whatever_its_counter_says() {
    let json = include_str!("../printed/nft.json");
    let texts = |packets: u64| {
        let counted = format!("counter packets {packets} bytes {} ct state new", packets * 60);
        let listing = include_str!("../printed/nft.txt").replace("ct state new", &counted);
        compiled(&nft::Ruleset::parse(json, &listing).unwrap().tables(&[])).unfollowed
    };
    assert_eq!(texts(1), texts(2_000_000));
    assert!(texts(1)[0].text.contains("counter ct state new meta mark set"), "{}", texts(1)[0]);
}

/// The compiled rules of a single chain of nftables, each rule a list of statements.
fn of_rules(rules: &Value) -> CompiledMarks {
    let chain = json!({ "chain": { "family": "ip", "table": "t", "name": "pre", "handle": 1, "type": "filter",
        "hook": "prerouting", "prio": -150, "policy": "accept" } });
    let rule = |expr: &Value| json!({ "rule": { "family": "ip", "table": "t", "chain": "pre", "handle": 2, "expr": expr } });
    let rules = rules.as_array().unwrap().iter().map(rule);
    let objects: Vec<_> = [chain].into_iter().chain(rules).collect();
    let text = json!({ "nftables": objects }).to_string();
    compiled(&nft::Ruleset::parse(&text, "").unwrap().tables(&[]))
}

/// `meta mark set VALUE`.
fn set_mark(value: &Value) -> Value {
    json!({ "mangle": { "key": { "meta": { "key": "mark" } }, "value": value } })
}

fn dport() -> Value {
    json!({ "payload": { "protocol": "udp", "field": "dport" } })
}

#[test]
fn after_a_map_a_rule_continues_for_keys_of_the_map_without_a_verdict() {
    // meta mark set udp dport map { 80 : 1, 90-99 : 2 } meta mark set meta mark | 0x10
    let map = json!({ "map": { "key": dport(), "data": { "set": [[80, 1], [{ "range": [90, 99] }, 2]] } } });
    let or = json!({ "|": [{ "meta": { "key": "mark" } }, 0x10] });
    let compiled = of_rules(&json!([[set_mark(&map), set_mark(&or)]]));
    assert_eq!(texts(&compiled.unfollowed), [""; 0]);
    let marks = |compiled: &CompiledMarks| {
        [79, 80, 95].map(|port| mark(compiled, to(Protocol::UDP, VIP, port, ETH0)))
    };
    assert_eq!(marks(&compiled), [0, 0x11, 0x12]);

    // udp dport vmap { 79 : accept, 80 : continue } meta mark set 9
    let pairs = json!([[79, { "accept": null }], [80, { "continue": null }]]);
    let vmap = json!({ "vmap": { "key": dport(), "data": { "set": pairs } } });
    let compiled = of_rules(&json!([[vmap, set_mark(&json!(9))]]));
    assert_eq!((marks(&compiled), compiled.unfollowed.len()), ([0, 9, 0], 0));
}

#[test]
fn a_map_whose_keys_are_marks_that_it_changes_is_reported_and_not_followed() {
    let mark_key = json!({ "meta": { "key": "mark" } });
    let map = |pairs: Value| set_mark(&json!({ "map": { "key": mark_key, "data": { "set": pairs } } }));
    // meta mark set 1 in one rule, meta mark set meta mark map { … } in the next
    let after_one = |pairs| {
        let compiled = of_rules(&json!([[set_mark(&json!(1))], [map(pairs)]]));
        (mark(&compiled, to(Protocol::UDP, VIP, 80, ETH0)), compiled.unfollowed.len())
    };
    assert_eq!(after_one(json!([[1, 2], [2, 3]])), (1, 1), "not 3");
    assert_eq!(after_one(json!([[1, 2]])), (2, 0));

    let in_one = of_rules(&json!([[set_mark(&json!(1)), map(json!([[1, 2]]))]]));
    assert_eq!(in_one.unfollowed.len(), 1);
}

#[test]
fn sets_that_change_without_events_are_detected_if_marks_depend_on_them() {
    let ruleset = |set: Value, marks: &Value, more: &Value| {
        let rule = |expr: &Value| json!({ "rule": { "family": "ip", "table": "t", "chain": "pre", "handle": 2, "expr": expr } });
        let ask = json!({ "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": "saddr" } }, "right": "@s" } });
        let objects = json!([set, rule(&json!([ask, marks])), rule(more)]);
        nft::Ruleset::parse(&json!({ "nftables": objects }).to_string(), "").unwrap().changes_silently()
    };
    let set =
        |flags| json!({ "set": { "family": "ip", "table": "t", "name": "s", "flags": flags, "elem": [] } });
    let add = json!([{ "set": { "op": "add", "elem": { "payload": {} }, "set": "@s" } }]);
    let (marks, drops, nothing) = (set_mark(&json!(1)), json!({ "drop": null }), json!([]));
    assert!(ruleset(set(json!(["timeout"])), &marks, &nothing));
    assert!(ruleset(set(json!("dynamic")), &marks, &nothing));
    assert!(ruleset(set(json!(["interval"])), &marks, &add), "packets fill it");
    assert!(!ruleset(set(json!(["interval"])), &marks, &nothing), "changes cause events");
    assert!(!ruleset(set(json!(["timeout"])), &drops, &nothing), "nothing is marked");
}

#[test]
fn a_long_set_in_many_rules_is_followed_up_to_the_limit_of_entries() {
    let elements: Vec<_> = (0..60_000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
    let daddr = json!({ "payload": { "protocol": "ip", "field": "daddr" } });
    let ask = json!({ "match": { "op": "==", "left": daddr, "right": { "set": elements } } });
    let mut rules = vec![json!([ask, set_mark(&json!(1))]); 5];
    let small = json!({ "match": { "op": "==", "left": dport(), "right": 80 } });
    rules.push(json!([small, set_mark(&json!(2))]));
    let compiled = of_rules(&rules.into());
    assert_eq!(compiled.unfollowed.len(), 1);
    assert!(
        compiled.unfollowed[0].text.contains("lists of more than 262144")
            && compiled.unfollowed[0].text.len() < 500
    );
    assert_eq!(
        mark(&compiled, to(Protocol::UDP, VIP, 80, ETH0)),
        2,
        "a rule without a list is still followed"
    );
    // Consecutive addresses merge into few networks.
    assert_eq!(compiled.networks_of(1, Family::V4).len(), 7);
}

#[test]
fn of_xtables_matches_and_targets_in_other_tables_only_marking_ones_are_reported() {
    let table = |rules: Value| {
        let base = json!({ "chain": { "family": "ip", "table": "raw", "name": "PREROUTING", "handle": 1,
            "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept" } });
        let rule = |expr: &Value| json!({ "rule": { "family": "ip", "table": "raw", "chain": "PREROUTING", "handle": 2, "expr": expr } });
        let rules = rules.as_array().unwrap().iter().map(rule);
        let objects: Vec<_> = [base].into_iter().chain(rules).collect();
        nft::Ruleset::parse(&json!({ "nftables": objects }).to_string(), "").unwrap().tables(&[])
    };
    let conntrack = json!({ "xt": { "type": "match", "name": "conntrack" } });
    let target = |name| json!({ "xt": { "type": "target", "name": name } });
    let harmless = json!([[conntrack, { "counter": null }, target("DNAT")], [conntrack, { "accept": null }]]);
    assert_eq!(compiled(&table(harmless)), CompiledMarks::default());
    let marking = compiled(&table(json!([[conntrack, target("MARK")]])));
    assert_eq!(marking.unfollowed.len(), 1);
    let step =
        "; add it to the table mangle (`iptables -t mangle`), with iptables-nft-save installed, or by nft";
    let why = format!("nft does not print the criteria of iptables' match conntrack{step}");
    assert!(marking.unfollowed[0].text.ends_with(&why), "{}", marking.unfollowed[0]);
    let marking = compiled(&table(json!([[{ "counter": null }, target("MARK")]])));
    let why = format!("nft does not print the mark that iptables sets{step}");
    assert!(marking.unfollowed[0].text.ends_with(&why), "{}", marking.unfollowed[0]);
}

#[test]
fn a_table_mangle_is_read_once_from_the_program_that_can_print_it() {
    assert_eq!(
        iptables_save::read(
            include_str!("../printed/iptables-nft-save-incompatible.txt"),
            Family::V4,
            &iptables_save::MANGLE
        ),
        None
    );
    let ruleset =
        nft::Ruleset::parse(include_str!("../printed/nft.json"), include_str!("../printed/nft.txt")).unwrap();
    assert_eq!(ruleset.registered_in((Family::V4, "mangle"), "p"), Some((3, 1)));
    assert!(ruleset.has_table(Family::V4, "mangle") && !ruleset.has_table(Family::V6, "mangle"));
    assert_eq!(ruleset.tables(&[]).len(), 2);
    assert_eq!(ruleset.tables(&[(Family::V4, "mangle")]).len(), 1);
}
