//! The sweeper: ends connections early for the settings `drop_entry` (a defence against SYN floods) and, after a real
//! server is removed, `expire_nodest_conn`.
//!
//! Runs on a separate thread in the daemon (`Sweeping`), and when the clock is advanced in the lab; never on a worker.
//! Each second `drop_entry` examines 1/32 of the table at random indices. A removal with `expire_nodest_conn` queues
//! one flush after 20 ms, as in the kernel: it ends the connections to those real servers that are still removed then.
//! Both work in slices of 1,024 entries, so no worker waits for an entry longer than a slice takes.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::log::Ending;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::conn::{ASSURED, ConnId, Connection, Flags, Removal, TableReader};
use xvs_dataplane::counters::Counter;
use xvs_dataplane::new_connection::eviction::{count_out, is_half_open, is_known};
use xvs_dataplane::random::Random;
use xvs_dataplane::snapshot::{DestinationId, Settings, Snapshot};
use xvs_proto::Protocol;

/// Numbers of connections and templates that were ended early. The sweeper is the only writer, except of `drained`.
#[derive(Debug, Default)]
pub struct SweepCounters {
    /// Ended by `drop_entry`.
    pub worthless: Counter,
    /// Ended by `expire_nodest_conn`: those to removed real servers.
    pub orphaned: Counter,
    /// Ended by `xvs drain`. Written by the holder of the lock on the listings' reader.
    pub drained: Counter,
}

impl SweepCounters {
    /// The counters, by name.
    pub fn all(&self) -> [(&'static str, u64); 3] {
        [
            ("swept_worthless", self.worthless.value()),
            ("swept_orphaned", self.orphaned.value()),
            ("swept_drained", self.drained.value()),
        ]
    }
}

/// The sweeper of the table. It has no clock: the time is an argument of [`Self::run`].
pub struct Sweeper {
    reader: TableReader,
    published: Arc<ArcSwap<Snapshot>>,
    counters: Arc<SweepCounters>,
    random: Random,
    countdowns: Countdowns,
    next_worthless: Millis,
    /// The number of removals that have queued a flush; `None` if the next run queues one.
    removals: Option<u64>,
    flush_due: Option<Millis>,
    turn: Arc<Mutex<()>>,
}

impl Sweeper {
    /// A sweeper with a separate reader of the table, for the published settings and destinations. Equal seeds examine
    /// equal indices.
    pub fn new(reader: TableReader, published: Arc<ArcSwap<Snapshot>>, seed: u64) -> Self {
        let snapshot = published.load_full();
        // With the setting, the start counts as a removal: an earlier process may have been killed before its flush.
        let removals = (!snapshot.settings.expire_nodest_conn).then_some(snapshot.removals);
        Self {
            reader,
            published,
            removals,
            flush_due: None,
            counters: Arc::default(),
            random: Random::new(seed),
            countdowns: Countdowns::default(),
            next_worthless: Millis(0) + WORTHLESS_INTERVAL,
            turn: Arc::default(),
        }
    }

    /// A sweeper with these counters. While another thread holds `turn`, nothing is swept.
    pub fn sharing(self, counters: Arc<SweepCounters>, turn: Arc<Mutex<()>>) -> Self {
        Self { counters, turn, ..self }
    }

    /// The counters.
    pub fn counters(&self) -> Arc<SweepCounters> {
        self.counters.clone()
    }

    /// Runs the sweeps that are due. Returns the time of the next one.
    pub fn run(&mut self, now: Millis) -> Millis {
        let turn = self.turn.clone();
        let _turn = turn.lock();
        self.reader.set_now(now);
        let (settings, removals) = {
            let snapshot = self.published.load();
            (snapshot.settings, snapshot.removals)
        };
        if self.next_worthless <= now {
            self.next_worthless = now + WORTHLESS_INTERVAL;
            if settings.drops_entries {
                self.end_worthless(now);
            }
        }
        if self.removals.replace(removals) != Some(removals) {
            self.flush_due.get_or_insert(now + FLUSH_DELAY);
        }
        if self.flush_due.is_some_and(|due| due <= now) {
            self.flush_due = None;
            self.end_orphans();
        }
        if self.reader.in_limbo() > 0 {
            // An empty walk frees the entries that earlier ones removed.
            self.reader.visit(0..0, |_, _| {});
        }
        self.flush_due.map_or(self.next_worthless, |due| due.min(self.next_worthless))
    }

    /// `drop_entry`. Source: ipvs-behaviour, section 3.7.
    fn end_worthless(&mut self, now: Millis) {
        let Self { reader, published, counters, random, countdowns, .. } = self;
        let extent = reader.table().extent();
        let mut left = extent.div_ceil(WORTHLESS_SHARE);
        while left > 0 {
            let slice = left.min(SLICE);
            left -= slice;
            let snapshot = published.load_full();
            let places = (0..slice).map(|_| random.below(extent));
            reader.visit_each(places, |reader, id| {
                let connection = reader.connection(id);
                let seen = (connection.state(), connection.expires());
                let worthless = is_known(&connection, &snapshot)
                    && countdowns.is_worthless(&connection, seen, &snapshot.settings, now);
                if !worthless {
                    return;
                }
                // A packet that arrives in the meantime changes the state or the expiry, and saves it.
                let is_unchanged = |state, expires| (state, expires) == seen;
                end_if(reader, id, Ending::Dropped, is_unchanged, &snapshot, &counters.worthless);
            });
        }
    }

