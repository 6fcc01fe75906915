//! The context of a burst: the snapshot and the time.

use std::time::Duration;

use crate::clock::{Micros, Millis};
use crate::snapshot::Snapshot;

/// The values that are the same for all packets of a burst.
#[derive(Clone, Copy)]
pub struct Context<'s> {
    /// The snapshot in force.
    pub snapshot: &'s Snapshot,
    /// The time.
    pub now: Millis,
    /// The same time, for measuring how long a packet has been awaited.
    pub micros: Micros,
}

impl<'s> Context<'s> {
    /// The context at this time.
    pub fn new(snapshot: &'s Snapshot, now: Millis) -> Self {
        Self { snapshot, now, micros: now.into() }
    }

    /// The context at this time since the start of the clock.
    pub fn at(snapshot: &'s Snapshot, elapsed: Duration) -> Self {
        Self { snapshot, now: elapsed.into(), micros: elapsed.into() }
    }
}
