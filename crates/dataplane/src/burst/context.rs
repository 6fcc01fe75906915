//! What the packets of a burst are handled by: the configuration in force, and the time.

use crate::clock::Millis;
use crate::snapshot::Snapshot;

/// The same for all packets of a burst.
#[derive(Clone, Copy)]
pub struct Context<'s> {
    /// The configuration in force.
    pub snapshot: &'s Snapshot,
    /// The time.
    pub now: Millis,
}
