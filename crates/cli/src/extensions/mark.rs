//! `xvs mark`: the mark rules of xvs, applied after the rules of iptables and nftables.

use serde::Serialize;
use xvs_ipvsadm::MarkChange;
use xvs_model::objects::mark::{MarkRule, ports_text};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_proto::{Prefix, Protocol};

use super::{Listed, NoOptions};
use crate::output::text::{aligned, widths};

impl Listed for MarkChange {
    type Options = NoOptions;
    type Report = Vec<Row>;
    const HELP: &str =
        "Show these rules in the order in which they apply; rules of the kernel come before them";

    fn report(_: &NoOptions, director: &mut dyn Director) -> Result<Vec<Row>, Failure> {
        Ok(question::marks().ask(director)?.iter().map(Row::from).collect())
    }

    fn screen(rows: &Vec<Row>) -> String {
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

fn columns(rule: &Row) -> [String; 7] {
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

/// A rule as `--json` prints it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Row {
    /// The network of the destination address; `None`: any.
    dest: Option<Prefix>,
    /// The network of the source address; `None`: any.
    source: Option<Prefix>,
    /// The transport protocol; `None`: any.
    protocol: Option<Protocol>,
    /// The destination ports, each a port or `FIRST:LAST`; empty: any port.
    dports: Vec<String>,
    /// The incoming interface; a name that ends in `+` is a prefix; `None`: any.
    interface: Option<String>,
    /// The firewall mark that packets get.
    mark: u32,
    /// The bits of the mark that the rule changes.
    mask: u32,
}

impl From<&MarkRule> for Row {
    fn from(rule: &MarkRule) -> Self {
        let dports = rule.dest_ports.iter().map(|range| ports_text(std::slice::from_ref(range)));
        Self {
            dest: rule.dest,
            source: rule.source,
            protocol: rule.protocol,
            dports: dports.collect(),
            interface: rule.interface.clone(),
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
        assert_eq!(MarkChange::screen(&vec![Row::from(&rule())]), expected);
    }
}
