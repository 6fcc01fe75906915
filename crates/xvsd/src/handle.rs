//! Handles on the daemon, which send requests and other work to the control thread.
//!
//! A request waits for its reply. All work enters one queue. Not here: the thread (`control_thread/`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::state_of;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::{self, ControlQuestion};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::{ControlRequest, TakeOverStep};
use xvs_model::report::event::Requester;
use xvs_sched::ServiceKey;

use crate::control_thread::hand_over::Step;
use crate::control_thread::{ControlThread, Input};
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
        answer
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

    /// Runs this on the control thread, and waits for what it returns.
    ///
    /// # Errors
    /// Those of `work`. The daemon is ending.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ControlThread) -> Result<T, CommandError> + Send + 'static,
    ) -> Result<T, CommandError> {
        let (reply, answer) = bounded(1);
        // The requester may be gone.
        self.send(move |thread| _ = reply.send(work(thread)))?;
        answer.recv().map_err(|_| CommandError::ending())?
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
        let reload = self.shared.reload.get();
        reload.ok_or_else(|| CommandError::failed("the daemon is starting; try again"))?()
    }

    /// State that is read without the control thread.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

fn given_up() -> CommandError {
    CommandError::failed("the take-over was given up; see the log of xvsd")
}
