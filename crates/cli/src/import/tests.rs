//! Tests with whole files: the printed keepalived.conf, its meaning for xvsd, and the lines that are left out.
//!
//! ldirectord 4.12 accepted each file in `cases/`. Beside it is the keepalived.conf that is printed for it; keepalived
//! 2.2.7 reads it, and warns only of a script that runs as root. The `# rule`, `# check` and similar lines at the end
//! of each ldirectord.cf are what xvsd must read from the printed file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use xvs_health::prepare::Prepared;
use xvs_ipvsadm::resolver::FixedNames;
use xvs_ipvsadm::rule_lines;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::destination::DestinationOptions;
use xvs_model::health_checks::check::{Check, Probe, Script};
use xvs_model::health_checks::virtual_server::{Configuration, RealServer, VirtualServer};
use xvs_model::objects::Rule;
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::import::*;

fn names() -> FixedNames {
    FixedNames::well_known().host("localhost", [127, 0, 0, 1])
}

/// A unique path in the directory for temporary files.
fn temporary() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("xvs-import-{}-{number}", std::process::id()))
}

/// What xvsd reads from a text for keepalived.conf, which must have no fault.
#[track_caller]
fn read(text: &str) -> Configuration {
    let path = temporary();
    fs::write(&path, text).unwrap();
    let read = xvs_keepalived::read(&path, "lb1").unwrap();
    fs::remove_file(path).unwrap();
    let prepared = Prepared::of(read).map_or_else(|refused| *refused, |prepared| prepared.configuration);
    // A hash refuses clients of a quiescent server with ldirectord, too.
    let faults: Vec<_> = prepared.faults.iter().filter(|fault| !fault.text.contains("-fallback`")).collect();
    assert!(faults.is_empty(), "{faults:?}\n{text}");
    // Real servers start down, so they are not in the initial state.
    let mut state = State::default();
    for server in &prepared.virtual_servers {
        let (key, options) = &server.services[0];
        let service = Rule::Service { key: *key, options: options.clone() };
        state.apply(&Command::Add(service)).expect(text);
        for RealServer { endpoint, options, .. } in &server.real_servers {
            let (service, options) = (*key, options.clone());
            let destination = Rule::Destination { service, endpoint: *endpoint, options };
            state.apply(&Command::Add(destination)).expect(text);
        }
    }
    prepared
}

/// The rules, checks, fallbacks and scripts of a virtual server.
fn meaning(server: &VirtualServer) -> Vec<String> {
    let (key, options) = &server.services[0];
    let service = Rule::Service { key: *key, options: options.clone() };
    let mut lines: Vec<_> =
        rule_lines(&Command::Add(service)).iter().map(|line| format!("rule {line}")).collect();
    for real_server in &server.real_servers {
        lines.push(format!("rule {}", destination(*key, real_server.endpoint, &real_server.options)));
        lines.extend(real_server.inhibit_on_failure.then(|| "inhibited".to_owned()));
        lines.extend(real_server.checks.iter().map(check));
    }
    if let Some(sorry) = &server.sorry_server {
        let line = destination(*key, sorry.endpoint, &sorry.options);
        let (_, target) = line.split_once(" -r ").unwrap();
        let inhibited = if sorry.inhibit { " inhibited" } else { "" };
        lines.push(format!("sorry -r {}{inhibited}", target.trim_end_matches(" -w 1")));
    }
    for (name, script) in [("quorum_up", &server.quorum_up), ("quorum_down", &server.quorum_down)] {
        lines.extend(script.iter().map(|Script { text, .. }| format!("{name} {text}")));
    }
    lines
}

fn destination(service: ServiceKey, endpoint: Endpoint, options: &DestinationOptions) -> String {
    let options = options.clone();
    rule_lines(&Command::Add(Rule::Destination { service, endpoint, options })).concat()
}

