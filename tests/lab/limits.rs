//! Tests of the limits in `docs/limits.md` and `docs/limits-all.md` that have no other test.
//!
//! Frames and commands come from the recordings, replayed step by step in the lab, so each test can name the step at
//! which the kernel behaved differently. When a difference is removed, its test and its row are removed too. The tests
//! and recordings that the pages name must exist. Not here: equal behaviour (`conformance/main.rs`), and limits that a
//! crate's own tests show.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use xvs_cli::lab::Lab;

/// The director's link addresses on both sides in the recordings.
const OUTSIDE: &str = "10.1.0.1/24";
const VIP: &str = "10.1.0.100/32";
const SERVERS: [u8; 2] = [11, 12];

/// A recording's steps.
struct Recording(Vec<Value>);

impl Recording {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name);
        let text = fs::read_to_string(path.with_extension("json")).expect("a recording");
        let recording: Value = serde_json::from_str(&text).expect("recordings are JSON");
        Self(recording["truth"]["steps"].as_array().expect("steps").clone())
    }

    /// The frames that left the kernel at a step.
    fn out(&self, step: usize) -> Vec<(&str, &str)> {
        let out = self.0[step]["out"].as_array().expect("a frame's step");
        out.iter().filter_map(|frame| Some((frame["port"].as_str()?, frame["hex"].as_str()?))).collect()
    }

    /// The output of a step's command.
    fn printed(&self, step: usize) -> &str {
        self.0[step]["stdout"].as_str().expect("a command's step")
    }
}

/// A director in the lab, with the recordings' network around it.
struct Director {
    lab: Lab,
    now: f64,
}

impl Director {
    /// A director with these addresses on the client side, and this MTU in bytes on the server side.
    fn new(outside: &[&str], mtu: u32) -> Self {
        let mut director = Self { lab: Lab::new(), now: 0.0 };
        director.ask(json!({ "link": "cl0", "mac": "02:00:00:00:01:01", "addresses": outside }));
        director.ask(
            json!({ "link": "rs0", "mac": "02:00:00:00:02:01", "addresses": ["10.2.0.1/24"], "mtu": mtu }),
        );
        director.ask(json!({ "neighbor": "10.1.0.254", "mac": "02:00:00:00:01:fe", "link": "cl0" }));
        director.ask(json!({ "route": "default", "via": "10.1.0.254", "link": "cl0" }));
        director
    }

    /// The director of the recordings: with the virtual address and two real servers whose link addresses are resolved.
    fn usual() -> Self {
        Self::with_mtu(1500)
    }

    fn with_mtu(mtu: u32) -> Self {
        let mut director = Self::new(&[OUTSIDE, VIP], mtu);
        SERVERS.iter().for_each(|server| director.resolve(*server));
        director
    }

    fn ask(&mut self, request: Value) -> Value {
        serde_json::from_str(&self.lab.answer(&request.to_string())).expect("the lab answers JSON")
    }

    fn resolve(&mut self, server: u8) {
        let (addr, mac) = (format!("10.2.0.{server}"), format!("02:00:00:00:02:{server}"));
        self.ask(json!({ "neighbor": addr, "mac": mac, "link": "rs0" }));
    }

    /// Replays these steps at their times; returns the answer to the last one.
    fn play(&mut self, recording: &Recording, steps: impl IntoIterator<Item = usize>) -> Value {
        let mut answer = Value::Null;
        for step in steps {
            let step = &recording.0[step];
            let to = step["t"].as_f64().expect("a time");
            if to > self.now {
                self.ask(json!({ "advance": to - self.now }));
                self.now = to;
            }
            answer = match step["op"].as_str().expect("a step") {
                "cmd" | "dump" => {
                    let argv = step["argv"].as_array().expect("words");
                    self.ask(json!({ "adm": argv[1..] }))
                }
                "frame" => self.ask(json!({ "inject": step["port"], "frame": step["in"] })),
                _ => Value::Null,
            };
        }
        answer
    }

    fn adm(&mut self, line: &str) -> Value {
        let words: Vec<_> = line.split_whitespace().collect();
        self.ask(json!({ "adm": words }))
    }

    fn counter(&mut self, name: &str) -> Value {
        self.ask(json!({ "counters": true }))[name].clone()
    }
}

