//! The warnings in a status report.
//!
//! Each names its object, the problem and the next step. If there are many of one kind, the first are named and the
//! others counted. The warnings about keepalived.conf and its checks are in `warnings/health.rs`.

pub(super) mod health;

use std::collections::{BTreeSet, HashSet};
use std::fmt::Display;
use std::net::IpAddr;

use xvs_dataplane::egress::Path;
use xvs_dataplane::snapshot::{Encapsulation, Service, Snapshot};
use xvs_dataplane::verdict::DropReason;
use xvs_host::network::card::CardLosses;
use xvs_ipvsadm::fallback_command;
use xvs_model::report::health::{HealthReport, VirtualServerHealth};
use xvs_model::report::response::{ResponseTimes, short_time};
use xvs_model::report::status::{InterfaceStatus, LinkState};
use xvs_model::report::unanswered::{REPORTED, Seen, Unanswered};
use xvs_model::report::warning::Warning;
use xvs_model::report::warning::WarningKind::{self, *};
use xvs_proto::network::{LinkKind, Network, RouteAction, Table};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ClientAddress, ForwardingMethod, Reserved, ServiceKey};

use crate::connection_log::Logged;
use crate::history::{Reason, silent_servers};
use crate::log::Losses;
use crate::status::services::{Obstacle, ServerReport, ServiceReport, Services};
use crate::status::warnings::health::*;
use crate::status::{Readings, percent};

impl Readings<'_> {
    /// All warnings, in the order of their importance.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let mut warnings: Vec<_> = self.facts.interfaces.iter().filter_map(interface_warning).collect();
        warnings.extend(self.unattached.iter().cloned());
        warnings.extend(self.health.and_then(refused_warning));
        warnings.extend(quorum_warnings(self.health));
        warnings.extend(self.troubles.unusable_warnings(self.health));
        let Troubles { refused, unreachable, unanswered, slow, .. } = &self.troubles;
        warnings.extend(of_servers(
            HashShareRefused,
            refused,
            "real servers keep their share of a hash without getting connections; see `xvsadm -Ln`",
        ));
        warnings.extend(of_servers(
            ServerUnreachable,
            unreachable,
            "real servers cannot be reached; see `ip route`, `ip neigh`",
        ));
        warnings.extend(unchecked_warnings(self.health));
        warnings.extend(agent_warnings(self.health));
        warnings.extend(down_warnings(self.health));
        warnings.extend(fault_warning(self.health));
        warnings.extend(local_address_warnings(&self.snapshot, &self.facts.network));
        warnings.extend(vrf_warnings(&self.snapshot, &self.facts.network));
        warnings.extend(unanswered_warnings(unanswered));
        warnings.extend(of_servers(
            ServerSlow,
            slow,
            "real servers reply much later than the others of their service; see `xvs top`",
        ));
        warnings.extend(one_packet_warnings(&self.snapshot));
        warnings.extend(mark_warnings(&self.snapshot));
        warnings.extend(client_address_warnings(&self.snapshot));
        warnings.extend(table_warning(self.live, self.size));
        for (worker, percent) in self.busy_percent.iter().enumerate() {
            warnings.extend(busy_warning(worker, *percent));
        }
        for (reason, packets) in Reason::all().zip(&self.recent) {
            warnings.extend(drop_warning(reason, *packets, &self.snapshot));
        }
        for (interface, lost) in self.facts.interfaces.iter().zip(&self.recent_cards) {
            warnings.extend(card_warnings(interface, lost));
        }
        warnings.extend(self.facts.start_warnings.iter().cloned());
        warnings.extend(xvs_helper::client::warning().map(|text| Warning::new(Helper, "", text)));
        warnings.extend(self.facts.warnings.iter().cloned());
        warnings.extend(self.shared.fleet.get().into_iter().flat_map(|fleet| fleet.warnings()));
        warnings.extend(self.shared.log.iter().filter_map(Losses::warning));
        warnings.extend(self.shared.connection_log.iter().flat_map(Logged::warnings));
        warnings
    }
}

/// The services whose clients get no answer, or some of them none.
#[derive(Default)]
pub(super) struct Troubles {
    /// Services without a usable real server, each with the reason.
    pub(super) unusable: Vec<(ServiceKey, &'static str)>,
    /// Real servers that get no new connections, although their service's hash leads clients to them alone.
    refused: Vec<ServerTrouble<String>>,
    /// Real servers that cannot be reached, of services that have others.
    unreachable: Vec<ServerTrouble<&'static str>>,
    /// Real servers that can be reached as far as is known, and answer no client.
    unanswered: Vec<Unanswered>,
    /// Real servers that take much longer than the others of their service.
    slow: Vec<ServerTrouble<String>>,
}

/// A real server of a service, with the rest of the sentence about it.
type ServerTrouble<W> = (ServiceKey, Endpoint, W);

impl Troubles {
    /// The warnings of all services. `silent` are the real servers whose next hop has not answered for some seconds.
    pub(super) fn of(services: &Services<'_>, silent: &BTreeSet<IpAddr>, network: &Network) -> Self {
        let mut troubles = Self::default();
        for report in services.reports() {
            let key = report.service.key;
            let unusable = report.why_unusable(|server| server.lasting_obstacle(silent));
            troubles.unusable.extend(unusable.map(|why| (key, why)));
            if unusable.is_none() {
                troubles.refused.extend(refused_by_hash(&report));
            }
            troubles.slow.extend(slow(&report));
            for server in &report.servers {
                let what = match server.lasting_obstacle(silent) {
                    Some(Obstacle::NoRoute) => {
                        "gets clients, who get no answer: it has no route by an attached interface; see `ip route`"
                    }
                    Some(Obstacle::NoNeighbour) => {
                        "gets clients, who get no answer: it has a next hop that does not answer; see `ip neigh`, and \
                         whether it runs"
                    }
                    Some(_) => continue,
                    None => {
                        troubles.unanswered.extend(unanswered(services, report.service, server, network));
                        continue;
                    }
                };
                if unusable.is_none() {
                    troubles.unreachable.push((key, server.member.endpoint, what));
                }
            }
        }
        troubles.unusable.sort_unstable();
        troubles.refused.sort_unstable();
        troubles.unreachable.sort_unstable();
        troubles.slow.sort_unstable();
        troubles.unanswered.retain(|one| one.connections >= REPORTED);
        troubles.unanswered.sort_by_key(|one| (one.service, one.endpoint));
        troubles
    }

