//! Features of services that ipvsadm has no options for: each subcommand changes a feature, or lists it.

use std::fmt::Debug;
use std::io::Write;

use clap::{Args, Subcommand};
use serde::Serialize;
use xvs_ipvsadm::{Line, SystemResolver};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};
use crate::output::text::print;

pub(crate) mod feedback;
pub(crate) mod laddr;
pub(crate) mod limit;
pub(crate) mod lists;
pub(crate) mod mark;
pub(crate) mod quic;

/// Changes, as subcommands of a subcommand that has `list` too.
pub(crate) trait Listed: Line + Debug {
    /// Options of `list`.
    type Options: Args + Debug;
    /// What is listed.
    type Report: Serialize;
    /// The help of `list`.
    const HELP: &str;

    /// Asks for what `list` shows.
    fn report(options: &Self::Options, director: &mut dyn Director) -> Result<Self::Report, Failure>;

    /// The report as text.
    fn screen(report: &Self::Report) -> String;
}

/// The arguments of such a subcommand.
#[derive(Debug, Args)]
pub(crate) struct Arguments<L: Listed> {
    #[command(subcommand)]
    action: Action<L>,
}

#[derive(Debug, Subcommand)]
enum Action<L: Listed> {
    #[command(flatten)]
    Change(L),
    #[command(about = L::HELP)]
    List {
        #[command(flatten)]
        options: L::Options,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// No options.
#[derive(Debug, Args)]
pub(crate) struct NoOptions {}

pub(crate) fn run<L: Listed>(
    arguments: &Arguments<L>,
    director: &mut dyn Director,
    out: &mut dyn Write,
) -> Done {
    match &arguments.action {
        Action::List { options, json } => {
            let report = L::report(options, director)?;
            print(&report, *json, L::screen, out)?;
        }
        Action::Change(change) => {
            let command = change.command(&SystemResolver::default())?;
            question::change(command).ask(director)?;
        }
    }
    Ok(DONE)
}
