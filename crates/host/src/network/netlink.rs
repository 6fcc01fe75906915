//! Sends requests to the kernel over a netlink socket, one at a time.
//!
//! For all code that reads or changes links, addresses, routes or neighbours. A [`Netlink`] belongs to the network
//! namespace of the thread that opened it. Every call blocks until the kernel has replied, which it does at once.
//! `tables.rs` interprets the messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

/// A socket for requests.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        Self::of_protocol(NETLINK_ROUTE)
    }

    /// Opens a socket for generic netlink.
    pub(crate) fn open_generic() -> io::Result<Self> {
        Self::of_protocol(NETLINK_GENERIC)
    }

    fn of_protocol(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_BYTES) })
    }

    /// All replies to a dump request, a message of type `GET…`.
    ///
    /// The request is repeated if a table changed during the dump (`NLM_F_DUMP_INTR`), so the replies are the state at
    /// one moment. A message that the library cannot parse is left out and logged. For a feature that the kernel was
    /// built without, there are no replies.
    pub fn dump<M>(&mut self, request: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(request.clone(), NLM_F_DUMP)?;
            match self.replies() {
                Ok((replies, Consistency::Whole)) => return Ok(replies),
                Ok((_, Consistency::Interrupted)) => {}
                Err(error) if is_missing(&error) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        let text =
            format!("the kernel's tables changed during each of {DUMP_ATTEMPTS} attempts to read them");
        Err(io::Error::new(io::ErrorKind::Interrupted, text))
    }

    /// Sends a change with these additional flags. Returns the kernel's error.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        self.replies::<RouteNetlinkMessage>().map(|_| ())
    }

    /// The replies to a request for one object, or the kernel's error.
    pub fn get<M>(&mut self, request: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(request, NLM_F_ACK)?;
        self.replies().map(|(replies, _)| replies)
    }

    fn send(&mut self, message: impl NetlinkSerializable, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Receives the replies to the last request, up to the message that ends them.
    fn replies<M: NetlinkDeserializable>(&mut self) -> io::Result<(Vec<M>, Consistency)> {
        let mut replies = Vec::new();
        let mut consistency = Consistency::Whole;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for bytes in messages(&self.buffer) {
                let message = match NetlinkMessage::<M>::deserialize(bytes) {
                    Ok(message) => message,
                    Err(error) => {
                        tracing::warn!("netlink message that cannot be parsed, left out: {error}");
                        continue;
                    }
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    consistency = Consistency::Interrupted;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(reply) => replies.push(reply),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) => return Ok((replies, consistency)),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok((replies, consistency)),
                    _ => {}
                }
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a table was unchanged while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Whole,
    Interrupted,
}

/// Splits the bytes of one read into messages with their headers; ends at a truncated message.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let (message, _) = bytes.split_at_checked(len)?;
        // Messages begin at multiples of four bytes (netlink(7), NLMSG_ALIGN).
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// More than the kernel puts into one read (32 KiB, `net/netlink/af_netlink.c`, `netlink_dump`).
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

const DUMP_ATTEMPTS: u32 = 10;

/// Whether the kernel was built without a feature, or booted without a family (`ipv6.disable=1`).
fn is_missing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use crate::network::netlink::*;

    #[test]
    fn a_read_is_split_at_the_lengths_in_its_headers_and_ends_at_a_message_that_is_cut_off() {
        let mut bytes = vec![0; 18 + 2 + 16 + 8];
        bytes[0] = 18;
        bytes[20] = 16;
        bytes[36] = 200;
        let lengths: Vec<usize> = messages(&bytes).map(<[u8]>::len).collect();
        assert_eq!(lengths, [18, 16]);
    }

    #[test]
    fn an_error_of_the_kernel_is_returned_with_its_errno() {
        let mut netlink = Netlink::open().unwrap();
        let mut link = netlink_packet_route::link::LinkMessage::default();
        link.header.index = u32::MAX >> 1;
        let refused = netlink.change(RouteNetlinkMessage::SetLink(link), 0).unwrap_err();
        assert!(refused.raw_os_error().is_some(), "{refused}");
    }
}
