//! The option table as clap has it, for manual pages and completion; lines are never parsed by it.
//!
//! Every option stands here by what it asks for, so that none can be without a description, and which command takes it
//! is read from the option matrix.

use clap::{Arg, ArgAction, Command};
use xvs_model::destination::TunnelChecksum;
use xvs_sched::{ClientAddress, ForwardingMethod, scheduler};

use crate::grammar::column;
use crate::table::{Column, CommandName, Stance, stance};
use crate::words::{LONG, OPTIONS, Takes, Word};

/// `xvsadm`, as clap describes a program.
pub fn command() -> Command {
    let mut command = Command::new("xvsadm")
        .version(env!("CARGO_PKG_VERSION"))
        .about("configure the virtual services of xvs, as ipvsadm does those of the kernel")
        .long_about(ABOUT)
        .after_help(EXIT_CODES)
        .override_usage(synopsis())
        .disable_help_flag(true)
        .disable_version_flag(true);
    for (short, long, takes, word) in OPTIONS {
        // Another letter for an option that is there.
        let known = command.get_arguments().any(|known| known.get_id() == long);
        command = match known {
            true => command.mut_arg(*long, |known| known.visible_short_alias(*short)),
            false => command.arg(argument(*short, long, *takes, &about(*word))),
        };
    }
    command.arg(argument(LONG, "json", Takes::Nothing, &About::new(LISTING, "", "Print JSON; at any place")))
}

fn argument(short: char, long: &'static str, takes: Takes, about: &About) -> Arg {
    let arg = Arg::new(long).long(long).help(about.help).help_heading(about.heading).value_name(about.value);
    let arg = if short == LONG { arg } else { arg.short(short) };
    match takes {
        Takes::Nothing => arg.action(ArgAction::SetTrue),
        Takes::Value => arg.value_parser(about.known.clone()),
        Takes::MaybeValue => arg.num_args(0..=1),
    }
}

/// What is said of an option.
struct About {
    heading: &'static str,
    value: &'static str,
    help: &'static str,
    /// The values there are, if they can be counted.
    known: clap::builder::ValueParser,
}

impl About {
    fn new(heading: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { heading, value, help, known: clap::value_parser!(String) }
    }

    fn one_of(self, known: impl IntoIterator<Item = &'static str>) -> Self {
        Self { known: clap::builder::PossibleValuesParser::new(known).into(), ..self }
    }
}

const COMMANDS: &str = "Commands";
const SERVICE: &str = "Services";
const SERVER: &str = "Real servers";
const LISTING: &str = "Listings";
const DAEMON: &str = "Synchronization daemons";