fn check(Check { probe, timing, .. }: &Check) -> String {
    let begins = if timing.begins_down { "down" } else { "up" };
    let [every, within] = [timing.interval, timing.timeout].map(|time| time.as_secs());
    let (fall, rise) = (timing.fall, timing.rise);
    format!("check {probe} every {every}s within {within}s fall {fall} rise {rise} begins {begins}")
}

/// Imports a file of `cases/` and compares what is printed, and what that means. `XVS_WRITE_CASES=1` writes what is
/// printed.
#[track_caller]
fn assert_case(name: &str, code: u8) -> Configuration {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/import/cases").join(name).with_extension("cf");
    let mut out = Vec::new();
    let mut errors = Vec::new();
    assert_eq!(import(&file, &names(), &mut out, &mut errors).unwrap(), code);
    let printed = String::from_utf8(out).unwrap();
    let beside = file.with_extension("conf");
    if std::env::var_os("XVS_WRITE_CASES").is_some() {
        fs::write(&beside, &printed).unwrap();
    }
    assert_eq!(printed, fs::read_to_string(beside).unwrap());
    // Each line that is left out is named twice, on standard error and in the output.
    let comments: Vec<_> = printed.lines().filter_map(|line| line.trim().strip_prefix("# ")).collect();
    let errors = String::from_utf8(errors).unwrap();
    let prefix = format!("{}/", file.parent().unwrap().display());
    for error in errors.lines() {
        let error = error.strip_prefix(&prefix).unwrap();
        assert!(comments.iter().any(|comment| error.starts_with(comment)), "{error}");
    }
    assert_eq!(errors.is_empty(), code == DONE);
    let configuration = read(&printed);
    let found: Vec<_> = configuration.virtual_servers.iter().flat_map(meaning).collect();
    let text = fs::read_to_string(&file).unwrap();
    let starts = ["rule ", "check ", "sorry ", "inhibited", "quorum_"];
    let comments = text.lines().filter_map(|line| line.strip_prefix("# "));
    let expected: Vec<_> =
        comments.filter(|line| starts.iter().any(|start| line.starts_with(start))).collect();
    assert_eq!(found, expected);
    configuration
}

/// The text printed for an input, and the lines left out.
fn imported(text: &str) -> (String, Vec<String>) {
    let imported = ldirectord::import(text, "ldirectord.cf", &names());
    let left_out = imported.left_out.iter().map(|left_out| format!("{}: {}", left_out.line, left_out.why));
    (imported.text, left_out.collect())
}

/// A virtual server with this line in it, and a real server.
fn with(line: &str) -> String {
    format!("virtual=192.0.2.1:80\n\treal=192.0.2.11:80 gate\n\t{line}\n")
}

