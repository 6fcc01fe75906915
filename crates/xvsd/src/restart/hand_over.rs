//! The running xvsd's side of a hand-over to a successor (`xvsd --take-over`).
//!
//! Runs on the control thread, which does nothing else meanwhile: changes of the configuration and results of health
//! checks wait until the take-over has succeeded or failed. First the successor prepares, while the workers forward.
//! Then the workers close their sockets, and nothing uses the table. If the successor ends before the last step, or a
//! step takes too long, the workers forward again. If the successor has already taken the table, this process executes
//! xvsd anew, as after a kill, and takes the table back. Not here: the successor's side (`restart/take_over.rs`).

use std::os::unix::process::CommandExt;
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use xvs_ctl::control::datapath::Datapath as _;
use xvs_helper::process::pass_on;
use xvs_host::process::{END, Process};
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::request::TakeOverStep;

use crate::control_thread::ControlThread;
use crate::error::DaemonError;
use crate::lock::lock;
use crate::restart::handing_over::Limits;
use crate::restart::successor;
use crate::rights;
use crate::shared::Shared;
use crate::socket::peer::Peer;
use crate::workers::system::SystemDatapath;

/// The time for sending the reply to `xvs reload` before this process ends. The successor forwards already.
const REPLY: Duration = Duration::from_millis(200);
/// Interval of checking whether the successor still runs.
const LOOK: Duration = Duration::from_millis(20);

/// A process that takes over.
#[derive(Clone)]
pub(crate) struct Successor {
    number: u32,
    process: Arc<Process>,
}

impl Successor {
    /// The client of this connection as a successor.
    ///
    /// # Errors
    /// The client may not take over, or has ended.
    pub(crate) fn of(peer: &Peer) -> Result<Self, CommandError> {
        match &peer.process {
            Some(process) => {
                Ok(Self { number: u32::try_from(peer.pid).unwrap_or(0), process: process.clone() })
            }
            None => Err(CommandError::failed(
                "only root and the user of xvsd may take over; `xvs reload` lets xvsd start a successor itself",
            )),
        }
    }

    /// Refuses a step of the successor, and waits until the successor has printed the reason and ended. Returns the
    /// reason.
    fn refuse(&self, reply: &Sender<Result<(), CommandError>>, why: String) -> String {
        let _ = reply.send(Err(CommandError::failed(&why)));
        let _ = self.process.ends_within(END);
        why
    }

    /// Whether both are one process.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.process, &other.process)
    }
}

/// A step of a process that takes over, and the channel for the result of the step.
pub(crate) type Step = (TakeOverStep, Sender<Result<(), CommandError>>);

/// The state of a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preparing,
    Paused,
    Taken,
}

impl ControlThread {
    /// Hands over to this process, which sends its further steps via `steps`. If the journal lacks changes, the hand-over
    /// does not begin, and `ready` receives the error. Returns if the hand-over fails.
    pub(crate) fn hand_over(
        &mut self,
        successor: &Successor,
        steps: &Receiver<Step>,
        ready: &Sender<Result<(), CommandError>>,
    ) {
        let complete = self.control.complete_journal();
        let is_complete = complete.is_ok();
        // Before the answer: from then on another successor is refused.
        self.shared.handing_over.begin(successor.number);
        // A successor that no longer waits has given up.
        if ready.send(complete).is_ok() && is_complete {
            self.hand_over_steps(successor, steps);
        }
        self.shared.handing_over.end();
    }