    /// The warnings about services without a usable real server. A service of a virtual server without quorum is left
    /// out: the virtual server has a warning.
    fn unusable_warnings(&self, health: Option<&HealthReport>) -> Vec<Warning> {
        let lost: HashSet<_> = without_quorum(health).flat_map(VirtualServerHealth::keys).collect();
        let others: Vec<_> = self.unusable.iter().filter(|(service, _)| !lost.contains(service)).collect();
        let more = "services have no real server that can take a connection; see `xvsadm -Ln`";
        first_of(NoUsableServer, more, others, |(service, why)| (service, format!("{service} {why}")))
    }
}

/// The warnings about real servers that answer no client.
fn unanswered_warnings(all: &[Unanswered]) -> Vec<Warning> {
    all.iter()
        .take(NAMED)
        .map(|one| {
            let kind = match one.seen {
                Seen::Neighbour(_) => NeighboursUnanswered,
                _ => ServerUnanswered,
            };
            Warning::new(kind, format_args!("{} {}", one.service, one.endpoint), one.warning())
        })
        .chain(more_of(ServerUnanswered, all.len(), "real servers answer no client; see `xvs top`"))
        .collect()
}

/// The warnings of this kind about real servers of services.
fn of_servers(kind: WarningKind, servers: &[ServerTrouble<impl Display>], more: &str) -> Vec<Warning> {
    first_of(kind, more, servers, |(service, endpoint, what)| {
        (format!("{service} {endpoint}"), format!("{service}: {endpoint} {what}"))
    })
}

/// The real servers of a service whose part of a hash table has no usable real server.
fn refused_by_hash(report: &ServiceReport<'_>) -> impl Iterator<Item = ServerTrouble<String>> {
    let Service { key, scheduler, rule, .. } = report.service;
    report.servers.iter().enumerate().filter_map(move |(position, server)| {
        let standing = match server.obstacle? {
            Obstacle::Quiescent => "has weight 0",
            Obstacle::Disabled => "is disabled",
            Obstacle::Overloaded => "is overloaded",
            Obstacle::NoRoute | Obstacle::NoNeighbour => return None,
        };
        let Reserved { place, own, all } =
            scheduler.reserved(position).filter(|reserved| reserved.own > 0)?;
        let step = match fallback_command(rule) {
            Some(command) => format!("`{command}` gives them another real server"),
            None => format!("`xvsadm -d` leaves its {place}s to the others"),
        };
        Some((
            *key,
            server.member.endpoint,
            format!("{standing} and keeps {own} of {all} {place}s, whose new clients are refused; {step}"),
        ))
    })
}

/// The real servers of a service whose median time until the first reply was at least four times that of the others in
/// the last full minute. Times below a millisecond mean little: a core that wakes up takes as long.
fn slow(report: &ServiceReport<'_>) -> Vec<ServerTrouble<String>> {
    let measured: Vec<_> = report
        .servers
        .iter()
        .filter_map(|server| Some((server.member.endpoint, server.responses?)))
        .collect();
    let mut slow = Vec::new();
    for (index, (endpoint, own)) in measured.iter().enumerate() {
        let others = measured
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .fold(ResponseTimes::default(), |sum, (_, (_, times))| sum.with(times));
        if own.count().min(others.count()) < SLOW_CONNECTIONS {
            continue;
        }
        let (Some(own), Some(others)) = (own.summary(), others.summary()) else { continue };
        if own.median_micros >= SLOW_MICROS && own.median_micros >= SLOW_TIMES * others.median_micros {
            let what = format!(
                "takes {} until its first reply, the others of the service {} (medians of the last full minute); \
                 see its load and the path to it, and `xvs top`",
                short_time(own.median_micros),
                short_time(others.median_micros)
            );
            slow.push((report.service.key, *endpoint, what));
        }
    }
    slow
}

/// A real server is slow from this many times the median of the others on, and from this time on, in microseconds.
const SLOW_TIMES: u64 = 4;
const SLOW_MICROS: u64 = 1000;
/// The connections that both medians need at least.
const SLOW_CONNECTIONS: u64 = 30;

/// The connections that a real server has not answered: those of all clients, and with NAT those of clients in its own
/// network.
fn unanswered(
    services: &Services<'_>,
    service: &Service,
    server: &ServerReport<'_>,
    network: &Network,
) -> impl Iterator<Item = Unanswered> {
    let member = server.member;
    let gue_port = match services.snapshot.destinations.find(member.id).map(|dest| dest.tunnel.encapsulation)
    {
        Some(Encapsulation::Gue { port, .. }) if member.method == ForwardingMethod::Tunnel => Some(port),
        _ => None,
    };
    let of_all = Unanswered {
        service: service.key,
        endpoint: member.endpoint,
        method: member.method,
        gue_port,
        connections: server.unanswered,
        seen: match &member.live {
            live if live.refuses() => Seen::Refusals,
            live if live.rejects() => Seen::Errors,
            live if live.returns() && has_address_of(network, service) => Seen::OwnSource,
            _ => Seen::Nothing,
        },
    };
    let of_neighbours = member
        .live
        .unanswered_neighbours(services.now)
        .filter(|_| member.method == ForwardingMethod::Nat)
        .map(|(connections, client)| Unanswered { connections, seen: Seen::Neighbour(client), ..of_all });
    [of_all].into_iter().chain(of_neighbours)
}

/// The warning about an interface that cannot be used, or that works in the slower mode.
fn interface_warning(interface: &InterfaceStatus) -> Option<Warning> {
    let name = &interface.name;
    let kind = match interface.state {
        LinkState::Up => GenericMode,
        LinkState::Down => InterfaceDown,
        LinkState::Gone => InterfaceGone,
    };
    let text = match interface.state.complaint(name) {
        Some(complaint) => complaint,
        None => format!(
            "{name} works in generic XDP, which is slower: native was refused ({}); see docs/install.md, «Interfaces, \
             queues and cores»",
            interface.why_not_native.as_ref()?
        ),
    };
    Some(Warning::new(kind, name, text))
}

/// The warnings about services with one-packet scheduling and masqueraded destinations: replies find no connection.
fn one_packet_warnings(snapshot: &Snapshot) -> Vec<Warning> {
    let mut keys: Vec<_> = snapshot
        .services
        .iter()
        .filter(|service| service.one_packet && has_method(service, ForwardingMethod::Nat))
        .map(|service| service.key)
        .collect();
    keys.sort();
    first_of(OnePacketNat, "services have -o with masqueraded real servers; see `xvsadm -Ln`", keys, |key| {
        let text = format!(
            "{key} has one-packet scheduling (-o) and masqueraded real servers (-m): their replies have no connection, so \
             their source is not translated, and clients ignore them; use -g, -i or --fullnat, or edit the service \
             (`xvsadm -E`) without -o"
        );
        (key, text)
    })
}

/// The warnings about services of firewall marks that no rule gives.
fn mark_warnings(snapshot: &Snapshot) -> Vec<Warning> {
    let mut unused = BTreeSet::new();
    for service in snapshot.services.iter() {
        if let ServiceKey::Mark { mark, .. } = service.key
            && !snapshot.marks.may_give(mark)
        {
            unused.insert(mark);
        }
    }
    let more = "marks with a service and without a rule; see `xvs mark list`";
    first_of(MarkWithoutRule, more, unused, |mark| {
        let text = format!(
            "no rule that xvsd follows gives packets the mark {mark}, so its service gets none; add one (`xvs mark --help`, \
             or -j MARK in PREROUTING of the table mangle), or delete the service"
        );
        (format!("FWM {mark}"), text)
    })
}

fn has_method(service: &Service, method: ForwardingMethod) -> bool {
    service.members.iter().any(|member| member.method == method)
}

/// The warnings about services whose real servers are to be told the client's address, and are not.
fn client_address_warnings(snapshot: &Snapshot) -> Vec<Warning> {
    let mut all = Vec::new();
    for Service { key, client_address, members, .. } in snapshot.services.iter() {
        if *client_address == ClientAddress::Hidden {
            continue;
        }
        let why = match (key, members.iter().find(|member| member.method != ForwardingMethod::FullNat)) {
            (ServiceKey::Address { protocol, .. }, _)
                if *protocol != Protocol::TCP
                    && (*protocol, *client_address) != (Protocol::UDP, ClientAddress::Proxy) =>
            {
                format!("{protocol} has no place for it")
            }
            (_, Some(member)) => format!(
                "{} is reached by another method (see `xvsadm -Ln`): make it `--fullnat`, or `xvsadm -E … --client-address \
                 hidden`",
                member.endpoint
            ),
            _ => continue,
        };
        let form = client_address.name();
        let text = format!("{key} has --client-address {form}, which real servers are not told: {why}");
        all.push((text, *key));
    }
    all.sort_unstable();
    let more = "services have --client-address without FULLNAT; see `xvsadm -Ln`";
    first_of(WarningKind::ClientAddress, more, all, |(text, key)| (key, text))
}

/// The warnings about FULLNAT without a local address, and about local addresses that this machine has not although it
/// has the virtual address. Those of a backup move to it with the virtual address.
fn local_address_warnings(snapshot: &Snapshot, network: &Network) -> Vec<Warning> {
    let [mut own, _] = snapshot.locals.addresses();
    let mut lacking = Vec::new();
    for service in snapshot.services.iter() {
        let lacks = service
            .members
            .iter()
            .filter(|one| one.method == ForwardingMethod::FullNat)
            .map(|member| member.endpoint.family())
            .find(|family| !own.iter().any(|addr| Family::of(*addr) == *family));
        lacking.extend(lacks.map(|family| (service.key, family)));
    }
    lacking.sort();
    let more = "services have FULLNAT real servers and no local address; see `xvsadm -Ln`";
    let mut warnings = first_of(NoLocalAddress, more, lacking, |(key, family)| {
        let version = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let text = format!(
            "{key} has FULLNAT real servers, and there is no local {version} address: clients get no answer; `xvs \
             laddr add ADDRESS` adds one of this machine"
        );
        (key, text)
    });
    if snapshot
        .services
        .iter()
        .any(|service| has_address_of(network, service) && has_method(service, ForwardingMethod::FullNat))
    {
        own.retain(|addr| !is_here(network, *addr));
        let more = "local addresses are on no interface; see `xvs laddr list`";
        warnings.extend(first_of(LocalAddressMissing, more, own, |addr| {
            let text = format!(
                "no interface has {addr}, a local address of FULLNAT, so replies of real servers do not reach this machine; \
                 `xvs laddr delete {addr}`, and add one of this machine; or `ip address add {addr} dev …`; if routers send \
                 it here, `ip route add local {addr} dev lo`"
            );
            (addr, text)
        }));
    }
    warnings
}

/// The warnings about real servers to which the VRF of the virtual address has no route.
fn vrf_warnings(snapshot: &Snapshot, network: &Network) -> Vec<Warning> {
    let mut missing = Vec::new();
    for Service { key, members, .. } in snapshot.services.iter() {
        let ServiceKey::Address { endpoint, .. } = key else { continue };
        let Some(table) = snapshot.egress.vrf_of_address(endpoint.addr) else { continue };
        let vrf = name_of_vrf(network, table);
        for dest in members.iter().filter_map(|member| snapshot.destinations.find(member.id)) {
            if snapshot.path_of_clients(dest) != Path::NoRoute {
                continue;
            }
            let at = dest.endpoint.addr;
            let text = format!(
                "{key}: {at} has no route in the VRF {vrf}, which has the virtual address, so clients' packets to it are \
                 dropped as no_route; add one, if need be by an interface of another VRF \
                 (`ip route add {at} dev INTERFACE vrf {vrf}`)"
            );
            missing.push((text, format!("{key} {}", dest.endpoint)));
        }
    }
    missing.sort_unstable();
    let more = "real servers have no route in a VRF; see `ip route show vrf VRF`";
    first_of(VrfRoute, more, missing, |(text, object)| (object, text))
}

fn name_of_vrf(network: &Network, table: Table) -> String {
    network
        .links
        .iter()
        .find(|link| link.kind == LinkKind::Vrf(table))
        .map_or_else(|| format!("of table {table}"), |link| link.name.clone())
}

/// Whether this machine has the virtual address.
fn has_address_of(network: &Network, service: &Service) -> bool {
    matches!(service.key, ServiceKey::Address { endpoint, .. } if is_here(network, endpoint.addr))
}

/// Whether this machine has the address, by an interface or a local route.
fn is_here(network: &Network, addr: IpAddr) -> bool {
    network.links.iter().flat_map(|link| &link.addresses).any(|(one, _)| *one == addr)
        || network.routes.iter().any(|route| route.action == RouteAction::Local && route.dest.contains(addr))
}

/// The warnings of one kind about these objects: the first [`NAMED`], and one with the number of the others.
/// `each` is the object and the text of a warning.
pub(crate) fn first_of<T, O: Display>(
    kind: WarningKind,
    more: &str,
    all: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    each: impl Fn(T) -> (O, String),
) -> Vec<Warning> {
    let all = all.into_iter();
    let others = more_of(kind, all.len(), more);
    let named = all.take(NAMED).map(each).map(|(object, text)| Warning::new(kind, object, text));
    named.chain(others).collect()
}

/// The warning with the number of unnamed warnings of a kind; `None`: all are named.
fn more_of(kind: WarningKind, all: usize, what: &str) -> Option<Warning> {
    (all > NAMED).then(|| Warning::new(kind, "", format!("{} more {what}", all - NAMED)))
}

fn table_warning(live: usize, size: usize) -> Option<Warning> {
    let full = percent(live, size);
    (full > TABLE_PERCENT).then(|| {
        let text = format!(
            "the connection table is {full} % full; `xvs set drop_entry 1` ends half-open and idle connections meanwhile; \
             or raise conn_table_size in xvs.toml and restart xvsd"
        );
        Warning::new(TableFull, "", text)
    })
}

fn busy_warning(worker: usize, busy_percent: Option<f64>) -> Option<Warning> {
    let busy = busy_percent.filter(|busy| *busy >= BUSY_PERCENT)?;
    let worker = format!("worker {worker}");
    let text =
        format!("{worker} is {busy:.0} % busy; give xvsd more queues and workers (`ethtool -L`, `workers`)");
    Some(Warning::new(WorkerBusy, worker, text))
}

/// The warning about recent drops of packets that should have been forwarded. Without a neighbour, real servers are
/// named.
fn drop_warning(reason: Reason, packets: u64, snapshot: &Snapshot) -> Option<Warning> {
    if packets < warned_from(reason)? {
        return None;
    }
    let silent = match reason {
        Reason::Worker(DropReason::NoNeighbour) => without_neighbour(snapshot),
        _ => String::new(),
    };
    let were = if packets == 1 { "packet was" } else { "packets were" };
    let (name, what) = (reason.name(), reason.sentence());
    let text = format!("{packets} {were} dropped as {name} in the last minute: {what}{silent}");
    Some(Warning::new(WarningKind::Drops, name, text))
}

/// The number of packets in a minute from which on there is a warning; `None`: neither the director nor its network
/// drops valid packets for this reason. A few of `no_neighbour` mean that a client is gone.
fn warned_from(reason: Reason) -> Option<u64> {
    match reason {
        Reason::Worker(DropReason::NoNeighbour) => Some(10),
        Reason::Worker(
            DropReason::NoDestination
            | DropReason::DestinationLocal
            | DropReason::NoRoute
            | DropReason::NeedsFragmenting
            | DropReason::PathTooNarrow
            | DropReason::NoHeadroom
            | DropReason::TableFull
            | DropReason::Defence
            | DropReason::CallsFull
            | DropReason::NoLocalAddress
            | DropReason::NoLocalPort
            | DropReason::TransmitRefused
            | DropReason::KernelRefused,
        )
        | Reason::Kernel(_) => Some(1),
        Reason::Worker(_) => None,
    }
}

/// The real servers whose next hop does not answer, as a clause; empty if there are none.
fn without_neighbour(snapshot: &Snapshot) -> String {
    let silent = silent_servers(snapshot);
    if silent.is_empty() {
        return String::new();
    }
    let named = silent.iter().take(NAMED).map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    match silent.len().saturating_sub(NAMED) {
        0 => format!("; real servers without one: {named}"),
        more => format!("; real servers without one: {named} and {more} more"),
    }
}

/// The warnings about packets that an interface's card has lost within a minute.
fn card_warnings(interface: &InterfaceStatus, lost: &CardLosses) -> Vec<Warning> {
    let CardLosses { missed, length } = lost;
    let name = &interface.name;
    let mut warnings = Vec::new();
    if *missed > 0 {
        let text = format!(
            "the card of {name} lost {missed} packets in the last minute, because no frame was free or the machine was too \
             slow (rx_missed_errors, rx_fifo_errors): raise receive_ring, or use more queues and workers"
        );
        warnings.push(Warning::new(CardMissed, name, text));
    }
    if *length >= WARNED_LENGTHS {
        let text = format!(
            "the card of {name} lost {length} packets in the last minute, because of their length (rx_length_errors, \
             rx_over_errors): compare the MTU of {name} with that of its senders; if they agree, set mode = \"copy\" in \
             [interfaces.{name}] of xvs.toml and reload"
        );
        warnings.push(Warning::new(CardLength, name, text));
    }
    warnings
}

/// The largest number of warnings of one kind that name their objects. One more warning has the number of the others.
pub(crate) const NAMED: usize = 8;
/// The packets of a wrong length from which on there is a warning: any host may send some.
const WARNED_LENGTHS: u64 = 10;
const TABLE_PERCENT: f64 = 80.0;
const BUSY_PERCENT: f64 = 90.0;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use xvs_dataplane::clock::{Clock, Millis};
    use xvs_dataplane::verdict::DropReason;
    use xvs_model::report::health::{CheckHealth, CheckState, Counts, SorryServerHealth, sample};
    use xvs_model::report::status::{Level, LinkState, StatusReport};
    use xvs_model::report::warning::texts;
    use xvs_proto::network::{PolicyAction, Rule};

