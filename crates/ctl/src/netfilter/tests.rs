//! What the programs printed, and how packets are marked by it. The texts in `printed/` are those of iptables 1.8.9 and
//! nftables 1.0.6 for rules that the kernel had.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use xvs_dataplane::egress::model::Network;
use xvs_dataplane::port::LinkId;
use xvs_proto::{Endpoint, FlowKey, Fragment, Packet, tcp};

use super::*;
use crate::marks::{LaidOut, lay_out};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const ETH0: u16 = 0;
const LAN0: u16 = 1;

fn laid_out(tables: &[Table]) -> LaidOut {
    let mut network = Network::default();
    for name in ["eth0", "lan0"] {
        network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
    }
    lay_out(tables, &[], &network.links)
}

/// A packet from port 1500 of the client, by a link.
struct Case(Protocol, IpAddr, u16, u16);

fn to(protocol: Protocol, dest: impl Into<IpAddr>, port: u16, link: u16) -> Case {
    Case(protocol, dest.into(), port, link)
}

fn mark(laid_out: &LaidOut, Case(protocol, dest, port, link): Case) -> u32 {
    let source = match dest {
        IpAddr::V4(_) => Endpoint::new(CLIENT, 1500),
        IpAddr::V6(_) => Endpoint::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xc], 1500),
    };
    let packet = Packet {
        network: 14,
        transport: 34,
        end: 54,
        flow: FlowKey { protocol, source, dest: Endpoint::new(dest, port) },
        fragment: Fragment::Whole,
        fragment_header: None,
        longest_fragment: None,
        tcp_flags: tcp::Flags::SYN,
        sctp_event: None,
        icmp_type: None,
        ttl: 64,
        tos: 0,
        dont_fragment: false,
    };
    laid_out.marks.of(LinkId(link), &packet)
}

#[test]
fn rules_of_iptables_nft_mark_as_they_say_and_those_that_cannot_be_followed_are_told_with_the_reason() {
    let table = save::read(include_str!("printed/iptables-nft-save.txt"), Family::V4).unwrap();
    let laid_out = laid_out(&[table]);
    for (case, expected) in [
        (to(Protocol::TCP, VIP, 80, ETH0), 10),
        (to(Protocol::TCP, VIP, 443, ETH0), 1),
        (to(Protocol::TCP, VIP, 8005, ETH0), 1),
        (to(Protocol::TCP, VIP, 81, ETH0), 0),
        // By another interface than eth+, but from one of the ports that are left out.
        (to(Protocol::TCP, OTHER, 80, LAN0), 0),
        // Through the chain web: its return, its whole, its accept.
        (to(Protocol::UDP, OTHER, 1005, ETH0), 0),
        (to(Protocol::UDP, OTHER, 1006, ETH0), 0x104),
        (to(Protocol::UDP, OTHER, 1006, LAN0), 0),
        (to(Protocol::UDP, [10, 0, 0, 9], 1006, ETH0), 4),
        (to(Protocol::UDP, [10, 0, 0, 10], 1006, ETH0), 0x104),
        // In the chain INPUT.
        (to(Protocol::SCTP, OTHER, 9, ETH0), 5),
    ] {
        let what = format!("{} {}:{} by {}", case.0, case.1, case.2, case.3);
        assert_eq!(mark(&laid_out, case), expected, "{what}");
    }
    let told = [
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j MARK --set-xmark 0x63/0xffffffff", "--tcp-flags"),
        ("-m conntrack --ctstate NEW -j MARK --set-xmark 0x62/0xffffffff", "the match conntrack"),
        (
            "-p icmp -m addrtype --dst-type LOCAL -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
            "the match addrtype",
        ),
        ("-s 203.0.113.66/32 -j DROP", "before netfilter"),
    ];
    assert_eq!(laid_out.unfollowed.len(), told.len(), "{:#?}", laid_out.unfollowed);
    for (sentence, (rule, why)) in laid_out.unfollowed.iter().zip(told) {
        let begins = format!("mark rule «iptables -t mangle -A PREROUTING {rule}» is not followed: ");
        assert!(sentence.starts_with(&begins) && sentence.contains(why), "{sentence}");
    }
}

