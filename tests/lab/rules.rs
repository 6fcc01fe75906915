//! Rules as a whole: the running state becomes that of a file in one snapshot, without touching unchanged objects;
//! changes that are not confirmed in time are reverted.
//!
//! States are made by random lines of `ipvsadm` and `xvs` on directors in the lab. Not here: the socket and a client
//! that dies (`netlab/rules.rs`), the output of differences and faults (`crates/cli/src/rules/plan.rs`).

use std::io;

use proptest::prelude::*;
use serde_json::json;
use xvs::frames::{ACK, SYN};
use xvs::lab_cluster::{CLIENT, INSIDE, OUTSIDE, VIP, VIP6, at, server, server6};
use xvs::{Datagram, LabCluster, Transport};
use xvs_ipvsadm::{SystemResolver, read_wanted};
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::{differences, rules_of, state_of};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::rules::DesiredRules;
use xvs_model::objects::Rule;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::protocol::request::Verdict;
use xvs_model::report::connection::ConnectionRow;

/// A line of a script: arguments of `ipvsadm`, or `xvs` with its arguments.
fn line() -> impl Strategy<Value = String> {
    let services = [
        format!("-t {VIP}:80"),
        format!("-u {VIP}:53"),
        format!("-t {VIP}:0"),
        format!("-t [{VIP6}]:80"),
        "-f 7".to_owned(),
        "-f 7 -6".to_owned(),
    ];
    let schedulers =
        ["rr", "wrr", "wlc", "lblcr", "sh", "sh -b sh-port", "mh -b mh-fallback,mh-port", "rr -b flag-2"];
    let more =
        ["", "-p 50", "-p 50 -M 255.255.255.0", "-p 50 -M 64", "-o", "-p 9 --pe sip", "--client-address toa"];
    let methods = [
        "-m",
        "-g",
        "-i",
        "--fullnat",
        "-i --tun-type gre --tun-csum",
        "-i --tun-type gue --tun-port 6080 --tun-remcsum",
    ];
    let limits = ["", "", "-x 10", "-x 10 -y 5"];
    let server = (1..=4u8, any::<bool>()).prop_map(|(number, v6)| match v6 {
        true => format!("[{}]:80", server6(number)),
        false => format!("{}:8080", server(number)),
    });
    let service = prop::sample::select(services.to_vec());
    let described = (prop::sample::select(schedulers.to_vec()), prop::sample::select(more.to_vec()))
        .prop_map(|(scheduler, more)| format!("-s {scheduler} {more}"));
    let used = (prop::sample::select(methods.to_vec()), 0..4, prop::sample::select(limits.to_vec()))
        .prop_map(|(method, weight, limits)| format!("{method} -w {weight} {limits}"));
    let local = prop::sample::select(vec!["192.0.2.1", "203.0.113.1", "2001:db8:2::1"]);
    let rule = (1..5u32, prop::sample::select(vec!["", "-p tcp --dports 80,443"]))
        .prop_map(|(mark, ports)| format!("--set-mark {mark} -d {VIP} {ports}"));
    prop_oneof![
        3 => (service.clone(), described.clone()).prop_map(|(service, with)| format!("-A {service} {with}")),
        1 => (service.clone(), described).prop_map(|(service, with)| format!("-E {service} {with}")),
        1 => service.clone().prop_map(|service| format!("-D {service}")),
        6 => (service.clone(), server.clone(), used.clone())
            .prop_map(|(service, server, with)| format!("-a {service} -r {server} {with}")),
        2 => (service.clone(), server.clone(), used)
            .prop_map(|(service, server, with)| format!("-e {service} -r {server} {with}")),
        1 => (service, server).prop_map(|(service, server)| format!("-d {service} -r {server}")),
        1 => (1..500u32).prop_map(|seconds| format!("--set {seconds} 0 {seconds}")),
        1 => (local.clone(), 5000..5003).prop_map(|(addr, low)| format!("xvs laddr add {addr} --ports {low}-6000")),
        1 => local.prop_map(|addr| format!("xvs laddr delete {addr}")),
        2 => rule.clone().prop_map(|rule| format!("xvs mark add {rule}")),
        1 => rule.prop_map(|rule| format!("xvs mark delete {rule}")),
    ]
}

