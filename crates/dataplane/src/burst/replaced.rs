//! Connections that were replaced by new ones and are still counted at their destinations.
//!
//! IPVS lets a replaced connection expire by its timer, so its destination counts it until the kernel's next tick, and
//! schedulers see this count. This file reproduces that behaviour. Bounded: if there is no room ([`ROOM`]), all are
//! removed from the counts at once.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Millis;
use crate::snapshot::{Activity, DestinationLive};

/// One worker's replaced connections.
#[derive(Default)]
pub(crate) struct Replaced {
    counted: Vec<(Arc<DestinationLive>, Activity)>,
    until: Millis,
}

impl Replaced {
    /// Without connections.
    pub(crate) fn new() -> Self {
        Self { counted: Vec::with_capacity(ROOM), until: Millis(0) }
    }

    /// Keeps a connection counted until the next tick.
    pub(crate) fn keep(&mut self, live: &Arc<DestinationLive>, activity: Activity, now: Millis) {
        if self.counted.len() == self.counted.capacity() {
            self.count_out();
        }
        if self.counted.is_empty() {
            self.until = next_tick(now);
        }
        self.counted.push((Arc::clone(live), activity));
    }

    /// Removes connections whose tick has come from the counts.
    pub(crate) fn expire(&mut self, now: Millis) {
        if now >= self.until {
            self.count_out();
        }
    }

    /// When connections have to be removed from the counts. `None` means not before another one is added.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        (!self.counted.is_empty()).then_some(self.until)
    }

    /// Removes all connections from the counts.
    pub(crate) fn count_out(&mut self) {
        self.counted.drain(..).for_each(|(live, activity)| live.decrement(activity));
    }
}

/// The first tick after `now`.
fn next_tick(now: Millis) -> Millis {
    let tick = TICK.as_millis() as u64;
    Millis((now.0 / tick + 1) * tick)
}

/// The period of the kernel's timers.
const TICK: Duration = Duration::from_millis(10);
/// Maximum number of replaced connections that a worker keeps.
const ROOM: usize = 256;
