//! Weighted overflow scheduling (`ovf`).
//!
//! Runs once for each new connection. Chooses the usable destination with the highest weight whose active connections
//! do not exceed its weight; the first in order wins a tie. A destination with weight 3 therefore takes a fourth
//! connection, and the next destination takes the fifth. Stateless. Cost: one pass over the service's destinations.

use crate::account::{Account, Figure};
use crate::fo::heaviest;
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Choice, FullShare, Kind, Request, Scheduler, State};

pub(crate) const KIND: Kind =
    Kind { full_share: Some(FullShare::All), ..Kind::new("ovf", |_| Box::new(Ovf)) };

struct Ovf;

impl Scheduler for Ovf {
    fn pick(&self, state: State, _: &Request, candidates: &dyn Candidates) -> Choice {
        let roomy = (0..candidates.len())
            .filter(|position| candidates.usable(*position))
            .filter(|position| room(*position, candidates) > 0);
        Choice { position: heaviest(roomy, candidates), state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule =
            "the highest weight among those with room, whose active connections do not exceed their weight";
        (0..candidates.len()).fold(Account::new(KIND.name, rule, candidates.len()), |account, position| {
            account.with(position, Figure::new("room", room(position, candidates) as f64))
        })
    }
}

/// The number of active connections that a destination can still take; 0 or less if it takes none.
fn room(position: usize, candidates: &dyn Candidates) -> i64 {
    i64::from(candidates.weight(position).0) + 1 - i64::from(candidates.load(position).active)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, choice};

    #[test]
    fn connections_overflow_from_the_heaviest_once_there_are_more_than_its_weight() {
        let next = |loads| choice(&Ovf, State(0), &List::weights(&[1, 2, 3]).loads(loads)).position;
        assert_eq!(next(&[(0, 0), (0, 0), (3, 999)]), Some(2));
        assert_eq!(next(&[(0, 0), (0, 0), (4, 0)]), Some(1));
        assert_eq!(next(&[(0, 0), (3, 0), (4, 0)]), Some(0));
        assert_eq!(next(&[(2, 0), (3, 0), (4, 0)]), None);
    }

    #[test]
    fn a_quiescent_or_overloaded_destination_is_never_chosen() {
        let list = List::weights(&[0, 5, 2]).overloaded(1);
        assert_eq!(choice(&Ovf, State(0), &list).position, Some(2));
    }
}