fn script() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(line(), 0..40)
}

/// A director that has run a script; lines that it refuses change nothing.
fn director(script: &[String]) -> LabCluster {
    let mut cluster = LabCluster::new();
    for line in script {
        let words: Vec<_> = line.split_whitespace().collect();
        cluster.ask(match words.strip_prefix(&["xvs"]) {
            Some(words) => json!({ "xvs": words }),
            None => json!({ "adm": words }),
        });
    }
    cluster
}

fn call(cluster: &mut LabCluster, request: Request) -> Result<Reply, CommandError> {
    cluster.lab().director.call(request).map_err(|failure| match failure {
        Failure::Refused(refused) => refused,
        other => panic!("{other}"),
    })
}

/// The commands that create the running state.
fn rules(cluster: &mut LabCluster) -> Vec<Command> {
    match call(cluster, ControlRequest::Rules.into()) {
        Ok(Reply::Rules(running)) => running.rules.into_iter().map(Command::Add).collect(),
        other => panic!("{other:?}"),
    }
}

fn state(cluster: &mut LabCluster) -> State {
    state_of(rules(cluster)).expect("what runs can be made")
}

fn read(text: &str) -> (Vec<Command>, DesiredRules) {
    read_wanted(text, &SystemResolver::default()).unwrap_or_else(|faults| panic!("{text}\n{faults:?}"))
}

/// Applies rules; returns the number of differences.
fn apply(cluster: &mut LabCluster, rules: Vec<Command>, confirm_within_seconds: Option<u32>) -> usize {
    match call(cluster, ControlRequest::Apply { rules, confirm_within_seconds, keeps_locals: false }.into()) {
        Ok(Reply::Applied(differences)) => differences.len(),
        other => panic!("{other:?}"),
    }
}

/// The same rules without thresholds, each service's destinations in the order of their addresses.
fn without_thresholds(rules: Vec<Command>) -> Vec<String> {
    let mut lines: Vec<_> = rules
        .into_iter()
        .map(|mut rule| {
            if let Command::Add(Rule::Destination { options, .. }) = &mut rule {
                (options.upper_threshold, options.lower_threshold) = (0, 0);
            }
            rule
        })
        .filter(|rule| !matches!(rule, Command::Add(Rule::Timeouts(_))))
        .flat_map(|rule| xvs_ipvsadm::rule_lines(&rule))
        .collect();
    // The order of these rules is significant.
    let marks: Vec<_> = lines.extract_if(.., |line| line.starts_with("#xvs mark")).collect();
    lines.sort();
    lines.extend(marks);
    lines
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_becomes_any_other_in_one_snapshot_and_reverts(one in script(), other in script()) {
        let (mut cluster, mut model) = (director(&one), director(&other));
        let before = (rules(&mut cluster), cluster.lab().director.publications());
        let wanted = rules(&mut model);
        let differing = apply(&mut cluster, wanted.clone(), Some(60));
        prop_assert_eq!(cluster.lab().director.publications(), before.1 + u64::from(differing > 0));
        prop_assert_eq!(without_thresholds(rules(&mut cluster)), without_thresholds(wanted.clone()));
        prop_assert_eq!(differences(&state(&mut cluster), &text_of(&wanted)), []);
        // Applied again, the same rules change nothing.
        if differing == 0 {
            prop_assert_eq!(apply(&mut cluster, wanted, None), 0);
        } else {
            let back = call(&mut cluster, ControlRequest::Confirm(Verdict::TakeBack).into());
            prop_assert!(matches!(back, Ok(Reply::Applied(back)) if !back.is_empty()));
            prop_assert_eq!(cluster.lab().director.publications(), before.1 + 2);
        }
        prop_assert_eq!(differences(&state(&mut cluster), &text_of(&before.0)), []);
    }

    #[test]
    fn saved_rules_restore_the_state_without_thresholds_and_applying_them_to_their_own_state_changes_nothing(
        script in script(),
    ) {
        let (mut cluster, mut other) = (director(&script), LabCluster::new());
        let saved = cluster.adm("-S -n");
        let restored = other.ask(json!({ "adm": ["-R"], "stdin": saved }));
        prop_assert_eq!((&restored["exit"], &restored["stderr"]), (&json!(0), &json!("")));
        let expected = without_thresholds(rules(&mut cluster));
        prop_assert_eq!(without_thresholds(rules(&mut other)), expected);
        let publications = other.lab().director.publications();
        prop_assert_eq!(apply(&mut other, read(&saved).0, None), 0);
        prop_assert_eq!(other.lab().director.publications(), publications);
    }
}

