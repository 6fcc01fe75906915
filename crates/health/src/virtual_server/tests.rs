//! Cases of single changes, with keepalived's files.

mod properties;

use std::fs;
use std::path::Path;

use crate::check_state::CheckStateMachine;
use crate::probes::probe_result::ProbeResult;
use crate::tests::configuration;
use crate::virtual_server::*;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::objects::Rule;
use xvs_model::objects::disabled::Disabled;
use xvs_model::report::health::AgentMode;

/// The first virtual server of a configuration.
fn read(text: &str) -> Arc<VirtualServer> {
    Arc::new(configuration(text).virtual_servers.swap_remove(0))
}

/// A TCP virtual server with direct routing and these lines.
pub(super) fn virtual_server(lines: &str) -> Arc<VirtualServer> {
    let head = "virtual_server 10.0.0.1 80 {\nlvs_sched rr\nlvs_method DR\nprotocol TCP\n";
    read(&format!("{head}{lines}\n}}\n"))
}

/// A configuration of the tests of `keepalived`.
fn case(name: &str) -> Arc<VirtualServer> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../keepalived/src/cases");
    read(&fs::read_to_string(folder.join(name).with_extension("conf")).unwrap())
}

pub(super) fn started(virtual_server: &Arc<VirtualServer>) -> VirtualServerState {
    VirtualServerState::start(Arc::clone(virtual_server), InitialNotices::Omitted, Arc::default()).state
}

pub(super) fn reloaded(state: VirtualServerState, virtual_server: &Arc<VirtualServer>) -> Reloaded {
    state.reload(Arc::clone(virtual_server), InitialNotices::Omitted)
}

