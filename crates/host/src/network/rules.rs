//! Reads policy rules: the rules that xvs follows, and a message about each rule that it does not follow.
//!
//! IPVS routes packets as if this machine had created them, and so does xvs. A rule for one input interface therefore
//! matches none of its packets, and a rule for `iif lo` all of them. But packets received on an interface in a VRF have
//! the VRF as input interface. The kernel's rule `l3mdev`, which looks up the table of each packet's VRF, becomes a
//! rule for each VRF (kernel `Documentation/networking/vrf.rst`).

use std::io;

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use xvs_proto::network::{Link, LinkKind, Network, PolicyAction, PolicyRuleMark, Rule, Table};
use xvs_proto::{Family, Prefix};

use crate::network::netlink::Netlink;
use crate::notice::Notice;

/// The policy rules of the kernel.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// The followed rules, in the kernel's order.
    pub(super) followed: Vec<Rule>,
    /// The marks in all rules.
    pub(super) marks: Vec<PolicyRuleMark>,
    /// A sentence for each rule that is not followed.
    pub(super) warnings: Vec<Notice>,
}

/// A rule that is not followed.
#[derive(Debug, PartialEq, Eq)]
enum Unfollowed {
    /// It concerns no packet that IPVS routes.
    Irrelevant,
    /// It has this, which xvs does not follow.
    Unknown(&'static str),
}

/// The rules of both families. `links` are the machine's links, with its VRFs.
pub(super) fn read(netlink: &mut Netlink, links: &[Link]) -> io::Result<Rules> {
    let mut rules = Rules::default();
    let vrfs: Vec<_> = links.iter().filter_map(vrf).collect();
    for (family, of, flag) in
        [(AddressFamily::Inet, Family::V4, "-4"), (AddressFamily::Inet6, Family::V6, "-6")]
    {
        let mut any = false;
        let mut request = RuleMessage::default();
        request.header.family = family;
        for reply in netlink.dump(RouteNetlinkMessage::GetRule(request))? {
            let RouteNetlinkMessage::NewRule(message) = reply else { continue };
            if message.header.family != family {
                continue;
            }
            any = true;
            rules.marks.extend(policy_rule_mark(&message));
            match followed(&message, of, &vrfs) {
                Ok(followed) => rules.followed.extend(followed),
                Err(Unfollowed::Irrelevant) => {}
                Err(Unfollowed::Unknown(what)) => {
                    let (priority, rule) = (priority(&message), describe(&message));
                    let text = format!(
                        "policy rule {priority} ({rule}) is not followed, because of {what}: its packets may take another \
                         route than in the kernel (`ip {flag} rule` lists it)"
                    );
                    let object = format_args!("{flag} rule {priority} ({rule}) with {what}");
                    rules.warnings.push(Notice::new(object, text));
                }
            }
        }
        if !any {
            // The kernel was built without policy rules: it looks up local and main.
            rules.followed.extend(Network::default().rules.into_iter().filter(|rule| rule.family == of));
        }
    }
    Ok(rules)
}

/// The name of a VRF, and its table.
fn vrf(link: &Link) -> Option<(&str, Table)> {
    match link.kind {
        LinkKind::Vrf(table) => Some((&link.name, table)),
        _ => None,
    }
}

/// The rule in a message; for `l3mdev`, one for each VRF.
fn followed(message: &RuleMessage, family: Family, vrfs: &[(&str, Table)]) -> Result<Vec<Rule>, Unfollowed> {
    let rule = rule(message, family, vrfs)?;
    if !message.attributes.contains(&RuleAttribute::L3MDev(true)) {
        return Ok(vec![rule]);
    }
    let mut rules = Vec::new();
    for &(_, table) in vrfs {
        let action = match rule.action {
            PolicyAction::Lookup(_) => PolicyAction::Lookup(table),
            // `l3mdev unreachable` after `l3mdev` keeps packets in VRFs from the main table.
            PolicyAction::Refuse => PolicyAction::Refuse,
        };
        if rule.vrf.is_none_or(|vrf| vrf == table) {
            rules.push(Rule { vrf: Some(table), action, ..rule.clone() });
        }
    }
    Ok(rules)
}

/// The rule in a message.
fn rule(message: &RuleMessage, family: Family, vrfs: &[(&str, Table)]) -> Result<Rule, Unfollowed> {
    let header = &message.header;
    if header.flags.contains(RuleFlags::Invert) {
        return Err(Unfollowed::Unknown("`not`"));
    }
    let mut from = None;
    let mut to = None;
    let mut vrf = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(addr) => from = Prefix::new(*addr, header.src_len),
            RuleAttribute::Destination(addr) => to = Prefix::new(*addr, header.dst_len),
            RuleAttribute::Iifname(name) if name != LOOPBACK => {
                vrf = Some(vrfs.iter().find(|(known, _)| known == name).ok_or(Unfollowed::Irrelevant)?.1);
            }
            RuleAttribute::Oifname(_) => return Err(Unfollowed::Unknown("`oif`")),
            RuleAttribute::UidRange(_) => return Err(Unfollowed::Unknown("`uidrange`")),
            RuleAttribute::IpProtocol(_) => return Err(Unfollowed::Unknown("`ipproto`")),
            RuleAttribute::SourcePortRange(_) => return Err(Unfollowed::Unknown("`sport`")),
            RuleAttribute::DestinationPortRange(_) => return Err(Unfollowed::Unknown("`dport`")),
            RuleAttribute::TunId(_) => return Err(Unfollowed::Unknown("`tun_id`")),
            // All ones is the default: nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(value) if *value != u32::MAX => {
                return Err(Unfollowed::Unknown("`suppress_prefixlength`"));
            }
            RuleAttribute::SuppressIfGroup(value) if *value != u32::MAX => {
                return Err(Unfollowed::Unknown("`suppress_ifgroup`"));
            }
            RuleAttribute::Other(_) => return Err(Unfollowed::Unknown("an unknown selector")),
            _ => {}
        }
    }
    if header.tos != 0 {
        return Err(Unfollowed::Unknown("`tos`"));
    }
    let action = match header.action {
        RuleAction::ToTable => PolicyAction::Lookup(Table(table(message))),
        RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => PolicyAction::Refuse,
        RuleAction::Nop => return Err(Unfollowed::Irrelevant),
        RuleAction::Goto => return Err(Unfollowed::Unknown("`goto`")),
        _ => return Err(Unfollowed::Unknown("an unknown action")),
    };
    let (from, to) = [from, to].map(|prefix| prefix.filter(|prefix| !prefix.is_default())).into();
    Ok(Rule { family, priority: priority(message), from, to, mark: mark(message), vrf, action })
}

