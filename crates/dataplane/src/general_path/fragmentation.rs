//! Fragmentation of packets that are larger than the path MTU.
//!
//! Runs for packets that are larger than their path MTU and may be fragmented, and for datagrams that were received in
//! fragments. Headers are copied as in RFC 791 §3.2 and RFC 8200 §4.5. Every fragment but the last has the greatest
//! possible length, in units of eight bytes. Cost: one frame and one copy for each fragment; if the packet is in a
//! frame of its port, it becomes the first fragment in place.

use xvs_proto::ethernet;
use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::ipv6::{self, Ipv6, extension};
use xvs_xdp::Frame;

use crate::forward::Identification;
use crate::port::Port;

/// The unit of fragment offsets, in bytes.
const UNIT: usize = 8;

/// The division of a packet into fragments.
#[derive(Debug, Clone, Copy)]
pub struct Fragmentation {
    marking: Marking,
    /// The bytes of the frame that each fragment repeats, link header included.
    header: usize,
    /// The bytes of the packet that each fragment but the last contains.
    per_fragment: usize,
    /// The bytes of the packet that are divided.
    payload: usize,
}

/// The fields that identify the fragments.
#[derive(Debug, Clone, Copy)]
enum Marking {
    /// There is one fragment: the unchanged packet.
    Whole,
    /// Fields of the IPv4 header.
    V4 {
        /// The flags that each fragment keeps.
        flags: u16,
        id: u16,
    },
    /// A fragment header.
    V6 {
        /// The position in the frame of the next-header field that announces the fragment header, and the field's
        /// original value.
        named_at: usize,
        next: u8,
        id: u32,
    },
}

impl Fragmentation {
    /// Divides a frame into packets of at most `limit` bytes; a packet within the limit stays whole. `None` if it
    /// cannot be divided.
    ///
    /// `ids` provides an identification if the packet has none.
    pub fn of(packet: &Frame, limit: usize, ids: &mut Identification) -> Option<Self> {
        let network = ethernet::HEADER_LEN;
        let len = packet.len();
        let frame = packet.bytes();
        if len <= network + limit {
            return Some(Self { marking: Marking::Whole, header: 0, per_fragment: len.max(1), payload: len });
        }
        let (marking, header, extra) = match u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]) {
            ethernet::TYPE_IPV4 => {
                let view = Ipv4::quoted(frame.get(network..)?).ok()?;
                let word = view.flags_and_offset();
                if word & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
                    return None;
                }
                // Identification 0 means none only in a packet that must not be fragmented (RFC 6864); otherwise it is
                // a valid value.
                let has_none = view.id() == 0 && word & ipv4::DONT_FRAGMENT != 0;
                let id = if has_none { ids.take() } else { view.id() };
                (Marking::V4 { flags: word, id }, network + view.header_len(), 0)
            }
            ethernet::TYPE_IPV6 => {
                let (named_at, end) = unfragmentable(frame, network)?;
                let view = Ipv6::quoted(&frame[network..]).ok()?;
                let id = ids.take_between(view.source().into(), view.dest().into());
                (Marking::V6 { named_at, next: *frame.get(named_at)?, id }, end, ipv6::FRAGMENT_HEADER_LEN)
            }
            _ => return None,
        };
        let payload = len.checked_sub(header).filter(|_| header <= frame.len())?;
        let per_fragment = limit.checked_sub(header - network + extra)? / UNIT * UNIT;
        (per_fragment > 0).then_some(Self { marking, header, per_fragment, payload })
    }

    /// The number of fragments.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.per_fragment).max(1)
    }

    /// Copies the fragment with this number, counted from 0, into a new frame. `None` if no frame is free, or the
    /// headers do not fit into one.
    pub fn copy(&self, whole: &Frame, number: usize, port: &mut impl Port) -> Option<Frame> {
        let (offset, len) = self.place(number);
        let headers = self.header + self.extra();
        let mut frame = port.allocate_packet(headers + len)?;
        if frame.bytes().len() < headers {
            port.recycle(frame);
            return None;
        }
        frame.write(|at, part| {
            let skipped = headers.saturating_sub(at).min(part.len());
            let from = self.header + offset + (at + skipped).saturating_sub(headers);
            whole.read(from, &mut part[skipped..]);
        });
        let bytes = frame.bytes_mut();
        bytes[..self.header].copy_from_slice(&whole.bytes()[..self.header]);
        self.mark(bytes, number);
        Some(frame)
    }

    /// Shortens a packet to its first fragment. `false` if its frame has too little room for that.
    #[must_use]
    pub fn keep_first(&self, frame: &mut Frame) -> bool {
        let (_, len) = self.place(0);
        let extra = self.extra();
        if !frame.resize(self.header + len) || !frame.grow_front(extra) {
            return false;
        }
        let bytes = frame.bytes_mut();
        bytes.copy_within(extra..extra + self.header, 0);
        self.mark(bytes, 0);
        true
    }

    /// The offset of a fragment in the divided bytes, and its length.
    fn place(&self, number: usize) -> (usize, usize) {
        let offset = number * self.per_fragment;
        (offset, self.per_fragment.min(self.payload - offset))
    }

    fn extra(&self) -> usize {
        match self.marking {
            Marking::Whole | Marking::V4 { .. } => 0,
            Marking::V6 { .. } => ipv6::FRAGMENT_HEADER_LEN,
        }
    }

    /// Writes this fragment's fields into its headers.
    fn mark(&self, frame: &mut [u8], number: usize) {
        let (offset, len) = self.place(number);
        let is_last = offset + len == self.payload;
        let network = ethernet::HEADER_LEN;
        match self.marking {
            Marking::Whole => {}
            Marking::V4 { flags, id } => {
                let total_len = (self.header - network + len) as u16;
                let more = if is_last { 0 } else { ipv4::MORE_FRAGMENTS };
                let mut header = Ipv4::edit(&mut frame[network..]);
                header.set_id(id);
                header.set_part(total_len, flags | more | (offset / UNIT) as u16);
                if number > 0 {
                    header.blank_options_of_first_fragment();
                }
            }
            Marking::V6 { named_at, next, id } => {
                let payload_len = self.header - network - ipv6::HEADER_LEN + self.extra() + len;
                Ipv6::edit(&mut frame[network..]).set_payload_len(payload_len as u16);
                frame[named_at] = extension::FRAGMENT;
                let header = &mut frame[self.header..][..ipv6::FRAGMENT_HEADER_LEN];
                let more = if is_last { 0 } else { ipv6::MORE_FRAGMENTS };
                header[..2].copy_from_slice(&[next, 0]);
                header[2..4].copy_from_slice(&(offset as u16 | more).to_be_bytes());
                header[4..].copy_from_slice(&id.to_be_bytes());
            }
        }
    }
}

