//! `xvs fleet confirm`: keeps rules that the fleet runs for a time, or ends them at once.

use std::io::Write;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::protocol::request::{FleetRequest, Verdict};

use crate::fleet::ask::await_directors;
use crate::output::exit::{DONE, Done, FAILED};

/// The arguments of `xvs fleet confirm`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Return to the former rules at once
    #[arg(long)]
    take_back: bool,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let verdict = if arguments.take_back { Verdict::TakeBack } else { Verdict::Keep };
    let revision = question::change_fleet(FleetRequest::Confirm(verdict)).ask(director)?;
    let all_run = match verdict {
        Verdict::Keep => {
            writeln!(out, "confirmed, as revision {revision}")?;
            await_directors(director, |report| report.wanted() == Some(revision), out)?
        }
        Verdict::TakeBack => {
            writeln!(out, "taken back")?;
            await_directors(director, |report| report.trial.is_none(), out)?
        }
    };
    Ok(if all_run { DONE } else { FAILED })
}
