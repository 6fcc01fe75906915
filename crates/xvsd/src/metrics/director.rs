//! Metrics of the director itself: daemon, interfaces, workers, sockets, commands, and the totals of all services.

use std::collections::BTreeSet;

use xvs_dataplane::counters::{BURST_SIZES, StatsValues, WorkerCounters};
use xvs_dataplane::offload::Offload;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::steering::hold::Hold;
use xvs_dataplane::verdict::DropReason;
use xvs_model::config::sync_daemon::SyncRole;
use xvs_model::objects::list_key::ListKey;
use xvs_model::objects::listed::ListSummary;
use xvs_model::protocol::request::Access;
use xvs_model::report::fleet::{FleetDirector, FleetReport};
use xvs_model::report::health::HealthReport;
use xvs_model::report::status::{
    ConnectionLogStatus, InterfaceStatus, LinkState, LogSinkStatus, SyncStatus, SyncTable,
};
use xvs_model::report::warning::{Warning, WarningKey};
use xvs_xdp::Statistics;

use super::services::DestinationLimit;
use super::text::{Family, Kind, Text, families};
use crate::connection_log::Logged;
use crate::facts::{Facts, WorkerFacts};
use crate::request_durations::DURATION_BOUNDS;
use crate::rights::seccomp::{Refused, refused};
use crate::shared::Shared;
use crate::{history, status};

/// The values that these metrics are read from.
pub(super) struct Readings<'a> {
    shared: &'a Shared,
    snapshot: &'a Snapshot,
    warnings: Vec<Warning>,
    facts: Facts,
    /// The number of destinations without their own lines.
    left_out: usize,
    total: StatsValues,
    lists: Vec<ListSummary>,
    sync: Vec<SyncStatus>,
    fleet: Option<FleetReport>,
    connection_log: Option<ConnectionLogStatus>,
}

/// Writes the metrics of the director.
pub(super) fn write(
    text: &mut Text,
    shared: &Shared,
    snapshot: &Snapshot,
    health: Option<&HealthReport>,
    limit: DestinationLimit,
) {
    let facts = shared.facts();
    let readings = Readings {
        shared,
        snapshot,
        warnings: status::warnings(shared, health),
        left_out: snapshot.services.iter().map(|service| limit.left_out(&service.members)).sum(),
        total: shared.total.sum(),
        lists: status::lists(snapshot),
        sync: status::sync(&facts.daemons, snapshot, &shared.peers),
        fleet: shared.fleet.get().map(|fleet| fleet.report()),
        connection_log: shared.connection_log.as_ref().map(Logged::status),
        facts,
    };
    for family in FAMILIES {
        family.write(text, &readings);
    }
}

