//! Messages over the helper's sockets: a value as JSON, and descriptors beside it.
//!
//! The sockets preserve message boundaries (`SOCK_SEQPACKET`), so each message is received whole or not at all. Sending
//! never waits for room.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Maximum size of a message in bytes: less than the kernel's minimum socket buffer accepts.
const BYTES_MAX: usize = 192 << 10;
/// Maximum number of descriptors in a message: the maps and programs of an object.
const DESCRIPTORS_MAX: usize = 32;

/// A value with descriptors.
pub type Answer<T> = (T, Vec<OwnedFd>);

/// Two connected sockets.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a value with descriptors.
///
/// # Errors
/// The value is too long, or the kernel refuses: `BrokenPipe` if the other side is closed, `WouldBlock` if it does not
/// receive.
pub(crate) fn send(
    socket: impl AsFd,
    value: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    if bytes.len() > BYTES_MAX {
        return Err(io::Error::other(format!("{} bytes are too many for the helper process", bytes.len())));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Receives a value with descriptors; `None` if the other side is closed.
///
/// # Errors
///
/// `InvalidData`: the message does not have this type. EMFILE: there is no room for its descriptors. `WouldBlock`: no
/// message has arrived, and `flags` forbid waiting.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> io::Result<Option<Answer<T>>> {
    let mut bytes = vec![0; BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
        // Undelivered messages were left.
        Err(Errno::CONNRESET) => return Ok(None),
        message => message?,
    };
    let mut descriptors = Vec::new();
    for one in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = one {
            descriptors.extend(received);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        // This process may open no more.
        return Err(Errno::MFILE.into());
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // The library reports a truncated message as the end of a file.
    let value = serde_json::from_slice(&bytes[..message.bytes])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((value, descriptors)))
}
