//! No scheduling (`none`).
//!
//! Runs once for each new connection and chooses no destination. Cost: nothing.

use crate::account::Account;
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Choice, Kind, Request, Scheduler, State};

pub(crate) const KIND: Kind = Kind { full_share: None, ..Kind::new("none", |_| Box::new(NoScheduler)) };

struct NoScheduler;

impl Scheduler for NoScheduler {
    fn pick(&self, state: State, _: &Request, _: &dyn Candidates) -> Choice {
        Choice { position: None, state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        Account::new(
            KIND.name,
            "no destination is ever chosen: the service has no scheduler",
            candidates.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice};

    #[test]
    fn no_destination_is_ever_chosen() {
        assert_eq!(choice(&NoScheduler, State(0), &List::weights(&[1, 2])).position, None);
    }
}