    fn hand_over_steps(&mut self, successor: &Successor, steps: &Receiver<Step>) {
        let Successor { number, process } = successor;
        tracing::info!("process {number} prepares to take over; changes wait until then");
        let shared = self.shared.clone();
        // The locks of the table's reader and of the sweeper: while they are held, neither removes connections.
        let mut quiet = None;
        let mut stage = Stage::Preparing;
        // Whether the table is in order, so that the successor need not read it.
        let mut is_left = false;
        let Limits { preparation, step } = shared.hand_over_limits();
        let mut until = Instant::now() + preparation;
        // Most numbers do not change until the pause. Saving them now makes the pause shorter.
        self.control.save_numbers();
        let why = loop {
            shared.handing_over.count_turn();
            match steps.recv_timeout(LOOK) {
                Ok((TakeOverStep::Pause, reply)) if stage == Stage::Preparing => {
                    // The workers still forward. The successor adds the packets that are counted from now on.
                    shared.record_last_hour();
                    shared.keep_last_hour();
                    quiet = Some((lock(shared.reader()), lock(&shared.sweeping)));
                    // If the hand-over fails from now on, the workers' sockets are opened again.
                    stage = Stage::Paused;
                    is_left = match self.pause_workers() {
                        Ok(is_left) => is_left,
                        Err(error) => break successor.refuse(&reply, error.to_string()),
                    };
                    until = Instant::now() + step;
                    let _ = reply.send(Ok(()));
                    // The successor reads the numbers after its next step; until then it waits for the kernel.
                    self.control.save_numbers();
                }
                Ok((TakeOverStep::TakeTable, reply)) if stage == Stage::Paused => {
                    if is_left && !self.control.keeps_numbers() {
                        // The successor would begin with outdated counts of connections.
                        break successor
                            .refuse(&reply, "the numbers of connections cannot be saved".to_owned());
                    }
                    (stage, until) = (Stage::Taken, Instant::now() + step);
                    let _ = reply.send(Ok(()));
                }
                Ok((TakeOverStep::Done, reply)) if stage == Stage::Taken => {
                    successor::announce_main(*number);
                    let _ = reply.send(Ok(()));
                    // The master's thread sends the remaining announcements before it ends.
                    self.control.datapath().stop_master();
                    tracing::info!("process {number} has taken over: ending");
                    let reload = lock(&shared.taken_over).take();
                    let has_sent = reload.is_some_and(|reload| reload.send(Ok(())).is_ok());
                    // Time for the reply and the log. No destructor runs: it would release the successor's resources.
                    thread::sleep(if has_sent { REPLY } else { LOOK });
                    process::exit(0);
                }
                Ok((step, reply)) => {
                    let why = format_args!("the step {step:?} does not follow {stage:?}");
                    let _ = reply.send(Err(CommandError::failed(why)));
                }
                Err(RecvTimeoutError::Timeout) if process.has_ended() => break "it has ended".to_owned(),
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => {
                    break "it takes too long".to_owned();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break "it has given up".to_owned(),
            }
        };
        // From now on the first step of another successor is accepted, and waits for this thread.
        shared.handing_over.end();
        tracing::warn!("process {number} does not take over: {why}; this process continues");
        // The successor must take nothing from now on. A successor that prepares has taken nothing, and its next step
        // is refused.
        if stage != Stage::Preparing {
            process.kill();
        }
        if stage == Stage::Taken {
            tracing::warn!("it had the connection table already, so this process begins anew");
            // The hold of the successor's programs began when they came into force. The hold of this process's programs
            // begins now, for the new start.
            let SystemDatapath { workers, steering, .. } = self.control.datapath();
            workers.restore_programs(steering);
            begin_anew();
        }
        drop(quiet);
        if stage == Stage::Paused {
            self.resume_workers();
        }
    }

    /// Makes the workers close their sockets. Returns whether the connection table is in order, so that the successor
    /// need not read it.
    ///
    /// # Errors
    /// A worker hangs.
    fn pause_workers(&mut self) -> Result<bool, DaemonError> {
        self.control.datapath().workers.pause()?;
        // The successor has the whole hold until the programs of the successor are in force.
        self.beat();
        self.control.datapath().daemons.leave_table();
        // With limits for clients the successor reads the table, because each client's connections are counted there
        // alone.
        let is_left = !self.control.counts_clients() && self.control.keeps_numbers();
        if is_left {
            self.shared.table().leave(self.shared.now());
        }
        Ok(is_left)
    }

    fn beat(&self) {
        let Shared { hold, clock, .. } = &*self.shared;
        hold.iter().for_each(|hold| hold.beat(clock.elapsed()));
    }

    /// Lets the workers forward again, with this process's programs on the interfaces.
    fn resume_workers(&mut self) {
        self.control.datapath().daemons.return_to_table();
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

/// Replaces this process by a new one with the same command line, which starts as after a kill.
fn begin_anew() -> ! {
    let mut command = successor::command();
    let error = pass_on(&mut command)
        .and_then(|()| rights::pass_on(&mut command))
        .err()
        .unwrap_or_else(|| command.exec());
    tracing::error!("xvsd cannot begin anew: {error}");
    process::exit(1)
}
