//! What Prometheus is told: counters, gauges and facts of a running daemon, as one page of text.
//!
//! Made anew for each scrape by who serves it ([`crate::exporter`]), from the numbers that workers write and from the
//! snapshot that they act on: the control thread has no part in it, and a service that was deleted is not on the next
//! page. Counters are those since the start, whatever `xvsadm -Z` made listings begin from; a service that is deleted and
//! added again begins at 0. Cost: some microseconds and a hundred bytes for each line. Not here: rates, which are the
//! reader's to compute.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use xvs_dataplane::counters::{SharedStats, WorkerCounters};
use xvs_dataplane::snapshot::{Member, Service, Snapshot};
use xvs_dataplane::verdict::DropReason;

use crate::shared::{Facts, InterfaceFacts, LinkState, Shared, WorkerFacts};

/// Everything there is to tell now, in Prometheus' text format 0.0.4.
pub fn page(shared: &Shared) -> String {
    let page = Page { recorder: PrometheusBuilder::new().build_recorder(), described: RefCell::default() };
    let (facts, snapshot) = (shared.facts(), shared.published.load_full());
    page.daemon(shared, &facts, &snapshot);
    facts.interfaces.iter().for_each(|interface| page.interface(interface));
    for (number, (worker, counters)) in facts.workers.iter().zip(shared.workers()).enumerate() {
        page.worker(number, worker, counters);
    }
    for service in snapshot.services.iter() {
        page.service(service);
    }
    page.recorder.handle().render()
}

/// A page that is being written.
struct Page {
    recorder: PrometheusRecorder,
    /// Names that have their help already.
    described: RefCell<BTreeSet<&'static str>>,
}

impl Page {
    fn counter(&self, name: &'static str, help: &'static str, labels: &[Label], value: u64) {
        if self.described.borrow_mut().insert(name) {
            self.recorder.describe_counter(name.into(), None, help.into());
        }
        let key = Key::from_parts(name, labels.to_vec());
        self.recorder.register_counter(&key, &METADATA).absolute(value);
    }

    fn gauge(&self, name: &'static str, help: &'static str, labels: &[Label], value: f64) {
        if self.described.borrow_mut().insert(name) {
            self.recorder.describe_gauge(name.into(), None, help.into());
        }
        let key = Key::from_parts(name, labels.to_vec());
        self.recorder.register_gauge(&key, &METADATA).set(value);
    }

    fn daemon(&self, shared: &Shared, facts: &Facts, snapshot: &Snapshot) {
        let version = [Label::new("version", env!("CARGO_PKG_VERSION"))];
        self.gauge("xvs_build_info", "Always 1; the version of xvsd.", &version, 1.0);
        let table = shared.table();
        let uptime = Duration::from_millis(shared.now().0).as_secs_f64();
        let (services, destinations) = shared.configured();
        for (name, help, value) in [
            ("xvs_uptime_seconds", "How long xvsd has been running.", uptime),
            (
                "xvs_snapshot_epoch",
                "Configurations published so far; the last one is in force.",
                snapshot.epoch as f64,
            ),
            ("xvs_services", "Virtual services.", services as f64),
            ("xvs_destinations", "Destinations (real servers) of all services.", destinations as f64),
            (
                "xvs_warnings",
                "Sentences for the operator that xvs status shows.",
                facts.warnings.len() as f64,
            ),
            (
                "xvs_table_size_connections",
                "Connections and templates that the table holds.",
                table.config().capacity as f64,
            ),
            ("xvs_table_connections", "Connections and templates in the table.", table.live() as f64),
        ] {
            self.gauge(name, help, &[], value);
        }
        let swept = [
            ("worthless", &shared.swept.worthless),
            ("orphaned", &shared.swept.orphaned),
            ("drained", &shared.swept.drained),
        ];
        for (reason, count) in swept {
            let help = "Connections and templates ended by drop_entry (worthless), expire_nodest_conn (orphaned) and xvs drain (drained).";
            self.counter("xvs_swept_connections_total", help, &[Label::new("reason", reason)], count.value());
        }
    }