/// The mark that a rule matches. The kernel leaves out a mark and a mask that are 0.
fn mark(message: &RuleMessage) -> Option<PolicyRuleMark> {
    let mut mark = None;
    let mut mask = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = Some(*value),
            _ => {}
        }
    }
    let mask = mask.or(mark.map(|_| u32::MAX)).filter(|mask| *mask != 0)?;
    Some(PolicyRuleMark { mark: mark.unwrap_or(0), mask })
}

/// The mark in a rule that looks up a table.
fn policy_rule_mark(message: &RuleMessage) -> Option<PolicyRuleMark> {
    let looks_up =
        message.header.action == RuleAction::ToTable && !message.header.flags.contains(RuleFlags::Invert);
    mark(message).filter(|_| looks_up)
}

fn describe(rule: &RuleMessage) -> String {
    let mut words = Vec::new();
    if rule.header.flags.contains(RuleFlags::Invert) {
        words.push("not".to_owned());
    }
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Source(addr) => words.push(format!("from {addr}/{}", rule.header.src_len)),
            RuleAttribute::Destination(addr) => words.push(format!("to {addr}/{}", rule.header.dst_len)),
            RuleAttribute::Iifname(name) => words.push(format!("iif {name}")),
            RuleAttribute::Oifname(name) => words.push(format!("oif {name}")),
            RuleAttribute::FwMark(mark) => words.push(format!("fwmark {mark:#x}")),
            RuleAttribute::L3MDev(true) => words.push("l3mdev".to_owned()),
            _ => {}
        }
    }
    match rule.header.action {
        // `l3mdev`: each VRF has a separate table.
        RuleAction::ToTable if table(rule) == 0 => {}
        RuleAction::ToTable => words.push(format!("lookup {}", table(rule))),
        action => words.push(format!("{action:?}").to_lowercase()),
    }
    words.join(" ")
}

/// The priority; the kernel leaves the attribute out if it is 0.
fn priority(rule: &RuleMessage) -> u32 {
    rule.attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        })
        .unwrap_or(0)
}

fn table(rule: &RuleMessage) -> u32 {
    rule.attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(u32::from(rule.header.table))
}

/// The input interface of packets that this machine creates.
const LOOPBACK: &str = "lo";

#[cfg(test)]
mod tests {
    use crate::network::rules::*;

    /// A rule that looks up a table, with these attributes, as the kernel sends it.
    fn message(table: u8, attributes: Vec<RuleAttribute>) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.action = RuleAction::ToTable;
        message.header.table = table;
        message.attributes = attributes;
        message
    }

    fn lines(message: &RuleMessage, vrfs: &[(&str, Table)]) -> Result<Vec<String>, Unfollowed> {
        Ok(followed(message, Family::V4, vrfs)?.iter().map(Rule::to_string).collect())
    }

    #[test]
    fn the_rule_l3mdev_is_one_for_each_vrf_and_none_without_vrfs() {
        let vrfs = [("blue", Table(10)), ("red", Table(1020))];
        let l3mdev = message(0, vec![RuleAttribute::Priority(1000), RuleAttribute::L3MDev(true)]);
        assert_eq!(
            lines(&l3mdev, &vrfs).unwrap(),
            [
                "1000: from all in the VRF of table 10 lookup 10",
                "1000: from all in the VRF of table 1020 lookup 1020"
            ]
        );
        assert_eq!(lines(&l3mdev, &[]), Ok(vec![]));
        let mut refusing = l3mdev;
        refusing.header.action = RuleAction::Unreachable;
        assert_eq!(
            lines(&refusing, &vrfs[..1]).unwrap(),
            ["1000: from all in the VRF of table 10 unreachable"]
        );
        let plain = message(254, vec![RuleAttribute::L3MDev(false)]);
        assert_eq!(lines(&plain, &vrfs).unwrap(), ["0: from all lookup main"]);
    }

    #[test]
    fn a_rule_for_the_input_interface_is_followed_if_that_is_a_vrf() {
        let vrfs = [("blue", Table(10)), ("red", Table(20))];
        let by = |name: &str| message(100, vec![RuleAttribute::Iifname(name.to_owned())]);
        assert_eq!(lines(&by("red"), &vrfs).unwrap(), ["0: from all in the VRF of table 20 lookup 100"]);
        assert_eq!(lines(&by("eth0"), &vrfs), Err(Unfollowed::Irrelevant));
        assert_eq!(lines(&by("lo"), &vrfs).unwrap(), ["0: from all lookup 100"]);
    }
}
