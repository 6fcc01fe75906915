//! Destinations: a real server as one service sees it.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, Weight};

/// A real server of a service as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Its identity within the service.
    pub endpoint: Endpoint,
    /// How it is used.
    pub options: DestinationOptions,
}

/// What can be said of a destination beside its endpoint; an edit replaces all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationOptions {
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// Its share of new connections.
    pub weight: Weight,
    /// Connections at which it takes no more; 0: no bound.
    pub upper_threshold: u32,
    /// Connections below which it takes new ones again; 0: three quarters of the upper one.
    pub lower_threshold: u32,
    /// The outer headers of [`ForwardingMethod::Tunnel`]; without meaning for other methods.
    pub tunnel: Tunnel,
}

impl Default for DestinationOptions {
    /// What `ipvsadm` assumes for all that is not said.
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
#[serde(rename_all = "snake_case")]
pub enum Tunnel {
    /// IP in IP (RFC 2003, RFC 4213, RFC 2473).
    Ipip,
    /// Generic UDP Encapsulation.
    Gue {
        /// The UDP port it is sent to; never 0.
        port: u16,
        /// What the outer header sums.
        checksum: TunnelChecksum,
    },
    /// Generic Routing Encapsulation (RFC 2784).
    Gre {
        /// What the outer header sums.
        checksum: TunnelChecksum,
    },
}

/// Checksums of a tunnel's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunnelChecksum {
    /// None.
    Without,
    /// Over the whole.
    Full,
    /// GUE's remote checksum offload.
    Remote,
}
