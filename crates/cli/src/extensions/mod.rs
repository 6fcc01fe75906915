//! What services have and ipvsadm has no options for: each subcommand changes it, or lists it.

use std::fmt::Debug;
use std::io::Write;

use clap::{Args, Subcommand};
use serde::Serialize;
use xvs_ipvsadm::{Line, SystemResolver};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::{ControlRequest, Request};

use crate::output::exit::{DONE, Done};
use crate::output::text::print;

pub(crate) mod feedback;
pub(crate) mod laddr;
pub(crate) mod limit;
pub(crate) mod lists;
pub(crate) mod mark;
pub(crate) mod quic;

/// A subcommand whose own subcommands are changes and `list`.
pub(crate) trait Listed {
    /// The changes.
    type Change: Line + Debug;
    /// Options of `list`.
    type Options: Args + Debug;
    /// What is listed.
    type Report: Serialize;
    /// The help of `list`.
    const HELP: &str;

    /// The request of `list`.
    fn request(options: &Self::Options) -> Request;

    /// The report in its reply; `None`: it is another reply.
    fn report(reply: Reply) -> Option<Self::Report>;

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
    Change(L::Change),
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
            let reply = director.call(L::request(options))?;
            let unexpected = Failure::unexpected(&reply);
            let report = L::report(reply).ok_or(unexpected)?;
            print(&report, *json, L::screen, out)?;
        }
        Action::Change(change) => {
            let command = change.command(&SystemResolver::default())?;
            director.call(ControlRequest::Change(command).into())?;
        }
    }
    Ok(DONE)
}
