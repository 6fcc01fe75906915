//! The question that every scheduler answers, and the names by which operators choose one.

use crate::destination::Weight;
use crate::{rr::Rr, wlc::Wlc, wrr::Wrr};

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
    fn pick(&self, state: State, candidates: &dyn Candidates) -> Choice;

    /// The state to go on with, from the one held before `change`; called on the scheduler built after it.
    fn carry(&self, state: State, change: Change) -> State;
}

/// Builds a scheduler for a service's destinations, weights given in IPVS's order.
type Build = fn(&[Weight]) -> Box<dyn Scheduler>;

/// Every scheduler by the name that operators type, in alphabetical order.
const SCHEDULERS: &[(&str, Build)] =
    &[("rr", |_| Box::new(Rr)), ("wlc", |_| Box::new(Wlc)), ("wrr", |weights| Box::new(Wrr::new(weights)))];

/// Builds the scheduler of this name; `None` if there is none.
pub fn build(name: &str, weights: &[Weight]) -> Option<Box<dyn Scheduler>> {
    SCHEDULERS.iter().find(|(known, _)| *known == name).map(|(_, build)| build(weights))
}

/// The names that operators may type.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCHEDULERS.iter().map(|(name, _)| *name)
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

    /// The first `count` choices from the beginning.
    pub(crate) fn picks(scheduler: &dyn Scheduler, candidates: &dyn Candidates, count: usize) -> Vec<usize> {
        let mut state = State::default();
        let mut chosen = Vec::new();
        for _ in 0..count {
            let choice = scheduler.pick(state, candidates);
            state = choice.state;
            chosen.push(choice.position.unwrap());
        }
        chosen
    }

    #[test]
    fn every_name_builds_its_scheduler_and_an_unknown_one_builds_none() {
        for name in names() {
            assert!(build(name, &[Weight(1)]).is_some(), "{name}");
        }
        assert!(build("fastest", &[]).is_none());
    }
}
