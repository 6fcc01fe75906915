//! Datagrams that come in fragments, in any order and at any worker, leave whole: whole workers in memory.
//!
//! What leaves is put together by `etherparse`, which shares no code with the director. Not here: single fragments
//! and what is refused of them (`src/fragments.rs`), how the kernel's IPVS does it (`tests/conformance.rs` of the root).

#![cfg(not(loom))]

// Shared with tests that need more of it.
#[allow(dead_code)]
mod crew;

use etherparse::defrag::IpDefragPool;
use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, LaxSlicedPacket, SlicedPacket, UdpHeader,
};
use proptest::prelude::*;
use xvs_dataplane::capture::{Reader, Way};
use xvs_dataplane::port::memory::Bytes;
use xvs_dataplane::verdict::{DropReason, Verdict};

use crew::{Crew, VIP};

const CLIENT: [u8; 4] = [10, 0, 0, 9];
/// By masquerading, direct routing and tunnel.
const PORTS: [u16; 3] = [53, 5300, 5301];

/// A datagram of the client's to be sent in fragments.
#[derive(Debug, Clone)]
struct Sent {
    port: u16,
    id: u16,
    data: Vec<u8>,
    /// Whether it has a checksum.
    summed: bool,
}

impl Sent {
    /// The UDP header and what follows it.
    fn payload(&self) -> Vec<u8> {
        let length = 8 + self.data.len() as u16;
        let mut udp = UdpHeader { source_port: 4000, destination_port: self.port, length, checksum: 0 };
        if self.summed {
            udp.checksum = udp.calc_checksum_ipv4_raw(CLIENT, VIP.octets(), &self.data).expect("a length");
        }
        [&udp.to_bytes()[..], &self.data].concat()
    }

    /// Frames of it, cut at these places, which are multiples of 8 bytes.
    fn fragments(&self, cuts: &[usize]) -> Vec<Vec<u8>> {
        let payload = self.payload();
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut * 8).filter(|cut| *cut < payload.len()).collect();
        ends.push(payload.len());
        let mut begin = 0;
        let cut = |end: usize| {
            let part = &payload[std::mem::replace(&mut begin, end)..end];
            let offset = ((end - part.len()) / 8) as u16;
            fragment(self.id, offset, end < payload.len(), part)
        };
        ends.into_iter().map(cut).collect()
    }
}

fn fragment(id: u16, offset: u16, more: bool, part: &[u8]) -> Vec<u8> {
    let mut header =
        Ipv4Header::new(part.len() as u16, 64, IpNumber::UDP, CLIENT, VIP.octets()).expect("a length");
    header.identification = id;
    header.dont_fragment = false;
    header.more_fragments = more;
    header.fragment_offset = IpFragOffset::try_new(offset).expect("below 8192");
    header.header_checksum = header.calc_header_checksum();
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 8, 0][..], &header.to_bytes(), part].concat()
}

/// What a receiver makes of packets: protocol, addresses and payload of each whole one.
fn reassembled(packets: &[Vec<u8>]) -> Vec<(u8, [u8; 4], Vec<u8>)> {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = Vec::new();
    for packet in packets {
        let header = Ipv4HeaderSlice::from_slice(packet).expect("a right header");
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
        assert_eq!(usize::from(header.total_len()), packet.len());
        let (protocol, dest) = (header.protocol().0, header.destination());
        if !header.is_fragmenting_payload() {
            whole.push((protocol, dest, packet[header.slice().len()..].to_vec()));
            continue;
        }
        let sliced = SlicedPacket::from_ip(packet).expect("a fragment");
        if let Some(done) = pool.process_sliced_packet(&sliced, (), ()).expect("fragments that fit") {
            whole.push((protocol, dest, done.payload));
        }
    }
    whole
}

fn packets(frames: &[Bytes]) -> Vec<Vec<u8>> {
    frames.iter().map(|bytes| bytes.frame[14..].to_vec()).collect()
}

/// Hands each frame to a worker, then lets workers look for what others have met; what left to the wire.
fn play(crew: &mut Crew, frames: &[(usize, Vec<u8>)]) -> Vec<Bytes> {
    let mut left = Vec::new();
    for (worker, frame) in frames {
        let [sent, passed] = crew.hand(*worker).pass(std::slice::from_ref(frame));
        assert_eq!(passed, []);
        left.extend(sent);
    }
    for _ in 0..2 {
        left.extend(crew.hands().iter_mut().flat_map(|hand| hand.pass(&[])).flatten());
    }
    left
}

