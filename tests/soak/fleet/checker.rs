//! What must hold in a history of the suite `fleet`, by the letters of its rules.
//!
//! - `a`: no director serves rules that nobody applied, or whose operator was refused;
//! - `b`: the revision that a director runs never goes back, unless it reports a refusal or a rollback of etcd;
//! - `c`: thirty seconds after the last fault all directors serve the same rules, the newest that are in etcd, and
//!   packets go to all of them;
//! - `d`: a lasting connection is lost only if every director that had its state was away, or the router's hash moved
//!   it to another one, which is counted apart;
//! - `e`: packets go to no director that has been unable to serve for three seconds, and one that can serve does not
//!   withdraw its addresses;
//! - `f`: the counters of each director balance.
//!
//! Pure: one pass over the entries. Times at which the rig itself stalled are added to the limits. Not here: the lines
//! (`history.rs`).

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Director, Entry, Event};

/// After so many seconds without a fault all serve the same rules.
const SETTLED: f64 = 30.0;
/// In so many seconds a director that cannot serve has withdrawn its route.
const WITHDRAWN: f64 = 3.0;
/// In so many seconds a director that can serve again announces its addresses: ten of them for the connections of the
/// others.
const ANNOUNCED: f64 = 20.0;
/// A router, a client and the rig see one event at different times, up to so many seconds apart.
const APART: f64 = 3.0;

/// A rule that a history breaks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Violation {
    pub(crate) rule: char,
    pub(crate) at: f64,
    pub(crate) text: String,
}

/// What a history shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finding {
    pub(crate) violations: Vec<Violation>,
    /// Lost connections that the hash moved, and those whose directors were away.
    pub(crate) moved: usize,
    pub(crate) orphaned: usize,
    /// Calms in which all served the same rules.
    pub(crate) calms: usize,
    /// How often a director could not serve for long enough to withdraw its route.
    pub(crate) withdrawals: usize,
    /// Looks at the counters of a director.
    pub(crate) balances: usize,
}

/// Checks a history, which is in the order of times.
pub(crate) fn check(history: &[Entry]) -> Finding {
    let mut checker = Checker::new(history);
    for entry in history {
        checker.enter(entry.at, &entry.event);
        checker.look(entry.at);
    }
    if let Some(last) = history.last() {
        checker.disturb(last.at);
    }
    checker.finding
}

#[derive(Default)]
struct Checker<'a> {
    finding: Finding,
    /// What the operators know at the end.
    refused: BTreeSet<&'a str>,
    applied: BTreeSet<&'a str>,
    /// The newest rules that are known to be in etcd, and those of which this is not known.
    newest: Option<(u64, &'a str)>,
    undecided: BTreeSet<&'a str>,
    directors: BTreeMap<Director, State>,
    hops: Vec<Director>,
    /// The changes of a port's director, and of each director's ability to serve.
    paths: BTreeMap<u16, Vec<(f64, Director)>>,
    holders: BTreeMap<u16, BTreeMap<Director, f64>>,
    /// The faults that go on, and when the last fault or change was.
    faults: BTreeSet<&'a str>,
    disturbed: f64,
    /// In this calm: whether there was a look, and whether packets went to all directors that can serve.
    is_calm: bool,
    is_complete: bool,
    stalls: Vec<(f64, f64)>,
    hops_changed: Vec<f64>,
    losses: Vec<(u16, f64, f64)>,
}

#[derive(Default)]
struct State {
    highest: u64,
    /// When it became able to serve, or unable.
    able_since: Option<f64>,
    unable_since: Option<f64>,
    announces: bool,
    /// Whether its present state is known to break rule `e`.
    is_accused: bool,
    /// Times in which it could not serve.
    away: Vec<(f64, f64)>,
}

impl<'a> Checker<'a> {
    fn new(history: &'a [Entry]) -> Self {
        let mut this = Self::default();
        let mut written = BTreeSet::new();
        for Entry { event, .. } in history {
            match event {
                Event::Refused(rules) => {
                    this.refused.insert(rules);
                }
                Event::Written(rules, _) => {
                    written.insert(rules.as_str());
                }
                _ => {}
            }
        }
        this.refused.retain(|rules| !written.contains(rules));
        this
    }

