//! IPv6 headers (RFC 8200): a view that edits in place, the chain of extension headers, and the header of packets that
//! the director originates.
//!
//! No length field is trusted beyond the packet's end, and the length of the chain is bounded. Cost: the fixed header,
//! and eight bytes for each extension header. No checksum covers the header itself; the transport checksum covers the
//! addresses. The kernel interprets options and routing headers.

use std::net::Ipv6Addr;

use crate::addr::{Family, Protocol};
use crate::bytes::word;
use crate::malformed::Malformed;

/// Positions in the header.
pub mod field {
    use std::ops::Range;
    /// Version, traffic class and flow label.
    pub const VERSION_CLASS_FLOW: Range<usize> = 0..4;
    /// Length of the packet after the header.
    pub const PAYLOAD_LEN: Range<usize> = 4..6;
    /// Protocol of the next header.
    pub const NEXT_HEADER: usize = 6;
    /// Hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Source address.
    pub const SOURCE: Range<usize> = 8..24;
    /// Destination address.
    pub const DEST: Range<usize> = 24..40;
}

/// Length of the header without extension headers, in bytes.
pub const HEADER_LEN: usize = Family::V6.header_len();
/// Minimum MTU of a link, in bytes (§5).
pub const MIN_MTU: u32 = 1280;
/// Length of a fragment header, in bytes (§4.5).
pub const FRAGMENT_HEADER_LEN: usize = 8;
/// The flag of every fragment but the last, in the fragment header's offset and flags field.
pub const MORE_FRAGMENTS: u16 = 0x0001;
/// The mask of the fragment offset in that field. The masked value is in bytes.
pub const OFFSET_MASK: u16 = 0xfff8;

/// Maximum number of extension headers that are skipped, as in the data plane's `bpf/redirect.bpf.c`. RFC 8200 §4.1 has
/// no use for more than five of the skipped kinds.
const MAX_EXTENSIONS: usize = 6;

/// The extension headers (RFC 8200 §4) that the parser skips. AH, ESP and "no next header" end the chain.
pub mod extension {
    /// Options for every router (§4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// Hosts to be visited (§4.4).
    pub const ROUTING: u8 = 43;
    /// Position of this packet in its datagram (§4.5).
    pub const FRAGMENT: u8 = 44;
    /// Options for the receiver of the packet, or for the hosts to be visited (§4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// The length of an extension header is a multiple of this value, and not 0.
    pub const UNIT: usize = 8;
}

/// A packet whose header has been checked: version and lengths. The view covers only the packet, without link-layer
/// padding.
#[derive(Debug)]
pub struct Ipv6<B> {
    bytes: B,
}

impl<'a> Ipv6<&'a [u8]> {
    /// Checks the header at the start of `bytes` and cuts off the bytes after the packet.
    ///
    /// # Errors
    ///
    /// [`Malformed::Ipv6TooShort`], [`Malformed::Ipv6Version`], [`Malformed::Ipv6Jumbogram`]. Source: RFC 8200 §3; RFC
    /// 2675 §3: a length of 0 before hop-by-hop options indicates a jumbogram.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let view = Self::quoted(bytes)?;
        if view.payload_len() == 0 && bytes[field::NEXT_HEADER] == extension::HOP_BY_HOP {
            return Err(Malformed::Ipv6Jumbogram);
        }
        Ok(Self { bytes: bytes.get(..view.total_len()).ok_or(Malformed::Ipv6TooShort)? })
    }

    /// Checks the header of a packet that an ICMPv6 error quotes. The header must be complete; the packet may be
    /// truncated.
    ///
    /// # Errors
    ///
    /// [`Malformed::Ipv6TooShort`], [`Malformed::Ipv6Version`].
    pub fn quoted(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < HEADER_LEN {
            return Err(Malformed::Ipv6TooShort);
        }
        if bytes[0] >> 4 != 6 {
            return Err(Malformed::Ipv6Version);
        }
        let len = Self { bytes }.total_len();
        Ok(Self { bytes: &bytes[..len.min(bytes.len())] })
    }
}

impl<'a> Ipv6<&'a mut [u8]> {
    /// An editable view of a packet that [`crate::packet::parse`] accepted at this offset.
    ///
    /// # Panics
    ///
    /// If `bytes` is shorter than a header.
    pub fn edit(bytes: &'a mut [u8]) -> Self {
        assert!(bytes.len() >= HEADER_LEN, "parse checked the length");
        Self { bytes }
    }
}

impl<B: AsRef<[u8]>> Ipv6<B> {
    /// Number of bytes after the header.
    pub fn payload_len(&self) -> u16 {
        word(self.bytes.as_ref(), field::PAYLOAD_LEN.start)
    }

