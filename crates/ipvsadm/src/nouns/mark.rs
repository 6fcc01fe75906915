//! `xvs mark`: rules that set firewall marks.

use std::ops::RangeInclusive;

use clap::{Args, Subcommand};
use xvs_model::config::command::Command;
use xvs_model::objects::mark::{MarkRow, MarkRule};
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_proto::{Family, Prefix, Protocol};

use crate::error::LineError;
use crate::nouns::arguments::{Line, NoOptions};
use crate::resolver::Resolver;
use crate::text::{aligned, widths};

/// A change of the mark rules.
#[derive(Debug, Subcommand)]
pub enum MarkChange {
    /// Append a rule; of the rules that match a packet, the last one sets its mark
    Add(MarkOptions),
    /// Delete the rule that has the same options
    Delete(MarkOptions),
}

/// A mark rule as options.
#[derive(Debug, Args)]
pub struct MarkOptions {
    /// Packets to this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    dest: Option<Prefix>,
    /// Packets from this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    source: Option<Prefix>,
    /// Packets of this protocol: tcp, udp or sctp
    #[arg(short, long, value_name = "PROTO", value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Packets to this port, or to this range of ports
    #[arg(long, value_name = "P[:Q]", value_parser = port_range, requires = "protocol", conflicts_with = "dports")]
    dport: Option<RangeInclusive<u16>>,
    /// Packets to one of these ports or ranges
    #[arg(long, value_name = "P,Q,R:S", value_delimiter = ',', value_parser = port_range, requires = "protocol")]
    dports: Vec<RangeInclusive<u16>>,
    /// Packets received on this interface; a name that ends in + matches all names with this prefix
    #[arg(short, long, value_name = "IFACE")]
    interface: Option<String>,
    /// The mark; with a mask, only the bits of the mask are changed
    #[arg(long, value_name = "N[/MASK]", value_parser = mark)]
    set_mark: (u32, u32),
}

impl MarkOptions {
    fn rule(&self) -> Result<MarkRule, LineError> {
        if let Some((dest, source)) = self.dest.zip(self.source)
            && Family::of(dest.addr()) != Family::of(source.addr())
        {
            return Err(LineError::usage(format!(
                "mark: {source} and {dest} are of two address families, so no packet matches; name networks of one"
            )));
        }
        let (mark, mask) = self.set_mark;
        Ok(MarkRule {
            dest: self.dest,
            source: self.source,
            protocol: self.protocol,
            dest_ports: self.dport.iter().chain(&self.dports).cloned().collect(),
            interface: self.interface.clone(),
            mark,
            mask,
        })
    }
}

impl Line for MarkChange {
    const WORD: &str = "mark";
    type Options = NoOptions;
    type Report = Vec<MarkRow>;
    const HELP: &str =
        "Show these rules in the order in which they apply; rules of the kernel come before them";

    fn command(&self, _: &dyn Resolver) -> Result<Command, LineError> {
        Ok(match self {
            Self::Add(options) => Command::Add(Rule::Mark(options.rule()?)),
            Self::Delete(options) => Command::Delete(Object::Mark(options.rule()?)),
        })
    }

    fn report(_: &NoOptions, director: &mut dyn Director) -> Result<Vec<MarkRow>, Failure> {
        Ok(question::marks().ask(director)?.iter().map(MarkRow::from).collect())
    }

    fn screen(rows: &Vec<MarkRow>) -> String {
        if rows.is_empty() {
            return "no mark rules; `xvs mark add --help` says how to add one\n".to_owned();
        }
        let heading = ["mark", "mask", "protocol", "source", "destination", "ports", "interface"];
        let mut lines = vec![heading.map(str::to_owned)];
        lines.extend(rows.iter().map(columns));
        let widths = widths(&lines);
        lines.iter().map(|row| aligned(row, widths)).collect()
    }
}

