//! The state machine of one check: rise and fall, weight change, and the delay until the next probe.
//!
//! Input: the result of each probe. Pure, without a clock. The first failure of a check that has never run counts at
//! once. Later, `fall` failures in a row take the check down and `rise` passes in a row bring it up. Source:
//! keepalived-behaviour, sections 4.2, 4.3 and 4.6. `virtual_server/mod.rs` computes the status of the real server.

use std::time::Duration;

use xvs_model::health_checks::check::{Check, Probe, Timing};
use xvs_model::report::health::CheckState;

use crate::probes::probe_result::ProbeResult;
use crate::view::{CheckResult, CheckView};
use crate::virtual_server::Status;

/// The state machine of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckStateMachine {
    timing: Timing,
    urls: Urls,
    result: CheckResult,
    /// Whether any probe has passed or failed.
    has_run: bool,
    has_failed: bool,
    /// The number of consecutive probe results that contradict `result`: failures while up, passes while down.
    contrary: u32,
    /// Index of the URL that is requested next.
    url: usize,
    /// Whether `url` failed and is requested alone until it passes.
    repeats_url: bool,
}

/// How a check goes through its URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Urls {
    /// Number of URLs; 1 for every check that is not HTTP.
    count: usize,
    /// Whether each URL that passes counts as a pass (`fast_recovery`); otherwise one round over all URLs does.
    each_counts: bool,
    /// Delay between two probes while the check is down.
    interval_when_down: Duration,
}

/// The changes that one probe result has caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Whether the [virtual server](crate::virtual_server::VirtualServerState) needs the result: the result differs
    /// from the last one, or the check has failed for the first time.
    pub must_report: bool,
    /// The result of the check now.
    pub result: CheckResult,
    /// Delay until the next probe, before [`jittered`].
    pub delay: Duration,
}

impl CheckStateMachine {
    /// A check that has not run; until its first probe it counts as `assumed`.
    pub fn new(check: &Check, assumed: Status) -> Self {
        Self {
            timing: check.timing,
            urls: Urls::of(check),
            result: assumed.into(),
            has_run: false,
            has_failed: false,
            contrary: 0,
            url: 0,
            repeats_url: false,
        }
    }

    /// A check that continues with the state from an earlier process.
    pub fn resume(check: &Check, view: CheckView) -> Self {
        let CheckView { result, has_run, has_failed } = view;
        Self { result, has_run, has_failed, ..Self::new(check, Status::Up) }
    }

    /// The state with which a later process continues.
    pub fn view(&self) -> CheckView {
        let Self { result, has_run, has_failed, .. } = *self;
        CheckView { result, has_run, has_failed }
    }

    /// The state with the timing of a new configuration.
    ///
    /// `check` has the same [identity](Probe::identity) as the former check.
    #[must_use]
    pub fn reconfigure(self, check: &Check) -> Self {
        Self { timing: check.timing, urls: Urls::of(check), ..self }
    }

    /// Applies the result of one probe.
    pub fn apply(&mut self, probed: &ProbeResult) -> Change {
        let before = self.result;
        let mut is_first_failure = false;
        let delay = match probed {
            ProbeResult::Passed(weight_change) => {
                self.pass(*weight_change);
                self.timing.interval
            }
            ProbeResult::Failed(_) => {
                is_first_failure = !std::mem::replace(&mut self.has_failed, true);
                self.fail()
            }
            // The agent takes the check up or down, at once.
            ProbeResult::Agent(answer) => {
                self.has_run = true;
                self.result.is_up = answer.is_up.unwrap_or(self.result.is_up);
                self.result.agent.apply(answer);
                self.timing.interval
            }
            ProbeResult::NotRun(_) | ProbeResult::Inconclusive(_) => self.timing.interval,
        };
        Change { must_report: self.result != before || is_first_failure, result: self.result, delay }
    }

    /// The result of the check now.
    pub fn result(&self) -> CheckResult {
        self.result
    }

