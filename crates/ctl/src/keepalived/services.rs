//! Virtual servers with their real servers: what a keepalived.conf wants to be the case.
//!
//! Pure. What keepalived leaves out with a message is left out here with a warning; what it does by mistake is not done,
//! and said in docs/limits.md. Source: keepalived's behaviour as it is written down (sections 2, 3 and 5.4). Not here:
//! checks (`checks.rs`), what becomes of their results.

use std::net::{IpAddr, SocketAddr};

use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use super::blocks::Block;
use super::checks::{self, Around, Check, TimingOptions, set};
use super::groups::{Entry, Groups};
use super::reader::Place;
use super::values::{Faults, Method, Script};
use crate::message::Command;
use crate::state::{DestinationOptions, Netmask, SchedulerFlags, ServiceOptions, Tunnel};

/// A virtual server: one service, or several of a group with the same real servers.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualServer {
    /// Where it stands.
    pub place: Place,
    /// What follows `virtual_server`.
    pub name: String,
    /// Its services, in the order in which they are made.
    pub services: Vec<(ServiceKey, ServiceOptions)>,
    /// Weight of servers that are up from which on it is well.
    pub quorum: u32,
    /// How much more it takes to be well again, and less to be no more.
    pub hysteresis: u32,
    /// Run when it comes to be well.
    pub quorum_up: Option<Script>,
    /// Run when it is well no more.
    pub quorum_down: Option<Script>,
    /// Whether scripts are told of the end when the daemon stops.
    pub omega: bool,
    /// Whether checks rest while its address is not here.
    pub ha_suspend: bool,
    /// Who serves while it is not well.
    pub sorry_server: Option<SorryServer>,
    /// Who serves while it is, never none.
    pub real_servers: Vec<RealServer>,
}

/// A server of a virtual server.
#[derive(Debug, Clone, PartialEq)]
pub struct RealServer {
    /// Where it stands.
    pub place: Place,
    /// Its endpoint; port 0: that of each service.
    pub endpoint: Endpoint,
    /// How packets reach it, and its share of them.
    pub options: DestinationOptions,
    /// Down it stays, with weight 0, instead of being removed.
    pub inhibit_on_failure: bool,
    /// Run when it comes up.
    pub notify_up: Option<Script>,
    /// Run when it goes down.
    pub notify_down: Option<Script>,
    /// It is up while all of them pass; without any it always is.
    pub checks: Vec<Check>,
}

impl RealServer {
    /// Whether it is down until its checks have passed.
    pub fn begins_down(&self) -> bool {
        self.checks.iter().any(|check| check.timing.begins_down)
    }
}

/// A server that serves while the others cannot.
#[derive(Debug, Clone, PartialEq)]
pub struct SorryServer {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub options: DestinationOptions,
    /// It stays, with weight 0, while others serve.
    pub inhibit: bool,
}

impl VirtualServer {
    /// What is the case before any check was made, as commands.
    pub fn begin(&self) -> Vec<Command> {
        let up = |server: &&RealServer| !server.begins_down();
        let weight: u64 = self.real_servers.iter().filter(up).map(|server| weight(server)).sum();
        let is_well = weight > 0 && weight >= u64::from(self.quorum) + u64::from(self.hysteresis);
        let mut commands = Vec::new();
        for (key, options) in &self.services {
            commands.push(Command::AddService { key: *key, options: options.clone() });
            let sorry = self.sorry_server.iter().filter(|sorry| !is_well || sorry.inhibit).map(|sorry| {
                let weight = Weight(u32::from(!is_well));
                (sorry.endpoint, DestinationOptions { weight, ..sorry.options.clone() })
            });
            let displaced = !is_well && self.sorry_server.is_some();
            let servers = self.real_servers.iter().filter_map(|server| {
                let serves = !server.begins_down() && !displaced;
                let weight = if serves { server.options.weight } else { Weight(0) };
                (serves || server.inhibit_on_failure)
                    .then(|| (server.endpoint, DestinationOptions { weight, ..server.options.clone() }))
            });
            commands.extend(servers.chain(sorry).map(|(endpoint, options)| Command::AddDestination {
                service: *key,
                endpoint: of_service(endpoint, *key, options.method),
                options,
            }));
        }
        commands
    }
}

fn weight(server: &RealServer) -> u64 {
    u64::from(server.options.weight.0)
}

