//! What does not fit the way leaves in fragments: fragments of a packet that is ready to be sent.
//!
//! Runs for a packet that is larger than its path takes and may be fragmented, and for each datagram that came in
//! fragments. Headers are copied as RFC 791 §3.2 and RFC 8200 §4.5 say; every fragment but the last holds as many bytes
//! as fit, in units of eight. Cost: one frame and one copy for each fragment; a packet in a frame of its port's own
//! becomes its first fragment where it lies.

use xvs_proto::ethernet;
use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::ipv6::{self, Ipv6, extension};
use xvs_xdp::Frame;

use crate::forward::Identification;
use crate::port::Port;

/// The unit of fragment offsets, in bytes.
const UNIT: usize = 8;

/// How a packet is cut into fragments.
#[derive(Debug, Clone, Copy)]
pub struct Fragmentation {
    marking: Marking,
    /// Bytes of the frame that each fragment repeats, link header included.
    header: usize,
    /// Bytes of the packet that each fragment but the last holds.
    per_fragment: usize,
    /// Bytes to be shared out.
    payload: usize,
}

/// What tells fragments apart.
#[derive(Debug, Clone, Copy)]
enum Marking {
    /// There is one fragment, the packet as it is.
    Whole,
    /// Flags in the header.
    V4 {
        /// The flags that each fragment keeps.
        flags: u16,
        id: u16,
    },
    /// A header of its own.
    V6 {
        /// Where in the frame it is named, and what it names then.
        named_at: usize,
        next: u8,
        id: u32,
    },
}

impl Fragmentation {
    /// Cuts a frame into packets of at most `limit` bytes, unless it is no longer. `None` if it cannot be cut like that.
    ///
    /// `ids` gives the identification where the packet has none.
    pub fn of(frame: &[u8], limit: usize, ids: &mut Identification) -> Option<Self> {
        let network = ethernet::HEADER_LEN;
        if frame.len() <= network + limit {
            return Some(Self {
                marking: Marking::Whole,
                header: frame.len(),
                per_fragment: UNIT,
                payload: 0,
            });
        }
        let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
        let (marking, header, extra) = match ethertype {
            ethernet::TYPE_IPV4 => {
                let view = Ipv4::parse(frame.get(network..)?).ok()?;
                let word = view.flags_and_offset();
                if word & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
                    return None;
                }
                // Only one that was not to be cut may have none (RFC 6864); else 0 is one like others.
                let has_none = view.id() == 0 && word & ipv4::DONT_FRAGMENT != 0;
                let id = if has_none { ids.take() } else { view.id() };
                (Marking::V4 { flags: word, id }, network + view.header_len(), 0)
            }
            ethernet::TYPE_IPV6 => {
                let (named_at, end) = unfragmentable(frame, network)?;
                let view = Ipv6::parse(&frame[network..]).ok()?;
                let id = ids.take_between(view.source().into(), view.dest().into());
                (Marking::V6 { named_at, next: *frame.get(named_at)?, id }, end, ipv6::FRAGMENT_HEADER_LEN)
            }
            _ => return None,
        };
        let payload = frame.len().checked_sub(header)?;
        let per_fragment = limit.checked_sub(header - network + extra)? / UNIT * UNIT;
        (per_fragment > 0).then_some(Self { marking, header, per_fragment, payload })
    }

    /// How many fragments there are.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.per_fragment).max(1)
    }

    /// Copies a fragment of the packet, counted from 0, into a frame of its own. `None` if no frame is free or it does not
    /// fit one.
    pub fn copy(&self, whole: &[u8], number: usize, port: &mut impl Port) -> Option<Frame> {
        let (offset, len) = self.place(number);
        let mut frame = port.allocate()?;
        let extra = self.extra();
        if !frame.resize(self.header + extra + len) {
            port.recycle(frame);
            return None;
        }
        let bytes = frame.bytes_mut();
        bytes[..self.header].copy_from_slice(&whole[..self.header]);
        bytes[self.header + extra..].copy_from_slice(&whole[self.header + offset..][..len]);
        self.mark(bytes, number);
        Some(frame)
    }

    /// Leaves of a packet its first fragment. `false` if its frame has no room for that.
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

    /// Where a fragment begins among the bytes that are shared out, and how many of them it holds.
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

    /// Writes into a fragment's headers which one it is.
    fn mark(&self, frame: &mut [u8], number: usize) {
        let (offset, len) = self.place(number);
        let more = offset + len < self.payload;
        let network = ethernet::HEADER_LEN;
        match self.marking {
            Marking::Whole => {}
            Marking::V4 { flags, id } => {
                let total_len = (self.header - network + len) as u16;
                let more = if more { ipv4::MORE_FRAGMENTS } else { 0 };
                let mut header = Ipv4::edit(&mut frame[network..]);
                header.set_id(id);
                header.set_part(total_len, flags | more | (offset / UNIT) as u16);
                if number > 0 {
                    header.blank_options_of_first_fragment();
                }
            }
            Marking::V6 { named_at, next, id } => {
                let payload_len = self.header - network - ipv6::HEADER_LEN + self.extra() + len;
                let place = network + ipv6::field::PAYLOAD_LEN.start;
                frame[place..place + 2].copy_from_slice(&(payload_len as u16).to_be_bytes());
                frame[named_at] = extension::FRAGMENT;
                let header = &mut frame[self.header..][..ipv6::FRAGMENT_HEADER_LEN];
                let more = if more { ipv6::MORE_FRAGMENTS } else { 0 };
                header[..2].copy_from_slice(&[next, 0]);
                header[2..4].copy_from_slice(&(offset as u16 | more).to_be_bytes());
                header[4..].copy_from_slice(&id.to_be_bytes());
            }
        }
    }
}

