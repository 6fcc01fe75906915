//! The connections that the XDP program forwards, with records in memory that it shares with workers.
//!
//! A record's state is one 64-bit integer ([`State`]). While it is in force, the program and workers change it by
//! compare-and-swap, or set or clear a bit, and the program may move the connection from one TCP state to another; the
//! record then has the connection's state, and its entry may be out of date. An entry with a record has a mark in its
//! field `life`; a mark without a record means nothing. There are two rules: **a reader of a connection's state or
//! deadline reads its record ([`told`]); a writer of the state first takes the connection back
//! ([`TableWorker::settle`], [`TableWorker::transition`])**. Taking it back seals the record, and copies the record's
//! state to the entry, in the exchange that clears the entry's mark. A segment that the program is processing at that
//! time finds the record sealed, and goes to the worker.
//!
//! A removed connection is counted according to its entry; a difference in the program's record is corrected at that
//! time ([`Offloaded::forget`]).
//!
//! Cost for connections without a record: a check of a bit in a field that is read anyway, and one load at their end.
//! `offload/` defines the other contents of a record, and chooses the connections that get one.
//!
//! [`TableWorker::settle`]: super::handle::TableWorker::settle
//! [`TableWorker::transition`]: super::handle::TableWorker::transition

use std::fmt;
use std::mem::offset_of;
use std::sync::atomic::AtomicU64 as Setting;
use std::sync::{Arc, OnceLock};

use xvs_proto::Protocol;

use super::id::ConnId;
use super::life::Life;
use super::tcp::TcpState;
use crate::bpf::{XVS_MAX_FLOWS, XVS_SLOTS, in_words, xvs_moves};
use crate::clock::{Micros, Millis};
use crate::shm::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::shm::words::{Rows, Words};

/// The most records: keys have no more bits for their numbers.
pub(crate) const MAX_RECORDS: usize = XVS_MAX_FLOWS as usize;
/// The words of a record (`struct xvs_flow` in `bpf/maps.h`).
pub(crate) const RECORD: usize = 40;
/// The connection field of a record that has no connection.
pub(crate) const NO_CONNECTION: u64 = u64::MAX;
/// The number of slots: destinations whose numbers differ by this number share one.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { XVS_SLOTS as usize };
/// The words of `struct xvs_moves`.
pub(crate) const MOVES: usize = INACTIVE + SLOTS;
const HALF_OPEN: usize = in_words(offset_of!(xvs_moves, half_open));
const INACTIVE: usize = in_words(offset_of!(xvs_moves, inactive));

/// The indices of the words in a record.
pub(crate) mod word {
    /// See [`State`](super::State).
    pub(crate) const STATE: usize = 0;
    /// The epoch, and in the upper half the slot's epoch.
    pub(crate) const EPOCHS: usize = 1;
    /// See [`Used`](super::Used).
    pub(crate) const USED: usize = 2;
    /// Packets and bytes of requests, then of replies, that no worker has taken yet.
    pub(crate) const COUNTS: usize = 3;
    /// The index of the connection and, in the upper half, its generation. The program does not use it.
    pub(crate) const CONNECTION: usize = 7;
    /// The program's actions for requests, then for replies.
    pub(crate) const PARTS: usize = 8;
    /// The number of words for one direction.
    pub(crate) const PART: usize = 8;
    /// The IPv6 addresses of requests, then of replies, as received.
    pub(crate) const OLD_ADDRESSES: usize = 24;
    /// The IPv6 addresses of requests, then of replies, as sent.
    pub(crate) const ADDRESSES: usize = 32;
}

/// The state of a record (`XVS_FLOW_IN_FORCE` and others in `bpf/maps.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State(pub(crate) u64);

impl State {
    pub(crate) const IN_FORCE: u64 = 1 << 0;
    pub(crate) const FOLLOWS: u64 = 1 << 1;
    pub(crate) const NO_OUTPUT: u64 = 1 << 2;
    pub(crate) const PROVEN: u64 = 1 << 3;
    pub(crate) const WAS_ESTABLISHED: u64 = 1 << 4;
    pub(crate) const SECURE: u64 = 1 << 5;
    pub(crate) const AWAITS: u64 = 1 << 6;
    pub(crate) const LAST_LINE: u64 = 1 << 7;
    /// The record's number equals the hash of its key, so the program finds it without a key.
    pub(crate) const NEAR: u64 = 1 << 23;
    /// The time until the SYN+ACK is measured from the time of the record's last packet, the SYN.
    pub(crate) const TIMED: u64 = 0xff << Self::RESPONSE_SHIFT;
    const RESPONSE_SHIFT: u32 = 24;
    const TCP_SHIFT: u32 = 8;
    const USE_SHIFT: u32 = 12;
    /// The number of uses of a record after which their numbers repeat: keys have no more bits for them.
    pub(crate) const USES: u64 = 1 << (u32::BITS - 1 - MAX_RECORDS.ilog2());

