//! Dispatch of requests to the parts of the daemon that answer them.
//!
//! Changes, and requests about the desired state, go to the control thread. The thread that serves the client reads
//! connections, counters and status, so these requests delay no command. While the daemon starts, requests are refused.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use xvs_ctl::api::connections::{EndMode, count, end, matching_rows, rows};
use xvs_ctl::api::{explain, local_addresses};
use xvs_ctl::events::{Listener, changes, log_changes};
use xvs_dataplane::explain::Live;
use xvs_dataplane::verdict::DropReason;
use xvs_ipvsadm::{SystemResolver, read_wanted};
use xvs_model::config::difference::differences;
use xvs_model::config::refusal::CommandError;
use xvs_model::foreign_text::escape_control;
use xvs_model::protocol::question::{self, Reply, Request};
use xvs_model::protocol::request::{Access, FleetRequest, TakeOverStep};
use xvs_model::report::capture::{CaptureRequest, CapturedPacket, Missed};
use xvs_model::report::connection::{ConnectionRow, Ended, Filter};
use xvs_model::report::event::{EventQuery, Kind, Requester};
use xvs_model::report::explain::{Question, Report};
use xvs_model::report::status::{RulesFound, RulesStatus, StatusReport};

use crate::daemon::ending::{Ending, Stop};
use crate::daemon::liveness;
use crate::date::date_millis;
use crate::handle::Handle;
use crate::keepalived_conf::Loss;
use crate::lock::lock;
use crate::reload::Reloader;
use crate::restart::hand_over::{Step, Successor};
use crate::shared::Shared;
use crate::socket::capture::ActiveCaptures;
use crate::socket::request_line::request_line;
use crate::socket::{Handler, Peer};
use crate::status;
use crate::status::daemon_facts::daemon_facts;
use crate::status::traffic::traffic;

/// The longest time in which `xvs healthy` may expect progress of all threads.
const LIVENESS_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The handler of requests to the daemon.
pub struct Dispatch {
    /// The daemon, once it has started.
    started: OnceLock<(Handle, Arc<Reloader>)>,
    captures: ActiveCaptures,
    stop: Sender<Stop>,
    /// The process that takes over, and the channel for its steps.
    successor: Mutex<Option<(Successor, Sender<Step>)>>,
}

impl Dispatch {
    /// A handler that refuses requests until [`Self::open`]. Requests to end the daemon go to `stop`.
    pub fn new(stop: Sender<Stop>) -> Self {
        Self {
            started: OnceLock::new(),
            captures: ActiveCaptures::default(),
            stop,
            successor: Mutex::default(),
        }
    }

    /// Dispatches to this daemon from now on.
    pub fn open(&self, daemon: Handle, reloader: Arc<Reloader>) {
        // A process has one daemon, so this is the first call.
        let _ = self.started.set((daemon, reloader));
    }

    /// The daemon. A successor has its socket some moments before it has started; clients wait for that.
    fn started(&self) -> Result<&(Handle, Arc<Reloader>), CommandError> {
        let until = Instant::now() + STARTING;
        loop {
            match self.started.get() {
                Some(started) => return Ok(started),
                None if Instant::now() < until => thread::sleep(PAUSE),
                None => return Err(CommandError::failed("the daemon is starting; try again")),
            }
        }
    }

    fn daemon(&self) -> Result<&Handle, CommandError> {
        self.started().map(|(daemon, _)| daemon)
    }
}

/// How long a client waits for a daemon that is starting, and the interval of checking whether it has started.
const STARTING: Duration = Duration::from_millis(700);
const PAUSE: Duration = Duration::from_millis(10);

