//! Names of hosts and of ports, both ways.
//!
//! Asked while a command line is read and, without `-n`, for every address that is printed, once for each. The system's
//! resolver blocks for as long as its name servers take; who gives no answer for some seconds is not asked again.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use xvs_proto::Protocol;

/// Who knows names.
pub trait Resolver {
    /// The name of a host.
    fn host_name(&self, addr: IpAddr) -> Option<String>;
    /// The first IPv4 address of a host.
    fn address(&self, name: &str) -> Option<Ipv4Addr>;
    /// The name of a protocol's port.
    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String>;
    /// The port of a service's name.
    fn port(&self, name: &str, protocol: Protocol) -> Option<u16>;
}

/// The names that this system knows: the C library's resolver, and `/etc/services`.
#[derive(Debug, Default)]
pub struct SystemResolver {
    services: std::cell::OnceCell<Vec<Service>>,
    asking: Asking,
    /// Those that were asked for.
    names: RefCell<HashMap<IpAddr, Option<String>>>,
}

/// Asks what may not answer, but not for ever.
#[derive(Debug, Default)]
struct Asking {
    /// Whether a question went without an answer: then nobody is asked again.
    given_up: Cell<bool>,
}

/// How long an answer may take: the C library asks a second time after 5 seconds.
const PATIENCE: Duration = Duration::from_secs(6);

impl Asking {
    fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        question: impl FnOnce() -> Option<T> + Send + 'static,
    ) -> Option<T> {
        if self.given_up.get() {
            return None;
        }
        let (tell, told) = mpsc::channel();
        // Without an answer the thread stays, and ends with the program.
        let asked = thread::Builder::new().spawn(move || tell.send(question()));
        let answer = asked.ok().and_then(|_| told.recv_timeout(patience).ok());
        self.given_up.set(answer.is_none());
        answer.flatten()
    }
}

/// A line of `/etc/services`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Service {
    /// The name first, then its aliases.
    names: Vec<String>,
    port: u16,
    protocol: Protocol,
}

impl SystemResolver {
    fn services(&self) -> &[Service] {
        // A system without the file has numbers only, as with getservbyport.
        self.services.get_or_init(|| parse(&fs::read_to_string("/etc/services").unwrap_or_default()))
    }
}

impl Resolver for SystemResolver {
    fn host_name(&self, addr: IpAddr) -> Option<String> {
        if let Some(known) = self.names.borrow().get(&addr) {
            return known.clone();
        }
        let look_up =
            move || dns_lookup::lookup_addr(&addr).ok().filter(|name| name.parse::<IpAddr>().is_err());
        let name = self.asking.ask(PATIENCE, look_up);
        self.names.borrow_mut().insert(addr, name.clone());
        name
    }

    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_owned();
        self.asking.ask(PATIENCE, move || {
            (name, 0).to_socket_addrs().ok()?.find_map(|found| match found.ip() {
                IpAddr::V4(addr) => Some(addr),
                IpAddr::V6(_) => None,
            })
        })
    }

    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        let found = self.services().iter().find(|line| line.port == port && line.protocol == protocol)?;
        found.names.first().cloned()
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let mut lines = self.services().iter().filter(|line| line.protocol == protocol);
        lines.find(|line| line.names.iter().any(|known| known == name)).map(|line| line.port)
    }
}

/// Lines of `NAME PORT/PROTOCOL ALIAS… # comment`; others are skipped (services(5)).
fn parse(text: &str) -> Vec<Service> {
    let line = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let (port, protocol) = words.next()?.split_once('/')?;
        let protocol = match protocol {
            "tcp" => Protocol::TCP,
            "udp" => Protocol::UDP,
            "sctp" => Protocol::SCTP,
            _ => return None,
        };
        let names = std::iter::once(name).chain(words).map(str::to_owned).collect();
        Some(Service { names, port: port.parse().ok()?, protocol })
    };
    text.lines().filter_map(line).collect()
}

/// Names given one by one, the same on every machine: for tests, and for the lab, which has no network.
#[derive(Debug, Clone, Default)]
pub struct FixedNames {
    hosts: Vec<(String, IpAddr)>,
    services: Vec<(String, u16, Protocol)>,
}

impl FixedNames {
    /// With the services that every machine knows, and no host.
    ///
    /// Source: IANA's registry of service names and port numbers.
    pub fn well_known() -> Self {
        let (tcp, udp) = (Protocol::TCP, Protocol::UDP);
        let services = [
            ("ftp", 21, tcp),
            ("ssh", 22, tcp),
            ("smtp", 25, tcp),
            ("domain", 53, tcp),
            ("domain", 53, udp),
            ("http", 80, tcp),
            ("pop3", 110, tcp),
            ("ntp", 123, udp),
            ("https", 443, tcp),
            ("https", 443, udp),
            ("sip", 5060, tcp),
            ("sip", 5060, udp),
        ];
        services.into_iter().fold(Self::default(), |table, (name, port, of)| table.service(name, port, of))
    }

    /// With this host in addition.
    #[must_use]
    pub fn host(mut self, name: &str, addr: impl Into<IpAddr>) -> Self {
        self.hosts.push((name.to_owned(), addr.into()));
        self
    }

    /// With this name of a port in addition.
    #[must_use]
    pub fn service(mut self, name: &str, port: u16, protocol: Protocol) -> Self {
        self.services.push((name.to_owned(), port, protocol));
        self
    }
}

impl Resolver for FixedNames {
    fn host_name(&self, addr: IpAddr) -> Option<String> {
        self.hosts.iter().find(|(_, known)| *known == addr).map(|(name, _)| name.clone())
    }

    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.hosts.iter().find_map(|(known, addr)| match addr {
            IpAddr::V4(addr) if known == name => Some(*addr),
            _ => None,
        })
    }

    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        let mut known = self.services.iter();
        known.find(|(_, number, of)| *number == port && *of == protocol).map(|(name, ..)| name.clone())
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let mut known = self.services.iter();
        known.find(|(called, _, of)| called == name && *of == protocol).map(|(_, port, _)| *port)
    }
}

#[cfg(test)]
mod tests {
    use crate::resolver::*;

    #[test]
    fn services_are_found_by_name_alias_and_port_of_their_protocol_only() {
        let services =
            parse("# Network services\nhttp\t\t80/tcp\t\twww # web\ndomain 53/udp\nddp 2/ddp\nbad 1\n");
        let resolver = SystemResolver { services: services.into(), ..SystemResolver::default() };
        assert_eq!(resolver.port("http", Protocol::TCP), Some(80));
        assert_eq!(resolver.port("www", Protocol::TCP), Some(80));
        assert_eq!(resolver.port("http", Protocol::UDP), None);
        assert_eq!(resolver.port_name(80, Protocol::TCP).as_deref(), Some("http"));
        assert_eq!(resolver.port_name(53, Protocol::TCP), None);
        assert_eq!(resolver.port_name(53, Protocol::UDP).as_deref(), Some("domain"));
    }
    #[test]
    fn a_name_server_that_does_not_answer_is_waited_for_once_and_one_that_knows_nothing_is_asked_again() {
        let asking = Asking::default();
        assert_eq!(asking.ask(PATIENCE, || None::<u8>), None);
        assert_eq!(asking.ask(PATIENCE, || Some(1)), Some(1));
        let (never, silence) = mpsc::channel::<u8>();
        assert_eq!(asking.ask(Duration::ZERO, move || silence.recv().ok()), None);
        assert_eq!(asking.ask(PATIENCE, || Some(2)), None, "nobody is asked");
        drop(never);
    }
}
