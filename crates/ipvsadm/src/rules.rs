//! Rules saved as commands (`-S`), run from a file (`-R`), and read for a daemon to begin with.
//!
//! `-R` reads the whole input first where it can: consecutive changes travel as one batch, so that they become one
//! snapshot. What is printed and how it exits is as if each line had been run for itself: a line that the director
//! refuses, or that popt cannot read, is told and the rest goes on; any other faulty line ends it.

use std::io;
use std::ops::ControlFlow;

use xvs_model::client::Failure;
use xvs_model::command::{Command, CommandError};
use xvs_model::destination::DestinationOptions;
use xvs_model::firewall_mark::MarkRule;
use xvs_model::local_address::LocalAddress;
use xvs_model::reply::Reply;
use xvs_model::request::Request;
use xvs_model::rules::{Fault, RuleLine, Wanted};
use xvs_model::service::ServiceOptions;
use xvs_model::state::State;
use xvs_model::timeouts::Timeouts;
use xvs_proto::Endpoint;
use xvs_sched::{ClientAddress, ForwardingMethod, ServiceKey};

use crate::command_line::{command_line, destination, destination_rule, service_option, service_rule};
use crate::error::{LineError, OnRestore, TRY_HELP};
use crate::grammar::{Names, Order, Parsed};
use crate::listing::{Naming, compare_endpoints, compare_services, merge_sort};
use crate::resolver::Resolver;
use crate::session::Session;
use crate::streams::Messages;
use crate::xvs_lines::{local_address_command, mark_command};
use crate::{grammar, resolver};

impl Session<'_> {
    /// Prints all services as the commands that make them. Thresholds are not among what they say. What ipvsadm has no
    /// words for stands behind `#xvs `, which `ipvsadm-restore` skips; local addresses come first, mark rules last.
    pub(super) fn save(&mut self, names: Names) -> Result<(), LineError> {
        let rows = self.services(Request::ListServices, Order::Sorted)?;
        let names = Naming { names, resolver: self.resolver };
        for local in self.locals()? {
            writeln!(self.out, "{OURS}laddr add {local}")?;
        }
        for row in &rows {
            let destinations = row.destinations.iter().map(|dest| (dest.endpoint, &dest.options));
            for line in service_lines(&row.key, &row.options, destinations, &names) {
                writeln!(self.out, "{line}")?;
            }
        }
        for rule in self.marks()? {
            writeln!(self.out, "{OURS}mark add {rule}")?;
        }
        Ok(())
    }

    fn locals(&mut self) -> Result<Vec<LocalAddress>, LineError> {
        match self.director.call(Request::LocalAddresses).map_err(|failure| LineError::listing(&failure))? {
            Reply::LocalAddresses(locals) => Ok(locals),
            other => Err(LineError::listing(&Failure::unexpected(&other))),
        }
    }

    fn marks(&mut self) -> Result<Vec<MarkRule>, LineError> {
        match self.director.call(Request::Marks).map_err(|failure| LineError::listing(&failure))? {
            Reply::Marks(rules) => Ok(rules),
            other => Err(LineError::listing(&Failure::unexpected(&other))),
        }
    }

    /// Runs the lines of standard input; returns the exit code, that of the last line run.
    pub(super) fn restore(&mut self, rules: Rules, messages: &mut Messages<'_>) -> io::Result<u8> {
        let mut steps = match rules {
            Rules::Added => Vec::new(),
            Rules::All => vec![Step::Change(Command::Flush)],
        };
        let mut exit = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.stdin.read_until(b'\n', &mut line)? == 0 {
                return Ok(match self.run_steps(&mut steps, messages)? {
                    ControlFlow::Continue(last) => last.unwrap_or(exit),
                    ControlFlow::Break(exit) => exit,
                });
            }
            let text = String::from_utf8_lossy(&line);
            if rules == Rules::All && is_comment(&text) {
                continue;
            }
            let Some(parsed) = parse(&text, self.resolver) else { continue };
            let parsed = match parsed {
                Ok(Parsed::Change(command)) => {
                    steps.push(Step::Change(command));
                    continue;
                }
                Err(error) if error.on_restore == OnRestore::Continue => {
                    steps.push(Step::Error(error));
                    continue;
                }
                parsed => parsed,
            };
            // A listing has to see what the lines before it did, and an error to be told after theirs.
            if let ControlFlow::Break(exit) = self.run_steps(&mut steps, messages)? {
                return Ok(exit);
            }
            let ends = matches!(parsed, Ok(Parsed::Help | Parsed::Version));
            if let Err(error) = parsed.and_then(|parsed| self.execute(&parsed)) {
                messages.print(&error)?;
                return Ok(error.exit);
            }
            exit = 0;
            if ends {
                return Ok(exit);
            }
        }
    }

    /// Carries out what has been read so far and tells what went wrong, line by line. Goes on with the exit code of
    /// the last line, if there was one; breaks with one if there is nobody to carry out anything.
    fn run_steps(
        &mut self,
        steps: &mut Vec<Step>,
        messages: &mut Messages<'_>,
    ) -> io::Result<ControlFlow<u8, Option<u8>>> {
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
                messages.print(&error)?;
                return Ok(ControlFlow::Break(error.exit));
            }
        };
        let mut exit = None;
        for step in steps {
            let error = match step {
                Step::Change(command) => match results.next() {
                    // What it asks for is the case, so that rules can be restored where they are in force.
                    Some(Err(CommandError::MarkExists(_))) => None,
                    Some(Err(CommandError::LocalExists(there))) if command == Command::AddLocal(there) => {
                        None
                    }
                    Some(Err(refused)) => Some(LineError::change(&Failure::Refused(refused))),
                    _ => None,
                },
                Step::Error(error) => Some(error),
            };
            exit = Some(error.as_ref().map_or(0, |error| error.exit));
            if let Some(error) = error {
                messages.print(&error)?;
            }
        }
        Ok(ControlFlow::Continue(exit))
    }

    fn batch(&mut self, commands: Vec<Command>) -> Result<BatchResults, Failure> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let asked = commands.len();
        match self.director.call(Request::Restore(commands))? {
            Reply::Restored(results) if results.len() == asked => Ok(results),
            other => Err(Failure::unexpected(&other)),
        }
    }
}