#[test]
fn web_services_with_ranges_requests_and_fallbacks_are_expressed_as_a_whole() {
    let configuration = assert_case("web", DONE);
    let checks = configuration.virtual_servers.iter().flat_map(|server| &server.real_servers[0].checks);
    let urls: Vec<_> = checks
        .map(|check| match &check.probe {
            Probe::Http(_, http) => {
                let url = &http.urls[0];
                let pattern = url.pattern.as_ref().unwrap().text.as_str();
                (http.host.as_deref().unwrap(), url.server_name.as_deref(), pattern)
            }
            probe => panic!("{probe}"),
        })
        .collect();
    let expected =
        [("shop.example", None, r#"^All "good"\.$"#), ("www.shop.example", Some("www.shop.example"), "OK")];
    assert_eq!(urls, expected);
}

#[test]
fn mail_names_and_databases_have_the_closest_check_and_the_others_are_named() {
    assert_case("mail", FAILED);
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/import/cases");
    let printed = fs::read_to_string(cases.join("mail.conf")).unwrap();
    assert!(!printed.contains("secret\""), "no password is repeated");
}

#[test]
fn real_servers_of_firewall_marks_have_no_port_but_their_checks_have_one() {
    assert_case("marks", DONE);
}

#[test]
fn ipv6_scripts_and_thresholds_are_expressed_and_scripts_run_as_root() {
    let configuration = assert_case("ipv6", DONE);
    assert_eq!(configuration.globals.script_user, Some(("root".to_owned(), None)));
}

#[test]
fn checks_of_two_depths_and_services_that_are_switched_on_or_off_are_expressed() {
    assert_case("mixed", FAILED);
}

#[test]
fn a_line_that_cannot_be_expressed_is_named_with_its_number_and_the_next_step() {
    for (line, expected) in [
        ("scheduler=nosuch", "3: no scheduler of this name; wrr is used"),
        ("persistent=0", "3: `persistent` is a number from 1 to 2678400"),
        ("netmask=24", "3: a netmask is like 255.255.255.0"),
        ("netmask=255.255.255.0", "3: without `persistent` it has no effect"),
        ("ops=yes", "3: `ops` is for UDP only"),
        ("quiescent=maybe", "3: `quiescent` is yes or no"),
        ("checkport=0", "3: `checkport` is a number from 1 to 65535"),
        ("failurecount=0", "3: `failurecount` is a number from 1 to"),
        ("checkinterval=3", "3: without `fork = yes` ldirectord ignores it"),
        ("httpmethod=HEAD", "3: xvs requests with GET only"),
        ("receive=\"(\"", "3: `regex (`: "),
        ("virtualhost=a b", "3: `a b` is not a host name"),
        ("request=\"https://192.0.2.9/\"", "3: this service needs a request that begins with http://"),
        ("service=nntp", "3: xvs cannot check the service `nntp`, TCP_CHECK stands in its place"),
        ("service=dns", "1: DNS_CHECK needs a domain name, PING_CHECK stands in its place"),
        ("checktype=often", "3: `checktype` is a number from 0 to 4294967295"),
        ("fallback6=[::1]:80", "3: in this virtual server it is `fallback`"),
        ("fallback=192.0.2.9", "3: it names no method, DR is used"),
        ("fallback=nosuch.invalid", "3: this machine finds no address of `nosuch.invalid`"),
        ("real=192.0.2.11:80 masq", "3: 192.0.2.11 is already a real server"),
        ("real=192.0.2.12:80", "3: `` is no forwarding method"),
        ("real=192.0.2.12:80 gate x", "3: `x` is unexpected after the method"),
        ("real=192.0.2.12:80 gate \"/a\"", "3: it has a request without a text to receive"),
        ("real=192.0.2.12:80 gate \"/a", "3: a quoted string does not end"),
        ("real=192.0.2.12:80 gate l:9 u:3", "3: its lower threshold needs an upper threshold"),
        ("real=192.0.2.12->192.0.2.10:80 gate", "3: the range ends before it begins"),
        ("real=192.0.0.0->192.0.16.0:80 gate", "3: a range has at most 4096 addresses"),
        ("real=224.0.0.1:80 gate", "3: xvs serves no address such as `224.0.0.1`"),
        ("real=192.0.2.12:nosuch gate", "3: `nosuch` is no port"),
        ("real=[2001:db8::1]:80 gate", "3: `2001:db8::1` is no IPv4 address"),
        ("request=\"http://[fe80::1]/\"", "3: xvs serves no address such as `fe80::1`"),
        ("real6=[2001:db8::1]:80 gate", "3: in this virtual server it is `real`"),
        ("autoreload=yes", "3: `autoreload` is a global setting"),
        ("nosuch=1", "3: ldirectord has no setting `nosuch`"),
        ("nosuch", "3: it has no `=`"),
    ] {
        let (text, left_out) = imported(&with(line));
        assert!(left_out.len() == 1 && left_out[0].starts_with(expected), "{line}: {left_out:?}");
        assert!(left_out[0].contains("; "), "{line}: no next step: {left_out:?}");
        assert!(text.contains(&format!("# ldirectord.cf:{expected}")), "{line}: {text}");
        assert_eq!(read(&text).virtual_servers.len(), 1, "{line}: the rest is used");
    }
}

#[test]
fn a_virtual_server_that_cannot_serve_is_left_out_as_a_whole() {
    let real = "\n\treal=192.0.2.11:80 gate\n";
    for (text, expected) in [
        (format!("virtual=192.0.2.1{real}"), "1: it names no port"),
        (format!("virtual=0{real}"), "1: a firewall mark is a number from 1"),
        (format!("virtual=1{real}\tprotocol=tcp\n"), "1: a firewall mark has `protocol = fwm`"),
        (with("protocol=fwm"), "1: a virtual server with an address has `protocol = tcp`"),
        (format!("virtual=2001:db8::1:80{real}"), "1: `2001` is no address"),
        (format!("virtual6=localhost:80{real}"), "1: `localhost` is no IPv6 address"),
        ("virtual=192.0.2.1:80\n".to_owned(), "1: it has no valid real server"),
        ("virtual=192.0.2.1:80\n\treal=192.0.2.11:80 gate 0\n".to_owned(), "1: it has no valid real server"),
    ] {
        let (printed, left_out) = imported(&text);
        assert!(left_out.len() == 1 && left_out[0].starts_with(expected), "{text}: {left_out:?}");
        assert!(left_out[0].ends_with(", until then the virtual server is left out"), "{left_out:?}");
        assert_eq!(read(&printed).virtual_servers, [], "{text}");
    }
    let (printed, left_out) = imported(&(with("") + &with("")));
    assert_eq!(left_out.len(), 1);
    assert!(left_out[0].starts_with("4: line 1 has the same virtual server"), "{left_out:?}");
    assert_eq!(read(&printed).virtual_servers.len(), 1);
}

#[test]
fn a_line_without_a_setting_ends_a_virtual_server_and_a_shallow_indent_is_named() {
    let (_, left_out) =
        imported("virtual=192.0.2.1:80\n   scheduler=rr\n\treal=192.0.2.11:80 gate\n\n\tops=no\n");
    let starts =
        ["2: indent it by a tab or at least four spaces", "5: it is indented, and in no virtual server"];
    assert!(left_out.iter().zip(starts).all(|(found, start)| found.starts_with(start)), "{left_out:?}");
    assert_eq!(left_out.len(), 2);
    let (_, left_out) = imported("scheduler=rr\n");
    assert!(left_out[0].starts_with("1: `scheduler` belongs to a virtual server; indent it"), "{left_out:?}");
}

#[test]
fn no_value_is_read_as_a_keyword_a_parameter_or_a_comment_of_keepalived() {
    for receive in [r"a\d\\b", "x\\\"}\\\"{ y!", "$_PWD ${_ENV HOME} cost$", r"\$A", "'a' `b`"] {
        let (text, left_out) = imported(&with(&format!("receive=\"{receive}\"")));
        assert_eq!(left_out, [""; 0], "{text}");
        let Probe::Http(_, http) = &read(&text).virtual_servers[0].real_servers[0].checks[0].probe else {
            panic!("{text}")
        };
        let pattern = http.urls[0].pattern.as_ref().unwrap();
        assert_eq!(pattern.text, receive.replace("\\\"", "\""));
    }
    for (value, expected) in [
        ("checkcommand=/bin/sh -c 'x'".to_owned(), "put the command into a script"),
        (format!("checkcommand=/{}", "x".repeat(1000)), "longer than 900 bytes"),
        ("checkcommand=/bin/a\u{1}b".to_owned(), "a control character"),
    ] {
        let (text, left_out) = imported(&with(&format!("checktype=external\n\t{value}")));
        assert!(left_out.len() == 1 && left_out[0].contains(expected), "{left_out:?}");
        assert_eq!(read(&text).virtual_servers.len(), 1);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason_and_the_next_step() {
    let path = temporary();
    let mut errors = Vec::new();
    let mut out = Vec::new();
    assert_eq!(import(&path, &names(), &mut out, &mut errors).unwrap(), MISUSED);
    let name = path.display();
    let next = "name an ldirectord.cf that you can read";
    let expected = format!("xvs: {name}: No such file or directory (os error 2); {next}\n");
    assert_eq!((String::from_utf8(errors).unwrap(), out.len()), (expected, 0));
}

#[test]
fn any_text_gives_a_keepalived_conf_without_a_fault_and_no_panic() {
    use proptest::prelude::*;
    let text = prop::collection::vec(prop::sample::select(PARTS), 0..40).prop_map(|parts| parts.concat());
    let config = ProptestConfig { cases: 1000, ..ProptestConfig::default() };
    proptest!(config, |(text in text)| {
        let imported = ldirectord::import(&text, "l\n.cf", &names());
        read(&imported.text);
        let lines = text.lines().count();
        prop_assert!(imported.left_out.iter().all(|left_out| (1..=lines).contains(&left_out.line)));
    });
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..300))| {
        read(&ldirectord::import(&String::from_utf8_lossy(&bytes), "l.cf", &names()).text);
    });
}

/// Fragments of random files: lines, beginnings of lines, and punctuation.
const PARTS: &[&str] = &[
    "virtual=192.0.2.1:80\n",
    "virtual=1\n",
    "virtual6=[2001:db8::1]:443\n",
    "virtual6=7\n",
    "virtual=",
    "\treal=192.0.2.11:8080 gate 2\n",
    "\treal=192.0.2.11->192.0.2.14 masq\n",
    "\treal=localhost:http ipip 1 \"/a\",\"b\" u:9\n",
    "\treal=192.0.2.16:80 gate l:5\n",
    "\treal=0.0.0.0:80 gate\n",
    "\treal=224.0.0.1->224.0.0.2:80 masq\n",
    "\treal6=[fe80::1]:80 gate\n",
    "\treal6=[::ffff:192.0.2.1]:80 gate\n",
    "\treal6=[ff02::1]:80 ipip\n",
    "virtual=255.255.255.255:9\n",
    "virtual=0.0.0.0:9\n",
    "virtual6=[fe80::2]:9\n",
    "virtual6=[::ffff:192.0.2.1]:80\n",
    "\treal6=[2001:db8::2]:81 masq 0\n",
    "\treal6=[2001:db8::3] ipip\n",
    "\treal=",
    "\tfallback=127.0.0.1:81 masq\n",
    "\tfallback=192.0.2.14:80 ipip\n",
    "\tfallback6=[::1]\n",
    "fallback=192.0.2.11:80\n",
    "fallback6=[2001:db8::2]:9 gate\n",
    "\tchecktype=",
    "\tchecktype=connect\n",
    "\tchecktype=3\n",
    "\tchecktype=external\n",
    "\tchecktype=off\n",
    "\tchecktype=ping\n",
    "\tservice=",
    "\tservice=https\n",
    "\tservice=http_proxy\n",
    "\tservice=dns\n",
    "\tservice=smtp\n",
    "\trequest=\"http://192.0.2.7:x/\"\n",
    "\trequest=\"www.example.org\"\n",
    "\trequest=\"",
    "\treceive=\"",
    "\tvirtualhost=",
    "\tcheckcommand=",
    "\tfallbackcommand=/x\n",
    "\tcheckport=1\n",
    "\tchecktimeout=4294967295\n",
    "\tfailurecount=4294967295\n",
    "checkinterval=4294967295\n",
    "\tcheckcount=9\n",
    "\tpersistent=9\n",
    "\tnetmask=64\n",
    "\tnetmask=0.255.0.1\n",
    "\tscheduler=mh\n",
    "\tops=yes\n",
    "\tprotocol=udp\n",
    "\tquiescent=no\n",
    "\tcomment=",
    "on\n",
    "x\"\n",
    "\"",
    "$_PWD",
    "{",
    "}",
    "!",
    "\\",
    "(",
    "[",
    "->",
    ":",
    "l:5",
    " ",
    ",",
    "\n",
    "\r\n",
    "\0",
    "é",
    "#",
];
