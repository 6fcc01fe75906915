//! Metrics for Prometheus: counters, gauges and facts of the daemon, as a page of text in pieces.
//!
//! The exporter ([`crate::metrics::exporter`]) builds a page for each scrape, from the workers' counters and the
//! snapshot in force, without the control thread. A deleted service is not on the next page. Counters count from the
//! daemon's start; `xvsadm -Z` does not affect them. A service that is deleted and added again starts at 0. Cost: less
//! than a microsecond for each line; memory for one piece at a time, with any number of services. Not here: rates;
//! Prometheus computes them.

use std::sync::Arc;

use services::{DestinationLimit, FAMILIES, Items};
use text::Text;
use xvs_dataplane::snapshot::Snapshot;
use xvs_model::report::health::HealthReport;
use xvs_sched::ServiceKey;

use crate::shared::Shared;

pub mod admission;
mod director;
pub mod exporter;
mod health;
mod process;
mod services;
mod text;

/// The lines of destinations on a page.
#[derive(Debug, Clone, Copy)]
pub struct Destinations {
    /// The largest number of destinations of a service that have their own lines: the destinations added first. The
    /// metrics of the service include all destinations.
    pub most: usize,
    /// Whether destinations have the histogram of times until the first reply.
    pub response_times: bool,
}

/// All current metrics, in Prometheus' text format 0.0.4.
pub fn page(shared: &Shared, Destinations { most, response_times }: Destinations) -> Page {
    let snapshot = shared.published.load_full();
    let limit = DestinationLimit(most);
    let mut services: Vec<_> = snapshot.services.iter().map(|service| service.key).collect();
    services.sort_unstable();
    let health = shared.health();
    let mut text = Text::default();
    process::text(&mut text);
    director::write(&mut text, shared, &snapshot, health.as_ref(), limit);
    if let Some(health) = &health {
        health::file(&mut text, health, limit);
    }
    Page { snapshot, health, limit, response_times, services, text, family: 0, item: 0 }
}

/// A page, in pieces of some tens of kilobytes each. Values are read piece by piece; the list of services stays the
/// same.
pub struct Page {
    snapshot: Arc<Snapshot>,
    /// The health at the start of the page.
    health: Option<HealthReport>,
    limit: DestinationLimit,
    response_times: bool,
    /// The services, in the order of the page.
    services: Vec<ServiceKey>,
    /// The beginning of the next piece.
    text: Text,
    /// The index of the next family in [`FAMILIES`], followed by [`health::FAMILIES`].
    family: usize,
    /// The index of the next item in `services`, or in the virtual servers of `health`.
    item: usize,
}

impl Iterator for Page {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut text = std::mem::take(&mut self.text);
        while text.len() < PIECE_BYTES && self.write(&mut text) {}
        (text.len() > 0).then(|| text.into())
    }
}

impl Page {
    /// Writes the lines of the next item; `false` at the end. All lines of a family must be together, so each family
    /// needs a pass over all services.
    fn write(&mut self, text: &mut Text) -> bool {
        let is_written = match FAMILIES.get(self.family) {
            Some(family) if !self.response_times && matches!(family.items, Items::Responses) => None,
            Some(family) => {
                if self.item == 0 {
                    family.begin(text);
                }
                self.services.get(self.item).map(|key| {
                    let service = self.snapshot.services.find(key).expect("the snapshot does not change");
                    family.write(text, &self.snapshot, service, self.limit);
                })
            }
            None => {
                let Some(health) = &self.health else { return false };
                let Some(family) = health::FAMILIES.get(self.family - FAMILIES.len()) else { return false };
                if self.item == 0 {
                    family.begin(text);
                }
                health.virtual_servers.get(self.item).map(|server| family.write(text, server, self.limit))
            }
        };
        match is_written {
            Some(()) => self.item += 1,
            None => (self.family, self.item) = (self.family + 1, 0),
        }
        true
    }
}

