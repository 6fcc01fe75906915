//! UDP headers (RFC 768).

use std::net::IpAddr;

use crate::addr::Protocol;
use crate::bytes::word;
use crate::checksum::{Delta, transport};

/// Positions in the header.
pub mod field {
    use std::ops::Range;
    /// Port of the sender.
    pub const SOURCE: Range<usize> = 0..2;
    /// Port of the receiver.
    pub const DEST: Range<usize> = 2..4;
    /// Bytes of the datagram, header included.
    pub const LENGTH: Range<usize> = 4..6;
    /// Checksum over pseudo-header, header and data; 0 means that there is no checksum.
    pub const CHECKSUM: Range<usize> = 6..8;
}

/// Length of a header, in bytes.
pub const HEADER_LEN: usize = 8;

/// Updates the checksum of a datagram after a rewrite of its pseudo-header and ports.
///
/// A datagram without a checksum gets one, as in IPVS: it is computed in full for `source` and `dest`, the addresses
/// after the rewrite. A sum of 0 is sent as 0xffff (RFC 768).
pub fn update_checksum(datagram: &mut [u8], delta: Delta, source: IpAddr, dest: IpAddr) {
    let new = match word(datagram, field::CHECKSUM.start) {
        0 => transport(source, dest, Protocol::UDP.0, datagram),
        sum => delta.applied(sum),
    };
    let sent = if new == 0 { 0xffff } else { new };
    datagram[field::CHECKSUM].copy_from_slice(&sent.to_be_bytes());
}

/// Writes the header of a datagram that the director originates, without a checksum, to the front of `datagram`. The
/// rest of `datagram` is the data.
///
/// # Panics
///
/// If `datagram` is shorter than a header.
pub fn emit(datagram: &mut [u8], source: u16, dest: u16) {
    let length = datagram.len() as u16;
    datagram[field::SOURCE].copy_from_slice(&source.to_be_bytes());
    datagram[field::DEST].copy_from_slice(&dest.to_be_bytes());
    datagram[field::LENGTH].copy_from_slice(&length.to_be_bytes());
    datagram[field::CHECKSUM].fill(0);
}
