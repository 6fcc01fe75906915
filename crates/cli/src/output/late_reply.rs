//! Connections to the daemon whose late replies cause a notice on stderr.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use xvs_model::protocol::client::{Client, Failure};
use xvs_model::protocol::late_reply;
use xvs_model::protocol::question::Request;

use crate::output::exit::complaint;

/// Connects to the daemon that serves this socket.
pub(crate) fn connect(socket: &Path) -> Result<Client, Failure> {
    Ok(Client::connect(socket)?.waiting_by(await_reply))
}

fn await_reply(stream: &UnixStream, request: &Request) -> Result<(), Failure> {
    late_reply::wait(stream, request, &mut |notice| {
        // The reply is printed even if the notice cannot be written.
        let _ = io::stderr().write_all(complaint(notice).as_bytes());
    })
}
