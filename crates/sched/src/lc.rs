//! Least-connection scheduling (`lc`).
//!
//! Runs once for each new connection. Chooses the usable destination with the lowest overhead, whatever its weight; the
//! first in order wins a tie. Stateless. Cost: one pass over the service's destinations.

use crate::account::{Account, Figure};
use crate::ratio::OVERHEAD;
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Choice, FullShare, Kind, Request, Scheduler, State};

pub(crate) const KIND: Kind =
    Kind { full_share: Some(FullShare::Equal), ..Kind::new("lc", |_| Box::new(Lc)) };

struct Lc;

impl Scheduler for Lc {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        let usable = (0..candidates.len()).filter(|position| candidates.usable(*position));
        Choice { position: usable.min_by_key(|position| candidates.load(*position).overhead()), state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "the lowest 256 × active + inactive connections, whatever its weight; the first in order wins a tie";
        (0..candidates.len()).fold(Account::new(KIND.name, rule, candidates.len()), |account, position| {
            account.with(position, Figure::new(OVERHEAD, candidates.load(position).overhead() as f64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice};

    #[test]
    fn the_lowest_overhead_is_chosen_and_the_first_in_order_wins_a_tie() {
        let list = List::weights(&[1, 1, 9]).loads(&[(2, 0), (1, 300), (2, 0)]);
        assert_eq!(choice(&Lc, State(0), &list).position, Some(0));
        let list = List::weights(&[1, 1, 9]).loads(&[(2, 0), (1, 255), (2, 0)]);
        assert_eq!(choice(&Lc, State(0), &list).position, Some(1));
    }

    #[test]
    fn a_quiescent_or_overloaded_destination_is_never_chosen() {
        let list = List::weights(&[0, 1, 1]).loads(&[(0, 0), (0, 0), (5, 0)]).overloaded(1);
        assert_eq!(choice(&Lc, State(0), &list).position, Some(2));
    }
}
