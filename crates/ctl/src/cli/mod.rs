//! The subcommands of `xvs`, one file each: what each takes, and what it prints.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::{Client, Director, default_socket};

mod completion;
mod lab;
mod realserver;
mod set;
mod status;

/// What ipvsadm has no words for.
#[derive(Debug, Parser)]
#[command(name = "xvs", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how the director is: interfaces, workers, connections, drops
    Status(status::Arguments),
    /// Set what `sysctl net.ipv4.vs.KEY` sets in the kernel
    Set(set::Arguments),
    /// Play a director without root, network or clock: JSON lines in, JSON lines out
    Lab(lab::Arguments),
    /// Prepare this machine as a real server of a virtual address, and put it back
    Realserver(realserver::Arguments),
    /// Print a shell's completion of this program
    Completion(completion::Arguments),
}

/// What a subcommand comes to.
type Done = Result<ExitCode, Box<dyn Error>>;

/// Does what the command line says. What fails is one line on stderr.
///
/// Exit codes: 0 done, 1 failed; a line that cannot be understood never gets here (2).
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Realserver(arguments) => realserver::run(&arguments),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Completion(arguments) => completion::run(&arguments),
        asking => Client::connect(&default_socket())
            .map_err(Into::into)
            .and_then(|mut client| ask(&asking, &mut client, &mut io::stdout().lock())),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xvs: {error}");
        ExitCode::FAILURE
    })
}

/// Carries out a subcommand that asks the daemon.
fn ask(command: &Command, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    match command {
        Command::Status(arguments) => status::run(arguments, director, out),
        Command::Set(arguments) => set::run(arguments, director),
        _ => Err("this command does not talk to the daemon".into()),
    }
}

/// What one command line printed.
pub struct Output {
    /// The exit code.
    pub exit: u8,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command line without the program's name against a director at hand, and keeps what it prints.
pub fn capture(words: &[String], director: &mut dyn Director) -> Output {
    let argv = std::iter::once("xvs").chain(words.iter().map(String::as_str));
    let failed = |exit, stderr| Output { exit, stdout: String::new(), stderr };
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => return failed(2, error.to_string()),
    };
    let mut out = Vec::new();
    match ask(&cli.command, director, &mut out) {
        Ok(code) => Output {
            exit: u8::from(code != ExitCode::SUCCESS),
            stdout: String::from_utf8_lossy(&out).into_owned(),
            stderr: String::new(),
        },
        Err(error) => failed(1, format!("xvs: {error}\n")),
    }
}
