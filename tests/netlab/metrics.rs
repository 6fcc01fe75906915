//! Metrics in Prometheus' format, and the saved rules with which a daemon starts.
//!
//! curl scrapes a daemon under traffic; the page is parsed strictly and compared with the output of other commands.
//! Each test has a cluster of its own. Needs root. Not here: every name, and clients that violate HTTP
//! (`crates/xvsd/src/metrics`).

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;
use xvs::cluster::{VIP, real_server, succeed};
use xvs::director::{Protocol, program};
use xvs::exposition::{ADDRESS, Page};
use xvs::wait;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic};

/// The JSON output of `xvs` or `xvsadm`.
fn json(cluster: &Cluster, name: &str, words: &[&str]) -> Value {
    let text = succeed(cluster.command(Host::Director, program(name)).args(words));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_scrape_under_traffic_equals_counters_and_listings_and_omits_deleted_services() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let director = Director::start_with(&cluster, Workers::Two, &["--metrics", ADDRESS]);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.add_service(Protocol::Tcp, 81, Method::Nat);
    let service = format!("TCP {VIP}:80");
    let of = [("service", service.as_str())];

    // A running download.
    let mut download =
        cluster.run(Host::Client, || clients::connect(xvs::cluster::virtual_endpoint(80))).expect("tcp");
    std::io::Write::write_all(&mut download, b"GET /blob HTTP/1.0\r\n\r\n").expect("request");
    download.peek(&mut [0]).expect("the answer begins");
    let page = Page::of(&cluster, Host::Director);
    assert_eq!(page.sum("xvs_service_connections_total", &of), Some(1.0));
    assert_eq!(page.sum("xvs_destination_active_connections", &of), Some(1.0));
    let mut body = Vec::new();
    download.read_to_end(&mut body).expect("the rest");
    drop(download);
    clients::pages(&cluster, &format!("http://{VIP}/"), 4);

    // Once no packet arrives any more, and the listing's counters are read again.
    wait::until("page, counters and listing are equal", || {
        let before = json(&cluster, "xvs", &["counters", "--json"]);
        let (page, listing) = (Page::of(&cluster, Host::Director), director.adm("-Ln --stats --exact"));
        (before == json(&cluster, "xvs", &["counters", "--json"])).then_some(())?;
        let count = |name: &str| before[name].as_u64().unwrap_or(0) as f64;
        for (metric, name) in [
            ("xvs_worker_received_packets_total", "rx_packets"),
            ("xvs_worker_transmitted_packets_total", "tx_packets"),
            ("xvs_worker_passed_packets_total", "passed_to_kernel"),
            ("xvs_worker_connections_total", "connections"),
        ] {
            assert_eq!(page.sum(metric, &[]), Some(count(name)), "{metric}");
        }
        let drops = before.as_object()?.iter().filter(|(name, _)| name.starts_with("drop_"));
        let drops: u64 = drops.filter_map(|(_, value)| value.as_u64()).sum();
        assert_eq!(page.sum("xvs_worker_dropped_packets_total", &[]), Some(drops as f64));
        let row = listing.lines().find(|line| line.contains(&format!("{VIP}:80")))?;
        let listed: Vec<f64> = row.split_whitespace().skip(2).filter_map(|word| word.parse().ok()).collect();
        let names =
            ["connections", "incoming_packets", "outgoing_packets", "incoming_bytes", "outgoing_bytes"];
        let sums = names.map(|name| page.sum(&format!("xvs_service_{name}_total"), &of));
        let by_destination = names.map(|name| page.sum(&format!("xvs_destination_{name}_total"), &of));
        assert_eq!(sums, by_destination);
        let totals = names.map(|name| page.sum(&format!("node_ipvs_{name}_total"), &[]));
        assert_eq!(totals, sums);
        (sums.map(|value| value.unwrap_or(-1.0)).as_slice() == listed).then_some(())
    });

    // A worker reads its sockets' statistics a second after packets arrived.
    let page = wait::until("the sockets' statistics are shown", || {
        let page = Page::of(&cluster, Host::Director);
        (page.sum("xvs_socket_receive_frames", &[])? > 0.0).then_some(page)
    });
    for worker in ["0", "1"] {
        let count = |name: &str| page.sum(name, &[("worker", worker)]).unwrap_or(f64::NAN);
        let came = ["received", "originated"].map(|name| count(&format!("xvs_worker_{name}_packets_total")));
        let left = ["transmitted", "passed", "consumed", "dropped"]
            .map(|name| count(&format!("xvs_worker_{name}_packets_total")));
        let held = count("xvs_worker_held_packets");
        let came: f64 = came.iter().sum();
        assert_eq!(came, left.iter().sum::<f64>() + held, "worker {worker}");
        assert_eq!(count("xvs_worker_unaccounted_packets"), 0.0, "worker {worker}");
        let received = count("xvs_worker_received_packets_total");
        assert!(count("xvs_worker_burst_packets_sum") >= received, "worker {worker}");
    }
    assert!(page.sum("xvs_worker_busy_seconds_total", &[]) > Some(0.0));
    let sockets = |name: &str| page.sum(&format!("xvs_socket_{name}"), &[]);
    assert_eq!(sockets("invalid_transmit_descriptors_total"), Some(0.0));
    assert_eq!(sockets("refused_descriptors_total"), Some(0.0));
    let changes = [("kind", "change")];
    assert!(page.sum("xvs_command_duration_seconds_count", &changes) >= Some(4.0));
    let server = real_server(1).to_string();
    let backend = [("local_port", "80"), ("proto", "TCP"), ("local_mark", ""), ("remote_address", &*server)];
    assert_eq!(page.sum("node_ipvs_backend_weight", &backend), Some(1.0));
    assert_eq!(page.sum("xvs_interface_info", &[("interface", "wan"), ("mode", "native")]), Some(1.0));
    assert_eq!(page.sum("xvs_destination_weight", &of), Some(2.0));

    director.adm(&format!("-D -t {VIP}:80"));
    let page = Page::of(&cluster, Host::Director);
    assert_eq!(page.sum("xvs_service_connections_total", &of), None);
    assert_eq!(page.sum("xvs_destination_connections_total", &of), None);
    assert_eq!(page.sum("node_ipvs_backend_weight", &backend), None);
    assert_eq!(page.sum("xvs_services", &[]), Some(1.0));
}

