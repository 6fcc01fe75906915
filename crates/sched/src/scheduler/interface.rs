//! The interface of a scheduler: the trait, its arguments and results.
//!
//! The control thread builds a scheduler whenever the destinations of its service change. Workers call it once for each
//! new connection. Two things outlive a change of the destinations. The caller keeps a [`State`] of one word, which it
//! updates by compare-and-swap. A scheduler that remembers addresses passes its [`Memory`] to the next one.

use std::sync::Arc;

use xvs_proto::{Endpoint, Family};

use super::candidates::Candidates;
use super::flags::Flags;
use crate::account::Account;
use crate::destination::{Destination, Weight};
use crate::memory::{Memory, Tuning};

/// What a choice may depend on beside the destinations: the packet that begins the connection, and the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The source of the packet.
    pub source: Endpoint,
    /// The destination of the packet.
    pub dest: Endpoint,
    /// The time, in milliseconds since some moment in the past.
    pub now_millis: u64,
    /// Random bits, fresh for each choice.
    pub random: u64,
}

/// The state of a scheduler between choices; 0 at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State(pub u64);

/// The result of a choice: the chosen position, if a destination may be chosen, and the state after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// A position in the [`Candidates`].
    pub position: Option<usize>,
    /// The state to store if the choice is used.
    pub state: State,
}

/// A change of a service's destinations, to which the state of its scheduler is adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A destination was added before all others.
    Added,
    /// The destination at this position was removed; those behind it moved up.
    Removed(usize),
    /// The options of a destination were changed; its position stays.
    Edited,
}

/// The places of a hash table that one destination has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The word for a place: `bucket` or `slot`.
    pub place: &'static str,
    /// The number of places that it has.
    pub own: usize,
    /// The number of places in the table.
    pub all: usize,
}

impl Reserved {
    /// The places of a position in a table without fallback.
    pub(crate) fn of(position: usize, place: &'static str, table: &[u32]) -> Self {
        let own = table.iter().filter(|at| **at as usize == position).count();
        Self { place, own, all: table.len() }
    }
}

/// A scheduling method. One value serves one service until the service's destinations change.
pub trait Scheduler: Send + Sync {
    /// Chooses a destination. Pure: the same arguments give the same result, and nothing else changes.
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice;

    /// As [`pick`](Self::pick), for a connection that is then created. A scheduler with a [`Memory`] also enters the
    /// choice there.
    fn choose(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        self.pick(state, request, candidates)
    }

    /// Explains what [`pick`](Self::pick) does with the same arguments. Nothing changes either.
    fn account(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Account;

    /// The part of the new connections that only the destination at this position may get; `None`: if it is not usable,
    /// others get its connections.
    fn reserved(&self, _position: usize) -> Option<Reserved> {
        None
    }

    /// The memory that the next scheduler of the same service continues with.
    fn memory(&self) -> Option<&Arc<Memory>> {
        None
    }
}

/// The arguments of a scheduler's constructor.
#[derive(Default)]
pub struct Setup<'a> {
    /// The destinations in IPVS's order, the order of the [`Candidates`] in later calls.
    pub destinations: &'a [Destination],
    /// The service's family; `None`: that of its destinations.
    pub family: Option<Family>,
    /// The service's flags.
    pub flags: Flags,
    /// The memory of the previous scheduler of the service, if that had the same name.
    pub memory: Option<Arc<Memory>>,
    /// Settings that may change while the scheduler works.
    pub tuning: Tuning,
}

/// A scheduler's name and its functions.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) build: fn(&Setup<'_>) -> Box<dyn Scheduler>,
    /// The state after a change, from the state before it and the weights after it.
    pub(crate) carry: fn(State, Change, &mut dyn Iterator<Item = Weight>) -> State,
    /// The most destinations that the scheduler supports.
    pub(crate) destinations_max: usize,
    /// The part of new connections that a destination gets after its slow start; `None`: it has no slow start, because
    /// addresses decide.
    pub(crate) full_share: Option<FullShare>,
}

/// The part of a service's new connections that a destination gets, apart from its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullShare {
    /// The same for each destination.
    Equal,
    /// By its weight.
    ByWeight,
    /// All, while the scheduler prefers it.
    All,
}

impl Kind {
    /// A scheduler whose state, if it has any, stays the same in every change, and which chooses by weights.
    pub(crate) const fn new(name: &'static str, build: fn(&Setup<'_>) -> Box<dyn Scheduler>) -> Self {
        let full_share = Some(FullShare::ByWeight);
        Self { name, build, carry: |state, _, _| state, destinations_max: usize::MAX, full_share }
    }
}
