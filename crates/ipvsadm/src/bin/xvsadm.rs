//! `xvsadm`: ipvsadm's command line for xvs, also under the name `ipvsadm`.
//!
//! Runs the command line on the daemon whose socket `XVS_SOCKET` names.

use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, io};

use xvs_ipvsadm::{Messages, NextStep, Streams, SystemResolver};
use xvs_model::protocol::client::{Client, Director, Failure, default_socket};
use xvs_model::protocol::late_reply;
use xvs_model::protocol::question::{Reply, Request};
use xvs_model::report::connection::ConnectionRow;

fn main() -> ExitCode {
    let argv: Vec<String> = env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut director = Daemon { socket: default_socket(), client: None };
    let mut stdout = BufWriter::new(io::stdout().lock());
    let mut stderr = io::stderr();
    let next_step = if stderr.is_terminal() { NextStep::Printed } else { NextStep::Omitted };
    let messages = Messages::new(&mut stderr, next_step);
    let streams = Streams { stdin: &mut io::stdin().lock(), stdout: &mut stdout, messages };
    let exit = xvs_ipvsadm::run(&argv, streams, &mut director, &SystemResolver::default());
    match stdout.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            drop(stdout);
            let _ = writeln!(io::stderr(), "standard output: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::from(exit),
    }
}

/// The daemon. The first call connects to it, so that a wrong command line is reported without a daemon.
struct Daemon {
    socket: PathBuf,
    client: Option<Client>,
}

impl Daemon {
    fn client(&mut self) -> Result<&mut Client, Failure> {
        match &mut self.client {
            Some(client) => Ok(client),
            none => Ok(none.insert(Client::connect(&self.socket)?.waiting_by(await_reply))),
        }
    }
}

/// Waits for a reply, with a notice on stderr if it is late.
fn await_reply(stream: &UnixStream, request: &Request) -> Result<(), Failure> {
    late_reply::wait(stream, request, &mut |notice| {
        // The reply is printed even if the notice cannot be written.
        let _ = writeln!(io::stderr(), "{notice}");
    })
}

impl Director for Daemon {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        self.client()?.call(request)
    }

    fn connections(&mut self, each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        self.client()?.connections(each)
    }
}