/// The process number of the only xvsd on the director's host.
fn daemon(cluster: &Cluster) -> u32 {
    let found = succeed(Command::new("ip").args(["netns", "pids", &cluster.namespace(Host::Director)]));
    let is_daemon = |process: &&str| {
        let comm = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        // Its keeper and its helper are the same program.
        let is_other = ["xvs-keeper\n", "xvs-helper\n"].contains(&&*comm);
        !is_other
            && fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|program| program.ends_with("xvsd"))
    };
    let found: Vec<_> = found.lines().filter(is_daemon).collect();
    let [process] = found[..] else { panic!("{found:?}") };
    process.parse().expect("a number")
}

/// Checks the values `process_*` of a page with those of a process in /proc.
fn assert_is_of(cluster: &Cluster, process: u32) {
    let file = |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).expect("it runs");
    // The fields from the third on (proc(5)).
    let stat = |field: usize| -> f64 {
        let text = file("stat");
        let (_, fields) = text.rsplit_once(") ").expect("the name is in parentheses");
        fields.split(' ').nth(field - 3).expect(&text).parse().expect(&text)
    };
    let count = |name: &str| fs::read_dir(format!("/proc/{process}/{name}")).expect("it runs").count() as f64;
    let ticks: f64 = succeed(Command::new("getconf").arg("CLK_TCK")).trim().parse().expect("a number");
    let cpu = || (stat(14) + stat(15)) / ticks;
    let (files, cpu_before) = (count("fd"), cpu());
    let page = Page::of(cluster, Host::Director);
    let value = |name: &str| page.sum(&format!("process_{name}"), &[]).unwrap_or(f64::NAN);
    assert!((cpu_before..=cpu()).contains(&value("cpu_seconds_total")), "{}", value("cpu_seconds_total"));
    let kibibytes = |name: &str| -> f64 {
        let status = file("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim_end_matches(" kB").trim().parse::<f64>().expect(line) * 1024.0
    };
    for (metric, field) in [("resident_memory_bytes", "VmRSS:"), ("virtual_memory_bytes", "VmSize:")] {
        let ratio = value(metric) / kibibytes(field);
        assert!((0.9..1.1).contains(&ratio), "{metric}: {ratio}");
    }
    // Those of the scrape itself: its connection, and files of /proc.
    assert!((files..=files + 4.0).contains(&value("open_fds")), "{} of {files}", value("open_fds"));
    let limits = file("limits");
    let most = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect(&limits);
    assert_eq!(Some(value("max_fds")), most.split_whitespace().next().and_then(|most| most.parse().ok()));
    assert_eq!(value("threads"), count("task"));
    let kernel = fs::read_to_string("/proc/stat").expect("each Linux has it");
    let booted = kernel.lines().find_map(|line| line.strip_prefix("btime ")).expect(&kernel);
    let booted: f64 = booted.parse().expect("a number");
    assert_eq!(value("start_time_seconds"), booted + stat(22) / ticks);
}

