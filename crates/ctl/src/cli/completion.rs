//! `xvs completion`: a script by which a shell completes `xvs` command lines.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, DONE, Done};

/// What follows `xvs completion`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// For which shell
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    // clap_complete panics at an output that fails, such as a pipe that was closed.
    let mut script = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "xvs", &mut script);
    out.write_all(&script)?;
    Ok(DONE)
}
