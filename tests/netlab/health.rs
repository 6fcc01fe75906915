//! Health checks of real servers by a keepalived.conf: removal, return, reload of the file.
//!
//! Each test has a cluster of its own. Needs root. Not here: the kinds of checks (`crates/health`).

use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use xvs::cluster::{VIP, VIP6, complete, real_server, succeed};
use xvs::director::program;
use xvs::exposition::{ADDRESS, Page};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// The port of the checks; the end of a sink there takes its real server down.
const LIFE: u16 = 9000;

/// Writes a keepalived.conf of one service with both real servers, the first with this weight.
fn write(cluster: &Cluster, weight: u8, more: &str) -> PathBuf {
    let server = |number, weight| {
        format!(
            "real_server {} 80 {{\nweight {weight}\nTCP_CHECK {{\nconnect_port {LIFE}\n}}\n\
             HTTP_GET {{\nurl {{\npath /\nstatus_code 200\n}}\n}}\n}}\n",
            real_server(number)
        )
    };
    let text = format!(
        "virtual_server {VIP} 80 {{\nlb_algo wrr\nlb_kind NAT\nprotocol TCP\ndelay_loop 0.2\nwarmup 0\n\
         connect_timeout 1\nretry 1\ndelay_before_retry 0.1\n{more}\n{}{}}}\n",
        server(1, weight),
        server(2, 1),
    );
    let path = cluster.state().join("keepalived.conf");
    fs::write(&path, text).expect("the cluster's folder takes a new file");
    path
}

fn watched<'a>(cluster: &'a Cluster, file: &Path) -> Director<'a> {
    Director::start_with(cluster, Workers::One, &["--keepalived", &file.display().to_string()])
}

/// Waits until the service has these real servers with these weights.
#[track_caller]
fn await_servers(director: &Director<'_>, wanted: &[(u8, u8)]) {
    let mut lines: Vec<_> = wanted.iter().map(|(number, weight)| (real_server(*number), weight)).collect();
    lines.sort();
    let lines = lines.iter().map(|(addr, weight)| format!("-a -t {VIP}:80 -r {addr}:80 -m -w {weight}"));
    let wanted: Vec<_> = lines.collect();
    wait::until(&format!("{wanted:?}"), || {
        let saved = director.adm("-S -n");
        let mut servers: Vec<_> = saved.lines().filter(|line| line.starts_with("-a ")).collect();
        servers.sort_unstable();
        (servers == wanted).then_some(())
    });
}

fn run(cluster: &Cluster, words: &str) -> Output {
    complete(cluster.command(Host::Director, program("xvs")).args(words.split(' ')))
}

#[test]
fn a_real_server_without_answer_is_removed_and_one_that_answers_again_returns() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    let file = write(&cluster, 1, "");
    let director = watched(&cluster, &file);
    await_servers(&director, &[(2, 1)]);
    let pages = || clients::pages(&cluster, &format!("http://{VIP}/"), 6);
    assert!(pages().iter().all(|page| page == "rs2"));
    let first = Sink::start(&cluster, Host::RealServer(1), LIFE);
    await_servers(&director, &[(1, 1), (2, 1)]);
    assert!(clients::take_turns(&pages()));
    drop(second);
    await_servers(&director, &[(1, 1)]);
    assert!(pages().iter().all(|page| page == "rs1"));
    let down = format!("{}:80 of {VIP} 80 is down: TCP {}:{LIFE}: ", real_server(2), real_server(2));
    let events = director.xvs("events --no-follow --last 100");
    assert!(events.contains(&down), "{down}:\n{events}");
    drop(first);
    await_servers(&director, &[]);
    wait::until("the quorum is lost", || {
        director
            .xvs("events --no-follow --last 100")
            .contains(&format!("{VIP} 80 has no quorum"))
            .then_some(())
    });
}

