//! Tests of reassembly.

use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::{Parsed, Protocol, ipv6, parse};

use super::*;
use crate::port::memory::MemoryPort;

/// One worker's reassembly, with frames for fragments.
struct Bench {
    fragments: Reassembly,
    port: MemoryPort,
}

impl Bench {
    fn new() -> Self {
        let fragments = Reassembly::new(0, Arc::new(Handoff::new(1)), HashSecret([3, 5, 7]));
        Self { fragments, port: MemoryPort::with_links(1) }
    }

    fn take(&mut self, bytes: &[u8], now: u64) -> Gathered {
        let mut frame = self.port.allocate().unwrap();
        assert!(frame.resize(bytes.len()));
        frame.bytes_mut().copy_from_slice(bytes);
        let Ok(Parsed::Ip(packet)) = parse(bytes) else { panic!("not a packet") };
        let gathered = self.fragments.take(Received { link: LinkId(0), frame }, &packet, Millis(now));
        self.fragments.released().drain(..).for_each(|received| self.port.recycle(received.frame));
        gathered
    }

    /// The reason why a fragment was refused; `None` if it waits.
    fn refused(&mut self, bytes: &[u8]) -> Option<DropReason> {
        match self.take(bytes, 0) {
            Gathered::Waits => None,
            Gathered::Refused(reason) => Some(reason),
            other => panic!("{other:?}"),
        }
    }
}

/// A UDP fragment over IPv4: `len` bytes of `fill` from byte `8 * offset`.
fn v4(offset: u16, more: bool, len: usize, fill: u8) -> Vec<u8> {
    v4_with(offset, more, len, fill, 0)
}

fn v4_with(offset: u16, more: bool, len: usize, fill: u8, tos: u8) -> Vec<u8> {
    v4_to(1, 77, offset, more, len, fill, tos)
}

/// Like [`v4`], with this last byte of the destination, and this identification.
fn v4_to(dest: u8, id: u16, offset: u16, more: bool, len: usize, fill: u8, tos: u8) -> Vec<u8> {
    let header = ipv4::Header {
        tos,
        payload_len: len as u16,
        id,
        dont_fragment: false,
        ttl: 64,
        protocol: Protocol::UDP,
        source: [192, 0, 2, 10].into(),
        dest: [198, 51, 100, dest].into(),
    };
    let mut frame = vec![fill; 34 + len];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 0xfe, 8, 0]);
    header.emit(&mut frame[14..]);
    let more = if more { ipv4::MORE_FRAGMENTS } else { 0 };
    Ipv4::edit(&mut frame[14..]).set_part(20 + len as u16, offset | more);
    frame
}

/// Like [`v4`], over IPv6.
fn v6_filled(offset: u16, more: bool, len: usize, fill: u8) -> Vec<u8> {
    let mut frame = v6(&[], offset * 8, more, len);
    let data = frame.len() - len;
    frame[data..].fill(fill);
    frame
}

#[test]
fn overlapping_or_contradictory_fragments_end_a_datagram_and_repeated_ones_do_not() {
    overlaps_and_repeats(v4);
    // RFC 5722 §4 and RFC 8200 §4.5, which lets exact repetitions pass.
    overlaps_and_repeats(v6_filled);
}

fn overlaps_and_repeats(part: impl Fn(u16, bool, usize, u8) -> Vec<u8>) {
    use DropReason::{FragmentConflict, FragmentRepeated};
    for (second, reason) in [
        (part(2, true, 16, 1), FragmentConflict),
        (part(0, true, 16, 1), FragmentConflict),
        (part(0, true, 40, 1), FragmentConflict),
        (part(1, false, 8, 1), FragmentConflict),
        (part(1, true, 16, 1), FragmentRepeated),
        (part(1, true, 16, 2), FragmentRepeated),
        (part(1, true, 8, 2), FragmentRepeated),
        (part(2, true, 8, 2), FragmentRepeated),
        (part(2, true, 24, 2), FragmentRepeated),
    ] {
        // Units 1 and 2; in cases with a repetition also units 3 and 4.
        let mut bench = Bench::new();
        assert_eq!(bench.refused(&part(1, true, 16, 1)), None);
        if reason == FragmentRepeated {
            assert_eq!(bench.refused(&part(3, true, 16, 1)), None);
        }
        let held = bench.fragments.held();
        assert_eq!(bench.refused(&second), Some(reason), "{second:x?}");
        assert_eq!(bench.fragments.held(), if reason == FragmentRepeated { held } else { 0 });
    }
    // Two different ends; a fragment after the end; an end before the end of another fragment.
    for behind in [part(9, false, 8, 1), part(9, true, 8, 1), part(1, false, 8, 1)] {
        let mut bench = Bench::new();
        assert_eq!(bench.refused(&part(5, false, 8, 1)), None);
        assert_eq!(bench.refused(&behind), Some(FragmentConflict));
        assert_eq!(bench.fragments.held(), 0);
    }
}

