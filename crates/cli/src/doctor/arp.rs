//! ARP probes (RFC 5227 §2.1.1): which machines on a link answer for an IPv4 address.
//!
//! A probe has no sender address, so it changes no ARP table. The machine with the address answers,
//! and so does a real server that has the address on another interface, unless it is configured not to. Blocks for the
//! given time.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use xvs_proto::MacAddr;
use xvs_xdp::packet_socket::PacketSocket;

/// Probes each of these addresses on a link three times within `timeout`. Returns each address with the machines that
/// answered, without duplicates and without this machine. Needs CAP_NET_RAW.
///
/// # Errors
/// The kernel's error; ENETDOWN if the link is down.
pub(super) fn who_has(
    ifindex: u32,
    mac: MacAddr,
    addresses: &[Ipv4Addr],
    timeout: Duration,
) -> io::Result<Vec<(Ipv4Addr, MacAddr)>> {
    let socket = PacketSocket::open(ifindex, ETHERTYPE)?;
    let mut answers = Vec::new();
    for _ in 0..PROBES {
        addresses.iter().try_for_each(|addr| socket.broadcast(&probe(mac, *addr)))?;
        let end = Instant::now() + timeout / PROBES;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let mut received = [0; PACKET_LEN];
            let Some(len) = socket.receive(&mut received, left)? else { break };
            let answer = sender(&received[..len]);
            answers.extend(answer.filter(|(addr, by)| addresses.contains(addr) && *by != mac));
        }
    }
    answers.sort_unstable();
    answers.dedup();
    Ok(answers)
}

/// An ARP probe for an address (RFC 826, RFC 5227).
fn probe(mac: MacAddr, addr: Ipv4Addr) -> [u8; PACKET_LEN] {
    let mut packet = [0; PACKET_LEN];
    packet[..REQUEST.len()].copy_from_slice(&REQUEST);
    packet[8..14].copy_from_slice(&mac.0);
    packet[24..].copy_from_slice(&addr.octets());
    packet
}

/// The sender of an ARP request or reply. `None` if the packet is not ARP for Ethernet and IPv4.
fn sender(packet: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let whole = packet.len() == PACKET_LEN && packet[..7] == REQUEST[..7] && matches!(packet[7], 1 | 2);
    let mac = packet.get(8..14)?.try_into().ok()?;
    let addr: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    whole.then(|| (addr.into(), MacAddr(mac)))
}

/// `ETH_P_ARP`.
const ETHERTYPE: u16 = 0x0806;
/// Ethernet, IPv4, the lengths of their addresses, and the request operation.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const PACKET_LEN: usize = 28;
/// `PROBE_NUM` of RFC 5227.
const PROBES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_probe_has_no_sender_address_and_a_reply_has_one() {
        let addr = Ipv4Addr::new(198, 51, 100, 100);
        let probe = probe(MAC, addr);
        // RFC 826, field by field; RFC 5227 §2.1.1: the sender's address is zero.
        let expected =
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 198, 51, 100, 100];
        assert_eq!(probe, expected);
        let mut answer = expected;
        answer[7] = 2;
        answer[8..18].copy_from_slice(&[2, 0, 0, 0, 0, 0x11, 198, 51, 100, 100]);
        assert_eq!(sender(&answer), Some((addr, MacAddr([2, 0, 0, 0, 0, 0x11]))));
        for broken in [&answer[..27], &[0; 28], &[]] {
            assert_eq!(sender(broken), None);
        }
    }
}