/// A server's endpoint in one service: only by NAT and FULLNAT it may have another port than the service, and by a mark
/// only by them it has one.
fn of_service(endpoint: Endpoint, service: ServiceKey, method: ForwardingMethod) -> Endpoint {
    let port = match (service, method.masquerades()) {
        (ServiceKey::Address { endpoint: at, .. }, false) => at.port,
        (ServiceKey::Address { endpoint: at, .. }, true) if endpoint.port == 0 => at.port,
        (ServiceKey::Mark { .. }, false) => 0,
        (_, true) => endpoint.port,
    };
    Endpoint { port, ..endpoint }
}

/// Reads a `virtual_server`; `None` if nothing can be made of it.
pub fn read(block: &Block, groups: &Groups, faults: &mut Faults) -> Option<VirtualServer> {
    let refuse = |faults: &mut Faults, why: &str| {
        faults.warn(&block.place, format!("`{}`: {why}; the virtual server is left out", block.text));
    };
    let entries = match entries(block, groups) {
        Ok(entries) => entries,
        Err(why) => {
            refuse(faults, &why);
            return None;
        }
    };
    let mut draft = Draft::default();
    // A service's settings are for all of its servers, wherever they stand among them.
    for statement in block.statements().iter().filter(|statement| statement.keyword() != "real_server") {
        draft.take(statement, faults);
    }
    let servers = block.statements().iter().filter(|statement| statement.keyword() == "real_server");
    let mut servers: Vec<_> = servers.filter_map(|server| draft.real_server(server, &entries, faults)).collect();
    let services = match draft.services(&entries, &servers, block, faults) {
        Ok(services) => services,
        Err(why) => {
            refuse(faults, &why);
            return None;
        }
    };
    let families: Vec<_> = services.iter().map(|(key, _)| family(*key)).collect();
    let fits = |endpoint: &Endpoint, method| {
        method == ForwardingMethod::Tunnel || families.iter().all(|family| *family == endpoint.family())
    };
    servers.retain(|server| {
        let fits = fits(&server.endpoint, server.options.method);
        if !fits {
            faults.warn(
                &server.place,
                format!("{} is of another family than its virtual server; it is left out", server.endpoint),
            );
        }
        fits
    });
    if servers.is_empty() {
        refuse(faults, "it has no real server");
        return None;
    }
    let (quorum, hysteresis) = draft.quorum(&servers, block, faults);
    Some(VirtualServer {
        place: block.place.clone(),
        name: block.arguments().join(" "),
        services,
        quorum,
        hysteresis,
        sorry_server: draft.sorry_server(&servers).filter(|sorry| fits(&sorry.endpoint, sorry.options.method)),
        quorum_up: draft.quorum_up,
        quorum_down: draft.quorum_down,
        omega: draft.omega,
        ha_suspend: draft.ha_suspend,
        real_servers: servers,
    })
}

/// Which services a head names.
fn entries(block: &Block, groups: &Groups) -> Result<Vec<Entry>, String> {
    let words: Vec<_> = block.arguments().iter().map(String::as_str).collect();
    match words[..] {
        ["group", name] => {
            groups.find(name).map(<[Entry]>::to_vec).ok_or(format!("no group `{name}` with anything in it"))
        }
        ["fwmark", mark] => match mark.parse() {
            Ok(0) | Err(_) => Err("a mark is a number from 1 to 4294967295".to_owned()),
            Ok(mark) => Ok(vec![Entry::Mark(mark, None)]),
        },
        [addr, ref port @ ..] => {
            let addr: IpAddr = addr.parse().map_err(|_| format!("`{addr}` is not an address"))?;
            let port = port.first().map_or(Some(0), |port| port.parse().ok());
            let port = port.ok_or("a port is a number from 1 to 65535")?;
            Ok(vec![Entry::Address(addr, port)])
        }
        [] => Err("it names no address, mark or group".to_owned()),
    }
}

fn family(key: ServiceKey) -> Family {
    match key {
        ServiceKey::Address { endpoint, .. } => endpoint.family(),
        ServiceKey::Mark { family, .. } => family,
    }
}

/// What is said of a virtual server, before it is known what of it holds.
#[derive(Default)]
struct Draft {
    scheduler: Option<String>,
    method: Option<Method>,
    protocol: Option<Protocol>,
    one_packet: bool,
    flags: u8,
    persistence_seconds: Option<u32>,
    granularity: Option<Netmask>,
    engine: Option<String>,
    ip_family: Option<Family>,
    timing: TimingOptions,
    omega: bool,
    inhibit_on_failure: bool,
    quorum: Option<u32>,
    hysteresis: u32,
    quorum_up: Option<Script>,
    quorum_down: Option<Script>,
    sorry_server: Option<Endpoint>,
    sorry_method: Option<Method>,
    sorry_inhibit: bool,
    weight: Option<u32>,
    ha_suspend: bool,
    host: Option<String>,
}

