//! The status report, and the warnings in it.
//!
//! Built by the thread that serves the client, from the workers' counters and the published snapshot, without a worker
//! or the control thread. Each warning names its object, the problem and the next step. Cost: one pass over the
//! destinations. Not here: the printed form (`status.rs` of `cli`).

pub mod daemon_facts;
pub mod health;
pub mod history;
pub mod shared;
pub mod traffic;
pub mod unattached;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::counters::WorkerCounters;
use xvs_dataplane::egress::Path;
use xvs_dataplane::snapshot::{Member, Service, Snapshot};
use xvs_ipvsadm::disabled_arguments;
use xvs_model::config::maintenance::DisabledServers;
use xvs_model::report::health::{HealthReport, SorryServerHealth, VirtualServerHealth};
use xvs_model::report::status::{
    Drops, InterfaceStatus, Level, RecentDrops, StatusReport, TableStatus, WorkerStatus,
};
use xvs_model::report::unanswered::{REPORTED, Unanswered};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::log::Losses;
use crate::status::history::{INTERVAL, Sample, WINDOW, drop_reasons};
use crate::status::shared::{Facts, Shared, WorkerFacts};

/// The readings that a report is built from.
struct Readings<'a> {
    facts: Facts,
    now: Millis,
    snapshot: Arc<Snapshot>,
    sample: Sample,
    /// The oldest sample of the last minute.
    minute: Sample,
    busy_percent: Vec<Option<f64>>,
    /// Packets dropped since `minute`, by reason.
    recent: Vec<u64>,
    /// Services without a usable destination, each with the reason.
    unusable: Vec<(String, &'static str)>,
    /// The warnings about interfaces that are not attached.
    unattached: Vec<String>,
    health: Option<&'a HealthReport>,
    /// The warning about the log.
    log: Option<String>,
    live: usize,
    size: usize,
}

