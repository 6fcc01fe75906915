//! Maglev hashing (`mh`).
//!
//! Runs once for each new connection. When the scheduler is built, it fills a table of 4,093 slots. Each destination
//! has its own order of slots, from hashes of its endpoint. The destinations take turns, and each takes slots in
//! proportion to its weight. The removal of a destination therefore moves few clients of other destinations. The
//! packet's source address, with `mh-port` also its source port, selects the slot. If the slot's destination is not
//! usable, none is chosen; with `mh-fallback` other slots are tried. The last weight above 0 counts, so a quiescent
//! destination gets its clients back.
//!
//! Stateless. Cost: one SipHash; with `mh-fallback` up to 4,093 more while destinations are unusable. Building takes
//! about 4,093 × ln 4,093 steps in all, whatever the number of destinations.
//!
//! Source: ipvs-behaviour, section 5.4; Eisenbud et al., "Maglev", NSDI 2016, section 3.4.

use std::net::{IpAddr, Ipv4Addr};

use xvs_proto::Family;

use crate::account::Account;
use crate::hash::{folded, sip};
use crate::scheduler::candidates::Candidates;
use crate::scheduler::flags::Flags;
use crate::scheduler::interface::{Choice, Kind, Request, Reserved, Scheduler, Setup, State};
use crate::wrr::gcd;

pub(crate) const KIND: Kind =
    Kind { destinations_max: SLOTS, full_share: None, ..Kind::new("mh", |setup| Box::new(Mh::new(setup))) };

struct Mh {
    flags: Flags,
    /// The position of each slot's destination; empty if no destination has ever had a weight above 0.
    slots: Box<[u32]>,
}

impl Mh {
    fn new(setup: &Setup<'_>) -> Self {
        Self { flags: setup.flags, slots: fill(setup) }
    }

    /// The slots that are tried for a packet, in order, with the position of each slot's destination.
    fn tried(&self, request: &Request) -> impl Iterator<Item = (usize, usize)> {
        let port = if self.flags.contains(Flags::PORT) { request.source.port } else { 0 };
        let addr = request.source.addr;
        let own = slot(hash(PLACE_KEY, addr, port, 0));
        let others = if self.flags.contains(Flags::FALLBACK) { SLOTS } else { 0 };
        std::iter::once(own)
            .chain(
                (0..others)
                    .map(move |offset| slot(hash(PLACE_KEY, addr, port, ((offset + own) % SLOTS) as u32))),
            )
            .filter_map(|slot| Some((slot, *self.slots.get(slot)? as usize)))
    }
}

impl Scheduler for Mh {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let mut positions = self.tried(request).map(|(_, position)| position);
        Choice { position: positions.find(|&position| candidates.usable(position)), state }
    }

    fn account(&self, _: State, request: &Request, candidates: &dyn Candidates) -> Account {
        let what = if self.flags.contains(Flags::PORT) { "address and port" } else { "address" };
        let slot = format!("the one in the slot of the packet's source {what}");
        Account::of_places(KIND.name, &slot, "slot", self.flags, self.tried(request), candidates)
    }

    fn reserved(&self, position: usize) -> Option<Reserved> {
        (!self.flags.contains(Flags::FALLBACK)).then(|| Reserved::of(position, "slot", &self.slots))
    }
}

/// A destination's progress through its order of slots.
struct Walk {
    position: u32,
    next: usize,
    skip: usize,
    /// The number of slots that it takes before the next destination's turn.
    turns: u32,
}

/// The table of slots: the position in each.
fn fill(setup: &Setup<'_>) -> Box<[u32]> {
    let weights = setup.destinations.iter().map(|destination| destination.last_weight.0);
    let divisor = weights.clone().fold(0, gcd).max(1);
    let heaviest = weights.max().unwrap_or(0) / divisor;
    let shift = (u32::BITS - heaviest.leading_zeros()).saturating_sub(WEIGHT_BITS);
    let mut walks: Vec<Walk> = (0..)
        .zip(setup.destinations)
        .filter(|(_, destination)| destination.last_weight.0 > 0)
        .map(|(position, destination)| {
            let addr = in_family(destination.endpoint.addr, setup.family);
            let port = destination.endpoint.port;
            Walk {
                position,
                next: slot(hash(PLACE_KEY, addr, port, 0)),
                skip: hash(SKIP_KEY, addr, port, 0) as usize % (SLOTS - 1) + 1,
                turns: ((destination.last_weight.0 / divisor) >> shift).max(1),
            }
        })
        .collect();
    if walks.is_empty() {
        return Box::default();
    }
    let mut slots = vec![VACANT; SLOTS];
    let mut vacant = SLOTS;
    while vacant > 0 {
        for walk in &mut walks {
            for _ in 0..walk.turns.min(vacant as u32) {
                while slots[walk.next] != VACANT {
                    walk.next = (walk.next + walk.skip) % SLOTS;
                }
                slots[walk.next] = walk.position;
                vacant -= 1;
            }
        }
    }
    slots.into()
}

/// A destination's address as an address of the service's family: for an IPv6 address in an IPv4 service (a tunnel),
/// only the first 32 bits count, as in the kernel.
fn in_family(addr: IpAddr, family: Option<Family>) -> IpAddr {
    match (addr, family) {
        (IpAddr::V6(addr), Some(Family::V4)) => Ipv4Addr::from_bits((addr.to_bits() >> 96) as u32).into(),
        _ => addr,
    }
}

