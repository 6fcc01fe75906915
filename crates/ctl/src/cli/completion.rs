//! `xvs completion`: a script by which a shell completes `xvs` command lines.

use std::io;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Done};

/// What follows `xvs completion`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// For which shell
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    generate(arguments.shell, &mut Cli::command(), "xvs", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}
