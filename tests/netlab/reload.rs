//! `xvs reload`: every key of xvs.toml, in the running process or by a successor, or nothing.
//!
//! Each test has a cluster of its own. Needs root. Not here: the keepalived.conf (`health.rs`), take-over by
//! command (`restart.rs`).

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use xvs::clients::HalfUpload;
use xvs::cluster::{VIP, complete, real_server, succeed};
use xvs::director::{Protocol, program};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Layout, Method, MetricsAccess, Workers, traffic, wait};

const PORT: u16 = 9000;
const METRICS: &str = "127.0.0.1:9112";
/// The keys before the first section, but for `interfaces` and `workers`.
const HELD: &str = "hold = \"10s\"\n";

/// The file xvs.toml of a test.
struct File(PathBuf);

impl File {
    fn new(cluster: &Cluster, text: &str) -> Self {
        let file = Self(cluster.state().join("xvs.toml"));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        fs::write(&self.0, text).expect("the cluster's folder takes files");
    }

    fn start<'a>(&self, cluster: &'a Cluster) -> Director<'a> {
        Director::start_on(cluster, Host::Director, &["--config", self.0.to_str().expect("a plain path")])
    }
}

/// An xvs.toml with these interfaces, workers and more keys.
fn toml(interfaces: &[&str], workers: u8, more: &str) -> String {
    format!("interfaces = {interfaces:?}\nworkers = {workers}\n{more}")
}

fn both(workers: u8, more: &str) -> String {
    toml(&["wan", "lan"], workers, more)
}

/// Runs a line of a shell on the director's host.
fn on_director(cluster: &Cluster, line: &str) -> String {
    succeed(cluster.command(Host::Director, "sh").args(["-c", line]))
}

