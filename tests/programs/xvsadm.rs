//! The program `xvsadm`, in scripts and at a terminal.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::{env, fs, process};

use xvs::director::program;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::connection::ConnectionRow;
use xvsd::socket::{Handler, Peer, Server, Settings};

/// Handler that refuses every command for its scheduler; it knows `rr` and `wlc`.
struct Refuser;

impl Handler for Refuser {
    fn handle(&self, request: Request, _: &Peer) -> Result<Reply, CommandError> {
        let known = vec!["rr".to_owned(), "wlc".to_owned()];
        let refused = CommandError::SchedulerNotFound { name: "nosuch".to_owned(), known };
        match request {
            Request::Control(ControlRequest::Restore(commands)) => {
                Ok(Reply::Restored(commands.iter().map(|_| Err(refused.clone())).collect()))
            }
            _ => Err(refused),
        }
    }

    fn connections(&self, _: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>) -> Result<(), CommandError> {
        Ok(())
    }
}

/// Exit code and output of a shell command, with this socket for `xvsadm`.
fn shell(command: &str, socket: &Path) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new("sh").args(["-c", command]).env("XVS_SOCKET", socket).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn an_unknown_scheduler_is_reported_in_ipvsadms_bytes_and_on_a_terminal_with_the_known_ones() {
    let folder = env::temp_dir().join(format!("xvsadm-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("xvsd.sock");
    let _server = Server::start(Settings::of(&socket), Arc::new(Refuser)).unwrap();
    let message = "Scheduler or persistence engine not found\n";
    let person = "Scheduler or persistence engine not found\r\nxvs has these schedulers: rr, wlc\r\n";
    let xvsadm = program("xvsadm");
    let xvsadm = xvsadm.display();
    for line in [
        format!("{xvsadm} -A -t 192.0.2.1:80 -s nosuch"),
        format!("echo -A -t 192.0.2.1:80 -s nosuch | {xvsadm} -R"),
    ] {
        assert_eq!(shell(&line, &socket), (Some(255), String::new(), message.to_owned()), "{line}");
        // `script` provides a terminal on all three streams, and prints its output.
        let on_a_terminal = format!("script --quiet --return --command '{line}' /dev/null </dev/null");
        assert_eq!(shell(&on_a_terminal, &socket), (Some(255), person.to_owned(), String::new()), "{line}");
        // The destination of the listing does not matter, only that of messages.
        let piped = format!("script --quiet --return --command '{line} 2>&1 | cat' /dev/null </dev/null");
        assert_eq!(shell(&piped, &socket).1, message.replace('\n', "\r\n"), "{line}");
    }
    fs::remove_dir_all(&folder).unwrap();
}
