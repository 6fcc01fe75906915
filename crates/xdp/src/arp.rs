//! ARP probes (RFC 5227 §2.1.1): which machines on a link answer for an IPv4 address.
//!
//! For `xvs doctor`. A probe has no sender address, so it changes no ARP table. The machine with the address answers,
//! and so does a real server that has the address on another interface, unless it is configured not to. Blocks for the
//! given time.

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use xvs_proto::MacAddr;

/// Probes each of these addresses on a link three times within `timeout`. Returns each address with the machines that
/// answered, without duplicates and without this machine. Needs CAP_NET_RAW.
///
/// # Errors
/// The kernel's error; ENETDOWN if the link is down.
pub fn who_has(
    ifindex: u32,
    mac: MacAddr,
    addresses: &[Ipv4Addr],
    timeout: Duration,
) -> io::Result<Vec<(Ipv4Addr, MacAddr)>> {
    let socket = open(ifindex)?;
    let mut answers = Vec::new();
    for _ in 0..PROBES {
        addresses.iter().try_for_each(|addr| broadcast(&socket, ifindex, &probe(mac, *addr)))?;
        let end = Instant::now() + timeout / PROBES;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let mut ready = [PollFd::new(&socket, PollFlags::IN)];
            let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            if poll(&mut ready, Some(&left))? == 0 {
                break;
            }
            let mut received = [0; PACKET_LEN];
            let (_, len) = recv(&socket, &mut received, RecvFlags::empty())?;
            let answer = sender(&received[..len.min(PACKET_LEN)]);
            answers.extend(answer.filter(|(addr, by)| addresses.contains(addr) && *by != mac));
        }
    }
    answers.sort_unstable();
    answers.dedup();
    Ok(answers)
}

/// A socket for the ARP packets of one link.
fn open(ifindex: u32) -> io::Result<OwnedFd> {
    // It has no protocol until it is bound, so that it receives from no other link.
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let addr = link_address(ifindex);
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `addr` is a `sockaddr_ll`, which sockets of this family take, and `len` is its length; the kernel copies
    // it.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), len) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn broadcast(socket: impl AsFd, ifindex: u32, packet: &[u8]) -> io::Result<()> {
    let (socket, to) = (socket.as_fd().as_raw_fd(), link_address(ifindex));
    let (to, len) = ((&raw const to).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
    // SAFETY: `packet` is readable for its length; `to` points to a `sockaddr_ll` that lives until the end of this
    // function, and `len` is its length. The kernel copies both.
    let sent = unsafe { libc::sendto(socket, packet.as_ptr().cast(), packet.len(), 0, to, len) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The broadcast address of a link, for ARP.
fn link_address(ifindex: u32) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    }
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
