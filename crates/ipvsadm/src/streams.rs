//! Input and output streams of a run.

use std::io::{BufRead, Write};

use crate::error::LineError;

/// Input and output streams of a run.
pub struct Streams<'a> {
    /// Read by `-R` only.
    pub stdin: &'a mut dyn BufRead,
    /// Listings.
    pub stdout: &'a mut dyn Write,
    /// Error messages.
    pub messages: Messages<'a>,
}

/// The stream of error messages.
pub struct Messages<'a> {
    to: &'a mut dyn Write,
    next_step: NextStep,
}

/// Whether a line of advice follows a message of ipvsadm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// For scripts: the messages of ipvsadm, to the byte.
    Omitted,
    /// For terminals.
    Printed,
}

impl<'a> Messages<'a> {
    /// Writes messages to this stream, with or without advice.
    pub fn new(to: &'a mut dyn Write, next_step: NextStep) -> Self {
        Self { to, next_step }
    }

    /// Prints a message. A stream that cannot be written changes nothing: a restore continues as ipvsadm's does, and
    /// the exit code stays.
    pub(crate) fn print(&mut self, error: &LineError) {
        let _ = self.to.write_all(error.text.as_bytes());
        if let Some(next_step) = error.next_step.as_ref().filter(|_| self.next_step == NextStep::Printed) {
            let _ = writeln!(self.to, "{next_step}");
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code.
    pub exit: u8,
    /// Listings.
    pub stdout: String,
    /// Error messages.
    pub stderr: String,
}
