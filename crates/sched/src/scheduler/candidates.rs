//! The destinations of one service as a scheduler sees them, with what each carries.
//!
//! Read by schedulers during a choice, and by the account of one. Not here: who may be chosen by which rule.

use crate::destination::Weight;

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
