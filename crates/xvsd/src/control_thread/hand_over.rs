//! The running xvsd's side of a hand-over to a successor (`xvsd --take-over`).
//!
//! Runs on the control thread, which does nothing else meanwhile: changes of the configuration and results of health
//! checks wait until the take-over has succeeded or failed. First the successor prepares, while the workers forward.
//! Then the workers close their sockets, and nothing uses the table. If the successor ends before the last step, or a
//! step takes too long, the workers forward again. If the successor has already taken the table, this process executes
//! xvsd anew, as after a kill, and takes the table back. Not here: the successor's side (`daemon/take_over.rs`).

use std::os::unix::process::CommandExt;
use std::process;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use xvs_ctl::control::datapath::Datapath as _;
use xvs_helper::process::pass_on;
use xvs_host::process::Process;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::request::TakeOverStep;

use crate::control_thread::ControlThread;
use crate::lock::lock;
use crate::restart::successor;
use crate::rights;
use crate::shared::Shared;
use crate::workers::system::SystemDatapath;

/// How long a successor may prepare, and how long it may take for each later step.
const PREPARATION: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(10);
/// How long the reply to `xvs reload` may take. The successor forwards already.
const REPLY: Duration = Duration::from_millis(200);
/// Interval of looking whether the successor still runs.
const LOOK: Duration = Duration::from_millis(20);

/// A step of a process that takes over, and where its result goes.
pub(crate) type Step = (TakeOverStep, Sender<Result<(), CommandError>>);

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preparing,
    Paused,
    Taken,
}

impl ControlThread {
    /// Hands over to the process with this id, which sends its further steps by `steps`, unless the journal lacks
    /// changes; `ready` gets which. Returns if the hand-over fails.
    pub(crate) fn hand_over(
        &mut self,
        successor: u32,
        steps: &Receiver<Step>,
        ready: &Sender<Result<(), CommandError>>,
    ) {
        let complete = self.control.complete_journal();
        let is_complete = complete.is_ok();
        let _ = ready.send(complete);
        if !is_complete {
            return;
        }
        // Relaxed: it orders nothing.
        self.shared.hands_over.store(true, Ordering::Relaxed);
        self.hand_over_steps(successor, steps);
        self.shared.hands_over.store(false, Ordering::Relaxed);
    }

    fn hand_over_steps(&mut self, successor: u32, steps: &Receiver<Step>) {
        tracing::info!("process {successor} prepares to take over; changes wait until then");
        let shared = self.shared.clone();
        // They have their own reasons to end connections; while these are held, they do not.
        let mut quiet = None;
        let mut stage = Stage::Preparing;
        // Whether the successor need not read the connection table.
        let mut is_left = false;
        let mut until = Instant::now() + PREPARATION;
        let process = Process::open(successor);
        // What does not change until the pause needs no time in it.
        self.control.save_numbers();
        let why = loop {
            match steps.recv_timeout(LOOK) {
                Ok((TakeOverStep::Pause, reply)) if stage == Stage::Preparing => {
                    // While the workers still forward. The successor adds what is counted from now on.
                    shared.record_last_hour();
                    shared.keep_last_hour();
                    quiet = Some((lock(shared.reader()), lock(&shared.sweeping)));
                    self.control.datapath().workers.pause();
                    // The successor has the whole hold until its own programs are in force.
                    self.beat();
                    self.control.datapath().daemons.may_send(false);
                    // Otherwise the successor reads it: clients' connections are counted nowhere else.
                    is_left = !self.control.counts_clients() && self.control.keeps_numbers();
                    if is_left {
                        shared.table().leave(shared.now());
                    }
                    (stage, until) = (Stage::Paused, Instant::now() + STEP);
                    let _ = reply.send(Ok(()));
                    // Read after the next step, while the successor waits for the kernel.
                    self.control.save_numbers();
                }
                Ok((TakeOverStep::TakeTable, reply)) if stage == Stage::Paused => {
                    if is_left && !self.control.keeps_numbers() {
                        // The successor would begin with the counts of connections from before.
                        let why = "the numbers of connections cannot be saved";
                        let _ = reply.send(Err(CommandError::failed(why)));
                        break why;
                    }
                    (stage, until) = (Stage::Taken, Instant::now() + STEP);
                    let _ = reply.send(Ok(()));
                }
                Ok((TakeOverStep::Done, reply)) if stage == Stage::Taken => {
                    let _ = reply.send(Ok(()));
                    // It sends what was announced here.
                    self.control.datapath().stop_master();
                    tracing::info!("process {successor} has taken over: ending");
                    let reload = lock(&shared.taken_over).take();
                    let wait =
                        if reload.is_some_and(|reload| reload.send(Ok(())).is_ok()) { REPLY } else { LOOK };
                    // For the reply and the log. No destructor runs: it would take from the successor what it has.
                    thread::sleep(wait);
                    process::exit(0);
                }
                Ok((step, reply)) => {
                    let why = format!("the step {step:?} does not follow {stage:?}");
                    let _ = reply.send(Err(CommandError::failed(why)));
                }
                Err(RecvTimeoutError::Timeout) if process.as_ref().map_or(true, Process::has_ended) => {
                    break "it has ended";
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => break "it takes too long",
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break "it has given up",
            }
        };
        tracing::warn!("process {successor} does not take over: {why}; this process continues");
        // The successor must take nothing from now on. One that prepares has taken nothing, and its next step is
        // refused. Only a later step proves that the opened process is the successor, not another one with its number.
        if let Ok(process) = process
            && stage != Stage::Preparing
        {
            process.kill();
        }
        if stage == Stage::Taken {
            tracing::warn!("it had the connection table already, so this process begins anew");
            // The successor's programs began a hold when they came into force; this process's begin one now, for the
            // new start.
            let SystemDatapath { workers, steering, .. } = self.control.datapath();
            workers.restore_programs(steering);
            begin_anew();
        }
        drop(quiet);
        if stage == Stage::Paused {
            self.resume_workers();
        }
    }

    fn beat(&self) {
        let Shared { hold, clock, .. } = &*self.shared;
        hold.iter().for_each(|hold| hold.beat(clock.elapsed()));
    }

    /// Lets the workers forward again, with this process's programs on the interfaces.
    fn resume_workers(&mut self) {
        self.control.datapath().daemons.may_send(true);
        let SystemDatapath { workers, steering, .. } = self.control.datapath();
        workers.restore_programs(steering);
        workers.redirect_own_anew(steering);
        match workers.resume() {
            Ok(facts) => self.shared.facts_mut().workers = facts,
            // The control thread tries again every second.
            Err(error) => tracing::error!("{error}"),
        }
    }
}

/// Replaces this process by a fresh one of the same command line, which finds everything as after a kill.
fn begin_anew() -> ! {
    let mut command = successor::command();
    let passed = pass_on(&mut command).and_then(|()| rights::pass_on(&mut command));
    let error = passed.err().unwrap_or_else(|| command.exec());
    tracing::error!("xvsd cannot begin anew: {error}");
    process::exit(1)
}
