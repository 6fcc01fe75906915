//! The choice of the rules to run, from the keys seen in etcd.
//!
//! Pure; the caller passes the time. A version of the rules is identified by its revision (`mod_revision`), a text by
//! its SHA-256: the revision decides whether the text is read, the digest whether the text is applied. `round.rs` reads
//! and applies it.

use std::mem;
use std::time::{Duration, Instant};

use xvs_model::report::fleet::{RefusedRules, RunningRules};

/// After this time refused rules are tried again: a name may be known now, or a table have room.
const RETRY: Duration = Duration::from_secs(60);

/// The two keys of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The rules that stay.
    Rules,
    /// Rules that run until their lease ends, unless they are confirmed.
    Trial,
}

/// The state of etcd at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// The number of the cluster.
    pub(super) cluster: u64,
    /// The revision of the store.
    pub(super) revision: u64,
    /// The revisions of the keys; `None` if there is no such key.
    pub(super) rules: Option<u64>,
    pub(super) trial: Option<u64>,
}

impl Seen {
    /// Whether one of the keys has this revision.
    fn has(self, revision: u64) -> bool {
        [self.rules, self.trial].contains(&Some(revision))
    }
}

/// The next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Keep,
    /// The rules in this key are read, and put in force if their text differs.
    Take(Key),
    /// The trial is over, and only the rules that ran before it can replace it.
    EndTrial,
}

/// A trial that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunningTrial {
    /// The rules of the trial.
    pub(super) rules: RunningRules,
    /// When this director ends it by itself.
    pub(super) until: Instant,
    /// Whether the control thread waits for a confirmation: not if the rules changed nothing.
    pub(super) waits: bool,
}

/// The observations and actions of a director.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// The last answer.
    pub(super) seen: Seen,
    /// The rules that stay.
    pub(super) runs: Option<RunningRules>,
    /// The trial that replaces them for a time.
    pub(super) trial: Option<RunningTrial>,
    /// The rules and the trial in etcd that were refused, and when they are tried again.
    refused: Vec<(RefusedRules, Instant)>,
    /// The trial that timed out on this director before it timed out in etcd.
    pub(super) ended_trial: Option<u64>,
    /// The revisions of etcd before and after it was restored; `None` if it was not restored since the last new rules.
    pub(super) rolled_back: Option<(u64, u64)>,
}

impl Followed {
    /// Enters an answer of etcd. Returns the next step.
    pub(super) fn see(&mut self, seen: Seen, now: Instant) -> Step {
        let before = mem::replace(&mut self.seen, seen);
        if before.revision > 0 && (before.cluster != seen.cluster || seen.revision < before.revision) {
            self.rolled_back = Some((before.revision, seen.revision));
            // The same revisions may now have other texts.
            self.refused.clear();
            self.ended_trial = None;
            self.forget_revisions();
        }
        if self.rolled_back.is_some_and(|(_, after)| seen.rules.is_some_and(|rules| rules > after)) {
            self.rolled_back = None;
        }
        let runs = self.runs.as_ref().map(|rules| rules.revision);
        let running = self.trial.as_ref().map(|trial| trial.rules.revision);
        let has_new_rules =
            seen.rules.is_some_and(|rules| Some(rules) != runs && !self.is_refused(rules, now));
        let has_new_trial =
            seen.trial.is_some_and(|trial| Some(trial) != running && !self.is_refused(trial, now));
        if has_new_rules && (running.is_none() || running != seen.trial) {
            // Before another trial, and before the running trial ends: these may be its rules, confirmed.
            return Step::Take(Key::Rules);
        }
        if self.trial_is_over(now) {
            return Step::EndTrial;
        }
        match running {
            _ if has_new_trial && seen.trial != self.ended_trial => Step::Take(Key::Trial),
            Some(_) if running == seen.trial => Step::Keep,
            Some(_) if seen.rules.is_some() => Step::Take(Key::Rules),
            Some(_) => Step::EndTrial,
            None => Step::Keep,
        }
    }

    /// Whether the rules of a revision were refused, and are not tried again yet.
    fn is_refused(&self, revision: u64, now: Instant) -> bool {
        self.refused.iter().any(|(rules, retry)| now < *retry && rules.revision == revision)
    }

