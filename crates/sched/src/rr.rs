//! Round-robin scheduling (`rr`).
//!
//! Runs once for each new connection. Takes the usable destinations in turn, beginning after the last choice. A weight
//! matters only if it is 0. The state is the position of the last choice plus one, and 0 before the first choice. Cost:
//! a binary search, and one step for each overloaded destination that is skipped; quiescent destinations are left out
//! when the scheduler is built.

use crate::account::{Account, Figure};
use crate::destination::Weight;
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Change, Choice, FullShare, Kind, Request, Scheduler, Setup, State};

pub(crate) const KIND: Kind =
    Kind { carry, full_share: Some(FullShare::Equal), ..Kind::new("rr", |setup| Box::new(Rr::new(setup))) };

struct Rr {
    /// The positions of the destinations with a weight above 0.
    weighted: Box<[usize]>,
}

impl Rr {
    fn new(setup: &Setup<'_>) -> Self {
        let weighted = (0..setup.destinations.len())
            .filter(|position| !setup.destinations[*position].weight.is_quiescent())
            .collect();
        Self { weighted }
    }

    /// The positions in the order of their turns.
    fn turns(&self, state: State) -> impl Iterator<Item = usize> {
        let (before, after) =
            self.weighted.split_at(self.weighted.partition_point(|&position| (position as u64) < state.0));
        after.iter().chain(before).copied()
    }
}

impl Scheduler for Rr {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        let position = self.turns(state).find(|&position| candidates.usable(position));
        let state = position.map_or(state, |position| State(position as u64 + 1));
        Choice { position, state }
    }

    fn account(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "in turn, beginning after the last choice; a weight matters only if it is 0";
        (1..)
            .zip(self.turns(state))
            .fold(Account::new(KIND.name, rule, candidates.len()), |account, (turn, position)| {
                account.with(position, Figure::count("turn", turn))
            })
    }
}

/// The state follows the last chosen destination. If that one is removed, the state passes to the one before it.
fn carry(state: State, change: Change, _: &mut dyn Iterator<Item = Weight>) -> State {
    match change {
        Change::Added if state.0 > 0 => State(state.0 + 1),
        Change::Removed(position) if state.0 > position as u64 => State(state.0 - 1),
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Flags;
    use crate::scheduler::testing::{List, built, choice, picks};

    fn taken(weights: &[u32], count: usize) -> Vec<usize> {
        picks(&*built("rr", weights, Flags(0)), &List::weights(weights), count)
    }

    fn next(state: State, weights: &[u32]) -> Choice {
        choice(&*built("rr", weights, Flags(0)), state, &List::weights(weights))
    }

    fn carried(state: State, change: Change) -> State {
        carry(state, change, &mut std::iter::empty())
    }

    #[test]
    fn destinations_take_turns_from_the_front_and_a_quiescent_one_is_left_out() {
        assert_eq!(taken(&[1, 1, 1], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(taken(&[1, 0, 5], 4), [0, 2, 0, 2]);
    }

    #[test]
    fn nothing_usable_is_no_choice_and_moves_nothing() {
        assert_eq!(next(State(1), &[0, 0]), Choice { position: None, state: State(1) });
        assert_eq!(next(State(0), &[]), Choice { position: None, state: State(0) });
        let overloaded = List::weights(&[1, 1]).overloaded(0).overloaded(1);
        assert_eq!(choice(&*built("rr", &[1, 1], Flags(0)), State(1), &overloaded).position, None);
    }

    #[test]
    fn an_added_destination_waits_for_its_turn_after_the_others() {
        // B, A; A was chosen last; C is added at the front: after A the list wraps to C.
        assert_eq!(next(carried(State(2), Change::Added), &[1, 1, 1]).position, Some(0));
        // No choice yet: C is at the front and comes first.
        assert_eq!(next(carried(State(0), Change::Added), &[1, 1, 1]).position, Some(0));
    }

    #[test]
    fn a_removed_last_choice_moves_the_place_to_its_predecessor() {
        // C, B, A; B was chosen last and is removed: A is next.
        assert_eq!(next(carried(State(2), Change::Removed(1)), &[1, 1]).position, Some(1));
        // C was chosen last and is removed: the state points before the front.
        assert_eq!(next(carried(State(1), Change::Removed(0)), &[1, 1]).position, Some(0));
        // B was chosen last and stays: A is next, whatever else is removed.
        assert_eq!(carried(State(2), Change::Removed(2)), State(2));
        assert_eq!(carried(State(2), Change::Removed(0)), State(1));
        assert_eq!(carried(State(2), Change::Edited), State(2));
    }
}