    fn enter(&mut self, at: f64, event: &'a Event) {
        match event {
            Event::Begins(fault) => {
                self.faults.insert(fault);
                self.disturb(at);
            }
            Event::Ends(fault) => {
                self.faults.remove(fault.as_str());
                self.disturb(at);
            }
            Event::Applies(rules) => {
                self.applied.insert(rules);
                self.undecided.insert(rules);
                self.disturb(at);
            }
            Event::Written(rules, revision) => {
                self.undecided.remove(rules.as_str());
                if self.newest.is_none_or(|(newest, _)| newest < *revision) {
                    self.newest = Some((*revision, rules));
                }
                self.disturb(at);
            }
            Event::Refused(rules) => {
                self.undecided.remove(rules.as_str());
            }
            Event::Serves(director, rules) => self.serves(at, *director, rules),
            Event::Runs(director, revision, warnings) => self.runs(at, *director, *revision, *warnings),
            Event::Able(director) => {
                let state = self.directors.entry(*director).or_default();
                state.away.extend(state.unable_since.take().map(|since| (since, at)));
                (state.able_since, state.is_accused) = (Some(at), false);
            }
            Event::Unable(director, _) => {
                let state = self.directors.entry(*director).or_default();
                (state.able_since, state.unable_since, state.is_accused) = (None, Some(at), false);
            }
            Event::Announces(director) => self.directors.entry(*director).or_default().announces = true,
            Event::Withdraws(director) => self.directors.entry(*director).or_default().announces = false,
            Event::Hops(directors) => {
                self.hops.clone_from(directors);
                self.hops_changed.push(at);
            }
            Event::Path(port, director) => self.paths.entry(*port).or_default().push((at, *director)),
            Event::Knows(director, ports) => {
                for port in ports {
                    self.holders.entry(*port).or_default().insert(*director, at);
                }
            }
            Event::Forgets(director, ports) => {
                for port in ports {
                    self.holders.entry(*port).or_default().remove(director);
                }
            }
            Event::Lost(port, progress) => self.losses.push((*port, *progress, at)),
            Event::Unaccounted(director, frames) => {
                self.finding.balances += 1;
                if *frames != 0 {
                    self.accuse('f', at, format!("director {director}: {frames} frames are unaccounted for"));
                }
            }
            Event::Stalled(seconds) => self.stalls.push((at, *seconds)),
        }
    }

    fn serves(&mut self, at: f64, director: Director, rules: &'a str) {
        if !self.applied.contains(rules) {
            self.accuse('a', at, format!("director {director} serves {rules}, which nobody applied"));
        } else if self.refused.contains(rules) {
            self.accuse('a', at, format!("director {director} serves {rules}, whose operator was refused"));
        }
        if !self.is_settled(at) {
            return;
        }
        // Of rules of which the operator does not know whether they are in etcd, the first director decides.
        if self.undecided.contains(rules) {
            self.newest = Some((self.newest.map_or(0, |(revision, _)| revision), rules));
        }
        self.undecided.clear();
        match self.newest {
            Some((_, newest)) if newest != rules => {
                let quiet = at - self.disturbed;
                let text = format!("director {director} serves {rules} and not {newest} after {quiet:.0} s");
                self.accuse('c', at, text);
            }
            _ => {}
        }
        if !self.is_calm {
            self.is_calm = true;
            self.finding.calms += 1;
        }
        self.is_complete |= self.able() == self.hops;
    }

    /// The directors that can serve.
    fn able(&self) -> Vec<Director> {
        let able = self.directors.iter().filter(|(_, state)| state.able_since.is_some());
        able.map(|(director, _)| *director).collect()
    }

    fn runs(&mut self, at: f64, director: Director, revision: u64, warnings: usize) {
        let state = self.directors.entry(director).or_default();
        let highest = state.highest;
        state.highest = revision.max(if warnings > 0 { 0 } else { highest });
        if revision < highest && warnings == 0 {
            self.accuse('b', at, format!("director {director} runs revision {revision} after {highest}"));
        }
    }

    /// What follows from the time alone.
    fn look(&mut self, at: f64) {
        let mut accused = Vec::new();
        for (director, state) in &mut self.directors {
            let is_hop = self.hops.contains(director);
            let since = |since: Option<f64>, limit: f64| {
                since.filter(|since| at - since > limit + stalled(&self.stalls, *since, at))
            };
            if state.is_accused {
                continue;
            }
            if let Some(since) = since(state.unable_since, WITHDRAWN) {
                state.is_accused = true;
                self.finding.withdrawals += 1;
                if is_hop {
                    let text = format!(
                        "packets go to director {director}, which has been away for {:.1} s",
                        at - since
                    );
                    accused.push(text);
                }
            }
            if let Some(since) = since(state.able_since, ANNOUNCED)
                && !state.announces
            {
                state.is_accused = true;
                let text = format!(
                    "director {director} has withdrawn its addresses, and can serve for {:.1} s",
                    at - since
                );
                accused.push(text);
            }
        }
        accused.into_iter().for_each(|text| self.accuse('e', at, text));
        // The rig sees the causes of a loss up to some seconds after it.
        let due = self.losses.iter().position(|(_, _, lost)| at - lost > APART);
        if let Some(place) = due {
            let (port, progress, lost) = self.losses.remove(place);
            self.judge(port, progress, lost);
        }
    }

