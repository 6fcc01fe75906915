//! The subcommands of `xvs`, one file each: what each takes, and what it prints.

use std::error::Error;
use std::io;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::Serialize;
use xvs_ipvsadm::Output;
use xvs_model::client::{Client, Director, Failure, default_socket};
use xvs_model::command::CommandError;

mod apply;
pub mod capture;
mod check;
mod completion;
mod confirm;
mod connections;
mod counters;
mod doctor;
mod drain;
mod events;
mod explain;
mod feedback;
mod health;
mod healthy;
mod keepalived;
pub mod lab;
mod laddr;
mod manual;
mod mark;
mod plan;
mod realserver;
mod reload;
mod set;
mod status;
mod text;
mod top;

/// What ipvsadm has no words for.
#[derive(Debug, Parser)]
#[command(name = "xvs", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the state of the director: interfaces, workers, connections, drops
    Status(status::Arguments),
    /// Exit with 0 if xvsd makes progress, else with 1; for keepalived's vrrp_script and for monitoring
    Healthy(healthy::Arguments),
    /// Watch the traffic of services and real servers
    Top(top::Arguments),
    /// Show which real servers are up, and why others are not; exits with 1 if one is down
    Health(health::Arguments),
    /// List the connections of a client, a service, a real server, or count them
    Connections(connections::Arguments),
    /// Show changes, with their time and the process that requested them
    Events(events::Arguments),
    /// Take a real server out of scheduling, and wait until it has no connections
    Drain(drain::Arguments),
    /// Print counters, summed over the workers
    Counters(counters::Arguments),
    /// Show what would happen to a packet, and why, with no effect
    Explain(explain::Arguments),
    /// Find every fault of a rules file or a keepalived.conf, without a daemon
    Check(check::Arguments),
    /// Show what a rules file would change; exits with 1 if it would
    Plan(plan::Arguments),
    /// Change what runs into what a rules file describes, as one change
    Apply(apply::Arguments),
    /// Keep what `apply --confirm-within` changed
    Confirm(confirm::Arguments),
    /// Have xvsd read its keepalived.conf anew; unchanged services continue, a file with errors is refused
    Reload(reload::Arguments),
    /// Find what is wrong with this machine, with or without xvsd, and the commands that mend it
    Doctor(doctor::Arguments),
    /// Set what `sysctl net.ipv4.vs.KEY` sets in the kernel, or feedback.KEY
    Set(set::Arguments),
    /// Add, delete and list the rules by which packets are marked for `-f` services
    Mark(mark::Arguments),
    /// Report a real server's load, or show the weights that follow such reports
    Feedback(feedback::Arguments),
    /// Add, delete and list the addresses that `--fullnat` real servers see instead of clients
    Laddr(laddr::Arguments),
    /// Record packets as they come in and go out, with their verdicts, as pcapng or as lines
    Capture(capture::Arguments),
    /// Play a director without root, network or clock: JSON lines in, JSON lines out
    Lab(lab::Arguments),
    /// Prepare this machine as a real server of a virtual address, and undo it
    Realserver(realserver::Arguments),
    /// Print a shell's completion of this program, or of xvsd and xvsadm
    Completion(completion::Arguments),
    /// Write the manual pages of all programs into a folder
    Manual(manual::Arguments),
}

/// Where `realserver` keeps what it changed.
const RECORDS: &str = "/run/xvs";

/// The result of a subcommand: an exit code of its own, or why it was not carried out.
type Done = Result<u8, Box<dyn Error>>;

const DONE: u8 = 0;
const FAILED: u8 = 1;
/// clap exits with it too.
const MISUSED: u8 = 2;
const REFUSED: u8 = 3;
const NO_DAEMON: u8 = 4;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; or the answer is no:
       `realserver status`: there are problems
       `check`: there are faults (--keepalived: 1 for warnings, 2 for errors or no such file)
       `plan`: there are differences
       `health`: a server is down, there is no quorum, or nothing is checked
       `drain`: connections are left
       a change: it is made, and a worker has not taken it up within a second
       `healthy`: xvsd makes no progress, or none runs
  2  the command line is wrong
  3  xvsd refused, and nothing has changed
  4  no xvsd could be reached";

/// Prints the document of `--json`, indented, and the end of its last line.
fn print_json(document: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(document)?)
}

/// Runs the command line. A failure is one line on stderr; the exit codes are those of `--help`.
pub fn run(cli: Cli) -> ExitCode {
    let mut out = io::stdout().lock();
    let done = match cli.command {
        Command::Realserver(arguments) => realserver::run(&arguments, &mut out),
        Command::Healthy(arguments) => healthy::run(&arguments),
        Command::Top(arguments) => top::run(&arguments, &mut out),
        Command::Events(arguments) => events::run(&arguments, &mut out),
        Command::Doctor(arguments) => doctor::run(&arguments, &mut out),
        Command::Lab(arguments) => lab::run(&arguments, &mut out),
        Command::Capture(arguments) => capture::run(&arguments, &mut out),
        Command::Completion(arguments) => completion::run(&arguments, &mut out),
        Command::Check(arguments) => check::run(&arguments, &mut out),
        Command::Manual(arguments) => manual::run(&arguments),
        asking => {
            Client::connect(&default_socket()).map_err(Into::into).and_then(|mut client| match &asking {
                Command::Drain(arguments) => drain::run(arguments, &mut client, &mut out),
                asking => ask(asking, &mut client, &mut out),
            })
        }
    };
    let done = done.and_then(|code| Ok(out.flush().map(|()| code)?));
    ExitCode::from(done.unwrap_or_else(|error| {
        let code = exit_code(&*error);
        let printing = if error.is::<io::Error>() { "standard output: " } else { "" };
        if code != DONE {
            eprint!("{}", complaint(&format!("{printing}{error}")));
        }
        code
    }))
}

