//! TCP headers (RFC 9293): the flags, and ports rewritten in place with the checksum kept.

use crate::checksum::Delta;

/// Positions in the header.
pub mod field {
    use std::ops::Range;
    /// Source port.
    pub const SOURCE: Range<usize> = 0..2;
    /// Destination port.
    pub const DEST: Range<usize> = 2..4;
    /// Number of the first byte of data.
    pub const SEQUENCE: Range<usize> = 4..8;
    /// Number of the next byte that the sender expects.
    pub const ACKNOWLEDGEMENT: Range<usize> = 8..12;
    /// Length of the header, in words of four bytes, in the upper four bits.
    pub const DATA_OFFSET: usize = 12;
    /// Control bits.
    pub const FLAGS: usize = 13;
    /// Checksum over pseudo-header, header and data.
    pub const CHECKSUM: Range<usize> = 16..18;
}

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = 20;

/// The control bits (RFC 9293 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// FIN.
    pub const FIN: Self = Self(0x01);
    /// SYN.
    pub const SYN: Self = Self(0x02);
    /// RST.
    pub const RST: Self = Self(0x04);
    /// PSH.
    pub const PSH: Self = Self(0x08);
    /// ACK.
    pub const ACK: Self = Self(0x10);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Applies to a segment's checksum what a rewrite changed in its pseudo-header and ports.
pub fn update_checksum(segment: &mut [u8], delta: Delta) {
    let old = u16::from_be_bytes([segment[field::CHECKSUM.start], segment[field::CHECKSUM.start + 1]]);
    segment[field::CHECKSUM].copy_from_slice(&delta.applied(old).to_be_bytes());
}

/// Bytes of a segment's header with its options; `None` if it says what cannot be.
pub fn header_len(segment: &[u8]) -> Option<usize> {
    let len = usize::from(segment[field::DATA_OFFSET] >> 4) * 4;
    (HEADER_LEN..=segment.len()).contains(&len).then_some(len)
}

/// The 32 bits that stand at a place of a segment, such as a sequence number.
pub fn number(segment: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]])
}

/// Replaces the 32 bits at a place of a segment, and keeps its checksum.
pub fn set_number(segment: &mut [u8], at: usize, new: u32) {
    let old = number(segment, at);
    segment[at..at + 4].copy_from_slice(&new.to_be_bytes());
    // The sum is over words; what lies across them counts with its bytes swapped (RFC 1071 §2).
    let swapped = |value: u16| if at.is_multiple_of(2) { value } else { value.swap_bytes() };
    let high = |value: u32| swapped((value >> 16) as u16);
    let low = |value: u32| swapped(value as u16);
    update_checksum(segment, Delta::default().word(high(old), high(new)).word(low(old), low(new)));
}
