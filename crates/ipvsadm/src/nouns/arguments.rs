//! The common parts of the subcommands of these lines: the service, the real server, and the errors of a line.

use std::error::Error;
use std::fmt::Debug;
use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, FromArgMatches, Subcommand};
use serde::Serialize;
use xvs_model::config::command::Command;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_sched::ServiceKey;

use crate::error::LineError;
use crate::grammar::virtual_service;
use crate::resolver::{Resolver, SystemResolver};
use crate::text::print;

/// A noun on a command line of `xvs`: its changes are subcommands, and so is `list`.
pub trait Line: Subcommand + Debug {
    /// The subcommand.
    const WORD: &str;
    /// Options of `list`.
    type Options: Args + Debug;
    /// What is listed.
    type Report: Serialize;
    /// The help of `list`.
    const HELP: &str;

    /// The command.
    ///
    /// # Errors
    /// No service is named, ipvsadm's message about it, or a rule cannot match.
    fn command(&self, resolver: &dyn Resolver) -> Result<Command, LineError>;

    /// Asks for what `list` shows.
    ///
    /// # Errors
    /// The director refuses the question, or cannot be reached.
    fn report(options: &Self::Options, director: &mut dyn Director) -> Result<Self::Report, Failure>;

    /// The report as text.
    fn screen(report: &Self::Report) -> String;
}

/// The arguments of such a noun.
#[derive(Debug, Args)]
pub struct Arguments<L: Line> {
    #[command(subcommand)]
    action: Action<L>,
}

#[derive(Debug, Subcommand)]
enum Action<L: Line> {
    #[command(flatten)]
    Change(L),
    #[command(about = L::HELP)]
    List {
        #[command(flatten)]
        options: L::Options,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// No options.
#[derive(Debug, Args)]
pub struct NoOptions {}

impl<L: Line> Arguments<L> {
    pub(crate) fn run(&self, director: &mut dyn Director, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
        match &self.action {
            Action::List { options, json } => {
                let report = L::report(options, director)?;
                print(&report, *json, L::screen, out)?;
            }
            Action::Change(change) => {
                question::change(change.command(&SystemResolver::default())?).ask(director)?;
            }
        }
        Ok(())
    }
}

/// The change that a line requests, from its arguments after the subcommand.
pub(crate) fn command<L: Line>(words: &[&str], resolver: &dyn Resolver) -> Result<Command, LineError> {
    parse::<L>(L::WORD, words)?.command(resolver)
}

/// A virtual service, by ipvsadm's options.
#[derive(Debug, Args)]
#[group(skip)]
pub struct ServiceArgument {
    /// The service: TCP
    #[arg(short, long, value_name = "ADDRESS:PORT", group = "service")]
    tcp_service: Option<String>,
    /// The service: UDP
    #[arg(short, long, value_name = "ADDRESS:PORT", group = "service")]
    udp_service: Option<String>,
    /// The service: SCTP
    #[arg(long, value_name = "ADDRESS:PORT", group = "service")]
    sctp_service: Option<String>,
    /// The service: packets with this firewall mark
    #[arg(short, long, value_name = "MARK", group = "service")]
    fwmark_service: Option<String>,
    /// With -f: the service is for IPv6
    #[arg(short = '6', long, requires = "fwmark_service")]
    ipv6: bool,
}

impl ServiceArgument {
    /// The options as arguments of an ipvsadm command line; none without a service.
    pub fn words(&self) -> Vec<&str> {
        let services = [
            ("-t", &self.tcp_service),
            ("-u", &self.udp_service),
            ("--sctp-service", &self.sctp_service),
            ("-f", &self.fwmark_service),
        ];
        services
            .into_iter()
            .filter_map(|(option, value)| Some([option, value.as_deref()?]))
            .flatten()
            .chain(self.ipv6.then_some("-6"))
            .collect()
    }

    /// The service; `None`: no option is given.
    ///
    /// # Errors
    /// The first line of ipvsadm's message.
    pub fn key(&self, resolver: &dyn Resolver) -> Result<Option<ServiceKey>, LineError> {
        let words = self.words();
        if words.is_empty() { Ok(None) } else { virtual_service(&words, resolver).map(Some) }
    }

    /// The service of a subcommand that needs one, with these options to name it.
    pub(super) fn required(
        &self,
        name: &str,
        options: &str,
        resolver: &dyn Resolver,
    ) -> Result<ServiceKey, LineError> {
        self.key(resolver)?.ok_or_else(|| LineError::usage(format!("{name}: name the service by {options}")))
    }
}

/// A real server, by ipvsadm's option or as a word of its own.
#[derive(Debug, Args)]
#[group(skip)]
pub struct RealServerArgument {
    /// The real server
    #[arg(value_name = "ADDRESS[:PORT]", required_unless_present = "real_server")]
    server: Option<String>,
    /// The real server, as for xvsadm
    #[arg(short, long, value_name = "ADDRESS[:PORT]", conflicts_with = "server")]
    real_server: Option<String>,
}

impl RealServerArgument {
    /// What was typed.
    pub fn word(&self) -> &str {
        self.real_server.as_ref().or(self.server.as_ref()).map_or("", String::as_str)
    }
}

pub(super) fn parse<A: Subcommand + FromArgMatches>(
    name: &'static str,
    words: &[&str],
) -> Result<A, LineError> {
    if words.first() == Some(&"list") {
        return Err(LineError::usage(format!("{name} list changes nothing; remove the line")));
    }
    read(A::augment_subcommands(clap::Command::new(name)).subcommand_required(true), words)
}

pub(super) fn arguments<A: Args + FromArgMatches>(
    name: &'static str,
    words: &[&str],
) -> Result<A, LineError> {
    read(A::augment_args(clap::Command::new(name)), words)
}

/// Parses the arguments after a subcommand; an error is one line, which names the subcommand and the command that shows
/// its form.
fn read<A: FromArgMatches>(parser: clap::Command, words: &[&str]) -> Result<A, LineError> {
    let mut name = parser.get_name().to_owned();
    if let Some(known) = words.first().and_then(|word| parser.find_subcommand(word)) {
        name += &format!(" {}", known.get_name());
    }
    let matches = parser.no_binary_name(true).try_get_matches_from(words);
    matches.and_then(|matches| A::from_arg_matches(&matches)).map_err(|error| {
        let why = what_is_wrong(&error);
        LineError::usage(format!("{name}: {why}; `xvs {name} --help` shows its form"))
    })
}

/// clap's message without its heading, its usage and its advice, as one line.
fn what_is_wrong(error: &clap::Error) -> String {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return "help changes nothing".to_owned();
    }
    if let (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    {
        return format!("it needs {}", missing.join(" and "));
    }
    let message = error.to_string();
    let words: Vec<_> = message
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    words.join(" ")
}