#[test]
fn metrics_of_the_process_are_those_of_proc_and_after_a_take_over_those_of_the_successor() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let arguments = ["--hold", "10s", "--metrics", ADDRESS];
    let mut former = Director::start_with(&cluster, Workers::One, &arguments);
    let first = daemon(&cluster);
    assert_is_of(&cluster, first);
    let _director =
        Director::take_over(&cluster, Workers::One, &arguments).unwrap_or_else(|log| panic!("{log}"));
    assert!(former.has_ended().success(), "{}", former.log());
    let second = daemon(&cluster);
    assert_ne!(first, second);
    assert_is_of(&cluster, second);
}

#[test]
fn a_metrics_address_in_use_is_refused_with_its_name_and_the_next_step() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _busy = cluster.run(Host::Director, || TcpListener::bind(ADDRESS)).expect("a free port");
    let (status, log) = Director::refusal(&cluster, &["--interface", "wan", "--metrics", ADDRESS]);
    assert!(!status.success() && log.contains(ADDRESS) && log.contains("ss -ltnp"), "{log}");
}

#[test]
fn a_token_file_that_everyone_may_read_and_a_certificate_without_its_key_are_refused_at_the_start() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let (file, token) = (cluster.state().join("xvs.toml"), cluster.state().join("token"));
    fs::write(&token, "0a1b2c\n").expect("the cluster's folder takes a new file");
    // After 1 a supervisor tries again: a file may be being renewed.
    for (key, path, why, code) in [
        ("metrics_token_file", &token, "every user may read or change it; `chmod o= ", 1),
        ("metrics_certificate", &token, "without a private key; name its file with metrics_private_key", 2),
    ] {
        fs::write(&file, format!("{key} = {path:?}\n")).expect("the cluster's folder takes a file");
        let arguments = ["--interface", "wan", "--config", file.to_str().expect("a plain path")];
        let (status, log) = Director::refusal(&cluster, &arguments);
        let is_named = log.contains(key) && log.contains("/token") && log.contains(why);
        assert!(status.code() == Some(code) && is_named, "{status}: {log}");
    }
}

#[test]
fn a_daemon_starts_with_the_saved_rules_and_marks_and_logs_refused_lines() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = Director::start(&cluster, Workers::One);
    director.adm("-A -f 1 -s rr");
    director.adm(&format!("-a -f 1 -r {}:80 -m -w 1", real_server(1)));
    director.add_service(Protocol::Tcp, 8080, Method::Nat);
    let mark = format!("mark add -d {VIP} -p tcp --dport 80 --set-mark 1");
    succeed(cluster.command(Host::Director, program("xvs")).args(mark.split(' ')));
    let saved = director.adm("-Sn");
    assert!(director.stop().success());
    drop(director);

    let file = cluster.state().join("rules");
    let path = file.to_str().expect("a plain path");
    let refused = format!("-D -t {VIP}:9999\n");
    fs::write(&file, format!("# rules of a test\n{refused}{saved}"))
        .expect("the cluster's folder takes a new file");
    let director = Director::start_with(&cluster, Workers::One, &["--rules", path]);
    assert_eq!(director.adm("-Sn"), saved);
    let log = director.log();
    assert!(log.contains("line 2: ") && log.contains("refused"), "{log}");
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 2), ["rs1", "rs1"]);
    drop(director);

    fs::write(&file, format!("{saved}-A -t {VIP}:81 -s rr stray\n")).expect("the file is there");
    let line = format!("line {}: unexpected argument stray", saved.lines().count() + 1);
    let (status, log) = Director::refusal(&cluster, &["--interface", "wan", "--rules", path]);
    assert!(status.code() == Some(2) && log.contains(path) && log.contains(&line), "{status}: {log}");
    let missing = format!("{path}-missing");
    let (status, log) = Director::refusal(&cluster, &["--interface", "wan", "--rules", &missing]);
    assert!(status.code() == Some(2) && log.contains(&missing), "{status}: {log}");
}