fn protocol(text: &str) -> Result<Protocol, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" | "6" => Ok(Protocol::TCP),
        "udp" | "17" => Ok(Protocol::UDP),
        "sctp" | "132" => Ok(Protocol::SCTP),
        _ => Err("the protocol of a virtual service is tcp, udp or sctp"),
    }
}

/// `80` or `8000:8010`.
fn port_range(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    first
        .parse()
        .ok()
        .zip(last.parse().ok())
        .filter(|(first, last)| first <= last)
        .map(|(first, last)| first..=last)
        .ok_or("a port is a number up to 65535, a range is FIRST:LAST")
}

/// `10`, `0xa` or `0x1/0xff`.
fn mark(text: &str) -> Result<(u32, u32), &'static str> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    number(value)
        .zip(mask.map_or(Some(u32::MAX), number))
        .ok_or("a mark is a number up to 4294967295, decimal or 0x…, and so is a mask")
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn columns(rule: &MarkRow) -> [String; 7] {
    fn or_dash(value: Option<impl ToString>) -> String {
        value.map_or("-".to_owned(), |value| value.to_string())
    }
    [
        rule.mark.to_string(),
        format!("{:#x}", rule.mask),
        or_dash(rule.protocol),
        or_dash(rule.source),
        or_dash(rule.dest),
        or_dash(Some(rule.dports.join(",")).filter(|ports| !ports.is_empty())),
        or_dash(rule.interface.as_ref()),
    ]
}

#[cfg(test)]
mod tests {
    use crate::nouns::arguments::command;
    use crate::nouns::mark::*;
    use crate::resolver::FixedNames;

    fn rule() -> MarkRule {
        MarkRule {
            dest: Some("192.0.2.100".parse().unwrap()),
            source: None,
            protocol: Some(Protocol::TCP),
            dest_ports: vec![80..=80, 8000..=8010],
            interface: Some("eth0".to_owned()),
            mark: 1,
            mask: 0xff,
        }
    }

    #[test]
    fn marks_masks_and_ports_are_parsed_as_iptables_parses_them_and_others_are_refused() {
        assert_eq!(mark("10"), Ok((10, u32::MAX)));
        assert_eq!(mark("0x1/0xff"), Ok((1, 255)));
        assert_eq!(port_range("8000:8010"), Ok(8000..=8010));
        for bad in ["", "x", "4294967296", "1/", "/1", "-1"] {
            assert!(mark(bad).is_err(), "{bad}");
        }
        for bad in ["", "80:", "65536", "81:80", "http"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rule_is_printed_as_its_options() {
        assert_eq!(
            rule().to_string(),
            "-d 192.0.2.100/32 -p tcp --dports 80,8000:8010 -i eth0 --set-mark 1/0xff"
        );
    }

    #[test]
    fn a_printed_rule_is_parsed_back_from_a_file() {
        let ipv6 = MarkRule {
            dest: None,
            source: Some("2001:db8::/32".parse().unwrap()),
            protocol: None,
            dest_ports: Vec::new(),
            interface: Some("wan+".to_owned()),
            mark: u32::MAX,
            mask: u32::MAX,
        };
        for rule in [rule(), ipv6] {
            let text = format!("add {rule}");
            let words: Vec<_> = text.split(' ').collect();
            assert_eq!(
                command::<MarkChange>(&words, &FixedNames::default()),
                Ok(Command::Add(Rule::Mark(rule)))
            );
        }
        for wrong in [&["add"][..], &["list"], &["add", "--set-mark", "x"], &[]] {
            assert!(command::<MarkChange>(wrong, &FixedNames::default()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_table_aligns_its_columns_and_shows_a_dash_for_each_absent_condition() {
        let expected = "mark  mask  protocol  source  destination     ports         interface\n\
                        1     0xff  TCP       -       192.0.2.100/32  80,8000:8010  eth0\n";
        assert_eq!(MarkChange::screen(&vec![MarkRow::from(&rule())]), expected);
    }
}
