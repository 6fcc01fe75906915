//! One check at work: it waits, asks, counts, and writes down what came of it.
//!
//! A task for each check, on the runtime of health. At most so many ask at once; the others wait for their turn, and
//! their time to answer begins with it. A change is told once, however often it happens before it is heard. What a
//! check is may be replaced while it runs: it keeps its course and its phase. One that panics was not able to ask.
//! Cost: a timer and a few hundred bytes while it waits. Not here: what answers mean for a check (`course.rs`) and for
//! its server (`pool.rs`).

use crate::place::Place;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use xvs_model::check::Probe;
use xvs_model::event::millis_since_1970;
use xvs_model::health::{CheckError, CheckHealth, CheckState};

use crate::answer::Answer;
use crate::course::{Course, first_delay, jittered};
use crate::environment::Environment;
use crate::file;
use crate::file::Files;
use crate::pool::Verdict;

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
    pub(super) fn begin(self: &Arc<Self>, place: Place, course: Course, files: &mut Files) -> Running {
        let file = match &place.check().probe {
            Probe::File(file) => Some(files.watch(file)),
            _ => None,
        };
        let watched = Arc::new(Watched::new(place, course));
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
    fn tell(&self, watched: &Arc<Watched>, answer: Answer, began: Option<Instant>) {
        if watched.take(answer, began) {
            // Nobody hears it when the daemon ends.
            let _ = self.changed.send(watched.clone());
        }
    }

    async fn run(self: Arc<Self>, watched: Arc<Watched>) {
        loop {
            watched.wait().await;
            let place = watched.place();
            if place.virtual_server.ha_suspend && !self.environment.is_here(&place.virtual_server) {
                watched.rest();
                continue;
            }
            // It is never closed.
            let Ok(permit) = self.permits.acquire().await else { return };
            let (place, step) = watched.turn();
            let began = Instant::now();
            let answer = self.clone().ask(place, step, began).await;
            drop(permit);
            self.tell(&watched, answer, Some(began));
        }
    }

    /// Asks in a task of its own, so that a fault of a probe ends no check. What is not well long after the deadline was
    /// not seen in time by a daemon that was stopped, or has no processor: the server may have answered.
    async fn ask(self: Arc<Self>, place: Place, step: usize, began: Instant) -> Answer {
        let deadline = began + place.check().timing.timeout;
        let asking = tokio::spawn(async move { self.environment.ask(place, step, deadline).await });
        let mut asking = Ended(asking);
        let fault = |_| Answer::Unasked("a fault of xvsd; its log tells more".to_owned());
        let answer = (&mut asking.0).await.unwrap_or_else(fault);
        match answer {
            Answer::Unwell(what) if Instant::now() > deadline + LATE => {
                Answer::Unasked(format!("{what}; but xvsd itself was late, by more than a second"))
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
    place: Place,
    course: Course,
    row: CheckHealth,
    /// When it is asked next.
    due: Instant,
    /// Whether a change of it was told and not heard yet.
    told: bool,
}

impl Watched {
    fn new(place: Place, course: Course) -> Self {
        let timing = &place.check().timing;
        // A server that was down before it was edited waits for it.
        let is_waited_for = !course.verdict().is_up && !timing.begins_down;
        let random = if is_waited_for { 0.0 } else { fastrand::f64() };
        let due = Instant::now() + first_delay(timing, random);
        let row = CheckHealth {
            probe: place.check().probe.to_string(),
            state: course.state(),
            since_millis: millis_since_1970(SystemTime::now()),
            last_error: None,
            next_millis: Some(millis_at(due)),
            asked: 0,
            failed: 0,
            took_micros: None,
        };
        Self { known: Mutex::new(Known { place, course, row, due, told: false }), moved: Notify::new() }
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
    pub(super) fn place(&self) -> Place {
        self.known().place.clone()
    }

    /// Where it stands and what its answers have come to. A change after this is told anew.
    pub(super) fn heard(&self) -> (Place, Verdict) {
        let mut known = self.known();
        known.told = false;
        (known.place.clone(), known.course.verdict())
    }

    /// Goes on as another check that asks the same.
    pub(super) fn adopt(&self, place: Place) {
        let mut known = self.known();
        let timing = place.check().timing;
        known.course = known.course.clone().adopt(place.check());
        known.row.probe = place.check().probe.to_string();
        // What is asked for more often now is not waited for as long as before; nor is all of it asked for at once.
        let latest = Instant::now() + timing.interval;
        if known.row.next_millis.is_some() && latest < known.due {
            known.next(Instant::now() + timing.interval.mul_f64(fastrand::f64()));
            self.moved.notify_one();
        }
        known.place = Place { turn: known.place.turn.clone(), ..place };
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
        known.row.state = CheckState::Suspended { is_up: known.course.verdict().is_up };
        known.next(Instant::now() + REST);
    }

    /// Its turn has come.
    fn turn(&self) -> (Place, usize) {
        let mut known = self.known();
        known.row.next_millis = None;
        (known.place.clone(), known.course.url())
    }

    /// Takes the answer to what was asked since `began`; whether there is something to tell that was not told yet.
    fn take(&self, answer: Answer, began: Option<Instant>) -> bool {
        let (now, at_millis) = (Instant::now(), millis_since_1970(SystemTime::now()));
        let mut known = self.known();
        let known = &mut *known;
        let was_up = known.course.verdict().is_up;
        let change = known.course.take(&answer);
        let row = &mut known.row;
        row.asked += 1;
        row.took_micros = began.map(|began| now.duration_since(began).as_micros() as u64);
        row.failed += u64::from(matches!(answer, Answer::Unwell(_)));
        if let Answer::Unwell(what) | Answer::Unasked(what) = answer {
            row.last_error = Some(CheckError { what, at_millis });
        }
        row.state = known.course.state();
        if change.verdict.is_up != was_up {
            row.since_millis = at_millis;
        }
        let from = match known.place.check().probe {
            // A script runs from start to start.
            Probe::Script(..) => began.unwrap_or(now),
            _ => now,
        };
        known.next((from + jittered(change.delay, fastrand::f64())).max(now));
        change.is_news && !std::mem::replace(&mut known.told, true)
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
