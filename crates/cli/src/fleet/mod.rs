//! `xvs fleet`: the directors that follow one rules file in etcd.
//!
//! Only the local xvsd connects to etcd. The output shows what it last read there, at most some seconds ago.

mod apply;
mod ask;
mod confirm;

use std::io::Write;

use clap::{Args, Subcommand};
use xvs_model::protocol::client::Director;
use xvs_model::report::fleet::{FleetDirector, FleetReport, Trial};

use crate::fleet::ask::report;
use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::{counted, line, print};

/// The arguments of `xvs fleet`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a rules file into etcd, and wait until every director runs or has refused it
    Apply(apply::Arguments),
    /// Keep rules that `xvs fleet apply --confirm-within` has written, or end them at once
    Confirm(confirm::Arguments),
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    match &arguments.command {
        Some(Command::Apply(arguments)) => apply::run(arguments, director, out),
        Some(Command::Confirm(arguments)) => confirm::run(arguments, director, out),
        None => {
            let report = report(director)?;
            print(&report, arguments.json, screen, out)?;
            Ok(if is_well(&report) { DONE } else { FAILED })
        }
    }
}

/// The line about this director, for `xvs status`.
pub(crate) fn summary(report: &FleetReport) -> String {
    let FleetReport { director, fleet, .. } = report;
    if report.etcd.is_none() {
        return format!("{director} of {fleet}: etcd has not answered yet");
    }
    let rules = report
        .directors
        .iter()
        .find(|one| one.name.raw() == *director)
        .and_then(|own| own.runs.as_ref())
        .map_or("no rules".to_owned(), |runs| format!("rules of revision {}", runs.revision));
    let others = match report.directors.len().saturating_sub(1) {
        0 => "no other director".to_owned(),
        others => counted(others as u64, "other director", "other directors"),
    };
    format!("{director} of {fleet}: {rules} of etcd, {others}")
}

/// Whether etcd answers, nothing is warned of, and each director runs exactly the newest rules.
fn is_well(report: &FleetReport) -> bool {
    report.warnings.is_empty()
        && report.differing().is_empty()
        && report.directors.iter().all(|director| report.faults(director).is_empty())
}

fn screen(report: &FleetReport) -> String {
    let FleetReport { fleet, director, etcd, silent: _, rules, trial, warnings, directors, settling: _ } =
        report;
    let rules = match (rules, etcd) {
        (_, None) => "etcd has not answered yet".to_owned(),
        (None, Some(url)) => format!("no rules in etcd in {url}"),
        (Some(revision), Some(url)) => format!("rules of revision {revision} in {url}"),
    };
    let mut lines = vec![line("fleet", &format!("{fleet}, seen by {director}: {rules}"))];
    lines.extend(trial.as_ref().map(|trial| line("trial", &waits(trial))));
    lines.extend(warnings.iter().map(|warning| line("warning", warning)));
    lines.push(format!(
        "{:<20} {:>8} {:>8} {:>8} {:>16} {:>7} {:>7} {:>7}\n",
        "Director", "Rules", "Services", "Servers", "Digest", "Conns", "CPS", "InPPS"
    ));
    let differing = report.differing();
    for (index, director) in directors.iter().enumerate() {
        let FleetDirector { name, runs, services, destinations, digest, connections, rates, .. } = director;
        let revision = runs.as_ref().map_or("none".to_owned(), |runs| runs.revision.to_string());
        lines.push(format!(
            "{name:<20} {revision:>8} {services:>8} {destinations:>8} {digest:>16} {connections:>7} {:>7} {:>7}\n",
            rates.connections, rates.in_packets
        ));
        lines.extend(report.faults(director).iter().map(|fault| line("", fault)));
        if differing.contains(&index) {
            lines.push(line(
                "",
                "its services differ from those of directors with the same rules: compare `xvsadm -Sn` there",
            ));
        }
    }
    lines.concat()
}

fn waits(Trial { revision, seconds_left }: &Trial) -> String {
    let left = seconds_left.map(|left| format!(" for {left} s more")).unwrap_or_default();
    format!("rules of revision {revision}{left}; `xvs fleet confirm` keeps them")
}

#[cfg(test)]
mod tests {
    use xvs_model::sample;

    use super::*;

    #[test]
    fn the_screen_has_a_row_for_each_director_and_what_is_wrong_with_it_below() {
        let report = sample::fleet();
        let expected = "\
fleet      prod, seen by lb1: rules of revision 12 in https://192.0.2.21:2379
trial      rules of revision 14 for 9 s more; `xvs fleet confirm` keeps them
warning    etcd has not answered for 12 s, and the last rules stay in force: no
           answer
Director                Rules Services  Servers           Digest   Conns     CPS   InPPS
lb1                        12        1        2 0123456789abcdef       3       1       2
           has refused revision 14: line 3: bad
           1 object differs from its rules; `xvs events` on lb1.example.com
           shows who changed them
           wan is down
           1 more warning; see `xvs status` on lb1.example.com
";
        assert_eq!(screen(&report), expected);
        assert!(!is_well(&report));
        assert_eq!(summary(&report), "lb1 of prod: rules of revision 12 of etcd, no other director");
    }

    #[test]
    fn no_record_of_another_director_reaches_the_terminal_as_it_is() {
        let mut report = sample::fleet();
        let director = &mut report.directors[0];
        let text = "\x1b[2J\r\nlb3 runs it";
        (director.name, director.host, director.digest) = (text.into(), text.into(), text.into());
        director.warnings = vec![text.into()];
        director.refused.as_mut().unwrap().why = text.into();
        let screen = screen(&report);
        assert!(!screen.contains(['\x1b', '\r']) && !screen.contains("\nlb3"), "{screen}");
        let refused = crate::fleet::ask::refused(&report.directors[0], Some(14)).unwrap();
        assert_eq!(refused.to_string(), "\\u{1b}[2J\\r\\nlb3 runs it");
    }
}
