//! Packet headers: parsing, editing in place, and writing.
//!
//! There are two kinds of types. A *view* borrows bytes and reads or edits fields in place. Its constructor checks
//! every length that it relies on, so no accessor fails, and its setters update the checksums that cover the changed
//! bytes. A *repr* is a plain value that is written as bytes: the headers that the director originates.
//! [`packet::parse`] turns a frame into the [`Packet`] that the pipeline works with.
//!
//! This crate does no I/O, reads no clock and does not allocate.

pub mod malformed;

pub mod addr;
pub mod bytes;
pub mod checksum;
pub mod flow;

pub mod ethernet;
pub mod ftp;
pub mod gre;
pub mod gue;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod proxy;
pub mod quic;
pub mod sctp;
pub mod sip;
pub mod sync;
pub mod tcp;
pub mod udp;

pub mod packet;
pub mod partial_checksum;
pub mod plain;

pub mod mark;
pub mod network;

#[cfg(feature = "schema")]
mod schema;

pub use addr::{Endpoint, Family, MacAddr, Prefix, Protocol, is_host};
pub use flow::{FlowKey, HashSecret};
pub use malformed::Malformed;
pub use network::LinkId;
pub use packet::{Fragment, Packet, Parsed, parse, parse_cut, quoted};
pub use plain::Plain;
