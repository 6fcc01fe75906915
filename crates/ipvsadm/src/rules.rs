//! Rules files: saved by `-S`, restored by `-R`, read by `xvsd` at its start.
//!
//! `-R` collects consecutive changes and sends them as one batch, which becomes one snapshot. Messages and exit code
//! are those of ipvsadm, which runs each line by itself: after a line that the director or popt refuses, it continues
//! with the next; any other wrong line ends the restore.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::rules_of;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::rules::{DesiredRules, Fault, RuleLine};
use xvs_model::config::service::ServiceOptions;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::foreign_text::escape_control;
use xvs_model::objects::Rule;
use xvs_model::objects::limit::ServiceLimit;
use xvs_model::objects::local::LocalAddress;
use xvs_model::protocol::client::Failure;
use xvs_model::protocol::question::{self, Reply, RunningRules};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::command_line::{added, command_line, destination, destination_rule, service_rule, xvs_options};
use crate::error::{LineError, OnRestore, TRY_HELP};
use crate::grammar;
use crate::grammar::{Names, Parsed};
use crate::listing::{Naming, compare_endpoints, compare_services, merge_sort};
use crate::nouns::read_line;
use crate::resolver::Resolver;
use crate::service_name::service_option;
use crate::session::Session;

impl Session<'_> {
    /// Prints all services as the commands that add them, without thresholds, as ipvsadm does. Features that ipvsadm
    /// does not have are in lines that begin with `#xvs `, which `ipvsadm-restore` skips. All of it comes from one
    /// request, so it contains a concurrent change completely or not at all.
    pub(super) fn save(&mut self, names: Names) -> Result<(), LineError> {
        let RunningRules { mut rules, owned_limits, .. } =
            question::rules().ask(self.director).map_err(|failure| LineError::listing(&failure))?;
        rules.extend(owned_limits);
        for line in saved_lines(&rules, &Naming::of(names, self.resolver)) {
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }

    /// Runs the lines of standard input; returns the exit code of the last line that was run.
    pub(super) fn restore(&mut self, rules: Rules) -> io::Result<u8> {
        let mut steps = match rules {
            Rules::Added => Vec::new(),
            Rules::All => vec![Step::Change(Command::Flush)],
        };
        let mut exit = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.stdin.read_until(b'\n', &mut line)? == 0 {
                return Ok(match self.run_steps(&mut steps)? {
                    ControlFlow::Continue(last) => last.unwrap_or(exit),
                    ControlFlow::Break(exit) => exit,
                });
            }
            let text = String::from_utf8_lossy(&line);
            if rules == Rules::All && is_comment(&text) {
                continue;
            }
            let parsed = match parse(&text, self.resolver) {
                None => continue,
                Some(Ok(Parsed::Change(command))) => {
                    steps.push(Step::Change(command));
                    continue;
                }
                Some(Err(error)) if error.on_restore == OnRestore::Continue => {
                    steps.push(Step::Error(error));
                    continue;
                }
                Some(parsed) => parsed,
            };
            // A listing has to show the changes of the lines before it, and errors are printed in the order of lines.
            if let ControlFlow::Break(exit) = self.run_steps(&mut steps)? {
                return Ok(exit);
            }
            let ends = matches!(parsed, Ok(Parsed::Help | Parsed::Version));
            if let Err(error) = parsed.and_then(|parsed| self.execute(&parsed)) {
                self.messages.print(&error);
                return Ok(error.exit);
            }
            exit = 0;
            if ends {
                return Ok(exit);
            }
        }
    }

    /// Sends the changes that were read so far and prints the errors in the order of their lines. Continues with the
    /// exit code of the last line, if there was a line; breaks with an exit code if the director cannot be reached.
    fn run_steps(&mut self, steps: &mut Vec<Step>) -> io::Result<ControlFlow<u8, Option<u8>>> {
        let steps = std::mem::take(steps);
        let commands: Vec<Command> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Change(command) => Some(command.clone()),
                Step::Error(_) => None,
            })
            .collect();
        let mut results = match self.batch(commands) {
            Ok(results) => results.into_iter(),
            Err(failure) => {
                let error = LineError::change(&failure);
                self.messages.print(&error);
                return Ok(ControlFlow::Break(error.exit));
            }
        };
        let mut exit = None;
        for step in steps {
            let error = match step {
                Step::Change(command) => match results.next() {
                    // Not an error: rules can be restored while they are already in force.
                    Some(Err(CommandError::MarkExists(_))) => None,
                    Some(Err(CommandError::LocalExists { addr, first_port, last_port, standby }))
                        if command
                            == Command::Add(Rule::Local(LocalAddress {
                                addr,
                                first_port,
                                last_port,
                                standby,
                            })) =>
                    {
                        None
                    }
                    Some(Err(refused)) => Some(LineError::change(&Failure::Refused(refused))),
                    _ => None,
                },
                Step::Error(error) => Some(error),
            };
            exit = Some(error.as_ref().map_or(0, |error| error.exit));
            if let Some(error) = error {
                self.messages.print(&error);
            }
        }
        Ok(ControlFlow::Continue(exit))
    }

    fn batch(&mut self, commands: Vec<Command>) -> Result<BatchResults, Failure> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let requested = commands.len();
        let results = question::restore(commands).ask(self.director)?;
        if results.len() == requested {
            Ok(results)
        } else {
            Err(Failure::unexpected(&Reply::Restored(results)))
        }
    }
}