#[test]
fn a_server_whose_checks_pass_again_starts_slowly() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _first = Sink::start(&cluster, Host::RealServer(1), LIFE);
    let second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    let file = write(&cluster, 1, "slow_start 2");
    let director = watched(&cluster, &file);
    await_servers(&director, &[(1, 1), (2, 1)]);
    let events = || director.xvs("events --no-follow --last 100");
    assert!(!events().contains("slow start"), "{}", events());
    drop(second);
    await_servers(&director, &[(1, 1)]);
    thread::sleep(Duration::from_secs(2));
    let _second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    // It exits with 1 while a server is down.
    let health = || String::from_utf8_lossy(&run(&cluster, "health").stdout).into_owned();
    wait::until("the second server starts slowly", || health().contains(" % of its share").then_some(()));
    let begun = format!("slow start of {}:80 in TCP {VIP}:80: it gets its full share in 2 s", real_server(2));
    assert!(events().contains(&begun), "{}", events());
    wait::until("it has its full share", || (!health().contains(" % of its share")).then_some(()));
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 6)));
}

#[test]
fn lines_of_xvs_in_a_virtual_server_come_and_go_with_a_reload_of_the_file() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), LIFE));
    let file =
        write(&cluster, 1, "#xvs syn-proxy on\n#xvs client-address proxy\n#xvs limit set --connections 70");
    let director = watched(&cluster, &file);
    await_servers(&director, &[(1, 1), (2, 1)]);
    // What begins with `#xvs`; the limits of other services are the operator's.
    director.xvs(&format!("limit set -t {VIP}:8080 --rate 3"));
    let own = || -> Vec<String> {
        let saved = director.adm("-S -n");
        saved.lines().filter(|line| line.starts_with("#xvs ")).map(str::to_owned).collect()
    };
    let other = format!("#xvs limit set -t {VIP}:8080 --rate 3");
    let limit = |connections| format!("#xvs limit set -t {VIP}:80 --connections {connections}");
    let options = |all| format!("#xvs -E -t {VIP}:80 -s wrr {all}");
    assert_eq!(own(), [limit(70), other.clone(), options("--client-address proxy --syn-proxy on")]);

    write(&cluster, 1, "#xvs syn-proxy on\n#xvs limit set --connections 50");
    director.xvs("reload");
    assert_eq!(own(), [limit(50), other.clone(), options("--syn-proxy on")]);
    let accepted = || {
        let counters = director.xvs("counters");
        counters.lines().any(|line| line.trim_start().starts_with("syn_cookies_accepted"))
    };
    assert!(!accepted() && clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 2)));
    assert!(accepted(), "{}", director.xvs("counters"));

    write(&cluster, 1, "#xvs syn-proxy sometimes");
    let refused = run(&cluster, "reload");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && why.contains("keepalived.conf:10: error: "), "{why}");
    assert_eq!(own(), [limit(50), other.clone(), options("--syn-proxy on")]);

    write(&cluster, 1, "");
    director.xvs("reload");
    assert_eq!(own(), [other]);
}

#[test]
fn a_service_that_a_fault_of_the_file_would_end_stays_until_the_loss_is_accepted() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), LIFE));
    let other =
        format!("virtual_server {VIP} 81 {{\nprotocol TCP\nreal_server {} 81 {{\n}}\n}}\n", real_server(1));
    let write = |other: &str| {
        let file = write(&cluster, 1, "");
        let text = fs::read_to_string(&file).expect("the file is there");
        fs::write(&file, text + other).expect("the file is there");
        file
    };
    let file = write(&other);
    let arguments = ["--interface", "wan", "--interface", "lan", "--keepalived", &file.display().to_string()];
    let mut director = watched(&cluster, &file);
    let services = |director: &Director<'_>| {
        let saved = director.adm("-S -n");
        saved.lines().filter(|line| line.starts_with("-A ")).count()
    };
    wait::until("both services are in force", || (services(&director) == 2).then_some(()));

    write(&other.replace(&format!("{VIP} 81"), &format!("{VIP}1 81")));
    let refused = run(&cluster, "reload");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), services(&director)), (Some(3), 2), "{why}");
    assert!(why.contains("keepalived.conf:") && why.contains(&format!("would end TCP {VIP}:81")), "{why}");
    wait::until("the state of the checks is kept", || {
        let kept =
            complete(cluster.command(Host::Director, "cat").arg("/dev/shm/xvs/run-xvs-xvsd.sock/health"));
        String::from_utf8_lossy(&kept.stdout).contains("services").then_some(())
    });
    director.kill();
    drop(director);
    let (status, log) = Director::refusal(&cluster, &arguments);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains(&format!("would end TCP {VIP}:81")) && log.contains("--accept-loss"), "{log}");
    let accepting = ["--keepalived", &file.display().to_string(), "--accept-loss"];
    let mut director = Director::start_with(&cluster, Workers::One, &accepting);
    assert_eq!(services(&director), 1, "{}", director.adm("-S -n"));
    director.stop();

    // A service that is in the file no longer ends at a start and at a reload.
    write(&other.replace(" 81 {", " 82 {"));
    let director = watched(&cluster, &file);
    assert_eq!(services(&director), 2, "{}", director.adm("-S -n"));
    write(&other.replace(&format!("{VIP} 81"), &format!("{VIP}1 81")));
    assert_eq!(run(&cluster, "reload").status.code(), Some(3));
    director.xvs("reload --accept-loss");
    assert_eq!(services(&director), 1, "{}", director.adm("-S -n"));
}

