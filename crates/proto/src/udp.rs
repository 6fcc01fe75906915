//! UDP headers (RFC 768).

use std::net::IpAddr;

use crate::addr::Protocol;
use crate::checksum::{Delta, transport};

/// Positions in the header; the ports stand where TCP has them.
pub mod field {
    use std::ops::Range;
    /// Checksum over pseudo-header, header and data; 0 means that there is none.
    pub const CHECKSUM: Range<usize> = 6..8;
}

/// Length of a header, in bytes.
pub const HEADER_LEN: usize = 8;

/// Applies to a datagram's checksum what a rewrite changed in its pseudo-header and ports.
///
/// A datagram without one gets it, computed in full between `source` and `dest` (the addresses after the rewrite),
/// as IPVS does; a sum of 0 is sent as 0xffff (RFC 768).
pub fn update_checksum(datagram: &mut [u8], delta: Delta, source: IpAddr, dest: IpAddr) {
    let old = u16::from_be_bytes([datagram[field::CHECKSUM.start], datagram[field::CHECKSUM.start + 1]]);
    let new = match old {
        0 => transport(source, dest, Protocol::UDP.0, datagram),
        sum => delta.applied(sum),
    };
    let new = if new == 0 { 0xffff } else { new };
    datagram[field::CHECKSUM].copy_from_slice(&new.to_be_bytes());
}
