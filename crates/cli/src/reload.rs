//! `xvs reload`: reloads xvs.toml and the keepalived.conf of xvsd.

use std::io::Write;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};

/// The arguments of `xvs reload`.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let changes = question::reload().ask(director)?;
    writeln!(out, "{changes}")?;
    if changes.contains("by a successor") {
        director.await_successor()?;
    }
    Ok(DONE)
}
