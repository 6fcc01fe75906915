//! Lines of a rules file that begin with `#xvs `: mark rules, local addresses, disabled real servers, limits of
//! clients, access lists and QUIC configurations, which ipvsadm does not have.
//!
//! Such a line has the arguments of `xvs mark`, `xvs laddr`, `xvs disable`, `xvs limit`, `xvs deny`, `xvs allow` or
//! `xvs quic`; both programs use the types of this file.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, FromArgMatches, Subcommand};
use xvs_model::config::access_list::{ListKey, ListKind, Until, read_prefix};
use xvs_model::config::command::Command;
use xvs_model::config::firewall_mark::MarkRule;
use xvs_model::config::local_address::LocalAddress;
use xvs_model::config::maintenance::Disabled;
use xvs_model::config::quic_change::{QuicChange, QuicConfig};
use xvs_proto::quic::ServerId;
use xvs_proto::{Family, Prefix, Protocol};
use xvs_sched::{Above, ClientAddress, ClientLimit, ServiceKey, SynProxy};

use crate::grammar::{client_address, real_server, syn_proxy, virtual_service};
use crate::resolver::Resolver;

/// The changes of one subcommand.
pub trait Line: Subcommand {
    /// The subcommand.
    const WORD: &str;

    /// The command.
    ///
    /// # Errors
    /// A sentence: no service is named, ipvsadm's message about it, or a rule cannot match.
    fn command(&self, resolver: &dyn Resolver) -> Result<Command, String>;
}

/// The change that a line requests by its words behind a subcommand.
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn command<L: Line>(words: &[&str], resolver: &dyn Resolver) -> Result<Command, String> {
    parse::<L>(L::WORD, words)?.command(resolver)
}

/// A change of the mark rules.
#[derive(Debug, Subcommand)]
pub enum MarkChange {
    /// Append a rule; of the rules that match a packet, the last one sets its mark
    Add(Rule),
    /// Delete the rule that has the same options
    Delete(Rule),
}

/// A mark rule as options.
#[derive(Debug, Args)]
pub struct Rule {
    /// Packets to this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    dest: Option<Prefix>,
    /// Packets from this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    source: Option<Prefix>,
    /// Packets of this protocol: tcp, udp or sctp
    #[arg(short, long, value_name = "PROTO", value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Packets to this port, or to this range of ports
    #[arg(long, value_name = "P[:Q]", value_parser = port_range, requires = "protocol", conflicts_with = "dports")]
    dport: Option<RangeInclusive<u16>>,
    /// Packets to one of these ports or ranges
    #[arg(long, value_name = "P,Q,R:S", value_delimiter = ',', value_parser = port_range, requires = "protocol")]
    dports: Vec<RangeInclusive<u16>>,
    /// Packets received on this interface; a name that ends in + matches all names with this prefix
    #[arg(short, long, value_name = "IFACE")]
    interface: Option<String>,
    /// The mark; with a mask, only the bits of the mask are changed
    #[arg(long, value_name = "N[/MASK]", value_parser = mark)]
    set_mark: (u32, u32),
}

impl Rule {
    fn message(&self) -> Result<MarkRule, String> {
        if let (Some(dest), Some(source)) = (self.dest, self.source)
            && Family::of(dest.addr()) != Family::of(source.addr())
        {
            return Err(format!(
                "mark: {source} and {dest} are of two address families, so no packet matches; name networks of one"
            ));
        }
        let (mark, mask) = self.set_mark;
        Ok(MarkRule {
            dest: self.dest,
            source: self.source,
            protocol: self.protocol,
            dest_ports: self.dport.iter().chain(&self.dports).cloned().collect(),
            interface: self.interface.clone(),
            mark,
            mask,
        })
    }
}

impl Line for MarkChange {
    const WORD: &str = "mark";

    fn command(&self, _: &dyn Resolver) -> Result<Command, String> {
        Ok(match self {
            Self::Add(rule) => Command::AddMark(rule.message()?),
            Self::Delete(rule) => Command::DeleteMark(rule.message()?),
        })
    }
}

