//! Plays the command lines of the conformance recordings on a director that has only the desired state.
//!
//! Exit code, standard output and standard error must be those of ipvsadm. There is no data plane: frames and waits
//! are skipped, and so are listings after the first frame, which have live numbers. [`DIFFERENT`] lists the intended
//! differences.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde_json::Value;
use xvs_ipvsadm::Output;
use xvs_ipvsadm::output;
use xvs_ipvsadm::resolver::FixedNames;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::destination::Destination;
use xvs_model::config::difference::rules_of;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::service::Service;
use xvs_model::objects::Rule;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question::{ControlRequest, Reply, Request, RunningRules};
use xvs_model::report::connection::ConnectionRow;
use xvs_model::report::listing::{DestinationRow, Rates, ServiceRow, Stats};
use xvs_proto::Protocol;
use xvs_sched::ServiceKey;

/// Prefixes of command lines whose standard output is meant to differ, and why.
const DIFFERENT: [(&str, &str); 2] =
    [("-h", "the help text is our own"), ("--help", "the help text is our own")];

/// The desired state as a director without traffic.
struct Model {
    state: State,
    interfaces: Vec<String>,
}

impl Model {
    fn change(&mut self, command: &Command) -> Result<(), CommandError> {
        if let Command::Add(Rule::Daemon(daemon)) = command
            && !self.interfaces.contains(&daemon.interface)
        {
            return Err(CommandError::NoSuchDevice(daemon.interface.clone()));
        }
        self.state.apply(command).map(|_| ())
    }

    fn rows(&self) -> Vec<ServiceRow> {
        self.state.services().map(|(key, service)| idle(*key, service)).collect()
    }
}

/// A service of the desired state with all live numbers 0.
fn idle(key: ServiceKey, service: &Service) -> ServiceRow {
    let dest = |dest: &Destination| DestinationRow {
        endpoint: dest.endpoint,
        options: dest.options.clone(),
        weight_in_force: dest.options.weight,
        active: 0,
        inactive: 0,
        persistent: 0,
        stats: Stats::default(),
        rates: Rates::default(),
        responses: Default::default(),
    };
    ServiceRow {
        key,
        options: service.options.clone(),
        stats: Stats::default(),
        rates: Rates::default(),
        destinations: service.destinations.iter().map(dest).collect(),
    }
}

impl Director for Model {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        Ok(match request {
            Request::Control(ControlRequest::Change(command)) => {
                self.change(&command)?;
                Reply::Done
            }
            Request::Control(ControlRequest::Restore(commands)) => {
                Reply::Restored(commands.iter().map(|command| self.change(command)).collect())
            }
            Request::Control(ControlRequest::ListServices) => Reply::Services(self.rows()),
            Request::Control(ControlRequest::ListService(key)) => {
                let rows: Vec<_> = self.rows().into_iter().filter(|row| row.key == key).collect();
                if rows.is_empty() {
                    return Err(CommandError::NoSuchService(key).into());
                }
                Reply::Services(rows)
            }
            Request::Control(ControlRequest::Timeouts) => Reply::Timeouts(self.state.timeouts()),
            Request::Control(ControlRequest::Rules) => Reply::Rules(RunningRules {
                rules: rules_of(&self.state),
                owned: Vec::new(),
                owned_limits: Vec::new(),
            }),
            Request::Control(ControlRequest::Daemons) => Reply::Daemons(self.state.daemons().to_vec()),
            other => panic!("ipvsadm's commands do not send {other:?}"),
        })
    }

    fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        Ok(())
    }
}

/// The names that the machine of the recordings knew.
fn names(steps: &[Value]) -> FixedNames {
    let services = [("ftp", 21), ("ssh", 22), ("domain", 53), ("http", 80), ("https", 443), ("sip", 5060)];
    let mut table =
        FixedNames::default().service("domain", 53, Protocol::UDP).service("sip", 5060, Protocol::UDP);
    for (name, port) in services {
        table = table.service(name, port, Protocol::TCP);
    }
    let hosts = steps.iter().filter(|step| step["op"] == "setup").filter_map(|step| step["argv"][2].as_str());
    for (line, name) in hosts.flat_map(|script| script.split(['\'', '\\'])).filter_map(|line| {
        let line = line.strip_prefix('n').unwrap_or(line);
        line.split_once(' ').filter(|(_, name)| name.ends_with(".example"))
    }) {
        table = table.host(name, line.parse::<std::net::IpAddr>().unwrap());
    }
    table
}

/// A listing without the table's size and with its services sorted: both differ between recordings of one state.
fn comparable(text: &str) -> String {
    let mut sections: Vec<String> = Vec::new();
    let mut section = String::new();
    for line in text.lines() {
        let line = match line.find("(size=") {
            Some(at) => &line[..at],
            None => line,
        };
        let starts_service =
            ["TCP ", "UDP ", "SCTP", "FWM ", "-A "].iter().any(|start| line.starts_with(start));
        if starts_service {
            sections.push(std::mem::take(&mut section));
        }
        section += &format!("{line}\n");
    }
    sections.push(section);
    let head = sections.remove(0);
    sections.sort();
    head + &sections.concat() + if text.ends_with('\n') { "" } else { "no newline at the end" }
}

fn play(name: &str, recording: &Value, played: &mut usize, faults: &mut Vec<String>) {
    let truth = &recording["truth"];
    let steps = truth["steps"].as_array().unwrap();
    let names = names(steps);
    let interfaces = truth["topology"]["director"].as_object().unwrap().keys().cloned().collect();
    let mut model = Model { state: State::default(), interfaces };
    let mut traffic = false;
    for (number, step) in steps.iter().enumerate() {
        let op = step["op"].as_str().unwrap();
        traffic |= op == "frame";
        let argv: Vec<String> = match (op, step["argv"].as_array()) {
            ("cmd" | "dump", Some(words)) => {
                words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
            }
            _ => continue,
        };
        let line = argv[1..].join(" ");
        let different = DIFFERENT.iter().any(|(start, _)| line.starts_with(start));
        let live = traffic && ["-L", "-l", "--list"].iter().any(|word| line.starts_with(word));
        let output = output(&argv, step["stdin"].as_str().unwrap_or(""), &mut model, &names);
        if live {
            continue;
        }
        *played += 1;
        let text = |key: &str| step[key].as_str().unwrap().to_owned();
        let expected = Output {
            exit: u8::try_from(step["rc"].as_u64().unwrap()).unwrap(),
            stdout: text("stdout"),
            stderr: text("stderr"),
        };
        let same = output.exit == expected.exit
            && output.stderr == expected.stderr
            && (different || comparable(&output.stdout) == comparable(&expected.stdout));
        if !same {
            let stdin = step["stdin"].as_str().unwrap_or("");
            faults.push(format!(
                "{name} step {number}: {argv:?} {stdin:?}\n expected {expected:?}\n got      {output:?}"
            ));
        }
    }
}

#[test]
fn every_command_line_of_the_recordings_prints_and_exits_as_ipvsadm_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance");
    let mut recordings = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let ours = ["cli-", "list-", "errors"].iter().any(|start| name.starts_with(start));
        if ours && name.ends_with(".json") {
            recordings.insert(name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
        }
    }
    let (mut played, mut faults) = (0, Vec::new());
    for (name, recording) in &recordings {
        play(name, recording, &mut played, &mut faults);
    }
    assert!(played > 800, "only {played} command lines were found in {}", folder.display());
    assert!(faults.is_empty(), "{} of {played} differ:\n{}", faults.len(), faults.join("\n"));
}
