//! The reasons for which workers forward a connection, for operators.

/// Why workers forward the packets of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOffloaded {
    /// The connection's state may change.
    #[error("it is not established: workers complete its handshake, or it is closing")]
    NotEstablished,
    /// The connection's packets are not plain.
    #[error(
        "its packets need more than forwarding: FTP, TOA, a PROXY header, the SYN proxy, --ops, or a reset"
    )]
    Unusual,
    /// Too few packets have passed, or the record was given up.
    #[error(
        "its client has sent fewer packets than `offload_after` says, or it was idle, or made room for others"
    )]
    Few,
    /// Packets are captured.
    #[error("a capture runs, which sees every packet")]
    Captured,
    /// An access list may apply to the packets.
    #[error("an access list may concern its packets, and the XDP program does not know for certain")]
    Listed,
    /// The director is a backup.
    #[error("a backup daemon runs, so requests stay with this machine (`backup_only`)")]
    Stays,
    /// The director is the real server.
    #[error("its real server is on the director")]
    Local,
    /// No route.
    #[error("its real server, or the way to it, is not available")]
    NoWay,
    /// An interface does not forward.
    #[error("the interface where its packets come, or leave, takes no part: `xvs status`")]
    Interface,
    /// No reply so far.
    #[error("no reply has passed yet")]
    NoReply,
    /// The link address of the next hop to the client is missing.
    #[error("the link address of the next hop to its client is not known yet; see `ip neigh`")]
    NoNeighbour,
    /// The outer headers of the tunnel differ between packets.
    #[error(
        "outer headers of its tunnel differ (an identification, a checksum over the packet), or there can be none"
    )]
    OuterHeaders,
    /// No record is free.
    #[error("as many connections as possible are offloaded")]
    Full,
}