/// The error of a reload that is refused.
fn refusal(cluster: &Cluster) -> String {
    let output = complete(cluster.command(Host::Director, program("xvs")).arg("reload"));
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The line of `xvs get` for a setting.
fn setting(director: &Director<'_>, key: &str) -> String {
    let all = director.xvs("get");
    let line = all.lines().find(|line| line.split_whitespace().next() == Some(key));
    line.unwrap_or_else(|| panic!("{key}: {all}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The page of metrics at [`METRICS`].
fn metrics(cluster: &Cluster) -> Option<String> {
    cluster.run(Host::Director, || {
        let mut stream = TcpStream::connect(METRICS).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok().map(|_| page)
    })
}

#[test]
fn settings_the_log_metrics_the_sockets_permissions_and_the_hold_change_in_the_running_process() {
    let cluster = Cluster::up(Layout::default());
    let file = File::new(&cluster, &both(1, &format!("{HELD}[ipvs]\nsloppy_tcp = 0\ndrop_entry = 1\n")));
    let mut director = file.start(&cluster);
    director.xvs("set sloppy_tcp 0");
    director.xvs("set drop_entry 3");
    director.xvs("set sloppy_sctp 1");
    assert_eq!(director.xvs("reload"), "no key of xvs.toml has changed\n");
    assert_eq!(metrics(&cluster), None);

    let more = format!(
        "hold = \"2s\"\nlog = \"debug\"\nmetrics_address = \"{METRICS}\"\nmetrics_destinations = 5\nsocket_mode = \"0666\"\n\
         [ipvs]\nsloppy_tcp = 1\ndrop_entry = 1\n[feedback]\nstep = 7\n"
    );
    file.write(&both(1, &more));
    let reply = director.xvs("reload");
    let expected = [
        "feedback.step: 5 -> 7",
        "hold: 10s -> 2s",
        "ipvs.sloppy_tcp: 0 -> 1, over the value of `xvs set`",
        "log: info -> debug",
        "metrics_address: not set -> 127.0.0.1:9112",
        "metrics_destinations: 1000 -> 5",
        "socket_mode: 0660 -> 0666",
    ];
    assert_eq!(reply.lines().collect::<Vec<_>>(), expected);
    assert!(metrics(&cluster).is_some_and(|page| page.starts_with("HTTP/1.1 200")));
    assert_eq!(on_director(&cluster, "stat -c %a /run/xvs/xvsd.sock"), "666\n");
    for (key, line) in [
        ("sloppy_tcp", "sloppy_tcp 1 xvs.toml"),
        ("drop_entry", "drop_entry 3 xvs set"),
        ("sloppy_sctp", "sloppy_sctp 1 xvs set"),
        ("hold", "hold 2s xvs.toml"),
        ("feedback.step", "feedback.step 7 xvs.toml"),
    ] {
        assert_eq!(setting(&director, key), line);
    }
    let log = director.log();
    assert!(log.contains("xvs.toml: log: info -> debug"), "{log}");
    assert!(director.xvs("events --last 50 --no-follow").contains("xvs.toml: hold: 10s -> 2s"));

    file.write(&both(1, &format!("{HELD}[ipvs]\nsloppy_tcp = 1\n")));
    director.signal(Signal::HUP);
    wait::until("SIGHUP is carried out", || {
        (setting(&director, "hold") == "hold 10s xvs.toml").then_some(())
    });
    wait::until("there are no metrics", || metrics(&cluster).is_none().then_some(()));
    // The journal has the file as it was read last.
    director.kill();
    let director = file.start(&cluster);
    assert!(!director.log().contains("xvs.toml has changed"), "{}", director.log());
    assert_eq!(setting(&director, "sloppy_tcp"), "sloppy_tcp 1 xvs.toml");
    assert_eq!(setting(&director, "sloppy_sctp"), "sloppy_sctp 1 xvs set");
}

#[test]
fn workers_and_interfaces_change_by_a_successor_and_connections_and_settings_go_on() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let file = File::new(&cluster, &both(1, &format!("{HELD}[ipvs]\nsloppy_tcp = 0\n")));
    let mut director = file.start(&cluster);
    director.add_service(Protocol::Tcp, PORT, Method::Nat);
    director.xvs("set sloppy_tcp 1");
    let (rules, streams) = (director.adm("-Sn"), [(); 8].map(|()| HalfUpload::begin(&cluster, PORT)));

    file.write(&both(2, &format!("{HELD}log = \"debug\"\n[ipvs]\nsloppy_tcp = 0\n")));
    let reply = director.xvs("reload");
    assert_eq!(reply, "log: info -> debug, by a successor\nworkers: 1 -> 2, by a successor\n");
    // At once, without a wait for the successor.
    assert_eq!(setting(&director, "workers"), "workers 2 xvs.toml");
    assert_eq!(director.xvs("reload"), "no key of xvs.toml has changed\n");
    director.is_taken_over();
    assert_eq!(setting(&director, "log"), "log debug xvs.toml");
    assert_eq!(setting(&director, "sloppy_tcp"), "sloppy_tcp 1 xvs set");
    assert_eq!(director.adm("-Sn"), rules);

    on_director(
        &cluster,
        "ip link add spare type veth peer name other && ip link set spare up && ip link set other up",
    );
    file.write(&toml(&["wan", "lan", "spare"], 2, HELD));
    assert!(
        director
            .xvs("reload")
            .contains("interfaces: [\"wan\",\"lan\"] -> [\"wan\",\"lan\",\"spare\"], by a successor")
    );
    wait::until("the second successor has the interface", || {
        let mut status = cluster.command(Host::Director, program("xvs"));
        let output = complete(status.arg("status"));
        String::from_utf8_lossy(&output.stdout).contains("spare").then_some(())
    });
    // The last file does not have the key any more.
    assert_eq!(setting(&director, "sloppy_tcp"), "sloppy_tcp 1 xvs set");
    streams.into_iter().for_each(HalfUpload::finish);
    HalfUpload::begin(&cluster, PORT).finish();

    file.write(&toml(&["wan", "spare"], 2, HELD));
    let reply = director.xvs("reload");
    let lost =
        "warning: the route to 192.0.2.11 and 1 more real server is by lan, to which xvsd is not attached";
    assert!(reply.contains(lost), "{reply}");
}

/// The HTTP status with which metrics answer curl by TLS at an address of IPv6; curl's error if it does not trust the
/// certificate.
fn status_by_tls(cluster: &Cluster, trusted: &MetricsAccess, token: &str) -> String {
    let mut curl = cluster.command(Host::Director, "curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code} %{errormsg}"]);
    curl.arg("--cacert")
        .arg(&trusted.certificate)
        .args(["--header", &format!("Authorization: Bearer {token}")]);
    let output = complete(curl.arg("https://[::1]:9112/metrics"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn tls_and_token_of_metrics_begin_with_a_reload_and_renewed_files_with_the_next_one() {
    let cluster = Cluster::up(Layout { queues: 2, ..Layout::default() });
    let [first, second] =
        [(1, "one"), (2, "two")].map(|(number, token)| MetricsAccess::make(&cluster, number, token));
    let address = format!("{HELD}metrics_address = \"[::1]:9112\"\n");
    let file = File::new(&cluster, &both(1, &address));
    let mut director = file.start(&cluster);
    let secured = format!("{address}{}", first.toml());
    file.write(&both(1, &secured));
    let reply = director.xvs("reload");
    assert!(reply.contains("metrics_token_file: not set -> ") && reply.lines().count() == 4, "{reply}");
    assert_eq!(status_by_tls(&cluster, &first, "one"), "200");
    assert_eq!(status_by_tls(&cluster, &first, "two"), "401");
    let plain =
        complete(cluster.command(Host::Director, "curl").args(["--silent", "http://[::1]:9112/metrics"]));
    assert!(!plain.status.success() && plain.stdout.is_empty(), "{plain:?}");

    // A lone key, and a file that everyone may read, change nothing.
    file.write(&both(1, &format!("{address}metrics_private_key = {:?}\n", first.private_key)));
    let error = refusal(&cluster);
    assert!(error.contains("nothing has changed") && error.contains("without a certificate"), "{error}");
    file.write(&both(1, &secured));
    on_director(&cluster, &format!("chmod o+r {}", first.token.display()));
    let error = refusal(&cluster);
    assert!(error.contains("nothing has changed") && error.contains("`chmod o= "), "{error}");
    on_director(&cluster, &format!("chmod o= {}", first.token.display()));
    assert_eq!(status_by_tls(&cluster, &first, "one"), "200");

    let of_first = cluster.state().join("first.pem");
    fs::copy(&first.certificate, &of_first).expect("the cluster's folder takes files");
    second.replace(&first);
    let first = MetricsAccess { certificate: of_first, ..first };
    assert_eq!(status_by_tls(&cluster, &first, "one"), "200");
    let read_again = "metrics_certificate, metrics_private_key, metrics_token_file: read again\n";
    assert_eq!(director.xvs("reload"), read_again);
    assert_eq!(status_by_tls(&cluster, &second, "two"), "200");
    assert_eq!(status_by_tls(&cluster, &second, "one"), "401");
    let untrusted = status_by_tls(&cluster, &first, "two");
    assert!(untrusted.starts_with("000 SSL certificate"), "{untrusted}");

    file.write(&both(2, &secured));
    assert_eq!(director.xvs("reload"), "workers: 1 -> 2, by a successor\n");
    director.is_taken_over();
    wait::until("the successor serves metrics", || {
        (status_by_tls(&cluster, &second, "two") == "200").then_some(())
    });
}

/// A keepalived.conf of one service at this port, without checks.
fn keepalived(cluster: &Cluster, port: u16) -> PathBuf {
    let path = cluster.state().join(format!("keepalived-{port}.conf"));
    let server = format!("real_server {} {port} {{\nweight 1\n}}", real_server(1));
    let text =
        format!("virtual_server {VIP} {port} {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\n{server}\n}}\n");
    fs::write(&path, text).expect("the cluster's folder takes files");
    path
}

#[test]
fn a_keepalived_conf_begins_and_ends_by_a_successor_and_another_one_takes_its_place_at_once() {
    let cluster = Cluster::up(Layout::default());
    let file = File::new(&cluster, &both(1, HELD));
    let with = |port| both(1, &format!("{HELD}[keepalived]\nfile = {:?}\n", keepalived(&cluster, port)));
    let mut director = file.start(&cluster);
    director.adm(&format!("-A -t {VIP}:82 -s rr"));
    let services = |port: &str| {
        wait::until(&format!("services {port} and 82"), || {
            let saved = complete(cluster.command(Host::Director, program("xvsadm")).arg("-Sn")).stdout;
            let saved = String::from_utf8_lossy(&saved).into_owned();
            let of_file = saved.contains(&format!("-A -t {VIP}:{port} -s rr"));
            let has = of_file || port.is_empty() && saved.matches("-A ").count() == 1;
            (has && saved.contains(&format!("-A -t {VIP}:82 -s rr"))).then_some(())
        });
    };
    file.write(&with(80));
    assert!(director.xvs("reload").contains("keepalived.file: not set -> "));
    director.is_taken_over();
    services("80");
    file.write(&with(81));
    let reply = director.xvs("reload");
    assert!(
        reply.contains("keepalived-80.conf -> ") && reply.contains("virtual servers: 1 (1 new, 1 gone)"),
        "{reply}"
    );
    services("81");
    assert!(!director.adm("-Sn").contains(":80 "));
    assert!(director.xvs("health").contains("keepalived-81.conf"), "{}", director.xvs("health"));
    file.write(&both(1, HELD));
    assert!(director.xvs("reload").contains("-> not set, by a successor"));
    services("");
}

#[test]
fn a_wrong_file_a_key_that_needs_a_restart_and_a_successor_that_fails_change_nothing() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let broken = cluster.state().join("broken");
    fs::write(&broken, "}\n-A -t nonsense\n").expect("the cluster's folder takes files");
    let first = both(1, &format!("{HELD}conn_table_size = 1048576\n"));
    let file = File::new(&cluster, &first);
    let mut director = file.start(&cluster);
    director.add_service(Protocol::Tcp, PORT, Method::Nat);
    director.xvs("set sloppy_tcp 1");
    let (before, stream) = (director.xvs("get"), HalfUpload::begin(&cluster, PORT));
    let taken = cluster.run(Host::Director, || TcpListener::bind(METRICS)).expect("a free port");

    let changed = "log = \"debug\"\n";
    for (text, why) in [
        ("no_such_key = 1\n".to_owned(), "no_such_key"),
        (both(0, HELD), "workers = 0: at least one worker"),
        (both(1, &format!("{HELD}log = \"loud\"\n")), "log = \"loud\""),
        (both(1, &format!("{HELD}{changed}metrics_address = \"{METRICS}\"\n")), "in use by another program"),
        (both(2, &format!("{HELD}{changed}metrics_address = \"{METRICS}\"\n")), "in use by another program"),
        (
            both(1, &format!("{HELD}{changed}conn_table_size = 2048\n")),
            "conn_table_size: 1048576 -> 2048: this needs a restart",
        ),
        (both(1, &format!("{changed}hold = \"0\"\n")), "hold: 10s -> 0s: this needs a restart"),
        (both(1, &format!("{HELD}{changed}rules = {broken:?}\n")), "line 1"),
        (toml(&["wan", "lan", "none"], 1, &format!("{HELD}{changed}[ipvs]\nsloppy_tcp = 1\n")), "none"),
        (both(1, &format!("{HELD}{changed}[keepalived]\nfile = {broken:?}\n")), "broken"),
    ] {
        file.write(&text);
        let error = refusal(&cluster);
        assert!(error.contains("nothing has changed") && error.contains(why), "{text}\n{error}");
        assert_eq!(director.xvs("get"), before, "{text}");
    }
    drop(taken);
    stream.finish();
    HalfUpload::begin(&cluster, PORT).finish();
    // The journal too is that of before.
    file.write(&first);
    assert_eq!(director.xvs("reload"), "no key of xvs.toml has changed\n");
    director.kill();
    assert_eq!(file.start(&cluster).xvs("get"), before);
}

#[test]
fn a_successor_steers_more_endpoints_than_its_predecessor_and_one_that_steers_too_few_changes_nothing() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let most = |endpoints: u32| both(1, &format!("{HELD}steered_endpoints = {endpoints}\n"));
    let file = File::new(&cluster, &most(1024));
    let mut director = file.start(&cluster);
    director.add_service(Protocol::Tcp, PORT, Method::Nat);
    let stream = HalfUpload::begin(&cluster, PORT);

    let rules: String = (1..=1100).map(|port| format!("-A -t {VIP}:{port} -s rr\n")).collect();
    let refused = director.adm_reading("-R", &rules);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(
        error.contains(
            "at most 1024 endpoints; raise `steered_endpoints` in xvs.toml, which `xvs reload` applies"
        ),
        "{error}"
    );
    assert_eq!(director.adm("-Sn").matches("-A ").count(), 1, "a refused restore changes nothing");

    file.write(&most(2048));
    assert_eq!(director.xvs("reload"), "steered_endpoints: 1024 -> 2048, by a successor\n");
    director.is_taken_over();
    let restored = director.adm_reading("-R", &rules);
    assert!(restored.status.success(), "{restored:?}");
    HalfUpload::begin(&cluster, PORT).finish();

    file.write(&most(1024));
    let error = refusal(&cluster);
    assert!(error.contains("nothing has changed") && error.contains("at most 1024 endpoints"), "{error}");
    assert_eq!(director.adm("-Sn").matches("-A ").count(), 1101);
    stream.finish();
    HalfUpload::begin(&cluster, PORT).finish();
}

#[test]
fn a_successor_whose_metrics_address_is_in_use_forwards_and_says_so() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _servers = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), PORT));
    let mut former = Director::start_with(&cluster, Workers::One, &["--hold", "10s"]);
    former.add_service(Protocol::Tcp, PORT, Method::Nat);
    let stream = HalfUpload::begin(&cluster, PORT);
    let taken = cluster.run(Host::Director, || TcpListener::bind(METRICS)).expect("a free port");
    let with_metrics = ["--hold", "10s", "--metrics", METRICS];
    let take_over =
        || Director::take_over(&cluster, Workers::One, &with_metrics).unwrap_or_else(|log| panic!("{log}"));
    let mut director = take_over();
    assert!(former.has_ended().success(), "{}", former.log());
    let says_so = || director.log().contains("no metrics are served").then_some(());
    wait::until("the successor says that it serves no metrics", says_so);
    stream.finish();
    drop(taken);
    let _again = take_over();
    assert!(director.has_ended().success() && metrics(&cluster).is_some());
    HalfUpload::begin(&cluster, PORT).finish();
}

