//! TCP headers (RFC 9293): control bits, options, resets, and the checksum after a rewrite.

use std::ops::Range;

use crate::addr::{Endpoint, Protocol};
use crate::checksum::{Delta, transport};
use crate::flow::FlowKey;

pub use crate::bytes::{number, word};

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
    /// Length of the header in 32-bit words, in the upper four bits.
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
/// Length of the longest header, in bytes.
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

/// The numbers in a reset that make its receiver accept it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetNumbers {
    /// The sequence number that the receiver expects next.
    Expected(u32),
    /// The sequence number after the segment, for a segment without an acknowledgement.
    Acknowledging(u32),
}

/// The numbers for a reset in reply to a segment (RFC 9293 §3.10.7.1). `None` if the segment's header length is
/// invalid, or if the segment is itself a reset, which gets no reply.
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

/// Turns a segment's header into a reset's without options, at the same sequence number, and updates the checksum. The
/// bytes of the options count as data afterwards. Returns the control bits of the reset.
pub fn make_reset(segment: &mut [u8]) -> Flags {
    let flags = Flags(segment[field::FLAGS] & Flags::ACK.0 | Flags::RST.0);
    set_word(segment, field::DATA_OFFSET, WITHOUT_OPTIONS | u16::from(flags.0));
    set_word(segment, field::URGENT, 0);
    flags
}

/// A header to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The sequence number of the first data byte, or of the SYN.
    pub sequence: u32,
    /// The sequence number that the sender expects next.
    pub acknowledgement: u32,
    /// The control bits.
    pub flags: Flags,
    /// The window field.
    pub window: u16,
    /// The options.
    pub options: Options,
}

impl Header {
    /// Length of the header with options, in bytes.
    pub fn length(&self) -> usize {
        HEADER_LEN + self.options.length().next_multiple_of(4)
    }

    /// Writes a segment that consists of this header alone, checksum included, from the first to the second endpoint.
    ///
    /// # Panics
    ///
    /// If `segment` is shorter than [`Self::length`].
    pub fn emit(&self, segment: &mut [u8], source: Endpoint, dest: Endpoint) {
        let segment = &mut segment[..self.length()];
        segment.fill(0);
        segment[field::SOURCE].copy_from_slice(&source.port.to_be_bytes());
        segment[field::DEST].copy_from_slice(&dest.port.to_be_bytes());
        segment[field::SEQUENCE].copy_from_slice(&self.sequence.to_be_bytes());
        segment[field::ACKNOWLEDGEMENT].copy_from_slice(&self.acknowledgement.to_be_bytes());
        segment[field::DATA_OFFSET] = (segment.len() as u8 / 4) << 4;
        segment[field::FLAGS] = self.flags.0;
        segment[field::WINDOW].copy_from_slice(&self.window.to_be_bytes());
        self.options.emit(&mut segment[HEADER_LEN..]);
        write_checksum(segment, &FlowKey { protocol: Protocol::TCP, source, dest });
    }
}

impl From<ResetNumbers> for Header {
    /// The header of a reset.
    fn from(numbers: ResetNumbers) -> Self {
        let (sequence, acknowledgement, flags) = match numbers {
            ResetNumbers::Expected(number) => (number, 0, Flags::RST),
            ResetNumbers::Acknowledging(number) => (0, number, Flags(Flags::RST.0 | Flags::ACK.0)),
        };
        Self { sequence, acknowledgement, flags, ..Self::default() }
    }
}

/// The options with which the ends of a connection negotiate features (RFC 9293 §3.2, RFC 2018 §2, RFC 7323). All
/// except timestamps occur only in SYNs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The largest segment that the sender can receive, in bytes of data.
    pub mss: Option<u16>,
    /// The binary logarithm of the unit of later window fields, in bytes; at most 14.
    pub window_scale: Option<u8>,
    /// Whether the sender supports selective acknowledgements.
    pub sack: bool,
    /// The sender's timestamp, and the last timestamp that it received.
    pub timestamps: Option<[u32; 2]>,
}

