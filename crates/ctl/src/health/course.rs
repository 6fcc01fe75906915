//! What the answers of one check come to: whether it is up, what it adds to its server's weight, when it asks again.
//!
//! Told of each answer; pure, without a clock. Of a check that was not asked yet the first failure counts at once, later
//! ones when there are enough of them in a row, as passes do. Source: keepalived's behaviour as it is written down
//! (sections 4.2, 4.3 and 4.6). Not here: asking, and what follows for the server (`pool.rs`).

use std::time::Duration;

use super::Answer;
use super::pool::{Standing, Verdict};
use super::report::CheckState;
use crate::keepalived::checks::{Check, Probe, Timing};

/// Where a check stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    timing: Timing,
    urls: Urls,
    verdict: Verdict,
    /// Whether any answer has told something of the server.
    has_run: bool,
    has_failed: bool,
    /// Answers in a row that speak against what it is: failures while it is up, passes while it is down.
    against: u32,
    /// The object that is asked for next.
    url: usize,
    /// Whether only the object is asked for that was not well: the others come when it is.
    is_alone: bool,
}

/// How a check goes through the objects that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Urls {
    /// 1 for all that is not HTTP.
    count: usize,
    /// Whether each that is well counts as a pass, not all of them together.
    each_counts: bool,
    /// From one attempt to the next while it is down.
    interval_when_down: Duration,
}

/// What an answer has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Whether the [pool](super::pool::Pool) has to be told.
    pub is_news: bool,
    /// What the check has come to.
    pub verdict: Verdict,
    /// How long it is until it asks again, before [`jittered`].
    pub delay: Duration,
}

impl Course {
    /// A check that was not asked yet.
    pub fn new(check: &Check, counts_as: Standing) -> Self {
        Self {
            timing: check.timing,
            urls: Urls::of(check),
            verdict: counts_as.into(),
            has_run: false,
            has_failed: false,
            against: 0,
            url: 0,
            is_alone: false,
        }
    }

    /// The same where it stands, as another reading of the file wants it.
    ///
    /// `check` is one of the same [identity](Probe::identity).
    #[must_use]
    pub fn adopt(self, check: &Check) -> Self {
        Self { timing: check.timing, urls: Urls::of(check), ..self }
    }

    /// Takes an answer.
    pub fn take(&mut self, answer: &Answer) -> Change {
        let before = self.verdict;
        let mut is_first_failure = false;
        let delay = match answer {
            Answer::Well(weight_change) => {
                self.pass(*weight_change);
                self.timing.interval
            }
            Answer::Unwell(_) => {
                is_first_failure = !std::mem::replace(&mut self.has_failed, true);
                self.fail()
            }
            Answer::Unasked(_) => self.timing.interval,
        };
        let is_news = self.verdict != before || is_first_failure;
        Change { is_news, verdict: self.verdict, delay }
    }

    /// What it has come to.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Which of its objects is to be asked for now; 0 for all that is not HTTP.
    pub fn url(&self) -> usize {
        self.url
    }

    /// The same as it is shown.
    pub fn state(&self) -> CheckState {
        let Timing { fall, rise, .. } = self.timing;
        match (self.has_run, self.verdict.is_up, self.against) {
            (false, true, _) => CheckState::AssumedUp,
            (false, false, _) => CheckState::AssumedDown,
            (true, true, 0) => CheckState::Up,
            (true, true, failures) => CheckState::Failing { failures, fall },
            (true, false, 0) => CheckState::Down,
            (true, false, successes) => CheckState::Rising { successes, rise },
        }
    }

    fn pass(&mut self, weight_change: i64) {
        self.has_run = true;
        let is_last = self.url + 1 >= self.urls.count;
        let counts = self.urls.each_counts || (is_last && !self.is_alone);
        self.url = if is_last || self.is_alone { 0 } else { self.url + 1 };
        self.is_alone = false;
        if !self.verdict.is_up {
            self.against += u32::from(counts);
            if self.against < self.timing.rise {
                return;
            }
        }
        self.against = 0;
        self.verdict = Verdict { is_up: true, weight_change };
    }

    /// Takes a failure; says how long it is until it asks again.
    fn fail(&mut self) -> Duration {
        let fall = if self.has_run { self.timing.fall } else { 1 };
        self.has_run = true;
        if self.verdict.is_up {
            self.against += 1;
            if self.against < fall {
                return self.timing.retry_interval;
            }
            self.verdict = Verdict { is_up: false, weight_change: 0 };
        }
        self.against = 0;
        self.is_alone = self.urls.count > 1;
        self.urls.interval_when_down
    }
}

impl Urls {
    fn of(check: &Check) -> Self {
        let Timing { interval, retry_interval, .. } = check.timing;
        match &check.probe {
            Probe::Http(_, http) => Self {
                count: http.urls.len(),
                each_counts: http.fast_recovery,
                interval_when_down: interval.max(retry_interval),
            },
            _ => Self { count: 1, each_counts: false, interval_when_down: interval },
        }
    }
}

/// How long a check waits before it asks for the first time. `random` is from 0 to 1.
pub fn first_delay(timing: &Timing, random: f64) -> Duration {
    Duration::from_secs(1) + timing.warmup.mul_f64(random)
}

/// A delay that is up to 5 % shorter or longer, so that checks do not come to ask all at once. `random` is from 0 to 1.
pub fn jittered(delay: Duration, random: f64) -> Duration {
    delay.mul_f64(0.95 + 0.1 * random)
}