fn about(word: Word) -> About {
    let service = |value, help| About::new(SERVICE, value, help);
    let server = |value, help| About::new(SERVER, value, help);
    let listing = |help| About::new(LISTING, "", help);
    let daemon = |value, help| About::new(DAEMON, value, help);
    match word {
        Word::Command(command) => about_command(command),
        Word::Help => About::new(COMMANDS, "", "Print a summary"),
        Word::Version => About::new(COMMANDS, "", "Print the version of ipvsadm that this stands in for"),
        Word::Tcp => {
            service("ADDRESS[:PORT]", "TCP to this virtual address; IPv6 with a port as [ADDRESS]:PORT")
        }
        Word::Udp => service("ADDRESS[:PORT]", "UDP to this virtual address"),
        Word::Sctp => service("ADDRESS[:PORT]", "SCTP to this virtual address"),
        Word::Mark => service("MARK", "Packets with this firewall mark, 1 to 4294967295"),
        Word::V6 => service("", "The mark is one of IPv6 packets; stands behind -f"),
        Word::Scheduler => {
            service("SCHEDULER", "Who gets a new connection; wlc if not said").one_of(scheduler::names())
        }
        Word::Engine => service("ENGINE", "Persistence by what packets contain").one_of(["sip"]),
        Word::Persistent => {
            service("SECONDS", "How long a client stays with its real server; 360 if not said")
        }
        Word::Netmask => {
            service("NETMASK", "Which clients are one: as 255.255.255.0, of IPv6 as a number of bits")
        }
        Word::Flags => service(
            "FLAGS",
            "Separated by commas: sh-fallback, sh-port, mh-fallback, mh-port, flag-1, flag-2, flag-3",
        ),
        Word::OnePacket => service("", "Schedule each UDP datagram for itself"),
        Word::ClientAddress => {
            let known =
                [ClientAddress::Hidden, ClientAddress::Proxy, ClientAddress::Toa].map(ClientAddress::name);
            service(
                "HOW",
                "How real servers by --fullnat learn who the client is; ipvsadm has no such option",
            )
            .one_of(known)
        }
        Word::RealServer => {
            server("ADDRESS[:PORT]", "The real server; its port is that of the service if not said")
        }
        Word::Method(ForwardingMethod::DirectRouting | ForwardingMethod::Local) => {
            server("", "Direct routing: only the link address is changed; this if no method is said")
        }
        Word::Method(ForwardingMethod::Tunnel) => server("", "Tunnel: the packet travels inside another"),
        Word::Method(ForwardingMethod::Nat) => {
            server("", "Masquerading (NAT): rewritten to the real server, whose replies come back here")
        }
        Word::Method(ForwardingMethod::FullNat) => {
            server("", "As -m, and from an address of `xvs laddr`; ipvsadm has no such option")
        }
        Word::TunnelType => {
            server("TYPE", "The kind of the tunnel; ipip if not said").one_of(["ipip", "gue", "gre"])
        }
        Word::TunnelPort => server("PORT", "The UDP port of a tunnel by gue"),
        Word::Checksum(TunnelChecksum::Without) => server("", "Tunnels by gue and gre have no checksum"),
        Word::Checksum(TunnelChecksum::Full) => server("", "Tunnels by gue and gre have a checksum"),
        Word::Checksum(TunnelChecksum::Remote) => server("", "Tunnels by gue have a remote checksum"),
        Word::Weight => server("WEIGHT", "Its share of new connections; 1 if not said, none with 0"),
        Word::Upper => server("N", "With so many connections it takes no more; 0: no bound"),
        Word::Lower => server("N", "Below so many it takes new ones again; three quarters of -x if 0"),
        Word::Connection => listing("Show connections and templates"),
        Word::Timeout => listing("Show the timeouts that --set sets"),
        Word::Daemon => listing("Show the synchronization daemons"),
        Word::Stats => listing("Show totals"),
        Word::Rate => listing("Show rates a second"),
        Word::Thresholds => listing("Show -x and -y"),
        Word::PersistentConn => listing("Show counts of templates; with -c, what persistence engines keep"),
        Word::TunInfo => listing("Show the kind of tunnels"),
        Word::Exact => listing("Show numbers in full, without K, M, G"),
        Word::NoSort => listing("Show services and real servers as they are kept"),
        Word::Sort => listing("Show them in order, as without it"),
        Word::Numeric => listing("Show numbers for hosts and ports, without asking DNS"),
        Word::SyncId => daemon("ID", "0 to 255; 0 if not said"),
        Word::MaxLen => daemon("BYTES", "The longest message"),
        Word::Interface => daemon("NAME", "The interface for messages; eth0 if not said"),
        Word::Group => daemon("ADDRESS", "The multicast group; 224.0.0.81 if not said"),
        Word::Port => daemon("PORT", "The UDP port; 8848 if not said"),
        Word::Ttl => daemon("TTL", "The time to live of messages; 1 if not said"),
    }
}

fn about_command(command: CommandName) -> About {
    use CommandName as C;
    let (value, help) = match command {
        C::AddService => ("", "Add a virtual service"),
        C::EditService => ("", "Give a service other options; what is not said gets its default"),
        C::DeleteService => ("", "Delete a service and its real servers"),
        C::Flush => ("", "Delete all services"),
        C::List => ("", "Show all services, or one; this without a command"),
        C::AddServer => ("", "Add a real server to a service"),
        C::EditServer => ("", "Give a real server other options; what is not said gets its default"),
        C::DeleteServer => ("", "Delete a real server of a service"),
        C::Set => {
            ("", "Set the timeouts of TCP, of TCP after a FIN, and of UDP, in seconds; 0 leaves one as it is")
        }
        C::StartDaemon => ("ROLE", "Start a synchronization daemon; xvs has none yet and says so"),
        C::StopDaemon => ("ROLE", "Stop a synchronization daemon"),
        C::Restore => ("", "Run the commands of standard input, as -S prints them"),
        C::Save => ("", "Print all services as commands; thresholds and timeouts are not among them"),
        C::Zero => ("", "Zero the counters of a service, or of all"),
    };
    let about = About::new(COMMANDS, value, help);
    if value.is_empty() { about } else { about.one_of(["master", "backup"]) }
}

/// A line for each command, with what it wants and takes, and two for the placeholders in them.
fn synopsis() -> String {
    let mut forms = Vec::new();
    let mut told = Vec::new();
    for (short, long, takes, word) in OPTIONS {
        if let Word::Command(command) = *word
            && !told.contains(&command)
        {
            told.push(command);
            forms.push(form(command, &spelled(*short, long, *takes, *word)));
        }
    }
    forms.push(
        "SERVICE is -t ADDRESS[:PORT], -u ADDRESS[:PORT], --sctp-service ADDRESS[:PORT] or -f MARK [-6]"
            .to_owned(),
    );
    forms.push("METHOD is -g, -m, -i or --fullnat".to_owned());
    forms.join("\n")
}