/// The frames that left.
fn sent(answer: &Value) -> Vec<(&str, &str)> {
    let tx = answer["tx"].as_array().expect("frames");
    tx.iter().filter_map(|frame| Some((frame["link"].as_str()?, frame["frame"].as_str()?))).collect()
}

fn verdict(answer: &Value) -> (&str, Option<&str>) {
    (answer["verdict"].as_str().expect("a verdict"), answer["reason"].as_str())
}

#[test]
fn a_virtual_address_is_served_although_the_directors_kernel_does_not_have_it() {
    let recording = Recording::read("fwd-dr");
    let mut director = Director::new(&[OUTSIDE], 1500);
    SERVERS.iter().for_each(|server| director.resolve(*server));
    let answer = director.play(&recording, 0..=7);
    assert_eq!(sent(&answer), recording.out(7));
}

#[test]
fn a_removed_destinations_connections_are_dropped_until_it_is_added_again() {
    let recording = Recording::read("dest-delete-nodest0");
    let mut director = Director::usual();
    director.play(&recording, 0..=15);
    let answer = director.play(&recording, [16]);
    assert_eq!(verdict(&answer), ("drop", Some("destination_unavailable")));
    assert_eq!(director.counter("drop_destination_unavailable"), 1);
    for step in [18, 19, 22, 27, 28] {
        let answer = director.play(&recording, if step == 27 { 25..=27 } else { step..=step });
        assert_eq!(sent(&answer), recording.out(step), "step {step}");
    }
}

#[test]
fn connections_end_at_their_timeout_and_not_later() {
    let recording = Recording::read("timeout-default");
    let mut director = Director::usual();
    let answer = director.play(&recording, 0..=42);
    assert!(recording.printed(42).contains("00:00  TIME_WAIT"), "two seconds late");
    assert!(!answer["stdout"].as_str().expect("text").contains("TIME_WAIT"), "{answer}");
    let answer = director.play(&recording, 43..=54);
    assert!(recording.printed(54).contains("00:00  ESTABLISHED"), "three seconds late");
    assert!(!answer["stdout"].as_str().expect("text").contains("ESTABLISHED"), "{answer}");
    assert_eq!(verdict(&director.play(&recording, [57])), ("pass", None), "so it belongs to no connection");
}

#[test]
fn expired_connections_do_not_count_for_thresholds() {
    let mut recording = Recording::read("threshold");
    let mut director = Director::usual();
    let answer = director.play(&recording, 0..=41);
    assert!(recording.printed(41).contains("3          2 "), "two connections a second late");
    assert!(answer["stdout"].as_str().expect("text").contains("3          0 "), "{answer}");

    // Two seconds earlier, before their timeout, both are equal.
    for step in recording.0.iter_mut().skip(40) {
        step["t"] = json!(step["t"].as_f64().expect("a time") - 2.0);
    }
    let mut director = Director::usual();
    director.resolve(13);
    for step in 0..recording.0.len() {
        let answer = director.play(&recording, [step]);
        match recording.0[step]["op"].as_str() {
            Some("frame") => assert_eq!(sent(&answer), recording.out(step), "step {step}"),
            Some("cmd" | "dump") => assert_eq!(answer["stdout"], recording.printed(step), "step {step}"),
            _ => {}
        }
    }
}

#[test]
fn a_late_reply_of_an_evicted_connection_goes_to_the_directors_kernel() {
    let recording = Recording::read("tcp-nat-stale-reply");
    let mut director = Director::usual();
    director.play(&recording, 0..=11);
    assert_eq!(recording.out(12).len(), 1, "the kernel translates it for one tick more");
    assert_eq!(verdict(&director.play(&recording, [12])), ("pass", None));
}

#[test]
fn udp_of_a_removed_destination_moves_to_another_unless_it_is_set_to_be_dropped() {
    let recording = Recording::read("fwd-nat");
    let dropped = ("drop", Some("destination_unavailable"));
    for (setting, expected) in
        [(json!({}), dropped), (json!({ "udp_nodest_reschedule": 1 }), ("transmit", None))]
    {
        let mut director = Director::usual();
        director.ask(json!({ "set": setting }));
        director.play(&recording, 0..=5);
        let first = director.play(&recording, [35]);
        assert_eq!(sent(&first), recording.out(35));
        director.adm("-d -u 10.1.0.100:53 -r 10.2.0.12:53");
        assert_eq!(verdict(&director.play(&recording, [35])), expected);
    }
}

