//! Directions of packets, as connections and their states tell them apart.

/// Which way a packet of a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client, to the virtual endpoint.
    Inbound,
    /// To the client: from the destination where the method is NAT, from the virtual endpoint otherwise.
    Outbound,
}

/// Which way a packet goes, as far as the director can see both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// From the client; replies pass the director too.
    Input,
    /// A reply.
    Output,
    /// From the client; replies go past the director (direct routing, tunnel).
    InputOnly,
}
