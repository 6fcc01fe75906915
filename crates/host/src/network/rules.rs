//! Reads policy rules: the rules that xvs follows, and a sentence for each rule that it does not follow.
//!
//! IPVS routes packets as if this machine had made them, and so does xvs. So a rule for one input interface concerns
//! none of its packets, and a rule for `iif lo` all of them.

use std::io;

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use xvs_proto::network::{Network, PolicyAction, PolicyRuleMark, Rule, Table};
use xvs_proto::{Family, Prefix};

use crate::network::netlink::Netlink;

/// The policy rules of the kernel.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// The followed rules, in the kernel's order.
    pub(super) followed: Vec<Rule>,
    /// The marks in all rules.
    pub(super) marks: Vec<PolicyRuleMark>,
    /// A sentence for each rule that is not followed.
    pub(super) warnings: Vec<String>,
}

/// A rule that is not followed.
#[derive(Debug, PartialEq, Eq)]
enum Unfollowed {
    /// It concerns no packet that IPVS routes.
    Irrelevant,
    /// It has this, which xvs does not follow.
    Unknown(&'static str),
}

/// The rules of both families.
pub(super) fn read(netlink: &mut Netlink) -> io::Result<Rules> {
    let mut rules = Rules::default();
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
            match rule(&message, of) {
                Ok(rule) => rules.followed.push(rule),
                Err(Unfollowed::Irrelevant) => {}
                Err(Unfollowed::Unknown(what)) => rules.warnings.push(format!(
                    "policy rule {} ({}) is not followed, because of {what}: its packets may take another route than \
                     in the kernel (`ip {flag} rule` lists it)",
                    priority(&message),
                    describe(&message)
                )),
            }
        }
        if !any {
            // The kernel was built without policy rules: it looks up local and main.
            rules.followed.extend(Network::default().rules.into_iter().filter(|rule| rule.family == of));
        }
    }
    Ok(rules)
}

/// The rule in a message.
fn rule(message: &RuleMessage, family: Family) -> Result<Rule, Unfollowed> {
    let header = &message.header;
    if header.flags.contains(RuleFlags::Invert) {
        return Err(Unfollowed::Unknown("`not`"));
    }
    let mut from = None;
    let mut to = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(addr) => from = Prefix::new(*addr, header.src_len),
            RuleAttribute::Destination(addr) => to = Prefix::new(*addr, header.dst_len),
            RuleAttribute::Iifname(name) if name != LOOPBACK => return Err(Unfollowed::Irrelevant),
            RuleAttribute::Oifname(_) => return Err(Unfollowed::Unknown("`oif`")),
            RuleAttribute::L3MDev(true) => return Err(Unfollowed::Unknown("`l3mdev`")),
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
    Ok(Rule { family, priority: priority(message), from, to, mark: mark(message), action })
}

/// The mark of a rule's packets. The kernel leaves out a mark and a mask that are 0.
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
        // `l3mdev`: each VRF has a table of its own.
        RuleAction::ToTable if table(rule) == 0 => {}
        RuleAction::ToTable => words.push(format!("lookup {}", table(rule))),
        action => words.push(format!("{action:?}").to_lowercase()),
    }
    words.join(" ")
}

/// The priority; the kernel leaves the attribute out if it is 0.
fn priority(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    found.unwrap_or(0)
}

fn table(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    found.unwrap_or(u32::from(rule.header.table))
}

/// The input interface of packets that this machine makes.
const LOOPBACK: &str = "lo";
