//! `xvs confirm`: keeps rules that were applied for a time, or reverts them at once.

use std::io::Write;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::protocol::request::Verdict;

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
    match question::confirm(verdict).ask(director)? {
        None => writeln!(out, "confirmed")?,
        Some(reverted) => {
            show(&reverted, out)?;
            writeln!(out, "reverted")?;
        }
    }
    Ok(DONE)
}
