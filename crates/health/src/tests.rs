//! Tests of the whole engine on a paused clock, with a simulated network.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use xvs_keepalived::read;
use xvs_model::config::command::Command;
use xvs_model::config::reconcile::{ReconcileScope, Reconciled};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::health_checks::virtual_server::{Configuration, RealServer, VirtualServer};
use xvs_model::report::health::{CheckHealth, CheckState, HealthReport};
use xvs_proto::Endpoint;

use crate::blocking::run_blocking;
use crate::check_ref::CheckRef;
use crate::environment::{DesiredServices, Environment};
use crate::manager::{Manager, Message};
use crate::prepare::Prepared;
use crate::probes::probe_result::ProbeResult;
use crate::probes::through_vip::{VipProbe, VipProbeError};
use crate::results::SharedResults;
use crate::runner::Runner;
use crate::view::View;

mod view;
mod world;

use self::world::{Health, Server};

/// Reads a configuration on the host lb1.
pub(crate) fn configuration(text: &str) -> Configuration {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("xvs-health-{}-{number}.conf", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let read = read(&path, "lb1");
    std::fs::remove_file(&path).unwrap();
    read.unwrap()
}

fn file(text: &str) -> Prepared {
    Prepared::of(configuration(text)).unwrap_or_else(|refused| panic!("{:?}", refused.faults))
}

/// A virtual server with these statements, and real servers at these addresses with a `TCP_CHECK` each.
fn virtual_server<'a>(statements: &str, servers: impl IntoIterator<Item = &'a str>) -> String {
    let mut text =
        format!("virtual_server 192.0.2.1 80 {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\n{statements}\n");
    for server in servers {
        writeln!(text, "real_server {server} 80 {{ TCP_CHECK {{ }} }}").unwrap();
    }
    text + "}\n"
}