/// The desired rules of commands that were printed and parsed again.
fn text_of(commands: &[Command]) -> DesiredRules {
    read(&commands.iter().flat_map(xvs_ipvsadm::rule_lines).map(|line| line + "\n").collect::<String>()).1
}

/// The server that a client's first packet goes to.
fn served_by(cluster: &mut LabCluster, port: u16) -> u8 {
    let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80));
    let judged = cluster.from_client(&syn);
    assert_eq!(judged.verdict, "transmit");
    judged.sent[0].1[5] - 10
}

/// A service of this scheduler with three servers, as a file.
fn three(scheduler: &str) -> String {
    let servers = (1..=3).map(|number| format!("-a -t {VIP}:80 -r {}:80 -m -w 1\n", server(number)));
    format!("-A -t {VIP}:80 -s {scheduler}\n{}", servers.collect::<String>())
}

#[test]
fn unchanged_objects_keep_their_connections_counters_and_scheduler_state() {
    let (mut cluster, mut other) = (director(&[]), director(&[]));
    for cluster in [&mut cluster, &mut other] {
        apply(cluster, read(&three("rr")).0, None);
        assert_eq!([served_by(cluster, 1000), served_by(cluster, 1001)], [3, 2]);
        cluster.advance(2.0);
    }
    let more = format!("{}-A -u {VIP}:53 -s rr\n-a -u {VIP}:53 -r {}:53 -m\n", three("rr"), server(1));
    assert_eq!(apply(&mut cluster, read(&more).0, None), 2);
    assert_eq!(cluster.connections(), other.connections());
    assert_eq!(cluster.stats()[..4], other.stats()[..4]);
    assert_eq!(served_by(&mut cluster, 1002), served_by(&mut other, 1002));
    // An edit keeps the destination: its connection continues.
    let heavier = three("rr").replace("203.0.113.13:80 -m -w 1", "203.0.113.13:80 -m -w 7");
    assert_eq!(apply(&mut cluster, read(&heavier).0, None), 3);
    let ack = Datagram::new(Transport::Tcp(ACK), at(CLIENT, 1000), at(VIP, 80));
    assert_eq!(cluster.from_client(&ack).verdict, "transmit");
    assert_eq!(cluster.load(at(server(3), 80)), (1, 0));
}

#[test]
fn rules_change_nothing_if_one_is_refused() {
    let mut cluster = director(&[]);
    apply(&mut cluster, read(&three("rr")).0, None);
    let (before, publications) = (rules(&mut cluster), cluster.lab().director.publications());
    let wrong = format!("{}-a -t {VIP}:80 -r 203.0.113.255:80 -m\n", three("wrr"));
    let rules_of_wrong = read(&wrong).0;
    let refused = call(
        &mut cluster,
        ControlRequest::Apply {
            rules: rules_of_wrong,
            confirm_within_seconds: Some(60),
            keeps_locals: false,
        }
        .into(),
    );
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("203.0.113.255:80 is the broadcast address"), "{why}");
    assert_eq!((rules(&mut cluster), cluster.lab().director.publications()), (before, publications));
    assert!(
        call(&mut cluster, ControlRequest::Confirm(Verdict::Keep).into()).is_err(),
        "nothing waits to be confirmed"
    );
}