impl Options {
    /// The options of a segment.
    pub fn of(segment: &[u8]) -> Self {
        let mut found = Self::default();
        for (kind, value) in options(segment) {
            let value = &segment[value];
            match (kind, value) {
                (kind::MSS, &[high, low]) => found.mss = Some(u16::from_be_bytes([high, low])),
                (kind::WINDOW_SCALE, &[scale]) => found.window_scale = Some(scale.min(WINDOW_SCALE_MAX)),
                (kind::SACK_PERMITTED, &[]) => found.sack = true,
                (kind::TIMESTAMPS, value) if value.len() == 8 => {
                    found.timestamps = Some([number(value, 0), number(value, 4)]);
                }
                _ => {}
            }
        }
        found
    }

    /// Their length, in bytes.
    fn length(&self) -> usize {
        [
            (self.mss.is_some(), 4),
            (self.sack, 2),
            (self.timestamps.is_some(), 10),
            (self.window_scale.is_some(), 3),
        ]
        .into_iter()
        .filter(|(is_there, _)| *is_there)
        .map(|(_, length)| length)
        .sum()
    }

    /// Writes the options to the end of `bytes`, after no-operation options as padding.
    fn emit(&self, bytes: &mut [u8]) {
        let (padding, mut rest) = bytes.split_at_mut(bytes.len() - self.length());
        padding.fill(kind::NOTHING);
        if let Some(mss) = self.mss {
            put(&mut rest, kind::MSS, &mss.to_be_bytes());
        }
        if self.sack {
            put(&mut rest, kind::SACK_PERMITTED, &[]);
        }
        if let Some([own, echoed]) = self.timestamps {
            let both = u64::from(own) << 32 | u64::from(echoed);
            put(&mut rest, kind::TIMESTAMPS, &both.to_be_bytes());
        }
        if let Some(scale) = self.window_scale {
            put(&mut rest, kind::WINDOW_SCALE, &[scale]);
        }
    }
}

/// Writes an option to the front of `rest`, and advances `rest` past it.
fn put(rest: &mut &mut [u8], kind: u8, value: &[u8]) {
    let option = rest.split_off_mut(..2 + value.len()).expect("their length was added up");
    option[..2].copy_from_slice(&[kind, 2 + value.len() as u8]);
    option[2..].copy_from_slice(value);
}

/// Kinds of options.
mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const NOTHING: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const SACK_PERMITTED: u8 = 4;
    pub(super) const SACK: u8 = 5;
    pub(super) const TIMESTAMPS: u8 = 8;
}

/// The greatest scale of windows (RFC 7323 §2.3).
const WINDOW_SCALE_MAX: u8 = 14;

/// The 16-bit field of header length and control bits, without options and with all bits clear.
const WITHOUT_OPTIONS: u16 = (HEADER_LEN as u16 / 4) << 12;

/// Length of a segment's header with options, in bytes. `None` if the length field is invalid.
pub fn header_len(segment: &[u8]) -> Option<usize> {
    let len = usize::from(segment.get(field::DATA_OFFSET)? >> 4) * 4;
    (HEADER_LEN..=segment.len()).contains(&len).then_some(len)
}

/// The complete options in a segment: the kind and the position of the value (RFC 9293 §3.1). The iteration ends at the
/// first incomplete option, and at once if the header length is invalid.
pub fn options(segment: &[u8]) -> impl Iterator<Item = (u8, Range<usize>)> + use<> {
    let mut header = [0; HEADER_LEN_MAX];
    let len = header_len(segment).unwrap_or(0);
    header[..len].copy_from_slice(&segment[..len]);
    let mut at = HEADER_LEN;
    std::iter::from_fn(move || {
        let header = &header[..len];
        while header.get(at) == Some(&kind::NOTHING) {
            at += 1;
        }
        let kind = *header.get(at).filter(|kind| **kind != kind::END)?;
        let length = usize::from(*header.get(at + 1)?);
        let value = at + 2..at + length;
        header.get(value.clone())?;
        at += length;
        Some((kind, value))
    })
}

/// Replaces the 32-bit field at an offset in a segment, and updates the checksum.
pub fn set_number(segment: &mut [u8], at: usize, new: u32) {
    set_word(segment, at, (new >> 16) as u16);
    set_word(segment, at + 2, new as u16);
}

