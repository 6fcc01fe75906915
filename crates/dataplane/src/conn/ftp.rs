//! The data of an FTP control connection beside its endpoints: the shift of its replies, the client's last request for
//! a data connection, and where each end's next line begins.
//!
//! A reply that names an address is rewritten, and its length changes. From there on the client counts the server's
//! bytes differently. A server waits for the next command after such a reply. The last sequence number at which the
//! length changed, and the sum of all changes before it, therefore suffice.

use xvs_proto::sync::ReplyShift;

use super::connection::Connection;
use super::direction::Direction;
use crate::shm::atomic::{AtomicU64, Ordering};

/// The shift of the server's sequence numbers for the client. Encoded as the sequence number of the last change in the
/// lower 32 bits, that change in the next 8, and the sum of all earlier changes in the upper 24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shift(u64);

impl Shift {
    fn place(self) -> u32 {
        self.0 as u32
    }

    fn change(self) -> i32 {
        i32::from((self.0 >> 32) as i8)
    }

    fn before(self) -> i32 {
        (self.0 as i64 >> 40) as i32
    }

    /// The shift with another change in length, in bytes, at this sequence number of the server, unless the shift
    /// already includes it. A change of 0 bytes is recorded, too. `None` if the sum has too many bits.
    pub(crate) fn with(self, place: u32, change: i8) -> Option<Self> {
        if self != Self::default() && place.wrapping_sub(self.place()) as i32 <= 0 {
            return Some(self);
        }
        Self::of(place, self.before() + self.change(), change)
    }

    fn of(place: u32, before: i32, change: i8) -> Option<Self> {
        let fits = (before << 8) >> 8 == before;
        fits.then_some(Self((before as u64) << 40 | u64::from(change as u8) << 32 | u64::from(place)))
    }

    /// Whether the last replacement was at this sequence number.
    pub(crate) fn is_at(self, place: u32) -> bool {
        self != Self::default() && self.place() == place
    }

    /// The shift that another director has announced; `None` if the connection is not an FTP connection.
    pub(crate) fn received(of: ReplyShift) -> Option<Self> {
        Self::of(of.place, of.before, i8::try_from(of.after.wrapping_sub(of.before)).ok()?)
    }

    /// The shift for announcements to other directors; `None` if nothing is shifted.
    pub(crate) fn announced(self) -> Option<ReplyShift> {
        let before = self.before();
        let shift = ReplyShift { place: self.place(), after: before + self.change(), before };
        (shift.after != 0 || shift.before != 0).then_some(shift)
    }

    /// Converts a sequence number of the server to the client's numbering.
    pub(crate) fn to_client(self, number: u32) -> u32 {
        match number.wrapping_sub(self.place()) as i32 {
            beyond if beyond > 0 => number.wrapping_add_signed(self.before() + self.change()),
            _ => number.wrapping_add_signed(self.before()),
        }
    }

    /// Converts a number that the client acknowledges to the server's numbering. `written` is the length of the bytes
    /// that replaced the last address: a number within them becomes the first one.
    pub(crate) fn to_server(self, number: u32, written: usize) -> u32 {
        if self == Self::default() {
            return number;
        }
        let original = number.wrapping_add_signed(-self.before());
        match original.wrapping_sub(self.place()) as i32 {
            beyond if beyond <= 0 => original,
            beyond if beyond < written as i32 && self.change() != 0 => self.place(),
            _ => original.wrapping_add_signed(-self.change()),
        }
    }
}

/// The information that the reply to a client's last command may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing.
    Nothing = 0,
    /// The endpoint of a passive data connection (`PASV`).
    Passive = 1,
    /// The port of a passive data connection (`EPSV`).
    ExtendedPassive = 2,
}

