//! TCP headers (RFC 9293): control bits, options, resets, and the checksum after a rewrite.

use std::ops::Range;

use crate::addr::{Endpoint, Protocol};
use crate::checksum::{Delta, transport};

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
    /// The number of bytes that the sender of the segment can receive.
    pub const WINDOW: Range<usize> = 14..16;
    /// Checksum over pseudo-header, header and data.
    pub const CHECKSUM: Range<usize> = 16..18;
    /// The end of urgent data.
    pub const URGENT: usize = 18;
}

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Length of a SYN with the option of its largest segment, in bytes.
pub const SYN_LEN: usize = HEADER_LEN + 4;
/// Length of a header with as many options as possible, in bytes.
pub const HEADER_LEN_MAX: usize = 60;

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

/// Updates the checksum of a segment after a rewrite of its pseudo-header and ports.
pub fn update_checksum(segment: &mut [u8], delta: Delta) {
    let old = u16::from_be_bytes([segment[field::CHECKSUM.start], segment[field::CHECKSUM.start + 1]]);
    segment[field::CHECKSUM].copy_from_slice(&delta.applied(old).to_be_bytes());
}

/// The numbers by which the receiver of a reset accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetNumbers {
    /// The sequence number that the receiver expects next.
    Expected(u32),
    /// The sequence number behind the segment, for a segment without an acknowledgement.
    Acknowledging(u32),
}

/// The numbers of a reset that answers a segment (RFC 9293 §3.10.7.1). `None` if the length of its header is wrong, or
/// if it is a reset itself, which is never answered.
pub fn reset_numbers(segment: &[u8]) -> Option<ResetNumbers> {
    let flags = Flags(segment[field::FLAGS]);
    let data = segment.len() - header_len(segment)?;
    let counted = [Flags::SYN, Flags::FIN].into_iter().filter(|flag| flags.has(*flag)).count();
    let end = number(segment, field::SEQUENCE.start).wrapping_add((data + counted) as u32);
    match flags {
        flags if flags.has(Flags::RST) => None,
        flags if flags.has(Flags::ACK) => {
            Some(ResetNumbers::Expected(number(segment, field::ACKNOWLEDGEMENT.start)))
        }
        _ => Some(ResetNumbers::Acknowledging(end)),
    }
}

/// Turns the header of a segment into that of a reset without options, at the same sequence number, and keeps the
/// checksum. The bytes of the options count as data afterwards. Returns the control bits.
pub fn make_reset(segment: &mut [u8]) -> Flags {
    let flags = Flags(segment[field::FLAGS] & Flags::ACK.0 | Flags::RST.0);
    set_word(segment, field::DATA_OFFSET, WITHOUT_OPTIONS | u16::from(flags.0));
    set_word(segment, field::URGENT, 0);
    flags
}

/// Writes a reset, checksum included, to a segment of [`HEADER_LEN`] bytes.
///
/// # Panics
/// If `segment` is shorter than that.
pub fn emit_reset(segment: &mut [u8], source: Endpoint, dest: Endpoint, numbers: ResetNumbers) {
    let (sequence, acknowledgement, flags) = match numbers {
        ResetNumbers::Expected(number) => (number, 0, Flags::RST.0),
        ResetNumbers::Acknowledging(number) => (0, number, Flags::RST.0 | Flags::ACK.0),
    };
    let segment = &mut segment[..HEADER_LEN];
    segment.fill(0);
    emit(segment, source, dest, (sequence, acknowledgement), Flags(flags));
}

/// Writes a SYN, checksum included, to a segment of [`SYN_LEN`] bytes. `mss` is the largest segment that its sender
/// receives, in bytes of data.
///
/// # Panics
/// If `segment` is shorter than that.
pub fn emit_syn(segment: &mut [u8], source: Endpoint, dest: Endpoint, sequence: u32, mss: u16) {
    const OPTION_MSS: u8 = 2;
    let segment = &mut segment[..SYN_LEN];
    segment.fill(0);
    segment[field::WINDOW].copy_from_slice(&u16::MAX.to_be_bytes());
    segment[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&[OPTION_MSS, 4]);
    segment[HEADER_LEN + 2..].copy_from_slice(&mss.to_be_bytes());
    emit(segment, source, dest, (sequence, 0), Flags::SYN);
}