    /// `expire_nodest_conn`: ends the connections to destinations that are removed now. Source: ipvs-behaviour, section
    /// 3.5.
    ///
    /// A connection that controls others ends after them, so the table is walked again while a walk ends any.
    fn end_orphans(&mut self) {
        while orphans(&self.published.load()) > 0 {
            let before = self.counters.orphaned.value();
            let mut next = 0;
            while next < self.reader.table().extent() {
                self.end_orphans_among(next..next.saturating_add(SLICE));
                next = next.saturating_add(SLICE);
            }
            if self.counters.orphaned.value() == before {
                return;
            }
        }
    }

    fn end_orphans_among(&mut self, places: Range<u32>) {
        let snapshot = self.published.load_full();
        let counters = &self.counters;
        self.reader.visit(places, |reader, id| {
            let number = DestinationId(reader.connection(id).dest_ref());
            if snapshot.destinations.find(number).is_some_and(|known| !known.available) {
                end_if(reader, id, Ending::NoDestination, |_, _| true, &snapshot, &counters.orphaned);
            }
        });
    }
}

/// Ends a connection if `test` holds for its state and expiry; then also its template, if that was never assured and
/// controls no other connection.
fn end_if(
    reader: &mut TableReader,
    id: ConnId,
    why: Ending,
    test: impl Fn(u8, Millis) -> bool,
    snapshot: &Snapshot,
    counter: &Counter,
) {
    let controller = reader.connection(id).controller();
    if let Removal::Done(state) = reader.remove_if(id, why, test) {
        count_out(&reader.connection(id), state, snapshot);
        counter.add(1);
        if let Some(template) = controller
            && reader.connection(template).is_template()
            && is_known(&reader.connection(template), snapshot)
            && let Removal::Done(state) = reader.remove_if(template, why, |state, _| state & ASSURED == 0)
        {
            count_out(&reader.connection(template), state, snapshot);
            counter.add(1);
        }
    }
}

/// The number of connections and templates of removed destinations.
fn orphans(snapshot: &Snapshot) -> u64 {
    snapshot
        .destinations
        .iter()
        .filter(|known| !known.available)
        .map(|known| (known.live.load(), known.live.templates()))
        .map(|(load, templates)| u64::from(load.active) + u64::from(load.inactive) + u64::from(templates))
        .sum()
}

/// Countdowns by number of packets, which select the connections that `drop_entry` ends among those quiet for a minute:
/// every one with one packet from the client, every second one with two packets, and so on up to eight. Connections
/// with more packets are spared.
#[derive(Debug, Default)]
struct Countdowns([u32; PACKETS_MAX as usize]);

impl Countdowns {
    fn is_worthless(
        &mut self,
        connection: &Connection<'_>,
        (state, expires): (u8, Millis),
        settings: &Settings,
        now: Millis,
    ) -> bool {
        if connection.controlled() > 0 {
            return false;
        }
        if connection.is_template() {
            // A template of one-packet scheduling is spared: it would be judged by its packets, and has none.
            return state & ASSURED == 0 && !connection.flags().contains(Flags::ONE_PACKET);
        }
        let timeout = match (connection.protocol(), state) {
            (protocol, state) if is_half_open(protocol, state) => return true,
            (Protocol::TCP, state) if state == TcpState::Established as u8 => settings.tcp_established,
            (Protocol::SCTP, SCTP_ESTABLISHED) => SCTP_ESTABLISHED_TIMEOUT,
            (Protocol::UDP, _) => settings.udp,
            _ => return false,
        };
        let quiet = timeout.saturating_sub(now.until(expires));
        quiet >= QUIET && self.is_due(connection.in_packets())
    }

    fn is_due(&mut self, packets: u32) -> bool {
        let Some(passed) = packets.checked_sub(1).and_then(|at| self.0.get_mut(at as usize)) else {
            return false;
        };
        *passed = (*passed + 1) % packets;
        *passed == 0
    }
}

const WORTHLESS_INTERVAL: Duration = Duration::from_secs(1);
/// `drop_entry` examines one out of this many entries each second.
const WORTHLESS_SHARE: u32 = 32;
/// The time from a removal to the flush that it queues: two ticks of a kernel with 100 a second, the first of which has
/// begun. Source: recordings `churn-323` and `dest-delete-nodest1`.
const FLUSH_DELAY: Duration = Duration::from_millis(20);
/// The number of entries examined in one walk; workers cannot reuse removed entries until it ends.
const SLICE: u32 = 1024;
/// The time without a packet after which `drop_entry` may end an established connection.
const QUIET: Duration = Duration::from_secs(60);
/// Connections with more packets from the client are spared.
const PACKETS_MAX: u32 = 8;
const SCTP_ESTABLISHED: u8 = 8;
const SCTP_ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_quiet_connections_with_n_packets_every_nth_is_worthless_and_none_above_eight() {
        let mut countdowns = Countdowns::default();
        let mut ended = |packets| (0..840).filter(|_| countdowns.is_due(packets)).count();
        assert_eq!([0, 1, 2, 3, 8, 9].map(&mut ended), [0, 840, 420, 280, 105, 0]);
    }
}
