//! Packet sockets (AF_PACKET): the packets of one protocol on one link, which the kernel also receives.
//!
//! For probing a link, not for services: each packet costs a copy and a system call.
//!
//! Source: packet(7).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use super::sys::check;

/// A socket for packets on a link, without their Ethernet header.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    /// The broadcast address of the link.
    broadcast: libc::sockaddr_ll,
}

impl PacketSocket {
    /// Opens a socket for the packets with this EtherType on the link with this index. Needs CAP_NET_RAW.
    ///
    /// # Errors
    ///
    /// The kernel's error; ENETDOWN if the link is down.
    pub fn open(ifindex: u32, ethertype: u16) -> io::Result<Self> {
        let broadcast = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ethertype.to_be(),
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        };
        // The socket has no protocol until it is bound, so it receives from no other link.
        let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        // SAFETY: `broadcast` is a `sockaddr_ll`, which sockets of this family take, and `ADDRESS_LEN` is its length;
        // the kernel copies it.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const broadcast).cast(), ADDRESS_LEN) })?;
        Ok(Self { socket, broadcast })
    }

    /// Sends a packet to all machines on the link.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn broadcast(&self, packet: &[u8]) -> io::Result<()> {
        let socket = self.socket.as_raw_fd();
        let to = (&raw const self.broadcast).cast();
        // SAFETY: `packet` is readable for its length; `to` points to a `sockaddr_ll` that `self` keeps, and
        // `ADDRESS_LEN` is its length. The kernel copies both.
        let sent = unsafe { libc::sendto(socket, packet.as_ptr().cast(), packet.len(), 0, to, ADDRESS_LEN) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Receives a packet, truncated to the length of `buffer`, and returns its length in `buffer`. `None` if none
    /// arrived within this time.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn receive(&self, buffer: &mut [u8], within: Duration) -> io::Result<Option<usize>> {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let within = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
        if poll(&mut ready, Some(&within))? == 0 {
            return Ok(None);
        }
        let (len, _) = recv(&self.socket, &mut *buffer, RecvFlags::empty())?;
        Ok(Some(len))
    }
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
