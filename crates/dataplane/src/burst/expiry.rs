//! Expiry of connections.
//!
//! Runs before each burst, for the timers that are due (`conn/wheel.rs`).

use std::time::Duration;

use super::deferred::Deferred;
use super::flows::Flows;
use super::state;
use crate::clock::Millis;
use crate::conn::log::Ending;
use crate::conn::{ConnId, Packets, Removal, TIMER_TICK, TableWorker, Then, Timers};
use crate::counters::WorkerCounters;
use crate::general_path::syn_proxy;
use crate::snapshot::Snapshot;
use crate::sync::announce::Announcer;

impl Flows {
    /// Ends the connections whose deadline has passed.
    pub fn expire(&mut self, snapshot: &Snapshot, now: Millis) -> Timers {
        self.replaced.expire(now);
        let Self { table, counters, answers, unanswered_syns, deferred, .. } = self;
        let announcer = Announcer::of(snapshot, self.worker, now);
        let timers = table.advance_timers(now, |table, id| {
            if lasts_offloaded(table, deferred, id, snapshot, now) {
                return;
            }
            if !syn_proxy::outlasts(table, id, unanswered_syns, answers, &snapshot.egress, now) {
                expire(table, id, snapshot, counters, deferred, announcer.as_ref(), now);
            }
        });
        deferred.end(&snapshot.destinations);
        timers
    }
}

/// Whether packets that the XDP program has forwarded extend a connection whose deadline in its entry has passed.
fn lasts_offloaded(
    table: &mut TableWorker,
    deferred: &mut Deferred,
    id: ConnId,
    snapshot: &Snapshot,
    now: Millis,
) -> bool {
    let connection = table.connection(id);
    let lasts = connection.life().is_offloaded() && connection.expires() > now;
    if lasts {
        state::settle(table, deferred, id, Packets::HavePassed, Then::Keep, snapshot);
    }
    lasts
}

/// Ends a connection whose deadline has passed. A controller (template, FTP control connection) continues for a minute
/// instead. Connections that began together with the template may be due in the same tick, in any order and on any
/// worker, so the template continues for one more tick first.
fn expire(
    table: &mut TableWorker,
    id: ConnId,
    snapshot: &Snapshot,
    counters: &WorkerCounters,
    deferred: &mut Deferred,
    announcer: Option<&Announcer<'_>>,
    now: Millis,
) {
    // A packet on another worker may have refreshed the connection since its timer was read; then the connection stays.
    match table.remove_if(id, Ending::Expired, |_, expires| expires <= now) {
        Removal::Done(state) => {
            deferred.count_out(&table.connection(id), state, snapshot);
            counters.expired.add(1);
        }
        // Unless a new connection has already extended the deadline.
        Removal::Controls if table.connection(id).expires() + TIMER_TICK <= now => {
            if table.connection(id).is_template() {
                table.connection(id).set_timeout_seconds(CONTROLLING_SECONDS);
            }
            let timeout = Duration::from_secs(CONTROLLING_SECONDS.into());
            table.transition(id, |state| (state, now + timeout));
            announcer.inspect(|announcer| announcer.outlives(table, id));
        }
        Removal::Controls | Removal::NotLive | Removal::Kept => {}
    }
}

/// The time by which a controller's life is extended whenever its deadline passes while it controls connections.
const CONTROLLING_SECONDS: u32 = 60;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::conn::{Inserted, NewConnection, Table, TableConfig};
    use crate::shm::Memory;

    #[test]
    fn a_connection_that_another_worker_refreshes_during_its_expiry_stays() {
        let config = TableConfig { capacity: 10, workers: 2, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        let [mut one, mut other] = [0, 1].map(|worker| table.handle(worker).unwrap());
        let inserted = one.insert(&NewConnection::example());
        let Inserted::New(id) = inserted else { panic!("{inserted:?}") };
        let (snapshot, counters) = (Snapshot::default(), WorkerCounters::default());
        let mut deferred = Deferred::new(0);
        one.advance_timers(Millis(60_000), |one, due| {
            assert_eq!(due, id);
            other.transition(id, |_| (0, Millis(120_000)));
            expire(one, id, &snapshot, &counters, &mut deferred, None, Millis(60_000));
        });
        assert_eq!((table.live(), counters.expired.value()), (1, 0));
        one.advance_timers(Millis(120_000), |one, id| {
            expire(one, id, &snapshot, &counters, &mut deferred, None, Millis(120_000))
        });
        assert_eq!((table.live(), counters.expired.value()), (0, 1));
    }
}
