//! Reader of the facts: files of `/proc`, netlink, ethtool's requests, ARP, and the daemon if one runs.
//!
//! Everything is read in the network namespace of the calling thread. A fact that cannot be read becomes a finding, and
//! the others are still read. Cost: a dump of the kernel's tables and, for ARP and unresolved neighbours, about a
//! second.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, iter, thread};

use clap::Args;
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use xvs_ctl::bonds::{bond_of, choose};
use xvs_ctl::config::{Config, KernelMode};
use xvs_ctl::credentials::Credentials;
use xvs_health::initial_state::initial_state;
use xvs_health::prepare::Prepared;
use xvs_host::cores::cores_available;
use xvs_host::memory::{HugePages, cgroup_limit};
use xvs_host::netfilter;
use xvs_host::network::neighbours::Neighbours;
use xvs_host::network::netlink::Netlink;
use xvs_host::network::{NetworkFollower, path_mtu};
use xvs_host::notice::Notice;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::{rules_of, state_of};
use xvs_model::health_checks::fault::Severity;
use xvs_model::protocol::client::{Director, Failure, default_socket};
use xvs_model::protocol::question;
use xvs_proto::network::Network;
use xvs_realserver::Realserver;
use xvs_xdp::device::Device;

use crate::doctor::addresses::{IGNORE, REDIRECTS, SOURCE};
use crate::doctor::arp::who_has;
use crate::doctor::clocks;
use crate::doctor::facts::{Answer, Facts, Interface, Memory, Service, TRANSPARENT, conf};
use crate::doctor::finding::Finding;
use crate::doctor::firewall;
use crate::doctor::servers::{OWN, RESERVED, next_hops};
use crate::output::late_reply;
use crate::servers::realserver::RECORDS;