/// Seconds of a persistence whose time is not said.
const PERSISTENCE_SECONDS: u32 = 360;
const PERSISTENCE_SECONDS_MAX: u64 = 31 * 24 * 60 * 60;

impl Draft {
    fn take(&mut self, block: &Block, faults: &mut Faults) {
        if block.keyword() == "alpha" {
            // Of a virtual server it has no value.
            let alone = Block { words: vec!["alpha".to_owned()], ..block.clone() };
            self.timing.take(&alone, 1, faults);
            return;
        }
        if self.timing.take(block, 1, faults) || self.take_scheduling(block, faults) {
            return;
        }
        match block.keyword() {
            "omega" => self.omega = true,
            "inhibit_on_failure" => self.inhibit_on_failure = true,
            "quorum" => set(&mut self.quorum, faults.number_u32(block, 1..=u32::MAX)),
            "hysteresis" => {
                self.hysteresis = faults.number_u32(block, 0..=u32::MAX).unwrap_or(self.hysteresis);
            }
            "quorum_up" => take_once(&mut self.quorum_up, block, faults),
            "quorum_down" => take_once(&mut self.quorum_down, block, faults),
            "sorry_server" => set(&mut self.sorry_server, endpoint(block, faults)),
            "sorry_server_inhibit" => self.sorry_inhibit = true,
            "sorry_server_lvs_method" => set(&mut self.sorry_method, faults.method(block)),
            "weight" => set(&mut self.weight, faults.number_u32(block, 1..=i32::MAX as u32)),
            "ha_suspend" => self.ha_suspend = true,
            "virtualhost" => set(&mut self.host, faults.argument(block).map(str::to_owned)),
            // What only mails and SNMP ask for; what every service of ours has.
            "smtp_alert" | "snmp_name" | "hashed" => {}
            _ => faults.unknown(block),
        }
    }

    fn take_scheduling(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match block.keyword() {
            "lvs_sched" | "lb_algo" => {
                let known = |name: &&str| xvs_sched::scheduler::names().any(|known| known == *name) && *name != "none";
                match faults.argument(block).filter(known) {
                    Some(name) => self.scheduler = Some(name.to_owned()),
                    None => faults.refuse(block, "no scheduler of this name"),
                }
            }
            "lvs_method" | "lb_kind" => set(&mut self.method, faults.method(block)),
            "protocol" => match faults.argument(block).map(str::to_ascii_uppercase).as_deref() {
                Some("TCP") => self.protocol = Some(Protocol::TCP),
                Some("UDP") => self.protocol = Some(Protocol::UDP),
                Some("SCTP") => self.protocol = Some(Protocol::SCTP),
                Some(_) => faults.refuse(block, "a protocol is TCP, UDP or SCTP"),
                None => {}
            },
            "ops" => self.one_packet = true,
            "flag-1" | "sh-fallback" | "mh-fallback" => self.flags |= 1,
            "flag-2" | "sh-port" | "mh-port" => self.flags |= 2,
            "flag-3" => self.flags |= 4,
            "persistence_timeout" => self.take_persistence(block, faults),
            "persistence_granularity" => {
                set(&mut self.granularity, granularity(block, faults));
                self.persistence_seconds.get_or_insert(PERSISTENCE_SECONDS);
            }
            "persistence_engine" => set(&mut self.engine, faults.argument(block).map(str::to_owned)),
            "ip_family" => match faults.argument(block) {
                Some("inet") => self.ip_family = Some(Family::V4),
                Some("inet6") => self.ip_family = Some(Family::V6),
                Some(_) => faults.refuse(block, "a family is inet or inet6"),
                None => {}
            },
            _ => return false,
        }
        true
    }

    fn take_persistence(&mut self, block: &Block, faults: &mut Faults) {
        match block.arguments().first().map(String::as_str) {
            None => self.persistence_seconds = Some(PERSISTENCE_SECONDS),
            // Not persistent, as files say that are older than the word.
            Some("0") => faults.warn(&block.place, "`persistence_timeout 0`: taken for no persistence"),
            Some(_) => {
                let seconds = faults.number(block, 1..=PERSISTENCE_SECONDS_MAX);
                set(&mut self.persistence_seconds, seconds.map(|seconds| seconds as u32));
            }
        }
    }