/// Maps the sequence numbers with which a segment acknowledges the other end's bytes: the acknowledgement, and the
/// edges of SACK blocks (RFC 2018 §3). Updates the checksum.
pub fn map_acknowledged(segment: &mut [u8], map: impl Fn(u32) -> u32) {
    let edges = options(segment).filter(|(kind, _)| *kind == kind::SACK).flat_map(|(_, blocks)| {
        let end = blocks.end;
        blocks.step_by(4).filter(move |edge| edge + 4 <= end)
    });
    for at in std::iter::once(field::ACKNOWLEDGEMENT.start).chain(edges) {
        set_number(segment, at, map(number(segment, at)));
    }
}

/// Maps the sequence number of a quoted segment, if the quote includes it. The checksum stays: an ICMP error does not
/// show whether the checksum of the quoted segment is correct.
pub fn map_quoted(segment: &mut [u8], map: impl Fn(u32) -> u32) {
    if let Some(sequence) = segment.get_mut(field::SEQUENCE).and_then(<[u8]>::first_chunk_mut) {
        *sequence = map(u32::from_be_bytes(*sequence)).to_be_bytes();
    }
}

/// The offsets of a segment's timestamp and of its echoed timestamp, if it has them.
pub fn timestamps(segment: &[u8]) -> Option<[usize; 2]> {
    options(segment)
        .find(|(kind, value)| *kind == kind::TIMESTAMPS && value.len() == 8)
        .map(|(_, value)| [value.start, value.start + 4])
}

/// Whether the checksum of a segment in this flow is correct.
pub fn is_summed(segment: &[u8], flow: &FlowKey) -> bool {
    transport(flow.source.addr, flow.dest.addr, Protocol::TCP.0, segment) == 0
}

/// Recomputes the checksum of a segment in this flow.
pub fn write_checksum(segment: &mut [u8], flow: &FlowKey) {
    segment[field::CHECKSUM].fill(0);
    let sum = transport(flow.source.addr, flow.dest.addr, Protocol::TCP.0, segment);
    segment[field::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
}

/// Replaces the 16-bit field at an offset in a segment, and updates the checksum.
pub fn set_word(segment: &mut [u8], at: usize, new: u16) {
    let old = word(segment, at);
    segment[at..at + 2].copy_from_slice(&new.to_be_bytes());
    // The sum is over 16-bit words. A value that spans two words counts with its bytes swapped (RFC 1071 §2).
    let [old, new] = if at.is_multiple_of(2) { [old, new] } else { [old.swap_bytes(), new.swap_bytes()] };
    update_checksum(segment, Delta::default().word(old, new));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_has_its_options_where_their_specifications_put_them() {
        let ends = [Endpoint::new([192, 0, 2, 1], 0x1234), Endpoint::new([198, 51, 100, 1], 80)];
        let options = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack: true,
            timestamps: Some([0x0102_0304, 0x0506_0708]),
        };
        let header = Header { sequence: 1, acknowledgement: 2, flags: Flags(0x12), window: 0xabcd, options };
        let mut segment = [0xa5; 60];
        header.emit(&mut segment, ends[0], ends[1]);
        assert_eq!(segment[..14], [0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0xa0, 0x12]);
        // Kinds and lengths: RFC 9293 §3.2, RFC 2018 §2, RFC 7323 §3.2 and §2.2.
        let written = [1, 2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 7];
        assert_eq!((segment[20..40].to_vec(), segment[40]), (written.to_vec(), 0xa5));
        assert_eq!(transport(ends[0].addr, ends[1].addr, 6, &segment[..40]), 0);
        assert_eq!(Options::of(&segment[..40]), options);
        assert_eq!(timestamps(&segment[..40]), Some([29, 33]));
    }

    proptest::proptest! {
        #[test]
        fn any_options_are_read_back_and_arbitrary_bytes_cause_no_panic(
            mss: Option<u16>, window_scale in proptest::option::of(0..=14_u8), sack: bool,
            timestamps: Option<[u32; 2]>, bytes in proptest::collection::vec(proptest::num::u8::ANY, 20..80),
        ) {
            let options = Options { mss, window_scale, sack, timestamps };
            let header = Header { options, ..Header::default() };
            let mut segment = [0xa5; 40];
            let end = Endpoint::new([192, 0, 2, 1], 1);
            header.emit(&mut segment, end, end);
            proptest::prop_assert_eq!(Options::of(&segment[..header.length()]), options);
            Options::of(&bytes);
        }
    }
}