/// What is typed for a command, with all that it takes.
fn form(command: CommandName, spelling: &str) -> String {
    let mut line = format!("xvsadm {spelling}");
    let mut seen: Vec<Column> = Vec::new();
    for (short, long, takes, word) in OPTIONS {
        let shown = match *word {
            Word::Tcp | Word::Udp | Word::Sctp | Word::Mark => "SERVICE".to_owned(),
            Word::Method(_) => "METHOD".to_owned(),
            word => spelled(*short, long, *takes, word),
        };
        let ours = *word == Word::ClientAddress
            && matches!(command, CommandName::AddService | CommandName::EditService);
        let stance = match column(*word) {
            Some(column) if !seen.contains(&column) => {
                seen.push(column);
                stance(command, column)
            }
            None if ours => Stance::Taken,
            _ => Stance::Illegal,
        };
        match stance {
            Stance::Required => line += &format!(" {shown}"),
            Stance::Taken => line += &format!(" [{shown}]"),
            Stance::Illegal => {}
        }
    }
    if command == CommandName::Set {
        line += " TCP TCPFIN UDP";
    }
    line
}

fn spelled(short: char, long: &str, takes: Takes, word: Word) -> String {
    let name = if short == LONG { format!("--{long}") } else { format!("-{short}") };
    match takes {
        Takes::Nothing => name,
        Takes::Value => format!("{name} {}", about(word).value),
        Takes::MaybeValue => format!("{name} [{}]", about(word).value),
    }
}

const ABOUT: &str = "\
Takes the command line of ipvsadm 1.31, prints what it prints, and exits as it does; also when called by the name ipvsadm. \
It asks xvsd, not the kernel. What ipvsadm has no words for is xvs(8)'s.

The environment variable XVS_SOCKET names the socket of xvsd; it is /run/xvs/xvsd.sock if that is not set.";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a listing failed
  2    the command line is wrong, or no xvsd could be asked
  255  refused, or the command line cannot be read";

#[cfg(test)]
mod tests {
    use crate::manual::*;
    use crate::{SystemResolver, grammar};

    /// A line of each command that is complete, and refused for nothing.
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

    fn value(word: Word) -> &'static str {
        match word {
            Word::Tcp | Word::Udp | Word::Sctp | Word::RealServer => "192.0.2.1:80",
            Word::Scheduler => "rr",
            Word::Netmask => "255.255.255.0",
            Word::Flags => "flag-1",
            Word::ClientAddress => "proxy",
            Word::TunnelType => "gue",
            Word::Group => "224.0.0.82",
            _ => "1",
        }
    }

    #[test]
    fn each_line_of_the_synopsis_names_the_options_that_its_command_takes_and_no_others() {
        let synopsis = synopsis();
        let forms: Vec<_> = synopsis.lines().map(|line| line.to_owned() + " ").collect();
        for (short, long, takes, word) in OPTIONS {
            let Word::Command(command) = *word else { continue };
            let spelling = spelled(if *short == 'l' { 'L' } else { *short }, long, *takes, *word);
            let form = forms.iter().find(|form| form.starts_with(&format!("xvsadm {spelling} ")));
            let form = form.unwrap_or_else(|| panic!("{spelling}: {synopsis}"));
            for (_, long, takes, other) in OPTIONS {
                let known = [Word::V6, Word::Sort, Word::Help, Word::Version];
                if matches!(other, Word::Command(_)) || known.contains(other) {
                    continue;
                }
                let option = format!("--{long}");
                let mut line = complete(command).to_vec();
                line.push(&option);
                if *takes != Takes::Nothing {
                    line.push(value(*other));
                }
                let said = grammar::parse(&line, &SystemResolver::default()).err().map(|ended| ended.text);
                let refused = said
                    .as_ref()
                    .is_some_and(|said| said.starts_with("Illegal '") || said.contains("is for -A"));
                let shown = match other {
                    Word::Tcp | Word::Udp | Word::Sctp | Word::Mark => form.contains("SERVICE"),
                    Word::Method(_) => form.contains("METHOD"),
                    other => OPTIONS.iter().find(|(.., word)| word == other).is_some_and(
                        |(short, long, takes, word)| {
                            let spelled = spelled(*short, long, *takes, *word);
                            form.contains(&format!("[{spelled}] ")) || form.contains(&format!(" {spelled} "))
                        },
                    ),
                };
                assert_eq!(shown, !refused, "{line:?}: {said:?}: {form}");
            }
        }
    }
}
