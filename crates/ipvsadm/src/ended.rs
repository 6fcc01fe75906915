//! The end of a run: its message and its exit code.

use std::io;

use xvs_model::client::Failure;
use xvs_model::command::CommandError;

/// Why a line did not do what it says, and what follows from it.
#[derive(Debug)]
pub(crate) struct Ended {
    /// For standard error.
    pub text: String,
    /// A line for people that ipvsadm does not print.
    pub next_step: Option<String>,
    pub exit: u8,
    /// What `-R` does after such a line.
    pub restore: AfterLine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterLine {
    Continues,
    Ends,
}

impl Ended {
    pub(crate) fn new(text: String, exit: u8, restore: AfterLine) -> Self {
        Self { text, next_step: None, exit, restore }
    }

    /// A command line that is wrong.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(text.into() + "\n", 2, AfterLine::Ends)
    }

    /// A word that popt cannot read.
    pub(crate) fn popt(word: &str, what: &str) -> Self {
        Self::new(format!("{word}: {what}\n"), 255, AfterLine::Continues)
    }

    /// A line without a command.
    pub(crate) fn try_help() -> Self {
        Self::new(TRY_HELP.to_owned(), 255, AfterLine::Ends)
    }

    /// A change that was refused, or that could not be asked for.
    pub(crate) fn change(failure: &Failure) -> Self {
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
    pub(crate) fn listing(failure: &Failure) -> Self {
        let exit = if matches!(failure, Failure::Transport(_)) { 2 } else { 1 };
        Self { exit, restore: AfterLine::Ends, ..Self::change(failure) }
    }

    /// Standard output failed. A reader that went away, as `head` does, is no fault.
    pub(crate) fn output(error: &io::Error) -> Self {
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

/// What `ipvsadm` prints when the kernel refuses.
pub(crate) fn refusal(error: &CommandError) -> String {
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
pub(crate) fn next_step(error: &CommandError) -> Option<String> {
    match error {
        CommandError::SchedulerNotFound { known, .. } if !known.is_empty() => {
            Some(format!("xvs has these schedulers: {}", known.join(", ")))
        }
        _ => None,
    }
}

/// What `ipvsadm` says to a line that it finds no command in.
pub(crate) const TRY_HELP: &str = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n";
