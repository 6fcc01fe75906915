//! GUE headers (draft-ietf-intarea-gue, section 3) of version 0, for data, without optional fields. They follow a UDP
//! header. The director writes them, and reads them in ICMP errors that quote them.

use crate::addr::Protocol;

/// Length of a header without optional fields, in bytes.
pub const HEADER_LEN: usize = 4;

/// Writes the header to the front of `bytes`; a packet with this protocol number follows it.
///
/// # Panics
///
/// If `bytes` is shorter than the header.
pub fn emit(bytes: &mut [u8], inner: Protocol) {
    bytes[..HEADER_LEN].copy_from_slice(&[0, inner.0, 0, 0]);
}

/// The protocol of the packet after the header at the front of `bytes`. `None` if the director does not write such
/// headers.
pub fn read(bytes: &[u8]) -> Option<Protocol> {
    match *bytes.first_chunk()? {
        [0, inner, 0, 0] => Some(Protocol(inner)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_headers_of_version_0_without_options_are_read() {
        assert_eq!(read(&[0, 4, 0, 0]), Some(Protocol::IPIP));
        assert_eq!(read(&[0, 41, 0, 0, 0x60]), Some(Protocol::IPV6));
        // Truncated, version 1, a control message, with an option, with a flag.
        for other in [&[0, 4, 0][..], &[0x40, 4, 0, 0], &[0x20, 4, 0, 0], &[1, 4, 0, 0], &[0, 4, 0, 1]] {
            assert_eq!(read(other), None, "{other:x?}");
        }
    }
}
