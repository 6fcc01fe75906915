//! What is told of health: the file, its virtual servers, their real servers, the checks of these.
//!
//! A virtual server has the label of the first of its services, a real server that of its endpoint in the file: labels by
//! which most of them meet their `xvs_destination_…`. A check has its number in the file's order. Not here: who checks.

use std::fmt::Display;

use xvs_model::health::{CheckHealth, HealthReport, RealServerHealth, VirtualServerHealth};

use super::services::Share;
use super::text::{Family, Kind, Text};

/// What is told of the file.
pub(super) fn file(text: &mut Text, health: &HealthReport, share: Share) {
    let left_out = health.virtual_servers.iter().map(|server| share.left_out(&server.real_servers));
    for (name, kind, help, value) in [
        (
            "xvs_health_file_read_timestamp_seconds",
            Kind::Gauge,
            "When the keepalived.conf was last read with success, since 1970.",
            health.read_at_millis as f64 / 1000.0,
        ),
        (
            "xvs_health_file_reads_total",
            Kind::Counter,
            "How often the keepalived.conf was read with success.",
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
            "Whether the keepalived.conf was refused when it was last read (1); what was before goes on.",
            f64::from(health.refused.is_some()),
        ),
        (
            "xvs_health_file_faults",
            Kind::Gauge,
            "Statements of the keepalived.conf that are left out or assumed.",
            health.faults as f64,
        ),
        (
            "xvs_health_drift_commands",
            Kind::Gauge,
            "Commands that lead back to the keepalived.conf from what somebody has changed by hand.",
            health.drift.len() as f64,
        ),
        (
            "xvs_health_destinations_left_out",
            Kind::Gauge,
            "Checked destinations without lines of their own, because of metrics_destinations.",
            left_out.sum::<usize>() as f64,
        ),
    ] {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    }
}

/// What has a line.
#[derive(Clone, Copy)]
pub(super) enum Of {
    /// A virtual server; `None`: this one has none.
    Service(fn(&VirtualServerHealth) -> Option<u64>),
    Destination(fn(&RealServerHealth) -> u64),
    Check(fn(&CheckHealth) -> Option<f64>),
    /// A check with what it asks and what it has come to.
    State,
}

impl Family<Of> {
    /// Writes what stands before its lines.
    pub(super) fn begin(&self, text: &mut Text) {
        text.family(self.name, self.kind, self.help);
    }

    /// Writes the lines of one of the virtual servers.
    pub(super) fn write(&self, text: &mut Text, server: &VirtualServerHealth, share: Share) {
        let service = server.services.first().unwrap_or(&server.name);
        if let Of::Service(value) = self.of {
            value(server)
                .into_iter()
                .for_each(|value| text.sample(self.name, &[("service", service)], value));
            return;
        }
        // In the file's order, the first ones.
        let shown = server.real_servers.len() - share.left_out(&server.real_servers);
        for real in &server.real_servers[..shown] {
            let labels: [(_, &dyn Display); 2] = [("service", service), ("destination", &real.endpoint)];
            if let Of::Destination(value) = self.of {
                text.sample(self.name, &labels, value(real));
                continue;
            }
            for (place, check) in real.checks.iter().enumerate() {
                let number = place + 1;
                let labels = [labels[0], labels[1], ("check", &number)];
                match self.of {
                    Of::Check(value) => {
                        value(check).into_iter().for_each(|value| text.sample(self.name, &labels, value));
                    }
                    _ => {
                        let (probe, state) = (("probe", &check.probe as &dyn Display), check.state.name());
                        text.sample(self.name, &[&labels[..], &[probe, ("state", &state)]].concat(), 1);
                    }
                }
            }
        }
    }
}

/// Every name that has a line for each virtual server, real server or check, in the order of the page.
pub(super) static FAMILIES: [Family<Of>; 12] = [
    Family::gauge(
        "xvs_health_service_well",
        "Whether a virtual server has its quorum (1).",
        Of::Service(|server| Some(server.is_well.into())),
    ),
    Family::gauge(
        "xvs_health_service_live_weight",
        "Weight of the destinations of a virtual server that are up.",
        Of::Service(|server| Some(server.live_weight)),
    ),
    Family::gauge(
        "xvs_health_service_quorum_weight",
        "Weight of destinations that a virtual server needs.",
        Of::Service(|server| Some(server.quorum.into())),
    ),
    Family::gauge(
        "xvs_health_service_destinations",
        "Destinations (real servers) of a virtual server in the keepalived.conf.",
        Of::Service(|server| Some(server.real_servers.len() as u64)),
    ),
    Family::gauge(
        "xvs_health_service_destinations_up",
        "Destinations of a virtual server all of whose checks pass.",
        Of::Service(|server| Some(server.real_servers.iter().filter(|server| server.is_up).count() as u64)),
    ),
    Family::gauge(
        "xvs_health_service_sorry_server_serves",
        "Whether the sorry server of a virtual server serves, for want of a quorum (1).",
        Of::Service(|server| server.sorry_server.as_ref().map(|sorry| sorry.serves.into())),
    ),
    Family::gauge(
        "xvs_health_destination_up",
        "Whether all checks of a destination pass (1).",
        Of::Destination(|server| server.is_up.into()),
    ),
    Family::gauge(
        "xvs_health_check_info",
        "Always 1; what a check asks, and what its answers have come to.",
        Of::State,
    ),
    Family::gauge(
        "xvs_health_check_up",
        "Whether a check counts as up (1).",
        Of::Check(|check| Some(f64::from(check.state.is_up()))),
    ),
    Family::counter(
        "xvs_health_check_asked_total",
        "How often a check was made.",
        Of::Check(|check| Some(check.asked as f64)),
    ),
    Family::counter(
        "xvs_health_check_failed_total",
        "How often a check did not pass.",
        Of::Check(|check| Some(check.failed as f64)),
    ),
    Family::gauge(
        "xvs_health_check_duration_seconds",
        "How long the last answer to a check took.",
        Of::Check(|check| check.took_micros.map(|micros| micros as f64 / 1e6)),
    ),
];
