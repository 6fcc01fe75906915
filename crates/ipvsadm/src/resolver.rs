//! Look-ups of host names and service names, in both directions.
//!
//! A command line with names needs look-ups, and so does a listing without `-n`; each address is looked up once. The
//! system's resolver blocks until a name server replies. After one look-up that takes longer than `LOOK_UP_LIMIT`, no
//! further name server is queried.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use xvs_proto::Protocol;

/// A source of names.
pub trait Resolver {
    /// The name of the host that has this address.
    fn host_name(&self, addr: IpAddr) -> Option<String>;
    /// The first IPv4 address of a host.
    fn address(&self, name: &str) -> Option<Ipv4Addr>;
    /// The name of a protocol's port.
    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String>;
    /// The port that has this name.
    fn port(&self, name: &str, protocol: Protocol) -> Option<u16>;
}

/// The names known to this system: from the C library's resolver and from `/etc/services`.
#[derive(Debug, Default)]
pub struct SystemResolver {
    services: std::cell::OnceCell<Vec<Service>>,
    look_ups: LookUps,
    /// Host names that were looked up.
    names: RefCell<HashMap<IpAddr, Option<String>>>,
}

/// Runs look-ups with a time limit.
#[derive(Debug, Default)]
struct LookUps {
    /// Whether one exceeded its limit; then no more are run.
    given_up: Cell<bool>,
}

/// The time limit of a look-up. The C library repeats its query after 5 seconds (resolv.conf(5), `timeout`).
const LOOK_UP_LIMIT: Duration = Duration::from_secs(6);

impl LookUps {
    fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        look_up: impl FnOnce() -> Option<T> + Send + 'static,
    ) -> Option<T> {
        if self.given_up.get() {
            return None;
        }
        let (sender, receiver) = mpsc::channel();
        // The thread of a look-up without a reply remains until the program ends.
        let result = thread::Builder::new()
            .spawn(move || sender.send(look_up()))
            .ok()
            .and_then(|_| receiver.recv_timeout(limit).ok());
        self.given_up.set(result.is_none());
        result.flatten()
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
        // Without the file, ports have no names, as with getservbyport(3).
        self.services.get_or_init(|| parse(&fs::read_to_string("/etc/services").unwrap_or_default()))
    }
}

impl Resolver for SystemResolver {
    fn host_name(&self, addr: IpAddr) -> Option<String> {
        if let Some(known) = self.names.borrow().get(&addr) {
            return known.clone();
        }
        let name = self.look_ups.run(LOOK_UP_LIMIT, move || {
            // A name server can reply anything; such a name would reach the terminal.
            let is_name = |name: &String| name.parse::<IpAddr>().is_err() && !name.contains(char::is_control);
            dns_lookup::lookup_addr(&addr).ok().filter(is_name)
        });
        self.names.borrow_mut().insert(addr, name.clone());
        name
    }

    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_owned();
        self.look_ups.run(LOOK_UP_LIMIT, move || {
            (name, 0).to_socket_addrs().ok()?.find_map(|found| match found.ip() {
                IpAddr::V4(addr) => Some(addr),
                IpAddr::V6(_) => None,
            })
        })
    }

    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        name_of(self.services(), port, protocol)
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        port_of(self.services(), name, protocol)
    }
}

fn name_of(services: &[Service], port: u16, protocol: Protocol) -> Option<String> {
    services.iter().find(|line| line.port == port && line.protocol == protocol)?.names.first().cloned()
}

fn port_of(services: &[Service], name: &str, protocol: Protocol) -> Option<u16> {
    services
        .iter()
        .find(|line| line.protocol == protocol && line.names.iter().any(|known| known == name))
        .map(|line| line.port)
}

/// The services in lines of `NAME PORT/PROTOCOL ALIAS… # comment`; other lines are skipped (services(5)).
fn parse(text: &str) -> Vec<Service> {
    let services = text.lines().filter_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
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
    });
    services.collect()
}

/// A fixed list of names, the same on every machine: for tests, and for the lab, which has no network.
#[derive(Debug, Clone, Default)]
pub struct FixedNames {
    hosts: Vec<(String, IpAddr)>,
    services: Vec<Service>,
}

impl FixedNames {
    /// Well-known services, and no hosts.
    ///
    /// Source: IANA's registry of service names and port numbers.
    pub fn well_known() -> Self {
        let tcp = Protocol::TCP;
        let udp = Protocol::UDP;
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

    /// Adds a host.
    #[must_use]
    pub fn host(mut self, name: &str, addr: impl Into<IpAddr>) -> Self {
        self.hosts.push((name.to_owned(), addr.into()));
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, name: &str, port: u16, protocol: Protocol) -> Self {
        self.services.push(Service { names: vec![name.to_owned()], port, protocol });
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
        name_of(&self.services, port, protocol)
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        port_of(&self.services, name, protocol)
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
    fn look_ups_continue_after_an_unknown_name_and_stop_after_one_without_a_reply() {
        let look_ups = LookUps::default();
        assert_eq!(look_ups.run(LOOK_UP_LIMIT, || None::<u8>), None);
        assert_eq!(look_ups.run(LOOK_UP_LIMIT, || Some(1)), Some(1));
        let (sender, no_reply) = mpsc::channel::<u8>();
        assert_eq!(look_ups.run(Duration::ZERO, move || no_reply.recv().ok()), None);
        assert_eq!(look_ups.run(LOOK_UP_LIMIT, || Some(2)), None, "no further look-up is run");
        drop(sender);
    }
}
