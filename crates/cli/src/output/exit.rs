//! Exit codes, and the result of a subcommand.

use std::error::Error;
use std::io;

use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::client::Failure;

/// The result of a subcommand: its exit code, or why it failed.
pub(crate) type Done = Result<u8, Box<dyn Error>>;

pub(crate) const DONE: u8 = 0;

pub(crate) const FAILED: u8 = 1;

/// The exit code of clap for a wrong command line.
pub(crate) const MISUSED: u8 = 2;

/// The exit code of a plug-in of Nagios for what does not work.
pub(crate) const CRITICAL: u8 = 2;

pub(crate) const REFUSED: u8 = 3;

pub(crate) const NO_DAEMON: u8 = 4;

/// The printed form of an error; those of the daemon begin with `xvs:` already, for `xvsadm`.
pub(crate) fn complaint(error: &str) -> String {
    format!("xvs: {}\n", error.strip_prefix("xvs: ").unwrap_or(error))
}

pub(crate) fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    let printing = match error.downcast_ref() {
        Some(Failure::Refused(CommandError::Late { .. })) => return FAILED,
        Some(Failure::Refused(_)) => return REFUSED,
        Some(Failure::Transport(_)) => return NO_DAEMON,
        Some(Failure::Printing(error)) => Some(error),
        None => error.downcast_ref::<io::Error>(),
    };
    // A reader that closes the pipe has read enough.
    if printing.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) { DONE } else { FAILED }
}

#[cfg(test)]
mod tests {
    use xvs_model::config::refusal::CommandError;
    use xvs_model::protocol::client::Failure;

    use crate::output::exit::*;

    #[test]
    fn a_refusal_an_absent_daemon_a_failure_and_a_closed_pipe_have_different_exit_codes() {
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
    fn a_complaint_names_the_program_once_also_if_the_daemons_text_names_it() {
        for error in ["the daemon is ending", "xvs: the daemon is ending"] {
            assert_eq!(complaint(error), "xvs: the daemon is ending\n");
        }
    }
}
