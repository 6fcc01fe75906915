//! Partial checksums: checksums that a sender left to its network device and that the device did not compute.
//!
//! The kernel leaves the checksum of a packet to a device that can compute it (`CHECKSUM_PARTIAL`): the field then
//! contains the sum of the pseudo-header (TCP, UDP) or 0 (SCTP). A virtual device passes the packet on unchanged. Runs
//! once for each whole packet from such a device. Any other incorrect checksum stays incorrect. Cost: the sum of the
//! pseudo-header, and one pass over a packet whose checksum is partial.
//!
//! Source: kernel `Documentation/networking/checksum-offloads.rst`; `net/sctp/output.c`, `sctp_packet_pack`.

use crate::addr::Protocol;
use crate::checksum::{Sum, pseudo_header};
use crate::flow::FlowKey;
use crate::packet::Packet;
use crate::{sctp, tcp, udp};

/// Computes the checksum of the whole packet in `frame` if the checksum is partial. Returns whether it was.
///
/// # Panics
///
/// If `packet` was not parsed from this frame.
pub fn complete(frame: &mut [u8], packet: &Packet) -> bool {
    let FlowKey { protocol, source, dest } = packet.flow;
    let segment = &mut frame[packet.transport..packet.end];
    let field = match protocol {
        Protocol::TCP => tcp::field::CHECKSUM,
        Protocol::UDP => udp::field::CHECKSUM,
        Protocol::SCTP => {
            let absent = segment[sctp::field::CHECKSUM] == [0; 4];
            if absent {
                sctp::write_checksum(segment);
            }
            return absent;
        }
        _ => return false,
    };
    let pseudo_header = pseudo_header(source.addr, dest.addr, protocol.0, segment.len());
    let is_partial = segment[field.clone()] == pseudo_header.folded().to_be_bytes();
    if !is_partial || pseudo_header.bytes(segment).checksum() == 0 {
        return false;
    }
    // The field contains the sum of the pseudo-header, so the sum of the segment includes it.
    let checksum = match Sum::default().bytes(segment).checksum() {
        0 if protocol == Protocol::UDP => 0xffff,
        checksum => checksum,
    };
    segment[field].copy_from_slice(&checksum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Parsed, parse};
    use etherparse::{PacketBuilder, PacketBuilderStep};
    use std::net::IpAddr;

    const DATA: &[u8] = b"an odd number of bytes!";

    /// TCP and UDP frames over both families, with correct checksums from another implementation.
    fn frames() -> Vec<Vec<u8>> {
        let link = || PacketBuilder::ethernet2([2, 0, 0, 0, 1, 0xfe], [2, 0, 0, 0, 1, 1]);
        let v4 = || link().ipv4([192, 0, 2, 10], [198, 51, 100, 1], 64);
        let v6 = || link().ipv6([0x20; 16], [0xfd; 16], 64);
        let tcp = |step: PacketBuilderStep<etherparse::IpHeaders>| {
            let mut frame = Vec::new();
            step.tcp(1000, 80, 7, 1024).psh().write(&mut frame, DATA).unwrap();
            frame
        };
        let udp = |step: PacketBuilderStep<etherparse::IpHeaders>| {
            let mut frame = Vec::new();
            step.udp(1000, 53).write(&mut frame, DATA).unwrap();
            frame
        };
        vec![tcp(v4()), tcp(v6()), udp(v4()), udp(v6())]
    }

    fn packet(frame: &[u8]) -> Packet {
        match parse(frame) {
            Ok(Parsed::Ip(packet)) => packet,
            other => panic!("not a packet: {other:?}"),
        }
    }

    /// The position of the checksum and the sum of the pseudo-header, word by word as in RFC 9293 §3.1 and RFC 8200
    /// §8.1.
    fn partial(frame: &[u8]) -> (usize, u16) {
        let packet = packet(frame);
        let bytes = |addr: IpAddr| match addr {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let length = (packet.end - packet.transport) as u16;
        let summed = [
            bytes(packet.flow.source.addr),
            bytes(packet.flow.dest.addr),
            vec![0, packet.flow.protocol.0],
            length.to_be_bytes().to_vec(),
        ];
        let mut sum = 0_u32;
        for word in summed.concat().chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let field = if packet.flow.protocol == Protocol::TCP { 16 } else { 6 };
        (packet.transport + field, sum as u16)
    }

    #[test]
    fn a_partial_checksum_becomes_the_one_that_another_implementation_computes() {
        for right in frames() {
            let mut frame = right.clone();
            let (at, sum) = partial(&right);
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            let packet = packet(&frame);
            assert!(complete(&mut frame, &packet));
            assert_eq!(frame, right);
            assert!(!complete(&mut frame, &packet), "it is complete now");
        }
    }

    #[test]
    fn a_right_checksum_and_one_that_is_wrong_in_another_way_stay() {
        for right in frames() {
            let (at, sum) = partial(&right);
            for field in [None, Some(sum ^ 1), Some(!sum), Some(0)] {
                let mut frame = right.clone();
                if let Some(field) = field {
                    frame[at..at + 2].copy_from_slice(&field.to_be_bytes());
                }
                let before = frame.clone();
                let packet = packet(&frame);
                assert!(!complete(&mut frame, &packet), "{field:?}");
                assert_eq!(frame, before, "{field:?}");
            }
        }
    }

    #[test]
    fn a_checksum_that_equals_the_sum_of_the_pseudo_header_by_chance_stays() {
        for mut frame in frames() {
            // The last two whole words of the data give the sum its required value.
            let (at, sum) = partial(&frame);
            let spare = frame.len() - 3;
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            frame[spare..spare + 2].fill(0);
            let packet = packet(&frame);
            let rest = Sum::default().bytes(&frame[packet.transport..packet.end]).word(sum).checksum();
            frame[spare..spare + 2].copy_from_slice(&rest.to_be_bytes());
            let before = frame.clone();
            assert!(!complete(&mut frame, &packet));
            assert_eq!(frame, before);
        }
    }

    /// An INIT from another implementation (tests/conformance/sctp-nat.json).
    #[test]
    fn an_sctp_packet_with_the_checksum_0_gets_its_own() {
        let right = b"\x03\xe8\x0f\x1c\0\0\0\x07\x49\x88\x5d\x65\x01\0\0\x14\0\0\0\x01\0\0\x10\0\0\x01\0\x01\0\0\0\x01";
        let mut frame = frames().swap_remove(2);
        frame.truncate(34);
        frame[23] = 132;
        frame[16..18].copy_from_slice(&(20 + right.len() as u16).to_be_bytes());
        frame[24..26].fill(0);
        let sum = Sum::default().bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(right);
        let packet = packet(&frame);
        assert!(!complete(&mut frame, &packet), "its checksum is right");
        frame[34 + 8..34 + 12].fill(0);
        assert!(complete(&mut frame, &packet));
        assert_eq!(frame[34..], right[..]);
        frame[34 + 8] ^= 1;
        let wrong = frame.clone();
        assert!(!complete(&mut frame, &packet), "it is wrong in another way");
        assert_eq!(frame, wrong);
    }
}
