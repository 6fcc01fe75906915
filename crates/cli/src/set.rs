//! `xvs set`: one setting of the running director.

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};

/// The arguments of `xvs set`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The setting's name
    key: String,
    /// The new value
    #[arg(allow_hyphen_values = true)]
    value: String,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director) -> Done {
    question::set(arguments.key.clone(), arguments.value.clone()).ask(director)?;
    Ok(DONE)
}
