//! The task that runs one check: it waits, probes, and records the result.
//!
//! One task for each check, on the health runtime. The number of concurrent probes is limited (`engine.rs`); further
//! probes wait for a permit, and their timeout starts when they get it. A changed check is sent to the manager once,
//! until the manager has read it. A check may get a new configuration while it runs: it keeps its state and its phase.
//! A probe that panics counts as not run. When a check can no longer run, or can run again, this is logged. Cost: a
//! timer and a few hundred bytes for each waiting check. `check_state.rs` implements rise and fall,
//! `virtual_server/mod.rs` the status of the real server.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use xvs_model::health_checks::check::Probe;
use xvs_model::report::event::millis_since_1970;
use xvs_model::report::health::{AgentHealth, CheckError, CheckHealth, CheckState};

use crate::check_ref::CheckRef;
use crate::check_state::{CheckStateMachine, first_delay, jittered};
use crate::environment::Environment;
use crate::probes::file;
use crate::probes::file::Files;
use crate::probes::probe_result::ProbeResult;
use crate::view::{CheckResult, CheckView};

/// The data that all checks share.
pub(super) struct Runner<E> {
    pub(super) environment: E,
    /// One permit for each probe that may run at once.
    pub(super) permits: Semaphore,
    /// Checks whose result has changed, for the manager.
    pub(super) changed: UnboundedSender<Arc<CheckRecord>>,
    /// Notified when the view of a check has changed.
    pub(super) view_changed: Notify,
}

/// A running check. When its last copy is dropped, its task ends, with a probe in progress.
#[derive(Clone)]
pub(super) struct RunningCheck {
    pub(super) record: Arc<CheckRecord>,
    _task: Arc<AbortOnDrop>,
}

/// A task that is aborted when this is dropped.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<E: Environment> Runner<E> {
    /// Starts the task of a check. Must be called on the runtime.
    pub(super) fn start(
        self: &Arc<Self>,
        check: CheckRef,
        machine: CheckStateMachine,
        files: &mut Files,
    ) -> RunningCheck {
        let file = match &check.config().probe {
            Probe::File(file) => Some(files.watch(file)),
            _ => None,
        };
        let record = Arc::new(CheckRecord::new(check, machine));
        let task = match file {
            Some(file) => tokio::spawn(self.clone().run_file_check(record.clone(), file)),
            None => tokio::spawn(self.clone().run(record.clone())),
        };
        RunningCheck { record, _task: Arc::new(AbortOnDrop(task)) }
    }

    /// A `FILE_CHECK` has no interval: each change of the file is a result.
    async fn run_file_check(self: Arc<Self>, record: Arc<CheckRecord>, mut file: file::Watch) {
        // As for a probe; the semaphore is never closed.
        drop(self.permits.acquire().await);
        loop {
            record.start_probe();
            let result = file.changed().await;
            self.record(&record, result, None);
        }
    }

    /// Records the result of a probe that started at `began`, and sends the check to the manager if that needs it.
    fn record(&self, record: &Arc<CheckRecord>, result: ProbeResult, began: Option<Instant>) {
        let (before, could_run) = (record.view(), record.row().not_run.is_none());
        let is_sent = record.apply(result, began);
        if record.view() != before {
            self.view_changed.notify_one();
        }
        match (could_run, record.row().cannot_run()) {
            (true, Some(why)) => tracing::warn!("{} {why}", record.check().title()),
            (false, None) => {
                tracing::info!("{}: the check {} can run again", record.check().title(), record.row().probe);
            }
            _ => {}
        }
        if is_sent {
            // The receiver is gone when the daemon stops.
            let _ = self.changed.send(record.clone());
        }
    }

    async fn run(self: Arc<Self>, record: Arc<CheckRecord>) {
        loop {
            record.wait_until_due().await;
            let check = record.check();
            if check.virtual_server.ha_suspend && !self.environment.owns_address_of(&check.virtual_server) {
                record.suspend();
                continue;
            }
            // The semaphore is never closed.
            let Ok(permit) = self.permits.acquire().await else { return };
            let (check, url) = record.start_probe();
            let began = Instant::now();
            let result = self.probe(check, url, began).await;
            drop(permit);
            self.record(&record, result, Some(began));
        }
    }

    /// Runs a probe. A panic in the probe does not end the check.
    ///
    /// A failure that is seen long after the deadline is inconclusive: xvsd was stopped or had no processor time, and
    /// the server may have answered in time.
    async fn probe(&self, check: CheckRef, url: usize, began: Instant) -> ProbeResult {
        let deadline = began + check.config().timing.timeout;
        // Boxed, so that a waiting check takes no memory for it.
        match caught(Box::pin(self.environment.probe(check, url, deadline))).await {
            Ok(ProbeResult::Failed(what)) if Instant::now() > deadline + LATE => {
                ProbeResult::Inconclusive(format!("{what}; but xvsd itself was more than a second late"))
            }
            Ok(result) => result,
            Err(_) => ProbeResult::NotRun("internal error of xvsd; see its log".to_owned()),
        }
    }
}