    fn interface(&self, interface: &InterfaceFacts) {
        let name = Label::new("interface", interface.name.clone());
        let info = [
            name.clone(),
            Label::new("mode", interface.mode.clone()),
            Label::new("why_not_native", interface.why_not_native.clone().unwrap_or_default()),
        ];
        let help = "Always 1; the XDP mode of an attached interface, and why it is not native.";
        self.gauge("xvs_interface_info", help, &info, 1.0);
        let name = [name];
        let up = f64::from(u8::from(interface.state == LinkState::Up));
        self.gauge("xvs_interface_up", "Whether an attached interface is up (1).", &name, up);
        let help = "How often an interface was removed, came back and was attached again.";
        self.counter("xvs_interface_attached_again_total", help, &name, interface.attached_again.into());
    }

    fn worker(&self, number: usize, facts: &WorkerFacts, counters: &WorkerCounters) {
        let worker = Label::new("worker", number.to_string());
        let info = [
            worker.clone(),
            Label::new("core", facts.core.map(|core| core.to_string()).unwrap_or_default()),
            Label::new("copy_mode", facts.copy_mode.clone()),
        ];
        let help =
            "Always 1; the core of a worker, and whether the kernel copies its frames and because of what.";
        self.gauge("xvs_worker_info", help, &info, 1.0);
        let only = [worker.clone()];
        let held = counters.held.value() as f64;
        self.gauge("xvs_worker_held_packets", "Fragments that wait for others.", &only, held);
        for (name, help, counter) in [
            ("xvs_worker_received_packets_total", "Frames received by AF_XDP.", &counters.received),
            ("xvs_worker_originated_packets_total", "Frames that the director made.", &counters.originated),
            ("xvs_worker_transmitted_packets_total", "Frames sent by AF_XDP.", &counters.transmitted),
            ("xvs_worker_passed_packets_total", "Frames given back to the kernel.", &counters.passed),
            (
                "xvs_worker_consumed_packets_total",
                "Frames that had done what they were for.",
                &counters.consumed,
            ),
            (
                "xvs_worker_abandoned_packets_total",
                "Frames counted as transmitted that may not have left, because an interface was attached again.",
                &counters.transmit_abandoned,
            ),
            (
                "xvs_worker_withheld_answers_total",
                "ICMP errors that were not sent, by their rate limit or for want of a frame.",
                &counters.answers_withheld,
            ),
            ("xvs_worker_connections_total", "Connections made.", &counters.connections),
            ("xvs_worker_expired_connections_total", "Connections ended by time.", &counters.expired),
            (
                "xvs_worker_evicted_connections_total",
                "Connections and templates that gave way because the table was full.",
                &counters.evicted,
            ),
            (
                "xvs_worker_toa_left_out_packets_total",
                "Packets that had no room for the client's address as a TCP option (TOA).",
                &counters.toa_no_room,
            ),
        ] {
            self.counter(name, help, &only, counter.value());
        }
        for reason in DropReason::all() {
            let labels = [worker.clone(), Label::new("reason", reason.name())];
            let help = "Frames that a worker dropped, by reason.";
            self.counter("xvs_worker_dropped_packets_total", help, &labels, counters.dropped(reason).value());
        }
        for (reason, count) in [
            ("ring_full", &counters.kernel_ring_full),
            ("fill_ring_empty", &counters.kernel_fill_ring_empty),
            ("other", &counters.kernel_dropped),
        ] {
            let labels = [worker.clone(), Label::new("reason", reason)];
            let help = "Packets that the kernel dropped before a worker had them, by reason.";
            self.counter("xvs_worker_kernel_dropped_packets_total", help, &labels, count.value());
        }
    }

