//! Kinds of tunnels: the conversion of configured options to the data plane's kinds.
//!
//! Called for each change of a destination; pure.

use xvs_dataplane::snapshot::Encapsulation;
use xvs_model::config::destination::{Tunnel, TunnelChecksum};
use xvs_proto::checksum::Coverage;

/// The encapsulation of packets to a tunnel. Remote checksum offload applies only to packets whose own checksum is not
/// computed yet. Packets from the wire have theirs, so they get the full checksum.
pub fn encapsulation(tunnel: Tunnel) -> Encapsulation {
    match tunnel {
        Tunnel::Ipip => Encapsulation::Ip,
        Tunnel::Gre { checksum } => Encapsulation::Gre(coverage(checksum)),
        Tunnel::Gue { port, checksum } => Encapsulation::Gue { port, coverage: coverage(checksum) },
    }
}

fn coverage(checksum: TunnelChecksum) -> Coverage {
    match checksum {
        TunnelChecksum::Without => Coverage::None,
        TunnelChecksum::Full | TunnelChecksum::Remote => Coverage::Whole,
    }
}
