//! The log of connections: the counts that workers keep for it, and the queue of records for the thread that writes
//! them.
//!
//! Exists only if an operator wants the log. Each entry of the table then has a tally of its connection's packets and
//! bytes, which takes 48 bytes once the entry is used. A worker that inserts or removes a connection puts one record of
//! fixed size into a bounded queue; a record for which there is no room is counted and lost. Nothing here waits,
//! allocates or makes a system call after the start. Cost without the log: a load at the begin and end of a connection,
//! and a test for each packet. `logged.rs` creates the records; `xvsd` formats them.

use std::sync::atomic::AtomicU64 as Statistic;
use std::sync::atomic::Ordering::Relaxed;
use std::{hint, io};

use crossbeam::queue::ArrayQueue;
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ForwardingMethod;

use super::direction::Direction;
use super::id::ConnId;
use crate::clock::Millis;
use crate::shm::atomic::{Ordering, fence};
use crate::shm::layout::Tally;
use crate::shm::{Cells, Mapping, Memory};

/// The settings of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Whether the begin of a connection is logged, too, not only its end.
    pub begins: bool,
    /// One connection out of this many is logged, chosen by the hash of its endpoints; at least 1.
    pub one_in: u64,
    /// The records that may wait.
    pub queue: usize,
}

/// Why a connection has left the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The connection was closed, or its timeout passed without a packet; its last state indicates which.
    Expired,
    /// A full table reused the entry for a new connection.
    Evicted,
    /// A new connection between the same ends, or with a prior claim, has replaced it.
    Replaced,
    /// The connection's real server was removed (`expire_nodest_conn`).
    NoDestination,
    /// `drop_entry` has ended it.
    Dropped,
    /// An operator has ended it (`xvs drain`).
    Drained,
}

/// The event that a record describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection has begun.
    Begin,
    /// A connection has ended.
    End(Ending),
}

/// A record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRecord {
    /// The event.
    pub event: Event,
    /// When that was.
    pub at: Millis,
    /// When the connection began; `None` if before this process, or at another director. Then the counts lack earlier
    /// packets.
    pub begun: Option<Millis>,
    /// When its last packet passed; `None` if none has passed here.
    pub last_packet: Option<Millis>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The client's endpoint.
    pub client: Endpoint,
    /// The endpoint that the client sends to.
    pub virtual_endpoint: Endpoint,
    /// The real server's endpoint.
    pub dest: Endpoint,
    /// The director's own endpoint, which the real server sees as the source (FULLNAT).
    pub local: Option<Endpoint>,
    /// How packets reach the real server.
    pub method: ForwardingMethod,
    /// The protocol state; in an end record the last one.
    pub state: u8,
    /// The firewall mark of the service; 0: none.
    pub mark: u32,
    /// Packets from the client, then packets to the client.
    pub packets: [u64; 2],
    /// Their bytes, from the IP header, in the same order.
    pub bytes: [u64; 2],
}

/// The log: tallies by entry, and waiting records. Shared by the handles of the table and the thread that writes.
pub struct ConnectionLog {
    settings: LogSettings,
    tallies: Cells<Tally>,
    queue: ArrayQueue<LogRecord>,
    /// Records that found no room.
    lost: Statistic,
}

impl ConnectionLog {
    /// A log for tables with this number of entries. Its tallies occupy memory once their entries are used.
    ///
    /// # Errors
    ///
    /// The kernel has no memory for it.
    pub fn new(settings: LogSettings, entries: usize) -> io::Result<Self> {
        Ok(Self {
            settings,
            tallies: Mapping::create(entries * size_of::<Tally>(), Memory::SmallPages)?.cells(0, entries),
            queue: ArrayQueue::new(settings.queue),
            lost: Statistic::new(0),
        })
    }

    /// The memory of the tallies of a full table with this number of entries, in bytes.
    pub fn full_bytes(entries: usize) -> usize {
        entries.saturating_mul(size_of::<Tally>())
    }

    /// The oldest record that waits.
    pub fn pop(&self) -> Option<LogRecord> {
        self.queue.pop()
    }

    /// The number of records lost because too many waited.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Whether begins are logged.
    pub(super) fn has_begins(&self) -> bool {
        self.settings.begins
    }

    /// Whether the connection with this hash of its request's flow is logged.
    pub(super) fn chooses(&self, hash: u64) -> bool {
        // The upper half chooses the bucket in the index, which must not matter here.
        u64::from(hash as u32).is_multiple_of(self.settings.one_in)
    }

