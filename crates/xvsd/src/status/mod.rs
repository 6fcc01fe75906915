//! The status report.
//!
//! Built by the thread that serves the client, from the workers' counters and the published snapshot, without a worker
//! or the control thread. Cost: one pass over the destinations. `warnings.rs` writes the warnings.

pub mod daemon_facts;
pub mod page;
pub(crate) mod services;
pub mod traffic;
pub(crate) mod warnings;
pub(crate) mod weights_in_force;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use xvs_ctl::config::fleet::host_name;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::egress::Path;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::verdict::DropReason;
use xvs_host::network::card::CardLosses;
use xvs_model::config::sync_daemon::{SyncDaemon, SyncRole};
use xvs_model::objects::limit::SynLimitSummary;
use xvs_model::objects::list_key::{ListKey, ListKind};
use xvs_model::objects::listed::ListSummary;
use xvs_model::report::health::HealthReport;
use xvs_model::report::status::{
    Drops, Level, OffloadStatus, RecentDrops, StatusReport, SyncStatus, TableStatus, WorkerStatus,
};
use xvs_model::report::warning::{Warning, texts};
use xvs_sched::ServiceKey;

use crate::connection_log::Logged;
use crate::facts::Facts;
use crate::history::{INTERVAL, Reason, Sample, WINDOW};
use crate::shared::Shared;
use crate::status::services::Services;
use crate::status::warnings::Troubles;
use crate::sync_peers::SyncPeers;

/// The readings that a report is built from.
struct Readings<'a> {
    shared: &'a Shared,
    facts: Facts,
    now: Millis,
    snapshot: Arc<Snapshot>,
    sample: Sample,
    /// The oldest sample of the last minute.
    minute: Sample,
    busy_percent: Vec<Option<f64>>,
    /// Packets dropped since `minute`, by reason.
    recent: Vec<u64>,
    /// The losses of each interface's card since `minute`.
    recent_cards: Vec<CardLosses>,
    troubles: Troubles,
    /// The warnings about interfaces that are not attached.
    unattached: Vec<Warning>,
    health: Option<&'a HealthReport>,
    live: usize,
    size: usize,
}

impl<'a> Readings<'a> {
    fn take(shared: &'a Shared, health: Option<&'a HealthReport>) -> Self {
        let facts = shared.facts();
        let now = shared.now();
        let snapshot = shared.published.load_full();
        let sample = Sample::take(shared.workers(), &facts.card_losses, &snapshot, now);
        let minute = shared.history.before(now, WINDOW);
        let earlier = shared.history.before(now, INTERVAL);
        // A real server that has just been added is not resolved yet.
        let silent = &sample.silent & &earlier.silent;
        let recent = sample.drops_since(&minute);
        let attachment = facts.attachment();
        let mut unattached = attachment.warnings(virtual_addresses(&snapshot), without_route(&snapshot));
        if Reason::all()
            .zip(&recent)
            .any(|(reason, packets)| *packets > 0 && matches!(reason, Reason::Worker(DropReason::NoRoute)))
        {
            let families = snapshot.services.iter().map(|service| service.key.family()).collect();
            unattached.extend(attachment.default_route_warning(&families));
        }
        let responses = shared.responses.last();
        let services = Services::new(&snapshot, None, &facts.disabled, &responses, now);
        let (live, size) = shared.fill();
        Self {
            busy_percent: sample.busy_percent_since(&earlier),
            recent_cards: sample.card_losses_since(&minute),
            troubles: Troubles::of(&services, &silent, &facts.network),
            shared,
            facts,
            now,
            snapshot,
            sample,
            minute,
            recent,
            unattached,
            health,
            live,
            size,
        }
    }
}

/// The access lists in force, those of all services first.
pub(crate) fn lists(snapshot: &Snapshot) -> Vec<ListSummary> {
    let Some(lists) = &snapshot.lists else { return Vec::new() };
    let mut all: Vec<_> = lists
        .services
        .iter()
        .map(|(key, scope)| (Some(*key), scope))
        .chain([(None, &lists.all)])
        .flat_map(|(service, scope)| {
            [(ListKind::Deny, &scope.deny), (ListKind::Allow, &scope.allow)].map(|(kind, list)| ListSummary {
                list: ListKey { kind, service },
                networks: list.size() as u64,
                dropped: list.dropped.load(Ordering::Relaxed),
            })
        })
        .filter(|list| list.networks > 0)
        .collect();
    all.sort_by_key(|summary| summary.list);
    all
}

