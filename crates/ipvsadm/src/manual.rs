//! `-h`, manual page and completion of `xvsadm`: the option table as a clap command. Lines are parsed by `popt.rs`.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command};
use xvs_model::config::sync_daemon::SyncRole;
use xvs_sched::{ClientAddress, SynProxy, scheduler};

use crate::option_matrix::{Requirement, TUNNELS, requirement};
use crate::options::{self, Argument, Column, CommandName, LISTINGS, OptionEntry, OptionName, SECTIONS};

/// `xvsadm` as a clap command.
pub fn command() -> Command {
    let mut command = Command::new("xvsadm")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Configure the virtual services of xvs with the command line of ipvsadm")
        .long_about(ABOUT)
        .after_help(EXIT_CODES)
        .override_usage(synopsis())
        .disable_help_flag(true)
        .disable_version_flag(true);
    for (heading, entries) in SECTIONS {
        command = command.next_help_heading(heading).args(entries.iter().map(argument));
    }
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help_heading(LISTINGS);
    command.arg(json.help("Print JSON; may stand anywhere in the line; xvs only"))
}

/// The text that `-h` prints behind the version.
pub(crate) fn help() -> String {
    let indented = synopsis().replace('\n', "\n       ");
    let behind = format!("{ENVIRONMENT}\n\n{EXIT_CODES}");
    command().override_usage(indented).after_help(behind).render_help().to_string()
}

fn argument(entry: &OptionEntry) -> Arg {
    let mut letters = entry.letters.chars();
    let mut arg = Arg::new(entry.name).long(entry.name).help(entry.help);
    if let Some(letter) = letters.next() {
        arg = arg.short(letter).visible_short_aliases(letters.collect::<Vec<_>>());
    }
    match (entry.argument, values(entry.option)) {
        (Argument::Absent, _) => arg.action(ArgAction::SetTrue),
        (Argument::Optional(name), _) => arg.value_name(name).num_args(0..=1),
        (Argument::Required(name), None) => arg.value_name(name),
        (Argument::Required(name), Some(values)) => {
            arg.value_name(name).value_parser(PossibleValuesParser::new(values))
        }
    }
}

/// All values that an option takes, if they can be listed.
fn values(option: OptionName) -> Option<Vec<&'static str>> {
    Some(match option {
        OptionName::Command(CommandName::StartDaemon | CommandName::StopDaemon) => {
            [SyncRole::Master, SyncRole::Backup].map(SyncRole::name).to_vec()
        }
        OptionName::Scheduler => scheduler::names().collect(),
        OptionName::Engine => vec!["sip"],
        OptionName::ClientAddress => [ClientAddress::Hidden, ClientAddress::Proxy, ClientAddress::Toa]
            .map(ClientAddress::name)
            .to_vec(),
        OptionName::SynProxy => SynProxy::ALL.map(SynProxy::name).to_vec(),
        OptionName::TunnelType => TUNNELS.map(|(name, _)| name).to_vec(),
        _ => return None,
    })
}

/// A line for each command with the options that it takes, and two that explain the placeholders.
fn synopsis() -> String {
    let mut lines: Vec<_> = options::all()
        .filter_map(|entry| match entry.option {
            OptionName::Command(command) => Some(usage(command, entry)),
            _ => None,
        })
        .collect();
    lines.push(
        "SERVICE is -t ADDRESS[:PORT], -u ADDRESS[:PORT], --sctp-service ADDRESS[:PORT] or -f MARK [-6]"
            .to_owned(),
    );
    lines.push("METHOD is -g, -m, -i or --fullnat".to_owned());
    lines.join("\n")
}

/// The line of a command in the synopsis.
fn usage(command: CommandName, entry: &OptionEntry) -> String {
    let mut line = format!("xvsadm {}", spelled(entry));
    let mut seen: Vec<Column> = Vec::new();
    for entry in options::all() {
        let requirement = match entry.column {
            Some(column) if !seen.contains(&column) => {
                seen.push(column);
                requirement(command, column)
            }
            _ => match entry.option {
                OptionName::ClientAddress | OptionName::SynProxy | OptionName::SlowStart
                    if command.sets_service() =>
                {
                    Requirement::Allowed
                }
                OptionName::Peers if command == CommandName::StartDaemon => Requirement::Allowed,
                _ => Requirement::Illegal,
            },
        };
        let text = match entry.column {
            Some(Column::Service) => "SERVICE".to_owned(),
            Some(Column::Method) => "METHOD".to_owned(),
            _ => spelled(entry),
        };
        match requirement {
            Requirement::Required => line += &format!(" {text}"),
            Requirement::Allowed => line += &format!(" [{text}]"),
            Requirement::Illegal => {}
        }
    }
    if command == CommandName::Set {
        line += " TCP TCPFIN UDP";
    }
    line
}

