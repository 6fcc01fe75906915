//! The destinations of one service with their loads, as a scheduler sees them.
//!
//! Schedulers read them for a choice and for its explanation.

use crate::destination::Weight;

/// The load of a destination at the time of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Connections in an active state.
    pub active: u32,
    /// All other connections.
    pub inactive: u32,
}

impl Load {
    /// The overhead that `lc`, `wlc` and similar schedulers compare: one active connection counts as 256 inactive ones.
    pub fn overhead(self) -> i64 {
        (i64::from(self.active) << 8) + i64::from(self.inactive)
    }
}

/// The destinations of one service in IPVS's order (the most recently added one comes first), as a scheduler sees them.
///
/// A position is valid if it is less than [`len`](Self::len). During a choice the order does not change, but loads may.
pub trait Candidates {
    /// The number of destinations.
    fn len(&self) -> usize;
    /// Whether there is no destination.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The weight of a destination.
    fn weight(&self, position: usize) -> Weight;
    /// The load of a destination.
    fn load(&self, position: usize) -> Load;
    /// Whether a destination has exceeded its upper threshold and has not since fallen to its lower one.
    fn overloaded(&self, position: usize) -> bool;
    /// Whether a destination may take a new connection.
    fn usable(&self, position: usize) -> bool {
        !self.weight(position).is_quiescent() && !self.overloaded(position)
    }
}
