//! A mark rule as text, as the data plane evaluates it, independent of its source.

use std::fmt::Display;
use std::ops::RangeInclusive;

use xvs_dataplane::egress::Egress;
use xvs_dataplane::snapshot::marks::{Action, Step};
use xvs_proto::Family;
use xvs_proto::mark::{Condition, Expected, Test};

/// How many entries of a list are named.
const NAMED_ENTRIES: usize = 3;

/// The packets to which a rule applies, and its action.
pub(super) fn in_words(step: &Step, egress: &Egress) -> String {
    let conditions: Vec<_> = step.conditions.iter().map(|condition| words(condition, egress)).collect();
    let packets = if conditions.is_empty() { "every packet".to_owned() } else { conditions.join(", ") };
    let action = match step.action {
        Action::Set(change) if change.keep == 0 => format!("mark {}", change.flip),
        Action::Set(change) => format!("mark & {:#x} ^ {:#x}", change.keep, change.flip),
        Action::SkipTo(step) => format!("skip to step {step}"),
    };
    format!("{packets}: {action}")
}

fn words(condition: &Condition, egress: &Egress) -> String {
    let what = match &condition.test {
        Test::Family(Family::V4) => "IPv4".to_owned(),
        Test::Family(Family::V6) => "IPv6".to_owned(),
        Test::Source(networks) => format!("from {}", list(networks)),
        Test::Dest(networks) => format!("to {}", list(networks)),
        Test::Protocol(protocols) => list(protocols),
        Test::SourcePort(ranges) => format!("from port {}", ports(ranges)),
        Test::DestPort(ranges) => format!("to port {}", ports(ranges)),
        Test::EitherPort(ranges) => format!("from or to port {}", ports(ranges)),
        Test::Link(links) => {
            let names: Vec<_> = links.iter().map(|link| egress.name_of(*link)).collect();
            format!("received on {}", list(&names))
        }
        Test::Mark { value, mask } => format!("mark {value:#x}/{mask:#x}"),
    };
    match condition.expected {
        Expected::Yes => what,
        Expected::No => format!("not {what}"),
    }
}

fn ports(ranges: &[RangeInclusive<u16>]) -> String {
    let ranges = ranges.iter().map(|range| match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}-{}", range.start(), range.end()),
    });
    list(&ranges.collect::<Vec<_>>())
}

fn list(entries: &[impl Display]) -> String {
    let mut named: Vec<_> = entries.iter().take(NAMED_ENTRIES).map(ToString::to_string).collect();
    if entries.len() > NAMED_ENTRIES {
        named.push(format!("{} others", entries.len() - NAMED_ENTRIES));
    }
    named.join(" or ")
}
