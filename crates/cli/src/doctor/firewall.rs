//! Check of netfilter's rules: rules that drop packets of services have no effect, because XDP runs before netfilter.
//!
//! A rule concerns a service if no criterion excludes its packets and no earlier rule accepts all of them. A criterion
//! that depends on the client, or an unknown match, may hold for some packets; connections count as new, and VIPs as
//! addresses of this machine. Services for firewall marks are not examined. Cost: each rule for each service, at most
//! [`VISITS_MAX`] rules. The rules are read by `xvs_host::netfilter`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use xvs_host::netfilter::chain::{Action, Base, Criterion, Match, Rule, Table};
use xvs_proto::mark::{Expected, Test};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::ServiceKey;

use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Subject};

/// Whether rules drop packets of services.
pub(super) fn firewall(facts: &Facts) -> Vec<Finding> {
    let attached: Vec<_> = facts.links().map(|link| link.name.as_str()).collect();
    let mut concerned: BTreeMap<Cow<'_, str>, Vec<String>> = BTreeMap::new();
    let mut visits = 0;
    for service in &facts.services {
        let ServiceKey::Address { protocol, endpoint } = service.key else { continue };
        for table in &facts.netfilter {
            for base in &table.bases {
                let mut walk =
                    Walk { table, attached: &attached, protocol, endpoint, dropping: Vec::new(), visits };
                walk.base(base);
                visits = walk.visits;
                for text in walk.dropping {
                    let services = concerned.entry(text).or_default();
                    let key = service.key.to_string();
                    if services.last() != Some(&key) {
                        services.push(key);
                    }
                }
            }
        }
    }
    let firewall = Finding::of(CHECK, "").seen("nft list ruleset, iptables-save");
    let mut findings: Vec<_> =
        concerned.iter().take(NAMED).map(|(text, services)| useless(&firewall, text, services)).collect();
    if concerned.len() > NAMED {
        findings.push(firewall.warn(format!(
            "{} more rules that drop packets of services have no effect",
            concerned.len() - NAMED
        )));
    }
    if visits >= VISITS_MAX {
        findings.push(
            firewall.warn(format!(
                "not all rules were examined: more than {VISITS_MAX} for all services together"
            )),
        );
    }
    let was_read = facts.faults.iter().all(|fault| fault.check != CHECK);
    if findings.is_empty() && was_read && !facts.services.is_empty() {
        findings.push(firewall.ok("no rule of netfilter drops packets of services"));
    }
    findings
}

fn useless(firewall: &Subject, text: &str, services: &[String]) -> Finding {
    let more = match services.len() {
        0 | 1 => String::new(),
        2 => " and 1 more service".to_owned(),
        count => format!(" and {} more services", count - 1),
    };
    firewall.warn(format!(
        "«{text}» does not drop packets for {}{more}: XDP runs before netfilter. Filter on the routers \
         before the director, or on the real servers",
        services[0]
    ))
}

/// The evaluation of a table for packets of one service.
struct Walk<'a> {
    table: &'a Table,
    /// The interfaces that the packets arrive on.
    attached: &'a [&'a str],
    protocol: Protocol,
    endpoint: Endpoint,
    /// The texts of the rules that drop packets.
    dropping: Vec<Cow<'a, str>>,
    visits: usize,
}

/// How many of the packets a criterion or rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    None,
    Some,
    All,
}

/// The fate of packets at the end of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// All are accepted or dropped.
    Decided,
    /// The chain that called this one continues.
    Returns,
}

impl<'a> Walk<'a> {
    fn base(&mut self, base: &'a Base) {
        let other = base.family.is_some_and(|family| family != Family::of(self.endpoint.addr));
        if !other && self.chain(&base.chain, 0) == Fate::Returns && base.drops {
            self.dropping.push(format!("policy drop of {}", base.text).into());
        }
    }