#[test]
fn daemons_that_a_file_starts_are_started_changed_or_taken_back_and_others_stay() {
    let mut cluster = director(&["--start-daemon backup --mcast-interface lan --syncid 3".to_owned()]);
    let file = |id: u8| read(&format!("--start-daemon master --mcast-interface lan --syncid {id}\n")).0;
    let ids = |cluster: &mut LabCluster| {
        let listing = cluster.adm("-L --daemon");
        let id = |line: &str| Some(line.split("syncid=").nth(1)?.split(',').next()?.to_owned());
        listing.lines().filter_map(id).collect::<Vec<_>>()
    };
    assert_eq!((apply(&mut cluster, file(5), None), ids(&mut cluster)), (1, vec!["5".into(), "3".into()]));
    assert_eq!((apply(&mut cluster, file(5), None), ids(&mut cluster)), (0, vec!["5".into(), "3".into()]));
    assert_eq!((apply(&mut cluster, vec![], None), ids(&mut cluster)), (0, vec!["5".into(), "3".into()]));
    assert_eq!((apply(&mut cluster, file(6), Some(9)), ids(&mut cluster)), (1, vec!["6".into(), "3".into()]));
    cluster.advance(10.0);
    assert_eq!(ids(&mut cluster), ["5", "3"]);
    cluster.adm("--stop-daemon master");
    assert_eq!(apply(&mut cluster, file(7), Some(9)), 1);
    cluster.advance(10.0);
    assert_eq!(ids(&mut cluster), ["3"]);
}

/// A director on which somebody applies other rules after each request of a client.
struct Busy<'a> {
    cluster: &'a mut LabCluster,
    others: Vec<Command>,
}

impl Director for Busy<'_> {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        let reply = self.cluster.lab().director.call(request);
        apply(self.cluster, self.others.clone(), None);
        reply
    }

    fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        unreachable!("rules have no connections")
    }
}

#[test]
fn a_save_is_one_configuration_whatever_is_applied_meanwhile() {
    let file = |number: u8| {
        format!(
            "#xvs laddr add 203.0.113.{number} --ports 5000-6000\n#xvs disable {server}\n\
             #xvs limit set -t {VIP}:80 --connections {number}\n#xvs deny 192.0.2.{number}\n\
             #xvs allow 192.0.2.{number} -t {VIP}:80\n-A -t {VIP}:80 -s rr\n\
             -a -t {VIP}:80 -r {server}:80 -m -w 1\n-A -t {VIP}:{number} -s wlc\n\
             #xvs mark add -d {VIP} -p tcp --dports {number} --set-mark {number}\n",
            server = server(number)
        )
    };
    let [first, second] = [file(1), file(2)].map(|text| read(&text).0);
    let mut cluster = director(&[]);
    apply(&mut cluster, first, None);
    let expected = cluster.adm("-S -n");
    assert_eq!(expected.lines().count(), 9, "{expected}");
    let argv = ["ipvsadm", "-S", "-n"].map(str::to_owned);
    let mut busy = Busy { cluster: &mut cluster, others: second };
    let saved = xvs_ipvsadm::output(&argv, "", &mut busy, &SystemResolver::default());
    assert_eq!(saved.stdout, expected);
    assert_ne!(cluster.adm("-S -n"), expected, "the other rules were applied");
}