/// A piece ends with the item at which it reaches this length.
const PIECE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use xvs_ctl::control::Control;
    use xvs_ctl::in_memory::MemoryDatapath;
    use xvs_dataplane::clock::Millis;
    use xvs_dataplane::verdict::DropReason;
    use xvs_ipvsadm::{SystemResolver, read_rules};
    use xvs_model::config::load_feedback::Feedback;
    use xvs_model::config::settings::Ipvs;
    use xvs_model::protocol::question::ControlRequest;
    use xvs_model::protocol::request::Access;
    use xvs_model::report::health::{
        AgentHealth, AgentMode, CheckHealth, CheckState, SorryServerHealth, sample,
    };
    use xvs_model::report::status::{InterfaceStatus, LinkState};
    use xvs_proto::MacAddr;
    use xvs_proto::network::Network;
    use xvs_xdp::polling::Poll;

    use crate::facts::{Facts, WorkerFacts};
    use crate::metrics::*;

    fn change(control: &mut Control<MemoryDatapath>, rules: &str) {
        let rules = read_rules(rules, &SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        control.handle(&ControlRequest::Restore(commands), Millis(0)).unwrap();
    }

    /// A daemon of one worker in generic mode.
    fn daemon(control: &Control<MemoryDatapath>) -> Shared {
        let interface = InterfaceStatus {
            name: "wan".to_owned(),
            mode: "generic".to_owned(),
            why_not_native: Some("the driver said \"no\"\nand C:\\".to_owned()),
            queues: 1,
            state: LinkState::Down,
            attached_again: 2,
            pinned: true,
            bond: None,
            offload: None,
        };
        let (copy_mode, queues, sockets) = ("copy".to_owned(), vec![vec![0]], Arc::default());
        let worker = WorkerFacts { core: Some(1), copy_mode, poll: Poll::Sleep, queues, sockets };
        let facts = Facts { interfaces: vec![interface], workers: vec![worker], ..Facts::default() };
        Shared { facts: Mutex::new(facts), ..Shared::of_one_worker(control) }
    }

    /// A daemon of one worker in generic mode, with a keepalived.conf.
    fn checking_daemon(control: &Control<MemoryDatapath>, health: HealthReport) -> Shared {
        let shared = daemon(control);
        let _ = shared.report.set(health);
        shared
    }

    const ALL: Destinations = Destinations { most: usize::MAX, response_times: true };

    /// The whole page, with all destinations.
    fn whole(shared: &Shared) -> String {
        page(shared, ALL).collect()
    }

    /// The values by name and labels.
    fn values(page: &str) -> BTreeMap<&str, &str> {
        page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' ')).collect()
    }

    #[test]
    fn totals_and_gauges_of_services_are_current_and_a_deleted_service_has_none() {
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let rules =
            "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 192.0.2.11:80 -g -w 7\n-A -f 5 -6 -s wlc\n";
        change(&mut control, rules);
        let shared = daemon(&control);
        let snapshot = shared.published.load_full();
        for service in snapshot.services.iter() {
            for stats in service.members.iter().map(|member| member.live.stats.of_worker(0)) {
                stats.connections.add(3);
                stats.count_in(60);
            }
        }
        let text = whole(&shared);
        let metrics = values(&text);
        let destination = "{service=\"TCP 192.0.2.1:80\",destination=\"192.0.2.11:80\"}";
        for (name, value) in [
            ("xvs_service_connections_total{service=\"TCP 192.0.2.1:80\"}".to_owned(), "3"),
            ("xvs_service_connections_total{service=\"FWM 5 IPv6\"}".to_owned(), "0"),
            (format!("xvs_destination_incoming_packets_total{destination}"), "1"),
            (format!("xvs_destination_incoming_bytes_total{destination}"), "60"),
            (format!("xvs_destination_weight{destination}"), "7"),
            (format!("xvs_destination_weight_in_force{destination}"), "7"),
            (format!("xvs_destination_overloaded{destination}"), "0"),
            ("xvs_snapshot_epoch".to_owned(), "1"),
            ("xvs_table_size_connections".to_owned(), "1024"),
        ] {
            assert_eq!(metrics.get(name.as_str()), Some(&value), "{name} in\n{text}");
        }
        change(&mut control, "-D -t 192.0.2.1:80\n");
        let text = whole(&shared);
        assert!(!text.contains("192.0.2.1") && text.contains("FWM 5 IPv6"), "{text}");
    }

    #[test]
    fn each_counter_of_a_worker_and_the_reason_for_generic_mode_are_on_the_page() {
        let control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let shared = daemon(&control);
        let worker = &shared.counters[0];
        worker.dropped(DropReason::TransmitRefused).add(4);
        worker.kernel_ring_full.add(5);
        [0, 1, 3, 64].into_iter().for_each(|frames| worker.count_poll(frames));
        worker.count_busy(Duration::from_millis(2500));
        worker.unaccounted.set(6);
        shared.request_durations.count(Access::Change, Duration::from_micros(200));
        let text = whole(&shared);
        let metrics = values(&text);
        let why = "why_not_native=\"the driver said \\\"no\\\"\\nand C:\\\\\"";
        for (name, value) in [
            (format!("xvs_interface_info{{interface=\"wan\",mode=\"generic\",{why}}}"), "1"),
            ("xvs_interface_up{interface=\"wan\"}".to_owned(), "0"),
            ("xvs_interface_attached_again_total{interface=\"wan\"}".to_owned(), "2"),
            ("xvs_interface_pinned{interface=\"wan\"}".to_owned(), "1"),
            ("xvs_worker_dropped_packets_total{worker=\"0\",reason=\"transmit_refused\"}".to_owned(), "4"),
            ("xvs_worker_kernel_dropped_packets_total{worker=\"0\",reason=\"ring_full\"}".to_owned(), "5"),
            ("xvs_worker_busy_seconds_total{worker=\"0\"}".to_owned(), "2.5"),
            ("xvs_worker_empty_polls_total{worker=\"0\"}".to_owned(), "1"),
            ("xvs_worker_unaccounted_packets{worker=\"0\"}".to_owned(), "6"),
            ("xvs_worker_burst_packets_bucket{worker=\"0\",le=\"2\"}".to_owned(), "1"),
            ("xvs_worker_burst_packets_bucket{worker=\"0\",le=\"64\"}".to_owned(), "3"),
            ("xvs_worker_burst_packets_sum{worker=\"0\"}".to_owned(), "68"),
            ("xvs_command_duration_seconds_bucket{kind=\"change\",le=\"0.000128\"}".to_owned(), "0"),
            ("xvs_command_duration_seconds_bucket{kind=\"change\",le=\"0.000256\"}".to_owned(), "1"),
            ("xvs_command_duration_seconds_sum{kind=\"change\"}".to_owned(), "0.0002"),
            ("xvs_command_duration_seconds_count{kind=\"read\"}".to_owned(), "0"),
        ] {
            assert_eq!(metrics.get(name.as_str()), Some(&value), "{name} in\n{text}");
        }
        // As many values as `xvs counters` has, so that a new counter cannot be forgotten here.
        let others = ["info", "busy", "empty", "unaccounted", "burst"];
        let counters = metrics.keys().filter_map(|key| key.strip_prefix("xvs_worker_"));
        let counters = counters.filter(|key| !others.iter().any(|other| key.starts_with(other)));
        assert_eq!(counters.count(), worker.all().count());
    }

    #[test]
    fn destinations_have_the_names_and_labels_of_node_exporter_and_totals_outlive_services() {
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let rules = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 192.0.2.11:8080 -m -w 7\n\
                     -A -u [2001:db8::1]:53 -s rr\n-a -u [2001:db8::1]:53 -r [2001:db8::b]:53 -g -w 0\n\
                     -A -f 171 -s rr\n-a -f 171 -r 192.0.2.12:0 -i -w 2\n\
                     -A -f 171 -6 -s rr\n-a -f 171 -6 -r 192.0.2.12 -i -w 3\n-a -f 171 -6 -r [2001:db8::c]:0 -i -w 5\n";
        change(&mut control, rules);
        let shared = daemon(&control);
        shared.total.of_worker(0).count_in(60);
        let text = whole(&shared);
        let metrics = values(&text);
        let backends: Vec<_> = metrics
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("node_ipvs_backend_weight")?, *value)))
            .collect();
        let labels = |local: &str, mark: &str, port: u16, proto: &str, remote: &str, remote_port: u16| {
            format!(
                "{{local_address=\"{local}\",local_mark=\"{mark}\",local_port=\"{port}\",proto=\"{proto}\",\
                 remote_address=\"{remote}\",remote_port=\"{remote_port}\"}}"
            )
        };
        let expected = [
            (labels("", "000000AB", 0, "FWM", "192.0.2.12", 0), "5"),
            (labels("", "000000AB", 0, "FWM", "2001:db8::c", 0), "5"),
            (labels("192.0.2.1", "", 80, "TCP", "192.0.2.11", 8080), "7"),
            (labels("2001:db8::1", "", 53, "UDP", "2001:db8::b", 53), "0"),
        ];
        assert_eq!(backends, expected.each_ref().map(|(labels, weight)| (labels.as_str(), *weight)));
        change(&mut control, "-C\n");
        let text = whole(&shared);
        let metrics = values(&text);
        assert!(!text.contains("192.0.2."), "{text}");
        assert_eq!(
            ["node_ipvs_incoming_packets_total", "node_ipvs_incoming_bytes_total"].map(|name| metrics[name]),
            ["1", "60"]
        );
    }

    #[test]
    fn a_service_has_lines_for_a_limited_number_of_destinations_the_first_added_and_counts_the_others() {
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let mut network = Network::default();
        network.add_link("lan", MacAddr([2; 6]), &[([192, 0, 2, 254].into(), 24)], 1500).unwrap();
        let mut rules = "-A -t 192.0.2.1:80 -s rr\n-A -t 192.0.2.1:81 -s rr\n".to_owned();
        for host in 11..16 {
            if host < 15 {
                network.add_neighbour([192, 0, 2, host].into(), MacAddr([4; 6]), "lan").unwrap();
            }
            rules.push_str(&format!("-a -t 192.0.2.1:80 -r 192.0.2.{host}:80 -g -w {}\n", host % 2));
        }
        control.set_network(&network);
        change(&mut control, &rules);
        let shared = daemon(&control);
        let text: String = page(&shared, Destinations { most: 2, ..ALL }).collect();
        let metrics = values(&text);
        let weights: Vec<_> =
            metrics.keys().filter(|key| key.starts_with("xvs_destination_weight{")).collect();
        let labels = |host| format!("{{service=\"TCP 192.0.2.1:80\",destination=\"192.0.2.{host}:80\"}}");
        assert_eq!(
            weights,
            [11, 12].map(|host| format!("xvs_destination_weight{}", labels(host))).each_ref()
        );
        assert_eq!(metrics.keys().filter(|key| key.starts_with("node_ipvs_backend_weight{")).count(), 2);
        for (name, value) in [
            ("xvs_destinations_left_out", "3"),
            ("xvs_service_destinations{service=\"TCP 192.0.2.1:80\"}", "5"),
            // Of the three with a weight one has no neighbour entry.
            ("xvs_service_usable_destinations{service=\"TCP 192.0.2.1:80\"}", "2"),
            ("xvs_service_destinations{service=\"TCP 192.0.2.1:81\"}", "0"),
            ("xvs_service_usable_destinations{service=\"TCP 192.0.2.1:81\"}", "0"),
        ] {
            assert_eq!(metrics.get(name), Some(&value), "{name} in\n{text}");
        }
        let text: String = page(&shared, Destinations { most: 0, ..ALL }).collect();
        assert!(!text.contains("192.0.2.11") && text.contains("xvs_destinations_left_out 5\n"), "{text}");
    }

    #[test]
    fn measured_destinations_have_a_histogram_of_their_response_times_that_can_be_switched_off() {
        let mut control = Control::new(MemoryDatapath::default(), 2, Ipvs::default(), Feedback::default());
        let rules = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 192.0.2.11:80 -m\n\
                     -a -t 192.0.2.1:80 -r 192.0.2.12:80 -g\n";
        change(&mut control, rules);
        let shared = daemon(&control);
        let snapshot = shared.published.load_full();
        let mut members = snapshot.services.iter().flat_map(|service| &service.members);
        let measured = members.find(|member| member.endpoint.to_string() == "192.0.2.11:80").unwrap();
        for (worker, micros) in [(0, 64), (1, 65), (1, 9_000_000)] {
            measured.live.responses.count(worker, micros);
        }
        let text = whole(&shared);
        let metrics = values(&text);
        let labels = "service=\"TCP 192.0.2.1:80\",destination=\"192.0.2.11:80\"";
        for (suffix, le, value) in [
            ("_bucket", ",le=\"0.000064\"", "1"),
            ("_bucket", ",le=\"0.000128\"", "2"),
            ("_bucket", ",le=\"8.388608\"", "2"),
            ("_bucket", ",le=\"+Inf\"", "3"),
            ("_sum", "", "9.000129"),
            ("_count", "", "3"),
        ] {
            let name = format!("xvs_destination_response_seconds{suffix}{{{labels}{le}}}");
            assert_eq!(metrics.get(name.as_str()), Some(&value), "{name} in\n{text}");
        }
        let lines = |text: &str| text.lines().filter(|line| line.contains("response_seconds")).count();
        assert_eq!(lines(&text), 2 + 21, "a header, and the lines of the measured one alone");
        let without: String = page(&shared, Destinations { response_times: false, ..ALL }).collect();
        assert_eq!(lines(&without), 0);
        assert!(without.contains("node_ipvs_backend_weight{"), "{without}");
    }

    #[test]
    fn health_has_metrics_of_the_file_and_each_virtual_server_real_server_and_check() {
        let control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let servers = [
            sample::real_server("192.0.2.11", CheckState::Up),
            sample::real_server("192.0.2.12", CheckState::Rising { successes: 1, rise: 2 }),
        ];
        let mut web = sample::virtual_server("198.51.100.1", servers.into());
        // Two equal checks are still two.
        let again = web.real_servers[0].checks[0].clone();
        web.real_servers[0].checks.push(CheckHealth { asked: 7, took_micros: None, ..again });
        let agent = AgentHealth {
            answer: "75%".to_owned(),
            at_millis: 0,
            excessive_percent: None,
            weight_percent: 75,
            mode: AgentMode::Ready,
        };
        web.real_servers[0].checks[0].agent = Some(agent.clone());
        web.real_servers[0].checks[1].agent = Some(AgentHealth { mode: AgentMode::Maint, ..agent });
        let mut lost = sample::virtual_server("198.51.100.2", Vec::new());
        let endpoint = "192.0.2.99:80".to_owned();
        lost.sorry_server = Some(SorryServerHealth { endpoint, serves: true });
        let health = HealthReport {
            refused: Some("k.conf:3: error".to_owned()),
            refusals: 2,
            ..sample::report(vec![web, lost])
        };
        let shared = checking_daemon(&control, health);
        shared.facts_mut().drift = ["xvsadm -C".to_owned()].into();
        let text = whole(&shared);
        let metrics = values(&text);
        let (service, empty) = ("service=\"TCP 198.51.100.1:80\"", "service=\"TCP 198.51.100.2:80\"");
        let check = |host, number, probe: &str| {
            format!("{{{service},destination=\"192.0.2.{host}:80\",check=\"{number}\"{probe}}}")
        };
        let rising = check(12, 1, ",probe=\"TCP 192.0.2.12:80\",state=\"rising\"");
        for (name, value) in [
            ("file_read_timestamp_seconds".to_owned(), "1795184592.123"),
            ("file_reads_total".to_owned(), "1"),
            ("file_refusals_total".to_owned(), "2"),
            ("file_refused".to_owned(), "1"),
            ("file_faults".to_owned(), "0"),
            ("drift_commands".to_owned(), "1"),
            ("destinations_left_out".to_owned(), "0"),
            (format!("service_well{{{service}}}"), "1"),
            (format!("service_well{{{empty}}}"), "0"),
            (format!("service_live_weight{{{service}}}"), "1"),
            (format!("service_quorum_weight{{{service}}}"), "1"),
            (format!("service_destinations{{{service}}}"), "2"),
            (format!("service_destinations_up{{{service}}}"), "1"),
            (format!("service_sorry_server_serves{{{empty}}}"), "1"),
            (format!("destination_up{{{service},destination=\"192.0.2.11:80\"}}"), "1"),
            (format!("destination_up{{{service},destination=\"192.0.2.12:80\"}}"), "0"),
            (format!("check_info{rising}"), "1"),
            (format!("check_up{}", check(12, 1, "")), "0"),
            (format!("check_weight_ratio{}", check(11, 1, "")), "0.75"),
            (format!("check_weight_ratio{}", check(11, 2, "")), "0"),
            (format!("check_asked_total{}", check(11, 2, "")), "7"),
            (format!("check_failed_total{}", check(12, 1, "")), "1"),
            (format!("check_duration_seconds{}", check(11, 1, "")), "0.0015"),
        ] {
            assert_eq!(metrics.get(format!("xvs_health_{name}").as_str()), Some(&value), "{name} in\n{text}");
        }
        for (kind, object) in
            [("no_quorum", "TCP 198.51.100.2:80"), ("server_down", "TCP 198.51.100.1:80 192.0.2.12:80")]
        {
            let sample = format!("xvs_warning{{kind=\"{kind}\",object=\"{object}\"}}");
            assert_eq!(metrics.get(sample.as_str()), Some(&"1"), "{sample} in\n{text}");
        }
        for absent in [
            "service_sorry_server_serves{service=\"TCP 198.51.100.1:80\"}",
            "check_duration_seconds{service=\"TCP 198.51.100.1:80\",destination=\"192.0.2.11:80\",check=\"2\"}",
        ] {
            assert!(!text.contains(absent), "{text}");
        }
        let text: String = page(&shared, Destinations { most: 1, ..ALL }).collect();
        assert!(
            text.contains("xvs_health_destinations_left_out 1\n")
                && !text.contains("destination=\"192.0.2.12"),
            "{text}"
        );
        let without: String = page(&daemon(&control), ALL).collect();
        assert!(!without.contains("xvs_health_"), "{without}");
    }

    #[test]
    fn a_page_of_many_pieces_has_all_lines_of_a_family_together() {
        let mut control = Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default());
        let rules: String = (1..500)
            .map(|port| format!("-A -t 192.0.2.1:{port} -s rr\n-a -t 192.0.2.1:{port} -r 192.0.2.11 -g\n"))
            .collect();
        change(&mut control, &rules);
        let server = |number: u16| {
            let servers = vec![sample::real_server("192.0.2.11", CheckState::Up)];
            sample::virtual_server(&format!("198.51.100.{number}"), servers)
        };
        let shared = checking_daemon(&control, sample::report((1..500).map(server).collect()));
        let pieces: Vec<_> = page(&shared, ALL).collect();
        assert!(pieces.len() > 5 && pieces.iter().all(|piece| piece.len() < 2 * PIECE_BYTES));
        let text = pieces.concat();
        let mut names = Vec::new();
        for line in text.lines() {
            let line = line.strip_prefix("# HELP ").unwrap_or(line);
            let name = line.strip_prefix("# TYPE ").unwrap_or(line).split(['{', ' ']).next().unwrap();
            let name =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(
            values(&text).keys().filter(|key| key.starts_with("node_ipvs_backend_weight{")).count(),
            499
        );
        assert_eq!(values(&text).keys().filter(|key| key.starts_with("xvs_health_check_info{")).count(), 499);
    }
}
