//! Requests of the subcommands of `xvs fleet` to the local director.

use std::error::Error;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use xvs_model::foreign_text::ForeignText;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::report::fleet::{FleetDirector, FleetReport};

/// How long directors have to run or refuse rules.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two requests for their state.
const INTERVAL: Duration = Duration::from_millis(500);

/// The director's report about its fleet.
pub(super) fn report(director: &mut dyn Director) -> Result<FleetReport, Box<dyn Error>> {
    let fleet = question::status().ask(director)?.fleet;
    Ok(fleet.ok_or("this director is in no fleet; name its etcd in [fleet] of xvs.toml, see docs/etcd.md")?)
}

/// Waits until every director runs, or has refused, the rules in etcd, and prints which. `is_seen`: whether the local
/// one has seen them. Returns whether all run them.
pub(super) fn await_directors(
    director: &mut dyn Director,
    is_seen: impl Fn(&FleetReport) -> bool,
    out: &mut dyn Write,
) -> Result<bool, Box<dyn Error>> {
    let end = Instant::now() + PATIENCE;
    let report = loop {
        let report = report(director)?;
        let wanted = report.wanted();
        let have_decided =
            report.directors.iter().all(|one| runs(one, wanted) || refused(one, wanted).is_some());
        if is_seen(&report) && have_decided || Instant::now() > end {
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

pub(super) fn refused(director: &FleetDirector, revision: Option<u64>) -> Option<&ForeignText> {
    director.refused.as_ref().filter(|refused| Some(refused.revision) == revision).map(|refused| &refused.why)
}