/// The low half of a SipHash over the sum of address, port and offset.
fn hash(key: u64, addr: IpAddr, port: u16, offset: u32) -> u32 {
    sip(key, &offset.wrapping_add(port.into()).wrapping_add(folded(addr)).to_le_bytes()) as u32
}

fn slot(hash: u32) -> usize {
    hash as usize % SLOTS
}

/// A prime, so that the steps of each destination reach all slots.
const SLOTS: usize = 4093;
/// The number of leading bits of each weight that count.
const WEIGHT_BITS: u32 = 6;
/// The hash key for a client's slot, and for a destination's first slot.
const PLACE_KEY: u64 = 2_654_435_761;
/// The key for a destination's step.
const SKIP_KEY: u64 = 2_654_446_892;
/// An empty slot; never a valid position, because there are at most [`SLOTS`] destinations.
const VACANT: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::{Destination, Weight};
    use crate::scheduler::testing::{List, built, destinations, from};

    fn owned(destinations: &[Destination]) -> Vec<usize> {
        let slots = fill(&Setup { destinations, ..Setup::default() });
        (0..destinations.len()).map(|at| slots.iter().filter(|slot| **slot as usize == at).count()).collect()
    }

    fn pick(source: &str, flags: Flags, list: &List) -> Option<usize> {
        built("mh", &[1, 1, 1], flags).pick(State(0), &from(source), list).position
    }

    #[test]
    fn destinations_begin_and_step_where_the_kernels_do() {
        let places = destinations(&[1, 1, 1]).into_iter().map(|Destination { endpoint, .. }| {
            let hash = |key| hash(key, endpoint.addr, endpoint.port, 0) as usize;
            (hash(PLACE_KEY) % SLOTS, hash(SKIP_KEY) % (SLOTS - 1) + 1)
        });
        assert_eq!(places.collect::<Vec<_>>(), [(1631, 3453), (1231, 3544), (3167, 700)]);
    }

    #[test]
    fn slots_are_shared_by_weight() {
        assert_eq!(owned(&destinations(&[1, 1, 1])), [1365, 1364, 1364]);
        assert_eq!(owned(&destinations(&[1, 2, 4])), [585, 1170, 2338]);
        assert_eq!(owned(&destinations(&[10, 20, 40])), [585, 1170, 2338]);
        assert_eq!(owned(&destinations(&[0, 0])), [0, 0]);
        let huge = owned(&destinations(&[i32::MAX as u32, 1]));
        assert_eq!((huge[0] + huge[1], huge[1] > 0), (SLOTS, true));
    }

    #[test]
    fn clients_reach_the_servers_that_they_reach_through_the_kernel() {
        // Positions: 10.0.0.3 is 0, 10.0.0.2 is 1, 10.0.0.1 is 2.
        let clients = ["192.168.1.1:1024", "192.168.1.2:1024", "192.168.1.10:1024", "10.1.2.3:1024"];
        let list = List::weights(&[1, 1, 1]);
        assert_eq!(clients.map(|client| pick(client, Flags(0), &list).unwrap()), [2, 0, 2, 2]);
        assert_eq!(clients.map(|client| pick(client, Flags::PORT, &list).unwrap()), [1, 0, 1, 1]);
    }

    #[test]
    fn a_quiescent_destination_keeps_its_slots_and_only_a_fallback_replaces_it() {
        let list = || List::weights(&[1, 1, 0]);
        assert_eq!(pick("192.168.1.1:1024", Flags(0), &list()), None);
        let reserved =
            |flags| built("mh", &[1, 1, 1], flags).reserved(2).map(|places| (places.own, places.all));
        assert_eq!((reserved(Flags(0)), reserved(Flags::FALLBACK)), (Some((1364, 4093)), None));
        assert_eq!(pick("192.168.1.2:1024", Flags(0), &list()), Some(0), "others stay where they are");
        assert!(matches!(pick("192.168.1.1:1024", Flags::FALLBACK, &list()), Some(0 | 1)));
        assert_eq!(pick("192.168.1.1:1024", Flags::FALLBACK, &list().overloaded(0)), Some(1));
        assert_eq!(pick("192.168.1.1:1024", Flags::FALLBACK, &list().overloaded(0).overloaded(1)), None);
    }

    #[test]
    fn shares_follow_the_last_weight_above_zero() {
        let mut all = destinations(&[1, 2, 4]);
        let before = fill(&Setup { destinations: &all, ..Setup::default() });
        all[2].weight = Weight(0);
        assert_eq!(fill(&Setup { destinations: &all, ..Setup::default() }), before);
    }

    #[test]
    fn of_ipv6_destinations_of_an_ipv4_service_the_first_32_bits_count() {
        let fill = |family, addresses: [&str; 2]| {
            let mut all = destinations(&[1, 1]);
            all.iter_mut().zip(addresses).for_each(|(one, addr)| one.endpoint.addr = addr.parse().unwrap());
            fill(&Setup { destinations: &all, family, ..Setup::default() })
        };
        let v6 = ["2001:db8::1", "2001:db9::2"];
        assert_eq!(fill(Some(Family::V4), v6), fill(None, ["32.1.13.184", "32.1.13.185"]));
        assert_ne!(fill(Some(Family::V6), v6), fill(Some(Family::V4), v6));
    }

    #[test]
    fn as_many_destinations_as_slots_have_one_each() {
        assert_eq!(owned(&destinations(&[7; SLOTS])), [1; SLOTS]);
    }
}
