//! Destination hashing (`dh`).
//!
//! Runs once for each new connection. When the scheduler is built, the destinations fill 256 buckets in turn, whatever
//! their weights. The packet's destination address selects the bucket. If the bucket's destination is not usable, none
//! is chosen. Stateless. Cost: one hash. Source: ipvs-behaviour, section 5.3.

use crate::account::{Account, Figure};
use crate::hash::{bucket, folded};
use crate::scheduler::candidates::Candidates;
use crate::scheduler::interface::{Choice, Kind, Request, Reserved, Scheduler, Setup, State};

pub(crate) const KIND: Kind = Kind { full_share: None, ..Kind::new("dh", |setup| Box::new(Dh::new(setup))) };

struct Dh {
    /// The number of destinations.
    count: usize,
}

impl Dh {
    fn new(setup: &Setup<'_>) -> Self {
        Self { count: setup.destinations.len() }
    }

    /// The bucket of a packet, and the position there.
    fn own(&self, request: &Request) -> (usize, Option<usize>) {
        let bucket = bucket(folded(request.dest.addr), BUCKETS.ilog2());
        (bucket, bucket.checked_rem(self.count))
    }
}

impl Scheduler for Dh {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let (_, position) = self.own(request);
        Choice { position: position.filter(|&position| candidates.usable(position)), state }
    }

    fn account(&self, _: State, request: &Request, candidates: &dyn Candidates) -> Account {
        let (bucket, position) = self.own(request);
        let rule = format!(
            "the one in the bucket of the packet's destination address, {bucket} of 256; no other is tried"
        );
        let account = Account::new(KIND.name, rule, candidates.len());
        position
            .into_iter()
            .fold(account, |account, position| account.with(position, Figure::count("bucket", bucket)))
    }

    fn reserved(&self, position: usize) -> Option<Reserved> {
        let own = (0..BUCKETS).filter(|bucket| bucket.checked_rem(self.count) == Some(position)).count();
        Some(Reserved { place: "bucket", own, all: BUCKETS })
    }
}

const BUCKETS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Flags;
    use crate::scheduler::testing::{List, built, from};
    use xvs_proto::Endpoint;

    fn pick(dest: &str, weights: &[u32]) -> Option<usize> {
        let dest = Endpoint::new(dest.parse::<std::net::IpAddr>().unwrap(), 80);
        let request = Request { dest, ..from("192.0.2.1:1024") };
        built("dh", weights, Flags(0)).pick(State(0), &request, &List::weights(weights)).position
    }

    #[test]
    fn an_address_selects_the_bucket_and_destinations_fill_buckets_in_turn() {
        let addresses = ["192.168.1.1", "192.168.1.2", "192.168.1.10", "10.1.2.3"];
        assert_eq!(
            addresses.map(|address| pick(address, &[1, 9, 5])),
            [136, 234, 248, 2].map(|at| Some(at % 3))
        );
    }

    #[test]
    fn a_quiescent_destination_keeps_its_buckets_and_no_other_replaces_it() {
        assert_eq!(pick("192.168.1.1", &[1, 0, 1]), None);
        assert_eq!(pick("10.1.2.3", &[1, 0, 1]), Some(2));
    }
}
