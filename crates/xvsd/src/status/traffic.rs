//! Totals and connections of every service and destination, for `xvs top`.
//!
//! Built by the thread that serves the client, from the workers' counters and the published snapshot. The client
//! computes rates from two replies. Cost: some 200 bytes for each destination. Not here: the rates of IPVS
//! (`registry/estimator.rs`), the printed form (`top/` of `cli`).

use xvs_dataplane::clock::Millis;
use xvs_dataplane::counters::StatsValues;
use xvs_dataplane::snapshot::{Member, Service};
use xvs_model::config::maintenance::DisabledServers;
use xvs_model::report::health::{CheckState, VirtualServerHealth};
use xvs_model::report::listing::{Rates, Stats};
use xvs_model::report::traffic::{DestinationTraffic, ServiceTraffic, Traffic};

use crate::shared::Shared;
use crate::status;
use crate::status::health::{by_service, real_server_indices};

fn service(
    service: &Service,
    health: Option<&VirtualServerHealth>,
    disabled: &DisabledServers,
    now: Millis,
) -> ServiceTraffic {
    let indices = health.map(|health| real_server_indices(health, service)).unwrap_or_default();
    let destinations = service.members.iter().enumerate().map(|(number, member)| {
        let index = indices.get(number).copied().flatten();
        let trouble = index.and_then(|index| health?.real_servers[index].trouble());
        let disabled = disabled.includes(service.key, member.endpoint);
        destination(member, trouble, disabled, now)
    });
    let destinations = destinations.collect();
    let servers = health.iter().flat_map(|health| &health.real_servers);
    let down = servers.filter(|server| !server.is_up).count();
    ServiceTraffic { key: service.key, stats: stats(service.live.stats()), down, destinations }
}

fn destination(
    member: &Member,
    trouble: Option<CheckState>,
    disabled: bool,
    now: Millis,
) -> DestinationTraffic {
    let load = member.live.load();
    DestinationTraffic {
        endpoint: member.endpoint,
        method: member.method,
        weight: member.weight,
        disabled,
        active: load.active,
        inactive: load.inactive,
        unanswered: member.live.recently_unanswered(now),
        trouble,
        stats: stats(member.live.stats.sum()),
    }
}

/// The totals of a service or destination.
pub(super) fn stats(counted: StatsValues) -> Stats {
    let StatsValues { connections, in_packets, out_packets, in_bytes, out_bytes } = counted;
    Stats { connections, in_packets, out_packets, in_bytes, out_bytes }
}

/// The rates of a service or destination between two looks at its totals. One that was deleted and added again begins
/// at 0.
pub(crate) fn rates(before: &StatsValues, now: &StatsValues, seconds: f64) -> Rates {
    Rates {
        connections: rate(before.connections, now.connections, seconds),
        in_packets: rate(before.in_packets, now.in_packets, seconds),
        out_packets: rate(before.out_packets, now.out_packets, seconds),
        in_bytes: rate(before.in_bytes, now.in_bytes, seconds),
        out_bytes: rate(before.out_bytes, now.out_bytes, seconds),
    }
}

fn rate(before: u64, now: u64, seconds: f64) -> u64 {
    (now.saturating_sub(before) as f64 / seconds).round() as u64
}

/// The current totals.
pub(crate) fn traffic(shared: &Shared) -> Traffic {
    let snapshot = shared.published.load_full();
    let health = shared.health();
    let facts = shared.facts();
    let watched = health.as_ref().map(by_service).unwrap_or_default();
    let services = snapshot.services.iter();
    let now = shared.now();
    let services =
        services.map(|one| service(one, watched.get(&one.key).copied(), &facts.disabled, now)).collect();
    Traffic { at_millis: now.0, status: status::report(shared, health.as_ref()), services }
}