/// The destinations of the first service: last component of the address, `=`, weight.
fn servers(state: &VirtualServerState) -> String {
    let (_, service) = &state.desired_services()[0];
    let one = |(endpoint, options): &(Endpoint, DestinationOptions)| {
        let addr = endpoint.addr.to_string();
        format!("{}={}", addr.rsplit('.').next().unwrap(), options.weight.0)
    };
    service.destinations.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The notices without the virtual server: `RS 1 UP`, `VS DOWN`.
pub(super) fn lines(notices: &[Notice]) -> Vec<String> {
    let line = |notice: &Notice| {
        let change = if notice.status == Status::Up { "UP" } else { "DOWN" };
        let Some(server) = notice.server else { return format!("VS {change}") };
        let addr = notice.virtual_server.real_servers[server].endpoint.addr.to_string();
        format!("RS {} {change}", addr.rsplit('.').next().unwrap())
    };
    notices.iter().map(line).collect()
}

const WHOLE: AgentWeight = AgentWeight { percent: 100, mode: AgentMode::Ready };
pub(super) const UP: CheckResult = CheckResult { is_up: true, weight_change: 0, agent: WHOLE };
const DOWN: CheckResult = CheckResult { is_up: false, ..UP };

/// Two real servers with a check each, after the lines of `before`.
fn pair(before: &str) -> Arc<VirtualServer> {
    let checked = "TCP_CHECK {\n}\n}";
    virtual_server(&format!(
        "{before}\nreal_server 10.1.0.1 80 {{\nweight 2\n{checked}\nreal_server 10.1.0.2 80 {{\nweight 3\n{checked}"
    ))
}

#[test]
fn an_inhibited_server_that_starts_down_gets_its_weight_with_its_first_pass() {
    let mut state = started(&case("begins-down"));
    assert_eq!(servers(&state), "1=0");
    assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
    assert_eq!(servers(&state), "1=1");
}

#[test]
fn a_weight_from_a_script_changes_the_quorum_and_the_sorry_server() {
    let file = case("sorry-server");
    let Reloaded { mut state, notices, .. } =
        VirtualServerState::start(Arc::clone(&file), InitialNotices::Omitted, Arc::default());
    assert_eq!((lines(&notices), servers(&state)), (vec!["VS DOWN".to_owned()], "1=0 99=1".to_owned()));
    let check = &file.real_servers[0].checks[0];
    let mut machine = CheckStateMachine::new(check, Status::at_first(&check.timing));
    let failed = || ProbeResult::Failed("exit code 1".to_owned());
    // Exit codes 0, 7, 1, 3. At weight 2 the last one adds -1, so the quorum of 2 is lost.
    for (answer, want, said) in [
        (ProbeResult::Passed(0), "1=2 99=0", &["RS 1 UP", "VS UP"][..]),
        (ProbeResult::Passed(7 - 2 - 2), "1=5 99=0", &[]),
        (failed(), "1=0 99=1", &["RS 1 DOWN", "VS DOWN"]),
        (ProbeResult::Passed(0), "1=2 99=0", &["RS 1 UP", "VS UP"]),
        (ProbeResult::Passed(3 - 2 - 2), "1=0 99=1", &["VS DOWN"]),
        (ProbeResult::Passed(2 - 2 - 2), "1=0 99=1", &[]),
        (ProbeResult::Passed(0), "1=2 99=0", &["VS UP"]),
    ] {
        let change = machine.apply(&answer);
        assert_eq!(lines(&state.apply([(0, 0, change.result)])), said, "{answer:?}");
        assert_eq!(servers(&state), want, "{answer:?}");
    }
}

/// These disabled real servers.
fn disabled(servers: &[&str]) -> Arc<DisabledServers> {
    let mut all = State::default();
    for server in servers {
        let server = Disabled { server: server.parse().unwrap(), service: None };
        all.apply(&Command::Add(Rule::Disabled(server))).unwrap();
    }
    Arc::new(all.disabled().clone())
}

#[test]
fn a_disabled_server_does_not_count_for_the_quorum_so_a_sorry_server_serves_if_all_are_disabled() {
    let file = pair("sorry_server 10.1.0.99 80");
    let mut state = started(&file);
    assert_eq!(lines(&Vec::from_iter(state.set_disabled(disabled(&["10.1.0.1"])))), [""; 0]);
    assert_eq!((state.live_weight(), &*servers(&state)), (3, "1=2 2=3"));
    let all = disabled(&["10.1.0.1", "10.1.0.2:80"]);
    assert_eq!(lines(&Vec::from_iter(state.set_disabled(all.clone()))), ["VS DOWN"]);
    assert_eq!(servers(&state), "99=1");
    let Reloaded { state: mut after, notices, .. } = reloaded(state, &file);
    assert_eq!((lines(&notices), &*servers(&after)), (Vec::new(), "99=1"), "over a reload, too");
    assert_eq!(lines(&Vec::from_iter(after.set_disabled(disabled(&["10.1.0.1"])))), ["VS UP"]);
    let Reloaded { state, notices, .. } = VirtualServerState::start(file, InitialNotices::Omitted, all);
    assert_eq!((lines(&notices), &*servers(&state)), (vec!["VS DOWN".to_owned()], "99=1"));
}

#[test]
fn of_two_servers_at_one_address_the_one_with_the_disabled_port_is_disabled() {
    let servers = "real_server 10.1.0.1 80 {\n}\nreal_server 10.1.0.1 8080 {\n}";
    let head = "virtual_server 10.0.0.1 80 {\nlvs_sched rr\nlvs_method NAT\nprotocol TCP";
    let mut state = started(&read(&format!("{head}\n{servers}\n}}\n")));
    state.set_disabled(disabled(&["10.1.0.1:8080"]));
    assert_eq!([0, 1].map(|server| state.is_disabled(server)), [false, true]);
}

#[test]
fn a_server_is_up_while_all_of_its_checks_are() {
    let text = "real_server 10.1.0.1 80 {\nTCP_CHECK {\n}\nTCP_CHECK {\nconnect_port 81\n}\n}\n\
                real_server 10.1.0.2 80 {\n}";
    let mut state = started(&virtual_server(text));
    for (check, result, notices, there) in [
        (0, DOWN, &["RS 1 DOWN"][..], "2=1"),
        (1, DOWN, &[], "2=1"),
        (0, UP, &[], "2=1"),
        (1, UP, &["RS 1 UP"], "1=1 2=1"),
    ] {
        assert_eq!(lines(&state.apply([(0, check, result)])), notices);
        assert_eq!(servers(&state), there);
    }
}

#[test]
fn weight_changes_of_all_checks_are_summed_and_limited_to_the_range_of_a_weight() {
    let text = "real_server 10.1.0.1 80 {\nweight 4\nTCP_CHECK {\n}\nTCP_CHECK {\nconnect_port 81\n}\n}";
    let mut state = started(&virtual_server(text));
    let mut weight = |check, weight_change| {
        state.apply([(0, check, CheckResult { is_up: true, weight_change, ..UP })]);
        servers(&state)
    };
    assert_eq!(weight(0, 3), "1=7");
    assert_eq!(weight(1, -2), "1=5");
    assert_eq!(weight(0, i64::MIN), "1=0");
    assert_eq!(weight(0, i64::MAX), "1=2147483647");
    assert_eq!(weight(0, 0), "1=2");
}

#[test]
fn results_of_one_batch_cause_a_notice_each_and_the_quorum_is_computed_after_all() {
    let mut state = started(&pair("quorum 2"));
    state.apply([(0, 0, DOWN)]);
    // One server goes down and one comes up, so the quorum stays.
    let notices = state.apply([(1, 0, DOWN), (0, 0, UP), (7, 0, DOWN), (0, 7, DOWN)]);
    assert_eq!(lines(&notices), ["RS 2 DOWN", "RS 1 UP"]);
    assert_eq!((servers(&state).as_str(), state.has_quorum()), ("1=2", true));
    let notices = state.apply([(0, 0, DOWN), (1, 0, DOWN)]);
    assert_eq!(lines(&notices), ["RS 1 DOWN", "VS DOWN"]);
}

#[test]
fn an_agent_grants_a_share_of_the_weight_of_file_and_scripts_and_a_drain_counts_as_weight_0() {
    let agent = "TCP_CHECK {\nagent_check\nconnect_port 8001\n}\nMISC_CHECK {\nmisc_path /x\nmisc_dynamic\n}";
    let real = |number| format!("real_server 10.1.0.{number} 80 {{\nweight 100\n{agent}\n}}\n");
    let file = virtual_server(&format!(
        "alpha\nquorum 150\n{}real_server 10.1.0.2 80 {{\nweight 100\n}}\nsorry_server 10.1.0.99 80",
        real(1)
    ));
    let mut state = started(&file);
    assert_eq!(lines(&state.apply([(0, 1, UP)])), ["RS 1 UP", "VS UP"], "an agent is up until it says more");
    let granted = |percent, mode| CheckResult { agent: AgentWeight { percent, mode }, ..UP };
    let half = granted(50, AgentMode::Ready);
    assert_eq!((lines(&state.apply([(0, 0, half)])), servers(&state)), (vec![], "1=50 2=100".to_owned()));
    state.apply([(0, 1, CheckResult { weight_change: 300, ..UP })]);
    assert_eq!(servers(&state), "1=200 2=100");
    let drained = CheckResult { is_up: true, ..granted(50, AgentMode::Drain) };
    assert_eq!(
        (lines(&state.apply([(0, 0, drained)])), servers(&state)),
        (vec!["VS DOWN".to_owned()], "99=1".to_owned())
    );
    assert_eq!(
        (lines(&state.apply([(0, 0, half)])), servers(&state)),
        (vec!["VS UP".to_owned()], "1=200 2=100".to_owned())
    );
    // With another weight in the file the share applies to the new weight.
    let heavier = virtual_server(&format!("quorum 150\n{}", real(1).replace("100", "500")));
    let state = reloaded(state, &heavier).state;
    assert_eq!(servers(&state), "1=400");
    let view = state.view(|_, _| CheckView { result: UP, has_run: true, has_failed: false });
    let resumed = VirtualServerState::resume(heavier, &view, InitialNotices::Omitted, Arc::default());
    assert_eq!(servers(&resumed.state), "1=400");
}

#[test]
fn a_new_or_edited_agent_of_a_server_that_is_down_keeps_it_down_no_longer_than_its_other_checks() {
    let file = |port| {
        let agent = format!("TCP_CHECK {{\nagent_check\nconnect_port {port}\n}}");
        virtual_server(&format!("real_server 10.1.0.1 80 {{\nTCP_CHECK {{\n}}\n{agent}\n}}"))
    };
    let mut state = started(&file(8001));
    state.apply([(0, 0, DOWN)]);
    let mut state = reloaded(state, &file(8002)).state;
    assert_eq!(servers(&state), "");
    assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
    // The agent's reply is about the server, wherever it was requested.
    state.apply([(0, 1, DOWN)]);
    let state = reloaded(state, &file(8003)).state;
    assert_eq!(servers(&state), "");
}

#[test]
fn without_a_sorry_server_a_lost_quorum_removes_no_destination() {
    let mut state = started(&pair("quorum 4"));
    assert_eq!(lines(&state.apply([(1, 0, DOWN)])), ["RS 2 DOWN", "VS DOWN"]);
    assert_eq!((servers(&state), state.has_quorum(), state.live_weight()), ("1=2".to_owned(), false, 2));
    assert_eq!(lines(&state.apply([(0, 0, DOWN)])), ["RS 1 DOWN"]);
    assert_eq!(servers(&state), "");
    assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP"]);
    assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 2 UP", "VS UP"]);
    assert_eq!(servers(&state), "1=2 2=3");
}

#[test]
fn a_sorry_server_serves_alone_from_the_loss_of_the_quorum_to_its_gain() {
    let mut state = started(&pair("quorum 3\nhysteresis 2\nsorry_server 10.1.0.9 80"));
    assert_eq!(servers(&state), "1=2 2=3");
    // The quorum is kept with a live weight of at least 1, and gained again with at least 5.
    assert_eq!(lines(&state.apply([(1, 0, DOWN)])), ["RS 2 DOWN"]);
    assert_eq!(servers(&state), "1=2");
    assert_eq!(lines(&state.apply([(0, 0, DOWN)])), ["RS 1 DOWN", "VS DOWN"]);
    assert_eq!((servers(&state), state.uses_sorry_server(), state.weight(0)), ("9=1".to_owned(), true, None));
    assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 2 UP"]);
    assert_eq!(servers(&state), "9=1");
    assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
    assert_eq!((servers(&state), state.uses_sorry_server()), ("1=2 2=3".to_owned(), false));
}

#[test]
fn a_sorry_server_that_is_a_real_server_too_is_one_destination() {
    let mut state =
        started(&pair("quorum 4\ninhibit_on_failure\nsorry_server 10.1.0.1 80\nsorry_server_inhibit"));
    assert_eq!(servers(&state), "1=2 2=3");
    state.apply([(1, 0, DOWN)]);
    assert_eq!(servers(&state), "2=0 1=1");
    state.apply([(0, 0, DOWN)]);
    assert_eq!(servers(&state), "2=0 1=1");
    state.apply([(1, 0, UP)]);
    state.apply([(0, 0, UP)]);
    assert_eq!(servers(&state), "1=2 2=3");
}

#[test]
fn in_a_group_a_sorry_server_without_a_port_equals_a_real_server_with_the_services_port() {
    let text = "virtual_server_group G {\n10.0.0.1 80\n10.0.0.2 81\n}\nvirtual_server group G {\nlvs_method DR\n\
                protocol TCP\nalpha\ninhibit_on_failure\nsorry_server 10.1.0.1\nreal_server 10.1.0.1 80 {\nTCP_CHECK {\n}\n}\n}\n";
    let state = started(&read(text));
    let ports: Vec<_> = state
        .desired_services()
        .iter()
        .flat_map(|(_, service)| &service.destinations)
        .map(|(endpoint, options)| (endpoint.port, options.weight.0))
        .collect();
    assert_eq!(ports, [(80, 1), (81, 1)]);
}

#[test]
fn at_the_start_the_quorum_causes_a_notice_and_servers_do_with_rs_init_notifies() {
    let notices = |before: &str, initial_notices| {
        lines(&VirtualServerState::start(pair(before), initial_notices, Arc::default()).notices)
    };
    assert_eq!(notices("", InitialNotices::Omitted), ["VS UP"]);
    assert_eq!(notices("", InitialNotices::Sent), ["RS 1 UP", "RS 2 UP", "VS UP"]);
    assert!(notices("alpha", InitialNotices::Sent).is_empty());
    assert_eq!(notices("alpha\nsorry_server 10.1.0.9 80", InitialNotices::Sent), ["VS DOWN"]);
}

#[test]
fn the_first_failure_of_a_server_that_starts_down_causes_one_notice() {
    let mut state = started(&pair("alpha"));
    assert_eq!(lines(&state.apply([(0, 0, DOWN)])), ["RS 1 DOWN"]);
    assert!(state.apply([(0, 0, DOWN)]).is_empty());
    let mut state = reloaded(state, &pair("alpha\nquorum 2")).state;
    assert!(state.apply([(0, 0, DOWN)]).is_empty());
    assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
}

#[test]
fn a_stop_causes_notices_only_with_omega_and_a_removal_always() {
    let state = started(&pair(""));
    assert!(state.clone().stop().is_empty());
    assert_eq!(lines(&state.remove()), ["RS 1 DOWN", "RS 2 DOWN", "VS DOWN"]);
    let mut state = started(&pair("omega"));
    state.apply([(0, 0, DOWN)]);
    assert_eq!(lines(&state.clone().stop()), ["RS 2 DOWN", "VS DOWN"]);
    state.apply([(1, 0, DOWN)]);
    assert!(state.stop().is_empty());
}

#[test]
fn a_server_that_is_down_stays_down_over_a_reload_and_a_new_weight_applies_at_once() {
    let mut state = started(&pair("inhibit_on_failure"));
    state.apply([(0, 0, DOWN)]);
    let weights = |first, second| {
        let checked = "TCP_CHECK {\nretry 9\nalpha\n}\n}";
        virtual_server(&format!(
            "inhibit_on_failure\nreal_server 10.1.0.2 80 {{\nweight {second}\n{checked}\n\
             real_server 10.1.0.1 80 {{\nweight {first}\n{checked}"
        ))
    };
    let Reloaded { mut state, notices, origins } = reloaded(state, &weights(7, 8));
    assert!(notices.is_empty());
    let kept = |server| vec![Origin::Kept { server, check: 0 }];
    assert_eq!(origins, [kept(1), kept(0)]);
    assert_eq!(servers(&state), "2=8 1=0");
    assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 1 UP"]);
    assert_eq!(servers(&state), "2=8 1=7");
    assert_eq!(servers(&reloaded(state, &weights(0, 1)).state), "2=1 1=0");
}

#[test]
fn a_new_check_starts_with_its_servers_status_and_an_edited_one_brings_no_server_up_before_a_probe() {
    let file = |checks: &str| virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checks}\n}}"));
    let check = |port: u16, lines: &str| format!("TCP_CHECK {{\nconnect_port {port}\n{lines}\n}}\n");
    let (one, two, edited) = (check(81, ""), check(82, "alpha"), check(83, ""));
    let both = file(&format!("{two}{one}"));
    // The server was up.
    let Reloaded { state, notices, origins } = reloaded(started(&file(&one)), &both);
    let kept = Origin::Kept { server: 0, check: 0 };
    assert_eq!((state.is_up(0), notices.len()), (true, 0));
    assert_eq!(origins, [[Origin::New(Status::Up), kept]]);
    // The server was down.
    let mut state = started(&file(&one));
    state.apply([(0, 0, DOWN)]);
    let Reloaded { state: mut other, notices, origins } = reloaded(state.clone(), &file(&edited));
    assert_eq!((other.is_up(0), notices.len()), (false, 0));
    assert_eq!(origins, [[Origin::New(Status::Down)]]);
    assert!(other.apply([(0, 0, DOWN)]).is_empty(), "its notice was sent before");
    assert_eq!(lines(&other.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
    let Reloaded { mut state, origins, .. } = reloaded(state, &both);
    assert_eq!(origins, [[Origin::New(Status::Down), kept]]);
    state.apply([(0, 1, UP)]);
    assert!(!state.is_up(0));
    // The failed check is removed; no other check has failed.
    let Reloaded { state, notices, .. } = reloaded(state, &file(&one));
    assert_eq!((state.is_up(0), lines(&notices)), (true, vec!["RS 1 UP".to_owned(), "VS UP".to_owned()]));
}

#[test]
fn checks_of_equal_identity_are_kept_in_their_order_whatever_their_timing() {
    let checks = |lines: [&str; 4]| {
        let checks = lines.map(|line| format!("TCP_CHECK {{\n{line}\n}}\n")).concat();
        virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checks}\n}}"))
    };
    let state = started(&checks(["", "connect_port 81", "", "fwmark 3"]));
    let kept = |check| Origin::Kept { server: 0, check };
    let again = checks(["retry 3", "delay_loop 3", "fwmark 3\nconnect_timeout 1", ""]);
    assert_eq!(reloaded(state, &again).origins, [[kept(0), kept(2), kept(3), Origin::New(Status::Up)]]);
}

