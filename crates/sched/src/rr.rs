//! Round-robin scheduling (`rr`).
//!
//! Runs once per new connection. Takes the usable destinations in turn, beginning after the one chosen last;
//! weights matter only as zero or not. The state is the last choice's position plus one, 0 before the list's
//! first. Cost: as many steps as there are unusable destinations in a row, at most one round.

use crate::scheduler::{Candidates, Change, Choice, Scheduler, State};

pub(crate) struct Rr;

impl Scheduler for Rr {
    fn pick(&self, state: State, candidates: &dyn Candidates) -> Choice {
        let len = candidates.len();
        let first = if state.0 as usize >= len { 0 } else { state.0 as usize };
        let position = (first..len).chain(0..first).find(|position| candidates.usable(*position));
        let state = position.map_or(state, |position| State(position as u64 + 1));
        Choice { position, state }
    }

    /// A removed destination hands its place to the one before it; additions leave the place where it is.
    fn carry(&self, state: State, change: Change) -> State {
        match change {
            Change::Added if state.0 > 0 => State(state.0 + 1),
            Change::Removed(position) if state.0 > position as u64 => State(state.0 - 1),
            _ => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, picks};

    #[test]
    fn destinations_take_turns_from_the_front_and_a_quiescent_one_is_left_out() {
        assert_eq!(picks(&Rr, &List::weights(&[1, 1, 1]), 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(picks(&Rr, &List::weights(&[1, 0, 5]), 4), [0, 2, 0, 2]);
    }

    #[test]
    fn nothing_usable_is_no_choice_and_moves_nothing() {
        let list = List::weights(&[0, 0]);
        assert_eq!(Rr.pick(State(1), &list), Choice { position: None, state: State(1) });
        assert_eq!(Rr.pick(State(0), &List::weights(&[])), Choice { position: None, state: State(0) });
    }

    #[test]
    fn an_added_destination_waits_for_its_turn_after_the_others() {
        // B, A; A was chosen last; C arrives at the front: after A the list wraps to C.
        let state = Rr.carry(State(2), Change::Added);
        assert_eq!(Rr.pick(state, &List::weights(&[1, 1, 1])).position, Some(0));
        // Nothing was chosen yet: C is at the front and comes first.
        let state = Rr.carry(State(0), Change::Added);
        assert_eq!(Rr.pick(state, &List::weights(&[1, 1, 1])).position, Some(0));
    }

    #[test]
    fn a_removed_last_choice_moves_the_place_to_its_predecessor() {
        // C, B, A; B was chosen last and goes: A is next.
        let state = Rr.carry(State(2), Change::Removed(1));
        assert_eq!(Rr.pick(state, &List::weights(&[1, 1])).position, Some(1));
        // C was chosen last and goes: the place is before the front.
        let state = Rr.carry(State(1), Change::Removed(0));
        assert_eq!(Rr.pick(state, &List::weights(&[1, 1])).position, Some(0));
        // B was chosen last and stays: A is next, whoever else goes.
        assert_eq!(Rr.carry(State(2), Change::Removed(2)), State(2));
        assert_eq!(Rr.carry(State(2), Change::Removed(0)), State(1));
        assert_eq!(Rr.carry(State(2), Change::Edited), State(2));
    }
}
