//! A forwarding method as the tests set it up: `xvsadm`'s options, and what the real servers need for it.
//!
//! Used at the start of each test that forwards. Not here: what a method does to a packet.

use crate::cluster::{Cluster, REAL_SERVERS, VIP, succeed};
use crate::director::program;

/// Forwarding method of all destinations in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `-m`: replies come back by the director.
    Nat,
    /// `--fullnat`: as NAT, from an address of the director's own, which it is told of by `xvs laddr`.
    FullNat,
    /// `-g`: the real servers have the VIP and reply to the client themselves.
    DirectRouting,
    /// `-i`: as direct routing, the packet wrapped in another.
    Tunnel,
    /// `-i` by GRE.
    Gre,
    /// `-i` by GRE with a checksum.
    GreSummed,
    /// `-i` by GUE.
    Gue,
    /// `-i` by GUE with a UDP checksum.
    GueSummed,
}

impl Method {
    /// The options by which `ipvsadm -a` is told.
    pub fn option(self) -> &'static str {
        match self {
            Self::Nat => "-m",
            Self::FullNat => "--fullnat",
            Self::DirectRouting => "-g",
            Self::Tunnel => "-i",
            Self::Gre => "-i --tun-type gre",
            Self::GreSummed => "-i --tun-type gre --tun-csum",
            Self::Gue => "-i --tun-type gue --tun-port 6080",
            Self::GueSummed => "-i --tun-type gue --tun-port 6080 --tun-csum",
        }
    }

    /// Whether replies come back by the director, so that real servers need nothing.
    pub fn masquerades(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Prepares the real servers as an operator does, by `xvs realserver up`, if they need it.
    ///
    /// # Panics
    ///
    /// With the command's own words if it fails.
    pub fn prepare(self, cluster: &Cluster) {
        let method = match self {
            Self::Nat | Self::FullNat => return,
            Self::DirectRouting => "dr",
            Self::Tunnel | Self::Gre | Self::GreSummed | Self::Gue | Self::GueSummed => "tunnel",
        };
        for server in REAL_SERVERS {
            let mut command = cluster.command(server, program("xvs"));
            succeed(
                command
                    .args(["realserver", "up", "--vip", &VIP.to_string()])
                    .args(["--method", method, "--dev", "lan"]),
            );
        }
    }
}
