//! Tests over whole files: the state before any check has run, and the faults.
//!
//! Each file was also given to `keepalived -t` 2.2.7. xvs accepts, leaves out and reports the same as keepalived;
//! docs/limits-all.md lists the differences. The files are in `cases/`, with their rules as `ipvsadm -Sn` prints them.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use xvs_health::initial_state::initial_state;
use xvs_health::prepare::Prepared;
use xvs_ipvsadm::saved_rules;
use xvs_model::config::command::Command;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::health_checks::check::{Check, Pattern, Probe, Script, Target, Udp};
use xvs_model::health_checks::fault::{Fault, Severity};
use xvs_model::health_checks::virtual_server::Configuration;
use xvs_model::objects::Rule;
use xvs_sched::ForwardingMethod;

use crate::read;

mod lost;

/// Reads a configuration on the host lb1.
fn configuration(text: &str) -> Configuration {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("xvs-conf-{}-{number}", std::process::id()));
    fs::write(&path, text).unwrap();
    let read = read(&path, "lb1").unwrap();
    fs::remove_file(path).unwrap();
    read
}

/// Reads a file in `cases/` and compares it with the `# rule` and `# fault` lines at its end. The faults are in order,
/// the director's last; ` … ` represents any text.
#[track_caller]
fn assert_case(name: &str) -> Configuration {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cases");
    let text = fs::read_to_string(folder.join(name).with_extension("conf")).unwrap();
    let expected = |what: &str| text.lines().filter_map(|line| line.strip_prefix(what)).collect::<Vec<_>>();
    let configuration = configuration(&text);
    let (state, refused) = initial_state(&configuration);
    let rules: BTreeSet<_> = saved_rules(&state).into_iter().collect();
    assert_eq!(rules, expected("# rule ").into_iter().map(str::to_owned).collect());
    let faults = configuration.faults.iter().chain(&refused);
    let found = faults.map(|Fault { place, severity, text }| format!("{}: {severity:?}: {text}", place.line));
    let (found, expected): (Vec<_>, _) = (found.collect(), expected("# fault "));
    let matches = |(found, fault): (&String, &&str)| {
        let mut parts = fault.split(" … ");
        parts.next().is_some_and(|begin| found.starts_with(begin)) && parts.all(|part| found.contains(part))
    };
    assert!(found.len() == expected.len() && found.iter().zip(&expected).all(matches), "{found:#?}");
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
fn old_keywords_and_checkers_on_one_line_are_read() {
    assert_case("old-words");
}

#[test]
fn the_defaults_are_wlc_and_nat_and_a_hash_in_quotes_is_no_comment() {
    assert_case("defaults");
}

#[test]
fn an_inhibited_server_that_starts_down_has_weight_0() {
    assert_case("begins-down");
}

#[test]
fn a_hash_that_refuses_clients_of_an_inhibited_server_is_a_warning() {
    assert_case("inhibited-hash");
}

#[test]
fn a_mark_with_a_tunnel_has_no_port_and_the_default_persistence_is_six_minutes() {
    assert_case("mark-tunnel");
}

/// A file like those that OpenStack's LVS driver writes.
#[test]
fn a_file_for_another_network_namespace_causes_a_warning_with_the_step() {
    assert_case("openstack");
}

#[test]
fn a_prefix_length_behind_a_single_address_has_no_effect() {
    let read = assert_case("prefix-lengths");
    let [first, _] = &checks(&read)[..] else { panic!() };
    let Probe::Tcp(target) = &first.probe else { panic!() };
    assert_eq!(target.endpoint, "192.0.2.11:80".parse().unwrap());
    assert_eq!(target.source, Some("192.0.2.1".parse().unwrap()));
    let sorry = read.virtual_servers[0].sorry_server.as_ref().unwrap();
    assert_eq!(sorry.endpoint.to_string(), "192.0.2.14:8080");
}

#[test]
fn an_address_of_the_other_family_in_a_group_takes_no_service_from_the_servers() {
    assert_case("dual-stack");
}

#[test]
fn a_comment_before_a_backslash_does_not_end_a_definition() {
    for case in ["comments", "commented-option"] {
        let read = assert_case(case);
        let [Check { probe: Probe::Tcp(_), timing, .. }] = checks(&read)[..] else { panic!("{read:?}") };
        assert_eq!(timing.timeout.as_secs(), 2);
    }
}

#[test]
fn a_template_is_used_with_other_numbers_each_time() {
    assert_case("templates");
}

#[test]
fn the_bytes_of_a_udp_check_are_pairs_of_digits_and_a_wrong_reply_still_requires_one() {
    let udp = |statement: &str| {
        let text = format!(
            "virtual_server 10.0.0.1 53 {{\nprotocol UDP\nreal_server 10.1.0.1 53 {{\nUDP_CHECK {{\n{statement}\n}}\n}}\n}}"
        );
        let read = configuration(&text);
        let [Check { probe: Probe::Udp(_, udp), .. }] = checks(&read)[..] else { panic!("{read:?}") };
        udp.clone()
    };
    assert_eq!(udp("payload 01 02ff 3").payload, Some(vec![1, 2, 0xff, 3]));
    let pattern = |statement| udp(statement).reply.map(|reply| reply.pattern);
    assert_eq!(pattern("require_reply 0x 1"), Some(vec![(0, 0xf0), (1, 0xff)]));
    assert_eq!(pattern("require_reply"), Some(Vec::new()));
    assert_eq!(pattern("require_reply zz"), Some(Vec::new()));
    assert_eq!(pattern("require_reply 1\nrequire_reply"), Some(vec![(1, 0xff)]));
    assert_eq!(pattern("require_reply 1\nrequire_reply zz"), Some(Vec::new()));
    assert_eq!(pattern("payload 01"), None);
    let lengths = udp("require_reply\nmin_reply_length 7\nmax_reply_length 3").reply.unwrap().length;
    assert_eq!((*lengths.start(), *lengths.end()), (7, 3), "with a warning");
}

#[test]
fn a_check_may_connect_to_an_address_of_the_other_family() {
    let target = |statements: &str| {
        let text = format!(
            "virtual_server 10.0.0.1 80 {{\nlvs_sched rr\nlvs_method NAT\nprotocol TCP\n\
             real_server 10.1.0.1 80 {{\nTCP_CHECK {{\n{statements}\n}}\n}}\n}}"
        );
        let read = configuration(&text);
        let [Check { probe: Probe::Tcp(target), .. }] = checks(&read)[..] else { panic!("{read:?}") };
        let source = target.source.map(|addr| format!(" from {addr}")).unwrap_or_default();
        let faults: Vec<_> = read.faults.iter().map(|fault| fault.place.line).collect();
        (format!("{}{source}", target.endpoint), faults)
    };
    for (statements, want, faults) in [
        ("connect_ip fd00::5\nconnect_port 81", "[fd00::5]:81", vec![]),
        ("connect_ip fd00::5\nbindto fd00::1", "[fd00::5]:80 from fd00::1", vec![]),
        ("bindto fd00::1", "10.1.0.1:80", vec![7]),
        ("bindto fd00::1\nconnect_ip fd00::5", "[fd00::5]:80", vec![7]),
        ("bindto 10.1.0.9\nconnect_ip fd00::5", "10.1.0.1:80 from 10.1.0.9", vec![8]),
        ("connect_ip fd00::5\nbindto 10.1.0.9", "[fd00::5]:80", vec![8]),
        ("bindto 10.1.0.9\nbindto fd00::1", "10.1.0.1:80", vec![8]),
    ] {
        assert_eq!(target(statements), (want.to_owned(), faults), "{statements}");
    }
}

#[test]
fn a_group_is_a_service_for_each_of_its_addresses_and_marks() {
    assert_case("group");
}

#[test]
fn a_tunnel_crosses_families_and_its_default_type_is_ipip() {
    assert_case("tunnel-families");
}

#[test]
fn a_sorry_server_serves_while_the_quorum_is_lost() {
    assert_case("sorry-server");
}

#[test]
fn parameters_of_several_lines_and_loops_define_servers() {
    assert_case("parameters");
}

#[test]
fn vrrp_blocks_are_skipped_with_quoted_braces_in_them() {
    assert_case("vrrp");
}

#[test]
fn old_files_keep_their_meaning_and_each_line_without_effect_causes_a_warning() {
    assert_case("old-file");
}

#[test]
fn conditional_lines_select_this_machine_and_an_include_of_nothing_is_a_warning() {
    assert_case("conditions");
}

#[test]
fn several_checkers_of_an_sctp_service_and_a_file_are_read() {
    let read = assert_case("sctp");
    let Probe::File(file) = &checks(&read)[1].probe else { panic!("{read:?}") };
    assert_eq!((file.path.to_str(), file.weight.factor), (Some("/run/t"), 0));
}

#[test]
fn a_track_file_may_follow_its_check_which_may_have_another_weight() {
    let text = "virtual_server 10.0.0.1 80 {\nlvs_sched rr\nlvs_method DR\nprotocol TCP\nreal_server 10.1.0.1 80 {
        FILE_CHECK {\ntrack_file F\nweight -2 reverse\n}\n}\n}\nvrrp_track_file F {\nfile /run/f\nweight 7\n}\n";
    let read = configuration(text);
    assert!(read.faults.is_empty(), "{:?}", read.faults);
    let Probe::File(file) = &checks(&read)[0].probe else { panic!("{read:?}") };
    assert_eq!((file.weight.factor, file.weight.is_reversed), (-2, true));
}

