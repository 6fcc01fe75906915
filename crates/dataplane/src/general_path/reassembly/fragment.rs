//! A fragment that waits for the others of its datagram.

use std::net::IpAddr;

use xvs_proto::flow::HashSecret;
use xvs_proto::{Endpoint, Family, FlowKey, Packet, Protocol, ipv4, ipv6};
use xvs_xdp::Frame;

use crate::clock::Millis;
use crate::port::Received;
use crate::verdict::DropReason;

/// A waiting fragment.
pub(super) struct Held {
    pub(super) received: Received,
    pub(super) key: Key,
    pub(super) tag: u64,
    pub(super) part: Part,
    pub(super) until: Millis,
}

/// The fields that all fragments of a datagram share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) source: IpAddr,
    pub(super) dest: IpAddr,
    /// 0 in IPv6, in which only the first fragment contains it (RFC 8200 §4.5).
    pub(super) protocol: Protocol,
    pub(super) id: u32,
}

/// The bytes of its datagram that a fragment contains.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Offset of the bytes in the datagram.
    pub(super) offset: usize,
    /// Number of bytes.
    pub(super) len: usize,
    pub(super) more: bool,
    /// Position of the bytes in the frame.
    pub(super) at: usize,
    pub(super) network: usize,
    pub(super) dont_fragment: bool,
    pub(super) tos: u8,
}

/// The largest datagram with its header, in bytes, by family: in IPv6 the header is not counted (RFC 8200 §3).
pub(super) const LARGEST: [usize; 2] = [u16::MAX as usize, u16::MAX as usize + ipv6::HEADER_LEN];

impl Held {
    /// Copies the bytes of the datagram that the fragment contains.
    pub(super) fn read(&self, to: &mut [u8]) {
        self.received.frame.read(self.part.at, to);
    }

    /// The length of the fragment's packet, in bytes.
    pub(super) fn length(&self) -> usize {
        self.part.at - self.part.network + self.part.len
    }
}

impl Key {
    pub(super) fn tag(&self, secret: &HashSecret) -> u64 {
        let source = Endpoint::new(self.source, self.id as u16);
        let dest = Endpoint::new(self.dest, (self.id >> 16) as u16);
        FlowKey { protocol: self.protocol, source, dest }.hash(secret)
    }
}

impl Part {
    pub(super) fn end(&self) -> usize {
        self.offset + self.len
    }

    /// The checks that need no other fragment. Source: RFC 791 §3.2, RFC 8200 §4.5.
    pub(super) fn check(&self, family: Family) -> Result<(), DropReason> {
        let odd = self.len == 0 || self.more && !self.len.is_multiple_of(UNIT);
        let (is_v6, fragment_header) = match family {
            Family::V4 => (false, 0),
            Family::V6 => (true, ipv6::FRAGMENT_HEADER_LEN),
        };
        let headers = self.at - self.network - fragment_header;
        let too_large = headers + self.end() > LARGEST[usize::from(is_v6)];
        if odd || too_large { Err(DropReason::FragmentLength) } else { Ok(()) }
    }

    /// The number of bytes of the datagram that both fragments contain.
    pub(super) fn shared_with(&self, other: &Self) -> usize {
        self.end().min(other.end()).saturating_sub(self.offset.max(other.offset))
    }
}

/// The unit of fragment offsets, in bytes.
const UNIT: usize = 8;

/// Reads the fields of a fragment.
pub(super) fn read(frame: &Frame, packet: &Packet) -> (Key, Part) {
    let (id, protocol, offset, more, at) = match packet.fragment_header {
        None => {
            let flags = word(frame, packet.network + ipv4::field::FLAGS_OFFSET.start);
            let id = u32::from(word(frame, packet.network + ipv4::field::ID.start));
            let offset = usize::from(flags & ipv4::OFFSET_MASK) * UNIT;
            (id, packet.flow.protocol, offset, flags & ipv4::MORE_FRAGMENTS != 0, packet.transport)
        }
        Some(header) => {
            let flags = word(frame, header + 2);
            let id = u32::from(word(frame, header + 4)) << 16 | u32::from(word(frame, header + 6));
            let offset = usize::from(flags & ipv6::OFFSET_MASK);
            let at = header + ipv6::FRAGMENT_HEADER_LEN;
            (id, Protocol(0), offset, flags & ipv6::MORE_FRAGMENTS != 0, at)
        }
    };
    let key = Key { source: packet.flow.source.addr, dest: packet.flow.dest.addr, protocol, id };
    let Packet { network, end, dont_fragment, tos, .. } = *packet;
    (key, Part { offset, len: end - at, more, at, network, dont_fragment, tos })
}

fn word(frame: &Frame, at: usize) -> u16 {
    let mut word = [0; 2];
    frame.read(at, &mut word);
    u16::from_be_bytes(word)
}
