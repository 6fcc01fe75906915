//! Locality-based least-connection scheduling with replication (`lblcr`).
//!
//! Runs once for each new connection. Remembers a set of real servers for each destination address of packets, and
//! chooses among them as `wlc` does. If the chosen server is busy while another one is idle, it chooses among all
//! servers and adds the chosen one to the set. A set that has not changed for `lblcr_expiration` loses the member with
//! the highest overhead-to-weight ratio. A removed destination is dropped first, because its load is not known.
//! Stateless except for a [`Memory`], in which a set has at most 16 members. Cost: a look-up in the memory and a pass
//! over the set; a pass over the service's destinations if the address is new or its destinations are busy.
//!
//! Source: ipvs-behaviour, section 5.2.

use std::sync::Arc;

use crate::account::Account;
use crate::lblc::{Positions, is_busy};
use crate::memory::{Entry, Memory};
use crate::ratio::least;
use crate::scheduler::candidates::{Candidates, Load};
use crate::scheduler::interface::{Choice, Kind, Request, Scheduler, Setup, State};

pub(crate) const KIND: Kind =
    Kind { full_share: None, ..Kind::new("lblcr", |setup| Box::new(Lblcr::new(setup))) };

struct Lblcr {
    positions: Positions,
    memory: Arc<Memory>,
}

impl Lblcr {
    fn new(setup: &Setup<'_>) -> Self {
        let expiration = &setup.tuning.lblcr_expiration_seconds;
        let memory = setup.memory.clone().unwrap_or_else(|| Memory::new(expiration.clone()));
        Self { positions: Positions::new(setup), memory }
    }

    /// The choice, and the entry that belongs to it.
    fn look(&self, request: &Request, candidates: &dyn Candidates) -> (Option<usize>, Entry) {
        let now = request.now_millis;
        let mut entry = self.memory.find(request.dest.addr).unwrap_or_else(|| Entry::new(now));
        entry.used_millis = now;
        let own = least(self.positions(&entry), candidates, Load::overhead);
        let unchanged = now > entry.changed_millis + self.memory.expiration_millis();
        if unchanged
            && entry.members().len() > 1
            && let Some(place) = self.most_loaded(&entry, candidates)
        {
            entry.remove(place, now);
        }
        let fit = own.filter(|&position| !is_busy(position, candidates));
        if fit.is_some() {
            return (fit, entry);
        }
        let any = least(0..candidates.len(), candidates, Load::overhead);
        if let Some(position) = any {
            entry.add(self.positions.identity(position), now);
        }
        (any, entry)
    }

    /// The positions of the members of a set that the list still contains.
    fn positions(&self, entry: &Entry) -> impl Iterator<Item = usize> {
        entry.members().iter().filter_map(|member| self.positions.position(*member))
    }

    /// The index in the set of the member with the highest overhead-to-weight ratio; the first wins a tie.
    fn most_loaded(&self, entry: &Entry, candidates: &dyn Candidates) -> Option<usize> {
        let mut most: Option<(usize, i64, i64)> = None;
        for (place, member) in entry.members().iter().enumerate() {
            let Some(position) = self.positions.position(*member) else { return Some(place) };
            let overhead = candidates.load(position).overhead();
            let weight = i64::from(candidates.weight(position).0);
            if weight > 0
                && most.is_none_or(|(_, of, its)| of.saturating_mul(weight) < overhead.saturating_mul(its))
            {
                most = Some((place, overhead, weight));
            }
        }
        most.map(|(place, ..)| place)
    }
}

impl Scheduler for Lblcr {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        Choice { position: self.look(request, candidates).0, state }
    }

    fn choose(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let (position, entry) = self.look(request, candidates);
        if !entry.members().is_empty() {
            self.memory.enter(request.dest.addr, &entry);
        }
        Choice { position, state }
    }

    fn account(&self, _: State, request: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "the lowest (256 × active + inactive connections) ÷ weight among those remembered for the \
                    packet's destination address, unless it is busy while another one idles; then among all";
        let account = Account::new(KIND.name, rule, candidates.len());
        let entry = self.memory.find(request.dest.addr).unwrap_or_default();
        account.with_known(self.positions(&entry), candidates)
    }

    fn memory(&self) -> Option<&Arc<Memory>> {
        Some(&self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::build;
    use crate::scheduler::testing::{List, destinations, from};

    fn lblcr(weights: &[u32], expiration_seconds: u32) -> Box<dyn Scheduler> {
        let setup = Setup { destinations: &destinations(weights), ..Setup::default() };
        let expiration = &setup.tuning.lblcr_expiration_seconds;
        expiration.store(expiration_seconds, std::sync::atomic::Ordering::Relaxed);
        build("lblcr", &setup).unwrap()
    }

    fn next(scheduler: &dyn Scheduler, seconds: u64, weights: &[u32], loads: &[(u32, u32)]) -> Option<usize> {
        let request = Request { now_millis: seconds * 1000, ..from("192.0.2.1:1") };
        scheduler.choose(State(0), &request, &List::weights(weights).loads(loads)).position
    }

    #[test]
    fn an_address_gets_a_second_destination_when_its_first_is_busy_and_chooses_between_them() {
        let lblcr = lblcr(&[1, 1, 1], 100);
        let next = |loads| next(&*lblcr, 0, &[1, 1, 1], loads);
        assert_eq!(next(&[(0, 0), (0, 0), (0, 0)]), Some(0));
        assert_eq!(next(&[(2, 0), (1, 0), (1, 0)]), Some(0), "none idles");
        assert_eq!(next(&[(2, 0), (1, 0), (0, 0)]), Some(2));
        assert_eq!(next(&[(0, 0), (0, 0), (1, 0)]), Some(0), "the lighter of the two");
        assert_eq!(
            next(&[(1, 0), (0, 0), (1, 0)]),
            Some(2),
            "the third is not of the set; the last added is first"
        );
    }

    #[test]
    fn a_set_that_has_not_changed_for_the_expiration_loses_its_most_loaded_member() {
        let lblcr = lblcr(&[1, 1], 100);
        let next = |seconds, loads| next(&*lblcr, seconds, &[1, 1], loads);
        next(0, &[(0, 0), (0, 0)]);
        assert_eq!(next(10, &[(2, 0), (0, 0)]), Some(1));
        assert_eq!(next(110, &[(0, 5), (0, 9)]), Some(0), "not longer than the expiration");
        assert_eq!(next(111, &[(0, 9), (0, 5)]), Some(1), "the first is lost");
        assert_eq!(next(112, &[(0, 0), (1, 5)]), Some(1));
    }

    #[test]
    fn of_equally_loaded_members_the_last_added_is_lost_and_still_serves_this_connection() {
        let lblcr = lblcr(&[1, 1], 100);
        let next = |seconds, loads| next(&*lblcr, seconds, &[1, 1], loads);
        next(0, &[(0, 0), (0, 0)]);
        assert_eq!(next(10, &[(2, 0), (0, 0)]), Some(1));
        assert_eq!(next(111, &[(0, 5), (0, 5)]), Some(1));
        assert_eq!(next(112, &[(0, 5), (0, 0)]), Some(0));
    }
}
