//! Handles for threads that are not workers: listings and sweeps.
//!
//! A [`TableReader`] walks the entries by index, in slices, and may remove some of them. A walk delays only the reuse
//! of entries that are removed during its current slice. Between walks the reader is parked. Cost: a cache line for
//! each entry that was ever used. `handle.rs` contains the code that it shares with workers.

use std::ops::Range;
use std::sync::Arc;

use xvs_proto::FlowKey;

use super::call_ids::CallIds;
use super::connection::Connection;
use super::copy::Copied;
use super::direction::Direction;
use super::handle::TableHandle;
use super::id::ConnId;
use super::insertion::Removal;
use super::log::Ending;
use super::lookup::Sought;
use super::table::Table;
use crate::clock::Millis;

/// A handle for listings and sweeps. It is parked except during a walk.
#[derive(Debug)]
pub struct TableReader {
    pub(super) handle: TableHandle,
}

impl TableReader {
    pub(super) fn new(mut handle: TableHandle) -> Self {
        handle.leave();
        Self { handle }
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.handle.table
    }

    /// Sets the time of subsequent walks, at which connections end.
    pub fn set_now(&mut self, now: Millis) {
        self.handle.now = now;
    }

    /// Calls `view` for each connection whose index is in `range`, in the order of the indices. It visits each
    /// connection that exists during the whole walk, and possibly those that are inserted or removed in the meantime.
    /// Walk long tables in slices: entries removed during a slice are reused only after it.
    pub fn for_each(&mut self, range: Range<u32>, mut view: impl FnMut(Connection<'_>)) {
        self.visit(range, |reader, id| view(reader.connection(id)));
    }

    /// Like [`for_each`](Self::for_each), for a walk that removes connections.
    pub fn visit(&mut self, range: Range<u32>, visit: impl FnMut(&mut Self, ConnId)) {
        self.visit_each(range.start..range.end.min(self.handle.table.extent()), visit);
    }

    /// Like [`visit`](Self::visit), for indices in any order, all below [`Table::extent`].
    pub fn visit_each(
        &mut self,
        places: impl Iterator<Item = u32>,
        mut visit: impl FnMut(&mut Self, ConnId),
    ) {
        self.handle.enter();
        let walk = Parked(self);
        for index in places {
            if walk.0.handle.table.slab.entry(index).life().is_live() {
                visit(walk.0, ConnId(index));
            }
        }
    }

    /// Calls `view` for each of these connections that still exists, given as id, generation and associated value.
    pub fn recall_each<T>(
        &mut self,
        all: impl Iterator<Item = (ConnId, u32, T)>,
        mut view: impl FnMut(Connection<'_>, T),
    ) {
        self.handle.enter();
        let walk = Parked(self);
        for (id, generation, with) in all {
            let connection = walk.0.connection(id);
            if connection.life().is_live() && connection.generation() == generation {
                view(connection, with);
            }
        }
    }

    /// A copy of the connection or template that a look-up finds, with its controller. Same cost as the look-up.
    pub(crate) fn copy(&mut self, sought: &Sought, call_ids: &CallIds) -> Option<Copied> {
        self.handle.enter();
        let walk = Parked(self);
        let handle = &walk.0.handle;
        let hash = sought.flow().hash(&handle.table.secret);
        let id = match sought {
            Sought::Connection(flow) => handle.find(flow, hash)?.0,
            Sought::Template(flow) => handle.find_template(flow, hash)?,
        };
        Some(Copied::of(&handle.connection(id), call_ids, &|id| handle.connection(id)))
    }

    /// Calls `view` for the connection of this flow, if there is one.
    pub(crate) fn with_connection<T>(
        &mut self,
        flow: &FlowKey,
        view: impl FnOnce(&TableHandle, Connection<'_>, Direction) -> T,
    ) -> Option<T> {
        self.handle.enter();
        let walk = Parked(self);
        let handle = &walk.0.handle;
        let (id, direction) = handle.find(flow, handle.hash(flow))?;
        Some(view(handle, handle.connection(id), direction))
    }

    /// A view of a connection. Only during a walk.
    pub fn connection(&self, id: ConnId) -> Connection<'_> {
        self.handle.connection(id)
    }

    /// Removes a connection from the table. Only during a walk.
    pub fn remove(&mut self, id: ConnId) -> Removal {
        self.handle.remove(id)
    }

    /// Like [`crate::conn::handle::TableWorker::remove_if`]. Only during a walk.
    pub fn remove_if(&mut self, id: ConnId, why: Ending, test: impl Fn(u8, Millis) -> bool) -> Removal {
        self.handle.remove_if(id, why, test)
    }

    /// The number of entries that this reader has removed and that are not free yet. The next walk frees them.
    pub fn in_limbo(&self) -> u32 {
        self.handle.in_limbo()
    }
}

impl Table {
    /// A parked handle for a thread that is not a worker; `None` if all are taken. There are four: for listings, for
    /// sweeps, for announcements, and for sending tables.
    pub fn reader(self: &Arc<Self>) -> Option<TableReader> {
        (self.config.workers..self.free_handles.len())
            .find_map(|handle| TableHandle::acquire(self, handle))
            .map(TableReader::new)
    }
}

/// Ends a walk, also after a panic: an unparked reader would prevent the reuse of all entries.
struct Parked<'a>(&'a mut TableReader);

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.handle.quiescent(u32::MAX);
        self.0.handle.leave();
    }
}
