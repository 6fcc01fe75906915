//! Eviction: the connections that a full table removes for new ones, mostly half-open ones in a SYN flood.
//!
//! Runs for each new connection; while the table has room that is one comparison. In a full table it inspects a bounded
//! number of entries, in the order of the slab, from the index at which this worker stopped, and evicts the least
//! valuable:
//!
//! 1. expired connections;
//! 2. embryonic ones: TCP and SCTP with an unfinished handshake, UDP with at most one datagram from the client,
//!    templates that were never assured;
//! 3. unproven ones: first those with the fewest packets from the client (by powers of two), then the least recently
//!    used. If replies pass through the director, the handshake (`burst/handshake.rs`) or four packets prove a client.
//!    With direct routing and tunnels no client is proven;
//! 4. templates that were assured, because a client with a forged address can assure one, too;
//! 5. embryonic, then unproven ones that were used within the last second, which is the time for the proof;
//! 6. connections that another director has announced as proven, and of which fewer than four packets came here.
//!
//! Announced connections fill at most seven eighths of the table, so a sender of sync messages cannot shut out clients.
//!
//! Neighbours in the slab have about the same age, so the inspected entries are not a fair sample. Each round through
//! the slab therefore counts the entries by level (embryonic, then by packets, then templates and announced
//! connections). The next round evicts up to the lowest level that has enough of them. Connections with a few packets
//! therefore survive a flood of SYNs, and connections with many packets survive a flood of connections with a few.
//! Proven connections are never evicted; if the worker finds no others, the new connection is refused. A UDP client
//! whose reply passes through the director loses at most that reply.
//!
//! When both buckets of a new key are full though the table is not, the connections in these buckets are judged by the
//! same rules. When all inspected local ports towards a destination are in use, the connections that have them are
//! judged. When Call-IDs have no room, the template of a call that was never assured is evicted.

use std::time::Duration;

use xvs_proto::Protocol;

use super::limit;
use crate::burst::context::Context;
use crate::clock::Millis;
use crate::conn::log::Ending;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{
    ASSURED, Complete, ConnId, Connection, Flags, Inserted, NewConnection, Removal, TableWorker,
};
use crate::counters::WorkerCounters;
use crate::snapshot::{Activity, Snapshot};

/// One worker's position in the slab.
#[derive(Debug)]
pub(crate) struct Eviction {
    next: u32,
    /// The number of entries in this round, by level.
    found: [u32; LEVELS],
    /// The highest level that is evicted in this round.
    level: usize,
}

impl Eviction {
    /// A position that differs between workers, so that they do not inspect the same entries.
    pub(crate) fn new(worker: usize, table: &TableWorker) -> Self {
        let config = table.table().config();
        Self { next: (config.capacity / config.workers.max(1) * worker) as u32, found: [0; LEVELS], level: 0 }
    }

    /// Inserts a connection. In a full table it evicts a less valuable one.
    pub(crate) fn insert(
        &mut self,
        table: &mut TableWorker,
        new: &NewConnection,
        complete: Complete<'_>,
        counters: &WorkerCounters,
        cx: Context<'_>,
    ) -> Inserted {
        self.make_room(table, TableWorker::is_short, counters, cx);
        let mut inserted = table.insert_complete(new, complete);
        for _ in 0..TRIES {
            if inserted != Inserted::Full || !self.make_room_in_buckets(table, new, counters, cx) {
                break;
            }
            inserted = table.insert_complete(new, complete);
        }
        inserted
    }

    /// Whether there is room for a connection from another director, possibly by evicting a less valuable one.
    pub(crate) fn admits_received(
        &mut self,
        table: &mut TableWorker,
        counters: &WorkerCounters,
        cx: Context<'_>,
    ) -> bool {
        self.make_room(table, is_over, counters, cx);
        !is_over(table)
    }

    /// Before an insertion: if the table is nearly full, evicts up to two connections, so that an exhausted reserve
    /// recovers.
    fn make_room(
        &mut self,
        table: &mut TableWorker,
        is_short: impl Fn(&TableWorker) -> bool,
        counters: &WorkerCounters,
        cx: Context<'_>,
    ) {
        let mut evicted = 0;
        let mut least = None;
        let mut second = None;
        for _ in 0..ENTRIES_PER_INSERTION {
            if evicted == EVICTED_MAX || !is_short(table) {
                return;
            }
            self.begin_round(table.table().extent());
            let candidate = Candidate::of(table, ConnId(self.next), cx);
            self.next += 1;
            let Some(candidate) = candidate else { continue };
            let level = candidate.worth.level();
            self.found[level] += 1;
            if candidate.worth <= Worth::Embryonic {
                evicted += usize::from(candidate.evict(table, counters, cx));
            } else if level <= self.level {
                if least.is_none_or(|least: Candidate| candidate.worth < least.worth) {
                    (least, second) = (Some(candidate), least);
                } else {
                    second = lesser(second, Some(candidate));
                }
            }
        }
        for candidate in [least, second].into_iter().flatten().take(EVICTED_MAX - evicted) {
            candidate.evict(table, counters, cx);
        }
    }