/// Reads a line by its words, one of ours also by what `xvs` takes; `None` if it has none.
fn parse(text: &str, resolver: &dyn Resolver) -> Option<Result<Parsed, LineError>> {
    let words: Vec<&str> =
        text.split([' ', '\t', '\r', '\n']).filter(|word| !word.is_empty() && *word != "ipvsadm").collect();
    Some(match &words[..] {
        [] => return None,
        [_, "mark", words @ ..] if text.starts_with(OURS) => {
            mark_command(words).map(Parsed::Change).map_err(LineError::usage)
        }
        [_, "laddr", words @ ..] if text.starts_with(OURS) => {
            local_address_command(words).map(Parsed::Change).map_err(LineError::usage)
        }
        [_, words @ ..] if text.starts_with(OURS) => grammar::parse(words, resolver),
        words => grammar::parse(words, resolver),
    })
}

/// Reads the whole of a rules file, as `-S` prints it, without carrying it out; comments other than ours are skipped.
///
/// # Errors
/// The first line that does not parse or that changes nothing, by its number.
pub fn read_rules(text: &str, resolver: &dyn Resolver) -> Result<Vec<RuleLine>, String> {
    let (rules, faults) = read_all(text, resolver);
    faults.first().map_or(Ok(rules), |fault| Err(fault.to_string()))
}

/// As [`read_rules`], with every line that is wrong.
fn read_all(text: &str, resolver: &dyn Resolver) -> (Vec<RuleLine>, Vec<Fault>) {
    let (mut rules, mut faults) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        if is_comment(line) {
            continue;
        }
        match parse(line, resolver) {
            None => {}
            Some(Ok(Parsed::Change(command))) => rules.push(RuleLine { number, command }),
            Some(Ok(_)) => {
                let why = "only what changes services can stand here".to_owned();
                faults.push(Fault { line: number, why });
            }
            Some(Err(error)) => {
                let why = match error.text.as_str() {
                    // There is nothing to try here.
                    TRY_HELP => "it does not begin with a command of ipvsadm, such as -A or -a",
                    told => told.lines().next().unwrap_or_default(),
                };
                faults.push(Fault { line: number, why: why.to_owned() });
            }
        }
    }
    (rules, faults)
}

/// The commands of a rules file's text, and what they want.
///
/// # Errors
/// Every line that cannot be read, or not be carried out after those before it, in their order.
pub fn read_wanted(text: &str, resolver: &dyn Resolver) -> Result<(Vec<Command>, Wanted), Vec<Fault>> {
    let (lines, mut faults) = read_all(text, resolver);
    match Wanted::of(&lines) {
        Ok(wanted) if faults.is_empty() => Ok((lines.into_iter().map(|line| line.command).collect(), wanted)),
        Ok(_) => Err(faults),
        Err(more) => {
            faults.extend(more);
            faults.sort_by_key(|fault| fault.line);
            Err(faults)
        }
    }
}

