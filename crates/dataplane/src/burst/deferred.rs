//! Changes to destinations' connection counts that a worker defers until its burst ends.
//!
//! All workers share a destination's counts. If each connection changed them at once, workers that begin connections to
//! one real server would wait for the cache line of its counts each time. A worker therefore collects the changes in
//! private memory and adds them once for the whole burst. Its schedulers see its own changes at once, and those of
//! other workers after their bursts. With thresholds nothing is deferred, so that thresholds hold exactly.
//!
//! Cost: a plain addition for a change, and one atomic addition for each destination of a burst. Bounded: when [`ROOM`]
//! destinations have changes, these are added. Evictions, replaced connections, FTP's data connections and received
//! synchronization change the counts (`snapshot/load.rs`) immediately. Between the end of such a connection and the end
//! of the burst that began it, a count may be one too low.

use crate::conn::Connection;
use crate::new_connection::eviction::ended;
use crate::new_connection::limit;
use crate::snapshot::{Change, DestinationId, DestinationLive, Destinations, Snapshot};

/// One worker's destinations with changes.
pub(crate) struct Deferred {
    worker: usize,
    changed: Vec<DestinationId>,
}

impl Deferred {
    /// Without changes.
    pub(crate) fn new(worker: usize) -> Self {
        Self { worker, changed: Vec::with_capacity(ROOM) }
    }

    /// Changes the counts of a destination in this snapshot; [`Self::end`] must be called with the same snapshot.
    #[inline]
    pub(crate) fn change(
        &mut self,
        id: DestinationId,
        live: &DestinationLive,
        change: Change,
        snapshot: &Snapshot,
    ) {
        if live.defer(self.worker, change) {
            if self.changed.len() == ROOM {
                self.end(&snapshot.destinations);
            }
            self.changed.push(id);
        }
    }

    /// Removes a connection from its destination's counts. The caller has removed it from the table in this state.
    pub(crate) fn count_out(&mut self, connection: &Connection<'_>, state: u8, snapshot: &Snapshot) {
        if let Some(destination) = snapshot.destinations.of(connection) {
            let id = DestinationId(connection.dest_ref());
            self.change(id, &destination.live, Change::End(ended(connection, state)), snapshot);
        }
        limit::count_out(connection, snapshot);
    }

    /// Adds the changes, at the end of the burst.
    pub(crate) fn end(&mut self, destinations: &Destinations) {
        self.changed
            .drain(..)
            .filter_map(|id| destinations.find(id))
            .for_each(|destination| destination.live.add_deferred(self.worker));
    }
}

/// Maximum number of destinations with changes: those of a burst whose packets all begin connections.
const ROOM: usize = xvs_xdp::BURST;
