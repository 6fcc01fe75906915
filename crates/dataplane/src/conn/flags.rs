//! Flags of a connection.

use std::ops::BitOr;

/// Properties of a connection, in the bits of the kernel's sync messages.
///
/// Source: `include/uapi/linux/ip_vs.h`, `IP_VS_CONN_F_*`. The method is not among them here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// Came by synchronisation.
    pub const SYNC: Self = Self(0x0020);
    /// No reply was seen and none is expected.
    pub const NO_OUTPUT: Self = Self(0x0080);
    /// Its destination is told the client's address by a TCP option. No bit of sync messages.
    pub const TOA: Self = Self(0x0010);
    /// Both ends are reset at its next packet. No bit of sync messages.
    pub const RESET: Self = Self(0x0008);
    /// Counted among the inactive connections of its destination.
    pub const INACTIVE: Self = Self(0x0100);
    /// Its destination is told the client's address by a PROXY header, so the client's sequence numbers are shifted.
    pub const PROXY: Self = Self(0x0400);
    /// A persistence template. Fixed when the entry is made: a template is another identity.
    pub const TEMPLATE: Self = Self(0x1000);
    /// Lives for one packet only; a template: what it controls does.
    pub const ONE_PACKET: Self = Self(0x2000);
    /// The destination has acknowledged the PROXY header. No bit of sync messages.
    pub const PROXY_ACKNOWLEDGED: Self = Self(0x4000);
    /// A template that nobody finds any more ([`TableWorker::detach`](crate::conn::handle::TableWorker::detach)). No bit of sync messages.
    pub const DETACHED: Self = Self(0x8000);

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