/// The arguments that say which facts are read.
#[derive(Debug, Clone, Args)]
pub(super) struct Asked {
    /// Check this interface; may be given several times [default: those of xvsd, otherwise of the file]
    #[arg(long = "interface", value_name = "IFACE")]
    pub interfaces: Vec<String>,
    /// Check this virtual address in addition to those of services; may be given several times
    #[arg(long = "vip", value_name = "ADDRESS")]
    pub addresses: Vec<IpAddr>,
    /// Compare the clock of this other director; may be given several times
    #[arg(long = "director", value_name = "ADDRESS")]
    pub directors: Vec<IpAddr>,
    /// Read this xvs.toml: its interfaces, sizes and rules
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Reads all facts.
///
/// # Errors
/// The kernel's network cannot be read at all.
pub(super) fn gather(asked: &Asked) -> Result<Facts, Box<dyn Error>> {
    let mut facts = Facts {
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        mtu_limit: xvs_xdp::mtu_limit().unwrap_or_default(),
        cores: cores_available(),
        memory: memory(),
        kernel_services: kernel_services(&text("/proc/net/ip_vs")),
        addresses: asked.addresses.clone(),
        ..Facts::default()
    };
    if !geteuid().is_root() {
        facts.faults.push(
            Finding::of("rights", "")
                .warn("without root, no ARP request is sent and other namespaces are not read")
                .mend("sudo xvs doctor"),
        );
    }
    read_interfaces(&mut facts, asked)?;
    facts.settings = settings(&facts);
    match Realserver::status(Path::new(RECORDS), None) {
        Ok(status) => facts.real_server = status,
        Err(error) => facts.faults.push(Finding::of("real server", "").warn(error)),
    }
    read_netfilter(&mut facts, geteuid().is_root());
    ask_the_kernel(&mut facts).map_err(unread)?;
    ask_the_wire(&mut facts);
    facts.clocks = asked.directors.iter().map(|addr| clocks::ask(*addr)).collect();
    // By now, the neighbours requested above have answered or will not.
    facts.network = read_network()?;
    Ok(facts)
}

/// Reads the facts of `--tune` alone: the daemon, the file, links and interfaces. Sends no packet.
///
/// # Errors
/// The kernel's network cannot be read at all.
pub(super) fn gather_interfaces(asked: &Asked) -> Result<Facts, Box<dyn Error>> {
    let mut facts = Facts { cores: cores_available(), ..Facts::default() };
    read_interfaces(&mut facts, asked)?;
    Ok(facts)
}

fn read_interfaces(facts: &mut Facts, asked: &Asked) -> Result<(), Box<dyn Error>> {
    ask_the_daemon(facts);
    if let Some(path) = &asked.config
        && let Err(error) = read_the_config(facts, path)
    {
        facts.faults.push(Finding::of("config", "").fail(error));
    }
    facts.network = read_network()?;
    facts.interfaces = interfaces(facts, &asked.interfaces);
    Ok(())
}

fn read_network() -> Result<Network, Box<dyn Error>> {
    Ok(Network::clone(&NetworkFollower::open().map_err(unread)?.view().network))
}

fn unread(error: io::Error) -> Box<dyn Error> {
    format!("the kernel's network cannot be read: {error}").into()
}

fn ask_the_daemon(facts: &mut Facts) {
    let read = match late_reply::connect(&default_socket()) {
        Ok(mut client) => read_daemon(facts, &mut client),
        Err(error) => {
            // The rest of the text describes how to start a daemon.
            facts.no_daemon = error.to_string().split(';').next().unwrap_or_default().to_owned();
            return;
        }
    };
    if let Err(error) = read {
        facts.no_daemon = "xvsd is running, but its report could not be read".to_owned();
        facts.faults.push(Finding::of("daemon", "").seen(default_socket().display()).fail(error));
    }
}

fn read_daemon(facts: &mut Facts, daemon: &mut dyn Director) -> Result<(), Failure> {
    // Services and local addresses by one request: those of one moment.
    note_rules(facts, &state_of(question::rules().ask(daemon)?.rules)?);
    facts.daemon = Some(question::examine().ask(daemon)?);
    for setting in question::settings().ask(daemon)? {
        match setting.key.as_str() {
            "steered_endpoints" => {
                facts.steered_endpoints = setting.value.as_u64().and_then(|value| value.try_into().ok());
            }
            "kernel.rules" => facts.follows_kernel = setting.value == "follow",
            _ => {}
        }
    }
    Ok(())
}

/// Notes the services and local addresses of a state.
fn note_rules(facts: &mut Facts, state: &State) {
    facts.services = state
        .services()
        .map(|(key, service)| Service { key: *key, servers: service.destinations.clone() })
        .collect();
    facts.locals = state.locals().to_vec();
}

/// Reads the file and the files that it names, and their services unless a daemon has reported services.
fn read_the_config(facts: &mut Facts, path: &Path) -> Result<(), Box<dyn Error>> {
    facts.config = Config::read(path)?;
    facts.follows_kernel = facts.config.kernel.rules == KernelMode::Follow;
    let (state, faults) = read_named_files(&facts.config)?;
    facts.faults.extend(faults);
    if facts.daemon.is_none() {
        note_rules(facts, &state);
    }
    Ok(())
}

/// The state with which xvsd would start from this configuration, and what it would leave out.
///
/// # Errors
///
/// xvsd would refuse the configuration.
fn read_named_files(config: &Config) -> Result<(State, Vec<Finding>), Box<dyn Error>> {
    // A file without interfaces is accepted: arguments may name them.
    match config.check() {
        Err(error) if !config.interfaces.is_empty() => return Err(error.into()),
        _ => {}
    }
    let rules = config.read_rules()?;
    if let Some(certificate) = Credentials::read(config)?.certificate {
        certificate.accepted(|chain, key| {
            ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(chain, key)
        })?;
    }
    let mut state = State::default();
    let mut faults = Vec::new();
    for line in rules {
        if let Err(error) = state.apply(&line.command) {
            let file = config.rules.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            faults.push(Finding::of("rules", format!("{file} line {}", line.number)).fail(error));
        }
    }
    if let Some(path) = &config.keepalived.file {
        let id = config.keepalived.config_id.clone().unwrap_or_else(xvs_keepalived::host);
        let file = path.display();
        let read =
            xvs_keepalived::read(path, &id).map_err(|error| format!("keepalived file {file}: {error}"))?;
        match Prepared::of(read) {
            Ok(prepared) => {
                for rule in rules_of(&initial_state(&prepared.configuration).0) {
                    // The other rules have been examined.
                    let _ = state.apply(&Command::Add(rule));
                }
            }
            Err(refused) => {
                let why = refused
                    .faults
                    .iter()
                    .find(|fault| fault.severity == Severity::Error)
                    .map(|fault| format!("xvsd refuses the file; its first error is {fault}"))
                    .unwrap_or_default();
                let check = format!("xvs check --keepalived {file}");
                faults.push(Finding::of("keepalived", file).fail(why).mend(check));
            }
        }
    }
    Ok((state, faults))
}

fn interfaces(facts: &mut Facts, named: &[String]) -> Vec<Interface> {
    let attached = facts.daemon.iter().flat_map(|daemon| &daemon.interfaces).map(|one| one.name.clone());
    let configured = facts.config.interfaces.names().map(str::to_owned);
    let names = [named.to_vec(), attached.collect(), configured.collect()]
        .into_iter()
        .find(|names| !names.is_empty())
        .unwrap_or_default();
    if names.is_empty() {
        let candidates: Vec<_> = facts.network.links.iter().map(|link| link.name.as_str()).collect();
        facts.faults.push(
            Finding::of("interface", "")
                .warn(format!(
                    "none was named, so none was checked; this machine has {}",
                    candidates.join(", ")
                ))
                .mend("xvs doctor --interface IFACE"),
        );
    }
    let mut interfaces = Vec::new();
    for name in names {
        match choose(&name, &facts.network.links) {
            Ok(chosen) => interfaces.extend(chosen.into_iter().map(|(name, _)| interface(name, None))),
            Err(why) => {
                let attached = facts.daemon.as_ref().and_then(|daemon| daemon.interface(&name));
                let is_of_bond = attached.is_some_and(|attached| attached.bond.is_some());
                interfaces.push(interface(name, (!is_of_bond).then(|| why.to_string())));
            }
        }
    }
    interfaces
}

fn interface(name: String, refused: Option<String>) -> Interface {
    Interface { device: Device::look(&name).map_err(|error| error.to_string()), name, refused }
}

/// Reads netfilter's rules; without root they cannot be read.
fn read_netfilter(facts: &mut Facts, is_root: bool) {
    if facts.services.is_empty() {
        return;
    }
    let unread = if is_root {
        match netfilter::read_all() {
            Ok(found) => {
                facts.netfilter = found.tables;
                found.warnings.iter().map(Notice::to_string).collect()
            }
            Err(error) => vec![format!("netfilter's rules cannot be read: {error}")],
        }
    } else {
        vec!["netfilter's rules were not read: that needs root".to_owned()]
    };
    facts.faults.extend(unread.into_iter().map(|why| Finding::of(firewall::CHECK, "").warn(why)));
}

/// Has the kernel resolve unknown next hops, and reads its path MTUs to real servers.
fn ask_the_kernel(facts: &mut Facts) -> io::Result<()> {
    let mut unresolved = BTreeSet::from_iter(next_hops(facts));
    for neighbour in &facts.network.neighbours {
        unresolved.remove(&(neighbour.ifindex, neighbour.addr));
    }
    if !unresolved.is_empty() && geteuid().is_root() {
        // A next hop that the kernel refuses stays unresolved, and the check of neighbours reports it.
        Neighbours::open()?.resolve(&unresolved)?;
    }
    let mut netlink = Netlink::open()?;
    let servers: BTreeSet<_> = facts.servers().map(|(_, server)| server.endpoint.addr).collect();
    for addr in servers {
        // The kernel answers with an error if it has no route, or one that refuses packets.
        let Ok(mtu) = path_mtu(&mut netlink, addr) else { continue };
        facts.kernel_routes.insert(addr);
        facts.kernel_mtus.extend(mtu.map(|mtu| (addr, mtu)));
    }
    Ok(())
}

/// Sends ARP requests for the virtual addresses on all links at once, and collects the answers.
fn ask_the_wire(facts: &mut Facts) {
    let mut asked: Vec<Ipv4Addr> = facts
        .virtual_addresses()
        .into_iter()
        .filter_map(|addr| match addr {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
        .collect();
    let hops: BTreeSet<_> = next_hops(facts).into_iter().map(|(ifindex, _)| ifindex).collect();
    if !geteuid().is_root() || asked.is_empty() && hops.is_empty() {
        return;
    }
    if asked.len() > MOST_ADDRESSES {
        facts.faults.push(
            Finding::of("arp", "").warn(format!(
                "of {} virtual addresses, the first {MOST_ADDRESSES} were probed",
                asked.len()
            )),
        );
        asked.truncate(MOST_ADDRESSES);
    }
    let links: Vec<_> = facts
        .network
        .links
        .iter()
        .filter(|link| {
            // The members of a bond are not examined: the bond has the addresses.
            let named = facts.names(&link.name) && bond_of(link, &facts.network.links).is_none();
            (named || hops.contains(&link.ifindex)) && link.up && link.mac.0 != [0; 6]
        })
        .collect();
    let heard: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = links
            .iter()
            .map(|link| scope.spawn(|| who_has(link.ifindex, link.mac, &asked, PATIENCE)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Ok(Vec::new()))).collect()
    });
    let own: BTreeSet<_> = facts.network.links.iter().map(|link| link.mac).collect();
    for (link, heard) in links.iter().zip(heard) {
        match heard {
            Ok(mut heard) => {
                heard.retain(|(_, mac)| !own.contains(mac));
                facts.probed.push(link.name.clone());
                let link = &link.name;
                facts.answers.extend(heard.into_iter().map(|(addr, mac)| Answer {
                    addr,
                    link: link.clone(),
                    mac,
                }));
            }
            Err(error) => {
                facts.faults.push(Finding::of("arp", &link.name).warn(format!("no ARP probe: {error}")));
            }
        }
    }
}

fn settings(facts: &Facts) -> BTreeMap<String, String> {
    let mut paths =
        ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", RESERVED, OWN].map(str::to_owned).to_vec();
    for interface in iter::once("all").chain(facts.links().map(|link| link.name.as_str())) {
        paths.extend([IGNORE, REDIRECTS, SOURCE].map(|setting| conf(interface, setting)));
    }
    let mut settings = BTreeMap::new();
    for path in paths {
        if let Ok(value) = fs::read_to_string(format!("/proc/sys/{path}")) {
            settings.insert(path, value);
        }
    }
    settings
}

fn memory() -> Memory {
    Memory {
        may_lock: capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::IPC_LOCK)),
        lock_limit_bytes: getrlimit(Resource::Memlock).maximum,
        huge_pages: HugePages::read(),
        transparent: text(TRANSPARENT),
        cgroup_limit: cgroup_limit(),
    }
}

