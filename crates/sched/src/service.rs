//! What identifies a virtual service.

use std::fmt;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Family, Protocol};

/// The identity of a virtual service: what its packets have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKey {
    /// Packets of a protocol to a virtual endpoint; port 0 means every port.
    Address {
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// The virtual endpoint.
        endpoint: Endpoint,
    },
    /// Packets of a family that carry a firewall mark.
    Mark {
        /// The mark; never 0.
        mark: u32,
        /// The family: a mark names one service for each.
        family: Family,
    },
}

impl ServiceKey {
    /// A service of TCP at a virtual endpoint.
    pub fn tcp(endpoint: Endpoint) -> Self {
        Self::Address { protocol: Protocol::TCP, endpoint }
    }

    /// A service of UDP at a virtual endpoint.
    pub fn udp(endpoint: Endpoint) -> Self {
        Self::Address { protocol: Protocol::UDP, endpoint }
    }

    /// The family of its packets.
    pub fn family(self) -> Family {
        match self {
            Self::Address { endpoint, .. } => endpoint.family(),
            Self::Mark { family, .. } => family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, endpoint } => write!(f, "{protocol} {endpoint}"),
            Self::Mark { mark, family: Family::V4 } => write!(f, "FWM {mark}"),
            Self::Mark { mark, family: Family::V6 } => write!(f, "FWM {mark} IPv6"),
        }
    }
}
