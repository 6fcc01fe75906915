//! Operations on controllers (sharing), and on templates alone (detaching, assuring).
//!
//! Runs for new connections of persistent services, and once for each connection when it is established. A detached
//! template stays in the table while it controls connections: counted, timed and listed. But look-ups do not find it,
//! so another template with its identity can replace it. A template is assured when a connection that it controls was
//! answered. Cost: a few atomic operations; nothing waits. `persistence.rs` chooses a packet's template.

use std::hint;

use xvs_proto::Endpoint;

use super::connection::Connection;
use super::flags::Flags;
use super::handle::{TableHandle, TableWorker};
use super::id::ConnId;
use super::life::Life;
use super::reader::TableReader;
use crate::shm::atomic::Ordering;

impl TableWorker {
    /// Counts one more connection for a controller; `false` if the controller has ended. A thread that may remove it
    /// closes it for a moment and may reopen it. This function therefore tries again while the controller is live, a
    /// limited number of times, because that thread may not be running.
    pub(crate) fn share(&self, id: ConnId) -> bool {
        for _ in 0..SHARE_ATTEMPTS {
            if self.connection(id).add_controlled() {
                return true;
            }
            if self.occupant(id).is_none() {
                return false;
            }
            hint::spin_loop();
        }
        false
    }

    /// Removes a template from the index. Every worker that has found it may do so, even if another has done so before.
    /// Afterwards no look-up finds the template, and its identity is free.
    pub fn detach(&self, id: ConnId) {
        self.handle.detach(id);
    }

    /// Marks a template as assured: its client is known to exist ([`ASSURED`]). The deadline does not change. Other
    /// controllers have no such mark.
    pub fn assure(&self, id: ConnId) {
        if !self.connection(id).is_template() {
            return;
        }
        let entry = self.handle.table.entry(id);
        let mut life = entry.life();
        while life.is_live() && life.state() & ASSURED == 0 {
            let assured = life.with(life.state() | ASSURED, life.deadline());
            // Relaxed: the field orders no other memory.
            match entry.life.compare_exchange_weak(life.0, assured.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => life = Life(now),
            }
        }
    }
}

impl TableReader {
    /// Like [`TableWorker::detach`]. Only during a walk.
    pub fn detach(&self, id: ConnId) {
        self.handle.detach(id);
    }
}

impl TableHandle {
    fn detach(&self, id: ConnId) {
        let connection = self.connection(id);
        debug_assert!(connection.is_template());
        // The flag first: a thread that finds the template in the meantime sees that it is being detached.
        let _ = connection.set_flags(Flags::DETACHED);
        self.table.buckets.unlink(self.hash(&connection.record.request_flow()), id.0);
    }
}

impl Connection<'_> {
    /// Whether this template is detached: new connections do not use it.
    pub fn is_detached(&self) -> bool {
        self.flags().contains(Flags::DETACHED)
    }
}

/// An endpoint of a detached template, as listings and sync messages show it: with a port that no client uses.
///
/// Source: ipvs-behaviour, section 3.3.
pub fn detached(endpoint: Endpoint) -> Endpoint {
    Endpoint { port: u16::MAX, ..endpoint }
}

/// State of a template: a connection that it controls was established, or was answered if its protocol has no such
/// state.
///
/// Source: ipvs-behaviour, section 3.3.
pub const ASSURED: u8 = 1;
/// The number of attempts to share a controller that another thread has closed: they take some microseconds, many times
/// longer than a controller is closed.
const SHARE_ATTEMPTS: u32 = 100;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use xvs_proto::{Endpoint, FlowKey};

    use super::*;
    use crate::clock::Millis;
    use crate::conn::insertion::{NewConnection, Removal};
    use crate::conn::spare::Spare;
    use crate::conn::table::{Table, TableConfig};
    use crate::shm::Memory;

    fn handles() -> [TableWorker; 2] {
        let config = TableConfig { capacity: 100, workers: 2, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        [0, 1].map(|worker| table.handle(worker).unwrap())
    }

    fn template() -> NewConnection {
        NewConnection {
            client: Endpoint::new([192, 0, 2, 0], 0),
            flags: Flags::TEMPLATE,
            spare: Spare::template(60),
            ..NewConnection::example()
        }
    }

    fn find(table: &TableWorker) -> Option<ConnId> {
        let NewConnection { protocol, client, virtual_endpoint, .. } = template();
        let flow = FlowKey { protocol, source: client, dest: virtual_endpoint };
        table.find_template(&flow, table.hash(&flow))
    }

    #[test]
    fn a_detached_template_is_not_found_and_frees_its_identity_but_keeps_its_connections() {
        let [mut one, two] = handles();
        let old = one.insert_new(&template());
        assert!(one.connection(old).add_controlled());
        let id = one.insert_new(&NewConnection { flags: Flags::NONE, controller: Some(old), ..template() });
        // Every worker that has found it may detach it, also a second time.
        one.detach(old);
        two.detach(old);
        assert_eq!(find(&one), None);
        let young = one.insert_new(&template());
        two.detach(old);
        assert_eq!(find(&two), Some(young));
        assert_eq!((one.connection(old).is_detached(), one.connection(young).is_detached()), (true, false));
        assert_eq!((one.remove(old), one.table().live()), (Removal::Controls, 3));
        assert!(matches!(one.remove(id), Removal::Done(_)));
        assert!(matches!(one.remove(old), Removal::Done(_)));
        assert_eq!((find(&one), one.table().live()), (Some(young), 1));
    }

    #[test]
    fn a_template_that_is_assured_keeps_its_deadline() {
        let [mut one, _] = handles();
        let id = one.insert_new(&template());
        one.assure(id);
        assert_eq!((one.connection(id).state(), one.connection(id).expires()), (ASSURED, Millis(60_000)));
        assert_eq!(one.remove(id), Removal::Done(ASSURED));
        one.assure(id);
        assert_eq!(one.connection(id).state(), 0);
    }
}
