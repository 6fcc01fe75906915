//! The explanation of one choice: the scheduler's rule and the figures that it compares.
//!
//! Built for `xvs explain` by the functions that make the choice; never while packets are forwarded. [`Candidates`]
//! contains the data that every choice reads: weights, loads, thresholds.

use serde::{Deserialize, Serialize};

use crate::ratio::Share;
use crate::scheduler::candidates::{Candidates, Load};
use crate::scheduler::flags::Flags;

/// The explanation of one choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// The scheduler's name as operators type it.
    pub scheduler: &'static str,
    /// The rule of the choice among the usable candidates, with the current values.
    pub rule: String,
    /// Whether the same request always gives the same choice.
    pub certainty: Certainty,
    /// The figures of each candidate, in order.
    pub candidates: Vec<Vec<Figure>>,
}

/// Whether a choice depends on chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// The choice depends only on known values.
    Determined,
    /// The choice depends on random numbers.
    Chance,
}

/// A value that a scheduler compares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Figure {
    /// The name of the figure.
    pub name: String,
    /// The value of the figure; a fraction that is compared exactly is rounded here.
    pub value: f64,
}

impl Figure {
    pub(crate) fn new(name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), value }
    }

    /// A number of something.
    pub(crate) fn count(name: &str, count: usize) -> Self {
        Self::new(name, count as f64)
    }
}

impl Account {
    /// The explanation of a choice among several candidates without random numbers; it has no figures yet.
    pub(crate) fn new(scheduler: &'static str, rule: impl Into<String>, candidates: usize) -> Self {
        let figures = vec![Vec::new(); candidates];
        Self { scheduler, rule: rule.into(), certainty: Certainty::Determined, candidates: figures }
    }

    /// Adds a figure of one candidate.
    #[must_use]
    pub(crate) fn with(mut self, position: usize, figure: Figure) -> Self {
        if let Some(figures) = self.candidates.get_mut(position) {
            figures.push(figure);
        }
        self
    }

    /// The explanation of a choice by a table of slots or buckets. `tried` lists the slots that are tried, in order,
    /// until one has a usable destination, each with that destination's position.
    pub(crate) fn of_places(
        scheduler: &'static str,
        rule: &str,
        place: &str,
        flags: Flags,
        tried: impl Iterator<Item = (usize, usize)>,
        candidates: &dyn Candidates,
    ) -> Self {
        let mut account = Self::new(scheduler, rule, candidates.len());
        for (number, position) in tried {
            // If several slots of a candidate are tried, only the first is shown.
            if !account.candidates[position].iter().any(|figure| figure.name == place) {
                account = account.with(position, Figure::count(place, number));
            }
            if candidates.usable(position) {
                break;
            }
        }
        let fallback = if flags.contains(Flags::FALLBACK) { "others are tried" } else { "no other is tried" };
        account.rule += &format!("; if it is not usable, {fallback}");
        account
    }

    /// Adds the figures that [`least`](crate::ratio::least) compares: the overhead, under this name, and the ratio.
    #[must_use]
    pub(crate) fn with_shares(
        self,
        name: &str,
        candidates: &dyn Candidates,
        overhead: impl Fn(Load) -> i64,
    ) -> Self {
        (0..candidates.len()).fold(self, |account, position| {
            let share = Share::of(position, candidates, &overhead);
            account
                .with(position, Figure::new(name, share.overhead as f64))
                .with(position, Figure::new("ratio", share.ratio()))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheduler::testing::{List, built, from};
    use crate::scheduler::{State, names};

    /// The destination that the figures indicate, according to the text of the rule.
    fn read(account: &Account, list: &List) -> Option<usize> {
        let figure = |position: usize, name: &str| {
            account.candidates[position].iter().find(|figure| figure.name == name).map(|figure| figure.value)
        };
        let usable: Vec<_> = (0..list.len()).filter(|position| list.usable(*position)).collect();
        let lowest = |name: &str| {
            let all = usable.iter().filter_map(|&position| Some((position, figure(position, name)?)));
            all.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(position, _)| position)
        };
        let heaviest = |positions: Vec<usize>| positions.into_iter().rev().max_by_key(|at| list.weight(*at));
        match account.scheduler {
            "rr" => lowest("turn"),
            "lc" => lowest("overhead"),
            "wlc" | "sed" | "lblc" | "lblcr" => lowest("ratio"),
            "nq" => lowest("idle").or_else(|| lowest("ratio")),
            "fo" => heaviest(usable),
            "ovf" => heaviest(usable.into_iter().filter(|at| figure(*at, "room") > Some(0.0)).collect()),
            "dh" => lowest("bucket"),
            // The usable one among the buckets that were tried.
            "sh" => lowest("bucket"),
            "mh" => lowest("slot"),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn figures_and_rule_name_the_chosen_destination(
            all in prop::collection::vec((0u32..4, 0u32..5, 0u32..5, prop::bool::weighted(0.2)), 0..6),
            state in 0u64..6,
            flags in 0u8..4,
            last in any::<u8>(),
        ) {
            let weights: Vec<_> = all.iter().map(|(weight, ..)| *weight).collect();
            let loads: Vec<_> = all.iter().map(|(_, active, inactive, _)| (*active, *inactive)).collect();
            let list = List::weights(&weights).loads(&loads);
            let full = (0..all.len()).filter(|at| all[*at].3);
            let list = full.fold(list, List::overloaded);
            for name in names().filter(|name| !["wrr", "twos", "none"].contains(name)) {
                let scheduler = built(name, &weights, Flags(flags));
                let request = from(&format!("192.0.2.{last}:1024"));
                let account = scheduler.account(State(state), &request, &list);
                prop_assert_eq!(account.scheduler, name);
                prop_assert_eq!(account.candidates.len(), list.len());
                let choice = scheduler.pick(State(state), &request, &list);
                prop_assert_eq!(read(&account, &list), choice.position, "{:?}", account);
            }
        }
    }

    #[test]
    fn the_rule_of_wrr_has_its_threshold_and_chance_is_marked() {
        let account = |name: &str, state| {
            built(name, &[3, 1], Flags(0)).account(
                State(state),
                &from("192.0.2.1:9"),
                &List::weights(&[3, 1]),
            )
        };
        assert!(
            account("wrr", 0).rule.contains("threshold, 3 now; the threshold falls"),
            "{}",
            account("wrr", 0).rule
        );
        let next = account("wrr", 3 << 32 | 1).rule;
        assert!(next.contains("2 now; the round before is over"), "{next}");
        assert_eq!(account("wrr", 3 << 32 | 1).candidates[1], [Figure::count("turn", 1)]);
        assert_eq!(account("twos", 0).certainty, Certainty::Chance);
        assert!(account("none", 0).rule.starts_with("no destination"));
    }
}