#[test]
fn without_a_hold_a_key_that_needs_a_successor_is_refused_and_others_change() {
    let cluster = Cluster::up(Layout { queues: 2, ..Layout::default() });
    let file = File::new(&cluster, &both(1, "hold = \"0\"\n"));
    let director = file.start(&cluster);
    file.write(&both(2, "hold = \"0\"\nlog = \"debug\"\n"));
    let error = refusal(&cluster);
    assert!(error.contains("workers: 1 -> 2: with hold = \"0\" no successor can take over"), "{error}");
    file.write(&both(1, "hold = \"0\"\nlog = \"debug\"\n"));
    assert_eq!(director.xvs("reload"), "log: info -> debug\n");
}

/// The director's namespace has no IPVS, or an empty one.
#[test]
fn the_kernels_rules_are_followed_from_a_successor_on_and_without_them_the_services_are_those_of_xvs_again() {
    let cluster = Cluster::up(Layout::default());
    let file = File::new(&cluster, &both(1, HELD));
    let mut director = file.start(&cluster);
    let add = |port: u16| format!("-A -t {VIP}:{port} -s rr");
    director.adm(&add(PORT));
    let follows = both(1, &format!("{HELD}[kernel]\nrules = \"follow\"\n"));
    file.write(&format!("rules = \"/etc/xvs/rules\"\n{follows}"));
    let refused = refusal(&cluster);
    assert!(
        refused.contains("kernel.rules = \"follow\": services come from the kernel's IPVS, or from"),
        "{refused}"
    );
    file.write(&follows);
    let changed = director.xvs("reload");
    assert!(changed.contains("kernel"), "{changed}");
    director.is_taken_over();
    let refused = complete(cluster.command(Host::Director, program("xvsadm")).args(add(81).split(' ')));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("xvs follows the kernel's IPVS"), "{text}");
    if !Path::new("/proc/net/ip_vs").exists() {
        let status = director.status().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(status.contains("the kernel has no IPVS here"), "{status}");
        assert_eq!(director.adm("-Sn"), format!("{}\n", add(PORT)), "the last rules stay");
    }
    file.write(&both(1, HELD));
    director.xvs("reload");
    director.adm(&add(81));
}