    /// Whether a connection may be lost.
    fn judge(&mut self, port: u16, progress: f64, lost: f64) {
        let (from, to) = (progress - APART, lost + APART);
        let within = |time: f64| time >= from && time <= to;
        let path = self.paths.get(&port).map_or(&[][..], Vec::as_slice);
        // A path that was first seen later may have been another one before.
        let is_new = path.first().is_none_or(|(seen, _)| *seen > from);
        let is_moved = path.windows(2).any(|two| two[0].1 != two[1].1 && within(two[1].0))
            || is_new && self.hops_changed.iter().copied().any(within);
        if is_moved {
            self.finding.moved += 1;
            return;
        }
        let path = path.last().map(|(_, director)| *director);
        let holders = self.holders.get(&port).into_iter().flatten();
        let holders: BTreeSet<_> = holders.map(|(director, _)| *director).chain(path).collect();
        let was_away = |director: &Director| {
            let Some(state) = self.directors.get(director) else { return false };
            state.unable_since.is_some_and(|since| since <= to)
                || state.away.iter().any(|(begin, end)| *begin <= to && *end >= from)
        };
        if !holders.is_empty() && holders.iter().all(was_away) {
            self.finding.orphaned += 1;
            return;
        }
        let text = format!(
            "the connection of port {port} was lost {:.1} s after its last progress; its director {path:?} and the \
             directors that know it, {holders:?}, were not all away",
            lost - progress
        );
        self.accuse('d', lost, text);
    }

    /// A fault or a change begins or ends, and with it a calm. A route may be away for a moment when the machine is
    /// busy, but not all the time.
    fn disturb(&mut self, at: f64) {
        if self.is_calm && !self.is_complete {
            let text = format!("packets go to {:?}, and {:?} can serve", self.hops, self.able());
            self.accuse('c', at, text);
        }
        (self.disturbed, self.is_calm, self.is_complete) = (at, false, false);
    }

    fn is_settled(&self, at: f64) -> bool {
        let limit = SETTLED + stalled(&self.stalls, self.disturbed, at);
        self.faults.is_empty() && self.newest.is_some() && at - self.disturbed > limit
    }

    fn accuse(&mut self, rule: char, at: f64, text: String) {
        self.finding.violations.push(Violation { rule, at, text });
    }
}