    /// Begins another round at the end of the slab.
    fn begin_round(&mut self, extent: u32) {
        if self.next >= extent {
            let mut enough = extent / FEW;
            self.level = self
                .found
                .iter()
                .position(|found| {
                    enough = enough.saturating_sub(*found);
                    enough == 0
                })
                .unwrap_or(LEVELS - 1);
            (self.next, self.found) = (0, [0; LEVELS]);
        }
    }

    /// After a failed insertion: if the buckets for one of its keys are full, evicts a connection there. Returns `true`
    /// if another attempt is worthwhile; the other key may need the same.
    fn make_room_in_buckets(
        &self,
        table: &mut TableWorker,
        new: &NewConnection,
        counters: &WorkerCounters,
        cx: Context<'_>,
    ) -> bool {
        let least = table
            .bucket_occupants(new)
            .map(|id| Candidate::of(table, id, cx))
            .fold(None, lesser)
            .filter(|least| least.worth.level() <= self.level.max(FEW_PACKETS));
        least.is_some_and(|least| least.evict(table, counters, cx))
    }
}

/// Whether a table is too full for connections from other directors.
fn is_over(table: &TableWorker) -> bool {
    table.table().live() >= table.table().config().capacity / 8 * 7
}

/// The value of a connection in a full table; the least valuable is evicted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Worth {
    Expired,
    Embryonic,
    /// The binary logarithm of the number of the client's packets, and the time of the last packet.
    Unproven {
        packets: u32,
        last_used: Millis,
    },
    /// An assured template, and the time of its last use.
    Template {
        last_used: Millis,
    },
    FreshEmbryonic,
    /// The binary logarithm of the client's packets.
    FreshUnproven {
        packets: u32,
    },
    /// Another director reports it as proven; the time of the last packet or message.
    Announced {
        last_used: Millis,
    },
}

impl Worth {
    /// 0 if nothing shows that the client exists; otherwise one more than the binary logarithm of its packets.
    /// Templates have the highest level.
    fn level(self) -> usize {
        match self {
            Self::Unproven { packets, .. } | Self::FreshUnproven { packets } => packets as usize + 1,
            Self::Expired | Self::Embryonic | Self::FreshEmbryonic => 0,
            Self::Template { .. } | Self::Announced { .. } => LEVELS - 1,
        }
    }
}

/// A connection that may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    id: ConnId,
    state: u8,
    worth: Worth,
}

/// The less valuable one.
fn lesser(one: Option<Candidate>, other: Option<Candidate>) -> Option<Candidate> {
    one.into_iter().chain(other).min_by_key(|candidate| candidate.worth)
}

impl Candidate {
    /// The value.
    pub(crate) fn worth(&self) -> Worth {
        self.worth
    }

    /// Judges an entry. `None` if it is proven, controls other connections, is not in the table, or the snapshot lacks
    /// its destination.
    pub(crate) fn of(table: &TableWorker, id: ConnId, cx: Context<'_>) -> Option<Self> {
        let connection = table.occupant(id)?;
        if connection.controlled() > 0 || !is_known(&connection, cx.snapshot) {
            return None;
        }
        let state = connection.state();
        let deadline = connection.expires();
        let packets = connection.in_packets();
        let protocol = connection.protocol();
        let lasts = if connection.is_template() {
            Duration::from_secs(connection.timeout_seconds().into())
        } else {
            cx.snapshot.settings.timeout(protocol, state)
        };
        let last_used = deadline.0.saturating_sub(lasts.as_millis() as u64);
        // A client of the SYN proxy has acknowledged a cookie.
        let is_fresh = last_used + PROOF_MILLIS > cx.now.0 || connection.flags().contains(Flags::HANDSHAKE);
        let is_proven =
            connection.is_proven() || packets >= PROVEN_PACKETS && connection.method().masquerades();
        let worth = if deadline <= cx.now {
            Worth::Expired
        } else if connection.is_template() {
            match state & ASSURED {
                0 => Worth::Embryonic,
                _ => Worth::Template { last_used: Millis(last_used) },
            }
        } else if is_embryonic(protocol, state, packets) {
            if is_fresh { Worth::FreshEmbryonic } else { Worth::Embryonic }
        } else if is_proven {
            let announced = cx.snapshot.sync_backup.as_ref().map_or(PROVEN_PACKETS, |backup| backup.packets);
            if !connection.flags().contains(Flags::SYNC)
                || packets >= announced.saturating_add(PROVEN_PACKETS)
            {
                return None;
            }
            Worth::Announced { last_used: Millis(last_used) }
        } else {
            let log2 = packets.checked_ilog2().unwrap_or(0);
            match is_fresh {
                true => Worth::FreshUnproven { packets: log2 },
                false => Worth::Unproven { packets: log2, last_used: Millis(last_used) },
            }
        };
        Some(Self { id, state, worth })
    }

