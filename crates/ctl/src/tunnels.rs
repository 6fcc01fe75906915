//! The kinds of tunnels, as they are configured and as the data plane is told of them.
//!
//! Asked at each change of a destination; pure. Not here: which end a tunnel leaves by (`registry.rs`).

use serde::{Deserialize, Serialize};
use xvs_dataplane::snapshot::Encapsulation;
use xvs_proto::checksum::Coverage;

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

impl Tunnel {
    /// A tunnel as it leaves the director. The option of remote checksum offload is only for packets whose own checksum
    /// is still to be computed, and none that came over the wire is such a packet; theirs is the full checksum.
    pub(crate) fn encapsulation(self) -> Encapsulation {
        let coverage = |checksum| match checksum {
            TunnelChecksum::Without => Coverage::None,
            TunnelChecksum::Full | TunnelChecksum::Remote => Coverage::Whole,
        };
        match self {
            Self::Ipip => Encapsulation::Ip,
            Self::Gre { checksum } => Encapsulation::Gre(coverage(checksum)),
            Self::Gue { port, checksum } => Encapsulation::Gue { port, coverage: coverage(checksum) },
        }
    }
}
