//! IPv4 headers (RFC 791): a view that edits in place, and the header of packets that the director originates.
//!
//! Setters update the header checksum incrementally, as routers do (RFC 1624).

use std::net::Ipv4Addr;

use crate::addr::{Family, Protocol};
use crate::bytes::word;
use crate::checksum::{Delta, Sum};
use crate::malformed::Malformed;

/// Positions in the header.
pub mod field {
    use std::ops::Range;
    /// Version and header length.
    pub const VERSION_IHL: usize = 0;
    /// Type of service: DSCP and ECN (RFC 2474, RFC 3168).
    pub const TOS: usize = 1;
    /// Length of the packet, header included.
    pub const TOTAL_LEN: Range<usize> = 2..4;
    /// Identification of fragments.
    pub const ID: Range<usize> = 4..6;
    /// Flags and fragment offset.
    pub const FLAGS_OFFSET: Range<usize> = 6..8;
    /// Time to live.
    pub const TTL: usize = 8;
    /// Protocol of the payload.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: Range<usize> = 10..12;
    /// Source address.
    pub const SOURCE: Range<usize> = 12..16;
    /// Destination address.
    pub const DEST: Range<usize> = 16..20;
}

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = Family::V4.header_len();
/// The flag that forbids fragmentation, in the flags and offset field.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The flag of every fragment but the last.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The mask of the fragment offset, in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;
/// The ECN field of a packet that met congestion, within the type of service. It is also the mask of that field (RFC
/// 3168 §5).
pub const CONGESTION_EXPERIENCED: u8 = 0b11;

/// Options (RFC 791 §3.1).
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOTHING: u8 = 1;
    /// The flag of an option that is copied to every fragment.
    pub(super) const COPIED: u8 = 0x80;
}

/// A packet whose header has been checked: version, lengths, checksum. The view covers only the packet, without
/// link-layer padding.
///
/// ```
/// use xvs_proto::ipv4::Ipv4;
///
/// // The header of a packet without data. Setters keep its checksum correct.
/// let mut bytes = *b"\x45\0\0\x14\0\0\0\0\x40\x11\x8e\xa2\xc0\0\x02\x01\xc6\x33\x64\x02";
/// let mut packet = Ipv4::edit(&mut bytes);
/// packet.set_dest("10.0.0.1".parse().unwrap());
/// packet.decrement_ttl();
/// let packet = Ipv4::parse(&bytes)?;
/// assert_eq!((packet.dest().to_string(), packet.ttl()), ("10.0.0.1".to_owned(), 63));
/// # Ok::<(), xvs_proto::Malformed>(())
/// ```
#[derive(Debug)]
pub struct Ipv4<B> {
    bytes: B,
}

impl<'a> Ipv4<&'a [u8]> {
    /// Checks the header at the start of `bytes` and cuts off the bytes after the packet.
    ///
    /// # Errors
    ///
    /// Every `Malformed::Ipv4…`. Source: RFC 1122 §3.2.1.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Ok(Self { bytes: &bytes[..checked_len(bytes)?] })
    }

    /// Checks the header of a packet that an ICMP error quotes. The header must be complete; the packet may be
    /// truncated. The checksum is not checked, because routers changed the packet.
    ///
    /// # Errors
    ///
    /// [`Malformed::Ipv4TooShort`], [`Malformed::Ipv4Version`], [`Malformed::Ipv4HeaderLength`].
    pub fn quoted(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header_len, total_len) = lengths(bytes)?;
        if header_len > bytes.len() {
            return Err(Malformed::Ipv4TooShort);
        }
        Ok(Self { bytes: &bytes[..total_len.min(bytes.len())] })
    }
}

impl<'a> Ipv4<&'a mut [u8]> {
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

/// The lengths of the header and of the packet in bytes, from the header's fields.
fn lengths(bytes: &[u8]) -> Result<(usize, usize), Malformed> {
    if bytes.len() < HEADER_LEN {
        return Err(Malformed::Ipv4TooShort);
    }
    if bytes[field::VERSION_IHL] >> 4 != 4 {
        return Err(Malformed::Ipv4Version);
    }
    let header_len = usize::from(bytes[field::VERSION_IHL] & 0xf) * 4;
    let total_len = usize::from(word(bytes, field::TOTAL_LEN.start));
    if header_len < HEADER_LEN || total_len < header_len {
        return Err(Malformed::Ipv4HeaderLength);
    }
    Ok((header_len, total_len))
}

fn checked_len(bytes: &[u8]) -> Result<usize, Malformed> {
    let (header_len, total_len) = lengths(bytes)?;
    if total_len > bytes.len() {
        return Err(Malformed::Ipv4TooShort);
    }
    if Sum::default().bytes(&bytes[..header_len]).checksum() != 0 {
        return Err(Malformed::Ipv4Checksum);
    }
    Ok(total_len)
}

fn addr(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

impl<B: AsRef<[u8]>> Ipv4<B> {
    fn word(&self, at: usize) -> u16 {
        word(self.bytes.as_ref(), at)
    }

    /// Bytes of the header, options included.
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes.as_ref()[field::VERSION_IHL] & 0xf) * 4
    }

