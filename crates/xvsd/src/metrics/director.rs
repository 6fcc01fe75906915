//! Metrics of the director itself: daemon, interfaces, workers, sockets, commands, and the totals of all services.

use std::fmt::Display;

use xvs_dataplane::counters::{BURST_SIZES, StatsValues, WorkerCounters};
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::verdict::DropReason;
use xvs_model::config::sync_daemon::SyncRole;
use xvs_model::objects::listed::ListSummary;
use xvs_model::protocol::request::Access;
use xvs_model::report::health::HealthReport;
use xvs_model::report::status::{LinkState, SyncStatus, SyncTable};
use xvs_xdp::Statistics;

use super::process;
use super::text::{Kind, Text};
use crate::connection_log::Logged;
use crate::rights::seccomp::{Refused, refused};
use crate::shared::{DURATION_BOUNDS, Facts, Shared};
use crate::status;

/// All these metrics; `left_out` is the number of destinations without their own lines.
pub(super) fn text(
    shared: &Shared,
    snapshot: &Snapshot,
    health: Option<&HealthReport>,
    left_out: usize,
) -> Text {
    let mut text = Text::default();
    let facts = shared.facts();
    process::text(&mut text);
    daemon(&mut text, shared, health);
    configuration(&mut text, snapshot, &facts, left_out);
    all_services(&mut text, &shared.total.sum());
    interfaces(&mut text, &facts);
    synchronization(&mut text, &status::sync(&facts.daemons, snapshot, &shared.peers));
    fleet(&mut text, shared);
    workers(&mut text, shared, &facts);
    sockets(&mut text, &facts);
    text
}

