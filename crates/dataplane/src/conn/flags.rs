//! Flags of a connection.

use std::ops::BitOr;

use xvs_proto::{Endpoint, Protocol, ftp};
use xvs_sched::ForwardingMethod;

/// Properties of a connection, with the bits of the kernel's sync messages.
///
/// Source: `include/uapi/linux/ip_vs.h`, `IP_VS_CONN_F_*`. The forwarding method is not stored here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// No flags.
    pub const NONE: Self = Self(0);
    /// The client has acknowledged the sequence number of the destination's SYN. Not in sync messages.
    pub const PROVEN: Self = Self(0x0001);
    /// The director has answered the client's SYN, and sequence numbers differ between the ends (`numbers.rs`). Not in
    /// sync messages.
    pub const SYN_PROXY: Self = Self(0x0002);
    /// Like [`Self::SYN_PROXY`], while the destination has not answered the director's SYN. Not in sync messages.
    pub const HANDSHAKE: Self = Self(0x0004);
    /// Received by state synchronisation.
    pub const SYNC: Self = Self(0x0020);
    /// For a connection with [`Self::SYNC`]: its destination no longer counts it. Not in sync messages.
    pub const COUNTED_OUT: Self = Self(0x0040);
    /// For a connection without [`Self::SYNC`]: it is counted among its client's connections
    /// ([`Clients`](crate::snapshot::clients::Clients)). Not in sync messages.
    pub const LIMITED: Self = Self(0x0040);
    /// No reply has passed the director, and none is expected.
    pub const NO_OUTPUT: Self = Self(0x0080);
    /// The destination receives the client's address in a TCP option. Not in sync messages.
    pub const TOA: Self = Self(0x0010);
    /// Both ends are reset at the connection's next packet. Not in sync messages.
    pub const RESET: Self = Self(0x0008);
    /// Counted among the inactive connections of its destination. Only for connections with [`Self::SYNC`]: others are
    /// counted by their state.
    pub const INACTIVE: Self = Self(0x0100);
    /// An FTP control connection, whose segments are read. Not in sync messages, in which the bit means that the
    /// destination's sequence numbers are shifted.
    pub const FTP: Self = Self(0x0200);
    /// The destination receives the client's address in a PROXY header, so the client's sequence numbers are shifted.
    pub const PROXY: Self = Self(0x0400);
    /// An expected connection whose client port is not known yet: passive FTP data.
    pub const NO_CLIENT_PORT: Self = Self(0x0800);
    /// A persistence template. Set when the entry is created, because it is part of the identity.
    pub const TEMPLATE: Self = Self(0x1000);
    /// The connection lasts for one packet. For a template: the connections that it controls do.
    pub const ONE_PACKET: Self = Self(0x2000);
    /// For TCP: the destination has acknowledged the PROXY header. Not in sync messages.
    pub const PROXY_ACKNOWLEDGED: Self = Self(0x4000);
    /// For UDP: each datagram from the client gets a PROXY header. Not in sync messages. xvs 0.2.0, to which this bit
    /// without [`Self::PROXY`] means nothing, sends datagrams without it.
    pub const PROXY_DATAGRAMS: Self = Self(0x4000);
    /// For a connection with [`Self::SYNC`] that is not a template: no packet of it has passed here, and its message
    /// was not signed. Not in sync messages.
    pub const UNSEEN: Self = Self(0x2000);
    /// A template that look-ups no longer find ([`TableWorker::detach`](crate::conn::handle::TableWorker::detach)). Not
    /// in sync messages.
    pub const DETACHED: Self = Self(0x8000);

    /// The flags of connections whose packets always take the general path.
    pub(crate) const UNUSUAL: Self = Self(
        Self::RESET.0
            | Self::PROXY.0
            | Self::PROXY_DATAGRAMS.0
            | Self::TOA.0
            | Self::FTP.0
            | Self::ONE_PACKET.0
            | Self::UNSEEN.0
            | Self::HANDSHAKE.0
            | Self::SYN_PROXY.0,
    );

    /// The flag of an FTP control connection, if a connection to this virtual endpoint is one.
    pub(crate) fn of_ftp(protocol: Protocol, virtual_endpoint: Endpoint, method: ForwardingMethod) -> Self {
        let is_control = protocol == Protocol::TCP
            && virtual_endpoint.port == ftp::CONTROL_PORT
            && method == ForwardingMethod::Nat;
        if is_control { Self::FTP } else { Self::NONE }
    }

    /// Whether the connection is counted among its client's connections.
    pub fn is_limited(self) -> bool {
        self.0 & (Self::LIMITED | Self::SYNC).0 == Self::LIMITED.0
    }

    /// Whether any of `flags` is set.
    pub fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

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