/// A change of the local addresses.
#[derive(Debug, Subcommand)]
pub enum LocalAddressChange {
    /// Use this address as source of FULLNAT connections
    Add {
        /// An address of this machine, or one that is routed to it
        address: IpAddr,
        /// Source ports; each serves one connection to each real server
        #[arg(long, value_name = "LOW-HIGH", value_parser = ports, default_value = "1024-32767")]
        ports: (u16, u16),
        /// The address is that of another director: connections synchronized from there go on, new ones do not use it
        #[arg(long)]
        standby: bool,
    },
    /// Use this address for no new connections; existing connections continue
    Delete {
        /// The address, as it was added
        address: IpAddr,
    },
}

impl Line for LocalAddressChange {
    const WORD: &str = "laddr";

    fn command(&self, _: &dyn Resolver) -> Result<Command, String> {
        Ok(match *self {
            Self::Add { address: addr, ports: (first_port, last_port), standby } => {
                Command::AddLocal(LocalAddress { addr, first_port, last_port, standby })
            }
            Self::Delete { address } => Command::DeleteLocal(address),
        })
    }
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
    /// The options as words of an ipvsadm command line; none without a service.
    pub fn words(&self) -> Vec<&str> {
        let services = [
            ("-t", &self.tcp_service),
            ("-u", &self.udp_service),
            ("--sctp-service", &self.sctp_service),
            ("-f", &self.fwmark_service),
        ];
        let said = services.into_iter().filter_map(|(option, value)| Some([option, value.as_deref()?]));
        said.flatten().chain(self.ipv6.then_some("-6")).collect()
    }

    /// The service; `None`: no option is given.
    ///
    /// # Errors
    /// The first line of ipvsadm's message.
    pub fn key(&self, resolver: &dyn Resolver) -> Result<Option<ServiceKey>, String> {
        let words = self.words();
        if words.is_empty() { Ok(None) } else { virtual_service(&words, resolver).map(Some) }
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

/// The real servers that `xvs disable` or `xvs enable` names: without a port on every port, without a service in every
/// service.
#[derive(Debug, Args)]
pub struct DisabledArgument {
    #[command(flatten)]
    server: RealServerArgument,
    #[command(flatten)]
    service: ServiceArgument,
}

impl DisabledArgument {
    /// The real servers.
    ///
    /// # Errors
    /// The first line of ipvsadm's message about the service, or what is wrong with the real server.
    pub fn named(&self, resolver: &dyn Resolver) -> Result<Disabled, String> {
        let (service, word) = (self.service.key(resolver)?, self.server.word());
        let server = word.parse().map_err(|error| format!("real server {word:?}: {error}"))?;
        Ok(Disabled { server, service })
    }
}

/// A change of the limits of clients.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would take a sentence about the service's options as one about the subcommand"
)]
pub enum LimitChange {
    /// Limit what each client of a service may do, and all together, in the place of the service's former limit
    #[command(group = clap::ArgGroup::new("what").args(["connections", "rate", "syn_rate"]).required(true).multiple(true))]
    Set {
        #[command(flatten)]
        service: ServiceArgument,
        /// The most connections at once; closed ones count until they expire
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        connections: Option<u32>,
        /// The most new connections a second
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// The most new connections at once after a pause; as many as --rate by default
        #[arg(short, long, value_name = "N", requires = "rate", value_parser = clap::value_parser!(u32).range(1..))]
        burst: Option<u32>,
        /// What becomes of SYNs above --rate: drop, the default, or syn-proxy, which answers them by cookies
        #[arg(long, value_name = "WHAT", requires = "rate", value_parser = above)]
        above: Option<Above>,
        /// The most SYNs a second of all clients together
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        syn_rate: Option<u32>,
        /// The most SYNs of all clients at once after a pause; as many as --syn-rate by default
        #[arg(long, value_name = "N", requires = "syn_rate", value_parser = clap::value_parser!(u32).range(1..))]
        syn_burst: Option<u32>,
    },
    /// End the limit of a service; connections stay
    Delete {
        #[command(flatten)]
        service: ServiceArgument,
    },
}

/// An entry of an access list as arguments.
#[derive(Debug, Args)]
#[group(skip)]
pub struct EntryArgument {
    #[command(flatten)]
    service: ServiceArgument,
    /// Packets from this network
    #[arg(value_name = "PREFIX", value_parser = read_prefix)]
    prefix: Option<Prefix>,
    /// With TIME: `for` so long (10m, 1h30m), or `until` this number of seconds since 1970
    #[arg(value_name = "for", value_parser = ["for", "until"], requires = "time")]
    word: Option<String>,
    /// See there
    #[arg(value_name = "TIME")]
    time: Option<String>,
}