/// What the destination must get: the datagram, between the addresses of its method, with a right checksum.
fn check(sent: &Sent, left: &[Bytes], largest: usize) -> Result<(), TestCaseError> {
    for packet in packets(left) {
        prop_assert!(packet.len() <= largest.min(1500), "{} of {largest}", packet.len());
    }
    let mut got = reassembled(&packets(left));
    prop_assert_eq!(got.len(), 1);
    let (mut protocol, mut dest, mut payload) = got.remove(0);
    if sent.port == PORTS[2] {
        prop_assert_eq!((protocol, &dest[..3]), (4, &[192, 0, 2][..]));
        let mut inner = reassembled(&[payload]);
        (protocol, dest, payload) = inner.remove(0);
    }
    prop_assert_eq!(protocol, 17);
    let masqueraded = sent.port == PORTS[0];
    prop_assert_eq!(dest == VIP.octets(), !masqueraded);
    let mut want = sent.payload();
    if masqueraded {
        let (udp, data) = UdpHeader::from_slice(&payload).expect("a header");
        let sum = udp.calc_checksum_ipv4_raw(CLIENT, dest, data).expect("a length");
        prop_assert_eq!(udp.checksum, sum);
        want[6..8].copy_from_slice(&payload[6..8]);
    }
    prop_assert_eq!(payload, want);
    Ok(())
}

fn datagram() -> impl Strategy<Value = Sent> {
    (0usize..3, any::<u16>(), prop::collection::vec(any::<u8>(), 17..6000), any::<bool>())
        .prop_map(|(port, id, data, summed)| Sent { port: PORTS[port], id, data, summed })
}

/// Where to cut, in units of 8 bytes: never within the UDP header, and each fragment within 1,400 bytes.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..175, 4..60).prop_map(|steps| {
        let sum = |at: &mut usize, step: usize| {
            *at += step;
            Some(*at)
        };
        steps
            .into_iter()
            .chain(std::iter::repeat(170))
            .scan(0, |at, step| sum(at, step))
            .take_while(|at| *at < 800)
            .collect()
    })
}

fn sorted<'a>(frames: impl Iterator<Item = &'a Vec<u8>>) -> Vec<Vec<u8>> {
    let mut frames: Vec<_> = frames.cloned().collect();
    frames.sort();
    frames
}

/// What was captured: frames that came in, that went out, and that were shown again with what became of them.
#[expect(clippy::type_complexity, reason = "three lists of frames")]
fn read(captured: &mut Reader) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<(Verdict, Vec<u8>)>) {
    let (mut came, mut gone, mut again) = (Vec::new(), Vec::new(), Vec::new());
    captured.read(|_, record| {
        let bytes = record.bytes().to_vec();
        match record.way {
            Way::In => came.push(bytes),
            Way::Out => gone.push(bytes),
            Way::Before => again.push((record.verdict, bytes)),
        }
    });
    (sorted(came.iter()), sorted(gone.iter()), again)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_in_any_order_over_any_workers_arrives_as_the_same_datagram(
        sent in datagram(),
        cuts in cuts(),
        order in prop::collection::vec((any::<u32>(), 0usize..3), 100),
        missing in any::<prop::sample::Index>(),
    ) {
        let mut crew = Crew::new(4096, 3);
        let mut captured = crew.capture();
        let fragments = sent.fragments(&cuts);
        let count = fragments.len() as u64;
        let largest = fragments.iter().map(|frame| frame.len() - 14).max();
        // What came whole may leave as large as its way takes.
        let largest = largest.filter(|_| count > 1).unwrap_or(1500);
        let mut frames: Vec<_> = order.into_iter().zip(fragments).collect();
        frames.sort_by_key(|((place, _), _)| *place);
        let frames: Vec<_> = frames.into_iter().map(|((_, worker), frame)| (worker, frame)).collect();

        let left = play(&mut crew, &frames);
        check(&sent, &left, largest)?;
        let (came, gone, again) = read(&mut captured);
        prop_assert_eq!(came, sorted(frames.iter().map(|(_, frame)| frame)));
        prop_assert_eq!(gone, sorted(left.iter().map(|bytes| &bytes.frame)));
        // Those that another worker took in.
        prop_assert!(again.iter().all(|(verdict, _)| !matches!(verdict, Verdict::Drop(_))));
        prop_assert_eq!((crew.counter("held"), crew.table().live()), (0, 1));
        prop_assert_eq!(crew.counter("rx_packets"), count);

        // The same again without one of them, if there are several: nothing leaves, and time ends it.
        prop_assume!(count > 1);
        let mut crew = Crew::new(4096, 3);
        let mut captured = crew.capture();
        let mut rest = frames;
        let (_, lost) = rest.remove(missing.index(rest.len()));
        prop_assert_eq!(play(&mut crew, &rest), []);
        prop_assert_eq!((crew.counter("held"), crew.table().live()), (count - 1, 0));
        crew.set_clock(29_999);
        prop_assert_eq!(play(&mut crew, &[]), []);
        crew.set_clock(30_000);
        read(&mut captured);
        let told = play(&mut crew, &[]);
        let (came, gone, again) = read(&mut captured);
        prop_assert_eq!((came, gone), (vec![], sorted(told.iter().map(|bytes| &bytes.frame))));
        let again = again.iter().map(|(verdict, frame)| {
            assert_eq!(*verdict, Verdict::Drop(DropReason::FragmentTimeout));
            frame
        });
        prop_assert_eq!(sorted(again), sorted(rest.iter().map(|(_, frame)| frame)));
        // The first fragment's sender is told, of that fragment.
        let first_is_lost = u16::from_be_bytes([lost[20], lost[21]]) & 0x1fff == 0;
        prop_assert_eq!(told.len(), usize::from(!first_is_lost));
        for answer in packets(&told) {
            let sliced = LaxSlicedPacket::from_ip(&answer).unwrap();
            prop_assert!(sliced.transport.is_some());
            prop_assert_eq!(&answer[20..22], &[11, 1]);
            prop_assert_eq!(u16::from_be_bytes([answer[28 + 4], answer[28 + 5]]), sent.id);
        }
        prop_assert_eq!(crew.counter("held"), 0);
        prop_assert_eq!(crew.counter("drop_fragment_timeout"), count - 1);
    }
}

