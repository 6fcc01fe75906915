//! The header of the PROXY protocol, version 2: the first bytes of a TCP connection or datagram, which contain the
//! client's address.
//!
//! Source: "The PROXY protocol, versions 1 & 2", HAProxy, section 2.2.

use std::net::IpAddr;

use crate::addr::{Endpoint, Family, Protocol};

/// Twelve bytes with which no other protocol begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXIED: u8 = 0x21;
/// Transport, beside the family: a stream.
const STREAM: u8 = 1;
const DATAGRAM: u8 = 2;
/// Length of the fixed fields before the addresses, in bytes.
const FIXED_LEN: usize = 16;

/// The longest header, in bytes.
pub const MAX_LEN: usize = header_len(Family::V6);

/// Length of the header for a connection of this family, in bytes.
pub const fn header_len(family: Family) -> usize {
    match family {
        Family::V4 => FIXED_LEN + 2 * (4 + 2),
        Family::V6 => FIXED_LEN + 2 * (16 + 2),
    }
}

/// Writes the header for a TCP or UDP connection between two endpoints of one family to the front of `bytes`. Returns
/// its length.
///
/// # Panics
///
/// If `bytes` is shorter than the header.
///
/// ```
/// use xvs_proto::{Endpoint, Protocol, proxy};
///
/// let mut bytes = [0; proxy::MAX_LEN];
/// let client = Endpoint::new([192, 0, 2, 1], 40000);
/// let len = proxy::emit(&mut bytes, Protocol::TCP, client, Endpoint::new([198, 51, 100, 2], 443));
/// assert_eq!(len, 28);
/// assert!(bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11"), "version 2, PROXY, TCP over IPv4");
/// assert_eq!(bytes[16..20], [192, 0, 2, 1]);
/// ```
pub fn emit(bytes: &mut [u8], protocol: Protocol, client: Endpoint, virtual_endpoint: Endpoint) -> usize {
    let len = header_len(client.family());
    let family = match client.family() {
        Family::V4 => 0x10,
        Family::V6 => 0x20,
    };
    let transport = if protocol == Protocol::UDP { DATAGRAM } else { STREAM };
    bytes[..12].copy_from_slice(&SIGNATURE);
    bytes[12..14].copy_from_slice(&[PROXIED, family | transport]);
    bytes[14..16].copy_from_slice(&((len - FIXED_LEN) as u16).to_be_bytes());
    let mut at = FIXED_LEN;
    for addr in [client.addr, virtual_endpoint.addr] {
        at = match addr {
            IpAddr::V4(addr) => put(bytes, at, &addr.octets()),
            IpAddr::V6(addr) => put(bytes, at, &addr.octets()),
        };
    }
    at = put(bytes, at, &client.port.to_be_bytes());
    put(bytes, at, &virtual_endpoint.port.to_be_bytes())
}

/// Writes a field at an offset. Returns the offset after it.
fn put(bytes: &mut [u8], at: usize, part: &[u8]) -> usize {
    bytes[at..at + part.len()].copy_from_slice(part);
    at + part.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_written_byte_for_byte_as_the_specification_lays_it_out() {
        let mut bytes = [0xa5; MAX_LEN];
        let client = Endpoint::new([192, 0, 2, 200], 40000);
        let length = emit(&mut bytes, Protocol::TCP, client, Endpoint::new([198, 51, 100, 1], 443));
        let want = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 12, 192,
            0, 2, 200, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb,
        ];
        assert_eq!(bytes[..length], want);
        let v6 = |last| Endpoint::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 80);
        for (protocol, transport) in [(Protocol::TCP, 0x21), (Protocol::UDP, 0x22)] {
            let length = emit(&mut bytes, protocol, v6(1), v6(2));
            let beginning = [0x21, transport, 0, 36];
            assert_eq!((length, &bytes[12..16], bytes[31], bytes[47]), (52, &beginning[..], 1, 2));
        }
    }
}
