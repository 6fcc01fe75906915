//! ICMPv6 errors that the director originates (RFC 4443).

use std::net::Ipv6Addr;

use crate::addr::Protocol;
use crate::checksum::transport;
use crate::icmp::{CHECKSUM, Error, HEADER_LEN};
use crate::ipv6;

/// Length of the longest error that is sent, IPv6 header included, in bytes: the minimum MTU of any link (RFC 4443
/// §2.4).
pub const MAX_LEN: usize = 1280;

/// The type and code, and the rest of the header.
fn words(error: Error) -> ([u8; 2], u32) {
    match error {
        Error::PortUnreachable => ([1, 4], 0),
        Error::HostUnreachable => ([1, 3], 0),
        Error::FragmentationNeeded { mtu } => ([2, 0], u32::from(mtu)),
        Error::TimeExceeded => ([3, 0], 0),
        Error::ReassemblyTimeExceeded => ([3, 1], 0),
        Error::Reported { type_and_code, rest } => (type_and_code, u32::from_be_bytes(rest)),
    }
}

/// The number of bytes that [`emit`] writes for an offending packet of this length.
pub fn length(offending_len: usize) -> usize {
    (ipv6::HEADER_LEN + HEADER_LEN + offending_len).min(MAX_LEN)
}

/// Writes the error about `offending`, an IPv6 packet, from `source` to that packet's source: the complete IPv6 packet,
/// [`length`] bytes. Hop limit 64, traffic class and flow label 0, as in Linux.
///
/// # Panics
///
/// If `bytes` is shorter than [`length`], or `offending` is shorter than an IPv6 header.
pub fn emit(error: Error, bytes: &mut [u8], source: Ipv6Addr, offending: &[u8]) {
    let len = length(offending.len());
    let sender: [u8; 16] = offending[ipv6::field::SOURCE].try_into().expect("sixteen bytes");
    ipv6::Header {
        traffic_class: 0,
        payload_len: (len - ipv6::HEADER_LEN) as u16,
        next_header: Protocol::ICMPV6,
        hop_limit: 64,
        source,
        dest: sender.into(),
    }
    .emit(bytes);
    let message = &mut bytes[ipv6::HEADER_LEN..len];
    let (type_and_code, rest) = words(error);
    message[..2].copy_from_slice(&type_and_code);
    message[4..HEADER_LEN].copy_from_slice(&rest.to_be_bytes());
    let quoted = message.len() - HEADER_LEN;
    message[HEADER_LEN..].copy_from_slice(&offending[..quoted]);
    write_checksum(message, source, sender.into());
}

/// Whether the checksum of a message between these addresses is correct.
pub fn is_summed(message: &[u8], source: Ipv6Addr, dest: Ipv6Addr) -> bool {
    transport(source.into(), dest.into(), Protocol::ICMPV6.0, message) == 0
}

/// Recomputes the checksum of a message.
///
/// # Panics
///
/// If `message` is shorter than a header.
pub fn write_checksum(message: &mut [u8], source: Ipv6Addr, dest: Ipv6Addr) {
    message[CHECKSUM].fill(0);
    let checksum = transport(source.into(), dest.into(), Protocol::ICMPV6.0, message);
    message[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether an ICMPv6 type reports an error about another packet (RFC 4443 §2.1). The director never sends an error in
/// reply to such a message (§2.4 e).
pub fn is_error(icmp_type: u8) -> bool {
    icmp_type < 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Slice, Icmpv6Type, Ipv6HeaderSlice, icmpv6};

    const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

    fn offending(len: usize) -> Vec<u8> {
        let header = ipv6::Header {
            traffic_class: 0xb8,
            payload_len: (len - ipv6::HEADER_LEN) as u16,
            next_header: Protocol::UDP,
            hop_limit: 7,
            source: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10),
            dest: ROUTER,
        };
        let mut bytes = vec![0xa5; len];
        header.emit(&mut bytes);
        bytes
    }

    fn emitted(error: Error, offending: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xa5; length(offending.len())];
        emit(error, &mut bytes, ROUTER, offending);
        bytes
    }

    #[test]
    fn each_error_is_parsed_by_another_implementation_as_the_same_error() {
        use icmpv6::{DestUnreachableCode, TimeExceededCode};
        for (error, want) in [
            (Error::PortUnreachable, Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port)),
            (Error::HostUnreachable, Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address)),
            (Error::FragmentationNeeded { mtu: 1400 }, Icmpv6Type::PacketTooBig { mtu: 1400 }),
            (Error::TimeExceeded, Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded)),
        ] {
            let offending = offending(100);
            let bytes = emitted(error, &offending);
            let header = Ipv6HeaderSlice::from_slice(&bytes).unwrap();
            assert_eq!((header.hop_limit(), header.next_header().0), (64, 58));
            assert_eq!((header.traffic_class(), header.flow_label().value()), (0, 0));
            assert_eq!(usize::from(header.payload_length()), bytes.len() - 40);
            assert_eq!((header.source_addr(), header.destination_addr().segments()[7]), (ROUTER, 0x10));
            let message = Icmpv6Slice::from_slice(&bytes[40..]).unwrap();
            assert_eq!(message.icmp_type(), want);
            assert!(message.is_checksum_valid(header.source(), header.destination()));
            assert_eq!(message.payload(), offending);
        }
    }

    #[test]
    fn a_long_packet_is_quoted_as_far_as_1280_bytes_allow() {
        let offending = offending(1500);
        let bytes = emitted(Error::PortUnreachable, &offending);
        assert_eq!(bytes.len(), 1280);
        assert_eq!(bytes[48..], offending[..1232]);
    }

    #[test]
    fn types_below_128_are_errors_and_a_ping_is_none() {
        assert!((0..128).all(is_error));
        assert!((128..=255).all(|kind| !is_error(kind)));
    }
}