impl EntryArgument {
    /// The command that adds the entry.
    ///
    /// # Errors
    /// No network, a wrong time, or the first line of ipvsadm's message about the service.
    pub fn command(&self, kind: ListKind, resolver: &dyn Resolver) -> Result<Command, String> {
        let list = ListKey { kind, service: self.service.key(resolver)? };
        let missing =
            || format!("xvs {0} needs a network, or one of its subcommands; `xvs {0} --help`", kind.name());
        let prefix = self.prefix.ok_or_else(missing)?;
        let until = self.word.as_deref().zip(self.time.as_deref());
        let until = until.map(|(word, time)| Until::read(word, time)).transpose()?;
        Ok(Command::AddListed { list, prefix, until })
    }
}

/// Another change of an access list.
#[derive(Debug, Subcommand)]
pub enum ListChange {
    /// Delete an entry that a command added
    Delete {
        /// Its service.
        #[command(flatten)]
        service: ServiceArgument,
        /// Its network
        #[arg(value_name = "PREFIX", value_parser = read_prefix)]
        prefix: Prefix,
    },
    /// Add the networks of a file to the list of a service, instead of those of its former file
    File {
        /// Its service.
        #[command(flatten)]
        service: ServiceArgument,
        /// One network a line; read again by `xvs reload`
        path: PathBuf,
    },
    /// End that
    NoFile {
        /// Its service.
        #[command(flatten)]
        service: ServiceArgument,
    },
}

impl LimitChange {
    fn service(&self) -> &ServiceArgument {
        let (Self::Set { service, .. } | Self::Delete { service }) = self;
        service
    }

    /// The limit to set; `None`: it is ended.
    fn limit(&self) -> Option<ClientLimit> {
        let Self::Set { connections, rate, burst, above, syn_rate, syn_burst, .. } = self else {
            return None;
        };
        let [connections, rate, burst, syn_rate, syn_burst] =
            [connections, rate, burst, syn_rate, syn_burst].map(|number| number.unwrap_or(0));
        let above = above.unwrap_or_default();
        Some(ClientLimit { connections, rate, burst, above, syn_rate, syn_burst })
    }
}

impl Line for LimitChange {
    const WORD: &str = "limit";

    fn command(&self, resolver: &dyn Resolver) -> Result<Command, String> {
        let key = self.service().key(resolver)?;
        let service = key.ok_or("limit: name the service by -t, -u, --sctp-service or -f")?;
        Ok(match self.limit() {
            None => Command::DeleteLimit(service),
            Some(limit) => Command::SetLimit { service, limit },
        })
    }
}

/// What a `#xvs` line in a `virtual_server` of a keepalived.conf says of its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceLine {
    /// `syn-proxy auto`
    SynProxy(SynProxy),
    /// `client-address proxy`
    ClientAddress(ClientAddress),
    /// `limit set --rate 50`
    Limit(ClientLimit),
}

impl ServiceLine {
    /// Reads the words behind `#xvs`: those of a rules file, without the service.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn read(words: &[&str]) -> Result<Self, String> {
        match *words {
            ["syn-proxy", value] => Ok(Self::SynProxy(syn_proxy(value)?)),
            ["client-address", value] => Ok(Self::ClientAddress(client_address(value)?)),
            ["limit", ref words @ ..] => {
                let change = parse::<LimitChange>(LimitChange::WORD, words)?;
                if !change.service().words().is_empty() {
                    return Err("limit set: the block names the service; leave out its option".to_owned());
                }
                let ended = "limit delete: a reload without the line `#xvs limit set` ends the limit; remove the line";
                change.limit().map(Self::Limit).ok_or(ended.to_owned())
            }
            _ => {
                Err("behind `#xvs` stands `syn-proxy`, `client-address` or `limit set`, with a value"
                    .to_owned())
            }
        }
    }
}

