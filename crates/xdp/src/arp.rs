//! Who on a link answers for an IPv4 address: ARP probes (RFC 5227 §2.1.1).
//!
//! For `xvs doctor`. A probe names no sender's address, so that nobody's table is changed by it. Whoever has the address
//! answers; so does, unless told not to, a real server that has it on another interface. Blocks for as long as said.

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use xvs_proto::MacAddr;

/// Asks for each of these addresses on a link, three times in `timeout`, and returns who answered for which, each
/// once. The machine itself is not received. Needs CAP_NET_RAW.
///
/// # Errors
/// What the kernel says; ENETDOWN if the link is down.
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

/// A socket for ARP packets of one link.
fn open(ifindex: u32) -> io::Result<OwnedFd> {
    // Of no protocol until it is bound, so that it hears no other link.
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let addr = link_address(ifindex);
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `addr` is a `sockaddr_ll`, as sockets of this family take it, and `len` its length; it is copied.
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

/// ARP to everybody on a link.
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

/// A question for an address by nobody (RFC 826, RFC 5227).
fn probe(mac: MacAddr, addr: Ipv4Addr) -> [u8; PACKET_LEN] {
    let mut packet = [0; PACKET_LEN];
    packet[..REQUEST.len()].copy_from_slice(&REQUEST);
    packet[8..14].copy_from_slice(&mac.0);
    packet[24..].copy_from_slice(&addr.octets());
    packet
}

/// Who says, by an answer or a question, that an address is theirs; `None` if it is not ARP of Ethernet and IPv4.
fn sender(packet: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let whole = packet.len() == PACKET_LEN && packet[..7] == REQUEST[..7] && matches!(packet[7], 1 | 2);
    let mac = packet.get(8..14)?.try_into().ok()?;
    let addr: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    whole.then(|| (addr.into(), MacAddr(mac)))
}

/// Ethernet, IPv4, lengths of their addresses, and that it is a question.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const PACKET_LEN: usize = 28;
/// `PROBE_NUM` of RFC 5227.
const PROBES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_probe_names_no_sender_and_an_answer_is_read_by_its_sender() {
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