#[test]
fn a_file_is_reloaded_and_one_with_errors_changes_nothing_and_names_its_lines() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), LIFE));
    let file = write(&cluster, 1, "");
    let director = watched(&cluster, &file);
    director.adm(&format!("-A -t {VIP}:8080"));
    await_servers(&director, &[(1, 1), (2, 1)]);
    write(&cluster, 5, "");
    let reply = director.xvs("reload");
    assert_eq!(reply, "virtual servers: 1 (0 new, 0 gone), checks: 4 (0 new, 0 gone); the table: 1 change\n");
    await_servers(&director, &[(1, 5), (2, 1)]);

    fs::write(&file, "virtual_server 198.51.100.100 80 {\n").expect("the file is there");
    let mut reload = cluster.command(Host::Director, program("xvs"));
    let refused = complete(reload.arg("reload"));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{why}");
    assert!(why.contains("keepalived.conf:1: error: "), "{why}");
    director.signal(Signal::HUP);
    wait::until("the log names the line", || {
        director.log().contains("keepalived.conf:1: error: ").then_some(())
    });
    await_servers(&director, &[(1, 5), (2, 1)]);
    let refused = || director.status().contains("keepalived.conf was refused when it was last read");
    assert!(refused(), "{}", director.status());

    write(&cluster, 3, "");
    director.signal(Signal::HUP);
    await_servers(&director, &[(1, 3), (2, 1)]);
    wait::until("the status is without it", || (!refused()).then_some(()));
    fs::write(&file, "").expect("the file is there");
    let mut reload = cluster.command(Host::Director, program("xvs"));
    let refused = complete(reload.arg("reload"));
    let why = format!(
        "xvs: nothing has changed because the file cannot be used:\n{}: no virtual_server; restart xvsd to remove \
         those that run\n",
        file.display()
    );
    assert_eq!(String::from_utf8_lossy(&refused.stderr), why);
    await_servers(&director, &[(1, 3), (2, 1)]);
    let other =
        format!("virtual_server {VIP} 81 {{\nprotocol TCP\nreal_server {} 81 {{\n}}\n}}\n", real_server(1));
    fs::write(&file, other).expect("the file is there");
    assert!(director.xvs("reload").starts_with("virtual servers: 1 (1 new, 1 gone)"));
    let saved = director.adm("-S -n");
    assert!(
        saved.contains(&format!("-A -t {VIP}:8080 ")) && !saved.contains(":80 "),
        "others' services stay: {saved}"
    );
}

#[test]
fn a_disabled_server_stays_out_over_its_failure_its_return_and_reloads_and_is_back_when_enabled() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut first = Some(Sink::start(&cluster, Host::RealServer(1), LIFE));
    let _second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    let director = watched(&cluster, &write(&cluster, 1, ""));
    await_servers(&director, &[(1, 1), (2, 1)]);
    director.xvs(&format!("disable {}", real_server(1)));
    let all_by_rs2 = || {
        let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 4);
        assert!(pages.iter().all(|page| page == "rs2"), "{pages:?}");
    };
    all_by_rs2();
    drop(first.take());
    await_servers(&director, &[(2, 1)]);
    let health = || String::from_utf8_lossy(&run(&cluster, "health").stdout).into_owned();
    assert!(health().contains("weight 1, disabled, absent"), "{}", health());
    first = Some(Sink::start(&cluster, Host::RealServer(1), LIFE));
    await_servers(&director, &[(1, 1), (2, 1)]);
    all_by_rs2();
    write(&cluster, 5, "");
    director.xvs("reload");
    director.signal(Signal::HUP);
    wait::until("SIGHUP", || director.log().contains("SIGHUP: ").then_some(()));
    await_servers(&director, &[(1, 5), (2, 1)]);
    all_by_rs2();
    assert!(health().contains("weight 5, disabled\n"), "{}", health());
    let status = director.xvs("status");
    assert!(status.contains(&format!("disabled   {}; `xvs enable` ends that\n", real_server(1))), "{status}");
    director.xvs(&format!("enable {}", real_server(1)));
    let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 6);
    assert_eq!(pages.iter().filter(|page| *page == "rs1").count(), 5, "{pages:?}");
    let events = director.xvs("events --no-follow --last 100");
    for change in ["disable", "enable"] {
        assert!(events.contains(&format!(": xvs {change} {}", real_server(1))), "{events}");
    }
    drop(first);
}