    fn chain(&mut self, name: &str, depth: usize) -> Fate {
        for rule in self.table.chains.get(name).filter(|_| depth < DEPTH_MAX).into_iter().flatten() {
            self.visits += 1;
            if self.visits >= VISITS_MAX {
                return Fate::Decided;
            }
            let extent = self.extent(rule);
            if extent == Extent::None {
                continue;
            }
            let fate = match &rule.action {
                Action::Drop => {
                    self.dropping.push(rule.text.as_str().into());
                    Fate::Decided
                }
                Action::Accept => Fate::Decided,
                Action::Return => Fate::Returns,
                Action::Call(to) => match self.chain(to, depth + 1) {
                    Fate::Decided => Fate::Decided,
                    Fate::Returns => continue,
                },
                Action::Goto(to) => self.chain(to, depth + 1),
                Action::Set(_) | Action::Unknown | Action::Nothing => continue,
            };
            if extent == Extent::All {
                return fate;
            }
        }
        Fate::Returns
    }

    fn extent(&self, rule: &Rule) -> Extent {
        let criteria = rule.criteria.iter().map(|criterion| self.of_criterion(criterion));
        let unknown = rule.obstacle.as_ref().map(|_| Extent::Some);
        criteria.chain(unknown).min().unwrap_or(Extent::All)
    }

    fn of_criterion(&self, criterion: &Criterion) -> Extent {
        let extent = match &criterion.matches {
            Match::OfNew { matches: true, .. } => Extent::All,
            Match::OfNew { matches: false, .. } => Extent::None,
            Match::Packet(test) => self.of_test(test),
            Match::Interface(names) => {
                let matched = self
                    .attached
                    .iter()
                    .filter(|interface| names.iter().any(|name| is_named(interface, name)))
                    .count();
                match matched {
                    0 => Extent::None,
                    count if count == self.attached.len() => Extent::All,
                    _ => Extent::Some,
                }
            }
        };
        match (criterion.expected, extent) {
            (Expected::Yes, extent) => extent,
            (Expected::No, Extent::All) => Extent::None,
            (Expected::No, Extent::None) => Extent::All,
            (Expected::No, Extent::Some) => Extent::Some,
        }
    }

    fn of_test(&self, test: &Test) -> Extent {
        let Endpoint { addr, port } = self.endpoint;
        let holds = match test {
            Test::Family(family) => *family == Family::of(addr),
            Test::Dest(networks) => networks.iter().any(|network| network.contains(addr)),
            Test::Protocol(protocols) => protocols.contains(&self.protocol),
            // A service of port 0 has all ports.
            Test::DestPort(_) if port == 0 => return Extent::Some,
            Test::DestPort(ranges) => ranges.iter().any(|range| range.contains(&port)),
            Test::EitherPort(ranges) if ranges.iter().any(|range| range.contains(&port)) => true,
            Test::Source(networks) => return self.of_source(networks.iter().map(|network| network.addr())),
            Test::EitherPort(_) | Test::SourcePort(_) | Test::Link(_) | Test::Mark { .. } => {
                return Extent::Some;
            }
        };
        if holds { Extent::All } else { Extent::None }
    }

    /// Clients have any address of the service's family.
    fn of_source(&self, mut networks: impl Iterator<Item = IpAddr>) -> Extent {
        let family = Family::of(self.endpoint.addr);
        if networks.any(|addr| Family::of(addr) == family) { Extent::Some } else { Extent::None }
    }
}

/// Whether an interface has this name, or begins with it if it ends in `*`.
fn is_named(interface: &str, name: &str) -> bool {
    name.strip_suffix('*').map_or(interface == name, |beginning| interface.starts_with(beginning))
}