/// The limits of SYNs of existing services.
pub(crate) fn syn_limits(snapshot: &Snapshot) -> Vec<SynLimitSummary> {
    let mut all: Vec<_> = snapshot
        .syn_limits
        .iter()
        .flat_map(|limits| limits.iter())
        .filter(|(key, _)| snapshot.services.find(key).is_some())
        .map(|(key, limit)| SynLimitSummary {
            service: *key,
            rate: limit.rate.rate,
            dropped: limit.dropped.load(Ordering::Relaxed),
        })
        .collect();
    all.sort_by_key(|limit| limit.service);
    all
}

/// The report without the comparison of the rules file and without the settings; `health` is that of
/// [`Shared::health`].
pub fn report(shared: &Shared, health: Option<&HealthReport>) -> StatusReport {
    let readings = Readings::take(shared, health);
    let warnings = readings.warnings();
    let Readings { facts, now, snapshot, sample, minute, busy_percent, recent, troubles, live, size, .. } =
        readings;
    let (services, destinations) = snapshot.configured();
    StatusReport {
        state: if warnings.is_empty() { Level::Ok } else { Level::Warning },
        warnings: texts(&warnings),
        warning_details: warnings,
        host: host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: shared.started.until(now).as_secs(),
        epoch: snapshot.epoch,
        services: services as u64,
        services_without_destination: troubles.unusable.len() as u64,
        destinations: destinations as u64,
        health: health.map(HealthReport::counts),
        disabled: facts.disabled.iter().map(|servers| servers.arguments()).collect(),
        lists: lists(&snapshot),
        syn_limits: syn_limits(&snapshot),
        workers: workers(shared, &facts, &busy_percent),
        table: TableStatus {
            size: size as u64,
            connections: live as u64,
            percent: percent(live, size),
            pages: shared.table().pages().to_string(),
        },
        offload: shared.offload.as_ref().map(|offload| OffloadStatus {
            connections: offload.in_force() as u64,
            packets: shared.counters.iter().map(|worker| worker.offloaded.value()).sum(),
        }),
        drops: drops(&sample.drops),
        sync: sync(&facts.daemons, &snapshot, &shared.peers),
        hold_seconds: shared.hold.as_ref().map_or(0.0, |hold| hold.length().as_secs_f64()),
        held_packets: shared.hold.as_ref().map_or(0, |hold| hold.dropped()),
        log_lines_lost: shared.log_lines_lost(),
        connection_log: shared.connection_log.as_ref().map(Logged::status),
        unconfirmed_seconds: facts.unconfirmed_until.map(|until| now.until(until).as_secs()),
        journal_saved_at_millis: facts.journal_saved_at_millis,
        recent_drops: RecentDrops { seconds: minute.at.until(now).as_secs(), reasons: drops(&recent) },
        interfaces: facts.interfaces,
        rules: None,
        fleet: shared.fleet.get().map(|fleet| fleet.report()),
        kernel: facts.kernel,
        settings: Vec::new(),
    }
}

/// The warnings of the [`report`] alone.
pub fn warnings(shared: &Shared, health: Option<&HealthReport>) -> Vec<Warning> {
    Readings::take(shared, health).warnings()
}

/// The daemons of connection synchronization.
pub(crate) fn sync(daemons: &[SyncDaemon], snapshot: &Snapshot, peers: &SyncPeers) -> Vec<SyncStatus> {
    daemons.iter().filter_map(|daemon| sync_status(daemon, snapshot, peers)).collect()
}

/// The status of a daemon; `None` if it does not run yet.
fn sync_status(daemon: &SyncDaemon, snapshot: &Snapshot, peers: &SyncPeers) -> Option<SyncStatus> {
    let (peers, [messages, failed_messages, connections, lost_connections]) = match daemon.role {
        SyncRole::Master => {
            let counters = &snapshot.sync_master.as_ref()?.shared.counters;
            let counts = [sum(&[&counters.messages]), sum(&[&counters.failed]), 0, sum(&[&counters.lost])];
            (&peers.master, counts)
        }
        SyncRole::Backup => {
            let counters = &snapshot.sync_backup.as_ref()?.inbox.counters;
            let counts = [
                sum(&[&counters.messages]),
                sum(&[&counters.refused, &counters.discarded]),
                sum(&[&counters.entered]),
                sum(&[&counters.skipped, &counters.left_out, &counters.lost]),
            ];
            (&peers.backup, counts)
        }
    };
    Some(SyncStatus {
        role: daemon.role,
        interface: daemon.interface.clone(),
        sync_peers: daemon.peers.clone(),
        sync_id: daemon.sync_id,
        messages,
        failed_messages,
        connections,
        lost_connections,
        peers: peers.report(Instant::now()),
    })
}

