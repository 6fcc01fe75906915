//! What the answers of one check come to: whether it is up, what it adds to its server's weight, when it asks again.
//!
//! Told of each answer; pure, without a clock. Of a check that was not asked yet the first failure counts at once, later
//! ones when there are enough of them in a row, as passes do. Source: keepalived's behaviour as it is written down
//! (sections 4.2, 4.3 and 4.6). Not here: asking, and what follows for the server (`virtual_server.rs`).

use std::time::Duration;

use xvs_model::check::{Check, Probe, Timing};
use xvs_model::health::CheckState;

use crate::probe_result::ProbeResult;
use crate::virtual_server::{CheckResult, Status};

/// Where a check stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    timing: Timing,
    urls: Urls,
    result: CheckResult,
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
    /// Whether the [virtual server](crate::virtual_server::VirtualServerState) has to be told.
    pub is_news: bool,
    /// What the check has come to.
    pub result: CheckResult,
    /// How long it is until it asks again, before [`jittered`].
    pub delay: Duration,
}

impl Course {
    /// A check that was not asked yet.
    pub fn new(check: &Check, counts_as: Status) -> Self {
        Self {
            timing: check.timing,
            urls: Urls::of(check),
            result: counts_as.into(),
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
    pub fn take(&mut self, answer: &ProbeResult) -> Change {
        let before = self.result;
        let mut is_first_failure = false;
        let delay = match answer {
            ProbeResult::Passed(weight_change) => {
                self.pass(*weight_change);
                self.timing.interval
            }
            ProbeResult::Failed(_) => {
                is_first_failure = !std::mem::replace(&mut self.has_failed, true);
                self.fail()
            }
            ProbeResult::NotRun(_) => self.timing.interval,
        };
        let is_news = self.result != before || is_first_failure;
        Change { is_news, result: self.result, delay }
    }

    /// What it has come to.
    pub fn result(&self) -> CheckResult {
        self.result
    }

    /// Which of its objects is asked for next; 0 for all that is not HTTP.
    pub fn url(&self) -> usize {
        self.url
    }

    /// The same as it is shown.
    pub fn state(&self) -> CheckState {
        let Timing { fall, rise, .. } = self.timing;
        match (self.has_run, self.result.is_up, self.against) {
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
        if !self.result.is_up {
            self.against += u32::from(counts);
            if self.against < self.timing.rise {
                return;
            }
        }
        self.against = 0;
        self.result = CheckResult { is_up: true, weight_change };
    }

    /// Takes a failure; says how long it is until it asks again.
    fn fail(&mut self) -> Duration {
        let fall = if self.has_run { self.timing.fall } else { 1 };
        self.has_run = true;
        if self.result.is_up {
            self.against += 1;
            if self.against < fall {
                return self.timing.retry_interval;
            }
            self.result = CheckResult { is_up: false, weight_change: 0 };
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use crate::course::*;
    use crate::tests::configuration;

    /// The check that these lines say, by the number of its virtual server's only one.
    fn check(lines: &str) -> Check {
        let text = format!(
            "virtual_server 10.0.0.1 80 {{\nprotocol TCP\ndelay_loop 10\nreal_server 10.1.0.1 80 {{\n{lines}\n}}\n}}\n"
        );
        configuration(&text).virtual_servers[0].real_servers[0].checks[0].clone()
    }

    fn tcp(lines: &str) -> Check {
        check(&format!("TCP_CHECK {{\n{lines}\n}}"))
    }

    fn http(lines: &str) -> Check {
        let urls = "url {\npath /a\n}\nurl {\npath /b\n}\nurl {\npath /c\n}";
        check(&format!("HTTP_GET {{\n{urls}\n{lines}\n}}"))
    }

    fn begun(check: &Check) -> Course {
        Course::new(check, Status::at_first(&check.timing))
    }

    /// Each answer (`+` well, `-` not, `?` not asked) with the state after it and the seconds to the next.
    #[track_caller]
    fn assert_goes(course: &mut Course, steps: &[(char, CheckState, u64)]) {
        for (step, (answer, state, seconds)) in steps.iter().enumerate() {
            let change = course.take(&answered(*answer));
            let seen = (course.state(), change.delay);
            assert_eq!(seen, (*state, Duration::from_secs(*seconds)), "step {step}");
            assert_eq!(change.result, course.result(), "step {step}");
        }
    }

    fn answered(answer: char) -> ProbeResult {
        match answer {
            '+' => ProbeResult::Passed(0),
            '-' => ProbeResult::Failed("refused".to_owned()),
            _ => ProbeResult::NotRun("no socket".to_owned()),
        }
    }

    use CheckState::{AssumedDown, AssumedUp, Down, Failing, Rising, Up};

    #[test]
    fn the_first_failure_of_a_check_that_was_never_asked_takes_it_down_at_once() {
        let mut course = begun(&tcp("retry 5"));
        assert_eq!(course.state(), AssumedUp);
        assert_goes(&mut course, &[('-', Down, 10), ('-', Down, 10), ('+', Up, 10)]);
    }

    #[test]
    fn later_failures_count_when_there_are_enough_in_a_row_and_are_counted_at_the_retry_interval() {
        let mut course = begun(&tcp("retry 2\ndelay_before_retry 3"));
        let failing = |failures| Failing { failures, fall: 3 };
        assert_goes(
            &mut course,
            &[
                ('+', Up, 10),
                ('-', failing(1), 3),
                ('-', failing(2), 3),
                ('+', Up, 10),
                ('-', failing(1), 3),
                ('-', failing(2), 3),
                ('-', Down, 10),
                ('-', Down, 10),
                ('+', Up, 10),
            ],
        );
    }

    #[test]
    fn passes_bring_it_up_when_there_are_enough_in_a_row_at_the_interval() {
        let mut course = begun(&tcp("rise 3\nalpha"));
        assert_eq!(course.state(), AssumedDown);
        let rising = |successes| Rising { successes, rise: 3 };
        assert_goes(
            &mut course,
            &[
                ('+', rising(1), 10),
                ('+', rising(2), 10),
                ('-', Down, 10),
                ('+', rising(1), 10),
                ('+', rising(2), 10),
                ('+', Up, 10),
            ],
        );
    }

    #[test]
    fn what_could_not_be_asked_changes_nothing_and_is_asked_again_after_the_interval() {
        let mut course = begun(&tcp("retry 2\ndelay_before_retry 3"));
        let failing = Failing { failures: 1, fall: 3 };
        let steps = [('?', AssumedUp, 10), ('+', Up, 10), ('-', failing, 3), ('?', failing, 10)];
        assert_goes(&mut course, &steps);
        assert!(!course.take(&answered('?')).is_news);
    }

    #[test]
    fn objects_are_asked_for_in_turn_and_one_that_fails_alone_until_it_is_well_and_all_after_it() {
        let mut course = begun(&http("retry 1\ndelay_before_retry 20"));
        let urls = |course: &mut Course, answers: &str| -> Vec<(usize, bool)> {
            let each = answers.chars().map(|answer| {
                let url = course.url();
                course.take(&answered(answer));
                (url, course.result().is_up)
            });
            each.collect()
        };
        assert_eq!(urls(&mut course, "++++"), [(0, true), (1, true), (2, true), (0, true)],);
        assert_eq!(urls(&mut course, "-+-"), [(1, true), (1, true), (2, true)]);
        assert_eq!(urls(&mut course, "--"), [(2, false), (2, false)]);
        // Down, it is asked for as seldom as the longer of the two intervals says.
        assert_eq!(course.take(&answered('-')).delay, Duration::from_secs(20));
        assert_eq!(urls(&mut course, "++-"), [(2, false), (0, false), (1, false)]);
        assert_eq!(urls(&mut course, "++++"), [(1, false), (0, false), (1, false), (2, true)],);

        let mut fast = begun(&http("retry 1\nfast_recovery"));
        assert_eq!(urls(&mut fast, "+-+"), [(0, true), (1, true), (1, true)]);
        assert_eq!(urls(&mut fast, "--++"), [(2, true), (2, false), (2, true), (0, true)]);
    }

    #[test]
    fn one_object_is_enough_to_be_up_again_if_there_is_only_one() {
        let mut course = begun(&check("HTTP_GET {\nurl {\npath /\n}\n}"));
        assert_goes(&mut course, &[('-', Down, 10), ('+', Up, 10)]);
    }

    #[test]
    fn another_weight_is_news_without_a_change_of_state_and_one_that_fails_adds_none() {
        let mut course = begun(&tcp("rise 2"));
        let mut told = |answer| {
            let change = course.take(&answer);
            (change.is_news, change.result.is_up, change.result.weight_change)
        };
        let unwell = || answered('-');
        assert_eq!(told(ProbeResult::Passed(0)), (false, true, 0));
        assert_eq!(told(ProbeResult::Passed(5)), (true, true, 5));
        assert_eq!(told(ProbeResult::Passed(5)), (false, true, 5));
        assert_eq!(told(unwell()), (true, true, 5), "the first failure ever");
        assert_eq!(told(unwell()), (true, false, 0));
        assert_eq!(told(ProbeResult::Passed(5)), (false, false, 0));
        assert_eq!(told(ProbeResult::Passed(6)), (true, true, 6));
        assert_eq!(told(unwell()), (false, true, 6));
    }

    #[test]
    fn the_first_failure_of_a_check_that_begins_down_is_news() {
        let mut course = begun(&tcp("alpha"));
        assert!(course.take(&answered('-')).is_news);
        assert!(!course.take(&answered('-')).is_news);
    }

    #[test]
    fn a_check_that_is_kept_stays_where_it_is_and_counts_as_the_new_file_says() {
        let mut course = begun(&tcp("retry 3"));
        assert_goes(&mut course, &[('+', Up, 10), ('-', Failing { failures: 1, fall: 4 }, 1)]);
        let mut course = course.adopt(&tcp("retry 1\nalpha"));
        assert_eq!(course.state(), Failing { failures: 1, fall: 2 });
        assert_goes(&mut course, &[('-', Down, 10)]);
        let course = course.adopt(&tcp("rise 2"));
        assert_eq!(course.state(), Down);
    }

    #[test]
    fn a_file_that_says_no_takes_its_server_down_whatever_the_retries() {
        let text = "track_file T {\nfile /run/t\n}\nvirtual_server 10.0.0.1 80 {\nretry 4\nrise 3\nalpha\n\
                    real_server 10.1.0.1 80 {\nFILE_CHECK {\ntrack_file T\n}\n}\n}\n";
        let read = configuration(text);
        let mut course = begun(&read.virtual_servers[0].real_servers[0].checks[0]);
        for (answer, is_up) in [('+', true), ('-', false), ('+', true), ('-', false)] {
            assert_eq!(course.take(&answered(answer)).result.is_up, is_up);
        }
    }

    #[test]
    fn first_askings_are_spread_over_the_warmup_and_later_ones_by_a_twentieth() {
        let timing = tcp("warmup 60").timing;
        let delays = [0.0, 0.5, 1.0].map(|random| first_delay(&timing, random).as_secs());
        assert_eq!(delays, [1, 31, 61]);
        let delays = [0.0, 0.5, 1.0].map(|random| jittered(Duration::from_secs(100), random).as_secs_f64());
        for (delay, want) in delays.into_iter().zip([95.0, 100.0, 105.0]) {
            assert!((delay - want).abs() < 1e-6, "{delay}");
        }
    }

    proptest! {
        /// By the answers since it was last another, and those alone.
        #[test]
        fn it_is_up_by_the_answers_at_the_end_of_what_it_was_told(
            fall in 1..4_u32,
            rise in 1..4_u32,
            begins_down: bool,
            answers in vec(prop::sample::select(vec!['+', '-', '?']), 0..60),
        ) {
            let mut check = tcp("");
            check.timing = Timing { fall, rise, begins_down, ..check.timing };
            let mut course = begun(&check);
            let mut is_up = !begins_down;
            let mut told = Vec::new();
            for answer in answers {
                let change = course.take(&answered(answer));
                if answer == '?' {
                    prop_assert_eq!(change.result.is_up, is_up);
                    continue;
                }
                let is_first = told.is_empty();
                told.push(answer);
                let needed = if is_up && is_first { 1 } else if is_up { fall } else { rise };
                let contrary = if is_up { '-' } else { '+' };
                // An answer that changed it before was of the other kind, or is not in the row.
                let row = told.iter().rev().take_while(|one| **one == contrary).count();
                if row >= needed as usize {
                    is_up = !is_up;
                }
                prop_assert_eq!(change.result.is_up, is_up);
            }
        }
    }
}
