//! What a running daemon answers to the clients of its socket.
//!
//! Changes and what needs the desired state go to the control thread; connections, counters and status are read by the
//! client's own thread, so that they delay no command. While the daemon starts, it says so.

use std::fs;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use serde_json::json;
use xvs_dataplane::verdict::DropReason;

use crate::adm::one_line;
use crate::connections::rows;
use crate::control_thread::Handle;
use crate::events::{Asked, Listener, Who, changes};
use crate::locals;
use crate::message::{CommandError, ConnectionRow, Reply, Request};
use crate::server::{Handler, Peer};
use crate::status;
use crate::traffic::Traffic;

/// The daemon as its clients meet it.
#[derive(Default)]
pub struct Front {
    daemon: OnceLock<Handle>,
}

impl Front {
    /// Answers from now on what this daemon says.
    pub fn open(&self, daemon: Handle) {
        // There is one daemon in a process, so this is the first time.
        let _ = self.daemon.set(daemon);
    }

    fn daemon(&self) -> Result<&Handle, CommandError> {
        let starting = || CommandError::Failed { why: "xvs: the daemon is starting; try again".to_owned() };
        self.daemon.get().ok_or_else(starting)
    }
}

impl Handler for Front {
    fn handle(&self, request: Request, peer: &Peer) -> Result<Reply, CommandError> {
        let daemon = self.daemon()?;
        match request {
            Request::Status => Ok(Reply::Report(status::report(daemon.shared()))),
            Request::Traffic => Ok(Reply::Traffic(Traffic::now(daemon.shared()))),
            Request::Counters => Ok(Reply::Report(json!(daemon.shared().counters()))),
            Request::LocalUse => {
                let asked = daemon.ask(Request::LocalAddresses)?;
                let Reply::LocalAddresses(known) = asked else { return Ok(asked) };
                let shared = daemon.shared();
                let exhausted =
                    shared.workers().iter().map(|counters| counters.dropped(DropReason::NoLocalPort).value());
                Ok(Reply::Report(json!(locals::report(&known, shared.reader(), exhausted.sum()))))
            }
            Request::Change(_) | Request::Restore(_) | Request::Set { .. } => {
                let (asked, who) = (request.clone(), who(peer));
                let answer = daemon.ask_for(request, Some(who.clone()));
                log(&asked, &answer, &who);
                answer
            }
            other => daemon.ask(other),
        }
    }

    fn events(&self, asked: Asked) -> Result<Listener, CommandError> {
        self.daemon()?.shared().events.listen(asked)
    }

    fn connections(
        &self,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        let shared = self.daemon()?.shared();
        rows(shared.reader(), &shared.published.load().call_ids.clone(), shared.now(), each);
        Ok(())
    }
}

/// Tells who changed what, and what came of it: a line for each command, also of a batch.
fn log(request: &Request, answer: &Result<Reply, CommandError>, who: &Who) {
    for (line, refused) in changes(request, answer) {
        match refused {
            None => tracing::info!("{who}: {line}"),
            Some(error) => tracing::info!("{who}: {line}: refused: {error}"),
        }
    }
}

/// Who asks. The process waits for its answer, so its number is still its own.
fn who(peer: &Peer) -> Who {
    let name = fs::read(format!("/proc/{}/comm", peer.pid)).unwrap_or_default();
    let program = one_line(String::from_utf8_lossy(&name).trim_end_matches('\n'));
    Who { uid: peer.uid, pid: peer.pid, program }
}
