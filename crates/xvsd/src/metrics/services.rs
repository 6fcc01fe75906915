//! Metrics of services and their destinations, with xvs's own names and with the names of node_exporter's collector
//! `ipvs`, which dashboards for the kernel's IPVS use.
//!
//! Source of node_exporter's names and labels: its `collector/ipvs_linux.go`, which reads `/proc/net/ip_vs` (kernel,
//! `net/netfilter/ipvs/ip_vs_ctl.c`).

use xvs_dataplane::clock::Clock;
use xvs_dataplane::counters::{RESPONSE_RANGES, RESPONSE_UNIT_MICROS};
use xvs_dataplane::snapshot::{Member, Service, Snapshot};
use xvs_proto::Family as AddressFamily;
use xvs_sched::ServiceKey;

use super::text::{Family, Kind, Text, families};
use crate::status::services::is_usable;

/// The largest number of destinations of a service that have their own lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct DestinationLimit(pub(super) usize);

impl DestinationLimit {
    /// The destinations of this service with their own lines: the destinations added first, so that the lines of a
    /// destination do not disappear.
    fn shown(self, service: &Service) -> &[Member] {
        // IPVS's order: the destination added last comes first.
        &service.members[self.left_out(&service.members)..]
    }

    /// The number of these destinations without their own lines.
    pub(super) fn left_out<T>(self, destinations: &[T]) -> usize {
        destinations.len().saturating_sub(self.0)
    }
}

/// The items of a family, each with one line.
#[derive(Clone, Copy)]
pub(super) enum Items {
    Service(fn(&Service, &Snapshot) -> u64),
    Destination(fn(&Member) -> u64),
    /// Destinations with the labels of node_exporter.
    Backend(fn(&Member) -> u64),
    /// The times until the first reply of destinations that have any.
    Responses,
}

impl Family<Items> {
    /// Writes the lines of one service.
    pub(super) fn write(
        &self,
        text: &mut Text,
        snapshot: &Snapshot,
        service: &Service,
        limit: DestinationLimit,
    ) {
        let name = self.name;
        let key = service.key;
        match self.items {
            Items::Service(value) => text.sample(name, &[("service", &key)], value(service, snapshot)),
            Items::Destination(value) => {
                let key = key.to_string();
                for member in limit.shown(service) {
                    let value = value(member);
                    text.sample(name, &[("service", &key), ("destination", &member.endpoint)], value);
                }
            }
            Items::Responses => {
                let key = key.to_string();
                for member in limit.shown(service) {
                    let (counts, sum_micros) = member.live.responses.sum();
                    if counts.iter().any(|count| *count != 0) {
                        text.histogram(
                            name,
                            &[("service", &key), ("destination", &member.endpoint)],
                            &counts,
                            sum_micros as f64 / 1e6,
                            0..RESPONSE_RANGES - 1,
                            1e6 / RESPONSE_UNIT_MICROS as f64,
                        );
                    }
                }
            }
            Items::Backend(value) => {
                let other_family = other_family_key(key).and_then(|key| snapshot.services.find(&key));
                for member in limit.shown(service) {
                    let other = other_family.and_then(|service| {
                        limit.shown(service).iter().find(|other| other.endpoint == member.endpoint)
                    });
                    if other.is_none() || key.family() == AddressFamily::V4 {
                        backend(name, text, key, member, value(member) + other.map_or(0, value));
                    }
                }
            }
        }
    }
}

/// The service with the same mark and the other family, which has the same labels in node_exporter. If a tunnel
/// connects both to the same destination, one line has the sum of their values.
fn other_family_key(key: ServiceKey) -> Option<ServiceKey> {
    let ServiceKey::Mark { mark, family } = key else { return None };
    let family = match family {
        AddressFamily::V4 => AddressFamily::V6,
        AddressFamily::V6 => AddressFamily::V4,
    };
    Some(ServiceKey::Mark { mark, family })
}

fn backend(name: &str, text: &mut Text, key: ServiceKey, member: &Member, value: u64) {
    // A mark service has no address and the port 0. The label of its mark has eight hexadecimal digits.
    let (address, port, proto, mark) = match key {
        ServiceKey::Address { protocol, endpoint } => {
            (endpoint.addr.to_canonical().to_string(), endpoint.port, protocol.to_string(), String::new())
        }
        ServiceKey::Mark { mark, .. } => (String::new(), 0, "FWM".to_owned(), format!("{mark:08X}")),
    };
    let remote = member.endpoint;
    text.sample(
        name,
        &[
            ("local_address", &address),
            ("local_mark", &mark),
            ("local_port", &port),
            ("proto", &proto),
            ("remote_address", &remote.addr.to_canonical()),
            ("remote_port", &remote.port),
        ],
        value,
    );
}