impl<'a> Readings<'a> {
    fn take(shared: &Shared, health: Option<&'a HealthReport>) -> Self {
        let (facts, now, snapshot) = (shared.facts(), shared.now(), shared.published.load_full());
        let sample = Sample::take(shared.workers(), now);
        let minute = shared.history.before(now, WINDOW);
        let busy_percent = sample.busy_percent_since(&shared.history.before(now, INTERVAL));
        let recent = sample.drops_since(&minute);
        let attachment = facts.attachment();
        let mut unusable: Vec<_> = snapshot
            .services
            .iter()
            .filter_map(|service| why_unusable(service, &snapshot, &facts.disabled))
            .collect();
        unusable.sort();
        let mut unattached = attachment.warnings(virtual_addresses(&snapshot), without_route(&snapshot));
        if drop_reasons().zip(&recent).any(|((reason, _), packets)| reason == "no_route" && *packets > 0) {
            unattached.extend(attachment.default_route_warning());
        }
        let (live, size) = (shared.table().live(), shared.table().config().capacity);
        let log = shared.log.as_ref().and_then(Losses::warning);
        Self {
            facts,
            now,
            snapshot,
            sample,
            minute,
            busy_percent,
            recent,
            unusable,
            unattached,
            health,
            log,
            live,
            size,
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<_> = self.facts.interfaces.iter().filter_map(interface_warning).collect();
        warnings.extend(self.unattached.iter().cloned());
        warnings.extend(self.health.and_then(refused_warning));
        warnings.extend(quorum_warnings(self.health));
        warnings.extend(service_warnings(&self.unusable, self.health));
        warnings.extend(unanswered_warnings(&self.snapshot, self.now));
        warnings.extend(one_packet_warnings(&self.snapshot));
        warnings.extend(table_warning(self.live, self.size));
        warnings.extend(self.busy_percent.iter().enumerate().filter_map(busy_warning));
        warnings.extend(drop_reasons().zip(&self.recent).filter_map(drop_warning));
        warnings.extend(self.facts.fewer_workers.clone());
        warnings.extend(self.facts.warnings.iter().cloned());
        warnings.extend(self.log.clone());
        warnings
    }
}

/// The report without the comparison of the rules file and without the settings; `health` is that of
/// [`Shared::health`].
pub fn report(shared: &Shared, health: Option<&HealthReport>) -> StatusReport {
    let readings = Readings::take(shared, health);
    let warnings = readings.warnings();
    let Readings { facts, now, snapshot, sample, minute, busy_percent, recent, unusable, live, size, .. } =
        readings;
    let (services, destinations) = snapshot.configured();
    StatusReport {
        state: if warnings.is_empty() { Level::Ok } else { Level::Warning },
        warnings,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: Duration::from_millis(now.0).as_secs(),
        epoch: snapshot.epoch,
        services: services as u64,
        services_without_destination: unusable.len() as u64,
        destinations: destinations as u64,
        health: health.map(HealthReport::counts),
        disabled: facts.disabled.iter().map(|server| disabled_arguments(&server)).collect(),
        workers: workers(shared, &facts, &busy_percent),
        table: TableStatus {
            size: size as u64,
            connections: live as u64,
            percent: percent(live, size),
            pages: shared.table().pages().to_string(),
        },
        drops: drops(&sample.drops),
        log_lines_lost: shared.log_lines_lost(),
        unconfirmed_seconds: facts.unconfirmed_until.map(|until| now.until(until).as_secs()),
        recent_drops: RecentDrops { seconds: minute.at.until(now).as_secs(), reasons: drops(&recent) },
        interfaces: facts.interfaces,
        rules: None,
        settings: Vec::new(),
    }
}

/// The warnings of the [`report`] alone.
pub fn warnings(shared: &Shared, health: Option<&HealthReport>) -> Vec<String> {
    Readings::take(shared, health).warnings()
}

fn workers(shared: &Shared, facts: &Facts, busy_percent: &[Option<f64>]) -> Vec<WorkerStatus> {
    let row = |((worker, counters), busy): ((&WorkerFacts, &Arc<WorkerCounters>), &Option<f64>)| {
        let names = facts.interfaces.iter().map(|interface| interface.name.clone());
        WorkerStatus {
            core: worker.core,
            queues: names.zip(worker.queues.iter().cloned()).collect(),
            copy_mode: worker.copy_mode.clone(),
            busy_percent: busy.map(|busy| (busy * 10.0).round() / 10.0),
            counters: counters.all().filter(|(_, value)| *value != 0).collect(),
        }
    };
    facts.workers.iter().zip(shared.workers()).zip(busy_percent).map(row).collect()
}

/// The drops of reasons with at least one packet.
fn drops(packets: &[u64]) -> Vec<Drops> {
    let some = drop_reasons().zip(packets).filter(|(_, packets)| **packets > 0);
    some.map(|((reason, what), packets)| Drops {
        reason: reason.to_owned(),
        packets: *packets,
        what: what.to_owned(),
    })
    .collect()
}

fn percent(part: usize, whole: usize) -> f64 {
    // The table has some spare entries, so there may be a few more connections than its size.
    (part as f64 / whole.max(1) as f64 * 1000.0).round().min(1000.0) / 10.0
}

/// The warning about an interface that cannot be used, or that works in the slower mode.
fn interface_warning(interface: &InterfaceStatus) -> Option<String> {
    let name = &interface.name;
    let generic = |why: &String| {
        format!(
            "{name} works in generic XDP, which is slower: native was refused ({why}); see docs/install.md, «Interfaces, queues and cores»"
        )
    };
    interface.state.complaint(name).or_else(|| interface.why_not_native.as_ref().map(generic))
}

/// The virtual addresses of services.
fn virtual_addresses(snapshot: &Snapshot) -> impl Iterator<Item = IpAddr> {
    snapshot.services.iter().filter_map(|service| match service.key {
        ServiceKey::Address { endpoint, .. } => Some(endpoint.addr),
        ServiceKey::Mark { .. } => None,
    })
}

/// The addresses of destinations without a route by an attached interface.
fn without_route(snapshot: &Snapshot) -> impl Iterator<Item = IpAddr> {
    let members = snapshot.services.iter().flat_map(|service| service.members.iter());
    let path = |member: &Member| snapshot.destinations.find(member.id).map(|dest| dest.path);
    members.filter(move |member| path(member) == Some(Path::NoRoute)).map(|member| member.endpoint.addr)
}

/// The service's name and the reason, if none of its destinations can get a connection.
fn why_unusable(
    service: &Service,
    snapshot: &Snapshot,
    disabled: &DisabledServers,
) -> Option<(String, &'static str)> {
    let of = |member: &Member| match obstacle(member, snapshot) {
        Some(Obstacle::Quiescent) if disabled.includes(service.key, member.endpoint) => {
            Some(Obstacle::Disabled)
        }
        other => other,
    };
    let obstacles: Vec<_> = service.members.iter().map(of).collect();
    let mut obstacles = obstacles.into_iter().collect::<Option<Vec<_>>>()?;
    obstacles.sort_unstable();
    let why = match (obstacles.first(), obstacles.last()) {
        (None, _) => "has no real server; `xvsadm -a` adds one",
        (first, last) if first != last => {
            "has no real server that can take a connection: each is disabled, at weight 0, overloaded or not reachable; see `xvsadm -Ln --thresholds`, `ip neigh`"
        }
        (Some(Obstacle::Quiescent), _) => {
            "has only real servers of weight 0; `xvsadm -e … -w 1` gives one a weight"
        }
        (Some(Obstacle::Disabled), _) => "has only disabled real servers; `xvs enable` ends that",
        (Some(Obstacle::Overloaded), _) => {
            "has only overloaded real servers; see `xvsadm -Ln --thresholds`, raise -x or add one"
        }
        (Some(Obstacle::NoRoute), _) => {
            "has only real servers without a route by an attached interface; see `ip route`"
        }
        (Some(Obstacle::NoNeighbour), _) => {
            "has only real servers whose next hop does not answer; see `ip neigh`, and whether they run"
        }
    };
    Some((service.key.to_string(), why))
}

/// Why a destination gets no new connections, or is not reachable.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    Quiescent,
    Disabled,
    Overloaded,
    NoRoute,
    NoNeighbour,
}