impl ListChange {
    /// The command.
    ///
    /// # Errors
    /// The first line of ipvsadm's message about the service.
    pub fn command(&self, kind: ListKind, resolver: &dyn Resolver) -> Result<Command, String> {
        let list =
            |service: &ServiceArgument| Ok::<_, String>(ListKey { kind, service: service.key(resolver)? });
        Ok(match self {
            Self::Delete { service, prefix } => {
                Command::DeleteListed { list: list(service)?, prefix: *prefix }
            }
            Self::File { service, path } => Command::SetListFile { list: list(service)?, path: path.clone() },
            Self::NoFile { service } => Command::UnsetListFile(list(service)?),
        })
    }
}

/// A change of the QUIC configurations or server IDs of a service.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would take a sentence about the service's options as one about the subcommand"
)]
pub enum QuicLine {
    /// Add a configuration: how the service's real servers encode server IDs in their connection IDs
    Add {
        #[command(flatten)]
        service: ServiceArgument,
        /// Its number, 0 to 6, which is in each connection ID
        #[arg(long, value_name = "N")]
        config: u8,
        /// Length of server IDs in bytes, at least 1
        #[arg(long, value_name = "BYTES")]
        server_id_length: u8,
        /// Length of the nonce in bytes, at least 4; with the server ID at most 19
        #[arg(long, value_name = "BYTES")]
        nonce_length: u8,
        /// The file with the key of the encryption, 32 hexadecimal digits; without it nothing is encrypted
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Delete a configuration; server IDs stay
    Delete {
        #[command(flatten)]
        service: ServiceArgument,
        /// Its number
        #[arg(long, value_name = "N")]
        config: u8,
    },
    /// Give a real server an ID, for all configurations with IDs of its length
    ServerId {
        #[command(flatten)]
        service: ServiceArgument,
        /// The real server
        #[arg(short, long, value_name = "ADDRESS:PORT")]
        real_server: String,
        /// The ID in hexadecimal digits, as the server has it
        id: ServerId,
    },
    /// Delete the ID of a real server
    DeleteServerId {
        #[command(flatten)]
        service: ServiceArgument,
        /// The ID
        id: ServerId,
    },
}

impl Line for QuicLine {
    const WORD: &str = "quic";

    fn command(&self, resolver: &dyn Resolver) -> Result<Command, String> {
        let (Self::Add { service: named, .. }
        | Self::Delete { service: named, .. }
        | Self::ServerId { service: named, .. }
        | Self::DeleteServerId { service: named, .. }) = self;
        let service = named.key(resolver)?.ok_or("quic: name the service by -u or -f")?;
        let change = match self {
            Self::Add { config, server_id_length, nonce_length, key_file, .. } => {
                let (server_id_length, nonce_length) = (*server_id_length, *nonce_length);
                let options = QuicConfig { server_id_length, nonce_length, key_file: key_file.clone() };
                QuicChange::Add { config: *config, options }
            }
            Self::Delete { config, .. } => QuicChange::Delete { config: *config },
            Self::ServerId { real_server: text, id, .. } => {
                let (_, server) = real_server(&[named.words(), vec!["-r", text]].concat(), resolver)?;
                QuicChange::AddId { server, id: *id }
            }
            Self::DeleteServerId { id, .. } => QuicChange::DeleteId { id: *id },
        };
        Ok(Command::Quic { service, change })
    }
}

/// The change that a line requests by its words behind `deny` or `allow`.
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn list_command(
    kind: ListKind,
    words: &[&str],
    resolver: &dyn Resolver,
) -> Result<Command, String> {
    if words.first().is_some_and(|word| ["delete", "file", "no-file", "list"].contains(word)) {
        return parse::<ListChange>(kind.name(), words)?.command(kind, resolver);
    }
    arguments::<EntryArgument>(kind.name(), words)?.command(kind, resolver)
}

/// The change that a line requests by its words behind `disable`.
///
/// # Errors
/// A sentence for the operator, or the first line of ipvsadm's message about the service.
pub(crate) fn disable_command(words: &[&str], resolver: &dyn Resolver) -> Result<Command, String> {
    arguments::<DisabledArgument>("disable", words)?.named(resolver).map(Command::Disable)
}

fn parse<A: Subcommand + FromArgMatches>(name: &'static str, words: &[&str]) -> Result<A, String> {
    if words.first() == Some(&"list") {
        return Err(format!("{name} list changes nothing; remove the line"));
    }
    read(A::augment_subcommands(clap::Command::new(name)).subcommand_required(true), words)
}

fn arguments<A: Args + FromArgMatches>(name: &'static str, words: &[&str]) -> Result<A, String> {
    read(A::augment_args(clap::Command::new(name)), words)
}

/// Reads the words behind a subcommand; an error is one line, which names the subcommand and where its form is shown.
fn read<A: FromArgMatches>(parser: clap::Command, words: &[&str]) -> Result<A, String> {
    let mut name = parser.get_name().to_owned();
    if let Some(known) = words.first().and_then(|word| parser.find_subcommand(word)) {
        name += &format!(" {}", known.get_name());
    }
    let matches = parser.no_binary_name(true).try_get_matches_from(words);
    let read = matches.and_then(|matches| A::from_arg_matches(&matches));
    read.map_err(|error| format!("{name}: {}; `xvs {name} --help` shows its form", what_is_wrong(&error)))
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
    let message = message.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = message.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" | "6" => Ok(Protocol::TCP),
        "udp" | "17" => Ok(Protocol::UDP),
        "sctp" | "132" => Ok(Protocol::SCTP),
        _ => Err("the protocol of a virtual service is tcp, udp or sctp".to_owned()),
    }
}

