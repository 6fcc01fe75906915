//! Parses a command line into a checked request.
//!
//! There are two passes, because ipvsadm reports one of several errors and xvs has to report the same one. [`parse`]
//! reads the arguments in order and reports a repeated option or a bad argument at its position. [`Draft::finish`] then
//! checks the line as a whole, in the order of ipvsadm's checks.

use std::net::IpAddr;

use xvs_model::config::command::Command;
use xvs_model::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::service::{DEFAULT_SCHEDULER, Netmask, ServiceOptions};
use xvs_model::config::slow_start::SLOW_START_MAX_SECONDS;
use xvs_model::config::sync_daemon::{SyncDaemon, SyncRole};
use xvs_model::config::timeouts::Timeouts;
use xvs_model::objects::{Object, Rule};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ClientAddress, ForwardingMethod, ServiceKey, SynProxy, Weight};

use crate::error::LineError;
use crate::option_matrix::{Seen, TUNNELS, check_command, check_tunnel};
use crate::options::{Column, CommandName, OptionEntry, OptionName};
use crate::popt::Words;
use crate::resolver::Resolver;
use crate::values;
use crate::values::{Given, invalid, number, ranged, timeouts};

/// A valid line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    Change(Command),
    List(List),
    Save(Names),
    Restore,
    Help,
    Version,
}

/// The subject and the format of `-L`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List {
    pub(super) subject: Subject,
    pub(super) names: Names,
    pub(super) columns: Columns,
    pub(super) numbers: Numbers,
    pub(super) order: Order,
}

/// The subject of `-L`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    All,
    Service(ServiceKey),
    Connections(Engines),
    Timeouts,
    Daemons,
}

/// Whether a listing of connections has the columns of persistence engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engines {
    Shown,
    Hidden,
}

/// Whether names of hosts and services are printed instead of addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    LookedUp,
    Numeric,
}

/// The columns of a listing of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    Plain,
    Stats,
    Rates,
    Thresholds,
    Persistent,
    Tunnels,
}

/// How large numbers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// With K, M, G or T, once they exceed their column.
    Scaled,
    Exact,
}

/// The order of services and destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Sorted,
    AsKept,
}

/// Parses and checks one line, which starts after the program's name.
pub(super) fn parse(words: &[&str], resolver: &dyn Resolver) -> Result<Parsed, LineError> {
    if words.is_empty() {
        return Draft::new(CommandName::List).finish(&[]);
    }
    let mut words = Words::new(words);
    // Every error in the first argument has the same message.
    let (first, argument) = words.next().ok().flatten().ok_or_else(LineError::try_help)?;
    let mut draft = match (first.option, argument) {
        (OptionName::Help, _) => return Ok(Parsed::Help),
        (OptionName::Version, _) => return Ok(Parsed::Version),
        (OptionName::Command(command), role) => Draft::of_command(command, role)?,
        _ => return Err(LineError::try_help()),
    };
    while let Some((entry, argument)) = words.next()? {
        match entry.option {
            OptionName::Command(_) | OptionName::Help | OptionName::Version => {
                return Err(LineError::usage(format!("invalid option `{}'", words.last())));
            }
            _ => draft.option(entry, argument, resolver)?,
        }
    }
    draft.finish(&words.extra)
}

/// The service and the real server that these arguments identify; they are the options of `-d`.
///
/// # Errors
///
/// The first line of ipvsadm's message.
pub fn real_server(words: &[&str], resolver: &dyn Resolver) -> Result<(ServiceKey, Endpoint), LineError> {
    match parse(&[&["-d"], words].concat(), resolver) {
        Ok(Parsed::Change(Command::Delete(Object::Destination { service, endpoint }))) => {
            Ok((service, endpoint))
        }
        Ok(_) => Err(LineError::usage("they name no real server")),
        Err(error) => Err(LineError::usage(error.first_line())),
    }
}

/// The service that these arguments identify; they are the options of `-D`.
///
/// # Errors
///
/// The first line of ipvsadm's message.
pub(super) fn virtual_service(words: &[&str], resolver: &dyn Resolver) -> Result<ServiceKey, LineError> {
    match parse(&[&["-D"], words].concat(), resolver) {
        Ok(Parsed::Change(Command::Delete(Object::Service(key)))) => Ok(key),
        Ok(_) => Err(LineError::usage("they name no virtual service")),
        Err(error) => Err(LineError::usage(error.first_line())),
    }
}

