//! Weighted least-connection scheduling (`wlc`).
//!
//! Runs once for each new connection. Chooses the usable destination with the lowest overhead-to-weight ratio; the
//! first in order wins a tie. Stateless. Cost: one pass over the service's destinations.

use crate::account::Account;
use crate::ratio::{OVERHEAD, least};
use crate::scheduler::candidates::{Candidates, Load};
use crate::scheduler::interface::{Choice, Kind, Request, Scheduler, State};

pub(crate) const KIND: Kind = Kind::new("wlc", |_| Box::new(Wlc));

struct Wlc;

impl Scheduler for Wlc {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        Choice { position: least(0..candidates.len(), candidates, Load::overhead), state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "the lowest (256 × active + inactive connections) ÷ weight; the first in order wins a tie";
        Account::new(KIND.name, rule, candidates.len()).with_shares(OVERHEAD, candidates, Load::overhead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice};

    fn pick(weights: &[u32], loads: &[(u32, u32)]) -> Option<usize> {
        choice(&Wlc, State(0), &List::weights(weights).loads(loads)).position
    }

    #[test]
    fn the_lowest_overhead_per_weight_is_chosen_and_the_first_in_order_wins_a_tie() {
        assert_eq!(pick(&[1, 2, 4], &[(0, 0), (0, 0), (0, 0)]), Some(0));
        assert_eq!(pick(&[1, 2, 4], &[(1, 0), (0, 0), (0, 0)]), Some(1));
        assert_eq!(pick(&[1, 2, 4], &[(1, 0), (1, 0), (0, 0)]), Some(2));
        assert_eq!(pick(&[1, 1, 1], &[(2, 0), (1, 300), (2, 0)]), Some(0));
    }

    #[test]
    fn a_quiescent_or_overloaded_destination_is_never_chosen() {
        assert_eq!(pick(&[0, 1], &[(0, 0), (9, 9)]), Some(1));
        assert_eq!(pick(&[0, 0], &[(0, 0), (0, 0)]), None);
        let list = List::weights(&[1, 1]).loads(&[(0, 0), (5, 0)]).overloaded(0);
        assert_eq!(choice(&Wlc, State(0), &list).position, Some(1));
    }
}
