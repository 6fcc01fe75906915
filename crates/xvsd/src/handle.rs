//! Handles on the daemon, and what they send to the control thread.
//!
//! A request waits for its reply; everything enters one queue. Not here: the thread (`control_thread/`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use xvs_ctl::control::list_sources::ListFiles;
use xvs_ctl::control::reload::Reloaded;
use xvs_ctl::journal::Journal;
use xvs_ctl::journal::format::Entry;
use xvs_ctl::journal::replay::TimeoutsBySource;
use xvs_dataplane::capture::Captures;
use xvs_dataplane::snapshot::vip_probes::VipProbes;
use xvs_model::config::command::CommandError;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::state_of;
use xvs_model::config::reconcile::{OwnedService, ReconcileScope, Reconciled};
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::{ControlRequest, TakeOverStep};
use xvs_model::report::event::Requester;
use xvs_sched::ServiceKey;

use crate::daemon::take_over::TakeOver;
use crate::error::DaemonError;
use crate::shared::Shared;

/// What xvsd begins with, beside rules.
#[derive(Default)]
pub(crate) struct Begun {
    /// The timeouts of an earlier xvsd.
    pub(crate) timeouts: TimeoutsBySource,
    /// The settings of `xvs set` that were carried out.
    pub(crate) settings: Vec<(String, String)>,
    /// Daemons of synchronization that could not be started.
    pub(crate) refused: Vec<(SyncDaemon, CommandError)>,
    /// The journal that is kept from now on.
    pub(crate) journal: Option<Journal>,
}

/// Inputs of the control thread.
pub(crate) enum Input {
    /// A request, and the client that sent it; `None`: xvsd itself.
    Request(ControlRequest, Option<Requester>, Sender<Result<Reply, CommandError>>),
    /// What xvsd begins with beside rules.
    Journal(Begun, Sender<Result<(), CommandError>>),
    /// A new network view is in [`Latest`](xvs_host::network::Latest).
    Network,
    /// New mark rules are in [`Latest`](xvs_host::network::Latest).
    Marks,
    /// The wanted state of owned services.
    Reconcile(
        Vec<(ServiceKey, Option<OwnedService>)>,
        ReconcileScope,
        Sender<Result<Reconciled, CommandError>>,
    ),
    /// The captures that are to be on.
    Captures(Captures, Sender<Result<(), CommandError>>),
    /// Probes of real servers through their virtual address; `None`: no check is of this kind.
    VipProbes(Option<Arc<VipProbes>>, Sender<Result<(), CommandError>>),
    /// The settings of an xvs.toml that was read again. The reply has the settings of `xvs set` that it undoes.
    Reload(Box<Reloaded>, Sender<Result<Vec<String>, CommandError>>),
    /// The files of access lists in xvs.toml; all files of lists are read again. The reply has a line for each.
    ListFiles(ListFiles, Sender<Result<Vec<String>, CommandError>>),
    /// Lines for the journal.
    Note(Vec<Entry>, Sender<Result<(), CommandError>>),
    /// The services of the start are in force: the XDP programs replace those of an earlier process.
    Serve(Option<TakeOver>, Sender<Result<Option<TakeOver>, DaemonError>>),
    /// A process that takes over, and its steps.
    HandOver(u32, Receiver<Step>, Sender<Result<(), CommandError>>),
    Stop,
}

/// A step of a process that takes over, and where its result goes.
pub(crate) type Step = (TakeOverStep, Sender<Result<(), CommandError>>);

/// How long `xvs status` waits for the control thread.
const RULES_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle on the daemon, usable from any thread.
#[derive(Clone)]
pub struct Handle {
    inputs: Sender<Input>,
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(inputs: Sender<Input>, shared: Arc<Shared>) -> Self {
        Self { inputs, shared }
    }

    /// Sends a request to the control thread, and waits for the reply.
    ///
    /// # Errors
    /// The refusal of the control thread; or the daemon is ending.
    pub fn request(&self, request: ControlRequest) -> Result<Reply, CommandError> {
        self.request_by(request, None)
    }