/// The value of `--client-address`.
pub(super) fn client_address(text: &str) -> Result<ClientAddress, &'static str> {
    [ClientAddress::Hidden, ClientAddress::Proxy, ClientAddress::Toa]
        .into_iter()
        .find(|known| known.name() == text)
        .ok_or("client-address takes hidden, proxy or toa")
}

/// The value of `--syn-proxy`.
pub(super) fn syn_proxy(text: &str) -> Result<SynProxy, &'static str> {
    SynProxy::ALL.into_iter().find(|known| known.name() == text).ok_or("syn-proxy takes off, auto or on")
}

/// A line of which some options have been read.
struct Draft {
    command: CommandName,
    seen: Seen,
    /// The service's address, if it has one; otherwise `mark` identifies it.
    address: Option<Endpoint>,
    mark: Option<u32>,
    family: Family,
    protocol: Option<Protocol>,
    service: ServiceOptions,
    flags: String,
    server: Option<Endpoint>,
    destination: DestinationOptions,
    tunnel_type: &'static str,
    tunnel_port: u16,
    tunnel_checksum: TunnelChecksum,
    daemon: SyncDaemon,
}

impl Draft {
    fn new(command: CommandName) -> Self {
        Self {
            command,
            seen: Seen::default(),
            address: None,
            mark: None,
            family: Family::V4,
            protocol: None,
            service: ServiceOptions::of(Family::V4),
            flags: String::new(),
            server: None,
            destination: DestinationOptions::default(),
            tunnel_type: TUNNELS[0].0,
            tunnel_port: 0,
            tunnel_checksum: TunnelChecksum::Without,
            daemon: SyncDaemon {
                role: SyncRole::Master,
                interface: "eth0".to_owned(),
                sync_id: 0,
                max_len_bytes: 0,
                group: IpAddr::from([224, 0, 0, 81]),
                port: 8848,
                ttl: 1,
                peers: Vec::new(),
            },
        }
    }

    fn of_command(command: CommandName, value: Option<&str>) -> Result<Self, LineError> {
        let mut draft = Self::new(command);
        let illegal = match command {
            CommandName::StartDaemon => "illegal start-daemon parameter specified",
            CommandName::StopDaemon => "illegal start_daemon specified",
            _ => return Ok(draft),
        };
        draft.daemon.role = [SyncRole::Master, SyncRole::Backup]
            .into_iter()
            .find(|role| Some(role.name()) == value)
            .ok_or_else(|| LineError::usage(illegal))?;
        Ok(draft)
    }