    use crate::facts::Facts;
    use crate::history::{History, INTERVAL};
    use crate::response_minute::{MINUTE, ResponseMinutes};
    use crate::shared::Shared;
    use crate::status::report;
    use crate::status::tests::{daemon, daemon_in, interface};
    use crate::status::warnings::*;

    fn warnings(shared: &Shared) -> Vec<String> {
        let StatusReport { state, warnings, warning_details, .. } = report(shared, shared.health().as_ref());
        let keys: BTreeSet<_> = warning_details.iter().map(|warning| &warning.key).collect();
        assert_eq!((keys.len(), &texts(&warning_details)), (warnings.len(), &warnings), "a key is unique");
        assert_eq!(state, if warnings.is_empty() { Level::Ok } else { Level::Warning });
        warnings
    }

    #[test]
    fn a_director_without_services_and_with_all_interfaces_up_is_ok() {
        assert!(warnings(&daemon("")).is_empty());
    }

    #[test]
    fn a_missing_interface_is_the_first_warning_and_generic_mode_has_a_warning_with_the_reason() {
        let shared = daemon("");
        *shared.facts_mut() = Facts {
            interfaces: vec![
                interface("wan", LinkState::Gone, None),
                interface("lan", LinkState::Up, Some("no such thing")),
            ],
            warnings: vec![Warning::new(WarningKind::BondLeft, "wan", "another")],
            start_warnings: vec![Warning::new(Offload, "", "of the start")],
            ..Facts::default()
        };
        let lines = warnings(&shared);
        assert_eq!(lines[0], "wan is gone; it is attached again when it is back and up");
        assert!(
            lines[1].starts_with("lan works in generic XDP") && lines[1].contains("no such thing"),
            "{lines:?}"
        );
        assert_eq!(lines[2..], ["of the start", "another"]);
    }

