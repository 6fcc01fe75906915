//! Datagrams that are received in fragments, in any order and by any worker, are forwarded whole: whole workers in
//! memory.
//!
//! `etherparse`, which shares no code with the director, reassembles the sent fragments; over IPv6 the test itself
//! does. Not here: single fragments and the reasons to refuse them (`src/general_path/reassembly/tests.rs`), and the
//! behaviour of the kernel's IPVS (`tests/conformance/main.rs` of the root package).

// Shared with tests that need more of it.
#[allow(dead_code)]
use etherparse::defrag::IpDefragPool;
use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, LaxSlicedPacket, SlicedPacket, UdpHeader,
};
use proptest::prelude::*;
use xvs_dataplane::capture::{FrameDirection, Reader};
use xvs_dataplane::port::memory::Bytes;
use xvs_dataplane::verdict::{DropReason, Verdict};

use crate::workers::{VIP, VIP6, Workers};

const CLIENT: [u8; 4] = [10, 0, 0, 9];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
/// The ports of services with masquerading, direct routing and tunnel.
const PORTS: [u16; 3] = [53, 5300, 5301];

/// A client's datagram, which is sent in fragments.
#[derive(Debug, Clone)]
struct Sent {
    port: u16,
    id: u16,
    data: Vec<u8>,
    /// Whether it has a checksum.
    summed: bool,
}

impl Sent {
    /// The UDP header and the data.
    fn payload(&self) -> Vec<u8> {
        let length = 8 + self.data.len() as u16;
        let mut udp = UdpHeader { source_port: 4000, destination_port: self.port, length, checksum: 0 };
        if self.summed {
            udp.checksum = udp.calc_checksum_ipv4_raw(CLIENT, VIP.octets(), &self.data).expect("a length");
        }
        [&udp.to_bytes()[..], &self.data].concat()
    }