const RS1: &str = "10.1.0.1";
const RS2: &str = "10.1.0.2";
/// No limit of concurrent probes.
const MANY: usize = 100_000;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[tokio::test(start_paused = true)]
async fn thousands_of_checks_are_not_probed_at_the_same_time_and_each_keeps_its_interval() {
    let servers: Vec<_> =
        (0..2000).map(|number| format!("10.1.{}.{}", number / 250, number % 250 + 1)).collect();
    let text = virtual_server("delay_loop 10", servers.iter().map(String::as_str));
    let health = Health::start(&text, MANY).await;
    let begin = Instant::now();
    sleep(seconds(61.0)).await;
    let mut each_second = vec![0; 62];
    for (_, at) in health.world.probed.lock().unwrap().iter() {
        each_second[at.duration_since(begin).as_secs() as usize] += 1;
    }
    assert_eq!(each_second[0], 0, "no probe runs in the first second");
    assert!(each_second[1..61].iter().all(|probes| (100..400).contains(probes)), "{each_second:?}");
    for server in &servers {
        let probes = health.world.probed(server);
        assert!((5..=7).contains(&probes.len()), "{server}: {}", probes.len());
        for pair in probes.windows(2) {
            let run_blocking = pair[1] - pair[0];
            assert!(run_blocking >= seconds(9.5) && run_blocking <= seconds(10.51), "{run_blocking:?}");
        }
    }
    assert!(health.world.emitted.lock().unwrap().iter().all(|(what, _)| what.ends_with("quorum")));
    assert_eq!(health.world.reconciled.lock().unwrap().len(), 1, "passes change nothing");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_removed_within_the_promised_time_and_added_within_an_interval() {
    let statements = "delay_loop 10\nconnect_timeout 3\nretry 2\ndelay_before_retry 1";
    let health = Health::start(&virtual_server(statements, [RS1, RS2]), MANY).await;
    for _ in 0..20 {
        // Long enough for a probe, with another phase each time.
        sleep(seconds(30.0 + 10.0 * fastrand::f64())).await;
        health.world.set(RS1, Server::Hangs);
        let began = Instant::now();
        let promised = seconds(10.0 * 1.05 + 3.0 * 3.0 + 2.0 * 1.05 + 0.01);
        sleep(promised).await;
        let emitted = health.world.emitted("10.1.0.1:80 of 192.0.2.1 80 is down: TCP 10.1.0.1:80: no answer");
        assert!(emitted >= began + seconds(3.0 * 3.0), "three failures, not fewer");
        assert_eq!(health.world.weights(), [(RS2.to_owned(), 1)]);
        health.world.set(RS1, Server::Passes);
        let began = Instant::now();
        sleep(seconds(10.0 * 1.05 + 3.0 + 0.01)).await;
        assert!(health.world.emitted("10.1.0.1:80 of 192.0.2.1 80 is up") >= began);
        assert_eq!(health.world.weights().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_comes_up_after_exactly_rise_passes_in_a_row() {
    let statements = "delay_loop 10\nretry 1\nrise 3\nwarmup 0";
    let health = Health::start(&virtual_server(statements, [RS1]), MANY).await;
    health.world.set(RS1, Server::Refuses);
    sleep(seconds(1.5)).await;
    assert_eq!(health.check().state, CheckState::Down, "the first failure counts at once");
    health.world.set(RS1, Server::Passes);
    sleep(seconds(2.0 * 10.5)).await;
    assert_eq!(health.check().state, CheckState::Rising { successes: 2, rise: 3 });
    sleep(seconds(10.5)).await;
    assert_eq!(health.check().state, CheckState::Up);
    assert_eq!((health.check().asked, health.check().failed), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_delays_no_other_check() {
    let statements = "delay_loop 5\nconnect_timeout 300";
    let health = Health::start(&virtual_server(statements, [RS1, RS2]), MANY).await;
    health.world.set(RS1, Server::Hangs);
    sleep(seconds(120.0)).await;
    assert_eq!(health.world.probed(RS1).len(), 1);
    assert!(health.world.probed(RS2).len() >= 21);
}

#[tokio::test(start_paused = true)]
async fn concurrent_probes_are_limited_and_each_check_gets_a_permit() {
    let servers: Vec<_> = (1..=50).map(|number| format!("10.1.0.{number}")).collect();
    let text = virtual_server("delay_loop 10\nwarmup 0", servers.iter().map(String::as_str));
    let health = Health::start(&text, 5).await;
    servers.iter().for_each(|server| health.world.set(server, Server::Slow(seconds(0.5))));
    sleep(seconds(10.0)).await;
    assert_eq!(health.world.most_probing.load(Ordering::Relaxed), 5);
    assert!(servers.iter().all(|server| health.world.probed(server).len() == 1));
}

#[tokio::test(start_paused = true)]
async fn the_interval_of_a_script_is_from_start_to_start() {
    let check = "MISC_CHECK { misc_path \"/bin/true\"\nmisc_timeout 9\n}";
    let text = virtual_server("delay_loop 10", []).replace("}\n", "")
        + &format!("real_server {RS1} 80 {{ {check} }}\n}}\n");
    let health = Health::start(&text, MANY).await;
    health.world.set(RS1, Server::Slow(seconds(4.0)));
    sleep(seconds(120.0)).await;
    let probes = health.world.probed(RS1);
    assert!(probes.windows(2).all(|pair| pair[1] - pair[0] <= seconds(10.51)), "{probes:?}");
}

#[tokio::test(start_paused = true)]
async fn many_servers_that_fail_at_once_are_removed_by_a_few_changes() {
    let servers: Vec<_> = (1..=200).map(|number| format!("10.1.0.{number}")).collect();
    let text = virtual_server("delay_loop 10\nwarmup 0", servers.iter().map(String::as_str));
    let health = Health::start(&text, MANY).await;
    servers.iter().for_each(|server| health.world.set(server, Server::Refuses));
    sleep(seconds(2.0)).await;
    assert_eq!(health.world.weights(), []);
    let changes = health.world.reconciled.lock().unwrap().len();
    assert!(changes <= 5, "{changes}");
    let emitted = health.world.emitted.lock().unwrap();
    assert_eq!(emitted.iter().filter(|(what, _)| what.contains(" is down: ")).count(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_refused_change_is_repeated_until_it_succeeds() {
    let health = Health::start(&virtual_server("delay_loop 10\nwarmup 0", [RS1, RS2]), MANY).await;
    health.world.set(RS1, Server::Refuses);
    health.world.is_stuck.store(true, Ordering::Relaxed);
    sleep(seconds(60.0)).await;
    assert_eq!(health.world.reconciled.lock().unwrap().len(), 1);
    health.world.is_stuck.store(false, Ordering::Relaxed);
    sleep(seconds(1.5)).await;
    assert_eq!(health.world.weights(), [(RS2.to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn probes_without_a_port_are_prepared_again_and_hinder_nothing_else() {
    let health = Health::start("", MANY).await;
    health.world.has_no_port.store(true, Ordering::Relaxed);
    let servers = virtual_server("delay_loop 10", [RS1, RS2]).replace("lb_kind NAT", "lb_kind DR");
    let servers = servers.replace("TCP_CHECK {", "TCP_CHECK {\nthrough_vip");
    let text = format!("global_defs {{\nlvs_timeouts tcp 7 tcpfin 8 udp 9\n}}\n{servers}");
    let error = health.load(&text).await.unwrap_err();
    assert!(error.to_string().contains("no port"), "{error}");
    assert_eq!(health.world.timeouts.lock().unwrap().tcp_seconds, 7);
    assert_eq!(health.world.weights().len(), 2);
    health.world.has_no_port.store(false, Ordering::Relaxed);
    sleep(seconds(1.5)).await;
    assert!(health.world.expects_vip_probes.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_neither_states_nor_the_times_of_probes() {
    let text = virtual_server("delay_loop 60\nwarmup 0", [RS1, RS2]);
    let health = Health::start(&text, MANY).await;
    health.world.set(RS1, Server::Refuses);
    sleep(seconds(5.0)).await;
    let before = health.report();
    let due = before.virtual_servers[0].real_servers[0].checks[0].next_millis;
    let emitted = health.world.emitted.lock().unwrap().len();
    let text = text.replace("real_server 10.1.0.2 80 {", "real_server 10.1.0.2 80 {\nweight 5\n");
    let answer = health.load(&text).await.unwrap();
    assert_eq!(answer, "virtual servers: 1 (0 new, 0 gone), checks: 2 (0 new, 0 gone); the table: 0 changes");
    assert_eq!(health.world.weights(), [(RS2.to_owned(), 5)]);
    assert_eq!(health.world.emitted.lock().unwrap().len(), emitted, "a reload emits no line");
    let after = health.report();
    assert_eq!(after.virtual_servers[0].real_servers[0].checks[0].next_millis, due);
    assert_eq!(after.virtual_servers[0].real_servers[0], before.virtual_servers[0].real_servers[0]);
    assert_eq!((before.reads, after.reads), (1, 2));
    health.world.probed(RS1);
    sleep(seconds(52.0)).await;
    assert_eq!(health.world.probed(RS1).len(), 0, "it is not probed earlier");
    sleep(seconds(7.5)).await;
    assert_eq!(health.world.probed(RS1).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn timeouts_removed_from_the_file_get_their_former_values() {
    let text = |timeouts: &str| {
        virtual_server("", [RS1]) + &format!("global_defs {{\nlvs_timeouts {timeouts}\n}}\n")
    };
    let health = Health::start(&text("tcp 7200"), MANY).await;
    let in_force = || {
        let Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds } = health.world.timeouts().unwrap();
        [tcp_seconds, tcp_fin_seconds, udp_seconds]
    };
    assert_eq!(in_force(), [7200, 120, 300]);
    health.world.timeouts.lock().unwrap().udp_seconds = 77;
    health.load(&text("tcp 3600 udp 30")).await.unwrap();
    assert_eq!(in_force(), [3600, 120, 30]);
    health.load(&text("tcpfin 60")).await.unwrap();
    assert_eq!(in_force(), [900, 60, 77]);
    health.load(&virtual_server("", [RS1])).await.unwrap();
    assert_eq!(in_force(), [900, 120, 77]);
}

#[tokio::test]
async fn a_file_without_checks_is_not_read_any_more() {
    let path = std::env::temp_dir().join(format!("xvs-health-track-{}", std::process::id()));
    let text = format!("track_file t {{\nfile {}\nweight 0\n}}\n", path.display())
        + &virtual_server("", [RS1]).replace("TCP_CHECK { }", "FILE_CHECK { track_file t\n}");
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let health = Health::start(&text, MANY).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks() - before;
    assert_eq!(alive(), 3, "manager, check, file");
    health.load(&virtual_server("", [])).await.unwrap();
    while alive() > 1 {
        sleep(seconds(0.01)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_edited_check_of_a_server_that_is_down_is_probed_at_once_and_brings_it_up() {
    let text = virtual_server("delay_loop 600", [RS1]);
    let health = Health::start(&text, MANY).await;
    health.world.set(RS1, Server::Refuses);
    sleep(seconds(602.0)).await;
    assert_eq!(health.world.weights(), []);
    health.world.set(RS1, Server::Passes);
    health.load(&text.replace("TCP_CHECK {", "TCP_CHECK { connect_port 81\n")).await.unwrap();
    assert_eq!(health.world.weights(), [], "it was not probed yet");
    sleep(seconds(1.1)).await;
    assert_eq!(health.world.weights(), [(RS1.to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_interval_applies_at_once() {
    let text = virtual_server("delay_loop 600\nwarmup 0", [RS1]);
    let health = Health::start(&text, MANY).await;
    sleep(seconds(5.0)).await;
    health.load(&text.replace("600", "2")).await.unwrap();
    health.world.probed(RS1);
    sleep(seconds(11.0)).await;
    assert!((4..=6).contains(&health.world.probed(RS1).len()));
}

#[tokio::test(start_paused = true)]
async fn thousands_of_checks_with_a_shorter_interval_are_not_probed_at_the_same_time() {
    let servers: Vec<_> =
        (0..2000).map(|number| format!("10.1.{}.{}", number / 250, number % 250 + 1)).collect();
    let text = virtual_server("delay_loop 600", servers.iter().map(String::as_str));
    let health = Health::start(&text, MANY).await;
    health.load(&text.replace("600", "10")).await.unwrap();
    let begin = Instant::now();
    sleep(seconds(20.0)).await;
    let mut each_second = vec![0; 21];
    for (_, at) in health.world.probed.lock().unwrap().iter() {
        each_second[at.duration_since(begin).as_secs() as usize] += 1;
    }
    assert!(each_second[..20].iter().all(|probes| (100..400).contains(probes)), "{each_second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_real_server_of_two_virtual_servers_has_a_status_in_each_by_its_checks_there() {
    let one = virtual_server("delay_loop 5\nwarmup 0", [RS1]);
    let other = one.replace("192.0.2.1 80", "192.0.2.1 443").replace("TCP_CHECK { }", "");
    let health = Health::start(&(one + &other), MANY).await;
    health.world.set(RS1, Server::Refuses);
    sleep(seconds(10.0)).await;
    let report = health.report();
    let up = report.virtual_servers.iter().map(|server| server.real_servers[0].is_up);
    assert_eq!(up.collect::<Vec<_>>(), [false, true]);
    let reconciled = health.world.reconciled.lock().unwrap();
    let [(key, Some(service))] = &reconciled.last().unwrap()[..] else { panic!("{reconciled:?}") };
    assert_eq!((key.to_string().as_str(), service.destinations.len()), ("TCP 192.0.2.1:80", 0));
}

#[tokio::test(start_paused = true)]
async fn a_removed_check_stops_at_once_with_its_probe_in_progress() {
    let health = Health::start(&virtual_server("delay_loop 10\nwarmup 0", [RS1, RS2]), MANY).await;
    health.world.set(RS1, Server::Hangs);
    sleep(seconds(2.0)).await;
    assert_eq!(health.world.probing.load(Ordering::Relaxed), 1);
    let answer = health.load(&virtual_server("delay_loop 10\nwarmup 0", [RS2])).await.unwrap();
    assert!(answer.contains("checks: 1 (0 new, 1 gone)"), "{answer}");
    sleep(seconds(0.1)).await;
    assert_eq!(health.world.probing.load(Ordering::Relaxed), 0);
    health.world.probed(RS1);
    sleep(seconds(60.0)).await;
    assert_eq!(health.world.probed(RS1).len(), 0);
    assert_eq!(health.world.weights(), [(RS2.to_owned(), 1)]);
    let answer = health.load("").await.unwrap();
    assert!(answer.starts_with("virtual servers: 0 (0 new, 1 gone), checks: 0 (0 new, 1 gone)"), "{answer}");
    assert!(
        health.world.reconciled.lock().unwrap().last().unwrap().iter().all(|(_, service)| service.is_none())
    );
}

#[tokio::test(start_paused = true)]
async fn checks_are_suspended_while_another_machine_has_the_address() {
    let health = Health::start(&virtual_server("delay_loop 30\nwarmup 0\nha_suspend", [RS1]), MANY).await;
    health.world.is_here.store(false, Ordering::Relaxed);
    sleep(seconds(300.0)).await;
    assert_eq!(health.world.probed(RS1).len(), 0);
    assert_eq!(health.check().state, CheckState::Suspended { is_up: true });
    health.world.is_here.store(true, Ordering::Relaxed);
    sleep(seconds(2.0)).await;
    assert_eq!((health.world.probed(RS1).len(), health.check().state), (1, CheckState::Up));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_cannot_run_changes_nothing_and_is_named_until_it_runs() {
    let health = Health::start(&virtual_server("delay_loop 10\nwarmup 0", [RS1]), MANY).await;
    let cannot_run = "stays up unchecked: the check TCP 10.1.0.1:80 cannot run: no socket".to_owned();
    for (server, state, named) in [
        (Server::CannotRun, CheckState::AssumedUp, Some(cannot_run.clone())),
        (Server::Passes, CheckState::Up, None),
        (Server::CannotRun, CheckState::Up, Some(cannot_run)),
        // xvsd itself was late: nothing keeps the next probe from running.
        (Server::Late(seconds(1.1)), CheckState::Up, None),
        (Server::Refuses, CheckState::Down, None),
    ] {
        health.world.set(RS1, server);
        sleep(seconds(60.0)).await;
        assert_eq!((health.check().state, health.check().cannot_run()), (state, named));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_probe_ends_no_check_and_counts_as_not_run() {
    let health = Health::start(&virtual_server("delay_loop 10\nwarmup 0", [RS1]), MANY).await;
    health.world.set(RS1, Server::Panics);
    sleep(seconds(30.0)).await;
    assert!(health.world.probed(RS1).len() >= 2);
    assert_eq!(health.check().state, CheckState::AssumedUp);
    assert_eq!(health.check().last_error.unwrap().what, "internal error of xvsd; see its log");
}

#[tokio::test(start_paused = true)]
async fn a_failure_seen_late_by_xvsd_is_no_failure_of_the_server() {
    let health = Health::start(&virtual_server("delay_loop 10\nwarmup 0", [RS1]), MANY).await;
    health.world.set(RS1, Server::Late(seconds(1.1)));
    sleep(seconds(60.0)).await;
    assert!(health.world.probed(RS1).len() >= 2);
    assert_eq!(health.check().state, CheckState::AssumedUp);
    let why = health.check().last_error.unwrap().what;
    assert_eq!(why, "no answer; but xvsd itself was more than a second late");
    health.world.set(RS1, Server::Late(seconds(0.9)));
    sleep(seconds(60.0)).await;
    assert_eq!(health.check().state, CheckState::Down);
}

#[tokio::test]
async fn blocked_calls_leave_threads_for_requests_to_the_control_thread() {
    let (end, ended) = crossbeam::channel::bounded::<()>(0);
    let began = Arc::new(AtomicUsize::new(0));
    for _ in 0..600 {
        let (ended, began) = (ended.clone(), began.clone());
        tokio::spawn(async move {
            began.fetch_add(1, Ordering::Relaxed);
            run_blocking(move || ended.recv().is_err()).await
        });
    }
    while began.load(Ordering::Relaxed) < 600 {
        tokio::task::yield_now().await;
    }
    let emitted = tokio::time::timeout(seconds(30.0), tokio::task::spawn_blocking(|| ())).await;
    drop(end);
    assert!(emitted.is_ok());
}
