//! A command line that failed: its message and its exit code.

use std::io;

use thiserror::Error;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::client::Failure;

/// The reason why a command line failed, or a line in a file is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .text.trim_end())]
pub struct LineError {
    /// The message on standard error, with its line endings.
    pub(crate) text: String,
    /// Advice that ipvsadm does not print; see [`crate::NextStep`].
    pub(crate) next_step: Option<String>,
    pub(crate) exit: u8,
    /// Whether `-R` reads on after this line.
    pub(crate) on_restore: OnRestore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnRestore {
    Continue,
    Stop,
}

impl LineError {
    pub(crate) fn new(text: String, exit: u8, on_restore: OnRestore) -> Self {
        Self { text, next_step: None, exit, on_restore }
    }

    /// A wrong command line: exit code 2.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(text.into() + "\n", 2, OnRestore::Stop)
    }

    /// ipvsadm's message without the lines after the first one.
    pub(crate) fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// A wrong value for an option that only xvs has, with the option's name at the beginning.
    pub(crate) fn value(why: &str) -> Self {
        Self::usage(format!("--{why}"))
    }

    /// A word that popt refuses: exit code 255.
    pub(crate) fn popt(word: &str, what: &str) -> Self {
        Self::new(format!("{word}: {what}\n"), 255, OnRestore::Continue)
    }

    /// A line without a command: exit code 255.
    pub(crate) fn try_help() -> Self {
        Self::new(TRY_HELP.to_owned(), 255, OnRestore::Stop)
    }

    /// A failed change: exit code 255 if the director refused it, 2 if no director was reached.
    pub(crate) fn change(failure: &Failure) -> Self {
        match failure {
            Failure::Refused(error) => Self {
                next_step: next_step(error),
                ..Self::new(refusal(error) + "\n", 255, OnRestore::Continue)
            },
            Failure::Transport(_) => Self::new(format!("{failure}\n"), 2, OnRestore::Stop),
            Failure::Printing(error) => Self::output(error),
        }
    }

    /// A failed listing: exit code 1, or 2 if no director was reached.
    pub(crate) fn listing(failure: &Failure) -> Self {
        let exit = if matches!(failure, Failure::Transport(_)) { 2 } else { 1 };
        Self { exit, on_restore: OnRestore::Stop, ..Self::change(failure) }
    }

    /// Standard output failed. A closed pipe, as behind `head`, prints no message.
    pub(crate) fn output(error: &io::Error) -> Self {
        let text = match error.kind() {
            io::ErrorKind::BrokenPipe => String::new(),
            _ => format!("standard output: {error}\n"),
        };
        Self::new(text, 1, OnRestore::Stop)
    }
}

impl From<io::Error> for LineError {
    fn from(error: io::Error) -> Self {
        Self::output(&error)
    }
}

/// `ipvsadm`'s message for a refusal by the kernel; for refusals that only xvs has, xvs's own message.
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
        _ => return error.to_string(),
    };
    text.to_owned()
}

/// Advice for a refusal with `ipvsadm`'s text, which has none.
pub(crate) fn next_step(error: &CommandError) -> Option<String> {
    match error {
        CommandError::SchedulerNotFound { known, .. } if !known.is_empty() => {
            Some(format!("xvs has these schedulers: {}", known.join(", ")))
        }
        _ => None,
    }
}

/// The message of `ipvsadm` for a line without a command.
pub(crate) const TRY_HELP: &str = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n";