/// Whether a destination can get new connections and is reachable.
pub(crate) fn is_usable(member: &Member, snapshot: &Snapshot) -> bool {
    obstacle(member, snapshot).is_none()
}

fn obstacle(member: &Member, snapshot: &Snapshot) -> Option<Obstacle> {
    if member.weight.is_quiescent() {
        return Some(Obstacle::Quiescent);
    }
    if member.live.is_overloaded() {
        return Some(Obstacle::Overloaded);
    }
    match snapshot.destinations.find(member.id)?.path {
        Path::NoRoute => Some(Obstacle::NoRoute),
        Path::NoNeighbour { .. } => Some(Obstacle::NoNeighbour),
        Path::To(_) | Path::Local => None,
    }
}

/// The warning about a keepalived.conf that was refused.
fn refused_warning(health: &HealthReport) -> Option<String> {
    let HealthReport { file, refused, .. } = health;
    let why = "was refused when it was last read, and the former one stays in force; see `xvs health`, then `xvs reload`";
    refused.is_some().then(|| format!("{file} {why}"))
}

/// The warnings about virtual servers without quorum.
fn quorum_warnings(health: Option<&HealthReport>) -> Vec<String> {
    let lost: Vec<_> = without_quorum(health).collect();
    let warning = |server: &&VirtualServerHealth| {
        let sorry = match &server.sorry_server {
            Some(SorryServerHealth { endpoint, serves: true }) => {
                format!("; its sorry server {endpoint} serves")
            }
            _ => String::new(),
        };
        format!(
            "{} has no quorum: live weight {}, quorum {}{sorry}; see `xvs health --down`",
            server.title(),
            server.live_weight,
            server.quorum
        )
    };
    let more = "virtual servers have no quorum; see `xvs health --down`";
    first_of(lost.iter().map(warning), more)
}

fn without_quorum(health: Option<&HealthReport>) -> impl Iterator<Item = &VirtualServerHealth> {
    health.into_iter().flat_map(|health| &health.virtual_servers).filter(|server| !server.is_well)
}

