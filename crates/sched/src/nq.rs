//! Never-queue scheduling (`nq`).
//!
//! Runs once for each new connection. Chooses the first usable destination without active connections, whatever its
//! weight; if there is none, chooses like `sed`. Stateless. Cost: at most two passes over the service's destinations.

use crate::account::{Account, Figure};
use crate::ratio::least;
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Choice, Kind, Request, Scheduler, State};
use crate::sed::{EXPECTED, expected};

pub(crate) const KIND: Kind = Kind::new("nq", |_| Box::new(Nq));

struct Nq;

impl Scheduler for Nq {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        let position = (0..candidates.len())
            .find(|&position| is_idle(position, candidates) && candidates.usable(position))
            .or_else(|| least(0..candidates.len(), candidates, expected));
        Choice { position, state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "the first that is idle, without active connections; if none is, the lowest \
                    (active connections + 1) ÷ weight";
        let account =
            Account::new(KIND.name, rule, candidates.len()).with_shares(EXPECTED, candidates, expected);
        (0..candidates.len())
            .filter(|position| is_idle(*position, candidates))
            .fold(account, |account, position| account.with(position, Figure::count("idle", 1)))
    }
}

fn is_idle(position: usize, candidates: &dyn Candidates) -> bool {
    candidates.load(position).active == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice};

    #[test]
    fn idle_destinations_come_first_in_order_and_then_the_shortest_expected_delay() {
        let next = |loads| choice(&Nq, State(0), &List::weights(&[1, 2, 3]).loads(loads)).position;
        assert_eq!(next(&[(0, 9), (0, 0), (0, 0)]), Some(0));
        assert_eq!(next(&[(1, 0), (0, 0), (0, 0)]), Some(1));
        assert_eq!(next(&[(1, 0), (1, 0), (0, 0)]), Some(2));
        assert_eq!(next(&[(1, 0), (1, 0), (1, 0)]), Some(2));
    }

    #[test]
    fn an_idle_destination_that_is_quiescent_or_overloaded_is_left_out() {
        let list = List::weights(&[0, 1, 1]).loads(&[(0, 0), (0, 0), (7, 0)]).overloaded(1);
        assert_eq!(choice(&Nq, State(0), &list).position, Some(2));
    }
}
