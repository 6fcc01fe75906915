//! The subcommands of `xvs`, one file each: arguments and output.

use std::error::Error;
use std::io;
use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Subcommand};
use xvs_model::protocol::client::{Client, default_socket};

use crate::output::exit::{CRITICAL, DONE, NO_DAEMON, complaint, exit_code};
use crate::output::late_reply;
use crate::servers::{drain, realserver};

pub use crate::ask::output;
mod ask;
pub mod capture;
mod check;
mod completion;
mod connections;
mod counters;
mod doctor;
mod events;
mod explain;
mod extensions;
mod fleet;
mod get;
mod groups;
mod healthy;
mod import;
pub mod lab;
mod manual;
mod output;
mod reload;
mod rules;
mod servers;
mod set;
mod status;
mod stop;
#[cfg(test)]
mod tests;
mod top;

/// Inspect and test a running director, check configurations, and change features that ipvsadm has no options for.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Asking(ask::Command),
    /// Exit with 0 if xvsd makes progress, otherwise with 1; for keepalived's vrrp_script and for monitoring
    Healthy(healthy::Arguments),
    /// Watch the traffic of services and real servers
    Top(top::Arguments),
    /// Show changes, each with its time and the process that requested it
    Events(events::Arguments),
    /// Take a real server out of scheduling, and wait until it has no connections
    Drain(drain::Arguments),
    /// End xvsd; packets of services are dropped for `hold`, unless --release is given
    Stop(stop::Arguments),
    /// Find every fault of a rules file or keepalived.conf, without a daemon
    Check(check::Arguments),
    /// Convert another load balancer's configuration to keepalived.conf
    Import(import::Arguments),
    /// Find faults of this machine, with or without xvsd, and the commands that correct them
    Doctor(doctor::Arguments),
    /// Record packets as received and as sent, with their verdicts, as pcapng or as lines
    Capture(capture::Arguments),
    /// Run a director in memory, without root, network or clock: JSON lines in, JSON lines out
    Lab(lab::Arguments),
    /// Prepare this machine as a real server of a virtual address, or restore it
    Realserver(realserver::Arguments),
    /// Print a shell completion script for this program, for xvsd or for xvsadm
    Completion(completion::Arguments),
    /// Write the manual pages of all programs into a directory
    Manual(manual::Arguments),
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or:
       `realserver status`: there are problems
       `check`: there are faults (--keepalived: 1 for warnings, 2 for errors or no such file)
       `import`: lines are left out (2 for no such file)
       `plan`: there are differences
       `health`: a server is down, there is no quorum, or nothing is checked
       `drain`: connections are left
       `lab`: a line was refused
       `fleet`: a director does not run the newest rules or has a warning, or the rules in etcd have one
       a change: it is published, and a worker has not applied it within a second
       `healthy`: xvsd makes no progress, or none runs
  2  the command line is wrong
  3  xvsd refused, and nothing has changed
  4  no xvsd could be reached";

/// Runs the command line. A failure is one line on stderr; the exit codes are those of `--help`.
pub fn run(cli: Cli) -> ExitCode {
    let mut out = io::stdout().lock();
    let is_monitored =
        matches!(&cli.command, Command::Asking(ask::Command::Status(status)) if status.exit_code);
    let done = match cli.command {
        Command::Realserver(arguments) => realserver::run(&arguments, &mut out),
        Command::Healthy(arguments) => healthy::run(&arguments),
        Command::Top(arguments) => top::run(&arguments, &mut out),
        Command::Events(arguments) => events::run(&arguments, &mut out),
        Command::Doctor(arguments) => doctor::run(&arguments, &mut out),
        Command::Lab(arguments) => lab::run(&arguments, &mut out),
        Command::Capture(arguments) => capture::run(&arguments, &mut out),
        Command::Completion(arguments) => completion::run(&arguments, Cli::command(), &mut out),
        Command::Check(arguments) => check::run(&arguments, &mut out),
        Command::Import(arguments) => import::run(&arguments, &mut out),
        Command::Manual(arguments) => manual::run(&arguments, Cli::command()),
        Command::Stop(arguments) => stop::run(&arguments, &mut out),
        Command::Drain(arguments) => {
            connected().and_then(|mut client| drain::run(&arguments, &mut client, &mut out))
        }
        Command::Asking(command) => connected().and_then(|mut client| command.run(&mut client, &mut out)),
    };
    ExitCode::from(done.and_then(|code| Ok(out.flush().map(|()| code)?)).unwrap_or_else(|error| {
        let code = match exit_code(&*error) {
            NO_DAEMON if is_monitored => CRITICAL,
            code => code,
        };
        let printing = if error.is::<io::Error>() { "standard output: " } else { "" };
        if code != DONE {
            let _ = write!(io::stderr(), "{}", complaint(&format!("{printing}{error}")));
        }
        code
    }))
}

fn connected() -> Result<Client, Box<dyn Error>> {
    Ok(late_reply::connect(&default_socket())?)
}