    /// The state of a record that is not in force, with this use number.
    pub(crate) fn unused(number: u32) -> Self {
        Self((u64::from(number) % Self::USES) << Self::USE_SHIFT)
    }

    /// The number of the use.
    pub(crate) fn number(self) -> u32 {
        (self.0 >> Self::USE_SHIFT & (Self::USES - 1)) as u32
    }

    pub(crate) fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// The state in force, with the same use number and these bits. `awaited` is the acknowledgement that proves the
    /// client.
    pub(crate) fn begun(self, bits: u64, tcp: u8, awaited: Option<u32>) -> Self {
        let awaits = awaited.map_or(0, |number| Self::AWAITS | u64::from(number) << 32);
        Self(
            Self::unused(self.number()).0
                | Self::IN_FORCE
                | bits
                | u64::from(tcp) << Self::TCP_SHIFT
                | awaits,
        )
    }

    /// The state of TCP, if the program follows it.
    pub(crate) fn tcp(self) -> Option<u8> {
        self.has(Self::FOLLOWS).then_some((self.0 >> Self::TCP_SHIFT & 15) as u8)
    }

    /// The acknowledgement that proves the client, if the record waits for it.
    pub(crate) fn awaited(self) -> Option<u32> {
        self.has(Self::AWAITS).then_some((self.0 >> 32) as u32)
    }

    /// The microseconds from the SYN to the SYN+ACK, if the program has forwarded both and measured them: in the
    /// correct range of a histogram, and at most a sixteenth off.
    pub(crate) fn response_micros(self) -> Option<u64> {
        let code = match self.0 >> Self::RESPONSE_SHIFT & 0xff {
            0 | 0xff => return None,
            code => code - 1,
        };
        // In the encoding of `with_response` in bpf/offload.h: the number less one has a leading bit and three more
        // bits after it.
        let less = match code / 8 {
            0 => code,
            exponent => (8 + code % 8) << (exponent - 1) | (1 << (exponent - 1)) >> 1,
        };
        Some(less + 1)
    }

    /// Whether the record is one of the few in force whose handshake is not complete.
    pub(crate) fn is_half_open(self) -> bool {
        self.has(Self::IN_FORCE)
            && matches!(self.tcp().map(TcpState::of), Some(TcpState::SynRecv | TcpState::SynAck))
    }
}

/// The time of a record's last packet, and its slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used(pub(crate) u64);

impl Used {
    const SLOT_BITS: u32 = SLOTS.ilog2();
    /// Nanoseconds in a unit of time.
    const UNIT: u64 = 1 << 10;

    pub(crate) fn new(slot: u32, at: Micros) -> Self {
        Self(u64::from(slot) | (at.0 * 1000 / Self::UNIT) << Self::SLOT_BITS)
    }

    /// The time, rounded up to a unit.
    pub(crate) fn at(self) -> Millis {
        Millis(((self.0 >> Self::SLOT_BITS) * Self::UNIT + Self::UNIT - 1) / 1_000_000)
    }

    pub(crate) fn slot(self) -> u32 {
        (self.0 as usize % SLOTS) as u32
    }
}

/// Whether packets have passed since the entry of a record's connection was last updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packets {
    /// If the record has counted some that no worker has taken.
    AsCounted,
    /// They have, and are no longer in the record's counts.
    HavePassed,
}

/// Who processes a connection's packets after a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The XDP program by the record, as before.
    Keep,
    /// The workers.
    TakeBack,
}

/// The changes that a record contained for its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    /// The protocol's states in the entry.
    pub(crate) before: u8,
    pub(crate) after: u8,
    /// The record's state.
    pub(crate) record: State,
}

/// The state of a connection according to its record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) slot: u32,
    /// The entry's `life` updated from the record.
    pub(super) told: Life,
    pub(super) state: State,
}

/// The records, and which connection each is of.
pub(crate) struct Offloaded {
    records: Rows<RECORD>,
    moves: Words<MOVES>,
    /// For each connection, its record's number plus one; 0 if it has none.
    of: Box<[AtomicU32]>,
    /// The time that a connection lasts after a packet, in milliseconds, by TCP state; the value for UDP is at index 0,
    /// which no offloaded TCP connection has.
    timeouts: [Setting; TcpState::ALL.len()],
}

impl Offloaded {
    /// For tables with this number of entries.
    pub(crate) fn new(records: Rows<RECORD>, moves: Words<MOVES>, entries: usize) -> Self {
        Self {
            records,
            moves,
            of: (0..entries).map(|_| AtomicU32::new(0)).collect(),
            timeouts: Default::default(),
        }
    }