    /// Its frames, divided at these offsets, in units of 8 bytes.
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

/// The whole packets that a receiver gets: protocol, destination address and payload of each.
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

/// Gives each frame to a worker, then runs the workers for handed-over fragments. Returns the sent frames.
fn play(workers: &mut Workers, frames: &[(usize, Vec<u8>)]) -> Vec<Bytes> {
    let mut left = Vec::new();
    for (worker, frame) in frames {
        let [sent, passed] = workers.worker(*worker).pass(std::slice::from_ref(frame));
        assert_eq!(passed, []);
        left.extend(sent);
    }
    for _ in 0..2 {
        left.extend(workers.workers().iter_mut().flat_map(|worker| worker.pass(&[])).flatten());
    }
    left
}

/// Checks that the destination gets the datagram, between the addresses of the method, with a correct checksum.
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

/// Offsets of fragments in units of 8 bytes: not within the UDP header, and no fragment above 1,400 bytes.
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

/// The captured frames: those received, those sent, and those shown again with their verdict.
#[expect(clippy::type_complexity, reason = "three lists of frames")]
fn read(captured: &mut Reader) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<(Verdict, Vec<u8>)>) {
    let (mut received, mut emitted, mut again) = (Vec::new(), Vec::new(), Vec::new());
    captured.read(|_, record| {
        let bytes = record.bytes().to_vec();
        match record.direction {
            FrameDirection::In => received.push(bytes),
            FrameDirection::Out => emitted.push(bytes),
            FrameDirection::Earlier => again.push((record.verdict, bytes)),
        }
    });
    (sorted(received.iter()), sorted(emitted.iter()), again)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_datagram_divided_in_any_way_arrives_whole_in_any_order_over_any_workers(
        sent in datagram(),
        cuts in cuts(),
        order in prop::collection::vec((any::<u32>(), 0usize..3), 100),
        missing in any::<prop::sample::Index>(),
    ) {
        let mut workers = Workers::new(4096, 3);
        let mut captured = workers.capture();
        let fragments = sent.fragments(&cuts);
        let count = fragments.len() as u64;
        let largest = fragments.iter().map(|frame| frame.len() - 14).max();
        // A datagram that was received whole may leave as large as its path MTU allows.
        let largest = largest.filter(|_| count > 1).unwrap_or(1500);
        let mut frames: Vec<_> = order.into_iter().zip(fragments).collect();
        frames.sort_by_key(|((place, _), _)| *place);
        let frames: Vec<_> = frames.into_iter().map(|((_, worker), frame)| (worker, frame)).collect();

        let left = play(&mut workers, &frames);
        check(&sent, &left, largest)?;
        let (received, emitted, again) = read(&mut captured);
        prop_assert_eq!(received, sorted(frames.iter().map(|(_, frame)| frame)));
        prop_assert_eq!(emitted, sorted(left.iter().map(|bytes| &bytes.frame)));
        // Those that another worker has received.
        prop_assert!(again.iter().all(|(verdict, _)| !matches!(verdict, Verdict::Drop(_))));
        prop_assert_eq!((workers.counter("held"), workers.table().live()), (0, 1));
        prop_assert_eq!(workers.counter("rx_packets"), count);

        // The same without one fragment, if there are several: nothing is sent until the timeout.
        prop_assume!(count > 1);
        let mut workers = Workers::new(4096, 3);
        let mut captured = workers.capture();
        let mut rest = frames;
        let (_, lost) = rest.remove(missing.index(rest.len()));
        prop_assert_eq!(play(&mut workers, &rest), []);
        prop_assert_eq!((workers.counter("held"), workers.table().live()), (count - 1, 0));
        workers.set_clock(29_999);
        prop_assert_eq!(play(&mut workers, &[]), []);
        workers.set_clock(30_000);
        read(&mut captured);
        let errors = play(&mut workers, &[]);
        let (received, emitted, again) = read(&mut captured);
        prop_assert_eq!((received, emitted), (vec![], sorted(errors.iter().map(|bytes| &bytes.frame))));
        let again = again.iter().map(|(verdict, frame)| {
            assert_eq!(*verdict, Verdict::Drop(DropReason::FragmentTimeout));
            frame
        });
        prop_assert_eq!(sorted(again), sorted(rest.iter().map(|(_, frame)| frame)));
        // The sender gets an ICMP error about the first fragment, if that was received.
        let first_is_lost = u16::from_be_bytes([lost[20], lost[21]]) & 0x1fff == 0;
        prop_assert_eq!(errors.len(), usize::from(!first_is_lost));
        for answer in packets(&errors) {
            let sliced = LaxSlicedPacket::from_ip(&answer).unwrap();
            prop_assert!(sliced.transport.is_some());
            prop_assert_eq!(&answer[20..22], &[11, 1]);
            prop_assert_eq!(u16::from_be_bytes([answer[28 + 4], answer[28 + 5]]), sent.id);
        }
        prop_assert_eq!(workers.counter("held"), 0);
        prop_assert_eq!(workers.counter("drop_fragment_timeout"), count - 1);
    }
}

/// An IPv6 datagram, which is sent in fragments: its extension headers and UDP.
#[derive(Debug, Clone)]
struct Sent6 {
    port: u16,
    /// The lengths in units of 8 bytes: hop-by-hop options; destination options and the routing header that follows
    /// them.
    before: [usize; 2],
    /// The length of destination options behind the fragment header.
    behind: usize,
    data: Vec<u8>,
}

/// Next-header values (RFC 8200 §4).
const HOP_BY_HOP: u8 = 0;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;

impl Sent6 {
    /// The kinds and lengths, in units, of the headers before the fragment header.
    fn before(&self) -> Vec<(u8, usize)> {
        let [hop_by_hop, routing] = self.before;
        let all = [(HOP_BY_HOP, hop_by_hop), (OPTIONS, routing), (ROUTING, routing)];
        all.into_iter().filter(|(_, units)| *units > 0).collect()
    }

    fn behind(&self) -> Vec<(u8, usize)> {
        if self.behind > 0 { vec![(OPTIONS, self.behind)] } else { vec![] }
    }

    /// The divided bytes: the headers behind the fragment header, and UDP.
    fn fragmentable(&self) -> Vec<u8> {
        let length = 8 + self.data.len() as u16;
        let mut udp = UdpHeader { source_port: 4000, destination_port: self.port, length, checksum: 0 };
        udp.checksum = udp.calc_checksum_ipv6_raw(CLIENT6, VIP6.octets(), &self.data).expect("a length");
        [chain(&self.behind(), UDP), udp.to_bytes().to_vec(), self.data.clone()].concat()
    }