fn above(text: &str) -> Result<Above, &'static str> {
    Above::ALL
        .into_iter()
        .find(|above| above.name() == text)
        .ok_or("SYNs above the rate get drop or syn-proxy")
}

/// `80` or `8000:8010`.
fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || "a port is a number up to 65535, a range is FIRST:LAST".to_owned();
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first <= last { Ok(first..=last) } else { Err(wrong()) }
}

/// `10`, `0xa` or `0x1/0xff`.
fn mark(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let both = number(value).zip(mask.map_or(Some(u32::MAX), number));
    both.ok_or_else(|| "a mark is a number up to 4294967295, decimal or 0x…, and so is a mask".to_owned())
}

/// `1024-32767`.
fn ports(text: &str) -> Result<(u16, u16), &'static str> {
    let read = || {
        let (first, last) = text.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    read().ok_or("ports are two numbers up to 65535: LOW-HIGH")
}

#[cfg(test)]
mod tests {
    use crate::resolver::FixedNames;
    use crate::xvs_lines::*;

    fn rule() -> MarkRule {
        MarkRule {
            dest: Some("192.0.2.100".parse().unwrap()),
            source: None,
            protocol: Some(Protocol::TCP),
            dest_ports: vec![80..=80, 8000..=8010],
            interface: Some("eth0".to_owned()),
            mark: 1,
            mask: 0xff,
        }
    }