    /// The services of these entries, each once.
    fn services(
        &self,
        entries: &[Entry],
        servers: &[RealServer],
        block: &Block,
        faults: &mut Faults,
    ) -> Result<Vec<(ServiceKey, ServiceOptions)>, String> {
        let has_addresses = entries.iter().any(|entry| matches!(entry, Entry::Address(..)));
        let protocol = match self.protocol {
            Some(protocol) => protocol,
            None => {
                if has_addresses {
                    faults.warn(&block.place, format!("`{}` names no protocol: UDP", block.text));
                }
                Protocol::UDP
            }
        };
        let any_port = entries.iter().any(|entry| matches!(entry, Entry::Address(_, 0)));
        let persistence =
            self.persistence_seconds.or(any_port.then_some(PERSISTENCE_SECONDS));
        let one_packet = self.one_packet && (protocol == Protocol::UDP || !has_addresses);
        if self.one_packet && !one_packet {
            faults.warn(&block.place, format!("`{}`: `ops` is for UDP only; it is left out", block.text));
        }
        let of_marks = self.family_of_marks(entries, servers);
        let mut services: Vec<(ServiceKey, ServiceOptions)> = Vec::new();
        for entry in entries {
            let key = match *entry {
                Entry::Address(addr, port) => {
                    ServiceKey::Address { protocol, endpoint: Endpoint::new(addr, port) }
                }
                Entry::Mark(mark, family) => ServiceKey::Mark { mark, family: family.unwrap_or(of_marks) },
            };
            let family = family(key);
            let netmask = match self.granularity {
                Some(mask @ Netmask::V4(_)) if family == Family::V4 => mask,
                Some(mask @ Netmask::V6(_)) if family == Family::V6 => mask,
                Some(_) => return Err("its persistence_granularity is of another family".to_owned()),
                None => Netmask::host(family),
            };
            let options = ServiceOptions {
                scheduler: self.scheduler.clone().unwrap_or_else(|| "wlc".to_owned()),
                flags: SchedulerFlags(self.flags),
                persistence_timeout_seconds: persistence,
                netmask,
                persistence_engine: self.engine.clone().filter(|_| persistence.is_some()),
                one_packet,
                ..ServiceOptions::of(family)
            };
            if !services.iter().any(|(known, _)| *known == key) {
                services.push((key, options));
            }
        }
        Ok(services)
    }

    /// The family of marks that do not say theirs.
    fn family_of_marks(&self, entries: &[Entry], servers: &[RealServer]) -> Family {
        let of_addresses = entries.iter().find_map(|entry| match entry {
            Entry::Address(addr, _) => Some(Family::of(*addr)),
            Entry::Mark(..) => None,
        });
        let of_granularity = match self.granularity {
            Some(Netmask::V6(_)) => Some(Family::V6),
            _ => None,
        };
        let plain = servers.iter().find(|server| server.options.method != ForwardingMethod::Tunnel);
        let all_v6 = !servers.is_empty() && servers.iter().all(|server| server.endpoint.family() == Family::V6);
        self.ip_family
            .or(of_addresses)
            .or(of_granularity)
            .or(plain.map(|server| server.endpoint.family()))
            .unwrap_or(if all_v6 { Family::V6 } else { Family::V4 })
    }

    fn quorum(&self, servers: &[RealServer], block: &Block, faults: &mut Faults) -> (u32, u32) {
        let weight: u64 = servers.iter().map(weight).sum();
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let mut quorum = self.quorum.unwrap_or(1);
        if quorum > weight {
            if self.quorum.is_some() {
                faults.warn(
                    &block.place,
                    format!("`{}`: a quorum of {quorum} is more than all weights: {weight}", block.text),
                );
            }
            quorum = weight;
        }
        let hysteresis = self.hysteresis.min(quorum.saturating_sub(1));
        if hysteresis < self.hysteresis {
            faults.warn(&block.place, format!("`{}`: its hysteresis is lowered to {hysteresis}", block.text));
        }
        if quorum.saturating_add(hysteresis) > weight {
            faults.warn(
                &block.place,
                format!(
                    "`{}`: quorum and hysteresis are more than all weights, {weight}: it can never be well",
                    block.text
                ),
            );
        }
        (quorum, hysteresis)
    }

