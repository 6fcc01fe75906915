//! `ipvsadm`'s command line, to the byte: what is typed, what is printed, how it exits.
//!
//! One call of [`run`] is one run of the program. `words.rs` takes a line apart as popt does, `values.rs` reads
//! single values, `grammar.rs` makes a checked request of them, `listing.rs` prints tables, `rules.rs` saves and
//! restores. All of it talks to a [`Director`] and a [`Resolver`], so that the same code serves the socket and the
//! in-process lab.
//!
//! `--json`, at any position, is ours: listings come as JSON. By the names of ipvsadm's two scripts, `ipvsadm-save` and
//! `ipvsadm-restore`, it is those.
//!
//! Source: the behaviour of ipvsadm 1.31 as recorded in `tests/conformance`.

mod grammar;
mod listing;
pub mod manual;
mod options;
mod own_lines;
pub mod resolver;
mod rules;
#[cfg(test)]
mod rules_tests;
mod table;
#[cfg(test)]
mod tests;
mod typed;
mod values;
mod words;

use std::io;
use std::io::{BufRead, Write};

use grammar::{Names, Parsed};
use rules::Rules;
use xvs_model::client::{Director, Failure};
use xvs_model::command::{Command, CommandError};
use xvs_model::reply::Reply;
use xvs_model::request::Request;

pub use grammar::real_server;
pub use own_lines::{LocalAddressChange, MarkChange};
pub use resolver::{Resolver, SystemResolver};
pub use rules::{lines, read_all, read_rules, read_wanted, saved};
pub use typed::one_line;
pub use typed::typed;

/// Where a run reads and prints.
pub struct Streams<'a> {
    /// Read by `-R` only.
    pub stdin: &'a mut dyn BufRead,
    /// Listings.
    pub stdout: &'a mut dyn Write,
    /// What went wrong.
    pub messages: Messages<'a>,
}

/// Standard error, and who reads it.
pub struct Messages<'a> {
    to: &'a mut dyn Write,
    reader: Reader,
}

/// Who reads messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// It knows ipvsadm's messages and gets their very bytes.
    Script,
    /// Who also wants to know what to do next.
    Person,
}

impl<'a> Messages<'a> {
    /// Messages to this stream, read there by a script or a person.
    pub fn new(to: &'a mut dyn Write, reader: Reader) -> Self {
        Self { to, reader }
    }

    fn tell(&mut self, ended: &Ended) -> io::Result<()> {
        self.to.write_all(ended.text.as_bytes())?;
        match (&ended.next_step, self.reader) {
            (Some(next_step), Reader::Person) => writeln!(self.to, "{next_step}"),
            _ => Ok(()),
        }
    }
}

/// All that a run printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code.
    pub exit: u8,
    /// Listings.
    pub stdout: String,
    /// Messages.
    pub stderr: String,
}

/// Runs one command line; `argv[0]` is the program's name. Returns the exit code.
///
/// 0: done. 1: a listing failed. 2: the command line is wrong, or there is no daemon to ask. 255: the director
/// refused, or popt cannot read the line.
pub fn run(
    argv: &[String],
    streams: &mut Streams<'_>,
    director: &mut dyn Director,
    resolver: &dyn Resolver,
) -> u8 {
    let words: Vec<&str> = argv.iter().skip(1).map(String::as_str).filter(|word| *word != "--json").collect();
    let form = if words.len() + 1 < argv.len() { Form::Json } else { Form::Text };
    let mut session = Session { stdin: streams.stdin, out: streams.stdout, director, resolver, form };
    let called = argv.first().map_or("", String::as_str).rsplit('/').next().unwrap_or_default();
    let (parsed, rules) = match called {
        SAVE => (save_script(&words), Rules::Added),
        // As the script, which looks at no word.
        RESTORE => (Ok(Parsed::Restore), Rules::All),
        _ => (grammar::parse(&words, resolver), Rules::Added),
    };
    let ended = match parsed {
        Ok(Parsed::Restore) => match session.restore(rules, &mut streams.messages) {
            Ok(exit) => return exit,
            Err(error) => Ended::output(&error),
        },
        Ok(parsed) => match session.execute(&parsed) {
            Ok(()) => return 0,
            Err(ended) => ended,
        },
        Err(ended) => ended,
    };
    // Nobody is left to tell if standard error is closed.
    let _ = streams.messages.tell(&ended);
    ended.exit
}

/// What `ipvsadm-save` is asked for: `-n` is all that it knows, and words that are no options are nothing to it.
fn save_script(words: &[&str]) -> Result<Parsed, Ended> {
    let options = || words.iter().filter(|word| word.starts_with('-'));
    if options().any(|option| *option != "-n") {
        let text = format!(
            "{SAVE}: prints the services as commands for {RESTORE}; with -n without asking for names\n"
        );
        return Err(Ended::new(text, 1, AfterLine::Ends));
    }
    let names = if options().count() > 0 { Names::Numeric } else { Names::LookedUp };
    Ok(Parsed::Save(names))
}

/// The names of ipvsadm's scripts.
const SAVE: &str = "ipvsadm-save";
const RESTORE: &str = "ipvsadm-restore";

/// Runs one command line and keeps what it prints, as a script sees it.
pub fn output(argv: &[String], stdin: &str, director: &mut dyn Director, resolver: &dyn Resolver) -> Output {
    let (mut stdin, mut stdout, mut stderr) = (stdin.as_bytes(), Vec::new(), Vec::new());
    let messages = Messages::new(&mut stderr, Reader::Script);
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, messages };
    let exit = run(argv, &mut streams, director, resolver);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Output { exit, stdout: text(stdout), stderr: text(stderr) }
}