#[test]
fn rules_of_a_fleet_replace_local_addresses_only_by_their_own() {
    let mut cluster = director(&[format!("xvs laddr add {INSIDE}")]);
    let locals = |cluster: &mut LabCluster, file: &str| {
        let rules = read(file).0;
        let request = ControlRequest::Apply { rules, confirm_within_seconds: None, keeps_locals: true };
        assert!(call(cluster, request.into()).is_ok());
        cluster
            .adm("-S -n")
            .lines()
            .filter(|line| line.contains("laddr"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let [own, other] = [INSIDE, OUTSIDE].map(|addr| format!("#xvs laddr add {addr} --ports 1024-32767"));
    assert_eq!(locals(&mut cluster, &three("rr")), [own]);
    assert_eq!(locals(&mut cluster, &format!("{}{other}\n", three("rr"))), [other]);
}

#[test]
fn confirmed_rules_stay_and_unconfirmed_rules_are_reverted_at_their_time() {
    let mut cluster = director(&[]);
    apply(&mut cluster, read(&three("rr")).0, None);
    let first = rules(&mut cluster);
    apply(&mut cluster, read(&three("wrr")).0, Some(60));
    let second = rules(&mut cluster);
    cluster.advance(59.0);
    assert_eq!(rules(&mut cluster), second);
    assert_eq!(call(&mut cluster, ControlRequest::Confirm(Verdict::Keep).into()), Ok(Reply::Done));
    cluster.advance(60.0);
    assert_eq!(rules(&mut cluster), second);

    assert_eq!(apply(&mut cluster, read(&three("rr")).0, Some(60)), 1);
    let request =
        ControlRequest::Apply { rules: second.clone(), confirm_within_seconds: None, keeps_locals: false };
    let why = call(&mut cluster, request.into()).unwrap_err().to_string();
    assert!(why.contains("wait to be confirmed, for 60 s more"), "{why}");
    assert_eq!(rules(&mut cluster), first);
    cluster.advance(61.0);
    assert_eq!(rules(&mut cluster), second);

    apply(&mut cluster, first, Some(60));
    assert!(
        matches!(call(&mut cluster, Request::Control(ControlRequest::Confirm(Verdict::TakeBack))), Ok(Reply::Applied(back)) if back.len() == 1)
    );
    assert_eq!(rules(&mut cluster), second);
}

#[test]
fn a_revert_keeps_changes_that_others_made_in_between() {
    let mut cluster = director(&[]);
    apply(&mut cluster, read(&three("rr")).0, None);
    let dest = |number, weight| format!("-t {VIP}:80 -r {}:80 -m -w {weight}", server(number));
    let file = format!(
        "-A -t {VIP}:80 -s wrr\n-a {}\n-a {}\n-A -t {VIP}:81 -s rr\n-A -t {VIP}:82 -s rr\n#xvs laddr add {OUTSIDE}\n",
        dest(1, 5),
        dest(2, 5)
    );
    assert_eq!(apply(&mut cluster, read(&file).0, Some(60)), 7);
    // Changes by a health check, and by another operator.
    cluster.adm(&format!("-e {}", dest(1, 0)));
    cluster.adm(&format!("-a -t {VIP}:81 -r {}:81 -m", server(4)));
    cluster.xvs(&format!("laddr add {INSIDE}"));
    cluster.advance(61.0);
    let saved = cluster.adm("-S -n");
    let expected = format!(
        "#xvs laddr add {INSIDE} --ports 1024-32767\n-A -t {VIP}:80 -s rr\n-a {}\n-a {}\n-a {}\n\
         -A -t {VIP}:81 -s rr\n-a -t {VIP}:81 -r {}:81 -m -w 1\n",
        dest(1, 0),
        dest(2, 1),
        dest(3, 1),
        server(4)
    );
    assert_eq!(saved, expected);
}

#[test]
fn a_revert_adds_no_real_server_to_a_service_that_was_deleted_or_created_anew() {
    let other = format!("-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {}:80 -m\n", server(4));
    for (meanwhile, stays) in
        [(vec!["-D"], String::new()), (vec!["-D", "-A"], format!("-A -t {VIP}:80 -s wlc\n"))]
    {
        let mut cluster = director(&[]);
        apply(&mut cluster, read(&three("rr")).0, None);
        apply(&mut cluster, read(&other).0, Some(60));
        for command in meanwhile {
            cluster.adm(&format!("{command} -t {VIP}:80"));
        }
        cluster.advance(61.0);
        let saved = cluster.adm("-S -n");
        assert_eq!(saved, stays);
    }
}

#[test]
fn rules_without_timeouts_leave_the_timeouts_unchanged() {
    let mut cluster = director(&["--set 500 60 70".to_owned()]);
    apply(&mut cluster, read(&three("rr")).0, None);
    assert_eq!(cluster.adm("-L --timeout"), "Timeout (tcp tcpfin udp): 500 60 70\n");
    assert_eq!(apply(&mut cluster, read(&format!("{}--set 0 0 80\n", three("rr"))).0, Some(10)), 1);
    assert_eq!(cluster.adm("-L --timeout"), "Timeout (tcp tcpfin udp): 500 60 80\n");
    cluster.advance(11.0);
    assert_eq!(cluster.adm("-L --timeout"), "Timeout (tcp tcpfin udp): 500 60 70\n");
    let again: Vec<_> = rules_of(&state(&mut cluster)).into_iter().map(Command::Add).collect();
    assert_eq!(again, rules(&mut cluster));
}