    /// Reads one option.
    fn option(
        &mut self,
        entry: &OptionEntry,
        argument: Option<&str>,
        resolver: &dyn Resolver,
    ) -> Result<(), LineError> {
        if let Some(column) = entry.column {
            self.seen.add(column)?;
        }
        let text = argument.unwrap_or_default();
        let numbers = 0..=Weight::MAX.0;
        match entry.option {
            OptionName::Address(protocol) => self.virtual_address(protocol, text, resolver)?,
            OptionName::Mark => {
                self.mark = Some(number(text, 1..=u32::MAX).ok_or_else(|| invalid("fwmark value", text))?);
                self.protocol = Some(Protocol::TCP);
            }
            OptionName::V6 if self.mark.is_none() => return Err(LineError::usage("-6 used before -f\n")),
            OptionName::V6 => self.take_family(Family::V6),
            OptionName::Scheduler if text.is_empty() => {
                DEFAULT_SCHEDULER.clone_into(&mut self.service.scheduler);
            }
            OptionName::Scheduler => self.service.scheduler = text.chars().take(NAME_LEN).collect(),
            OptionName::Engine => {
                let name: String = text.chars().take(ENGINE_LEN).collect();
                self.service.persistence_engine = Some(name).filter(|name| !name.is_empty());
            }
            OptionName::Persistent => {
                self.service.persistence_timeout_seconds = Some(match argument {
                    Some(text) => number(text, 1..=Timeouts::MAX_SECONDS)
                        .ok_or_else(|| invalid("timeout value", text))?,
                    None => DEFAULT_PERSISTENCE_SECONDS,
                });
            }
            OptionName::Netmask => self.service.netmask = self.netmask(text, resolver)?,
            OptionName::Flags => text.clone_into(&mut self.flags),
            OptionName::OnePacket => self.service.one_packet = true,
            // Options that only xvs has are checked here, because the option matrix does not contain them.
            OptionName::ClientAddress | OptionName::SynProxy | OptionName::SlowStart
                if !self.command.sets_service() =>
            {
                return Err(LineError::usage(format!("--{} is for -A and -E", entry.name)));
            }
            OptionName::ClientAddress => {
                self.service.client_address = client_address(text).map_err(LineError::value)?;
            }
            OptionName::SynProxy => self.service.syn_proxy = syn_proxy(text).map_err(LineError::value)?,
            OptionName::SlowStart => {
                let seconds = ranged(text, 0..=SLOW_START_MAX_SECONDS, "slow-start")?;
                self.service.slow_start_seconds = Some(seconds).filter(|seconds| *seconds > 0);
            }
            OptionName::RealServer => self.real_server(text, resolver)?,
            OptionName::Method(method) => self.destination.method = method,
            OptionName::Weight => self.destination.weight = Weight(ranged(text, numbers, "weight")?),
            OptionName::Upper => self.destination.upper_threshold = ranged(text, numbers, "u_threshold")?,
            OptionName::Lower => self.destination.lower_threshold = ranged(text, numbers, "l_threshold")?,
            OptionName::TunnelType => {
                let (known, _) = TUNNELS
                    .into_iter()
                    .find(|(known, _)| *known == text)
                    .ok_or_else(|| LineError::usage("illegal tunnel type specified"))?;
                self.tunnel_type = known;
            }
            OptionName::TunnelPort => self.tunnel_port = ranged(text, 1..=0xffff, "tunnel port")? as u16,
            OptionName::Checksum(checksum) => self.tunnel_checksum = checksum,
            OptionName::Interface if text.is_empty() => {}
            OptionName::Interface => self.daemon.interface = text.chars().take(NAME_LEN).collect(),
            OptionName::SyncId => self.daemon.sync_id = ranged(text, 0..=0xff, "syncid")? as u8,
            OptionName::MaxLen => self.daemon.max_len_bytes = ranged(text, 1..=65507, "sync-maxlen")? as u16,
            OptionName::Port => self.daemon.port = ranged(text, 1..=0xffff, "mcast-port")? as u16,
            OptionName::Ttl => self.daemon.ttl = ranged(text, 1..=0xff, "mcast-ttl")? as u8,
            OptionName::Group => self.daemon.group = group(text)?,
            OptionName::Peers => self.peers(text)?,
            // `list` reads the columns; `parse` has taken the others.
            OptionName::Listing | OptionName::Command(_) | OptionName::Help | OptionName::Version => {}
        }
        Ok(())
    }

    fn virtual_address(
        &mut self,
        protocol: Protocol,
        text: &str,
        resolver: &dyn Resolver,
    ) -> Result<(), LineError> {
        let Some(given) = values::endpoint(text, Some(protocol), resolver) else {
            return Err(LineError::usage("illegal virtual server address[:port] specified"));
        };
        self.protocol = Some(protocol);
        self.address = Some(Endpoint { addr: given.addr, port: given.port.unwrap_or(0) });
        if Family::of(given.addr) == Family::V6 {
            self.take_family(Family::V6);
        }
        Ok(())
    }

    /// Sets the family of the service. As in ipvsadm, this overwrites an earlier `-M`.
    fn take_family(&mut self, family: Family) {
        self.family = family;
        self.service.netmask = Netmask::host(family);
    }

    fn real_server(&mut self, text: &str, resolver: &dyn Resolver) -> Result<(), LineError> {
        let Some(Given { addr, port }) = values::endpoint(text, self.protocol, resolver) else {
            return Err(LineError::usage("illegal real server address[:port] specified"));
        };
        // The default is the service's port, but only if the service precedes the real server in the line.
        let port = port.or(self.address.map(|service| service.port)).unwrap_or(0);
        self.server = Some(Endpoint { addr, port });
        Ok(())
    }

    fn netmask(&self, text: &str, resolver: &dyn Resolver) -> Result<Netmask, LineError> {
        match self.family {
            Family::V4 => values::ipv4(text, resolver)
                .map(Netmask::V4)
                .ok_or_else(|| LineError::usage("illegal virtual server persistent mask specified")),
            Family::V6 => values::leading_number(text, 1..=128)
                .map(|bits| Netmask::V6(bits as u8))
                .ok_or_else(|| LineError::usage("illegal ipv6 netmask specified")),
        }
    }

