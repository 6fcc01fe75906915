//! Which connections give way, and how a full table makes room.
//!
//! Runs for each new connection; while the table has room that is one comparison. Under eviction it looks at a
//! bounded number of entries, by a hand of the worker's own that goes round the slab, and ends those that have expired
//! or are embryonic: TCP and SCTP whose handshake was begun and never finished, UDP with no more than one datagram
//! from the client. Such a UDP client is as unproven as a SYN's, and where replies pass the director the price is at
//! most that one reply. Of templates those give way that control nothing and were never assured. Everything else stays,
//! and if there is nothing else the new connection is refused. What was made a moment ago stands behind the hand, so a
//! connection has about a round of evictions to prove itself.
//!
//! When both buckets of a new key are full, though the table is not, its neighbours there are judged likewise. When
//! Call-IDs have no room, the call of a template that was never assured is forgotten.
//!
//! Not here: how an entry comes free (`conn/slab.rs`); `drop_entry`, which sweeps before the table is full
//! (`ctl`, `sweep.rs`).

use xvs_proto::Protocol;

use crate::burst::context::Context;
use crate::conn::tcp::TcpState;
use crate::conn::{ASSURED, ConnId, Connection, Inserted, NewConnection, Removal, TableWorker};
use crate::counters::WorkerCounters;
use crate::snapshot::{Activity, Snapshot};

/// A worker's hand, which goes round the slab.
#[derive(Debug)]
pub(crate) struct Eviction {
    next: u32,
}

impl Eviction {
    /// Workers begin apart, so that they do not look at the same entries.
    pub(crate) fn new(worker: usize, table: &TableWorker) -> Self {
        let config = table.table().config();
        Self { next: (config.capacity / config.workers.max(1) * worker) as u32 }
    }

    /// Enters a connection; when there is no room, in the place of one that is worth less.
    pub(crate) fn insert(
        &mut self,
        table: &mut TableWorker,
        new: &NewConnection,
        counters: &WorkerCounters,
        at: Context<'_>,
    ) -> Inserted {
        self.make_room(table, counters, at);
        let mut inserted = table.insert(new);
        for _ in 0..TRIES {
            if inserted != Inserted::Full || !make_room_in_buckets(table, new, counters, at) {
                break;
            }
            inserted = table.insert(new);
        }
        inserted
    }

    /// Before an insertion: if the table is as good as full, ends connections that give way. Two, if they are found,
    /// so that a reserve that was used up comes back.
    fn make_room(&mut self, table: &mut TableWorker, counters: &WorkerCounters, at: Context<'_>) {
        let mut evicted = 0;
        for _ in 0..ENTRIES_PER_INSERTION {
            if evicted == EVICTED_MAX || !table.is_short() {
                return;
            }
            self.next = if self.next < table.table().extent() { self.next } else { 0 };
            evicted += u32::from(evict(table, ConnId(self.next), counters, at));
            self.next += 1;
        }
    }
}

/// After an insertion that failed: if the buckets of one of its keys are full, ends a connection there that gives way.
/// `true` if that is worth another try; the other key may need the same.
fn make_room_in_buckets(
    table: &mut TableWorker,
    new: &NewConnection,
    counters: &WorkerCounters,
    at: Context<'_>,
) -> bool {
    table.bucket_occupants(new).any(|id| evict(table, id, counters, at))
}

/// Ends a connection if it gives way, and its template with it if that is of no use to anybody else.
fn evict(table: &mut TableWorker, id: ConnId, counters: &WorkerCounters, at: Context<'_>) -> bool {
    let Context { snapshot, now } = at;
    let Some(connection) = table.occupant(id) else { return false };
    let (protocol, packets) = (connection.protocol(), connection.in_packets());
    let (template, controller) = (connection.is_template(), connection.controller());
    let may = is_known(&connection, snapshot);
    let unproven = |state| match template {
        true => state & ASSURED == 0,
        false => is_embryonic(protocol, state, packets),
    };
    if may
        && let Removal::Done(state) = table.remove_if(id, |state, expires| expires <= now || unproven(state))
    {
        count_out(&table.connection(id), state, snapshot);
        counters.evicted.add(1);
        if let Some(controller) = controller {
            evict(table, controller, counters, at);
        }
        return true;
    }
    false
}

/// Ends the template of a call whose client nobody has answered, so that its Call-ID's slot comes free; one that
/// controls connections is found no more. `false` if it stays.
pub(crate) fn evict_call(
    table: &mut TableWorker,
    template: ConnId,
    snapshot: &Snapshot,
    counters: &WorkerCounters,
) -> bool {
    if !is_known(&table.connection(template), snapshot) {
        return false;
    }
    match table.remove_if(template, |state, _| state & ASSURED == 0) {
        Removal::Done(state) => count_out(&table.connection(template), state, snapshot),
        Removal::Controls => table.detach(template),
        Removal::NotOurs | Removal::Lasts => return false,
    }
    counters.evicted.add(1);
    true
}

/// Whether a handshake was begun and nothing shows yet that there is a client. Only UDP is judged by its packets.
fn is_embryonic(protocol: Protocol, state: u8, in_packets: u32) -> bool {
    match protocol {
        Protocol::UDP => in_packets <= 1,
        _ => is_half_open(protocol, state) || protocol == Protocol::TCP && state == TcpState::SynSent as u8,
    }
}

/// Whether a TCP or SCTP handshake has got no further than the client's first packet or its answer.
///
/// Source: ipvs-behaviour, sections 3.7 (what `drop_entry` ends first) and 4.2 (numbers of SCTP's states).
pub fn is_half_open(protocol: Protocol, state: u8) -> bool {
    match protocol {
        Protocol::TCP => matches!(TcpState::of(state), TcpState::SynRecv | TcpState::SynAck),
        Protocol::SCTP => matches!(state, SCTP_INIT1 | SCTP_INIT),
        _ => false,
    }
}

/// Whether a snapshot has the destination that the connection is counted at, if it is counted at one. One taken a moment
/// ago may lack that of a connection which another worker has just made; nobody should end that one who could not count
/// it out.
pub fn is_known(connection: &Connection<'_>, snapshot: &Snapshot) -> bool {
    connection.is_bypass()
        || snapshot.destinations.of(connection).map(|destination| &destination.live).is_some()
}

/// Takes a connection that the caller has removed, and that was in this state then, out of its destination's counts.
pub fn count_out(connection: &Connection<'_>, state: u8, snapshot: &Snapshot) {
    if let Some(live) = snapshot.destinations.of(connection).map(|destination| &destination.live) {
        let template = connection.is_template();
        live.decrement(if template {
            Activity::Template
        } else {
            Activity::of(connection.protocol(), state)
        });
    }
}

/// How many entries are looked at for one new connection: four kilobytes, read in order.
const ENTRIES_PER_INSERTION: u32 = 64;
/// How often room is made: for each of two keys that find their buckets full, and once more if they have one in common.
const TRIES: usize = 3;
/// How many may be ended for one.
const EVICTED_MAX: u32 = 2;
const SCTP_INIT1: u8 = 1;
const SCTP_INIT: u8 = 2;
