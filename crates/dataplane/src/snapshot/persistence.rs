//! Persistence settings of a service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Persistence settings of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistence {
    /// The time that a client's template lasts after its last new connection, in seconds.
    pub timeout_seconds: u32,
    /// The mask; clients with equal masked addresses share a template.
    pub mask: ClientMask,
    /// The unit that is assigned to one destination.
    pub scope: PersistenceScope,
}

/// The bits of a client's address that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientMask {
    /// The bits of an IPv4 address; they need not be contiguous.
    V4(Ipv4Addr),
    /// The number of leading bits of an IPv6 address, at most 128.
    V6(u8),
}

impl ClientMask {
    pub(crate) fn of(self, client: IpAddr) -> IpAddr {
        match (self, client) {
            (Self::V4(mask), IpAddr::V4(addr)) => IpAddr::V4(addr & mask),
            (Self::V6(bits), IpAddr::V6(addr)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
                IpAddr::V6(addr & Ipv6Addr::from(mask))
            }
            _ => client,
        }
    }
}

/// The connections that are assigned to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersistenceScope {
    /// All connections of a client.
    Client,
    /// The connections of one of a client's SIP calls (`--pe sip`).
    Call,
}
