//! ICMP errors that the director originates (RFC 792, RFC 1191), and the types of ICMP messages. [`crate::icmpv6`] is
//! the IPv6 counterpart.

use std::net::Ipv4Addr;
use std::ops::Range;

use crate::addr::Protocol;
use crate::checksum::Sum;
use crate::ipv4;

/// Length of the ICMP header of an error, in bytes.
pub const HEADER_LEN: usize = 8;
/// Position of the checksum in ICMP and ICMPv6 messages.
pub(crate) const CHECKSUM: Range<usize> = 2..4;
/// Length of the longest error that is sent, IPv4 header included, in bytes (RFC 1812 §4.3.2.3).
pub const MAX_LEN: usize = 576;

/// An error about a packet of either family. The types and codes given here are for IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// No service uses the port (type 3, code 3).
    PortUnreachable,
    /// The host cannot be reached (type 3, code 1).
    HostUnreachable,
    /// The packet is larger than this many bytes and may not be fragmented (type 3, code 4).
    FragmentationNeeded {
        /// Length of the largest packet that can pass, in bytes.
        mtu: u16,
    },
    /// The time to live expired (type 11, code 0).
    TimeExceeded,
    /// Not all fragments of the datagram arrived in time (type 11, code 1).
    ReassemblyTimeExceeded,
    /// An error that another host reported, with the type and code for the packet's family.
    Reported {
        /// Type and code.
        type_and_code: [u8; 2],
        /// The rest of the header, after the checksum.
        rest: [u8; 4],
    },
}

impl Error {
    /// The type and code, and the rest of the header, after the checksum.
    fn words(self) -> ([u8; 2], [u8; 4]) {
        match self {
            Self::PortUnreachable => ([3, 3], [0; 4]),
            Self::HostUnreachable => ([3, 1], [0; 4]),
            Self::FragmentationNeeded { mtu } => ([3, 4], u32::from(mtu).to_be_bytes()),
            Self::TimeExceeded => ([11, 0], [0; 4]),
            Self::ReassemblyTimeExceeded => ([11, 1], [0; 4]),
            Self::Reported { type_and_code, rest } => (type_and_code, rest),
        }
    }

    /// The number of bytes that [`Self::emit`] writes for an offending packet of this length.
    pub fn length(self, offending_len: usize) -> usize {
        (ipv4::HEADER_LEN + HEADER_LEN + offending_len).min(MAX_LEN)
    }

    /// Writes the error about `offending`, an IPv4 packet, from `source` to that packet's source: the complete IPv4
    /// packet, [`Self::length`] bytes. As in Linux, the type of service is the offending packet's with precedence 6
    /// (internetwork control).
    ///
    /// # Panics
    ///
    /// If `bytes` is shorter than [`Self::length`], or `offending` is shorter than an IPv4 header.
    pub fn emit(self, bytes: &mut [u8], source: Ipv4Addr, offending: &[u8], id: u16) {
        let len = self.length(offending.len());
        let quoted = len - ipv4::HEADER_LEN - HEADER_LEN;
        let sender: [u8; 4] = offending[ipv4::field::SOURCE].try_into().expect("four bytes");
        ipv4::Header {
            tos: (offending[ipv4::field::TOS] & 0x1e) | 0xc0,
            payload_len: (len - ipv4::HEADER_LEN) as u16,
            id,
            dont_fragment: false,
            ttl: 64,
            protocol: Protocol::ICMP,
            source,
            dest: sender.into(),
        }
        .emit(bytes);
        let message = &mut bytes[ipv4::HEADER_LEN..len];
        let (type_and_code, rest) = self.words();
        message[..2].copy_from_slice(&type_and_code);
        message[4..HEADER_LEN].copy_from_slice(&rest);
        message[HEADER_LEN..].copy_from_slice(&offending[..quoted]);
        write_checksum(message);
    }
}

/// Whether the checksum of a message is correct.
pub fn is_summed(message: &[u8]) -> bool {
    Sum::default().bytes(message).checksum() == 0
}

/// Recomputes the checksum of a message.
///
/// # Panics
///
/// If `message` is shorter than a header.
pub fn write_checksum(message: &mut [u8]) {
    message[CHECKSUM].fill(0);
    let checksum = Sum::default().bytes(message).checksum();
    message[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether the director looks up the connection of the packet that an error of this ICMP type quotes: destination
/// unreachable, source quench, time exceeded.
pub fn is_followed(icmp_type: u8) -> bool {
    matches!(icmp_type, 3 | 4 | 11)
}

/// Whether an ICMP type reports an error about another packet. The director never sends an error in reply to such a
/// message (RFC 1122 §3.2.2).
pub fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The message that the kernel's IPVS sent for this SYN: recording fwd-no-server, first frame.
    #[test]
    fn port_unreachable_is_the_message_that_the_kernel_sends() {
        let syn = hex("450000281234400040065c2dc000020a0a01006403e80050000003e8000000005002faf0e0620000");
        let want =
            hex("45c00044cd7200004001e0170a010064c000020a0303c98600000000450000281234400040065c2dc000020a0a\
                        01006403e80050000003e8000000005002faf0e0620000");
        let mut ours = vec![0xa5; Error::PortUnreachable.length(syn.len())];
        Error::PortUnreachable.emit(&mut ours, Ipv4Addr::new(10, 1, 0, 100), &syn, 0xcd72);
        assert_eq!(ours, want);
    }

    #[test]
    fn a_long_packet_is_quoted_as_far_as_576_bytes_allow() {
        let mut long = hex("450005dc1234400040065c2dc000020a0a010064");
        long.resize(1500, 0xa5);
        let error = Error::FragmentationNeeded { mtu: 1480 };
        assert_eq!(error.length(long.len()), 576);
        let mut ours = vec![0; 576];
        error.emit(&mut ours, Ipv4Addr::new(10, 1, 0, 100), &long, 0);
        assert_eq!(ours[28..], long[..548]);
        assert_eq!(ours[20..22], [3, 4]);
        assert_eq!(ours[26..28], 1480u16.to_be_bytes());
        assert_eq!(Sum::default().bytes(&ours[20..]).checksum(), 0);
    }
}
