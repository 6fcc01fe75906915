//! Whole files: what each comes to before any check was made, and how much is wrong with it.
//!
//! Each was given to `keepalived -t` 2.2.7 too: what that takes, leaves out or complains of is so here, but for what
//! docs/limits-all.md names. The files are in `cases/`, with their rules as `ipvsadm -Sn` prints them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use xvs_health::initial_state::initial_state;
use xvs_health::prepare::Prepared;
use xvs_ipvsadm::saved_rules;
use xvs_model::check::{Check, Pattern, Probe, Script, Udp};
use xvs_model::command::Command;
use xvs_model::fault::{Fault, Severity};
use xvs_model::timeouts::Timeouts;
use xvs_model::virtual_server::Configuration;
use xvs_sched::ForwardingMethod;

use crate::read;

/// A file that is read on the machine lb1.
fn configuration(text: &str) -> Configuration {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("xvs-conf-{}-{number}", std::process::id()));
    fs::write(&path, text).unwrap();
    let read = read(&path, "lb1").unwrap();
    fs::remove_file(path).unwrap();
    read
}

/// Reads a file of `cases/`. At its end stand the rules that it comes to and its faults in their order, those of a director
/// that takes it last; ` … ` is any text.
#[track_caller]
fn assert_comes_to(name: &str) -> Configuration {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cases");
    let text = fs::read_to_string(folder.join(name).with_extension("conf")).unwrap();
    let expected = |what: &str| text.lines().filter_map(|line| line.strip_prefix(what)).collect::<Vec<_>>();
    let configuration = configuration(&text);
    let (state, refused) = initial_state(&configuration);
    let rules: BTreeSet<_> = saved_rules(&state).into_iter().collect();
    assert_eq!(rules, expected("# rule ").into_iter().map(str::to_owned).collect());
    let faults = configuration.faults.iter().chain(&refused);
    let told = faults.map(|Fault { place, severity, text }| format!("{}: {severity:?}: {text}", place.line));
    let (told, expected): (Vec<_>, _) = (told.collect(), expected("# fault "));
    let is = |(told, fault): (&String, &&str)| {
        let mut parts = fault.split(" … ");
        parts.next().is_some_and(|begin| told.starts_with(begin)) && parts.all(|part| told.contains(part))
    };
    assert!(told.len() == expected.len() && told.iter().zip(&expected).all(is), "{told:#?}");
    configuration
}

/// The checks of all real servers.
fn checks(configuration: &Configuration) -> Vec<&Check> {
    configuration
        .virtual_servers
        .iter()
        .flat_map(|server| &server.real_servers)
        .flat_map(|server| &server.checks)
        .collect()
}

#[test]
fn old_words_and_checkers_on_one_line_are_understood() {
    assert_comes_to("old-words");
}

#[test]
fn wlc_and_nat_are_taken_if_nothing_is_said_and_a_hash_in_quotes_is_no_comment() {
    assert_comes_to("defaults");
}

#[test]
fn a_server_that_begins_down_and_is_inhibited_is_there_with_weight_0() {
    assert_comes_to("begins-down");
}

#[test]
fn a_mark_behind_a_tunnel_has_no_port_and_persistence_without_a_time_has_six_minutes() {
    assert_comes_to("mark-tunnel");
}

#[test]
fn a_group_is_a_service_for_each_of_its_addresses_and_marks() {
    assert_comes_to("group");
}

#[test]
fn a_tunnel_crosses_families_and_a_plain_one_of_a_server_is_ip_in_ip() {
    assert_comes_to("tunnel-families");
}

#[test]
fn a_sorry_server_serves_while_the_quorum_is_not_there() {
    assert_comes_to("sorry-server");
}

#[test]
fn parameters_of_several_lines_and_loops_make_servers() {
    assert_comes_to("parameters");
}

#[test]
fn blocks_of_vrrp_are_skipped_whatever_braces_are_quoted_in_them() {
    assert_comes_to("vrrp");
}

#[test]
fn old_files_mean_what_they_meant_and_each_line_of_no_effect_is_told() {
    assert_comes_to("old-file");
}

#[test]
fn conditional_lines_are_for_this_machine_and_an_include_may_match_nothing() {
    assert_comes_to("conditions");
}

