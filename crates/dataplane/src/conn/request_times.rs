//! The times of requests whose first reply has not passed: a client's SYN or the first UDP datagram.
//!
//! There is a slot for each entry of the table, or for 65,536 of them, each one 64-bit integer with the time and a tag
//! of the connection. A later request takes the slot of an earlier one, whose time is then lost; a time is never
//! attributed to another connection. Any worker writes and takes: replies may arrive at another worker than the
//! request. Lost with the process. Cost: one access for a request and one for its reply. Memory: at most 512 KiB.

use std::sync::atomic::{AtomicU64, Ordering};

use super::id::ConnId;
use crate::clock::Micros;

/// The slots.
#[derive(Debug)]
pub(super) struct RequestTimes(Box<[AtomicU64]>);

impl RequestTimes {
    /// Slots for a table with this number of entries.
    pub(super) fn new(entries: usize) -> Self {
        Self((0..entries.next_power_of_two().min(SLOTS)).map(|_| AtomicU64::new(NONE)).collect())
    }

    /// Notes the time of a connection's request.
    pub(super) fn put(&self, id: ConnId, generation: u32, at: Micros) {
        // Relaxed, here and below: each slot is independent, and a lost one is one sample less.
        self.slot(id).store(tag(id, generation) | at.0 & TIME, Ordering::Relaxed);
    }

    /// The time of a connection's request, in the low bits of the clock ([`Self::since`]).
    pub(super) fn of(&self, id: ConnId, generation: u32) -> Option<Micros> {
        let word = self.slot(id).load(Ordering::Relaxed);
        (word & !TIME == tag(id, generation)).then_some(Micros(word & TIME))
    }

    /// Forgets the time of a connection's request.
    pub(super) fn forget(&self, id: ConnId, generation: u32) {
        if self.of(id, generation).is_some() {
            self.slot(id).store(NONE, Ordering::Relaxed);
        }
    }

    /// The microseconds from a request to `now`. Another worker's clock reading may be a moment ahead.
    pub(super) fn since(request: Micros, now: Micros) -> u64 {
        let passed = now.0.wrapping_sub(request.0) & TIME;
        if passed > TIME / 2 { 0 } else { passed }
    }

    fn slot(&self, id: ConnId) -> &AtomicU64 {
        &self.0[id.0 as usize & (self.0.len() - 1)]
    }
}

/// A slot without a time: no index has so many bits.
const NONE: u64 = u64::MAX;
/// Maximum number of slots: enough for the handshakes of 65 ms at a million a second.
const SLOTS: usize = 1 << 16;
/// Bits of the time: 19 hours.
const TIME_BITS: u32 = 36;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// The bits that distinguish the connections of a slot: the upper bits of their indices, and the low bits of their
/// generations.
fn tag(id: ConnId, generation: u32) -> u64 {
    (u64::from(id.0 >> SLOTS.ilog2()) | u64::from(generation) << 16) << TIME_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_that_of_its_connection_until_it_is_forgotten_or_another_request_has_its_slot() {
        let times = RequestTimes::new(1 << 20);
        let [first, other] = [ConnId(7), ConnId(7 + (1 << 16))];
        times.put(first, 1, Micros(5));
        assert_eq!(times.of(first, 1), Some(Micros(5)));
        assert_eq!([times.of(first, 2), times.of(other, 1), times.of(ConnId(8), 1)], [None; 3]);
        times.forget(other, 1);
        times.put(other, 0, Micros(6));
        assert_eq!([times.of(first, 1), times.of(other, 0)], [None, Some(Micros(6))]);
        times.forget(other, 0);
        assert_eq!(times.of(other, 0), None);
    }

    #[test]
    fn a_duration_is_right_where_the_bits_of_the_clock_wrap_and_0_where_clocks_differ() {
        let times = RequestTimes::new(3);
        let before = Micros((1 << TIME_BITS) - 10);
        times.put(ConnId(2), 9, before);
        let request = times.of(ConnId(2), 9).unwrap();
        assert_eq!(RequestTimes::since(request, Micros(before.0 + 25)), 25);
        assert_eq!(RequestTimes::since(request, Micros(before.0 - 1)), 0);
    }
}