    /// The datagram as one packet.
    fn whole(&self) -> Vec<u8> {
        let next = if self.behind > 0 { OPTIONS } else { UDP };
        packet6(CLIENT6, VIP6.octets(), 64, &self.before(), next, &self.fragmentable())
    }

    /// Its frames, divided at these offsets in units, but not before the end of its headers (RFC 7112).
    fn fragments(&self, cuts: &[usize]) -> Vec<Vec<u8>> {
        let (all, next) = (self.fragmentable(), if self.behind > 0 { OPTIONS } else { UDP });
        let mut ends: Vec<_> =
            cuts.iter().copied().filter(|cut| *cut > self.behind).map(|cut| cut * 8).collect();
        ends.retain(|end| *end < all.len());
        ends.push(all.len());
        let mut begin = 0;
        let cut = |end: usize| {
            let offset = std::mem::replace(&mut begin, end);
            let word = (offset | usize::from(end < all.len())) as u16;
            let header = [&[next, 0][..], &word.to_be_bytes(), &[0xf0, 0, 0, 7]].concat();
            let part = [&header, &all[offset..end]].concat();
            let packet = packet6(CLIENT6, VIP6.octets(), 64, &self.before(), FRAGMENT, &part);
            [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 0x86, 0xdd][..], &packet].concat()
        };
        ends.into_iter().map(cut).collect()
    }
}

/// Consecutive extension headers, the last of which announces `next`.
fn chain(headers: &[(u8, usize)], next: u8) -> Vec<u8> {
    let following = headers.iter().skip(1).map(|(kind, _)| *kind).chain([next]);
    let header = |(&(kind, units), next): (&(u8, usize), u8)| {
        // Padding by one option; a routing header of an experimental type, without further hosts.
        let filled = [
            next,
            units as u8 - 1,
            if kind == ROUTING { 253 } else { 1 },
            if kind == ROUTING { 0 } else { (units * 8 - 4) as u8 },
        ];
        [&filled[..], &vec![0; units * 8 - 4]].concat()
    };
    headers.iter().zip(following).flat_map(header).collect()
}

fn packet6(from: [u8; 16], to: [u8; 16], hops: u8, before: &[(u8, usize)], next: u8, rest: &[u8]) -> Vec<u8> {
    let headers = chain(before, next);
    let first = before.first().map_or(next, |(kind, _)| *kind);
    let length = (headers.len() + rest.len()) as u16;
    let fixed = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[first, hops], &from, &to].concat();
    [fixed, headers, rest.to_vec()].concat()
}

/// The packets that a receiver of IPv6 gets, by RFC 8200 §4.5, implemented independently of the director.
fn reassembled6(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for packet in packets {
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
        let (mut names, mut at) = (6, 40);
        while [HOP_BY_HOP, ROUTING, OPTIONS].contains(&packet[names]) {
            (names, at) = (at, at + 8 * (1 + usize::from(packet[at + 1])));
        }
        if packet[names] != FRAGMENT {
            whole.push(packet.clone());
            continue;
        }
        let word = u16::from_be_bytes([packet[at + 2], packet[at + 3]]);
        let mut headers = packet[..at].to_vec();
        headers[names] = packet[at];
        headers[4..6].fill(0);
        parts.push((
            usize::from(word & !7),
            word & 1,
            headers,
            packet[at + 8..].to_vec(),
            packet[at + 4..at + 8].to_vec(),
        ));
    }
    parts.sort();
    if let Some((_, _, headers, _, id)) = parts.first().cloned() {
        let mut data = Vec::new();
        for (number, (offset, more, theirs, part, of)) in parts.iter().enumerate() {
            assert_eq!(
                (*offset, *more == 0, of, theirs),
                (data.len(), number + 1 == parts.len(), &id, &headers)
            );
            data.extend(part);
        }
        let mut packet = [headers, data].concat();
        let length = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        whole.push(packet);
    }
    whole
}