    #[test]
    fn a_real_server_without_a_route_in_the_vrf_of_the_virtual_address_is_named_with_the_command() {
        let mut network = Network::default();
        let mac = "02:00:00:00:00:01".parse().unwrap();
        network.add_link("wan", mac, &[("198.51.100.1".parse().unwrap(), 32)], 1500).unwrap();
        network.add_link("lan", mac, &[("192.0.2.1".parse().unwrap(), 24)], 1500).unwrap();
        network.add_link("blue", mac, &[], 1500).unwrap();
        let blue = Table(10);
        network.links[0].vrf = Some(blue);
        network.links[2].kind = LinkKind::Vrf(blue);
        network.routes[0].table = blue;
        let default = "0.0.0.0/0".parse().unwrap();
        network.add_route(default, None, "wan").unwrap();
        let refusing = network.routes.last_mut().unwrap();
        (refusing.table, refusing.action) = (blue, RouteAction::Unreachable);
        let rule = network.rules[1].clone();
        network.rules.insert(1, Rule { vrf: Some(blue), action: PolicyAction::Lookup(blue), ..rule });
        let named = |network: &Network| {
            let rules = "-A -t 198.51.100.1:80 -s rr\n-a -t 198.51.100.1:80 -r 192.0.2.11:80 -m\n";
            let shared = daemon_in(network, rules);
            shared.facts_mut().network = network.clone().into();
            warnings(&shared).into_iter().filter(|line| line.contains("in the VRF blue")).collect::<Vec<_>>()
        };
        let [warning] = &named(&network)[..] else { panic!("{:?}", named(&network)) };
        assert!(warning.starts_with("TCP 198.51.100.1:80: 192.0.2.11 has no route"), "{warning}");
        assert!(warning.contains("`ip route add 192.0.2.11 dev INTERFACE vrf blue`"), "{warning}");
        let to_lan = network.routes.iter().find(|route| route.dest.contains("192.0.2.11".parse().unwrap()));
        let leaked = xvs_proto::network::Route { table: blue, ..to_lan.unwrap().clone() };
        network.routes.push(leaked);
        assert_eq!(named(&network), [""; 0]);
    }

