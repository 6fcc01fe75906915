//! The sweeper: ends connections early for the settings `drop_entry` (a defence against SYN floods) and, after a real
//! server is removed, `expire_nodest_conn`.
//!
//! Runs on its own thread in the daemon (`Sweeping`), and when the clock is moved in the lab; never on a worker. Each
//! second `drop_entry` examines 1/32 of the table at random places. After a removal with `expire_nodest_conn` it walks
//! the table at once, and again four times a second until removed destinations have no connection left. Both work in
//! slices of 1,024 entries, so that no worker waits for an entry longer than a slice takes.
//!
//! Not here: when the defences are on (`control/settings.rs`), eviction from a full table (`new_connection/eviction.rs`
//! of `dataplane`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_dataplane::clock::Millis;
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
    /// Ended by `expire_nodest_conn`: those of removed real servers.
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

/// The sweeper of the table. It has no clock: [`Self::run`] gets the time.
pub struct Sweeper {
    reader: TableReader,
    published: Arc<ArcSwap<Snapshot>>,
    counters: Arc<SweepCounters>,
    random: Random,
    countdowns: Countdowns,
    next_worthless: Millis,
    next_orphans: Millis,
    /// The removals after which it has walked the table, and whether connections may be left.
    flushes: u64,
    is_flushing: bool,
    /// Connections of removed real servers that the last walk could not end because they control others.
    stuck: u64,
    turn: Arc<Mutex<()>>,
}

impl Sweeper {
    /// A sweeper with its own reader of the table, for the published settings and destinations. Equal seeds examine
    /// equal places.
    pub fn new(reader: TableReader, published: Arc<ArcSwap<Snapshot>>, seed: u64) -> Self {
        // An earlier process may have been killed before it had ended them.
        let (flushes, is_flushing) = {
            let snapshot = published.load();
            (snapshot.flushes, snapshot.settings.expire_nodest_conn)
        };
        Self {
            reader,
            published,
            flushes,
            is_flushing,
            counters: Arc::default(),
            random: Random::new(seed),
            countdowns: Countdowns::default(),
            next_worthless: Millis(0) + WORTHLESS_INTERVAL,
            next_orphans: Millis(0),
            stuck: 0,
            turn: Arc::default(),
        }
    }

    /// The same, with these counters. While another thread holds `turn`, nothing is swept.
    pub fn sharing(self, counters: Arc<SweepCounters>, turn: Arc<Mutex<()>>) -> Self {
        Self { counters, turn, ..self }
    }

    /// Its counters.
    pub fn counters(&self) -> Arc<SweepCounters> {
        self.counters.clone()
    }

    /// Runs the sweeps that are due. Returns the time of the next one.
    pub fn run(&mut self, now: Millis) -> Millis {
        let turn = self.turn.clone();
        let _turn = turn.lock();
        let (settings, flushes) = {
            let snapshot = self.published.load();
            (snapshot.settings, snapshot.flushes)
        };
        if self.next_worthless <= now {
            self.next_worthless = now + WORTHLESS_INTERVAL;
            if settings.drops_entries {
                self.end_worthless(now);
            }
        }
        if self.flushes != flushes {
            (self.flushes, self.is_flushing, self.next_orphans) = (flushes, true, now);
        }
        if self.is_flushing && self.next_orphans <= now {
            self.next_orphans = now + ORPHANS_INTERVAL;
            self.end_orphans();
        }
        if self.reader.in_limbo() > 0 {
            // An empty walk frees the entries that earlier ones removed.
            self.reader.visit(0..0, |_, _| {});
        }
        if self.is_flushing { self.next_worthless.min(self.next_orphans) } else { self.next_worthless }
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
                // A packet that arrives meanwhile changes the state or the expiry, and saves it.
                let same = |state, expires| (state, expires) == seen;
                end_if(reader, id, same, &snapshot, &counters.worthless);
            });
        }
    }

    /// `expire_nodest_conn`: ends the connections of removed destinations. Source: ipvs-behaviour, section 3.5.
    fn end_orphans(&mut self) {
        let orphans = orphans(&self.published.load());
        self.stuck = self.stuck.min(orphans);
        if orphans == self.stuck {
            self.is_flushing = false;
            return;
        }
        let before = self.counters.orphaned.value();
        let mut next = 0;
        while next < self.reader.table().extent() {
            let snapshot = self.published.load_full();
            let counters = &self.counters;
            self.reader.visit(next..next.saturating_add(SLICE), |reader, id| {
                let connection = reader.connection(id);
                let number = DestinationId(connection.dest_ref());
                let removed = snapshot.destinations.find(number).is_some_and(|known| !known.available);
                if removed {
                    end_if(reader, id, |_, _| true, &snapshot, &counters.orphaned);
                }
            });
            next = next.saturating_add(SLICE);
        }
        if self.counters.orphaned.value() == before {
            self.stuck = orphans;
        }
    }
}

/// Ends a connection if `test` holds for its state and expiry; then also its template, if that was never assured and
/// controls no other connection.
fn end_if(
    reader: &mut TableReader,
    id: ConnId,
    test: impl Fn(u8, Millis) -> bool,
    snapshot: &Snapshot,
    counter: &Counter,
) {
    let controller = reader.connection(id).controller();
    if let Removal::Done(state) = reader.remove_if(id, test) {
        count_out(&reader.connection(id), state, snapshot);
        counter.add(1);
        if let Some(template) = controller
            && reader.connection(template).is_template()
            && is_known(&reader.connection(template), snapshot)
            && let Removal::Done(state) = reader.remove_if(template, |state, _| state & ASSURED == 0)
        {
            count_out(&reader.connection(template), state, snapshot);
            counter.add(1);
        }
    }
}

/// The number of connections and templates of removed destinations.
fn orphans(snapshot: &Snapshot) -> u64 {
    let removed = snapshot.destinations.iter().filter(|known| !known.available);
    removed
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
/// `drop_entry` examines one of this many places each second.
const WORTHLESS_SHARE: u32 = 32;
/// Interval of looking for connections of removed real servers, until there are none.
const ORPHANS_INTERVAL: Duration = Duration::from_millis(250);
/// Entries examined in one walk; meanwhile workers cannot reuse removed entries.
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