/// The items of a family, each with one line. A family without items on this director is left out.
#[derive(Clone, Copy)]
enum Items {
    Director(fn(&Readings<'_>) -> f64),
    Hold(fn(&Hold) -> f64),
    Offload(fn(&Offload) -> f64),
    Fleet(fn(&FleetReport) -> f64),
    Total(fn(&StatsValues) -> u64),
    List(fn(&ListSummary) -> u64),
    Sync(fn(&SyncStatus) -> u64),
    Interface(fn(&InterfaceStatus) -> u64),
    /// Interfaces, if one of them may take part in the offload.
    OffloadInterface(fn(&InterfaceStatus) -> u64),
    Worker(fn(&WorkerCounters) -> u64),
    Socket(fn(&Statistics) -> u64),
    ConnectionLog(fn(&ConnectionLogStatus, &str, &mut Text)),
    /// Any lines of the family with this name.
    Lines(fn(&Readings<'_>, &str, &mut Text)),
}

impl Family<Items> {
    fn write(&self, text: &mut Text, readings: &Readings<'_>) {
        let Readings { shared, facts, .. } = readings;
        match self.items {
            Items::Director(value) => self.single(text, Some(value(readings))),
            Items::Hold(value) => self.single(text, shared.hold.as_deref().map(value)),
            Items::Offload(value) => self.single(text, shared.offload.as_deref().map(value)),
            Items::Fleet(value) => self.single(text, readings.fleet.as_ref().map(value)),
            Items::Total(value) => self.single(text, Some(value(&readings.total))),
            Items::List(value) => {
                self.begin(text);
                for list in &readings.lists {
                    let ListKey { kind, service } = list.list;
                    let service = service.map_or("all".to_owned(), |service| service.to_string());
                    text.sample(self.name, &[("list", &kind.name()), ("service", &service)], value(list));
                }
            }
            Items::Sync(value) => {
                self.begin(text);
                for daemon in &readings.sync {
                    text.sample(self.name, &[("role", &daemon.role.name())], value(daemon));
                }
            }
            Items::OffloadInterface(_) if facts.interfaces.iter().all(|one| one.offload.is_none()) => {}
            Items::Interface(value) | Items::OffloadInterface(value) => {
                self.begin(text);
                for interface in &facts.interfaces {
                    text.sample(self.name, &[("interface", &interface.name)], value(interface));
                }
            }
            Items::Worker(value) => {
                self.begin(text);
                for (number, counters) in shared.workers().iter().enumerate() {
                    text.sample(self.name, &[("worker", &number)], value(counters));
                }
            }
            Items::Socket(value) => {
                self.begin(text);
                for (number, worker) in facts.workers.iter().enumerate() {
                    for socket in &*worker.sockets {
                        let interface = facts
                            .interfaces
                            .get(usize::from(socket.link.0))
                            .map_or("", |interface| &interface.name);
                        text.sample(
                            self.name,
                            &[("worker", &number), ("interface", &interface), ("queue", &socket.queue)],
                            value(&socket.statistics()),
                        );
                    }
                }
            }
            Items::ConnectionLog(lines) => {
                if let Some(log) = &readings.connection_log {
                    self.begin(text);
                    lines(log, self.name, text);
                }
            }
            Items::Lines(lines) => {
                self.begin(text);
                lines(readings, self.name, text);
            }
        }
    }
}

/// The families in the order of the page.
static FAMILIES: &[Family<Items>] = &families! {
    Gauge "xvs_build_info" "Always 1; the version of xvsd."
        Items::Lines(|_, name, text| text.sample(name, &[("version", &env!("CARGO_PKG_VERSION"))], 1));
    Gauge "xvs_uptime_seconds" "Time since xvsd started."
        Items::Director(|readings| readings.shared.started.until(readings.shared.now()).as_secs_f64());
    Gauge "xvs_hold_seconds"
        "How long packets of services are kept from the kernel after xvsd has ended; 0: not at all."
        Items::Hold(|hold| hold.length().as_secs_f64());
    Counter "xvs_held_packets_total" "Packets of services dropped because no xvsd served them."
        Items::Hold(|hold| hold.dropped() as f64);
    Gauge "xvs_offloaded_connections" "Connections whose packets the XDP program forwards."
        Items::Offload(|offload| offload.in_force() as f64);
    Counter "xvs_offload_refused_keys_total"
        "Connections that were not offloaded, because their keys found no room."
        Items::Offload(|offload| offload.refused() as f64);
    Gauge "xvs_warnings" "Number of warnings in xvs status."
        Items::Director(|readings| readings.warnings.len() as f64);
    Gauge "xvs_warning" "1 for each kind and object of a warning in xvs status."
        Items::Lines(|readings, name, text| {
            // Prometheus refuses a sample that is there twice, and two sentences may be equal.
            let keys: BTreeSet<_> = readings.warnings.iter().map(|warning| &warning.key).collect();
            for WarningKey { kind, object } in keys {
                text.sample(name, &[("kind", kind), ("object", object)], 1);
            }
        });
    Counter "xvs_log_lines_lost_total" "Lines of the log that could not be written."
        Items::Director(|readings| readings.shared.log_lines_lost() as f64);
    Counter "xvs_connection_log_records_total" "Records of the log of connections that were written or sent."
        Items::ConnectionLog(|log, name, text| {
            for (to, sink) in sinks(log) {
                text.sample(name, &[("to", &to)], sink.records);
            }
        });
    Counter "xvs_connection_log_lost_records_total"
        "Records of the log of connections that were lost: too many waited (queue), or they could not be written (file) \
         or sent (collector)."
        Items::ConnectionLog(|log, name, text| {
            text.sample(name, &[("reason", &"queue")], log.lost_records);
            for (to, sink) in sinks(log) {
                text.sample(name, &[("reason", &to)], sink.lost_records);
            }
        });
    Counter "xvs_refused_system_calls_total" "System calls refused to xvsd, by the kind of its threads."
        Items::Lines(|_, name, text| {
            for Refused { kind, call, count } in refused() {
                text.sample(name, &[("kind", &kind.name()), ("call", &call)], count);
            }
        });
    Histogram "xvs_command_duration_seconds"
        "Time from a request to the control thread to its reply; a change is in force with the reply."
        Items::Lines(|readings, name, text| {
            for (access, kind) in [(Access::Change, "change"), (Access::Read, "read")] {
                let durations = readings.shared.request_durations.of(access);
                let sum = durations.sum.value() as f64 / 1e6;
                let exponents = FIRST_DURATION_BOUND..DURATION_BOUNDS - 1;
                text.histogram(name, &[("kind", &kind)], &durations.counts(), sum, exponents, 1e6);
            }
        });
    Gauge "xvs_table_size_connections" "Connections and templates that the table can hold."
        Items::Director(|readings| readings.shared.table().config().capacity as f64);
    Gauge "xvs_table_connections" "Connections and templates in the table."
        Items::Director(|readings| readings.shared.table().live() as f64);
    Counter "xvs_swept_connections_total"
        "Connections and templates ended by drop_entry (worthless), expire_nodest_conn (orphaned) and xvs drain (drained)."
        Items::Lines(|readings, name, text| {
            let swept = &readings.shared.swept;
            for (reason, count) in
                [("worthless", &swept.worthless), ("orphaned", &swept.orphaned), ("drained", &swept.drained)]
            {
                text.sample(name, &[("reason", &reason)], count.value());
            }
        });

    Gauge "xvs_snapshot_epoch" "Number of published configurations; the last one is in force."
        Items::Director(|readings| readings.snapshot.epoch as f64);
    Gauge "xvs_services" "Virtual services."
        Items::Director(|readings| readings.snapshot.configured().0 as f64);
    Gauge "xvs_destinations" "Destinations (real servers) of all services."
        Items::Director(|readings| readings.snapshot.configured().1 as f64);
    Gauge "xvs_destinations_left_out" "Destinations without their own lines because of metrics_destinations."
        Items::Director(|readings| readings.left_out as f64);
    Gauge "xvs_disabled_real_servers" "Disabled real servers, each as xvs disable named it."
        Items::Director(|readings| readings.facts.disabled.iter().len() as f64);
    Gauge "xvs_list_networks" "Networks of an access list."
        Items::List(|list| list.networks);
    Counter "xvs_list_dropped_packets_total" "Packets that an access list has dropped."
        Items::List(|list| list.dropped);
    Counter "xvs_syn_limit_dropped_packets_total" "SYNs that the limit of a service has dropped."
        Items::Lines(|readings, name, text| {
            for limit in status::syn_limits(readings.snapshot) {
                text.sample(name, &[("service", &limit.service)], limit.dropped);
            }
        });

    // The totals of node_exporter's collector `ipvs`.
    Counter "node_ipvs_connections_total" "Connections of all services."
        Items::Total(|total| total.connections);
    Counter "node_ipvs_incoming_packets_total" "Packets from clients to all services."
        Items::Total(|total| total.in_packets);
    Counter "node_ipvs_outgoing_packets_total" "Packets of all services to clients."
        Items::Total(|total| total.out_packets);
    Counter "node_ipvs_incoming_bytes_total" "Bytes from clients to all services."
        Items::Total(|total| total.in_bytes);
    Counter "node_ipvs_outgoing_bytes_total" "Bytes of all services to clients."
        Items::Total(|total| total.out_bytes);

    Gauge "xvs_interface_info" "Always 1; the XDP mode of an interface, and why it is not native."
        Items::Lines(|readings, name, text| {
            for InterfaceStatus { name: interface, mode, why_not_native, .. } in &readings.facts.interfaces {
                let why = why_not_native.as_deref().unwrap_or_default();
                text.sample(name, &[("interface", interface), ("mode", mode), ("why_not_native", &why)], 1);
            }
        });
    Gauge "xvs_interface_up" "Whether an attached interface is up (1)."
        Items::Interface(|interface| (interface.state == LinkState::Up).into());
    Gauge "xvs_interface_pinned" "Whether the XDP program of an interface stays when xvsd ends (1)."
        Items::Interface(|interface| interface.pinned.into());
    Gauge "xvs_interface_offloads" "Whether connections whose packets arrive by an interface are offloaded (1)."
        Items::OffloadInterface(|interface| {
            interface.offload.as_ref().is_some_and(|offload| offload.why_not.is_none()).into()
        });
    Counter "xvs_interface_refused_packets_total"
        "Packets that the XDP program has forwarded and that the interface refused."
        Items::OffloadInterface(|interface| interface.offload.as_ref().map_or(0, |offload| offload.refused_packets));
    Counter "xvs_interface_attached_again_total"
        "How often an interface disappeared, came back and was attached again."
        Items::Interface(|interface| interface.attached_again.into());

    Counter "xvs_sync_messages_total" "Messages of connection synchronization sent or read."
        Items::Sync(|daemon| daemon.messages);
    Counter "xvs_sync_failed_messages_total"
        "Messages that could not be sent, were discarded by the kernel, or were refused as a whole."
        Items::Sync(|daemon| daemon.failed_messages);
    Counter "xvs_sync_connections_total" "Connections of another director that were entered or refreshed."
        Items::Sync(|daemon| daemon.connections);
    Counter "xvs_sync_lost_connections_total" "Connections that are in no message, or could not be used."
        Items::Sync(|daemon| daemon.lost_connections);
    Gauge "xvs_sync_in_sync" "1 if the table of this director is here, and no loss was noticed since."
        Items::Lines(|readings, name, text| {
            for daemon in readings.sync.iter().filter(|daemon| daemon.role == SyncRole::Backup) {
                for peer in &daemon.peers {
                    text.sample(name, &[("peer", &peer.address)], u8::from(peer.table == SyncTable::Whole));
                }
            }
        });

    Gauge "xvs_fleet_etcd_up" "1: etcd answers; 0: it does not."
        Items::Fleet(|fleet| f64::from(fleet.etcd.is_some() && fleet.silent.is_none()));
    Gauge "xvs_fleet_rules_revision" "Revision of the rules in etcd that this director is to run; 0: there are none."
        Items::Fleet(|fleet| fleet.wanted().unwrap_or(0) as f64);
    Gauge "xvs_fleet_running_revision" "Revision of the rules of etcd that this director runs; 0: it runs none."
        Items::Fleet(|fleet| {
            own_record(fleet).and_then(|own| own.runs.as_ref()).map_or(0, |runs| runs.revision) as f64
        });
    Gauge "xvs_fleet_refused" "1: this director has refused the newest rules in etcd; 0: it has not."
        Items::Fleet(|fleet| f64::from(own_record(fleet).is_some_and(|own| own.refused.is_some())));
    Gauge "xvs_fleet_directors" "Directors of the fleet with a record in etcd."
        Items::Fleet(|fleet| fleet.directors.len() as f64);

    Gauge "xvs_worker_info" "Always 1; the core of a worker, and whether and why the kernel copies its frames."
        Items::Lines(|readings, name, text| {
            for (number, worker) in readings.facts.workers.iter().enumerate() {
                let WorkerFacts { core, copy_mode, .. } = worker;
                let core = core.map(|core| core.to_string()).unwrap_or_default();
                text.sample(name, &[("worker", &number), ("core", &core), ("copy_mode", copy_mode)], 1);
            }
        });
    Counter "xvs_worker_received_packets_total" "Frames received by AF_XDP."
        Items::Worker(|worker| worker.received.value());
    Counter "xvs_worker_originated_packets_total" "Frames that the director created."
        Items::Worker(|worker| worker.originated.value());
    Counter "xvs_worker_transmitted_packets_total" "Frames sent by AF_XDP."
        Items::Worker(|worker| worker.transmitted.value());
    Counter "xvs_worker_passed_packets_total" "Frames passed to the kernel."
        Items::Worker(|worker| worker.passed.value());
    Counter "xvs_worker_consumed_packets_total"
        "Frames consumed by the director: fragments of reassembled datagrams or copied to another worker, ICMP errors \
         about a tunnel's own packets, and replies to probes of health checks."
        Items::Worker(|worker| worker.consumed.value());
    Gauge "xvs_worker_held_packets"
        "Frames that wait: fragments for others, packets for the link address of their next hop."
        Items::Worker(|worker| worker.held.value());
    Gauge "xvs_worker_unaccounted_packets"
        "Error in the balance of frames at the worker's last check; any value but 0 is a bug."
        Items::Worker(|worker| worker.unaccounted.value());
    Counter "xvs_worker_abandoned_packets_total"
        "Frames counted as transmitted that may not have left, because an interface was attached again."
        Items::Worker(|worker| worker.transmit_abandoned.value());
    Counter "xvs_worker_withheld_answers_total"
        "ICMP errors and TCP resets not sent because of the errors' rate limit, or without a route or a free frame."
        Items::Worker(|worker| worker.answers_withheld.value());
    Counter "xvs_worker_resets_total" "TCP resets sent for `xvs drain`, and to clients of the SYN proxy."
        Items::Worker(|worker| worker.resets.value());
    Counter "xvs_worker_syn_cookies_sent_total" "SYNs answered by a cookie."
        Items::Worker(|worker| worker.syn_cookies_sent.value());
    Counter "xvs_worker_syn_cookies_accepted_total" "Connections begun by a right SYN cookie."
        Items::Worker(|worker| worker.syn_cookies_accepted.value());
    Counter "xvs_worker_quic_routed_connections_total"
        "Packets without a connection whose real server a QUIC connection ID has chosen."
        Items::Worker(|worker| worker.quic_routed.value());
    Counter "xvs_worker_quic_unroutable_packets_total"
        "Packets of QUIC connections, without a connection here, whose connection ID named no real server."
        Items::Worker(|worker| worker.quic_unroutable.value());
    Counter "xvs_worker_connections_total" "Connections created."
        Items::Worker(|worker| worker.connections.value());
    Counter "xvs_worker_expired_connections_total" "Connections ended by timeout."
        Items::Worker(|worker| worker.expired.value());
    Counter "xvs_worker_evicted_connections_total"
        "Connections and templates evicted because the table was full."
        Items::Worker(|worker| worker.evicted.value());
    Counter "xvs_worker_toa_left_out_packets_total"
        "Packets without room for the client's address as a TCP option (TOA)."
        Items::Worker(|worker| worker.toa_no_room.value());
    Counter "xvs_worker_ftp_not_followed_total"
        "Commands and replies of FTP whose data connection is not expected."
        Items::Worker(|worker| worker.ftp_not_followed.value());
    Counter "xvs_worker_waited_packets_total"
        "Packets that had to wait for the link address of their next hop."
        Items::Worker(|worker| worker.waited.value());
    Counter "xvs_worker_completed_checksums_total"
        "Received packets whose checksum the sender had left to its device, and that was completed."
        Items::Worker(|worker| worker.checksums_completed.value());
    Counter "xvs_worker_offloaded_packets_total"
        "Packets of the worker's connections that the XDP program has forwarded."
        Items::Worker(|worker| worker.offloaded.value());
    Counter "xvs_worker_empty_polls_total" "Polls of a worker that found no frames."
        Items::Worker(|worker| worker.empty_polls.value());
    Counter "xvs_worker_busy_seconds_total"
        "Time that a worker spent on bursts and timers; its rate is the worker's load."
        Items::Lines(|readings, name, text| {
            for (number, counters) in readings.shared.workers().iter().enumerate() {
                text.sample(name, &[("worker", &number)], counters.busy_ns.value() as f64 / 1e9);
            }
        });
    Histogram "xvs_worker_burst_packets" "Frames in a burst of a worker; 64 at most."
        Items::Lines(|readings, name, text| {
            for (number, counters) in readings.shared.workers().iter().enumerate() {
                let sum = counters.bursts.sum.value() as f64;
                text.histogram(name, &[("worker", &number)], &counters.bursts.counts(), sum, 0..BURST_SIZES, 1.0);
            }
        });
    Counter "xvs_worker_dropped_packets_total" "Frames that a worker dropped, by reason."
        Items::Lines(|readings, name, text| {
            for (number, counters) in readings.shared.workers().iter().enumerate() {
                for reason in DropReason::all() {
                    let count = counters.dropped(reason).value();
                    text.sample(name, &[("worker", &number), ("reason", &reason.name())], count);
                }
            }
        });
    Counter "xvs_worker_kernel_dropped_packets_total"
        "Packets that the kernel dropped before a worker received them, by reason."
        Items::Lines(|readings, name, text| {
            for (number, counters) in readings.shared.workers().iter().enumerate() {
                for reason in &history::KERNEL {
                    let count = (reason.counter)(counters).value();
                    text.sample(name, &[("worker", &number), ("reason", &reason.label)], count);
                }
            }
        });

    Counter "xvs_socket_receive_ring_full_packets_total"
        "Packets dropped by the kernel because the worker had not emptied the RX ring (rx_ring_full)."
        Items::Socket(|socket| socket.receive_ring_full);
    Counter "xvs_socket_fill_ring_empty_packets_total"
        "Packets dropped by the kernel because no frame was free (rx_fill_ring_empty_descs)."
        Items::Socket(|socket| socket.fill_ring_empty);
    Counter "xvs_socket_dropped_packets_total"
        "Packets dropped by the kernel for another reason, such as their size (rx_dropped)."
        Items::Socket(|socket| socket.receive_dropped);
    Counter "xvs_socket_invalid_fill_descriptors_total"
        "Free frames that the kernel refused (rx_invalid_descs); any value but 0 is a bug."
        Items::Socket(|socket| socket.fill_invalid);
    Counter "xvs_socket_invalid_transmit_descriptors_total"
        "Frames to send that the kernel refused (tx_invalid_descs); any value but 0 is a bug."
        Items::Socket(|socket| socket.transmit_invalid);
    Counter "xvs_socket_transmit_ring_empty_total"
        "Times that the kernel found no frame to send (tx_ring_empty_descs)."
        Items::Socket(|socket| socket.transmit_ring_empty);
    Counter "xvs_socket_refused_descriptors_total"
        "Frames named by the kernel that were not lent to it; any value but 0 is a bug."
        Items::Socket(|socket| socket.descriptors_refused);
    Gauge "xvs_socket_receive_frames" "Frames lent to the kernel for received packets."
        Items::Socket(|socket| socket.lent_to_receive.into());
    Gauge "xvs_socket_transmit_frames"
        "Frames lent to the kernel to be sent; at transmit_ring further ones are refused."
        Items::Socket(|socket| socket.lent_to_transmit.into());
};

/// The sinks of the log of connections, each with the value of its label.
fn sinks(log: &ConnectionLogStatus) -> impl Iterator<Item = (&'static str, &LogSinkStatus)> {
    [("file", &log.file), ("collector", &log.collector)]
        .into_iter()
        .filter_map(|(name, sink)| Some((name, sink.as_ref()?)))
}

/// The record of this director in etcd.
fn own_record(fleet: &FleetReport) -> Option<&FleetDirector> {
    fleet.directors.iter().find(|director| director.name.raw() == fleet.director)
}

/// The exponent of the first bound of the histogram, 2^7 µs. Shorter times need no distinction.
const FIRST_DURATION_BOUND: usize = 7;