    #[test]
    fn services_without_a_usable_real_server_are_named_with_the_reason_and_counted() {
        let shared = daemon(
            "-A -t 192.0.2.1:80 -s rr\n\
             -A -t 192.0.2.2:80 -s rr\n-a -t 192.0.2.2:80 -r 192.0.2.11 -g -w 0\n\
             -A -t 192.0.2.3:80 -s rr\n-a -t 192.0.2.3:80 -r 192.0.2.11 -g -w 1\n\
             -A -t 192.0.2.4:80 -s rr\n-a -t 192.0.2.4:80 -r 192.0.2.11 -g -w 1\n\
             -a -t 192.0.2.4:80 -r 192.0.2.12 -g -w 0\n\
             -A -t 192.0.2.5:80 -s rr\n-a -t 192.0.2.5:80 -r 127.0.0.1 -g -w 1\n",
        );
        let lines = warnings(&shared);
        assert_eq!(lines.len(), 5, "{lines:?}");
        for (service, why) in [
            ("TCP 192.0.2.1:80", "has no real server; `xvsadm -a`"),
            ("TCP 192.0.2.2:80", "weight 0"),
            ("TCP 192.0.2.3:80", "`ip route`"),
            ("TCP 192.0.2.4:80", "weight 0, overloaded or not reachable"),
        ] {
            assert!(lines.iter().any(|line| line.starts_with(service) && line.contains(why)), "{lines:?}");
        }
        let report = report(&shared, None);
        assert_eq!((report.services, report.destinations, report.services_without_destination), (5, 5, 5));
    }

