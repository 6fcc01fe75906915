//! Handles on the daemon, which send requests and other work to the control thread.
//!
//! A request waits for its reply; everything enters one queue. Not here: the thread (`control_thread/`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use xvs_ctl::control::list_sources::ListFiles;
use xvs_ctl::control::reload::Reloaded;
use xvs_ctl::journal::format::Entry;
use xvs_dataplane::capture::Captures;
use xvs_dataplane::snapshot::vip_probes::VipProbes;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::state_of;
use xvs_model::config::reconcile::{OwnedService, ReconcileScope, Reconciled};
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::{self, ControlQuestion};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::{ControlRequest, TakeOverStep};
use xvs_model::report::event::Requester;
use xvs_sched::ServiceKey;

use crate::control_thread::ControlThread;
use crate::control_thread::hand_over::Step;
use crate::control_thread::{Begun, Input};
use crate::daemon::take_over::TakeOver;
use crate::error::DaemonError;
use crate::shared::Shared;

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
        let access = request.access();
        let sent = Instant::now();
        let answer = self.run(move |thread| thread.answer(&request, requester.as_ref()));
        self.shared.request_durations.count(access, sent.elapsed());
        answer?
    }

    /// Asks the control thread.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn ask<T>(&self, question: ControlQuestion<T>) -> Result<T, CommandError> {
        question.put(|request| self.request(request))
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
            let (ready, is_ready) = bounded(1);
            self.send(move |thread| thread.hand_over(process, &receiver, &ready))?;
            return is_ready.recv().map_err(|_| CommandError::ending())?;
        }
        let (_, steps) = successor.as_ref().filter(|(begun, _)| *begun == process).ok_or_else(given_up)?;
        let (reply, done) = bounded(1);
        steps.send((step, reply)).map_err(|_| given_up())?;
        done.recv().map_err(|_| given_up())?
    }

    /// Takes over the timeouts and settings of an earlier daemon, and begins the journal.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(crate) fn begin_journal(&self, begun: Begun) -> Result<(), CommandError> {
        self.run(move |thread| thread.begin_journal(begun))?
    }

    /// Puts the settings of a re-read xvs.toml in force. Returns the settings of `xvs set` that the file undoes.
    ///
    /// # Errors
    /// The daemon is ending.
    pub(crate) fn reload_settings(&self, new: Reloaded) -> Result<Vec<String>, CommandError> {
        self.run(move |thread| thread.reload(new))
    }

    /// Replaces the files of access lists in xvs.toml, and reads all files of lists again. Returns a line for each.
    ///
    /// # Errors
    /// The first file with a fault; nothing has changed. Or the daemon is ending.
    pub(crate) fn set_list_files(&self, files: ListFiles) -> Result<Vec<String>, CommandError> {
        self.run(move |thread| thread.control.set_list_files(files))?
    }

    /// Writes these lines to the journal.
    ///
    /// # Errors
    /// The daemon is ending.
    pub(crate) fn note(&self, entries: Vec<Entry>) -> Result<(), CommandError> {
        self.run(move |thread| thread.control.write_entries(entries))
    }

    /// Replaces the captures that are on, and waits until they are published.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(crate) fn capture(&self, captures: Captures) -> Result<(), CommandError> {
        self.run(move |thread| thread.control.set_captures(captures))?.map_err(CommandError::from)
    }

    /// Replaces the probes of real servers through their virtual address, and waits until they are published.
    ///
    /// # Errors
    /// The daemon is ending.
    pub(crate) fn set_vip_probes(&self, probes: Option<Arc<VipProbes>>) -> Result<(), CommandError> {
        self.run(move |thread| thread.control.set_vip_probes(probes))
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
        self.run(move |thread| thread.control.reconcile(wanted, scope, thread.shared.now()))
    }

    /// Begins to forward ([`ControlThread::serve`]). `None`: the control thread has ended by a bug.
    pub(crate) fn serve(&self, take_over: Option<TakeOver>) -> Option<Result<Option<TakeOver>, DaemonError>> {
        self.run(move |thread| thread.serve(take_over)).ok()
    }

    /// Runs this on the control thread, and waits for what it returns.
    ///
    /// # Errors
    /// The daemon is ending.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ControlThread) -> T + Send + 'static,
    ) -> Result<T, CommandError> {
        let (reply, answer) = bounded(1);
        // The caller waits.
        self.send(move |thread| _ = reply.send(work(thread)))?;
        answer.recv().map_err(|_| CommandError::ending())
    }

    fn send(&self, work: impl FnOnce(&mut ControlThread) + Send + 'static) -> Result<(), CommandError> {
        self.inputs.send(Input::Do(Box::new(work))).map_err(|_| CommandError::ending())
    }

    /// Sends a request to the control thread, and waits for the reply until this time; `None`: it did not come.
    pub(crate) fn request_until(
        &self,
        request: ControlRequest,
        until: Instant,
    ) -> Option<Result<Reply, CommandError>> {
        let (reply, answer) = bounded(1);
        // A caller that waits no longer needs no reply.
        let work = move |thread: &mut ControlThread| _ = reply.send(thread.answer(&request, None));
        self.inputs.send_deadline(Input::Do(Box::new(work)), until).ok()?;
        answer.recv_deadline(until).ok()
    }

    /// The desired state, and the keys of owned services.
    ///
    /// # Errors
    /// The control thread does not reply in time, or the daemon is ending.
    pub fn rules(&self) -> Result<(State, Vec<ServiceKey>), CommandError> {
        let busy = CommandError::Failed { why: "the control thread is busy".to_owned() };
        let until = Instant::now() + RULES_TIMEOUT;
        let running =
            question::rules().put(|request| self.request_until(request, until).unwrap_or(Err(busy)))?;
        Ok((state_of(running.rules)?, running.owned))
    }

    /// Reads xvs.toml and the keepalived.conf again, and returns the changes, a line each, once they are in force.
    ///
    /// # Errors
    /// Why nothing has changed: xvsd has no such file, or the errors in it.
    pub fn reload(&self) -> Result<String, CommandError> {
        let starting = "xvs: the daemon is starting; try again";
        let reload = self.shared.reload.get();
        reload.ok_or_else(|| CommandError::Failed { why: starting.to_owned() })?()
    }

    /// State that is read without the control thread.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

fn given_up() -> CommandError {
    CommandError::Failed { why: "xvs: the take-over was given up; see the log of xvsd".to_owned() }
}
