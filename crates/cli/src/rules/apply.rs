//! `xvs apply`: makes the configuration equal to a rules file.
//!
//! All of the changes are made, or none. With `--confirm-within` the daemon reverts them unless `xvs confirm` comes in
//! time, so a change that disconnects its own operator does not last.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};
use crate::output::text::{duration, print_json};
use crate::rules::plan::{rows, show, summary};
use crate::rules::rules;

/// The arguments of `xvs apply`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Rules as `xvsadm -Sn` prints them; - is standard input
    file: PathBuf,
    /// Revert the change after this time, such as 60s or 5m, unless `xvs confirm` is run before
    #[arg(long, value_name = "TIME", value_parser = duration)]
    confirm_within: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let file = arguments.file.display();
    let (rules, _) = rules(&arguments.file)?;
    if rules.is_empty() {
        return Err(format!(
            "{file} has no rules, so nothing was changed; to delete all services, write the line -C into it"
        )
        .into());
    }
    // Whole seconds, as `duration` reads them.
    let seconds = arguments.confirm_within.and_then(|time| u32::try_from(time.as_secs()).ok());
    let differences = question::apply(rules, seconds, false).ask(director)?;
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
    if let Some(seconds) = seconds {
        writeln!(out, "reverted in {seconds} s unless `xvs confirm` is run")?;
    }
    Ok(DONE)
}