    /// Whether the time of the trial is over on this director. If so, the trial does not run again, even if etcd still
    /// has it.
    pub(super) fn trial_is_over(&mut self, now: Instant) -> bool {
        let over = self.trial.as_ref().filter(|trial| trial.until <= now);
        self.ended_trial = over.map(|trial| trial.rules.revision).or(self.ended_trial);
        over.is_some()
    }

    /// The rules in force: of a trial, if one runs.
    pub(super) fn in_force(&self) -> Option<&RunningRules> {
        self.trial.as_ref().map(|trial| &trial.rules).or(self.runs.as_ref())
    }

    /// Enters rules that stay.
    pub(super) fn takes(&mut self, rules: RunningRules) {
        self.runs = Some(rules);
        self.refused.retain(|(refused, _)| Some(refused.revision) == self.seen.trial);
    }

    /// Enters rules that were refused.
    pub(super) fn refuses(&mut self, revision: u64, why: String, now: Instant) {
        self.refused.retain(|(old, _)| old.revision != revision && self.seen.has(old.revision));
        self.refused.push((RefusedRules { revision, why: why.into() }, now + RETRY));
    }

    /// The newest rules that were refused, unless others have replaced them in etcd.
    pub(super) fn refused(&self) -> Option<&RefusedRules> {
        self.refused
            .iter()
            .map(|(rules, _)| rules)
            .filter(|rules| self.seen.has(rules.revision))
            .max_by_key(|rules| rules.revision)
    }

