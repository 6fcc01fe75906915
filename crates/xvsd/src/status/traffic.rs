//! Totals and connections of every service and destination, for `xvs top`.
//!
//! Built by the thread that serves the client. The client computes rates from two replies. Cost: some 200 bytes for
//! each destination.

use xvs_ctl::registry::estimator::totals;
use xvs_model::report::response::ResponseTimes;
use xvs_model::report::traffic::{DestinationTraffic, ServiceTraffic, Traffic};

use crate::shared::Shared;
use crate::status;
use crate::status::services::{ServerReport, ServiceReport, Services};

/// The current totals.
pub(crate) fn traffic(shared: &Shared) -> Traffic {
    let snapshot = shared.published.load_full();
    let health = shared.health();
    let facts = shared.facts();
    let now = shared.now();
    let responses = shared.responses.last();
    let services = Services::new(&snapshot, health.as_ref(), &facts.disabled, &responses, now);
    Traffic {
        at_millis: now.0,
        status: status::report(shared, health.as_ref()),
        services: services.reports().map(service).collect(),
    }
}

fn service(report: ServiceReport<'_>) -> ServiceTraffic {
    ServiceTraffic {
        key: report.service.key,
        stats: totals(report.service.live.stats()),
        down: report.health.map_or(0, |health| health.real_servers.iter().filter(|one| !one.is_up).count()),
        destinations: report.servers.iter().map(destination).collect(),
    }
}

fn destination(report: &ServerReport<'_>) -> DestinationTraffic {
    let member = report.member;
    let load = member.live.load();
    DestinationTraffic {
        endpoint: member.endpoint,
        method: member.method,
        weight: member.weight,
        disabled: report.disabled,
        active: load.active,
        inactive: load.inactive,
        unanswered: report.unanswered,
        trouble: report.health.and_then(|health| health.trouble()),
        stats: totals(member.live.stats.sum()),
        response: report.responses.and_then(ResponseTimes::summary),
    }
}
