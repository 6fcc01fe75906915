//! Metrics and alerts with a real Prometheus and promtool.
//!
//! `scripts/setup` unpacks both programs in `target/prometheus`; Prometheus runs in the director's namespace with its
//! data in the cluster's folder. Needs root. Not here: the values of metrics (`tests/netlab/metrics.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use xvs::cluster::{VIP, real_server, succeed};
use xvs::director::Protocol;
use xvs::wait;
use xvs::{Cluster, Director, Host, Method, MetricsAccess, Workers, clients, traffic};

const METRICS: &str = "127.0.0.1:9112";
const PROMETHEUS: &str = "127.0.0.1:9090";

/// `prometheus` or `promtool`.
fn unpacked(name: &str) -> PathBuf {
    let path = root().join("target/prometheus/usr/bin").join(name);
    assert!(path.exists(), "{} is missing; scripts/setup unpacks it", path.display());
    path
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Prometheus that scrapes the director once a second; ended when dropped.
struct Prometheus<'a> {
    cluster: &'a Cluster,
    process: Child,
}

impl<'a> Prometheus<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        Self::start_with(
            cluster,
            &format!("  - job_name: xvs\n    static_configs:\n      - targets: [\"{METRICS}\"]\n"),
        )
    }

    /// The same with this item of `scrape_configs`.
    fn start_with(cluster: &'a Cluster, scrape_config: &str) -> Self {
        let (state, alerts) = (cluster.state(), root().join("docs/alerts.yml"));
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{alerts}]\nscrape_configs:\n{scrape_config}",
            alerts = alerts.display()
        );
        let file = state.join("prometheus.yml");
        fs::write(&file, config).expect("the cluster's folder takes a new file");
        let log =
            fs::File::create(state.join("prometheus.log")).expect("the cluster's folder takes a new file");
        let mut command = cluster.command(Host::Director, unpacked("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", state.join("tsdb").display()));
        command.arg(format!("--web.listen-address={PROMETHEUS}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("scripts/netlab can be started");
        Self { cluster, process }
    }

    /// The response to a query of its HTTP API; `None` while there is none, and if it does not parse.
    fn ask(&self, path: &str, query: &[&str]) -> Option<Value> {
        let mut curl = self.cluster.command(Host::Director, "curl");
        curl.args(["--silent", "--get", &format!("http://{PROMETHEUS}/api/v1/{path}")]);
        query.iter().for_each(|word| _ = curl.args(["--data-urlencode", word]));
        let output = curl.output().expect("curl can be started");
        serde_json::from_slice(&output.stdout).ok().filter(|answer: &Value| answer["status"] == "success")
    }

    /// The current series of an expression.
    fn query(&self, expression: &str) -> Option<Vec<Value>> {
        let answer = self.ask("query", &[&format!("query={expression}")])?;
        Some(answer["data"]["result"].as_array().expect("a list").clone())
    }

    /// Waits until an expression has `count` series, and returns the value of the first one.
    fn until(&self, expression: &str, count: usize) -> Option<f64> {
        let series = wait::until(expression, || self.query(expression).filter(|found| found.len() == count));
        let value = |series: &Value| series["value"][1].as_str()?.parse().ok();
        series.first().and_then(value)
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // The cluster removes its data; neither call fails for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_scrapes_a_director_drops_deleted_series_and_raises_an_alert() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let director = Director::start_with(&cluster, Workers::Two, &["--metrics", METRICS]);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    clients::pages(&cluster, &format!("http://{VIP}/"), 4);
    let prometheus = Prometheus::start(&cluster);
    assert_eq!(prometheus.until("up{job='xvs'} == 1", 1), Some(1.0));
    let targets = prometheus.ask("targets", &[]).expect("it has answered before");
    assert_eq!(targets["data"]["activeTargets"][0]["lastError"], "", "{targets}");

    let of = format!("service='TCP {VIP}:80'");
    assert_eq!(prometheus.until(&format!("xvs_service_connections_total{{{of}}} == 4"), 1), Some(4.0));
    let backends = format!("node_ipvs_backend_weight{{local_address='{VIP}',local_port='80',local_mark=''}}");
    assert_eq!(prometheus.until(&backends, 2), Some(1.0));
    prometheus.until("rate(xvs_worker_busy_seconds_total[10s]) >= 0", 2);
    prometheus.until("histogram_quantile(0.9, sum by (le) (xvs_worker_burst_packets_bucket)) > 0", 1);
    prometheus.until("histogram_quantile(0.9, xvs_command_duration_seconds_bucket{kind='change'}) > 0", 1);
    assert_eq!(prometheus.until("sum(ALERTS{alertname='BalanceBroken'})", 0), None);

    director.adm(&format!("-d -t {VIP}:80 -r {}:80", real_server(1)));
    assert_eq!(prometheus.until(&backends, 1), Some(1.0));
    prometheus.until(&format!("xvs_destination_weight{{{of}}}"), 1);
    director.adm(&format!("-e -t {VIP}:80 -r {}:80 -m -w 0", real_server(2)));
    prometheus.until(&format!("ALERTS{{alertname='ServiceWithoutServer',alertstate='pending',{of}}}"), 1);
    director.adm(&format!("-D -t {VIP}:80"));
    prometheus.until("{__name__=~'xvs_service_.+|xvs_destination_.+|node_ipvs_backend_.+'}", 0);
    prometheus.until("ALERTS{alertname='ServiceWithoutServer'}", 0);
}

/// The item of `scrape_configs` for TLS in docs/metrics.md.
fn documented_scrape_config() -> String {
    let page = fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    let blocks = page.split("```").skip(1).step_by(2).map(str::to_owned);
    let found = blocks.filter_map(|block| Some(block.split_once("scrape_configs:\n")?.1.to_owned()));
    found.into_iter().find(|block| block.contains("https")).expect("a block with https")
}

#[test]
fn prometheus_scrapes_by_tls_with_a_token_as_the_page_of_metrics_shows_and_not_without() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let files = MetricsAccess::make(&cluster, 1, "0a1b2c");
    let toml = cluster.state().join("xvs.toml");
    fs::write(&toml, files.toml()).expect("the cluster's folder takes a new file");
    let arguments = ["--metrics", METRICS, "--config", toml.to_str().expect("a plain path")];
    let _director = Director::start_with(&cluster, Workers::One, &arguments);
    let documented = documented_scrape_config()
        .replace("/etc/prometheus/xvs-ca.pem", &files.certificate.display().to_string())
        .replace("/etc/prometheus/xvs-token", &files.token.display().to_string())
        .replace("\"director1:9112\", \"director2:9112\"", &format!("\"{METRICS}\""));
    let both = format!(
        "{}{}",
        documented,
        documented.replace("job_name: xvs", "job_name: other").replace("credentials_file", "credentials")
    );
    let prometheus = Prometheus::start_with(&cluster, &both);
    prometheus.until("up{job='xvs'} == 1 and on () xvs_services == 0", 1);
    prometheus.until("up{job='other'} == 0", 1);
    let targets = prometheus.ask("targets", &[]).expect("it has answered before").to_string();
    assert!(targets.contains("401 Unauthorized"), "{targets}");
}

