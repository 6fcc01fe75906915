//! Framing of the messages on the control socket.
//!
//! A message is a 4-byte big-endian length and that many bytes of JSON. Every message carries [`VERSION`]. A request
//! gets one reply, in one message or in several with `more` set in all but the last, so that neither end keeps a whole
//! listing of connections in memory. Lengths are checked before memory is allocated.

use std::io;
use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::refusal::CommandError;
use crate::protocol::question::{Reply, Request};

/// The version of requests and replies. Both ends must have the same version, also a successor and the xvsd that it
/// replaces, so a new version costs the connections of an upgrade. Therefore a new field has a default
/// (`#[serde(default)]`), a new request is refused by an earlier xvsd, and only other changes to a type increment the
/// version.
pub const VERSION: u32 = 3;

/// A request on the socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct RequestMessage {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// The request.
    pub request: Request,
}

/// A message of a reply.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplyMessage {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// The reply, or why the request was refused.
    pub answer: Result<Reply, CommandError>,
    /// Whether another message follows.
    pub more: bool,
}

/// The fields that messages have in every version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Writes one message.
///
/// # Errors
/// The errors of the writer; `InvalidData` if the message is longer than 4 GiB.
pub fn write_message(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - LENGTH_BYTES)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "message longer than 4 GiB"))?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    writer.write_all(&frame)
}

/// Reads the bytes of one message; `None` if the other end closed before it began.
///
/// # Errors
///
/// [`FrameError::TooLong`] before any content is read or allocated; [`FrameError::Io`] also for an incomplete message.
pub fn read_frame(reader: &mut impl Read, limit_bytes: u32) -> Result<Option<Vec<u8>>, FrameError> {
    let admit = |bytes| match bytes > limit_bytes {
        true => Err(FrameError::TooLong { bytes, limit: limit_bytes }),
        false => Ok(()),
    };
    Ok(read_admitted(reader, admit)?.map(|(frame, ())| frame))
}

/// Reads a message whose length is admitted, which may give something to keep as long as its bytes.
///
/// # Errors
/// The error of `admit` before any content is read or allocated; [`FrameError::Io`] also for an incomplete message.
pub fn read_admitted<T>(
    reader: &mut impl Read,
    admit: impl FnOnce(u32) -> Result<T, FrameError>,
) -> Result<Option<(Vec<u8>, T)>, FrameError> {
    let mut length = [0; LENGTH_BYTES];
    let first = reader.read(&mut length)?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut length[first..])?;
    let bytes = u32::from_be_bytes(length);
    let admitted = admit(bytes)?;
    let mut frame = Vec::new();
    // Grows as bytes arrive: the length alone, without content, must not cause an allocation.
    if reader.take(u64::from(bytes)).read_to_end(&mut frame)? < bytes as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some((frame, admitted)))
}

/// Decodes a message's content; checks the version before the rest.
///
/// # Errors
/// [`CommandError::Malformed`] or [`CommandError::WrongVersion`].
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, CommandError> {
    let malformed = |error: serde_json::Error| CommandError::Malformed { why: error.to_string() };
    let Versioned { version } = serde_json::from_slice(frame).map_err(malformed)?;
    if version != VERSION {
        return Err(CommandError::WrongVersion { ours: VERSION, theirs: version });
    }
    serde_json::from_slice(frame).map_err(malformed)
}

/// Why a message could not be read.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The message is longer than the limit.
    #[error("message of {bytes} bytes, above the limit of {limit}")]
    TooLong {
        /// The length that it states.
        bytes: u32,
        /// The largest accepted length.
        limit: u32,
    },
    /// Others have the memory for such messages.
    #[error("no room for a long message now")]
    NoRoom,
    /// The socket failed, timed out, or was closed within a message.
    #[error(transparent)]
    Io(#[from] io::Error),
}

const LENGTH_BYTES: usize = 4;
