//! `ipvsadm`'s command line, output and exit codes, to the byte.
//!
//! One call of [`run`] is one run of the program. `popt.rs` splits a line into the options of the table in
//! `options.rs`. `values.rs` parses their arguments. `grammar.rs` checks the line and turns it into a request.
//! `listing.rs` prints tables, `rules.rs` saves and restores. The [`Director`] and the [`Resolver`] are traits, so that
//! the same code serves the daemon's socket and the lab.
//!
//! `--json`, at any position of a line, is an option of xvs alone: it prints listings as JSON. Called by the name of
//! one of ipvsadm's scripts, `ipvsadm-save` or `ipvsadm-restore`, the program does what the script does.
//!
//! Source: the behaviour of ipvsadm 1.31 as recorded in `tests/conformance`.

mod command_line;
mod error;
mod fallback;
mod grammar;
mod listing;
pub mod manual;
mod nouns;
mod option_matrix;
mod options;
mod popt;
pub mod resolver;
mod rules;
mod service_name;
mod session;
mod streams;
#[cfg(test)]
mod tests;
pub mod text;
mod values;

use error::OnRestore;
use grammar::{Names, Parsed};
use rules::Rules;
use session::{Format, Session};
use xvs_model::protocol::client::Director;

pub use command_line::command_line;
pub use error::LineError;
pub use fallback::{fallback_command, scheduler_command};
pub use grammar::real_server;
pub use nouns::NounCommand;
pub use nouns::access_list::{EntryArgument, ListChange};
pub use nouns::arguments::{RealServerArgument, ServiceArgument};
pub use nouns::disabled::DisabledArgument;
pub use nouns::service::ServiceLine;
pub use resolver::{Resolver, SystemResolver};
pub use rules::{read_rules, read_wanted, rule_lines, saved_rules, service_line};
pub use streams::{Messages, NextStep, Output, Streams};
pub use values::scheduler_flags;

/// Runs one command line; `argv[0]` is the program's name. Returns the exit code.
///
/// 0: done. 1: a listing failed. 2: the command line is wrong, or no daemon was reached. 255: the director refused the
/// command, or popt the line.
pub fn run<'a>(
    argv: &[String],
    streams: Streams<'a>,
    director: &'a mut dyn Director,
    resolver: &'a dyn Resolver,
) -> u8 {
    let words: Vec<&str> = argv.iter().skip(1).map(String::as_str).filter(|word| *word != "--json").collect();
    let format = if words.len() + 1 < argv.len() { Format::Json } else { Format::Text };
    let Streams { stdin, stdout: out, messages } = streams;
    let mut session = Session { stdin, out, messages, director, resolver, format };
    let called = argv.first().map_or("", String::as_str).rsplit('/').next().unwrap_or_default();
    let (parsed, rules) = match called {
        SAVE => (save_script(&words), Rules::Added),
        // The script ignores its arguments.
        RESTORE => (Ok(Parsed::Restore), Rules::All),
        _ => (grammar::parse(&words, resolver), Rules::Added),
    };
    let error = match parsed {
        Ok(Parsed::Restore) => match session.restore(rules) {
            Ok(exit) => return exit,
            Err(error) => LineError::output(&error),
        },
        Ok(parsed) => match session.execute(&parsed) {
            Ok(()) => return 0,
            Err(error) => error,
        },
        Err(error) => error,
    };
    session.messages.print(&error);
    error.exit
}

/// Parses the arguments of `ipvsadm-save`. It has only the option `-n` and ignores arguments that are not options.
fn save_script(words: &[&str]) -> Result<Parsed, LineError> {
    let options: Vec<_> = words.iter().filter(|word| word.starts_with('-')).collect();
    if options.iter().any(|option| **option != "-n") {
        let text = format!(
            "{SAVE}: prints the services as commands for {RESTORE}; -n prints addresses instead of names\n"
        );
        return Err(LineError::new(text, 1, OnRestore::Stop));
    }
    let names = if options.is_empty() { Names::LookedUp } else { Names::Numeric };
    Ok(Parsed::Save(names))
}

/// The names of ipvsadm's scripts.
const SAVE: &str = "ipvsadm-save";
const RESTORE: &str = "ipvsadm-restore";

/// Runs one command line without a terminal and returns its output.
pub fn output(argv: &[String], stdin: &str, director: &mut dyn Director, resolver: &dyn Resolver) -> Output {
    let mut stdin = stdin.as_bytes();
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let messages = Messages::new(&mut stderr, NextStep::Omitted);
    let streams = Streams { stdin: &mut stdin, stdout: &mut stdout, messages };
    let exit = run(argv, streams, director, resolver);
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Output { exit, stdout, stderr }
}
