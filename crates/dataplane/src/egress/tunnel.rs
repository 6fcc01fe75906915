//! Tunnels: the source and kind of the headers that carry packets to a destination.

use std::net::IpAddr;

use xvs_proto::checksum::Coverage;

/// The outer headers of tunnels to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The source address of the outer header: the director's own, of the destination's family.
    pub source: Option<IpAddr>,
    /// The headers between the outer network header and the packet.
    pub encapsulation: Encapsulation,
}

/// The headers between the outer network header and the packet in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    /// None: IP in IP (RFC 2003, RFC 2473, RFC 4213).
    Ip,
    /// A GRE header (RFC 2784).
    Gre(Coverage),
    /// UDP and GUE headers (draft-ietf-intarea-gue).
    Gue {
        /// The destination UDP port.
        port: u16,
        /// The coverage of the UDP checksum.
        coverage: Coverage,
    },
}
