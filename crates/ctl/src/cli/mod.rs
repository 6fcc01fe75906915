//! The subcommands of `xvs`, one file each: what each takes, and what it prints.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod realserver;

/// What ipvsadm has no words for.
#[derive(Debug, Parser)]
#[command(name = "xvs", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare this machine as a real server of a virtual address, and put it back
    Realserver(realserver::Arguments),
}

/// Does what the command line says. What fails is one line on stderr.
///
/// Exit codes: 0 done, 1 failed; a line that cannot be understood never gets here (2).
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Realserver(arguments) => realserver::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xvs: {error}");
        ExitCode::FAILURE
    })
}