#[test]
fn an_identity_covers_the_probes_settings_and_not_its_protocol_version_recovery_or_user() {
    let identity = |checker: &str| {
        let file = virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checker}\n}}"));
        file.real_servers[0].checks[0].probe.identity()
    };
    let url = "url {\npath /a\n}";
    let http = identity(&format!("HTTP_GET {{\n{url}\n}}"));
    assert_eq!(http, identity(&format!("HTTP_GET {{\nhttp_protocol 1.1\nfast_recovery\n{url}\n}}")));
    assert_ne!(http, identity("HTTP_GET {\nurl {\npath /b\n}\n}"));
    assert_ne!(http, identity(&format!("SSL_GET {{\n{url}\n}}")));
    assert_ne!(http, identity(&format!("HTTP_GET {{\nvirtualhost a.example\n{url}\n}}")));
    assert_eq!(identity("UDP_CHECK {\npayload 01\n}"), identity("UDP_CHECK {\nrequire_reply\n}"));
    assert_ne!(identity("UDP_CHECK {\n}"), identity("UDP_CHECK {\nbindto 10.1.0.8\n}"));
    let script = |lines: &str| identity(&format!("MISC_CHECK {{\nmisc_path \"/x a\"\n{lines}\n}}"));
    assert_eq!(script(""), script("user nobody"));
    assert_ne!(script(""), script("misc_dynamic"));
}

