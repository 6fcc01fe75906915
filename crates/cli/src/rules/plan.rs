//! `xvs plan`: the changes that a rules file would make.

use std::io;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use xvs_ipvsadm::rule_lines;
use xvs_model::config::command::Command;
use xvs_model::config::difference::{Difference, differences, state_of};
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question::{self, RunningRules};

use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::{counted, print_json};
use crate::rules::{rules, text};

/// The arguments of `xvs plan`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Rules as `xvsadm -Sn` prints them; - is standard input
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let (_, mut wanted) = rules(&arguments.file, &text(&arguments.file)?)?;
    let RunningRules { rules: running, owned, .. } = question::rules().ask(director)?;
    let running = state_of(running)?;
    let left = owned.len();
    wanted.keep_running(&running, owned);
    let differences = differences(&running, &wanted);
    if left > 0 && !arguments.json {
        writeln!(out, "services owned by health checks, not compared: {left}")?;
    }
    if arguments.json {
        print_json(&rows(&differences), out)?;
    } else if differences.is_empty() {
        writeln!(out, "no difference: the configuration equals {}", arguments.file.display())?;
    } else {
        writeln!(out, "--- the configuration\n+++ {}", arguments.file.display())?;
        show(&differences, out)?;
        writeln!(out, "{}", summary(&differences))?;
    }
    Ok(if differences.is_empty() { DONE } else { FAILED })
}

/// Prints differences like a diff: the line that creates the former state, and the line that creates the wanted one.
pub(crate) fn show(differences: &[Difference], out: &mut dyn Write) -> io::Result<()> {
    for Row { before, after, .. } in rows(differences) {
        before.iter().try_for_each(|line| writeln!(out, "- {line}"))?;
        after.iter().try_for_each(|line| writeln!(out, "+ {line}"))?;
    }
    Ok(())
}

/// The number of differences of each kind: `3 differences: 1 added, 2 edited`.
pub(crate) fn summary(differences: &[Difference]) -> String {
    let mut present = Vec::new();
    for kind in ["added", "edited", "deleted"] {
        let count = differences.iter().filter(|difference| kind_of(difference) == kind).count();
        if count > 0 {
            present.push(format!("{count} {kind}"));
        }
    }
    format!("{}: {}", counted(differences.len() as u64, "difference", "differences"), present.join(", "))
}

/// A difference as `--json` prints it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Row {
    /// The kind of the difference: `added`, `edited` or `deleted`.
    change: &'static str,
    /// The lines of a rules file that make the former state; empty: the object did not exist.
    before: Vec<String>,
    /// The lines of a rules file that make the wanted state; empty: the object is deleted.
    after: Vec<String>,
}

/// The differences as `--json` prints them.
pub(crate) fn rows(differences: &[Difference]) -> Vec<Row> {
    differences
        .iter()
        .map(|difference| Row {
            change: kind_of(difference),
            before: lines(difference.before.clone().map(Command::Add)),
            after: lines(difference.after.clone()),
        })
        .collect()
}

fn kind_of(difference: &Difference) -> &'static str {
    match (&difference.before, &difference.after) {
        (None, _) => "added",
        (Some(_), Some(_)) => "edited",
        (Some(_), None) => "deleted",
    }
}

fn lines(command: Option<Command>) -> Vec<String> {
    command.as_ref().map(rule_lines).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use xvs_ipvsadm::SystemResolver;

    use crate::rules::plan::*;

    #[test]
    fn differences_are_shown_as_removed_and_added_lines_and_edits_as_edits() {
        let running = "\
#xvs laddr add 192.0.2.9
-A -t 192.0.2.1:80 -s rr
-a -t 192.0.2.1:80 -r 192.0.2.11:80 -m -x 9
-a -t 192.0.2.1:80 -r 192.0.2.12:80 -m
-A -t 192.0.2.1:81 -s rr
#xvs mark add --set-mark 1
";
        let wanted = "\
-A -t 192.0.2.1:80 -s rr
#xvs -E -t 192.0.2.1:80 -s rr --client-address proxy
-a -t 192.0.2.1:80 -r 192.0.2.11:80 -m -w 3
#xvs -a -t 192.0.2.1:80 -r 192.0.2.13:80 --fullnat
-a -t 192.0.2.1:80 -r 192.0.2.12:80 -m
--set 0 0 60
";
        let read = |text| xvs_ipvsadm::read_wanted(text, &SystemResolver::default()).unwrap();
        let running = state_of(read(running).0).unwrap();
        let differences = differences(&running, &read(wanted).1);
        let mut shown = Vec::new();
        show(&differences, &mut shown).unwrap();
        let expected = "\
- #xvs laddr add 192.0.2.9 --ports 1024-32767
- -A -t 192.0.2.1:80 -s rr
+ #xvs -E -t 192.0.2.1:80 -s rr --client-address proxy
- -a -t 192.0.2.1:80 -r 192.0.2.11:80 -m -w 1 -x 9
+ -e -t 192.0.2.1:80 -r 192.0.2.11:80 -m -w 3
+ #xvs -a -t 192.0.2.1:80 -r 192.0.2.13:80 --fullnat -w 1
- -A -t 192.0.2.1:81 -s rr
- #xvs mark add --set-mark 1
- --set 900 120 300
+ --set 900 120 60
";
        assert_eq!(String::from_utf8(shown).unwrap(), expected);
        assert_eq!(summary(&differences), "7 differences: 1 added, 3 edited, 3 deleted");
        let rows = rows(&differences);
        assert_eq!(rows[1].change, "edited");
        assert_eq!(rows[1].before[0], "-A -t 192.0.2.1:80 -s rr");
    }
}
