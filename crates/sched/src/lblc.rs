//! Locality-based least-connection scheduling (`lblc`).
//!
//! Runs once for each new connection. Remembers a real server for each destination address of packets. Chooses that
//! server again as long as its weight is above 0 and it is not busy while another server is idle. Otherwise the choice
//! of `wlc` is made and remembered. As in IPVS, a remembered server is chosen even above its upper threshold. Stateless
//! except for a [`Memory`]. Cost: a look-up in the memory; one pass over the service's destinations if the address is
//! new or its real server is busy.
//!
//! Source: ipvs-behaviour, section 5.2.

use std::sync::Arc;

use crate::account::{Account, Figure};
use crate::hash::identity;
use crate::memory::{Entry, Memory};
use crate::ratio::{OVERHEAD, least};
use crate::scheduler::candidates::{Candidates, Load};
use crate::scheduler::interface::{Choice, Kind, Request, Scheduler, Setup, State};

pub(crate) const KIND: Kind =
    Kind { full_share: None, ..Kind::new("lblc", |setup| Box::new(Lblc::new(setup))) };

struct Lblc {
    positions: Positions,
    memory: Arc<Memory>,
}

impl Lblc {
    fn new(setup: &Setup<'_>) -> Self {
        let expiration = &setup.tuning.lblc_expiration_seconds;
        let memory = setup.memory.clone().unwrap_or_else(|| Memory::new(expiration.clone()));
        Self { positions: Positions::new(setup), memory }
    }

    /// The remembered position for a packet's destination address.
    fn known(&self, request: &Request) -> Option<usize> {
        self.positions.position(*self.memory.find(request.dest.addr)?.members().first()?)
    }
}

impl Scheduler for Lblc {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let position = self
            .known(request)
            .filter(|&position| !candidates.weight(position).is_quiescent() && !is_busy(position, candidates))
            .or_else(|| least(0..candidates.len(), candidates, Load::overhead));
        Choice { position, state }
    }

    fn choose(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let choice = self.pick(state, request, candidates);
        if let Some(position) = choice.position {
            let mut entry = Entry::new(request.now_millis);
            entry.add(self.positions.identity(position), request.now_millis);
            self.memory.enter(request.dest.addr, &entry);
        }
        choice
    }

    fn account(&self, _: State, request: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "the one remembered for the packet's destination address, unless it is quiescent, or busy while \
                    another one idles; else the lowest (256 × active + inactive connections) ÷ weight";
        Account::new(KIND.name, rule, candidates.len()).with_known(self.known(request), candidates)
    }

    fn memory(&self) -> Option<&Arc<Memory>> {
        Some(&self.memory)
    }
}

/// Whether a destination has more active connections than its weight while another one has less than half its weight.
pub(crate) fn is_busy(position: usize, candidates: &dyn Candidates) -> bool {
    candidates.load(position).active > candidates.weight(position).0
        && (0..candidates.len())
            .any(|other| u64::from(candidates.load(other).active) * 2 < u64::from(candidates.weight(other).0))
}

impl Account {
    /// Adds the figures: the remembered destinations, the busy ones, and the ratios that `wlc` compares.
    #[must_use]
    pub(crate) fn with_known(
        self,
        known: impl IntoIterator<Item = usize>,
        candidates: &dyn Candidates,
    ) -> Self {
        let mut account = self.with_shares(OVERHEAD, candidates, Load::overhead);
        for position in known {
            account = account.with(position, Figure::count("remembered", 1));
        }
        for position in (0..candidates.len()).filter(|position| is_busy(*position, candidates)) {
            account = account.with(position, Figure::count("busy", 1));
        }
        account
    }
}

/// The positions of destinations, by identity. A [`Memory`] stores identities, because positions change with the list.
pub(crate) struct Positions {
    identities: Box<[u64]>,
    /// Identity and position, ordered by identity.
    positions: Box<[(u64, usize)]>,
}

impl Positions {
    pub(crate) fn new(setup: &Setup<'_>) -> Self {
        let identities: Box<[u64]> =
            setup.destinations.iter().map(|destination| identity(destination.endpoint)).collect();
        let mut positions: Box<[_]> =
            identities.iter().enumerate().map(|(position, identity)| (*identity, position)).collect();
        positions.sort_unstable();
        Self { identities, positions }
    }

    pub(crate) fn identity(&self, position: usize) -> u64 {
        self.identities[position]
    }

    /// The position of a destination, if the list still contains it.
    pub(crate) fn position(&self, identity: u64) -> Option<usize> {
        let found = self.positions.binary_search_by_key(&identity, |(identity, _)| *identity).ok()?;
        Some(self.positions[found].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Flags;
    use crate::scheduler::build;
    use crate::scheduler::testing::{List, built, destinations, from};

    #[test]
    fn an_address_stays_with_its_destination_until_that_is_busy_and_another_one_idles() {
        let lblc = built("lblc", &[1, 1], Flags(0));
        let next = |loads| {
            let list = List::weights(&[1, 1]).loads(loads);
            lblc.choose(State(0), &from("192.0.2.1:1"), &list).position
        };
        assert_eq!(next(&[(0, 0), (0, 0)]), Some(0));
        assert_eq!(next(&[(1, 0), (0, 0)]), Some(0), "not above its weight");
        assert_eq!(next(&[(2, 0), (1, 0)]), Some(0), "the other one does not idle");
        assert_eq!(next(&[(2, 0), (0, 0)]), Some(1));
        assert_eq!(next(&[(0, 0), (1, 0)]), Some(1), "remembered");
    }

    #[test]
    fn a_remembered_destination_is_chosen_above_its_threshold_but_not_at_weight_zero() {
        let lblc = built("lblc", &[1, 1], Flags(0));
        let next = |list: &List| lblc.choose(State(0), &from("192.0.2.1:1"), list).position;
        assert_eq!(next(&List::weights(&[1, 1])), Some(0));
        assert_eq!(next(&List::weights(&[1, 1]).overloaded(0)), Some(0));
        assert_eq!(next(&List::weights(&[0, 1])), Some(1));
    }

    #[test]
    fn picking_remembers_nothing() {
        let lblc = built("lblc", &[1, 1], Flags(0));
        let busy = List::weights(&[1, 1]).loads(&[(1, 0), (0, 0)]);
        assert_eq!(lblc.pick(State(0), &from("192.0.2.1:1"), &busy).position, Some(1));
        assert_eq!(lblc.pick(State(0), &from("192.0.2.1:1"), &List::weights(&[1, 1])).position, Some(0));
    }

    #[test]
    fn memory_survives_a_change_of_destinations_and_their_removal_and_return() {
        let all = destinations(&[1, 1, 1]);
        let of = |destinations: &[_], memory| {
            build("lblc", &Setup { destinations, memory, ..Setup::default() }).unwrap()
        };
        let first = of(&all[1..], None);
        assert_eq!(first.choose(State(0), &from("192.0.2.1:1"), &List::weights(&[1, 1])).position, Some(0));
        let second = of(&all, first.memory().cloned());
        assert_eq!(second.pick(State(0), &from("192.0.2.1:1"), &List::weights(&[1, 1, 1])).position, Some(1));
        let without = of(&all[2..], second.memory().cloned());
        assert_eq!(without.pick(State(0), &from("192.0.2.1:1"), &List::weights(&[1])).position, Some(0));
        let back = of(&all, without.memory().cloned());
        assert_eq!(back.pick(State(0), &from("192.0.2.1:1"), &List::weights(&[1, 1, 1])).position, Some(1));
    }
}