#[test]
fn a_reload_computes_the_quorum_by_the_new_file_and_uses_its_scripts() {
    let state = started(&pair("quorum 2\nquorum_down /x/old"));
    let Reloaded { state, notices, .. } =
        reloaded(state, &pair("quorum 5\nhysteresis 4\nquorum_up /x/up\nquorum_down /x/new"));
    assert!(notices.is_empty(), "5 - 4 is enough to keep the quorum");
    let mut state = state;
    state.apply([(0, 0, DOWN)]);
    let Reloaded { state, notices, .. } = reloaded(state, &pair("quorum 5\nquorum_down /x/new"));
    assert_eq!(lines(&notices), ["VS DOWN"]);
    assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/new"));
    let Reloaded { notices, .. } = reloaded(state, &pair("quorum 3\nquorum_up /x/up"));
    assert_eq!(lines(&notices), ["VS UP"]);
    assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/up"));
}

#[test]
fn replaced_servers_cause_notices_in_order_and_the_quorum_only_if_it_is_lost() {
    let file = |first: u8, lines: &str| {
        virtual_server(&format!(
            "{lines}\nsorry_server 10.1.0.99 80\nreal_server 10.1.0.{first} 80 {{\nnotify_down /x/{first}\nTCP_CHECK {{\n}}\n}}\n\
             real_server 10.1.0.{} 80 {{\nTCP_CHECK {{\n}}\n}}",
            first + 1
        ))
    };
    let Reloaded { state, notices, origins } = reloaded(started(&file(1, "")), &file(3, ""));
    assert_eq!(lines(&notices), ["RS 1 DOWN", "RS 2 DOWN"]);
    assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/1"));
    assert_eq!((servers(&state).as_str(), state.has_quorum()), ("3=1 4=1", true));
    assert_eq!(origins, [[Origin::New(Status::Up)], [Origin::New(Status::Up)]]);
    let Reloaded { mut state, notices, .. } = reloaded(state, &file(5, "alpha"));
    assert_eq!(lines(&notices), ["RS 3 DOWN", "RS 4 DOWN", "VS DOWN"]);
    assert_eq!(servers(&state), "99=1");
    assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 6 UP", "VS UP"]);
    assert_eq!(servers(&state), "6=1");
}