    fn sorry_server(&self, servers: &[RealServer]) -> Option<SorryServer> {
        let endpoint = self.sorry_server?;
        let (method, tunnel) = self.sorry_method.or(self.method).unwrap_or(NAT);
        // One that is a real server too stays as that does.
        let same = servers.iter().find(|server| server.endpoint == endpoint);
        Some(SorryServer {
            endpoint,
            options: DestinationOptions { method, tunnel, ..DestinationOptions::default() },
            inhibit: same.map_or(self.sorry_inhibit, |server| server.inhibit_on_failure),
        })
    }

    fn real_server(&self, block: &Block, entries: &[Entry], faults: &mut Faults) -> Option<RealServer> {
        let mut endpoint = endpoint(block, faults)?;
        let mut timing = TimingOptions::default();
        let (mut method, mut weight, mut inhibit, mut host) = (None, None, None, None);
        let (mut upper, mut lower) = (0, 0);
        let (mut notify_up, mut notify_down) = (None, None);
        let mut checkers = Vec::new();
        for statement in block.statements() {
            if timing.take(statement, 1, faults) {
                continue;
            }
            match statement.keyword() {
                "weight" => set(&mut weight, faults.number_u32(statement, 0..=i32::MAX as u32)),
                "lvs_method" | "lb_kind" => set(&mut method, faults.method(statement)),
                "uthreshold" => upper = faults.number_u32(statement, 0..=u32::MAX).unwrap_or(upper),
                "lthreshold" => lower = faults.number_u32(statement, 0..=u32::MAX).unwrap_or(lower),
                "inhibit_on_failure" => set(&mut inhibit, faults.switch(statement)),
                "notify_up" => take_once(&mut notify_up, statement, faults),
                "notify_down" => take_once(&mut notify_down, statement, faults),
                "virtualhost" => set(&mut host, faults.argument(statement).map(str::to_owned)),
                "smtp_alert" | "snmp_name" => {}
                "BFD_CHECK" => faults.refuse(statement, "there is no BFD here"),
                _ => checkers.push(statement),
            }
        }
        let (method, tunnel) = method.or(self.method).unwrap_or(NAT);
        // A port that is not said is the service's, for checks too.
        if let ([Entry::Address(_, port)], true) = (entries, endpoint.port == 0) {
            endpoint.port = *port;
        }
        if let ([Entry::Address(_, port)], false) = (entries, method.masquerades())
            && endpoint.port != *port
        {
            faults.warn(
                &block.place,
                format!("`{}`: by this method its port is the virtual server's, {port}", block.text),
            );
            endpoint.port = *port;
        }
        let around = Around {
            endpoint: SocketAddr::new(endpoint.addr, endpoint.port),
            timing: timing.or(self.timing),
            service_interval: self.timing.interval(),
            host: host.or_else(|| self.host.clone()),
            service_host: self.host.clone(),
        };
        let mut read = |checker: &&Block| match checks::read(checker, &around, faults) {
            Some(check) => check,
            None => {
                faults.unknown(checker);
                None
            }
        };
        let checks = checkers.iter().filter_map(&mut read).collect();
        Some(RealServer {
            place: block.place.clone(),
            endpoint,
            options: DestinationOptions {
                method,
                weight: Weight(weight.or(self.weight).unwrap_or(1)),
                upper_threshold: upper,
                lower_threshold: lower,
                tunnel,
            },
            inhibit_on_failure: inhibit.unwrap_or(self.inhibit_on_failure),
            notify_up,
            notify_down,
            checks,
        })
    }
}

/// What keepalived takes if no method is said.
const NAT: Method = (ForwardingMethod::Nat, Tunnel::Ipip);

/// Takes a script that is not there yet.
fn take_once(place: &mut Option<Script>, block: &Block, faults: &mut Faults) {
    match place {
        None => *place = faults.script(block),
        Some(_) => faults.refuse(block, "there is one already"),
    }
}

/// An address and perhaps a port.
fn endpoint(block: &Block, faults: &mut Faults) -> Option<Endpoint> {
    let addr = faults.address(block)?;
    let port = block.arguments().get(1).map_or(Some(0), |port| port.parse().ok());
    if port.is_none() {
        faults.refuse(block, "a port is a number from 1 to 65535");
    }
    Some(Endpoint::new(addr, port?))
}

fn granularity(block: &Block, faults: &mut Faults) -> Option<Netmask> {
    let text = faults.argument(block)?;
    let mask = text.parse().map(Netmask::V4).ok();
    let prefix = text.parse().ok().filter(|bits| (1..=128).contains(bits)).map(Netmask::V6);
    let mask = mask.or(prefix);
    if mask.is_none() {
        faults.refuse(block, "not an IPv4 netmask and not the length of an IPv6 prefix");
    }
    mask
}
