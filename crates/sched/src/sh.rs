//! Source hashing (`sh`).
//!
//! Runs once for each new connection. When the scheduler is built, it fills 256 buckets: each destination in turn takes
//! a number of buckets equal to its weight, but at least one. The packet's source address, with `sh-port` also its
//! source port, selects the bucket. If the bucket's destination is not usable, none is chosen; with `sh-fallback` other
//! buckets are tried. Stateless. Cost: one hash; with `sh-fallback` up to 256 look-ups while destinations are unusable.
//!
//! Source: ipvs-behaviour, section 5.3.

use crate::account::Account;
use crate::hash::{bucket, folded};
use crate::scheduler::candidates::Candidates;
use crate::scheduler::flags::Flags;
use crate::scheduler::interface::{Choice, Kind, Request, Reserved, Scheduler, Setup, State};

pub(crate) const KIND: Kind = Kind { full_share: None, ..Kind::new("sh", |setup| Box::new(Sh::new(setup))) };

struct Sh {
    flags: Flags,
    /// The position of each bucket's destination; empty if there are no destinations.
    buckets: Box<[u32]>,
}

impl Sh {
    fn new(setup: &Setup<'_>) -> Self {
        let round: Vec<u32> = (0..)
            .zip(setup.destinations)
            .flat_map(|(position, destination)| {
                std::iter::repeat_n(position, destination.weight.0.max(1) as usize)
            })
            .take(BUCKETS)
            .collect();
        Self { flags: setup.flags, buckets: round.iter().copied().cycle().take(BUCKETS).collect() }
    }

    /// The buckets that are tried for a packet, in order, with the position of each bucket's destination.
    fn tried(&self, request: &Request) -> impl Iterator<Item = (usize, usize)> {
        let port = if self.flags.contains(Flags::PORT) { u32::from(request.source.port) } else { 0 };
        let own = bucket(folded(request.source.addr).wrapping_add(port), BUCKETS.ilog2());
        let others = if self.flags.contains(Flags::FALLBACK) { BUCKETS } else { 0 };
        std::iter::once(own)
            .chain((0..others).map(move |offset| (own + (offset + own) % BUCKETS) % BUCKETS))
            .filter_map(|bucket| Some((bucket, *self.buckets.get(bucket)? as usize)))
    }
}

impl Scheduler for Sh {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let mut positions = self.tried(request).map(|(_, position)| position);
        Choice { position: positions.find(|&position| candidates.usable(position)), state }
    }

    fn account(&self, _: State, request: &Request, candidates: &dyn Candidates) -> Account {
        let what = if self.flags.contains(Flags::PORT) { "address and port" } else { "address" };
        let bucket = format!("the one in the bucket of the packet's source {what}");
        Account::of_places(KIND.name, &bucket, "bucket", self.flags, self.tried(request), candidates)
    }

    fn reserved(&self, position: usize) -> Option<Reserved> {
        (!self.flags.contains(Flags::FALLBACK)).then(|| Reserved::of(position, "bucket", &self.buckets))
    }
}

const BUCKETS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, built, from};

    fn pick(source: &str, flags: Flags, list: &List, weights: &[u32]) -> Option<usize> {
        built("sh", weights, flags).pick(State(0), &from(source), list).position
    }

    #[test]
    fn an_address_selects_the_bucket_and_destinations_fill_as_many_as_they_weigh() {
        let weights = [1, 2, 3];
        for (source, position) in
            [("192.168.1.1:9", 2), ("192.168.1.2:9", 0), ("192.168.1.10:9", 1), ("10.1.2.3:9", 1)]
        {
            assert_eq!(
                pick(source, Flags(0), &List::weights(&weights), &weights),
                Some(position),
                "{source}"
            );
        }
    }

    #[test]
    fn with_sh_port_the_source_port_counts_as_well() {
        let weights = [1, 2, 3];
        // Buckets 170, 12, 27 and 36, of rounds of six.
        for (source, position) in
            [("192.168.1.1:1024", 1), ("192.168.1.2:1024", 0), ("192.168.1.10:1024", 2), ("10.1.2.3:1024", 0)]
        {
            assert_eq!(
                pick(source, Flags::PORT, &List::weights(&weights), &weights),
                Some(position),
                "{source}"
            );
        }
    }

    #[test]
    fn clients_of_an_unusable_destination_get_none_unless_there_is_a_fallback() {
        let weights = [1, 0, 1];
        let list = || List::weights(&weights);
        // Bucket 136 belongs to the quiescent destination in rounds of three; the first fallback is (136 + 136) mod
        // 256.
        assert_eq!(pick("192.168.1.1:9", Flags(0), &list(), &weights), None);
        let reserved =
            |flags| built("sh", &weights, flags).reserved(1).map(|places| (places.own, places.all));
        assert_eq!((reserved(Flags(0)), reserved(Flags::FALLBACK)), (Some((85, 256)), None));
        assert_eq!(pick("192.168.1.1:9", Flags::FALLBACK, &list(), &weights), Some(2));
        assert_eq!(pick("192.168.1.1:9", Flags::FALLBACK, &list().overloaded(2), &weights), Some(0));
        assert_eq!(
            pick("192.168.1.1:9", Flags::FALLBACK, &list().overloaded(2).overloaded(0), &weights),
            None
        );
    }

    #[test]
    fn a_giant_leaves_no_bucket_to_those_behind_it() {
        let weights = [1, i32::MAX as u32, 1];
        let taken: Vec<_> = (0..=255)
            .map(|last| pick(&format!("192.0.2.{last}:9"), Flags(0), &List::weights(&weights), &weights))
            .collect();
        assert!(taken.iter().all(|position| matches!(position, Some(0 | 1))));
    }
}
