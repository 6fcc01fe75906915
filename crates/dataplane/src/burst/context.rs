//! The context of a burst: the snapshot and the time.

use crate::clock::Millis;
use crate::snapshot::Snapshot;

/// The values that are the same for all packets of a burst.
#[derive(Clone, Copy)]
pub struct Context<'s> {
    /// The snapshot in force.
    pub snapshot: &'s Snapshot,
    /// The time.
    pub now: Millis,
}
