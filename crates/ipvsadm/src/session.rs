//! A run with the director that it asks.

use std::io::{BufRead, Write};

use xvs_model::client::{Director, Failure};
use xvs_model::command::Command;
use xvs_model::reply::Reply;
use xvs_model::request::Request;

use crate::ended::Ended;
use crate::grammar::Parsed;
use crate::resolver::Resolver;

/// The version line of the program that this one stands in for: scripts look for it.
const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

/// How listings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
}

/// One run: where it reads, prints and asks.
pub(crate) struct Session<'a> {
    pub stdin: &'a mut dyn BufRead,
    pub out: &'a mut dyn Write,
    pub director: &'a mut dyn Director,
    pub resolver: &'a dyn Resolver,
    pub form: Form,
}

impl Session<'_> {
    /// Carries out a line that is not `-R`.
    pub(crate) fn execute(&mut self, parsed: &Parsed) -> Result<(), Ended> {
        match parsed {
            Parsed::Change(command) => self.change(command),
            Parsed::List(list) => self.list(list),
            Parsed::Save(names) => self.save(*names),
            Parsed::Help => Ok(write!(self.out, "{VERSION}{}", include_str!("help.txt"))?),
            Parsed::Version => Ok(self.out.write_all(VERSION.as_bytes())?),
            Parsed::Restore => Err(Ended::try_help()),
        }
    }

    pub(crate) fn change(&mut self, command: &Command) -> Result<(), Ended> {
        match self.director.call(Request::Change(command.clone())) {
            Ok(Reply::Done) => Ok(()),
            Ok(other) => Err(Ended::change(&Failure::unexpected(&other))),
            Err(failure) => Err(Ended::change(&failure)),
        }
    }
}