#[test]
fn a_reload_that_adds_or_removes_the_sorry_server_replaces_or_restores_the_real_servers() {
    let mut state = started(&pair("quorum 4"));
    state.apply([(1, 0, DOWN)]);
    let state = reloaded(state, &pair("quorum 4\nsorry_server 10.1.0.9 80")).state;
    assert_eq!(servers(&state), "9=1");
    let state = reloaded(state, &pair("quorum 4\nsorry_server 10.1.0.8 80")).state;
    assert_eq!(servers(&state), "8=1");
    let state = reloaded(state, &pair("quorum 4")).state;
    assert_eq!(servers(&state), "1=2");
}

#[test]
fn lines_for_fifos_name_addresses_marks_and_groups_as_keepalived_does() {
    let notices = |head: &str| {
        let text = format!(
            "virtual_server_group G {{\n10.0.0.7 80\nfwmark 9\n}}\nvirtual_server group G {{\nprotocol TCP\n\
             real_server 10.1.0.5 80 {{\n}}\n}}\n{head} {{\nlvs_method TUN\nreal_server 2001:db8::5 80 {{\n}}\n}}\n"
        );
        let file = configuration(&text).virtual_servers.swap_remove(1);
        let started = VirtualServerState::start(Arc::new(file), InitialNotices::Sent, Arc::default());
        let notices = started.notices;
        notices.iter().map(Notice::line).collect::<Vec<_>>()
    };
    assert_eq!(
        notices("virtual_server 2001:db8::1 53"),
        ["RS [2001:db8::5]:udp:53 [2001:db8::1]:udp:53 UP", "VS [2001:db8::1]:udp:53 UP"]
    );
    assert_eq!(notices("virtual_server fwmark 7"), ["RS [2001:db8::5]:none:0 FWM 7 UP", "VS FWM 7 UP"]);
    assert_eq!(notices("virtual_server group G"), ["RS [2001:db8::5]:udp:80 [G]:1 UP", "VS [G]:1 UP"]);
}