/// Completes a segment without data, whose window and options are written and whose other bytes are 0. `numbers` are
/// those of sequence and acknowledgement.
fn emit(segment: &mut [u8], source: Endpoint, dest: Endpoint, numbers: (u32, u32), flags: Flags) {
    segment[field::SOURCE].copy_from_slice(&source.port.to_be_bytes());
    segment[field::DEST].copy_from_slice(&dest.port.to_be_bytes());
    segment[field::SEQUENCE].copy_from_slice(&numbers.0.to_be_bytes());
    segment[field::ACKNOWLEDGEMENT].copy_from_slice(&numbers.1.to_be_bytes());
    segment[field::DATA_OFFSET] = (segment.len() as u8 / 4) << 4;
    segment[field::FLAGS] = flags.0;
    let sum = transport(source.addr, dest.addr, Protocol::TCP.0, segment);
    segment[field::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
}

/// The word of the header's length and the control bits, with no bit set.
const WITHOUT_OPTIONS: u16 = (HEADER_LEN as u16 / 4) << 12;

/// Length of a segment's header with its options, in bytes. `None` if the length field is impossible.
pub fn header_len(segment: &[u8]) -> Option<usize> {
    let len = usize::from(segment.get(field::DATA_OFFSET)? >> 4) * 4;
    (HEADER_LEN..=segment.len()).contains(&len).then_some(len)
}

/// The whole options of a segment: the kind of each, and where its value stands (RFC 9293 §3.1). The iteration ends at
/// the first option that is not whole, and at once if the length of the header is wrong.
pub fn options(segment: &[u8]) -> impl Iterator<Item = (u8, Range<usize>)> + use<> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    let mut header = [0; HEADER_LEN_MAX];
    let len = header_len(segment).unwrap_or(0);
    header[..len].copy_from_slice(&segment[..len]);
    let mut at = HEADER_LEN;
    std::iter::from_fn(move || {
        let header = &header[..len];
        while header.get(at) == Some(&NOTHING) {
            at += 1;
        }
        let kind = *header.get(at).filter(|kind| **kind != END)?;
        let length = usize::from(*header.get(at + 1)?);
        let value = at + 2..at + length;
        header.get(value.clone())?;
        at += length;
        Some((kind, value))
    })
}

/// The 32 bits at a place of a segment, such as a sequence number.
pub fn number(segment: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]])
}

/// Replaces the 32 bits at a place of a segment, and keeps the checksum.
pub fn set_number(segment: &mut [u8], at: usize, new: u32) {
    set_word(segment, at, (new >> 16) as u16);
    set_word(segment, at + 2, new as u16);
}

/// Changes the numbers of the other end's bytes in a segment: the acknowledgement, and the edges of SACK blocks (RFC
/// 2018 §3). Keeps the checksum.
pub fn map_acknowledged(segment: &mut [u8], map: impl Fn(u32) -> u32) {
    const SACK: u8 = 5;
    let edges = options(segment).filter(|(kind, _)| *kind == SACK).flat_map(|(_, blocks)| {
        let end = blocks.end;
        blocks.step_by(4).filter(move |edge| edge + 4 <= end)
    });
    for at in std::iter::once(field::ACKNOWLEDGEMENT.start).chain(edges) {
        set_number(segment, at, map(number(segment, at)));
    }
}

/// The 16 bits at a place of a segment.
pub fn word(segment: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([segment[at], segment[at + 1]])
}

/// Replaces the 16 bits at a place of a segment, and keeps the checksum.
pub fn set_word(segment: &mut [u8], at: usize, new: u16) {
    let old = word(segment, at);
    segment[at..at + 2].copy_from_slice(&new.to_be_bytes());
    // The sum is over words. A value that lies across two words counts with its bytes swapped (RFC 1071 §2).
    let counted = |value: u16| if at.is_multiple_of(2) { value } else { value.swap_bytes() };
    update_checksum(segment, Delta::default().word(counted(old), counted(new)));
}
