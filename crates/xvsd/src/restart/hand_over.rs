//! The running xvsd's side of a hand-over to a successor (`xvsd --take-over`).
//!
//! Runs on the control thread, which does nothing else meanwhile: changes of the configuration and results of health
//! checks wait until the take-over has succeeded or failed. First the successor prepares, while the workers forward.
//! Then the workers close their sockets, and nothing uses the table. If the successor ends before the last step, or a
//! step takes too long, the workers forward again. If the successor has already taken the table, this process executes
//! xvsd anew, as after a kill, and takes the table back. Not here: the successor's side (`take_over.rs`).

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process;
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use xvs_ctl::control::datapath::Datapath as _;
use xvs_dataplane::conn::TableReader;
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
        let Some(process) = peer.process.clone() else {
            return Err(CommandError::failed(
                "only root and the user of xvsd may take over; `xvs reload` lets xvsd start a successor itself",
            ));
        };
        Ok(Self { number: u32::try_from(peer.pid).unwrap_or(0), process })
    }

    /// Whether this is the same client.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.process, &other.process)
    }
}

/// A step of a process that takes over, and the channel for the result of the step.
pub(crate) type Step = (TakeOverStep, Sender<Result<(), CommandError>>);

/// How far the successor has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The workers forward.
    Preparing,
    /// The workers' sockets have to be opened again if the successor fails.
    Paused,
    /// The connection table is the successor's.
    Taken,
}

/// A hand-over on the control thread.
struct HandOver<'a> {
    thread: &'a mut ControlThread,
    shared: &'a Shared,
    successor: &'a Successor,
    steps: &'a Receiver<Step>,
    stage: Stage,
    /// Listings and the sweeper end connections too. From the pause on they cannot.
    quiet: Option<(MutexGuard<'a, TableReader>, MutexGuard<'a, ()>)>,
}

impl ControlThread {
    /// Hands over to this process, which sends its further steps by `steps`, unless the journal lacks changes, which
    /// `ready` gets. Returns if the hand-over fails.
    pub(crate) fn hand_over(
        &mut self,
        successor: &Successor,
        steps: &Receiver<Step>,
        ready: &Sender<Result<(), CommandError>>,
    ) {
        let complete = self.control.complete_journal();
        let is_complete = complete.is_ok();
        let shared = self.shared.clone();
        // Before the answer: from then on another successor is refused.
        shared.handing_over.begin(successor.number);
        // A successor that no longer waits has given up.
        if ready.send(complete).is_ok() && is_complete {
            HandOver {
                thread: self,
                shared: &shared,
                successor,
                steps,
                stage: Stage::Preparing,
                quiet: None,
            }
            .run();
        }
        shared.handing_over.end();
    }
}