/// The end of the headers of an IPv6 packet that every fragment must repeat, because hosts on the path process them
/// (RFC 8200 §4.5), and the position of the field that announces the header after them.
fn unfragmentable(frame: &[u8], network: usize) -> Option<(usize, usize)> {
    let mut names = network + ipv6::field::NEXT_HEADER;
    let mut next = network + ipv6::HEADER_LEN;
    let mut ends = (names, next);
    loop {
        let is_last = match *frame.get(names)? {
            extension::HOP_BY_HOP | extension::ROUTING => true,
            // Before a routing header they are for the hosts in that header.
            extension::DESTINATION_OPTIONS => false,
            _ => return Some(ends),
        };
        names = next;
        next += extension::UNIT * (1 + usize::from(*frame.get(next + 1)?));
        if is_last {
            ends = (names, next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::MemoryPort;
    use etherparse::SlicedPacket;
    use etherparse::defrag::IpDefragPool;
    use proptest::prelude::*;
    use xvs_proto::HashSecret;
    use xvs_xdp::FrameLayout;

    /// A UDP datagram, written by another implementation.
    fn packet(is_v6: bool, data: &[u8]) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 1, 0xfe], [2, 0, 0, 0, 1, 1]);
        let mut bytes = Vec::new();
        let udp = match is_v6 {
            true => builder.ipv6([0x20; 16], [0xfd; 16], 64).udp(1000, 53),
            false => builder.ipv4([192, 0, 2, 10], [198, 51, 100, 1], 64).udp(1000, 53),
        };
        udp.write(&mut bytes, data).unwrap();
        if !is_v6 {
            Ipv4::edit(&mut bytes[14..]).set_part((34 - 6 + data.len()) as u16, 0);
        }
        bytes
    }

    /// All fragments of a packet. The first one is created in place, or copied like the others.
    fn fragments(whole: &[u8], limit: usize, in_place: bool) -> Option<Vec<Vec<u8>>> {
        fragments_by(&mut MemoryPort::with_links(1), whole, limit, in_place)
    }

    fn fragments_by(
        port: &mut MemoryPort,
        whole: &[u8],
        limit: usize,
        in_place: bool,
    ) -> Option<Vec<Vec<u8>>> {
        let mut frame = port.allocate_packet(whole.len()).unwrap();
        frame.write(|at, part| part.copy_from_slice(&whole[at..][..part.len()]));
        let plan = Fragmentation::of(&frame, limit, &mut Identification::numbered(HashSecret([3, 5, 7]), 0))?;
        let mut fragments = Vec::new();
        for number in usize::from(in_place)..plan.count() {
            let fragment = plan.copy(&frame, number, port).expect("frames enough");
            fragments.push(fragment.parts().flatten().copied().collect());
            port.recycle(fragment);
        }
        if in_place {
            assert!(plan.keep_first(&mut frame));
            fragments.insert(0, frame.parts().flatten().copied().collect());
        }
        port.recycle(frame);
        Some(fragments)
    }

    proptest! {
        #[test]
        fn fragments_fit_and_another_implementation_reassembles_them(
            is_v6: bool,
            data in prop::collection::vec(any::<u8>(), 200..1400),
            limit in 60usize..1200,
        ) {
            let whole = packet(is_v6, &data);
            prop_assume!(whole.len() - 14 > limit);
            let fragments = fragments(&whole, limit, true).unwrap();
            prop_assert_eq!(&fragments, &self::fragments(&whole, limit, false).unwrap());
            let mut pool = IpDefragPool::<(), ()>::new();
            let mut done = None;
            for (number, fragment) in fragments.iter().enumerate() {
                prop_assert!(fragment.len() - 14 <= limit);
                let room = limit - if is_v6 { 48 } else { 20 };
                let full = fragment.len() - 14 + 8 > room / 8 * 8;
                prop_assert!(full || number + 1 == fragments.len());
                let sliced = SlicedPacket::from_ethernet(fragment).unwrap();
                done = done.or(pool.process_sliced_packet(&sliced, (), ()).unwrap());
            }
            let headers = if is_v6 { 54 } else { 34 };
            prop_assert_eq!(&done.expect("all are there").payload[..], &whole[headers..]);
        }
    }

    #[test]
    fn a_packet_in_several_buffers_and_fragments_in_several_buffers_have_the_bytes_of_those_in_one() {
        let data: Vec<_> = (0..8000_u32).map(|at| (at / 3) as u8).collect();
        for (is_v6, limit) in [(false, 576), (false, 1500), (false, 4000), (true, 1280), (true, 7000)] {
            let (whole, mut in_parts) = (packet(is_v6, &data), MemoryPort::with_links(1));
            let layout = FrameLayout { frame_size_bytes: 1 << 14, headroom_bytes: 256, frames: 32 };
            for in_place in [false, true] {
                let parts = fragments_by(&mut in_parts, &whole, limit, in_place).unwrap();
                let wanted = fragments_by(&mut MemoryPort::new(layout, 1), &whole, limit, in_place).unwrap();
                assert!(parts.len() > 1 && parts == wanted, "IPv6: {is_v6}, {limit}");
            }
            assert_eq!(in_parts.census().out, 0);
        }
    }

    #[test]
    fn later_fragments_lose_the_options_of_the_first_and_keep_the_identification() {
        let mut whole = packet(false, &[0xa5; 100]);
        whole.splice(34..34, [7, 4, 4, 0, 0x83, 3, 4, 0]);
        whole[14] = 0x47;
        whole[18..20].copy_from_slice(&[0x12, 0x34]);
        Ipv4::edit(&mut whole[14..]).set_part(136, 0);
        Ipv4::edit(&mut whole[14..]).blank_options_of_first_fragment();
        whole[34..38].copy_from_slice(&[7, 3, 4, 1]);
        whole[24..26].fill(0);
        let sum = xvs_proto::checksum::Sum::default().bytes(&whole[14..42]).checksum();
        whole[24..26].copy_from_slice(&sum.to_be_bytes());
        let fragments = fragments(&whole, 80, true).unwrap();
        assert_eq!(fragments.len(), 3);
        for (number, fragment) in fragments.iter().enumerate() {
            assert!(Ipv4::parse(&fragment[14..]).is_ok(), "its checksum is right");
            assert_eq!(fragment[18..20], [0x12, 0x34]);
            let first = if number == 0 { [7, 3, 4, 1] } else { [1, 1, 1, 1] };
            assert_eq!((&fragment[34..38], &fragment[38..41]), (&first[..], &[0x83, 3, 4][..]));
        }
    }

    #[test]
    fn extension_headers_for_routers_precede_the_fragment_header() {
        let mut whole = packet(true, &[0xa5; 100]);
        whole.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        whole[20] = 0;
        whole[18..20].copy_from_slice(&116u16.to_be_bytes());
        for fragment in fragments(&whole, 112, false).unwrap() {
            assert_eq!((fragment[20], fragment[54], fragment[62]), (0, 44, 17));
        }
    }

    #[test]
    fn options_for_visited_hosts_precede_the_fragment_header_and_options_for_the_receiver_follow_it() {
        let header = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        // Options and a routing header (of an experimental type) for visited hosts, then options for the receiver.
        let chain = [header(43), [60, 0, 253, 0, 0, 0, 0, 0], header(17)].concat();
        let mut whole = packet(true, &[0xa5; 100]);
        whole.splice(54..54, chain.clone());
        whole[20] = 60;
        whole[18..20].copy_from_slice(&132u16.to_be_bytes());
        let fragments = fragments(&whole, 128, false).unwrap();
        assert_eq!(fragments.len(), 2);
        for fragment in &fragments {
            assert_eq!((fragment[20], fragment[54], fragment[62], fragment[70]), (60, 43, 44, 60));
        }
        assert_eq!(fragments[0][78..86], chain[16..]);
    }

    #[test]
    fn fragments_hold_at_least_eight_bytes_and_are_not_fragmented_again() {
        let whole = packet(false, &[0xa5; 100]);
        assert!(fragments(&whole, 27, true).is_none());
        assert_eq!(fragments(&whole, 28, true).unwrap().len(), 14);
        let mut fragment = whole;
        Ipv4::edit(&mut fragment[14..]).set_part(128, ipv4::MORE_FRAGMENTS);
        assert!(fragments(&fragment, 60, true).is_none());
    }
}