pub(super) const CHECK: &str = "firewall";
/// Maximum number of rules that get a finding each.
const NAMED: usize = 8;
/// The deepest nesting of chains; netfilter's own limit is 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: usize = 16;
/// Maximum number of rules that are evaluated for all services together.
const VISITS_MAX: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use xvs_host::netfilter::{iptables_save, nft};
    use xvs_sched::ForwardingMethod;

    use super::*;
    use crate::doctor::facts::tests::{facts, serve, web};
    use crate::doctor::finding::Level;

    /// The rules that drop packets of the service 198.51.100.100:80, of a table `filter` with these lines.
    fn useless_rules(lines: &str) -> Vec<String> {
        let mut facts = serve(facts(), web(), ForwardingMethod::Nat);
        let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{lines}COMMIT\n");
        facts.netfilter = iptables_save::read_all(&text, Family::V4);
        let findings = firewall(&facts).into_iter().filter(|finding| finding.level == Level::Warn);
        let text = |finding: Finding| finding.found.split(['«', '»']).nth(1).unwrap().to_owned();
        findings.map(text).collect()
    }

    #[test]
    fn a_rule_that_drops_packets_for_a_virtual_address_is_named_and_one_for_others_is_not() {
        let input = ":INPUT ACCEPT [0:0]\n";
        for rule in [
            "-A INPUT -d 198.51.100.100/32 -j DROP",
            "-A INPUT -s 203.0.113.66/32 -j DROP",
            "-A INPUT -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset",
            "-A INPUT -m set --match-set blocked src -j DROP",
            "-A INPUT -i wan -p tcp -m tcp --dport 1:1024 -j DROP",
        ] {
            let expected = format!("iptables -t filter {rule}");
            assert_eq!(useless_rules(&format!("{input}{rule}\n")), [expected]);
        }
        for rule in [
            "-A INPUT -d 198.51.100.101/32 -j DROP",
            "-A INPUT -p tcp -m tcp --dport 22 -j DROP",
            "-A INPUT -p udp -j DROP",
            "-A INPUT -i mgmt -j DROP",
            "-A INPUT ! -i wan -p tcp -m tcp --dport 22 -j DROP",
            "-A INPUT -m conntrack --ctstate INVALID -j DROP",
            "-A INPUT -m addrtype --dst-type BROADCAST,MULTICAST -j DROP",
            "-A FORWARD -j DROP",
        ] {
            assert_eq!(useless_rules(&format!("{input}{rule}\n")), [""; 0], "{rule}");
        }
    }

    #[test]
    fn rules_of_nft_for_new_connections_concern_all_clients_and_those_for_others_none() {
        let matches = [
            (r#""left":{"ct":{"key":"state"}},"right":["established","new"]"#, 0),
            (r#""left":{"ct":{"key":"state"}},"right":"established""#, 1),
            (r#""left":{"fib":{"result":"type","flags":["daddr"]}},"right":"local""#, 0),
            (
                r#""left":{"fib":{"result":"type","flags":["daddr"]}},"right":{"set":["broadcast","multicast"]}"#,
                1,
            ),
        ];
        for (matches, useless) in matches {
            let json = format!(
                r#"{{"nftables":[{{"chain":{{"family":"inet","table":"t","name":"c","handle":1,"type":"filter",
                "hook":"input","prio":0,"policy":"drop"}}}},{{"rule":{{"family":"inet","table":"t","chain":"c",
                "handle":2,"expr":[{{"match":{{"op":"in",{matches}}}}},{{"accept":null}}]}}}}]}}"#
            );
            let mut facts = serve(facts(), web(), ForwardingMethod::Nat);
            facts.netfilter = nft::Ruleset::parse(&json, "").unwrap().all_tables(&[]);
            let found = firewall(&facts).into_iter().filter(|finding| finding.level == Level::Warn);
            assert_eq!(found.count(), useless, "{matches}");
        }
    }

    #[test]
    fn what_is_accepted_before_is_not_dropped_and_a_policy_counts_like_a_last_rule() {
        let accept = "-A INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT\n";
        let last = "-A INPUT -j DROP\n";
        let policy = ":INPUT DROP [0:0]\n";
        assert_eq!(useless_rules(&format!(":INPUT ACCEPT [0:0]\n{accept}{last}")), [""; 0]);
        assert_eq!(useless_rules(&format!("{policy}{accept}")), [""; 0]);
        for accept in [
            "-A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT\n",
            "-A INPUT -m addrtype --dst-type LOCAL -m conntrack --ctstate RELATED,NEW -j ACCEPT\n",
        ] {
            assert_eq!(useless_rules(&format!("{policy}{accept}")), [""; 0], "{accept}");
        }
        let some = "-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j ACCEPT\n";
        assert_eq!(useless_rules(&format!("{policy}{some}")), ["policy drop of iptables -t filter INPUT"]);
        let called = ":web - [0:0]\n-A web -s 10.0.0.0/8 -j ACCEPT\n-A web -j DROP\n-A INPUT -p tcp -j web\n";
        assert_eq!(
            useless_rules(&format!(":INPUT ACCEPT [0:0]\n{called}")),
            ["iptables -t filter -A web -j DROP"]
        );
    }
}
