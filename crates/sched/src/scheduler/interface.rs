//! The interface of a scheduler: the trait, its arguments and results.
//!
//! The control thread builds a scheduler whenever the destinations of its service change. Workers call it once for each
//! new connection. Two things outlive a change of the destinations. The caller keeps a [`State`] of 64 bits, which it
//! updates by compare-and-swap. A scheduler that remembers addresses passes its [`Memory`] to the next one.

use std::sync::Arc;

use xvs_proto::{Endpoint, Family};

use super::candidates::Candidates;
use super::flags::Flags;
use crate::account::Account;
use crate::destination::{Destination, Weight};
use crate::memory::{Memory, Tuning};

/// The inputs of a choice beside the destinations: the packet that begins the connection, and the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The source of the packet.
    pub source: Endpoint,
    /// The destination of the packet.
    pub dest: Endpoint,
    /// The time in milliseconds since some moment in the past.
    pub now_millis: u64,
    /// Random bits, fresh for each choice.
    pub random: u64,
}

/// The state of a scheduler between choices; initially 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State(pub u64);

/// The result of a choice: the chosen position, if there is one, and the next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// A position in the [`Candidates`].
    pub position: Option<usize>,
    /// The state to store if the choice is used.
    pub state: State,
}

/// A change to a service's destinations, to which the scheduler's state is adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A destination was added before all others.
    Added,
    /// The destination at this position was removed; those after it moved up.
    Removed(usize),
    /// The options of a destination changed; its position did not.
    Edited,
}

/// The number of hash table slots that one destination has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The term for a slot in this table: `bucket` or `slot`.
    pub place: &'static str,
    /// The number of slots that the destination has.
    pub own: usize,
    /// The number of slots in the table.
    pub all: usize,
}

impl Reserved {
    /// The slots of a position in a table without fallback.
    pub(crate) fn of(position: usize, place: &'static str, table: &[u32]) -> Self {
        Self { place, own: table.iter().filter(|at| **at as usize == position).count(), all: table.len() }
    }
}

/// A scheduling method. One value serves one service until the service's destinations change.
pub trait Scheduler: Send + Sync {
    /// Chooses a destination. Pure: the same arguments give the same result, without side effects.
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice;

    /// Like [`pick`](Self::pick), for a connection that is then created. A scheduler with a [`Memory`] also stores the
    /// choice there.
    fn choose(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        self.pick(state, request, candidates)
    }

    /// Explains the result of [`pick`](Self::pick) for the same arguments, without side effects.
    fn account(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Account;

    /// The share of new connections that only the destination at this position may get; `None` if others get its
    /// connections while it is not usable.
    fn reserved(&self, _position: usize) -> Option<Reserved> {
        None
    }

    /// The memory that the next scheduler of the same service continues to use.
    fn memory(&self) -> Option<&Arc<Memory>> {
        None
    }
}

/// The arguments of a scheduler's constructor.
#[derive(Default)]
pub struct Setup<'a> {
    /// The destinations in IPVS's order, which is also the order of the [`Candidates`] in later calls.
    pub destinations: &'a [Destination],
    /// The service's family; `None` means the family of its destinations.
    pub family: Option<Family>,
    /// The service's flags.
    pub flags: Flags,
    /// The memory of the service's previous scheduler, if that had the same name.
    pub memory: Option<Arc<Memory>>,
    /// Settings that may change while the scheduler is in use.
    pub tuning: Tuning,
}

/// A scheduler's name and its functions.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) build: fn(&Setup<'_>) -> Box<dyn Scheduler>,
    /// The state after a change, from the state before it and the weights after it.
    pub(crate) carry: fn(State, Change, &mut dyn Iterator<Item = Weight>) -> State,
    /// Maximum number of destinations that the scheduler supports.
    pub(crate) destinations_max: usize,
    /// The share of new connections that a destination gets after its slow start; `None` if the scheduler has no slow
    /// start, because addresses decide.
    pub(crate) full_share: Option<FullShare>,
}

/// The share of a service's new connections that a destination gets, apart from its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullShare {
    /// The same share for each destination.
    Equal,
    /// By its weight.
    ByWeight,
    /// All, while the scheduler prefers it.
    All,
}

impl Kind {
    /// A scheduler that chooses by weights, and whose state, if any, is unaffected by changes.
    pub(crate) const fn new(name: &'static str, build: fn(&Setup<'_>) -> Box<dyn Scheduler>) -> Self {
        let full_share = Some(FullShare::ByWeight);
        Self { name, build, carry: |state, _, _| state, destinations_max: usize::MAX, full_share }
    }
}
