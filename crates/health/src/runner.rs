//! One check at work: it waits, asks, counts, and writes down what came of it.
//!
//! A task for each check, on the runtime of health. At most so many ask at once; the others wait for their turn, and
//! their time to answer begins with it. A change is told once, however often it happens before it is heard. What a
//! check is may be replaced while it runs: it keeps its machine and its phase. One that panics was not able to ask.
//! Cost: a timer and a few hundred bytes while it waits. Not here: what answers mean for a check (`check_state.rs`) and for
//! its server (`virtual_server.rs`).

use crate::check_ref::CheckRef;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use xvs_model::check::Probe;
use xvs_model::event::millis_since_1970;
use xvs_model::health::{CheckHealth, CheckState, ErrorSeen};

use crate::check_state::{CheckStateMachine, first_delay, jittered};
use crate::environment::Environment;
use crate::file;
use crate::file::Files;
use crate::probe_result::ProbeResult;
use crate::virtual_server::CheckResult;

/// What all checks share.
pub(super) struct Runner<O> {
    /// Whom they ask.
    pub(super) environment: O,
    /// As many as may ask at once.
    pub(super) permits: Semaphore,
    /// Where changes are told.
    pub(super) changed: UnboundedSender<Arc<Watched>>,
}

/// A check at work; when its last copy is dropped it ends, and what it is asking with it.
#[derive(Clone)]
pub(super) struct Running {
    /// What is known of it.
    pub(super) watched: Arc<Watched>,
    _task: Arc<Ended<()>>,
}

/// A task that ends with this.
struct Ended<T>(JoinHandle<T>);

impl<T> Drop for Ended<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<O: Environment> Runner<O> {
    /// Begins a check; to be called on the runtime.
    pub(super) fn begin(
        self: &Arc<Self>,
        check: CheckRef,
        machine: CheckStateMachine,
        files: &mut Files,
    ) -> Running {
        let file = match &check.config().probe {
            Probe::File(file) => Some(files.watch(file)),
            _ => None,
        };
        let watched = Arc::new(Watched::new(check, machine));
        let (this, known) = (self.clone(), watched.clone());
        let task = match file {
            Some(file) => tokio::spawn(this.follow(known, file)),
            None => tokio::spawn(this.run(known)),
        };
        Running { watched, _task: Arc::new(Ended(task)) }
    }

    /// A file tells by itself.
    async fn follow(self: Arc<Self>, watched: Arc<Watched>, mut file: file::Watch) {
        loop {
            watched.turn();
            let answer = file.changed().await;
            self.tell(&watched, answer, None);
        }
    }

    /// Takes an answer to what was asked since `began`, and tells of it if that is news.
    fn tell(&self, watched: &Arc<Watched>, answer: ProbeResult, began: Option<Instant>) {
        if watched.take(answer, began) {
            // Nobody hears it when the daemon ends.
            let _ = self.changed.send(watched.clone());
        }
    }

    async fn run(self: Arc<Self>, watched: Arc<Watched>) {
        loop {
            watched.wait().await;
            let check = watched.check();
            if check.virtual_server.ha_suspend && !self.environment.owns_address_of(&check.virtual_server) {
                watched.rest();
                continue;
            }
            // It is never closed.
            let Ok(permit) = self.permits.acquire().await else { return };
            let (check, step) = watched.turn();
            let began = Instant::now();
            let answer = self.clone().ask(check, step, began).await;
            drop(permit);
            self.tell(&watched, answer, Some(began));
        }
    }

    /// Asks in a task of its own, so that a fault of a probe ends no check. What is not well long after the deadline was
    /// not seen in time by a daemon that was stopped, or has no processor: the server may have answered.
    async fn ask(self: Arc<Self>, check: CheckRef, step: usize, began: Instant) -> ProbeResult {
        let deadline = began + check.config().timing.timeout;
        let asking = tokio::spawn(async move { self.environment.probe(check, step, deadline).await });
        let mut asking = Ended(asking);
        let fault = |_| ProbeResult::NotRun("a fault of xvsd; its log tells more".to_owned());
        let answer = (&mut asking.0).await.unwrap_or_else(fault);
        match answer {
            ProbeResult::Failed(what) if Instant::now() > deadline + LATE => {
                ProbeResult::NotRun(format!("{what}; but xvsd itself was late, by more than a second"))
            }
            answer => answer,
        }
    }
}

/// What is known of a check.
pub(super) struct Watched {
    known: Mutex<Known>,
    /// Its next asking is at another time than before.
    moved: Notify,
}

