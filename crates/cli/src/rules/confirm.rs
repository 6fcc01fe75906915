//! `xvs confirm`: keeps rules that were applied for a time, or reverts them at once.

use std::io::Write;

use clap::Args;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::{ControlRequest, Verdict};

use crate::output::exit::{DONE, Done};
use crate::rules::plan::show;

/// The arguments of `xvs confirm`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Revert to the former rules at once
    #[arg(long)]
    take_back: bool,
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let verdict = if arguments.take_back { Verdict::TakeBack } else { Verdict::Keep };
    match director.call(ControlRequest::Confirm(verdict).into())? {
        Reply::Done => writeln!(out, "confirmed")?,
        Reply::Applied(differences) => {
            show(&differences, out)?;
            writeln!(out, "reverted")?;
        }
        other => return Err(Failure::unexpected(&other).into()),
    }
    Ok(DONE)
}