fn sum(counters: &[&AtomicU64]) -> u64 {
    counters.iter().map(|one| one.load(Ordering::Relaxed)).sum()
}

fn workers(shared: &Shared, facts: &Facts, busy_percent: &[Option<f64>]) -> Vec<WorkerStatus> {
    let mut rows = Vec::new();
    for ((worker, counters), busy) in facts.workers.iter().zip(shared.workers()).zip(busy_percent) {
        let names = facts.interfaces.iter().map(|interface| interface.name.clone());
        rows.push(WorkerStatus {
            core: worker.core,
            queues: names.zip(worker.queues.iter().cloned()).collect(),
            copy_mode: worker.copy_mode.clone(),
            poll: worker.poll.to_string(),
            busy_percent: busy.map(|busy| (busy * 10.0).round() / 10.0),
            counters: counters.all().filter(|(_, value)| *value != 0).collect(),
        });
    }
    rows
}

/// The drops of reasons with at least one packet.
fn drops(packets: &[u64]) -> Vec<Drops> {
    Reason::all()
        .zip(packets)
        .filter(|(_, packets)| **packets > 0)
        .map(|(reason, packets)| Drops {
            reason: reason.name().to_owned(),
            packets: *packets,
            what: reason.sentence().to_owned(),
        })
        .collect()
}

fn percent(part: usize, whole: usize) -> f64 {
    // The table has some spare entries, so there may be a few more connections than its size.
    (part as f64 / whole.max(1) as f64 * 1000.0).round().min(1000.0) / 10.0
}

/// The virtual addresses of services.
pub(crate) fn virtual_addresses(snapshot: &Snapshot) -> impl Iterator<Item = IpAddr> {
    snapshot.services.iter().filter_map(|service| match service.key {
        ServiceKey::Address { endpoint, .. } => Some(endpoint.addr),
        ServiceKey::Mark { .. } => None,
    })
}

/// The addresses of destinations without a route by an attached interface.
fn without_route(snapshot: &Snapshot) -> impl Iterator<Item = IpAddr> {
    snapshot
        .services
        .iter()
        .flat_map(|service| service.members.iter())
        .filter(|member| {
            snapshot
                .destinations
                .find(member.id)
                .is_some_and(|dest| snapshot.path_of_clients(dest) == Path::NoRoute)
        })
        .map(|member| member.endpoint.addr)
}

#[cfg(test)]
mod tests {
    use xvs_ctl::control::Control;
    use xvs_ctl::in_memory::MemoryDatapath;
    use xvs_dataplane::clock::Millis;
    use xvs_ipvsadm::{SystemResolver, read_rules};
    use xvs_model::config::load_feedback::Feedback;
    use xvs_model::config::settings::Ipvs;
    use xvs_model::protocol::question::ControlRequest;
    use xvs_model::report::status::{InterfaceStatus, LinkState};
    use xvs_proto::network::Network;
    use xvs_xdp::polling::Poll;

    use crate::facts::WorkerFacts;
    use crate::status::*;

    /// A daemon with these rules and no interface, so that there is no route.
    pub(super) fn daemon(rules: &str) -> Shared {
        daemon_in(&Network::default(), rules)
    }

    /// A daemon with these rules in this network.
    pub(super) fn daemon_in(network: &Network, rules: &str) -> Shared {
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        control.set_network(network);
        let rules = read_rules(rules, &SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        control.handle(&ControlRequest::Restore(commands), Millis(0)).unwrap();
        Shared::of_one_worker(&control)
    }

    pub(super) fn interface(name: &str, state: LinkState, why_not_native: Option<&str>) -> InterfaceStatus {
        InterfaceStatus {
            name: name.to_owned(),
            mode: "native".to_owned(),
            why_not_native: why_not_native.map(str::to_owned),
            queues: 1,
            state,
            attached_again: 0,
            pinned: false,
            bond: None,
            offload: None,
        }
    }

    #[test]
    fn a_worker_has_its_queues_by_interface_and_its_counters_of_packets() {
        let shared = daemon("");
        let queues = vec![vec![0, 1], vec![1]];
        let worker = WorkerFacts {
            core: Some(3),
            copy_mode: "copy".to_owned(),
            poll: Poll::Sleep,
            queues,
            sockets: Arc::default(),
        };
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
