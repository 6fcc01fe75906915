//! The question that every scheduler answers, and the names by which operators choose one.
//!
//! A scheduler is built by the control thread whenever its service's destinations change, and asked by the workers
//! once per new connection. What has to survive a change is of two kinds: a [`State`] of one word, which the caller
//! keeps and commits by compare-and-swap, and for schedulers that remember clients a [`Memory`], which is handed from
//! one build to the next.

use std::sync::Arc;

use xvs_proto::Endpoint;

use crate::account::Account;
use crate::destination::{Destination, Weight};
pub use crate::memory::{Memory, Tuning};
use crate::{dh, fo, lblc, lblcr, lc, mh, none, nq, ovf, rr, sed, sh, twos, wlc, wrr};

/// What a destination carries at the moment of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Connections in an active state.
    pub active: u32,
    /// All its other connections.
    pub inactive: u32,
}

impl Load {
    /// The overhead that `lc`, `wlc` and their kin compare: an active connection weighs as much as 256 others.
    pub fn overhead(self) -> i64 {
        (i64::from(self.active) << 8) + i64::from(self.inactive)
    }
}

/// What a choice may depend on beside the destinations: the packet that begins the connection, and the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Where the packet comes from.
    pub source: Endpoint,
    /// Where it goes to.
    pub dest: Endpoint,
    /// The time, in milliseconds since some moment in the past.
    pub now_millis: u64,
    /// Random bits, fresh for each choice.
    pub random: u64,
}

/// The destinations of one service in IPVS's order (the one added last comes first), as a scheduler sees them.
///
/// A position is valid below [`len`](Self::len); the order does not change during a choice, the loads may.
pub trait Candidates {
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The weight of one.
    fn weight(&self, position: usize) -> Weight;
    /// What one carries.
    fn load(&self, position: usize) -> Load;
    /// Whether one is above its upper threshold and has not yet come down to its lower one.
    fn overloaded(&self, position: usize) -> bool;
    /// Whether one may take a new connection at all.
    fn usable(&self, position: usize) -> bool {
        !self.weight(position).is_quiescent() && !self.overloaded(position)
    }
}

/// What a scheduler remembers from choice to choice; 0 is where each of them begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State(pub u64);

/// An answer: the chosen position, if any destination may be chosen, and the state after the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// A position in the [`Candidates`], or none.
    pub position: Option<usize>,
    /// The state to remember if the choice is carried out.
    pub state: State,
}

/// A change of a service's destinations, as a scheduler's state has to survive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// One was added, before all others.
    Added,
    /// The one at this position has gone; those behind it moved up.
    Removed(usize),
    /// One was given other options where it stands.
    Edited,
}

/// A way of choosing. One value serves one service until its destinations change.
pub trait Scheduler: Send + Sync {
    /// Chooses a destination. Pure: the same arguments give the same answer, and nothing else changes.
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice;

    /// [`pick`](Self::pick) for a connection that is really made: who has a [`Memory`] also enters the choice there.
    fn choose(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        self.pick(state, request, candidates)
    }

    /// What [`pick`](Self::pick) goes by with the same arguments. Nothing changes either.
    fn account(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Account;

    /// What the scheduler built after this one for the same service goes on with.
    fn memory(&self) -> Option<&Arc<Memory>> {
        None
    }
}

/// The flags of a scheduler (`-b`), as `sh` and `mh` have them; others ignore them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// `sh-fallback`, `mh-fallback`: an unusable destination's clients go to others.
    pub const FALLBACK: Self = Self(1);
    /// `sh-port`, `mh-port`: the source port counts as well.
    pub const PORT: Self = Self(2);

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a scheduler is built from.
#[derive(Default)]
pub struct Setup<'a> {
    /// The destinations in IPVS's order: that of the [`Candidates`] it will be asked about.
    pub destinations: &'a [Destination],
    /// The service's flags.
    pub flags: Flags,
    /// That of the scheduler before, if it had the same name.
    pub memory: Option<Arc<Memory>>,
    /// Settings that may change while it works.
    pub tuning: Tuning,
}

/// A scheduler by the name that operators type.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) build: fn(&Setup<'_>) -> Box<dyn Scheduler>,
    /// The state to go on with after a change, from the one held before and the weights as they are now.
    pub(crate) carry: fn(State, Change, &mut dyn Iterator<Item = Weight>) -> State,
    /// The most destinations that it can do with.
    pub(crate) destinations_max: usize,
}

impl Kind {
    /// One whose state, if it has any, no change touches.
    pub(crate) const fn new(name: &'static str, build: fn(&Setup<'_>) -> Box<dyn Scheduler>) -> Self {
        Self { name, build, carry: |state, _, _| state, destinations_max: usize::MAX }
    }
}

/// Every scheduler in alphabetical order.
const SCHEDULERS: &[Kind] = &[
    dh::KIND,
    fo::KIND,
    lblc::KIND,
    lblcr::KIND,
    lc::KIND,
    mh::KIND,
    none::KIND,
    nq::KIND,
    ovf::KIND,
    rr::KIND,
    sed::KIND,
    sh::KIND,
    twos::KIND,
    wlc::KIND,
    wrr::KIND,
];

fn kind(name: &str) -> Option<&'static Kind> {
    SCHEDULERS.iter().find(|kind| kind.name == name)
}

/// Builds the scheduler of this name; `None` if there is none.
pub fn build(name: &str, setup: &Setup<'_>) -> Option<Box<dyn Scheduler>> {
    kind(name).map(|kind| (kind.build)(setup))
}

/// The state with which the scheduler of this name goes on after a change of its service's destinations, from the one
/// it held before and the weights as they are now, in IPVS's order.
pub fn carry(name: &str, state: State, change: Change, weights: &mut dyn Iterator<Item = Weight>) -> State {
    kind(name).map_or(state, |kind| (kind.carry)(state, change, weights))
}

/// The most destinations that the scheduler of this name can do with.
pub fn destinations_max(name: &str) -> usize {
    kind(name).map_or(usize::MAX, |kind| kind.destinations_max)
}

/// The names that operators may type.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCHEDULERS.iter().map(|kind| kind.name)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

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

    /// Destinations of these weights at 10.0.0.N:80, the last one at 10.0.0.1, as if added in that order.
    pub(crate) fn destinations(weights: &[u32]) -> Vec<Destination> {
        let numbers = (1..=weights.len() as u32).rev();
        let both = numbers.zip(weights).map(|(number, weight)| Destination {
            endpoint: Endpoint::new(std::net::Ipv4Addr::from(0x0a00_0000 + number), 80),
            weight: Weight(*weight),
            last_weight: Weight(*weight),
        });
        both.collect()
    }

    /// The scheduler of this name for destinations of these weights.
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

    /// The choice for a client that makes no difference.
    pub(crate) fn choice(scheduler: &dyn Scheduler, state: State, candidates: &dyn Candidates) -> Choice {
        scheduler.pick(state, &from("192.0.2.1:1024"), candidates)
    }

    /// The first `count` choices from the beginning.
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
            let nobody = built(name, &[], Flags(3));
            assert_eq!(choice(&*nobody, State(0), &List::weights(&[])).position, None, "{name}");
        }
        assert!(build("fastest", &Setup::default()).is_none());
    }
}
