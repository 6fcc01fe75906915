//! A forwarding method in tests: `xvsadm`'s options, and the set-up of the real servers.
//!
//! Used at the start of each test that forwards. Not here: what a method does to a packet.

use crate::cluster::{Cluster, Host, REAL_SERVERS, VIP, succeed};
use crate::director::program;

/// Forwarding method of all destinations in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `-m`: replies return through the director.
    Nat,
    /// `--fullnat`: as NAT, from a local address of the director, added with `xvs laddr`.
    FullNat,
    /// `-g`: the real servers have the VIP and reply to the client themselves.
    DirectRouting,
    /// `-i`: as direct routing, encapsulated in IP.
    Tunnel,
    /// `-i` with GRE.
    Gre,
    /// `-i` with GRE and its checksum.
    GreSummed,
    /// `-i` with GUE.
    Gue,
    /// `-i` with GUE and a UDP checksum.
    GueSummed,
}

impl Method {
    /// The options of `ipvsadm -a`.
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

    /// Whether replies return through the director, so real servers need no set-up.
    pub fn masquerades(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Prepares the real servers as an operator does, with `xvs realserver up`, if they need it.
    ///
    /// # Panics
    ///
    /// With the command's message if it fails.
    pub fn prepare(self, cluster: &Cluster) {
        self.prepare_on(cluster, &REAL_SERVERS);
    }

    /// The same for these real servers.
    ///
    /// # Panics
    ///
    /// As [`Self::prepare`].
    pub fn prepare_on(self, cluster: &Cluster, servers: &[Host]) {
        let method = match self {
            Self::Nat | Self::FullNat => return,
            Self::DirectRouting => "dr",
            Self::Tunnel | Self::Gre | Self::GreSummed | Self::Gue | Self::GueSummed => "tunnel",
        };
        for server in servers {
            let mut command = cluster.command(*server, program("xvs"));
            succeed(
                command
                    .args(["realserver", "up", "--vip", &VIP.to_string()])
                    .args(["--method", method, "--dev", "lan"]),
            );
        }
    }
}
