//! Where a run reads and prints.

use std::io;
use std::io::{BufRead, Write};

use crate::ended::Ended;

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

    pub(crate) fn tell(&mut self, ended: &Ended) -> io::Result<()> {
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
