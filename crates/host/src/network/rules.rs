//! Reads policy rules other than the kernel's three default rules, with a sentence for each.
//!
//! xvs routes by the tables local and main, as the default rules do (the third table, default, is normally empty).
//! Another rule may make the kernel route some packets differently. It is reported, not followed.

use std::io;

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use xvs_proto::network::PolicyRuleMark;

use crate::network::netlink::Netlink;

/// The marks in policy rules, and a sentence for each rule, which is not followed.
pub(super) fn read(netlink: &mut Netlink) -> io::Result<(Vec<PolicyRuleMark>, Vec<String>)> {
    let (mut marks, mut warnings) = (Vec::new(), Vec::new());
    for (family, flag) in [(AddressFamily::Inet, "-4"), (AddressFamily::Inet6, "-6")] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        for reply in netlink.dump(RouteNetlinkMessage::GetRule(request))? {
            if let RouteNetlinkMessage::NewRule(rule) = reply
                && rule.header.family == family
                && !is_default(&rule)
            {
                marks.extend(policy_rule_mark(&rule));
                let priority = priority(&rule);
                warnings.push(format!(
                    "policy rule {priority} ({}) is not followed: xvs routes by the tables local and main alone; \
                     its packets may take another route than in the kernel (`ip {flag} rule` lists it)",
                    describe(&rule)
                ));
            }
        }
    }
    Ok((marks, warnings))
}

/// The mark in a rule that looks up a table.
fn policy_rule_mark(rule: &RuleMessage) -> Option<PolicyRuleMark> {
    let looks_up =
        rule.header.action == RuleAction::ToTable && !rule.header.flags.contains(RuleFlags::Invert);
    let mark = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) if looks_up => Some(*mark),
        _ => None,
    })?;
    let mask = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMask(mask) => Some(*mask),
        _ => None,
    });
    Some(PolicyRuleMark { mark, mask: mask.unwrap_or(u32::MAX) })
}

/// Whether a rule is one of the three of a new network namespace (ip-rule(8)).
fn is_default(rule: &RuleMessage) -> bool {
    let header = &rule.header;
    let expected = match priority(rule) {
        0 => 255,
        32_766 => 254,
        32_767 => 253,
        _ => return false,
    };
    let plain = rule.attributes.iter().all(|attribute| match attribute {
        RuleAttribute::Priority(_) | RuleAttribute::Table(_) | RuleAttribute::Protocol(_) => true,
        // All ones is the default: no prefix length is suppressed.
        RuleAttribute::SuppressPrefixLen(value) => *value == u32::MAX,
        _ => false,
    });
    plain
        && table(rule) == expected
        && header.action == RuleAction::ToTable
        && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
        && !header.flags.contains(RuleFlags::Invert)
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
