//! The TCP numbers of a connection through the SYN proxy. The director has given each end different sequence numbers,
//! so it translates the segments of one end for the other.
//!
//! They are an [`Awaited`] while the destination has not answered ([`Flags::HANDSHAKE`](super::Flags::HANDSHAKE)), then
//! [`Numbers`] ([`Flags::SYN_PROXY`](super::Flags::SYN_PROXY) alone). They take 16 bytes, which survive a restart and
//! are sent to other directors.

use super::connection::Connection;
use super::flags::Flags;
use crate::shm::atomic::{Ordering, fence};

/// The values that a client has received while its connection waits for its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Awaited {
    /// The director's initial sequence number: the cookie.
    pub(crate) cookie: u32,
    /// The director's timestamp and the client's last one, if they use timestamps.
    pub(crate) timestamps: Option<[u32; 2]>,
    /// The client's window, in the unit that its SYN announced.
    pub(crate) window: u16,
    /// The number of SYNs that were sent to the destination.
    pub(crate) tries: u8,
}

impl Awaited {
    /// The last of the integers, which [`Numbers`] do not use.
    fn rest(self) -> u32 {
        let is_timed = if self.timestamps.is_some() { TIMESTAMPS } else { 0 };
        u32::from(self.window) | u32::from(self.tries) << 16 | is_timed
    }
}

/// The translation of sequence numbers. The differences wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Numbers {
    /// The client's view of the sequence number, less the destination's.
    pub(crate) sequence: u32,
    /// The client's view of the timestamp, less the destination's.
    pub(crate) timestamp: u32,
    /// The number of bits by which the destination's windows are shifted left for the client; negative means right.
    pub(crate) to_client: i8,
    /// The number of bits by which the client's windows are shifted left for the destination.
    pub(crate) to_server: u8,
}

impl Numbers {
    /// The encoded numbers, as in messages to other directors.
    pub(crate) fn words(self) -> [u32; 3] {
        [self.sequence, self.timestamp, u32::from(self.to_client as u8) << 8 | u32::from(self.to_server)]
    }

    /// Decodes the numbers.
    pub(crate) fn of([sequence, timestamp, shifts]: [u32; 3]) -> Self {
        let to_client = ((shifts >> 8) as i8).clamp(-(SHIFT_MAX as i8), SHIFT_MAX as i8);
        Self { sequence, timestamp, to_client, to_server: (shifts as u8).min(SHIFT_MAX) }
    }
}

/// The greatest scale of windows (RFC 7323 §2.3).
const SHIFT_MAX: u8 = 14;