    #[test]
    fn marks_masks_and_ports_are_parsed_as_iptables_parses_them_and_others_are_refused() {
        assert_eq!(mark("10"), Ok((10, u32::MAX)));
        assert_eq!(mark("0x1/0xff"), Ok((1, 255)));
        assert_eq!(port_range("8000:8010"), Ok(8000..=8010));
        for bad in ["", "x", "4294967296", "1/", "/1", "-1"] {
            assert!(mark(bad).is_err(), "{bad}");
        }
        for bad in ["", "80:", "65536", "81:80", "http"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rule_is_printed_as_its_options() {
        assert_eq!(
            rule().to_string(),
            "-d 192.0.2.100/32 -p tcp --dports 80,8000:8010 -i eth0 --set-mark 1/0xff"
        );
    }

    #[test]
    fn a_printed_rule_is_parsed_back_from_a_file() {
        let ipv6 = MarkRule {
            dest: None,
            source: Some("2001:db8::/32".parse().unwrap()),
            protocol: None,
            dest_ports: Vec::new(),
            interface: Some("wan+".to_owned()),
            mark: u32::MAX,
            mask: u32::MAX,
        };
        for rule in [rule(), ipv6] {
            let text = format!("add {rule}");
            let words: Vec<_> = text.split(' ').collect();
            assert_eq!(command::<MarkChange>(&words, &FixedNames::default()), Ok(Command::AddMark(rule)));
        }
        for wrong in [&["add"][..], &["list"], &["add", "--set-mark", "x"], &[]] {
            assert!(command::<MarkChange>(wrong, &FixedNames::default()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_printed_local_address_is_parsed_back_and_ports_have_a_default() {
        let addr = [192, 0, 2, 1].into();
        let local = LocalAddress { addr, first_port: 5000, last_port: 6000, standby: false };
        for local in [local, LocalAddress { standby: true, ..local }] {
            let text = format!("add {local}");
            let words: Vec<_> = text.split(' ').collect();
            assert_eq!(
                command::<LocalAddressChange>(&words, &FixedNames::default()),
                Ok(Command::AddLocal(local))
            );
        }
        let (first_port, last_port) = LocalAddress::PORTS.into_inner();
        let whole = LocalAddress { first_port, last_port, ..local };
        assert_eq!(
            command::<LocalAddressChange>(&["add", "192.0.2.1"], &FixedNames::default()),
            Ok(Command::AddLocal(whole))
        );
        for wrong in [&["add", "192.0.2.1", "--ports", "80"][..], &["list"], &["add"], &["add", "example"]] {
            assert!(command::<LocalAddressChange>(wrong, &FixedNames::default()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_printed_entry_or_file_of_a_list_is_parsed_back_with_and_without_a_service() {
        let names = FixedNames::default();
        let services = ["TCP 198.51.100.1:80", "FWM 7", "FWM 4294967295 IPv6"];
        let services = services.iter().map(|service| Some(service.parse().unwrap())).chain([None]);
        for (service, kind) in
            services.flat_map(|service| [(service, ListKind::Deny), (service, ListKind::Allow)])
        {
            let list = ListKey { kind, service };
            for prefix in ["192.0.2.0/24", "2001:db8::1/128"] {
                let prefix = prefix.parse().unwrap();
                for command in [
                    Command::AddListed { list, prefix, until: None },
                    Command::AddListed { list, prefix, until: Some(Until::At(1_800_000_000)) },
                    Command::AddListed { list, prefix, until: Some(Until::In(90)) },
                    Command::DeleteListed { list, prefix },
                    Command::SetListFile { list, path: "/etc/xvs/bad".into() },
                    Command::UnsetListFile(list),
                ] {
                    let line = crate::command_line(&command);
                    let words: Vec<_> = line.split(' ').collect();
                    assert_eq!(words[..2], ["xvs", kind.name()]);
                    assert_eq!(list_command(kind, &words[2..], &names), Ok(command), "{line}");
                }
            }
        }
        let command = list_command(ListKind::Deny, &["192.0.2.7", "for", "10m"], &names).unwrap();
        assert_eq!(crate::command_line(&command), "xvs deny 192.0.2.7/32 for 600s");
        for wrong in [
            &[][..],
            &["list"],
            &["192.0.2.1/24"],
            &["::ffff:192.0.2.1"],
            &["192.0.2.1", "for"],
            &["192.0.2.1", "for", "0s"],
            &["192.0.2.1", "until", "tomorrow"],
            &["192.0.2.1", "10m"],
        ] {
            assert!(list_command(ListKind::Deny, wrong, &names).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_printed_disabled_server_is_parsed_back_with_and_without_a_service() {
        let names = FixedNames::default().host("web1", [198, 51, 100, 1]);
        let services = ["TCP 198.51.100.1:80", "SCTP [2001:db8::1]:0", "FWM 7", "FWM 4294967295 IPv6"];
        let services = services.iter().map(|service| Some(service.parse().unwrap())).chain([None]);
        for service in services {
            for server in ["192.0.2.11", "192.0.2.11:80", "[2001:db8::11]:80"] {
                let command = Command::Disable(Disabled { server: server.parse().unwrap(), service });
                let line = crate::command_line(&command);
                let words: Vec<_> = line.split(' ').skip(2).collect();
                assert_eq!(disable_command(&words, &names), Ok(command), "{line}");
            }
        }
        let named = Disabled {
            server: "192.0.2.11".parse().unwrap(),
            service: Some("TCP 198.51.100.1:80".parse().unwrap()),
        };
        let words = ["192.0.2.11", "-t", "web1:80"];
        assert_eq!(disable_command(&words, &names), Ok(Command::Disable(named)));
        assert_eq!(crate::disabled_arguments(&named), "192.0.2.11 -t 198.51.100.1:80");
        for wrong in
            [&[][..], &["web1"], &["192.0.2.11", "-t", "web1:x"], &["192.0.2.11", "-t", "a", "-u", "b"]]
        {
            assert!(disable_command(wrong, &names).is_err(), "{wrong:?}");
        }
    }
}