    fn forget_revisions(&mut self) {
        for rules in self.trial.iter_mut().map(|trial| &mut trial.rules).chain(&mut self.runs) {
            rules.revision = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(revision: u64, rules: Option<u64>, trial: Option<u64>) -> Seen {
        Seen { cluster: 1, revision, rules, trial }
    }

    fn rules(revision: u64) -> RunningRules {
        RunningRules { revision, sha256: revision.to_string() }
    }

    fn running(revision: u64) -> Followed {
        Followed { runs: Some(rules(revision)), ..Followed::default() }
    }

    #[test]
    fn new_rules_are_taken_and_those_that_run_are_kept() {
        let (mut followed, now) = (Followed::default(), Instant::now());
        assert_eq!(followed.see(seen(3, None, None), now), Step::Keep);
        assert_eq!(followed.see(seen(4, Some(4), None), now), Step::Take(Key::Rules));
        followed.takes(rules(4));
        assert_eq!(followed.see(seen(9, Some(4), None), now), Step::Keep);
        assert_eq!(followed.see(seen(10, Some(10), None), now), Step::Take(Key::Rules));
        assert_eq!(followed.see(seen(11, None, None), now), Step::Keep, "rules that are gone stay in force");
        assert_eq!(followed.rolled_back, None);
    }

    #[test]
    fn refused_rules_are_tried_again_after_a_minute_and_others_at_once() {
        let (mut followed, now) = (running(4), Instant::now());
        assert_eq!(followed.see(seen(5, Some(5), None), now), Step::Take(Key::Rules));
        followed.refuses(5, "line 1".to_owned(), now);
        assert_eq!(followed.see(seen(6, Some(5), None), now), Step::Keep);
        assert_eq!(followed.refused().map(|refused| refused.revision), Some(5));
        assert_eq!(followed.see(seen(6, Some(5), None), now + RETRY), Step::Take(Key::Rules));
        assert_eq!(followed.see(seen(7, Some(7), None), now), Step::Take(Key::Rules));
        assert_eq!(followed.refused(), None);
    }

    #[test]
    fn a_trial_runs_over_the_rules_until_it_is_gone_or_its_time_is_over_here() {
        let (mut followed, now) = (running(4), Instant::now());
        let until = now + Duration::from_secs(9);
        assert_eq!(followed.see(seen(5, Some(4), Some(5)), now), Step::Take(Key::Trial));
        followed.trial = Some(RunningTrial { rules: rules(5), until, waits: true });
        assert_eq!(followed.see(seen(6, Some(4), Some(5)), now), Step::Keep);
        assert_eq!(followed.see(seen(7, Some(4), None), now), Step::Take(Key::Rules));
        assert_eq!(followed.see(seen(7, None, None), now), Step::EndTrial);
        // Another trial replaces it.
        assert_eq!(followed.see(seen(8, Some(4), Some(8)), now), Step::Take(Key::Trial));
        assert_eq!(followed.see(seen(8, Some(4), Some(5)), until), Step::EndTrial);
        followed.trial = None;
        assert_eq!(followed.see(seen(8, Some(4), Some(5)), until), Step::Keep, "it does not begin again");
        assert_eq!(followed.see(seen(9, Some(9), None), until), Step::Take(Key::Rules));
    }

    #[test]
    fn a_refused_trial_leaves_the_rules_in_force() {
        let (mut followed, now) = (running(4), Instant::now());
        followed.refuses(5, String::new(), now);
        assert_eq!(followed.see(seen(5, Some(4), Some(5)), now), Step::Keep);
        assert_eq!(followed.see(seen(6, Some(4), None), now), Step::Keep);
        assert_eq!(followed.refused(), None);
    }

    #[test]
    fn a_director_that_comes_back_during_a_trial_takes_the_rules_before_it() {
        let (mut followed, now) = (running(4), Instant::now());
        let both = seen(7, Some(6), Some(7));
        assert_eq!(followed.see(both, now), Step::Take(Key::Rules));
        followed.takes(rules(6));
        assert_eq!(followed.see(both, now), Step::Take(Key::Trial));
    }

    #[test]
    fn rules_are_taken_beside_a_refused_trial_and_a_trial_beside_refused_rules() {
        let (mut followed, now) = (running(4), Instant::now());
        assert_eq!(followed.see(seen(5, Some(4), Some(5)), now), Step::Take(Key::Trial));
        followed.refuses(5, String::new(), now);
        let both = seen(6, Some(6), Some(5));
        assert_eq!(followed.see(both, now), Step::Take(Key::Rules));
        followed.takes(rules(6));
        assert_eq!(followed.see(both, now), Step::Keep, "the trial is not tried again yet");
        assert_eq!(followed.see(both, now + RETRY), Step::Take(Key::Trial));

        let (mut followed, both) = (running(4), seen(7, Some(6), Some(7)));
        followed.see(both, now);
        followed.refuses(6, String::new(), now);
        assert_eq!(followed.see(both, now), Step::Take(Key::Trial));
        followed.refuses(7, String::new(), now);
        assert_eq!(followed.see(both, now), Step::Keep, "neither is tried again yet");
        assert_eq!(followed.refused().map(|refused| refused.revision), Some(7));
    }

    #[test]
    fn a_trial_that_was_confirmed_is_not_taken_back_although_another_has_begun_or_its_time_is_over() {
        let now = Instant::now();
        let trial = || Some(RunningTrial { rules: rules(5), until: now, waits: true });
        for (next, at) in [(Some(8), now - RETRY), (Some(8), now), (None, now)] {
            let mut followed = Followed { trial: trial(), ..running(4) };
            assert_eq!(followed.see(seen(8, Some(7), next), at), Step::Take(Key::Rules));
        }
        let mut followed = Followed { trial: trial(), ..running(4) };
        assert_eq!(followed.see(seen(8, Some(7), Some(5)), now - RETRY), Step::Keep, "not confirmed");
    }

    #[test]
    fn an_etcd_that_was_restored_is_believed_and_its_rules_are_read_again() {
        let now = Instant::now();
        for restored in [seen(20, Some(4), None), Seen { cluster: 2, ..seen(40, Some(4), None) }] {
            let mut followed = running(4);
            followed.see(seen(30, Some(4), None), now);
            followed.refuses(4, String::new(), now);
            assert_eq!(followed.see(restored, now), Step::Take(Key::Rules));
            assert_eq!(followed.rolled_back, Some((30, restored.revision)));
            followed.takes(rules(4));
            assert_eq!(followed.see(restored, now), Step::Keep);
            assert!(followed.rolled_back.is_some());
            let newer = restored.revision + 2;
            followed.see(Seen { revision: newer, rules: Some(newer), ..restored }, now);
            assert_eq!(followed.rolled_back, None, "new rules were written since");
        }
    }
}