    /// Initializes the tally of an entry that no other thread can reach.
    pub(super) fn begin(&self, index: u32, now: Millis) {
        let Tally { begun, last, packets, bytes } = &self.tallies[index as usize];
        begun.store(now.0 & TIME, Ordering::Relaxed);
        for count in packets.iter().chain(bytes).chain([last]) {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Counts packets of a connection, the last of them at this time.
    // Not inlined: most machines have no log.
    #[inline(never)]
    pub(crate) fn tally(&self, id: ConnId, direction: Direction, packets: u64, bytes: u64, at: Millis) {
        let tally = &self.tallies[id.0 as usize];
        let place = direction as usize;
        // Relaxed, here and above: the counts are independent, and the entry's own fields order begin and end. Added,
        // not stored: both directions, and sometimes several workers, count at once, and nothing may be lost.
        tally.packets[place].fetch_add(packets, Ordering::Relaxed);
        tally.bytes[place].fetch_add(bytes, Ordering::Relaxed);
        tally.last.store(at.0, Ordering::Relaxed);
    }

    /// Calls `take`, which moves counts from a connection's record to its tally. Only for the owner of the record.
    pub(crate) fn moving<T>(&self, id: ConnId, take: impl FnOnce() -> T) -> T {
        let begun = &self.tallies[id.0 as usize].begun;
        begun.fetch_add(MOVE, Ordering::Relaxed);
        // Pairs with the fence in `between_moves`: a reader that sees a count taken or tallied sees the odd number.
        fence(Ordering::Release);
        let taken = take();
        // Release: a reader that sees the even number sees the new tally.
        begun.fetch_add(MOVE, Ordering::Release);
        taken
    }

    /// The result of `read` for a connection's record and tally while nothing is moved between them: otherwise counts
    /// would be in neither, or in both. It does not wait for an owner that does not run.
    pub(super) fn between_moves<T>(&self, id: ConnId, read: impl Fn() -> T) -> T {
        for _ in 0..ATTEMPTS {
            if let Some(seen) = self.read_between_moves(id, &read) {
                return seen;
            }
            hint::spin_loop();
        }
        read()
    }

    /// One attempt at [`Self::between_moves`].
    fn read_between_moves<T>(&self, id: ConnId, read: impl Fn() -> T) -> Option<T> {
        let begun = &self.tallies[id.0 as usize].begun;
        let before = begun.load(Ordering::Acquire);
        let seen = (before & MOVE == 0).then(read)?;
        fence(Ordering::Acquire);
        (begun.load(Ordering::Relaxed) == before).then_some(seen)
    }

    /// Begin, last packet, packets and bytes of an entry's tally.
    pub(super) fn tallied(&self, id: ConnId) -> (Option<Millis>, Option<Millis>, [u64; 2], [u64; 2]) {
        let Tally { begun, last, packets, bytes } = &self.tallies[id.0 as usize];
        let [begun, last] = [begun, last].map(|time| match time.load(Ordering::Relaxed) & TIME {
            0 => None,
            millis => Some(Millis(millis)),
        });
        let [packets, bytes] =
            [packets, bytes].map(|counts| counts.each_ref().map(|count| count.load(Ordering::Relaxed)));
        (begun, last, packets, bytes)
    }

    /// Queues a record, or counts it as lost.
    pub(super) fn push(&self, record: LogRecord) {
        if self.queue.push(record).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

/// The bits of [`Tally::begun`] that contain a time.
const TIME: u64 = MOVE - 1;
/// The lowest bit of the number of moves in [`Tally::begun`].
const MOVE: u64 = 1 << 48;
/// Attempts to read between two moves: some microseconds, many times longer than a move takes.
const ATTEMPTS: u32 = 100;

impl std::fmt::Debug for ConnectionLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionLog").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    #[test]
    fn counts_that_another_thread_moves_into_the_tally_are_read_once() {
        let log = ConnectionLog::new(LogSettings { begins: false, one_in: 1, queue: 1 }, 1).unwrap();
        let id = ConnId(0);
        log.begin(0, Millis(5));
        // The counts of the XDP program, and the time before and after.
        let [begun, count, done] = [const { AtomicU64::new(0) }; 3];
        let is_over = AtomicBool::new(false);
        let wrong = std::thread::scope(|scope| {
            let reads = scope.spawn(|| {
                let mut wrong = 0;
                while !is_over.load(Relaxed) {
                    let least = done.load(Ordering::Acquire);
                    let seen = log.read_between_moves(id, || count.load(Relaxed) + log.tallied(id).2[0]);
                    let most = begun.load(Ordering::Acquire);
                    wrong += u32::from(seen.is_some_and(|seen| !(least..=most).contains(&seen)));
                }
                wrong
            });
            for _ in 0..500_000 {
                begun.fetch_add(1, Ordering::AcqRel);
                count.fetch_add(1, Ordering::AcqRel);
                done.fetch_add(1, Ordering::AcqRel);
                log.moving(id, || log.tally(id, Direction::Inbound, count.swap(0, Relaxed), 0, Millis(6)));
            }
            is_over.store(true, Relaxed);
            reads.join()
        });
        assert_eq!(wrong.unwrap(), 0);
        assert_eq!(log.tallied(id), (Some(Millis(5)), Some(Millis(6)), [500_000, 0], [0; 2]));
    }
}
