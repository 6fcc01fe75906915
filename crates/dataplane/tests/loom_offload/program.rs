//! The XDP program's side of a record, word by word, written from `bpf/offload.h`.
//!
//! It reads a record's state, and changes it later: loom runs the others in between.

use std::sync::Arc;

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::tcp::{Judgement, TcpState};
use xvs_dataplane::conn::{ConnId, Direction, Seen};
use xvs_dataplane::offload::Offload;
use xvs_proto::tcp::Flags as Control;

/// The program with a record that it has found.
pub(super) struct Program {
    offload: Arc<Offload>,
    pub(super) record: u32,
    /// The use in which it finds the record.
    number: u64,
}

impl Program {
    /// The program as it finds a connection by its keys now.
    pub(super) fn of(offload: &Arc<Offload>, id: ConnId) -> Self {
        let record = offload.record_of(id).expect("it is offloaded");
        let number = use_of(offload.record(record)[STATE].load(Relaxed));
        Self { offload: offload.clone(), record, number }
    }

    /// The program as it finds the first record by the number of that now, if it does.
    pub(super) fn of_first(offload: &Arc<Offload>) -> Option<Self> {
        // Acquire: the address of its next load depends on this one.
        let word = offload.record(0)[STATE].load(Acquire);
        let is_found = word & (IN_FORCE | NEAR) == IN_FORCE | NEAR;
        is_found.then(|| Self { offload: offload.clone(), record: 0, number: use_of(word) })
    }

    /// A segment with ACK. Returns whether it is forwarded; if not, it goes to a worker.
    pub(super) fn segment(&self, flags: Control, direction: Direction, now: Millis) -> bool {
        let is_forwarded = self.moves(flags, direction, now);
        if is_forwarded {
            self.count(direction);
        }
        is_forwarded
    }

    /// The first part of a segment: notes its time, and moves the connection. Returns whether the segment is forwarded.
    ///
    /// Relaxed: the program's plain accesses. Its read-modify-writes order no less than AcqRel.
    pub(super) fn moves(&self, flags: Control, direction: Direction, now: Millis) -> bool {
        let flow = self.offload.record(self.record);
        let word = flow[STATE].load(Relaxed);
        if word & IN_FORCE == 0 || use_of(word) != self.number {
            return false;
        }
        let seen = if direction == Direction::Inbound { Seen::Input } else { Seen::Output };
        let next = state_of(word).after(flags, seen, Judgement::Ordinary);
        let was_established = u64::from(next == TcpState::Established) << 4;
        let after = word & !(15 << 8) | (next as u64) << 8 | was_established;
        let used = flow[USED].load(Relaxed);
        flow[USED].store(used & (SLOTS - 1) | (now.0 * 1_000_000 >> 10) << SLOTS.ilog2(), Relaxed);
        after == word || self.change(word, after)
    }

    /// The second part: counts a packet.
    pub(super) fn count(&self, direction: Direction) {
        let flow = self.offload.record(self.record);
        let count = COUNTS + if direction == Direction::Inbound { 0 } else { 2 };
        flow[count].fetch_add(1, AcqRel);
        flow[count + 1].fetch_add(40, AcqRel);
    }

    fn change(&self, word: u64, after: u64) -> bool {
        let flow = self.offload.record(self.record);
        if flow[STATE].compare_exchange(word, after, AcqRel, Relaxed).is_err() {
            return false;
        }
        if state_of(word).is_active() && !state_of(after).is_active() {
            let slot = flow[USED].load(Relaxed) & (SLOTS - 1);
            self.offload.moves()[INACTIVE + slot as usize].fetch_add(1, AcqRel);
        }
        true
    }
}

fn use_of(word: u64) -> u64 {
    word >> 12 & 0x7ff
}

fn state_of(word: u64) -> TcpState {
    TcpState::of((word >> 8 & 15) as u8)
}

const IN_FORCE: u64 = 1 << 0;
const NEAR: u64 = 1 << 23;
/// The places of words, and the number of slots (`bpf/maps.h`).
const STATE: usize = 0;
pub(super) const USED: usize = 2;
const COUNTS: usize = 3;
const SLOTS: u64 = 2;
pub(super) const HALF_OPEN: usize = 0;
pub(super) const INACTIVE: usize = 8;