    /// Removes the connection, and its template, too, if no other connection needs the template. Returns `false` if its
    /// state has changed in the meantime, so that it stays.
    pub(crate) fn evict(self, table: &mut TableWorker, counters: &WorkerCounters, cx: Context<'_>) -> bool {
        let controller = table.connection(self.id).controller();
        let Removal::Done(state) = table
            .remove_if(self.id, Ending::Evicted, |state, expires| expires <= cx.now || state == self.state)
        else {
            return false;
        };
        count_out(&table.connection(self.id), state, cx.snapshot);
        counters.evicted.add(1);
        if let Some(template) = controller
            .filter(|id| table.connection(*id).is_template())
            .and_then(|id| Self::of(table, id, cx))
            .filter(|template| template.worth <= Worth::Embryonic)
        {
            template.evict(table, counters, cx);
        }
        true
    }
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
    match table.remove_if(template, Ending::Evicted, |state, _| state & ASSURED == 0) {
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
        // LISTEN: an FTP data connection that waits for its first packet.
        _ if is_half_open(protocol, state) => true,
        _ => protocol == Protocol::TCP && matches!(TcpState::of(state), TcpState::SynSent | TcpState::Listen),
    }
}

/// Whether a TCP or SCTP handshake consists only of the client's first packet and possibly its answer.
///
/// Source: ipvs-behaviour, sections 3.7 (what `drop_entry` ends first) and 4.2 (numbers of SCTP states).
pub fn is_half_open(protocol: Protocol, state: u8) -> bool {
    match protocol {
        Protocol::TCP => matches!(TcpState::of(state), TcpState::SynRecv | TcpState::SynAck),
        Protocol::SCTP => matches!(SctpState::of(state), SctpState::Init1 | SctpState::Init),
        _ => false,
    }
}

/// Whether a snapshot contains the destination that counts the connection, if there is one. A slightly old snapshot may
/// lack the destination of a connection that another worker has just created. Only a caller that can remove a
/// connection from the counts may remove it from the table.
pub fn is_known(connection: &Connection<'_>, snapshot: &Snapshot) -> bool {
    connection.is_bypass() || connection.is_unbound() || snapshot.destinations.of(connection).is_some()
}

/// Ends a connection that another one replaces. `false` if it controls others, or another worker ends it.
pub(crate) fn end(table: &mut TableWorker, id: ConnId, snapshot: &Snapshot) -> bool {
    if !is_known(&table.connection(id), snapshot) {
        return false;
    }
    let Removal::Done(state) = table.remove(id) else { return false };
    count_out(&table.connection(id), state, snapshot);
    true
}

/// Removes a connection from its destination's counts. The caller has removed it from the table in this state.
pub fn count_out(connection: &Connection<'_>, state: u8, snapshot: &Snapshot) {
    if let Some(destination) = snapshot.destinations.of(connection) {
        destination.live.decrement(ended(connection, state));
    }
    limit::count_out(connection, snapshot);
}

/// The count of a connection that was removed from the table in this state.
pub(crate) fn ended(connection: &Connection<'_>, state: u8) -> Activity {
    match connection.flags() {
        flags if flags.contains(Flags::TEMPLATE) => Activity::Template,
        flags if !flags.contains(Flags::SYNC) => Activity::of(connection.protocol(), state),
        _ if connection.count_out() => Activity::Inactive,
        _ => Activity::Active,
    }
}

/// The number of entries that are inspected for one new connection: four kilobytes, read in order.
const ENTRIES_PER_INSERTION: u32 = 64;
/// The number of attempts to make room: one for each of two keys with full buckets, and one more if they share a
/// bucket.
const TRIES: usize = 3;
/// Maximum number of connections that are evicted for one new one.
const EVICTED_MAX: usize = 2;
/// The number of levels: 0, one for each binary logarithm of a number of packets, and that of templates.
const LEVELS: usize = 2 + u32::BITS as usize;
/// The level of connections with two or three packets. In full buckets it is always evicted: a round provides no
/// information about so few entries.
const FEW_PACKETS: usize = 2;
/// A level has enough entries if one entry in this many has it: then 64 inspected entries include one with a
/// probability of 98 %.
const FEW: u32 = 16;
/// The number of packets that prove a client whose replies pass through the director: a handshake and a request take
/// four.
const PROVEN_PACKETS: u32 = 4;
/// The time in which a new client proves itself, several round trips.
const PROOF_MILLIS: u64 = 1000;