    /// Length of the packet in bytes, header included.
    pub fn total_len(&self) -> usize {
        HEADER_LEN + usize::from(self.payload_len())
    }

    /// Traffic class.
    pub fn traffic_class(&self) -> u8 {
        (word(self.bytes.as_ref(), 0) >> 4) as u8
    }

    /// Hop limit.
    pub fn hop_limit(&self) -> u8 {
        self.bytes.as_ref()[field::HOP_LIMIT]
    }

    /// Source address.
    pub fn source(&self) -> Ipv6Addr {
        addr(&self.bytes.as_ref()[field::SOURCE])
    }

    /// Destination address.
    pub fn dest(&self) -> Ipv6Addr {
        addr(&self.bytes.as_ref()[field::DEST])
    }

    /// Follows the chain of extension headers.
    ///
    /// # Errors
    ///
    /// [`Malformed::Ipv6ExtensionTooShort`], [`Malformed::Ipv6Extensions`].
    pub fn chain(&self) -> Result<Chain, Malformed> {
        let bytes = self.bytes.as_ref();
        let mut chain =
            Chain { protocol: Protocol(bytes[field::NEXT_HEADER]), transport: HEADER_LEN, fragment: None };
        for _ in 0..MAX_EXTENSIONS {
            let kind = chain.protocol.0;
            if !is_extension(kind) {
                return Ok(chain);
            }
            let at = chain.transport;
            let header = bytes.get(at..at + extension::UNIT).ok_or(Malformed::Ipv6ExtensionTooShort)?;
            chain.protocol = Protocol(header[0]);
            if kind == extension::FRAGMENT {
                if chain.fragment.is_some() {
                    return Err(Malformed::Ipv6Extensions);
                }
                let offset_and_more = word(header, 2) & (OFFSET_MASK | MORE_FRAGMENTS);
                chain.fragment = Some(FragmentHeader { at, offset_and_more });
                chain.transport += FRAGMENT_HEADER_LEN;
                if offset_and_more & OFFSET_MASK != 0 {
                    return Ok(chain);
                }
                continue;
            }
            chain.transport += extension::UNIT * (1 + usize::from(header[1]));
            if chain.transport > bytes.len() {
                return Err(Malformed::Ipv6ExtensionTooShort);
            }
        }
        if is_extension(chain.protocol.0) { Err(Malformed::Ipv6Extensions) } else { Ok(chain) }
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Ipv6<B> {
    /// Decrements the hop limit.
    pub fn decrement_hop_limit(&mut self) {
        let hops = &mut self.bytes.as_mut()[field::HOP_LIMIT];
        *hops = hops.saturating_sub(1);
    }

    /// Sets the number of bytes after this header.
    pub fn set_payload_len(&mut self, new: u16) {
        self.bytes.as_mut()[field::PAYLOAD_LEN].copy_from_slice(&new.to_be_bytes());
    }

    /// Replaces the source address.
    pub fn set_source(&mut self, new: Ipv6Addr) {
        self.bytes.as_mut()[field::SOURCE].copy_from_slice(&new.octets());
    }

    /// Replaces the destination address.
    pub fn set_dest(&mut self, new: Ipv6Addr) {
        self.bytes.as_mut()[field::DEST].copy_from_slice(&new.octets());
    }

    /// Prepares the removal of the fragment header at `at`, which [`Self::chain`] found: the header before it then
    /// names the header after it, and the payload length shrinks by the length of the fragment header. No bytes are
    /// moved.
    pub fn unlink_fragment_header(&mut self, at: usize) {
        let payload_len = self.payload_len() - FRAGMENT_HEADER_LEN as u16;
        let bytes = self.bytes.as_mut();
        bytes[field::PAYLOAD_LEN].copy_from_slice(&payload_len.to_be_bytes());
        let mut names = field::NEXT_HEADER;
        let mut next = HEADER_LEN;
        while next < at {
            names = next;
            next += extension::UNIT * (1 + usize::from(bytes[next + 1]));
        }
        bytes[names] = bytes[at];
    }
}

/// The chain of headers after the fixed header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// The transport protocol, at which the chain ends. In a later fragment, the protocol that the fragment header
    /// names.
    pub protocol: Protocol,
    /// Offset of the transport header from the start of the packet, in bytes.
    pub transport: usize,
    /// The fragment header, if there is one.
    pub fragment: Option<FragmentHeader>,
}

/// A fragment header (§4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Offset of the header from the start of the packet, in bytes.
    pub at: usize,
    /// The offset and the more-fragments flag, masked by [`OFFSET_MASK`] and [`MORE_FRAGMENTS`]. 0 if the packet is a
    /// whole datagram.
    pub offset_and_more: u16,
}