/// The services of a state as `-S -n` prints them.
pub fn saved_rules(state: &State) -> Vec<String> {
    let resolver = resolver::FixedNames::default();
    let names = Naming { names: Names::Numeric, resolver: &resolver };
    let services = merge_sort(state.services().collect(), &|a, b| compare_services(a.0, b.0));
    let lines = services.into_iter().flat_map(|(key, service)| {
        let all: Vec<_> = service.destinations.iter().map(|dest| (dest.endpoint, &dest.options)).collect();
        let sorted = merge_sort(all, &|a, b| compare_endpoints(a.0, b.0));
        service_lines(key, &service.options, sorted.into_iter(), &names)
    });
    lines.collect()
}

/// A service with its destinations, in this order.
fn service_lines<'a>(
    key: &ServiceKey,
    options: &ServiceOptions,
    destinations: impl Iterator<Item = (Endpoint, &'a DestinationOptions)>,
    names: &Naming<'_>,
) -> Vec<String> {
    let service = service_option(key, names);
    let rule = service_rule(key, options);
    let mut lines = vec![format!("-A {service}{rule}")];
    let told = options.client_address;
    if told != ClientAddress::Hidden {
        lines.push(format!("{OURS}-E {service}{rule} --client-address {}", told.name()));
    }
    lines.extend(destinations.map(|(endpoint, options)| {
        let server = names.destination(key, endpoint);
        let ours = if options.method == ForwardingMethod::FullNat { OURS } else { "" };
        format!("{ours}-a {service} -r {server}{}", destination_rule(options))
    }));
    lines
}

/// The lines of a rules file that ask for this, as `-S -n` prints those that it prints; thresholds are among what they say.
pub fn rule_lines(command: &Command) -> Vec<String> {
    let resolver = resolver::FixedNames::default();
    let names = Naming { names: Names::Numeric, resolver: &resolver };
    let service = |option, key, options: &ServiceOptions| {
        let line = format!("{option} {}{}", service_option(key, &names), service_rule(key, options));
        match options.client_address {
            ClientAddress::Hidden => line,
            told => format!("{OURS}{line} --client-address {}", told.name()),
        }
    };
    let dest = |option, key, endpoint, options: &DestinationOptions| {
        let ours = if options.method == ForwardingMethod::FullNat { OURS } else { "" };
        let (key, server) = (service_option(key, &names), names.destination(key, endpoint));
        format!("{ours}{option} {key} -r {server}{}", destination(options))
    };
    vec![match command {
        Command::AddService { key, options } => {
            let hidden = ServiceOptions { client_address: ClientAddress::Hidden, ..options.clone() };
            let add = service("-A", key, &hidden);
            if hidden != *options {
                return vec![add, service("-E", key, options)];
            }
            add
        }
        Command::EditService { key, options } => service("-E", key, options),
        Command::AddDestination { service, endpoint, options } => dest("-a", service, *endpoint, options),
        Command::EditDestination { service, endpoint, options } => dest("-e", service, *endpoint, options),
        Command::SetTimeouts(Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds }) => {
            format!("--set {tcp_seconds} {tcp_fin_seconds} {udp_seconds}")
        }
        Command::AddMark(rule) => format!("{OURS}mark add {rule}"),
        Command::AddLocal(local) => format!("{OURS}laddr add {local}"),
        // What rules say of others is how they are, not how they change.
        other => format!("# {}", command_line(other)),
    }]
}

/// What the lines of a restore are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// Commands beside what there is (`-R`).
    Added,
    /// In the place of all services, with comments among them (`ipvsadm-restore`).
    All,
}

/// Whether a line says nothing to xvs either.
fn is_comment(line: &str) -> bool {
    line.starts_with('#') && !line.starts_with(OURS)
}

/// How a line begins that is for xvs only.
const OURS: &str = "#xvs ";

/// For each command of a batch whether it was carried out.
type BatchResults = Vec<Result<(), CommandError>>;

/// A line of `-R` that has been read and not yet answered.
enum Step {
    Change(Command),
    /// It cannot be read; what is told of it waits for its turn.
    Error(LineError),
}