    fn service(&self, service: &Service) {
        let label = Label::new("service", service.key.to_string());
        self.traffic(&SERVICE, std::slice::from_ref(&label), &service.live.stats);
        for member in &service.members {
            let labels = [label.clone(), Label::new("destination", member.endpoint.to_string())];
            self.destination(&labels, member);
        }
    }

    fn destination(&self, labels: &[Label], member: &Member) {
        let (live, load) = (&member.live, member.live.load());
        self.traffic(&DESTINATION, labels, &live.stats);
        for (name, help, value) in [
            ("xvs_destination_active_connections", "ActiveConn of a destination.", load.active),
            ("xvs_destination_inactive_connections", "InActConn of a destination.", load.inactive),
            ("xvs_destination_persistent_connections", "PersistConn of a destination.", live.templates()),
            (
                "xvs_destination_weight",
                "The weight that the operator gave a destination.",
                member.own_weight.0,
            ),
            (
                "xvs_destination_weight_in_force",
                "The weight that the scheduler goes by; load reports may have moved it.",
                member.weight.0,
            ),
            (
                "xvs_destination_overloaded",
                "Whether a destination takes no new connections because of its thresholds (1).",
                u32::from(live.is_overloaded()),
            ),
        ] {
            self.gauge(name, help, labels, value.into());
        }
    }

    fn traffic(&self, names: &[(&'static str, &'static str); 5], labels: &[Label], stats: &SharedStats) {
        let sum = stats.sum();
        let values = [sum.connections, sum.in_packets, sum.out_packets, sum.in_bytes, sum.out_bytes];
        for ((name, help), value) in names.iter().zip(values) {
            self.counter(name, help, labels, value);
        }
    }
}

