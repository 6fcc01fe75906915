//! GRE headers (RFC 2784) without key and sequence number. The director writes them, and reads them in ICMP errors that
//! quote them.

use crate::checksum::{Coverage, Sum};

/// Positions in the header.
pub mod field {
    use std::ops::Range;
    /// Flags and version; the flags indicate which optional fields follow.
    pub const FLAGS: Range<usize> = 0..2;
    /// The EtherType of the inner packet.
    pub const PROTOCOL: Range<usize> = 2..4;
    /// Checksum over header and packet, if its flag is set.
    pub const CHECKSUM: Range<usize> = 4..6;
}

/// Flag that indicates a checksum.
const CHECKSUM_PRESENT: u16 = 0x8000;

/// Length of a header, in bytes.
pub const fn header_len(coverage: Coverage) -> usize {
    match coverage {
        Coverage::None => field::PROTOCOL.end,
        // Two reserved bytes follow the checksum.
        Coverage::Whole => field::CHECKSUM.end + 2,
    }
}

/// Writes the header to the front of `bytes`. The rest of `bytes` is the inner packet, which has this EtherType.
///
/// # Panics
///
/// If `bytes` is shorter than the header.
pub fn emit(bytes: &mut [u8], ethertype: u16, coverage: Coverage) {
    bytes[..header_len(coverage)].fill(0);
    bytes[field::PROTOCOL].copy_from_slice(&ethertype.to_be_bytes());
    if coverage == Coverage::Whole {
        bytes[field::FLAGS].copy_from_slice(&CHECKSUM_PRESENT.to_be_bytes());
        let checksum = Sum::default().bytes(bytes).checksum();
        bytes[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The EtherType and the offset of the inner packet after the header at the front of `bytes`. `None` if the director
/// does not write such headers.
pub fn read(bytes: &[u8]) -> Option<(u16, usize)> {
    let &[flags, version, high, low] = bytes.first_chunk()?;
    let len = match u16::from_be_bytes([flags, version]) {
        0 => header_len(Coverage::None),
        CHECKSUM_PRESENT => header_len(Coverage::Whole),
        _ => return None,
    };
    (len <= bytes.len()).then_some((u16::from_be_bytes([high, low]), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2784 §2.1: four bytes, or eight with a checksum that makes the sum of all words ffff. By hand: 8000 + 0800 +
    /// 4500 + 0203 + 0100 (padded) = d003, complement 2ffc.
    #[test]
    fn a_header_has_four_bytes_or_eight_with_a_checksum_over_all_that_follows() {
        let mut plain = [0xa5; 9];
        emit(&mut plain, 0x86dd, Coverage::None);
        assert_eq!(plain, [0, 0, 0x86, 0xdd, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5]);
        let mut summed = [0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0x45, 0, 2, 3, 1];
        emit(&mut summed, 0x0800, Coverage::Whole);
        assert_eq!(summed, [0x80, 0, 8, 0, 0x2f, 0xfc, 0, 0, 0x45, 0, 2, 3, 1]);
    }

    #[test]
    fn only_whole_headers_of_the_two_kinds_that_are_written_are_read() {
        assert_eq!(read(&[0, 0, 0x86, 0xdd]), Some((0x86dd, 4)));
        assert_eq!(read(&[0x80, 0, 8, 0, 0x2f, 0xfc, 0, 0]), Some((0x0800, 8)));
        // Truncated; with a key (RFC 2890); version 1 (RFC 2637).
        for other in [&[0, 0, 8][..], &[0x80, 0, 8, 0, 0, 0, 0], &[0x20, 0, 8, 0, 0, 0, 0, 1], &[0, 1, 8, 0]]
        {
            assert_eq!(read(other), None, "{other:x?}");
        }
    }
}
