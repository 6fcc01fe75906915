//! `xvs reload`: reloads xvs.toml and the keepalived.conf of xvsd.

use std::io::Write;

use clap::Args;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::Request;

use crate::output::exit::{DONE, Done};

/// The arguments of `xvs reload`.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(director: &mut dyn Director, out: &mut dyn Write) -> Done {
    match director.call(Request::Reload)? {
        Reply::Reloaded(changes) => {
            writeln!(out, "{changes}")?;
            if changes.contains("by a successor") {
                director.await_successor()?;
            }
        }
        other => return Err(Failure::unexpected(&other).into()),
    }
    Ok(DONE)
}