/// Seconds between two times in which the rig did not run.
fn stalled(stalls: &[(f64, f64)], from: f64, to: f64) -> f64 {
    let within = stalls.iter().filter(|(at, _)| *at >= from && *at <= to + 1.0);
    // A program that is started waits at several points.
    3.0 * within.map(|(_, seconds)| seconds).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::read;

    /// The letters of the rules that a history breaks.
    fn broken(text: &str) -> String {
        let found = check(&read(text).expect("a history"));
        found.violations.iter().map(|violation| violation.rule).collect()
    }

    const APPLIED: &str = "0 applies a\n1 written a 5\n";

    #[test]
    fn a_director_serves_only_what_was_applied_and_not_refused() {
        assert_eq!(broken(&format!("{APPLIED}2 serves 1 a")), "");
        assert_eq!(broken(&format!("{APPLIED}2 serves 1 b\n3 applies b")), "a");
        assert_eq!(broken(&format!("{APPLIED}2 applies b\n3 serves 1 b\n4 refused b")), "a");
        assert_eq!(broken(&format!("{APPLIED}2 applies b\n3 serves 1 b\n4 written b 6")), "");
    }

    #[test]
    fn a_revision_goes_back_only_with_a_report() {
        assert_eq!(broken("0 runs 1 5 0\n1 runs 2 4 0\n2 runs 1 6 0"), "");
        assert_eq!(broken("0 runs 1 5 0\n1 runs 1 4 0\n2 runs 1 5 0"), "b");
        assert_eq!(broken("0 runs 1 5 0\n1 runs 1 4 1\n2 runs 1 4 0\n3 runs 1 5 0"), "");
    }

    #[test]
    fn all_serve_the_newest_rules_thirty_seconds_after_the_last_fault_and_packets_go_to_all() {
        let start = format!(
            "{APPLIED}1 able 1\n1 able 2\n1 announces 1\n1 announces 2\n1 hops 1 2\n2 begins x\n3 ends x\n"
        );
        assert_eq!(broken(&format!("{start}34 serves 1 a\n34 serves 2 a")), "");
        let newer = format!("{start}4 applies b\n5 written b 6\n");
        assert_eq!(broken(&format!("{newer}34 serves 1 b\n34 serves 2 a")), "");
        assert_eq!(broken(&format!("{newer}36 serves 1 b\n36 serves 2 a")), "c");
        assert_eq!(broken(&format!("{newer}36 stalled 2.0\n36 serves 1 b\n36 serves 2 a")), "");
        assert_eq!(broken(&format!("{newer}6 begins y\n60 serves 2 a")), "");
        // An operator who does not know: either, but all the same.
        let unknown = format!("{start}4 applies b\n");
        assert_eq!(broken(&format!("{unknown}36 serves 1 b\n36 serves 2 b")), "");
        assert_eq!(broken(&format!("{unknown}36 serves 1 a\n36 serves 2 a")), "");
        assert_eq!(broken(&format!("{unknown}36 serves 1 b\n36 serves 2 a")), "c");
        assert_eq!(broken(&format!("{unknown}36 serves 1 a\n36 serves 2 b")), "c");
        assert_eq!(broken(&format!("{start}20 hops 1\n34 serves 1 a\n34 serves 2 a")), "c");
    }

    #[test]
    fn a_connection_is_lost_only_if_all_that_had_it_were_away_or_the_hash_moved_it() {
        let start = "0 able 1\n0 able 2\n0 announces 1\n0 announces 2\n1 path 40000 1\n2 knows 1 40000\n2 knows 2 40000\n";
        let after = |text: &str| check(&read(&format!("{start}{text}\n15 stalled 0.1")).expect("a history"));
        assert_eq!(broken(&format!("{start}9 lost 40000 8.5\n15 stalled 0.1")), "d");
        assert_eq!(broken(&format!("{start}7 unable 1 x\n9 lost 40000 8.5\n9 able 1\n15 stalled 0.1")), "d");
        let found = after("7 unable 1 x\n7 unable 2 x\n8 able 1\n8 able 2\n9 lost 40000 8.5");
        assert_eq!((found.violations.len(), found.moved, found.orphaned), (0, 0, 1));
        let found = after("7 unable 1 x\n7 forgets 2 40000\n9 lost 40000 8.5\n9 able 1");
        assert_eq!((found.violations.len(), found.moved, found.orphaned), (0, 0, 1));
        let found = after("9 lost 40000 8.5\n10 path 40000 2");
        assert_eq!((found.violations.len(), found.moved, found.orphaned), (0, 1, 0));
        assert_eq!(after("3 path 40000 2\n9 lost 40000 8.5").violations.len(), 1, "moved long before");
        assert_eq!(after("9 lost 50000 8.5").violations.len(), 1, "nobody knew it, and nothing moved");
        assert_eq!(after("8 hops 1\n9 lost 50000 8.5").moved, 1);
        assert_eq!(after("8 hops 1\n9 lost 50000 8.5\n9.2 path 50000 1").moved, 1, "seen after the move");
    }

    #[test]
    fn a_director_that_cannot_serve_withdraws_within_three_seconds_and_one_that_serves_does_not() {
        let start = "0 able 1\n0 able 2\n1 announces 1\n1 announces 2\n1 hops 1 2\n";
        let wait = "35 stalled 0.0\n";
        assert_eq!(broken(&format!("{start}5 unable 1 x\n7.9 hops 2\n9 stalled 0.0\n")), "");
        assert_eq!(broken(&format!("{start}5 unable 1 x\n8.1 serves 2 a")), "ae");
        assert_eq!(broken(&format!("{start}5 unable 1 x\n7 able 1\n9 hops 1 2")), "");
        assert_eq!(broken(&format!("{start}5 unable 1 x\n8.1 stalled 0.5\n8.4 hops 2\n")), "");
        assert_eq!(broken(&format!("{start}30 withdraws 1\n")), "e");
        assert_eq!(
            broken(&format!("{start}5 unable 1 x\n7 withdraws 1\n7 hops 2\n30 able 1\n{wait}36 announces 1")),
            ""
        );
        assert_eq!(
            broken(&format!("{start}5 unable 1 x\n7 withdraws 1\n7 hops 2\n10 able 1\n{wait}36 announces 1")),
            "e"
        );
    }

    #[test]
    fn the_counters_of_each_director_balance() {
        assert_eq!(broken("1 unaccounted 1 0\n2 unaccounted 2 0"), "");
        assert_eq!(broken("1 unaccounted 1 0\n2 unaccounted 2 -3"), "f");
    }
}
