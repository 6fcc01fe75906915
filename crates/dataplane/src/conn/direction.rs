//! Directions of packets.

/// The direction of a packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client, to the virtual endpoint.
    Inbound,
    /// To the client: from the destination with NAT, otherwise from the virtual endpoint.
    Outbound,
}

/// The direction of a packet, as far as the director can see both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// From the client. Replies pass through the director, too.
    Input,
    /// A reply.
    Output,
    /// From the client. Replies bypass the director (direct routing, tunnel).
    InputOnly,
}