#[test]
fn a_syn_replaces_a_connection_that_was_reset() {
    let recording = Recording::read("tcp-nat-server-refuses");
    let mut director = Director::usual();
    director.play(&recording, 0..=7);
    let listed = director.play(&recording, [8]);
    assert!(listed["stdout"].as_str().is_some_and(|text| text.contains("CLOSE")), "{listed}");
    let again = director.play(&recording, [9]);
    assert_eq!(sent(&again), recording.out(9), "the next server in turn");
    assert_eq!(director.counter("connections"), 2);
}

#[test]
fn the_mss_of_a_syn_into_a_tunnel_is_clamped_unless_clamping_is_off() {
    let recording = Recording::read("fwd-tun-ipip");
    for (setting, segment) in [("off", "0204_05b4"), ("tunnels", "0204_05a0")] {
        let mut director = Director::usual();
        director.ask(json!({ "set": { "mss_clamp": setting } }));
        director.play(&recording, 0..=23);
        let answer = director.play(&recording, [24]);
        let [(_, frame)] = sent(&answer)[..] else { panic!("one frame: {answer}") };
        assert_eq!((sent(&answer) == recording.out(24)), setting == "off");
        assert!(frame.contains(&segment.replace('_', "")), "{setting}: {frame}");
    }
}

#[test]
fn with_clamping_of_all_methods_both_ends_of_a_masqueraded_connection_get_the_mss_of_the_smaller_mtu() {
    let mut director = Director::with_mtu(1400);
    director.ask(json!({ "set": { "mss_clamp": "all" } }));
    let recording = Recording::read("fwd-nat");
    let answer = director.play(&recording, (0..=31).filter(|step| recording.0[*step]["op"] == "cmd"));
    assert_eq!(answer["exit"], 0, "{answer}");
    let answer = director.play(&recording, [32]);
    let [("rs0", syn)] = sent(&answer)[..] else { panic!("one frame to a server: {answer}") };
    let options = syn.find("02040550").expect("1,400 bytes less two headers of 20");
    // The server's SYN+ACK: ends swapped, and its own maximum, that of Ethernet.
    let ([to, from], [source, dest]) = ([&syn[..12], &syn[12..24]], [&syn[52..60], &syn[60..68]]);
    let ports = [&syn[72..76], &syn[68..72]].concat();
    let mut reply = format!("{from}{to}{}{dest}{source}{ports}{}", &syn[24..52], &syn[76..]);
    reply.replace_range(94..96, "12");
    reply.replace_range(options..options + 8, "020405b4");
    let answer = director.ask(json!({ "inject": "rs0", "frame": reply }));
    let [("cl0", back)] = sent(&answer)[..] else { panic!("one frame to the client: {answer}") };
    assert_eq!(back.find("02040550"), Some(options), "{back}");
}

#[test]
fn the_first_error_about_a_smaller_path_mtu_of_a_tunnel_carries_the_new_mtu() {
    for (name, overhead) in [("icmp-tun", 20), ("icmp-tun-gre", 24)] {
        let recording = Recording::read(name);
        let mut director = Director::usual();
        let answer = director.play(&recording, 0..=21);
        assert_eq!(verdict(&answer), ("consumed", None));
        let mtu = |frame: &str| u16::from_str_radix(&frame[80..84], 16).expect("hex");
        let [("cl0", theirs)] = recording.out(21)[..] else { panic!("one frame") };
        let [("cl0", ours)] = sent(&answer)[..] else { panic!("one frame: {answer}") };
        assert_eq!((mtu(theirs), mtu(ours)), (1500 - overhead, 1280 - overhead), "{name}");
    }
}

#[test]
fn replies_of_the_directors_own_stack_do_not_move_a_connections_state() {
    let recording = Recording::read("fwd-local");
    let mut director = Director::usual();
    let own = json!({ "link": "own", "mac": "02:00:00:00:03:01", "addresses": ["10.2.0.77/32"] });
    director.ask(own);
    director.play(&recording, [1, 2, 9]);
    let kernel = recording.printed(14);
    assert!(kernel.contains("CLOSE       192.0.2.10:1001    10.1.0.100:80      10.2.0.77:80"), "{kernel}");
    let listed = director.adm("-Lnc");
    let listed = listed["stdout"].as_str().expect("a listing");
    assert!(listed.contains("SYN_RECV    192.0.2.10:1001    10.1.0.100:80      10.2.0.77:80"), "{listed}");
}