/// Checks that the destination gets the datagram with all its headers, between the addresses of the method.
fn check6(sent: &Sent6, left: &[Bytes], largest: usize) -> Result<(), TestCaseError> {
    let tunnelled = sent.port == PORTS[2];
    let most = if tunnelled { largest.clamp(1280, 1500) } else { largest.min(1500) };
    for packet in packets(left) {
        prop_assert!(packet.len() <= most, "{} of {most}", packet.len());
    }
    let mut got = reassembled6(&packets(left));
    prop_assert_eq!(got.len(), 1);
    let mut got = got.remove(0);
    if tunnelled {
        prop_assert_eq!(got[6], 41);
        got.drain(..40);
    }
    let mut want = sent.whole();
    want[7] -= 1;
    if sent.port == PORTS[0] {
        let to: [u8; 16] = got[24..40].try_into().expect("an address");
        prop_assert_ne!(to, VIP6.octets());
        want[24..40].copy_from_slice(&to);
        let at = want.len() - sent.data.len() - 2;
        let (udp, data) = UdpHeader::from_slice(&got[at - 6..]).expect("a header");
        prop_assert_eq!(udp.checksum, udp.calc_checksum_ipv6_raw(CLIENT6, to, data).expect("a length"));
        want[at..at + 2].copy_from_slice(&got[at..at + 2]);
    }
    prop_assert_eq!(got, want);
    Ok(())
}

