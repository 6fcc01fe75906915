//! The shortest frames of each protocol.

use std::net::Ipv4Addr;

use xvs_proto::Protocol;

use super::VIP6;

/// An Ethernet frame with the shortest packet of its protocol.
pub(crate) fn frame(
    protocol: Protocol,
    source: (Ipv4Addr, u16),
    dest: (Ipv4Addr, u16),
    flags: u8,
) -> Vec<u8> {
    let transport = if protocol == Protocol::TCP { 20 } else { 8 };
    let mut frame = vec![0; 34 + transport];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 0x08, 0x00]);
    frame[14] = 0x45;
    frame[17] = 20 + transport as u8;
    frame[22] = 64;
    frame[23] = protocol.0;
    frame[26..30].copy_from_slice(&source.0.octets());
    frame[30..34].copy_from_slice(&dest.0.octets());
    let checksum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..36].copy_from_slice(&source.1.to_be_bytes());
    frame[36..38].copy_from_slice(&dest.1.to_be_bytes());
    match protocol {
        Protocol::TCP => frame[46..48].copy_from_slice(&[0x50, flags]),
        _ => frame[38..40].copy_from_slice(&8_u16.to_be_bytes()),
    }
    frame
}

/// A TCP frame over IPv6 from the client with this number, to the service with direct routing.
pub(crate) fn frame6(client: u128, flags: u8) -> Vec<u8> {
    let mut frame = vec![0; 54 + 20];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 0x86, 0xdd]);
    frame[14] = 0x60;
    frame[19] = 20;
    frame[20] = Protocol::TCP.0;
    frame[21] = 64;
    frame[22..38].copy_from_slice(&((0x2001 << 112) + client).to_be_bytes());
    frame[38..54].copy_from_slice(&VIP6.octets());
    frame[54..56].copy_from_slice(&5000_u16.to_be_bytes());
    frame[56..58].copy_from_slice(&80_u16.to_be_bytes());
    frame[66..68].copy_from_slice(&[0x50, flags]);
    frame
}

/// The checksum of an IPv4 header whose own is 0.
pub(crate) fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