/// The number of services in `/proc/net/ip_vs`: lines that begin with a protocol or FWM, after three lines of heading.
fn kernel_services(listing: &str) -> usize {
    listing.lines().skip(3).filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase())).count()
}

fn text(path: &str) -> String {
    // An absent file is read as empty.
    fs::read_to_string(path).unwrap_or_default()
}

/// How long to wait for ARP answers.
const PATIENCE: Duration = Duration::from_millis(750);
/// Maximum number of addresses that are probed on each link.
const MOST_ADDRESSES: usize = 64;

#[cfg(test)]
mod tests {
    use xvs_sched::ForwardingMethod;

    use crate::doctor::facts::tests::{facts, serve, web};
    use crate::doctor::gather::*;

    #[test]
    fn without_root_the_rules_of_netfilter_are_reported_as_unread_and_not_as_harmless() {
        let mut facts = serve(facts(), web(), ForwardingMethod::Nat);
        read_netfilter(&mut facts, false);
        assert_eq!(facts.faults[0].found, "netfilter's rules were not read: that needs root");
        assert_eq!(firewall::firewall(&facts), []);
    }

    #[test]
    fn services_are_read_from_proc() {
        let listing = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  C6336464:0050 rr
  -> C000020B:0050      Masq    1      0          0
FWM  00000001 wlc
";
        assert_eq!(kernel_services(listing), 2);
        assert_eq!(kernel_services(""), 0);
    }
}
