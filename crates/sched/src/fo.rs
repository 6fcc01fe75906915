//! Weighted fail-over scheduling (`fo`).
//!
//! Runs once for each new connection. Chooses the usable destination with the highest weight, whatever its load; the
//! first in order wins a tie. Stateless. Cost: one pass over the service's destinations.

use crate::account::Account;
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Choice, FullShare, Kind, Request, Scheduler, State};

pub(crate) const KIND: Kind = Kind { full_share: Some(FullShare::All), ..Kind::new("fo", |_| Box::new(Fo)) };

struct Fo;

impl Scheduler for Fo {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        let usable = (0..candidates.len()).filter(|position| candidates.usable(*position));
        Choice { position: heaviest(usable, candidates), state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "the highest weight, whatever its load; the first in order wins a tie";
        Account::new(KIND.name, rule, candidates.len())
    }
}

/// The position with the highest weight among `positions`; the first wins a tie.
pub(crate) fn heaviest(
    positions: impl DoubleEndedIterator<Item = usize>,
    candidates: &dyn Candidates,
) -> Option<usize> {
    // `max_by_key` returns the last of several equal ones; reversed, that is the first in order.
    positions.rev().max_by_key(|position| candidates.weight(*position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice};

    #[test]
    fn the_heaviest_usable_destination_takes_all_and_the_first_in_order_wins_a_tie() {
        let list = || List::weights(&[10, 20, 20]).loads(&[(0, 0), (99, 0), (0, 0)]);
        assert_eq!(choice(&Fo, State(0), &list()).position, Some(1));
        assert_eq!(choice(&Fo, State(0), &list().overloaded(1)).position, Some(2));
        assert_eq!(choice(&Fo, State(0), &list().overloaded(1).overloaded(2)).position, Some(0));
        assert_eq!(choice(&Fo, State(0), &List::weights(&[0, 0])).position, None);
    }
}