/// The printed form of an error; those of the daemon begin with `xvs:` already, for `xvsadm`.
fn complaint(error: &str) -> String {
    format!("xvs: {}\n", error.strip_prefix("xvs: ").unwrap_or(error))
}

fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    let printing = match error.downcast_ref() {
        Some(Failure::Refused(CommandError::Late { .. })) => return FAILED,
        Some(Failure::Refused(_)) => return REFUSED,
        Some(Failure::Transport(_)) => return NO_DAEMON,
        Some(Failure::Printing(error)) => Some(error),
        None => error.downcast_ref::<io::Error>(),
    };
    // A reader that closes the pipe wants no more.
    let enough = printing.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    if enough { DONE } else { FAILED }
}

/// A time as people write it, in whole seconds: `90`, `60s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, &'static str> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let seconds = match unit {
        "h" => 3600,
        "m" => 60,
        _ => 1,
    };
    let whole = number.parse().ok().and_then(|number: u32| number.checked_mul(seconds));
    let whole = whole.filter(|seconds| (1..=MONTH_SECONDS).contains(seconds));
    whole
        .map(|seconds| Duration::from_secs(seconds.into()))
        .ok_or("a time is like 60s, 5m or 1h, and at most 31 days")
}

/// The longest time that a subcommand waits.
const MONTH_SECONDS: u32 = 31 * 24 * 3600;

/// Carries out a subcommand that needs the daemon.
fn ask(command: &Command, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    match command {
        Command::Status(arguments) => status::run(arguments, director, out),
        Command::Health(arguments) => health::run(arguments, director, out),
        Command::Connections(arguments) => connections::run(arguments, director, out),
        Command::Counters(arguments) => counters::run(arguments, director, out),
        Command::Explain(arguments) => explain::run(arguments, director, out),
        Command::Plan(arguments) => plan::run(arguments, director, out),
        Command::Apply(arguments) => apply::run(arguments, director, out),
        Command::Confirm(arguments) => confirm::run(arguments, director, out),
        Command::Reload(_) => reload::run(director, out),
        Command::Set(arguments) => set::run(arguments, director),
        Command::Mark(arguments) => mark::run(arguments, director, out),
        Command::Feedback(arguments) => feedback::run(arguments, director, out),
        Command::Laddr(arguments) => laddr::run(arguments, director, out),
        Command::Capture(_) => {
            Err("packets are captured of a running xvsd; the lab answers each with the frames that are sent"
                .into())
        }
        // `drain` waits, and a lab's time does not pass by itself.
        _ => Err("this command does not work in a lab".into()),
    }
}

/// Runs a command line, without the program's name, against a director in memory; returns what it prints.
pub fn output(words: &[String], director: &mut dyn Director) -> Output {
    let argv = std::iter::once("xvs").chain(words.iter().map(String::as_str));
    let failed = |exit, stderr| Output { exit, stdout: String::new(), stderr };
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => return failed(MISUSED, error.to_string()),
    };
    let mut out = Vec::new();
    match ask(&cli.command, director, &mut out) {
        Ok(code) => {
            Output { exit: code, stdout: String::from_utf8_lossy(&out).into_owned(), stderr: String::new() }
        }
        Err(error) => failed(exit_code(&*error), complaint(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use crate::*;

    #[test]
    fn refusal_absence_failure_and_a_closed_pipe_have_exit_codes_of_their_own() {
        let code = |error: Box<dyn Error>| exit_code(&*error);
        assert_eq!(code(Failure::Refused(CommandError::PermissionDenied).into()), 3);
        let late = CommandError::Late { who: "worker 0".to_owned() };
        assert_eq!(code(Failure::Refused(late).into()), 1, "it was made");
        assert_eq!(code(Failure::Transport("no xvsd".to_owned()).into()), 4);
        assert_eq!(code("another reason".into()), 1);
        assert_eq!(code(io::Error::from(io::ErrorKind::StorageFull).into()), 1);
        assert_eq!(code(io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
    }

    #[test]
    fn a_complaint_names_the_program_once_whoever_it_comes_from() {
        for error in ["the daemon is ending", "xvs: the daemon is ending"] {
            assert_eq!(complaint(error), "xvs: the daemon is ending\n");
        }
    }

    #[test]
    fn times_have_a_unit_or_are_seconds_and_are_never_nothing() {
        for (text, seconds) in [("90", 90), ("60s", 60), ("5m", 300), ("1h", 3600), ("744h", 2_678_400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "0", "0m", "5d", "-1", "1.5m", "745h", "9999999999"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