struct Known {
    check: CheckRef,
    machine: CheckStateMachine,
    row: CheckHealth,
    /// When it is asked next.
    due: Instant,
    /// Whether a change of it was told and not heard yet.
    told: bool,
}

impl Watched {
    fn new(check: CheckRef, machine: CheckStateMachine) -> Self {
        let timing = &check.config().timing;
        // A server that was down before it was edited waits for it.
        let is_waited_for = !machine.result().is_up && !timing.begins_down;
        let random = if is_waited_for { 0.0 } else { fastrand::f64() };
        let due = Instant::now() + first_delay(timing, random);
        let row = CheckHealth {
            probe: check.config().probe.to_string(),
            state: machine.state(),
            since_millis: millis_since_1970(SystemTime::now()),
            last_error: None,
            next_millis: Some(millis_at(due)),
            asked: 0,
            failed: 0,
            took_micros: None,
        };
        Self { known: Mutex::new(Known { check, machine, row, due, told: false }), moved: Notify::new() }
    }

    /// A panic elsewhere leaves it whole.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As reports show it.
    pub(super) fn row(&self) -> CheckHealth {
        self.known().row.clone()
    }

    /// Where it stands.
    pub(super) fn check(&self) -> CheckRef {
        self.known().check.clone()
    }

    /// Where it stands and what its answers have come to. A change after this is told anew.
    pub(super) fn heard(&self) -> (CheckRef, CheckResult) {
        let mut known = self.known();
        known.told = false;
        (known.check.clone(), known.machine.result())
    }

    /// Goes on as another check that asks the same.
    pub(super) fn adopt(&self, check: CheckRef) {
        let mut known = self.known();
        let timing = check.config().timing;
        known.machine = known.machine.clone().reconfigure(check.config());
        known.row.probe = check.config().probe.to_string();
        // What is asked for more often now is not waited for as long as before; nor is all of it asked for at once.
        let latest = Instant::now() + timing.interval;
        if known.row.next_millis.is_some() && latest < known.due {
            known.next(Instant::now() + timing.interval.mul_f64(fastrand::f64()));
            self.moved.notify_one();
        }
        known.check = CheckRef { run_lock: known.check.run_lock.clone(), ..check };
    }

    /// Until it is to be asked.
    async fn wait(&self) {
        loop {
            let due = self.known().due;
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.moved.notified() => {}
            }
        }
    }

    /// It rests, and looks again soon.
    fn rest(&self) {
        let mut known = self.known();
        known.row.state = CheckState::Suspended { is_up: known.machine.result().is_up };
        known.next(Instant::now() + REST);
    }

    /// Its turn has come.
    fn turn(&self) -> (CheckRef, usize) {
        let mut known = self.known();
        known.row.next_millis = None;
        (known.check.clone(), known.machine.url())
    }

    /// Takes the answer to what was asked since `began`; whether there is something to tell that was not told yet.
    fn take(&self, answer: ProbeResult, began: Option<Instant>) -> bool {
        let (now, at_millis) = (Instant::now(), millis_since_1970(SystemTime::now()));
        let mut known = self.known();
        let known = &mut *known;
        let was_up = known.machine.result().is_up;
        let change = known.machine.apply(&answer);
        let row = &mut known.row;
        row.asked += 1;
        row.took_micros = began.map(|began| now.duration_since(began).as_micros() as u64);
        row.failed += u64::from(matches!(answer, ProbeResult::Failed(_)));
        if let ProbeResult::Failed(what) | ProbeResult::NotRun(what) = answer {
            row.last_error = Some(ErrorSeen { what, at_millis });
        }
        row.state = known.machine.state();
        if change.result.is_up != was_up {
            row.since_millis = at_millis;
        }
        let from = match known.check.config().probe {
            // A script runs from start to start.
            Probe::Script(..) => began.unwrap_or(now),
            _ => now,
        };
        known.next((from + jittered(change.delay, fastrand::f64())).max(now));
        change.must_report && !std::mem::replace(&mut known.told, true)
    }
}

impl Known {
    fn next(&mut self, due: Instant) {
        self.due = due;
        self.row.next_millis = Some(millis_at(due));
    }
}

/// A time to come, in milliseconds since 1970.
fn millis_at(due: Instant) -> u64 {
    let left = due.saturating_duration_since(Instant::now());
    millis_since_1970(SystemTime::now()) + left.as_millis() as u64
}

/// Timers come no later than this where there is a processor for them.
const LATE: Duration = Duration::from_secs(1);
/// How often a check that rests looks whether it is to go on.
const REST: Duration = Duration::from_secs(1);