#[test]
fn rules_of_iptables_legacy_and_ip6tables_are_read_alike() {
    let four = save::read(include_str!("printed/iptables-legacy-save.txt"), Family::V4).unwrap();
    let six = save::read(include_str!("printed/ip6tables-nft-save.txt"), Family::V6).unwrap();
    let laid_out = laid_out(&[four, six]);
    let vip6: IpAddr = "2001:db8::1".parse().unwrap();
    assert_eq!(mark(&laid_out, to(Protocol::TCP, VIP, 80, ETH0)), 10);
    assert_eq!(mark(&laid_out, to(Protocol::TCP, VIP, 443, ETH0)), 1);
    assert_eq!(mark(&laid_out, to(Protocol::TCP, vip6, 80, ETH0)), 10);
    assert_eq!(mark(&laid_out, to(Protocol::TCP, vip6, 81, ETH0)), 0);
    assert_eq!(laid_out.unfollowed, Vec::<String>::new());
}

#[test]
fn rules_of_nftables_mark_as_they_say_with_their_sets_and_maps_and_from_the_right_hooks() {
    let ruleset = nft::Ruleset::parse(include_str!("printed/nft.json")).unwrap();
    let tables = ruleset.tables(include_str!("printed/nft.txt"), &[]);
    let laid_out = laid_out(&tables);
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
        // Of the table that iptables-nft cannot say, and at input.
        (to(Protocol::SCTP, OTHER, 9, ETH0), 11),
        (to(Protocol::SCTP, OTHER, 7, ETH0), 0x100b),
    ] {
        let what = format!("{} {}:{} by {}", case.0, case.1, case.2, case.3);
        assert_eq!(mark(&laid_out, case), expected, "{what}");
    }
    let told = [
        "ct state new meta mark set 0x00000009",
        "ip saddr 203.0.113.66 drop",
        "udp dport 9 meta mark set ct mark",
        "ip daddr . tcp dport { 10.0.0.1 . 80, 10.0.0.2 . 443 } meta mark set 0x00000004",
    ];
    assert_eq!(laid_out.unfollowed.len(), told.len(), "{:#?}", laid_out.unfollowed);
    for (sentence, rule) in laid_out.unfollowed.iter().zip(told) {
        assert!(
            sentence.starts_with(&format!("mark rule «nft inet lvs pre: {rule}» is not followed: ")),
            "{sentence}"
        );
    }
}

#[test]
fn of_iptables_own_matches_and_targets_in_other_tables_only_those_that_mark_are_told() {
    let table = |rules: Value| {
        let base = json!({ "chain": { "family": "ip", "table": "raw", "name": "PREROUTING", "handle": 1,
            "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept" } });
        let rule = |expr: &Value| json!({ "rule": { "family": "ip", "table": "raw", "chain": "PREROUTING", "handle": 2, "expr": expr } });
        let rules = rules.as_array().unwrap().iter().map(rule);
        let objects: Vec<_> = [base].into_iter().chain(rules).collect();
        nft::Ruleset::parse(&json!({ "nftables": objects }).to_string()).unwrap().tables("", &[])
    };
    let conntrack = json!({ "xt": { "type": "match", "name": "conntrack" } });
    let target = |name| json!({ "xt": { "type": "target", "name": name } });
    let harmless = json!([[conntrack, { "counter": null }, target("DNAT")], [conntrack, { "accept": null }]]);
    assert_eq!(laid_out(&table(harmless)), LaidOut::default());
    let marking = laid_out(&table(json!([[conntrack, target("MARK")]])));
    assert_eq!(marking.unfollowed.len(), 1);
    assert!(marking.unfollowed[0].ends_with("nft does not tell what the match conntrack asks for"));
}

#[test]
fn a_table_mangle_is_read_from_the_program_that_can_say_it_and_once() {
    assert_eq!(save::read(include_str!("printed/iptables-nft-save-incompatible.txt"), Family::V4), None);
    let ruleset = nft::Ruleset::parse(include_str!("printed/nft.json")).unwrap();
    assert!(ruleset.has_mangle(Family::V4) && !ruleset.has_mangle(Family::V6));
    assert_eq!(ruleset.tables("", &[]).len(), 2);
    assert_eq!(ruleset.tables("", &[Family::V4]).len(), 1);
}