impl HandOver<'_> {
    /// Carries out the steps. If one fails, the process continues, or begins anew without the table.
    fn run(mut self) {
        let Successor { number, process } = self.successor;
        tracing::info!("process {number} prepares to take over; changes wait until then");
        let Err(why) = self.carry_out();
        // From now on another successor waits for this thread.
        self.shared.handing_over.end();
        tracing::warn!("process {number} does not take over: {why}; this process continues");
        match self.stage {
            // It has taken nothing, and its next step is refused.
            Stage::Preparing => {}
            Stage::Paused => {
                // Before anything that the successor may use is touched.
                process.kill();
                self.quiet = None;
                self.thread.resume_workers();
            }
            Stage::Taken => {
                process.kill();
                tracing::warn!("it had the connection table already, so this process begins anew");
                // The successor's programs began a hold when they came into force; this process's begin one now, for
                // the new start.
                let SystemDatapath { workers, steering, .. } = self.thread.control.datapath();
                workers.restore_programs(steering);
                begin_anew();
            }
        }
    }

    /// The steps in their order. Returns why the successor does not take over.
    fn carry_out(&mut self) -> Result<Infallible, String> {
        let Limits { preparation, step } = self.shared.hand_over_limits();
        let until = Instant::now() + preparation;
        // What does not change until the pause needs no time in it.
        self.thread.control.save_numbers();

        let reply = self.next(TakeOverStep::Pause, until)?;
        let is_left = self.pause().map_err(|error| self.refuse(&reply, error.to_string()))?;
        let until = Instant::now() + step;
        let _ = reply.send(Ok(()));
        // Read after the next step, while the successor waits for the kernel.
        self.thread.control.save_numbers();

        let reply = self.next(TakeOverStep::TakeTable, until)?;
        if is_left && !self.thread.control.keeps_numbers() {
            // The successor would begin with the counts of connections from before.
            return Err(self.refuse(&reply, "the numbers of connections cannot be saved".to_owned()));
        }
        self.stage = Stage::Taken;
        let until = Instant::now() + step;
        let _ = reply.send(Ok(()));

        let reply = self.next(TakeOverStep::Done, until)?;
        self.end(&reply)
    }

    /// Waits until the successor sends this step. Returns where the result of the step goes.
    ///
    /// # Errors
    /// Why the successor sends no more steps.
    fn next(
        &self,
        expected: TakeOverStep,
        until: Instant,
    ) -> Result<Sender<Result<(), CommandError>>, String> {
        loop {
            self.shared.handing_over.count_turn();
            match self.steps.recv_timeout(LOOK) {
                Ok((step, reply)) if step == expected => return Ok(reply),
                Ok((step, reply)) => {
                    let why = format!("the step {step:?} does not follow {:?}", self.stage);
                    let _ = reply.send(Err(CommandError::failed(why)));
                }
                Err(RecvTimeoutError::Timeout) if self.successor.process.has_ended() => {
                    return Err("it has ended".to_owned());
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => {
                    return Err("it takes too long".to_owned());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("it has given up".to_owned()),
            }
        }
    }

    /// Refuses a step of the successor, and lets the successor print why and end. Returns the reason.
    fn refuse(&self, reply: &Sender<Result<(), CommandError>>, why: String) -> String {
        let _ = reply.send(Err(CommandError::failed(&why)));
        let _ = self.successor.process.ends_within(END);
        why
    }

    /// Makes the workers close their sockets. Returns whether the connection table is left in order, so that the
    /// successor need not read it.
    ///
    /// # Errors
    /// A worker hangs.
    fn pause(&mut self) -> Result<bool, DaemonError> {
        // While the workers still forward. The successor adds what is counted from now on.
        self.thread.kept_hour.record(self.shared);
        self.thread.kept_hour.write(&self.shared.last_hour);
        self.quiet = Some((lock(self.shared.reader()), lock(&self.shared.sweeping)));
        self.stage = Stage::Paused;
        self.thread.control.datapath().workers.pause()?;
        // The successor has the whole hold until its own programs are in force.
        self.shared.hold.iter().for_each(|hold| hold.beat(self.shared.clock.elapsed()));
        self.thread.control.datapath().daemons.leave_table();
        // Otherwise the successor reads it: clients' connections are counted nowhere else.
        let is_left = !self.thread.control.counts_clients() && self.thread.control.keeps_numbers();
        if is_left {
            self.shared.table().leave(self.shared.now());
        }
        Ok(is_left)
    }

    /// Ends this process: the successor forwards.
    fn end(&mut self, reply: &Sender<Result<(), CommandError>>) -> ! {
        let number = self.successor.number;
        successor::announce_main(number);
        let _ = reply.send(Ok(()));
        // The successor sends what was announced here.
        self.thread.control.datapath().stop_master();
        tracing::info!("process {number} has taken over: ending");
        let is_reload =
            self.shared.handing_over.take_reload().is_some_and(|reload| reload.send(Ok(())).is_ok());
        // For the reply and the log. No destructor runs: it would take from the successor what it has.
        thread::sleep(if is_reload { REPLY } else { LOOK });
        process::exit(0);
    }
}

impl ControlThread {
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
