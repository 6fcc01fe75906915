//! Literal candidates for tests of schedulers.

use xvs_proto::Endpoint;

use super::{Candidates, Choice, Flags, Load, Request, Scheduler, Setup, State, build, names};
use crate::destination::{Destination, Weight};

/// Destinations by literal weights and loads.
pub(crate) struct List(Vec<(u32, Load, bool)>);

impl List {
    pub(crate) fn weights(weights: &[u32]) -> Self {
        Self(weights.iter().map(|weight| (*weight, Load::default(), false)).collect())
    }

    pub(crate) fn loads(mut self, loads: &[(u32, u32)]) -> Self {
        for (entry, (active, inactive)) in self.0.iter_mut().zip(loads) {
            entry.1 = Load { active: *active, inactive: *inactive };
        }
        self
    }

    pub(crate) fn overloaded(mut self, position: usize) -> Self {
        self.0[position].2 = true;
        self
    }
}

impl Candidates for List {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn weight(&self, position: usize) -> Weight {
        Weight(self.0[position].0)
    }
    fn load(&self, position: usize) -> Load {
        self.0[position].1
    }
    fn overloaded(&self, position: usize) -> bool {
        self.0[position].2
    }
}

/// Destinations with these weights at 10.0.0.N:80; the last one is at 10.0.0.1, as if added in that order.
pub(crate) fn destinations(weights: &[u32]) -> Vec<Destination> {
    let numbers = (1..=weights.len() as u32).rev();
    numbers
        .zip(weights)
        .map(|(number, weight)| Destination {
            endpoint: Endpoint::new(std::net::Ipv4Addr::from(0x0a00_0000 + number), 80),
            weight: Weight(*weight),
            last_weight: Weight(*weight),
        })
        .collect()
}

/// The scheduler with this name for destinations with these weights.
pub(crate) fn built(name: &str, weights: &[u32], flags: Flags) -> Box<dyn Scheduler> {
    let destinations = destinations(weights);
    build(name, &Setup { destinations: &destinations, flags, ..Setup::default() }).unwrap()
}

/// The first packet of a connection from `source` to 198.51.100.1:80.
pub(crate) fn from(source: &str) -> Request {
    let source: std::net::SocketAddr = source.parse().unwrap();
    Request {
        source: Endpoint::new(source.ip(), source.port()),
        dest: Endpoint::new([198, 51, 100, 1], 80),
        now_millis: 0,
        random: 0,
    }
}

/// The choice for an arbitrary client.
pub(crate) fn choice(scheduler: &dyn Scheduler, state: State, candidates: &dyn Candidates) -> Choice {
    scheduler.pick(state, &from("192.0.2.1:1024"), candidates)
}

/// The first `count` choices.
pub(crate) fn picks(scheduler: &dyn Scheduler, candidates: &dyn Candidates, count: usize) -> Vec<usize> {
    let mut state = State::default();
    let mut chosen = Vec::new();
    for _ in 0..count {
        let choice = choice(scheduler, state, candidates);
        state = choice.state;
        chosen.push(choice.position.unwrap());
    }
    chosen
}

#[test]
fn every_name_builds_its_scheduler_also_without_destinations_and_an_unknown_one_builds_none() {
    for name in names() {
        let empty = built(name, &[], Flags(3));
        assert_eq!(choice(&*empty, State(0), &List::weights(&[])).position, None, "{name}");
    }
    assert!(build("fastest", &Setup::default()).is_none());
}
