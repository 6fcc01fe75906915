//! Weighted round-robin scheduling (`wrr`).
//!
//! Runs once for each new connection. Goes through the list in rounds. Each round has a threshold; the next round's is
//! lower by the greatest common divisor of the weights. A round takes the destinations whose weight reaches its
//! threshold. The state contains the position of the last choice plus one (low half; 0 before the first) and the
//! threshold (high half; 0 means the highest). Cost: one step for each destination that is skipped; once in a round two
//! passes over the destinations, at most four whatever their weights, because rounds whose threshold no usable
//! destination reaches are skipped.

use crate::account::{Account, Figure};
use crate::destination::Weight;
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Change, Choice, Kind, Request, Scheduler, Setup, State};

pub(crate) const KIND: Kind = Kind { carry, ..Kind::new("wrr", |setup| Box::new(Wrr::new(weights(setup)))) };

fn weights(setup: &Setup<'_>) -> impl Iterator<Item = Weight> {
    setup.destinations.iter().map(|destination| destination.weight)
}

struct Wrr {
    /// The decrement of the threshold: the greatest common divisor of the weights above 0, or 1 if there is none.
    step: u32,
    /// The highest threshold: the greatest weight, less the remainder that the step leaves above 1.
    highest: u32,
}

impl Wrr {
    fn new(weights: impl Iterator<Item = Weight>) -> Self {
        let (step, greatest) =
            weights.fold((0, 0), |(divisor, most), weight| (gcd(divisor, weight.0), weight.0.max(most)));
        let step = step.max(1);
        Self { step, highest: greatest.saturating_sub(step - 1) }
    }

    /// The threshold of the next round. Rounds whose threshold no usable destination reaches are skipped.
    fn lowered(&self, threshold: u32, reachable: u32) -> u32 {
        let next = threshold.checked_sub(self.step).filter(|lower| *lower > 0).unwrap_or(self.highest);
        let unreached = next.saturating_sub(reachable).div_ceil(self.step) * self.step;
        next.saturating_sub(unreached).max(1)
    }

    fn unpack(&self, state: State) -> (usize, u32) {
        let threshold = (state.0 >> 32) as u32;
        (state.0 as u32 as usize, if threshold == 0 { self.highest } else { threshold })
    }
}

fn pack(place: usize, threshold: u32) -> State {
    State(u64::from(threshold) << 32 | place as u64)
}

pub(crate) fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Scheduler for Wrr {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        let len = candidates.len();
        let (place, mut threshold) = self.unpack(state);
        if let Some(position) = find(place.min(len), threshold, candidates) {
            return Choice { position: Some(position), state: pack(position + 1, threshold) };
        }
        let usable = (0..len).filter(|position| candidates.usable(*position));
        let Some(reachable) = usable.map(|position| candidates.weight(position).0).max() else {
            return Choice { position: None, state };
        };
        // One whole round at each of at most two thresholds: the next one that a destination reaches, and after the
        // lowest the highest again. The number is bounded because loads may change in the meantime.
        for _ in 0..2 {
            threshold = self.lowered(threshold, reachable);
            if let Some(position) = find(0, threshold, candidates) {
                return Choice { position: Some(position), state: pack(position + 1, threshold) };
            }
        }
        Choice { position: None, state }
    }

    fn account(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Account {
        let len = candidates.len();
        let (place, before) = self.unpack(state);
        let (_, now) = self.unpack(self.pick(state, request, candidates).state);
        let round = if now == before { "" } else { "; the round before is over" };
        let rule = format!(
            "in turn, if its weight reaches the threshold, {now} now{round}; the threshold falls from {} in steps of {}",
            self.highest, self.step
        );
        (0..len).fold(Account::new(KIND.name, rule, len), |account, turn| {
            account.with((place.min(len) + turn) % len, Figure::count("turn", turn + 1))
        })
    }
}

/// The first usable destination at or after a position whose weight reaches the threshold.
fn find(from: usize, threshold: u32, candidates: &dyn Candidates) -> Option<usize> {
    (from..candidates.len())
        .find(|position| candidates.weight(*position).0 >= threshold && candidates.usable(*position))
}

/// Resets the position to the front; keeps the threshold if it is still valid. Destinations that are added one by one
/// therefore leave it at the value of the first.
fn carry(state: State, _: Change, weights: &mut dyn Iterator<Item = Weight>) -> State {
    let Wrr { step, highest } = Wrr::new(weights);
    let threshold = match (state.0 >> 32) as u32 {
        above if above == 0 || above > highest => highest,
        kept if step > 1 => kept / step * step + 1,
        kept => kept,
    };
    pack(0, threshold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice, picks};

    fn of(weights: &[u32]) -> Wrr {
        Wrr::new(weights.iter().map(|weight| Weight(*weight)))
    }

    fn carried(state: State, weights: &[u32]) -> State {
        carry(state, Change::Edited, &mut weights.iter().map(|weight| Weight(*weight)))
    }

    fn turns(weights: &[u32], count: usize) -> String {
        let wrr = of(weights);
        let names = ['A', 'B', 'C'];
        picks(&wrr, &List::weights(weights), count).iter().map(|position| names[*position]).collect()
    }

    #[test]
    fn turns_follow_the_weights_in_the_order_of_ipvs() {
        assert_eq!(turns(&[4, 3, 2], 18), "AABABCABCAABABCABC");
        assert_eq!(turns(&[6, 4, 2], 12), "AABABCAABABC");
        assert_eq!(turns(&[1, 2, 3], 12), "CBCABCCBCABC");
    }

    #[test]
    fn a_list_without_a_usable_destination_gives_none_and_ends() {
        assert_eq!(turns(&[0, 0], 0), "");
        let wrr = of(&[0, 0]);
        assert_eq!(choice(&wrr, State(0), &List::weights(&[0, 0])).position, None);
        let wrr = of(&[3, 2]);
        let all_overloaded = List::weights(&[3, 2]).overloaded(0).overloaded(1);
        assert_eq!(choice(&wrr, State(0), &all_overloaded), Choice { position: None, state: State(0) });
    }

    #[test]
    fn the_greatest_weight_there_is_does_not_make_a_choice_slow_or_wrong() {
        let wrr = of(&[i32::MAX as u32, 1]);
        let list = List::weights(&[i32::MAX as u32, 1]);
        assert_eq!(picks(&wrr, &list, 3), [0, 0, 0]);
    }

    #[test]
    fn an_overloaded_giant_does_not_hold_up_the_others() {
        let wrr = of(&[i32::MAX as u32, 2, 1]);
        let list = List::weights(&[i32::MAX as u32, 2, 1]).overloaded(0);
        assert_eq!(picks(&wrr, &list, 6), [1, 1, 2, 1, 1, 2]);
    }

    #[test]
    fn a_change_of_destinations_starts_the_walk_at_the_front_and_bounds_the_threshold() {
        assert_eq!(carried(pack(2, 6), &[2, 1]), pack(0, 2));
        assert_eq!(carried(pack(1, 4), &[6, 4]), pack(0, 5));
    }
}