fn datagram6() -> impl Strategy<Value = Sent6> {
    let data = prop::collection::vec(any::<u8>(), 17..6000);
    (0usize..3, [0usize..4, 0..3], 0usize..5, data).prop_map(|(port, before, behind, data)| Sent6 {
        port: PORTS[port],
        before,
        behind,
        data,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_ipv6_datagram_with_extension_headers_divided_in_any_way_arrives_whole(
        sent in datagram6(),
        cuts in cuts(),
        order in prop::collection::vec((any::<u32>(), 0usize..3), 100),
        missing in any::<prop::sample::Index>(),
    ) {
        let mut workers = Workers::new(4096, 3);
        let fragments = sent.fragments(&cuts);
        let count = fragments.len() as u64;
        prop_assume!(count > 1);
        let largest = fragments.iter().map(|frame| frame.len() - 14).max().expect("a fragment");
        // Larger fragments exceed the tunnel's path MTU, and the client gets an ICMP error.
        prop_assume!(largest <= 1460 || sent.port != PORTS[2]);
        let mut frames: Vec<_> = order.into_iter().zip(fragments).collect();
        frames.sort_by_key(|((place, _), _)| *place);
        let frames: Vec<_> = frames.into_iter().map(|((_, worker), frame)| (worker, frame)).collect();
        let left = play(&mut workers, &frames);
        check6(&sent, &left, largest)?;
        prop_assert_eq!((workers.counter("held"), workers.table().live()), (0, 1));

        let mut workers = Workers::new(4096, 3);
        let mut rest = frames;
        let (_, lost) = rest.remove(missing.index(rest.len()));
        prop_assert_eq!(play(&mut workers, &rest), []);
        prop_assert_eq!((workers.counter("held"), workers.table().live()), (count - 1, 0));
        workers.set_clock(59_999);
        prop_assert_eq!(play(&mut workers, &[]), []);
        workers.set_clock(60_000);
        let errors = play(&mut workers, &[]);
        // The identification ends the fragment header.
        let at = lost.windows(4).position(|bytes| bytes == [0xf0, 0, 0, 7]).expect("it has one");
        let first_is_lost = lost[at - 2..at] == [0, 1];
        prop_assert_eq!(errors.len(), usize::from(!first_is_lost));
        for answer in packets(&errors) {
            prop_assert_eq!((answer[6], &answer[40..42]), (58, &[3, 1][..]));
        }
        prop_assert_eq!((workers.counter("held"), workers.counter("drop_fragment_timeout")), (0, count - 1));
    }
}

#[test]
fn fragments_without_a_service_go_to_the_kernel_unchanged_when_all_have_arrived() {
    let v4 = Sent { port: 4444, id: 7, data: vec![0xa5; 3000], summed: true };
    let v6 = Sent6 { port: 4444, before: [1, 0], behind: 1, data: vec![0xa5; 3000] };
    for fragments in [v4.fragments(&[100, 200]), v6.fragments(&[100, 200])] {
        let mut workers = Workers::new(4096, 2);
        let mut passed = Vec::new();
        for (at, receiver) in [(2, 0), (0, 1), (1, 0)] {
            for worker in [receiver, 0, 1] {
                let frames = if worker == receiver && passed.is_empty() { &fragments[at..=at] } else { &[] };
                let frames = if worker == receiver { frames } else { &[] };
                let [sent, kernels] = workers.worker(worker).pass(frames);
                assert_eq!(sent, []);
                passed.extend(kernels);
            }
        }
        let got: Vec<_> = passed.into_iter().map(|bytes| bytes.frame).collect();
        assert!(fragments.iter().all(|fragment| got.contains(fragment)), "{} of 3", got.len());
        assert_eq!((got.len(), workers.counter("held"), workers.table().live()), (3, 0, 0));
    }
}

/// This many datagrams collide in some slots of the handoff, whatever its secret.
#[test]
fn two_hundred_concurrent_datagrams_over_three_workers_all_arrive() {
    const DATAGRAMS: u16 = 200;
    let mut workers = Workers::new(4096, 3);
    let mut left = Vec::new();
    let sent = |id| Sent { port: 5300, id, data: vec![id as u8; 100], summed: true };
    for part in 0..2 {
        for id in 0..DATAGRAMS {
            let worker = usize::from(id + part) % 3;
            let frame = sent(id).fragments(&[5]).remove(part.into());
            left.extend(play(&mut workers, &[(worker, frame)]));
        }
    }
    assert_eq!(left.len(), 2 * usize::from(DATAGRAMS));
    assert_eq!(workers.counter("held"), 0);
    let mut got: Vec<_> = reassembled(&packets(&left)).into_iter().map(|(_, _, payload)| payload).collect();
    let mut want: Vec<_> = (0..DATAGRAMS).map(|id| sent(id).payload()).collect();
    got.sort();
    want.sort();
    assert!(got == want);
}

#[test]
fn a_flood_of_incomplete_datagrams_drops_the_oldest_and_complete_ones_arrive() {
    let mut workers = Workers::new(4096, 1);
    for id in 0..1000u16 {
        let flood = fragment(id, 8, true, &[0xa5; 64]);
        assert_eq!(workers.worker(0).pass(&[flood])[0], []);
        if id % 10 == 9 {
            let sent = Sent { port: 5300, id: 5000 + id, data: vec![0x5a; 3000], summed: true };
            let frames: Vec<_> = sent.fragments(&[150, 300]).into_iter().map(|frame| (0, frame)).collect();
            assert_eq!(play(&mut workers, &frames).len(), 3, "datagram {id}");
        }
    }
    let held = workers.counter("held");
    assert!(held <= xvs_xdp::HELD as u64, "{held} wait");
    assert_eq!(workers.counter("drop_fragment_crowded"), 1000 - held);
}

#[test]
fn a_datagram_of_the_largest_size_is_forwarded_by_every_method_that_has_room() {
    for (port, data, arrives) in
        [(53, 65_507, true), (5300, 65_507, true), (5301, 65_487, true), (5301, 65_488, false)]
    {
        let mut workers = Workers::new(4096, 1);
        let sent = Sent { port, id: 7, data: vec![0x11; data], summed: true };
        let cuts: Vec<_> = (1..60).map(|cut| cut * 185).collect();
        let frames: Vec<_> = sent.fragments(&cuts).into_iter().map(|frame| (0, frame)).collect();
        let left = play(&mut workers, &frames);
        match arrives {
            true => check(&sent, &left, 1500).unwrap(),
            false => assert_eq!((left, workers.counter("drop_no_headroom")), (vec![], frames.len() as u64)),
        }
        assert_eq!(workers.counter("held"), 0);
    }
    for (port, data, arrives) in
        [(53, 65_527, true), (5300, 65_527, true), (5301, 65_447, true), (5301, 65_448, false)]
    {
        let mut workers = Workers::new(4096, 1);
        let sent = Sent6 { port, before: [0, 0], behind: 0, data: vec![0x11; data] };
        let cuts: Vec<_> = (1..60).map(|cut| cut * 175).collect();
        let frames: Vec<_> = sent.fragments(&cuts).into_iter().map(|frame| (0, frame)).collect();
        let left = play(&mut workers, &frames);
        match arrives {
            true => check6(&sent, &left, 1500).unwrap(),
            false => assert_eq!((left, workers.counter("drop_no_headroom")), (vec![], frames.len() as u64)),
        }
        assert_eq!(workers.counter("held"), 0);
    }
}