#[test]
fn several_checkers_of_sctp_and_a_file_are_understood() {
    let read = assert_comes_to("sctp");
    let Probe::File(file) = &checks(&read)[1].probe else { panic!("{read:?}") };
    assert_eq!((file.path.to_str(), file.weight.factor), (Some("/run/t"), 0));
}

#[test]
fn a_file_may_be_named_behind_its_check_which_may_have_another_weight() {
    let text = "virtual_server 10.0.0.1 80 {\nlvs_sched rr\nlvs_method DR\nprotocol TCP\nreal_server 10.1.0.1 80 {
        FILE_CHECK {\ntrack_file F\nweight -2 reverse\n}\n}\n}\nvrrp_track_file F {\nfile /run/f\nweight 7\n}\n";
    let read = configuration(text);
    assert!(read.faults.is_empty(), "{:?}", read.faults);
    let Probe::File(file) = &checks(&read)[0].probe else { panic!("{read:?}") };
    assert_eq!((file.weight.factor, file.weight.is_reversed), (-2, true));
}

#[test]
fn what_holds_for_all_scripts_stands_in_global_defs() {
    let read = configuration("global_defs {\nscript_user nobody\nlvs_notify_fifo /run/lvs.fifo\n}\n");
    assert_eq!(read.globals.script_user, Some(("nobody".to_owned(), None)));
    assert_eq!(read.globals.lvs_notify_fifo.unwrap().path, "/run/lvs.fifo");
    assert!(read.faults.is_empty());
}

#[test]
fn an_unknown_block_is_left_out_as_a_whole_and_what_surrounds_it_stays() {
    assert_comes_to("unknown-blocks");
}

#[test]
fn a_brace_behind_a_keyword_that_begins_no_block_is_an_error() {
    let read = assert_comes_to("one-line");
    assert!(!read.is_usable());
}

#[test]
fn a_body_whose_head_is_for_another_machine_is_an_error() {
    assert_comes_to("orphan-body");
}

#[test]
fn a_block_without_its_brace_and_a_keyword_without_its_value_are_errors() {
    assert_comes_to("no-brace");
}

#[test]
fn a_server_has_the_method_that_was_said_before_it_or_else_the_last_one() {
    let read = assert_comes_to("methods");
    let sorry = read.virtual_servers[0].sorry_server.as_ref().unwrap();
    assert_eq!((sorry.endpoint.port, sorry.options.method), (8080, ForwardingMethod::Nat));
}

#[test]
fn port_0_is_any_port_of_a_persistent_service_and_a_name_is_no_port() {
    let read = assert_comes_to("port-0");
    let asked: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    assert_eq!(asked, ["TCP 10.1.0.1:0", "TCP 10.1.0.2:81", "TCP 10.1.0.1:80"]);
}

#[test]
fn groups_may_be_shared_by_protocols_and_lines_of_them_that_mean_nothing_are_left_out() {
    assert_comes_to("groups");
}

#[test]
fn servers_of_another_family_are_left_out_unless_a_tunnel_leads_to_them() {
    assert_comes_to("families");
}

#[test]
fn quorum_and_hysteresis_are_capped_and_a_sorry_server_serves_where_nobody_has_weight() {
    let read = assert_comes_to("quorum");
    let quorums: Vec<_> =
        read.virtual_servers.iter().map(|server| (server.quorum, server.hysteresis)).collect();
    assert_eq!(quorums, [(3, 2), (0, 0), (1, 0)]);
}

#[test]
fn persistence_and_flags_hold_as_far_as_they_go_with_the_service() {
    assert_comes_to("persistence");
}

#[test]
fn times_and_alpha_are_the_checkers_own_or_of_what_surrounds_it() {
    let read = assert_comes_to("times");
    let timings: Vec<_> = checks(&read)
        .iter()
        .map(|Check { timing, .. }| {
            let seconds = [timing.interval, timing.retry_interval, timing.timeout, timing.warmup];
            (seconds.map(|time| time.as_secs_f64()), timing.fall, timing.begins_down)
        })
        .collect();
    assert_eq!(
        timings,
        [
            ([10.0, 1.0, 5.0, 0.0], 5, true),
            ([1.5, 2.0, 2.0, 0.0], 1, false),
            ([7.0, 7.0, 5.0, 0.0], 5, false),
            ([10.0, 1.0, 5.0, 0.0], 5, true),
            // A script may take as long as the virtual server's interval, whatever its own is.
            ([3.0, 1.0, 10.0, 0.0], 5, false),
        ]
    );
}

