//! Subcommands that need a director: xvsd over its socket, or the lab's director.

use std::io::Write;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use xvs_ipvsadm::{NounCommand, Output};
use xvs_model::objects::list_key::ListKind;
use xvs_model::protocol::client::Director;

use crate::extensions::{feedback, lists};
use crate::output::exit::{DONE, Done, MISUSED, complaint, exit_code};
use crate::rules::{apply, confirm, plan};
use crate::servers::maintenance::Change;
use crate::servers::{health, maintenance};
use crate::{connections, counters, explain, fleet, get, reload, set, status};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the state of the director: interfaces, workers, connections, drops
    Status(status::Arguments),
    /// Show which real servers are up, and why others are down; exits with 1 if one is down
    Health(health::Arguments),
    /// List or count the connections of a client, a service or a real server
    Connections(connections::Arguments),
    /// Print counters, summed over the workers
    Counters(counters::Arguments),
    /// Show what the director would do with a packet, and why; changes nothing
    Explain(explain::Arguments),
    /// Show the changes that a rules file would make; exits with 1 if there are any
    Plan(plan::Arguments),
    /// Make the configuration equal to a rules file, as one change
    Apply(apply::Arguments),
    /// Keep the changes of `apply --confirm-within`
    Confirm(confirm::Arguments),
    /// Show the directors that follow one rules file in etcd, or write that file
    Fleet(fleet::Arguments),
    /// Reload xvs.toml and keepalived.conf: apply all differences, or none if a file has an error
    Reload(reload::Arguments),
    /// Show the settings in force, and where each comes from
    Get(get::Arguments),
    /// Set one setting: a KEY of the kernel's `sysctl net.ipv4.vs.KEY`, or feedback.KEY
    Set(set::Arguments),
    /// Give a real server no new connections until it is enabled, whatever checks and reloads set
    Disable(maintenance::Arguments),
    /// Restore the configured weight of a disabled real server, if its health checks agree
    Enable(maintenance::Arguments),
    /// Report a real server's load, or show the weights that follow such reports
    Feedback(feedback::Arguments),
    /// Drop packets to services from networks, for a time or until deleted
    Deny(lists::Arguments),
    /// Drop packets to services from all networks but these
    Allow(lists::Arguments),
    #[command(flatten)]
    Noun(NounCommand),
}

impl Command {
    pub(crate) fn run(&self, director: &mut dyn Director, out: &mut dyn Write) -> Done {
        match self {
            Self::Status(arguments) => status::run(arguments, director, out),
            Self::Health(arguments) => health::run(arguments, director, out),
            Self::Connections(arguments) => connections::run(arguments, director, out),
            Self::Counters(arguments) => counters::run(arguments, director, out),
            Self::Explain(arguments) => explain::run(arguments, director, out),
            Self::Plan(arguments) => plan::run(arguments, director, out),
            Self::Apply(arguments) => apply::run(arguments, director, out),
            Self::Confirm(arguments) => confirm::run(arguments, director, out),
            Self::Fleet(arguments) => fleet::run(arguments, director, out),
            Self::Reload(arguments) => reload::run(arguments, director, out),
            Self::Get(arguments) => get::run(arguments, director, out),
            Self::Set(arguments) => set::run(arguments, director),
            Self::Disable(arguments) => maintenance::run(Change::Disable, arguments, director, out),
            Self::Enable(arguments) => maintenance::run(Change::Enable, arguments, director, out),
            Self::Feedback(arguments) => feedback::run(arguments, director, out),
            Self::Deny(arguments) => lists::run(ListKind::Deny, arguments, director, out),
            Self::Allow(arguments) => lists::run(ListKind::Allow, arguments, director, out),
            Self::Noun(noun) => noun.run(director, out).map(|()| DONE),
        }
    }
}

/// A command line without the options of the program.
#[derive(Debug, Parser)]
#[command(name = "xvs", version)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// Runs a command line, without the program's name, on a director in memory; returns its output.
pub fn output(words: &[String], director: &mut dyn Director) -> Output {
    let failed = |exit, stderr| Output { exit, stdout: String::new(), stderr };
    let command = match Line::try_parse_from(std::iter::once("xvs").chain(words.iter().map(String::as_str))) {
        Ok(line) => line.command,
        Err(error) if error.kind() == ErrorKind::InvalidSubcommand => {
            let word = error.get(ContextKind::InvalidSubcommand).map(ToString::to_string).unwrap_or_default();
            let program = Line::command();
            let names: Vec<_> = program.get_subcommands().map(clap::Command::get_name).collect();
            let why =
                format!("{word}: a director in memory has no such subcommand; it has {}", names.join(", "));
            return failed(MISUSED, complaint(&why));
        }
        Err(error) => return failed(MISUSED, error.to_string()),
    };
    let mut out = Vec::new();
    match command.run(director, &mut out) {
        Ok(code) => {
            Output { exit: code, stdout: String::from_utf8_lossy(&out).into_owned(), stderr: String::new() }
        }
        Err(error) => failed(exit_code(&*error), complaint(&error.to_string())),
    }
}
