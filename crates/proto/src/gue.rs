//! GUE headers that the director writes (draft-ietf-intarea-gue, section 3): version 0, data, no optional field. They
//! follow a UDP header.

use crate::addr::Protocol;

/// Length of a header without optional fields, in bytes.
pub const HEADER_LEN: usize = 4;

/// Writes the header to the front of `bytes`; a packet of this protocol follows it.
///
/// # Panics
/// If `bytes` is shorter than the header.
pub fn emit(bytes: &mut [u8], inner: Protocol) {
    bytes[..HEADER_LEN].copy_from_slice(&[0, inner.0, 0, 0]);
}