#[test]
fn impossible_lengths_are_refused_at_once() {
    let mut bench = Bench::new();
    for frame in [v4(1, true, 12, 1), v4(1, false, 0, 1), v4(0x1fff, false, 8, 1), v4(8186, true, 32, 1)] {
        assert_eq!(bench.refused(&frame), Some(DropReason::FragmentLength), "{frame:x?}");
    }
    assert_eq!(bench.refused(&v4(8186, false, 27, 1)), None, "it ends at 65,535 with the header");
    assert_eq!(bench.fragments.held(), 1);
    let mut bench = Bench::new();
    for frame in [
        v6_filled(1, true, 12, 1),
        v6_filled(1, false, 0, 1),
        v6_filled(8191, false, 8, 1),
        v6_filled(8189, true, 24, 1),
    ] {
        assert_eq!(bench.refused(&frame), Some(DropReason::FragmentLength), "{frame:x?}");
    }
    assert_eq!(bench.refused(&v6_filled(8191, false, 7, 1)), None, "it ends at 65,535 behind the header");
    let options = [44, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(bench.refused(&v6(&options, 65_528, false, 7)), Some(DropReason::FragmentLength));
}

#[test]
fn a_datagram_of_too_many_fragments_is_dropped_and_so_is_the_oldest_without_room() {
    let mut bench = Bench::new();
    for fragment in 0..PER_DATAGRAM as u16 - 1 {
        assert_eq!(bench.refused(&v4(fragment + 1, true, 8, 1)), None);
    }
    assert_eq!(bench.refused(&v4(500, true, 8, 1)), Some(DropReason::FragmentCrowded));
    assert_eq!((bench.fragments.held(), bench.port.census().out), (0, 0));
    for datagram in 0..HELD as u8 as u16 + HELD as u16 {
        assert_eq!(bench.fragments.release_overdue(Millis(0)), None);
        let mut frame = v4(1, true, 8, 1);
        frame[18..20].copy_from_slice(&datagram.to_be_bytes());
        let sum = Sum16::of(&mut frame);
        frame[24..26].copy_from_slice(&sum);
        assert_eq!(bench.refused(&frame), None);
    }
    assert_eq!(bench.fragments.release_overdue(Millis(0)), Some(DropReason::FragmentCrowded));
    assert_eq!(bench.fragments.held(), HELD - 1);
    assert_eq!(bench.fragments.release_overdue(Millis(0)), None);
}

/// The checksum of an IPv4 header that a test has edited.
struct Sum16;

impl Sum16 {
    fn of(frame: &mut [u8]) -> [u8; 2] {
        frame[24..26].fill(0);
        xvs_proto::checksum::Sum::default().bytes(&frame[14..34]).checksum().to_be_bytes()
    }
}

#[test]
fn a_flood_of_fragments_to_one_address_does_not_end_the_datagrams_to_another() {
    let mut bench = Bench::new();
    let half = |id, offset, more| v4_to(2, id, offset, more, 16, 1, 0);
    assert_eq!((1..9).map(|id| bench.refused(&half(id, 0, true))).collect::<Vec<_>>(), [None; 8]);
    let mut crowded = 0;
    for id in 0..2000 {
        assert_eq!(bench.refused(&v4_to(1, id, 0, true, 16, 1, 0)), None);
        while let Some(reason) = bench.fragments.release_overdue(Millis(0)) {
            assert_eq!(reason, DropReason::FragmentCrowded);
            crowded += 1;
        }
        bench.fragments.released().drain(..).for_each(|received| bench.port.recycle(received.frame));
    }
    assert!(crowded > 1700, "{crowded}");
    for id in 1..9 {
        let Gathered::Whole(datagram) = bench.take(&half(id, 2, false), 0) else { panic!("{id}") };
        bench.fragments.put_back(datagram.frame);
    }
}

#[test]
fn the_timeout_runs_from_the_first_arrival_and_is_longer_for_ipv6() {
    let mut bench = Bench::new();
    assert!(matches!(bench.take(&v4(0, true, 16, 1), 1000), Gathered::Waits));
    assert!(matches!(bench.take(&v4(2, true, 16, 1), 20_000), Gathered::Waits));
    assert!(matches!(bench.take(&v6(&[], 0, true, 16), 1000), Gathered::Waits));
    assert_eq!(bench.fragments.next_due(Millis(20_000)), Some(Millis(31_000)));
    assert_eq!(bench.fragments.release_overdue(Millis(30_999)), None);
    assert_eq!(bench.fragments.release_overdue(Millis(31_000)), Some(DropReason::FragmentTimeout));
    assert_eq!(bench.fragments.released().drain(..).map(|one| bench.port.recycle(one.frame)).count(), 2);
    assert_eq!(bench.fragments.release_overdue(Millis(60_999)), None);
    assert_eq!(bench.fragments.release_overdue(Millis(61_000)), Some(DropReason::FragmentTimeout));
}

#[test]
fn congestion_of_one_fragment_marks_the_datagram_and_a_mixture_is_refused() {
    for (tos, want) in [([0b10, 0b11], Some(0b11)), ([0b10, 0b10], Some(0b10)), ([0b00, 0b11], None)] {
        let mut bench = Bench::new();
        assert!(matches!(bench.take(&v4_with(2, false, 16, 1, tos[1]), 0), Gathered::Waits));
        match bench.take(&v4_with(0, true, 16, 1, tos[0]), 0) {
            Gathered::Whole(datagram) => {
                let Ok(Parsed::Ip(packet)) = parse(datagram.frame.bytes()) else { panic!("a packet") };
                assert_eq!(Some(packet.tos), want);
                bench.fragments.put_back(datagram.frame);
            }
            Gathered::Refused(reason) => assert_eq!((reason, want), (DropReason::FragmentConflict, None)),
            other => panic!("{other:?}"),
        }
    }
}

/// A UDP fragment over IPv6 after these extension headers. The bytes of its data count up.
fn v6(extensions: &[u8], offset: u16, more: bool, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 0xfe, 0x86, 0xdd];
    let header = ipv6::Header {
        traffic_class: 0xb8,
        payload_len: (extensions.len() + 8 + len) as u16,
        next_header: Protocol(if extensions.is_empty() { 44 } else { 0 }),
        hop_limit: 9,
        source: [0x20; 16].into(),
        dest: [0xfd; 16].into(),
    };
    frame.resize(54, 0);
    header.emit(&mut frame[14..]);
    frame.extend(extensions);
    frame.extend([17, 0]);
    frame.extend((offset | u16::from(more)).to_be_bytes());
    frame.extend([0, 1, 0, 7]);
    frame.extend((0..len).map(|at| (usize::from(offset) + at) as u8));
    frame
}

#[test]
fn an_ipv6_datagram_loses_its_fragment_header_and_keeps_the_others() {
    let options = [44, 0, 1, 4, 0, 0, 0, 0];
    for extensions in [&[][..], &options] {
        let mut bench = Bench::new();
        assert!(matches!(bench.take(&v6(extensions, 32, false, 5), 0), Gathered::Waits));
        let Gathered::Whole(datagram) = bench.take(&v6(extensions, 0, true, 32), 0) else {
            panic!("it is whole")
        };
        let bytes = datagram.frame.bytes();
        let Ok(Parsed::Ip(packet)) = parse(bytes) else { panic!("a packet") };
        assert_eq!((packet.fragment_header, packet.flow.protocol), (None, Protocol::UDP));
        assert_eq!(packet.length(), 40 + extensions.len() + 37);
        let whole: Vec<u8> = (0..37).collect();
        assert_eq!(bytes[packet.transport..packet.end], whole);
        assert_eq!(datagram.largest, 40 + extensions.len() + 8 + 32);
        bench.fragments.put_back(datagram.frame);
    }
}