    #[test]
    fn a_hash_without_fallback_is_named_while_clients_of_a_real_server_are_refused() {
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let mut network = Network::default();
        network.add_link("lan", mac, &[([198, 51, 100, 1].into(), 24)], 1500).unwrap();
        let service = |number: u8, options: &str, weight: u8| {
            let key = format!("-t 192.0.2.{number}:80");
            let server = |host: u8, weight| format!("-a {key} -r 198.51.100.{host} -m -w {weight}\n");
            format!("-A {key} {options}\n{}{}", server(11, 1), server(12, weight))
        };
        let rules = [
            service(1, "-s mh", 1),
            service(2, "-s sh -b sh-port", 0),
            service(3, "-s sh -b sh-fallback", 0),
            // Without slots: it has never had a weight.
            service(4, "-s mh", 0),
            service(5, "-s wrr", 0),
            service(6, "-s dh", 0),
        ];
        let mut lines = warnings(&daemon_in(&network, &rules.concat()));
        lines.retain(|line| line.contains("refused"));
        assert_eq!(
            lines,
            [
                "TCP 192.0.2.2:80: 198.51.100.12:80 has weight 0 and keeps 128 of 256 buckets, whose new clients are \
                 refused; `xvsadm -E -t 192.0.2.2:80 -s sh -b sh-fallback,sh-port` gives them another real server",
                "TCP 192.0.2.6:80: 198.51.100.12:80 has weight 0 and keeps 128 of 256 buckets, whose new clients are \
                 refused; `xvsadm -d` leaves its buckets to the others",
            ]
        );
    }