#[test]
fn notices_for_the_log_are_sentences() {
    let mut state = started(&pair("quorum 4"));
    let notices: Vec<_> = [DOWN, UP].map(|result| state.apply([(1, 0, result)])).concat();
    let notices: Vec<_> = notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        notices,
        [
            "10.1.0.2:80 of 10.0.0.1 80 is down",
            "10.0.0.1 80 has no quorum",
            "10.1.0.2:80 of 10.0.0.1 80 is up",
            "10.0.0.1 80 has its quorum"
        ]
    );
}

#[test]
fn the_identity_of_a_virtual_server_is_its_service_or_its_group_and_protocol() {
    let identities = |text: &str| -> Vec<String> {
        let servers = configuration(text).virtual_servers;
        servers.iter().map(VirtualServer::identity).collect()
    };
    let server = "{\nreal_server 10.1.0.1 80 {\n}\n}\n";
    let groups = |entries: &str, protocols: [&str; 2]| {
        let servers = protocols.map(|one| {
            format!("virtual_server group G {{\nprotocol {one}\nreal_server 10.1.0.1 80 {{\n}}\n}}\n")
        });
        identities(&format!("virtual_server_group G {{\n{entries}\n}}\n{}", servers.concat()))
    };
    let mut exchanged = groups("10.0.0.2 80", ["UDP", "TCP"]);
    exchanged.reverse();
    assert_eq!(groups("10.0.0.1 80\n10.0.0.2 80", ["TCP", "UDP"]), exchanged);
    let [one, other] = ["2001:db8::1", "2001:DB8:0::1"].map(|addr| {
        identities(&format!("virtual_server {addr} 80 {}", server.replace("10.1.0.1", "2001:db8::5")))
    });
    assert_eq!((one.len(), &one), (1, &other));
    let marks = identities(&format!("virtual_server fwmark 1 {server}virtual_server fwmark 2 {server}"));
    assert_eq!(marks.iter().collect::<HashSet<_>>().len(), 2);
}
