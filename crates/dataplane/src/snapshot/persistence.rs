//! How a service keeps clients with their destinations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How a service keeps clients with their destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistence {
    /// How long a client's template lasts after its last new connection, in seconds.
    pub timeout_seconds: u32,
    /// Which clients share a template.
    pub mask: ClientMask,
    /// Whether it is clients that stay, or calls.
    pub scope: PersistenceScope,
}

/// The bits of a client's address that are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientMask {
    /// Bits of an IPv4 address; they need not be contiguous.
    V4(Ipv4Addr),
    /// Leading bits of an IPv6 address, at most 128.
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

/// What stays together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersistenceScope {
    /// All connections of a client.
    Client,
    /// Of a client's, those of one SIP call (`--pe sip`).
    Call,
}
