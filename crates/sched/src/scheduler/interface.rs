//! What every scheduler answers and remembers: the trait, its arguments and results.
//!
//! A scheduler is built by the control thread whenever its service's destinations change, and asked by the workers
//! once per new connection. What has to survive a change is of two kinds: a [`State`] of one word, which the caller
//! keeps and commits by compare-and-swap, and for schedulers that remember clients a [`Memory`], which is handed from
//! one build to the next.

use std::sync::Arc;

use xvs_proto::Endpoint;

use super::candidates::Candidates;
use super::flags::Flags;
use crate::account::Account;
use crate::destination::{Destination, Weight};
use crate::memory::{Memory, Tuning};

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
