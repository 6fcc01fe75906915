//! What a running daemon answers to the clients of its socket.
//!
//! Changes and what needs the desired state go to the control thread; connections, counters and status are read by the
//! client's own thread, so that they delay no command. While the daemon starts, it says so.

use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};
use xvs_dataplane::verdict::DropReason;

use crate::adm::SystemResolver;
use crate::connections::{count, end, found, rows};
use crate::control_thread::Handle;
use crate::filter::Filter;
use crate::locals;
use crate::message::{CommandError, ConnectionRow, Reply, Request};
use crate::plan::{Wanted, carried_out, differences, state_of};
use crate::server::{Handler, Peer};
use crate::status;

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
            Request::Status => {
                let mut report = status::report(daemon.shared());
                report["rules"] = json!(daemon.shared().facts().rules.map(|file| drift(&file, daemon)));
                Ok(Reply::Report(report))
            }
            Request::Counters => Ok(Reply::Report(json!(daemon.shared().counters()))),
            Request::CountConnections(filter) => {
                let shared = daemon.shared();
                let snapshot = shared.published.load_full();
                Ok(Reply::Report(json!(count(shared.reader(), &snapshot, shared.now(), &filter))))
            }
            Request::EndConnections(filter) => {
                let shared = daemon.shared();
                let snapshot = shared.published.load_full();
                let ended = end(shared.reader(), &snapshot, shared.now(), &filter, &shared.swept.drained);
                tracing::info!("uid {}: ended {ended} connections", peer.uid);
                shared.free_ended();
                Ok(Reply::Report(json!(ended)))
            }
            Request::LocalUse => {
                let asked = daemon.ask(Request::LocalAddresses)?;
                let Reply::LocalAddresses(known) = asked else { return Ok(asked) };
                let shared = daemon.shared();
                let exhausted =
                    shared.workers().iter().map(|counters| counters.dropped(DropReason::NoLocalPort).value());
                Ok(Reply::Report(json!(locals::report(&known, shared.reader(), exhausted.sum()))))
            }
            Request::Change(_)
            | Request::Restore(_)
            | Request::Apply { .. }
            | Request::Confirm(_)
            | Request::Set { .. } => {
                let asked = request.clone();
                let answer = daemon.ask(request);
                log(&asked, &answer, peer);
                answer
            }
            other => daemon.ask(other),
        }
    }

    fn connections(
        &self,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        let shared = self.daemon()?.shared();
        rows(shared.reader(), &shared.published.load().call_ids.clone(), shared.now(), each);
        Ok(())
    }

    fn find(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        let shared = self.daemon()?.shared();
        found(shared.reader(), &shared.published.load_full(), shared.now(), filter, each);
        Ok(())
    }
}

/// Tells who changed what, and what came of it.
fn log(request: &Request, answer: &Result<Reply, CommandError>, peer: &Peer) {
    let uid = peer.uid;
    let line = |what: &dyn fmt::Display, error: Option<&CommandError>| match error {
        None => tracing::info!("uid {uid}: {what}"),
        Some(error) => tracing::info!("uid {uid}: {what}: refused: {error}"),
    };
    match (request, answer) {
        (Request::Restore(commands), Ok(Reply::Restored(results))) => {
            tracing::info!("uid {uid}: restore of {} lines", commands.len());
            let refused = commands
                .iter()
                .zip(results)
                .filter_map(|(command, result)| Some((command, result.as_ref().err()?)));
            refused.for_each(|(command, error)| line(command, Some(error)));
        }
        (Request::Apply { .. }, Ok(Reply::Applied(differences))) => {
            carried_out(differences).iter().for_each(|command| line(&format!("apply: {command}"), None));
        }
        (Request::Apply { .. }, answer) => line(&"apply", answer.as_ref().err()),
        (Request::Confirm(verdict), answer) => line(&format!("confirm: {verdict:?}"), answer.as_ref().err()),
        (Request::Change(command), answer) => line(command, answer.as_ref().err()),
        (Request::Set { key, value }, answer) => line(&format!("set {key} {value}"), answer.as_ref().err()),
        (_, answer) => line(&"restore", answer.as_ref().err()),
    }
}

/// How what runs differs from the file of rules, as it is now.
fn drift(file: &Path, daemon: &Handle) -> Value {
    let error = |error: &dyn fmt::Display| json!({ "file": file, "error": error.to_string() });
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(unreadable) => return error(&unreadable),
    };
    let wanted = match Wanted::read(&text, &SystemResolver::default()) {
        Ok((_, wanted)) => wanted,
        Err(faults) => return json!({ "file": file, "faults": faults.len() }),
    };
    match daemon.rules().and_then(|commands| state_of(&commands)) {
        Ok(running) => json!({ "file": file, "differences": differences(&running, &wanted).len() }),
        Err(busy) => error(&busy),
    }
}