/// For FTP control connections ([`Flags::FTP`](super::Flags::FTP)).
impl Connection<'_> {
    pub(crate) fn shift(&self) -> Shift {
        Shift(self.ftp_word(0).load(Ordering::Relaxed))
    }

    pub(crate) fn set_shift(&self, shift: Shift) {
        self.ftp_word(0).store(shift.0, Ordering::Relaxed);
    }

    pub(crate) fn asked(&self) -> Asked {
        match self.ftp_word(1).load(Ordering::Relaxed) & ASKED {
            1 => Asked::Passive,
            2 => Asked::ExtendedPassive,
            _ => Asked::Nothing,
        }
    }

    pub(crate) fn set_asked(&self, asked: Asked) {
        self.change_lines(|word| word & !ASKED | asked as u64);
    }

    /// Initializes both directions: nothing is shifted or requested, and no line is known.
    pub(crate) fn begin_text(&self) {
        self.set_shift(Shift::default());
        self.ftp_word(1).store(0, Ordering::Relaxed);
    }

    /// The offset in `data` of the first byte that begins a line in this direction's stream, after a line ending; the
    /// length if none does. `None` if the data were read before, or do not belong to the stream. Before any line ending
    /// is known, for example after a failover, data begin a line. Records the last line ending.
    pub(crate) fn first_line(&self, direction: Direction, sequence: u32, data: &[u8]) -> Option<usize> {
        let at = LINES + direction as u32 * LINE.count_ones();
        let line = (self.ftp_word(1).load(Ordering::Relaxed) >> at & LINE) as u32;
        let place = |number: u32| number & PLACE | KNOWN;
        let is_known = line & KNOWN != 0;
        let ahead = sequence.wrapping_add(data.len() as u32).wrapping_sub(line) & PLACE;
        if is_known && !(1..REACH).contains(&ahead) {
            return None;
        }
        let is_line = !is_known || place(sequence) == line;
        let last = data.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1);
        if let Some(last) = last.or(is_line.then_some(0)) {
            let next = u64::from(place(sequence.wrapping_add(last as u32)));
            self.change_lines(|word| word & !(LINE << at) | next << at);
        }
        if is_line {
            return Some(0);
        }
        Some(data.iter().position(|byte| *byte == b'\n').map_or(data.len(), |end| end + 1))
    }

    /// Changes the second word. Both directions write it, each its own bits.
    fn change_lines(&self, change: impl Fn(u64) -> u64) {
        let _ =
            self.ftp_word(1).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(change(word)));
    }

    /// The fields of the local endpoint, which such a connection does not have. Relaxed accesses: the fields order no
    /// other memory.
    fn ftp_word(&self, index: usize) -> &AtomicU64 {
        &self.record.extension.local[index]
    }
}

