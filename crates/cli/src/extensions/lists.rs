//! `xvs deny` and `xvs allow`: the clients that may use services.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use xvs_ipvsadm::{EntryArgument, ListChange, SystemResolver};
use xvs_model::objects::list_key::ListKind;
use xvs_model::objects::listed::{ListRow, ListSummary};
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};
use crate::output::text::{counted, print};

/// The arguments of `xvs deny` and `xvs allow`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    entry: EntryArgument,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Change(ListChange),
    /// Show the lists, with the packets that each has dropped
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(
    kind: ListKind,
    arguments: &Arguments,
    director: &mut dyn Director,
    out: &mut dyn Write,
) -> Done {
    let resolver = SystemResolver::default();
    let command = match &arguments.action {
        Some(Action::List { json }) => {
            let rows = question::lists(kind).ask(director)?;
            print(&rows, *json, |rows| screen(kind, rows), out)?;
            return Ok(DONE);
        }
        Some(Action::Change(change)) => change.command(kind, &resolver)?,
        None => arguments.entry.command(kind, &resolver)?,
    };
    question::change(command).ask(director)?;
    Ok(DONE)
}

/// The lists as text.
fn screen(kind: ListKind, rows: &[ListRow]) -> String {
    let mut text = String::new();
    if rows.is_empty() {
        let name = kind.name();
        let _ = writeln!(text, "no {name} list; `xvs {name} --help` says how to make one");
    }
    for row in rows {
        let _ = writeln!(text, "{}", summary(&row.summary));
        if let Some(file) = &row.file {
            let of_file = row.summary.networks - row.entries.len() as u64;
            let _ = writeln!(text, "  {}: {}", file.display(), counted(of_file, "network", "networks"));
        }
        for entry in &row.entries {
            let left = entry
                .seconds_left
                .map(|left| format!("  for {} more", humantime::format_duration(Duration::from_secs(left))));
            let _ = writeln!(text, "  {}{}", entry.network, left.unwrap_or_default());
        }
    }
    text
}

/// A list with its size and its effect.
pub(crate) fn summary(ListSummary { list, networks, dropped }: &ListSummary) -> String {
    let networks = counted(*networks, "network", "networks");
    format!("{list}: {networks}, {}", counted(*dropped, "packet dropped", "packets dropped"))
}

#[cfg(test)]
mod tests {
    use xvs_model::objects::list_key::ListKey;
    use xvs_model::objects::listed::ListEntry;

    use super::*;

    #[test]
    fn the_listing_shows_each_list_with_its_drops_its_file_and_the_time_that_entries_have_left() {
        let entry = |network: &str, seconds_left: Option<u64>| ListEntry {
            network: network.parse().unwrap(),
            until: seconds_left.map(|left| 1_800_000_000 + left),
            seconds_left,
        };
        let row = ListRow {
            summary: ListSummary {
                list: ListKey { kind: ListKind::Deny, service: Some("TCP 198.51.100.1:80".parse().unwrap()) },
                networks: 1002,
                dropped: 1,
            },
            file: Some("/etc/xvs/bad".into()),
            entries: vec![entry("192.0.2.0/24", None), entry("203.0.113.7", Some(90))],
        };
        let expected = "\
deny list of TCP 198.51.100.1:80: 1002 networks, 1 packet dropped
  /etc/xvs/bad: 1000 networks
  192.0.2.0/24
  203.0.113.7/32  for 1m 30s more
";
        assert_eq!(screen(ListKind::Deny, &[row]), expected);
        assert!(screen(ListKind::Allow, &[]).starts_with("no allow list; `xvs allow --help`"));
    }
}