    /// As [`Self::request`], for a client; events of a change name it.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn request_by(
        &self,
        request: ControlRequest,
        requester: Option<Requester>,
    ) -> Result<Reply, CommandError> {
        let (access, sent) = (request.access(), Instant::now());
        let answer = self.send(|reply| Input::Request(request, requester, reply));
        self.shared.request_durations.count(access, sent.elapsed());
        answer
    }

    /// Carries out a step of a successor. `successor` holds the latest one that has begun, and the channel for its
    /// steps; earlier ones were given up.
    ///
    /// # Errors
    /// The step is out of order, or this process is not taking over.
    pub(crate) fn take_over(
        &self,
        successor: &mut Option<(u32, Sender<Step>)>,
        step: TakeOverStep,
        process: u32,
    ) -> Result<(), CommandError> {
        if step == TakeOverStep::Begin {
            let (steps, receiver) = bounded(1);
            *successor = Some((process, steps));
            return self.send(|reply| Input::HandOver(process, receiver, reply));
        }
        let failed = || CommandError::Failed {
            why: "xvs: the take-over was given up; see the log of xvsd".to_owned(),
        };
        let is_it = |(begun, _): &&(u32, _)| *begun == process;
        let (_, steps) = successor.as_ref().filter(is_it).ok_or_else(failed)?;
        let (reply, done) = bounded(1);
        steps.send((step, reply)).map_err(|_| failed())?;
        done.recv().map_err(|_| failed())?
    }

    /// Takes over the timeouts and settings of an earlier daemon, and begins the journal.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(crate) fn begin_journal(&self, begun: Begun) -> Result<(), CommandError> {
        self.send(|reply| Input::Journal(begun, reply))
    }

    /// Puts the settings of a re-read xvs.toml in force. Returns the settings of `xvs set` that the file undoes.
    ///
    /// # Errors
    /// The daemon is ending.
    pub(crate) fn reload_settings(&self, new: Reloaded) -> Result<Vec<String>, CommandError> {
        self.send(|reply| Input::Reload(Box::new(new), reply))
    }

    /// Replaces the files of access lists in xvs.toml, and reads all files of lists again. Returns a line for each.
    ///
    /// # Errors
    /// The first file with a fault; nothing has changed. Or the daemon is ending.
    pub(crate) fn set_list_files(&self, files: ListFiles) -> Result<Vec<String>, CommandError> {
        self.send(|reply| Input::ListFiles(files, reply))
    }

    /// Writes these lines to the journal.
    ///
    /// # Errors
    /// The daemon is ending.
    pub(crate) fn note(&self, entries: Vec<Entry>) -> Result<(), CommandError> {
        self.send(|reply| Input::Note(entries, reply))
    }

    /// Replaces the captures that are on, and waits until they are published.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(crate) fn capture(&self, captures: Captures) -> Result<(), CommandError> {
        self.send(|reply| Input::Captures(captures, reply))
    }

    /// Replaces the probes of real servers through their virtual address, and waits until they are published.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(crate) fn set_vip_probes(&self, probes: Option<Arc<VipProbes>>) -> Result<(), CommandError> {
        self.send(|reply| Input::VipProbes(probes, reply))
    }

    /// Sets the wanted state of services as [`Control::reconcile`](xvs_ctl::control::Control::reconcile) does, and
    /// waits until it is published.
    ///
    /// # Errors
    /// The daemon is ending.
    pub fn reconcile(
        &self,
        wanted: Vec<(ServiceKey, Option<OwnedService>)>,
        scope: ReconcileScope,
    ) -> Result<Reconciled, CommandError> {
        self.send(|reply| Input::Reconcile(wanted, scope, reply))
    }

    fn send<T>(
        &self,
        input: impl FnOnce(Sender<Result<T, CommandError>>) -> Input,
    ) -> Result<T, CommandError> {
        let ending = || CommandError::Failed { why: "xvs: the daemon is ending".to_owned() };
        let (reply, answer) = bounded(1);
        self.inputs.send(input(reply)).map_err(|_| ending())?;
        answer.recv().map_err(|_| ending())?
    }

    /// Sends a request to the control thread, and waits for the reply until this time; `None`: it did not come.
    pub(crate) fn request_until(
        &self,
        request: ControlRequest,
        until: Instant,
    ) -> Option<Result<Reply, CommandError>> {
        let (reply, answer) = bounded(1);
        self.inputs.send_deadline(Input::Request(request, None, reply), until).ok()?;
        answer.recv_deadline(until).ok()
    }

    /// The desired state, and the keys of owned services.
    ///
    /// # Errors
    /// The control thread does not reply in time, or the daemon is ending.
    pub fn rules(&self) -> Result<(State, Vec<ServiceKey>), CommandError> {
        match self.request_until(ControlRequest::Rules, Instant::now() + RULES_TIMEOUT) {
            Some(Ok(Reply::Rules { rules, owned, .. })) => Ok((state_of(rules)?, owned)),
            _ => Err(CommandError::Failed { why: "the control thread is busy".to_owned() }),
        }
    }

    /// Reads xvs.toml and the keepalived.conf again, and returns the changes, a line each, once they are in force.
    ///
    /// # Errors
    /// Why nothing has changed: xvsd has no such file, or the errors in it.
    pub fn reload(&self) -> Result<String, CommandError> {
        let starting = || CommandError::Failed { why: "xvs: the daemon is starting; try again".to_owned() };
        self.shared.reload.get().ok_or_else(starting)?()
    }

    /// State that is read without the control thread.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}