#[test]
fn global_defs_configures_all_scripts() {
    let read = configuration("global_defs {\nscript_user nobody\nlvs_notify_fifo /run/lvs.fifo\n}\n");
    assert_eq!(read.globals.script_user, Some(("nobody".to_owned(), None)));
    assert_eq!(read.globals.lvs_notify_fifo.unwrap().path, "/run/lvs.fifo");
    assert!(read.faults.is_empty());
}

#[test]
fn an_unknown_block_is_left_out_and_its_surroundings_are_read() {
    assert_case("unknown-blocks");
}

#[test]
fn a_brace_after_a_keyword_that_starts_no_block_is_an_error() {
    let read = assert_case("one-line");
    assert!(!read.is_usable());
}

#[test]
fn a_block_body_whose_head_is_for_another_machine_is_an_error() {
    assert_case("orphan-body");
}

#[test]
fn a_block_without_its_brace_and_a_keyword_without_its_value_are_errors() {
    assert_case("no-brace");
}

#[test]
fn a_server_has_the_method_before_it_or_else_the_last_one() {
    let read = assert_case("methods");
    let sorry = read.virtual_servers[0].sorry_server.as_ref().unwrap();
    assert_eq!((sorry.endpoint.port, sorry.options.method), (8080, ForwardingMethod::Nat));
}