/// Parses a line of a rules file; `None` if it is empty. Behind `#xvs ` it may be a line of a noun of `xvs`.
fn parse(text: &str, resolver: &dyn Resolver) -> Option<Result<Parsed, LineError>> {
    let is_xvs_line = text.starts_with(XVS_LINE);
    let words: Vec<&str> = text
        .split([' ', '\t', '\r', '\n'])
        .filter(|word| !word.is_empty())
        .filter(|word| is_xvs_line || *word != "ipvsadm")
        .collect();
    Some(match &words[..] {
        [] => return None,
        [_, words @ ..] if is_xvs_line => {
            match words.split_first().and_then(|(word, rest)| read_line(word, rest, resolver)) {
                Some(changed) => changed.map(Parsed::Change),
                None => grammar::parse(words, resolver),
            }
        }
        words => grammar::parse(words, resolver),
    })
}

/// The changes in the text of a rules file, as printed by `-S`. Comments are skipped, lines that begin with `#xvs ` are
/// not.
///
/// # Errors
///
/// The first line that cannot be parsed or is not a change, with its number.
pub fn read_rules(text: &str, resolver: &dyn Resolver) -> Result<Vec<RuleLine>, Fault> {
    let (rules, faults) = read_all(text, resolver);
    faults.into_iter().next().map_or(Ok(rules), Err)
}

/// Like [`read_rules`], with every wrong line.
fn read_all(text: &str, resolver: &dyn Resolver) -> (Vec<RuleLine>, Vec<Fault>) {
    let (mut rules, mut faults) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        if is_comment(line) {
            continue;
        }
        match parse(line, resolver) {
            None => {}
            Some(Ok(Parsed::Change(command))) => rules.push(RuleLine { number, command }),
            Some(Ok(_)) => faults
                .push(Fault { line: number, why: "only what changes services can stand here".to_owned() }),
            Some(Err(error)) => {
                let why = match error.text.as_str() {
                    // The advice to try `-h` does not help in a file.
                    TRY_HELP if line.starts_with(XVS_LINE) => {
                        "behind `#xvs` stands mark, laddr, disable, limit, deny, allow, quic, or a command of \
                         xvsadm such as -E"
                    }
                    TRY_HELP => "it does not begin with a command of ipvsadm, such as -A or -a",
                    _ => error.first_line(),
                };
                faults.push(Fault { line: number, why: why.to_owned() });
            }
        }
    }
    (rules, faults)
}

/// The changes in the text of a rules file, and the state that they result in.
///
/// # Errors
/// Every line that cannot be parsed, or that cannot be applied after the lines before it, in the order of lines.
pub fn read_wanted(text: &str, resolver: &dyn Resolver) -> Result<(Vec<Command>, DesiredRules), Vec<Fault>> {
    let (lines, mut faults) = read_all(text, resolver);
    match DesiredRules::of(&lines) {
        Ok(wanted) if faults.is_empty() => Ok((lines.into_iter().map(|line| line.command).collect(), wanted)),
        Ok(_) => Err(faults),
        Err(more) => {
            faults.extend(more);
            faults.sort_by_key(|fault| fault.line);
            Err(faults)
        }
    }
}

/// A state as lines of `-S -n`.
pub fn saved_rules(state: &State) -> Vec<String> {
    saved_lines(&rules_of(state), &Naming::NUMERIC)
}