fn daemon(text: &mut Text, shared: &Shared, health: Option<&HealthReport>) {
    text.family("xvs_build_info", Kind::Gauge, "Always 1; the version of xvsd.");
    text.sample("xvs_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    let uptime = shared.started.until(shared.now()).as_secs_f64();
    text.single("xvs_uptime_seconds", Kind::Gauge, "Time since xvsd started.", uptime);
    if let Some(hold) = &shared.hold {
        let help =
            "How long packets of services are kept from the kernel after xvsd has ended; 0: not at all.";
        text.single("xvs_hold_seconds", Kind::Gauge, help, hold.length().as_secs_f64());
        let help = "Packets of services dropped because no xvsd served them.";
        text.single("xvs_held_packets_total", Kind::Counter, help, hold.dropped() as f64);
    }
    if let Some(offload) = &shared.offload {
        let help = "Connections whose packets the XDP program forwards.";
        text.single("xvs_offloaded_connections", Kind::Gauge, help, offload.in_force() as f64);
        let help = "Connections that were not offloaded, because their keys found no room.";
        text.single("xvs_offload_refused_keys_total", Kind::Counter, help, offload.refused() as f64);
    }
    let help = "Number of warnings in xvs status.";
    let warnings = status::warnings(shared, health).len();
    text.single("xvs_warnings", Kind::Gauge, help, warnings as f64);
    let help = "Lines of the log that could not be written.";
    text.single("xvs_log_lines_lost_total", Kind::Counter, help, shared.log_lines_lost() as f64);
    connection_log(text, shared);
    let name = "xvs_refused_system_calls_total";
    text.family(name, Kind::Counter, "System calls refused to xvsd, by the kind of its threads.");
    for Refused { kind, call, count } in refused() {
        text.sample(name, &[("kind", &kind.name()), ("call", &call)], count);
    }
    let name = "xvs_command_duration_seconds";
    let help = "Time from a request to the control thread to its reply; a change is in force with the reply.";
    text.family(name, Kind::Histogram, help);
    for (access, kind) in [(Access::Change, "change"), (Access::Read, "read")] {
        let durations = shared.request_durations.of(access);
        text.histogram(name, &[("kind", &kind)], &durations, FIRST_DURATION_BOUND..DURATION_BOUNDS - 1, 1e6);
    }
    let table = shared.table();
    let size = table.config().capacity as f64;
    let live = table.live() as f64;
    let help = "Connections and templates that the table can hold.";
    text.single("xvs_table_size_connections", Kind::Gauge, help, size);
    text.single("xvs_table_connections", Kind::Gauge, "Connections and templates in the table.", live);
    let name = "xvs_swept_connections_total";
    let help = "Connections and templates ended by drop_entry (worthless), expire_nodest_conn (orphaned) and xvs drain (drained).";
    text.family(name, Kind::Counter, help);
    let swept = &shared.swept;
    for (reason, count) in
        [("worthless", &swept.worthless), ("orphaned", &swept.orphaned), ("drained", &swept.drained)]
    {
        text.sample(name, &[("reason", &reason)], count.value());
    }
}

/// The log of connections, if there is one.
fn connection_log(text: &mut Text, shared: &Shared) {
    let Some(status) = shared.connection_log.as_ref().map(Logged::status) else { return };
    let sinks = [("file", &status.file), ("collector", &status.collector)];
    let sinks: Vec<_> = sinks.into_iter().filter_map(|(name, sink)| Some((name, sink.as_ref()?))).collect();
    let name = "xvs_connection_log_records_total";
    text.family(name, Kind::Counter, "Records of the log of connections that were written or sent.");
    for (to, sink) in &sinks {
        text.sample(name, &[("to", to)], sink.records);
    }
    let name = "xvs_connection_log_lost_records_total";
    let help = "Records of the log of connections that were lost: too many waited (queue), or they could not be written (file) or sent (collector).";
    text.family(name, Kind::Counter, help);
    text.sample(name, &[("reason", &"queue")], status.lost_records);
    for (to, sink) in &sinks {
        text.sample(name, &[("reason", to)], sink.lost_records);
    }
}

/// The rules in etcd, if this director follows some.
fn fleet(text: &mut Text, shared: &Shared) {
    let Some(report) = shared.fleet.get().map(|fleet| fleet.report()) else { return };
    let own = report.directors.iter().find(|director| director.name.raw() == report.director);
    let answers = report.etcd.is_some() && report.silent.is_none();
    let help = "1: etcd answers; 0: it does not.";
    text.single("xvs_fleet_etcd_up", Kind::Gauge, help, f64::from(u8::from(answers)));
    let help = "Revision of the rules in etcd that this director is to run; 0: there are none.";
    text.single("xvs_fleet_rules_revision", Kind::Gauge, help, report.wanted().unwrap_or(0) as f64);
    let runs = own.and_then(|own| own.runs.as_ref()).map_or(0, |runs| runs.revision);
    let help = "Revision of the rules of etcd that this director runs; 0: it runs none.";
    text.single("xvs_fleet_running_revision", Kind::Gauge, help, runs as f64);
    let refused = own.is_some_and(|own| own.refused.is_some());
    let help = "1: this director has refused the newest rules in etcd; 0: it has not.";
    text.single("xvs_fleet_refused", Kind::Gauge, help, f64::from(u8::from(refused)));
    let help = "Directors of the fleet with a record in etcd.";
    text.single("xvs_fleet_directors", Kind::Gauge, help, report.directors.len() as f64);
}

fn configuration(text: &mut Text, snapshot: &Snapshot, facts: &Facts, left_out: usize) {
    let (services, destinations) = snapshot.configured();
    let help = "Number of published configurations; the last one is in force.";
    text.single("xvs_snapshot_epoch", Kind::Gauge, help, snapshot.epoch as f64);
    text.single("xvs_services", Kind::Gauge, "Virtual services.", services as f64);
    let help = "Destinations (real servers) of all services.";
    text.single("xvs_destinations", Kind::Gauge, help, destinations as f64);
    let help = "Destinations without their own lines because of metrics_destinations.";
    text.single("xvs_destinations_left_out", Kind::Gauge, help, left_out as f64);
    let help = "Disabled real servers, each as xvs disable named it.";
    text.single("xvs_disabled_real_servers", Kind::Gauge, help, facts.disabled.iter().len() as f64);
    let lists = status::lists(snapshot);
    for (name, kind, help, value) in LIST {
        text.family(name, kind, help);
        for summary in &lists {
            let service = summary.list.service.map_or("all".to_owned(), |service| service.to_string());
            text.sample(name, &[("list", &summary.list.kind.name()), ("service", &service)], value(summary));
        }
    }
    let name = "xvs_syn_limit_dropped_packets_total";
    text.family(name, Kind::Counter, "SYNs that the limit of a service has dropped.");
    for limit in status::syn_limits(snapshot) {
        text.sample(name, &[("service", &limit.service)], limit.dropped);
    }
}

/// The daemons of connection synchronization.
fn synchronization(text: &mut Text, daemons: &[SyncStatus]) {
    for (name, help, value) in SYNC {
        text.family(name, Kind::Counter, help);
        for daemon in daemons {
            text.sample(name, &[("role", &daemon.role.name())], value(daemon));
        }
    }
    let name = "xvs_sync_in_sync";
    text.family(name, Kind::Gauge, "1 if the table of this director is here, and no loss was noticed since.");
    let backups = daemons.iter().filter(|daemon| daemon.role == SyncRole::Backup);
    for peer in backups.flat_map(|daemon| &daemon.peers) {
        text.sample(name, &[("peer", &peer.address)], u8::from(peer.table == SyncTable::Whole));
    }
}

/// Reads a counter.
type SyncCounter = fn(&SyncStatus) -> u64;

/// The counters of each daemon of synchronization.
const SYNC: [(&str, &str, SyncCounter); 4] = [
    ("xvs_sync_messages_total", "Messages of connection synchronization sent or read.", |daemon| {
        daemon.messages
    }),
    (
        "xvs_sync_failed_messages_total",
        "Messages that could not be sent, were discarded by the kernel, or were refused as a whole.",
        |daemon| daemon.failed_messages,
    ),
    (
        "xvs_sync_connections_total",
        "Connections of another director that were entered or refreshed.",
        |daemon| daemon.connections,
    ),
    (
        "xvs_sync_lost_connections_total",
        "Connections that are in no message, or could not be used.",
        |daemon| daemon.lost_connections,
    ),
];

/// The totals of node_exporter's collector `ipvs`.
fn all_services(text: &mut Text, sum: &StatsValues) {
    for (name, help, value) in [
        ("node_ipvs_connections_total", "Connections of all services.", sum.connections),
        ("node_ipvs_incoming_packets_total", "Packets from clients to all services.", sum.in_packets),
        ("node_ipvs_outgoing_packets_total", "Packets of all services to clients.", sum.out_packets),
        ("node_ipvs_incoming_bytes_total", "Bytes from clients to all services.", sum.in_bytes),
        ("node_ipvs_outgoing_bytes_total", "Bytes of all services to clients.", sum.out_bytes),
    ] {
        text.family(name, Kind::Counter, help);
        text.sample(name, &[], value);
    }
}

fn interfaces(text: &mut Text, facts: &Facts) {
    let name = "xvs_interface_info";
    text.family(name, Kind::Gauge, "Always 1; the XDP mode of an interface, and why it is not native.");
    for interface in &facts.interfaces {
        let why = interface.why_not_native.as_deref().unwrap_or_default();
        let labels: [(_, &dyn Display); 3] =
            [("interface", &interface.name), ("mode", &interface.mode), ("why_not_native", &why)];
        text.sample(name, &labels, 1);
    }
    text.family("xvs_interface_up", Kind::Gauge, "Whether an attached interface is up (1).");
    for interface in &facts.interfaces {
        let up = u8::from(interface.state == LinkState::Up);
        text.sample("xvs_interface_up", &[("interface", &interface.name)], up);
    }
    let name = "xvs_interface_pinned";
    text.family(name, Kind::Gauge, "Whether the XDP program of an interface stays when xvsd ends (1).");
    for interface in &facts.interfaces {
        text.sample(name, &[("interface", &interface.name)], u8::from(interface.pinned));
    }
    if facts.interfaces.iter().any(|interface| interface.offload.is_some()) {
        let name = "xvs_interface_offloads";
        text.family(
            name,
            Kind::Gauge,
            "Whether connections whose packets arrive by an interface are offloaded (1).",
        );
        let lost = "xvs_interface_refused_packets_total";
        for interface in &facts.interfaces {
            let offloads = interface.offload.as_ref().is_some_and(|offload| offload.why_not.is_none());
            text.sample(name, &[("interface", &interface.name)], u8::from(offloads));
        }
        text.family(
            lost,
            Kind::Counter,
            "Packets that the XDP program has forwarded and that the interface refused.",
        );
        for interface in &facts.interfaces {
            let refused = interface.offload.as_ref().map_or(0, |offload| offload.refused_packets);
            text.sample(lost, &[("interface", &interface.name)], refused);
        }
    }
    let name = "xvs_interface_attached_again_total";
    text.family(name, Kind::Counter, "How often an interface disappeared, came back and was attached again.");
    for interface in &facts.interfaces {
        text.sample(name, &[("interface", &interface.name)], interface.attached_again);
    }
}

fn workers(text: &mut Text, shared: &Shared, facts: &Facts) {
    let name = "xvs_worker_info";
    let help = "Always 1; the core of a worker, and whether and why the kernel copies its frames.";
    text.family(name, Kind::Gauge, help);
    for (number, worker) in facts.workers.iter().enumerate() {
        let core = worker.core.map(|core| core.to_string()).unwrap_or_default();
        let labels: [(_, &dyn Display); 3] =
            [("worker", &number), ("core", &core), ("copy_mode", &worker.copy_mode)];
        text.sample(name, &labels, 1);
    }
    for (name, kind, help, value) in WORKER {
        text.family(name, kind, help);
        for (number, counters) in shared.workers().iter().enumerate() {
            text.sample(name, &[("worker", &number)], value(counters));
        }
    }
    let name = "xvs_worker_busy_seconds_total";
    let help = "Time that a worker spent on bursts and timers; its rate is the worker's load.";
    text.family(name, Kind::Counter, help);
    for (number, counters) in shared.workers().iter().enumerate() {
        text.sample(name, &[("worker", &number)], counters.busy_ns.value() as f64 / 1e9);
    }
    let name = "xvs_worker_burst_packets";
    text.family(name, Kind::Histogram, "Frames in a burst of a worker; 64 at most.");
    for (number, counters) in shared.workers().iter().enumerate() {
        text.histogram(name, &[("worker", &number)], &counters.bursts, 0..BURST_SIZES, 1.0);
    }
    let name = "xvs_worker_dropped_packets_total";
    text.family(name, Kind::Counter, "Frames that a worker dropped, by reason.");
    for (number, counters) in shared.workers().iter().enumerate() {
        for reason in DropReason::all() {
            let labels: [(_, &dyn Display); 2] = [("worker", &number), ("reason", &reason.name())];
            text.sample(name, &labels, counters.dropped(reason).value());
        }
    }
    let name = "xvs_worker_kernel_dropped_packets_total";
    text.family(
        name,
        Kind::Counter,
        "Packets that the kernel dropped before a worker received them, by reason.",
    );
    for (number, counters) in shared.workers().iter().enumerate() {
        for (reason, count) in [
            ("ring_full", &counters.kernel_ring_full),
            ("fill_ring_empty", &counters.kernel_fill_ring_empty),
            ("other", &counters.kernel_dropped),
        ] {
            let labels: [(_, &dyn Display); 2] = [("worker", &number), ("reason", &reason)];
            text.sample(name, &labels, count.value());
        }
    }
}

fn sockets(text: &mut Text, facts: &Facts) {
    for (name, kind, help, value) in SOCKET {
        text.family(name, kind, help);
        for (number, worker) in facts.workers.iter().enumerate() {
            for socket in &*worker.sockets {
                let interface = facts.interfaces.get(usize::from(socket.link.0));
                let interface = interface.map_or("", |interface| &interface.name);
                let labels: [(_, &dyn Display); 3] =
                    [("worker", &number), ("interface", &interface), ("queue", &socket.queue)];
                text.sample(name, &labels, value(&socket.statistics()));
            }
        }
    }
}

type MetricRow<T> = (&'static str, Kind, &'static str, fn(&T) -> u64);

/// The families with one line for each access list.
const LIST: [MetricRow<ListSummary>; 2] = [
    ("xvs_list_networks", Kind::Gauge, "Networks of an access list.", |list| list.networks),
    ("xvs_list_dropped_packets_total", Kind::Counter, "Packets that an access list has dropped.", |list| {
        list.dropped
    }),
];

/// The families with one line for each worker.
const WORKER: [MetricRow<WorkerCounters>; 23] = [
    ("xvs_worker_received_packets_total", Kind::Counter, "Frames received by AF_XDP.", |worker| {
        worker.received.value()
    }),
    ("xvs_worker_originated_packets_total", Kind::Counter, "Frames that the director created.", |worker| {
        worker.originated.value()
    }),
    ("xvs_worker_transmitted_packets_total", Kind::Counter, "Frames sent by AF_XDP.", |worker| {
        worker.transmitted.value()
    }),
    ("xvs_worker_passed_packets_total", Kind::Counter, "Frames passed to the kernel.", |worker| {
        worker.passed.value()
    }),
    (
        "xvs_worker_consumed_packets_total",
        Kind::Counter,
        "Frames consumed by the director: fragments of reassembled datagrams or copied to another worker, ICMP errors \
         about a tunnel's own packets, and replies to probes of health checks.",
        |worker| worker.consumed.value(),
    ),
    (
        "xvs_worker_held_packets",
        Kind::Gauge,
        "Frames that wait: fragments for others, packets for the link address of their next hop.",
        |worker| worker.held.value(),
    ),
    (
        "xvs_worker_unaccounted_packets",
        Kind::Gauge,
        "Error in the balance of frames at the worker's last check; any value but 0 is a bug.",
        |worker| worker.unaccounted.value(),
    ),
    (
        "xvs_worker_abandoned_packets_total",
        Kind::Counter,
        "Frames counted as transmitted that may not have left, because an interface was attached again.",
        |worker| worker.transmit_abandoned.value(),
    ),
    (
        "xvs_worker_withheld_answers_total",
        Kind::Counter,
        "ICMP errors and TCP resets not sent because of the errors' rate limit, or without a route or a free frame.",
        |worker| worker.answers_withheld.value(),
    ),
    (
        "xvs_worker_resets_total",
        Kind::Counter,
        "TCP resets sent for `xvs drain`, and to clients of the SYN proxy.",
        |worker| worker.resets.value(),
    ),
    ("xvs_worker_syn_cookies_sent_total", Kind::Counter, "SYNs answered by a cookie.", |worker| {
        worker.syn_cookies_sent.value()
    }),
    (
        "xvs_worker_syn_cookies_accepted_total",
        Kind::Counter,
        "Connections begun by a right SYN cookie.",
        |worker| worker.syn_cookies_accepted.value(),
    ),
    (
        "xvs_worker_quic_routed_connections_total",
        Kind::Counter,
        "Packets without a connection whose real server a QUIC connection ID has chosen.",
        |worker| worker.quic_routed.value(),
    ),
    (
        "xvs_worker_quic_unroutable_packets_total",
        Kind::Counter,
        "Packets of QUIC connections, without a connection here, whose connection ID named no real server.",
        |worker| worker.quic_unroutable.value(),
    ),
    ("xvs_worker_connections_total", Kind::Counter, "Connections created.", |worker| {
        worker.connections.value()
    }),
    ("xvs_worker_expired_connections_total", Kind::Counter, "Connections ended by timeout.", |worker| {
        worker.expired.value()
    }),
    (
        "xvs_worker_evicted_connections_total",
        Kind::Counter,
        "Connections and templates evicted because the table was full.",
        |worker| worker.evicted.value(),
    ),
    (
        "xvs_worker_toa_left_out_packets_total",
        Kind::Counter,
        "Packets without room for the client's address as a TCP option (TOA).",
        |worker| worker.toa_no_room.value(),
    ),
    (
        "xvs_worker_ftp_not_followed_total",
        Kind::Counter,
        "Commands and replies of FTP whose data connection is not expected.",
        |worker| worker.ftp_not_followed.value(),
    ),
    (
        "xvs_worker_waited_packets_total",
        Kind::Counter,
        "Packets that had to wait for the link address of their next hop.",
        |worker| worker.waited.value(),
    ),
    (
        "xvs_worker_completed_checksums_total",
        Kind::Counter,
        "Received packets whose checksum the sender had left to its device, and that was completed.",
        |worker| worker.checksums_completed.value(),
    ),
    (
        "xvs_worker_offloaded_packets_total",
        Kind::Counter,
        "Packets of the worker's connections that the XDP program has forwarded.",
        |worker| worker.offloaded.value(),
    ),
    ("xvs_worker_empty_polls_total", Kind::Counter, "Polls of a worker that found no frames.", |worker| {
        worker.empty_polls.value()
    }),
];

/// The families with one line for each AF_XDP socket.
const SOCKET: [MetricRow<Statistics>; 9] = [
    (
        "xvs_socket_receive_ring_full_packets_total",
        Kind::Counter,
        "Packets dropped by the kernel because the worker had not emptied the RX ring (rx_ring_full).",
        |socket| socket.receive_ring_full,
    ),
    (
        "xvs_socket_fill_ring_empty_packets_total",
        Kind::Counter,
        "Packets dropped by the kernel because no frame was free (rx_fill_ring_empty_descs).",
        |socket| socket.fill_ring_empty,
    ),
    (
        "xvs_socket_dropped_packets_total",
        Kind::Counter,
        "Packets dropped by the kernel for another reason, such as their size (rx_dropped).",
        |socket| socket.receive_dropped,
    ),
    (
        "xvs_socket_invalid_fill_descriptors_total",
        Kind::Counter,
        "Free frames that the kernel refused (rx_invalid_descs); any value but 0 is a bug.",
        |socket| socket.fill_invalid,
    ),
    (
        "xvs_socket_invalid_transmit_descriptors_total",
        Kind::Counter,
        "Frames to send that the kernel refused (tx_invalid_descs); any value but 0 is a bug.",
        |socket| socket.transmit_invalid,
    ),
    (
        "xvs_socket_transmit_ring_empty_total",
        Kind::Counter,
        "Times that the kernel found no frame to send (tx_ring_empty_descs).",
        |socket| socket.transmit_ring_empty,
    ),
    (
        "xvs_socket_refused_descriptors_total",
        Kind::Counter,
        "Frames named by the kernel that were not lent to it; any value but 0 is a bug.",
        |socket| socket.descriptors_refused,
    ),
    ("xvs_socket_receive_frames", Kind::Gauge, "Frames lent to the kernel for received packets.", |socket| {
        socket.lent_to_receive.into()
    }),
    (
        "xvs_socket_transmit_frames",
        Kind::Gauge,
        "Frames lent to the kernel to be sent; at transmit_ring further ones are refused.",
        |socket| socket.lent_to_transmit.into(),
    ),
];

/// The first bound of the histogram is 2^7 µs: shorter times need no distinction.
const FIRST_DURATION_BOUND: usize = 7;