#[test]
fn port_0_is_any_port_of_a_persistent_service_and_port_names_are_refused() {
    let read = assert_case("port-0");
    let probes: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    assert_eq!(probes, ["TCP 10.1.0.1:0", "TCP 10.1.0.2:81", "TCP 10.1.0.1:80"]);
}

#[test]
fn protocols_may_share_a_group_and_its_invalid_lines_are_left_out() {
    assert_case("groups");
}

#[test]
fn servers_of_another_family_are_left_out_unless_their_method_is_tun_or_fnat() {
    assert_case("families");
}

#[test]
fn quorum_and_hysteresis_are_limited_and_a_sorry_server_serves_without_any_weight() {
    let read = assert_case("quorum");
    let quorums: Vec<_> =
        read.virtual_servers.iter().map(|server| (server.quorum, server.hysteresis)).collect();
    assert_eq!(quorums, [(3, 2), (0, 0), (1, 0)]);
}

#[test]
fn persistence_and_flags_apply_where_they_fit_the_service() {
    assert_case("persistence");
}

#[test]
fn times_and_alpha_are_the_checkers_own_or_inherited() {
    let read = assert_case("times");
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
            // The timeout of a script is the interval of the virtual server, not its own.
            ([3.0, 1.0, 10.0, 0.0], 5, false),
        ]
    );
}