#[test]
fn the_health_report_is_complete() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sink = Sink::start(&cluster, Host::RealServer(1), LIFE);
    let file = write(&cluster, 7, "");
    let director = watched(&cluster, &file);
    await_servers(&director, &[(1, 7)]);
    let mut asked = cluster.command(Host::Director, program("xvs"));
    let output = complete(asked.args(["health", "--json"]));
    assert_eq!(output.status.code(), Some(1), "a server is down");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let group = &report["virtual_servers"][0];
    assert_eq!((&group["is_well"], &group["live_weight"]), (&true.into(), &7.into()), "{report:#}");
    let weights = |server: usize| group["real_servers"][server]["weights"].clone();
    assert_eq!((&weights(0)["operator"], &weights(0)["in_force"]), (&7.into(), &7.into()), "{report:#}");
    assert_eq!((&weights(1)["health"], &weights(1)["in_force"]), (&Value::Null, &Value::Null), "{report:#}");
    assert_eq!(group["real_servers"][1]["is_up"], false, "{report:#}");
    assert_eq!(group["real_servers"][1]["checks"][0]["state"], "down", "{report:#}");
}

#[test]
fn scripts_and_the_fifo_are_notified_in_order_a_sorry_server_serves_and_the_end_is_notified() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _first = Sink::start(&cluster, Host::RealServer(1), LIFE);
    let (notified, fifo) = (cluster.state().join("notified"), cluster.state().join("fifo"));
    let script =
        |word: &str, what: &str| format!("{word} \"/bin/sh -c 'echo {what} >>{}'\"\n", notified.display());
    let more = format!(
        "quorum 2\nomega\nsorry_server {} 8080\n{}{}",
        real_server(2),
        script("quorum_up", "up"),
        script("quorum_down", "down"),
    );
    let file = write(&cluster, 1, &more);
    let text = fs::read_to_string(&file).expect("it was written");
    let globals = format!("global_defs {{\nlvs_notify_fifo {}\n}}\n", fifo.display());
    fs::write(&file, globals + &text).expect("the file is there");
    let mut director = watched(&cluster, &file);
    let until_notified = |wanted: &str| {
        wait::until(wanted, || (fs::read_to_string(&notified).unwrap_or_default() == wanted).then_some(()));
    };
    until_notified("up\ndown\n");
    let saved = director.adm("-S -n");
    assert!(saved.ends_with(&format!("-a -t {VIP}:80 -r {}:8080 -m -w 1\n", real_server(2))), "{saved}");
    let second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    until_notified("up\ndown\nup\n");
    await_servers(&director, &[(1, 1), (2, 1)]);
    let mut lines = File::options().read(true).write(true).open(&fifo).expect("xvsd has made the FIFO");
    let mut read = [0; 4096];
    let count = lines.read(&mut read).expect("it has a notification");
    let server = format!("RS [{}]:tcp:80 [{VIP}]:tcp:80", real_server(2));
    let service = format!("VS [{VIP}]:tcp:80");
    let wanted = format!("{service} UP\n{server} DOWN\n{service} DOWN\n{server} UP\n{service} UP\n");
    assert_eq!(String::from_utf8_lossy(&read[..count]), wanted);
    assert!(director.stop().success());
    assert_eq!(fs::read_to_string(&notified).expect("it was written"), "up\ndown\nup\ndown\n");
    assert!(!fifo.exists());
    drop(second);
}