/// Expressions of the dashboard that have series only after an event that the test below does not cause.
const NEEDS_AN_EVENT: [(&str, &str); 1] = [("xvs_sync_in_sync", "another director with the same key")];

/// The dashboard's variables, as Grafana would put values in their places.
fn substituted(text: &str) -> String {
    let all = [("$job", "xvs"), ("$instance", ".+"), ("$service", ".+"), ("$__rate_interval", "15s")];
    all.into_iter().fold(text.to_owned(), |text, (variable, value)| text.replace(variable, value))
}

/// The labels that a legend names: `{{label}}`.
fn labels(legend: &str) -> Vec<&str> {
    legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()).collect()
}

#[test]
fn each_query_of_the_dashboard_has_series_of_a_running_director_with_the_labels_of_its_legend() {
    let text = fs::read_to_string(root().join("docs/grafana.json")).expect("docs/grafana.json");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let file = cluster.state().join("keepalived.conf");
    let server = format!("real_server {} 80 {{\nTCP_CHECK {{\n}}\n}}", real_server(1));
    let text = format!("virtual_server {VIP} 80 {{\nlb_kind NAT\nprotocol TCP\ndelay_loop 1\n{server}\n}}\n");
    fs::write(&file, text).expect("the cluster's folder takes a new file");
    let arguments = ["--metrics", METRICS, "--keepalived", &file.display().to_string()];
    let director = Director::start_with(&cluster, Workers::One, &arguments);
    director.adm(&format!("-A -u {VIP}:53 -s rr"));
    for role in ["master", "backup"] {
        director.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 5"));
    }
    let prometheus = Prometheus::start(&cluster);
    prometheus.until("up{job='xvs'} == 1", 1);
    // A service without a real server drops it.
    let client = cluster.run(Host::Client, || UdpSocket::bind("0.0.0.0:0")).expect("a free port");
    let web = SocketAddr::from((VIP, 80));
    let connect = || TcpStream::connect_timeout(&web, Duration::from_millis(200));
    let series = |expression: &str| {
        let is_late = NEEDS_AN_EVENT.iter().any(|(name, _)| expression.contains(name));
        let found = wait::until(expression, || {
            client.send_to(b"lost", (VIP, 53)).expect("a datagram can be sent");
            // Until the check has passed, none is established.
            let _ = cluster.run(Host::Client, connect);
            let found = prometheus.query(expression)?;
            (is_late || !found.is_empty()).then_some(found)
        });
        assert!(!is_late || found.is_empty(), "{expression} needs no event: {found:?}");
        found
    };

    let mut count = 0;
    for panel in dashboard["panels"].as_array().expect("a list") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = substituted(target["expr"].as_str().expect("an expression"));
            assert!(!expression.contains('$'), "an unknown variable: {expression}");
            count += 1;
            for found in series(&expression) {
                for label in labels(target["legendFormat"].as_str().expect("a legend")) {
                    assert!(found["metric"][label].is_string(), "{expression}: no {label} in {found}");
                }
            }
        }
    }
    assert!(count > 40, "{count} queries");
    let variables = dashboard["templating"]["list"].as_array().expect("a list").iter();
    let queries: Vec<_> = variables.filter_map(|variable| variable["definition"].as_str()).collect();
    assert!(queries.len() == 3, "{queries:?}");
    for query in queries {
        let parts = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (expression, label) = parts.and_then(|parts| parts.rsplit_once(", ")).expect(query);
        let found = series(&substituted(expression));
        assert!(found.iter().all(|one| one["metric"][label].is_string()), "{query}: {found:?}");
    }
}