    /// Index of the URL that is requested next; 0 for every check except HTTP.
    pub fn url(&self) -> usize {
        self.url
    }

    /// The state for reports.
    pub fn state(&self) -> CheckState {
        let Timing { fall, rise, .. } = self.timing;
        match (self.has_run, self.result.is_up, self.contrary) {
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
        let counts = self.urls.each_counts || (is_last && !self.repeats_url);
        self.url = if is_last || self.repeats_url { 0 } else { self.url + 1 };
        self.repeats_url = false;
        if !self.result.is_up {
            self.contrary += u32::from(counts);
            if self.contrary < self.timing.rise {
                return;
            }
        }
        self.contrary = 0;
        self.result = CheckResult { weight_change, ..Status::Up.into() };
    }

    /// Applies a failure. Returns the delay until the next probe.
    fn fail(&mut self) -> Duration {
        let fall = if self.has_run { self.timing.fall } else { 1 };
        self.has_run = true;
        if self.result.is_up {
            self.contrary += 1;
            if self.contrary < fall {
                return self.timing.retry_interval;
            }
            self.result = Status::Down.into();
        }
        self.contrary = 0;
        self.repeats_url = self.urls.count > 1;
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

/// The delay before the first probe of a check: one second, and a random fraction of `warmup`. `random` is from 0 to 1.
pub fn first_delay(timing: &Timing, random: f64) -> Duration {
    Duration::from_secs(1) + timing.warmup.mul_f64(random)
}

/// The delay, up to 5 % shorter or longer, so that checks do not synchronise. `random` is from 0 to 1.
pub fn jittered(delay: Duration, random: f64) -> Duration {
    delay.mul_f64(0.95 + 0.1 * random)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use xvs_sched::Weight;

    use crate::agent::Answer;
    use crate::check_state::*;
    use crate::tests::configuration;

    /// The check of a virtual server that has one real server with these lines.
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

    fn new_machine(check: &Check) -> CheckStateMachine {
        CheckStateMachine::new(check, Status::at_first(&check.timing))
    }

    /// Each step: probe result (`+` passed, `-` failed, `?` not run), state after it, seconds until the next probe.
    #[track_caller]
    fn assert_steps(machine: &mut CheckStateMachine, steps: &[(char, CheckState, u64)]) {
        for (step, (sign, state, seconds)) in steps.iter().enumerate() {
            let change = machine.apply(&probed(*sign));
            let seen = (machine.state(), change.delay);
            assert_eq!(seen, (*state, Duration::from_secs(*seconds)), "step {step}");
            assert_eq!(change.result, machine.result(), "step {step}");
        }
    }

    fn probed(sign: char) -> ProbeResult {
        match sign {
            '+' => ProbeResult::Passed(0),
            '-' => ProbeResult::Failed("refused".to_owned()),
            _ => ProbeResult::NotRun("no socket".to_owned()),
        }
    }

    use CheckState::{AssumedDown, AssumedUp, Down, Failing, Rising, Up};

    #[test]
    fn the_first_failure_of_a_check_that_has_never_run_takes_it_down_at_once() {
        let mut machine = new_machine(&tcp("retry 5"));
        assert_eq!(machine.state(), AssumedUp);
        assert_steps(&mut machine, &[('-', Down, 10), ('-', Down, 10), ('+', Up, 10)]);
    }

    #[test]
    fn later_failures_take_it_down_after_fall_in_a_row_at_the_retry_interval() {
        let mut machine = new_machine(&tcp("retry 2\ndelay_before_retry 3"));
        let failing = |failures| Failing { failures, fall: 3 };
        assert_steps(
            &mut machine,
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
    fn rise_passes_in_a_row_at_the_interval_bring_it_up() {
        let mut machine = new_machine(&tcp("rise 3\nalpha"));
        assert_eq!(machine.state(), AssumedDown);
        let rising = |successes| Rising { successes, rise: 3 };
        assert_steps(
            &mut machine,
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
    fn a_probe_that_could_not_run_changes_nothing_and_is_repeated_after_the_interval() {
        let mut machine = new_machine(&tcp("retry 2\ndelay_before_retry 3"));
        let failing = Failing { failures: 1, fall: 3 };
        let steps = [('?', AssumedUp, 10), ('+', Up, 10), ('-', failing, 3), ('?', failing, 10)];
        assert_steps(&mut machine, &steps);
        assert!(!machine.apply(&probed('?')).must_report);
    }

    #[test]
    fn urls_are_requested_in_turn_and_one_that_fails_alone_until_it_passes_and_then_all() {
        let mut machine = new_machine(&http("retry 1\ndelay_before_retry 20"));
        let urls = |machine: &mut CheckStateMachine, signs: &str| -> Vec<(usize, bool)> {
            let each = signs.chars().map(|sign| {
                let url = machine.url();
                machine.apply(&probed(sign));
                (url, machine.result().is_up)
            });
            each.collect()
        };
        assert_eq!(urls(&mut machine, "++++"), [(0, true), (1, true), (2, true), (0, true)],);
        assert_eq!(urls(&mut machine, "-+-"), [(1, true), (1, true), (2, true)]);
        assert_eq!(urls(&mut machine, "--"), [(2, false), (2, false)]);
        // While the check is down, the longer of the two intervals applies.
        assert_eq!(machine.apply(&probed('-')).delay, Duration::from_secs(20));
        assert_eq!(urls(&mut machine, "++-"), [(2, false), (0, false), (1, false)]);
        assert_eq!(urls(&mut machine, "++++"), [(1, false), (0, false), (1, false), (2, true)],);

        let mut fast = new_machine(&http("retry 1\nfast_recovery"));
        assert_eq!(urls(&mut fast, "+-+"), [(0, true), (1, true), (1, true)]);
        assert_eq!(urls(&mut fast, "--++"), [(2, true), (2, false), (2, true), (0, true)]);
    }

    #[test]
    fn a_check_with_one_url_is_up_again_after_one_pass() {
        let mut machine = new_machine(&check("HTTP_GET {\nurl {\npath /\n}\n}"));
        assert_steps(&mut machine, &[('-', Down, 10), ('+', Up, 10)]);
    }

    #[test]
    fn a_changed_weight_is_reported_without_a_change_of_state_and_a_check_that_is_down_adds_none() {
        let mut machine = new_machine(&tcp("rise 2"));
        let mut report = |probed| {
            let change = machine.apply(&probed);
            (change.must_report, change.result.is_up, change.result.weight_change)
        };
        let failed = || probed('-');
        assert_eq!(report(ProbeResult::Passed(0)), (false, true, 0));
        assert_eq!(report(ProbeResult::Passed(5)), (true, true, 5));
        assert_eq!(report(ProbeResult::Passed(5)), (false, true, 5));
        assert_eq!(report(failed()), (true, true, 5), "the first failure of this check");
        assert_eq!(report(failed()), (true, false, 0));
        assert_eq!(report(ProbeResult::Passed(5)), (false, false, 0));
        assert_eq!(report(ProbeResult::Passed(6)), (true, true, 6));
        assert_eq!(report(failed()), (false, true, 6));
    }

    #[test]
    fn an_agents_words_hold_at_once_and_until_it_says_otherwise() {
        let file = "retry 5\nrise 5\nalpha\nagent_check\nconnect_port 8001";
        let mut machine = new_machine(&tcp(file));
        assert_eq!(machine.state(), AssumedUp);
        let mut say = |words: &str| {
            let change = machine.apply(&ProbeResult::Agent(Answer::read(words.as_bytes())));
            assert_eq!(change.delay, Duration::from_secs(10));
            (change.must_report, machine.state(), change.result.agent.of(Weight(100)).0)
        };
        assert_eq!(say("ready"), (false, Up, 100));
        assert_eq!(say("50% stopped"), (true, Down, 50));
        assert_eq!(say("50%"), (false, Down, 50));
        assert_eq!(say("drain"), (true, Down, 0));
        assert_eq!(say("up"), (true, Up, 0));
        assert_eq!(say("ready"), (true, Up, 50));
        let change = machine.apply(&probed('?'));
        assert_eq!((change.must_report, machine.state()), (false, Up), "an agent that does not answer");
        let resumed = CheckStateMachine::resume(&tcp(file), machine.view());
        assert_eq!(resumed.result(), machine.result());
    }

    #[test]
    fn the_first_failure_of_a_check_that_starts_down_is_reported() {
        let mut machine = new_machine(&tcp("alpha"));
        assert!(machine.apply(&probed('-')).must_report);
        assert!(!machine.apply(&probed('-')).must_report);
    }

    #[test]
    fn a_kept_check_keeps_its_state_and_uses_the_new_rise_and_fall() {
        let mut machine = new_machine(&tcp("retry 3"));
        assert_steps(&mut machine, &[('+', Up, 10), ('-', Failing { failures: 1, fall: 4 }, 1)]);
        let mut machine = machine.reconfigure(&tcp("retry 1\nalpha"));
        assert_eq!(machine.state(), Failing { failures: 1, fall: 2 });
        assert_steps(&mut machine, &[('-', Down, 10)]);
        let machine = machine.reconfigure(&tcp("rise 2"));
        assert_eq!(machine.state(), Down);
    }

    #[test]
    fn a_failing_file_takes_its_server_down_whatever_the_retries() {
        let text = "track_file T {\nfile /run/t\n}\nvirtual_server 10.0.0.1 80 {\nretry 4\nrise 3\nalpha\n\
                    real_server 10.1.0.1 80 {\nFILE_CHECK {\ntrack_file T\n}\n}\n}\n";
        let read = configuration(text);
        let mut machine = new_machine(&read.virtual_servers[0].real_servers[0].checks[0]);
        for (sign, is_up) in [('+', true), ('-', false), ('+', true), ('-', false)] {
            assert_eq!(machine.apply(&probed(sign)).result.is_up, is_up);
        }
    }

    #[test]
    fn first_probes_are_spread_over_the_warmup_and_later_ones_by_five_percent() {
        let timing = tcp("warmup 60").timing;
        let delays = [0.0, 0.5, 1.0].map(|random| first_delay(&timing, random).as_secs());
        assert_eq!(delays, [1, 31, 61]);
        let delays = [0.0, 0.5, 1.0].map(|random| jittered(Duration::from_secs(100), random).as_secs_f64());
        for (delay, want) in delays.into_iter().zip([95.0, 100.0, 105.0]) {
            assert!((delay - want).abs() < 1e-6, "{delay}");
        }
    }

    proptest! {
        /// The status depends only on the run of equal results at the end.
        #[test]
        fn the_status_depends_on_the_last_results_in_a_row_alone(
            fall in 1..4_u32,
            rise in 1..4_u32,
            begins_down: bool,
            signs in vec(prop::sample::select(vec!['+', '-', '?']), 0..60),
        ) {
            let mut check = tcp("");
            check.timing = Timing { fall, rise, begins_down, ..check.timing };
            let mut machine = new_machine(&check);
            let mut is_up = !begins_down;
            let mut history = Vec::new();
            for sign in signs {
                let change = machine.apply(&probed(sign));
                if sign == '?' {
                    prop_assert_eq!(change.result.is_up, is_up);
                    continue;
                }
                let is_first = history.is_empty();
                history.push(sign);
                let needed = if is_up && is_first { 1 } else if is_up { fall } else { rise };
                let contrary = if is_up { '-' } else { '+' };
                // The result that caused the last change has the other sign, or is not in the run.
                let row = history.iter().rev().take_while(|one| **one == contrary).count();
                if row >= needed as usize {
                    is_up = !is_up;
                }
                prop_assert_eq!(change.result.is_up, is_up);
            }
        }
    }
}