#[test]
fn objects_are_asked_for_by_host_status_digest_and_pattern_and_checkers_of_a_kind_stand_side_by_side() {
    let read = assert_comes_to("http");
    let checks = checks(&read);
    let [Probe::Http(target, http), Probe::Tcp(plain), Probe::Tcp(other)] =
        [&checks[0], &checks[1], &checks[2]].map(|check| &check.probe)
    else {
        panic!("{checks:?}")
    };
    assert_eq!(target.endpoint, "10.1.0.1:443".parse().unwrap());
    assert!(http.tls.is_some() && http.is_1_1 && http.closes);
    assert_eq!(http.host.as_deref(), Some("rs.example"));
    let [first, second] = &http.urls[..] else { panic!("{http:?}") };
    assert_eq!(first.statuses, [200..=204, 301..=301, 404..=404]);
    assert_eq!(first.digest.unwrap()[..3], [0x01, 0x23, 0x45]);
    // The host of a real server is asked for, but no name of a handshake.
    assert_eq!((first.host.as_deref(), first.server_name.as_deref()), (None, Some("vs.example")));
    assert_eq!((second.path.as_str(), second.server_name.as_deref()), ("/b c", Some("url.example")));
    let pattern = Pattern {
        text: "ad+ b".to_owned(),
        is_unwanted: true,
        options: vec!["caseless".to_owned()],
        least_offset: 5,
        most_offset: None,
    };
    assert_eq!(second.pattern.as_ref(), Some(&pattern));
    assert_eq!((plain.endpoint, plain.source), ("10.1.0.1:443".parse().unwrap(), None));
    assert_eq!((other.endpoint, other.mark), ("10.1.0.7:443".parse().unwrap(), 3));
    assert_eq!(other.interface.as_deref(), Some("eth1"));
}

#[test]
fn patterns_and_paths_that_cannot_be_used_refuse_the_file() {
    let around = |words: &str| {
        let head = "lvs_sched rr\nlvs_method DR\nprotocol TCP\nreal_server 10.1.0.1 80";
        format!("virtual_server 10.0.0.1 80 {{\n{head} {{\nHTTP_GET {{\n{words}\n}}\n}}\n}}\n")
    };
    let faults = |words: &str| {
        let read = configuration(&around(&format!("url {{\n{words}\n}}")));
        let read = Prepared::of(read).map_or_else(|refused| *refused, |prepared| prepared.configuration);
        assert_eq!(read.is_usable(), read.faults.is_empty());
        read.faults.into_iter().map(|fault| fault.text).next_back().unwrap_or_default()
    };
    assert_eq!(faults("path \"/a b#c\"\nregex ok"), "");
    assert_eq!(faults("path /\nregex a(b"), "`regex a(b`: missing closing parenthesis");
    let why = "`regex a`: xvs has no regex_options firstline";
    assert_eq!(faults("path /\nregex a\nregex_options firstline"), why);
    let warned = configuration(&around("tls_verify\nenable_sni\nurl {\npath /\n}")).faults;
    assert_eq!(warned.len(), 1);
    assert_eq!(warned[0].text, "`tls_verify` without TLS has no effect");
    assert!(faults("path a/b").starts_with("`a/b` is not a path: "));
}

#[test]
fn commands_are_the_first_word_and_checkers_that_can_ask_nothing_are_left_out() {
    let read = assert_comes_to("scripts");
    let [server] = &read.virtual_servers[..] else { panic!("{read:?}") };
    let argv = |script: &Option<Script>| script.as_ref().unwrap().argv.clone();
    assert_eq!(server.quorum_up.as_ref().unwrap().to_string(), "/x/up.sh (as a:b)");
    assert_eq!(argv(&server.real_servers[0].notify_up), ["/x/s.sh", "a b", "c"]);
    let asked: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    let udp = "UDP 10.1.0.1:80";
    assert_eq!(
        asked,
        ["script /x/check.sh (as nobody:nogroup)", "script /bin/true a b", udp, udp, "SMTP 10.1.0.1:80"]
    );
    let Probe::Udp(_, Udp { payload, reply }) = &checks(&read)[3].probe else { panic!("{asked:?}") };
    assert_eq!(payload.as_deref(), Some(&[1, 2, 0xf][..]));
    assert_eq!(reply.as_ref().unwrap().pattern, [(0x0a, 0x0f), (0x00, 0xf0)]);
    let times: Vec<_> = checks(&read).iter().map(|check| check.timing.timeout.as_secs()).collect();
    assert_eq!(times[..2], [6, 6]);
}

