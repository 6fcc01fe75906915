//! `xvs mark`: the rules by which packets are marked, without iptables.

use std::io::Write;
use std::ops::RangeInclusive;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use xvs_model::client::{Director, Failure};
use xvs_model::command::Command;
use xvs_model::firewall_mark::{MarkRule, ports_text};
use xvs_model::reply::Reply;
use xvs_model::request::Request;
use xvs_proto::{Family, Prefix, Protocol};

use super::{DONE, Done};

/// What follows `xvs mark`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Mark packets: add a rule behind the others; of those that fit a packet the last one wins
    Add(Rule),
    /// Delete the rule that says the same
    Delete(Rule),
    /// Show these rules in the order in which they apply; the kernel's own come before them
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Rule {
    /// Packets to this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    dest: Option<Prefix>,
    /// Packets from this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    source: Option<Prefix>,
    /// Packets of this protocol: tcp, udp or sctp
    #[arg(short, long, value_name = "PROTO", value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Packets to this port, or to one of these
    #[arg(long, value_name = "P[:Q]", value_parser = port_range, requires = "protocol", conflicts_with = "dports")]
    dport: Option<RangeInclusive<u16>>,
    /// Packets to one of these ports
    #[arg(long, value_name = "P,Q,R:S", value_delimiter = ',', value_parser = port_range, requires = "protocol")]
    dports: Vec<RangeInclusive<u16>>,
    /// Packets that come in by this interface; a name that ends in + is the beginning of one
    #[arg(short, long, value_name = "IFACE")]
    interface: Option<String>,
    /// The mark; with a mask, only these of its bits are changed
    #[arg(long, value_name = "N[/MASK]", value_parser = mark)]
    set_mark: (u32, u32),
}

impl Rule {
    fn message(&self) -> Result<MarkRule, String> {
        if let (Some(dest), Some(source)) = (self.dest, self.source)
            && Family::of(dest.addr()) != Family::of(source.addr())
        {
            return Err(format!("mark: no packet goes from {source} to {dest}; name networks of one family"));
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

impl Action {
    /// The change that it asks for; none for a listing.
    fn command(&self) -> Result<Option<Command>, String> {
        Ok(match self {
            Self::Add(rule) => Some(Command::AddMark(rule.message()?)),
            Self::Delete(rule) => Some(Command::DeleteMark(rule.message()?)),
            Self::List { .. } => None,
        })
    }
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    if let Action::List { json } = &arguments.action {
        let rules = match director.call(Request::Marks)? {
            Reply::Marks(rules) => rules,
            other => return Err(Failure::unexpected(&other).into()),
        };
        match json {
            true => writeln!(out, "{:#}", rules.iter().map(as_json).collect::<Value>())?,
            false => out.write_all(table(&rules).as_bytes())?,
        }
    } else if let Some(command) = arguments.action.command()? {
        director.call(Request::Change(command))?;
    }
    Ok(DONE)
}

/// The change that a line of a rules file asks for, by its words behind `mark`.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn command(words: &[&str]) -> Result<Command, String> {
    let arguments: Arguments = super::words("mark", words)?;
    arguments.action.command()?.ok_or_else(|| "mark list changes nothing".to_owned())
}

/// A table, one rule a line; a dash is what a rule does not ask for.
fn table(rules: &[MarkRule]) -> String {
    if rules.is_empty() {
        return "no mark rules; `xvs mark add --help` says how to add one\n".to_owned();
    }
    let heading = ["mark", "mask", "protocol", "source", "destination", "ports", "interface"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(rules.iter().map(columns));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let line = |row: &[String; 7]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn columns(rule: &MarkRule) -> [String; 7] {
    fn or_dash(value: Option<impl ToString>) -> String {
        value.map_or("-".to_owned(), |value| value.to_string())
    }
    [
        rule.mark.to_string(),
        format!("{:#x}", rule.mask),
        or_dash(rule.protocol),
        or_dash(rule.source),
        or_dash(rule.dest),
        or_dash(Some(ports_text(&rule.dest_ports)).filter(|ports| !ports.is_empty())),
        or_dash(rule.interface.as_ref()),
    ]
}

fn as_json(rule: &MarkRule) -> Value {
    json!({
        "dest": rule.dest,
        "source": rule.source,
        "protocol": rule.protocol,
        "dports": rule.dest_ports.iter().map(|range| ports_text(std::slice::from_ref(range))).collect::<Vec<_>>(),
        "interface": rule.interface,
        "mark": rule.mark,
        "mask": rule.mask,
    })
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" | "6" => Ok(Protocol::TCP),
        "udp" | "17" => Ok(Protocol::UDP),
        "sctp" | "132" => Ok(Protocol::SCTP),
        _ => Err("virtual services are of tcp, udp or sctp".to_owned()),
    }
}

/// `80` or `8000:8010`.
fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || "a port is a number to 65535, a range is FIRST:LAST".to_owned();
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first <= last { Ok(first..=last) } else { Err(wrong()) }
}

/// `10`, `0xa` or `0x1/0xff`.
fn mark(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let both = number(value).zip(mask.map_or(Some(u32::MAX), number));
    both.ok_or_else(|| "a mark is a number to 4294967295, decimal or 0x…; a mask is another one".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_table_lines_its_columns_up_and_dashes_what_is_not_asked_for() {
        let expected = "mark  mask  protocol  source  destination     ports         interface\n\
                        1     0xff  TCP       -       192.0.2.100/32  80,8000:8010  eth0\n";
        assert_eq!(table(&[rule()]), expected);
    }

    #[test]
    fn marks_masks_and_ports_are_read_as_iptables_reads_them_and_what_is_none_is_refused() {
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
    fn a_rule_prints_the_options_that_say_it() {
        assert_eq!(
            rule().to_string(),
            "-d 192.0.2.100/32 -p tcp --dports 80,8000:8010 -i eth0 --set-mark 1/0xff"
        );
    }

    #[test]
    fn what_a_rule_prints_is_read_back_from_a_file() {
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
            assert_eq!(command(&words), Ok(Command::AddMark(rule)));
        }
        for wrong in [&["add"][..], &["list"], &["add", "--set-mark", "x"], &[]] {
            assert!(command(wrong).is_err(), "{wrong:?}");
        }
    }
}
