//! What bytes from the network mean.
//!
//! Two levels. A *view* borrows bytes and reads or edits fields in place: its constructor checks every length it
//! relies on, so no accessor of it can fail, and its setters keep the checksums that cover what they touch.
//! A *repr* is a plain value that can be written as bytes: the headers that a director originates.
//! [`packet::parse`] is the one way from a frame to what the pipeline works with.
//!
//! Nothing here does I/O, reads a clock or allocates.

pub mod malformed;

pub mod addr;
pub mod checksum;
pub mod flow;

pub mod ethernet;
pub mod gre;
pub mod gue;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod proxy;
pub mod sctp;
pub mod sip;
pub mod tcp;
pub mod udp;

pub mod packet;

pub mod mark;
pub mod network;

pub use addr::{Endpoint, Family, MacAddr, Prefix, Protocol, is_host};
pub use flow::{FlowKey, HashSecret};
pub use malformed::Malformed;
pub use network::LinkId;
pub use packet::{Fragment, Packet, Parsed, parse, quoted};
