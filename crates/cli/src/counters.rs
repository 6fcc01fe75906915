//! `xvs counters`: every counter of the workers that is not zero, by name.

use std::io::Write;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};
use crate::output::text::print_json;

/// The arguments of `xvs counters`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let mut counters = question::counters().ask(director)?;
    counters.retain(|_, value| *value != 0);
    if arguments.json {
        print_json(&counters, out)?;
    } else {
        counters.iter().try_for_each(|(name, value)| writeln!(out, "{name} {value}"))?;
    }
    Ok(DONE)
}
