//! An entry in a sync message: a connection or a template.

use crate::addr::{Endpoint, Protocol};

/// The version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// IPv4 alone, without timeouts and marks.
    V0,
    /// The version of all kernels since 2.6.39.
    V1,
}

impl Version {
    /// The length of the header of a message.
    pub const fn header_len(self) -> usize {
        match self {
            Self::V0 => 4,
            Self::V1 => 8,
        }
    }

    /// The number of zero bytes before an entry at offset `len` of a message.
    pub const fn padding(self, len: usize) -> usize {
        match self {
            Self::V0 => 0,
            Self::V1 => len.next_multiple_of(4) - len,
        }
    }

    /// The header of a message with this number of entries and this length, header included.
    pub fn header(self, sync_id: u8, entries: u8, len: u16) -> ([u8; 8], usize) {
        let [high, low] = len.to_be_bytes();
        match self {
            Self::V0 => ([entries, sync_id, high, low, 0, 0, 0, 0], 4),
            Self::V1 => ([0, sync_id, high, low, entries, 1, 0, 0], 8),
        }
    }
}

/// Bits of [`Entry::flags`].
pub mod flag {
    /// The forwarding method, numbered as in [`super::method`].
    pub const METHOD: u32 = 0x0007;
    /// The sender received the connection from another director.
    pub const SYNC: u32 = 0x0020;
    /// No reply has been seen, and none is expected.
    pub const NO_OUTPUT: u32 = 0x0080;
    /// Counted among the inactive connections.
    pub const INACTIVE: u32 = 0x0100;
    /// A helper shifts the server's sequence numbers; the entry contains the shift.
    pub const REPLY_SEQUENCES: u32 = 0x0200;
    /// A helper shifts the sequence numbers of the server, the client or both.
    pub const SEQUENCES: u32 = 0x0600;
    /// A persistence template.
    pub const TEMPLATE: u32 = 0x1000;
}

/// Values of [`flag::METHOD`].
pub mod method {
    /// NAT and FULLNAT.
    pub const MASQUERADING: u32 = 0;
    /// The director itself.
    pub const LOCAL: u32 = 1;
    /// A tunnel.
    pub const TUNNEL: u32 = 2;
    /// Direct routing.
    pub const ROUTE: u32 = 3;
    /// The client's original destination.
    pub const BYPASS: u32 = 4;
}

/// Types of an entry's options. Without [`OPTIONAL`](option::OPTIONAL) an option is mandatory: a receiver that does not
/// know it skips the entry. The kernel knows the first three, with and without that bit.
pub(super) mod option {
    /// The bit of options that a receiver may ignore.
    pub(in crate::sync) const OPTIONAL: u8 = 0x40;
    /// Shifts of sequence numbers by a helper: three numbers for each direction.
    pub(in crate::sync) const SEQUENCES: u8 = 1;
    /// Data of a persistence engine.
    pub(in crate::sync) const ENGINE_DATA: u8 = 2;
    /// The name of that engine.
    pub(in crate::sync) const ENGINE: u8 = 3;
    /// The local endpoint of FULLNAT: port and address. Without it a receiver would mistake the method for NAT.
    pub(in crate::sync) const LOCAL: u8 = 4;
    /// How the destination receives the client's address: the kind, whether the destination has acknowledged it, and
    /// the sequence number of the client's first byte.
    pub(in crate::sync) const CLIENT_ADDRESS: u8 = 5;
    /// The time until a connection ends, in milliseconds. Optional: without it the full timeout applies.
    pub(in crate::sync) const REMAINING: u8 = OPTIONAL | 6;
    /// The translation of sequence numbers for a connection through the SYN proxy: three integers. Without it client
    /// and destination would not accept each other's segments.
    pub(in crate::sync) const NUMBERS: u8 = 7;
    /// The address of a real server in another family than the client (FULLNAT). The entry's own field is then 0.
    pub(in crate::sync) const DEST: u8 = 8;
    /// The destination receives the client's address in each datagram: 1.
    pub(in crate::sync) const DATAGRAMS: u8 = 9;
}

/// The persistence engine of SIP, the only one.
pub(super) const SIP: &[u8] = b"sip";

/// A connection or template in a message. The real server and the local endpoint have the same family; so do the client
/// and the virtual endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The transport protocol; [`Protocol::IP`] in the template for a firewall mark.
    pub protocol: Protocol,
    /// See [`flag`].
    pub flags: u32,
    /// The protocol state of a connection; for a template, whether it is assured.
    pub state: u8,
    /// The client.
    pub client: Endpoint,
    /// The virtual endpoint.
    pub virtual_endpoint: Endpoint,
    /// The real server.
    pub dest: Endpoint,
    /// The service's firewall mark; 0 if there is none.
    pub mark: u32,
    /// The timeout of the connection's state, in seconds.
    pub timeout_seconds: u32,
    /// The time until the entry expires if no packet arrives, in milliseconds; `None` means the full timeout. Only in
    /// transfers of whole tables.
    pub remaining_millis: Option<u32>,
    /// The Call-ID of a SIP template, at most 255 bytes.
    pub call_id: Option<&'a [u8]>,
    /// The local endpoint of FULLNAT.
    pub local: Option<Endpoint>,
    /// How the destination receives the client's address; `None` if it does not.
    pub client_address: Option<ClientAddress>,
    /// The shift of the server's sequence numbers ([`flag::REPLY_SEQUENCES`]); version 0 does not carry it.
    pub reply_shift: Option<ReplyShift>,
    /// The translation of sequence numbers for a connection through the SYN proxy, as xvs stores it; `None` if there is
    /// none.
    pub numbers: Option<[u32; 3]>,
}

/// The shift that a helper applies to the sequence numbers of one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyShift {
    /// The sequence number at which the shift last changed.
    pub place: u32,
    /// The shift of later numbers, in bytes.
    pub after: i32,
    /// The shift of earlier numbers, in bytes.
    pub before: i32,
}

/// How the destination of a FULLNAT connection receives the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress {
    /// In a PROXY header; otherwise in a TCP option.
    pub in_header: bool,
    /// The destination has acknowledged the header.
    pub is_acknowledged: bool,
    /// The sequence number of the client's first byte; 0 if unknown.
    pub first_sequence: u32,
}