    /// An option of xvs alone.
    fn peers(&mut self, text: &str) -> Result<(), LineError> {
        if self.command != CommandName::StartDaemon {
            return Err(LineError::usage("--sync-peers is for --start-daemon"));
        }
        for peer in text.split(',') {
            self.daemon.peers.push(peer.parse().map_err(|_| {
                LineError::usage(format!("--sync-peers takes addresses, separated by commas, not `{peer}'"))
            })?);
        }
        Ok(())
    }

    /// Checks the line as a whole. The order of the checks decides which of several errors is reported.
    fn finish(mut self, extra: &[&str]) -> Result<Parsed, LineError> {
        let (timeouts, extra) =
            if self.command == CommandName::Set { timeouts(extra)? } else { (Timeouts::default(), extra) };
        if let Some(word) = extra.first() {
            return Err(LineError::usage(format!("unexpected argument {word}")));
        }
        self.service.flags = values::scheduler_flags(&self.flags, &self.service.scheduler)?;
        check_command(self.command, self.seen)?;
        self.check_service()?;
        self.check_destination()?;
        let key = self.key();
        Ok(Parsed::Change(match self.command {
            CommandName::List => return self.list(key),
            CommandName::Save => return Ok(Parsed::Save(self.names())),
            CommandName::Restore => return Ok(Parsed::Restore),
            CommandName::Flush => Command::Flush,
            // To ipvsadm, a service at address 0 and port 0 is no service.
            CommandName::Zero if self.address.is_some_and(|at| at.addr.is_unspecified() && at.port == 0) => {
                Command::Zero(None)
            }
            CommandName::Zero => Command::Zero(key),
            CommandName::Set => Command::Add(Rule::Timeouts(timeouts)),
            CommandName::StartDaemon => Command::Add(Rule::Daemon(self.started_daemon()?)),
            CommandName::StopDaemon => Command::Delete(Object::Daemon(self.daemon.role)),
            CommandName::AddService => {
                Command::Add(Rule::Service { key: required(key), options: self.service })
            }
            CommandName::EditService => Command::EditService { key: required(key), options: self.service },
            CommandName::DeleteService => Command::Delete(Object::Service(required(key))),
            CommandName::AddServer => {
                let (endpoint, options) = self.destination();
                Command::Add(Rule::Destination { service: required(key), endpoint, options })
            }
            CommandName::EditServer => {
                let (endpoint, options) = self.destination();
                Command::EditDestination { service: required(key), endpoint, options }
            }
            CommandName::DeleteServer => Command::Delete(Object::Destination {
                service: required(key),
                endpoint: required(self.server),
            }),
        }))
    }

    fn check_service(&self) -> Result<(), LineError> {
        if !self.command.sets_service() {
            return Ok(());
        }
        let every_port = self.address.is_some_and(|address| address.port == 0);
        if every_port && self.service.persistence_timeout_seconds.is_none() {
            return Err(LineError::usage("Zero port specified for non-persistent service"));
        }
        if self.service.one_packet && self.mark.is_none() && self.protocol != Some(Protocol::UDP) {
            return Err(LineError::usage("One-Packet Scheduling is only for UDP virtual services"));
        }
        Ok(())
    }

    fn check_destination(&self) -> Result<(), LineError> {
        if !matches!(self.command, CommandName::AddServer | CommandName::EditServer) {
            return Ok(());
        }
        let tunnel = self.destination.method == ForwardingMethod::Tunnel;
        let translates = self.destination.method == ForwardingMethod::FullNat;
        if !tunnel && !translates && self.server.is_some_and(|server| server.family() != self.family) {
            return Err(LineError::usage("Different address family is allowed only for tunneling servers"));
        }
        if !tunnel && self.seen.any(TUNNEL_OPTIONS) {
            return Err(LineError::usage("Tunnel options conflict with forward method"));
        }
        if tunnel { check_tunnel(self.tunnel_type, self.seen) } else { Ok(()) }
    }

    fn key(&self) -> Option<ServiceKey> {
        match (self.mark, self.address, self.protocol) {
            (Some(mark), ..) => Some(ServiceKey::Mark { mark, family: self.family }),
            (None, Some(endpoint), Some(protocol)) => Some(ServiceKey::Address { protocol, endpoint }),
            _ => None,
        }
    }