#[test]
fn fragments_of_what_is_nobodys_go_to_the_kernel_as_they_came_once_all_are_here() {
    let mut crew = Crew::new(4096, 2);
    let sent = Sent { port: 4444, id: 7, data: vec![0xa5; 3000], summed: true };
    let fragments = sent.fragments(&[100, 200]);
    let mut passed = Vec::new();
    for (at, worker) in [(2, 0), (0, 1), (1, 0)] {
        for hand in [worker, 0, 1] {
            let frames = if hand == worker && passed.is_empty() { &fragments[at..=at] } else { &[] };
            let frames = if hand == worker { frames } else { &[] };
            let [sent, kernels] = crew.hand(hand).pass(frames);
            assert_eq!(sent, []);
            passed.extend(kernels);
        }
    }
    let mut got: Vec<_> = passed.into_iter().map(|bytes| bytes.frame).collect();
    got.sort_by_key(|frame| frame[20..22].to_vec());
    assert!(fragments.iter().all(|fragment| got.contains(fragment)), "{} of 3", got.len());
    assert_eq!((got.len(), crew.counter("held"), crew.table().live()), (3, 0, 0));
}

#[test]
fn a_flood_of_incomplete_datagrams_costs_the_oldest_and_real_ones_still_come_together() {
    let mut crew = Crew::new(4096, 1);
    for id in 0..1000u16 {
        let flood = fragment(id, 8, true, &[0xa5; 64]);
        assert_eq!(crew.hand(0).pass(&[flood])[0], []);
        if id % 10 == 9 {
            let sent = Sent { port: 5300, id: 5000 + id, data: vec![0x5a; 3000], summed: true };
            let frames: Vec<_> = sent.fragments(&[150, 300]).into_iter().map(|frame| (0, frame)).collect();
            assert_eq!(play(&mut crew, &frames).len(), 3, "datagram {id}");
        }
    }
    let held = crew.counter("held");
    assert!(held <= xvs_dataplane::fragments::HELD as u64, "{held} wait");
    assert_eq!(crew.counter("drop_fragment_crowded"), 1000 - held);
}

#[test]
fn a_datagram_of_the_largest_size_goes_through_by_every_method_that_has_room_for_it() {
    for (port, data, arrives) in
        [(53, 65_507, true), (5300, 65_507, true), (5301, 65_487, true), (5301, 65_488, false)]
    {
        let mut crew = Crew::new(4096, 1);
        let sent = Sent { port, id: 7, data: vec![0x11; data], summed: true };
        let cuts: Vec<_> = (1..60).map(|cut| cut * 185).collect();
        let frames: Vec<_> = sent.fragments(&cuts).into_iter().map(|frame| (0, frame)).collect();
        let left = play(&mut crew, &frames);
        match arrives {
            true => check(&sent, &left, 1500).unwrap(),
            false => assert_eq!((left, crew.counter("drop_no_headroom")), (vec![], frames.len() as u64)),
        }
        assert_eq!(crew.counter("held"), 0);
    }
}
