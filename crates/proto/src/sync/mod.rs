//! Messages of connection synchronization, as the kernel's IPVS sends them over UDP multicast.
//!
//! A message is a header and one entry for each connection. Numbers are in network byte order. Version 1 carries IPv4
//! and IPv6, timeouts, marks and options; version 0 only connections over IPv4. Options that the kernel does not know
//! and that change how packets must be rewritten are mandatory: a kernel skips such an entry. Not here: the time at
//! which a connection is sent, the entries that share a message, and their use by a receiver.
//!
//! Source: ipvs-behaviour, sections 3.2, 12.2, 12.3 and 12.5.

mod decode;
mod encode;
mod entry;

pub use self::decode::{Entries, Message, MessageError, Skipped};
pub use self::encode::Encoded;
pub use self::entry::{ClientAddress, Entry, ReplyShift, Version, flag, method};