/// The families with lines for each service or destination, in the order of the page.
pub(super) static FAMILIES: &[Family<Items>] = &families! {
    Gauge "xvs_service_destinations" "Destinations (real servers) of a service."
        Items::Service(|service, _| service.members.len() as u64);
    Gauge "xvs_service_usable_destinations"
        "Destinations that can get new connections: weight above 0, not overloaded, with a route and a neighbour."
        Items::Service(|service, snapshot| {
            service.members.iter().filter(|member| is_usable(member, snapshot)).count() as u64
        });
    Counter "xvs_service_connections_total" "Connections scheduled by a service."
        Items::Service(|service, _| service.live.stats().connections);
    Counter "xvs_service_incoming_packets_total" "Packets from clients to a service (InPkts)."
        Items::Service(|service, _| service.live.stats().in_packets);
    Counter "xvs_service_outgoing_packets_total" "Packets of a service to clients (OutPkts)."
        Items::Service(|service, _| service.live.stats().out_packets);
    Counter "xvs_service_incoming_bytes_total" "Bytes of IP packets from clients to a service (InBytes)."
        Items::Service(|service, _| service.live.stats().in_bytes);
    Counter "xvs_service_outgoing_bytes_total" "Bytes of IP packets of a service to clients (OutBytes)."
        Items::Service(|service, _| service.live.stats().out_bytes);
    Counter "xvs_destination_connections_total" "Connections scheduled to a destination."
        Items::Destination(|member| member.live.stats.sum().connections);
    Counter "xvs_destination_incoming_packets_total" "Packets from clients to a destination (InPkts)."
        Items::Destination(|member| member.live.stats.sum().in_packets);
    Counter "xvs_destination_outgoing_packets_total" "Packets of a destination to clients (OutPkts)."
        Items::Destination(|member| member.live.stats.sum().out_packets);
    Counter "xvs_destination_incoming_bytes_total" "Bytes of IP packets from clients to a destination (InBytes)."
        Items::Destination(|member| member.live.stats.sum().in_bytes);
    Counter "xvs_destination_outgoing_bytes_total" "Bytes of IP packets of a destination to clients (OutBytes)."
        Items::Destination(|member| member.live.stats.sum().out_bytes);
    Gauge "xvs_destination_active_connections" "ActiveConn of a destination."
        Items::Destination(|member| member.live.load().active.into());
    Gauge "xvs_destination_inactive_connections" "InActConn of a destination."
        Items::Destination(|member| member.live.load().inactive.into());
    Gauge "xvs_destination_persistent_connections" "PersistConn of a destination."
        Items::Destination(|member| member.live.templates().into());
    Gauge "xvs_destination_unanswered_connections"
        "TCP connections whose clients repeated their SYN, or that the destination refused, since the last one was established."
        Items::Destination(|member| member.live.unanswered().into());
    Gauge "xvs_destination_weight" "The operator's weight of a destination."
        Items::Destination(|member| member.own_weight.0.into());
    Gauge "xvs_destination_weight_in_force"
        "The weight of a destination that the scheduler uses, after load reports and xvs disable."
        Items::Destination(|member| member.weight.0.into());
    Gauge "xvs_destination_slow_start_percent"
        "The part of its share of new connections that a destination gets, in percent: 100 without a slow start."
        Items::Destination(|member| member.slow_start_percent(Clock::Monotonic.now()).unwrap_or(100).into());
    Gauge "xvs_destination_overloaded" "Whether a destination gets no new connections because of its thresholds (1)."
        Items::Destination(|member| member.live.is_overloaded().into());
    Histogram "xvs_destination_response_seconds"
        "Time from a client's SYN to the destination's SYN+ACK, and from the first UDP datagram to the first reply."
        Items::Responses;
    Gauge "node_ipvs_backend_connections_active" "ActiveConn of a destination, as node_exporter names it."
        Items::Backend(|member| member.live.load().active.into());
    Gauge "node_ipvs_backend_connections_inactive" "InActConn of a destination, as node_exporter names it."
        Items::Backend(|member| member.live.load().inactive.into());
    Gauge "node_ipvs_backend_weight" "The weight in force of a destination, as node_exporter names it."
        Items::Backend(|member| member.weight.0.into());
};
