//! Handles on the daemon, which send requests and other work to the control thread.
//!
//! A request waits for its reply. All work enters one queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::state_of;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::{self, ControlQuestion, ControlRequest, Reply};
use xvs_model::protocol::request::TakeOverStep;
use xvs_model::report::event::Requester;
use xvs_sched::ServiceKey;

use crate::control_thread::{ControlThread, Input};
use crate::restart::hand_over::{Step, Successor};
use crate::shared::Shared;

/// How long `xvs status` waits for the control thread.
const RULES_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a successor waits for the control thread, which may have to carry out a large change first.
const STEP_TIMEOUT: Duration = Duration::from_secs(50);

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

    /// Like [`Self::request`], for a client; events about a change name it.
    ///
    /// # Errors
    ///
    /// Same as [`Self::request`].
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

    /// Sends a question to the control thread.
    ///
    /// # Errors
    ///
    /// Same as [`Self::request`].
    pub fn ask<T>(&self, question: ControlQuestion<T>) -> Result<T, CommandError> {
        question.put(|request| self.request(request))
    }

    /// Carries out a step of a successor. `begun` holds the latest one that has begun, and the channel for its steps.
    ///
    /// # Errors
    /// Another process takes over, the step is out of order, this process is not taking over, or the control thread
    /// does not answer.
    pub(crate) fn take_over(
        &self,
        begun: &mut Option<(Successor, Sender<Step>)>,
        step: TakeOverStep,
        successor: Successor,
    ) -> Result<(), CommandError> {
        if step == TakeOverStep::Begin {
            if let Some(number) = self.shared.handing_over.successor() {
                return Err(CommandError::failed(format_args!(
                    "process {number} is taking over; wait until it forwards or has failed, or end it (`kill {number}`)"
                )));
            }
            let (steps, receiver) = bounded(1);
            *begun = Some((successor.clone(), steps));
            let (ready, is_ready) = bounded(1);
            self.send(move |thread| thread.hand_over(&successor, &receiver, &ready))?;
            return answer_to_successor(&is_ready, CommandError::ending);
        }
        let (_, steps) = begun.as_ref().filter(|(begun, _)| begun.is(&successor)).ok_or_else(given_up)?;
        let (reply, done) = bounded(1);
        steps.send((step, reply)).map_err(|_| given_up())?;
        answer_to_successor(&done, given_up)
    }

    /// Runs this on the control thread, and waits for what it returns.
    ///
    /// # Errors
    /// The errors of `work`. The daemon is ending.
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

    /// Sends a request to the control thread, and waits for the reply until this time; `None` if it did not arrive.
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

    /// State that is read without the control thread.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// The control thread's answer to a step of a successor, or the error of one that has dropped the channel.
fn answer_to_successor(
    answer: &Receiver<Result<(), CommandError>>,
    dropped: fn() -> CommandError,
) -> Result<(), CommandError> {
    match answer.recv_timeout(STEP_TIMEOUT) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Disconnected) => Err(dropped()),
        Err(RecvTimeoutError::Timeout) => Err(CommandError::failed(
            "its control thread is busy or hangs; `xvs healthy` names what makes no progress, then try again",
        )),
    }
}

fn given_up() -> CommandError {
    CommandError::failed("the take-over was given up; see the log of xvsd")
}
