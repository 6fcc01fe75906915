//! `xvs fleet apply`: writes a rules file into etcd, and waits for the directors.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::protocol::request::FleetRequest;

use crate::fleet::ask::{await_directors, report};
use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::seconds;
use crate::rules::to_apply;

/// The arguments of `xvs fleet apply`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Rules as `xvsadm -Sn` prints them; - is standard input
    file: PathBuf,
    /// Return all directors to the former rules after this time, such as 60s or 5m, unless `xvs fleet confirm` is run
    /// before
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    confirm_within: Option<u32>,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let file = arguments.file.display();
    let (text, _) = to_apply(&arguments.file)?;
    let former = report(director)?.rules;
    let sent = Instant::now();
    let request = FleetRequest::Apply { text, former, confirm_within_seconds: arguments.confirm_within };
    let revision = question::change_fleet(request).ask(director)?;
    writeln!(out, "{file} is in etcd, as revision {revision}")?;
    let all_run = await_directors(director, |report| report.wanted() == Some(revision), out)?;
    if let Some(seconds) = arguments.confirm_within {
        let seconds = u64::from(seconds).saturating_sub(sent.elapsed().as_secs());
        writeln!(out, "all return to the former rules in {seconds} s unless `xvs fleet confirm` is run")?;
    }
    Ok(if all_run { DONE } else { FAILED })
}
