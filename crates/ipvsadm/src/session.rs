//! Runs a parsed line on a director.

use std::io::{BufRead, Write};

use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::error::LineError;
use crate::grammar::Parsed;
use crate::manual;
use crate::resolver::Resolver;
use crate::streams::Messages;

/// The version line of ipvsadm 1.31; scripts check it.
const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

/// How listings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

/// The streams, director and resolver of one run.
pub(crate) struct Session<'a> {
    pub stdin: &'a mut dyn BufRead,
    pub out: &'a mut dyn Write,
    pub messages: Messages<'a>,
    pub director: &'a mut dyn Director,
    pub resolver: &'a dyn Resolver,
    pub format: Format,
}

impl Session<'_> {
    /// Runs a line other than `-R`.
    pub(crate) fn execute(&mut self, parsed: &Parsed) -> Result<(), LineError> {
        match parsed {
            Parsed::Change(command) => question::change(command.clone())
                .ask(self.director)
                .map_err(|failure| LineError::change(&failure)),
            Parsed::List(list) => self.list(list),
            Parsed::Save(names) => self.save(*names),
            Parsed::Help => Ok(write!(self.out, "{VERSION}{}", manual::help())?),
            Parsed::Version => Ok(self.out.write_all(VERSION.as_bytes())?),
            Parsed::Restore => Err(LineError::try_help()),
        }
    }
}