#[test]
fn of_what_is_said_twice_the_first_holds() {
    assert_comes_to("twice");
}

#[test]
fn conditions_and_includes_are_carried_out_before_braces_are_counted() {
    assert_comes_to("conditional-heads");
}

#[test]
fn what_a_director_refuses_is_told_where_it_stands_and_timeouts_are_set() {
    let read = assert_comes_to("refused");
    let timeouts = Timeouts { tcp_seconds: 7200, tcp_fin_seconds: 0, udp_seconds: 30 };
    assert_eq!(read.timeouts(), Some(Command::SetTimeouts(timeouts)));
}

#[test]
fn a_sorry_server_has_the_virtual_servers_port_and_is_there_once_if_it_is_a_real_server_too() {
    assert_comes_to("sorry-server-port");
}

#[test]
fn hosts_of_a_mail_check_are_a_check_each() {
    let read = assert_comes_to("mail-hosts");
    let asked: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    assert_eq!(asked, ["SMTP 10.1.0.2:25", "SMTP 10.1.0.1:26"]);
    assert!(checks(&read).iter().all(|check| check.timing.timeout.as_secs() == 3));
}

#[test]
fn a_name_stands_for_no_address_and_what_it_should_name_is_left_out() {
    let server = "lvs_method DR\nprotocol TCP\nreal_server rs1.example 80 {\nTCP_CHECK {\n}\n}\nreal_server 10.1.0.1 80 {\n\
                  TCP_CHECK {\nconnect_ip rs1.example\nbindto rs1.example\n}\n}\n";
    let text =
        format!("virtual_server vip.example 80 {{\n{server}}}\nvirtual_server 10.0.0.1 80 {{\n{server}}}\n");
    let read = configuration(&text);
    let [one] = &read.virtual_servers[..] else { panic!("{:?}", read.virtual_servers) };
    let servers: Vec<_> = one.real_servers.iter().map(|server| server.endpoint.to_string()).collect();
    assert_eq!(servers, ["10.1.0.1:80"]);
    let named = |what: &str| read.faults.iter().any(|fault| fault.text.contains(what));
    assert!(
        ["vip.example", "real_server rs1.example", "connect_ip rs1.example", "bindto rs1.example"].map(named)
            == [true; 4],
        "{:#?}",
        read.faults
    );
}

#[test]
fn whatever_stands_in_a_file_it_is_read_to_its_end_and_what_it_comes_to_is_carried_out() {
    let words = "virtual_server real_server sorry_server 10.0.0.1 10.1.0.1 2001:db8::1 10.0.0.0/30 10.0.0.1-9 80 0 fwmark 7 \
                 group G virtual_server_group lvs_sched rr sh lvs_method lb_kind NAT DR TUN type gue port protocol TCP UDP \
                 ops sh-port quorum hysteresis weight alpha inhibit_on_failure persistence_timeout \
                 persistence_granularity 64 255.255.255.0 TCP_CHECK HTTP_GET SSL_GET url path / digest regex status_code \
                 200-299 DNS_CHECK name a. UDP_CHECK payload x0 require_reply MISC_CHECK misc_path ' \" \\ SMTP_CHECK host \
                 connect_port FILE_CHECK track_file init_file file reverse global_defs script_user notify_fifo lvs_timeouts \
                 tcp 4294967296 -1 1.5 off";
    let words: Vec<_> =
        words.split_whitespace().chain(["\n"; 40]).chain(["{\n"; 20]).chain(["}\n"; 15]).collect();
    let word = proptest::sample::select(words);
    proptest::proptest!(|(words in proptest::collection::vec(word, 0..60))| {
        for around in ["", "virtual_server 10.0.0.1 80 {\n", "virtual_server fwmark 1 {\nreal_server 10.1.0.1 80 {\n"] {
            let read = configuration(&format!("{around}{}\n}}\n}}\n", words.join(" ")));
            let (_, refused) = initial_state(&read);
            proptest::prop_assert!(refused.iter().all(|fault| fault.severity == Severity::Warning));
        }
    });
}