/// The result of a future, or its panic.
async fn caught<T>(mut future: Pin<Box<impl Future<Output = T>>>) -> thread::Result<T> {
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// The record of a check.
pub(super) struct CheckRecord {
    data: Mutex<RecordData>,
    /// Notified when the next probe is moved to an earlier time.
    rescheduled: Notify,
}

struct RecordData {
    check: CheckRef,
    machine: CheckStateMachine,
    row: CheckHealth,
    /// The time of the next probe.
    due: Instant,
    /// Whether a change was sent to the manager, which has not read it yet.
    is_reported: bool,
}

impl CheckRecord {
    fn new(check: CheckRef, machine: CheckStateMachine) -> Self {
        let timing = &check.config().timing;
        // An edited check of a server that was down skips the warmup: the server is out of service until it passes. So
        // does an agent, because its server takes its whole weight until then.
        let is_agent = matches!(check.config().probe, Probe::Agent(..));
        let skips_warmup = is_agent || !machine.result().is_up && !timing.begins_down;
        let due = Instant::now() + first_delay(timing, if skips_warmup { 0.0 } else { fastrand::f64() });
        let row = CheckHealth {
            probe: check.config().probe.to_string(),
            state: machine.state(),
            since_millis: millis_since_1970(SystemTime::now()),
            agent: None,
            last_error: None,
            not_run: None,
            next_millis: Some(millis_at(due)),
            asked: 0,
            failed: 0,
            took_micros: None,
        };
        let data = RecordData { check, machine, row, due, is_reported: false };
        Self { data: Mutex::new(data), rescheduled: Notify::new() }
    }

    /// A panic in another thread leaves the data consistent, so poisoning is ignored.
    fn data(&self) -> MutexGuard<'_, RecordData> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The row for reports.
    pub(super) fn row(&self) -> CheckHealth {
        self.data().row.clone()
    }

    /// The state with which a later process continues.
    pub(super) fn view(&self) -> CheckView {
        self.data().machine.view()
    }

    /// The check.
    pub(super) fn check(&self) -> CheckRef {
        self.data().check.clone()
    }

    /// The check and its result, for the manager. A later change is sent to the manager again.
    pub(super) fn acknowledge(&self) -> (CheckRef, CheckResult) {
        let mut data = self.data();
        data.is_reported = false;
        (data.check.clone(), data.machine.result())
    }

    /// Continues with a new configuration with the same identity.
    pub(super) fn reconfigure(&self, check: CheckRef) {
        let mut data = self.data();
        let timing = check.config().timing;
        data.machine = data.machine.clone().reconfigure(check.config());
        data.row.probe = check.config().probe.to_string();
        // A shorter interval applies at once. The random part keeps all checks of a file from probing at the same time.
        let latest = Instant::now() + timing.interval;
        if data.row.next_millis.is_some() && latest < data.due {
            data.schedule(Instant::now() + timing.interval.mul_f64(fastrand::f64()));
            self.rescheduled.notify_one();
        }
        data.check = CheckRef { run_lock: data.check.run_lock.clone(), ..check };
    }

    async fn wait_until_due(&self) {
        loop {
            let due = self.data().due;
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.rescheduled.notified() => {}
            }
        }
    }

    /// Skips a probe because of `ha_suspend`, and schedules the next one.
    fn suspend(&self) {
        let mut data = self.data();
        data.row.state = CheckState::Suspended { is_up: data.machine.result().is_up };
        // The check must not run now, so its inability to run is not a fault.
        data.row.not_run = None;
        data.schedule(Instant::now() + SUSPENDED_INTERVAL);
    }

    /// The check and the index of the URL to request. Until the result is applied, no next probe is scheduled.
    fn start_probe(&self) -> (CheckRef, usize) {
        let mut data = self.data();
        data.row.next_millis = None;
        (data.check.clone(), data.machine.url())
    }

    /// Applies the result of a probe that started at `began`. Returns whether the check must be sent to the manager.
    fn apply(&self, result: ProbeResult, began: Option<Instant>) -> bool {
        let now = Instant::now();
        let at_millis = millis_since_1970(SystemTime::now());
        let data = &mut *self.data();
        let was_up = data.machine.result().is_up;
        let change = data.machine.apply(&result);
        let row = &mut data.row;
        row.asked += 1;
        row.not_run = match &result {
            ProbeResult::NotRun(why) => Some(why.clone()),
            _ => None,
        };
        let is_done = !matches!(result, ProbeResult::NotRun(_) | ProbeResult::Inconclusive(_));
        row.took_micros = began.filter(|_| is_done).map(|began| now.duration_since(began).as_micros() as u64);
        row.failed += u64::from(result.is_failure());
        if let ProbeResult::Agent(answer) = &result {
            let weight = change.result.agent;
            row.agent = Some(AgentHealth {
                answer: answer.text.clone(),
                at_millis,
                weight_percent: weight.granted_percent(),
                excessive_percent: weight.excessive_percent(),
                mode: weight.mode,
            });
        }
        if let Some(what) = result.error() {
            row.last_error = Some(CheckError { what, at_millis });
        }
        row.state = data.machine.state();
        if change.result.is_up != was_up {
            row.since_millis = at_millis;
        }
        let from = match data.check.config().probe {
            // The interval of a script is from start to start.
            Probe::Script(..) => began.unwrap_or(now),
            _ => now,
        };
        data.schedule((from + jittered(change.delay, fastrand::f64())).max(now));
        change.must_report && !std::mem::replace(&mut data.is_reported, true)
    }
}

impl RecordData {
    fn schedule(&mut self, due: Instant) {
        self.due = due;
        self.row.next_millis = Some(millis_at(due));
    }
}

/// A time in the future, in milliseconds since 1970.
fn millis_at(due: Instant) -> u64 {
    let left = due.saturating_duration_since(Instant::now());
    millis_since_1970(SystemTime::now()) + left.as_millis() as u64
}

/// Delay after a deadline above which xvsd, not the server, counts as late.
const LATE: Duration = Duration::from_secs(1);
/// Interval of checking for the addresses of a suspended virtual server.
const SUSPENDED_INTERVAL: Duration = Duration::from_secs(1);
