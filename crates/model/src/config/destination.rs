//! Destinations: the real servers of a service, and their options.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, Weight};

/// A real server of a service, in the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The identity within the service.
    pub endpoint: Endpoint,
    /// The options.
    pub options: DestinationOptions,
}

/// The options of a destination; an edit replaces all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DestinationOptions {
    /// How packets reach the real server.
    pub method: ForwardingMethod,
    /// The weight that the operator set: its share of new connections.
    pub weight: Weight,
    /// The number of connections at which it gets no new ones; 0: no limit.
    pub upper_threshold: u32,
    /// The number of connections below which it gets new ones again; 0: three quarters of the upper threshold.
    pub lower_threshold: u32,
    /// The outer headers of the method `tunnel`; without meaning for other methods.
    pub tunnel: Tunnel,
}

impl Default for DestinationOptions {
    /// The defaults of `ipvsadm`.
    fn default() -> Self {
        Self {
            method: ForwardingMethod::DirectRouting,
            weight: Weight(1),
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: Tunnel::Ipip,
        }
    }
}

/// The kind of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Tunnel {
    /// IP in IP (RFC 2003, RFC 4213, RFC 2473).
    Ipip,
    /// The tunnel is GUE, Generic UDP Encapsulation.
    Gue {
        /// The destination port of the UDP header; never 0.
        port: u16,
        /// The checksum in the outer headers.
        checksum: TunnelChecksum,
    },
    /// The tunnel is GRE, Generic Routing Encapsulation (RFC 2784).
    Gre {
        /// The checksum in the GRE header.
        checksum: TunnelChecksum,
    },
}

/// The checksum in a tunnel's outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TunnelChecksum {
    /// There is none.
    Without,
    /// It covers the header and the packet inside.
    Full,
    /// Remote checksum offload, which GUE alone has.
    Remote,
}
