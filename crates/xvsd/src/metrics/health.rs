//! Metrics of health checks: the file, its virtual servers, their real servers and checks.
//!
//! The label of a virtual server is its first service, and the label of a real server is its endpoint in the file. Most
//! labels match the labels of `xvs_destination_…`. The label of a check is its number in the file's order. Not here:
//! the checks (`xvs_health`).

use xvs_model::report::health::{
    AgentHealth, CheckHealth, HealthReport, RealServerHealth, VirtualServerHealth,
};

use super::services::DestinationLimit;
use super::text::{Family, Kind, Label, Text, families};

/// Writes the metrics of the file.
pub(super) fn file(text: &mut Text, health: &HealthReport, limit: DestinationLimit) {
    let left_out = health.virtual_servers.iter().map(|server| limit.left_out(&server.real_servers)).sum();
    for family in FILE {
        family.single(text, Some((family.items)(health, left_out)));
    }
}

/// The value of a family of the file, by its report and the number of destinations without their own lines.
type FileValue = fn(&HealthReport, usize) -> f64;

static FILE: &[Family<FileValue>] = &families! {
    Gauge "xvs_health_file_read_timestamp_seconds"
        "Time at which the keepalived.conf was last read and accepted, since 1970 (UTC)."
        |health, _| health.read_at_millis as f64 / 1000.0;
    Counter "xvs_health_file_reads_total" "How often the keepalived.conf was read and accepted."
        |health, _| health.reads as f64;
    Counter "xvs_health_file_refusals_total" "How often the keepalived.conf was read and refused."
        |health, _| health.refusals as f64;
    Gauge "xvs_health_file_refused"
        "Whether the keepalived.conf was refused when it was last read (1); then the former one stays in force."
        |health, _| f64::from(health.refused.is_some());
    Gauge "xvs_health_file_faults" "Statements of the keepalived.conf that are ignored or replaced by a default."
        |health, _| health.faults as f64;
    Gauge "xvs_health_drift_commands" "Commands that would undo manual changes to services of the keepalived.conf."
        |health, _| health.drift.len() as f64;
    Gauge "xvs_health_destinations_left_out"
        "Checked destinations without their own lines because of metrics_destinations."
        |_, left_out| left_out as f64;
};

/// The items of a family, each with one line.
#[derive(Clone, Copy)]
pub(super) enum Items {
    /// Virtual servers; `None`: this virtual server has no line.
    Service(fn(&VirtualServerHealth) -> Option<u64>),
    Destination(fn(&RealServerHealth) -> u64),
    Check(fn(&CheckHealth) -> Option<f64>),
    /// Checks, with probe and state as labels.
    State,
}

impl Family<Items> {
    /// Writes the lines of one virtual server.
    pub(super) fn write(&self, text: &mut Text, server: &VirtualServerHealth, limit: DestinationLimit) {
        let service = server.services.first().unwrap_or(&server.name);
        let name = self.name;
        // The first real servers in the file's order.
        let shown = &server.real_servers[..server.real_servers.len() - limit.left_out(&server.real_servers)];
        match self.items {
            Items::Service(value) => {
                if let Some(value) = value(server) {
                    text.sample(name, &[("service", service)], value);
                }
            }
            Items::Destination(value) => {
                for real in shown {
                    text.sample(name, &[("service", service), ("destination", &real.endpoint)], value(real));
                }
            }
            Items::Check(value) => {
                for real in shown {
                    let labels: [Label; 2] = [("service", service), ("destination", &real.endpoint)];
                    for (number, check) in (1..).zip(&real.checks) {
                        if let Some(value) = value(check) {
                            text.sample(name, &[labels[0], labels[1], ("check", &number)], value);
                        }
                    }
                }
            }
            Items::State => {
                for real in shown {
                    let labels: [Label; 2] = [("service", service), ("destination", &real.endpoint)];
                    for (number, CheckHealth { probe, state, .. }) in (1..).zip(&real.checks) {
                        let more: [Label; 3] =
                            [("check", &number), ("probe", probe), ("state", &state.name())];
                        text.sample(name, &[&labels[..], &more].concat(), 1);
                    }
                }
            }
        }
    }
}

/// The families with lines for each virtual server, real server or check, in the order of the page.
pub(super) static FAMILIES: &[Family<Items>] = &families! {
    Gauge "xvs_health_service_well" "Whether a virtual server has its quorum (1)."
        Items::Service(|server| Some(server.is_well.into()));
    Gauge "xvs_health_service_live_weight" "Total weight of the destinations of a virtual server that are up."
        Items::Service(|server| Some(server.live_weight));
    Gauge "xvs_health_service_quorum_weight"
        "Total weight of destinations that a virtual server needs for its quorum."
        Items::Service(|server| Some(server.quorum.into()));
    Gauge "xvs_health_service_destinations" "Destinations (real servers) of a virtual server in the keepalived.conf."
        Items::Service(|server| Some(server.real_servers.len() as u64));
    Gauge "xvs_health_service_destinations_up" "Destinations of a virtual server all of whose checks pass."
        Items::Service(|server| Some(server.real_servers.iter().filter(|real| real.is_up).count() as u64));
    Gauge "xvs_health_service_sorry_server_serves"
        "Whether the sorry server of a virtual server serves because there is no quorum (1)."
        Items::Service(|server| server.sorry_server.as_ref().map(|sorry| sorry.serves.into()));
    Gauge "xvs_health_destination_up" "Whether all checks of a destination pass (1)."
        Items::Destination(|server| server.is_up.into());
    Gauge "xvs_health_check_info" "Always 1; the probe and the state of a check."
        Items::State;
    Gauge "xvs_health_check_up" "Whether a check counts as up (1)."
        Items::Check(|check| Some(f64::from(check.state.is_up())));
    Gauge "xvs_health_check_weight_ratio"
        "Share of its weight that the agent of a destination grants; 0: it takes no new connections."
        Items::Check(|check| check.agent.as_ref().map(AgentHealth::weight_ratio));
    Counter "xvs_health_check_asked_total" "How often a check ran."
        Items::Check(|check| Some(check.asked as f64));
    Counter "xvs_health_check_failed_total" "How often a check failed."
        Items::Check(|check| Some(check.failed as f64));
    Gauge "xvs_health_check_duration_seconds" "Duration of the last run of a check."
        Items::Check(|check| check.took_micros.map(|micros| micros as f64 / 1e6));
};