#[test]
fn each_panel_of_the_dashboard_has_a_number_and_a_place_of_its_own() {
    let text = fs::read_to_string(root().join("docs/grafana.json")).expect("docs/grafana.json");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    let (mut numbers, mut squares) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(numbers.insert(panel["id"].as_u64().expect("a number")), "{panel}");
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().expect("a number"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{panel}");
        for square in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(squares.insert(square), "{panel} covers another one");
        }
        let source = panel["datasource"]["uid"].as_str();
        assert!(panel["type"] == "row" || source == Some("${datasource}"), "{panel}");
    }
    assert!(panels.len() > 30, "{} panels", panels.len());
}

#[test]
fn promtool_accepts_names_help_and_units_of_the_page() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let file = cluster.state().join("keepalived.conf");
    let server = format!("real_server {} 80 {{\nTCP_CHECK {{\n}}\n}}", real_server(1));
    let sorry = format!("sorry_server {} 80", real_server(2));
    let text = format!("virtual_server {VIP} 80 {{\nlb_kind NAT\nprotocol TCP\n{server}\n{sorry}\n}}\n");
    fs::write(&file, text).expect("the cluster's folder takes a new file");
    let file = file.display().to_string();
    let arguments = ["--metrics", METRICS, "--keepalived", &file];
    let director = Director::start_with(&cluster, Workers::One, &arguments);
    director.add_service(Protocol::Udp, 53, Method::Nat);
    let mut curl = cluster.command(Host::Director, "curl");
    let page = succeed(curl.args(["--silent", "--fail", &format!("http://{METRICS}/metrics")]));
    assert!(page.contains("xvs_health_check_info{") && page.contains("_sorry_server_serves{"), "{page}");
    let mut promtool = Command::new(unpacked("promtool"));
    promtool.args(["check", "metrics"]);
    let mut promtool = promtool
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool can be started");
    let mut input = promtool.stdin.take().expect("it was asked for above");
    input.write_all(page.as_bytes()).expect("promtool reads all input before it writes");
    drop(input);
    let output = promtool.wait_with_output().expect("promtool is a child of this process");
    let said = [output.stdout, output.stderr].concat();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&said).as_ref()), (Some(0), ""), "{page}");
}

#[test]
fn the_alerts_are_well_formed_and_fire_for_faults_alone() {
    let promtool =
        |words: &[&str]| succeed(Command::new(unpacked("promtool")).current_dir(root()).args(words));
    let said = promtool(&["check", "rules", "--lint-fatal", "docs/alerts.yml"]);
    assert!(said.contains("SUCCESS"), "{said}");
    let said = promtool(&["test", "rules", "tests/alerts.yml"]);
    assert!(said.contains("SUCCESS"), "{said}");
}