    /// All words, for models.
    #[cfg(loom)]
    pub(crate) fn words(&self) -> (&Rows<RECORD>, &Words<MOVES>) {
        (&self.records, &self.moves)
    }

    /// The number of records.
    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }

    /// The words of a record.
    pub(crate) fn record(&self, number: u32) -> &[AtomicU64; RECORD] {
        &self.records[number as usize]
    }

    /// The state of a record.
    pub(crate) fn state(&self, record: u32) -> State {
        // Relaxed, here and below: the words of a record are separate atomics, and its memory is never freed.
        State(self.record(record)[word::STATE].load(Ordering::Relaxed))
    }

    /// When the last packet of a record passed.
    pub(crate) fn used(&self, record: u32) -> Used {
        Used(self.record(record)[word::USED].load(Ordering::Relaxed))
    }

    /// The record of a connection.
    pub(crate) fn of(&self, id: ConnId) -> Option<u32> {
        // Acquire: pairs with `unbind`. A thread that finds that a connection has given up its record may free the
        // record.
        self.of[id.0 as usize].load(Ordering::Acquire).checked_sub(1)
    }

    /// Gives a connection a record. Returns whether it had none.
    pub(crate) fn bind(&self, id: ConnId, record: u32) -> bool {
        self.of[id.0 as usize].compare_exchange(0, record + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Detaches this record from a connection, unless the connection now has another one.
    pub(crate) fn unbind(&self, id: ConnId, record: u32) {
        // Release: the caller's accesses to the record precede this.
        let _ = self.of[id.0 as usize].compare_exchange(record + 1, 0, Ordering::Release, Ordering::Relaxed);
    }

    /// Sets how long connections last after a packet.
    pub(crate) fn set_timeouts(&self, of: impl Fn(Protocol, u8) -> std::time::Duration) {
        for (state, timeout) in (0..).zip(&self.timeouts) {
            let protocol = if state == 0 { Protocol::UDP } else { Protocol::TCP };
            timeout.store(of(protocol, state).as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Begins a use of a record.
    pub(crate) fn begin(&self, record: u32, state: State) {
        if state.is_half_open() {
            self.moves[HALF_OPEN].fetch_add(1, Ordering::Relaxed);
        }
        self.record(record)[word::STATE].store(state.0, Ordering::Relaxed);
    }

    /// Makes the program find a record by the hash of its key, which equals the record's number.
    pub(crate) fn set_near(&self, record: u32) {
        // Release: a program that finds the record sees the earlier writes.
        self.record(record)[word::STATE].fetch_or(State::NEAR, Ordering::Release);
    }

    /// The number of records in force whose handshake is not complete.
    pub(crate) fn half_open(&self) -> u64 {
        // Negative for a moment if a record ends while it begins.
        (self.moves[HALF_OPEN].load(Ordering::Relaxed) as i64).max(0) as u64
    }

    /// Seals a record: the program no longer uses it to forward packets. Returns the record's last state.
    pub(crate) fn seal(&self, record: u32) -> State {
        // Acquire: the program stores the time of a segment before it changes the state.
        let before = State(self.record(record)[word::STATE].fetch_and(!State::IN_FORCE, Ordering::Acquire));
        if before.is_half_open() {
            self.moves[HALF_OPEN].fetch_sub(1, Ordering::Relaxed);
        }
        State(before.0 & !State::IN_FORCE)
    }

    /// Makes workers process the packets of a connection from now on.
    pub(crate) fn end(&self, id: ConnId) {
        // The caller has changed the connection; see `offload/begin.rs`.
        fence(Ordering::SeqCst);
        if let Some(record) = self.of(id) {
            self.seal(record);
        }
    }

    /// Ends the record of a removed connection; `last` is the last `life` of its entry. The connection was counted at
    /// its destination according to that value.
    pub(crate) fn forget(&self, id: ConnId, last: Life) {
        // As in `end`.
        fence(Ordering::SeqCst);
        if let Some(record) = self.of(id) {
            let slot = self.slot(record);
            let state = self.seal(record);
            let has_moved = state.tcp().is_some_and(|tcp| has_become_inactive(last.state(), tcp));
            // A use that failed as it began (`offload/begin.rs`) has ended; the record may now belong to another
            // connection.
            if last.is_offloaded() && has_moved && self.of(id) == Some(record) {
                self.take_move(slot);
            }
            // Last: its owner frees the record then.
            self.unbind(id, record);
        }
    }

    /// Ends the record of a removed connection, and returns the counts that no worker has taken: packets and bytes of
    /// requests, then of replies, and the time of the last packet.
    pub(super) fn untaken(&self, id: ConnId) -> Option<([[u64; 2]; 2], Millis)> {
        let record = self.of(id)?;
        self.seal(record);
        let words = self.record(record);
        let counts =
            [0, 2].map(|part| [0, 1].map(|unit| words[word::COUNTS + part + unit].load(Ordering::Relaxed)));
        let last = self.used(record).at();
        // As in `forget`: the record may belong to another connection.
        (self.of(id) == Some(record)).then_some((counts, last))
    }

    /// The slot of a record, in which the program counts its moves.
    pub(crate) fn slot(&self, record: u32) -> u32 {
        self.used(record).slot()
    }

    /// Reverts a move from active to inactive that the program has counted in this slot. The caller has read the slot
    /// while the record belonged to the connection: afterwards its owner may reuse the record.
    pub(crate) fn take_move(&self, slot: u32) {
        self.moves[INACTIVE + slot as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// The number of connections to the slot's destinations that have become inactive and are counted as active.
    pub(crate) fn moved(&self, slot: u32) -> i64 {
        self.moves[INACTIVE + slot as usize].load(Ordering::Relaxed) as i64
    }

    /// The state of a connection according to its record, given the `life` of its entry. `None` if the record no longer
    /// belongs to the connection.
    pub(super) fn read(&self, id: ConnId, record: u32, life: Life, packets: Packets) -> Option<Reading> {
        // Read before the caller's exchange, after which the owner of the record may reuse it.
        let slot = self.slot(record);
        let told = self.told(record, life, packets);
        // Read after `told`, which is then not newer.
        let state = self.state(record);
        // Sound for each exchange: the second of two threads finds the mark cleared, or another record. A record is
        // reused only after a rest, long after the loads above.
        (self.of(id) == Some(record)).then_some(Reading { slot, told, state })
    }

    /// An entry's `life`, updated from this record.
    fn told(&self, record: u32, life: Life, packets: Packets) -> Life {
        let is_used = packets == Packets::HavePassed || has_packets(self.record(record));
        let state = self.state(record).tcp().unwrap_or(life.state());
        if state == life.state() && !is_used { life } else { life.later(state, self.expires(record, state)) }
    }

    /// The deadline of a connection in this state, from the time of the record's last packet.
    fn expires(&self, record: u32, state: u8) -> Millis {
        let timeout =
            self.timeouts.get(usize::from(state)).map_or(0, |timeout| timeout.load(Ordering::Relaxed));
        Millis(self.used(record).at().0 + timeout)
    }
}

/// The entry's `life` of a connection, updated from its record, if the XDP program may have one.
#[inline]
pub(super) fn told(offloaded: &OnceLock<Arc<Offloaded>>, id: ConnId, life: Life) -> Life {
    match offloaded.get().filter(|_| life.is_offloaded()) {
        Some(all) => all.of(id).map_or(life, |record| all.told(record, life, Packets::AsCounted)),
        None => life,
    }
}

/// Whether a record, given as words, has packets that no worker has taken.
pub(crate) fn has_packets(words: &[AtomicU64; RECORD]) -> bool {
    words[word::COUNTS..word::CONNECTION].iter().any(|count| count.load(Ordering::Relaxed) != 0)
}

/// Whether the program has counted a move from active to inactive between these TCP states.
pub(crate) fn has_become_inactive(before: u8, after: u8) -> bool {
    TcpState::of(before).is_active() && !TcpState::of(after).is_active()
}

impl fmt::Debug for Offloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offloaded").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// The encoding of `with_response` in bpf/offload.h, computed by another method.
    fn code(micros: u64) -> u64 {
        let less = micros.max(1) - 1;
        let code = if less < 8 {
            less
        } else {
            let bits = format!("{less:b}");
            (bits.len() as u64 - 3) * 8 + u64::from_str_radix(&bits[1..4], 2).unwrap()
        };
        code + 1
    }

    #[test]
    fn a_measured_time_keeps_the_power_of_two_that_it_does_not_exceed_and_four_bits() {
        let powers =
            (0..32).flat_map(|power| [(1_u64 << power) - 1, 1 << power, (1 << power) + 1, 3 << power >> 1]);
        for micros in powers.filter(|micros| (1..=u64::from(u32::MAX)).contains(micros)) {
            let told = State(code(micros) << State::RESPONSE_SHIFT).response_micros().unwrap();
            assert_eq!(told.next_power_of_two(), micros.next_power_of_two(), "{micros} as {told}");
            assert!(told.abs_diff(micros) * 16 <= micros, "{micros} as {told}");
        }
        let others = [State::unused(3), State::unused(3).begun(State::TIMED, 3, None)];
        assert_eq!(others.map(State::response_micros), [None; 2]);
    }
}
