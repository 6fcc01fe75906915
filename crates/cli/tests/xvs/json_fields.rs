//! Comparison of the documents of `--json` with `docs/json.md`: every printed field is documented, every documented
//! field is printed.
//!
//! The programs run against a daemon that answers each request with a fully populated sample, so the test fails for a
//! field that is renamed or removed, and for a new field without a row in the document.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process, thread};

use clap::CommandFactory;
use serde_json::{Value, json};
use xvs_ipvsadm::SystemResolver;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::rules_of;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::objects::Rule;
use xvs_model::objects::note::ServiceNote;
use xvs_model::protocol::client::Client;
use xvs_model::protocol::framing::{
    ReplyMessage, RequestMessage, VERSION, decode, read_frame, write_message,
};
use xvs_model::protocol::question::{ControlRequest, Reply, Request, RunningRules};
use xvs_model::report::capture::Missed;
use xvs_model::report::connection::ConnectionRow;
use xvs_model::report::event::EventBatch;
use xvs_model::report::history::{LastHour, ServiceCounts, TotalCounts};
use xvs_model::report::status::StatusReport;
use xvs_model::sample;
use xvs_realserver::Method;
use xvs_realserver::decapsulation::Counters;
use xvs_realserver::status::{SettingStatus, Status};

#[test]
fn every_field_of_a_json_document_is_documented_and_every_documented_field_is_printed() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/json.md")).unwrap();
    let mut faults = Vec::new();
    for (title, documents) in documents() {
        let printed: BTreeSet<_> = documents.iter().flat_map(|document| fields(document, "")).collect();
        let rows = rows(&page, title);
        faults.extend(
            printed
                .iter()
                .filter(|path| !rows.iter().any(|row| describes(row, path)))
                .map(|path| format!("{title}: `{path}` has no row in docs/json.md")),
        );
        faults.extend(
            rows.iter()
                .filter(|row| !printed.iter().any(|path| describes(row, path)))
                .map(|row| format!("{title}: `{row}` is in docs/json.md and is not printed")),
        );
        faults.extend(
            printed
                .iter()
                .filter(|path| !NEVER_SET.contains(&path.as_str()))
                .filter(|path| documents.iter().all(|document| is_unset(document, path)))
                .map(|path| format!("{title}: `{path}` is null in every sample")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_subcommand_with_json_is_documented() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/json.md")).unwrap();
    let mut names = Vec::new();
    with_json(&xvs_cli::Cli::command(), "xvs", &mut names);
    assert!(names.len() > 12, "{names:?}");
    for name in names {
        assert!(!rows(&page, &name).is_empty(), "`{name}` has no section in docs/json.md");
    }
}

/// Fields that no command of this test can set: the other machine that a doctor's command is for.
const NEVER_SET: [&str; 1] = ["findings[].mend.on"];

/// Counts of the last hour, with a step in which xvsd did not run.
fn last_hour() -> LastHour {
    let counts = || vec![Some(1), None, Some(3)];
    LastHour {
        totals: TotalCounts {
            step_seconds: 10,
            connections: counts(),
            in_packets: counts(),
            out_packets: counts(),
            dropped_packets: counts(),
        },
        services: ServiceCounts { step_seconds: 60, connections: [("FWM 7".to_owned(), counts())].into() },
    }
}

/// The documents that each command prints, by the title of its section.
fn documents() -> Vec<(&'static str, Vec<Value>)> {
    let daemon = Daemon::start();
    let rules = daemon.file("rules", "-A -t 198.51.100.1:80 -s wlc\n");
    let faulty = daemon.file("faulty", "-A -t 198.51.100.1:80 -s wlc\n-X\n");
    let keepalived = daemon.file("keepalived.conf", KEEPALIVED);
    let mut status = daemon.xvs("status --json");
    // Its fields are those of `xvs fleet`.
    status.iter_mut().for_each(|status| status["fleet"] = json!({}));
    // A status has one kind of `RulesFound`, so each kind has a status of its own.
    let mut page = sample::page();
    // Its fields are those of `xvs status`.
    page["status"] = json!({});
    status.extend(
        sample::rules()
            .map(|rules| json!(StatusReport { rules: Some(rules), fleet: None, ..sample::status() })),
    );
    vec![
        ("xvs status", status),
        ("GET /status.json", vec![page]),
        ("GET /history.json", vec![json!(last_hour())]),
        ("xvs health", daemon.xvs("health --json")),
        ("xvs connections", daemon.xvs("connections --json")),
        ("xvs connections --count", daemon.xvs("connections --count --json")),
        ("xvs counters", daemon.xvs("counters --json")),
        ("xvs events", daemon.xvs("events --json --last 1 --no-follow")),
        (
            "xvs explain",
            daemon.xvs("explain --json --proto tcp --from 203.0.113.9:4711 --to 198.51.100.1:80"),
        ),
        ("xvs capture", daemon.xvs("capture --json")),
        ("xvs check", daemon.xvs(&format!("check --json {faulty}"))),
        ("xvs check --keepalived", daemon.xvs(&format!("check --json --keepalived {keepalived}"))),
        ("xvs fleet", daemon.xvs("fleet --json")),
        ("xvs plan", daemon.xvs(&format!("plan --json {rules}"))),
        ("xvs apply", daemon.xvs(&format!("apply --json {rules}"))),
        ("xvs mark list", daemon.xvs("mark list --json")),
        ("xvs laddr list", daemon.xvs("laddr list --json")),
        ("xvs limit list", daemon.xvs("limit list --json")),
        ("xvs quic list", daemon.xvs("quic list --json")),
        ("xvs note list", daemon.xvs("note list --json")),
        ("xvs deny list", daemon.xvs("deny list --json")),
        ("xvs allow list", daemon.xvs("allow list --json")),
        ("xvs get", daemon.xvs("get --json")),
        ("xvs feedback", daemon.xvs("feedback --json")),
        ("xvs doctor", daemon.without_daemon("doctor --json")),
        ("xvs realserver status", vec![json!([real_server()])]),
        ("xvsadm -L", daemon.xvsadm("-L -n --json")),
        ("xvsadm -L -c", daemon.xvsadm("-L -n -c --json")),
        ("xvsadm -L --timeout", daemon.xvsadm("-L --timeout --json")),
        ("xvsadm -L --daemon", daemon.xvsadm("-L --daemon --json")),
    ]
}

/// A file with one virtual server and a warning.
const KEEPALIVED: &str = "\
virtual_server 192.0.2.1 80 {
lb_kind NAT
protocol TCP
real_server 192.0.2.11 8080 { TCP_CHECK { } }
}
";

/// The status of a real server; the machine that runs the tests is none.
fn real_server() -> Status {
    Status {
        vip: [198, 51, 100, 1].into(),
        method: Method::Tunnel,
        dev: "eth0".to_owned(),
        address_on: "lo".to_owned(),
        decapsulation: Some("the kernel's tunl0".to_owned()),
        takes: Some("IPv4 in IPv4".to_owned()),
        counters: Some(Counters { ip: 1, gre: 2, gue: 3, left_to_kernel: 4, bad_checksum: 5, congested: 6 }),
        settings: vec![SettingStatus {
            name: "net.ipv4.conf.eth0.arp_ignore".to_owned(),
            value: Some(1),
            found: 0,
            purpose: "ARP",
        }],
        problems: vec!["the interface eth0 is gone".to_owned()],
    }
}

/// A daemon that answers with samples, and a folder for its socket and for files.
struct Daemon(PathBuf);

impl Daemon {
    fn start() -> Self {
        let folder = env::temp_dir().join(format!("xvs-json-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let daemon = Self(folder);
        let listener = UnixListener::bind(daemon.socket()).unwrap();
        thread::spawn(move || listener.incoming().for_each(|client| serve(&client.unwrap())));
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.0.join("xvsd.sock")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The documents that a command line of xvs prints.
    fn xvs(&self, words: &str) -> Vec<Value> {
        printed(&self.socket(), words)
    }

    /// The same without a daemon.
    fn without_daemon(&self, words: &str) -> Vec<Value> {
        printed(&self.0.join("nothing"), words)
    }

    /// The documents that a command line of xvsadm prints.
    fn xvsadm(&self, words: &str) -> Vec<Value> {
        let argv: Vec<_> = ["xvsadm"].into_iter().chain(words.split(' ')).map(str::to_owned).collect();
        let mut client = Client::connect(&self.socket()).unwrap();
        let output = xvs_ipvsadm::output(&argv, "", &mut client, &SystemResolver::default());
        values(words, &output.stdout, &output.stderr)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn printed(socket: &Path, words: &str) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xvs"));
    let output = command.args(words.split(' ')).env("XVS_SOCKET", socket).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    values(words, &stdout, &stderr)
}

/// The documents of an output: one, or one per line.
fn values(words: &str, stdout: &str, stderr: &str) -> Vec<Value> {
    let values: Result<Vec<_>, _> = serde_json::Deserializer::from_str(stdout).into_iter().collect();
    let values = values.unwrap_or_else(|error| panic!("{words}: {error}: {stdout}{stderr}"));
    assert!(!values.is_empty(), "{words} printed nothing: {stderr}");
    values
}

/// Answers the requests of one client.
fn serve(mut stream: &UnixStream) {
    while let Ok(Some(frame)) = read_frame(&mut stream, 1 << 20) {
        let message: RequestMessage = decode(&frame).unwrap();
        let replies = replies(&message.request);
        for (number, reply) in replies.iter().enumerate() {
            let more = number + 1 < replies.len();
            let message = ReplyMessage { version: VERSION, answer: Ok(reply.clone()), more };
            write_message(&mut stream, &message).unwrap();
        }
        stream.flush().unwrap();
    }
}

fn replies(request: &Request) -> Vec<Reply> {
    let reply = match request {
        Request::Status => Reply::Status(sample::status().into()),
        Request::Health => Reply::Health(Some(sample::health())),
        Request::FindConnections(_) => Reply::Connections(sample::connections()),
        Request::ListConnections => {
            let plain = sample::connections().into_iter();
            Reply::Connections(plain.map(|row| ConnectionRow { detail: None, ..row }).collect())
        }
        Request::CountConnections(_) => Reply::Count(2),
        Request::Counters => Reply::Counters(sample::counters()),
        Request::Events(_) => Reply::Events(EventBatch { missed: 1, events: vec![sample::event()] }),
        Request::Explain(_) => Reply::Explained(sample::explained().into()),
        Request::Capture(_) => {
            let parts = [vec![], vec![sample::captured()]].map(Reply::Captured);
            return parts.into_iter().chain([Reply::CaptureEnded(Missed::new())]).collect();
        }
        Request::Control(ControlRequest::Rules) => {
            Reply::Rules(RunningRules { rules: running(), owned: Vec::new(), owned_limits: Vec::new() })
        }
        Request::Control(ControlRequest::Apply { .. }) => Reply::Applied(sample::differences()),
        Request::Control(ControlRequest::Marks) => Reply::Marks(vec![sample::mark_rule()]),
        Request::Control(ControlRequest::Limits { .. }) => Reply::Limits(sample::limits()),
        Request::LocalUse => Reply::LocalUse(sample::local_use()),
        Request::Control(ControlRequest::Quic) => Reply::Quic(vec![sample::quic()]),
        Request::Control(ControlRequest::Lists(_)) => Reply::Lists(sample::lists()),
        Request::Control(ControlRequest::Settings) => Reply::Settings(sample::settings()),
        Request::Control(ControlRequest::Feedback) => Reply::Feedback(sample::feedback()),
        Request::Control(ControlRequest::ListServices) => Reply::Services(sample::services()),
        Request::Control(ControlRequest::Timeouts) => Reply::Timeouts(Timeouts::default()),
        Request::Control(ControlRequest::Daemons) => Reply::Daemons(sample::sync_daemons()),
        other => panic!("{other:?}"),
    };
    vec![reply]
}

/// A state that differs from the rules file in one service.
fn running() -> Vec<Rule> {
    let before = sample::differences().into_iter().filter_map(|difference| difference.before);
    let note = Rule::Note(ServiceNote { service: "FWM 1".parse().unwrap(), text: "shop".to_owned() });
    rules_of(&State::default()).into_iter().chain(before).chain([note]).collect()
}

/// The paths of all fields of a value: `table.size`, `interfaces[].name`.
fn fields(value: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Object(object) => {
            let own = (!path.is_empty() && path != "[]").then(|| path.to_owned());
            let below = object.iter().flat_map(|(key, value)| {
                let dot = if path.is_empty() { "" } else { "." };
                fields(value, &format!("{path}{dot}{key}"))
            });
            own.into_iter().chain(below).collect()
        }
        Value::Array(elements) if elements.is_empty() => vec![format!("{path}[]")],
        Value::Array(elements) => {
            elements.iter().flat_map(|element| fields(element, &format!("{path}[]"))).collect()
        }
        _ => vec![path.to_owned()],
    }
}

/// Whether a field is absent or null throughout a value.
fn is_unset(value: &Value, path: &str) -> bool {
    let (step, rest) = path.split_once('.').map_or((path, ""), |(step, rest)| (step, rest));
    let (key, arrays) = (step.trim_end_matches("[]"), step.matches("[]").count());
    let found = if key.is_empty() { Some(value) } else { value.get(key) };
    let mut reached: Vec<_> = found.into_iter().collect();
    for _ in 0..arrays {
        reached = reached.into_iter().filter_map(Value::as_array).flatten().collect();
    }
    reached.into_iter().all(|value| if rest.is_empty() { value.is_null() } else { is_unset(value, rest) })
}

/// The paths in the table of a section, `{a,b}` written out.
fn rows(page: &str, title: &str) -> Vec<String> {
    let is_title = |line: &str| line.split(['#', ',']).any(|part| part.trim().trim_matches('`') == title);
    let mut lines = page.lines().skip_while(|line| !(line.starts_with("## ") && is_title(line)));
    lines.next();
    let table = lines.take_while(|line| !line.starts_with("## "));
    let paths = table.filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    paths.flat_map(written_out).collect()
}

fn written_out(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (choices, after) = rest.split_once('}').unwrap();
    choices.split(',').flat_map(|choice| written_out(&format!("{before}{choice}{after}"))).collect()
}

/// Whether a documented path is that of a field; a step like `<name>` stands for any name.
fn describes(row: &str, path: &str) -> bool {
    let (mut documented, mut steps) = (row.split('.'), path.split('.'));
    loop {
        match (documented.next(), steps.next()) {
            (None, None) => return true,
            (Some(known), Some(step)) if known == step => {}
            (Some(known), Some(step)) if known.starts_with('<') => {
                let arrays = |step: &str| step.matches("[]").count();
                if arrays(known) != arrays(step) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// The subcommands below this one that take `--json`.
fn with_json(command: &clap::Command, name: &str, names: &mut Vec<String>) {
    if command.get_arguments().any(|argument| argument.get_id() == "json") {
        names.push(name.to_owned());
    }
    for below in command.get_subcommands() {
        with_json(below, &format!("{name} {}", below.get_name()), names);
    }
}
