//! The kinds of tunnels, as they are configured and as the data plane is told of them.
//!
//! Asked at each change of a destination; pure. Not here: which end a tunnel leaves by (`registry.rs`).

use xvs_dataplane::snapshot::Encapsulation;
use xvs_model::destination::{Tunnel, TunnelChecksum};
use xvs_proto::checksum::Coverage;

/// A tunnel as it leaves the director. The option of remote checksum offload is only for packets whose own checksum
/// is still to be computed, and none that came over the wire is such a packet; theirs is the full checksum.
pub fn encapsulation(tunnel: Tunnel) -> Encapsulation {
    let coverage = |checksum| match checksum {
        TunnelChecksum::Without => Coverage::None,
        TunnelChecksum::Full | TunnelChecksum::Remote => Coverage::Whole,
    };
    match tunnel {
        Tunnel::Ipip => Encapsulation::Ip,
        Tunnel::Gre { checksum } => Encapsulation::Gre(coverage(checksum)),
        Tunnel::Gue { port, checksum } => Encapsulation::Gue { port, coverage: coverage(checksum) },
    }
}
