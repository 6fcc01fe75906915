//! Messages of connection synchronization, as the kernel's IPVS sends them over UDP multicast.
//!
//! A message is a header and one entry for each connection. Integers are in network byte order. Version 1 carries IPv4
//! and IPv6, timeouts, marks and options; version 0 carries only IPv4 connections. Options that the kernel does not
//! know and that change how packets must be rewritten are mandatory: a kernel skips such an entry.
//!
//! Source: ipvs-behaviour, sections 3.2, 12.2, 12.3 and 12.5.

mod decode;
mod encode;
mod entry;

pub use self::decode::{Entries, Message, MessageError, Skipped};
pub use self::encode::Encoded;
pub use self::entry::{ClientAddress, Entry, ReplyShift, Version, flag, method};
