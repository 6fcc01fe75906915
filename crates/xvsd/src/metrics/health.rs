//! Metrics of health checks: the file, its virtual servers, their real servers and checks.
//!
//! The label of a virtual server is its first service, that of a real server its endpoint in the file; most of them
//! match the labels of `xvs_destination_…`. A check is numbered in the file's order. Not here: the checks
//! (`xvs_health`).

use std::fmt::Display;

use xvs_model::report::health::{
    AgentHealth, CheckHealth, HealthReport, RealServerHealth, VirtualServerHealth,
};

use super::services::DestinationLimit;
use super::text::{Family, Kind, Text};

/// The metrics of the file.
pub(super) fn file(text: &mut Text, health: &HealthReport, limit: DestinationLimit) {
    let left_out = health.virtual_servers.iter().map(|server| limit.left_out(&server.real_servers));
    for (name, kind, help, value) in [
        (
            "xvs_health_file_read_timestamp_seconds",
            Kind::Gauge,
            "Time at which the keepalived.conf was last read and accepted, since 1970 (UTC).",
            health.read_at_millis as f64 / 1000.0,
        ),
        (
            "xvs_health_file_reads_total",
            Kind::Counter,
            "How often the keepalived.conf was read and accepted.",
            health.reads as f64,
        ),
        (
            "xvs_health_file_refusals_total",
            Kind::Counter,
            "How often the keepalived.conf was read and refused.",
            health.refusals as f64,
        ),
        (
            "xvs_health_file_refused",
            Kind::Gauge,
            "Whether the keepalived.conf was refused when it was last read (1); then the former one stays in force.",
            f64::from(health.refused.is_some()),
        ),
        (
            "xvs_health_file_faults",
            Kind::Gauge,
            "Statements of the keepalived.conf that are ignored or replaced by a default.",
            health.faults as f64,
        ),
        (
            "xvs_health_drift_commands",
            Kind::Gauge,
            "Commands that would undo manual changes to services of the keepalived.conf.",
            health.drift.len() as f64,
        ),
        (
            "xvs_health_destinations_left_out",
            Kind::Gauge,
            "Checked destinations without their own lines because of metrics_destinations.",
            left_out.sum::<usize>() as f64,
        ),
    ] {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    }
}

/// The items of a family, each with one line.
#[derive(Clone, Copy)]
pub(super) enum Items {
    /// Virtual servers; `None`: this one has no line.
    Service(fn(&VirtualServerHealth) -> Option<u64>),
    Destination(fn(&RealServerHealth) -> u64),
    Check(fn(&CheckHealth) -> Option<f64>),
    /// Checks, with probe and state as labels.
    State,
}

impl Family<Items> {
    /// Writes the header of the family.
    pub(super) fn begin(&self, text: &mut Text) {
        text.family(self.name, self.kind, self.help);
    }

    /// Writes the lines of one virtual server.
    pub(super) fn write(&self, text: &mut Text, server: &VirtualServerHealth, limit: DestinationLimit) {
        let service = server.services.first().unwrap_or(&server.name);
        if let Items::Service(value) = self.items {
            value(server)
                .into_iter()
                .for_each(|value| text.sample(self.name, &[("service", service)], value));
            return;
        }
        // The first ones in the file's order.
        let shown = server.real_servers.len() - limit.left_out(&server.real_servers);
        for real in &server.real_servers[..shown] {
            let labels: [(_, &dyn Display); 2] = [("service", service), ("destination", &real.endpoint)];
            if let Items::Destination(value) = self.items {
                text.sample(self.name, &labels, value(real));
                continue;
            }
            for (place, check) in real.checks.iter().enumerate() {
                let number = place + 1;
                let labels = [labels[0], labels[1], ("check", &number)];
                match self.items {
                    Items::Check(value) => {
                        value(check).into_iter().for_each(|value| text.sample(self.name, &labels, value));
                    }
                    _ => {
                        let state = check.state.name();
                        let more: [(_, &dyn Display); 2] = [("probe", &check.probe), ("state", &state)];
                        text.sample(self.name, &[&labels[..], &more].concat(), 1);
                    }
                }
            }
        }
    }
}

/// The families with lines for each virtual server, real server or check, in the order of the page.
pub(super) static FAMILIES: [Family<Items>; 13] = [
    Family::gauge(
        "xvs_health_service_well",
        "Whether a virtual server has its quorum (1).",
        Items::Service(|server| Some(server.is_well.into())),
    ),
    Family::gauge(
        "xvs_health_service_live_weight",
        "Total weight of the destinations of a virtual server that are up.",
        Items::Service(|server| Some(server.live_weight)),
    ),
    Family::gauge(
        "xvs_health_service_quorum_weight",
        "Total weight of destinations that a virtual server needs for its quorum.",
        Items::Service(|server| Some(server.quorum.into())),
    ),
    Family::gauge(
        "xvs_health_service_destinations",
        "Destinations (real servers) of a virtual server in the keepalived.conf.",
        Items::Service(|server| Some(server.real_servers.len() as u64)),
    ),
    Family::gauge(
        "xvs_health_service_destinations_up",
        "Destinations of a virtual server all of whose checks pass.",
        Items::Service(
            |server| Some(server.real_servers.iter().filter(|server| server.is_up).count() as u64),
        ),
    ),
    Family::gauge(
        "xvs_health_service_sorry_server_serves",
        "Whether the sorry server of a virtual server serves because there is no quorum (1).",
        Items::Service(|server| server.sorry_server.as_ref().map(|sorry| sorry.serves.into())),
    ),
    Family::gauge(
        "xvs_health_destination_up",
        "Whether all checks of a destination pass (1).",
        Items::Destination(|server| server.is_up.into()),
    ),
    Family::gauge("xvs_health_check_info", "Always 1; the probe and the state of a check.", Items::State),
    Family::gauge(
        "xvs_health_check_up",
        "Whether a check counts as up (1).",
        Items::Check(|check| Some(f64::from(check.state.is_up()))),
    ),
    Family::gauge(
        "xvs_health_check_weight_ratio",
        "Share of its weight that the agent of a destination grants; 0: it takes no new connections.",
        Items::Check(|check| check.agent.as_ref().map(AgentHealth::weight_ratio)),
    ),
    Family::counter(
        "xvs_health_check_asked_total",
        "How often a check ran.",
        Items::Check(|check| Some(check.asked as f64)),
    ),
    Family::counter(
        "xvs_health_check_failed_total",
        "How often a check failed.",
        Items::Check(|check| Some(check.failed as f64)),
    ),
    Family::gauge(
        "xvs_health_check_duration_seconds",
        "Duration of the last run of a check.",
        Items::Check(|check| check.took_micros.map(|micros| micros as f64 / 1e6)),
    ),
];