    #[test]
    fn an_interface_that_clients_or_real_servers_need_and_that_is_not_attached_is_named() {
        let shared = daemon("-A -t 198.51.100.100:80 -s rr\n-a -t 198.51.100.100:80 -r 192.0.2.11 -m\n");
        let mut network = Network::default();
        for (name, addr) in [("wan", "198.51.100.100"), ("lan", "192.0.2.1"), ("mgmt", "10.0.0.1")] {
            let addresses = [(addr.parse().unwrap(), 24)];
            network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &addresses, 1500).unwrap();
        }
        let interfaces = vec![interface("mgmt", LinkState::Up, None)];
        *shared.facts_mut() = Facts { interfaces, network: Arc::new(network), ..Facts::default() };
        let lines = warnings(&shared);
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, begins, step) in [
            (&lines[0], "clients of 198.51.100.100 come in by wan", "`--interface wan`"),
            (&lines[1], "the route to 192.0.2.11 is by lan", "`--interface lan`"),
        ] {
            assert!(line.starts_with(begins) && line.contains(step), "{line}");
        }
    }

    #[test]
    fn one_packet_scheduling_with_masqueraded_real_servers_is_a_warning_and_with_others_is_none() {
        let of = |options: &str, method: &str| {
            warnings(&daemon(&format!(
                "-A -u 192.0.2.1:53 -s rr {options}\n-a -u 192.0.2.1:53 -r 127.0.0.1:53 {method}\n"
            )))
        };
        let lines = of("-o", "-m");
        let warned = |line: &&String| line.starts_with("UDP 192.0.2.1:53 has one-packet scheduling (-o) and");
        assert!(lines.iter().any(|line| warned(&line) && line.contains("without -o")), "{lines:?}");
        for (options, method) in [("-o", "-g"), ("-o", "-i"), ("-o", "--fullnat"), ("", "-m")] {
            let lines = of(options, method);
            assert!(!lines.iter().any(|line| warned(&line)), "{options} {method}: {lines:?}");
        }
    }

    #[test]
    fn a_mark_with_a_service_and_without_a_rule_is_a_warning() {
        let of = |mark: u32| {
            warnings(&daemon(&format!(
                "-A -f {mark} -s rr\n#xvs mark add -d 198.51.100.100 -p tcp --set-mark 7\n"
            )))
        };
        let warned =
            |line: &String| line.starts_with("no rule that xvsd follows gives packets the mark 8, so its");
        assert!(of(8).iter().any(warned), "{:?}", of(8));
        assert!(!of(7).iter().any(|line| line.contains("mark")), "{:?}", of(7));
    }

    #[test]
    fn a_clients_address_that_no_real_server_is_told_is_a_warning_and_by_fullnat_it_is_none() {
        let of = |service: &str, form: &str, method: &str| {
            let rules =
                format!("-A {service} -s rr --client-address {form}\n-a {service} -r 192.0.2.11 {method}\n");
            let told = |line: &String| line.contains("--client-address");
            warnings(&daemon(&rules)).into_iter().filter(told).collect::<Vec<_>>()
        };
        let [other] = &of("-t 198.51.100.100:80", "proxy", "-m")[..] else { panic!("a warning") };
        let first = "TCP 198.51.100.100:80 has --client-address proxy, which real servers are not told: ";
        assert!(other.starts_with(first), "{other}");
        assert!(other.contains("192.0.2.11:80 is reached by another method") && other.contains("--fullnat"));
        assert!(of("-u 198.51.100.100:53", "toa", "--fullnat")[0].ends_with("UDP has no place for it"));
        for (service, form) in [("-t", "proxy"), ("-t", "toa"), ("-u", "proxy")] {
            assert!(
                of(&format!("{service} 198.51.100.100:80"), form, "--fullnat").is_empty(),
                "{service} {form}"
            );
        }
    }

    #[test]
    fn fullnat_without_a_local_address_or_with_one_that_is_on_no_interface_is_a_warning_with_the_step() {
        let rules = "-A -t 198.51.100.100:80 -s rr\n-a -t 198.51.100.100:80 -r 192.0.2.11 --fullnat\n";
        let of = |local: &str, vip: &str| {
            let shared = daemon(&format!("{local}{rules}"));
            let mut network = Network::default();
            let addresses = [vip, "192.0.2.1"].map(|addr| (addr.parse().unwrap(), 24));
            network.add_link("wan", "02:00:00:00:00:01".parse().unwrap(), &addresses, 1500).unwrap();
            shared.facts_mut().network = Arc::new(network);
            let told = |line: &String| line.contains("FULLNAT");
            warnings(&shared).into_iter().filter(told).collect::<Vec<_>>()
        };
        let [lacking] = &of("", "198.51.100.100")[..] else { panic!("a warning") };
        assert!(
            lacking.starts_with("TCP 198.51.100.100:80 has FULLNAT real servers, and there is no local IPv4")
        );
        let [absent] = &of("#xvs laddr add 203.0.113.9\n", "198.51.100.100")[..] else { panic!("a warning") };
        assert!(absent.starts_with("no interface has 203.0.113.9") && absent.contains("`xvs laddr delete"));
        assert!(of("#xvs laddr add 192.0.2.1\n", "198.51.100.100").is_empty());
        assert!(of("#xvs laddr add 203.0.113.9\n", "198.51.100.2").is_empty(), "a backup has not the VIP");
    }

    #[test]
    fn a_real_server_that_cannot_be_reached_for_some_seconds_is_named_also_if_its_service_has_others() {
        let (service, mac) = ("-t 198.51.100.100:80", "02:00:00:00:00:01".parse().unwrap());
        let servers = ["192.0.2.11 -m", "192.0.2.12 -m", "192.0.2.13 -m -w 0", "203.0.113.1 -m"];
        let of = |server| format!("-a {service} -r {server}\n");
        let mut network = Network::default();
        network.add_link("lan", mac, &[([192, 0, 2, 254].into(), 24)], 1500).unwrap();
        network.add_neighbour([192, 0, 2, 11].into(), mac, "lan").unwrap();
        let rules = format!("-A {service} -s rr\n{}", servers.map(of).concat());
        let history = History::since(Millis(0));
        let shared = Shared { clock: Arc::new(Clock::by_hand()), history, ..daemon_in(&network, &rules) };
        let told = |shared: &Shared| {
            let is_of_one = |line: &String| line.contains("gets clients");
            warnings(shared).into_iter().filter(is_of_one).collect::<Vec<_>>()
        };
        let without_route = "TCP 198.51.100.100:80: 203.0.113.1:80 gets clients, who get no answer: it has no route by an \
                             attached interface; see `ip route`";
        assert_eq!(told(&shared), [without_route], "the others have just been added");
        for _ in 0..2 {
            shared.clock.advance(INTERVAL);
            shared.sample_history();
        }
        let silent = "TCP 198.51.100.100:80: 192.0.2.12:80 gets clients, who get no answer: it has a next hop that does not \
                      answer; see `ip neigh`, and whether it runs";
        assert_eq!(told(&shared), [silent, without_route]);
        shared.workers()[0].dropped(DropReason::NoNeighbour).add(10);
        let dropped = warnings(&shared).into_iter().find(|line| line.contains("no_neighbour")).unwrap();
        assert!(dropped.ends_with("; real servers without one: 192.0.2.12, 192.0.2.13"), "{dropped}");
    }

    #[test]
    fn a_real_server_that_takes_four_times_as_long_as_the_others_for_a_minute_is_a_warning_until_it_does_not()
    {
        let servers = [11, 12, 13].map(|host| format!("-a -t 198.51.100.100:80 -r 192.0.2.{host} -m\n"));
        let rules = format!("-A -t 198.51.100.100:80 -s rr\n{}", servers.concat());
        let responses = ResponseMinutes::since(Millis(0));
        let shared = Shared { clock: Arc::new(Clock::by_hand()), responses, ..daemon(&rules) };
        let snapshot = shared.published.load_full();
        let minute = |times: &[(u8, u64, u64)]| {
            for (host, connections, micros) in times {
                let mut members = snapshot.services.iter().flat_map(|service| &service.members);
                let member =
                    members.find(|one| one.endpoint.addr == IpAddr::from([192, 0, 2, *host])).unwrap();
                (0..*connections).for_each(|_| member.live.responses.count(0, *micros));
            }
            let before = warnings(&shared).into_iter().filter(|line| line.contains("first reply")).count();
            shared.clock.advance(MINUTE);
            shared.sample_history();
            let told = warnings(&shared).into_iter().filter(|line| line.contains("first reply"));
            (before, told.collect::<Vec<_>>())
        };
        let (before, told) = minute(&[(11, 100, 1000), (12, 100, 1000), (13, 30, 9000)]);
        let slow = "TCP 198.51.100.100:80: 192.0.2.13:80 takes 12ms until its first reply, the others of the service 768us \
                    (medians of the last full minute); see its load and the path to it, and `xvs top`";
        assert_eq!((before, told), (0, vec![slow.to_owned()]));
        // Too few connections; then not four times as long; then too short to mean anything.
        let (before, told) = minute(&[(11, 100, 1000), (12, 100, 1000), (13, 29, 9000)]);
        assert_eq!((before, told), (1, Vec::new()));
        assert_eq!(minute(&[(11, 100, 3000), (12, 100, 3000), (13, 100, 6000)]).1, [""; 0]);
        assert_eq!(minute(&[(11, 100, 60), (12, 100, 60), (13, 100, 500)]).1, [""; 0]);
    }

    #[test]
    fn of_many_services_without_a_real_server_the_first_are_named_and_the_others_counted() {
        let rules: String = (1..=20).map(|port| format!("-A -u 192.0.2.1:{port} -s rr\n")).collect();
        let lines = warnings(&daemon(&rules));
        assert_eq!(lines.len(), NAMED + 1);
        assert!(lines[NAMED].starts_with("12 more services"), "{lines:?}");
    }

    #[test]
    fn keys_are_unique_in_a_status_with_many_warnings() {
        let mut rules: String = (1..=20).map(|port| format!("-A -u 192.0.2.1:{port} -s rr\n")).collect();
        for service in 1..=4 {
            rules += &format!("-A -t 198.51.100.{service}:80 -s mh --client-address toa\n");
            for server in 1..=3 {
                rules += &format!("-a -t 198.51.100.{service}:80 -r 192.0.2.{server}:8080 -m\n");
                rules += &format!("-a -t 198.51.100.{service}:80 -r 192.0.2.{server}:8081 --fullnat\n");
            }
        }
        rules += "-A -f 7 -s rr\n-A -f 8 -s rr\n#xvs laddr add 203.0.113.9\n#xvs laddr add 203.0.113.10\n";
        let shared = daemon(&rules);
        let up = |name| interface(name, LinkState::Up, Some("no such thing"));
        let interfaces = ["wan", "lan"].map(up).into();
        *shared.facts_mut() = Facts { interfaces, ..Facts::default() };
        shared.facts_mut().card_losses = vec![CardLosses { missed: 7, length: 10 }; 2];
        for reason in [DropReason::NoNeighbour, DropReason::TableFull, DropReason::NoRoute] {
            shared.workers()[0].dropped(reason).add(10);
        }
        let mut server = sample::real_server("192.0.2.1", CheckState::Down);
        server.checks[0].not_run = Some("no socket".to_owned());
        let other = CheckHealth { probe: "TCP 192.0.2.1:81".to_owned(), ..server.checks[0].clone() };
        server.checks.push(other);
        let all = ["192.0.2.1", "192.0.2.2"].map(|vip| sample::virtual_server(vip, vec![server.clone()]));
        let health =
            HealthReport { refused: Some("error".to_owned()), faults: 2, ..sample::report(all.into()) };
        let _ = shared.report.set(health);
        // Which asserts that.
        let lines = warnings(&shared);
        assert!(lines.len() > 25, "{lines:#?}");
    }

    #[test]
    fn a_refused_file_and_virtual_servers_without_quorum_have_warnings_and_up_servers_are_counted() {
        let shared = daemon(
            "-A -t 192.0.2.1:80 -s rr\n\
             -A -t 192.0.2.2:80 -s rr\n-a -t 192.0.2.2:80 -r 127.0.0.1 -g\n",
        );
        let server =
            |address, state| sample::virtual_server(address, vec![sample::real_server("192.0.2.11", state)]);
        let mut sorry = server("192.0.2.2", CheckState::Down);
        let endpoint = "127.0.0.1:80".to_owned();
        sorry.sorry_server = Some(SorryServerHealth { endpoint, serves: true });
        let mut all = vec![server("192.0.2.1", CheckState::Down), sorry, server("192.0.2.3", CheckState::Up)];
        let refused = Some("k.conf:3: error".to_owned());
        let health = HealthReport { refused, ..sample::report(all.clone()) };
        let _ = shared.report.set(health);
        let lines = warnings(&shared);
        let lost = "has no quorum: live weight 0, quorum 1";
        let expected = [
            "/etc/keepalived/keepalived.conf was refused when it was last read, and the former one stays in \
             force; see `xvs health`, then `xvs reload`"
                .to_owned(),
            format!("TCP 192.0.2.1:80 {lost}; see `xvs health --down`"),
            format!("TCP 192.0.2.2:80 {lost}; its sorry server 127.0.0.1:80 serves; see `xvs health --down`"),
        ];
        assert_eq!(lines, expected);
        let counted = crate::status::report(&shared, shared.health().as_ref()).health;
        let expected =
            Counts { real_servers: 3, real_servers_up: 1, virtual_servers: 3, virtual_servers_well: 1 };
        assert_eq!(counted, Some(expected));
        assert_eq!(crate::status::report(&shared, None).health, None);
        let two = [("192.0.2.11", CheckState::Up), ("192.0.2.12", CheckState::Down)];
        let servers = two.map(|(address, state)| sample::real_server(address, state)).to_vec();
        let mut one_down = sample::report(vec![sample::virtual_server("192.0.2.5", servers)]);
        let is_down = "TCP 192.0.2.5:80: 192.0.2.12:80 is down; see `xvs health --down`";
        assert_eq!(texts(&down_warnings(Some(&one_down))), [is_down]);
        one_down.virtual_servers[0].real_servers[1].weights.disabled = true;
        assert!(down_warnings(Some(&one_down)).is_empty(), "an operator has disabled it");
        all.resize(NAMED + 5, server("192.0.2.4", CheckState::Down));
        let lines = quorum_warnings(Some(&sample::report(all)));
        assert_eq!(
            lines.last().unwrap().text,
            "4 more virtual servers have no quorum; see `xvs health --down`"
        );
    }

    #[test]
    fn a_table_has_a_warning_above_four_fifths_and_a_worker_from_nine_tenths_on() {
        assert_eq!(table_warning(800, 1000), None);
        assert!(table_warning(810, 1000).unwrap().text.contains("81 % full"));
        assert!(table_warning(1007, 1000).unwrap().text.contains("100 % full"), "spare entries are in use");
        assert_eq!(busy_warning(0, Some(89.9)), None);
        assert_eq!(busy_warning(0, None), None);
        assert!(busy_warning(3, Some(97.6)).unwrap().text.starts_with("worker 3 is 98 % busy"));
    }

    #[test]
    fn drops_of_valid_packets_have_a_warning_and_the_first_ones_to_a_new_neighbour_have_none() {
        let shared = daemon("");
        shared.workers()[0].dropped(DropReason::NoNeighbour).add(9);
        shared.workers()[0].dropped(DropReason::Unsolicited).add(900);
        assert!(warnings(&shared).is_empty());
        shared.workers()[0].dropped(DropReason::NoNeighbour).add(1);
        shared.workers()[0].dropped(DropReason::TableFull).add(1);
        let lines = warnings(&shared);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].contains("10 packets were dropped as no_neighbour") && lines[0].contains("`ip neigh`")
        );
        let report = report(&shared, None);
        assert_eq!(report.recent_drops.reasons.len(), 3);
    }

    #[test]
    fn a_card_that_loses_packets_has_a_warning_with_its_name_and_counters() {
        let shared = daemon("");
        let up = |name| interface(name, LinkState::Up, None);
        shared.facts_mut().interfaces = ["wan", "lan"].map(up).into();
        shared.facts_mut().card_losses = vec![CardLosses { missed: 0, length: 9 }; 2];
        assert!(warnings(&shared).is_empty(), "any host may send a few of a wrong length");
        shared.facts_mut().card_losses = vec![CardLosses::default(), CardLosses { missed: 7, length: 10 }];
        let lines = warnings(&shared);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("the card of lan lost 7 packets") && lines[0].contains("receive_ring"));
        assert!(
            lines[1].starts_with("the card of lan lost 10 packets") && lines[1].contains("rx_length_errors")
        );
    }
}
