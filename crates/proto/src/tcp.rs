//! TCP headers (RFC 9293): the flags, and ports rewritten in place with the checksum kept.

use crate::checksum::Delta;

/// Positions in the header.
pub mod field {
    use std::ops::Range;
    /// Source port.
    pub const SOURCE: Range<usize> = 0..2;
    /// Destination port.
    pub const DEST: Range<usize> = 2..4;
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
