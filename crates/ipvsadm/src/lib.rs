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

use crate::ended::AfterLine;
use crate::ended::Ended;
use crate::session::Form;
use crate::session::Session;
mod ended;
mod session;
mod streams;
pub use streams::{Messages, Output, Reader, Streams};
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

use grammar::{Names, Parsed};
use rules::Rules;
use xvs_model::client::Director;

pub use grammar::real_server;
pub use own_lines::{LocalAddressChange, MarkChange};
pub use resolver::{Resolver, SystemResolver};
pub use rules::{lines, read_all, read_rules, read_wanted, saved};
pub use typed::one_line;
pub use typed::typed;

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
