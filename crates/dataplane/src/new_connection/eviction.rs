//! Eviction: the connections that a full table removes for new ones, mostly half-open ones in a SYN flood.
//!
//! Runs for each new connection; while the table has room that is one comparison. In a full table it inspects a bounded
//! number of entries, in the order of the slab, from the place where this worker has stopped before. It removes
//! connections that have expired or are embryonic: TCP and SCTP with an unfinished handshake, and UDP with at most one
//! datagram from the client. Such a UDP client is as unproven as the sender of a SYN, and where replies pass through
//! the director at most that one reply is lost. Templates are evicted if they control nothing and were never assured.
//! All other connections stay, and if only such are found the new connection is refused. An entry that was made a
//! moment ago is inspected only after a whole round, so a connection has about that long to prove itself.
//!
//! When both buckets of a new key are full though the table is not, the other connections in these buckets are judged
//! by the same rules. When Call-IDs have no room, the template of a call that was never assured is evicted.
//!
//! Not here: how an entry becomes free (`conn/slab.rs`); `drop_entry`, which sweeps before the table is full (`ctl`,
//! `sweep.rs`).

use xvs_proto::Protocol;

use crate::burst::context::Context;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{ASSURED, ConnId, Connection, Inserted, NewConnection, Removal, TableWorker};
use crate::counters::WorkerCounters;
use crate::snapshot::{Activity, Snapshot};

/// One worker's position in the slab.
#[derive(Debug)]
pub(crate) struct Eviction {
    next: u32,
}

impl Eviction {
    /// A position that differs between workers, so that they do not inspect the same entries.
    pub(crate) fn new(worker: usize, table: &TableWorker) -> Self {
        let config = table.table().config();
        Self { next: (config.capacity / config.workers.max(1) * worker) as u32 }
    }

    /// Inserts a connection. In a full table it evicts a less valuable one.
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

    /// Before an insertion: if the table is nearly full, evicts connections. Two, if it finds them, so that a reserve
    /// that was used up recovers.
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

/// After a failed insertion: if the buckets of one of its keys are full, evicts a connection there. Returns `true` if
/// another attempt is worthwhile; the other key may need the same.
fn make_room_in_buckets(
    table: &mut TableWorker,
    new: &NewConnection,
    counters: &WorkerCounters,
    at: Context<'_>,
) -> bool {
    table.bucket_occupants(new).any(|id| evict(table, id, counters, at))
}

/// Removes a connection if it may be evicted, and its template too if no other connection needs it.
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

/// Evicts the template of a call whose client has never been answered, so that the slot of its Call-ID becomes free. A
/// template that controls connections is detached instead. Returns `false` if the template stays.
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
        Removal::NotLive | Removal::Kept => return false,
    }
    counters.evicted.add(1);
    true
}

/// Whether a handshake was begun and nothing proves yet that the client exists. Only UDP is judged by its packets.
fn is_embryonic(protocol: Protocol, state: u8, in_packets: u32) -> bool {
    match protocol {
        Protocol::UDP => in_packets <= 1,
        _ => is_half_open(protocol, state) || protocol == Protocol::TCP && state == TcpState::SynSent as u8,
    }
}

/// Whether a TCP or SCTP handshake consists only of the client's first packet and perhaps its answer.
///
/// Source: ipvs-behaviour, sections 3.7 (what `drop_entry` ends first) and 4.2 (numbers of SCTP's states).
pub fn is_half_open(protocol: Protocol, state: u8) -> bool {
    match protocol {
        Protocol::TCP => matches!(TcpState::of(state), TcpState::SynRecv | TcpState::SynAck),
        Protocol::SCTP => matches!(SctpState::of(state), SctpState::Init1 | SctpState::Init),
        _ => false,
    }
}

/// Whether a snapshot contains the destination that counts the connection, if there is one. A slightly old snapshot may
/// lack the destination of a connection that another worker has just made. A connection must only be removed by a
/// caller that can count it out.
pub fn is_known(connection: &Connection<'_>, snapshot: &Snapshot) -> bool {
    connection.is_bypass()
        || snapshot.destinations.of(connection).map(|destination| &destination.live).is_some()
}

/// Removes a connection from its destination's counts. The caller has removed it from the table in this state.
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

/// The number of entries that are inspected for one new connection: four kilobytes, read in order.
const ENTRIES_PER_INSERTION: u32 = 64;
/// The number of attempts to make room: one for each of two keys with full buckets, and one more if they share a
/// bucket.
const TRIES: usize = 3;
/// The most connections that are evicted for one new one.
const EVICTED_MAX: u32 = 2;