#[test]
fn urls_have_host_status_digest_and_pattern_and_checkers_of_one_kind_may_repeat() {
    let read = assert_case("http");
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
    // The host of a real server is requested, but is not the TLS server name.
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
fn invalid_patterns_and_paths_refuse_the_file() {
    let file = |words: &str| {
        let head = "lvs_sched rr\nlvs_method DR\nprotocol TCP\nreal_server 10.1.0.1 80";
        format!("virtual_server 10.0.0.1 80 {{\n{head} {{\nHTTP_GET {{\n{words}\n}}\n}}\n}}\n")
    };
    let faults = |words: &str| {
        let read = configuration(&file(&format!("url {{\n{words}\n}}")));
        let read = Prepared::of(read).map_or_else(|refused| *refused, |prepared| prepared.configuration);
        assert_eq!(read.is_usable(), read.faults.is_empty());
        read.faults.into_iter().map(|fault| fault.text).next_back().unwrap_or_default()
    };
    assert_eq!(faults("path \"/a b#c\"\nregex ok"), "");
    assert_eq!(faults("path /\nregex a(b"), "`regex a(b`: missing closing parenthesis");
    let why = "`regex a`: xvs has no regex_options firstline";
    assert_eq!(faults("path /\nregex a\nregex_options firstline"), why);
    let warned = configuration(&file("tls_verify\nenable_sni\nurl {\npath /\n}")).faults;
    assert_eq!(warned.len(), 1);
    assert_eq!(warned[0].text, "`tls_verify` without TLS has no effect");
    assert!(faults("path a/b").starts_with("`a/b` is not a path: "));
}

#[test]
fn a_check_through_the_virtual_address_is_for_direct_routing_and_tunnels() {
    let file = |head: &str, method: &str, server: &str, words: &str| {
        let head =
            format!("{head} {{\nlvs_sched rr\nlvs_method {method}\nprotocol TCP\nreal_server {server}");
        format!("{head} {{\nTCP_CHECK {{\n{words}\n}}\n}}\n}}\n")
    };
    // The check as text, and the faults.
    let read = |head: &str, method: &str, server: &str, words: &str| {
        let read = configuration(&file(head, method, server, words));
        let faults: Vec<_> = read.faults.iter().map(|fault| fault.text.clone()).collect();
        (checks(&read)[0].probe.to_string(), read.is_usable(), faults)
    };
    let one = "virtual_server 10.0.0.1 80";
    let through = |at: &str| (format!("TCP through {at}"), true, Vec::new());
    for method in ["DR", "TUN"] {
        assert_eq!(read(one, method, "10.1.0.1 80", "through_vip"), through("10.0.0.1:80"));
    }
    assert_eq!(read(one, "DR", "10.1.0.1 80", "through_vip\nconnect_port 81"), through("10.0.0.1:81"));
    let ip = "through_vip\nconnect_ip 10.0.0.2\nconnect_port 82";
    assert_eq!(read("virtual_server fwmark 7", "DR", "10.1.0.1 80", ip).0, through("10.0.0.2:82").0);
    assert_eq!(read(one, "TUN", "fd00::1 80", "through_vip"), through("10.0.0.1:80"));
    let group = "virtual_server_group g {\n10.0.0.1-2 80\n10.0.0.1 443\n}\nvirtual_server group g";
    let all = "TCP through 10.0.0.1:80 10.0.0.1:443 10.0.0.2:80";
    assert_eq!(read(group, "DR", "10.1.0.1 80", "through_vip").0, all);
    assert_eq!(read(one, "DR", "10.1.0.1 80", "through_vip off").0, "TCP 10.1.0.1:80");
    // Otherwise the check connects to the server, so `bindto` must be of the server's family.
    let other_family = "of another family than the address it connects to; it is left out";
    for (method, switch) in [("DR", "off"), ("DR", "on\nthrough_vip no"), ("NAT", "on")] {
        let words = format!("bindto fd00::9\nthrough_vip {switch}");
        let (probe, _, faults) = read(one, method, "10.1.0.1 80", &words);
        assert_eq!(
            (probe, faults[0].as_str()),
            ("TCP 10.1.0.1:80".to_owned(), &*format!("`bindto fd00::9`: {other_family}"))
        );
    }
    let smtp = file(one, "DR", "10.1.0.1 80", "bindto fd00::9\nthrough_vip").replace("TCP_", "SMTP_");
    assert_eq!(configuration(&smtp).faults[0].text, format!("`bindto fd00::9`: {other_family}"));

    let why = "only methods DR and TUN send packets to the virtual address to a server; it is left out";
    for method in ["NAT", "FULLNAT"] {
        let left_out = ("TCP 10.1.0.1:80".to_owned(), true, vec![format!("`through_vip`: {why}")]);
        assert_eq!(read(one, method, "10.1.0.1 80", "through_vip"), left_out);
    }
    let bound = read(one, "DR", "10.1.0.1 80", "through_vip\nbind_port 99\nbind_if eth1");
    let faults = ["bind_port", "bind_if"].map(|word| format!("`{word}` has no effect with `through_vip`"));
    assert_eq!(bound, (through("10.0.0.1:80").0, true, faults.to_vec()));

    let many = "virtual_server_group g {\n10.0.0.1-65 80\n}\nvirtual_server group g";
    for (head, server, words, error) in [
        ("virtual_server fwmark 7", "10.1.0.1 80", "", "a firewall mark has no virtual address"),
        ("virtual_server 10.0.0.1 0", "10.1.0.1 0", "", "the virtual server has no port"),
        (one, "10.1.0.1 80", "connect_ip fd00::1", "`connect_ip` is of another family than the server"),
        (one, "10.1.0.1 80", "bindto fd00::1", "`bindto` is of another family than the virtual address"),
        (many, "10.1.0.1 80", "", "a check connects to at most 64 virtual addresses, and the group has 65"),
    ] {
        let (_, is_usable, faults) = read(head, "DR", server, &format!("through_vip\n{words}"));
        let last = faults.last().cloned().unwrap_or_default();
        assert!(!is_usable && last.starts_with(&format!("`through_vip`: {error}")), "{head}: {faults:?}");
    }
    let foreign = configuration(&file(one, "DR", "10.1.0.1 80", "").replace("TCP_CHECK", "SMTP_CHECK"));
    assert_eq!(foreign.faults, []);
    let foreign = configuration(&file(one, "DR", "10.1.0.1 80", "through_vip").replace("TCP_", "SMTP_"));
    assert_eq!(foreign.faults[0].text, "unknown keyword `through_vip`; it is left out");
}

#[test]
fn an_agent_is_asked_at_a_port_of_its_own_and_what_it_says_holds_at_once() {
    let read = |words: &str| {
        let service = "protocol TCP\nlvs_sched rr\nlvs_method NAT\nretry 3\nrise 3\nalpha";
        let head =
            format!("virtual_server 10.0.0.1 80 {{\n{service}\nreal_server 10.1.0.1 80 {{\nTCP_CHECK {{\n");
        let read = configuration(&format!("{head}{words}\n}}\n}}\n}}\n"));
        let faults: Vec<_> = read.faults.iter().map(|fault| fault.text.clone()).collect();
        (read.virtual_servers[0].real_servers[0].checks.first().cloned(), faults)
    };
    let target = |port| Target {
        endpoint: SocketAddr::from(([10, 1, 0, 1], port)),
        source: None,
        source_port: None,
        interface: None,
        mark: 0,
    };
    let (check, faults) = read("agent_check\nconnect_port 8001\nagent_send \"state web\\n\"");
    let Check { probe, timing, .. } = check.unwrap();
    assert_eq!((probe, faults), (Probe::Agent(target(8001), "state web\n".to_owned()), Vec::new()));
    assert_eq!((timing.fall, timing.rise, timing.begins_down), (1, 1, false));
    assert_eq!(
        read("agent_check\nconnect_port 8001\nagent_send\"x\"").0.unwrap().probe.to_string(),
        "agent 10.1.0.1:8001"
    );
    let (check, faults) = read("agent_check off\nagent_send x");
    assert_eq!(check.unwrap().probe, Probe::Tcp(target(80)));
    assert_eq!(faults, ["`agent_send` without `agent_check` has no effect"]);
    for (words, why) in [
        ("agent_check", "name the port of the agent with `connect_port`"),
        ("agent_check\nthrough_vip\nconnect_port 8001", "an agent is not asked through the virtual address"),
    ] {
        let (check, faults) = read(words);
        assert!(check.is_none() && faults[0].starts_with(&format!("`agent_check`: {why}")), "{faults:?}");
    }
}

#[test]
fn a_command_is_one_word_and_incomplete_checkers_are_left_out() {
    let read = assert_case("scripts");
    let [server] = &read.virtual_servers[..] else { panic!("{read:?}") };
    let argv = |script: &Option<Script>| script.as_ref().unwrap().argv.clone();
    assert_eq!(server.quorum_up.as_ref().unwrap().to_string(), "/x/up.sh (as a:b)");
    assert_eq!(argv(&server.real_servers[0].notify_up), ["/x/s.sh", "a b", "c"]);
    let probes: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    let udp = "UDP 10.1.0.1:80";
    assert_eq!(
        probes,
        ["script /x/check.sh (as nobody:nogroup)", "script /bin/true a b", udp, udp, "SMTP 10.1.0.1:80"]
    );
    let Probe::Udp(_, Udp { payload, reply }) = &checks(&read)[3].probe else { panic!("{probes:?}") };
    assert_eq!(payload.as_deref(), Some(&[1, 2, 0xf][..]));
    assert_eq!(reply.as_ref().unwrap().pattern, [(0x0a, 0x0f), (0x00, 0xf0)]);
    let times: Vec<_> = checks(&read).iter().map(|check| check.timing.timeout.as_secs()).collect();
    assert_eq!(times[..2], [6, 6]);
}

#[test]
fn a_block_that_is_not_closed_hides_no_other_fault_of_the_file() {
    assert_case("unclosed");
}

#[test]
fn a_line_of_xvs_gives_the_services_of_its_virtual_server_a_syn_proxy_a_limit_and_the_proxy_protocol() {
    assert_case("own-lines");
}

#[test]
fn a_slow_start_is_an_option_of_the_services_and_is_left_out_where_addresses_choose() {
    assert_case("slow-start");
}

#[test]
fn a_wrong_or_misplaced_line_of_xvs_is_an_error_at_its_line() {
    assert!(!assert_case("own-lines-wrong").is_usable());
}

#[test]
fn of_duplicate_definitions_the_first_is_used() {
    assert_case("twice");
}

#[test]
fn conditions_and_includes_are_evaluated_before_braces_are_matched() {
    assert_case("conditional-heads");
}

#[test]
fn refusals_of_the_director_are_faults_at_their_lines_and_timeouts_are_set() {
    let read = assert_case("refused");
    let timeouts = Timeouts { tcp_seconds: 7200, tcp_fin_seconds: 0, udp_seconds: 30 };
    assert_eq!(read.timeouts(), Some(Command::Add(Rule::Timeouts(timeouts))));
}

#[test]
fn a_sorry_server_has_the_virtual_servers_port_and_is_not_added_twice() {
    assert_case("sorry-server-port");
}

#[test]
fn each_host_of_an_smtp_check_is_a_check() {
    let read = assert_case("mail-hosts");
    let probes: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    assert_eq!(probes, ["SMTP 10.1.0.2:25", "SMTP 10.1.0.1:26"]);
    assert!(checks(&read).iter().all(|check| check.timing.timeout.as_secs() == 3));
}

#[test]
fn a_host_name_is_not_an_address_and_its_statement_is_left_out() {
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
fn any_file_is_read_without_a_panic_and_the_director_refuses_with_warnings_only() {
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