    /// Bytes of the packet, header included.
    pub fn total_len(&self) -> u16 {
        self.word(field::TOTAL_LEN.start)
    }

    /// Type of service.
    pub fn tos(&self) -> u8 {
        self.bytes.as_ref()[field::TOS]
    }

    /// Flags and fragment offset as one 16-bit field.
    pub fn flags_and_offset(&self) -> u16 {
        self.word(field::FLAGS_OFFSET.start)
    }

    /// Identification, which the fragments of a datagram share.
    pub fn id(&self) -> u16 {
        self.word(field::ID.start)
    }

    /// Time to live.
    pub fn ttl(&self) -> u8 {
        self.bytes.as_ref()[field::TTL]
    }

    /// Protocol of the payload.
    pub fn protocol(&self) -> Protocol {
        Protocol(self.bytes.as_ref()[field::PROTOCOL])
    }

    /// Source address.
    pub fn source(&self) -> Ipv4Addr {
        addr(self.bytes.as_ref(), field::SOURCE.start)
    }

    /// Destination address.
    pub fn dest(&self) -> Ipv4Addr {
        addr(self.bytes.as_ref(), field::DEST.start)
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Ipv4<B> {
    /// Decrements the time to live.
    pub fn decrement_ttl(&mut self) {
        let old = self.word(field::TTL);
        self.bytes.as_mut()[field::TTL] = self.ttl().saturating_sub(1);
        self.update(Delta::default().word(old, self.word(field::TTL)));
    }

    /// Replaces the identification.
    pub fn set_id(&mut self, new: u16) {
        let old = self.id();
        self.bytes.as_mut()[field::ID].copy_from_slice(&new.to_be_bytes());
        self.update(Delta::default().word(old, new));
    }

    /// Turns the packet into another fragment of its datagram, or into the whole datagram: sets its length (header
    /// included), flags and offset.
    pub fn set_part(&mut self, total_len: u16, flags_and_offset: u16) {
        for (field, new) in [(field::TOTAL_LEN, total_len), (field::FLAGS_OFFSET, flags_and_offset)] {
            let old = self.word(field.start);
            self.bytes.as_mut()[field].copy_from_slice(&new.to_be_bytes());
            self.update(Delta::default().word(old, new));
        }
    }

    /// Sets the ECN mark for congestion (RFC 3168 §5).
    pub fn mark_congestion(&mut self) {
        let old = self.word(field::VERSION_IHL);
        self.bytes.as_mut()[field::TOS] |= CONGESTION_EXPERIENCED;
        self.update(Delta::default().word(old, self.word(field::VERSION_IHL)));
    }

    /// Replaces the options that only the first fragment of a datagram carries (those without the copied flag, RFC 791
    /// §3.1) with no-operation options.
    pub fn blank_options_of_first_fragment(&mut self) {
        let header_len = self.header_len();
        let bytes = self.bytes.as_mut();
        let mut at = HEADER_LEN;
        while at < header_len && bytes[at] != option::END {
            let length = match bytes[at] {
                option::NOTHING => 1,
                _ => usize::from(bytes.get(at + 1).copied().unwrap_or(0)),
            };
            if length == 0 || at + length > header_len {
                break;
            }
            if bytes[at] & option::COPIED == 0 {
                bytes[at..at + length].fill(option::NOTHING);
            }
            at += length;
        }
        self.write_checksum();
    }

    /// Recomputes the header checksum.
    pub fn write_checksum(&mut self) {
        let header_len = self.header_len();
        let bytes = self.bytes.as_mut();
        bytes[field::CHECKSUM].fill(0);
        let checksum = Sum::default().bytes(&bytes[..header_len]).checksum();
        bytes[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Replaces the source address.
    pub fn set_source(&mut self, new: Ipv4Addr) {
        let old = self.source();
        self.bytes.as_mut()[field::SOURCE].copy_from_slice(&new.octets());
        self.update(Delta::default().ipv4(old, new));
    }

    /// Replaces the destination address.
    pub fn set_dest(&mut self, new: Ipv4Addr) {
        let old = self.dest();
        self.bytes.as_mut()[field::DEST].copy_from_slice(&new.octets());
        self.update(Delta::default().ipv4(old, new));
    }

    fn update(&mut self, delta: Delta) {
        let checksum = delta.applied(self.word(field::CHECKSUM.start));
        self.bytes.as_mut()[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The header, without options, of a packet that the director originates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type of service.
    pub tos: u8,
    /// Bytes that follow the header.
    pub payload_len: u16,
    /// Identification.
    pub id: u16,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: Protocol,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub dest: Ipv4Addr,
}

impl Header {
    /// Writes the header, checksum included, to the first [`HEADER_LEN`] bytes.
    ///
    /// # Panics
    ///
    /// If `bytes` is shorter than that.
    pub fn emit(&self, bytes: &mut [u8]) {
        let total_len = HEADER_LEN as u16 + self.payload_len;
        bytes[field::VERSION_IHL] = 0x45;
        bytes[field::TOS] = self.tos;
        bytes[field::TOTAL_LEN].copy_from_slice(&total_len.to_be_bytes());
        bytes[field::ID].copy_from_slice(&self.id.to_be_bytes());
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        bytes[field::FLAGS_OFFSET].copy_from_slice(&flags.to_be_bytes());
        bytes[field::TTL] = self.ttl;
        bytes[field::PROTOCOL] = self.protocol.0;
        bytes[field::SOURCE].copy_from_slice(&self.source.octets());
        bytes[field::DEST].copy_from_slice(&self.dest.octets());
        // Summed from the values: reading words that were just written byte by byte stalls the processor.
        let sum = Sum::default()
            .word(u16::from_be_bytes([0x45, self.tos]))
            .word(total_len)
            .word(self.id)
            .word(flags)
            .word(u16::from_be_bytes([self.ttl, self.protocol.0]))
            .ipv4(self.source)
            .ipv4(self.dest);
        bytes[field::CHECKSUM].copy_from_slice(&sum.checksum().to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header};
    use proptest::prelude::*;

    fn packet() -> Vec<u8> {
        let mut header = Ipv4Header::new(8, 64, IpNumber::UDP, [192, 0, 2, 10], [198, 51, 100, 1]).unwrap();
        header.identification = 0x1234;
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend([0xa5; 8]);
        bytes
    }

    #[test]
    fn each_lie_of_a_header_has_its_own_reason() {
        let good = packet();
        assert!(Ipv4::parse(&good[..]).is_ok());
        let refused = |at: usize, value: u8| {
            let mut bytes = packet();
            bytes[at] = value;
            Ipv4::parse(&bytes).unwrap_err()
        };
        assert_eq!(Ipv4::parse(&good[..19]).unwrap_err(), Malformed::Ipv4TooShort);
        assert_eq!(Ipv4::parse(&good[..27]).unwrap_err(), Malformed::Ipv4TooShort);
        assert_eq!(refused(0, 0x65), Malformed::Ipv4Version);
        assert_eq!(refused(0, 0x44), Malformed::Ipv4HeaderLength);
        assert_eq!(refused(0, 0x4f), Malformed::Ipv4HeaderLength);
        assert_eq!(refused(3, 19), Malformed::Ipv4HeaderLength);
        assert_eq!(refused(8, 63), Malformed::Ipv4Checksum);
    }

    #[test]
    fn padding_after_the_packet_is_not_part_of_it() {
        let mut bytes = packet();
        bytes.extend([0; 18]);
        assert_eq!(Ipv4::parse(&bytes).unwrap().total_len(), 28);
    }

    #[test]
    fn an_emitted_header_is_the_one_that_another_implementation_writes() {
        let mut ours = [0xa5; HEADER_LEN];
        let header = Header {
            tos: 0,
            payload_len: 8,
            id: 0x1234,
            dont_fragment: true,
            ttl: 64,
            protocol: Protocol::UDP,
            source: Ipv4Addr::new(192, 0, 2, 10),
            dest: Ipv4Addr::new(198, 51, 100, 1),
        };
        header.emit(&mut ours);
        assert_eq!(ours, packet()[..HEADER_LEN]);
    }

    #[test]
    fn options_without_the_copied_flag_are_blanked_and_malformed_ones_end_the_search() {
        // Record route, loose source routing (copied), and an option that claims to be longer than the header.
        let options = [[7, 4, 4, 0], [0x83, 4, 4, 0], [1, 7, 9, 0]].concat();
        let mut bytes = packet();
        bytes.splice(HEADER_LEN..HEADER_LEN, options);
        bytes[field::VERSION_IHL] = 0x48;
        Ipv4::edit(&mut bytes).blank_options_of_first_fragment();
        assert_eq!(bytes[HEADER_LEN..HEADER_LEN + 12], [1, 1, 1, 1, 0x83, 4, 4, 0, 1, 7, 9, 0]);
        assert_eq!(Sum::default().bytes(&bytes[..HEADER_LEN + 12]).checksum(), 0);
    }

    proptest! {
        #[test]
        fn every_edit_leaves_the_checksum_that_recomputing_gives(source: [u8; 4], dest: [u8; 4], ttl in 1u8..) {
            let mut bytes = packet();
            bytes[field::TTL] = ttl;
            let (header, _) = Ipv4Header::from_slice(&bytes).unwrap();
            bytes[field::CHECKSUM].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
            let mut view = Ipv4::edit(&mut bytes);
            view.set_source(source.into());
            view.set_dest(dest.into());
            view.decrement_ttl();
            view.set_part(28, MORE_FRAGMENTS | 185);
            view.set_id(0xfedc);
            view.mark_congestion();
            let (header, _) = Ipv4Header::from_slice(&bytes).unwrap();
            prop_assert_eq!((header.source, header.destination, header.time_to_live), (source, dest, ttl - 1));
            prop_assert_eq!((header.more_fragments, header.fragment_offset.value(), header.ecn.value()), (true, 185, 3));
            prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
        }
    }
}