/// The warnings about services without a usable destination. A service of a virtual server without quorum is left
/// out: the virtual server has a warning.
fn service_warnings(unusable: &[(String, &'static str)], health: Option<&HealthReport>) -> Vec<String> {
    let lost: HashSet<_> = without_quorum(health).flat_map(|server| &server.services).collect();
    let others: Vec<_> = unusable.iter().filter(|(service, _)| !lost.contains(service)).collect();
    let more = "services have no real server that can take a connection; see `xvsadm -Ln`";
    first_of(others.iter().map(|(service, why)| format!("{service} {why}")), more)
}

/// The warnings about destinations that answer no client.
fn unanswered_warnings(snapshot: &Snapshot, now: Millis) -> Vec<String> {
    let of_service = |service: &Service| {
        let unanswered = |member: &Member| Unanswered {
            service: service.key,
            endpoint: member.endpoint,
            method: member.method,
            connections: member.live.recently_unanswered(now),
        };
        service.members.iter().map(unanswered).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = snapshot.services.iter().flat_map(of_service).collect();
    all.retain(|one| one.connections >= REPORTED);
    all.sort_by_key(|one| (one.service, one.endpoint));
    let more = "real servers answer no client; see `xvs top`";
    first_of(all.iter().map(Unanswered::warning), more)
}

/// The warnings about services with one-packet scheduling and masqueraded destinations: replies find no connection.
fn one_packet_warnings(snapshot: &Snapshot) -> Vec<String> {
    let translates = |service: &&Service| {
        service.one_packet && service.members.iter().any(|member| member.method == ForwardingMethod::Nat)
    };
    let mut keys: Vec<_> = snapshot.services.iter().filter(translates).map(|service| service.key).collect();
    keys.sort();
    let warning = |key: &ServiceKey| {
        format!(
            "{key} has one-packet scheduling (-o) and masqueraded real servers (-m): their replies have no connection, so \
             their source is not translated, and clients ignore them; use -g, -i or --fullnat, or edit the service \
             (`xvsadm -E`) without -o"
        )
    };
    let more = "services have -o with masqueraded real servers; see `xvsadm -Ln`";
    first_of(keys.iter().map(warning), more)
}

/// The first of these warnings, and one with the number of the others.
fn first_of(all: impl ExactSizeIterator<Item = String>, what: &str) -> Vec<String> {
    let more = all.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("{more} more {what}"));
    all.take(NAMED).chain(more).collect()
}

fn table_warning(live: usize, size: usize) -> Option<String> {
    let full = percent(live, size);
    (full > TABLE_PERCENT).then(|| {
        format!("the connection table is {full} % full; `xvs set drop_entry 1` ends half-open and idle connections meanwhile; or raise conn_table_size in xvs.toml and restart xvsd")
    })
}

fn busy_warning((worker, busy_percent): (usize, &Option<f64>)) -> Option<String> {
    let busy = busy_percent.filter(|busy| *busy >= BUSY_PERCENT)?;
    Some(format!(
        "worker {worker} is {busy:.0} % busy; give xvsd more queues and workers (`ethtool -L`, `workers`)"
    ))
}

/// The warning about recent drops of packets that should have been forwarded.
fn drop_warning(((reason, what), packets): ((&'static str, &'static str), &u64)) -> Option<String> {
    let (_, at_least) = WARNED_DROPS.iter().find(|(name, _)| *name == reason)?;
    (packets >= at_least)
        .then(|| format!("{packets} packets were dropped as {reason} in the last minute: {what}"))
}

/// The reasons for which the director or its network drops valid packets, each with the number of packets in a minute
/// from which on there is a warning. A few of `no_neighbour` mean that a client is gone.
const WARNED_DROPS: [(&str, u64); 17] = [
    ("no_destination", 1),
    ("destination_local", 1),
    ("no_route", 1),
    ("no_neighbour", 10),
    ("needs_fragmenting", 1),
    ("path_too_narrow", 1),
    ("no_headroom", 1),
    ("table_full", 1),
    ("defence", 1),
    ("calls_full", 1),
    ("no_local_address", 1),
    ("no_local_port", 1),
    ("transmit_refused", 1),
    ("kernel_refused", 1),
    ("kernel_ring_full", 1),
    ("kernel_fill_ring_empty", 1),
    ("kernel_dropped", 1),
];

/// The largest number of services without a destination that have their own warning; the same of virtual servers
/// without quorum.
const NAMED: usize = 8;
const TABLE_PERCENT: f64 = 80.0;
const BUSY_PERCENT: f64 = 90.0;

#[cfg(test)]
mod tests {
    use xvs_dataplane::clock::Millis;
    use xvs_dataplane::verdict::DropReason;

    use crate::control::Control;
    use crate::in_memory::MemoryDatapath;
    use crate::status::*;
    use xvs_ipvsadm::{SystemResolver, read_rules};
    use xvs_model::config::load_feedback::Feedback;
    use xvs_model::config::settings::Ipvs;
    use xvs_model::protocol::request::Request;
    use xvs_model::report::health::{CheckState, Counts, sample};
    use xvs_model::report::status::LinkState;
    use xvs_proto::network::Network;

    /// A daemon with these rules and no interface, so that there is no route.
    fn daemon(rules: &str) -> Shared {
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let rules = read_rules(rules, &SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        control.handle(&Request::Restore(commands), Millis(0)).unwrap();
        Shared::of_one_worker(control.published())
    }

    fn interface(name: &str, state: LinkState, why_not_native: Option<&str>) -> InterfaceStatus {
        InterfaceStatus {
            name: name.to_owned(),
            mode: "native".to_owned(),
            why_not_native: why_not_native.map(str::to_owned),
            queues: 1,
            state,
            attached_again: 0,
        }
    }

    fn warnings(shared: &Shared) -> Vec<String> {
        let StatusReport { state, warnings, .. } = report(shared, shared.health().as_ref());
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
            warnings: vec!["another".to_owned()],
            ..Facts::default()
        };
        let lines = warnings(&shared);
        assert_eq!(lines[0], "wan is gone; it is attached again when it is back and up");
        assert!(
            lines[1].starts_with("lan works in generic XDP") && lines[1].contains("no such thing"),
            "{lines:?}"
        );
        assert_eq!(lines[2], "another");
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
    fn of_many_services_without_a_real_server_the_first_are_named_and_the_others_counted() {
        let rules: String = (1..=20).map(|port| format!("-A -u 192.0.2.1:{port} -s rr\n")).collect();
        let lines = warnings(&daemon(&rules));
        assert_eq!(lines.len(), NAMED + 1);
        assert!(lines[NAMED].starts_with("12 more services"), "{lines:?}");
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
        let _ = shared.health.set(Arc::new(move || health.clone()));
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
        all.resize(NAMED + 5, server("192.0.2.4", CheckState::Down));
        let lines = quorum_warnings(Some(&sample::report(all)));
        assert_eq!(lines.last().unwrap(), "4 more virtual servers have no quorum; see `xvs health --down`");
    }

    #[test]
    fn a_table_has_a_warning_above_four_fifths_and_a_worker_from_nine_tenths_on() {
        assert_eq!(table_warning(800, 1000), None);
        assert!(table_warning(810, 1000).unwrap().contains("81 % full"));
        assert!(table_warning(1007, 1000).unwrap().contains("100 % full"), "spare entries are in use");
        assert_eq!(busy_warning((0, &Some(89.9))), None);
        assert_eq!(busy_warning((0, &None)), None);
        assert!(busy_warning((3, &Some(97.6))).unwrap().starts_with("worker 3 is 98 % busy"));
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
        let known: Vec<_> = drop_reasons().map(|(name, _)| name).collect();
        assert!(WARNED_DROPS.iter().all(|(name, _)| known.contains(name)), "a reason is misspelt");
    }

    #[test]
    fn a_worker_has_its_queues_by_interface_and_its_counters_of_packets() {
        let shared = daemon("");
        let queues = vec![vec![0, 1], vec![1]];
        let worker =
            WorkerFacts { core: Some(3), copy_mode: "copy".to_owned(), queues, sockets: Arc::default() };
        *shared.facts_mut() = Facts {
            interfaces: ["wan", "lan"].map(|name| interface(name, LinkState::Up, None)).into(),
            workers: vec![worker],
            ..Facts::default()
        };
        let counters = &shared.workers()[0];
        counters.received.add(7);
        counters.transmitted.add(5);
        counters.passed.add(2);
        let report = report(&shared, None);
        let [worker] = &report.workers[..] else { panic!("{:?}", report.workers) };
        assert_eq!((worker.received(), worker.sent(), worker.passed_to_kernel()), (7, 5, 2));
        assert_eq!(worker.counters.len(), 3);
        let queues = [("lan".to_owned(), vec![1]), ("wan".to_owned(), vec![0, 1])];
        assert_eq!((worker.core, &worker.queues), (Some(3), &queues.into()));
    }
}