/// The header, without extension headers, of a packet that the director originates. The flow label is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Traffic class: DSCP and ECN (RFC 2474, RFC 3168).
    pub traffic_class: u8,
    /// Bytes that follow the header.
    pub payload_len: u16,
    /// Protocol of the next header.
    pub next_header: Protocol,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub dest: Ipv6Addr,
}

impl Header {
    /// Writes the header to the first [`HEADER_LEN`] bytes.
    ///
    /// # Panics
    /// If `bytes` is shorter than that.
    pub fn emit(&self, bytes: &mut [u8]) {
        let first = 6 << 28 | u32::from(self.traffic_class) << 20;
        bytes[field::VERSION_CLASS_FLOW].copy_from_slice(&first.to_be_bytes());
        bytes[field::PAYLOAD_LEN].copy_from_slice(&self.payload_len.to_be_bytes());
        bytes[field::NEXT_HEADER] = self.next_header.0;
        bytes[field::HOP_LIMIT] = self.hop_limit;
        bytes[field::SOURCE].copy_from_slice(&self.source.octets());
        bytes[field::DEST].copy_from_slice(&self.dest.octets());
    }
}

fn is_extension(kind: u8) -> bool {
    matches!(
        kind,
        extension::HOP_BY_HOP | extension::ROUTING | extension::FRAGMENT | extension::DESTINATION_OPTIONS
    )
}

