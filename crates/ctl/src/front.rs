//! What a running daemon answers to the clients of its socket.
//!
//! Changes and what needs the desired state go to the control thread; connections, counters and status are read by the
//! client's own thread, so that they delay no command. While the daemon starts, it says so.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use xvs_dataplane::verdict::DropReason;

use crate::connections::rows;
use crate::daemon::{Handle, Shared};
use crate::message::{CommandError, ConnectionRow, Reply, Request};
use crate::server::{Handler, Peer};

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
            Request::Status => Ok(Reply::Report(status(daemon.shared()))),
            Request::Counters => Ok(Reply::Report(json!(daemon.shared().counters()))),
            Request::Change(_) | Request::Restore(_) | Request::Set { .. } => {
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
        rows(shared.reader(), shared.now(), each);
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
        (Request::Change(command), answer) => line(command, answer.as_ref().err()),
        (Request::Set { key, value }, answer) => line(&format!("set {key} {value}"), answer.as_ref().err()),
        (_, answer) => line(&"restore", answer.as_ref().err()),
    }
}

/// How the daemon is, for `xvs status`.
fn status(shared: &Shared) -> Value {
    let facts = shared.facts();
    let interfaces: Vec<_> = facts
        .interfaces
        .iter()
        .map(|interface| {
            json!({
                "name": interface.name,
                "mode": interface.mode,
                "why_not_native": interface.why_not_native,
                "queues": interface.queues,
            })
        })
        .collect();
    let workers: Vec<_> = facts
        .workers
        .iter()
        .zip(shared.workers())
        .map(|(worker, counters)| {
            let counters: BTreeMap<_, _> = counters.all().filter(|(_, value)| *value != 0).collect();
            json!({
                "core": worker.core,
                "queues": worker.queues,
                "copy_mode": worker.copy_mode,
                "counters": counters,
            })
        })
        .collect();
    let drops: Vec<_> = DropReason::all()
        .filter_map(|reason| {
            let packets: u64 = shared.workers().iter().map(|counters| counters.dropped(reason).value()).sum();
            (packets > 0)
                .then(|| json!({ "reason": reason.name(), "packets": packets, "what": reason.sentence() }))
        })
        .collect();
    let table = shared.table();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": Duration::from_millis(shared.now().0).as_secs(),
        "interfaces": interfaces,
        "workers": workers,
        "table": {
            "size": table.config().capacity,
            "connections": table.live(),
            "pages": table.pages().to_string(),
        },
        "drops": drops,
        "warnings": facts.warnings,
    })
}