impl Handler for Dispatch {
    fn handle(&self, request: Request, peer: &Peer) -> Result<Reply, CommandError> {
        let (daemon, reloader) = self.started()?;
        let shared = daemon.shared();
        Ok(match request {
            Request::Status => Reply::Status(Box::new(status_of(daemon))),
            Request::Health => Reply::Health(shared.health()),
            Request::Healthy { within_millis } => {
                let patience = Duration::from_millis(within_millis.into()).min(LIVENESS_TIMEOUT_MAX);
                liveness::check(daemon, patience).map_err(CommandError::failed)?;
                Reply::Done
            }
            Request::Traffic => Reply::Traffic(Box::new(traffic(shared))),
            Request::Counters => Reply::Counters(shared.counters()),
            Request::CountConnections(filter) => {
                let snapshot = shared.published.load_full();
                Reply::Count(count(shared.reader(), &snapshot, shared.now(), &filter))
            }
            Request::Explain(question) => Reply::Explained(Box::new(explained(shared, &question)?)),
            Request::Examine => {
                let warnings = status::warnings(shared, shared.health().as_ref());
                Reply::Examined(daemon_facts(shared, &warnings))
            }
            Request::EndConnections(filter) => {
                Reply::Ended(end_connections(daemon, &filter, EndMode::Silent, peer))
            }
            Request::ResetConnections(filter) => {
                Reply::Ended(end_connections(daemon, &filter, EndMode::Reset, peer))
            }
            Request::LocalUse => {
                let addresses = daemon.ask(question::local_addresses())?;
                let exhausted =
                    shared.workers().iter().map(|one| one.dropped(DropReason::NoLocalPort).value()).sum();
                Reply::LocalUse(local_addresses::report(&addresses, shared.reader(), exhausted))
            }
            Request::Reload | Request::ReloadAcceptingLoss => {
                let line = request_line(&request);
                let loss = if request == Request::Reload { Loss::Refused } else { Loss::Accepted };
                let answer = reloader.reload(loss);
                record(daemon, line, answer.as_ref().err(), peer);
                Reply::Reloaded(answer?)
            }
            Request::Fleet(wanted) => Reply::Fleet(change_fleet(daemon, wanted, peer)?),
            Request::TakeOver(step) => self.take_over(daemon, step, peer)?,
            Request::Stop { release } => {
                self.stop(release, &requester(peer));
                Reply::Done
            }
            Request::Control(request) if request.access() == Access::Change => {
                let requester = requester(peer);
                let answer = daemon.request_by(request.clone(), Some(requester.clone()));
                log_changes(changes(&request, &answer), &requester);
                answer?
            }
            Request::Control(request) => daemon.request(request)?,
            Request::ListConnections
            | Request::FindConnections(_)
            | Request::Events(_)
            | Request::Capture(_) => unreachable!("the server answers it in parts"),
        })
    }

    fn events(&self, query: EventQuery) -> Result<Listener, CommandError> {
        self.daemon()?.shared().events.listen(query)
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
        matching_rows(shared.reader(), &shared.published.load_full(), shared.now(), filter, each);
        Ok(())
    }

    fn capture(
        &self,
        wanted: &CaptureRequest,
        peer: &Peer,
        each: &mut dyn FnMut(Vec<CapturedPacket>) -> ControlFlow<()>,
    ) -> Result<Missed, CommandError> {
        let daemon = self.daemon()?;
        let ended = self.captures.run(wanted, daemon, peer, each);
        match &ended {
            Ok(_) => tracing::info!("uid {}: packet capture has ended", peer.uid),
            Err(error) => tracing::info!("uid {}: packet capture: refused: {error}", peer.uid),
        }
        ended
    }
}

impl Dispatch {
    /// Carries out a step of a process that takes over.
    fn take_over(&self, daemon: &Handle, step: TakeOverStep, peer: &Peer) -> Result<Reply, CommandError> {
        let successor = Successor::of(peer)?;
        daemon.take_over(&mut lock(&self.successor), step, successor)?;
        if step != TakeOverStep::Begin {
            return Ok(Reply::Done);
        }
        let watchdog_millis = daemon.shared().watchdog.and_then(|time| u64::try_from(time.as_millis()).ok());
        Ok(Reply::Prepares { watchdog_millis })
    }

    /// Makes the daemon end.
    fn stop(&self, release: bool, requester: &Requester) {
        log_changes([(request_line(&Request::Stop { release }), None)], requester);
        let ending = if release { Ending::Release } else { Ending::Hold };
        // If the channel is full, the daemon is ending already.
        let _ = self.stop.try_send(Stop { why: requester.to_string(), ending });
    }
}