fn addr(bytes: &[u8]) -> Ipv6Addr {
    <[u8; 16]>::try_from(bytes).expect("sixteen bytes").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv6FlowLabel, Ipv6Header};
    use proptest::prelude::*;

    const SOURCE: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
    const DEST: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

    /// A header from another implementation, followed by this payload.
    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let header = Ipv6Header {
            traffic_class: 0xb8,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: payload.len() as u16,
            next_header: IpNumber(next_header),
            hop_limit: 64,
            source: SOURCE,
            destination: DEST,
        };
        [&header.to_bytes()[..], payload].concat()
    }

    fn chain(next_header: u8, payload: &[u8]) -> Result<Chain, Malformed> {
        Ipv6::parse(&packet(next_header, payload)[..])?.chain()
    }

    #[test]
    fn each_lie_of_a_header_has_its_own_reason() {
        let good = packet(17, &[0xa5; 8]);
        assert!(Ipv6::parse(&good[..]).is_ok());
        assert_eq!(Ipv6::parse(&good[..39]).unwrap_err(), Malformed::Ipv6TooShort);
        assert_eq!(Ipv6::parse(&good[..47]).unwrap_err(), Malformed::Ipv6TooShort);
        let four = [&[0x45], &good[1..]].concat();
        assert_eq!(Ipv6::parse(&four[..]).unwrap_err(), Malformed::Ipv6Version);
        // Hop-by-hop options with a jumbo payload option (RFC 2675 §2).
        let jumbo = [&packet(0, &[])[..], &[6, 0, 0xc2, 4, 0, 1, 0, 0]].concat();
        assert_eq!(Ipv6::parse(&jumbo[..]).unwrap_err(), Malformed::Ipv6Jumbogram);
    }

    #[test]
    fn padding_is_not_part_of_the_packet_and_the_payload_may_be_empty() {
        let padded = [packet(59, &[]), vec![0; 20]].concat();
        let view = Ipv6::parse(&padded[..]).unwrap();
        assert_eq!((view.total_len(), view.payload_len(), view.traffic_class()), (40, 0, 0xb8));
        assert_eq!(view.chain().unwrap().protocol, Protocol(59));
    }

    #[test]
    fn the_chain_is_walked_to_the_transport_and_ends_at_ah_esp_and_no_next_header() {
        let of = |protocol, transport| Ok(Chain { protocol: Protocol(protocol), transport, fragment: None });
        assert_eq!(chain(6, &[]), of(6, 40));
        let options =
            [&[60, 0, 1, 4, 0, 0, 0, 0], &[43, 1][..], &[1; 14], &[132, 0, 4, 0, 0, 0, 0, 0]].concat();
        assert_eq!(chain(0, &options), of(132, 40 + 32));
        for last in [50, 51, 58, 59] {
            assert_eq!(chain(60, &[last, 0, 1, 4, 0, 0, 0, 0]), of(last, 48));
        }
    }

    #[test]
    fn a_fragment_header_gives_its_offset_and_behind_that_of_a_later_fragment_nothing_is_parsed() {
        let fragment = |word: u16| {
            let [high, low] = word.to_be_bytes();
            let payload = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, high, low, 0, 0, 0, 7];
            chain(60, &[&[44, 0, 1, 4, 0, 0, 0, 0], &payload[8..]].concat()).unwrap()
        };
        // The two bits between offset and flag are reserved.
        for (word, offset_and_more) in [(0, 0), (0x0006, 0), (0x0001, 1), (0x0008, 8), (0xfff9, 0xfff9)] {
            let want = Some(FragmentHeader { at: 48, offset_and_more });
            assert_eq!(
                fragment(word),
                Chain { protocol: Protocol(17), transport: 56, fragment: want },
                "{word:04x}"
            );
        }
        // Destination options after it: part of the chain in the first fragment, payload in a later one.
        let behind = |word: u8| chain(44, &[60, 0, 0, word, 0, 0, 0, 7, 17, 0, 1, 4, 0, 0, 0, 0]).unwrap();
        assert_eq!((behind(1).protocol, behind(1).transport), (Protocol(17), 56));
        assert_eq!((behind(8).protocol, behind(8).transport), (Protocol(60), 48));
    }

    #[test]
    fn a_chain_that_is_cut_or_does_not_end_has_its_reason() {
        assert_eq!(chain(60, &[17, 0, 1, 4, 0, 0, 0]), Err(Malformed::Ipv6ExtensionTooShort));
        assert_eq!(chain(60, &[17, 1, 1, 4, 0, 0, 0, 0]), Err(Malformed::Ipv6ExtensionTooShort));
        assert_eq!(chain(44, &[17, 0, 0, 1]), Err(Malformed::Ipv6ExtensionTooShort));
        let options = |count: usize| {
            [[60, 0, 1, 4, 0, 0, 0, 0].repeat(count - 1), vec![17, 0, 1, 4, 0, 0, 0, 0]].concat()
        };
        assert!(chain(60, &options(6)).is_ok());
        assert_eq!(chain(60, &options(7)), Err(Malformed::Ipv6Extensions));
        let twice = [44, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 2];
        assert_eq!(chain(44, &twice), Err(Malformed::Ipv6Extensions));
    }

    #[test]
    fn a_fragment_header_is_taken_out_of_the_chain_wherever_it_stands() {
        let fragment = [17, 0, 0, 0, 0, 0, 0, 7];
        let options = [44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (first, before) in [(44, &[][..]), (60, &options[..])] {
            let mut bytes = packet(first, &[before, &fragment, &[0xa5; 9]].concat());
            let at = HEADER_LEN + before.len();
            Ipv6::edit(&mut bytes).unlink_fragment_header(at);
            bytes.drain(at..at + FRAGMENT_HEADER_LEN);
            let mut want = packet(if first == 44 { 17 } else { first }, &[before, &[0xa5; 9]].concat());
            if first != 44 {
                want[HEADER_LEN] = 17;
            }
            assert_eq!(bytes, want);
        }
    }

    #[test]
    fn an_emitted_header_is_the_one_that_another_implementation_writes() {
        let mut ours = [0xa5; HEADER_LEN];
        let header = Header {
            traffic_class: 0xb8,
            payload_len: 8,
            next_header: Protocol::UDP,
            hop_limit: 64,
            source: SOURCE.into(),
            dest: DEST.into(),
        };
        header.emit(&mut ours);
        assert_eq!(ours, packet(17, &[0; 8])[..HEADER_LEN]);
    }

    proptest! {
        #[test]
        fn an_edit_changes_its_own_field_and_nothing_else(source: [u8; 16], dest: [u8; 16]) {
            let mut bytes = packet(17, &[0xa5; 8]);
            let mut view = Ipv6::edit(&mut bytes);
            view.set_source(source.into());
            view.set_dest(dest.into());
            view.decrement_hop_limit();
            let (mut header, rest) = Ipv6Header::from_slice(&packet(17, &[0xa5; 8])).map(|(h, r)| (h, r.to_vec())).unwrap();
            (header.source, header.destination, header.hop_limit) = (source, dest, 63);
            prop_assert_eq!(bytes, [&header.to_bytes()[..], &rest].concat());
        }

        #[test]
        fn no_chain_of_headers_causes_a_panic_and_every_result_lies_within_the_packet(
            kinds in prop::collection::vec((0u8..5, 0u8..4), 0..10),
            tail in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let named = |kind: u8| [0, 43, 44, 60, 17][usize::from(kind)];
            let mut payload = Vec::new();
            for (kind, len) in &kinds {
                payload.extend([named(*kind), *len]);
                payload.extend(&tail[..tail.len().min(6 + 8 * usize::from(*len))]);
            }
            for first in [0, 43, 44, 60] {
                let bytes = packet(first, &payload);
                if let Ok(chain) = Ipv6::parse(&bytes[..]).and_then(|view| view.chain()) {
                    prop_assert!(chain.transport <= bytes.len());
                    prop_assert!(chain.fragment.is_none_or(|fragment| fragment.at + 8 <= chain.transport));
                }
            }
        }
    }
}
