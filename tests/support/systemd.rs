//! The systemd of a [`Machine`]: what `systemctl` does there, by the unit files that are installed on it.
//!
//! A unit of `Type=notify` is started when it has said so, or has written `/run/NAME.pid`: keepalived says it only to a
//! process that is called systemd. One of `Type=oneshot` is started when it has ended. Not here: order and dependencies
//! of units, restarts, watchdog, limits and rights; `scripts/vm package` has a real systemd.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::succeed;
use crate::machine::{Machine, Service};
use crate::wait;

impl Machine {
    /// What `systemctl` does with these arguments.
    ///
    /// # Panics
    ///
    /// If it fails, or is none of `enable --now`, `start`, `restart` and `stop`.
    pub fn systemctl(&mut self, arguments: &str) {
        match arguments.split_whitespace().collect::<Vec<_>>()[..] {
            ["enable", "--now", unit] | ["start", unit] => self.start(unit),
            ["restart", unit] => {
                self.stop(unit);
                self.start(unit);
            }
            ["stop", unit] => self.stop(unit),
            _ => panic!("the machines of tests have no `systemctl {arguments}`"),
        }
    }

    fn start(&mut self, name: &str) {
        if self.services.contains_key(name) {
            return;
        }
        let unit = Unit::read(self, name);
        let mut command = self.command(&unit.words[0]);
        command.args(&unit.words[1..]).envs(&unit.environment);
        match unit.kind.as_str() {
            "oneshot" => drop(succeed(&mut command)),
            "notify" => self.start_notifying(name, &mut command),
            other => panic!("the machines of tests have no unit of Type={other}"),
        }
    }

    fn start_notifying(&mut self, name: &str, command: &mut Command) {
        let socket = format!("/run/systemd/notify-{name}");
        // Of an earlier start.
        let _ = fs::remove_file(self.path(&socket));
        let notify = UnixDatagram::bind(self.path(&socket)).expect("the machine has the folder");
        notify.set_read_timeout(Some(Duration::from_millis(20))).expect("the time limit is not zero");
        let log = File::options().create(true).append(true).open(self.log(name)).expect("a new file");
        command.env("NOTIFY_SOCKET", &socket).stdout(log.try_clone().expect("a file")).stderr(log);
        let pid_file = self.path(&format!("/run/{name}.pid"));
        let process = command.spawn().expect("nsenter can be started");
        let process = &mut self.services.entry(name.to_owned()).or_insert(Service(process)).0;
        wait::until(&format!("{name} is ready"), || {
            let ended = process.try_wait().expect("it is a child of this process");
            assert_eq!(ended, None, "{name} has ended before it was ready");
            let mut message = [0; 4096];
            let length = notify.recv(&mut message).unwrap_or_default();
            let says = String::from_utf8_lossy(&message[..length]).lines().any(|line| line == "READY=1");
            (says || pid_file.exists()).then_some(())
        });
    }

    fn stop(&mut self, name: &str) {
        if let Some(mut service) = self.services.remove(name) {
            kill_process(Pid::from_child(&service.0), Signal::TERM).expect("it was not waited for yet");
            wait::until(&format!("{name} ends"), || service.0.try_wait().expect("it is a child"));
        }
    }
}

/// The part of a unit file that is needed here.
struct Unit {
    kind: String,
    /// The command line of its start.
    words: Vec<String>,
    environment: BTreeMap<String, String>,
}

impl Unit {
    fn read(machine: &Machine, name: &str) -> Self {
        let (file, instance) = match name.split_once('@') {
            Some((template, instance)) => (format!("{template}@.service"), instance),
            None => (format!("{name}.service"), ""),
        };
        let path = machine.path(&format!("/lib/systemd/system/{file}"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let service = text.split("[Service]\n").nth(1).expect("a service has this section").to_owned();
        let lines: Vec<_> = service.lines().take_while(|line| !line.starts_with('[')).collect();
        let value = |key: &str| {
            let mut values = lines.iter().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            values.next().map(|value| value.replace("%i", instance))
        };
        let file = value("EnvironmentFile").map(|file| file.trim_start_matches('-').to_owned());
        let environment = file.map(|file| environment(machine.path(&file))).unwrap_or_default();
        let start = value("ExecStart").expect("a service has a command");
        Self { kind: value("Type").unwrap_or_default(), words: expanded(&start, &environment), environment }
    }
}

/// The variables of an `EnvironmentFile=`.
fn environment(file: PathBuf) -> BTreeMap<String, String> {
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// The words of a command line: `${NAME}` is the value of a variable, and `$NAME` the words of one.
fn expanded(line: &str, variables: &BTreeMap<String, String>) -> Vec<String> {
    let words = line.split_whitespace().flat_map(|word| match word.strip_prefix('$') {
        Some(name) if !name.starts_with('{') => {
            let value = variables.get(name).map(String::as_str).unwrap_or_default();
            value.split_whitespace().map(str::to_owned).collect()
        }
        _ => {
            let put = |word: String, (name, value): (&String, &String)| {
                word.replace(&format!("${{{name}}}"), value)
            };
            vec![variables.iter().fold(word.to_owned(), put)]
        }
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_one_word_in_braces_and_several_without() {
        let variables = [("VIP", "192.0.2.1"), ("OPTIONS", "--dev eth0")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(
            expanded("xvs --vip ${VIP} $OPTIONS $NONE", &variables),
            ["xvs", "--vip", "192.0.2.1", "--dev", "eth0"]
        );
    }
}
