//! Tunnels: the source and kind of the headers that carry packets to a destination.

use std::net::IpAddr;

use xvs_proto::checksum::Coverage;
use xvs_proto::network::RouteKey;
use xvs_sched::ForwardingMethod;

/// The outer headers of tunnels to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The source address of the outer header: the director's own, in the destination's family.
    pub source: Option<IpAddr>,
    /// The headers between the outer network header and the packet.
    pub encapsulation: Encapsulation,
}

impl Tunnel {
    /// The key of the route look-up for packets to a destination. As in IPVS, they have no source yet, and no mark even
    /// if the client's packets have one. Only the outer packet of an IPv4 tunnel is routed with its source.
    pub fn route_key(self, dest: IpAddr, method: ForwardingMethod) -> RouteKey {
        let key = RouteKey::from(dest);
        match self.source {
            Some(source) if method == ForwardingMethod::Tunnel && dest.is_ipv4() => {
                RouteKey { source, ..key }
            }
            _ => key,
        }
    }
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