/// The bits of the second word that contain an [`Asked`].
const ASKED: u64 = 0b11;
/// The lowest bit of the client's line in the second word; the server's follows.
const LINES: u32 = 2;
/// The bits of a line: whether it is known, and the lower bits of its sequence number.
const LINE: u64 = 0x7fff_ffff;
const KNOWN: u32 = 1 << 30;
const PLACE: u32 = KNOWN - 1;
/// No segment ends further after the known line: a longer line is not FTP, and a forged segment is seldom nearer.
const REACH: u32 = 1 << 17;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn numbers_behind_a_change_are_shifted_and_those_before_it_are_not() {
        let shift = Shift::default().with(1000, 3).unwrap();
        assert_eq!([999, 1000, 1001, 1100].map(|number| shift.to_client(number)), [999, 1000, 1004, 1103]);
        // 9 bytes were replaced by 12.
        let acknowledged = [999, 1000, 1001, 1011, 1012, 1013].map(|number| shift.to_server(number, 12));
        assert_eq!(acknowledged, [999, 1000, 1000, 1000, 1009, 1010]);
    }

    #[test]
    fn changes_add_up_and_a_repeated_one_counts_once() {
        let one = Shift::default().with(u32::MAX - 10, -2).unwrap();
        assert_eq!(one.with(u32::MAX - 10, -2), Some(one), "the segment is sent again");
        let two = one.with(50, 5).unwrap();
        assert_eq!(two.with(u32::MAX - 10, -2), Some(two), "an old segment");
        assert_eq!([50, 60].map(|number| two.to_client(number)), [48, 63]);
        assert_eq!([48, 63].map(|number| two.to_server(number, 12)), [50, 60]);
        let three = two.with(60, 0).unwrap();
        assert!(three.is_at(60) && !three.is_at(50), "a change of 0 bytes is noted");
        assert_eq!([60, 70].map(|number| three.to_client(number)), [63, 73]);
        assert_eq!([63, 66, 73].map(|number| three.to_server(number, 12)), [60, 63, 70]);
        assert_eq!(Shift::default().with(60, 0).unwrap().announced(), None);
    }

    #[test]
    fn without_a_change_every_number_stays() {
        for number in [0, 5, 1 << 31, u32::MAX] {
            assert_eq!(Shift::default().to_client(number), number);
            assert_eq!(Shift::default().to_server(number, 12), number);
        }
    }

    #[test]
    fn a_sum_that_does_not_fit_is_refused() {
        let (mut shift, mut place) = (Shift::default(), 0_u32);
        let mut sum = 0;
        while let Some(more) = shift.with(place, 127) {
            (shift, place, sum) = (more, place.wrapping_add(1000), sum + 127);
        }
        assert!((1 << 23..(1 << 23) + 300).contains(&sum), "{sum}");
        assert_eq!(shift.to_client(place), place.wrapping_add(sum));
    }

    #[test]
    fn a_table_taken_over_knows_the_expected_connections_and_their_control_connections() {
        use super::super::{Flags, FormerTable, NewConnection, Table};
        use xvs_proto::{Endpoint, FlowKey};
        use xvs_sched::ForwardingMethod;

        let table = Table::example();
        let example = NewConnection::example();
        let service = Endpoint { port: 21, ..example.virtual_endpoint };
        let flags = Flags::of_ftp(example.protocol, service, ForwardingMethod::Nat);
        let mut worker = table.handle(0).unwrap();
        let control = worker.insert_new(&NewConnection { virtual_endpoint: service, flags, ..example });
        worker.connection(control).set_shift(Shift::default().with(7, 2).unwrap());
        assert!(worker.connection(control).add_controlled());
        let id = worker.insert_new(&NewConnection {
            client: Endpoint { port: 0, ..example.client },
            flags: Flags::NO_CLIENT_PORT,
            controller: Some(control),
            ..example
        });
        drop(worker);

        table.expected.store(0, std::sync::atomic::Ordering::Relaxed);
        let (table, discarded) = FormerTable::repaired(table);
        assert_eq!(discarded, 0);
        let worker = table.handle(0).unwrap();
        let NewConnection { protocol, client, virtual_endpoint, .. } = example;
        let flow = FlowKey { protocol, source: client, dest: virtual_endpoint };
        assert_eq!(worker.find_expected(&flow), Some(id));
        assert_eq!(worker.connection(id).controller(), Some(control));
        let control = worker.connection(control);
        assert_eq!((control.controlled(), control.shift().to_client(8)), (1, 10));
    }

    #[test]
    fn lines_begin_behind_line_ends_of_the_stream_in_each_direction_however_it_is_divided() {
        use super::super::{Flags, NewConnection, Table};
        use Direction::{Inbound, Outbound};

        let table = Table::example();
        let mut worker = table.handle(0).unwrap();
        let id = worker.insert_new(&NewConnection { flags: Flags::FTP, ..NewConnection::example() });
        let control = worker.connection(id);
        control.set_asked(Asked::ExtendedPassive);
        let start = u32::MAX - 9;
        let first = |direction, at: u32, data: &str| {
            control.first_line(direction, start.wrapping_add(at), data.as_bytes())
        };
        assert_eq!(first(Outbound, 0, "220 hello\r\n"), Some(0), "nothing is known before");
        assert_eq!(first(Outbound, 11, "504 no "), Some(0));
        assert_eq!(first(Outbound, 18, "229 (|||6379|)"), Some(14), "within a line");
        assert_eq!(first(Outbound, 32, "\r\n229 x\r\n"), Some(2));
        assert_eq!(first(Outbound, 41, "226 so\r\n"), Some(0));
        assert_eq!(first(Outbound, 34, "229 x\r\n"), None, "again");
        assert_eq!(first(Outbound, 41 + (1 << 20), "229 x\r\n"), None, "none of the stream");
        assert_eq!(first(Outbound, 49, "200 a\r\n"), Some(0));
        assert_eq!(first(Inbound, 500, "PASV\r\n"), Some(0), "the client's lines are its own");
        assert_eq!(first(Inbound, 506, "LIST"), Some(0));
        assert_eq!(first(Inbound, 510, "PASV\r\n"), Some(6));
        assert_eq!(first(Outbound, 56, "200 b\r\n"), Some(0));
        assert_eq!(control.asked(), Asked::ExtendedPassive);
    }

    proptest::proptest! {
        #[test]
        fn what_the_client_acknowledges_is_what_the_server_has_sent(
            place: u32, written in 7_usize..=15, replaced in 7_usize..=15, beyond in -1000..i32::MAX - 100,
        ) {
            let shift = Shift::default().with(place, written as i8 - replaced as i8).unwrap();
            let number = place.wrapping_add_signed(beyond);
            let back = shift.to_server(shift.to_client(number), written);
            let within = (1..replaced as i32).contains(&beyond);
            proptest::prop_assert_eq!(back, if within && written != replaced { place } else { number });
        }
    }
}
