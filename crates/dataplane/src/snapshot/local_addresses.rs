//! The director's own endpoints, which real servers see instead of clients' (FULLNAT).
//!
//! [`LocalAddresses`] is part of a snapshot. A worker's [`LocalCursor`] moves through it, one step for each new
//! connection. The length of a step is coprime to the number of endpoints, so a round offers each endpoint once,
//! adjacent endpoints far apart, and the most recently offered endpoint last. Endpoints that were taken in this order
//! are not distributed at random, so a worker that finds a few of them taken continues elsewhere
//! ([`LocalCursor::jump`]). Cost of a step: one division, and a search among the addresses.
//!
//! Only the connection table knows whether an endpoint is taken, for each destination separately.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use xvs_proto::{Endpoint, Family};

/// Local addresses with their ports, of both families.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    pools: [Pool; 2],
    /// The addresses of other directors, whose connections continue here.
    standby: Vec<(IpAddr, RangeInclusive<u16>)>,
}

impl LocalAddresses {
    /// Creates the endpoints with these addresses and ports. No endpoint may occur twice. New connections do not use
    /// those in `standby`.
    pub fn new(
        addresses: impl IntoIterator<Item = (IpAddr, RangeInclusive<u16>)>,
        standby: impl IntoIterator<Item = (IpAddr, RangeInclusive<u16>)>,
    ) -> Self {
        let mut locals = Self { standby: standby.into_iter().collect(), ..Self::default() };
        for (addr, ports) in addresses {
            let pool = &mut locals.pools[Family::of(addr) as usize];
            pool.total += ports.len() as u32;
            pool.ends.push((pool.total, Endpoint { addr, port: *ports.end() }));
        }
        for pool in &mut locals.pools {
            pool.step = step(pool.total);
        }
        locals
    }

    /// Whether this is one of these endpoints. Cost: a check of each address in the family.
    pub fn has(&self, endpoint: Endpoint) -> bool {
        let mut before = 0;
        for (end, last) in &self.pools[endpoint.family() as usize].ends {
            let first = last.port - (end - before - 1) as u16;
            if last.addr == endpoint.addr && (first..=last.port).contains(&endpoint.port) {
                return true;
            }
            before = *end;
        }
        self.standby.iter().any(|(addr, ports)| *addr == endpoint.addr && ports.contains(&endpoint.port))
    }

    /// The addresses that new connections use, and those of other directors.
    pub fn addresses(&self) -> [Vec<IpAddr>; 2] {
        [
            self.pools.iter().flat_map(|pool| &pool.ends).map(|(_, last)| last.addr).collect(),
            self.standby.iter().map(|(addr, _)| *addr).collect(),
        ]
    }

    /// The next endpoint in a family; `None` if the family has no local address.
    pub fn next(&self, family: Family, cursor: &mut LocalCursor) -> Option<Endpoint> {
        let pool = &self.pools[family as usize];
        let position = &mut cursor.positions[family as usize];
        *position = position.checked_add(pool.step)?.checked_rem(pool.total)?;
        pool.at(*position)
    }
}

/// The endpoints in one family, numbered consecutively.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pool {
    /// For each address the number after its last endpoint, and that endpoint.
    ends: Vec<(u32, Endpoint)>,
    total: u32,
    step: u32,
}

impl Pool {
    fn at(&self, position: u32) -> Option<Endpoint> {
        let (end, last) = self.ends.get(self.ends.partition_point(|(end, _)| *end <= position))?;
        Some(Endpoint { port: last.port - (end - 1 - position) as u16, ..*last })
    }
}

/// One worker's position in each family.
#[derive(Debug)]
pub struct LocalCursor {
    positions: [u32; 2],
}

impl LocalCursor {
    /// Starts at `start`, which must differ between workers and between runs.
    pub fn new(start: u32) -> Self {
        let mut cursor = Self { positions: [0; 2] };
        cursor.jump(start);
        cursor
    }

    /// Continues at a random position.
    pub fn jump(&mut self, random: u32) {
        // Less than all bits, so that the addition of a step cannot overflow.
        self.positions = [random >> 2; 2];
    }
}

/// A number near the golden section of `total` and coprime to it: its multiples are evenly distributed.
fn step(total: u32) -> u32 {
    let golden = (f64::from(total) * 0.618_034) as u32;
    (golden.max(1)..).find(|step| common_factor(*step, total) == 1).unwrap_or(1)
}

fn common_factor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_factor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_endpoint_is_one_of_them_by_address_and_port() {
        let [one, two] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let three = IpAddr::from([192, 0, 2, 3]);
        let locals = LocalAddresses::new([(one, 5000..=5009), (two, 7000..=7000)], [(three, 5000..=5009)]);
        let has = |addr, port| locals.has(Endpoint { addr, port });
        assert_eq!([4999, 5000, 5009, 5010].map(|port| has(one, port)), [false, true, true, false]);
        assert_eq!([5000, 6999, 7000, 7001].map(|port| has(two, port)), [false, false, true, false]);
        assert_eq!([4999, 5000, 5009, 5010].map(|port| has(three, port)), [false, true, true, false]);
        assert!(!has(IpAddr::from([192, 0, 2, 4]), 5000));
        assert_eq!(locals.addresses(), [vec![one, two], vec![three]]);
    }

    #[test]
    fn new_connections_use_no_address_of_another_director() {
        let standby = (IpAddr::from([192, 0, 2, 3]), 5000..=5009);
        assert_eq!(LocalAddresses::new([], [standby]).next(Family::V4, &mut LocalCursor::new(1)), None);
    }

    proptest! {
        #[test]
        fn a_round_offers_each_endpoint_once_and_no_other(
            ranges in prop::collection::vec((1u16..=u16::MAX, 0u16..300), 1..5),
            start: u32,
        ) {
            let ranges = ranges.iter().map(|(first, more)| *first..=first.saturating_add(*more));
            let named: Vec<_> = (1u8..).map(|last| IpAddr::from([192, 0, 2, last])).zip(ranges).collect();
            let every: HashSet<_> = named
                .iter()
                .flat_map(|(addr, ports)| ports.clone().map(|port| Endpoint { addr: *addr, port }))
                .collect();
            let locals = LocalAddresses::new(named, []);
            let mut cursor = LocalCursor::new(start);
            let round: Vec<_> =
                (0..every.len()).map(|_| locals.next(Family::V4, &mut cursor).unwrap()).collect();
            prop_assert_eq!(round.iter().copied().collect::<HashSet<_>>(), every);
            prop_assert_eq!(locals.next(Family::V4, &mut cursor).unwrap(), round[0]);
            prop_assert_eq!(locals.next(Family::V6, &mut cursor), None);
        }
    }

    #[test]
    fn many_addresses_with_all_ports_can_be_stepped_through() {
        let all = (0..4096u32).map(|number| (IpAddr::V4((0x0a00_0000 + number).into()), 1..=u16::MAX));
        let locals = LocalAddresses::new(all, []);
        let mut cursor = LocalCursor::new(u32::MAX);
        let some: HashSet<_> = (0..10_000).map(|_| locals.next(Family::V4, &mut cursor).unwrap()).collect();
        assert_eq!(some.len(), 10_000);
    }
}