/// The status, with the rules file and the settings.
fn status_of(daemon: &Handle) -> StatusReport {
    let shared = daemon.shared();
    let report = status::report(shared, shared.health().as_ref());
    let facts = shared.facts();
    let rules = facts.rules.map(|file| rules_status(&file, daemon));
    StatusReport { rules, settings: facts.settings.to_vec(), ..report }
}

/// The path and the verdict of a packet, with the state of the chosen real server.
fn explained(shared: &Shared, question: &Question) -> Result<Report, CommandError> {
    let snapshot = shared.published.load_full();
    let live = Live {
        snapshot: &snapshot,
        reader: shared.reader(),
        now: shared.now(),
        offload: shared.offload.as_deref(),
    };
    let facts = shared.facts();
    let mut report = explain::answer(question, &live, &facts.attachment())?;
    report.add_disabled(&facts.disabled);
    if report.choice.is_some()
        && let Some(health) = shared.health()
    {
        report.add_health(&health, date_millis());
    }
    Ok(report)
}

/// Changes the rules of the fleet. Returns their revision.
fn change_fleet(daemon: &Handle, wanted: FleetRequest, peer: &Peer) -> Result<u64, CommandError> {
    let fleet = daemon.shared().fleet.get().ok_or_else(|| {
        CommandError::failed("this director is in no fleet; see [fleet] in docs/configure.md")
    })?;
    let mut line = request_line(&Request::Fleet(wanted.clone()));
    let answer = fleet.request(wanted);
    if let Ok(revision) = answer {
        line += &format!(": revision {revision} of etcd");
    }
    record(daemon, line, answer.as_ref().err(), peer);
    answer
}

/// Logs and records a change that the control thread did not carry out.
fn record(daemon: &Handle, line: String, error: Option<&CommandError>, peer: &Peer) {
    let shared = daemon.shared();
    let requester = requester(peer);
    let change = [(line, error.and_then(CommandError::refusal).map(ToString::to_string))];
    log_changes(change.clone(), &requester);
    shared.events.record_all(Kind::Change, shared.published.load().epoch, Some(&requester), change);
}

/// Ends connections, and records that with the requester in the log and the events.
fn end_connections(daemon: &Handle, filter: &Filter, mode: EndMode, peer: &Peer) -> Ended {
    let shared = daemon.shared();
    let snapshot = shared.published.load_full();
    let done @ Ended { ended, marked } =
        end(shared.reader(), &snapshot, shared.now(), filter, mode, &shared.swept.drained);
    shared.free_ended();
    let what = match mode {
        EndMode::Silent => format!("ended {ended} {filter}"),
        EndMode::Reset => {
            format!("marked {marked} to be reset at their next packet and ended {ended} {filter}")
        }
    };
    let requester = requester(peer);
    tracing::info!("{requester}: {what}");
    shared.events.record_all(Kind::Change, snapshot.epoch, Some(&requester), [(what, None)]);
    done
}

/// The process of the client. The process waits for the reply, so its id is not used by another process.
fn requester(peer: &Peer) -> Requester {
    let name = fs::read(format!("/proc/{}/comm", peer.pid)).unwrap_or_default();
    let program = escape_control(String::from_utf8_lossy(&name).trim_end_matches('\n'));
    Requester { uid: peer.uid, pid: peer.pid, program }
}

/// The differences between the current rules file and the desired state.
fn rules_status(file: &Path, daemon: &Handle) -> RulesStatus {
    let found = match fs::read_to_string(file) {
        Ok(text) => compare_rules(&text, daemon),
        Err(unreadable) => RulesFound::Error(unreadable.to_string()),
    };
    RulesStatus { file: file.display().to_string(), found }
}

fn compare_rules(rules: &str, daemon: &Handle) -> RulesFound {
    let mut wanted = match read_wanted(rules, &SystemResolver::default()) {
        Ok((_, wanted)) => wanted,
        Err(faults) => return RulesFound::Faults(faults.len() as u64),
    };
    match daemon.rules() {
        Ok((running, owned)) => {
            wanted.keep_running(&running, owned);
            RulesFound::Differences(differences(&running, &wanted).len() as u64)
        }
        Err(busy) => RulesFound::Error(busy.to_string()),
    }
}