/// The lines of `-S` for the rules of a state: local addresses, disabled real servers, limits of clients, access lists
/// and QUIC configurations, then services with their destinations, and mark rules.
fn saved_lines(rules: &[Rule], names: &Naming<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut limits = BTreeMap::new();
    let mut others = Vec::new();
    let mut services = Vec::new();
    let mut destinations = BTreeMap::<_, Vec<_>>::new();
    let mut marks = Vec::new();
    for rule in rules {
        match rule {
            Rule::Local(_) | Rule::Disabled(_) => lines.push(xvs_line(rule)),
            Rule::Limit(ServiceLimit { service, .. }) => _ = limits.insert(service, xvs_line(rule)),
            Rule::Service { key, options } => services.push((key, options)),
            Rule::Destination { service, endpoint, options } => {
                destinations.entry(service).or_default().push((*endpoint, options));
            }
            Rule::Mark(_) => marks.push(xvs_line(rule)),
            // As in ipvsadm.
            Rule::Timeouts(_) | Rule::Daemon(_) => {}
            other => others.push(xvs_line(other)),
        }
    }
    lines.extend(limits.into_values());
    lines.extend(others);
    for (key, options) in merge_sort(services, &|a, b| compare_services(a.0, b.0)) {
        // IPVS's order: the one added last comes first.
        let mut listed = destinations.remove(key).unwrap_or_default();
        listed.reverse();
        lines.extend(service_lines(key, options, names));
        for (endpoint, options) in merge_sort(listed, &|a, b| compare_endpoints(a.0, b.0)) {
            let rule = destination_rule(options);
            lines.push(destination_command("-a", key, endpoint, options.method, &rule, names));
        }
    }
    lines.extend(marks);
    lines
}

/// The line of a rule that ipvsadm does not have.
fn xvs_line(rule: &Rule) -> String {
    match rule {
        // A rules file must contain the exact name of its interface.
        Rule::Mark(rule) => format!("{XVS_LINE}mark add {rule}"),
        _ => format!("#{}", escape_control(&added(rule))),
    }
}

/// A service with all its options, as after `-A` or `-E` in a rules file: `-t 192.0.2.1:80 -s mh -p 300`.
pub fn service_line(key: &ServiceKey, options: &ServiceOptions) -> String {
    service_text(key, options, &Naming::NUMERIC)
}

fn service_text(key: &ServiceKey, options: &ServiceOptions, names: &Naming<'_>) -> String {
    format!("{}{}{}", service_option(key, names), service_rule(key, options), xvs_options(options))
}

/// The lines of a rules file for a command, as printed by `-S -n` but with thresholds.
pub fn rule_lines(command: &Command) -> Vec<String> {
    let names = &Naming::NUMERIC;
    vec![match command {
        Command::Add(Rule::Service { key, options }) => return service_lines(key, options, names),
        Command::EditService { key, options } => service_command("-E", key, options, names),
        Command::Add(Rule::Destination { service, endpoint, options }) => {
            destination_command("-a", service, *endpoint, options.method, &destination(options), names)
        }
        Command::EditDestination { service, endpoint, options } => {
            destination_command("-e", service, *endpoint, options.method, &destination(options), names)
        }
        Command::Add(Rule::Timeouts(Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds })) => {
            format!("--set {tcp_seconds} {tcp_fin_seconds} {udp_seconds}")
        }
        // A daemon is started by a command, not by a rules file.
        Command::Add(Rule::Daemon(_)) => format!("# {}", command_line(command)),
        Command::Add(rule) => xvs_line(rule),
        // Other commands do not describe a state; a comment shows them.
        other => format!("# {}", command_line(other)),
    }]
}

/// The lines that add a service: one for ipvsadm, and one with the options that only xvs has, if there are any.
fn service_lines(key: &ServiceKey, options: &ServiceOptions, names: &Naming<'_>) -> Vec<String> {
    let common = options.of_ipvsadm();
    let mut lines = vec![service_command("-A", key, &common, names)];
    if common != *options {
        lines.push(service_command("-E", key, options, names));
    }
    lines
}

fn service_command(option: &str, key: &ServiceKey, options: &ServiceOptions, names: &Naming<'_>) -> String {
    let prefix = if xvs_options(options).is_empty() { "" } else { XVS_LINE };
    format!("{prefix}{option} {}", service_text(key, options, names))
}

/// The line that adds or edits a destination with these options.
fn destination_command(
    option: &str,
    service: &ServiceKey,
    endpoint: Endpoint,
    method: ForwardingMethod,
    options: &str,
    names: &Naming<'_>,
) -> String {
    let prefix = if method == ForwardingMethod::FullNat { XVS_LINE } else { "" };
    format!(
        "{prefix}{option} {} -r {}{options}",
        service_option(service, names),
        names.destination(service, endpoint)
    )
}

/// How a restore treats the present services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// `-R`: the lines change them; comments are errors.
    Added,
    /// `ipvsadm-restore`: they are deleted first; comments are skipped.
    All,
}

/// Whether a line is a comment for xvs, too.
fn is_comment(line: &str) -> bool {
    line.starts_with('#') && !line.starts_with(XVS_LINE)
}

/// The beginning of lines that ipvsadm skips and xvs reads.
const XVS_LINE: &str = "#xvs ";

/// The result of each command of a batch.
type BatchResults = Vec<Result<(), CommandError>>;

/// A line of `-R` that has been read but not run.
enum Step {
    Change(Command),
    /// The line is wrong. Its message is printed after those of the lines before it.
    Error(LineError),
}

#[cfg(test)]
mod tests;