/// The shortest name of an option with its argument.
fn spelled(entry: &OptionEntry) -> String {
    let name =
        entry.letters.chars().next().map_or(format!("--{}", entry.name), |letter| format!("-{letter}"));
    match entry.argument {
        Argument::Absent => name,
        Argument::Required(argument) => format!("{name} {argument}"),
        Argument::Optional(argument) => format!("{name} [{argument}]"),
    }
}

const ABOUT: &str = "\
Accepts the command line of ipvsadm 1.31, prints what ipvsadm prints, and exits with its codes, also when it is called \
ipvsadm. It configures xvsd instead of the kernel. Settings that ipvsadm does not have are in xvs(8).

The environment variable XVS_SOCKET names the socket of xvsd; the default is /run/xvs/xvsd.sock.";

const ENVIRONMENT: &str = "\
Environment:
  XVS_SOCKET  the socket of xvsd; default /run/xvs/xvsd.sock";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a listing failed
  2    the command line is wrong, or no xvsd could be reached
  255  the director refused the command, or the command line cannot be split into options";

#[cfg(test)]
mod tests {
    use crate::manual::*;
    use crate::{SystemResolver, grammar};

    /// A valid line of each command.
    fn complete(command: CommandName) -> &'static [&'static str] {
        use CommandName as C;
        match command {
            C::AddService => &["-A", "-t", "192.0.2.1:80"],
            C::EditService => &["-E", "-t", "192.0.2.1:80"],
            C::DeleteService => &["-D", "-t", "192.0.2.1:80"],
            C::Flush => &["-C"],
            C::List => &["-L"],
            C::AddServer => &["-a", "-t", "192.0.2.1:80", "-r", "192.0.2.2"],
            C::EditServer => &["-e", "-t", "192.0.2.1:80", "-r", "192.0.2.2"],
            C::DeleteServer => &["-d", "-t", "192.0.2.1:80", "-r", "192.0.2.2"],
            C::Set => &["--set", "1", "2", "3"],
            C::StartDaemon => &["--start-daemon", "master"],
            C::StopDaemon => &["--stop-daemon", "master"],
            C::Restore => &["-R"],
            C::Save => &["-S"],
            C::Zero => &["-Z"],
        }
    }

    fn value(entry: &OptionEntry) -> &'static str {
        match entry.option {
            OptionName::Address(_) | OptionName::RealServer => "192.0.2.1:80",
            OptionName::Scheduler => "rr",
            OptionName::Netmask => "255.255.255.0",
            OptionName::Flags => "flag-1",
            OptionName::ClientAddress => "proxy",
            OptionName::SynProxy => "auto",
            OptionName::TunnelType => "gue",
            OptionName::Group => "224.0.0.82",
            _ => "1",
        }
    }

    #[test]
    fn each_line_of_the_synopsis_names_the_options_that_its_command_takes_and_no_others() {
        let synopsis = synopsis();
        let lines: Vec<_> = synopsis.lines().map(|line| line.to_owned() + " ").collect();
        for entry in options::all() {
            let OptionName::Command(command) = entry.option else { continue };
            let usage = lines.iter().find(|line| line.starts_with(&format!("xvsadm {} ", spelled(entry))));
            let usage = usage.unwrap_or_else(|| panic!("{}: {synopsis}", entry.name));
            for other in options::all() {
                let in_no_line = ["ipv6", "sort", "help", "version"];
                if matches!(other.option, OptionName::Command(_)) || in_no_line.contains(&other.name) {
                    continue;
                }
                let option = format!("--{}", other.name);
                let mut line = complete(command).to_vec();
                line.push(&option);
                if other.argument != Argument::Absent {
                    line.push(value(other));
                }
                let message = grammar::parse(&line, &SystemResolver::default()).err().map(|error| error.text);
                let refused = message
                    .as_ref()
                    .is_some_and(|text| text.starts_with("Illegal '") || text.contains(" is for -"));
                let spelled = spelled(other);
                let shown = match other.column {
                    Some(Column::Service) => usage.contains("SERVICE"),
                    Some(Column::Method) => usage.contains("METHOD"),
                    _ => usage.contains(&format!("[{spelled}] ")) || usage.contains(&format!(" {spelled} ")),
                };
                assert_eq!(shown, !refused, "{line:?}: {message:?}: {usage}");
            }
        }
    }

    #[test]
    fn the_help_text_names_every_option() {
        let help = help();
        let words: Vec<_> = help.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
        for entry in options::all() {
            let letters = entry.letters.chars().map(|letter| format!("-{letter}"));
            for name in letters.chain([format!("--{}", entry.name)]) {
                assert!(words.contains(&name.as_str()), "{name}: {help}");
            }
        }
    }
}