    fn destination(&self) -> (Endpoint, DestinationOptions) {
        let mut endpoint = required(self.server);
        // Direct routing and tunnels do not change ports, so the destination's port is the service's.
        if !self.destination.method.masquerades()
            && let Some(service) = self.address
        {
            endpoint.port = service.port;
        }
        let checksum = self.tunnel_checksum;
        let tunnel = match self.tunnel_type {
            "gue" => Tunnel::Gue { port: self.tunnel_port, checksum },
            "gre" => Tunnel::Gre { checksum },
            _ => Tunnel::Ipip,
        };
        (endpoint, DestinationOptions { tunnel, ..self.destination.clone() })
    }

    fn started_daemon(&self) -> Result<SyncDaemon, LineError> {
        let mut daemon = self.daemon.clone();
        if !daemon.peers.is_empty() {
            if self.seen.has(Column::Group) {
                return Err(LineError::usage(
                    "--mcast-group and --sync-peers exclude each other; leave one out",
                ));
            }
            daemon.ttl = if self.seen.has(Column::Ttl) { daemon.ttl } else { UNICAST_TTL };
        }
        if daemon.max_len_bytes == 0 {
            // The Ethernet MTU, 1500 bytes, less the IP and UDP headers.
            daemon.max_len_bytes = if daemon.is_ipv4() { 1472 } else { 1452 };
        }
        Ok(daemon)
    }

    fn names(&self) -> Names {
        if self.seen.has(Column::Numeric) { Names::Numeric } else { Names::LookedUp }
    }

    fn list(&self, key: Option<ServiceKey>) -> Result<Parsed, LineError> {
        let seen = self.seen;
        let needs_services = seen.any(&[Column::Stats, Column::Rate, Column::Thresholds]);
        let has_no_services = seen.any(&[Column::Timeout, Column::Daemon]);
        if (needs_services && (has_no_services || seen.has(Column::Connection)))
            || (has_no_services && seen.has(Column::PersistentConn))
        {
            return Err(LineError::usage("options conflicts in the list command"));
        }
        let engines = if seen.has(Column::PersistentConn) { Engines::Shown } else { Engines::Hidden };
        let subject = match key {
            _ if seen.has(Column::Connection) => Subject::Connections(engines),
            Some(key) => Subject::Service(key),
            None if seen.has(Column::Timeout) => Subject::Timeouts,
            None if seen.has(Column::Daemon) => Subject::Daemons,
            None => Subject::All,
        };
        let columns = [
            (Column::Stats, Columns::Stats),
            (Column::Rate, Columns::Rates),
            (Column::Thresholds, Columns::Thresholds),
            (Column::PersistentConn, Columns::Persistent),
            (Column::TunInfo, Columns::Tunnels),
        ];
        Ok(Parsed::List(List {
            subject,
            names: self.names(),
            columns: columns
                .into_iter()
                .find(|(column, _)| seen.has(*column))
                .map_or(Columns::Plain, |found| found.1),
            numbers: if seen.has(Column::Exact) { Numbers::Exact } else { Numbers::Scaled },
            order: if seen.has(Column::NoSort) { Order::AsKept } else { Order::Sorted },
        }))
    }
}

fn group(text: &str) -> Result<IpAddr, LineError> {
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    text.parse()
        .ok()
        .filter(IpAddr::is_multicast)
        .ok_or_else(|| LineError::usage(format!("invalid {family} mcast-group `{text}'")))
}

/// The value of an option that the option matrix requires.
fn required<T>(value: Option<T>) -> T {
    value.expect("the option matrix requires it, and check_command has passed")
}

/// Maximum length of names, in characters; ipvsadm truncates longer ones, too. The kernel's fields for schedulers and
/// interfaces contain 15 and a zero byte; ipvsadm's field for engines contains one more.
const NAME_LEN: usize = 15;
const ENGINE_LEN: usize = NAME_LEN + 1;

/// The default of `--mcast-ttl` with peers: there may be routers between directors.
const UNICAST_TTL: u8 = 64;

const DEFAULT_PERSISTENCE_SECONDS: u32 = 360;

const TUNNEL_OPTIONS: &[Column] =
    &[Column::TunnelType, Column::TunnelPort, Column::NoChecksum, Column::Checksum, Column::RemoteChecksum];