/// Needed by the library, used by nobody here.
static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// Names and help of what services and destinations count, in the order of their values.
const SERVICE: [(&str, &str); 5] = [
    ("xvs_service_connections_total", "Connections scheduled by a service."),
    ("xvs_service_incoming_packets_total", "Packets from clients to a service (InPkts)."),
    ("xvs_service_outgoing_packets_total", "Packets of a service to clients (OutPkts)."),
    ("xvs_service_incoming_bytes_total", "Bytes of IP packets from clients to a service (InBytes)."),
    ("xvs_service_outgoing_bytes_total", "Bytes of IP packets of a service to clients (OutBytes)."),
];
const DESTINATION: [(&str, &str); 5] = [
    ("xvs_destination_connections_total", "Connections scheduled to a destination."),
    ("xvs_destination_incoming_packets_total", "Packets from clients to a destination (InPkts)."),
    ("xvs_destination_outgoing_packets_total", "Packets of a destination to clients (OutPkts)."),
    ("xvs_destination_incoming_bytes_total", "Bytes of IP packets from clients to a destination (InBytes)."),
    ("xvs_destination_outgoing_bytes_total", "Bytes of IP packets of a destination to clients (OutBytes)."),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use xvs_dataplane::clock::{Clock, Millis};
    use xvs_dataplane::conn::{Table, TableConfig};
    use xvs_dataplane::shm::Memory;

    use super::*;
    use crate::adm::{SystemResolver, read_rules};
    use crate::control::Control;
    use crate::feedback::Feedback;
    use crate::lab::Unwired;
    use crate::message::Request;
    use crate::settings::Ipvs;

    fn change(control: &mut Control<Unwired>, rules: &str) {
        let rules = read_rules(rules, &SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        control.handle(&Request::Restore(commands), Millis(0)).unwrap();
    }

    /// A daemon of one worker in generic mode.
    fn daemon(control: &Control<Unwired>) -> Shared {
        let table = TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand };
        let table = Table::create(table).unwrap();
        let interface = InterfaceFacts {
            name: "wan".to_owned(),
            mode: "generic".to_owned(),
            why_not_native: Some("the driver said \"no\"\nand C:\\".to_owned()),
            queues: 1,
            state: LinkState::Down,
            attached_again: 2,
        };
        let worker = WorkerFacts { core: Some(1), copy_mode: "copy".to_owned(), queues: vec![vec![0]] };
        let facts = Facts { interfaces: vec![interface], workers: vec![worker], ..Facts::default() };
        Shared {
            clock: Arc::new(Clock::monotonic()),
            reader: Mutex::new(table.reader().unwrap()),
            table,
            published: control.published(),
            counters: vec![Arc::default()],
            swept: Arc::default(),
            history: Default::default(),
            facts: Mutex::new(facts),
        }
    }

    /// Every line that is a value.
    fn values(page: &str) -> BTreeMap<&str, &str> {
        page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' ')).collect()
    }

    #[test]
    fn totals_and_gauges_of_services_are_those_of_now_and_what_is_deleted_is_gone() {
        let mut control = Control::new(Unwired::default(), 1, Ipvs::default(), Feedback::default());
        let rules =
            "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 192.0.2.11:80 -g -w 7\n-A -f 5 -6 -s wlc\n";
        change(&mut control, rules);
        let shared = daemon(&control);
        let snapshot = shared.published.load_full();
        for service in snapshot.services.iter() {
            service.live.stats.of_worker(0).connections.add(3);
            service.members.iter().for_each(|member| member.live.stats.of_worker(0).count_in(60));
        }
        let text = page(&shared);
        let told = values(&text);
        let destination = "{service=\"TCP 192.0.2.1:80\",destination=\"192.0.2.11:80\"}";
        for (name, value) in [
            ("xvs_service_connections_total{service=\"TCP 192.0.2.1:80\"}".to_owned(), "3"),
            ("xvs_service_connections_total{service=\"FWM 5 IPv6\"}".to_owned(), "3"),
            (format!("xvs_destination_incoming_packets_total{destination}"), "1"),
            (format!("xvs_destination_incoming_bytes_total{destination}"), "60"),
            (format!("xvs_destination_weight{destination}"), "7"),
            (format!("xvs_destination_weight_in_force{destination}"), "7"),
            (format!("xvs_destination_overloaded{destination}"), "0"),
            ("xvs_snapshot_epoch".to_owned(), "1"),
            ("xvs_table_size_connections".to_owned(), "1024"),
        ] {
            assert_eq!(told.get(name.as_str()), Some(&value), "{name} in\n{text}");
        }
        change(&mut control, "-D -t 192.0.2.1:80\n");
        let text = page(&shared);
        assert!(!text.contains("192.0.2.1") && text.contains("FWM 5 IPv6"), "{text}");
    }

    #[test]
    fn what_a_worker_counts_and_why_it_is_not_in_the_best_mode_is_told_each_once() {
        let control = Control::new(Unwired::default(), 1, Ipvs::default(), Feedback::default());
        let shared = daemon(&control);
        shared.counters[0].dropped(DropReason::TransmitRefused).add(4);
        shared.counters[0].kernel_ring_full.add(5);
        let text = page(&shared);
        let told = values(&text);
        let why = "why_not_native=\"the driver said \\\"no\\\"\\nand C:\\\\\"";
        for (name, value) in [
            (format!("xvs_interface_info{{interface=\"wan\",mode=\"generic\",{why}}}"), "1"),
            ("xvs_interface_up{interface=\"wan\"}".to_owned(), "0"),
            ("xvs_interface_attached_again_total{interface=\"wan\"}".to_owned(), "2"),
            ("xvs_worker_dropped_packets_total{worker=\"0\",reason=\"transmit_refused\"}".to_owned(), "4"),
            ("xvs_worker_kernel_dropped_packets_total{worker=\"0\",reason=\"ring_full\"}".to_owned(), "5"),
        ] {
            assert_eq!(told.get(name.as_str()), Some(&value), "{name} in\n{text}");
        }
        // As many values as xvs counters has, so that none is forgotten here when one comes.
        let worker =
            told.keys().filter(|key| key.starts_with("xvs_worker_") && !key.contains("_info")).count();
        assert_eq!(worker, shared.counters[0].all().count());
    }
}
