//! Shortest-expected-delay scheduling (`sed`).
//!
//! Runs once for each new connection. Chooses the usable destination with the lowest ratio of active connections, the
//! new one included, to weight; the first in order wins a tie. Stateless. Cost: one pass over the service's
//! destinations.

use crate::account::Account;
use crate::ratio::least;
use crate::scheduler::candidates::{Candidates, Load};
use crate::scheduler::interface::{Choice, Kind, Request, Scheduler, State};

pub(crate) const KIND: Kind = Kind::new("sed", |_| Box::new(Sed));

struct Sed;

impl Scheduler for Sed {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        Choice { position: least(0..candidates.len(), candidates, expected), state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "the lowest (active connections + 1) ÷ weight; the first in order wins a tie";
        Account::new(KIND.name, rule, candidates.len()).with_shares(EXPECTED, candidates, expected)
    }
}

/// The name of [`expected`] in explanations.
pub(crate) const EXPECTED: &str = "expected";

/// The number of active connections, the new one included.
pub(crate) fn expected(load: Load) -> i64 {
    i64::from(load.active) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice};

    #[test]
    fn the_new_connection_counts_as_if_it_were_there() {
        let next = |loads| choice(&Sed, State(0), &List::weights(&[1, 2, 3]).loads(loads)).position;
        assert_eq!(next(&[(0, 0), (0, 0), (0, 0)]), Some(2));
        assert_eq!(next(&[(0, 0), (0, 0), (1, 0)]), Some(1));
        assert_eq!(next(&[(0, 0), (1, 0), (1, 0)]), Some(2));
        assert_eq!(next(&[(0, 0), (1, 0), (2, 0)]), Some(0));
        assert_eq!(next(&[(0, 0), (1, 900), (1, 900)]), Some(2), "inactive ones do not count");
    }
}