/// Where the headers of an IPv6 packet end that every fragment needs, those for hosts on the way (RFC 8200 §4.5), and where
/// what follows them is named.
fn unfragmentable(frame: &[u8], network: usize) -> Option<(usize, usize)> {
    let (mut names, mut next) = (network + ipv6::field::NEXT_HEADER, network + ipv6::HEADER_LEN);
    let mut ends = (names, next);
    loop {
        let is_last = match *frame.get(names)? {
            extension::HOP_BY_HOP | extension::ROUTING => true,
            // Before a routing header they are for the hosts that it names.
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

    /// A UDP datagram, by the writer of another implementation.
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

    /// All fragments of a packet, the first of them in its own frame or copied as the others.
    fn fragments(whole: &[u8], limit: usize, in_place: bool) -> Option<Vec<Vec<u8>>> {
        let mut port = MemoryPort::with_links(1);
        let plan = Fragmentation::of(whole, limit, &mut Identification::numbered(HashSecret([3, 5, 7]), 0))?;
        let mut frame = port.allocate().unwrap();
        assert!(frame.resize(whole.len()));
        frame.bytes_mut().copy_from_slice(whole);
        let mut fragments = Vec::new();
        for number in usize::from(in_place)..plan.count() {
            let fragment = plan.copy(frame.bytes(), number, &mut port).expect("frames enough");
            fragments.push(fragment.bytes().to_vec());
            port.recycle(fragment);
        }
        if in_place {
            assert!(plan.keep_first(&mut frame));
            fragments.insert(0, frame.bytes().to_vec());
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
    fn extension_headers_for_routers_stand_before_the_fragment_header() {
        let mut whole = packet(true, &[0xa5; 100]);
        whole.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        whole[20] = 0;
        whole[18..20].copy_from_slice(&116u16.to_be_bytes());
        for fragment in fragments(&whole, 112, false).unwrap() {
            assert_eq!((fragment[20], fragment[54], fragment[62]), (0, 44, 17));
        }
    }

    #[test]
    fn options_for_visited_hosts_stand_before_the_fragment_header_and_those_for_the_receiver_behind_it() {
        let header = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        // Options and a routing header (of a type for experiments) for others, then options for the receiver.
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
    fn a_packet_is_not_fragmented_below_eight_bytes_nor_a_fragment_again() {
        let whole = packet(false, &[0xa5; 100]);
        assert!(fragments(&whole, 27, true).is_none());
        assert_eq!(fragments(&whole, 28, true).unwrap().len(), 14);
        let mut fragment = whole;
        Ipv4::edit(&mut fragment[14..]).set_part(128, ipv4::MORE_FRAGMENTS);
        assert!(fragments(&fragment, 60, true).is_none());
    }
}
