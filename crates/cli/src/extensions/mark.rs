//! `xvs mark`: the mark rules of xvs, applied after those of iptables and nftables.

use std::io::Write;

use clap::{Args, Subcommand};
use serde::Serialize;
use xvs_ipvsadm::MarkChange;
use xvs_model::config::firewall_mark::{MarkRule, ports_text};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::ControlRequest;
use xvs_proto::{Prefix, Protocol};

use crate::output::exit::{DONE, Done};
use crate::output::text::print_json;

/// The arguments of `xvs mark`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Change(MarkChange),
    /// Show these rules in the order in which they apply; rules of the kernel come before them
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    match &arguments.action {
        Action::List { json } => {
            let rules = match director.call(ControlRequest::Marks.into())? {
                Reply::Marks(rules) => rules,
                other => return Err(Failure::unexpected(&other).into()),
            };
            match json {
                true => print_json(&rules.iter().map(Row::from).collect::<Vec<_>>(), out)?,
                false => out.write_all(table(&rules).as_bytes())?,
            }
        }
        Action::Change(change) => _ = director.call(ControlRequest::Change(change.command()?).into())?,
    }
    Ok(DONE)
}

/// A table, one rule a line; a dash where a rule matches anything.
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

/// A rule as `--json` prints it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Row<'a> {
    dest: Option<Prefix>,
    source: Option<Prefix>,
    protocol: Option<Protocol>,
    /// A port, or `FIRST:LAST`.
    dports: Vec<String>,
    interface: Option<&'a str>,
    mark: u32,
    mask: u32,
}

impl<'a> From<&'a MarkRule> for Row<'a> {
    fn from(rule: &'a MarkRule) -> Self {
        let dports = rule.dest_ports.iter().map(|range| ports_text(std::slice::from_ref(range)));
        Self {
            dest: rule.dest,
            source: rule.source,
            protocol: rule.protocol,
            dports: dports.collect(),
            interface: rule.interface.as_deref(),
            mark: rule.mark,
            mask: rule.mask,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::extensions::mark::*;

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
    fn the_table_aligns_its_columns_and_shows_a_dash_for_each_absent_condition() {
        let expected = "mark  mask  protocol  source  destination     ports         interface\n\
                        1     0xff  TCP       -       192.0.2.100/32  80,8000:8010  eth0\n";
        assert_eq!(table(&[rule()]), expected);
    }
}