/// How listings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// Why a line did not do what it says, and what follows from it.
#[derive(Debug)]
struct Ended {
    /// For standard error.
    text: String,
    /// A line for people that ipvsadm does not print.
    next_step: Option<String>,
    exit: u8,
    /// What `-R` does after such a line.
    restore: AfterLine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterLine {
    Continues,
    Ends,
}

impl Ended {
    fn new(text: String, exit: u8, restore: AfterLine) -> Self {
        Self { text, next_step: None, exit, restore }
    }

    /// A command line that is wrong.
    fn usage(text: impl Into<String>) -> Self {
        Self::new(text.into() + "\n", 2, AfterLine::Ends)
    }

    /// A word that popt cannot read.
    fn popt(word: &str, what: &str) -> Self {
        Self::new(format!("{word}: {what}\n"), 255, AfterLine::Continues)
    }

    /// A line without a command.
    fn try_help() -> Self {
        Self::new(TRY_HELP.to_owned(), 255, AfterLine::Ends)
    }

    /// A change that was refused, or that could not be asked for.
    fn change(failure: &Failure) -> Self {
        match failure {
            Failure::Refused(error) => Self {
                next_step: next_step(error),
                ..Self::new(refusal(error) + "\n", 255, AfterLine::Continues)
            },
            Failure::Transport(_) => Self::new(format!("{failure}\n"), 2, AfterLine::Ends),
            Failure::Printing(error) => Self::output(error),
        }
    }

    /// A listing that failed.
    fn listing(failure: &Failure) -> Self {
        let exit = if matches!(failure, Failure::Transport(_)) { 2 } else { 1 };
        Self { exit, restore: AfterLine::Ends, ..Self::change(failure) }
    }

    /// Standard output failed. A reader that went away, as `head` does, is no fault.
    fn output(error: &io::Error) -> Self {
        let text = match error.kind() {
            io::ErrorKind::BrokenPipe => String::new(),
            _ => format!("standard output: {error}\n"),
        };
        Self::new(text, 1, AfterLine::Ends)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::output(&error)
    }
}

/// One run: where it reads, prints and asks.
struct Session<'a> {
    stdin: &'a mut dyn BufRead,
    out: &'a mut dyn Write,
    director: &'a mut dyn Director,
    resolver: &'a dyn Resolver,
    form: Form,
}

impl Session<'_> {
    /// Carries out a line that is not `-R`.
    fn execute(&mut self, parsed: &Parsed) -> Result<(), Ended> {
        match parsed {
            Parsed::Change(command) => self.change(command),
            Parsed::List(list) => self.list(list),
            Parsed::Save(names) => self.save(*names),
            Parsed::Help => Ok(write!(self.out, "{VERSION}{}", include_str!("help.txt"))?),
            Parsed::Version => Ok(self.out.write_all(VERSION.as_bytes())?),
            Parsed::Restore => Err(Ended::try_help()),
        }
    }

    fn change(&mut self, command: &Command) -> Result<(), Ended> {
        match self.director.call(Request::Change(command.clone())) {
            Ok(Reply::Done) => Ok(()),
            Ok(other) => Err(Ended::change(&Failure::unexpected(&other))),
            Err(failure) => Err(Ended::change(&failure)),
        }
    }
}

/// What `ipvsadm` prints when the kernel refuses.
fn refusal(error: &CommandError) -> String {
    let text = match error {
        CommandError::ServiceExists(_) => "Service already exists",
        CommandError::NoSuchService(_) => "No such service",
        CommandError::ServiceNotDefined(_) => "Service not defined",
        CommandError::DestinationExists { .. } => "Destination already exists",
        CommandError::NoSuchDestination { .. } => "No such destination",
        CommandError::SchedulerNotFound { .. } => "Scheduler or persistence engine not found",
        CommandError::OutOfRange { .. } => "Numerical result out of range",
        CommandError::InvalidOperation { .. } => {
            "Invalid operation.  Possibly wrong module version, address not unicast, ..."
        }
        CommandError::ProtocolNotSupported(_) => "Protocol not supported",
        CommandError::DaemonRunning(_) => "Daemon has already run",
        CommandError::NoDaemon(_) => "No daemon is running",
        CommandError::NoSuchDevice(_) => "No such device",
        CommandError::PermissionDenied => "Permission denied (you must be root)",
        CommandError::NoRoom { .. } => "Memory allocation problem",
        CommandError::Late { .. }
        | CommandError::NotSupported { .. }
        | CommandError::MarkExists(_)
        | CommandError::NoSuchMark(_)
        | CommandError::LocalExists(_)
        | CommandError::NoSuchLocal(_)
        | CommandError::UnknownSetting { .. }
        | CommandError::BadSetting { .. }
        | CommandError::UnknownServer(_)
        | CommandError::NotFollowed { .. }
        | CommandError::Malformed { .. }
        | CommandError::TooLong { .. }
        | CommandError::WrongVersion { .. }
        | CommandError::TooManyClients
        | CommandError::Failed { .. } => return error.to_string(),
    };
    text.to_owned()
}

/// What to do after a refusal whose text, being `ipvsadm`'s, does not say.
fn next_step(error: &CommandError) -> Option<String> {
    match error {
        CommandError::SchedulerNotFound { known, .. } if !known.is_empty() => {
            Some(format!("xvs has these schedulers: {}", known.join(", ")))
        }
        _ => None,
    }
}

/// What `ipvsadm` says to a line that it finds no command in.
const TRY_HELP: &str = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n";

/// The version line of the program that this one stands in for: scripts look for it.
const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";
