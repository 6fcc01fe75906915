//! Random command lines and messages: every line ends with a known exit code, no message causes a panic.

use std::io;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use xvs_ipvsadm::output;
use xvs_ipvsadm::resolver::FixedNames;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::limit::LimitReport;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::framing::{RequestMessage, decode, read_frame};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::connection::ConnectionRow;

/// Applies changes to a state and lists nothing.
#[derive(Default)]
struct Changes(State);

impl Changes {
    fn change(&mut self, command: &Command) -> Result<(), CommandError> {
        let before = self.0.clone();
        let changed = self.0.apply(command).map(|_| ());
        assert!(changed.is_ok() || self.0 == before, "a refused command changed the state: {command:?}");
        changed
    }
}

impl Director for Changes {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        // Every request must be the same after serialization.
        let text = serde_json::to_string(&request).map_err(|error| Failure::Transport(error.to_string()))?;
        assert_eq!(serde_json::from_str::<Request>(&text).ok().as_ref(), Some(&request));
        Ok(match request {
            Request::Control(ControlRequest::Change(command)) => {
                self.change(&command).map(|()| Reply::Done)?
            }
            Request::Control(ControlRequest::Restore(batch)) => {
                Reply::Restored(batch.iter().map(|command| self.change(command)).collect())
            }
            Request::Control(ControlRequest::Timeouts) => Reply::Timeouts(self.0.timeouts()),
            Request::Control(ControlRequest::Marks) => Reply::Marks(self.0.marks().to_vec()),
            Request::Control(ControlRequest::Lists(_)) => Reply::Lists(Vec::new()),
            Request::Control(ControlRequest::Disabled) => Reply::Disabled(self.0.disabled().clone()),
            Request::Control(ControlRequest::Limits { .. }) => {
                Reply::Limits(LimitReport::of(self.0.limits()))
            }
            Request::Control(ControlRequest::Daemons) => Reply::Daemons(self.0.daemons().to_vec()),
            _ => Reply::Services(Vec::new()),
        })
    }

    fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        Ok(())
    }
}

const COMMANDS: [&str; 16] = [
    "-A",
    "-E",
    "-D",
    "-C",
    "-a",
    "-e",
    "-d",
    "-L",
    "-Z",
    "-S",
    "-R",
    "--set",
    "-At",
    "-au",
    "--start-daemon",
    "--stop-daemon",
];

const WORDS: [&str; 52] = [
    "-t",
    "-u",
    "--sctp-service",
    "-f",
    "-6",
    "-s",
    "-p",
    "-M",
    "--pe",
    "-b",
    "-o",
    "-r",
    "-g",
    "-i",
    "-m",
    "-w",
    "-x",
    "-y",
    "--tun-type",
    "--tun-port",
    "--tun-csum",
    "-c",
    "-n",
    "--stats",
    "--rate",
    "--timeout",
    "--daemon",
    "--exact",
    "--nosort",
    "--mcast-group",
    "--syncid",
    "--",
    "-",
    "192.0.2.1:80",
    "192.0.2.2",
    "[2001:db8::1]:80",
    "2001:db8::1",
    "[192.0.2.1]:80",
    "7",
    "0",
    "rr",
    "sh",
    "sh-port,flag-3",
    "gue",
    "gre",
    "master",
    "255.255.255.0",
    "64",
    "é=",
    "-é",
    "224.0.0.9",
    "sip",
];

fn line() -> impl Strategy<Value = Vec<&'static str>> {
    (select(&COMMANDS[..]), vec(select(&WORDS[..]), 0..9)).prop_map(|(command, words)| {
        let mut line = vec![command];
        line.extend(words);
        line
    })
}

proptest! {
    #[test]
    fn every_command_line_ends_with_a_known_exit_code(lines in vec(line(), 1..8)) {
        let mut director = Changes::default();
        let stdin: String = lines.iter().map(|words| words.join(" ") + "\n").collect();
        for words in &lines {
            let argv: Vec<String> =
                std::iter::once("xvsadm").chain(words.iter().copied()).map(str::to_owned).collect();
            let output = output(&argv, &stdin, &mut director, &FixedNames::default());
            prop_assert!([0, 1, 2, 255].contains(&output.exit), "{words:?}: {output:?}");
            // Not the reverse: a restore may continue after a line whose error it has printed.
            let has_message = !output.stderr.is_empty();
            prop_assert!(has_message || output.exit == 0, "{words:?}: {output:?}");
        }
    }

    #[test]
    fn any_bytes_are_a_request_or_a_refusal(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode::<RequestMessage>(&bytes);
        if let Ok(Some(frame)) = read_frame(&mut bytes.as_slice(), 100) {
            prop_assert_eq!(&bytes[4..4 + frame.len()], frame.as_slice());
        }
    }
}