#[test]
fn a_file_with_errors_or_an_absent_file_prevents_the_start_before_anything_is_attached() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let file = cluster.state().join("keepalived.conf");
    let arguments = ["--interface", "wan", "--keepalived", &file.display().to_string()];
    let (status, log) = Director::refusal(&cluster, &arguments);
    assert_eq!(status.code(), Some(2), "{log}");
    fs::write(&file, "! nothing\n}\n").expect("the cluster's folder takes a new file");
    let (status, log) = Director::refusal(&cluster, &arguments);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("keepalived.conf:2: error: a `}` without a `{` before it"), "{log}");
}

#[test]
fn a_killed_director_restarts_without_remains_and_its_checks_continue() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let first = Sink::start(&cluster, Host::RealServer(1), LIFE);
    let fifo = cluster.state().join("fifo");
    let file = write(&cluster, 1, "");
    let text = fs::read_to_string(&file).expect("it was written");
    let globals = format!("global_defs {{\nlvs_notify_fifo {}\n}}\n", fifo.display());
    fs::write(&file, globals + &text).expect("the file is there");
    let mut director = watched(&cluster, &file);
    await_servers(&director, &[(1, 1)]);
    director.adm(&format!("-A -t {VIP}:8080"));
    director.kill();
    let director = watched(&cluster, &file);
    await_servers(&director, &[(1, 1)]);
    assert_eq!(director.adm("-S -n").matches("-A ").count(), 2, "a service that a command made is kept");
    let _second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    await_servers(&director, &[(1, 1), (2, 1)]);
    drop(first);
    await_servers(&director, &[(2, 1)]);
    assert!(clients::pages(&cluster, &format!("http://{VIP}/"), 6).iter().all(|page| page == "rs2"));
    let mut lines = File::options().read(true).write(true).open(&fifo).expect("the FIFO is there again");
    let mut read = [0; 4096];
    let count = lines.read(&mut read).expect("it has a notification");
    let lines = String::from_utf8_lossy(&read[..count]);
    // The messages from before ended with the daemon that wrote them.
    assert_eq!(lines.matches(&format!("RS [{}]:tcp:80", real_server(2))).count(), 2, "{lines}");
}

#[test]
fn of_many_reload_signals_the_last_one_counts_and_an_absent_file_changes_nothing() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = [1, 2].map(|number| Sink::start(&cluster, Host::RealServer(number), LIFE));
    let file = write(&cluster, 1, "");
    let director = watched(&cluster, &file);
    for weight in 2..=200 {
        write(&cluster, weight, "");
        director.signal(Signal::HUP);
    }
    await_servers(&director, &[(1, 200), (2, 1)]);
    // During a reload, all further signals are merged into one pending reload.
    thread::scope(|scope| {
        let reloads: Vec<_> = (0..8).map(|_| scope.spawn(|| director.xvs("reload"))).collect();
        reloads.into_iter().for_each(|reload| drop(reload.join().expect("each is carried out")));
    });
    fs::remove_file(&file).expect("it was written");
    let mut reload = cluster.command(Host::Director, program("xvs"));
    let refused = complete(reload.arg("reload"));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && why.contains("No such file"), "{why}");
    await_servers(&director, &[(1, 200), (2, 1)]);
    let asked = || {
        let report: Value = serde_json::from_str(&director.xvs("health --json")).expect("JSON");
        report["virtual_servers"][0]["real_servers"][0]["checks"][0]["asked"].as_u64().expect("a number")
    };
    let before = asked();
    wait::until("its checks go on", || (asked() > before + 2).then_some(()));
}

