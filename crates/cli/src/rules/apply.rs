//! `xvs apply`: makes the configuration equal to a rules file.
//!
//! Either all changes are made or none. With `--confirm-within` the daemon reverts them unless `xvs confirm` comes in
//! time, so a change that cuts off the operator who made it does not last.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};
use crate::output::text::{print_json, seconds};
use crate::rules::plan::{rows, show, summary};
use crate::rules::to_apply;

/// The arguments of `xvs apply`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Rules as `xvsadm -Sn` prints them; - is standard input
    file: PathBuf,
    /// Revert the change after this time, such as 60s or 5m, unless `xvs confirm` is run before
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    confirm_within: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let file = arguments.file.display();
    let (_, rules) = to_apply(&arguments.file)?;
    let differences = question::apply(rules, arguments.confirm_within, false).ask(director)?;
    if arguments.json {
        print_json(&rows(&differences), out)?;
        return Ok(DONE);
    }
    if differences.is_empty() {
        writeln!(out, "nothing to do: the configuration equals {file}")?;
        return Ok(DONE);
    }
    show(&differences, out)?;
    writeln!(out, "applied {}", summary(&differences))?;
    if let Some(seconds) = arguments.confirm_within {
        writeln!(out, "reverted in {seconds} s unless `xvs confirm` is run")?;
    }
    Ok(DONE)
}