/// For connections with one of the flags.
impl Connection<'_> {
    /// The values sent to the client while its destination has not answered. A connection from another director waits
    /// for nothing: its destination has answered there, and must never be reset here.
    pub(crate) fn awaited(&self) -> Option<Awaited> {
        if self.flags().0 & (Flags::HANDSHAKE | Flags::SYNC).0 != Flags::HANDSHAKE.0 {
            return None;
        }
        let [cookie, own, client, rest] = self.number_words();
        let timestamps = (rest & TIMESTAMPS != 0).then_some([own, client]);
        Some(Awaited { cookie, timestamps, window: rest as u16, tries: (rest >> 16) as u8 })
    }

    /// Makes the connection wait for its destination. Only before another thread can find it.
    pub(crate) fn await_answer(&self, awaited: Awaited) {
        let [own, client] = awaited.timestamps.unwrap_or_default();
        self.set_number_words([awaited.cookie, own, client, awaited.rest()]);
        let _ = self.set_flags(Flags::HANDSHAKE);
    }

    /// Counts another SYN to the destination. Changes only the last integer, because another worker may be ending the
    /// handshake.
    pub(crate) fn count_try(&self, awaited: Awaited) {
        self.record.numbers.words[3]
            .store(Awaited { tries: awaited.tries + 1, ..awaited }.rest(), Ordering::Relaxed);
    }

    /// How its numbers are translated, if they are.
    #[inline]
    pub(crate) fn numbers(&self) -> Option<Numbers> {
        if self.flags().0 & (Flags::SYN_PROXY | Flags::HANDSHAKE).0 != Flags::SYN_PROXY.0 {
            return None;
        }
        // Pairs with the fence of `complete`.
        fence(Ordering::Acquire);
        let [words @ .., _] = self.number_words();
        Some(Numbers::of(words))
    }

    /// Ends the handshake: from now on `numbers` define the translation of segments. Returns `true` to the one caller
    /// that ended it.
    pub(crate) fn complete(&self, numbers: Numbers) -> bool {
        // The worker that sets the first flag writes; for others the handshake lasts until it has cleared the second.
        if !self.set_flags(Flags::SYN_PROXY) {
            return false;
        }
        let [sequence, timestamp, shifts] = numbers.words();
        self.set_number_words([sequence, timestamp, shifts, 0]);
        // A thread that sees the flag cleared sees the numbers.
        fence(Ordering::Release);
        let _ = self.clear_flags(Flags::HANDSHAKE);
        true
    }

    /// Takes over the translation from another director. Only before another thread can find the connection.
    pub(crate) fn receive_numbers(&self, numbers: Numbers) {
        let [sequence, timestamp, shifts] = numbers.words();
        self.set_number_words([sequence, timestamp, shifts, 0]);
        let _ = self.set_flags(Flags::SYN_PROXY);
    }

    pub(super) fn number_words(&self) -> [u32; 4] {
        self.record.numbers.words.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    pub(super) fn set_number_words(&self, words: [u32; 4]) {
        for (word, value) in self.record.numbers.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// In the last word: the ends use timestamps.
const TIMESTAMPS: u32 = 1 << 31;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::super::{FormerTable, NewConnection, Table};
    use super::*;

    #[test]
    fn numbers_and_what_a_client_was_told_outlive_the_process_and_one_worker_ends_the_handshake() {
        let table = Table::example();
        let mut worker = table.handle(0).unwrap();
        let id = worker.insert_new(&NewConnection { flags: Flags::HANDSHAKE, ..NewConnection::example() });
        let awaited = Awaited { cookie: 1, timestamps: Some([2, u32::MAX]), window: u16::MAX, tries: 3 };
        worker.connection(id).await_answer(awaited);
        drop(worker);

        let (table, discarded) = FormerTable::repaired(table);
        assert_eq!(discarded, 0);
        let worker = table.handle(0).unwrap();
        let connection = worker.connection(id);
        assert_eq!((connection.awaited(), connection.numbers()), (Some(awaited), None));
        let numbers = Numbers { sequence: 5, timestamp: 6, to_client: -7, to_server: 8 };
        assert!(connection.complete(numbers));
        assert!(!connection.complete(Numbers::default()), "another worker was faster");
        assert_eq!((connection.awaited(), connection.numbers()), (None, Some(numbers)));
    }

    #[test]
    fn a_connection_of_another_director_waits_for_no_answer_so_its_destination_is_not_reset() {
        let table = Table::example();
        let mut worker = table.handle(0).unwrap();
        let id = worker.insert_new(&NewConnection::example());
        let connection = worker.connection(id);
        let awaited = Awaited { cookie: 1, timestamps: None, window: 5, tries: 1 };
        connection.await_answer(awaited);
        assert_eq!(connection.awaited(), Some(awaited));
        assert!(connection.set_flags(Flags::SYNC));
        assert_eq!((connection.awaited(), connection.numbers()), (None, None));
    }

    #[test]
    fn a_timer_counts_a_try_and_leaves_the_numbers_alone_that_another_worker_has_completed_meanwhile() {
        let table = Table::example();
        let mut worker = table.handle(0).unwrap();
        let id = worker.insert_new(&NewConnection { flags: Flags::HANDSHAKE, ..NewConnection::example() });
        let connection = worker.connection(id);
        for timestamps in [None, Some([2, u32::MAX])] {
            let awaited = Awaited { cookie: 1, timestamps, window: u16::MAX, tries: 1 };
            connection.await_answer(awaited);
            connection.count_try(awaited);
            assert_eq!(connection.awaited(), Some(Awaited { tries: 2, ..awaited }));
        }
        let read_by_the_timer = connection.awaited().unwrap();
        let numbers = Numbers { sequence: 5, timestamp: 6, to_client: -7, to_server: 8 };
        assert!(connection.complete(numbers));
        connection.count_try(read_by_the_timer);
        assert_eq!((connection.awaited(), connection.numbers()), (None, Some(numbers)));
    }

    proptest::proptest! {
        #[test]
        fn numbers_are_the_same_in_another_director_and_arbitrary_words_shift_by_no_more_than_the_scale(
            words: [u32; 3],
        ) {
            let numbers = Numbers::of(words);
            proptest::prop_assert!(numbers.to_client.unsigned_abs() <= 14 && numbers.to_server <= 14);
            proptest::prop_assert_eq!(Numbers::of(numbers.words()), numbers);
        }
    }
}