#[test]
fn with_few_file_descriptors_fewer_checks_run_at_once_and_each_runs() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let on = |host, line: &str| {
        let mut words = line.split_whitespace();
        succeed(cluster.command(host, words.next().expect("a program")).args(words));
    };
    on(Host::RealServer(1), "ip route add local 10.9.0.0/24 dev lo");
    on(Host::Director, &format!("ip route add 10.9.0.0/24 via {}", real_server(1)));
    let server = |number| format!("real_server 10.9.0.{number} 80 {{\nTCP_CHECK {{\n}}\n}}\n");
    let servers: String = (1..=200).map(server).collect();
    let head = format!("virtual_server {VIP} 80 {{\nlb_kind NAT\nprotocol TCP\ndelay_loop 0.5\nwarmup 0\n");
    let file = cluster.state().join("keepalived.conf");
    fs::write(&file, head + &servers + "}\n").expect("the cluster's folder takes a new file");
    let mut command = cluster.command(Host::Director, "prlimit");
    command.arg("--nofile=368:368").arg(program("xvsd"));
    command.args(["--interface", "wan", "--interface", "lan", "--workers", "1", "--keepalived"]).arg(&file);
    let log = File::create(cluster.state().join("xvsd.log")).expect("the cluster's folder takes a new file");
    command.stdout(Stdio::null()).stderr(log);
    let mut daemon = command.spawn().expect("prlimit is there");
    let report = wait::until("each was asked three times", || {
        let mut asked = cluster.command(Host::Director, program("xvs"));
        let output = complete(asked.args(["health", "--json"]));
        let report: Value = serde_json::from_slice(&output.stdout).ok()?;
        let servers = report["virtual_servers"][0]["real_servers"].as_array()?;
        let mut checks = servers.iter().map(|server| &server["checks"][0]);
        checks.all(|check| check["asked"].as_u64() >= Some(3)).then_some(report)
    });
    daemon.kill().expect("it is a child of this process");
    daemon.wait().expect("it is a child of this process");
    let servers = report["virtual_servers"][0]["real_servers"].as_array().expect("it was one above");
    let lacks: Vec<_> = servers.iter().filter(|one| !one["checks"][0]["last_error"].is_null()).collect();
    assert!(servers.len() == 200 && lacks.is_empty(), "{lacks:#?}");
}

#[test]
fn real_servers_of_the_other_family_are_checked_limited_and_shown_like_others() {
    let cluster = traffic::prepared(Method::FullNat, Workers::One);
    let mut sinks = [1, 2].map(|number| Some(Sink::start(&cluster, Host::RealServer(number), LIFE)));
    let server = |number, more: &str| {
        format!(
            "real_server {} 80 {{\n{more}TCP_CHECK {{\nconnect_port {LIFE}\n}}\n}}\n",
            real_server(number)
        )
    };
    let text = format!(
        "virtual_server {VIP6} 80 {{\nlb_algo rr\nlb_kind FNAT\nprotocol TCP\ndelay_loop 0.2\nconnect_timeout 1\n\
         retry 1\ndelay_before_retry 0.1\n{}{}}}\n",
        server(1, "uthreshold 1\n"),
        server(2, "weight 3\n"),
    );
    let file = cluster.state().join("keepalived.conf");
    fs::write(&file, text).expect("the cluster's folder takes a new file");
    let file = file.display().to_string();
    let director =
        Director::start_with(&cluster, Workers::One, &["--metrics", ADDRESS, "--keepalived", &file]);
    director.xvs("laddr add 192.0.2.1");
    let [first, second] = [1, 2].map(|number| format!("{}:80", real_server(number)));
    let listed = |server: &str| director.adm("-L -n").lines().any(|line| line.contains(server));
    wait::until("both are in", || (listed(&first) && listed(&second)).then_some(()));

    // The threshold: the first one has one connection, and all others are the second one's.
    let target = SocketAddr::new(VIP6.into(), 80);
    let open = || cluster.run(Host::Client, || clients::connect(target)).expect("a connection");
    let held: Vec<_> = (0..6).map(|_| open()).collect();
    let page = Page::of(&cluster, Host::Director);
    let of = |name: &str, server: &str| {
        page.sum(name, &[("service", &format!("TCP {target}")), ("destination", server)])
    };
    assert_eq!(of("xvs_destination_active_connections", &first), Some(1.0));
    assert_eq!(of("xvs_destination_active_connections", &second), Some(5.0));
    assert_eq!(of("xvs_destination_weight", &second), Some(3.0));
    let json: Value = serde_json::from_str(&director.adm("-L -n --json")).expect("JSON");
    assert!(json.to_string().contains(&first) && json.to_string().contains(&target.to_string()), "{json}");
    drop(held);

    // A check fails, and succeeds again.
    sinks[0] = None;
    wait::until("the first one is out", || (!listed(&first)).then_some(()));
    let pages = clients::pages(&cluster, &format!("http://[{VIP6}]/"), 3);
    assert_eq!(pages, ["rs2"; 3]);
    sinks[0] = Some(Sink::start(&cluster, Host::RealServer(1), LIFE));
    wait::until("it is in again", || listed(&first).then_some(()));
    drop(sinks);
}