#[test]
fn an_unknown_setting_is_refused_by_its_name() {
    let mut director = Director::usual();
    for setting in ["snat_reroute", "conntrack"] {
        let answer = director.ask(json!({ "set": { setting: 1 } }));
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(setting)), "{answer}");
    }
    assert_eq!(director.ask(json!({ "set": { "icmp_msgs_per_sec": 500 } }))["ok"], true);
}

#[test]
fn the_size_in_listings_is_the_kernels_default_for_every_table_size() {
    let listing = Director::usual().adm("-L -n");
    let title = "IP Virtual Server version 1.2.1 (size=4096)\n";
    assert!(listing["stdout"].as_str().is_some_and(|text| text.starts_with(title)), "{listing}");
}

#[test]
fn unsorted_services_are_listed_by_protocol_address_and_port() {
    let mut director = Director::usual();
    let services = ["-u 10.1.0.100:53", "-t 10.1.0.101:80", "-t 10.1.0.100:443", "-t 10.1.0.100:80"];
    services.iter().for_each(|service| drop(director.adm(&format!("-A {service} -s rr"))));
    let listing = director.adm("-L -n --nosort");
    let lines = listing["stdout"].as_str().expect("text").lines().skip(3);
    let expected =
        ["TCP  10.1.0.100:80 rr", "TCP  10.1.0.100:443 rr", "TCP  10.1.0.101:80 rr", "UDP  10.1.0.100:53 rr"];
    assert_eq!(lines.collect::<Vec<_>>(), expected);
}

/// The pages whose rows each name the test or recording that shows the fact.
const PAGES: [&str; 3] = ["docs/limits.md", "docs/limits-all.md", "docs/tutorials.md"];

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a page")
}

/// The cells of a table's row; empty for another line, and for the line below a table's head.
fn cells(line: &str) -> Vec<&str> {
    let row = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    let row = row.filter(|row| !row.starts_with("---"));
    row.map(|row| row.split('|').map(str::trim).collect()).unwrap_or_default()
}

#[test]
fn every_test_named_in_the_documents_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = Command::new("git").current_dir(root).args(["ls-files", "*.rs"]).output().expect("git runs");
    let files = String::from_utf8(listed.stdout).expect("names are UTF-8");
    let sources: String = files.lines().filter_map(|file| fs::read_to_string(root.join(file)).ok()).collect();
    let documents: String = PAGES.map(page).concat();
    let words = documents.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    // Test names have more words than settings and reasons.
    let tests: Vec<_> = words.filter(|word| word.matches('_').count() > 4).collect();
    assert!(tests.len() > 250, "the documents' form has changed: {tests:?}");
    let missing: Vec<_> = tests.iter().filter(|test| !sources.contains(&format!("fn {test}("))).collect();
    assert!(missing.is_empty(), "the documents name tests that are not there: {missing:#?}");
}

#[test]
fn every_row_of_the_long_pages_is_short_and_names_a_test_a_recording_or_the_reason_for_none() {
    let text = page("docs/limits-all.md") + &page("docs/tutorials.md");
    let rows: Vec<_> = text.lines().map(cells).filter(|cells| cells.len() > 1).collect();
    assert!(rows.len() > 250, "the page's form has changed");
    let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let names: Vec<_> = fs::read_dir(recordings)
        .expect("recordings")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
        .collect();
    for row in rows {
        let long = row.iter().find(|cell| cell.chars().count() > 200);
        assert!(long.is_none(), "a cell of more than 200 characters: {long:?}");
        let shown = row[row.len() - 1];
        let by_test = shown.split([';', ' ']).next().is_some_and(|word| word.matches('_').count() > 2);
        let reason = shown.strip_prefix("none: ").is_some_and(|reason| !reason.is_empty());
        assert!(by_test || reason || shown.starts_with("recording") || shown == "test", "no test: {row:?}");
        if reason {
            continue;
        }
        for name in shown.split('`').skip(1).step_by(2) {
            let there = match name.strip_suffix('*') {
                Some(start) => names.iter().any(|known| known.starts_with(start)),
                None => names.iter().any(|known| known == name),
            };
            assert!(there, "no recording {name}: {row:?}");
        }
    }
}
