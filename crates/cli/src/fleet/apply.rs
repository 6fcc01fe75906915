//! `xvs fleet apply`: writes a rules file into etcd, and waits for the directors.

use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use xvs_ipvsadm::{SystemResolver, read_wanted};
use xvs_model::protocol::client::Director;
use xvs_model::protocol::request::{FleetRequest, Request};
use xvs_model::report::fleet::{FleetDirector, FleetReport};

use crate::fleet::{change, report};
use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::duration;
use crate::rules::{listed, text};

/// The arguments of `xvs fleet apply`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Rules as `xvsadm -Sn` prints them; - is standard input
    file: PathBuf,
    /// All directors return to the former rules after this time, such as 60s or 5m, unless `xvs fleet confirm` is run
    /// before
    #[arg(long, value_name = "TIME", value_parser = duration)]
    confirm_within: Option<Duration>,
}

/// How long directors have to run or refuse rules.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interval of looking at them.
const INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let file = arguments.file.display();
    let text = text(&arguments.file)?;
    let faults = read_wanted(&text, &SystemResolver::default());
    let (rules, _) = faults.map_err(|faults| listed(&arguments.file, &faults))?;
    if rules.is_empty() {
        let step = "to delete all services, write the line -C into it";
        return Err(format!("{file} has no rules, so nothing was changed; {step}").into());
    }
    let former = report(director)?.rules;
    // Whole seconds, as `duration` reads them.
    let seconds = arguments.confirm_within.and_then(|time| u32::try_from(time.as_secs()).ok());
    let wanted = FleetRequest::Apply { text, former, confirm_within_seconds: seconds };
    let revision = change(director, Request::Fleet(wanted))?;
    writeln!(out, "{file} is in etcd, as revision {revision}")?;
    let all_run = await_directors(director, |report| report.wanted() == Some(revision), out)?;
    if let Some(seconds) = seconds {
        writeln!(out, "all return to the former rules in {seconds} s unless `xvs fleet confirm` is run")?;
    }
    Ok(if all_run { DONE } else { FAILED })
}

/// Waits until every director runs, or has refused, the rules in etcd, and prints which. `is_seen`: whether the local
/// one has seen them. Returns whether all run them.
pub(super) fn await_directors(
    director: &mut dyn Director,
    is_seen: impl Fn(&FleetReport) -> bool,
    out: &mut dyn Write,
) -> Result<bool, Box<dyn std::error::Error>> {
    let end = Instant::now() + PATIENCE;
    let report = loop {
        let report = report(director)?;
        let wanted = report.wanted();
        let has_decided =
            |director: &FleetDirector| runs(director, wanted) || refused(director, wanted).is_some();
        if is_seen(&report) && report.directors.iter().all(has_decided) || Instant::now() > end {
            break report;
        }
        thread::sleep(INTERVAL);
    };
    let wanted = report.wanted();
    let mut all_run = is_seen(&report);
    if let Some(silent) = &report.silent {
        writeln!(out, "etcd does not answer any more: {}", silent.why)?;
    }
    for director in &report.directors {
        let name = &director.name;
        if runs(director, wanted) {
            writeln!(out, "{name} runs it")?;
            continue;
        }
        all_run = false;
        match refused(director, wanted) {
            Some(why) => writeln!(out, "{name} has refused it: {why}")?,
            None => writeln!(out, "{name} does not run it yet; see `xvs fleet`, and `xvs status` there")?,
        }
    }
    Ok(all_run)
}

fn runs(director: &FleetDirector, revision: Option<u64>) -> bool {
    director.runs.as_ref().map(|runs| runs.revision) == revision
}

fn refused(director: &FleetDirector, revision: Option<u64>) -> Option<&str> {
    let refused = director.refused.as_ref().filter(|refused| Some(refused.revision) == revision);
    refused.map(|refused| refused.why.as_str())
}
