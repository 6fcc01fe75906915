//! What a running daemon answers to the clients of its socket.
//!
//! Changes and what needs the desired state go to the control thread; connections, counters and status are read by the
//! client's own thread, so that they delay no command. While the daemon starts, it says so.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use xvs_dataplane::counters::{Counter, WorkerCounters};
use xvs_dataplane::verdict::DropReason;

use crate::capturing::{CaptureRequest, CapturedPacket, Capturing, Missed};
use crate::connections::rows;
use crate::control_thread::Handle;
use crate::locals;
use crate::message::{CommandError, ConnectionRow, Reply, Request};
use crate::server::{Handler, Peer};
use crate::shared::{Facts, Shared};

/// The daemon as its clients meet it.
#[derive(Default)]
pub struct Front {
    daemon: OnceLock<Handle>,
    capturing: Capturing,
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
            Request::LocalUse => {
                let asked = daemon.ask(Request::LocalAddresses)?;
                let Reply::LocalAddresses(known) = asked else { return Ok(asked) };
                let shared = daemon.shared();
                let exhausted =
                    shared.workers().iter().map(|counters| counters.dropped(DropReason::NoLocalPort).value());
                Ok(Reply::Report(json!(locals::report(&known, shared.reader(), exhausted.sum()))))
            }
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
        rows(shared.reader(), &shared.published.load().call_ids.clone(), shared.now(), each);
        Ok(())
    }

    fn capture(
        &self,
        wanted: &CaptureRequest,
        peer: &Peer,
        each: &mut dyn FnMut(Vec<CapturedPacket>) -> ControlFlow<()>,
    ) -> Result<Missed, CommandError> {
        let daemon = self.daemon()?;
        // Who saw what clients said is to be known afterwards.
        tracing::info!("uid {}: capture of packets begins", peer.uid);
        let ended = self.capturing.run(wanted, daemon, each);
        match &ended {
            Ok(_) => tracing::info!("uid {}: capture of packets has ended", peer.uid),
            Err(error) => tracing::info!("uid {}: capture of packets: refused: {error}", peer.uid),
        }
        ended
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
                "state": interface.state.to_string(),
                "attached_again": interface.attached_again,
            })
        })
        .collect();
    let workers: Vec<_> = facts
        .workers
        .iter()
        .zip(shared.workers())
        .map(|(worker, counters)| {
            let counters: BTreeMap<_, _> = counters.all().filter(|(_, value)| *value != 0).collect();
            let names = facts.interfaces.iter().map(|interface| interface.name.as_str());
            let queues: BTreeMap<_, _> = names.zip(&worker.queues).collect();
            json!({
                "core": worker.core,
                "queues": queues,
                "copy_mode": worker.copy_mode,
                "counters": counters,
            })
        })
        .collect();
    let table = shared.table();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": Duration::from_millis(shared.now().0).as_secs(),
        "services": facts.services,
        "destinations": facts.destinations,
        "interfaces": interfaces,
        "workers": workers,
        "table": {
            "size": table.config().capacity,
            "connections": table.live(),
            "pages": table.pages().to_string(),
        },
        "drops": drops(shared.workers()),
        "warnings": warnings(&facts),
    })
}

/// What was dropped, by the workers or before they had it, and why.
fn drops(workers: &[Arc<WorkerCounters>]) -> Vec<Value> {
    let sum = |counter: &dyn Fn(&WorkerCounters) -> &Counter| -> u64 {
        workers.iter().map(|counters| counter(counters).value()).sum()
    };
    let ours = DropReason::all()
        .map(|reason| (reason.name(), reason.sentence(), sum(&|counters| counters.dropped(reason))));
    let kernel = [
        (
            "kernel_ring_full",
            "a worker was not fast enough for its RX ring: take more workers, or raise receive_ring",
            sum(&|counters| &counters.kernel_ring_full),
        ),
        (
            "kernel_fill_ring_empty",
            "no frame was free for them: raise receive_ring",
            sum(&|counters| &counters.kernel_fill_ring_empty),
        ),
        (
            "kernel_dropped",
            "the kernel could not give them to a worker, such as packets larger than a frame",
            sum(&|counters| &counters.kernel_dropped),
        ),
    ];
    ours.chain(kernel)
        .filter(|(.., packets)| *packets > 0)
        .map(|(reason, what, packets)| json!({ "reason": reason, "packets": packets, "what": what }))
        .collect()
}

/// What the operator should see to: interfaces first.
fn warnings(facts: &Facts) -> Vec<String> {
    let interfaces =
        facts.interfaces.iter().filter_map(|interface| interface.state.complaint(&interface.name));
    interfaces.chain(facts.warnings.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::{InterfaceFacts, LinkState};

    #[test]
    fn drops_of_all_workers_are_summed_and_those_before_the_workers_are_among_them() {
        let workers = [Arc::new(WorkerCounters::default()), Arc::default()];
        workers[0].dropped(DropReason::TransmitRefused).add(2);
        workers[1].dropped(DropReason::TransmitRefused).add(3);
        workers[1].kernel_ring_full.add(7);
        let drops = drops(&workers);
        let told: Vec<_> =
            drops.iter().map(|drop| (drop["reason"].as_str().unwrap(), &drop["packets"])).collect();
        assert_eq!(told, [(DropReason::TransmitRefused.name(), &json!(5)), ("kernel_ring_full", &json!(7))]);
    }

    #[test]
    fn an_interface_that_is_gone_is_the_first_warning() {
        let interface = InterfaceFacts {
            name: "wan".to_owned(),
            mode: "native".to_owned(),
            why_not_native: None,
            queues: 1,
            state: LinkState::Gone,
            attached_again: 0,
        };
        let facts =
            Facts { interfaces: vec![interface], warnings: vec!["another".to_owned()], ..Facts::default() };
        assert_eq!(warnings(&facts), ["wan is gone; it is attached again when it is back and up", "another"]);
    }
}
