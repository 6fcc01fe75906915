//! The connection synchronization daemons.

use std::net::{IpAddr, Ipv4Addr};
use std::slice;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The role of a daemon in connection synchronization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SyncRole {
    /// It sends its connections to other directors.
    Master,
    /// It receives and stores connections of other directors.
    Backup,
}

impl SyncRole {
    /// The name in commands and listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

/// A synchronization daemon of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SyncDaemon {
    /// The daemon's role.
    pub role: SyncRole,
    /// The interface of its messages.
    pub interface: String,
    /// The sync ID; 0 of a backup: it accepts every one.
    pub sync_id: u8,
    /// The longest message, in bytes of UDP payload.
    pub max_len_bytes: u16,
    /// The multicast group; not used if there are peers.
    pub group: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// The time to live of its packets, in hops.
    pub ttl: u8,
    /// The other directors to which a master sends by unicast, and from which alone a backup reads messages, all of one
    /// family. Empty: the group.
    #[serde(default)]
    pub peers: Vec<IpAddr>,
}

impl SyncDaemon {
    /// This daemon as it runs: with the nearest permitted length. Source: ipvs-behaviour, section 12.1.
    pub fn admitted(&self) -> Self {
        let headers = if self.is_ipv4() { 28 } else { 48 };
        let least = match self.role {
            SyncRole::Master => 1,
            SyncRole::Backup => 1024,
        };
        Self { max_len_bytes: self.max_len_bytes.clamp(least, u16::MAX - headers), ..self.clone() }
    }

    /// The addresses that messages are sent to: the peers or else the group.
    pub fn destinations(&self) -> &[IpAddr] {
        if self.peers.is_empty() { slice::from_ref(&self.group) } else { &self.peers }
    }

    /// Whether its messages are of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.destinations()[0].is_ipv4()
    }

    /// Checks the peers.
    ///
    /// # Errors
    /// The first peer with a fault, or too many peers.
    pub fn check_peers(&self) -> Result<(), PeerError> {
        if self.peers.len() > PEERS_MAX {
            return Err(PeerError::TooMany(self.peers.len()));
        }
        for (at, peer) in self.peers.iter().enumerate() {
            let is_broadcast = *peer == IpAddr::V4(Ipv4Addr::BROADCAST);
            let is_mapped = matches!(peer, IpAddr::V6(peer) if peer.to_ipv4_mapped().is_some());
            let is_link_local = matches!(peer, IpAddr::V6(peer) if peer.is_unicast_link_local());
            if peer.is_multicast() {
                return Err(PeerError::Multicast(*peer));
            } else if peer.is_unspecified() || peer.is_loopback() || is_broadcast || is_mapped {
                return Err(PeerError::NoDirector(*peer));
            } else if is_link_local {
                return Err(PeerError::LinkLocal(*peer));
            } else if peer.is_ipv4() != self.is_ipv4() {
                return Err(PeerError::OtherFamily(*peer));
            } else if self.peers[..at].contains(peer) {
                return Err(PeerError::Twice(*peer));
            }
        }
        Ok(())
    }
}

/// Why a daemon cannot have these peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PeerError {
    /// More than [`PEERS_MAX`].
    #[error("{0} peers are more than {PEERS_MAX}, the limit; name fewer in --sync-peers")]
    TooMany(usize),
    /// A group has an option of its own.
    #[error(
        "peer {0} is a multicast address; name the other director's own address, or use --mcast-group instead"
    )]
    Multicast(IpAddr),
    /// It is unspecified, of a loopback, broadcast or IPv4-mapped.
    #[error("peer {0} is no address of another director; name the one that its messages come from")]
    NoDirector(IpAddr),
    /// It is valid on one link alone.
    #[error("peer {0} is a link-local address; name a global or a unique local one")]
    LinkLocal(IpAddr),
    /// One socket sends to all.
    #[error("peer {0} is of another family than the first one; name all by IPv4, or all by IPv6")]
    OtherFamily(IpAddr),
    /// It would get each message twice.
    #[error("peer {0} is named twice; name it once")]
    Twice(IpAddr),
}

/// More peers are refused: status follows as many directors.
pub const PEERS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_is_not_permitted_becomes_the_nearest_one() {
        let run = |role, group: &str, max_len_bytes| {
            let group = group.parse().unwrap();
            SyncDaemon { role, max_len_bytes, group, ..daemon("") }.admitted().max_len_bytes
        };
        assert_eq!(run(SyncRole::Backup, "224.0.0.81", 100), 1024);
        assert_eq!(run(SyncRole::Master, "224.0.0.81", 100), 100);
        assert_eq!(run(SyncRole::Master, "224.0.0.81", 65_507), 65_507);
        assert_eq!(run(SyncRole::Master, "ff02::1", 65_507), 65_487);
        let by_peers = SyncDaemon { max_len_bytes: 65_507, ..daemon("2001:db8::2") };
        assert_eq!(by_peers.admitted().max_len_bytes, 65_487);
    }

    #[test]
    fn a_wrong_peer_is_refused_with_its_fault_and_the_next_step() {
        for peers in ["", "192.0.2.2", "192.0.2.2 198.51.100.2", "2001:db8::2 fd00::2"] {
            assert_eq!(daemon(peers).check_peers(), Ok(()), "{peers}");
        }
        let many = |count| (1..=count).map(|last| format!("192.0.2.{last}")).collect::<Vec<_>>().join(" ");
        assert_eq!(daemon(&many(16)).check_peers(), Ok(()));
        for (peers, fault) in [
            (many(17).as_str(), "17 peers are more than 16, the limit; name fewer in --sync-peers"),
            ("192.0.2.2 224.0.0.81", "peer 224.0.0.81 is a multicast address; name the other director's own"),
            ("ff02::81", "peer ff02::81 is a multicast address"),
            ("0.0.0.0", "peer 0.0.0.0 is no address of another director; name the one"),
            ("255.255.255.255", "peer 255.255.255.255 is no address of another director"),
            ("127.0.0.1", "peer 127.0.0.1 is no address of another director"),
            ("::ffff:192.0.2.2", "peer ::ffff:192.0.2.2 is no address of another director"),
            ("fe80::2", "peer fe80::2 is a link-local address; name a global"),
            ("192.0.2.2 2001:db8::2", "peer 2001:db8::2 is of another family than the first one; name all"),
            ("192.0.2.2 192.0.2.2", "peer 192.0.2.2 is named twice; name it once"),
        ] {
            let refused = daemon(peers).check_peers().unwrap_err().to_string();
            assert!(refused.starts_with(fault), "{refused}");
        }
    }

    fn daemon(peers: &str) -> SyncDaemon {
        SyncDaemon {
            role: SyncRole::Master,
            interface: "eth0".to_owned(),
            sync_id: 0,
            max_len_bytes: 1472,
            group: IpAddr::from([224, 0, 0, 81]),
            port: 8848,
            ttl: 1,
            peers: peers.split_whitespace().map(|peer| peer.parse().unwrap()).collect(),
        }
    }
}
